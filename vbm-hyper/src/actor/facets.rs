//! The handle's methods for what only some drivers can do. A missing facet is an error that says why.

use super::{
    Job, VmHandle,
    job::Typed,
    task::{self, Command, Errand},
    work::About,
};
use crate::{
    Driver, Error, Facet, Migrated, Migration, NicBackend, OpCx, Result, SavedState, Seen, SnapshotTaken,
    Snapshots, VmDefinition,
};
use std::{
    net::{Ipv4Addr, SocketAddr},
    pin::Pin,
    sync::Arc,
};
use vbm_core::{SnapshotContent, SnapshotId};

/// Work with a driver that lives as long as the work.
type Work<'a, T> = Pin<Box<dyn Future<Output = Result<T>> + Send + 'a>>;

fn missing(driver: &dyn Driver, facet: Facet, what: &str) -> Error {
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

fn migration(driver: &dyn Driver) -> Result<&dyn Migration> {
    driver
        .migration()
        .ok_or_else(|| missing(driver, Facet::Migration, "move a running VM"))
}

impl VmHandle {
    /// Takes a snapshot. See [`Snapshots::take`].
    ///
    /// # Errors
    /// Those of [`Snapshots::take`]; [`Error::Unsupported`]; [`Error::Busy`]; [`Error::Preempted`].
    pub async fn take_snapshot(
        &self,
        definition: VmDefinition,
        snapshot: SnapshotId,
    ) -> Result<SnapshotTaken> {
        self.is_mine(&definition)?;
        let about = Some((snapshot, Box::new(definition.clone())));
        self.job_about(Job::TakeSnapshot, about, move |driver, cx| {
            Box::pin(async move { snapshots(driver)?.take(cx, &definition, snapshot).await })
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

    /// Sends it to another host, which waits for it at `to`. See [`Migration::send`]. A force-off calls it off.
    ///
    /// # Errors
    /// Those of [`Migration::send`]; [`Error::Unsupported`]; [`Error::Busy`]; [`Error::Preempted`].
    pub async fn migrate_out(&self, to: SocketAddr) -> Result<Migrated> {
        let id = self.id;
        self.job(Job::MigrateOut, move |driver, cx| {
            Box::pin(async move { migration(driver)?.send(cx, id, to).await })
        })
        .await
    }

    /// Makes a place for it to arrive, and says where it is to be sent. See [`Migration::receive`]. It is `MigratingIn`
    /// from then on; [`VmHandle::watch`] tells when it runs, or is off because it did not come.
    ///
    /// # Errors
    /// Those of [`Migration::receive`]; [`Error::Unsupported`]; [`Error::Busy`]; [`Error::Preempted`].
    pub async fn migrate_in(
        &self,
        definition: VmDefinition,
        nics: Vec<NicBackend>,
        listen: Ipv4Addr,
    ) -> Result<SocketAddr> {
        self.is_mine(&definition)?;
        self.job(Job::MigrateIn, move |driver, cx| {
            Box::pin(async move { migration(driver)?.receive(cx, &definition, nics, listen).await })
        })
        .await
    }

    /// Gives up waiting for it. See [`Migration::abandon`]. It ends the preparation of its arrival, too.
    ///
    /// # Errors
    /// Those of [`Migration::abandon`]; [`Error::Unsupported`]; [`Error::Busy`]; [`Error::Preempted`].
    pub async fn abandon(&self) -> Result<()> {
        let id = self.id;
        self.job(Job::Abandon, move |driver, _| {
            Box::pin(async move { migration(driver)?.abandon(id).await })
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
