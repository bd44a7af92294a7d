//! Network namespaces. A dedicated thread enters one, does a thing and ends: a runtime's worker never leaves its own.
//!
//! Namespaces are bound under `/run/netns` as `ip netns` does, so that `ip netns exec vbm-… ` works for people.

use crate::NetError;
use nix::{
    errno::Errno,
    mount::{MntFlags, MsFlags, mount, umount2},
    sched::{CloneFlags, setns, unshare},
    sys::statfs::{FsType, statfs},
};
use std::{
    fs::{self, File, OpenOptions},
    io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};
use tokio::sync::oneshot;

/// Where `ip netns` binds namespaces.
pub(crate) const BIND_DIR: &str = "/run/netns";
/// That of this process.
const CURRENT: &str = "/proc/self/ns/net";
/// The file system of namespaces (linux/magic.h).
const NSFS: FsType = FsType(0x6e73_6673);
/// A path bound over and over needs as many unmounts; more than this is not ours to undo.
const UNMOUNTS_MAX: usize = 16;

/// A namespace by the path it is bound to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct NetNs {
    path: PathBuf,
}

impl NetNs {
    pub(crate) fn at(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into() }
    }
    /// That of this process: by the path it is bound to, if it is one that somebody made, so that others find it too.
    pub(crate) fn current() -> Self {
        let here = Self::at(CURRENT);
        let bound = fs::read_dir(BIND_DIR).into_iter().flatten();
        let mut bound = bound.filter_map(|e| Some(Self::at(e.ok()?.path())));
        bound
            .find(|ns| ns.identity().is_some() && ns.identity() == here.identity())
            .unwrap_or(here)
    }

    /// Whether somebody made and bound it, so that it is one of several on this machine.
    pub(crate) fn is_bound_by_name(&self) -> bool {
        self.path != Path::new(CURRENT)
    }

    /// What tells one namespace from another, whatever its path.
    pub(crate) fn identity(&self) -> Option<(u64, u64)> {
        let file = fs::metadata(&self.path).ok()?;
        Some((file.dev(), file.ino()))
    }

    /// One of ours.
    pub(crate) fn named(name: &str) -> Self {
        Self::at(Path::new(BIND_DIR).join(name))
    }
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Whether a namespace is bound here.
    pub(crate) fn exists(&self) -> bool {
        is_bound(&self.path)
    }

    pub(crate) fn open(&self) -> Result<File, NetError> {
        File::open(&self.path)
            .map_err(|e| NetError::kernel(format!("opening namespace {}", self.path.display()), e))
    }

    /// Runs `f` on a thread of its own inside the namespace. Inside `f` the caller's tokio runtime is entered, so sockets
    /// can be registered and children spawned.
    ///
    /// # Cancel safety
    /// The thread goes on to its end; its result is dropped.
    pub(crate) async fn run<T: Send + 'static>(
        &self,
        f: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, NetError> {
        let file = self.open()?;
        on_thread(move || {
            setns(&file, CloneFlags::CLONE_NEWNET)
                .map_err(|e| NetError::kernel("entering a namespace", e))?;
            Ok(f())
        })
        .await
    }

    /// Makes the namespace and binds it, or adopts the one that is bound. Returns whether it was made.
    pub(crate) async fn create(&self) -> Result<bool, NetError> {
        if self.exists() {
            return Ok(false);
        }
        let path = self.path.clone();
        on_thread(move || bind_new(&path).map_err(|e| NetError::kernel("making a namespace", e))).await?;
        Ok(true)
    }

    /// Unbinds the namespace; the kernel frees it when nobody holds it. Returns whether there was one.
    pub(crate) fn delete(&self) -> Result<bool, NetError> {
        let mut was = false;
        for _ in 0..UNMOUNTS_MAX {
            match umount2(&self.path, MntFlags::MNT_DETACH) {
                Ok(()) => was = true,
                Err(Errno::EINVAL | Errno::ENOENT) => break,
                Err(e) => return Err(NetError::kernel(format!("unbinding {}", self.path.display()), e)),
            }
        }
        match fs::remove_file(&self.path) {
            Ok(()) => Ok(true),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(was),
            Err(e) => Err(NetError::kernel(format!("removing {}", self.path.display()), e)),
        }
    }
}

fn is_bound(path: &Path) -> bool {
    statfs(path).is_ok_and(|s| s.filesystem_type() == NSFS)
}

/// Names of bound namespaces that begin with a prefix.
pub(crate) fn list(prefix: &str) -> Result<Vec<String>, NetError> {
    let entries = match fs::read_dir(BIND_DIR) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        other => other.map_err(|e| NetError::kernel(format!("reading {BIND_DIR}"), e))?,
    };
    let names = entries.filter_map(|e| e.ok()?.file_name().into_string().ok());
    Ok(names.filter(|n| n.starts_with(prefix)).collect())
}

async fn on_thread<T: Send + 'static>(
    f: impl FnOnce() -> Result<T, NetError> + Send + 'static,
) -> Result<T, NetError> {
    let runtime = tokio::runtime::Handle::current();
    let (done, result) = oneshot::channel();
    let spawned = std::thread::Builder::new()
        .name("vbm-netns".into())
        .spawn(move || {
            let _entered = runtime.enter();
            // Nobody waits any more: the result is dropped, as documented.
            drop(done.send(f()));
        });
    spawned.map_err(|e| NetError::kernel("starting a thread", e))?;
    result.await.unwrap_or(Err(NetError::Stopped))
}

/// On a thread that ends afterwards: it leaves its namespace for good.
fn bind_new(path: &Path) -> io::Result<()> {
    share_bind_dir()?;
    // A file without a namespace is what a crash between these two lines leaves: it is used again.
    OpenOptions::new().create(true).append(true).open(path)?;
    unshare(CloneFlags::CLONE_NEWNET)?;
    mount(
        Some("/proc/thread-self/ns/net"),
        path,
        None::<&str>,
        MsFlags::MS_BIND,
        None::<&str>,
    )?;
    Ok(())
}

/// As `ip netns add` does: binds must reach the mount namespaces of services too.
fn share_bind_dir() -> io::Result<()> {
    fs::create_dir_all(BIND_DIR)?;
    let share = || {
        mount(
            None::<&str>,
            BIND_DIR,
            None::<&str>,
            MsFlags::MS_SHARED | MsFlags::MS_REC,
            None::<&str>,
        )
    };
    match share() {
        Err(Errno::EINVAL) => {
            mount(
                Some(BIND_DIR),
                BIND_DIR,
                None::<&str>,
                MsFlags::MS_BIND | MsFlags::MS_REC,
                None::<&str>,
            )?;
            share()?;
        }
        other => other?,
    }
    Ok(())
}
