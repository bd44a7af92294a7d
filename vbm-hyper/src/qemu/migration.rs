//! Migration of a running VM between hosts that see the same disk.
//!
//! ```text
//!   destination                               source
//!   receive: -incoming, listens <---memory---- send: migrate tcp:, with a path back
//!     inmigrate                                  running, halted for the last round
//!     all of it loaded --------"I have it"-----> completed: the process is ended, Off
//!     disk's lock taken, runs, announces itself
//! ```
//!
//! - The source lets go only when the destination has confirmed. When the confirmation is lost, the lock that QEMU takes on
//!   the disk decides (on a file system with locks): a source that cannot take it back has been left. QEMU itself lets
//!   such a source go on, without its disk, until we halt it: for up to some ten milliseconds two copies may then run.
//! - The destination's processors go on by themselves, so that a daemon that dies there costs nothing. QEMU announces
//!   the guest's addresses on its NICs then, so that switches learn where it is.
//! - What does not come is given up after [`ARRIVAL_DEADLINE`]; QEMU itself ends when the source vanishes.
//! - The stream is not encrypted: the address to listen on must be of a network that only nodes reach.

use super::{
    Entry, QemuDriver, Shared, argv,
    errand::{self, Errand},
    keeper::Machine,
    lifecycle::Input,
    record::VmDir,
    start,
    transfer::{self, Channel, Phase, Report, Way},
};
use crate::{
    Error, Migrated, Migration, NicBackend, OpCx, Result, VmDefinition,
    driver::not_for,
    limits::{ARRIVAL_DEADLINE, KILL_DEADLINE, MIGRATION_DEADLINE, START_DEADLINE},
};
use async_trait::async_trait;
use std::{
    net::{Ipv4Addr, SocketAddr},
    sync::Arc,
    time::Duration,
};
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;
use vbm_core::{PowerEvent, PowerState, VmId};

/// The pause between two looks at a VM that is to arrive.
const ARRIVAL_POLL: Duration = Duration::from_millis(500);

#[async_trait]
impl Migration for QemuDriver {
    async fn receive(
        &self,
        cx: &OpCx,
        definition: &VmDefinition,
        nics: Vec<NicBackend>,
        listen: Ipv4Addr,
    ) -> Result<SocketAddr> {
        cx.go_on("an arrival")?;
        let shared = &self.shared;
        shared.open()?;
        let prepared = start::Prepared::of(shared, definition, nics).await?;
        let order = start::Order {
            definition,
            prepared: &prepared,
            display: true,
            entry: argv::Entry::Arrival,
            kept: None,
            keeps_memory: false,
        };
        // From here to the guard nothing waits, so nothing can be cancelled in between.
        let (machine, manifest) = start::launch(shared, &order)?;
        let guard = start::Guard::of(&machine);
        let dir = VmDir::new(&shared.root, machine.id);
        let opened = timeout(START_DEADLINE, async {
            Errand::Receive.note(&dir)?;
            let qmp = start::connect(shared, &machine, manifest, argv::Entry::Arrival).await?;
            transfer::prepare(&qmp, Way::Live).await?;
            transfer::receive(&qmp, &Channel::Tcp((listen, 0).into())).await?;
            let port = transfer::look(&qmp)
                .await?
                .port
                .ok_or_else(|| Error::StartFailed {
                    why: "it does not say where it listens".into(),
                })?;
            Ok(SocketAddr::from((listen, port)))
        });
        match start::in_time(opened.await) {
            Ok(address) => {
                guard.disarm();
                let watch = watch_arrival(Arc::clone(shared), machine.id);
                shared.scope.tasks.spawn(watch);
                Ok(address)
            }
            Err(error) => {
                drop(guard);
                Err(start::explain(shared, &machine, error).await)
            }
        }
    }

    async fn send(&self, cx: &OpCx, id: VmId, to: SocketAddr) -> Result<Migrated> {
        cx.go_on("a migration")?;
        let machine = self.shared.live(id, PowerEvent::MigrateOut)?;
        let place = errand::place(&machine)?;
        let called_off = CancellationToken::new();
        let call_off = called_off.clone().drop_guard();
        let shared = Arc::clone(&self.shared);
        let sending = errand::run(&self.shared, async move {
            let _place = place;
            send(&shared, &machine, to, called_off).await
        });
        let mut sending = std::pin::pin!(sending);
        // Cancel safe: what was called off is waited for.
        tokio::select! {
            sent = &mut sending => sent,
            () = cx.cancelled() => {
                drop(call_off);
                sending.await
            }
        }
    }

    async fn abandon(&self, id: VmId) -> Result<()> {
        let entry = self.shared.entry(id)?;
        let power = entry.seen().power;
        match entry {
            Entry::Live(machine) if power == PowerState::MigratingIn => {
                machine.process.kill();
                let over = timeout(KILL_DEADLINE, machine.wait_for(|_| false)).await;
                over.map(drop).map_err(|_| Error::Timeout {
                    command: "the end of the process".into(),
                    after: KILL_DEADLINE,
                })
            }
            _ => Err(not_for("give up waiting for", power, "migrating in")),
        }
    }
}

async fn send(
    shared: &Arc<Shared>,
    machine: &Arc<Machine>,
    to: SocketAddr,
    called_off: CancellationToken,
) -> Result<Migrated> {
    let begun = Instant::now();
    let was_running = machine.seen().power == PowerState::Running;
    let dir = VmDir::new(&shared.root, machine.id);
    Errand::Send { was_running }.note(&dir)?;
    machine.tell(Input::SendAsked).await;
    let sending = async {
        let qmp = machine.qmp("migrate")?;
        transfer::prepare(&qmp, Way::Live).await?;
        transfer::send(&qmp, &Channel::Tcp(to)).await?;
        transfer::complete(machine, MIGRATION_DEADLINE, None).await
    };
    // Cancel safe: what is dropped is only the waiting; what goes on is called off below.
    let sent = tokio::select! {
        sent = sending => sent,
        () = called_off.cancelled() => Err(Error::Hypervisor {
            command: "migrate".into(),
            why: "it was called off".into(),
        }),
    };
    let failed = match sent {
        Ok(report) => return left(machine, &report, begun.elapsed()).await,
        Err(error) => error,
    };
    if machine.process.has_exited() {
        return Err(failed);
    }
    let calling_off = async {
        let qmp = machine.qmp("migrate_cancel")?;
        let mut report = transfer::call_off(&qmp).await?;
        if report.phase != Phase::Completed && was_running {
            // It is not asked again whether it has arrived: the lock tells.
            if !transfer::stays(&qmp).await? {
                report.phase = Phase::Completed;
            }
        }
        Ok::<_, Error>(report)
    };
    let went_on = match calling_off.await {
        // It was too late for that.
        Ok(report) if report.phase == Phase::Completed => {
            return left(machine, &report, begun.elapsed()).await;
        }
        Ok(_) => true,
        Err(error) => {
            tracing::warn!(id = %machine.id, %error, "a VM that could not be sent away does not go on");
            false
        }
    };
    machine.tell(Input::SendFailed(!was_running || !went_on)).await;
    Errand::over(shared, &dir);
    Err(failed)
}

/// It runs elsewhere: its process here is ended.
/// Where its word was lost, QEMU tells neither downtime nor bytes.
async fn left(machine: &Machine, report: &Report, took: Duration) -> Result<Migrated> {
    machine.tell(Input::SentAway).await;
    machine.process.kill();
    let over = timeout(KILL_DEADLINE, machine.wait_for(|_| false)).await;
    over.map_err(|_| Error::Timeout {
        command: "the end of the process".into(),
        after: KILL_DEADLINE,
    })?;
    Ok(Migrated::new(
        took.max(report.took),
        report.downtime,
        report.bytes,
    ))
}

/// Waits until a VM has arrived, or gives it up.
pub(super) async fn watch_arrival(shared: Arc<Shared>, id: VmId) {
    let Ok(Entry::Live(machine)) = shared.entry(id) else {
        return;
    };
    // Cancel safe: the next daemon finds the errand and watches again.
    tokio::select! {
        () = shared.scope.end.cancelled() => return,
        () = arrival(&machine) => {}
    }
    let dir = VmDir::new(&shared.root, id);
    // What has arrived may be on its next errand already.
    if Errand::noted(&dir) == Some(Errand::Receive) {
        Errand::over(&shared, &dir);
    }
}

async fn arrival(machine: &Machine) {
    let begun = Instant::now();
    loop {
        let arrived = machine
            .wait_for(|view| !matches!(view.seen.power, PowerState::MigratingIn | PowerState::Unknown));
        if timeout(ARRIVAL_POLL, arrived).await.is_ok() {
            return;
        }
        let coming = match machine.qmp("query-migrate") {
            Ok(qmp) => transfer::look(&qmp).await.is_ok_and(|report| report.coming),
            Err(_) => false,
        };
        let deadline = if coming {
            MIGRATION_DEADLINE
        } else {
            ARRIVAL_DEADLINE
        };
        if begun.elapsed() >= deadline {
            tracing::warn!(id = %machine.id, ?deadline, "a VM that was to arrive is given up");
            machine.process.kill();
            machine.wait_for(|_| false).await;
            return;
        }
    }
}
