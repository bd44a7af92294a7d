//! What is done with volumes: blank ones, larger ones, copies, what is taken out of the pool. QEMU's own tools judge.

#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "helpers of tests panic and print as tests do"
)]

mod common;
mod disks;

use disks::{Place, qemu_img, volume};
use vbm_core::ErrorKind;
use vbm_hyper::{DiskKind, Error};

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
