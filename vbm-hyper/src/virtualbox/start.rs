//! A start, from the definition to the first instruction of the guest; and the end of a VM.
//!
//! ```text
//!   check -> probe -> Starting -> settings -> "run" noted -> startvm -> Running -> "run" noted with its time
//!                       |<----- a task of its own; nobody waits any more? it ends what it began ------->|
//! ```

use super::{
    Shared, locked,
    machine::Machine,
    make,
    parse::Told,
    runner::{Call, Fault},
    words,
};
use crate::{
    BootSource, Error, Firmware, NicBackend, Result, Seen, VmDefinition,
    disk::vdi,
    limits::{COMMAND_DEADLINE, KILL_DEADLINE, LAST_WORDS_DEADLINE, VBOX_START_DEADLINE, VBOX_WATCH_SOON},
    process,
};
use std::{future::Future, sync::Arc};
use tokio::{
    sync::oneshot,
    time::{Instant, sleep, timeout},
};
use tokio_util::sync::CancellationToken;
use vbm_core::{DriverKind, PowerEvent, PowerState, VmId};

/// Starts a VM and waits until its processors run.
pub(super) async fn start(
    shared: &Arc<Shared>,
    definition: &VmDefinition,
    nics: Vec<NicBackend>,
) -> Result<Seen> {
    let interfaces = check(definition, nics)?;
    ready(shared).await?;
    let machine = reserve(shared, definition)?;
    let job = {
        let (shared, machine, definition) = (Arc::clone(shared), Arc::clone(&machine), definition.clone());
        async move {
            make::make(&shared, &machine, &definition, &interfaces, true).await?;
            machine.dir.clear_log()?;
            match launch(&shared, &machine, &definition).await {
                Err(Error::StartFailed { why }) if words::blames_display(&why) => {
                    tracing::warn!(id = %definition.id, why, "the VM is started without a display");
                    make::make(&shared, &machine, &definition, &interfaces, false).await?;
                    launch(&shared, &machine, &definition).await
                }
                other => other,
            }
        }
    };
    guarded(shared, machine, job).await
}

/// Refuses what VirtualBox cannot run, before anything is changed. Returns the interfaces of the NICs.
pub(super) fn check(definition: &VmDefinition, nics: Vec<NicBackend>) -> Result<Vec<String>> {
    definition.check(nics.len())?;
    let unsupported = |what: &str, why: &str| Error::Unsupported {
        driver: DriverKind::VirtualBox,
        what: what.to_owned(),
        why: why.to_owned(),
    };
    if let BootSource::Kernel { .. } = definition.boot {
        return Err(unsupported(
            "load a kernel itself",
            "VirtualBox boots from disks only; use an image that boots from its disk",
        ));
    }
    let hardware = &definition.hardware;
    for (asked, what) in [
        (
            !definition.disks.is_empty(),
            "attach disks beside the one it boots from",
        ),
        (hardware.firmware != Firmware::Bios, "start its firmware as UEFI"),
        (hardware.cpu.is_some(), "choose a CPU model"),
        (hardware.cdrom.is_some(), "put a medium into a CD drive"),
    ] {
        if asked {
            return Err(unsupported(
                what,
                "VBM gives VMs of VirtualBox one disk, its BIOS and the host's processor so far; use the QEMU driver",
            ));
        }
    }
    vdi::check(&definition.root_disk)?;
    let interface = |nic| match nic {
        NicBackend::HostInterface(name) => super::argv::check_interface(&name).map(|()| name),
        NicBackend::Tap(_) => Err(unsupported(
            "use an open tap device",
            "VirtualBox opens the interfaces of its NICs itself, by name",
        )),
    };
    nics.into_iter().map(interface).collect()
}

/// Refuses to start anything where nothing can run, in the words of the probe.
pub(super) async fn ready(shared: &Shared) -> Result<()> {
    match shared.found().await?.problem() {
        Some(problem) => Err(Error::Refused(problem)),
        None => Ok(()),
    }
}

/// Takes the place of the VM: of two starts one wins.
fn reserve(shared: &Arc<Shared>, definition: &VmDefinition) -> Result<Arc<Machine>> {
    let machine = entry(shared, definition.id);
    begin(shared, &machine, PowerEvent::Start)?;
    Ok(machine)
}

/// The place of a VM; one that was not known is off.
pub(super) fn entry(shared: &Shared, id: VmId) -> Arc<Machine> {
    let mut vms = locked(&shared.vms);
    let fresh = || {
        let dir = shared.places.vm(id);
        Arc::new(Machine::new(id, dir, PowerState::Off, true, None))
    };
    Arc::clone(vms.entry(id).or_insert_with(fresh))
}

/// Lets the power table decide, and what it allows happen, in one go.
pub(super) fn begin(shared: &Shared, machine: &Machine, event: PowerEvent) -> Result<()> {
    let mut refused = None;
    machine.change(shared, |life| match life.power.after(event) {
        Ok(_) => life.happened(event),
        Err(error) => {
            refused = Some(error);
            Vec::new()
        }
    });
    refused.map_or(Ok(()), |error| Err(Error::Refused(error)))
}

/// Runs a job that brings a VM to run. When it fails, or nobody waits for it any more, the VM is ended.
pub(super) async fn guarded(
    shared: &Arc<Shared>,
    machine: Arc<Machine>,
    job: impl Future<Output = Result<()>> + Send + 'static,
) -> Result<Seen> {
    const OVER: Error = Error::ShutDown("the VirtualBox driver");
    let (reply, answer) = oneshot::channel();
    let gone = CancellationToken::new();
    let guard = gone.clone().drop_guard();
    let task = {
        let (shared, machine) = (Arc::clone(shared), Arc::clone(&machine));
        async move {
            let _turn = machine.turn().await;
            // Cancel safe: what the job began is ended below, or by the adoption after the next start of the daemon.
            let done = tokio::select! {
                biased;
                () = shared.scope.end.cancelled() => {
                    drop(reply.send(Err(OVER)));
                    return;
                }
                () = gone.cancelled() => Err(Error::Preempted { vm: machine.id, job: "start" }),
                done = job => done,
            };
            let failed = done.is_err();
            if failed {
                give_up(&shared, &machine).await;
            }
            let unheard = reply.send(done.map(|()| machine.seen(&shared))).is_err();
            if unheard && !failed {
                give_up(&shared, &machine).await;
            }
        }
    };
    shared.scope.tasks.spawn(task);
    let seen = answer.await.map_err(|_| OVER)?;
    guard.disarm();
    seen
}

/// Has VirtualBox run the VM, and waits until it does.
pub(super) async fn launch(
    shared: &Arc<Shared>,
    machine: &Arc<Machine>,
    definition: &VmDefinition,
) -> Result<()> {
    let id = machine.id;
    machine.dir.create()?;
    machine.note(shared, definition, None)?;
    machine.enter(shared, definition.clone());
    let args = [
        "startvm".to_owned(),
        id.to_string(),
        "--type".to_owned(),
        "headless".to_owned(),
    ];
    let begun = Instant::now();
    match shared
        .runner
        .run(&Call::new(args).within(VBOX_START_DEADLINE))
        .await
    {
        Ok(_) => {}
        Err(Fault::Refused(_, complaint)) => return Err(Error::StartFailed { why: complaint.why }),
        Err(Fault::Other(error)) => return Err(error),
    }
    loop {
        let told = shared.ask(id).await?;
        match told {
            Told::Running | Told::Paused => {
                let now = shared.clock.now();
                machine.note(shared, definition, Some(now))?;
                machine.hold_process(shared, now);
                machine.told(shared, told);
                return Ok(());
            }
            Told::Moving if begun.elapsed() < VBOX_START_DEADLINE => sleep(VBOX_WATCH_SOON).await,
            other => {
                let why = format!("VirtualBox says that it is {}", super::watch::power_of(other));
                return Err(Error::StartFailed { why });
            }
        }
    }
}

/// Ends what a start has left.
async fn give_up(shared: &Shared, machine: &Machine) {
    let told = match end_now(shared, machine.id).await {
        Ok(told) => told,
        Err(error) => {
            tracing::error!(id = %machine.id, %error, "a VM that did not start cannot be ended");
            return;
        }
    };
    machine.told(shared, told);
}

/// Ends a VM now, and waits until nothing of it runs.
pub(super) async fn kill(shared: &Shared, machine: &Arc<Machine>) -> Result<()> {
    // A command that hangs holds its turn for as long as its deadline; its VM is ended without it.
    let _turn = timeout(COMMAND_DEADLINE, machine.turn()).await;
    let power = machine.power();
    if power == PowerState::Off {
        return Ok(());
    }
    machine.state().life.will_kill();
    if power == PowerState::Saved {
        super::saved::throw_away(shared, machine.id).await?;
    } else if !matches!(power, PowerState::Crashed(_)) {
        end_now(shared, machine.id).await?;
    }
    machine.state().adopted = true;
    machine.happened(shared, PowerEvent::ForceOff);
    Ok(())
}

/// Ends what VirtualBox runs of a VM: by its own means, else by ending its process. Returns what is told after that.
async fn end_now(shared: &Shared, id: VmId) -> Result<Told> {
    let until = Instant::now() + KILL_DEADLINE;
    let call =
        Call::new(["controlvm".to_owned(), id.to_string(), "poweroff".to_owned()]).within(COMMAND_DEADLINE);
    let asked = shared.runner.run(&call).await;
    let obeyed = asked.is_ok();
    if let Err(fault) = asked {
        tracing::debug!(%id, ?fault, "VirtualBox did not end a VM");
    }
    let told = loop {
        let told = shared.ask(id).await;
        match told {
            Ok(told @ (Told::Off | Told::Aborted | Told::Saved | Told::AbortedSaved)) => break told,
            _ if Instant::now() >= until => {
                return Err(Error::Timeout {
                    command: "the end of the VM".into(),
                    after: KILL_DEADLINE,
                });
            }
            _ => {}
        }
        if !obeyed && let Some(process) = process::find(id) {
            process.kill();
        }
        sleep(VBOX_WATCH_SOON).await;
    };
    if let Some(process) = process::find(id) {
        if timeout(LAST_WORDS_DEADLINE, process.exited()).await.is_err() {
            process.kill();
        }
        drop(timeout(LAST_WORDS_DEADLINE, process.exited()).await);
    }
    Ok(told)
}

/// What became of a VM after a command on it failed: it is looked at, never tried again blindly.
pub(super) async fn after_fault(
    shared: &Shared,
    machine: &Machine,
    fault: Fault,
    event: PowerEvent,
) -> Error {
    match shared.ask(machine.id).await {
        Ok(told) => {
            machine.told(shared, told);
        }
        Err(error) => {
            tracing::warn!(id = %machine.id, %error, "a VM cannot be looked at");
            if matches!(fault, Fault::Other(Error::Timeout { .. })) {
                machine.happened(shared, PowerEvent::Silence);
            }
        }
    }
    match machine.power().after(event) {
        Err(refused) if fault.complaint().is_some() => Error::Refused(refused),
        _ => fault.into(),
    }
}
