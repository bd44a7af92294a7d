//! What a keeper does with its VM: each act once begun leaves nothing that the next look cannot go on from.

use super::{
    decide::Step,
    errands::Errand,
    keeper::{Doing, Keeper},
    reverts::{Go, Way, how, nobody_knows},
};
use crate::methods::{SnapshotFate, WantedVm};
use std::time::Duration;
use vbm_core::{Error, ErrorKind, PowerState, Result, SnapshotId, VmRevert};
use vbm_hyper::{SnapshotRequest, StopOutcome, VmHandle};

/// How long a guest may take to shut down.
const STOP_GRACE: Duration = Duration::from_secs(60);
/// Image and disk are there already, but for a VM that was never started: that is no step worth telling.
const SILENT: fn(&str) = |_| {};

impl Keeper {
    /// Does it; gives back what came of a snapshot that was taken.
    pub(super) async fn act(
        &self,
        doing: &Doing,
        want: &WantedVm,
        machine: &VmHandle,
    ) -> Result<Option<SnapshotFate>> {
        let tell = |text| self.report(Some(machine), want, Some(text));
        match doing {
            Doing::Step(Step::Settled | Step::Wait) => {}
            Doing::Step(Step::Start) => self.start(want, machine).await?,
            Doing::Step(Step::Stop) => self.stop(want, machine).await?,
            Doing::Step(Step::ForceOff) => machine.force_off().await.map_err(Error::from)?,
            Doing::Step(Step::Pause) => machine.pause().await.map_err(Error::from)?,
            Doing::Step(Step::Resume) => machine.resume().await.map_err(Error::from)?,
            Doing::Step(Step::Save) => {
                tell("writing its memory to disk");
                machine.save().await.map_err(Error::from)?;
            }
            Doing::Step(Step::Restore) => self.restore(want, machine).await?,
            Doing::Step(Step::Discard) => machine.discard_saved().await.map_err(Error::from)?,
            Doing::Errand(Errand::Take(id)) => return self.take(*id, want, machine).await.map(Some),
            Doing::Errand(Errand::Drop(id, _)) => {
                tell("deleting the snapshot");
                let definition = self.agent.define(want, &SILENT).await?;
                machine
                    .delete_snapshot(definition, *id)
                    .await
                    .map_err(Error::from)?;
            }
            Doing::Errand(Errand::Revert(revert)) => self.revert(revert, want, machine).await?,
        }
        Ok(None)
    }

    async fn stop(&self, want: &WantedVm, machine: &VmHandle) -> Result<()> {
        self.report(Some(machine), want, Some("asking the guest to shut down"));
        match machine.stop(STOP_GRACE).await.map_err(Error::from)? {
            StopOutcome::StillRunning { waited, .. } => Err(Error::new(
                ErrorKind::DeadlineExceeded,
                format!("{} did not shut down", want.name),
                format!(
                    "the guest did not obey its power button within {} s",
                    waited.as_secs()
                ),
                format!(
                    "look at its console, or end it with `vbm stop --force {}`",
                    want.name
                ),
            )),
            _ => Ok(()),
        }
    }

    async fn start(&self, want: &WantedVm, machine: &VmHandle) -> Result<()> {
        let tell = |doing: &str| self.report(Some(machine), want, Some(doing));
        let definition = self.agent.define(want, &tell).await?;
        let nics = self.agent.open_nics(want, &tell).await?;
        tell("starting the hypervisor");
        machine.start(definition, nics).await.map_err(Error::from)?;
        Ok(())
    }

    async fn restore(&self, want: &WantedVm, machine: &VmHandle) -> Result<()> {
        let tell = |doing: &str| self.report(Some(machine), want, Some(doing));
        let definition = self.agent.define(want, &SILENT).await?;
        let nics = self.agent.open_nics(want, &tell).await?;
        tell("reading its memory back");
        machine.restore(definition, nics).await.map_err(Error::from)?;
        Ok(())
    }

    async fn take(&self, id: SnapshotId, want: &WantedVm, machine: &VmHandle) -> Result<SnapshotFate> {
        let definition = self.agent.define(want, &SILENT).await?;
        self.report(Some(machine), want, Some("taking the snapshot"));
        let mut request = SnapshotRequest::new(id);
        if let Some(freeze) = want.without_memory.get(&id) {
            request = request.without_memory(*freeze);
        }
        let taken = machine
            .take_snapshot(definition, request)
            .await
            .map_err(Error::from)?;
        Ok(SnapshotFate::Taken {
            consistency: Some(taken.consistency),
            note: taken.note,
            content: taken.content,
            paused_micros: u64::try_from(taken.paused.as_micros()).unwrap_or(u64::MAX),
            at: self.agent.inner.clock.now(),
        })
    }

    /// Goes back to a snapshot, once for each operation: see [`super::reverts`].
    async fn revert(&self, revert: &VmRevert, want: &WantedVm, machine: &VmHandle) -> Result<()> {
        let reverts = &self.agent.inner.reverts;
        let way = |done| Way {
            operation: revert.operation,
            done,
        };
        let power = machine.inspect().await.map_err(Error::from)?.power();
        match how(reverts.last(want.id)?, revert.operation, power) {
            Go::There => return reverts.note(want.id, way(true)),
            Go::Nobody => return Err(nobody_knows(&want.name)),
            Go::Forth => {}
        }
        let definition = self.agent.define(want, &SILENT).await?;
        // What is not there is found out before the VM is ended for it.
        let there = machine.list_snapshots(&definition).await.map_err(Error::from)?;
        if !there.iter().any(|(id, _)| *id == revert.snapshot) {
            return Err(lost_snapshot(want, revert.snapshot));
        }
        if power != PowerState::Saved {
            self.report(Some(machine), want, Some("ending the VM"));
            machine.force_off().await.map_err(Error::from)?;
        }
        let power = machine.inspect().await.map_err(Error::from)?.power();
        if !matches!(power, PowerState::Off | PowerState::Saved) {
            return Err(Error::new(
                ErrorKind::Unavailable,
                format!("{} cannot go back to a snapshot now", want.name),
                format!("it is {power} although it was ended"),
                "look at it with `vbm info`",
            ));
        }
        let nics = self.agent.open_nics(want, &SILENT).await?;
        self.report(Some(machine), want, Some("going back to the snapshot"));
        reverts.note(want.id, way(false))?;
        machine
            .revert_snapshot(definition, revert.snapshot, nics)
            .await
            .map_err(Error::from)?;
        reverts.note(want.id, way(true))
    }
}

/// The record says that it was taken, and the host has it no more.
fn lost_snapshot(want: &WantedVm, id: SnapshotId) -> Error {
    Error::new(
        ErrorKind::NotFound,
        format!("{} cannot go back to its snapshot", want.name),
        format!("its disk holds no snapshot {id}: somebody removed it by hand"),
        "the VM was left as it is; delete the snapshot, and choose another one",
    )
}
