//! Images, clones, and what must not be left behind. What QEMU's own tools say of our files.

#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "helpers of tests panic and print as tests do"
)]

mod common;

use common::left_out;
use sha2::Digest as _;
use std::{
    os::unix::fs::{MetadataExt, PermissionsExt},
    path::{Path, PathBuf},
    pin::Pin,
    process::Command,
    task::{Context, Poll},
};
use tokio::io::{AsyncRead, ReadBuf};
use vbm_core::{Digest, DiskFormat, ErrorKind, VolumeId};
use vbm_hyper::{ContentKind, Error, ImageStore, Pool};

const QCOW2: ContentKind = ContentKind::Disk(DiskFormat::Qcow2);

fn volume() -> VolumeId {
    VolumeId::from_uuid(uuid::Uuid::now_v7())
}

fn sha(bytes: &[u8]) -> Digest {
    Digest::new(sha2::Sha256::digest(bytes).into())
}

struct Place {
    dir: tempfile::TempDir,
    images: ImageStore,
    pool: Pool,
}

impl Place {
    async fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let images = ImageStore::open(dir.path().join("images")).await.unwrap();
        let pool = Pool::open(dir.path().join("pool"), images.clone()).await.unwrap();
        Self { dir, images, pool }
    }

    fn path(&self, sub: &str) -> PathBuf {
        self.dir.path().join(sub)
    }

    /// All files, without the locks.
    fn files(&self) -> Vec<PathBuf> {
        fn walk(dir: &Path, found: &mut Vec<PathBuf>) {
            for entry in std::fs::read_dir(dir).unwrap() {
                let path = entry.unwrap().path();
                if path.is_dir() {
                    walk(&path, found);
                } else if path.file_name().unwrap() != "lock" {
                    found.push(path);
                }
            }
        }
        let mut found = Vec::new();
        walk(self.dir.path(), &mut found);
        found
    }

    async fn raw(&self, bytes: &[u8]) -> Digest {
        self.images
            .import(bytes, None, ContentKind::Disk(DiskFormat::Raw))
            .await
            .unwrap()
            .digest
    }
}

#[tokio::test]
async fn a_content_is_kept_once_read_only_and_under_its_name() {
    let place = Place::new().await;
    let bytes = vec![7; 1 << 20];
    let file = place
        .images
        .import(&bytes[..], Some(sha(&bytes)), ContentKind::Blob)
        .await
        .unwrap();
    assert_eq!((file.digest, file.file_bytes), (sha(&bytes), 1 << 20));
    let again = place
        .images
        .import(&bytes[..], None, ContentKind::Blob)
        .await
        .unwrap();
    assert_eq!(again, file);
    let path = place.images.path(file.digest).unwrap();
    assert_eq!(std::fs::read(&path).unwrap(), bytes);
    assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, 0o444);
    assert_eq!(place.files().len(), 1);
    place.images.remove(file.digest).await.unwrap();
    assert!(!place.images.has(file.digest));
    assert!(matches!(
        place.images.remove(file.digest).await.unwrap_err(),
        Error::NoSuchImage(_)
    ));
}

/// Gives some bytes, then fails; or never ends.
struct Broken {
    bytes: usize,
    hangs: bool,
}

impl AsyncRead for Broken {
    fn poll_read(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        if self.bytes == 0 {
            return if self.hangs {
                Poll::Pending
            } else {
                Poll::Ready(Err(std::io::Error::other("the line broke")))
            };
        }
        let n = self.bytes.min(buf.remaining()).min(1000);
        buf.put_slice(&vec![1; n]);
        self.bytes -= n;
        Poll::Ready(Ok(()))
    }
}

#[tokio::test]
async fn an_import_that_breaks_is_wrong_or_is_given_up_leaves_nothing() {
    let place = Place::new().await;
    let broken = Broken {
        bytes: 300_000,
        hangs: false,
    };
    let error = place
        .images
        .import(broken, None, ContentKind::Blob)
        .await
        .unwrap_err();
    assert!(vbm_core::Error::from(error).why().contains("the line broke"));
    let error = place
        .images
        .import(&b"other"[..], Some(sha(b"this")), ContentKind::Blob)
        .await
        .unwrap_err();
    assert!(matches!(error, Error::WrongDigest { .. }));
    let empty = place
        .images
        .import(&b""[..], None, ContentKind::Blob)
        .await
        .unwrap_err();
    assert_eq!(empty.kind(), ErrorKind::InvalidInput);
    let hangs = Broken {
        bytes: 300_000,
        hangs: true,
    };
    let import = place.images.import(hangs, None, ContentKind::Blob);
    assert!(
        tokio::time::timeout(std::time::Duration::from_millis(50), import)
            .await
            .is_err()
    );
    let nothing = async {
        while !place.files().is_empty() {
            tokio::time::sleep(std::time::Duration::from_millis(2)).await;
        }
    };
    tokio::time::timeout(std::time::Duration::from_secs(10), nothing)
        .await
        .expect("nothing is left");
}

#[tokio::test]
async fn a_disk_that_is_none_is_refused_with_a_reason() {
    let place = Place::new().await;
    for (bytes, kind, word) in [
        (&b"PK\x03\x04 a zip file, renamed; long enough to hold a header, or so one might think at first sight......."[..], QCOW2, "mark"),
        (&b"QFI\xfb\0\0\0\x03"[..], QCOW2, "header"),
        (&b"QFI\xfb\0\0\0\x03"[..], ContentKind::Disk(DiskFormat::Raw), "header"),
        (&[0; 513][..], ContentKind::Disk(DiskFormat::Raw), "sectors"),
        (&b""[..], ContentKind::Disk(DiskFormat::Raw), "empty"),
    ] {
        let error = place.images.import(bytes, None, kind).await.unwrap_err();
        assert!(matches!(error, Error::BadDisk { .. }), "{error}");
        let error = vbm_core::Error::from(error);
        assert!(error.why().contains(word) && error.kind() == ErrorKind::InvalidInput, "{error}");
    }
    assert!(place.files().is_empty());
}

#[tokio::test]
async fn an_image_is_not_removed_while_a_clone_needs_it() {
    let place = Place::new().await;
    let image = place.raw(&[1; 4096]).await;
    let (a, b) = (volume(), volume());
    place.pool.clone_image(image, a, 1 << 20).await.unwrap();
    place.pool.clone_image(image, b, 1 << 20).await.unwrap();
    assert!(matches!(
        place.images.remove(image).await.unwrap_err(),
        Error::ImageInUse { users: 2, .. }
    ));
    place.pool.remove(a).await.unwrap();
    place.pool.remove(a).await.unwrap();
    assert!(place.images.remove(image).await.is_err());
    place.pool.remove(b).await.unwrap();
    place.images.remove(image).await.unwrap();
    assert!(place.files().is_empty(), "{:?}", place.files());
}

#[tokio::test]
async fn a_clone_that_cannot_be_made_leaves_nothing() {
    let place = Place::new().await;
    let image = place.raw(&[1; 4096]).await;
    let id = volume();
    let small = place.pool.clone_image(image, id, 512).await.unwrap_err();
    assert_eq!(small.kind(), ErrorKind::InvalidInput);
    let odd = place.pool.clone_image(image, id, 4097).await.unwrap_err();
    assert_eq!(odd.kind(), ErrorKind::InvalidInput);
    let unknown = place.pool.clone_image(sha(b"?"), id, 4096).await.unwrap_err();
    assert_eq!(unknown.kind(), ErrorKind::NotFound);
    assert_eq!(place.images.list().await.unwrap()[0].users, 0);
    assert_eq!(place.files().len(), 1);
    place.pool.clone_image(image, id, 4096).await.unwrap();
    assert!(matches!(
        place.pool.clone_image(image, id, 4096).await.unwrap_err(),
        Error::VolumeExists(_)
    ));
    assert_eq!(place.images.list().await.unwrap()[0].users, 1);
}

#[tokio::test]
async fn a_pool_that_is_opened_is_swept_and_its_notes_are_mended() {
    let place = Place::new().await;
    let image = place.raw(&[1; 4096]).await;
    let (kept, lost) = (volume(), volume());
    place.pool.clone_image(image, kept, 4096).await.unwrap();
    place.pool.clone_image(image, lost, 4096).await.unwrap();
    // As a kill -9 would leave it: half-made files, a volume without a note, a note without a volume.
    std::fs::write(place.path("pool/.tmp-1-1"), b"half").unwrap();
    std::fs::write(place.path("images/tmp/.tmp-1-1"), b"half").unwrap();
    std::fs::write(place.path("pool/not-ours.txt"), b"stays").unwrap();
    std::fs::remove_file(place.pool.path(lost).unwrap()).unwrap();
    let notes = place.path("images/refs").join(image.to_string());
    for note in std::fs::read_dir(&notes).unwrap() {
        let path = note.unwrap().path();
        if path.to_str().unwrap().ends_with(&kept.to_string()) {
            std::fs::remove_file(path).unwrap();
        }
    }
    let Place { dir, images, pool } = place;
    assert!(matches!(
        ImageStore::open(dir.path().join("images")).await.unwrap_err(),
        Error::InUse { .. }
    ));
    drop((images, pool));
    let images = ImageStore::open(dir.path().join("images")).await.unwrap();
    let pool = Pool::open(dir.path().join("pool"), images.clone()).await.unwrap();
    assert_eq!(
        images.list().await.unwrap()[0].users,
        1,
        "the kept volume holds it, the lost one does not"
    );
    let list = pool.list().await.unwrap();
    assert_eq!(
        (list.len(), list[0].id, list[0].image, list[0].virtual_bytes),
        (1, kept, Some(image), 4096)
    );
    assert!(
        dir.path().join("pool/not-ours.txt").exists(),
        "what is not ours is not touched"
    );
    assert!(!dir.path().join("pool/.tmp-1-1").exists() && !dir.path().join("images/tmp/.tmp-1-1").exists());
}

#[tokio::test]
async fn many_clones_and_removals_at_the_same_time_keep_the_count() {
    let place = Place::new().await;
    let image = place.raw(&[1; 4096]).await;
    let mut tasks = tokio::task::JoinSet::new();
    for n in 0..64 {
        let pool = place.pool.clone();
        tasks.spawn(async move {
            let id = volume();
            pool.clone_image(image, id, 1 << 30).await.unwrap();
            if n % 2 == 0 {
                pool.remove(id).await.unwrap();
            }
        });
    }
    tasks.join_all().await;
    assert_eq!(place.images.list().await.unwrap()[0].users, 32);
    assert_eq!(place.pool.list().await.unwrap().len(), 32);
}

fn qemu_img(args: &[&str]) -> String {
    let out = Command::new("qemu-img")
        .args(args)
        .output()
        .expect("qemu-img is missing: install qemu-utils, or leave this out with VBM_LEAVE_OUT=qemu");
    let text = String::from_utf8_lossy(&out.stdout).into_owned() + &String::from_utf8_lossy(&out.stderr);
    assert!(out.status.success(), "qemu-img {args:?}: {text}");
    text
}

#[tokio::test]
async fn qemu_img_finds_nothing_wrong_with_a_clone_of_any_size() {
    if left_out("qemu") {
        return;
    }
    let place = Place::new().await;
    let base = place.path("base.qcow2");
    qemu_img(&["create", "-q", "-f", "qcow2", base.to_str().unwrap(), "1M"]);
    let qcow2 = place
        .images
        .import(tokio::fs::File::open(&base).await.unwrap(), None, QCOW2)
        .await
        .unwrap();
    assert_eq!(qcow2.virtual_bytes, 1 << 20);
    let raw = place.raw(&[9; 4096]).await;
    for (image, format) in [(qcow2.digest, "qcow2"), (raw, "raw")] {
        for bytes in [1 << 20, (1 << 29) + 512, 1 << 40, 64 << 40] {
            let clone = place.pool.clone_image(image, volume(), bytes).await.unwrap();
            let path = clone.to_str().unwrap();
            assert!(qemu_img(&["check", path]).contains("No errors"));
            let info = qemu_img(&["info", "--output=json", "--backing-chain", path]);
            assert!(info.contains(&format!("\"virtual-size\": {bytes}")), "{info}");
            assert!(
                info.contains(&format!("\"backing-filename-format\": \"{format}\"")),
                "{info}"
            );
            assert!(clone.metadata().unwrap().blocks() * 512 <= 3 << 16, "it is thin");
        }
    }
}

#[tokio::test]
async fn what_qemu_img_makes_is_taken_unless_it_reaches_out_or_was_cut_short() {
    if left_out("qemu") {
        return;
    }
    let place = Place::new().await;
    let path = |name: &str| place.path(name).to_str().unwrap().to_owned();
    let raw: Vec<u8> = (0..8_u32 << 20)
        .map(|n| (n / 4096).to_le_bytes()[0] | 1)
        .collect();
    std::fs::write(place.path("r"), raw).unwrap();
    qemu_img(&["convert", "-f", "raw", "-O", "qcow2", &path("r"), &path("plain")]);
    qemu_img(&[
        "convert",
        "-c",
        "-f",
        "raw",
        "-O",
        "qcow2",
        &path("r"),
        &path("packed"),
    ]);
    qemu_img(&[
        "convert",
        "-f",
        "raw",
        "-O",
        "qcow2",
        "-o",
        "compat=0.10",
        &path("r"),
        &path("old"),
    ]);
    qemu_img(&[
        "convert",
        "-f",
        "raw",
        "-O",
        "qcow2",
        "-o",
        "extended_l2=on",
        &path("r"),
        &path("fine"),
    ]);
    qemu_img(&[
        "create",
        "-q",
        "-f",
        "qcow2",
        "-F",
        "raw",
        "-b",
        "/etc/passwd",
        &path("spy"),
        "1M",
    ]);
    qemu_img(&[
        "create",
        "-q",
        "-f",
        "qcow2",
        "-o",
        &format!("data_file={}", path("data")),
        &path("out"),
        "1M",
    ]);
    for name in ["plain", "packed", "old", "fine"] {
        let file = tokio::fs::File::open(path(name)).await.unwrap();
        let found = place
            .images
            .import(file, None, QCOW2)
            .await
            .unwrap_or_else(|e| panic!("{name}: {e}"));
        assert_eq!(found.virtual_bytes, 8 << 20);
        let whole = std::fs::read(path(name)).unwrap();
        for part in [whole.len() / 3, whole.len() / 2, whole.len() - (whole.len() / 10)] {
            let error = place
                .images
                .import(&whole[..part], None, QCOW2)
                .await
                .unwrap_err();
            assert!(
                vbm_core::Error::from(error).why().contains("cut short"),
                "{name} at {part}"
            );
        }
    }
    for (name, word) in [("spy", "backing file"), ("out", "external data file")] {
        let file = tokio::fs::File::open(path(name)).await.unwrap();
        let error = vbm_core::Error::from(place.images.import(file, None, QCOW2).await.unwrap_err());
        assert!(error.why().contains(word), "{error}");
    }
}

#[tokio::test]
async fn a_clone_is_made_faster_than_qemu_img_makes_one() {
    if left_out("qemu") {
        return;
    }
    let place = Place::new().await;
    let base = place.path("base.qcow2");
    qemu_img(&["create", "-q", "-f", "qcow2", base.to_str().unwrap(), "10G"]);
    let image = place
        .images
        .import(tokio::fs::File::open(&base).await.unwrap(), None, QCOW2)
        .await
        .unwrap()
        .digest;
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    for n in 0..9 {
        let begun = tokio::time::Instant::now();
        place.pool.clone_image(image, volume(), 10 << 30).await.unwrap();
        ours.push(begun.elapsed());
        let target = place.path(&format!("their-{n}"));
        let begun = tokio::time::Instant::now();
        let base = place.images.path(image).unwrap();
        qemu_img(&[
            "create",
            "-q",
            "-f",
            "qcow2",
            "-F",
            "qcow2",
            "-b",
            base.to_str().unwrap(),
            target.to_str().unwrap(),
        ]);
        theirs.push(begun.elapsed());
    }
    ours.sort();
    theirs.sort();
    // Printed, not judged: tests do not go by the clock.
    println!(
        "MEASURED clone: {:?}, qemu-img create -b: {:?}, ratio {:.3}",
        ours[4],
        theirs[4],
        ours[4].as_secs_f64() / theirs[4].as_secs_f64()
    );
}

/// Not a test: it runs on a file system of 1 MiB that the test after it has made.
#[tokio::test]
async fn helper_on_a_full_disk() {
    let Some(dir) = std::env::var_os("VBM_TEST_SMALL_DISK").map(PathBuf::from) else {
        return;
    };
    let images = ImageStore::open(dir.join("images")).await.unwrap();
    let pool = Pool::open(dir.join("pool"), images.clone()).await.unwrap();
    let image = images
        .import(&[1; 4096][..], None, ContentKind::Disk(DiskFormat::Raw))
        .await
        .unwrap()
        .digest;
    let error = images
        .import(&vec![1; 4 << 20][..], None, ContentKind::Blob)
        .await
        .unwrap_err();
    assert!(matches!(error, Error::DiskFull { .. }), "{error}");
    assert_eq!(std::fs::read_dir(dir.join("images/tmp")).unwrap().count(), 0);
    let filler = std::fs::write(dir.join("filler"), vec![1; 4 << 20]);
    assert!(filler.is_err(), "the disk is full now");
    let id = volume();
    let error = pool.clone_image(image, id, 1 << 30).await.unwrap_err();
    assert!(matches!(error, Error::NoRoom { .. }), "{error}");
    assert_eq!(
        std::fs::read_dir(dir.join("pool")).unwrap().count(),
        1,
        "the lock only"
    );
    std::fs::remove_file(dir.join("filler")).unwrap();
    assert_eq!(images.list().await.unwrap()[0].users, 0);
    pool.clone_image(image, id, 1 << 30).await.unwrap();
    println!("\nFULL DISK SURVIVED");
}

#[test]
fn a_full_disk_is_told_and_leaves_nothing_half_made() {
    if left_out("root") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let out = Command::new("unshare")
        .args(["--mount", "--propagation", "private", "sh", "-ec"])
        .arg("mount -t tmpfs -o size=1m,nr_inodes=64 small \"$VBM_TEST_SMALL_DISK\"; exec \"$0\" --exact helper_on_a_full_disk --nocapture")
        .arg(std::env::current_exe().unwrap())
        .env("VBM_TEST_SMALL_DISK", dir.path())
        .output()
        .expect("unshare of util-linux is there");
    let text = String::from_utf8_lossy(&out.stdout).into_owned() + &String::from_utf8_lossy(&out.stderr);
    assert!(
        text.contains("FULL DISK SURVIVED"),
        "a mount namespace needs root; leave this out with VBM_LEAVE_OUT=root. {text}"
    );
}
