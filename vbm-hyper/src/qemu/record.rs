//! What is written down about each run, and where: the run directory.
//!
//! ```text
//!   <root>/lock                 one owner at a time
//!   <root>/<vm id>/starting     a start was begun; with no manifest beside it, a process may have been left behind
//!                 /manifest     who runs it: written, whole, before the first instruction of the guest
//!                 /errand       what is being done with it that a restart of the daemon may cut in two: see `errand`
//!                 /plug         what is being done with a device of it: see `plug`
//!                 /ended        how the last run ended, if not as asked; and, before a force-off, that it was asked for
//!                 /q0 /q1 /tty /ga  sockets: monitor, spare monitor, serial line, guest agent
//!                 /serial.log   what the serial line said in this run (serial.log.1: before that)
//!                 /qemu.log     QEMU's own words
//!   <state>/<vm id>/machine.json machine type, CPU, places of devices: so that the guest's hardware stays the same
//!                  /uefi-vars.fd what its UEFI remembers
//!                  /saved        its memory is on disk: see `memory`
//! ```
//!
//! The state directory survives a boot of the host; without one, the run directory is it.
//!
//! Files are replaced by rename, so a reader sees an old or a new one. They are not synced: a manifest only matters as long
//! as the host is up, and the boot id tells when it is not.

use super::{process::Proc, slots::Slots};
use crate::{
    Error, Result, VmDefinition,
    files::{self, remove_if_there},
    limits::{LOG_TAIL_BYTES, SOCKET_PATH_MAX_BYTES},
    serial::{Line, LogWriter, tail},
};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use std::{
    collections::BTreeMap,
    fs, io,
    os::unix::{ffi::OsStrExt, fs::DirBuilderExt},
    path::{Path, PathBuf},
};
use vbm_core::{Accelerator, PowerState, Timestamp, VmId};

/// The form of the files; a newer one is not guessed at.
const FORMAT: u32 = 1;

/// Who runs a VM.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Manifest {
    pub(super) format: u32,
    pub(super) definition: VmDefinition,
    pub(super) pid: u32,
    /// `/proc/<pid>/stat`, field 22: tells a process from a later one with the same pid.
    pub(super) start_ticks: u64,
    /// `/proc/sys/kernel/random/boot_id`.
    pub(super) boot_id: String,
    pub(super) started_at: Timestamp,
    pub(super) accelerator: Accelerator,
    pub(super) qemu_version: String,
    /// Where its devices are.
    #[serde(default)]
    pub(super) slots: Slots,
    /// For people.
    pub(super) argv: Vec<String>,
}

impl Manifest {
    pub(super) fn new(definition: VmDefinition, process: &Proc, boot_id: String) -> Self {
        Self {
            format: FORMAT,
            definition,
            pid: process.pid(),
            start_ticks: process.start_ticks(),
            boot_id,
            started_at: Timestamp::default(),
            accelerator: Accelerator {
                name: String::new(),
                reason: String::new(),
            },
            qemu_version: String::new(),
            slots: Slots::default(),
            argv: Vec::new(),
        }
    }
}

/// What outlives a run.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct MachineFacts {
    /// The versioned machine type, for example `pc-q35-10.0`.
    pub(super) machine: String,
    /// The CPU model by accelerator.
    #[serde(default)]
    pub(super) cpus: BTreeMap<String, String>,
    /// Where its devices are.
    #[serde(default)]
    pub(super) slots: Slots,
}

/// How the last run ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Ended {
    #[serde(flatten)]
    pub(super) power: PowerState,
    pub(super) at: Timestamp,
}

/// The run directory of one VM.
#[derive(Clone, Debug)]
pub(super) struct VmDir {
    path: PathBuf,
}

impl VmDir {
    pub(super) fn new(root: &Path, id: VmId) -> Self {
        Self {
            path: root.join(id.to_string()),
        }
    }

    /// A directory by its path.
    pub(super) const fn at(path: PathBuf) -> Self {
        Self { path }
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }
    pub(super) fn file(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }
    pub(super) fn monitor(&self) -> PathBuf {
        self.file("q0")
    }
    pub(super) fn spare_monitor(&self) -> PathBuf {
        self.file("q1")
    }
    pub(super) fn serial(&self) -> PathBuf {
        self.file("tty")
    }
    pub(super) fn agent(&self) -> PathBuf {
        self.file("ga")
    }
    pub(super) fn serial_log(&self) -> PathBuf {
        self.file("serial.log")
    }
    pub(super) fn serial_line(&self) -> Line {
        Line::new(self.serial(), self.path.clone(), LogWriter::Hypervisor)
    }
    pub(super) fn qemu_log(&self) -> PathBuf {
        self.file("qemu.log")
    }

    pub(super) fn create(&self) -> Result<()> {
        let mut builder = fs::DirBuilder::new();
        builder
            .recursive(true)
            .mode(0o700)
            .create(&self.path)
            .map_err(Error::io("create", &self.path))
    }

    /// Clears what the last run left, keeps its machine facts.
    pub(super) fn clear_run(&self) -> Result<()> {
        crate::steps::step("clear_run");
        for name in [
            "manifest",
            "starting",
            "errand",
            "plug",
            "ended",
            "q0",
            "q1",
            "tty",
            "ga",
            "serial.log.1",
            "serial.log",
            "qemu.log",
        ] {
            remove_if_there(&self.file(name))?;
        }
        Ok(())
    }

    /// Removes what says that it runs; logs stay.
    pub(super) fn end_run(&self, ended: Option<&Ended>) -> Result<()> {
        crate::steps::step("end_run");
        if let Some(ended) = ended {
            self.write("ended", ended)?;
        }
        for name in ["q0", "q1", "tty", "ga", "manifest", "starting", "errand", "plug"] {
            remove_if_there(&self.file(name))?;
        }
        Ok(())
    }

    pub(super) fn remove(&self) -> Result<()> {
        crate::steps::step("remove");
        match fs::remove_dir_all(&self.path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(Error::io("remove", &self.path)(error))
            }
            _ => Ok(()),
        }
    }

    /// Replaces a file.
    pub(super) fn write<T: Serialize>(&self, name: &str, value: &T) -> Result<()> {
        files::write(&self.path, name, value)
    }

    /// Reads a file; `None` when it is not there.
    pub(super) fn read<T: DeserializeOwned>(&self, name: &str) -> Result<Option<T>> {
        files::read(&self.path, name)
    }

    pub(super) fn manifest(&self) -> Result<Option<Manifest>> {
        let manifest: Option<Manifest> = self.read("manifest")?;
        match manifest {
            Some(manifest) if manifest.format != FORMAT => Err(Error::Corrupt {
                path: self.file("manifest"),
                why: format!("its form is {}, known is {FORMAT}", manifest.format),
            }),
            manifest => Ok(manifest),
        }
    }

    /// The last words of QEMU's log, in one line.
    pub(super) fn log_tail(&self) -> String {
        let text = tail(&self.qemu_log(), LOG_TAIL_BYTES).unwrap_or_default();
        one_line(&String::from_utf8_lossy(&text))
    }
}

/// QEMU's messages as one line, without its program name.
pub(super) fn one_line(text: &str) -> String {
    let lines: Vec<_> = text.lines().map(str::trim).filter(|l| !l.is_empty()).collect();
    let last = lines.len().saturating_sub(4);
    lines[last..].join("; ")
}

/// Checks that sockets below `root` have paths that the kernel takes.
pub(super) fn check_root(root: &Path) -> Result<()> {
    const BELOW_ROOT_BYTES: usize = "/00000000-0000-0000-0000-000000000000/tty".len();
    let bytes = root.as_os_str().as_bytes().len();
    if bytes + BELOW_ROOT_BYTES > SOCKET_PATH_MAX_BYTES {
        return Err(Error::invalid(
            format!("{} cannot be the run directory", root.display()),
            format!(
                "it has {bytes} bytes, and the path of a unix socket below it must have at most {SOCKET_PATH_MAX_BYTES}"
            ),
            format!(
                "use a directory with at most {} bytes, for example /run/vbm",
                SOCKET_PATH_MAX_BYTES - BELOW_ROOT_BYTES
            ),
        ));
    }
    if root.to_str().is_none() {
        return Err(Error::invalid(
            "the run directory cannot be used",
            "its path is not UTF-8",
            "use another one",
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_root_that_is_too_long_for_sockets_is_refused_with_the_length_that_fits() {
        let fits = SOCKET_PATH_MAX_BYTES - 41;
        assert!(check_root(Path::new(&format!("/{}", "x".repeat(fits - 1)))).is_ok());
        let error = check_root(Path::new(&format!("/{}", "x".repeat(fits)))).unwrap_err();
        assert!(vbm_core::Error::from(error).fix().contains("66 bytes"));
    }

    #[test]
    fn a_file_is_replaced_whole_and_garbage_is_told() {
        let root = tempfile::tempdir().unwrap();
        let dir = VmDir::new(root.path(), VmId::from_uuid(uuid::Uuid::from_u128(1)));
        dir.create().unwrap();
        let facts = MachineFacts {
            machine: "pc-q35-10.0".into(),
            cpus: BTreeMap::new(),
            slots: Slots::default(),
        };
        assert_eq!(dir.read::<MachineFacts>("machine.json").unwrap(), None);
        dir.write("machine.json", &facts).unwrap();
        assert_eq!(dir.read::<MachineFacts>("machine.json").unwrap(), Some(facts));
        fs::write(dir.file("manifest"), b"{\"format\":").unwrap();
        assert!(matches!(dir.manifest().unwrap_err(), Error::Corrupt { .. }));
        let ended = Ended {
            power: PowerState::Crashed(vbm_core::CrashCause::Guest),
            at: Timestamp::from_micros(1),
        };
        dir.end_run(Some(&ended)).unwrap();
        assert_eq!(dir.read("ended").unwrap(), Some(ended));
        assert!(dir.manifest().unwrap().is_none());
        dir.remove().unwrap();
        dir.remove().unwrap();
        assert!(!dir.path().exists());
    }
}
