//! `vbm info`, and the lines that all details are made of.

use super::{human, list, port::limits_text, session::Session};
use crate::api::VmView;
use vbm_core::{Error, Meta, PortLimits, Timestamp};

pub(super) async fn run(on: &Session<'_>, vm: &str) -> Result<(), Error> {
    let vm = on.client.vms().get(vm).await?;
    on.out.item(&vm, vm.vm.meta.name.as_str(), &detail(&vm, on.now()))
}

/// Lines of `Name:   value`, with their values in one column.
#[derive(Debug, Default)]
#[must_use]
pub(super) struct Lines(Vec<(String, String)>);

impl Lines {
    /// One more line; none when the value is empty.
    pub(super) fn put(&mut self, name: &str, value: impl Into<String>) {
        let value = value.into();
        if !value.is_empty() {
            self.0.push((format!("{name}:"), value));
        }
    }

    /// The head of every record.
    pub(super) fn meta<Id: std::fmt::Display>(&mut self, meta: &Meta<Id>, now: Timestamp) {
        self.put("Name", meta.name.as_str());
        self.put("ID", meta.id.to_string());
        let labels = meta
            .labels
            .iter()
            .map(|(k, v)| format!("{k}={v}"))
            .collect::<Vec<_>>();
        self.put("Labels", labels.join(", "));
        self.put(
            "Created",
            format!("{} ago ({})", human::age(now, meta.created_at), meta.created_at),
        );
    }

    /// Why something is not as it was asked for.
    pub(super) fn problem(&mut self, problem: Option<&Error>) {
        if let Some(problem) = problem {
            self.put("Problem", problem.what());
            self.put("  why", problem.why());
            self.put("  fix", problem.fix());
        }
    }

    pub(super) fn text(&self) -> String {
        let width = self
            .0
            .iter()
            .map(|(name, _)| name.chars().count())
            .max()
            .unwrap_or(0);
        let lines = self
            .0
            .iter()
            .map(|(name, value)| format!("{name:width$}  {value}"));
        lines.collect::<Vec<_>>().join("\n")
    }
}

fn detail(view: &VmView, now: Timestamp) -> String {
    let (spec, status) = (&view.vm.spec, &view.vm.status);
    let mut lines = Lines::default();
    lines.meta(&view.vm.meta, now);
    lines.put(
        "State",
        format!("{} since {}", list::state(view), human::age(now, status.since)),
    );
    lines.problem(status.problem.as_ref());
    lines.put("Image", &*view.image_name);
    lines.put("CPUs", spec.vcpus.to_string());
    lines.put("Memory", human::mib(spec.memory_mib.into()));
    lines.put(
        "Node",
        spec.node.as_ref().map(ToString::to_string).unwrap_or_default(),
    );
    lines.put("Driver", spec.driver.to_string());
    if let Some(accelerator) = &status.accelerator {
        lines.put(
            "Accelerator",
            format!("{} ({})", accelerator.name, accelerator.reason),
        );
    }
    lines.put("PID", status.pid.map(|pid| pid.to_string()).unwrap_or_default());
    for nic in &view.nics {
        let (spec, status) = (&nic.port.spec, &nic.port.status);
        lines.put(
            "NIC",
            format!("{} on {}, {}", spec.address, nic.network_name, spec.mac),
        );
        lines.put("  IPv6", spec.address6.map(|a| a.to_string()).unwrap_or_default());
        let groups = nic
            .group_names
            .iter()
            .map(ToString::to_string)
            .collect::<Vec<_>>();
        lines.put(
            "  groups",
            if groups.is_empty() {
                "none: nothing may come in".into()
            } else {
                groups.join(", ")
            },
        );
        lines.put(
            "  floating",
            spec.floating_ip.map(|a| a.to_string()).unwrap_or_default(),
        );
        if spec.limits != PortLimits::default() {
            lines.put("  limits", limits_text(spec.limits));
        }
        lines.put("  lease", lease(status.leased_at, status.leased_until, now));
    }
    lines.text()
}

/// Since and until when a guest has its address.
pub(super) fn lease(at: Option<Timestamp>, until: Option<Timestamp>, now: Timestamp) -> String {
    match (at, until) {
        (None, _) => "not taken yet".into(),
        (Some(at), Some(until)) if until > now => {
            format!(
                "taken {} ago, for {} more",
                human::age(now, at),
                human::span(until.since(now))
            )
        }
        (Some(at), Some(_)) => format!("ended, taken {} ago", human::age(now, at)),
        (Some(at), None) => format!("taken {} ago", human::age(now, at)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_detail_of_a_vm_reads_as_a_page() {
        let text = detail(&list::tests::sample(), Timestamp::from_micros(180_000_000));
        let expected = "\
Name:      web1
ID:        00000000-0000-0000-0000-000000000007
Created:   3m ago (1970-01-01T00:00:00.000000Z)
State:     running since 3m
Image:     tiny
CPUs:      1
Memory:    256M
Node:      n1
Driver:    sim
PID:       4711
NIC:       10.0.0.2 on lan, 52:54:00:00:00:07
  groups:  web
  lease:   not taken yet";
        assert_eq!(text, expected);
    }

    #[test]
    fn what_a_port_has_beside_its_address_is_told_where_there_is_some() {
        let mut sample = list::tests::sample();
        let spec = &mut sample.nics[0].port.spec;
        spec.floating_ip = Some([192, 0, 2, 50].into());
        spec.limits.in_kbit_per_second = Some(10_000);
        let text = detail(&sample, Timestamp::from_micros(180_000_000));
        assert!(text.contains("floating:  192.0.2.50\n"), "{text}");
        assert!(
            text.contains("limits:    in 10mbit, out unlimited, connections unlimited\n"),
            "{text}"
        );
    }

    #[test]
    fn a_lease_says_whether_it_still_holds() {
        let at = |seconds: i64| Some(Timestamp::from_micros(seconds * 1_000_000));
        let now = Timestamp::from_micros(100_000_000);
        assert_eq!(lease(at(90), at(400), now), "taken 10s ago, for 5m more");
        assert_eq!(lease(at(90), at(95), now), "ended, taken 10s ago");
        assert_eq!(lease(None, None, now), "not taken yet");
    }
}
