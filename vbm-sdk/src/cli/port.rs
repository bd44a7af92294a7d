//! `vbm port`, which `vbm network leases` shows as well.

use super::{
    args::{Belonging, Port},
    human,
    session::Session,
    table::Table,
};
use crate::api::PortView;
use vbm_core::{Error, Timestamp};

const NONE_YET: &str =
    "no ports: each NIC of a VM has one; make a VM with `vbm launch IMAGE NAME --network NET`";

pub(super) async fn run(on: &Session<'_>, verb: Port) -> Result<(), Error> {
    let Port::List(of) = verb;
    list(on, &of).await
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
        &["ADDRESS6", "PINNED", "NAME", "ID"],
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
