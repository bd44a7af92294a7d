//! What tests on real machines need: whether they are left out, and the tiny guest.

use std::path::{Path, PathBuf};

/// Whether `VBM_LEAVE_OUT` names one of these needs; says so.
pub(crate) fn left_out(needs: &[&str]) -> bool {
    let named = std::env::var("VBM_LEAVE_OUT").unwrap_or_default();
    let out = needs
        .iter()
        .find(|need| named.split(',').any(|n| n.trim() == **need));
    if let Some(need) = out {
        println!("LEFT OUT: VBM_LEAVE_OUT names {need}");
    }
    out.is_some()
}

/// Where the tiny guest is.
pub(crate) fn guest_dir() -> PathBuf {
    let dir = std::env::var_os("VBM_GUEST_DIR").map_or_else(
        || Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/guest"),
        PathBuf::from,
    );
    assert!(
        dir.join("guest.json").is_file(),
        "the tiny guest is not in {}: make it with `cargo xtask guest`, or name it by VBM_GUEST_DIR, or leave these tests out with VBM_LEAVE_OUT=qemu",
        dir.display()
    );
    dir
}
