//! Instances: one data directory, one daemon at a time, one tag on all that it makes on the host.
//!
//! ```text
//!   DATA/instance           the tag, made once
//!   REGISTRY/<tag>.json     where its data is; locked while its daemon lives
//! ```
//!
//! The registry lets `vbm doctor` tell what belongs to a daemon that lives, to one that will come back, and to
//! nobody. The lock is the kernel's: it ends with the process, however that ends.

use nix::fcntl::{Flock, FlockArg};
use serde::{Deserialize, Serialize};
use std::{
    fs,
    io::{self, Write},
    path::{Path, PathBuf},
};
use vbm_core::{Error, ErrorKind, Result};

/// Where instances of this host are listed when they run as root.
pub(crate) const ROOT_REGISTRY: &str = "/run/vbm/instances";

/// What the registry says of an instance.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct InstanceRecord {
    /// The tag.
    pub(crate) tag: String,
    /// Its data.
    pub(crate) data_dir: PathBuf,
    /// Where its VMs' sockets and manifests are.
    pub(crate) run_dir: PathBuf,
    /// Its API, where it has one.
    pub(crate) socket: Option<PathBuf>,
    /// Whether nothing of it is worth keeping once its daemon is gone: demos and tests.
    pub(crate) ephemeral: bool,
}

/// A claimed instance: while it lives, no other daemon can have the same data.
#[derive(Debug)]
pub(crate) struct Instance {
    record: InstanceRecord,
    path: PathBuf,
    _data: Flock<fs::File>,
    _registry: Flock<fs::File>,
}

impl Instance {
    pub(crate) fn tag(&self) -> &str {
        &self.record.tag
    }

    /// Claims a data directory.
    pub(crate) fn claim(
        data_dir: &Path,
        run_dir: Option<PathBuf>,
        socket: Option<PathBuf>,
        ephemeral: bool,
    ) -> Result<(Self, InstanceRecord)> {
        let unusable = |e: &io::Error, path: &Path| {
            Error::new(
                if e.kind() == io::ErrorKind::PermissionDenied {
                    ErrorKind::PermissionDenied
                } else {
                    ErrorKind::Unavailable
                },
                format!("the data directory {} cannot be used", data_dir.display()),
                format!("{}: {e}", path.display()),
                "run vbmd as root, or choose a --data-dir that you may write",
            )
        };
        fs::create_dir_all(data_dir).map_err(|e| unusable(&e, data_dir))?;
        let data_dir = fs::canonicalize(data_dir).map_err(|e| unusable(&e, data_dir))?;
        let file = fs::OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .open(data_dir.join("lock"))
            .map_err(|e| unusable(&e, &data_dir))?;
        let data = Flock::lock(file, FlockArg::LockExclusiveNonblock).map_err(|_| {
            Error::new(
                ErrorKind::Conflict,
                format!("the data directory {} is in use", data_dir.display()),
                "another vbmd has it",
                "stop that one, or give this one another --data-dir and --socket",
            )
        })?;
        let tag = tag_of(&data_dir).map_err(|e| unusable(&e, &data_dir.join("instance")))?;
        let run_dir = run_dir.unwrap_or_else(|| default_run_dir(&data_dir, &tag));
        fs::create_dir_all(&run_dir).map_err(|e| unusable(&e, &run_dir))?;
        let record = InstanceRecord {
            tag,
            data_dir,
            run_dir,
            socket,
            ephemeral,
        };
        let registry = registry_of(&record.data_dir);
        let path = registry.join(format!("{}.json", record.tag));
        let locked = register(&registry, &path, &record).map_err(|e| unusable(&e, &path))?;
        Ok((
            Self {
                record: record.clone(),
                path,
                _data: data,
                _registry: locked,
            },
            record,
        ))
    }

    /// Takes an ephemeral instance of which nothing is on the host any more off the registry, with its run directory.
    pub(crate) fn forget(&self) -> io::Result<()> {
        if !self.record.ephemeral {
            return Ok(());
        }
        fs::remove_dir_all(&self.record.run_dir)?;
        fs::remove_file(&self.path)
    }
}

fn is_root() -> bool {
    nix::unistd::geteuid().is_root()
}

/// Root's instances are listed for the host; others beside their data.
fn registry_of(data_dir: &Path) -> PathBuf {
    if is_root() {
        ROOT_REGISTRY.into()
    } else {
        data_dir.join("registry")
    }
}

/// Short, since the paths of unix sockets are limited to 107 bytes.
fn default_run_dir(data_dir: &Path, tag: &str) -> PathBuf {
    if is_root() {
        Path::new("/run/vbm").join(tag)
    } else {
        data_dir.join("run")
    }
}

fn register(registry: &Path, path: &Path, record: &InstanceRecord) -> io::Result<Flock<fs::File>> {
    fs::create_dir_all(registry)?;
    let file = fs::OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .open(path)?;
    let locked = Flock::lock(file, FlockArg::LockExclusiveNonblock).map_err(|(_, e)| io::Error::from(e))?;
    locked.set_len(0)?;
    (&*locked).write_all(&serde_json::to_vec(record)?)?;
    Ok(locked)
}

fn tag_of(data_dir: &Path) -> io::Result<String> {
    let path = data_dir.join("instance");
    match fs::read_to_string(&path) {
        Ok(tag) if is_tag(tag.trim()) => return Ok(tag.trim().to_owned()),
        Ok(_) => {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                "it does not hold a tag",
            ));
        }
        Err(e) if e.kind() == io::ErrorKind::NotFound => {}
        Err(e) => return Err(e),
    }
    let id = uuid::Uuid::now_v7().simple().to_string();
    let tag = id[24..].to_owned();
    fs::write(&path, format!("{tag}\n"))?;
    Ok(tag)
}

fn is_tag(text: &str) -> bool {
    text.len() == 8 && text.bytes().all(|b| b.is_ascii_hexdigit())
}

/// An instance in the registry.
#[derive(Debug)]
pub(crate) struct Registered {
    pub(crate) record: InstanceRecord,
    /// `None` while its daemon lives; else the lock, held so that no daemon starts meanwhile.
    pub(crate) claimed: Option<Flock<fs::File>>,
    path: PathBuf,
}

impl Registered {
    /// Takes it off the registry.
    pub(crate) fn remove(&self) -> io::Result<()> {
        fs::remove_file(&self.path)
    }
}

/// The instances of this host. A record that cannot be read is left out: its daemon is just writing it.
pub(crate) fn registered(registry: &Path) -> io::Result<Vec<Registered>> {
    let entries = match fs::read_dir(registry) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        other => other?,
    };
    let mut found = Vec::new();
    for entry in entries {
        let path = entry?.path();
        let Ok(record) = fs::read(&path).and_then(|bytes| Ok(serde_json::from_slice(&bytes)?)) else {
            continue;
        };
        let file = fs::OpenOptions::new().read(true).write(true).open(&path)?;
        let claimed = Flock::lock(file, FlockArg::LockExclusiveNonblock).ok();
        found.push(Registered {
            record,
            claimed,
            path,
        });
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_data_directory_has_one_daemon_at_a_time_and_keeps_its_tag() {
        let dir = tempfile::tempdir().unwrap();
        let run = dir.path().join("run");
        let (first, record) =
            Instance::claim(&dir.path().join("data"), Some(run.clone()), None, true).unwrap();
        let second = Instance::claim(&dir.path().join("data"), Some(run.clone()), None, true).unwrap_err();
        assert_eq!(second.kind(), ErrorKind::Conflict);
        first.forget().unwrap();
        drop(first);
        let (again, same) = Instance::claim(&dir.path().join("data"), Some(run), None, true).unwrap();
        assert_eq!(record.tag, same.tag);
        again.forget().unwrap();
    }
}
