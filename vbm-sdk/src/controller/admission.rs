//! Which nodes may take part: pure.
//!
//! A node is known by its path, its machine by the identity that its agent's data directory keeps. Two machines under
//! one path would each be told to run the other's VMs, so the second is refused, for as long as the first answers or may
//! still run VMs. Who attaches to the bus under a path takes it from whoever has it: so an agent knocks from a place of its
//! own first, and obeys nobody before it was taken in.
//!
//! No decision rests on a node's clock; one that is off is shown, because its events and leases mislead people.

use crate::methods::{NodeReportRequest, PROTOCOL_VERSION};
use std::time::Duration;
use vbm_core::{Error, ErrorKind, Node, NodePath, NodeState, Timestamp};

/// A node's clock may differ so much before somebody is told.
const CLOCK_SKEW_MAX: Duration = Duration::from_secs(10);
/// A machine that tried to join under the path of another is told of for so long after its last try.
pub(super) const RIVAL_SHOWN: Duration = Duration::from_secs(30);

/// What to do with a report.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Admission {
    /// The node takes part; these things are worth a look.
    Accepted(Vec<Error>),
    /// It speaks another version: its record says so.
    Incompatible(Error),
    /// Its path is another machine's: that one's record stays.
    Rival(Error),
}

/// Judges a report beside what is known of the node. `has_vms` says whether VMs are on the path.
pub(super) fn judge(
    report: &NodeReportRequest,
    known: Option<&Node>,
    has_vms: bool,
    now: Timestamp,
) -> Admission {
    if let Some(node) = known.filter(|n| is_other_machine(n, report)) {
        let answers = node.status.state == NodeState::Ready;
        if answers || has_vms {
            return Admission::Rival(path_taken(&report.path, answers));
        }
    }
    if report.protocol > PROTOCOL_VERSION || report.protocol + 1 < PROTOCOL_VERSION {
        return Admission::Incompatible(incompatible(report));
    }
    Admission::Accepted(clock_warning(report, now).into_iter().collect())
}

/// An agent that does not tell its identity is an older one; it is believed.
fn is_other_machine(node: &Node, report: &NodeReportRequest) -> bool {
    let (was, is) = (&node.status.identity, &report.identity);
    !was.is_empty() && !is.is_empty() && was != is
}

fn path_taken(path: &NodePath, answers: bool) -> Error {
    let why = if answers {
        "another machine reports itself under the same path"
    } else {
        "another machine had this path, does not answer, and its VMs may still run there"
    };
    Error::new(
        ErrorKind::AlreadyExists,
        format!("this machine cannot be node {path}"),
        why,
        "start its agent with another --node; to replace a machine, delete or move its VMs first",
    )
}

fn incompatible(report: &NodeReportRequest) -> Error {
    let newer = report.protocol > PROTOCOL_VERSION;
    Error::new(
        ErrorKind::Unsupported,
        format!("node {} cannot take part", report.path),
        format!(
            "its agent is of version {} and speaks protocol {}; this controller speaks {PROTOCOL_VERSION} and the one before",
            report.version, report.protocol
        ),
        if newer {
            "upgrade the controllers first, then the agents"
        } else {
            "upgrade vbmd on that node"
        },
    )
}

fn clock_warning(report: &NodeReportRequest, now: Timestamp) -> Option<Error> {
    if report.at == Timestamp::default() {
        return None;
    }
    let (ahead, skew) = if report.at > now {
        (true, report.at.since(now))
    } else {
        (false, now.since(report.at))
    };
    (skew > CLOCK_SKEW_MAX).then(|| {
        // Rounded to what a person reads, so that it does not change with each report.
        let amount = match skew.as_secs() {
            s @ ..120 => format!("more than {} s", s / 10 * 10),
            s => format!("about {} min", (s + 30) / 60),
        };
        Error::new(
            ErrorKind::Conflict,
            format!("the clock of node {} is off", report.path),
            format!(
                "it is {amount} {} the controller's",
                if ahead { "ahead of" } else { "behind" }
            ),
            "let both follow a time server (chrony, systemd-timesyncd); nothing is decided by that clock, but its leases and logs mislead",
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use vbm_core::{NodeSpec, NodeStatus};

    const NOW: Timestamp = Timestamp::from_micros(1_000_000_000_000);

    fn report(identity: &str) -> NodeReportRequest {
        serde_json::from_value(serde_json::json!({
            "path": "zone/a", "boot_id": "b", "version": "1.2.3", "protocol": PROTOCOL_VERSION, "identity": identity,
            "capabilities": [], "cpus": 2, "memory_mib": 1, "memory_free_mib": 1, "epoch": 1, "vms": [], "networks": [],
            "at": NOW,
        }))
        .unwrap()
    }

    fn known(identity: &str, state: NodeState) -> Node {
        Node {
            path: "zone/a".parse().unwrap(),
            spec: NodeSpec::default(),
            status: NodeStatus {
                state,
                identity: identity.into(),
                seen_at: NOW,
                ..NodeStatus::default()
            },
        }
    }

    #[test]
    fn the_same_machine_may_come_back_any_time() {
        for state in [NodeState::Ready, NodeState::Lost, NodeState::Unknown] {
            let node = known("one", state);
            assert_eq!(
                judge(&report("one"), Some(&node), true, NOW),
                Admission::Accepted(vec![])
            );
        }
    }

    #[test]
    fn a_second_machine_is_refused_while_the_first_answers_or_may_run_vms() {
        let node = known("one", NodeState::Ready);
        assert!(matches!(
            judge(&report("two"), Some(&node), false, NOW),
            Admission::Rival(_)
        ));
        let lost = known("one", NodeState::Lost);
        assert!(matches!(
            judge(&report("two"), Some(&lost), true, NOW),
            Admission::Rival(_)
        ));
        assert_eq!(
            judge(&report("two"), Some(&lost), false, NOW),
            Admission::Accepted(vec![])
        );
    }

    #[test]
    fn the_version_before_is_taken_in_and_others_are_not() {
        let of = |protocol| NodeReportRequest {
            protocol,
            ..report("one")
        };
        assert_eq!(
            judge(&of(PROTOCOL_VERSION - 1), None, false, NOW),
            Admission::Accepted(vec![])
        );
        for protocol in [PROTOCOL_VERSION - 2, PROTOCOL_VERSION + 1, u32::MAX - 1] {
            assert!(matches!(
                judge(&of(protocol), None, false, NOW),
                Admission::Incompatible(_)
            ));
        }
    }

    #[test]
    fn a_clock_an_hour_off_is_told_and_harmless() {
        let hour = Duration::from_secs(3_600);
        for at in [
            NOW.plus(hour),
            Timestamp::from_micros(NOW.micros() - 3_600_000_000),
        ] {
            let Admission::Accepted(warnings) =
                judge(&NodeReportRequest { at, ..report("one") }, None, false, NOW)
            else {
                panic!("a clock is no reason to refuse a node");
            };
            assert!(warnings[0].why().contains("60 min"), "{}", warnings[0].why());
        }
    }
}
