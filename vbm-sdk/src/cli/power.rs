//! `vbm start`, `stop`, `restart`, `pause`, `resume`, `save`, `discard`, `delete` and `wait`.

use super::{
    args::{Delete, Stop, Wait, WaitWhat},
    session::Session,
};
use crate::api::{PowerAction, VmView};
use vbm_core::{Error, PowerState};

async fn power(on: &Session<'_>, vms: &[String], action: PowerAction, now: &str) -> Result<(), Error> {
    let begin = |vm: String| async move { Ok(on.client.vms().power(vm, action).await?.operation) };
    on.each(vms, begin, |operation| format!("{} {now}", operation.target.name))
        .await
}

pub(super) async fn start(on: &Session<'_>, vms: &[String]) -> Result<(), Error> {
    power(on, vms, PowerAction::Start, "is running").await
}

pub(super) async fn stop(on: &Session<'_>, args: &Stop) -> Result<(), Error> {
    let action = if args.force {
        PowerAction::ForceOff
    } else {
        PowerAction::Stop
    };
    power(on, &args.vms, action, "is off").await
}

pub(super) async fn restart(on: &Session<'_>, vms: &[String]) -> Result<(), Error> {
    power(on, vms, PowerAction::Restart, "was restarted").await
}

pub(super) async fn pause(on: &Session<'_>, vms: &[String]) -> Result<(), Error> {
    power(on, vms, PowerAction::Pause, "is paused").await
}

pub(super) async fn resume(on: &Session<'_>, vms: &[String]) -> Result<(), Error> {
    power(on, vms, PowerAction::Resume, "is running").await
}

pub(super) async fn save(on: &Session<'_>, vms: &[String]) -> Result<(), Error> {
    power(on, vms, PowerAction::Save, "is saved").await
}

pub(super) async fn discard(on: &Session<'_>, vms: &[String]) -> Result<(), Error> {
    power(on, vms, PowerAction::Discard, "is off, its memory is gone").await
}

pub(super) async fn delete(on: &Session<'_>, args: &Delete) -> Result<(), Error> {
    let begin = |vm: String| async move { Ok(on.client.vms().delete(vm).force(args.force).await?.operation) };
    on.each(&args.vms, begin, |operation| {
        format!("{} is gone", operation.target.name)
    })
    .await
}

pub(super) async fn wait(on: &Session<'_>, args: &Wait) -> Result<(), Error> {
    let what = args.what;
    let wait = on
        .client
        .vms()
        .wait_for(&args.vm, move |vm| is(vm, what))
        .deadline(on.left());
    let vm = wait.await?;
    let text = match what {
        WaitWhat::Lease => {
            let addresses = vm.nics.iter().map(|nic| nic.port.spec.address.to_string());
            format!(
                "{} has {}",
                vm.vm.meta.name,
                addresses.collect::<Vec<_>>().join(", ")
            )
        }
        WaitWhat::Running | WaitWhat::Off => format!("{} is {}", vm.vm.meta.name, vm.vm.status.power),
    };
    on.out.done(&vm, vm.vm.meta.name.as_str(), &text)
}

/// Whether a VM is as it is waited for.
fn is(view: &VmView, what: WaitWhat) -> bool {
    let power = view.vm.status.power;
    match what {
        WaitWhat::Running => power == PowerState::Running,
        WaitWhat::Off => power == PowerState::Off,
        WaitWhat::Lease => {
            let leased = |nic: &crate::api::NicView| nic.port.status.leased_at.is_some();
            power == PowerState::Running && !view.nics.is_empty() && view.nics.iter().all(leased)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::list::tests::sample;
    use super::*;
    use vbm_core::Timestamp;

    #[test]
    fn a_lease_is_there_when_each_nic_of_a_running_vm_took_its_address() {
        let mut vm = sample();
        assert!(is(&vm, WaitWhat::Running) && !is(&vm, WaitWhat::Off) && !is(&vm, WaitWhat::Lease));
        vm.nics[0].port.status.leased_at = Some(Timestamp::from_micros(1));
        assert!(is(&vm, WaitWhat::Lease));
        vm.nics.push(sample().nics.remove(0));
        assert!(!is(&vm, WaitWhat::Lease), "the second NIC has none yet");
        vm.vm.status.power = PowerState::Off;
        assert!(is(&vm, WaitWhat::Off));
    }
}
