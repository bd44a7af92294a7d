//! `vbm port`, which `vbm network leases` shows as well.

mod allowed;

use super::{
    args::{Belonging, Port, PortLimit},
    human,
    session::Session,
    table::Table,
};
use crate::api::{NicView, PortView, SetPort, VmView};
use vbm_core::{
    Error, ErrorKind, PortLimits, Timestamp,
    bandwidth::{parse_rate, rate_text},
};

const NONE_YET: &str =
    "no ports: each NIC of a VM has one; make a VM with `vbm launch IMAGE NAME --network NET`";

pub(super) async fn run(on: &Session<'_>, verb: Port) -> Result<(), Error> {
    match verb {
        Port::List(of) => list(on, &of).await,
        Port::Limit(args) => limit(on, &args).await,
        Port::Allow(args) => allowed::allow(on, &args).await,
        Port::Deny(args) => allowed::deny(on, &args).await,
    }
}

/// Reads what is limited, changes what was named, writes it back.
async fn limit(on: &Session<'_>, args: &PortLimit) -> Result<(), Error> {
    let vm = on.client.vms().get(&args.vm).await?;
    let nic = one_nic(on, &vm, args.network.as_deref()).await?;
    let limits = limits(nic.port.spec.limits, args)?;
    let request = SetPort {
        network: Some(nic.port.spec.network.to_string()),
        limits: Some(limits),
        ..SetPort::default()
    };
    let accepted = on
        .client
        .vms()
        .set_port(vm.vm.meta.id.to_string(), &request)
        .await?;
    if on.finish(&accepted.operation).await? {
        let name = accepted.item.vm.meta.name.to_string();
        let text = format!("{name} on {}: {}", nic.network_name, limits_text(limits));
        on.out.done(&accepted.item, &name, &text)?;
    }
    Ok(())
}

/// The NIC of a VM that is meant.
pub(super) async fn one_nic<'v>(
    on: &Session<'_>,
    vm: &'v VmView,
    network: Option<&str>,
) -> Result<&'v NicView, Error> {
    let of = match network {
        None => None,
        Some(name) => Some(on.client.networks().get(name).await?.network.meta.id),
    };
    let fits = |nic: &&NicView| of.is_none_or(|id| nic.port.spec.network == id);
    let mut found = vm.nics.iter().filter(fits);
    match (found.next(), found.next()) {
        (Some(nic), None) => Ok(nic),
        (None, _) => Err(Error::new(
            ErrorKind::NotFound,
            format!("vm '{}' has no NIC there", vm.vm.meta.name),
            "it is on no such network",
            format!("see its NICs with `vbm info {}`", vm.vm.meta.name),
        )),
        (Some(_), Some(_)) => Err(Error::new(
            ErrorKind::InvalidInput,
            format!("several NICs of vm '{}' fit", vm.vm.meta.name),
            "each has its own",
            "name the network with --network",
        )),
    }
}

/// What was said of one limit: `none`, or a value.
fn said<T>(
    text: Option<&str>,
    has: Option<T>,
    read: impl FnOnce(&str) -> Result<T, Error>,
) -> Result<Option<T>, Error> {
    match text {
        None => Ok(has),
        Some("none") => Ok(None),
        Some(text) => read(text).map(Some),
    }
}

fn limits(has: PortLimits, args: &PortLimit) -> Result<PortLimits, Error> {
    if args.into.is_none() && args.out.is_none() && args.connections.is_none() {
        return Err(Error::new(
            ErrorKind::InvalidInput,
            "nothing is to be limited",
            "none of --in, --out and --connections is given",
            "for example `vbm port limit web1 --in 100mbit`; see what is limited with `vbm port list -o wide`",
        ));
    }
    let limits = PortLimits {
        in_kbit_per_second: said(args.into.as_deref(), has.in_kbit_per_second, parse_rate)?,
        out_kbit_per_second: said(args.out.as_deref(), has.out_kbit_per_second, parse_rate)?,
        connections: said(args.connections.as_deref(), has.connections, connections)?,
    };
    limits.check().map(|()| limits)
}

fn connections(text: &str) -> Result<u32, Error> {
    text.parse().map_err(|_| {
        Error::new(
            ErrorKind::InvalidInput,
            format!("'{text}' is no number of connections"),
            "it is no whole number",
            "write for example 500, or none for no limit",
        )
    })
}

pub(super) fn limits_text(limits: PortLimits) -> String {
    format!(
        "in {}, out {}, connections {}",
        rate(limits.in_kbit_per_second),
        rate(limits.out_kbit_per_second),
        count(limits.connections)
    )
}

fn rate(kbit: Option<u32>) -> String {
    kbit.map_or_else(|| "unlimited".into(), rate_text)
}

fn count(most: Option<u32>) -> String {
    most.map_or_else(|| "unlimited".into(), |n| n.to_string())
}

pub(super) async fn list(on: &Session<'_>, of: &Belonging) -> Result<(), Error> {
    let mut listing = on.client.ports().list();
    if let Some(network) = &of.network {
        listing = listing.network(network);
    }
    if let Some(vm) = &of.vm {
        listing = listing.vm(vm);
    }
    let ports = listing.all().await?;
    on.out.list(
        &ports,
        |p| p.port.meta.name.to_string(),
        &table(&ports, on.now()),
        NONE_YET,
    )
}

fn table(ports: &[PortView], now: Timestamp) -> Table {
    let mut table = Table::new(
        &["ADDRESS", "MAC", "NETWORK", "VM", "GROUPS", "LEASED", "UNTIL"],
        &[
            "ADDRESS6",
            "PINNED",
            "FLOATING IP",
            "ALLOWED",
            "IN",
            "OUT",
            "CONNECTIONS",
            "NAME",
            "ID",
        ],
    );
    for view in ports {
        let (spec, status) = (&view.port.spec, &view.port.status);
        let groups = view
            .group_names
            .iter()
            .map(ToString::to_string)
            .collect::<Vec<_>>();
        table.row([
            spec.address.to_string(),
            spec.mac.to_string(),
            view.network_name.clone(),
            view.vm_name.clone(),
            groups.join(","),
            status
                .leased_at
                .map(|at| format!("{} ago", human::age(now, at)))
                .unwrap_or_default(),
            status
                .leased_until
                .map(|until| until_text(until, now))
                .unwrap_or_default(),
            spec.address6.map(|a| a.to_string()).unwrap_or_default(),
            if spec.pinned { "yes" } else { "no" }.to_owned(),
            spec.floating_ip.map(|a| a.to_string()).unwrap_or_default(),
            allowed::text(&spec.pairs),
            rate(spec.limits.in_kbit_per_second),
            rate(spec.limits.out_kbit_per_second),
            count(spec.limits.connections),
            view.port.meta.name.to_string(),
            view.port.meta.id.to_string(),
        ]);
    }
    table
}

fn until_text(until: Timestamp, now: Timestamp) -> String {
    if until > now {
        format!("in {}", human::span(until.since(now)))
    } else {
        "ended".into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(into: Option<&str>, out: Option<&str>, connections: Option<&str>) -> PortLimit {
        PortLimit {
            vm: "web1".into(),
            network: None,
            into: into.map(str::to_owned),
            out: out.map(str::to_owned),
            connections: connections.map(str::to_owned),
        }
    }

    #[test]
    fn what_is_not_named_stays_limited_and_none_takes_a_limit_away() {
        let has = limits(PortLimits::default(), &asked(Some("10mbit"), Some("1gbit"), None)).unwrap();
        assert_eq!(limits_text(has), "in 10mbit, out 1gbit, connections unlimited");
        let now = limits(has, &asked(None, Some("none"), Some("500"))).unwrap();
        assert_eq!(limits_text(now), "in 10mbit, out unlimited, connections 500");
    }

    #[test]
    fn a_limit_that_is_none_is_named_with_what_to_write() {
        for (args, says) in [
            (asked(None, None, None), "nothing is to be limited"),
            (asked(Some("fast"), None, None), "'fast' is no rate"),
            (asked(None, Some("1kbit"), None), "64kbit to 32gbit"),
            (asked(None, None, Some("-1")), "'-1' is no number of connections"),
            (asked(None, None, Some("0")), "limited to 0 connections"),
        ] {
            let error = limits(PortLimits::default(), &args).unwrap_err().to_string();
            assert!(error.contains(says), "{error}");
        }
    }

    #[test]
    fn ports_say_who_has_which_address_and_since_when() {
        let nic = super::super::list::tests::sample().nics.remove(0);
        let mut view = PortView {
            port: nic.port,
            network_name: nic.network_name,
            vm_name: "web1".into(),
            group_names: nic.group_names,
        };
        view.port.status.leased_at = Some(Timestamp::from_micros(0));
        view.port.status.leased_until = Some(Timestamp::from_micros(3_600_000_000));
        assert_eq!(
            table(&[view], Timestamp::from_micros(10_000_000)).render(false, Some(80)),
            "ADDRESS   MAC                NETWORK  VM    GROUPS  LEASED   UNTIL\n\
             10.0.0.2  52:54:00:00:00:07  lan      web1  web     10s ago  in 59m"
        );
    }
}
