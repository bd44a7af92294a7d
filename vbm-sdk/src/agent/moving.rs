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
use crate::methods::{GoneVm, LookAt, LookedAt, Receiving, SendVm, Sent, WantedVm};
use std::{
    collections::HashMap,
    net::SocketAddr,
    sync::{Mutex, PoisonError},
};
use vbm_core::{Error, ErrorKind, Generation, PowerState, Result, VmId};

/// What this agent knows of moves since it was started.
#[derive(Default)]
pub(super) struct Moves {
    receiving: Mutex<HashMap<VmId, SocketAddr>>,
    /// With the generation of the VM that the sending belongs to: an older one says nothing of a newer.
    sent: Mutex<HashMap<VmId, (Generation, Sent)>>,
}

fn with<K, V, T>(map: &Mutex<HashMap<K, V>>, f: impl FnOnce(&mut HashMap<K, V>) -> T) -> T {
    f(&mut map.lock().unwrap_or_else(PoisonError::into_inner))
}

impl Agent {
    /// Prepares to take in a VM; a second call gives the same answer.
    pub(super) async fn vm_receive(&self, wanted: WantedVm) -> Result<Receiving> {
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
            if let Some(at) = with(&moves.receiving, |r| r.get(&wanted.id).copied()) {
                return Ok(Receiving { at });
            }
            // The agent before this one waited for it, and nobody knows where: nothing can have come yet, or nobody
            // would ask.
            machine.abandon().await.map_err(Error::from)?;
        }
        if self.inner.volumes.path(wanted.root.volume).is_none() {
            return Err(Error::new(
                ErrorKind::Conflict,
                format!("node {} cannot take in {}", self.inner.path, wanted.name),
                "the VM's disk is not in the directory that the nodes share",
                "check that the directory is mounted on both nodes",
            ));
        }
        self.keeper(wanted.driver, wanted.id, false).want(wanted.clone());
        let silent = |_: &str| {};
        let definition = self.define(&wanted, &silent).await?;
        let nics = self.open_nics(&wanted, &silent).await?;
        let at = machine
            .migrate_in(definition, nics, listen)
            .await
            .map_err(Error::from)?;
        with(&moves.receiving, |r| r.insert(wanted.id, at));
        Ok(Receiving { at })
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
        self.inner.tasks.spawn(async move {
            // Dropping the wait does not end the sending: that job is the actor's.
            let done = tokio::select! {
                done = machine.migrate_out(request.to) => done,
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
        let waited_for = with(&self.inner.moves.receiving, |r| r.get(&id).copied());
        Ok(LookedAt {
            power,
            receiving: waited_for.filter(|_| power == PowerState::MigratingIn),
            sent: with(&self.inner.moves.sent, |s| {
                let (of, sent) = s.get(&id)?;
                (*of == request.generation).then(|| sent.clone())
            }),
        })
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
        self.vm_remove(GoneVm {
            keep_volume: true,
            ..gone
        })
        .await
    }

    /// What was known of a VM's moves is of no use any more.
    pub(super) fn forget_move(&self, id: VmId) {
        with(&self.inner.moves.receiving, |r| r.remove(&id));
        with(&self.inner.moves.sent, |s| s.remove(&id));
    }
}
