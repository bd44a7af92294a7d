//! Why a VM is as it is, in words: which disk failed, how its process ended.

use super::{Entry, Shared, keeper::Machine, process::Exit, record::Ended, record::VmDir, slots};
use serde_json::Value;
use vbm_core::{CrashCause, PauseReason, PowerState, VmId};

/// Why the power of a VM is what it is, where there is more to say than the state.
pub(super) async fn of(shared: &Shared, id: VmId) -> Option<String> {
    let entry = shared.entry(id).ok()?;
    match (entry.seen().power, entry) {
        (PowerState::Paused(PauseReason::DiskError), Entry::Live(machine)) => disks(&machine).await,
        (PowerState::Crashed(_), _) => {
            let ended: Option<Ended> = VmDir::new(&shared.root, id).read("ended").ok()?;
            ended?.cause
        }
        _ => None,
    }
}

/// The disks that failed, as QEMU remembers them.
async fn disks(machine: &Machine) -> Option<String> {
    let blocks = machine.command("query-block", Value::Null).await.ok()?;
    let definition = machine.definition();
    let mut told = Vec::new();
    for block in blocks.as_array().into_iter().flatten() {
        let why = match block["io-status"].as_str() {
            Some("nospace") => "there is no room left where it lies",
            Some("failed") => "it cannot be read or written",
            _ => continue,
        };
        let device = block["qdev"].as_str().unwrap_or_default();
        let data = definition
            .disks
            .iter()
            .find(|disk| device.contains(&slots::disk_device(disk.volume)));
        let (disk, path) = match data {
            Some(disk) => (format!("volume {}", disk.volume), &disk.path),
            None => ("the disk it boots from".to_owned(), &definition.root_disk),
        };
        told.push(format!("{disk} ({}): {why}", path.display()));
    }
    (!told.is_empty()).then(|| told.join("; "))
}

/// How a process ended that nobody asked to: pure. `reason` is QEMU's own, `said` the last words of its log.
pub(super) fn of_end(power: PowerState, exit: Exit, reason: Option<&str>, said: &str) -> Option<String> {
    let PowerState::Crashed(cause) = power else {
        return None;
    };
    let words = match (cause, exit.signal, exit.code, reason) {
        (CrashCause::Guest, ..) => "the guest's kernel gave up; its serial log may have its last words".into(),
        (CrashCause::Host, ..) => "the host went down, or was started again".into(),
        (.., Some("host-signal")) => "somebody on the host sent QEMU a signal to end".into(),
        (_, Some(SIGKILL), ..) => {
            "QEMU was killed by signal 9, which VBM did not send; where the host was out of memory, `dmesg` says so".into()
        }
        (_, Some(signal), ..) => with(&format!("QEMU was ended by signal {signal}"), said),
        (_, None, Some(code), _) => with(&format!("QEMU ended by itself with code {code}"), said),
        (_, None, None, _) => with("QEMU is gone, and nobody saw how it ended", said),
    };
    Some(words)
}

/// The number of the signal (signal(7)).
const SIGKILL: i32 = 9;

fn with(words: &str, said: &str) -> String {
    if said.is_empty() {
        words.to_owned()
    } else {
        format!("{words}: {said}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_end_is_told_in_its_own_words() {
        let (hypervisor, guest) = (
            PowerState::Crashed(CrashCause::Hypervisor),
            PowerState::Crashed(CrashCause::Guest),
        );
        let signal = |number| Exit {
            code: None,
            signal: Some(number),
        };
        let code = Exit {
            code: Some(1),
            signal: None,
        };
        for (power, exit, reason, said, wanted) in [
            (guest, Exit::default(), Some("guest-panic"), "", "kernel gave up"),
            (hypervisor, signal(9), None, "", "out of memory"),
            (hypervisor, signal(11), None, "bad", "by signal 11: bad"),
            (hypervisor, code, None, "qemu: no", "code 1: qemu: no"),
            (hypervisor, code, Some("host-signal"), "", "sent QEMU a signal"),
            (hypervisor, Exit::default(), None, "", "nobody saw"),
        ] {
            let told = of_end(power, exit, reason, said).unwrap();
            assert!(told.contains(wanted), "{told}");
        }
        assert_eq!(
            of_end(PowerState::Off, signal(9), None, ""),
            None,
            "it was asked to"
        );
    }
}
