//! What a VM is busy with, as it goes on: whose work it is, since when, how far; and how it is called off.

use super::{
    Job,
    journal::{Journal, Note},
};
use crate::{OpCx, Progress};
use tokio::sync::watch;
use vbm_core::{Clock, OperationId, SnapshotId, Timestamp, VmId};

/// A job that runs.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Work {
    /// What is being done.
    pub job: Job,
    /// In whose name, if anybody's.
    pub operation: Option<OperationId>,
    /// Since when.
    pub since: Timestamp,
    /// How far it is.
    pub progress: Progress,
}

/// What the running job of an actor is known by.
pub(super) struct Desk {
    vm: VmId,
    journal: Journal,
    shown: watch::Sender<Option<Work>>,
    open: Option<Open>,
}

struct Open {
    cx: OpCx,
    progress: watch::Receiver<Progress>,
    note: Note,
}

impl Desk {
    pub(super) fn new(vm: VmId, journal: Journal, shown: watch::Sender<Option<Work>>) -> Self {
        Self {
            vm,
            journal,
            shown,
            open: None,
        }
    }

    /// Writes a job down, before its first step.
    pub(super) fn begin(&mut self, job: Job, cx: OpCx, about: About, clock: &dyn Clock) {
        let mut note = Note::new(self.vm, job, cx.id(), clock.now());
        note.snapshot = about;
        let progress = cx.progress();
        self.journal.write(&note);
        self.shown.send_replace(Some(Work {
            job,
            operation: cx.id(),
            since: note.since,
            progress: *progress.borrow(),
        }));
        self.open = Some(Open { cx, progress, note });
    }

    /// It is over, whatever came of it.
    pub(super) fn end(&mut self) {
        if self.open.take().is_some() {
            self.journal.forget(self.vm);
            self.shown.send_replace(None);
        }
    }

    /// Returns when the job has got further.
    ///
    /// # Cancel safety
    /// Cancel safe.
    pub(super) async fn moved(&mut self) {
        if let Some(open) = &mut self.open
            && open.progress.changed().await.is_ok()
        {
            return;
        }
        std::future::pending().await
    }

    /// Shows how far the job is; a new phase of it is written down too.
    pub(super) fn show(&mut self) {
        let Some(open) = &mut self.open else { return };
        let progress = *open.progress.borrow_and_update();
        if open.note.phase != progress.phase {
            open.note.reached(progress);
            self.journal.write(&open.note);
        }
        self.shown.send_modify(|work| {
            if let Some(work) = work {
                work.progress = progress;
            }
        });
    }

    /// Calls the job off, if it is that operation's, or if nobody in particular is meant.
    pub(super) fn call_off(&self, operation: Option<OperationId>) -> bool {
        let meant = |open: &&Open| operation.is_none() || open.cx.id() == operation;
        let open = self.open.as_ref().filter(meant);
        if let Some(open) = open {
            open.cx.cancel();
        }
        open.is_some()
    }
}

/// The snapshot that a job is about, and the VM as it is defined.
pub(super) type About = Option<(SnapshotId, Box<crate::VmDefinition>)>;
