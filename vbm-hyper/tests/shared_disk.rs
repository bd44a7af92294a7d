//! A directory of images and disks that several agents work in.

#![allow(clippy::unwrap_used, reason = "helpers of tests panic as tests do")]

use std::path::Path;
use vbm_core::{DiskFormat, VolumeId};
use vbm_hyper::{ContentKind, Error, ImageStore, Pool};

const RAW: ContentKind = ContentKind::Disk(DiskFormat::Raw);
const BYTES: [u8; 4096] = [7; 4096];

async fn sharer(dir: &Path) -> (ImageStore, Pool) {
    let images = ImageStore::open_shared(dir.join("images")).await.unwrap();
    let pool = Pool::open_shared(dir.join("pool"), images.clone()).await.unwrap();
    (images, pool)
}

fn volume() -> VolumeId {
    VolumeId::from_uuid(uuid::Uuid::now_v7())
}

#[tokio::test]
async fn what_one_makes_the_other_sees_and_cannot_take_from_under_it() {
    let dir = tempfile::tempdir().unwrap();
    let (here, there) = (sharer(dir.path()).await, sharer(dir.path()).await);
    let image = here.0.import(&BYTES[..], None, RAW).await.unwrap().digest;
    let id = volume();
    let path = here.1.clone_image(image, id, 1 << 20).await.unwrap();
    assert_eq!(there.1.path(id), Some(path));
    assert!(matches!(
        there.0.remove(image).await,
        Err(Error::ImageInUse { users: 1, .. })
    ));
    assert!(matches!(
        there.1.clone_image(image, id, 1 << 20).await,
        Err(Error::VolumeExists(_))
    ));
    there.1.remove(id).await.unwrap();
    assert_eq!(here.1.path(id), None);
    here.0.remove(image).await.unwrap();
}

#[tokio::test]
async fn who_shares_and_who_does_not_keep_out_of_each_others_way() {
    let dir = tempfile::tempdir().unwrap();
    let shared = sharer(dir.path()).await;
    assert!(matches!(
        ImageStore::open(dir.path().join("images")).await,
        Err(Error::InUse { .. })
    ));
    drop(shared);
    let alone = ImageStore::open(dir.path().join("images")).await.unwrap();
    tokio::time::pause();
    assert!(matches!(
        ImageStore::open_shared(dir.path().join("images")).await,
        Err(Error::InUse { .. })
    ));
    drop(alone);
}

#[tokio::test]
async fn what_is_half_made_is_swept_by_the_first_and_left_by_the_second() {
    let dir = tempfile::tempdir().unwrap();
    drop(sharer(dir.path()).await);
    let left_over = dir.path().join("images/tmp/.tmp-1-1");
    std::fs::write(&left_over, b"half").unwrap();
    let first = sharer(dir.path()).await;
    assert!(!left_over.exists());
    std::fs::write(&left_over, b"being made by the first").unwrap();
    let second = sharer(dir.path()).await;
    assert!(left_over.exists());
    drop((first, second));
}
