//! The handle's methods for snapshots and saved memory, which only some drivers have. A missing facet is an error that says why.

use super::{
    Job, VmHandle,
    job::Typed,
    task::{self, Command, Errand},
    work::About,
};
use crate::{
    Driver, Error, ExportedDisk, Facet, NicBackend, OpCx, Result, SavedState, Seen, SnapshotInfo,
    SnapshotRequest, SnapshotTaken, Snapshots, VmDefinition,
};
use std::{pin::Pin, sync::Arc};
use vbm_core::{SnapshotContent, SnapshotId};

/// Work with a driver that lives as long as the work.
type Work<'a, T> = Pin<Box<dyn Future<Output = Result<T>> + Send + 'a>>;

pub(super) fn missing(driver: &dyn Driver, facet: Facet, what: &str) -> Error {
    Error::Unsupported {
        driver: driver.kind(),
        what: what.to_owned(),
        why: driver
            .missing(facet)
            .unwrap_or_else(|| "it does not say why".into()),
    }
}

fn snapshots(driver: &dyn Driver) -> Result<&dyn Snapshots> {
    driver
        .snapshots()
        .ok_or_else(|| missing(driver, Facet::Snapshots, "work with snapshots"))
}

fn saved_state(driver: &dyn Driver) -> Result<&dyn SavedState> {
    driver
        .saved_state()
        .ok_or_else(|| missing(driver, Facet::SavedState, "keep the memory of a VM"))
}

impl VmHandle {
    /// Takes a snapshot. See [`Snapshots::take`].
    ///
    /// # Errors
    /// Those of [`Snapshots::take`]; [`Error::Unsupported`]; [`Error::Busy`]; [`Error::Preempted`].
    pub async fn take_snapshot(
        &self,
        definition: VmDefinition,
        request: impl Into<SnapshotRequest>,
    ) -> Result<SnapshotTaken> {
        self.is_mine(&definition)?;
        let request = request.into();
        let about = Some((request.id, Box::new(definition.clone())));
        self.job_about(Job::TakeSnapshot, about, move |driver, cx| {
            Box::pin(async move { snapshots(driver)?.take(cx, &definition, request).await })
        })
        .await
    }

    /// Goes back to a snapshot. See [`Snapshots::revert`].
    ///
    /// # Errors
    /// Those of [`Snapshots::revert`]; [`Error::Unsupported`]; [`Error::Busy`]; [`Error::Preempted`].
    pub async fn revert_snapshot(
        &self,
        definition: VmDefinition,
        snapshot: SnapshotId,
        nics: Vec<NicBackend>,
    ) -> Result<Seen> {
        self.is_mine(&definition)?;
        self.job(Job::RevertSnapshot, move |driver, cx| {
            Box::pin(async move { snapshots(driver)?.revert(cx, &definition, snapshot, nics).await })
        })
        .await
    }

    /// Deletes a snapshot. See [`Snapshots::delete`].
    ///
    /// # Errors
    /// Those of [`Snapshots::delete`]; [`Error::Unsupported`]; [`Error::Busy`]; [`Error::Preempted`].
    pub async fn delete_snapshot(&self, definition: VmDefinition, snapshot: SnapshotId) -> Result<()> {
        self.is_mine(&definition)?;
        let about = Some((snapshot, Box::new(definition.clone())));
        self.job_about(Job::DeleteSnapshot, about, move |driver, cx| {
            Box::pin(async move { snapshots(driver)?.delete(cx, &definition, snapshot).await })
        })
        .await
    }

    /// The snapshots that are there, past any job.
    ///
    /// # Errors
    /// Those of [`Snapshots::list`]; [`Error::Unsupported`].
    pub async fn list_snapshots(
        &self,
        definition: &VmDefinition,
    ) -> Result<Vec<(SnapshotId, SnapshotContent)>> {
        self.is_mine(definition)?;
        snapshots(&*self.driver)?.list(definition).await
    }

    /// The snapshots that are there, with what came after what; past any job.
    ///
    /// # Errors
    /// Those of [`Snapshots::tree`]; [`Error::Unsupported`].
    pub async fn snapshot_tree(&self, definition: &VmDefinition) -> Result<Vec<SnapshotInfo>> {
        self.is_mine(definition)?;
        snapshots(&*self.driver)?.tree(definition).await
    }

    /// Writes the disks of a snapshot into files below `dir`, past any job. See [`Snapshots::export`].
    ///
    /// # Errors
    /// Those of [`Snapshots::export`]; [`Error::Unsupported`].
    ///
    /// # Cancel safety
    /// Dropping the future calls the export off.
    pub async fn export_snapshot(
        &self,
        definition: &VmDefinition,
        snapshot: SnapshotId,
        dir: &std::path::Path,
    ) -> Result<Vec<ExportedDisk>> {
        self.is_mine(definition)?;
        let snapshots = snapshots(&*self.driver)?;
        snapshots.export(&self.cx, definition, snapshot, dir).await
    }

    /// Writes its memory to disk and ends it. See [`SavedState::save`].
    ///
    /// # Errors
    /// Those of [`SavedState::save`]; [`Error::Unsupported`]; [`Error::Busy`]; [`Error::Preempted`].
    pub async fn save(&self) -> Result<Seen> {
        let id = self.id;
        self.job(Job::Save, move |driver, cx| {
            Box::pin(async move { saved_state(driver)?.save(cx, id).await })
        })
        .await
    }

    /// Lets it go on from its saved memory. See [`SavedState::restore`].
    ///
    /// # Errors
    /// Those of [`SavedState::restore`]; [`Error::Unsupported`]; [`Error::Busy`]; [`Error::Preempted`].
    pub async fn restore(&self, definition: VmDefinition, nics: Vec<NicBackend>) -> Result<Seen> {
        self.is_mine(&definition)?;
        self.job(Job::Restore, move |driver, cx| {
            Box::pin(async move { saved_state(driver)?.restore(cx, &definition, nics).await })
        })
        .await
    }

    /// Throws its saved memory away. See [`SavedState::discard`].
    ///
    /// # Errors
    /// Those of [`SavedState::discard`]; [`Error::Unsupported`]; [`Error::Busy`]; [`Error::Preempted`].
    pub async fn discard_saved(&self) -> Result<()> {
        let id = self.id;
        self.job(Job::DiscardSaved, move |driver, _| {
            Box::pin(async move { saved_state(driver)?.discard(id).await })
        })
        .await
    }

    pub(super) fn is_mine(&self, definition: &VmDefinition) -> Result<()> {
        if definition.id == self.id {
            return Ok(());
        }
        Err(Error::invalid(
            "the definition is of another VM",
            format!("it has the id {}", definition.id),
            "use the handle of that VM",
        ))
    }

    pub(super) async fn job<T: Send + 'static>(
        &self,
        job: Job,
        work: impl for<'a> FnOnce(&'a dyn Driver, &'a OpCx) -> Work<'a, T> + Send + 'static,
    ) -> Result<T> {
        self.job_about(job, None, work).await
    }

    /// A job about a snapshot: it is written down which one.
    async fn job_about<T: Send + 'static>(
        &self,
        job: Job,
        about: About,
        work: impl for<'a> FnOnce(&'a dyn Driver, &'a OpCx) -> Work<'a, T> + Send + 'static,
    ) -> Result<T> {
        let cx = self.cx.clone();
        let errand = Errand {
            job,
            cx: cx.clone(),
            about,
        };
        self.ask(|reply| {
            let begin =
                move |driver: Arc<dyn Driver>, gate: Option<task::GateOf>| -> Box<dyn super::job::AnyJob> {
                    let kind = driver.kind();
                    let work = async move { work(&*driver, &cx).await };
                    Box::new(Typed::new(task::through(gate, kind, work), reply))
                };
            Command::Facet(errand, Box::new(begin))
        })
        .await
    }
}
