//! `qemu-img`, for the snapshots of disks at rest.

use super::{probe, process, record};
use crate::{Error, Result, limits::DISK_IMAGE_DEADLINE};
use std::{
    fs::File,
    io::{Read, Seek},
    path::Path,
};
use tokio::time::timeout;

const PROGRAM: &str = "qemu-img";
const DEBIAN_PACKAGE: &str = "qemu-utils";

/// What is done with a snapshot inside a disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verb {
    Create,
    Apply,
    Delete,
}

impl Verb {
    const fn option(self) -> &'static str {
        match self {
            Self::Create => "-c",
            Self::Apply => "-a",
            Self::Delete => "-d",
        }
    }
}

/// Runs `qemu-img snapshot`.
pub(super) async fn snapshot(verb: Verb, name: &str, disk: &Path) -> Result<()> {
    run(&["snapshot", verb.option(), name], disk, &[]).await
}

/// Makes a disk larger whose tables have to be moved for it.
pub(crate) async fn resize(disk: &Path, virtual_bytes: u64) -> Result<()> {
    run(
        &["resize", "-q", "-f", "qcow2"],
        disk,
        &[&virtual_bytes.to_string()],
    )
    .await
}

/// Runs `qemu-img` on a disk. A run that is late, or whose daemon goes, is left to its end: ended in the middle it could
/// leave the disk half-changed.
async fn run(before: &[&str], disk: &Path, after: &[&str]) -> Result<()> {
    let program = probe::find_program(PROGRAM, DEBIAN_PACKAGE)?;
    let command = || {
        format!(
            "{PROGRAM} {}",
            before.iter().take(2).copied().collect::<Vec<_>>().join(" ")
        )
    };
    let disk_name = disk.display().to_string();
    let args: Vec<String> = [before, &["--", &disk_name], after]
        .concat()
        .into_iter()
        .map(str::to_owned)
        .collect();
    let flags = rustix::fs::MemfdFlags::CLOEXEC;
    let words = rustix::fs::memfd_create("vbm-qemu-img", flags)
        .map_err(|errno| Error::io("make", PROGRAM)(errno.into()))?;
    let mut words = File::from(words);
    let log = words.try_clone().map_err(Error::io("make", PROGRAM))?;
    let process = process::spawn(&program, &args, &[], log, process::Bond::Outlives)?;
    let exit = timeout(DISK_IMAGE_DEADLINE, process.exited())
        .await
        .map_err(|_| Error::Timeout {
            command: command(),
            after: DISK_IMAGE_DEADLINE,
        })?;
    if exit.code == Some(0) {
        return Ok(());
    }
    let mut said = String::new();
    words
        .rewind()
        .and_then(|()| words.read_to_string(&mut said))
        .map_err(Error::io("read", PROGRAM))?;
    let said = record::one_line(&said);
    let why = said.strip_prefix("qemu-img: ").unwrap_or(&said);
    let error = Error::Hypervisor {
        command: command(),
        why: why.to_owned(),
    };
    Err(super::transfer::full_or(Some(disk), error))
}
