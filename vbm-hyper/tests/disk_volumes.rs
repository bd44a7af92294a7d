//! What is done with volumes: blank ones, larger ones, copies, what leaves the pool. QEMU's own tools judge.

#![allow(clippy::unwrap_used, reason = "helpers of tests panic as tests do")]

mod common;
mod disks;

use disks::{Place, pattern, qemu_img, try_qemu_img, volume};
use std::{
    pin::Pin,
    process::{Child, Command, Stdio},
    task::{Context, Poll},
    time::Duration,
};
use tokio::io::AsyncWrite;
use vbm_core::ErrorKind;
use vbm_hyper::{DiskKind, Error, ImageFormat, OpCx, Room, limits};

fn cx() -> OpCx {
    OpCx::new()
}

/// Writes into a disk from outside, as a guest would.
fn write(path: &std::path::Path, command: &str) {
    let out = Command::new("qemu-io")
        .args(["-f", "qcow2", "-c", command, path.to_str().unwrap()])
        .output()
        .expect("qemu-io of qemu-utils is there");
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
}

fn same(a: (&str, &std::path::Path), b: (&str, &std::path::Path)) {
    let (a, b) = ((a.0, a.1.to_str().unwrap()), (b.0, b.1.to_str().unwrap()));
    qemu_img(&["compare", "-f", a.0, "-F", b.0, a.1, b.1]);
}

#[tokio::test]
async fn a_blank_disk_of_either_kind_is_empty_sound_and_holds_no_image() {
    let place = Place::new().await;
    for (kind, bytes) in [
        (DiskKind::Qcow2, 512),
        (DiskKind::Qcow2, 2 << 40),
        (DiskKind::Vdi, 512),
        (DiskKind::Vdi, 5 << 20),
    ] {
        let id = volume();
        let path = place.pool.create_blank(id, bytes, kind).await.unwrap();
        let text = path.to_str().unwrap();
        if !common::left_out("qemu") {
            let info = qemu_img(&["info", "--output=json", text]);
            assert!(info.contains(&format!("\"virtual-size\": {bytes}")), "{info}");
            assert!(!info.contains("backing"), "{info}");
            assert!(qemu_img(&["check", text]).contains("No errors"));
        }
        let listed = place.pool.list().await.unwrap();
        assert_eq!(
            (listed[0].id, listed[0].image, listed[0].virtual_bytes),
            (id, None, bytes)
        );
        let again = place.pool.create_blank(id, bytes, kind).await.unwrap_err();
        assert!(matches!(again, Error::VolumeExists(_)));
        place.pool.remove(id).await.unwrap();
    }
    for (kind, bytes) in [
        (DiskKind::Qcow2, 0),
        (DiskKind::Qcow2, 513),
        (DiskKind::Vdi, 4 << 40),
    ] {
        let error = place.pool.create_blank(volume(), bytes, kind).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidInput);
    }
    assert!(place.files().is_empty(), "{:?}", place.files());
}

#[tokio::test]
async fn copies_clones_and_exports_of_a_volume_are_the_same_disk() {
    if common::left_out("qemu") {
        return;
    }
    let place = Place::new().await;
    let image = place.raw(&pattern(3 << 20)).await;
    let (origin, clone, copy, vdi) = (volume(), volume(), volume(), volume());
    let path = place.pool.clone_image(image, origin, 8 << 20).await.unwrap();
    // New content, content over the image's, zeros over the image's.
    write(&path, "write -P 5 4M 100k");
    write(&path, "write -P 6 1M 64k");
    write(&path, "write -z 2M 128k");
    let cx = cx();
    let cloned = place.pool.clone_volume(&cx, origin, clone).await.unwrap();
    let copied = place
        .pool
        .copy_volume(&cx, origin, copy, DiskKind::Qcow2)
        .await
        .unwrap();
    let as_vdi = place
        .pool
        .copy_volume(&cx, origin, vdi, DiskKind::Vdi)
        .await
        .unwrap();
    for (format, other) in [("qcow2", &cloned), ("qcow2", &copied), ("vdi", &as_vdi)] {
        assert!(qemu_img(&["check", other.to_str().unwrap()]).contains("No errors"));
        same(("qcow2", &path), (format, other));
    }
    assert_eq!(place.pool.chain(origin).await.unwrap().len(), 2);
    assert_eq!(place.pool.chain(clone).await.unwrap().len(), 2);
    let place = Place::reopened(place).await;
    assert_eq!(place.pool.chain(copy).await.unwrap().len(), 1);
    assert_eq!(place.pool.chain(vdi).await.unwrap()[0].format, ImageFormat::Vdi);
    assert_eq!(place.images.list().await.unwrap()[0].users, 2, "two stand on it");
    for format in [ImageFormat::Raw, ImageFormat::Qcow2, ImageFormat::Vdi] {
        let to = place.path(&format!("out.{format}"));
        let out = place.pool.export_file(&cx, origin, format, &to).await.unwrap();
        same(("qcow2", &path), (format.name(), &to));
        assert_eq!(
            (out.virtual_bytes, out.file_bytes),
            (8 << 20, to.metadata().unwrap().len())
        );
        let mut stream = Vec::new();
        let again = place.pool.export(&cx, origin, format, &mut stream).await.unwrap();
        assert_eq!(again, out);
        assert_eq!(
            stream,
            std::fs::read(&to).unwrap(),
            "a stream is as good as a file"
        );
        assert_eq!(disks::sha(&stream), out.digest);
        let there = place
            .pool
            .export_file(&cx, origin, format, &to)
            .await
            .unwrap_err();
        assert!(
            matches!(there, Error::Io { .. }),
            "a file that is there stays: {there}"
        );
    }
    let vmdk = place
        .pool
        .export_file(&cx, origin, ImageFormat::Vmdk, place.path("x"))
        .await;
    assert_eq!(vmdk.unwrap_err().kind(), ErrorKind::InvalidInput);
    let none = place
        .pool
        .export_file(&cx, volume(), ImageFormat::Raw, place.path("x"))
        .await;
    assert!(matches!(none.unwrap_err(), Error::NoSuchVolume(_)));
}

#[tokio::test]
async fn a_flat_volume_is_the_same_disk_and_lets_its_image_go() {
    if common::left_out("qemu") {
        return;
    }
    let place = Place::new().await;
    let image = place.raw(&pattern(2 << 20)).await;
    let id = volume();
    let path = place.pool.clone_image(image, id, 4 << 20).await.unwrap();
    write(&path, "write -P 5 3M 64k");
    let before = place.path("before.raw");
    place
        .pool
        .export_file(&cx(), id, ImageFormat::Raw, &before)
        .await
        .unwrap();

    qemu_img(&["snapshot", "-c", "kept", path.to_str().unwrap()]);
    let refused = place.pool.flatten(&cx(), id).await.unwrap_err();
    assert!(
        vbm_core::Error::from(refused)
            .why()
            .contains("snapshots would be lost")
    );
    qemu_img(&["snapshot", "-d", "kept", path.to_str().unwrap()]);

    place.pool.flatten(&cx(), id).await.unwrap();
    place.pool.flatten(&cx(), id).await.unwrap();
    assert!(qemu_img(&["check", path.to_str().unwrap()]).contains("No errors"));
    same(("qcow2", &path), ("raw", &before));
    assert_eq!(place.pool.chain(id).await.unwrap().len(), 1);
    place.images.remove(image).await.unwrap();
    assert_eq!(place.files(), [path]);
}

#[tokio::test]
async fn a_volume_grows_in_each_format_and_never_shrinks() {
    if common::left_out("qemu") {
        return;
    }
    let place = Place::new().await;
    let image = place.raw(&pattern(1 << 20)).await;
    for (kind, sizes) in [
        // Within its first table's cluster; then over its border, where `qemu-img` moves it.
        (DiskKind::Qcow2, [2 << 20, 4 << 40, 5 << 40]),
        // Within its map; then a map that has to be longer.
        (DiskKind::Vdi, [2 << 20, 200 << 30, 300 << 30]),
    ] {
        let id = volume();
        let path = place.pool.clone_image_as(image, id, 1 << 20, kind).await.unwrap();
        for bytes in sizes {
            place.pool.resize(&cx(), id, bytes).await.unwrap();
            place.pool.resize(&cx(), id, bytes).await.unwrap();
            let info = qemu_img(&["info", "--output=json", path.to_str().unwrap()]);
            assert!(info.contains(&format!("\"virtual-size\": {bytes}")), "{info}");
            assert!(qemu_img(&["check", path.to_str().unwrap()]).contains("No errors"));
        }
        let less = place.pool.resize(&cx(), id, 1 << 20).await.unwrap_err();
        assert!(vbm_core::Error::from(less).why().contains("would be lost"));
        let raw = place.images.path(image).unwrap();
        // What is longer is zeros: the content is the image's.
        same((kind.extension(), &path), ("raw", &raw));
    }
    let none = place.pool.resize(&cx(), volume(), 1 << 20).await.unwrap_err();
    assert_eq!(none.kind(), ErrorKind::NotFound);
}

#[tokio::test]
async fn a_volume_that_leads_out_of_the_pool_is_refused_before_anything_is_touched() {
    if common::left_out("qemu") {
        return;
    }
    let place = Place::new().await;
    let secret = place.path("secret.qcow2");
    qemu_img(&["create", "-q", "-f", "qcow2", secret.to_str().unwrap(), "1M"]);
    let before = std::fs::read(&secret).unwrap();
    let link = volume();
    std::os::unix::fs::symlink(&secret, place.path(&format!("pool/{link}.qcow2"))).unwrap();
    let out = volume();
    for (at, base) in [
        (out, secret.to_str().unwrap().to_owned()),
        (volume(), "../secret.qcow2".to_owned()),
        (
            volume(),
            place
                .path("images/sha256/../../secret.qcow2")
                .to_str()
                .unwrap()
                .to_owned(),
        ),
        (
            volume(),
            place.path("images/sha256/no-digest").to_str().unwrap().to_owned(),
        ),
        (link, String::new()),
    ] {
        let path = place.path(&format!("pool/{at}.qcow2"));
        if !base.is_empty() {
            let path = path.to_str().unwrap();
            qemu_img(&[
                "create", "-q", "-u", "-f", "qcow2", "-F", "qcow2", "-b", &base, path, "1M",
            ]);
        }
        let to = place.path("out.raw");
        let errors = [
            place.pool.chain(at).await.err(),
            place
                .pool
                .export_file(&cx(), at, ImageFormat::Raw, &to)
                .await
                .err(),
            place.pool.flatten(&cx(), at).await.err(),
            place
                .pool
                .copy_volume(&cx(), at, volume(), DiskKind::Qcow2)
                .await
                .err(),
        ];
        for error in errors {
            let error = error.expect("refused");
            assert!(matches!(error, Error::BadDisk { .. }), "{base}: {error}");
        }
        assert!(!to.exists());
    }
    for error in [
        place.pool.resize(&cx(), link, 2 << 20).await.unwrap_err(),
        place.pool.remove(link).await.unwrap_err(),
    ] {
        assert!(matches!(error, Error::BadDisk { .. }), "{error}");
    }
    assert_eq!(std::fs::read(&secret).unwrap(), before);
    assert!(
        place
            .pool
            .list()
            .await
            .unwrap()
            .iter()
            .all(|volume| volume.id != link)
    );
}

#[tokio::test]
async fn a_chain_is_counted_capped_and_flattened() {
    if common::left_out("qemu") {
        return;
    }
    let place = Place::new().await;
    let image = place.raw(&pattern(1 << 20)).await;
    let id = volume();
    let path = place.pool.clone_image(image, id, 1 << 20).await.unwrap();
    // Overlays as snapshots outside of a disk make them: what was the disk is moved aside.
    let stack = |n: usize| {
        let below = place.path(&format!("pool/{id}.{n}.qcow2"));
        std::fs::rename(&path, &below).unwrap();
        let (below, top) = (below.to_str().unwrap(), path.to_str().unwrap());
        qemu_img(&["create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", below, top]);
        write(&path, &format!("write -P {n} {}k 4k", n * 32));
    };
    for n in 1..=limits::CHAIN_MAX_LAYERS - 2 {
        stack(n);
    }
    let chain = place.pool.chain(id).await.unwrap();
    assert_eq!(chain.len(), limits::CHAIN_MAX_LAYERS);
    assert_eq!(chain.last().unwrap().image, Some(image));
    let raw = place.path("deep.raw");
    place
        .pool
        .export_file(&cx(), id, ImageFormat::Raw, &raw)
        .await
        .unwrap();
    same(("qcow2", &path), ("raw", &raw));
    stack(limits::CHAIN_MAX_LAYERS - 1);
    let error = place.pool.chain(id).await.unwrap_err();
    assert!(vbm_core::Error::from(error).why().contains("at most 16 files"));
}

#[tokio::test]
async fn a_quota_and_a_reserve_are_asked_before_anything_is_made() {
    let place = Place::new().await;
    let image = place.raw(&pattern(1 << 20)).await;
    place.pool.set_room(Room::default().with_quota(10 << 20));
    let id = volume();
    place.pool.clone_image(image, id, 6 << 20).await.unwrap();
    let errors = [
        place.pool.clone_image(image, volume(), 5 << 20).await.err(),
        place
            .pool
            .create_blank(volume(), 5 << 20, DiskKind::Qcow2)
            .await
            .err(),
        place
            .pool
            .create_blank(volume(), 5 << 20, DiskKind::Vdi)
            .await
            .err(),
        place
            .pool
            .copy_image(&cx(), image, volume(), 5 << 20, DiskKind::Qcow2)
            .await
            .err(),
        place
            .pool
            .copy_volume(&cx(), id, volume(), DiskKind::Qcow2)
            .await
            .err(),
        place.pool.clone_volume(&cx(), id, volume()).await.err(),
        place.pool.resize(&cx(), id, 11 << 20).await.err(),
    ];
    for error in errors {
        let error = error.expect("refused");
        assert!(
            matches!(
                error,
                Error::OverQuota {
                    used_bytes: 6_291_456,
                    quota_bytes: 10_485_760,
                    ..
                }
            ),
            "{error:?}"
        );
        assert_eq!(error.kind(), ErrorKind::Exhausted);
    }
    place.pool.resize(&cx(), id, 10 << 20).await.unwrap();
    place.pool.set_room(Room::default().with_reserve(u64::MAX));
    let error = place
        .pool
        .copy_volume(&cx(), id, volume(), DiskKind::Qcow2)
        .await
        .unwrap_err();
    assert!(
        matches!(
            error,
            Error::NoRoom {
                reserve_bytes: u64::MAX,
                ..
            }
        ),
        "{error:?}"
    );
    assert_eq!(place.files().len(), 3, "image, note, volume: {:?}", place.files());
}

/// Takes so much and then nothing more.
struct Slow(usize);

impl AsyncWrite for Slow {
    fn poll_write(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<std::io::Result<usize>> {
        if self.0 == 0 {
            return Poll::Pending;
        }
        let taken = bytes.len().min(self.0);
        self.0 -= taken;
        Poll::Ready(Ok(taken))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

#[tokio::test]
async fn an_export_that_is_called_off_or_late_ends_and_leaves_the_volume_free() {
    let place = Place::new().await;
    let image = place.raw(&pattern(8 << 20)).await;
    let id = volume();
    place.pool.clone_image(image, id, 8 << 20).await.unwrap();
    let cx = OpCx::new();
    let mut progress = cx.progress();
    let export = place.pool.export(&cx, id, ImageFormat::Raw, Slow(1 << 20));
    let called_off = async {
        progress
            .wait_for(|p| p.phase == "writing" && p.done > 0)
            .await
            .unwrap();
        cx.cancel();
    };
    let (ended, ()) = tokio::join!(export, called_off);
    assert_eq!(ended.unwrap_err().kind(), ErrorKind::Cancelled);
    let late = OpCx::new().within(Duration::from_millis(50));
    let ended = place
        .pool
        .export(&late, id, ImageFormat::Raw, Slow(1 << 20))
        .await;
    assert_eq!(ended.unwrap_err().kind(), ErrorKind::DeadlineExceeded);
    // Nothing holds it any more.
    place.pool.remove(id).await.unwrap();

    let to = place.path("out.raw");
    let cx = OpCx::new();
    cx.cancel();
    let ended = place
        .images
        .export_file(&cx, image, ImageFormat::Qcow2, &to)
        .await;
    assert_eq!(ended.unwrap_err().kind(), ErrorKind::Cancelled);
    assert!(!to.exists());
}

#[tokio::test]
async fn what_the_pool_reads_qemu_may_read_and_not_change() {
    if common::left_out("qemu") {
        return;
    }
    let place = Place::new().await;
    let image = place.raw(&pattern(8 << 20)).await;
    let id = volume();
    let path = place.pool.clone_image(image, id, 8 << 20).await.unwrap();
    let cx = OpCx::new();
    let mut progress = cx.progress();
    let meanwhile = async {
        progress
            .wait_for(|p| p.phase == "writing" && p.done > 0)
            .await
            .unwrap();
        let path = path.to_str().unwrap();
        assert!(qemu_img(&["info", path]).contains("virtual size"));
        let (done, said) = try_qemu_img(&["resize", "-q", "-f", "qcow2", path, "16M"]);
        assert!(!done && said.contains("lock"), "{said}");
        let ours = place.pool.resize(&OpCx::new(), id, 16 << 20).await.unwrap_err();
        assert!(matches!(ours, Error::DiskInUse { .. }), "{ours}");
        place
            .pool
            .export(&OpCx::new(), id, ImageFormat::Raw, tokio::io::sink())
            .await
            .unwrap();
        cx.cancel();
    };
    let export = place.pool.export(&cx, id, ImageFormat::Raw, Slow(1 << 20));
    let (ended, ()) = tokio::join!(export, meanwhile);
    assert!(ended.is_err());
    qemu_img(&["resize", "-q", "-f", "qcow2", path.to_str().unwrap(), "16M"]);
}

/// A process that has a disk open for writing, as a VM has; ended when dropped.
struct Writer(Child);

impl Writer {
    fn new(path: &std::path::Path) -> Self {
        let child = Command::new("qemu-io")
            .args(["-f", "qcow2", path.to_str().unwrap()])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .spawn()
            .expect("qemu-io of qemu-utils is there");
        Self(child)
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

#[tokio::test]
async fn who_has_a_disk_is_named_by_everything_that_needs_it_at_rest() {
    if common::left_out("qemu") {
        return;
    }
    let place = Place::new().await;
    let image = place.raw(&pattern(1 << 20)).await;
    let id = volume();
    let path = place.pool.clone_image(image, id, 1 << 20).await.unwrap();
    let writer = Writer::new(&path);
    let busy = async {
        // The same size does nothing, once it is known that nobody has the disk.
        while place.pool.resize(&cx(), id, 1 << 20).await.is_ok() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), busy)
        .await
        .expect("qemu-io takes its locks");
    let to = place.path("out.raw");
    let errors = [
        place.pool.resize(&cx(), id, 2 << 20).await.err(),
        place.pool.flatten(&cx(), id).await.err(),
        place
            .pool
            .export_file(&cx(), id, ImageFormat::Raw, &to)
            .await
            .err(),
        place
            .pool
            .copy_volume(&cx(), id, volume(), DiskKind::Qcow2)
            .await
            .err(),
        place.pool.clone_volume(&cx(), id, volume()).await.err(),
        place.pool.remove(id).await.err(),
    ];
    for error in errors {
        let error = error.expect("refused");
        let Error::DiskInUse { path: found, holder } = &error else {
            panic!("{error}");
        };
        assert_eq!(found, &path);
        assert_eq!(holder, &format!("process {} (qemu-io)", writer.0.id()));
        assert_eq!(error.kind(), ErrorKind::Conflict);
    }
    assert_eq!(
        place.pool.chain(id).await.unwrap().len(),
        2,
        "the chain can be read"
    );
    drop(writer);
    place.pool.remove(id).await.unwrap();
    assert_eq!(place.images.list().await.unwrap()[0].users, 0);
}
