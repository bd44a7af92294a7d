//! The wrapper that runs VBoxManage out of the lab's folder on this machine: tests of the driver use it.
//!
//! ```text
//!   test -> VBM_VBOXMANAGE (wrapper) -> unshare --mount -> chroot root VBoxManage -> VBoxSVC (ends 5 s after the last call)
//!             VBM_VBOX_WORK: the one directory that both see, at the same path
//! ```

use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::fault::{Done, Fault};
use crate::run;

const TEXT: &str = include_str!("files/vboxmanage.sh");

/// The wrapper's path.
pub(super) fn wrapper(dir: &Path) -> PathBuf {
    dir.join("vboxmanage")
}

/// The directory that VirtualBox in the folder can see.
pub(super) fn work(dir: &Path) -> PathBuf {
    dir.join("work")
}

/// Writes the wrapper for this folder.
pub(super) fn write(dir: &Path, root: &Path) -> Done {
    let (path, work) = (wrapper(dir), work(dir));
    std::fs::create_dir_all(&work).map_err(|error| Fault::file("create", &work, &error))?;
    let text = fill(root, &work)?;
    std::fs::write(&path, text)
        .and_then(|()| std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)))
        .map_err(|error| Fault::file("write", &path, &error))
}

fn fill(root: &Path, work: &Path) -> Done<String> {
    let quoted = |path: &Path| {
        let text = path.display().to_string();
        if text.contains(['\'', '\n']) {
            return Err(Fault::new(
                "the lab cannot live below this directory",
                format!("its name cannot be written into a script: {text:?}"),
                "set CARGO_TARGET_DIR to a plain path",
            ));
        }
        Ok(format!("'{text}'"))
    };
    Ok(TEXT
        .replace("@ROOT@", &quoted(root)?)
        .replace("@WORK@", &quoted(work)?))
}

/// What it says its version is: it runs.
pub(super) fn version(dir: &Path) -> Done<String> {
    let said = run::capture(run::command(&wrapper(dir).display().to_string()).arg("--version"))?;
    // Warnings about the missing driver come first.
    let version = said
        .lines()
        .rev()
        .find(|line| line.starts_with(|c: char| c.is_ascii_digit()));
    version.map(str::to_owned).ok_or_else(|| {
        Fault::new(
            "VBoxManage in the lab's folder does not say its version",
            said,
            "remove target/lab and run the command again",
        )
    })
}

/// Ends the VBoxSVC that tests may have left: those whose settings are in our work directory, by their pid.
pub(super) fn end_servers(dir: &Path) {
    let ours = format!("VBOX_USER_HOME={}/", work(dir).display());
    for entry in std::fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Ok(pid) = entry.file_name().to_string_lossy().parse::<u32>() else {
            continue;
        };
        let environment = std::fs::read(entry.path().join("environ")).unwrap_or_default();
        if is_ours(&environment, &ours) {
            // It may have ended by itself in between.
            drop(run::capture(
                Command::new("kill").args(["-TERM", &pid.to_string()]),
            ));
        }
    }
}

fn is_ours(environment: &[u8], ours: &str) -> bool {
    environment
        .split(|byte| *byte == 0)
        .any(|variable| variable.starts_with(ours.as_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_servers_of_our_work_directory_are_ended() {
        let ours = "VBOX_USER_HOME=/t/vbox/";
        assert!(is_ours(b"A=1\0VBOX_USER_HOME=/t/vbox/home\0B=2", ours));
        assert!(!is_ours(b"VBOX_USER_HOME=/t/work2/home\0", ours));
        assert!(!is_ours(b"X=VBOX_USER_HOME=/t/vbox/home\0", ours));
    }

    #[test]
    fn the_wrapper_is_a_script_with_its_paths_filled_in() {
        let text = fill(Path::new("/t/with space/root"), Path::new("/t/with space/work")).unwrap();
        assert!(text.starts_with("#!/bin/sh\n") && !text.contains("@ROOT@") && !text.contains("@WORK@"));
        assert!(text.contains("root='/t/with space/root'"), "{text}");
        assert!(fill(Path::new("/t/it's"), Path::new("/w")).is_err());
    }
}
