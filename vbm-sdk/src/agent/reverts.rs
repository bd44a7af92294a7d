//! Which way back to a snapshot this node has gone, kept on its disk, so that none is gone twice.
//!
//! ```text
//!   VM at rest --> file: begun OP --> driver reverts --> VM as it was then --> file: done OP
//!                        |                                    |
//!                  agent killed: at rest still,         agent killed: the VM is live, and nobody but this
//!                  so it is gone again                  way back can have set it going: done
//! ```
//!
//! A VM that ended while nobody looked, after the way back was begun, may have run for an hour: to go back once more could
//! lose that hour. Then it is not gone again, and somebody is told so.

use serde::{Deserialize, Serialize};
use std::{
    io::{self, Write as _},
    path::{Path, PathBuf},
};
use vbm_core::{Error, ErrorKind, OperationId, Outcome, PauseReason, PowerState, Result, VmId};

/// How far the last way back of a VM is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Way {
    /// The operation that asked for it.
    pub(super) operation: OperationId,
    /// Whether the VM is there.
    pub(super) done: bool,
}

/// What is to be done about a way back.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Go {
    /// It is to be gone.
    Forth,
    /// The VM is there already.
    There,
    /// Nobody can tell whether the VM was there.
    Nobody,
}

/// What to do about an operation's way back, by what is known of it and by what is seen.
pub(super) fn how(known: Option<Way>, operation: OperationId, seen: PowerState) -> Go {
    match known.filter(|way| way.operation == operation) {
        None => Go::Forth,
        Some(Way { done: true, .. }) => Go::There,
        Some(_) => match seen {
            // A VM that is halted otherwise never ran: it was broken off on its way.
            PowerState::Running | PowerState::Stopping | PowerState::Paused(PauseReason::DiskError) => {
                Go::There
            }
            PowerState::Crashed(_) => Go::Nobody,
            _ => Go::Forth,
        },
    }
}

/// The files: one a VM.
#[derive(Debug)]
pub(super) struct Reverts {
    dir: PathBuf,
}

impl Reverts {
    pub(super) fn open(dir: PathBuf) -> Result<Self> {
        std::fs::create_dir_all(&dir).map_err(|e| unusable(&dir, &e))?;
        Ok(Self { dir })
    }

    fn path(&self, vm: VmId) -> PathBuf {
        self.dir.join(format!("{vm}.json"))
    }

    /// The last way back of a VM.
    pub(super) fn last(&self, vm: VmId) -> Result<Option<Way>> {
        let path = self.path(vm);
        match std::fs::read(&path) {
            Ok(bytes) => serde_json::from_slice(&bytes).map(Some).map_err(|e| {
                Error::new(
                    ErrorKind::Corrupt,
                    "nobody can tell how far the way back to a snapshot is",
                    format!("{}: {e}", path.display()),
                    "look at the VM; remove the file, then revert again if that is still wanted",
                )
            }),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(unusable(&path, &e)),
        }
    }

    /// Writes down how far it is; on the disk when this returns.
    pub(super) fn note(&self, vm: VmId, way: Way) -> Result<()> {
        let path = self.path(vm);
        self.write(&path, way).map_err(|e| unusable(&path, &e))
    }

    fn write(&self, path: &Path, way: Way) -> io::Result<()> {
        let new = path.with_extension("new");
        let mut file = std::fs::File::create(&new)?;
        file.write_all(&serde_json::to_vec(&way)?)?;
        file.sync_all()?;
        std::fs::rename(new, path)?;
        std::fs::File::open(&self.dir)?.sync_all()
    }

    /// Forgets a VM.
    pub(super) fn forget(&self, vm: VmId) -> Result<()> {
        let path = self.path(vm);
        match std::fs::remove_file(&path) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => Err(unusable(&path, &e)),
            _ => Ok(()),
        }
    }
}

/// The VM ended while nobody looked.
pub(super) fn nobody_knows(vm: &vbm_core::Name) -> Error {
    Error::new(
        ErrorKind::Conflict,
        format!("{vm} ended on its way back to a snapshot"),
        "its agent was away meanwhile: nobody can tell whether it had run on from there",
        "look at its disk; revert again if what is on it may be lost",
    )
    .with_outcome(Outcome::Unknown)
}

fn unusable(path: &Path, error: &io::Error) -> Error {
    Error::new(
        ErrorKind::Unavailable,
        "the way back to a snapshot cannot be written down",
        format!("{}: {error}", path.display()),
        "look at the disk and the rights of the data directory",
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use uuid::Uuid;
    use vbm_core::CrashCause;

    const fn operation(n: u128) -> OperationId {
        OperationId::from_uuid(Uuid::from_u128(n))
    }

    const fn way(n: u128, done: bool) -> Option<Way> {
        Some(Way {
            operation: operation(n),
            done,
        })
    }

    #[test]
    fn each_operation_goes_back_once() {
        assert_eq!(how(None, operation(1), PowerState::Running), Go::Forth);
        assert_eq!(how(way(1, true), operation(1), PowerState::Off), Go::There);
        assert_eq!(how(way(1, true), operation(2), PowerState::Running), Go::Forth);
    }

    #[test]
    fn a_vm_that_runs_after_it_was_at_rest_is_there() {
        assert_eq!(how(way(1, false), operation(1), PowerState::Running), Go::There);
        for seen in [
            PowerState::Off,
            PowerState::Saved,
            PowerState::Restoring,
            PowerState::Paused(PauseReason::Requested),
        ] {
            assert_eq!(how(way(1, false), operation(1), seen), Go::Forth, "{seen}");
        }
    }

    #[test]
    fn a_vm_that_ended_while_nobody_looked_does_not_go_back_again() {
        let crashed = PowerState::Crashed(CrashCause::Hypervisor);
        assert_eq!(how(way(1, false), operation(1), crashed), Go::Nobody);
    }

    #[test]
    fn what_was_noted_is_there_after_a_restart() {
        let dir = tempfile::tempdir().unwrap();
        let vm = VmId::from_uuid(Uuid::from_u128(9));
        let note = Way {
            operation: operation(1),
            done: false,
        };
        let reverts = Reverts::open(dir.path().join("reverts")).unwrap();
        assert_eq!(reverts.last(vm).unwrap(), None);
        reverts.note(vm, note).unwrap();
        let again = Reverts::open(dir.path().join("reverts")).unwrap();
        assert_eq!(again.last(vm).unwrap(), Some(note));
        again.forget(vm).unwrap();
        again.forget(vm).unwrap();
        assert_eq!(again.last(vm).unwrap(), None);
    }

    #[test]
    fn a_damaged_note_is_not_taken_for_none() {
        let dir = tempfile::tempdir().unwrap();
        let vm = VmId::from_uuid(Uuid::from_u128(9));
        let reverts = Reverts::open(dir.path().to_owned()).unwrap();
        std::fs::write(reverts.path(vm), "x").unwrap();
        assert_eq!(reverts.last(vm).unwrap_err().kind(), ErrorKind::Corrupt);
    }
}
