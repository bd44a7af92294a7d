//! The record beside each namespace: who made it, for which network. It is written before the first thing of a network is
//! made and removed after the last is gone, so whatever a crash leaves is found by it.
//!
//! ```text
//!   /run/vbm/net/vbm-<net>….json    one a namespace on this machine, of any instance; named as the namespace is
//!   /run/vbm/net/owner-<tag>.lock   locked while that instance's backend runs
//!   /run/vbm/net/transit.lock       locked while a transit pair is chosen and taken
//!   <state dir>/transit-<net>.json  the pair a network had, so that it has it again after a reboot
//! ```

use crate::{DesiredNetwork, NetError, names, plan::Transit};
use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use std::{
    fs::{self, File, TryLockError},
    io::{self, Write as _},
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    time::Duration,
};
use vbm_core::{NetworkId, NetworkMode};

/// Where records are: on a file system that a reboot empties, as it does the kernel.
pub(crate) const RUN_DIR: &str = "/run/vbm/net";
/// How long to wait for another process that chooses a transit.
const LOCK_MAX: Duration = Duration::from_secs(10);
/// How often to look whether it is done.
const LOCK_POLL: Duration = Duration::from_millis(10);

/// One network on this machine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Record {
    pub(crate) owner: String,
    pub(crate) network: NetworkId,
    /// The host's side of it.
    pub(crate) host_namespace: PathBuf,
    #[serde(default)]
    pub(crate) transit: Option<Ipv4Net>,
    /// The addresses that are routed to it on the host, where its mode is routed. Claimed before a route leads there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) routed: Option<Routed>,
    /// The name of the namespace; without it, the plain one.
    #[serde(default)]
    pub(crate) namespace: Option<String>,
}

/// Addresses that are one network's alone on its host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Routed {
    pub(crate) cidr: Ipv4Net,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) cidr6: Option<Ipv6Net>,
    /// What people call the network.
    pub(crate) name: String,
}

impl Routed {
    /// What a network claims; `None` unless it is routed.
    pub(crate) fn of(net: &DesiredNetwork) -> Option<Self> {
        (net.spec.mode == NetworkMode::Routed).then(|| Self {
            cidr: net.spec.cidr,
            cidr6: net.spec.ipv6.as_ref().map(|six| six.cidr),
            name: net.name.to_string(),
        })
    }

    /// All of them.
    pub(crate) fn cidrs(&self) -> impl Iterator<Item = IpNet> {
        let six = self.cidr6.map(IpNet::V6);
        std::iter::once(IpNet::V4(self.cidr)).chain(six)
    }
}

impl Record {
    /// The name of its namespace.
    pub(crate) fn namespace(&self) -> String {
        self.namespace
            .clone()
            .unwrap_or_else(|| names::namespace(self.network))
    }

    pub(crate) fn transit(&self) -> Option<Transit> {
        self.transit.and_then(Transit::new)
    }

    fn path(namespace: &str) -> PathBuf {
        Path::new(RUN_DIR).join(format!("{namespace}.json"))
    }

    /// The record of a namespace, which may be of another network whose id has the same tail.
    pub(crate) fn load(namespace: &str) -> Result<Option<Self>, NetError> {
        read_json(&Self::path(namespace))
    }

    pub(crate) fn store(&self) -> Result<(), NetError> {
        write_json(&Self::path(&self.namespace()), self)
    }

    pub(crate) fn remove(&self) -> Result<(), NetError> {
        remove(&Self::path(&self.namespace()))
    }

    /// All of this machine. Those that cannot be read come as errors beside the others.
    pub(crate) fn all() -> Result<(Vec<Self>, Vec<NetError>), NetError> {
        let entries = match fs::read_dir(RUN_DIR) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok((Vec::new(), Vec::new())),
            other => other.map_err(|e| NetError::kernel(format!("reading {RUN_DIR}"), e))?,
        };
        let (mut records, mut errors) = (Vec::new(), Vec::new());
        for path in entries.filter_map(|e| Some(e.ok()?.path())) {
            if path.extension().is_some_and(|e| e == "json") {
                match read_json(&path) {
                    Ok(Some(record)) => records.push(record),
                    Ok(None) => {}
                    Err(error) => errors.push(error),
                }
            }
        }
        records.sort_by_key(|r: &Self| r.network);
        Ok((records, errors))
    }
}

/// The pair that a network had before.
pub(crate) fn remembered(state_dir: &Path, network: NetworkId) -> Result<Option<Transit>, NetError> {
    Ok(read_json::<Ipv4Net>(&memory(state_dir, network))?.and_then(Transit::new))
}
pub(crate) fn remember(state_dir: &Path, network: NetworkId, transit: Transit) -> Result<(), NetError> {
    write_json(&memory(state_dir, network), &transit.net())
}
pub(crate) fn forget(state_dir: &Path, network: NetworkId) -> Result<(), NetError> {
    remove(&memory(state_dir, network))
}
fn memory(state_dir: &Path, network: NetworkId) -> PathBuf {
    state_dir.join(format!("transit-{}.json", network.short()))
}

fn read_json<T: DeserializeOwned>(path: &Path) -> Result<Option<T>, NetError> {
    match fs::read(path) {
        Ok(bytes) => serde_json::from_slice(&bytes)
            .map(Some)
            .map_err(|e| NetError::Corrupt {
                path: path.to_owned(),
                why: e.to_string(),
            }),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(NetError::kernel(format!("reading {}", path.display()), e)),
    }
}

/// Whole or not at all: a new file is renamed over the old.
fn write_json<T: Serialize>(path: &Path, value: &T) -> Result<(), NetError> {
    let write = || -> io::Result<()> {
        if let Some(dir) = path.parent() {
            fs::create_dir_all(dir)?;
        }
        let temporary = path.with_extension(format!("tmp-{}", std::process::id()));
        let mut file = File::create(&temporary)?;
        file.write_all(&serde_json::to_vec(value)?)?;
        fs::rename(&temporary, path)
    };
    write().map_err(|e| NetError::kernel(format!("writing {}", path.display()), e))
}

fn remove(path: &Path) -> Result<(), NetError> {
    match fs::remove_file(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => {
            Err(NetError::kernel(format!("removing {}", path.display()), e))
        }
        _ => Ok(()),
    }
}

fn owner_path(owner: &str) -> PathBuf {
    Path::new(RUN_DIR).join(format!("owner-{owner}.lock"))
}

/// Held while an instance's backend runs.
#[derive(Debug)]
pub(crate) struct OwnerLock {
    path: PathBuf,
    _file: File,
}

impl Drop for OwnerLock {
    fn drop(&mut self) {
        // While it is still locked, so that nobody else's new file goes.
        drop(fs::remove_file(&self.path));
    }
}

impl OwnerLock {
    /// Takes it.
    pub(crate) fn take(owner: &str) -> Result<Self, NetError> {
        let path = owner_path(owner);
        match lock(&path) {
            Ok(Some(file)) => Ok(Self { path, _file: file }),
            Ok(None) => Err(NetError::Conflict {
                what: format!("the networks of instance '{owner}' are managed by another process"),
                why: "it holds the lock of that instance".into(),
                fix: "stop the other vbmd, or give this one another data directory".into(),
            }),
            Err(e) => Err(NetError::kernel(format!("locking {}", path.display()), e)),
        }
    }

    /// Whether an instance's backend runs now.
    pub(crate) fn is_held(owner: &str) -> bool {
        let path = owner_path(owner);
        path.exists()
            && matches!(
                File::open(&path).map(|f| f.try_lock()),
                Ok(Err(TryLockError::WouldBlock))
            )
    }
}

/// Locks a file without waiting; `None` when another has it. A file that was removed before it was locked is made again.
fn lock(path: &Path) -> io::Result<Option<File>> {
    if let Some(dir) = path.parent() {
        fs::create_dir_all(dir)?;
    }
    loop {
        let file = File::options().create(true).append(true).open(path)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Ok(None),
            Err(TryLockError::Error(e)) => return Err(e),
        }
        match fs::metadata(path) {
            Ok(now) if now.ino() == file.metadata()?.ino() => return Ok(Some(file)),
            _ => {}
        }
    }
}

/// Waits for the lock under which transit pairs and routed addresses are chosen, machine-wide.
pub(crate) async fn transit_lock() -> Result<File, NetError> {
    let path = Path::new(RUN_DIR).join("transit.lock");
    let wait = async {
        loop {
            match lock(&path) {
                Ok(Some(file)) => return Ok(file),
                Ok(None) => tokio::time::sleep(LOCK_POLL).await,
                Err(e) => return Err(NetError::kernel(format!("locking {}", path.display()), e)),
            }
        }
    };
    let timed_out = |_| NetError::TimedOut {
        doing: "waiting to choose a transit".into(),
        limit: LOCK_MAX,
    };
    tokio::time::timeout(LOCK_MAX, wait).await.map_err(timed_out)?
}

#[cfg(test)]
mod tests {
    use super::Record;

    #[test]
    fn a_record_of_an_earlier_version_is_of_the_plain_namespace() {
        let text = r#"{"owner":"o","network":"0190b6f2-4c1e-7cc3-a7a4-0d1f0000beef","host_namespace":"/proc/self/ns/net"}"#;
        let record: Record = serde_json::from_str(text).unwrap();
        assert_eq!(record.namespace(), "vbm-0000beef");
    }
}
