//! Memory on disk: where it lies, and what is needed to load it again.
//!
//! ```text
//!   <disk>.memory/<snapshot>.mem    what QEMU wrote        of a snapshot with memory; goes with the disk
//!                 <snapshot>.json   with what hardware     written last: without it there is no memory
//!                 saved.mem         of the saved VM; counts only while the record says so
//!   <state>/<vm id>/saved           the record: the VM is Saved as long as this is there
//! ```
//!
//! Memory is written beside its final name, synced, and renamed; then comes what says that it is there.

use super::{record::VmDir, slots::Slots};
use crate::{Error, Result, VmDefinition, disk};
use serde::{Deserialize, Serialize};
use std::{
    fs::{self, File},
    io,
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
};
use vbm_core::SnapshotId;

/// The form of the files; another one is not guessed at.
const FORMAT: u32 = 1;
const SAVED: &str = "saved";

/// What a memory needs around it to be loaded: the same hardware.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Kept {
    format: u32,
    pub(super) definition: VmDefinition,
    pub(super) machine: String,
    pub(super) cpu: String,
    pub(super) accelerator: String,
    pub(super) qemu_version: String,
    pub(super) display: bool,
    /// Where its devices were.
    #[serde(default)]
    pub(super) slots: Slots,
    /// Where it is.
    pub(super) memory: PathBuf,
    /// How much there is of it; 0 when nobody wrote that down.
    #[serde(default)]
    pub(super) memory_bytes: u64,
}

impl Kept {
    /// What a run of a VM has around its memory.
    pub(super) fn of(machine: &super::keeper::Machine, facts: &super::record::MachineFacts) -> Self {
        let accelerator = machine
            .seen()
            .accelerator
            .map_or_else(String::new, |accelerator| accelerator.name);
        Self {
            format: FORMAT,
            definition: (*machine.definition()).clone(),
            machine: facts.machine.clone(),
            cpu: facts.cpus.get(&accelerator).cloned().unwrap_or_default(),
            accelerator,
            qemu_version: machine.qemu_version.clone(),
            display: machine.has_display,
            slots: machine.books.slots(),
            memory: PathBuf::new(),
            memory_bytes: 0,
        }
    }

    /// Whether all of the memory is still there.
    pub(super) fn whole(&self) -> Result<()> {
        let path = &self.memory;
        let bytes = match fs::metadata(path) {
            Ok(found) => found.len(),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(Error::Corrupt {
                    path: path.clone(),
                    why: "it is gone".into(),
                });
            }
            Err(error) => return Err(Error::io("read", path)(error)),
        };
        if self.memory_bytes == 0 || bytes == self.memory_bytes {
            return Ok(());
        }
        Err(Error::Corrupt {
            path: path.clone(),
            why: format!(
                "it has {bytes} bytes, and had {} when it was written",
                self.memory_bytes
            ),
        })
    }

    /// What a VM has otherwise than this memory needs it, if anything: pure.
    pub(super) fn differs(&self, now: &VmDefinition) -> Option<String> {
        let then = &self.definition;
        let number = |what: &str, then: String, now: String| {
            (then != now).then(|| format!("it had {then} {what} then, and has {now} now"))
        };
        number("CPUs", then.vcpus.to_string(), now.vcpus.to_string())
            .or_else(|| {
                number(
                    "MiB of memory",
                    then.memory_mib.to_string(),
                    now.memory_mib.to_string(),
                )
            })
            .or_else(|| number("NICs", then.nics.len().to_string(), now.nics.len().to_string()))
            .or_else(|| {
                let disks = |vm: &VmDefinition| {
                    let disk = |disk: &crate::DiskDefinition| (disk.volume, disk.read_only);
                    vm.disks.iter().map(disk).collect::<Vec<_>>()
                };
                // By their order a memory finds them again.
                (disks(then) != disks(now)).then(|| "it had other disks then, or in another order".into())
            })
            .or_else(|| (then.hardware != now.hardware).then(|| "it had other hardware then".into()))
    }

    fn check(self, path: PathBuf) -> Result<Self> {
        if self.format == FORMAT {
            Ok(self)
        } else {
            let why = format!("its form is {}, known is {FORMAT}", self.format);
            Err(Error::Corrupt { path, why })
        }
    }
}

impl super::keeper::Machine {
    /// Whether this QEMU can write a guest's memory to a file by name: since 8.2.
    pub(super) fn keeps_memory(&self) -> Result<()> {
        if writes_files(&self.qemu_version) {
            return Ok(());
        }
        Err(Error::Unsupported {
            driver: vbm_core::DriverKind::Qemu,
            what: "keep the memory of a VM on disk".into(),
            why: format!("that needs QEMU 8.2, and this VM runs in {}", self.qemu_version),
        })
    }
}

fn writes_files(version: &str) -> bool {
    let mut numbers = version
        .split(|c: char| !c.is_ascii_digit())
        .filter_map(|number| number.parse::<u32>().ok());
    (numbers.next(), numbers.next()) >= (Some(8), Some(2))
}

/// The folder beside a disk.
#[derive(Clone, Debug)]
pub(super) struct MemoryDir {
    path: PathBuf,
}

impl MemoryDir {
    pub(super) fn beside(disk: &Path) -> Self {
        Self {
            path: disk::memory_dir(disk),
        }
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn create(&self) -> Result<()> {
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&self.path)
            .map_err(Error::io("create", &self.path))
    }

    /// Where QEMU writes, for a snapshot or to save the VM. What lay there is removed.
    pub(super) fn begin(&self, of: Option<SnapshotId>) -> Result<PathBuf> {
        self.create()?;
        self.remove(of)?;
        Ok(self.unfinished(of))
    }

    /// Makes what was written count, for a snapshot; for a saved VM the record does.
    pub(super) fn publish(&self, of: Option<SnapshotId>, mut kept: Kept) -> Result<Kept> {
        let (from, to) = (self.unfinished(of), self.file(of, "mem"));
        sync(&from)?;
        kept.memory_bytes = fs::metadata(&from).map_err(Error::io("read", &from))?.len();
        fs::rename(&from, &to).map_err(Error::io("rename", &from))?;
        kept.memory = to;
        if of.is_some() {
            write_durably(&self.file(of, "json"), &kept)?;
        }
        disk::sync_dir(&self.path)?;
        Ok(kept)
    }

    /// The memory of a snapshot, if there is one.
    pub(super) fn kept(&self, snapshot: SnapshotId) -> Result<Option<Kept>> {
        let path = self.file(Some(snapshot), "json");
        let dir = VmDir::at(self.path.clone());
        let name = format!("{snapshot}.json");
        let Some(mut kept) = dir.read::<Kept>(&name)? else {
            return Ok(None);
        };
        // The disk may be seen under another path here.
        kept.memory = self.file(Some(snapshot), "mem");
        kept.check(path).map(Some)
    }

    pub(super) fn has(&self, snapshot: SnapshotId) -> bool {
        self.file(Some(snapshot), "json").exists()
    }

    /// Removes a memory, whole or half; and the folder with the last one.
    pub(super) fn remove(&self, of: Option<SnapshotId>) -> Result<()> {
        // First what says that it is there.
        for path in [self.file(of, "json"), self.file(of, "mem"), self.unfinished(of)] {
            crate::files::remove_if_there(&path)?;
        }
        Ok(())
    }

    /// Removes the folder if nothing is in it any more.
    pub(super) fn tidy(&self) {
        if let Err(error) = fs::remove_dir(&self.path)
            && !matches!(
                error.kind(),
                io::ErrorKind::NotFound | io::ErrorKind::DirectoryNotEmpty
            )
        {
            tracing::debug!(path = %self.path.display(), %error, "an empty folder stays behind");
        }
    }

    fn file(&self, of: Option<SnapshotId>, extension: &str) -> PathBuf {
        let stem = of.map_or_else(|| SAVED.to_owned(), |id| id.to_string());
        self.path.join(format!("{stem}.{extension}"))
    }

    fn unfinished(&self, of: Option<SnapshotId>) -> PathBuf {
        self.file(of, "mem.new")
    }
}

/// The record that a VM is saved.
#[derive(Clone, Debug)]
pub(super) struct SavedRecord {
    dir: VmDir,
}

impl SavedRecord {
    pub(super) const fn of(dir: VmDir) -> Self {
        Self { dir }
    }

    pub(super) fn exists(&self) -> bool {
        self.dir.file(SAVED).exists()
    }

    pub(super) fn read(&self) -> Result<Option<Kept>> {
        let kept: Option<Kept> = self.dir.read(SAVED)?;
        kept.map(|kept| kept.check(self.dir.file(SAVED))).transpose()
    }

    pub(super) fn write(&self, kept: &Kept) -> Result<()> {
        self.dir.create()?;
        write_durably(&self.dir.file(SAVED), kept)
    }

    /// From now on it is not saved any more, whatever happens to the host.
    pub(super) fn use_up(&self) -> Result<()> {
        if self.exists() {
            crate::files::remove_if_there(&self.dir.file(SAVED))?;
            disk::sync_dir(self.dir.path())?;
        }
        Ok(())
    }

    /// Throws the record and the memory away.
    pub(super) fn discard(&self) -> Result<()> {
        // A record that cannot be understood is no reason to keep it.
        let kept = self.read().ok().flatten();
        self.use_up()?;
        if let Some(kept) = kept {
            let memory = MemoryDir::beside(&kept.definition.root_disk);
            memory.remove(None)?;
            memory.tidy();
        }
        Ok(())
    }
}

pub(super) fn write_durably<T: Serialize>(path: &Path, value: &T) -> Result<()> {
    let (Some(dir), Some(name)) = (path.parent(), path.file_name().and_then(|name| name.to_str())) else {
        return Err(Error::io("write", path)(io::ErrorKind::InvalidInput.into()));
    };
    let temp = dir.join(format!(".{name}.new"));
    let write = || {
        fs::write(&temp, serde_json::to_vec_pretty(value)?)?;
        File::open(&temp)?.sync_all()?;
        fs::rename(&temp, path)
    };
    write().map_err(|error| {
        drop(fs::remove_file(&temp));
        Error::io("write", path)(error)
    })?;
    disk::sync_dir(dir)
}

fn sync(path: &Path) -> Result<()> {
    File::open(path)
        .and_then(|file| file.sync_all())
        .map_err(Error::io("sync", path))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Hardware;

    #[test]
    fn what_an_older_qemu_lacks_is_known() {
        for (version, writes) in [
            ("10.0.2 (Debian 1:10.0.2+ds-2)", true),
            ("8.2.0", true),
            ("8.1.9", false),
            ("7.2.17 (Debian 1:7.2+dfsg-7)", false),
            ("", false),
        ] {
            assert_eq!(writes_files(version), writes, "{version}");
        }
    }

    #[test]
    fn a_memory_counts_when_it_is_whole_and_leaves_nothing_when_it_is_gone() {
        let root = tempfile::tempdir().unwrap();
        let memory = MemoryDir::beside(&root.path().join("v.qcow2"));
        let id = SnapshotId::from_uuid(uuid::Uuid::from_u128(3));
        let path = memory.begin(Some(id)).unwrap();
        fs::write(&path, b"half").unwrap();
        assert!(!memory.has(id));
        let kept = Kept {
            format: FORMAT,
            definition: crate::VmDefinition {
                id: vbm_core::VmId::from_uuid(uuid::Uuid::from_u128(1)),
                name: "web-1".parse().unwrap(),
                vcpus: 1,
                memory_mib: 64,
                root_disk: root.path().join("v.qcow2"),
                boot: crate::BootSource::Disk,
                disks: vec![],
                hardware: Hardware::default(),
                nics: Vec::new(),
            },
            machine: "pc-q35-10.0".into(),
            cpu: "Westmere-v1".into(),
            accelerator: "tcg".into(),
            qemu_version: "10.0.2".into(),
            display: true,
            slots: Slots::default(),
            memory: PathBuf::new(),
            memory_bytes: 0,
        };
        let kept = memory.publish(Some(id), kept).unwrap();
        assert_eq!(memory.kept(id).unwrap(), Some(kept.clone()));
        assert!(memory.has(id));
        kept.whole().unwrap();
        fs::write(&kept.memory, b"hal").unwrap();
        assert!(matches!(kept.whole(), Err(Error::Corrupt { .. })));
        let mut now = kept.definition.clone();
        assert_eq!(kept.differs(&now), None);
        now.memory_mib = 128;
        assert_eq!(
            kept.differs(&now).unwrap(),
            "it had 64 MiB of memory then, and has 128 now"
        );

        let record = SavedRecord::of(VmDir::new(root.path(), kept.definition.id));
        record.write(&kept).unwrap();
        assert_eq!(record.read().unwrap(), Some(kept));
        record.discard().unwrap();
        assert!(!record.exists());
        assert!(memory.has(id), "the memory of a snapshot is another one");

        memory.remove(Some(id)).unwrap();
        memory.tidy();
        assert_eq!(memory.kept(id).unwrap(), None);
        assert!(!disk::memory_dir(&root.path().join("v.qcow2")).exists());
    }
}
