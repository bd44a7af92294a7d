//! The disks of a snapshot as files of their own, by `qemu-img convert`, while the VM is at rest or runs.
//!
//! What a snapshot holds does not change in a disk as long as the snapshot is there; so it can be read beside the guest's
//! writes, and is not deleted meanwhile.

use super::names::{self, Disk};
use crate::{
    Error, ExportedDisk, OpCx, Result, VmDefinition,
    limits::{EXPORT_DEADLINE, EXPORT_PROGRESS_PERIOD, EXPORT_WORDS_MAX_BYTES},
    process,
    qemu::{Shared, probe, record, transfer},
};
use std::{
    fs::{self, File},
    io::{Read, Seek},
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
};
use tokio::time::{sleep, timeout};
use vbm_core::SnapshotId;

const PROGRAM: &str = "qemu-img";
const DEBIAN_PACKAGE: &str = "qemu-utils";
/// `qemu-img` counts in hundredths of a percent.
const WHOLE: u64 = 10_000;

/// Which snapshots are being read.
#[derive(Debug, Default)]
pub(in crate::qemu) struct Readers(Mutex<Vec<SnapshotId>>);

impl Readers {
    fn with<T>(&self, work: impl FnOnce(&mut Vec<SnapshotId>) -> T) -> T {
        work(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    pub(super) fn has(&self, snapshot: SnapshotId) -> bool {
        self.with(|all| all.contains(&snapshot))
    }
}

/// Somebody reads a snapshot.
struct Reader<'a> {
    readers: &'a Readers,
    snapshot: SnapshotId,
}

impl<'a> Reader<'a> {
    fn enter(readers: &'a Readers, snapshot: SnapshotId) -> Self {
        readers.with(|all| all.push(snapshot));
        Self { readers, snapshot }
    }
}

impl Drop for Reader<'_> {
    fn drop(&mut self) {
        self.readers.with(|all| {
            if let Some(at) = all.iter().position(|id| *id == self.snapshot) {
                all.swap_remove(at);
            }
        });
    }
}

pub(super) async fn export(
    cx: &OpCx,
    shared: &Shared,
    definition: &VmDefinition,
    snapshot: SnapshotId,
    dir: &Path,
) -> Result<Vec<ExportedDisk>> {
    let _reader = Reader::enter(&shared.readers, snapshot);
    let found = super::all(&definition.root_disk).await?;
    let found = found.into_iter().find(|(id, _)| *id == snapshot);
    let (_, consistency) = found.ok_or(Error::NoSuchSnapshot {
        vm: definition.id,
        snapshot,
    })?;
    let had = super::beside::Beside::of(&definition.root_disk).tree()?;
    let mut disks = had.snapshots.get(&snapshot).map_or_else(
        || names::disks_of(definition).split_off(definition.disks.len()),
        |node| node.disks.clone(),
    );
    disks.reverse();
    let name = names::name(snapshot, consistency);
    let mut written = Written::default();
    for disk in &disks {
        let path = dir.join(match disk.volume {
            None => "root.qcow2".to_owned(),
            Some(volume) => format!("{volume}.qcow2"),
        });
        let made = cx.run("an export", convert(cx, disk, &name, &path));
        let file_bytes = match made.await {
            Ok(bytes) => bytes,
            Err(error) => {
                drop(fs::remove_file(part(&path)));
                return Err(error);
            }
        };
        written.0.push(ExportedDisk::new(disk.volume, path, file_bytes));
    }
    Ok(std::mem::take(&mut written.0))
}

/// What was written; removed again unless all of it was.
#[derive(Default)]
struct Written(Vec<ExportedDisk>);

impl Drop for Written {
    fn drop(&mut self) {
        for disk in &self.0 {
            drop(fs::remove_file(&disk.path));
        }
    }
}

fn part(path: &Path) -> PathBuf {
    path.with_extension("part")
}

/// Ends the program unless it has ended.
struct Ends(process::Proc);

impl Drop for Ends {
    fn drop(&mut self) {
        self.0.kill();
    }
}

async fn convert(cx: &OpCx, disk: &Disk, name: &str, path: &Path) -> Result<u64> {
    if path.exists() {
        return Err(Error::invalid(
            format!("{} cannot be written", path.display()),
            "there is such a file",
            "choose an empty folder",
        ));
    }
    let program = probe::find_program(PROGRAM, DEBIAN_PACKAGE)?;
    let to = part(path);
    let args: Vec<String> = [
        "convert", "-p", "-U", "-f", "qcow2", "-l", name, "-O", "qcow2", "--",
    ]
    .map(str::to_owned)
    .into_iter()
    .chain([disk.path.display().to_string(), to.display().to_string()])
    .collect();
    let flags = rustix::fs::MemfdFlags::CLOEXEC;
    let words = rustix::fs::memfd_create("vbm-qemu-img", flags)
        .map_err(|errno| Error::io("make", PROGRAM)(errno.into()))?;
    let mut words = File::from(words);
    let log = words.try_clone().map_err(Error::io("make", PROGRAM))?;
    let process = Ends(process::spawn(
        &program,
        &args,
        &[],
        log,
        process::Bond::Outlives,
    )?);
    let wait = async {
        loop {
            // Cancel safe: the status is only taken on return.
            tokio::select! {
                exit = process.0.exited() => return exit,
                () = sleep(EXPORT_PROGRESS_PERIOD) => {
                    if let Some(done) = progress(&words) {
                        cx.report("writing a disk of the snapshot", done, WHOLE);
                    }
                }
            }
        }
    };
    let exit = timeout(EXPORT_DEADLINE, wait).await.map_err(|_| Error::Timeout {
        command: "qemu-img convert".into(),
        after: EXPORT_DEADLINE,
    })?;
    if exit.code != Some(0) {
        return Err(failed(&mut words, &to)?);
    }
    cx.report("writing a disk of the snapshot", WHOLE, WHOLE);
    let file = File::open(&to).map_err(Error::io("open", &to))?;
    file.sync_all().map_err(Error::io("sync", &to))?;
    fs::rename(&to, path).map_err(Error::io("rename", &to))?;
    Ok(file.metadata().map_err(Error::io("read", path))?.len())
}

fn failed(words: &mut File, path: &Path) -> Result<Error> {
    let mut said = String::new();
    words
        .rewind()
        .and_then(|()| words.take(EXPORT_WORDS_MAX_BYTES).read_to_string(&mut said))
        .map_err(Error::io("read", PROGRAM))?;
    let line = said.rsplit('\r').next().unwrap_or_default();
    let said = record::one_line(line);
    let why = said.strip_prefix("qemu-img: ").unwrap_or(&said).to_owned();
    let command = "qemu-img convert".into();
    Ok(transfer::full_or(Some(path), Error::Hypervisor { command, why }))
}

/// How far it is, by its last words: `    (12.34/100%)`.
fn progress(words: &File) -> Option<u64> {
    const TAIL_BYTES: u64 = 64;
    let from = words.metadata().ok()?.len().saturating_sub(TAIL_BYTES);
    let mut tail = [0; 64];
    let read = words.read_at(&mut tail, from).ok()?;
    percent(&String::from_utf8_lossy(&tail[..read]))
}

fn percent(text: &str) -> Option<u64> {
    let (before, _) = text.rsplit_once("/100%)")?;
    let (_, number) = before.rsplit_once('(')?;
    let (whole, hundredths) = number.split_once('.')?;
    let number = whole.parse::<u64>().ok()? * 100 + hundredths.parse::<u64>().ok()?;
    (number <= WHOLE).then_some(number)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn how_far_it_is_stands_in_its_last_words() {
        assert_eq!(percent("    (0.00/100%)\r    (12.34/100%)\r"), Some(1_234));
        assert_eq!(percent("    (100.00/100%)\r"), Some(10_000));
        for other in ["", "qemu-img: no", "(/100%)", "(1/100%)", "(999999.99/100%)"] {
            assert_eq!(percent(other), None, "{other}");
        }
    }
}
