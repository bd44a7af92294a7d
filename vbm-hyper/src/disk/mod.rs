//! Disks: images that are never changed, and the thin clones of them that VMs write to.
//!
//! ```text
//!   import --> tmp/… --sha256, fsync, check--> sha256/<digest>  0444, one file per content
//!                                                   ^  ^
//!                              refs/<digest>/<holder>  | backing file
//!                                                      |
//!                                      pool: <volume>.qcow2   one per VM disk, chains are one deep
//!                                            <volume>.vdi     a copy, for a hypervisor that reads no qcow2
//! ```
//!
//! - An image names no other file: no backing file, no external data file. Who uploads a disk cannot read the host's files with it.
//! - A reference is written before the clone that needs it and removed after it, so an image never goes while it is a base.
//! - Snapshots live inside the qcow2 file of a volume; memory that belongs to them lies beside it, in `<volume>.qcow2.memory/`.
//! - Each directory has one owner at a time (a lock); so what lies in `tmp` when it is opened is left over and swept.
//!   A *shared* directory has several, on any hosts whose file system carries `flock` between them: the one that comes
//!   while no other is there sweeps, and references are changed under a lock of all.
//!
//! | module | what it decides or does |
//! |---|---|
//! | `images`, `import`, `partial` | what is kept, what comes in, what came before a source broke |
//! | `pool`, `volumes`, `chain`, `export` | volumes: made and removed; grown, copied, flattened; their files; what leaves |
//! | `read`, `write`, `format` | the formats: every one is read, all but vmdk are written, and told by content |
//! | `lock`, `room`, `work` | who has a disk; quota and reserve; long work that can be called off |

mod chain;
mod export;
mod format;
#[cfg(test)]
mod fuzz;
mod images;
mod import;
pub(crate) mod lock;
mod partial;
mod pool;
pub mod qcow2;
mod read;
mod room;
pub(crate) mod snapshots;
pub(crate) mod vdi;
mod volumes;
mod work;
mod write;

pub use chain::ChainLink;
pub use export::Exported;
pub use format::ImageFormat;
pub use images::{ContentKind, ImageStore, ImportedFile, StoredFile};
pub use import::{Expected, ImageSource, ImportedDisk, SourceAnswer};
pub use pool::{Pool, VolumeFile};
pub use room::Room;

use crate::{Error, Result};
use rustix::fs::FlockOperation;
use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

/// Where the memory of a VM is kept that belongs to what its disk holds: beside the disk, wherever that goes.
pub(crate) fn memory_dir(disk: &Path) -> PathBuf {
    let mut name = disk.as_os_str().to_owned();
    name.push(".memory");
    name.into()
}

/// The kind of disk that a hypervisor writes to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum DiskKind {
    /// A qcow2 file that is a linked clone of its image.
    #[default]
    Qcow2,
    /// A VDI file that holds a copy of its image.
    Vdi,
}

impl DiskKind {
    /// How the names of such files end.
    pub const fn extension(self) -> &'static str {
        match self {
            Self::Qcow2 => "qcow2",
            Self::Vdi => "vdi",
        }
    }
}

/// Runs file work off the async threads.
pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
        Err(_) => Err(Error::ShutDown("the runtime")),
    }
}

/// The ownership of a directory. It ends when this is dropped: the lock is taken off rather than left to the last
/// descriptor, because a child between fork and exec holds a copy of each descriptor for a moment.
#[derive(Debug)]
pub(crate) struct Owner(File);

impl Drop for Owner {
    fn drop(&mut self) {
        if let Err(errno) = rustix::fs::flock(&self.0, rustix::fs::FlockOperation::Unlock) {
            tracing::debug!(%errno, "a lock is left to the end of its descriptor");
        }
    }
}

impl Owner {
    /// Lets other sharers in.
    fn share(&self, dir: &Path) -> Result<()> {
        rustix::fs::flock(&self.0, FlockOperation::LockShared)
            .map_err(|errno| Error::io("lock", dir.join(LOCK))(errno.into()))
    }
}

/// The name of the lock of a directory.
pub(crate) const LOCK: &str = "lock";

/// How a directory is held.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Sharing {
    /// By one process.
    Alone,
    /// By any number of processes.
    Shared,
}

/// Makes a directory and becomes its only owner.
pub(crate) fn own(dir: &Path) -> Result<Owner> {
    lock(dir, LOCK, FlockOperation::NonBlockingLockExclusive)
}

/// Becomes an owner of a directory: the only one, or one of several. The second value says whether nobody else is
/// there now; then what is half-made is left over, and may be swept before [`Owner::share`].
async fn hold(dir: PathBuf, sharing: Sharing) -> Result<(Owner, bool)> {
    let mut tries = 0;
    loop {
        let dir = dir.clone();
        let held = blocking(move || match own(&dir) {
            Err(Error::InUse { .. }) if sharing == Sharing::Shared => {
                lock(&dir, LOCK, FlockOperation::NonBlockingLockShared).map(|owner| (owner, false))
            }
            other => other.map(|owner| (owner, true)),
        });
        match held.await {
            // Somebody who is alone for the moment of sweeping lets others in soon.
            Err(Error::InUse { .. }) if sharing == Sharing::Shared && tries < SHARE_MAX_TRIES => {
                tries += 1;
                tokio::time::sleep(SHARE_RETRY).await;
            }
            other => return other,
        }
    }
}

/// How often a shared directory that one owner holds is tried again.
const SHARE_MAX_TRIES: u32 = 50;
/// How long to wait in between.
const SHARE_RETRY: Duration = Duration::from_millis(100);

fn lock(dir: &Path, name: &str, operation: FlockOperation) -> Result<Owner> {
    fs::create_dir_all(dir).map_err(Error::io("create", dir))?;
    let path = dir.join(name);
    let lock = fs::OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .open(&path)
        .map_err(Error::io("open", &path))?;
    rustix::fs::flock(&lock, operation).map_err(|errno| {
        if errno == rustix::io::Errno::WOULDBLOCK {
            Error::InUse { dir: dir.to_owned() }
        } else {
            Error::io("lock", &path)(errno.into())
        }
    })?;
    Ok(Owner(lock))
}

/// Makes what was renamed, created or removed in a directory survive a power cut.
pub(crate) fn sync_dir(dir: &Path) -> Result<()> {
    File::open(dir)
        .and_then(|d| d.sync_all())
        .map_err(Error::io("sync", dir))
}

/// A file that is removed unless it was kept.
#[derive(Debug)]
struct Temp {
    path: PathBuf,
    file: File,
    kept: bool,
}

impl Temp {
    fn create(dir: &Path) -> Result<Self> {
        static COUNT: AtomicU64 = AtomicU64::new(0);
        let name = format!(
            ".tmp-{}-{}",
            std::process::id(),
            COUNT.fetch_add(1, Ordering::Relaxed)
        );
        let path = dir.join(name);
        let file = fs::OpenOptions::new()
            .read(true)
            .write(true)
            .create_new(true)
            .open(&path)
            .map_err(Error::io("create", &path))?;
        Ok(Self {
            path,
            file,
            kept: false,
        })
    }

    /// Whether a directory entry is one of these.
    fn is_one(name: &str) -> bool {
        name.starts_with(".tmp-")
    }
}

impl Drop for Temp {
    fn drop(&mut self) {
        if !self.kept
            && let Err(error) = fs::remove_file(&self.path)
        {
            tracing::warn!(path = %self.path.display(), %error, "a temporary file stays behind");
        }
    }
}

/// Removes what earlier owners left half-made. Returns how many files.
fn sweep(dir: &Path) -> Result<usize> {
    let mut swept = 0;
    for entry in fs::read_dir(dir).map_err(Error::io("list", dir))? {
        let entry = entry.map_err(Error::io("list", dir))?;
        if entry.file_name().to_str().is_some_and(Temp::is_one) {
            fs::remove_file(entry.path()).map_err(Error::io("remove", entry.path()))?;
            swept += 1;
        }
    }
    Ok(swept)
}
