//! A place for disks: a store of images and a pool in a directory of their own.

#![allow(dead_code, reason = "each test uses a part of it")]

use std::{
    path::{Path, PathBuf},
    process::Command,
};
use vbm_core::{Digest, DiskFormat, VolumeId};
use vbm_hyper::{ContentKind, ImageStore, Pool};

pub(crate) fn volume() -> VolumeId {
    VolumeId::from_uuid(uuid::Uuid::now_v7())
}

pub(crate) struct Place {
    pub(crate) dir: tempfile::TempDir,
    pub(crate) images: ImageStore,
    pub(crate) pool: Pool,
}

impl Place {
    pub(crate) async fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let images = ImageStore::open(dir.path().join("images")).await.unwrap();
        let pool = Pool::open(dir.path().join("pool"), images.clone()).await.unwrap();
        Self { dir, images, pool }
    }

    pub(crate) fn path(&self, sub: &str) -> PathBuf {
        self.dir.path().join(sub)
    }

    /// All files of the store and the pool, without the locks.
    pub(crate) fn files(&self) -> Vec<PathBuf> {
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
        walk(&self.path("images"), &mut found);
        walk(&self.path("pool"), &mut found);
        found
    }

    pub(crate) async fn raw(&self, bytes: &[u8]) -> Digest {
        self.images
            .import(bytes, None, ContentKind::Disk(DiskFormat::Raw))
            .await
            .unwrap()
            .digest
    }
}

pub(crate) fn qemu_img(args: &[&str]) -> String {
    let (fine, text) = try_qemu_img(args);
    assert!(fine, "qemu-img {args:?}: {text}");
    text
}

pub(crate) fn try_qemu_img(args: &[&str]) -> (bool, String) {
    let out = Command::new("qemu-img")
        .args(args)
        .output()
        .expect("qemu-img is missing: install qemu-utils, or leave this out with VBM_LEAVE_OUT=qemu");
    let text = String::from_utf8_lossy(&out.stdout).into_owned() + &String::from_utf8_lossy(&out.stderr);
    (out.status.success(), text)
}

pub(crate) fn sha(bytes: &[u8]) -> Digest {
    use sha2::Digest as _;
    Digest::new(sha2::Sha256::digest(bytes).into())
}

/// Content whose every piece of 4 KiB is another, some of them zeros.
pub(crate) fn pattern(bytes: usize) -> Vec<u8> {
    (0..bytes)
        .map(|at| match (at / 4096) % 5 {
            0 => 0,
            _ => (at / 4096).to_le_bytes()[0] ^ at.to_le_bytes()[0],
        })
        .collect()
}

impl Place {
    /// The same place, opened again.
    pub(crate) async fn reopened(self) -> Self {
        let Self { dir, images, pool } = self;
        drop((images, pool));
        let images = ImageStore::open(dir.path().join("images")).await.unwrap();
        let pool = Pool::open(dir.path().join("pool"), images.clone()).await.unwrap();
        Self { dir, images, pool }
    }
}
