//! The highest epoch that this node has obeyed: kept on its disk, so that a stale leader is refused also
//! after a restart.

use std::{
    io::Write as _,
    path::PathBuf,
    sync::{Mutex, PoisonError},
};
use vbm_core::{Epoch, Error, ErrorKind, Result};
use vbm_rpc::{EpochGate, stale_epoch};

/// The file, and what it says.
#[derive(Debug)]
pub(super) struct EpochFile {
    path: PathBuf,
    highest: Mutex<Epoch>,
}

impl EpochFile {
    pub(super) fn open(path: PathBuf) -> Result<Self> {
        let highest = match std::fs::read_to_string(&path) {
            Ok(text) => text.trim().parse().map(Epoch).map_err(|_| {
                Error::new(
                    ErrorKind::Corrupt,
                    "the agent's epoch cannot be read",
                    format!("{} does not hold a number", path.display()),
                    "write the epoch there that `vbm node info` shows, or remove the file if the node is new",
                )
            })?,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Epoch(0),
            Err(e) => return Err(unusable(&path, &e)),
        };
        Ok(Self {
            path,
            highest: Mutex::new(highest),
        })
    }

    pub(super) fn highest(&self) -> Epoch {
        *self.highest.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self, epoch: Epoch) -> std::io::Result<()> {
        let new = self.path.with_extension("new");
        let mut file = std::fs::File::create(&new)?;
        writeln!(file, "{epoch}")?;
        file.sync_all()?;
        std::fs::rename(new, &self.path)
    }
}

impl EpochFile {
    fn admit_now(&self, epoch: Epoch) -> Result<()> {
        let mut highest = self.highest.lock().unwrap_or_else(PoisonError::into_inner);
        if epoch < *highest {
            return Err(stale_epoch(epoch, *highest));
        }
        if epoch > *highest {
            self.write(epoch).map_err(|e| unusable(&self.path, &e))?;
            *highest = epoch;
        }
        Ok(())
    }
}

#[async_trait::async_trait]
impl EpochGate for EpochFile {
    async fn admit(&self, epoch: Epoch) -> Result<()> {
        self.admit_now(epoch)
    }
}

fn unusable(path: &std::path::Path, error: &std::io::Error) -> Error {
    Error::new(
        ErrorKind::Unavailable,
        "the agent's epoch cannot be kept",
        format!("{}: {error}", path.display()),
        "look at the disk and the rights of the data directory",
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stale_epoch_is_refused_also_after_a_restart() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("epoch");
        let gate = EpochFile::open(path.clone()).unwrap();
        gate.admit_now(Epoch(5)).unwrap();
        assert_eq!(gate.admit_now(Epoch(4)).unwrap_err().kind(), ErrorKind::Stale);
        drop(gate);
        let again = EpochFile::open(path).unwrap();
        assert_eq!(again.admit_now(Epoch(4)).unwrap_err().kind(), ErrorKind::Stale);
        again.admit_now(Epoch(5)).unwrap();
    }

    #[test]
    fn a_file_that_holds_no_number_is_not_taken_for_a_new_node() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("epoch"), "x").unwrap();
        assert_eq!(
            EpochFile::open(dir.path().join("epoch")).unwrap_err().kind(),
            ErrorKind::Corrupt
        );
    }
}
