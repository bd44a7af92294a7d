//! What is written down about each VM, and where.
//!
//! ```text
//!   <root>/lock                   one owner at a time
//!         /home                   VirtualBox's registry (VBOX_USER_HOME), ours alone
//!         /machines/vbm/<name>/   VirtualBox's settings, logs and differencing disks of a VM
//!         /vms/<vm id>/applied    what its settings were last made from
//!                     /run        it was started and not seen to end
//!                     /ended      how it rests, if not simply off
//!                     /serial.log what the serial line said in this run
//!   <run>/<vm id>/tty             the serial line's socket
//! ```

use super::argv::Display;
use crate::{
    Error, Result, VmDefinition, files,
    limits::SOCKET_PATH_MAX_BYTES,
    serial::{Line, LogWriter},
};
use serde::{Deserialize, Serialize};
use std::{
    fs, io,
    os::unix::{ffi::OsStrExt, fs::DirBuilderExt},
    path::{Path, PathBuf},
};
use vbm_core::{PowerState, Timestamp, VmId};

/// What the settings of a VM were last made from.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Applied {
    /// The command line of the settings; empty: they must be made again.
    #[serde(default)]
    pub(super) settings: Vec<String>,
    /// The disk in its slot.
    #[serde(default)]
    pub(super) disk: Option<PathBuf>,
    #[serde(default)]
    pub(super) display: Option<Display>,
    #[serde(default)]
    pub(super) definition: Option<VmDefinition>,
}

/// A run of a VM.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Run {
    pub(super) definition: VmDefinition,
    pub(super) boot_id: String,
    /// `None`: it was begun, and nobody was told that it runs.
    pub(super) started_at: Option<Timestamp>,
}

/// How a VM rests.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Ended {
    #[serde(flatten)]
    pub(super) power: PowerState,
    pub(super) at: Timestamp,
}

/// The directories of a driver.
#[derive(Clone, Debug)]
pub(super) struct Places {
    root: PathBuf,
    run: PathBuf,
}

impl Places {
    /// # Errors
    /// A path that is too long for a socket, or not UTF-8.
    pub(super) fn new(root: &Path, run: &Path) -> Result<Self> {
        const SOCKET_BYTES: usize = "/00000000-0000-0000-0000-000000000000/tty".len();
        let absolute = |path: &Path| std::path::absolute(path).map_err(Error::io("find", path));
        let (root, run) = (absolute(root)?, absolute(run)?);
        let bytes = run.as_os_str().as_bytes().len();
        if bytes + SOCKET_BYTES > SOCKET_PATH_MAX_BYTES {
            return Err(Error::invalid(
                format!("{} cannot be the run directory", run.display()),
                format!(
                    "it has {bytes} bytes, and the path of a unix socket below it must have at most {SOCKET_PATH_MAX_BYTES}"
                ),
                format!(
                    "use a directory with at most {} bytes, for example /run/vbm",
                    SOCKET_PATH_MAX_BYTES - SOCKET_BYTES
                ),
            ));
        }
        match [&root, &run].iter().find(|path| path.to_str().is_none()) {
            Some(path) => Err(Error::invalid(
                format!("{} cannot be used", path.display()),
                "its path is not UTF-8",
                "use another directory",
            )),
            None => Ok(Self { root, run }),
        }
    }

    pub(super) fn root(&self) -> &Path {
        &self.root
    }
    pub(super) fn home(&self) -> PathBuf {
        self.root.join("home")
    }
    pub(super) fn machines(&self) -> PathBuf {
        self.root.join("machines")
    }
    pub(super) fn vm(&self, id: VmId) -> VmDir {
        VmDir {
            path: self.root.join("vms").join(id.to_string()),
            run: self.run.join(id.to_string()),
        }
    }

    /// Makes what is not there.
    pub(super) fn create(&self) -> Result<()> {
        for dir in [
            self.home(),
            self.machines(),
            self.root.join("vms"),
            self.run.clone(),
        ] {
            private(&dir)?;
        }
        Ok(())
    }

    /// The VMs that something is written down of.
    pub(super) fn known(&self) -> Result<Vec<VmId>> {
        let dir = self.root.join("vms");
        let mut ids = Vec::new();
        for entry in fs::read_dir(&dir).map_err(Error::io("list", &dir))? {
            let entry = entry.map_err(Error::io("list", &dir))?;
            ids.extend(
                entry
                    .file_name()
                    .to_str()
                    .and_then(|name| name.parse::<VmId>().ok()),
            );
        }
        Ok(ids)
    }

    /// The folder that VirtualBox keeps a VM in, if it is one of ours: below our own, and nothing else.
    pub(super) fn folder_of(&self, config: &Path) -> Option<PathBuf> {
        let folder = config.parent()?;
        let plain = folder.components().all(|part| {
            matches!(
                part,
                std::path::Component::RootDir | std::path::Component::Normal(_)
            )
        });
        let below = folder.strip_prefix(self.machines()).ok()?;
        // machines/vbm/<name>: what a symbolic link leads to is not ours.
        let real = fs::canonicalize(folder)
            .ok()?
            .starts_with(fs::canonicalize(self.machines()).ok()?);
        (plain && real && below.components().count() == 2).then(|| folder.to_owned())
    }
}

/// The files of one VM.
#[derive(Clone, Debug)]
pub(super) struct VmDir {
    path: PathBuf,
    run: PathBuf,
}

impl VmDir {
    pub(super) fn create(&self) -> Result<()> {
        private(&self.path)?;
        private(&self.run)
    }

    pub(super) fn tty(&self) -> PathBuf {
        self.run.join("tty")
    }
    pub(super) fn file(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }
    pub(super) fn line(&self) -> Line {
        Line::new(self.tty(), self.path.clone(), LogWriter::Hub)
    }

    pub(super) fn applied(&self) -> Result<Applied> {
        Ok(files::read(&self.path, "applied")?.unwrap_or_default())
    }
    pub(super) fn set_applied(&self, applied: &Applied) -> Result<()> {
        files::write(&self.path, "applied", applied)
    }
    pub(super) fn run(&self) -> Result<Option<Run>> {
        files::read(&self.path, "run")
    }
    pub(super) fn set_run(&self, run: &Run) -> Result<()> {
        files::write(&self.path, "run", run)
    }
    pub(super) fn ended(&self) -> Result<Option<Ended>> {
        files::read(&self.path, "ended")
    }

    /// Writes down that it runs no more, and how it rests.
    pub(super) fn end_run(&self, power: PowerState, at: Timestamp) -> Result<()> {
        match power {
            PowerState::Off => files::remove_if_there(&self.file("ended"))?,
            power => files::write(&self.path, "ended", &Ended { power, at })?,
        }
        files::remove_if_there(&self.file("run"))?;
        files::remove_if_there(&self.tty())
    }

    /// Clears the socket that the last run may have left.
    pub(super) fn clear_tty(&self) -> Result<()> {
        files::remove_if_there(&self.tty())
    }

    /// Clears what the last run said.
    pub(super) fn clear_log(&self) -> Result<()> {
        for path in [self.line().log(), self.line().log_before(), self.tty()] {
            files::remove_if_there(&path)?;
        }
        Ok(())
    }

    pub(super) fn remove(&self) -> Result<()> {
        for dir in [&self.run, &self.path] {
            match fs::remove_dir_all(dir) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    return Err(Error::io("remove", dir)(error));
                }
                _ => {}
            }
        }
        Ok(())
    }
}

/// Makes a directory that only its owner may enter.
fn private(dir: &Path) -> Result<()> {
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(dir)
        .map_err(Error::io("create", dir))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_folder_of_ours_is_ours_to_remove() {
        let root = tempfile::tempdir().unwrap();
        let places = Places::new(&root.path().join("vbox"), &root.path().join("run")).unwrap();
        places.create().unwrap();
        let ours = places.machines().join("vbm/web-1");
        fs::create_dir_all(&ours).unwrap();
        assert_eq!(places.folder_of(&ours.join("web-1.vbox")), Some(ours));
        let elsewhere = root.path().join("elsewhere/web-1");
        fs::create_dir_all(&elsewhere).unwrap();
        std::os::unix::fs::symlink(root.path().join("elsewhere"), places.machines().join("link")).unwrap();
        for strange in [
            elsewhere.join("web-1.vbox"),
            places.machines().join("link/web-1/web-1.vbox"),
            places.machines().join("vbm/web-1.vbox"),
            places.machines().join("vbm/../../x/y.vbox"),
            "/web-1.vbox".into(),
            "web-1.vbox".into(),
        ] {
            assert_eq!(places.folder_of(&strange), None, "{}", strange.display());
        }
    }

    #[test]
    fn what_was_written_down_comes_back_and_a_run_ends_once() {
        let root = tempfile::tempdir().unwrap();
        let places = Places::new(root.path(), &root.path().join("run")).unwrap();
        places.create().unwrap();
        let id = VmId::from_uuid(uuid::Uuid::from_u128(3));
        let dir = places.vm(id);
        dir.create().unwrap();
        assert_eq!(places.known().unwrap(), [id]);
        assert_eq!(dir.applied().unwrap(), Applied::default());
        let crash = PowerState::Crashed(vbm_core::CrashCause::Host);
        dir.end_run(crash, Timestamp::from_micros(1)).unwrap();
        assert_eq!(dir.ended().unwrap().map(|ended| ended.power), Some(crash));
        dir.end_run(PowerState::Off, Timestamp::from_micros(2)).unwrap();
        assert_eq!(dir.ended().unwrap(), None);
        dir.remove().unwrap();
        dir.remove().unwrap();
        assert_eq!(places.known().unwrap(), []);
    }

    #[test]
    fn a_run_directory_that_is_too_long_for_a_socket_is_refused_with_the_length_that_fits() {
        let long = format!("/{}", "x".repeat(80));
        let error = Places::new(Path::new("/root"), Path::new(&long)).unwrap_err();
        assert!(vbm_core::Error::from(error).fix().contains("66 bytes"));
    }
}
