//! Gates that remember: the highest epoch seen, in memory or in a file.

use crate::{EpochGate, MemoryEpochGate, stale_epoch};
use async_trait::async_trait;
use std::{
    io::Write as _,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};
use vbm_core::{Epoch, Error, ErrorKind};

/// A gate that can be asked what it remembers, so that it can bear witness when a new leader is elected. Implement it to
/// keep the epoch where the rest of a process' state is.
#[async_trait]
pub trait EpochMemory: EpochGate {
    /// The highest epoch seen.
    fn highest(&self) -> Epoch;

    /// Notes an epoch if it is the highest, and says what the highest was before: in one step, so that of two
    /// who propose one epoch only one is told that nobody saw it. A higher epoch must be on disk before this
    /// returns `Ok`.
    ///
    /// # Errors
    /// When it cannot be kept.
    ///
    /// # Cancel safety
    /// A dropped future may have noted it.
    async fn note(&self, epoch: Epoch) -> Result<Epoch, Error>;
}

#[async_trait]
impl EpochMemory for MemoryEpochGate {
    fn highest(&self) -> Epoch {
        Self::highest(self)
    }
    async fn note(&self, epoch: Epoch) -> Result<Epoch, Error> {
        Ok(self.fetch_max(epoch))
    }
}

/// A gate whose memory is a file: one decimal number. A higher epoch is on disk before it is obeyed. One process opens
/// it at a time.
#[derive(Clone, Debug)]
pub struct FileEpochGate(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    path: PathBuf,
    /// What is on disk. Grows only, and only under `writing`.
    highest: AtomicU64,
    writing: Mutex<()>,
}

impl FileEpochGate {
    /// Reads the file, which need not be there yet. Reads from disk: call it at the start of a process.
    ///
    /// # Errors
    /// [`ErrorKind::Corrupt`] when it holds anything but a number, [`ErrorKind::Unavailable`] when it cannot be read.
    pub fn open(path: impl Into<PathBuf>) -> Result<Self, Error> {
        let path = path.into();
        let highest = match std::fs::read_to_string(&path) {
            Ok(text) => text.trim().parse().map_err(|_| {
                Error::new(
                    ErrorKind::Corrupt,
                    "the highest epoch cannot be read",
                    format!("{} does not hold a number", path.display()),
                    "write the epoch of the present leader there; remove the file only where nothing was ever commanded",
                )
            })?,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => 0,
            Err(error) => return Err(unusable(&path, &error)),
        };
        Ok(Self(Arc::new(Inner {
            path,
            highest: AtomicU64::new(highest),
            writing: Mutex::new(()),
        })))
    }

    async fn raise(&self, epoch: Epoch) -> Result<Epoch, Error> {
        let before = self.highest();
        if epoch <= before {
            return Ok(before);
        }
        let inner = self.0.clone();
        // Runs to its end also when this future is dropped: the file and the number stay together.
        tokio::task::spawn_blocking(move || inner.raise(epoch))
            .await
            .unwrap_or_else(|error| {
                Err(Error::internal(
                    "the highest epoch was not written",
                    error.to_string(),
                ))
            })
    }
}

impl Inner {
    fn raise(&self, epoch: Epoch) -> Result<Epoch, Error> {
        let _one_writer = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        let before = Epoch(self.highest.load(Ordering::SeqCst));
        if epoch > before {
            self.write(epoch).map_err(|error| unusable(&self.path, &error))?;
            self.highest.store(epoch.0, Ordering::SeqCst);
        }
        Ok(before)
    }

    /// The file is the old one or the new one, never a half: a power cut may come at any time.
    fn write(&self, epoch: Epoch) -> std::io::Result<()> {
        let new = self.path.with_extension("new");
        let mut file = std::fs::File::create(&new)?;
        writeln!(file, "{epoch}")?;
        file.sync_all()?;
        std::fs::rename(&new, &self.path)?;
        let folder = match self.path.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent,
            _ => Path::new("."),
        };
        std::fs::File::open(folder)?.sync_all()
    }
}

fn unusable(path: &Path, error: &std::io::Error) -> Error {
    Error::new(
        ErrorKind::Unavailable,
        "the highest epoch cannot be kept",
        format!("{}: {error}", path.display()),
        "look at the disk and at the rights of the folder",
    )
}

#[async_trait]
impl EpochGate for FileEpochGate {
    async fn admit(&self, epoch: Epoch) -> Result<(), Error> {
        let before = self.raise(epoch).await?;
        if epoch < before {
            return Err(stale_epoch(epoch, before));
        }
        Ok(())
    }
}

#[async_trait]
impl EpochMemory for FileEpochGate {
    fn highest(&self) -> Epoch {
        Epoch(self.0.highest.load(Ordering::SeqCst))
    }
    async fn note(&self, epoch: Epoch) -> Result<Epoch, Error> {
        self.raise(epoch).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_stale_epoch_is_refused_also_after_a_restart() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("epoch");
        let gate = FileEpochGate::open(&path).unwrap();
        gate.admit(Epoch(5)).await.unwrap();
        assert_eq!(gate.note(Epoch(7)).await.unwrap(), Epoch(5));
        assert_eq!(gate.note(Epoch(6)).await.unwrap(), Epoch(7));
        drop(gate);
        let again = FileEpochGate::open(&path).unwrap();
        assert_eq!(again.highest(), Epoch(7));
        assert_eq!(again.admit(Epoch(6)).await.unwrap_err().kind(), ErrorKind::Stale);
        again.admit(Epoch(7)).await.unwrap();
    }

    #[tokio::test]
    async fn of_many_who_note_one_epoch_one_is_the_first() {
        let dir = tempfile::tempdir().unwrap();
        let gate = FileEpochGate::open(dir.path().join("epoch")).unwrap();
        let notes = (0..20).map(|_| gate.note(Epoch(3)));
        let before = futures::future::join_all(notes).await;
        let first = before
            .iter()
            .filter(|before| before.as_ref().unwrap() < &Epoch(3));
        assert_eq!(first.count(), 1);
    }

    #[tokio::test]
    async fn what_cannot_be_kept_is_not_obeyed() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("gone");
        std::fs::create_dir(&folder).unwrap();
        let gate = FileEpochGate::open(folder.join("epoch")).unwrap();
        std::fs::remove_dir(&folder).unwrap();
        let refused = gate.admit(Epoch(1)).await.unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::Unavailable);
        assert_eq!(gate.highest(), Epoch(0));
        std::fs::write(dir.path().join("words"), "seven").unwrap();
        let corrupt = FileEpochGate::open(dir.path().join("words")).unwrap_err();
        assert_eq!(corrupt.kind(), ErrorKind::Corrupt);
    }
}
