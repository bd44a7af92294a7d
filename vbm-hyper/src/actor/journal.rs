//! The journal: what each VM is busy with, written down, so that the next daemon can say how it ended.
//!
//! ```text
//!   job begins --> <dir>/<vm id>.json --> job ends: file gone
//!                        |  (the daemon dies)
//!                        `--> next open: adopt (the driver resumes or undoes) --> look --> EndedJob { Done | Undone | Unknown }
//! ```
//!
//! The journal decides nothing and repeats nothing: a driver brings to an end what its own notes say ([`crate::Driver::adopt`]). The journal only
//! lets it be told whose work that was, and how it looks now. What cannot be seen is [`JobEnd::Unknown`]: inspect before acting again.
//!
//! Files are replaced by rename and not synced: as run directories are, they matter as long as the host is up. A file that cannot
//! be written costs the telling, never the job.

use super::Job;
use crate::{Error, Progress, Result, Seen, VmDefinition, files};
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};
use vbm_core::{OperationId, PowerState, SnapshotId, Timestamp, VmId};

/// The form of the files; a newer one is not guessed at.
const FORMAT: u32 = 1;

/// A job as it is written down.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Note {
    format: u32,
    pub(super) vm: VmId,
    pub(super) job: Job,
    pub(super) operation: Option<OperationId>,
    pub(super) since: Timestamp,
    pub(super) phase: String,
    pub(super) done: u64,
    pub(super) total: u64,
    /// What a snapshot is looked for by.
    pub(super) snapshot: Option<(SnapshotId, Box<VmDefinition>)>,
}

impl Note {
    pub(super) fn new(vm: VmId, job: Job, operation: Option<OperationId>, since: Timestamp) -> Self {
        Self {
            format: FORMAT,
            vm,
            job,
            operation,
            since,
            phase: String::new(),
            done: 0,
            total: 0,
            snapshot: None,
        }
    }

    pub(super) fn reached(&mut self, progress: Progress) {
        progress.phase.clone_into(&mut self.phase);
        (self.done, self.total) = (progress.done, progress.total);
    }
}

/// How a job ended whose daemon did not see its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
#[non_exhaustive]
pub enum JobEnd {
    /// The VM is where the job should have brought it.
    Done,
    /// The VM is where it was before.
    Undone,
    /// Nobody can tell: look at the VM before doing anything again.
    Unknown,
}

/// A job of an earlier daemon, and what came of it.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct EndedJob {
    /// The VM.
    pub vm: VmId,
    /// What was being done.
    pub job: Job,
    /// In whose name, if anybody's.
    pub operation: Option<OperationId>,
    /// Since when.
    pub since: Timestamp,
    /// What it was doing last, in words; empty if it never said.
    pub phase: String,
    /// How much of that was done, in its own unit.
    pub done: u64,
    /// How much there was to do; 0 when that was not known.
    pub total: u64,
    /// How it ended.
    pub end: JobEnd,
    /// What is seen of the VM now; `None` when the driver knows it no more.
    pub seen: Option<Seen>,
}

/// Where jobs are written down; without a directory, nowhere.
#[derive(Clone, Debug, Default)]
pub(super) struct Journal {
    dir: Option<PathBuf>,
}

impl Journal {
    pub(super) fn open(dir: Option<PathBuf>) -> Result<Self> {
        if let Some(dir) = &dir {
            std::fs::create_dir_all(dir).map_err(Error::io("create", dir))?;
        }
        Ok(Self { dir })
    }

    fn name(vm: VmId) -> String {
        format!("{vm}.json")
    }

    pub(super) fn write(&self, note: &Note) {
        if let Some(dir) = &self.dir
            && let Err(error) = files::write(dir, &Self::name(note.vm), note)
        {
            tracing::warn!(vm = %note.vm, %error, "what is being done with a VM cannot be written down");
        }
    }

    pub(super) fn forget(&self, vm: VmId) {
        if let Some(dir) = &self.dir
            && let Err(error) = files::remove_if_there(&dir.join(Self::name(vm)))
        {
            tracing::warn!(%vm, %error, "a note of what was done with a VM stays behind");
        }
    }

    /// What an earlier daemon left. What cannot be understood is told and left where it is.
    pub(super) fn left(&self) -> Result<Vec<Note>> {
        let Some(dir) = &self.dir else {
            return Ok(Vec::new());
        };
        let mut notes = Vec::new();
        for entry in std::fs::read_dir(dir).map_err(Error::io("list", dir))? {
            let name = entry.map_err(Error::io("list", dir))?.file_name();
            let Some(id) = name.to_str().and_then(|name| name.strip_suffix(".json")) else {
                continue;
            };
            if id.parse::<VmId>().is_ok() {
                notes.extend(read(dir, &format!("{id}.json")));
            }
        }
        Ok(notes)
    }
}

fn read(dir: &Path, name: &str) -> Option<Note> {
    match files::read::<Note>(dir, name) {
        Ok(note) => note.filter(|note| note.format == FORMAT),
        Err(error) => {
            tracing::warn!(name, %error, "what was being done with a VM cannot be read");
            None
        }
    }
}

/// How a job ended, by how its VM looks now: pure. `there`: whether the snapshot that it was about exists, if that is known.
pub(super) fn end_of(job: Job, seen: Option<PowerState>, there: Option<bool>) -> JobEnd {
    use JobEnd::{Done, Undone, Unknown};
    let power = seen.unwrap_or(PowerState::Off);
    if matches!(power, PowerState::Unknown | PowerState::Unresponsive) && job != Job::Remove {
        return Unknown;
    }
    let up = matches!(power, PowerState::Running | PowerState::Paused(_));
    match (job, power) {
        (Job::Start | Job::Restore, _) if up => Done,
        (Job::Start, PowerState::Off) | (Job::Restore, PowerState::Saved) => Undone,
        (Job::Stop | Job::ForceOff, PowerState::Off) => Done,
        (Job::ForceOff, PowerState::Crashed(_)) => Done,
        (Job::Stop | Job::ForceOff, _) if power.is_live() => Undone,
        (Job::Pause, PowerState::Paused(_)) | (Job::Resume, PowerState::Running) => Done,
        (Job::Pause, PowerState::Running) | (Job::Resume, PowerState::Paused(_)) => Undone,
        (Job::Remove, _) if seen.is_none() => Done,
        (Job::Remove, _) => Undone,
        (Job::TakeSnapshot, _) => there.map_or(Unknown, |there| if there { Done } else { Undone }),
        (Job::DeleteSnapshot, _) => there.map_or(Unknown, |there| if there { Undone } else { Done }),
        (Job::Save, PowerState::Saved) => Done,
        (Job::Save, _) if up => Undone,
        (Job::DiscardSaved, PowerState::Off) => Done,
        (Job::DiscardSaved, PowerState::Saved) => Undone,
        (Job::MigrateOut, PowerState::Off) => Done,
        (Job::MigrateOut, _) if up => Undone,
        (Job::MigrateIn, PowerState::MigratingIn) => Done,
        (Job::MigrateIn, _) if up => Done,
        (Job::MigrateIn, PowerState::Off) => Undone,
        (Job::Abandon, PowerState::Off) => Done,
        (Job::Abandon, PowerState::MigratingIn) => Undone,
        // A reset leaves no trace, and where a revert came from looks as where it went to. Others were followed by an accident.
        _ => Unknown,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use vbm_core::{CrashCause, PauseReason};

    #[test]
    fn how_a_job_ended_is_told_by_how_its_vm_looks_and_never_guessed() {
        use JobEnd::{Done, Undone, Unknown};
        use PowerState::{Crashed, MigratingIn, Off, Paused, Running, Saved, Starting};
        let paused = Paused(PauseReason::Requested);
        let crashed = Crashed(CrashCause::Host);
        for (job, seen, there, end) in [
            (Job::Start, Some(Running), None, Done),
            (Job::Start, Some(Off), None, Undone),
            (Job::Start, None, None, Undone),
            (Job::Start, Some(crashed), None, Unknown),
            (Job::Start, Some(PowerState::Unresponsive), None, Unknown),
            (Job::Stop, Some(Off), None, Done),
            (Job::Stop, Some(Running), None, Undone),
            (Job::Stop, Some(PowerState::Stopping), None, Undone),
            (Job::ForceOff, Some(crashed), None, Done),
            (Job::ForceOff, Some(Starting), None, Undone),
            (Job::Reset, Some(Running), None, Unknown),
            (Job::Pause, Some(paused), None, Done),
            (Job::Pause, Some(Running), None, Undone),
            (Job::Resume, Some(Running), None, Done),
            (Job::Remove, None, None, Done),
            (Job::Remove, Some(Off), None, Undone),
            (Job::Remove, Some(PowerState::Unknown), None, Undone),
            (Job::TakeSnapshot, Some(Running), Some(true), Done),
            (Job::TakeSnapshot, Some(Running), Some(false), Undone),
            (Job::TakeSnapshot, Some(Running), None, Unknown),
            (Job::DeleteSnapshot, Some(Off), Some(true), Undone),
            (Job::DeleteSnapshot, Some(Off), Some(false), Done),
            (Job::RevertSnapshot, Some(Running), Some(true), Unknown),
            (Job::Save, Some(Saved), None, Done),
            (Job::Save, Some(paused), None, Undone),
            (Job::Save, Some(Off), None, Unknown),
            (Job::Restore, Some(Running), None, Done),
            (Job::Restore, Some(Saved), None, Undone),
            (Job::DiscardSaved, Some(Saved), None, Undone),
            (Job::MigrateOut, Some(Off), None, Done),
            (Job::MigrateOut, Some(Running), None, Undone),
            (Job::MigrateIn, Some(MigratingIn), None, Done),
            (Job::MigrateIn, Some(Off), None, Undone),
            (Job::Abandon, Some(MigratingIn), None, Undone),
        ] {
            assert_eq!(end_of(job, seen, there), end, "{job:?} {seen:?} {there:?}");
        }
    }

    #[test]
    fn a_note_is_read_as_it_was_written_and_garbage_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let journal = Journal::open(Some(dir.path().join("jobs"))).unwrap();
        let id = |n| VmId::from_uuid(uuid::Uuid::from_u128(n));
        let mut note = Note::new(id(1), Job::Save, None, Timestamp::from_micros(7));
        note.reached(Progress {
            phase: "writing",
            done: 1,
            total: 2,
        });
        journal.write(&note);
        let path = |n| dir.path().join("jobs").join(Journal::name(id(n)));
        std::fs::write(path(2), "{").unwrap();
        std::fs::write(dir.path().join("jobs/other"), "{}").unwrap();
        let newer = serde_json::to_string(&note)
            .unwrap()
            .replace("\"format\":1", "\"format\":2");
        std::fs::write(path(3), newer).unwrap();
        assert_eq!(journal.left().unwrap(), [note]);
        journal.forget(id(1));
        journal.forget(id(1));
        assert_eq!(journal.left().unwrap(), []);
        assert!(path(2).exists() && path(3).exists());
        assert!(Journal::default().left().unwrap().is_empty());
    }
}
