//! Where things are: the workspace, cargo's target directory, cargo itself.

use std::path::PathBuf;
use std::process::Command;

/// The workspace root: cargo says it when it runs us, the build remembers it otherwise.
pub(crate) fn workspace() -> PathBuf {
    let here = std::env::var_os("CARGO_MANIFEST_DIR")
        .map_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")), PathBuf::from);
    here.parent().map_or_else(|| PathBuf::from("."), PathBuf::from)
}

/// Cargo's target directory, `CARGO_TARGET_DIR` respected.
pub(crate) fn target() -> PathBuf {
    match std::env::var_os("CARGO_TARGET_DIR") {
        Some(dir) if !dir.is_empty() => std::path::absolute(&dir).unwrap_or_else(|_| PathBuf::from(dir)),
        _ => workspace().join("target"),
    }
}

/// Where the guest is put by default, and where tests and the demo look for it (`VBM_GUEST_DIR`).
pub(crate) fn guest() -> PathBuf {
    target().join("guest")
}

/// A cargo command that runs in the workspace.
pub(crate) fn cargo() -> Command {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = Command::new(cargo);
    command.current_dir(workspace());
    command
}
