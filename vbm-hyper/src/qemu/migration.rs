//! Migration of a running VM between hosts, with shared disks or with copies of them.
//!
//! ```text
//!   destination                               source
//!   receive: -incoming, listens <--disks------ send: mirrors, until they are level         (only with copies)
//!     inmigrate                 <---memory---- migrate tcp:, with a path back
//!                                                running, halted for the last round; mirrors end
//!     all of it loaded --------"I have it"-----> completed: the process is ended, Off
//!     shared: disk's lock taken, runs, announces itself
//!     copied: halted, until finish
//! ```
//!
//! - The source lets go only when the destination has confirmed. With shared disks, when the confirmation is lost, the lock that
//!   QEMU takes on the disk decides (on a file system with locks): a source that cannot take it back has been left. QEMU itself
//!   lets such a source go on, without its disk, until we halt it: for up to some ten milliseconds two copies may then run.
//! - With copied disks there is no common lock. So the destination does not go on by itself: a source that was not told
//!   "I have it" goes on, and [`Migration::finish`] is for a source that has let go, or is dead.
//! - With shared disks the destination's processors go on by themselves, so that a daemon that dies there costs nothing. QEMU
//!   announces the guest's addresses on its NICs then, so that switches learn where it is.
//! - What does not come is given up: see [`arrival`]. QEMU itself ends when the source vanishes.
//! - Neither stream is encrypted: the address to listen on must be of a network that only nodes reach.

use super::{
    QemuDriver, Shared, argv, arrival,
    errand::{self, Errand},
    foresee,
    keeper::Machine,
    lifecycle::Input,
    mirror,
    record::VmDir,
    start,
    transfer::{self, Channel, Live, Phase, Report, Way},
};
use crate::{
    Error, Landing, MachineFacts, Migrated, Migration, MoveCheck, MoveOptions, NicBackend, OpCx, Result,
    Seen, VmDefinition,
    limits::{KILL_DEADLINE, MIGRATION_DEADLINE, START_DEADLINE},
};
use async_trait::async_trait;
use serde_json::json;
use std::{net::Ipv4Addr, sync::Arc, time::Duration};
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;
use vbm_core::{PowerEvent, PowerState, VmId};

#[async_trait]
impl Migration for QemuDriver {
    async fn check_source(
        &self,
        cx: &OpCx,
        id: VmId,
        options: &MoveOptions,
    ) -> Result<(MachineFacts, Vec<MoveCheck>)> {
        options.check()?;
        cx.run(
            "the check of a migration",
            foresee::source(&self.shared, id, options),
        )
        .await
    }

    async fn check_destination(
        &self,
        cx: &OpCx,
        definition: &VmDefinition,
        machine: &MachineFacts,
        options: &MoveOptions,
    ) -> Result<Vec<MoveCheck>> {
        options.check()?;
        self.shared.open()?;
        let looking = foresee::destination(&self.shared, definition, machine, options);
        cx.run("the check of a migration", looking).await
    }

    async fn receive(
        &self,
        cx: &OpCx,
        definition: &VmDefinition,
        nics: Vec<NicBackend>,
        listen: Ipv4Addr,
        options: &MoveOptions,
    ) -> Result<Landing> {
        cx.go_on("an arrival")?;
        options.check()?;
        let shared = &self.shared;
        shared.open()?;
        let prepared = start::Prepared::of(shared, definition, nics).await?;
        if options.copies() {
            mirror::check_targets(definition)?;
        }
        let mut slots = None;
        if let Some(machine) = &options.machine {
            slots = foresee::places(machine, definition)?;
            foresee::take_over(shared, definition.id, machine)?;
        }
        let order = start::Order {
            definition,
            prepared: &prepared,
            display: true,
            entry: argv::Entry::Arrival,
            kept: None,
            keeps_memory: false,
            slots,
        };
        // From here to the guard nothing waits, so nothing can be cancelled in between.
        let (machine, manifest) = start::launch(shared, &order)?;
        let guard = start::Guard::of(&machine);
        let dir = VmDir::new(&shared.root, machine.id);
        let opened = timeout(START_DEADLINE, async {
            let waits = options.copies();
            Errand::Receive { waits }.note(&dir)?;
            let qmp = start::connect(shared, &machine, manifest, argv::Entry::Arrival).await?;
            let mut disks = None;
            if waits {
                machine.tell(Input::WaitsForWord).await;
                // Before any memory comes, this only says that it is to stay halted then.
                qmp.execute("stop", serde_json::Value::Null).await?;
                disks = Some(mirror::open(&qmp, definition, listen).await?);
            }
            transfer::prepare(&qmp, Way::Live(Live::of(options))).await?;
            transfer::receive(&qmp, &Channel::Tcp((listen, 0).into())).await?;
            let port = transfer::look(&qmp)
                .await?
                .port
                .ok_or_else(|| Error::StartFailed {
                    why: "it does not say where it listens".into(),
                })?;
            Ok(Landing {
                memory: (listen, port).into(),
                disks,
            })
        });
        match start::in_time(opened.await) {
            Ok(landing) => {
                guard.disarm();
                machine.lease.renew();
                let watch = arrival::watch(Arc::clone(shared), machine.id);
                shared.scope.tasks.spawn(watch);
                Ok(landing)
            }
            Err(error) => {
                drop(guard);
                Err(start::explain(shared, &machine, error).await)
            }
        }
    }

    async fn send(&self, cx: &OpCx, id: VmId, to: &Landing, options: &MoveOptions) -> Result<Migrated> {
        cx.go_on("a migration")?;
        options.check()?;
        let machine = self.shared.live(id, PowerEvent::MigrateOut)?;
        check_landing(&machine, to, options)?;
        let place = errand::place(&machine)?;
        let called_off = CancellationToken::new();
        let call_off = called_off.clone().drop_guard();
        let work = Sending {
            shared: Arc::clone(&self.shared),
            machine,
            to: to.clone(),
            options: options.clone(),
            cx: cx.clone(),
        };
        let sending = errand::run(&self.shared, async move {
            let _place = place;
            work.send(called_off).await
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

    async fn finish(&self, cx: &OpCx, id: VmId) -> Result<Seen> {
        cx.go_on("the end of an arrival")?;
        arrival::finish(&self.shared, id).await
    }

    async fn renew(&self, id: VmId) -> Result<()> {
        arrival::renew(&self.shared, id)
    }

    async fn abandon(&self, id: VmId) -> Result<()> {
        arrival::abandon(&self.shared, id).await
    }
}

/// Whether source, destination and options speak of the same kind of move.
fn check_landing(machine: &Machine, to: &Landing, options: &MoveOptions) -> Result<()> {
    let fix = "give both sides the same options";
    if options.copies() != to.disks.is_some() {
        let (here, there) = if options.copies() {
            ("are copied", "does not wait for them")
        } else {
            ("are shared", "waits for copies of them")
        };
        let why = format!("the disks {here}, and the destination {there}");
        return Err(Error::invalid("the VM cannot be sent like that", why, fix));
    }
    if options.copies() && machine.seen().power != PowerState::Running {
        return Err(Error::Refused(vbm_core::Error::new(
            vbm_core::ErrorKind::Conflict,
            "cannot copy the disks of a VM that is paused",
            "its destination could not tell whether to let it go on",
            "let it go on with `vbm resume` first",
        )));
    }
    Ok(())
}

/// One VM on its way.
struct Sending {
    shared: Arc<Shared>,
    machine: Arc<Machine>,
    to: Landing,
    options: MoveOptions,
    cx: OpCx,
}

impl Sending {
    async fn send(self, called_off: CancellationToken) -> Result<Migrated> {
        let begun = Instant::now();
        let machine = &self.machine;
        let was_running = machine.seen().power == PowerState::Running;
        let dir = VmDir::new(&self.shared.root, machine.id);
        let copies = self.options.copies();
        Errand::Send { was_running, copies }.note(&dir)?;
        machine.tell(Input::SendAsked).await;
        // Cancel safe: what is dropped is only the waiting; what goes on is called off below.
        let sent = tokio::select! {
            sent = self.transfer() => sent,
            () = called_off.cancelled() => Err(Error::Hypervisor {
                command: "migrate".into(),
                why: "it was called off".into(),
            }),
        };
        let failed = match sent {
            Ok((report, copied)) => return left(machine, &report, begun.elapsed(), copied).await,
            Err(error) => error,
        };
        if machine.process.has_exited() {
            return Err(failed);
        }
        let went_on = match self.call_off(was_running).await {
            // It was too late for that.
            Ok(report) if report.phase == Phase::Completed => {
                return left(machine, &report, begun.elapsed(), 0).await;
            }
            Ok(_) => true,
            Err(error) => {
                tracing::warn!(id = %machine.id, %error, "a VM that could not be sent away does not go on");
                false
            }
        };
        machine.tell(Input::SendFailed(!was_running || !went_on)).await;
        Errand::over(&self.shared, &dir);
        Err(failed)
    }

    /// Disks, memory, and the end of both. Says how much of the disks was copied.
    async fn transfer(&self) -> Result<(Report, u64)> {
        let machine = &self.machine;
        let qmp = machine.qmp("migrate")?;
        if let Some(to) = &self.to.disks {
            mirror::begin(&qmp, &machine.definition(), to, &self.options).await?;
            mirror::level(machine, &self.cx, to.disks.len()).await?;
        }
        let qmp = machine.qmp("migrate")?;
        transfer::prepare(&qmp, Way::Live(Live::of(&self.options))).await?;
        transfer::send(&qmp, &Channel::Tcp(self.to.memory)).await?;
        let mut copied = 0;
        if let Some(to) = &self.to.disks {
            let report = transfer::wait(machine, MIGRATION_DEADLINE, |report| {
                self.tell(report);
                report.waits
            })
            .await?;
            if !report.waits {
                return Err(transfer::failure(&report, None));
            }
            let qmp = machine.qmp("migrate-continue")?;
            copied = mirror::end(&qmp, to.disks.len()).await?;
            qmp.execute("migrate-continue", json!({ "state": "pre-switchover" }))
                .await?;
        }
        let report = transfer::wait(machine, MIGRATION_DEADLINE, |report| {
            self.tell(report);
            false
        })
        .await?;
        match report.phase {
            Phase::Completed => Ok((report, copied)),
            _ => Err(transfer::failure(&report, None)),
        }
    }

    fn tell(&self, report: &Report) {
        let total = report.bytes.saturating_add(report.remaining);
        self.cx.report("memory", report.bytes, total);
        tracing::trace!(id = %self.machine.id, round = report.rounds, remaining = report.remaining, "memory is sent");
    }

    /// Ends what goes on and lets the guest go on, unless it is too late for that.
    async fn call_off(&self, was_running: bool) -> Result<Report> {
        let qmp = self.machine.qmp("migrate_cancel")?;
        if let Some(to) = &self.to.disks {
            // First: while the other side stands still, QEMU may do nothing else.
            mirror::cut_all(&qmp, to.disks.len()).await;
        }
        let mut report = transfer::call_off(&qmp).await?;
        if report.phase == Phase::Completed {
            return Ok(report);
        }
        if self.options.copies() {
            // The guest goes on whatever becomes of the copies.
            let undone = mirror::undo(&qmp).await;
            if was_running {
                transfer::go_on(&qmp).await?;
            }
            undone?;
        } else if was_running && !transfer::stays(&qmp).await? {
            // It is not asked again whether it has arrived: the lock tells.
            report.phase = Phase::Completed;
        }
        Ok(report)
    }
}

/// It runs elsewhere, or is to: its process here is ended.
/// Where its word was lost, QEMU tells neither downtime nor bytes.
async fn left(machine: &Machine, report: &Report, took: Duration, copied: u64) -> Result<Migrated> {
    machine.tell(Input::SentAway).await;
    machine.process.kill();
    let over = timeout(KILL_DEADLINE, machine.wait_for(|_| false)).await;
    over.map_err(|_| Error::Timeout {
        command: "the end of the process".into(),
        after: KILL_DEADLINE,
    })?;
    let migrated = Migrated::new(took.max(report.took), report.downtime, report.bytes);
    Ok(migrated.with_disks(copied).in_rounds(report.rounds))
}
