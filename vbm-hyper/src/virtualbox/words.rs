//! What VBoxManage says, and what it means: pure.
//!
//! - Success is exit status 0 **and** no `error:` on standard error: `discardstate` of a VM that is not saved fails with 0.
//! - Debian's wrapper prints a `WARNING:` paragraph on standard output before anything else when the kernel driver is missing.
//! - `Details: code NAME (0x80bb0002)` carries the HRESULT; some refusals have none.

use std::time::Duration;

/// What begins an error line.
const ERROR_MARK: &str = "error: ";
/// The longest explanation that is handed on, in characters.
const WHY_MAX_CHARS: usize = 600;
/// The pause before the first try again when a session is locked.
const RETRY_FIRST: Duration = Duration::from_millis(50);
/// The longest pause between two tries.
const RETRY_MAX: Duration = Duration::from_secs(2);
/// After so long a locked session is told as a failure.
pub(super) const RETRY_TOTAL: Duration = Duration::from_secs(20);

/// The HRESULTs that a driver can do something about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Code {
    NotFound,
    InvalidVmState,
    VmError,
    Storage,
    InvalidObjectState,
    InUse,
    NotReady,
    InvalidArgument,
    Other(u32),
}

impl Code {
    const fn of(number: u32) -> Self {
        match number {
            0x80bb_0001 => Self::NotFound,
            0x80bb_0002 => Self::InvalidVmState,
            0x80bb_0003 => Self::VmError,
            0x80bb_0005 => Self::Storage,
            0x80bb_0007 => Self::InvalidObjectState,
            0x80bb_000c => Self::InUse,
            0x8007_0005 => Self::NotReady,
            0x8007_0057 => Self::InvalidArgument,
            other => Self::Other(other),
        }
    }
}

/// A refusal of VBoxManage.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Complaint {
    /// Its words, in one line, without its name and without source lines.
    pub(super) why: String,
    pub(super) code: Option<Code>,
}

/// The complaint in what was said on standard error; `None` when there is none.
pub(super) fn complaint(stderr: &str, success: bool) -> Option<Complaint> {
    let errors: Vec<&str> = stderr
        .lines()
        .filter_map(|line| line.split_once(ERROR_MARK).map(|(_, said)| said.trim()))
        .collect();
    if success && errors.is_empty() {
        return None;
    }
    let code = errors.iter().find_map(|line| hresult(line)).map(Code::of);
    let told: Vec<&str> = errors
        .iter()
        .copied()
        .filter(|line| {
            !["Details:", "Context:", "Location:", "/"]
                .iter()
                .any(|mark| line.starts_with(mark))
        })
        .collect();
    let mut why = if told.is_empty() {
        let lines: Vec<_> = stderr
            .lines()
            .map(str::trim)
            .filter(|l| !l.is_empty() && !l.contains("%..."))
            .collect();
        lines.join("; ")
    } else {
        told.join("; ")
    };
    if why.is_empty() {
        why = "it failed without a word".into();
    }
    Some(Complaint {
        why: why
            .chars()
            .filter(|c| !c.is_control())
            .take(WHY_MAX_CHARS)
            .collect(),
        code,
    })
}

fn hresult(line: &str) -> Option<u32> {
    let rest = line.strip_prefix("Details: code ")?;
    let (_, rest) = rest.split_once("(0x")?;
    u32::from_str_radix(rest.get(..8)?, 16).ok()
}

/// Whether the same command may work in a moment: somebody else has the VM's session, or it is only just being let go.
pub(super) fn is_locked(complaint: &Complaint) -> bool {
    let why = complaint.why.to_lowercase();
    why.contains("already locked")
        || why.contains("being unlocked")
        || why.contains("has a lock request pending")
        || (complaint.code == Some(Code::NotReady) && why.contains("not ready"))
}

/// Whether VBoxManage found no server to ask: VBoxSVC ends some seconds after its last caller, and who comes at that moment
/// fails. Nothing was done.
pub(super) fn found_no_server(complaint: &Complaint) -> bool {
    complaint.why.contains("Failed to create the VirtualBox object")
}

/// How long to wait before try number `tries` + 1; `None` when it was tried long enough. `jitter` is 0 to 999.
pub(super) fn retry_pause(tries: u32, waited: Duration, jitter: u32) -> Option<Duration> {
    let full = RETRY_FIRST
        .saturating_mul(2_u32.saturating_pow(tries.saturating_sub(1)))
        .min(RETRY_MAX);
    // Half fixed, half by chance, so that two that met do not meet again.
    let pause = full / 2 + (full / 2).saturating_mul(jitter.min(999)) / 1000;
    (waited + pause <= RETRY_TOTAL).then_some(pause)
}

/// Whether a refused start is the display's fault: it can be tried without one.
pub(super) fn blames_display(why: &str) -> bool {
    let why = why.to_lowercase();
    ["vrde", "remote desktop", "remote display", "vnc"]
        .iter()
        .any(|word| why.contains(word))
}

/// Standard output without the wrapper's `WARNING:` paragraphs, and those.
pub(super) fn without_warnings(stdout: &str) -> (String, String) {
    let (mut said, mut warned) = (String::new(), String::new());
    let mut within = false;
    for line in stdout.lines() {
        if line.starts_with("WARNING:") {
            within = true;
        } else if within && !(line.is_empty() || line.starts_with(['\t', ' '])) {
            within = false;
        }
        let to = if within { &mut warned } else { &mut said };
        to.push_str(line);
        to.push('\n');
    }
    (said, warned)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const NOT_SAVED: &str = "VBoxManage: error: Cannot discard the saved state as the machine is not in the Saved or Aborted-Saved state (machine state: PoweredOff)\n\
        VBoxManage: error: Details: code VBOX_E_INVALID_VM_STATE (0x80bb0002), component SessionMachine, interface IMachine, callee nsISupports\n\
        VBoxManage: error: Context: \"DiscardSavedState(true )\" at line 1292 of file VBoxManageMisc.cpp\n";

    #[test]
    fn an_error_is_one_also_when_the_exit_status_is_0() {
        let complaint = complaint(NOT_SAVED, true).unwrap();
        assert_eq!(complaint.code, Some(Code::InvalidVmState));
        assert!(
            complaint.why.starts_with("Cannot discard the saved state")
                && !complaint.why.contains("Misc.cpp")
        );
    }

    #[test]
    fn progress_and_warnings_are_no_errors() {
        assert_eq!(complaint("0%...10%...100%\n", true), None);
        assert_eq!(
            complaint(
                "VBoxManage: warning: Interface \"vbp1\" doesn't seem to exist\n",
                true
            ),
            None
        );
        assert_eq!(
            complaint("0%...10%\n", false).unwrap().why,
            "it failed without a word"
        );
    }

    #[test]
    fn a_refusal_without_a_code_keeps_its_words() {
        let said = "VBoxManage: error: Machine '1' is not currently running.\n";
        assert_eq!(
            complaint(said, false).unwrap(),
            Complaint {
                why: "Machine '1' is not currently running.".into(),
                code: None
            }
        );
    }

    #[test]
    fn a_locked_session_is_tried_again_within_bounds() {
        let locked = "VBoxManage: error: The machine 'a' is already locked for a session (or being unlocked)\n\
            VBoxManage: error: Details: code VBOX_E_INVALID_OBJECT_STATE (0x80bb0007), component MachineWrap\n";
        assert!(is_locked(&complaint(locked, false).unwrap()));
        assert!(!is_locked(&complaint(NOT_SAVED, false).unwrap()));
        assert!(retry_pause(1, Duration::ZERO, 0).unwrap() >= RETRY_FIRST / 2);
        assert_eq!(retry_pause(9, RETRY_TOTAL, 0), None);
        let (mut waited, mut tries) = (Duration::ZERO, 0);
        while let Some(pause) = retry_pause(tries + 1, waited, 999) {
            assert!(pause <= RETRY_MAX);
            waited += pause;
            tries += 1;
        }
        assert!(
            waited <= RETRY_TOTAL && (10..100).contains(&tries),
            "{tries} tries in {waited:?}"
        );
    }

    #[test]
    fn the_wrappers_warning_is_no_part_of_the_answer() {
        let said = "WARNING: The character device /dev/vboxdrv does not exist.\n\t Please install the virtualbox-dkms package and the appropriate\n\t headers, most likely linux-headers-amd64.\n\n\t You will not be able to start VMs until this problem is fixed.\n7.2.22_Debianr175245\n";
        let (answer, warned) = without_warnings(said);
        assert_eq!(answer, "7.2.22_Debianr175245\n");
        assert!(warned.contains("virtualbox-dkms"));
    }

    proptest! {
        #[test]
        fn whatever_is_said_is_understood_or_told_in_one_short_line(said in any::<String>(), success: bool) {
            let found = complaint(&said, success);
            prop_assert_eq!(found.is_some(), !success || said.lines().any(|l| l.contains(ERROR_MARK)));
            if let Some(found) = found {
                prop_assert!(!found.why.is_empty() && found.why.chars().count() <= WHY_MAX_CHARS);
                prop_assert!(!found.why.contains('\n'));
            }
            let (answer, warned) = without_warnings(&said);
            prop_assert_eq!(answer.lines().count() + warned.lines().count(), said.lines().count());
        }
    }
}
