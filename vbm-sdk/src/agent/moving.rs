//! VMs that come from another node, or go to one.
//!
//! ```text
//!   controller --vm.receive--> here: disk, NICs, a hypervisor that waits      MigratingIn
//!   controller --vm.send-----> here: a task that sends memory                 MigratingOut
//!   controller --vm.look-----> how far?    (asked again and again; a controller that takes over asks on)
//!   controller --vm.abandon--> here: nobody comes
//! ```
//!
//! Neither command waits for the end of the move: a controller may die in the middle, and the next one looks.

use super::Agent;
use crate::methods::{
    CheckArrive, CheckLeave, CheckedLeave, GoneVm, LookAt, LookedAt, MoveProgress, ReceiveVm, Receiving,
    SendVm, Sent,
};
use std::{
    collections::{HashMap, HashSet},
    sync::{Mutex, MutexGuard, PoisonError},
};
use tokio::sync::watch;
use vbm_core::{Error, ErrorKind, Generation, PowerState, Result, VmId};
use vbm_hyper::{BootSource, Hardware, Landing, MoveCheck, OpCx, Progress, VmDefinition};

/// What this agent knows of moves since it was started.
#[derive(Default)]
pub(super) struct Moves {
    receiving: Mutex<HashMap<VmId, Landing>>,
    /// Whose disk was made here for an arrival: what was here before is never removed with one.
    copying: Mutex<HashSet<VmId>>,
    sending: Mutex<HashMap<VmId, watch::Receiver<Progress>>>,
    /// With the generation of the VM that the sending belongs to: an older one says nothing of a newer.
    sent: Mutex<HashMap<VmId, (Generation, Sent)>>,
}

fn locked<T>(what: &Mutex<T>) -> MutexGuard<'_, T> {
    what.lock().unwrap_or_else(PoisonError::into_inner)
}

fn with<K, V, T>(map: &Mutex<HashMap<K, V>>, f: impl FnOnce(&mut HashMap<K, V>) -> T) -> T {
    f(&mut map.lock().unwrap_or_else(PoisonError::into_inner))
}

/// What a sending says of itself, once it says anything.
fn told(progress: &watch::Receiver<Progress>) -> Option<MoveProgress> {
    let told = *progress.borrow();
    (!told.phase.is_empty()).then(|| MoveProgress {
        phase: told.phase.to_owned(),
        done: told.done,
        total: told.total,
    })
}

impl Agent {
    /// Prepares to take in a VM; a second call gives the same answer.
    pub(super) async fn vm_receive(&self, request: ReceiveVm) -> Result<Receiving> {
        let ReceiveVm { vm: wanted, options } = request;
        let answer = |landing: Landing| Receiving {
            at: landing.memory,
            landing: Some(landing),
        };
        let moves = &self.inner.moves;
        let listen = self.inner.underlay.ok_or_else(|| {
            Error::new(
                ErrorKind::Unsupported,
                format!("node {} cannot take in a running VM", self.inner.path),
                "it has no address for that",
                "start its agent with --underlay ADDRESS",
            )
        })?;
        let machine = self.machines(wanted.driver)?.vm(wanted.id);
        let power = machine.watch().borrow().power();
        if power == PowerState::MigratingIn {
            if let Some(landing) = with(&moves.receiving, |r| r.get(&wanted.id).cloned()) {
                return Ok(answer(landing));
            }
            // The agent before this one waited for it, and nobody knows where: nothing can have come yet, or nobody
            // would ask.
            machine.abandon().await.map_err(Error::from)?;
        }
        let disk = self.inner.volumes.path(wanted.root.volume);
        let made_here = locked(&moves.copying).contains(&wanted.id);
        if options.copies() && disk.is_some() && !made_here {
            return Err(Error::new(
                ErrorKind::Conflict,
                format!(
                    "node {} cannot take in a copy of the disk of {}",
                    self.inner.path, wanted.name
                ),
                "a disk of that VM is here already, from a move before",
                "look whether it is left of a move that failed, and remove its file then",
            ));
        }
        if !options.copies() && disk.is_none() {
            return Err(Error::new(
                ErrorKind::Conflict,
                format!("node {} cannot take in {}", self.inner.path, wanted.name),
                "the VM's disk is not in the directory that the nodes share",
                "check that the directory is mounted on both nodes",
            ));
        }
        self.keeper(wanted.driver, wanted.id, false).want(wanted.clone());
        let silent = |_: &str| {};
        if options.copies() {
            locked(&moves.copying).insert(wanted.id);
        }
        let definition = self.define(&wanted, &silent).await?;
        let nics = self.open_nics(&wanted, &silent).await?;
        let landing = machine
            .migrate_in(definition, nics, listen, options)
            .await
            .map_err(Error::from)?;
        with(&moves.receiving, |r| r.insert(wanted.id, landing.clone()));
        Ok(answer(landing))
    }

    /// Begins to send a VM; a second call for the same generation does nothing.
    pub(super) async fn vm_send(&self, request: SendVm) -> Result<()> {
        let (id, generation) = (request.vm.id, request.vm.generation);
        let machine = self.machines(request.vm.driver)?.vm(id);
        self.keeper(request.vm.driver, id, false).want(request.vm);
        let begun = with(&self.inner.moves.sent, |sent| {
            let idle = sent.get(&id).is_none_or(|(of, _)| *of != generation);
            if idle {
                sent.insert(id, (generation, Sent::UnderWay));
            }
            idle
        });
        if !begun {
            return Ok(());
        }
        let (agent, stop) = (self.clone(), self.inner.stop.clone());
        let cx = OpCx::new();
        with(&self.inner.moves.sending, |all| all.insert(id, cx.progress()));
        let landing = request.landing.unwrap_or_else(|| Landing::shared(request.to));
        let machine = machine.under(cx);
        self.inner.tasks.spawn(async move {
            // Dropping the wait does not end the sending: that job is the actor's.
            let done = tokio::select! {
                done = machine.migrate_out(landing, request.options) => done,
                () = stop.cancelled() => return,
            };
            let millis = |d: std::time::Duration| u64::try_from(d.as_millis()).unwrap_or(u64::MAX);
            let sent = match done {
                Ok(how) => Sent::Done {
                    took_ms: millis(how.took),
                    downtime_ms: millis(how.downtime),
                    bytes: how.bytes,
                },
                Err(e) => Sent::Failed(e.into()),
            };
            tracing::info!(vm = %id, ?sent, "sending a VM ended");
            with(&agent.inner.moves.sent, |all| all.insert(id, (generation, sent)));
        });
        Ok(())
    }

    /// How far a VM is here.
    pub(super) async fn vm_look(&self, request: LookAt) -> Result<LookedAt> {
        let id = request.vm;
        let power = match self.machine(id) {
            Ok((_, machine)) => machine.watch().borrow().power(),
            Err(_) => PowerState::Off,
        };
        let landing = with(&self.inner.moves.receiving, |r| r.get(&id).cloned());
        let landing = landing.filter(|_| power == PowerState::MigratingIn);
        if matches!(power, PowerState::MigratingIn | PowerState::Unknown)
            && let Ok((_, machine)) = self.machine(id)
        {
            // Who looks still wants it.
            if let Err(error) = machine.renew_arrival().await {
                tracing::debug!(vm = %id, %error, "an arrival cannot be renewed");
            }
        }
        Ok(LookedAt {
            power,
            receiving: landing.as_ref().map(|landing| landing.memory),
            landing,
            progress: with(&self.inner.moves.sending, |s| s.get(&id).and_then(told)),
            sent: with(&self.inner.moves.sent, |s| {
                let (of, sent) = s.get(&id)?;
                (*of == request.generation).then(|| sent.clone())
            }),
        })
    }

    /// Lets a VM go on that has come whole; a second call does nothing.
    pub(super) async fn vm_finish(&self, id: VmId) -> Result<()> {
        let (_, machine) = self.machine(id)?;
        machine.finish_arrival().await.map_err(Error::from)?;
        locked(&self.inner.moves.copying).remove(&id);
        tracing::info!(vm = %id, "a VM that came with a copy of its disk goes on here");
        Ok(())
    }

    /// What a VM here is, and what stands in the way of its leaving.
    pub(super) async fn vm_check_leave(&self, request: CheckLeave) -> Result<CheckedLeave> {
        let (_, machine) = self.machine(request.vm)?;
        let (machine, checks) = machine
            .check_migrate_out(&request.options)
            .await
            .map_err(Error::from)?;
        Ok(CheckedLeave { machine, checks })
    }

    /// What stands in the way of taking a VM in. Neither its image is brought nor its disk made.
    pub(super) async fn vm_check_arrive(&self, request: CheckArrive) -> Result<Vec<MoveCheck>> {
        let CheckArrive { vm, machine, options } = request;
        let handle = self.machines(vm.driver)?.vm(vm.id);
        let volumes = &self.inner.volumes;
        let root_disk = volumes.path(vm.root.volume);
        let definition = VmDefinition {
            id: vm.id,
            name: vm.name,
            vcpus: vm.vcpus,
            memory_mib: vm.memory_mib,
            root_disk: root_disk.unwrap_or_else(|| volumes.dir().join(vm.root.volume.to_string())),
            boot: BootSource::Disk,
            disks: vec![],
            hardware: Hardware::default(),
            nics: vec![],
        };
        let mut checks = handle
            .check_migrate_in(&definition, &machine, &options)
            .await
            .map_err(Error::from)?;
        checks.push(MoveCheck::of(
            "address among the nodes",
            match self.inner.underlay {
                Some(address) => Ok(format!("{address}")),
                None => Err("it has none (vbmd --underlay)".into()),
            },
        ));
        Ok(checks)
    }

    /// Gives up waiting for a VM, and what was made for it. Refused when it has come.
    pub(super) async fn vm_abandon(&self, gone: GoneVm) -> Result<()> {
        if let Ok((_, machine)) = self.machine(gone.id) {
            let power = machine.watch().borrow().power();
            if power == PowerState::MigratingIn {
                machine.abandon().await.map_err(Error::from)?;
            } else if power.is_live() || power == PowerState::Unknown {
                return Err(Error::new(
                    ErrorKind::Conflict,
                    "the VM cannot be given up",
                    format!("it is {power} on node {}", self.inner.path),
                    "look at it again: it has arrived",
                ));
            }
        }
        let made_here = locked(&self.inner.moves.copying).remove(&gone.id);
        self.vm_remove(GoneVm {
            keep_volume: gone.keep_volume || !made_here,
            ..gone
        })
        .await
    }

    /// What was known of a VM's moves is of no use any more.
    pub(super) fn forget_move(&self, id: VmId) {
        locked(&self.inner.moves.copying).remove(&id);
        with(&self.inner.moves.receiving, |r| r.remove(&id));
        with(&self.inner.moves.sending, |s| s.remove(&id));
        with(&self.inner.moves.sent, |s| s.remove(&id));
    }
}
