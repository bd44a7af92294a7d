//! `vbm floating-ip`.

use super::{
    args::{FloatingAttach, FloatingDetach, FloatingIp},
    port::one_nic,
    session::Session,
    table::Table,
};
use crate::api::{FLOATING_IP_NONE, PortView, SetPort};
use vbm_core::{Error, ErrorKind};

const NONE_YET: &str = "no floating IPs: attach one with `vbm floating-ip attach ADDRESS VM`";

pub(super) async fn run(on: &Session<'_>, verb: FloatingIp) -> Result<(), Error> {
    match verb {
        FloatingIp::Attach(args) => attach(on, &args).await,
        FloatingIp::Detach(args) => detach(on, &args).await,
        FloatingIp::List => list(on).await,
    }
}

async fn attach(on: &Session<'_>, args: &FloatingAttach) -> Result<(), Error> {
    let request = SetPort {
        network: args.network.clone(),
        floating_ip: Some(args.address.clone()),
        ..SetPort::default()
    };
    set(
        on,
        &args.vm,
        &request,
        &format!("{} leads to {}", args.address, args.vm),
    )
    .await?;
    on.out
        .hint("the VM's groups still decide what may come in: see `vbm group --help`");
    Ok(())
}

async fn detach(on: &Session<'_>, args: &FloatingDetach) -> Result<(), Error> {
    let vm = on.client.vms().get(&args.vm).await?;
    let nic = one_nic(on, &vm, args.network.as_deref()).await?;
    let Some(address) = nic.port.spec.floating_ip else {
        return Err(Error::new(
            ErrorKind::NotFound,
            format!("vm '{}' has no floating IP on {}", args.vm, nic.network_name),
            "none was attached",
            "see who has which with `vbm floating-ip list`",
        ));
    };
    let request = SetPort {
        network: Some(nic.port.spec.network.to_string()),
        floating_ip: Some(FLOATING_IP_NONE.to_owned()),
        ..SetPort::default()
    };
    set(on, &args.vm, &request, &format!("{address} is free")).await
}

async fn set(on: &Session<'_>, vm: &str, request: &SetPort, text: &str) -> Result<(), Error> {
    let accepted = on.client.vms().set_port(vm, request).await?;
    if on.finish(&accepted.operation).await? {
        on.out
            .done(&accepted.item, accepted.item.vm.meta.name.as_str(), text)?;
    }
    Ok(())
}

async fn list(on: &Session<'_>) -> Result<(), Error> {
    let mut ports = on.client.ports().list().all().await?;
    ports.retain(|p| p.port.spec.floating_ip.is_some());
    on.out.list(&ports, floating, &table(&ports), NONE_YET)
}

fn floating(view: &PortView) -> String {
    let address = view.port.spec.floating_ip;
    address.map(|a| a.to_string()).unwrap_or_default()
}

fn table(ports: &[PortView]) -> Table {
    let mut table = Table::new(&["FLOATING IP", "ADDRESS", "VM", "NETWORK"], &["PORT"]);
    for view in ports {
        table.row([
            floating(view),
            view.port.spec.address.to_string(),
            view.vm_name.clone(),
            view.network_name.clone(),
            view.port.meta.id.to_string(),
        ]);
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn floating_ips_say_where_they_lead() {
        let nic = super::super::list::tests::sample().nics.remove(0);
        let mut view = PortView {
            port: nic.port,
            network_name: nic.network_name,
            vm_name: "web1".into(),
            group_names: nic.group_names,
        };
        view.port.spec.floating_ip = Some([192, 0, 2, 50].into());
        assert_eq!(
            table(&[view]).render(false, Some(80)),
            "FLOATING IP  ADDRESS   VM    NETWORK\n\
             192.0.2.50   10.0.0.2  web1  lan"
        );
    }
}
