//! Disks that come in: in every format, from sources that break, stall and lie, into places without room.

#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "helpers of tests panic and print as tests do"
)]

mod common;
mod disks;

use async_trait::async_trait;
use disks::{Place, pattern, qemu_img, sha, volume};
use std::{
    path::PathBuf,
    process::Command,
    sync::{
        Mutex,
        atomic::{AtomicUsize, Ordering},
    },
};
use tokio::io::{AsyncRead, AsyncReadExt};
use vbm_core::ErrorKind;
use vbm_hyper::{
    DiskKind, Error, Expected, ImageFormat, ImageSource, ImageStore, OpCx, Pool, Result, Room, SourceAnswer,
    limits,
};

fn any() -> Expected {
    Expected::default()
}

#[tokio::test]
async fn every_format_is_recognised_and_is_the_same_disk_here() {
    if common::left_out("qemu") {
        return;
    }
    let place = Place::new().await;
    let source = place.path("source.raw");
    std::fs::write(&source, pattern((3 << 20) + 512 * 7)).unwrap();
    for (name, format, options) in [
        ("a", "raw", &[][..]),
        ("b", "qcow2", &[]),
        ("c", "qcow2", &["-c"]),
        ("d", "vdi", &[]),
        ("e", "vdi", &["-o", "static=on"]),
        ("f", "vmdk", &[]),
        ("g", "vmdk", &["-o", "subformat=streamOptimized"]),
    ] {
        let came = place.path(name);
        let mut args = vec!["convert", "-f", "raw", "-O", format];
        args.extend(options);
        args.extend([source.to_str().unwrap(), came.to_str().unwrap()]);
        qemu_img(&args);
        let bytes = std::fs::read(&came).unwrap();
        let expected = any()
            .of_digest(Some(sha(&bytes)))
            .of_bytes(Some(bytes.len() as u64));
        let cx = OpCx::new();
        let found = place
            .images
            .import_disk(&cx, &bytes[..], &expected)
            .await
            .unwrap();
        assert_eq!(found.came_as.name(), format);
        assert_eq!(found.source_digest, sha(&bytes));
        assert_eq!(found.kept.virtual_bytes, (3 << 20) + 512 * 7);
        let kept = place.images.path(found.kept.digest).unwrap();
        assert_eq!(
            sha(&std::fs::read(&kept).unwrap()),
            found.kept.digest,
            "its name is what is kept"
        );
        let as_it_was = matches!(found.came_as, ImageFormat::Raw | ImageFormat::Qcow2);
        assert_eq!(as_it_was, found.kept.digest == found.source_digest);
        let kept_as = if format == "raw" { "raw" } else { "qcow2" };
        let (kept, source) = (kept.to_str().unwrap(), source.to_str().unwrap());
        qemu_img(&["compare", "-f", kept_as, "-F", "raw", kept, source]);
        if kept_as == "qcow2" {
            assert!(qemu_img(&["check", kept]).contains("No errors"));
        }
        // Said or recognised, it is the same; said wrongly, it is refused.
        let said = any().of_format(Some(found.came_as));
        assert_eq!(
            place.images.import_disk(&cx, &bytes[..], &said).await.unwrap(),
            found
        );
        let wrong = if format == "vdi" {
            ImageFormat::Vmdk
        } else {
            ImageFormat::Vdi
        };
        let error = place
            .images
            .import_disk(&cx, &bytes[..], &any().of_format(Some(wrong)))
            .await;
        assert!(
            vbm_core::Error::from(error.unwrap_err())
                .why()
                .contains(&format!("it is {format}"))
        );
        // A full copy of it is the disk too, in both kinds.
        for kind in [DiskKind::Qcow2, DiskKind::Vdi] {
            let id = volume();
            let copy = place
                .pool
                .copy_image(&cx, found.kept.digest, id, 4 << 20, kind)
                .await
                .unwrap();
            qemu_img(&[
                "compare",
                "-f",
                kind.extension(),
                "-F",
                "raw",
                copy.to_str().unwrap(),
                source,
            ]);
            place.pool.remove(id).await.unwrap();
        }
    }
}

#[tokio::test]
async fn a_disk_that_names_other_files_or_is_no_disk_is_refused_with_a_reason() {
    if common::left_out("qemu") {
        return;
    }
    let place = Place::new().await;
    let path = |name: &str| place.path(name).to_str().unwrap().to_owned();
    let make = |name: &str, format: &str, options: &[&str]| {
        let path = path(name);
        let mut args = vec!["create", "-q", "-f", format];
        args.extend(options);
        args.extend([&*path, "1M"]);
        qemu_img(&args);
        std::fs::read(path).unwrap()
    };
    let flat = make("flat.vmdk", "vmdk", &["-o", "subformat=monolithicFlat"]);
    let two = make("two.vmdk", "vmdk", &["-o", "subformat=twoGbMaxExtentSparse"]);
    let extent = std::fs::read(path("two-s001.vmdk")).unwrap();
    make("base.vmdk", "vmdk", &[]);
    let child = make("child.vmdk", "vmdk", &["-F", "vmdk", "-b", &path("base.vmdk")]);
    let mut differences = make("x.vdi", "vdi", &[]);
    differences[0x4c] = 4;
    let mut encrypted = make("e.qcow2", "qcow2", &[]);
    encrypted[35] = 1;
    let spy = make("spy", "qcow2", &["-u", "-F", "raw", "-b", "/etc/passwd"]);
    let before = place.files();
    for (bytes, word) in [
        (&flat[..], "names other files"),
        (&two, "names other files"),
        (&extent, "several files"),
        (&child, "parent"),
        (&differences, "parent"),
        (&encrypted, "encrypted"),
        (&spy, "backing file"),
        (b"\x1f\x8b\x08 gzip", "gunzip"),
        (b"<!DOCTYPE html><html>", "page of the web"),
        (b"", "empty"),
        (&[0; 513], "sectors"),
    ] {
        let error = place
            .images
            .import_disk(&OpCx::new(), bytes, &any())
            .await
            .unwrap_err();
        assert!(matches!(error, Error::BadDisk { .. }), "{word}: {error}");
        let error = vbm_core::Error::from(error);
        assert!(error.why().contains(word), "{error} should name '{word}'");
    }
    let cut = any().of_bytes(Some(2048));
    let error = place
        .images
        .import_disk(&OpCx::new(), &[1; 1024][..], &cut)
        .await
        .unwrap_err();
    assert!(matches!(
        error,
        Error::WrongLength {
            expected_bytes: 2048,
            found_bytes: 1024
        }
    ));
    let other = any().of_digest(Some(sha(b"other")));
    let error = place
        .images
        .import_disk(&OpCx::new(), &[1; 1024][..], &other)
        .await
        .unwrap_err();
    assert!(matches!(error, Error::WrongDigest { .. }));
    assert_eq!(place.files(), before, "nothing is left of any of them");
}

/// A source whose line breaks after some bytes, a few times.
struct Shaky {
    bytes: Vec<u8>,
    /// After how many bytes each answer breaks off; beyond these, answers are whole.
    breaks: Mutex<Vec<usize>>,
    validator: Mutex<Option<String>>,
    stalls: bool,
    asked: Mutex<Vec<u64>>,
    sent: AtomicUsize,
}

impl Shaky {
    fn new(bytes: Vec<u8>, breaks: &[usize]) -> Self {
        Self {
            bytes,
            breaks: Mutex::new(breaks.to_vec()),
            validator: Mutex::new(Some("\"one\"".into())),
            stalls: false,
            asked: Mutex::default(),
            sent: AtomicUsize::new(0),
        }
    }

    fn asked(&self) -> Vec<u64> {
        self.asked.lock().unwrap().clone()
    }
}

#[async_trait]
impl ImageSource for Shaky {
    fn name(&self) -> String {
        "shaky".into()
    }

    async fn open(&self, from_byte: u64, validator: Option<&str>) -> Result<SourceAnswer> {
        self.asked.lock().unwrap().push(from_byte);
        let current = self.validator.lock().unwrap().clone();
        let from = if validator == current.as_deref() {
            from_byte
        } else {
            0
        };
        let rest = self.bytes[usize::try_from(from).unwrap()..].to_vec();
        let mut breaks = self.breaks.lock().unwrap();
        let there = if breaks.is_empty() {
            rest.len()
        } else {
            breaks.remove(0).min(rest.len())
        };
        self.sent.fetch_add(there, Ordering::Relaxed);
        let total = Some(self.bytes.len() as u64);
        let part = std::io::Cursor::new(rest[..there].to_vec());
        let body: Box<dyn AsyncRead + Send + Unpin> = if there == rest.len() {
            Box::new(part)
        } else if self.stalls {
            Box::new(part.chain(Never))
        } else {
            Box::new(part.chain(Broken))
        };
        Ok(SourceAnswer::new(from, total, current, body))
    }
}

struct Never;

impl AsyncRead for Never {
    fn poll_read(
        self: std::pin::Pin<&mut Self>,
        _: &mut std::task::Context<'_>,
        _: &mut tokio::io::ReadBuf<'_>,
    ) -> std::task::Poll<std::io::Result<()>> {
        std::task::Poll::Pending
    }
}

struct Broken;

impl AsyncRead for Broken {
    fn poll_read(
        self: std::pin::Pin<&mut Self>,
        _: &mut std::task::Context<'_>,
        _: &mut tokio::io::ReadBuf<'_>,
    ) -> std::task::Poll<std::io::Result<()>> {
        std::task::Poll::Ready(Err(std::io::Error::other("the line broke")))
    }
}

#[tokio::test]
async fn an_import_that_breaks_goes_on_from_the_byte_it_had() {
    let place = Place::new().await;
    let bytes = pattern(1 << 20);
    let source = Shaky::new(bytes.clone(), &[300_000, 0, 200_000]);
    let cx = OpCx::new();
    let found = place.images.import_from(&cx, &source, &any()).await.unwrap();
    assert_eq!(found.source_digest, sha(&bytes));
    assert_eq!(source.asked(), [0, 300_000, 300_000, 500_000]);
    assert_eq!(
        source.sent.load(Ordering::Relaxed),
        bytes.len(),
        "no byte came twice"
    );
    assert_eq!(place.files().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn what_came_is_kept_for_the_next_import_unless_it_is_other_content() {
    let place = Place::new().await;
    let bytes = pattern(1 << 20);
    let breaks = vec![100_000; 1 + usize::try_from(limits::IMPORT_RETRIES_MAX).unwrap()];
    let source = Shaky::new(bytes.clone(), &breaks);
    let cx = OpCx::new();
    let error = place.images.import_from(&cx, &source, &any()).await.unwrap_err();
    assert!(matches!(error, Error::Source(_)), "{error}");
    let place = place.reopened().await;
    let found = place.images.import_from(&cx, &source, &any()).await.unwrap();
    assert_eq!(found.source_digest, sha(&bytes));
    assert_eq!(*source.asked().last().unwrap(), 600_000);
    place.images.remove(found.kept.digest).await.unwrap();

    // Another content under the same name: nothing of the old one is used.
    let source = Shaky::new(bytes, &breaks);
    place.images.import_from(&cx, &source, &any()).await.unwrap_err();
    let other = Shaky::new(pattern(512 * 999), &[]);
    *other.validator.lock().unwrap() = Some("\"two\"".into());
    let found = place.images.import_from(&cx, &other, &any()).await.unwrap();
    assert_eq!(found.source_digest, sha(&other.bytes));
    assert_eq!(other.asked(), [600_000]);

    // Whoever cannot tell its content from another is asked from the beginning, and leaves nothing.
    let source = Shaky::new(pattern(512 * 998), &breaks);
    *source.validator.lock().unwrap() = None;
    place.images.import_from(&cx, &source, &any()).await.unwrap_err();
    assert!(source.asked().iter().all(|from| *from == 0));
    // And so does what is wrong at its end.
    let wrong = any().of_digest(Some(sha(b"other")));
    let source = Shaky::new(pattern(512 * 997), &[]);
    let error = place.images.import_from(&cx, &source, &wrong).await.unwrap_err();
    assert!(matches!(error, Error::WrongDigest { .. }));
    let short = any().of_bytes(Some(7));
    let error = place.images.import_from(&cx, &source, &short).await.unwrap_err();
    assert!(matches!(
        error,
        Error::WrongLength {
            expected_bytes: 7,
            ..
        }
    ));
    assert_eq!(place.files().len(), 1, "{:?}", place.files());
}

#[tokio::test(start_paused = true)]
async fn a_source_that_stalls_has_a_deadline_that_is_named_and_a_call_off_is_heard() {
    let place = Place::new().await;
    let mut source = Shaky::new(pattern(1 << 20), &[100_000; 20]);
    source.stalls = true;
    let error = place
        .images
        .import_from(&OpCx::new(), &source, &any())
        .await
        .unwrap_err();
    let Error::Stalled { after, had_bytes, .. } = &error else {
        panic!("{error}");
    };
    assert_eq!((*after, *had_bytes), (limits::IMPORT_STALL_DEADLINE, 600_000));
    assert_eq!(error.kind(), ErrorKind::DeadlineExceeded);
    assert!(vbm_core::Error::from(error).fix().contains("goes on"));

    let cx = OpCx::new();
    let mut progress = cx.progress();
    let expected = any();
    let import = place.images.import_from(&cx, &source, &expected);
    let called_off = async {
        progress
            .wait_for(|p| p.phase == "receiving" && p.done > 600_000)
            .await
            .unwrap();
        cx.cancel();
    };
    let (ended, ()) = tokio::join!(import, called_off);
    assert_eq!(ended.unwrap_err().kind(), ErrorKind::Cancelled);
    source.stalls = false;
    source.breaks.lock().unwrap().clear();
    place
        .images
        .import_from(&OpCx::new(), &source, &any())
        .await
        .unwrap();
    assert!(
        *source.asked().last().unwrap() > 600_000,
        "what came before the call-off was kept"
    );
}

#[tokio::test]
async fn room_for_an_image_is_asked_for_before_it_comes() {
    let place = Place::new().await;
    place.images.set_room(Room::default().with_quota(1 << 20));
    let source = Shaky::new(pattern(2 << 20), &[]);
    let error = place
        .images
        .import_from(&OpCx::new(), &source, &any())
        .await
        .unwrap_err();
    assert!(
        matches!(
            error,
            Error::OverQuota {
                wanted_bytes: 2_097_152,
                quota_bytes: 1_048_576,
                ..
            }
        ),
        "{error}"
    );
    place.images.set_room(Room::default().with_reserve(u64::MAX));
    let error = place
        .images
        .import_disk(&OpCx::new(), &[1; 512][..], &any())
        .await
        .unwrap_err();
    assert!(matches!(error, Error::NoRoom { .. }), "{error}");
    let error = vbm_core::Error::from(error);
    assert!(error.why().contains("bytes are free"), "{error}");
    assert!(place.files().is_empty());
}

/// Gives content for ever and does not say how much.
struct Endless;

impl AsyncRead for Endless {
    fn poll_read(
        self: std::pin::Pin<&mut Self>,
        _: &mut std::task::Context<'_>,
        into: &mut tokio::io::ReadBuf<'_>,
    ) -> std::task::Poll<std::io::Result<()>> {
        let bytes = into.remaining().min(64 << 10);
        into.put_slice(&vec![1; bytes]);
        std::task::Poll::Ready(Ok(()))
    }
}

/// Not a test: it runs on a file system of 48 MiB that the test after it has made.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn helper_on_a_small_disk() {
    let Some(dir) = std::env::var_os("VBM_TEST_SMALL_DISK").map(PathBuf::from) else {
        return;
    };
    let images = ImageStore::open(dir.join("images")).await.unwrap();
    let pool = Pool::open(dir.join("pool"), images.clone()).await.unwrap();
    let content = pattern(16 << 20);
    let image = images
        .import_disk(&OpCx::new(), &content[..], &any())
        .await
        .unwrap();
    let image = image.kept.digest;
    let error = images
        .import_disk(&OpCx::new(), Endless, &any())
        .await
        .unwrap_err();
    assert!(
        matches!(error, Error::DiskFull { .. } | Error::NoRoom { .. }),
        "{error}"
    );
    let id = volume();
    pool.clone_image(image, id, 16 << 20).await.unwrap();
    let (copied, flattened) = (volume(), pool.path(id).unwrap());
    let before = std::fs::read(&flattened).unwrap();
    // Somebody else fills the disk in the middle of the work: between its question for room and its end.
    for work in ["copy", "flatten", "export"] {
        let mut full = 0;
        for _ in 0..50 {
            let cx = OpCx::new();
            let mut progress = cx.progress();
            let filler = dir.join("filler");
            let fill = tokio::spawn(async move {
                let seen = progress.wait_for(|p| p.phase == "writing").await.is_ok();
                let file = std::fs::File::create(filler).unwrap();
                let mut bytes = 48_u64 << 20;
                while seen && bytes >= 4096 {
                    let flags = rustix::fs::FallocateFlags::empty();
                    if rustix::fs::fallocate(&file, flags, 0, bytes).is_err() {
                        bytes /= 2;
                    } else {
                        break;
                    }
                }
            });
            let done = match work {
                "copy" => pool
                    .copy_image(&cx, image, copied, 16 << 20, DiskKind::Qcow2)
                    .await
                    .map(drop),
                "flatten" => pool.flatten(&cx, id).await,
                _ => pool
                    .export_file(&cx, id, ImageFormat::Vdi, dir.join("out.vdi"))
                    .await
                    .map(drop),
            };
            drop(cx);
            fill.await.unwrap();
            std::fs::remove_file(dir.join("filler")).unwrap();
            match done {
                Err(Error::DiskFull { .. }) => full += 1,
                Err(other) => panic!("{work}: {other}"),
                // It was faster than the other one.
                Ok(()) => {
                    drop(std::fs::remove_file(dir.join("out.vdi")));
                    pool.remove(copied).await.unwrap();
                    if work == "flatten" {
                        pool.remove(id).await.unwrap();
                        pool.clone_image(image, id, 16 << 20).await.unwrap();
                    }
                }
            }
            if full > 0 {
                break;
            }
        }
        assert!(full > 0, "the disk was never full in the middle of the {work}");
        let left: Vec<_> = std::fs::read_dir(dir.join("pool"))
            .unwrap()
            .map(|e| e.unwrap().file_name())
            .collect();
        assert_eq!(left.len(), 2, "the lock and the volume: {left:?}");
        assert!(!dir.join("out.vdi").exists());
        assert_eq!(
            std::fs::read(&flattened).unwrap(),
            before,
            "the volume is as it was"
        );
    }
    assert_eq!(std::fs::read_dir(dir.join("images/tmp")).unwrap().count(), 0);
    pool.flatten(&OpCx::new(), id).await.unwrap();
    println!("\nSMALL DISK SURVIVED");
}

#[test]
fn a_disk_that_becomes_full_in_the_middle_leaves_nothing_and_takes_nothing() {
    if common::left_out("root") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let out = Command::new("unshare")
        .args(["--mount", "--propagation", "private", "sh", "-ec"])
        .arg("mount -t tmpfs -o size=48m small \"$VBM_TEST_SMALL_DISK\"; exec \"$0\" --exact helper_on_a_small_disk --nocapture")
        .arg(std::env::current_exe().unwrap())
        .env("VBM_TEST_SMALL_DISK", dir.path())
        .output()
        .expect("unshare of util-linux is there");
    let text = String::from_utf8_lossy(&out.stdout).into_owned() + &String::from_utf8_lossy(&out.stderr);
    assert!(
        text.contains("SMALL DISK SURVIVED"),
        "a mount namespace needs root; leave this out with VBM_LEAVE_OUT=root. {text}"
    );
}
