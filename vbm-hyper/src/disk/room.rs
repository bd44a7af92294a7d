//! Room is asked for before it is taken: the quota of a directory, and what must stay free on its file system.

use crate::{Error, Result};
use std::{
    path::Path,
    sync::{Mutex, PoisonError},
};

/// How much a directory of disks may take. Nothing is limited by default.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Room {
    /// The most that its disks may come to take together, in bytes. Of a pool, that is the sum of the *virtual* sizes of its
    /// volumes: what guests may write, whether they did so already or not. Of a store of images, it is the sum of the sizes of
    /// the files.
    pub quota_bytes: Option<u64>,
    /// What must stay free on the file system, in bytes. Thin clones may grow into it: it is what keeps the host alive then.
    pub reserve_bytes: u64,
}

impl Room {
    /// The same with a quota.
    #[must_use]
    pub const fn with_quota(mut self, bytes: u64) -> Self {
        self.quota_bytes = Some(bytes);
        self
    }

    /// The same with a reserve.
    #[must_use]
    pub const fn with_reserve(mut self, bytes: u64) -> Self {
        self.reserve_bytes = bytes;
        self
    }

    /// Whether `wanted_bytes` more are in the quota, where `used` bytes are spoken for.
    pub(super) fn check_quota(&self, dir: &Path, used_bytes: u64, wanted_bytes: u64) -> Result<()> {
        match self.quota_bytes {
            Some(quota_bytes) if used_bytes.saturating_add(wanted_bytes) > quota_bytes => {
                Err(Error::OverQuota {
                    dir: dir.to_owned(),
                    wanted_bytes,
                    used_bytes,
                    quota_bytes,
                })
            }
            _ => Ok(()),
        }
    }

    /// Whether `needed` bytes may be written on the file system of a directory.
    pub(super) fn check_free(&self, dir: &Path, needed_bytes: u64) -> Result<()> {
        let free_bytes = free(dir)?;
        if needed_bytes.saturating_add(self.reserve_bytes) > free_bytes {
            return Err(Error::NoRoom {
                dir: dir.to_owned(),
                needed_bytes,
                free_bytes,
                reserve_bytes: self.reserve_bytes,
            });
        }
        Ok(())
    }
}

/// What is free on the file system of a directory, in bytes.
pub(super) fn free(dir: &Path) -> Result<u64> {
    let found = rustix::fs::statvfs(dir).map_err(|errno| Error::io("look at", dir)(errno.into()))?;
    Ok(found.f_bavail.saturating_mul(found.f_frsize))
}

/// What is spoken for by work that is not done yet.
#[derive(Debug, Default)]
pub(super) struct Promised(Mutex<u64>);

/// A part of it; given back when dropped.
#[derive(Debug)]
pub(super) struct Promise<'a> {
    of: &'a Promised,
    bytes: u64,
}

impl Promised {
    /// Speaks for `bytes` when `check`, which hears what others were promised, agrees.
    pub(super) fn promise(&self, bytes: u64, check: impl FnOnce(u64) -> Result<()>) -> Result<Promise<'_>> {
        let mut promised = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        check(*promised)?;
        *promised = promised.saturating_add(bytes);
        Ok(Promise { of: self, bytes })
    }
}

impl Drop for Promise<'_> {
    fn drop(&mut self) {
        let mut promised = self.of.0.lock().unwrap_or_else(PoisonError::into_inner);
        *promised = promised.saturating_sub(self.bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_spoken_for_is_counted_until_it_is_given_back() {
        let (promised, room) = (Promised::default(), Room::default().with_quota(100));
        let ask = |bytes| {
            promised.promise(bytes, |others| {
                room.check_quota(Path::new("/pool"), 30 + others, bytes)
            })
        };
        let first = ask(50).unwrap();
        let refused = ask(30).unwrap_err();
        assert!(matches!(
            refused,
            Error::OverQuota {
                wanted_bytes: 30,
                used_bytes: 80,
                quota_bytes: 100,
                ..
            }
        ));
        ask(20).unwrap();
        drop(first);
        ask(70).unwrap();
    }

    #[test]
    fn the_reserve_is_kept_free() {
        let dir = tempfile::tempdir().unwrap();
        let free = free(dir.path()).unwrap();
        assert!(free > 0);
        Room::default().check_free(dir.path(), 0).unwrap();
        let refused = Room::default().with_reserve(u64::MAX).check_free(dir.path(), 1);
        assert!(matches!(refused, Err(Error::NoRoom { needed_bytes: 1, .. })));
    }
}
