//! `vbm floating-ip`.
//!
//! An address that is kept has a name; one that was given to a port without being kept is known by itself and by its VM.

use super::{
    args::{Belonging, FloatingAttach, FloatingCreate, FloatingDetach, FloatingIp},
    info::Lines,
    network::joined,
    port::one_nic,
    session::Session,
    table::Table,
};
use crate::api::{
    AttachFloatingIp, CreateFloatingIp, FLOATING_IP_NONE, FloatingIpState, FloatingIpView, PortView, SetPort,
    VmView,
};
use serde::Serialize;
use std::{
    collections::BTreeSet,
    net::{IpAddr, Ipv4Addr},
};
use vbm_core::{Error, ErrorKind, FloatingPool, Operation, Timestamp};

const NONE_YET: &str = "no floating IPs: keep one with `vbm floating-ip create ADDRESS`";
/// The word that empties the pool.
const NO_POOL: &str = "none";

pub(super) async fn run(on: &Session<'_>, verb: FloatingIp) -> Result<(), Error> {
    match verb {
        FloatingIp::Create(args) => create(on, &args).await,
        FloatingIp::List(of) => list(on, &of).await,
        FloatingIp::Show(args) => {
            let view = on.client.floating_ips().get(&args.floating_ip).await?;
            let (name, text) = (view.floating_ip.meta.name.as_str(), shown(&view, on.now()));
            on.out.item(&view, name, &text)
        }
        FloatingIp::Attach(args) => attach(on, &args).await,
        FloatingIp::Detach(args) => detach(on, &args).await,
        FloatingIp::Delete(args) => {
            let floating = on.client.floating_ips();
            let delete = |name: String| {
                let call = floating.delete(name);
                async move { call.await.map(drop) }
            };
            on.each_at_once(&args.floating_ips, delete, |name| {
                format!("{name} is kept no more")
            })
            .await
        }
        FloatingIp::Pool(args) => pool(on, &args.ranges).await,
    }
}

async fn create(on: &Session<'_>, args: &FloatingCreate) -> Result<(), Error> {
    let request = CreateFloatingIp {
        name: args.name.as_deref().map(str::parse).transpose()?,
        address: args.address.as_deref().map(address).transpose()?,
    };
    let view = on.client.floating_ips().create(request).await?;
    let name = view.floating_ip.meta.name.as_str();
    let text = format!("{name}: {} is kept", view.floating_ip.spec.address);
    on.out.done(&view, name, &text)?;
    if view.state == FloatingIpState::Free {
        on.out.hint(&format!(
            "let it lead to a VM with `vbm floating-ip attach {name} VM`"
        ));
    }
    Ok(())
}

fn address(text: &str) -> Result<Ipv4Addr, Error> {
    text.parse().map_err(|_| {
        Error::new(
            ErrorKind::InvalidInput,
            format!("'{text}' cannot be a floating IP"),
            "it is no IPv4 address",
            "name an address such as 192.0.2.50, or leave it out for one of the pool",
        )
    })
}

async fn attach(on: &Session<'_>, args: &FloatingAttach) -> Result<(), Error> {
    let named = &args.floating_ip;
    let text = format!("{named} leads to {}", args.vm);
    match on.client.floating_ips().get(named).await {
        Ok(kept) => {
            let request = AttachFloatingIp {
                vm: args.vm.clone(),
                network: args.network.clone(),
            };
            let id = kept.floating_ip.meta.id.to_string();
            let accepted = on.client.floating_ips().attach(id, request).await?;
            finish(on, &accepted.operation, &accepted.item, named, &text).await?;
        }
        Err(error) if error.is_not_found() && named.parse::<IpAddr>().is_ok() => {
            let request = SetPort {
                network: args.network.clone(),
                floating_ip: Some(named.clone()),
                ..SetPort::default()
            };
            set(on, &args.vm, &request, &text).await?;
        }
        Err(error) => return Err(error),
    }
    on.out
        .hint("the VM's groups still decide what may come in: see `vbm group --help`");
    Ok(())
}

async fn detach(on: &Session<'_>, args: &FloatingDetach) -> Result<(), Error> {
    let named = &args.from;
    if let Some(kept) = on.client.floating_ips().get_opt(named).await? {
        let id = kept.floating_ip.meta.id.to_string();
        let accepted = on.client.floating_ips().detach(id).await?;
        let text = format!("{} is free", kept.floating_ip.spec.address);
        return finish(on, &accepted.operation, &accepted.item, named, &text).await;
    }
    let vm = match named.parse::<Ipv4Addr>() {
        Ok(address) => vm_with(on, address).await?,
        Err(_) => on.client.vms().get(named).await?,
    };
    let nic = one_nic(on, &vm, args.network.as_deref()).await?;
    let Some(address) = nic.port.spec.floating_ip else {
        return Err(Error::new(
            ErrorKind::NotFound,
            format!("vm '{named}' has no floating IP on {}", nic.network_name),
            "none was attached",
            "see who has which with `vbm floating-ip list`",
        ));
    };
    let request = SetPort {
        network: Some(nic.port.spec.network.to_string()),
        floating_ip: Some(FLOATING_IP_NONE.to_owned()),
        ..SetPort::default()
    };
    let vm = vm.vm.meta.id.to_string();
    set(on, &vm, &request, &format!("{address} is free")).await
}

/// The VM whose port has an address that nobody keeps.
async fn vm_with(on: &Session<'_>, address: Ipv4Addr) -> Result<VmView, Error> {
    let ports = on.client.ports().list().all().await?;
    let has = |p: &&PortView| p.port.spec.floating_ip == Some(address);
    match ports.iter().find(has) {
        Some(port) => on.client.vms().get(port.port.spec.vm.to_string()).await,
        None => Err(Error::new(
            ErrorKind::NotFound,
            format!("{address} leads nowhere"),
            "it is not kept, and no port has it",
            "see who has which with `vbm floating-ip list`",
        )),
    }
}

async fn set(on: &Session<'_>, vm: &str, request: &SetPort, text: &str) -> Result<(), Error> {
    let accepted = on.client.vms().set_port(vm, request).await?;
    let name = accepted.item.vm.meta.name.as_str();
    finish(on, &accepted.operation, &accepted.item, name, text).await
}

async fn finish<T: Serialize>(
    on: &Session<'_>,
    operation: &Operation,
    item: &T,
    name: &str,
    text: &str,
) -> Result<(), Error> {
    if on.finish(operation).await? {
        on.out.done(item, name, text)?;
    }
    Ok(())
}

async fn pool(on: &Session<'_>, ranges: &[String]) -> Result<(), Error> {
    let floating = on.client.floating_ips();
    let pool = if ranges.is_empty() {
        floating.pool().await?
    } else {
        let ranges = match ranges {
            [one] if one == NO_POOL => Vec::new(),
            ranges => ranges.iter().map(|r| r.parse()).collect::<Result<_, _>>()?,
        };
        floating.set_pool(FloatingPool { ranges }).await?
    };
    let text = match &pool.ranges[..] {
        [] => "no pool: each floating IP is named".to_owned(),
        ranges => joined(ranges),
    };
    on.out.item(&pool, &text, &text)
}

/// A floating IP, kept or not.
#[derive(Debug, Serialize)]
struct Line {
    /// Its name; `None` for one that is not kept.
    name: Option<String>,
    address: Ipv4Addr,
    state: FloatingIpState,
    target_address: Option<Ipv4Addr>,
    vm_name: Option<String>,
    network_name: Option<String>,
}

async fn list(on: &Session<'_>, of: &Belonging) -> Result<(), Error> {
    let (mut listing, mut ports) = (on.client.floating_ips().list(), on.client.ports().list());
    if let Some(network) = &of.network {
        (listing, ports) = (listing.network(network), ports.network(network));
    }
    if let Some(vm) = &of.vm {
        (listing, ports) = (listing.vm(vm), ports.vm(vm));
    }
    let lines = lines(listing.all().await?, ports.all().await?);
    let name = |l: &Line| l.name.clone().unwrap_or_else(|| l.address.to_string());
    on.out.list(&lines, name, &table(&lines), NONE_YET)
}

fn lines(kept: Vec<FloatingIpView>, ports: Vec<PortView>) -> Vec<Line> {
    let known: BTreeSet<Ipv4Addr> = kept.iter().map(|k| k.floating_ip.spec.address).collect();
    let mut lines: Vec<Line> = kept
        .into_iter()
        .map(|k| Line {
            name: Some(k.floating_ip.meta.name.to_string()),
            address: k.floating_ip.spec.address,
            state: k.state,
            target_address: k.target_address,
            vm_name: k.vm_name,
            network_name: k.network_name,
        })
        .collect();
    let unkept = ports.into_iter().filter_map(|p| {
        let address = p.port.spec.floating_ip.filter(|a| !known.contains(a))?;
        Some(Line {
            name: None,
            address,
            state: FloatingIpState::Attached,
            target_address: Some(p.port.spec.address),
            vm_name: Some(p.vm_name),
            network_name: Some(p.network_name),
        })
    });
    lines.extend(unkept);
    lines
}

fn state_text(line: &Line) -> &'static str {
    match (&line.name, line.state) {
        (None, _) => "attached, not kept",
        (Some(_), FloatingIpState::Free) => "free",
        (Some(_), FloatingIpState::Attached) => "attached",
    }
}

fn table(lines: &[Line]) -> Table {
    let mut table = Table::new(&["NAME", "FLOATING IP", "STATE", "ADDRESS", "VM", "NETWORK"], &[]);
    let or_dash = |text: &Option<String>| text.clone().unwrap_or_else(|| "-".into());
    for line in lines {
        table.row([
            or_dash(&line.name),
            line.address.to_string(),
            state_text(line).to_owned(),
            or_dash(&line.target_address.map(|a| a.to_string())),
            or_dash(&line.vm_name),
            or_dash(&line.network_name),
        ]);
    }
    table
}

fn shown(view: &FloatingIpView, now: Timestamp) -> String {
    let meta = &view.floating_ip.meta;
    let mut lines = Lines::default();
    lines.meta(meta, now);
    lines.put("Address", view.floating_ip.spec.address.to_string());
    let leads = match (&view.vm_name, view.target_address) {
        (Some(vm), Some(address)) => format!("leads to {vm} at {address}"),
        _ => "free".to_owned(),
    };
    lines.put("State", leads);
    lines.put("Network", view.network_name.clone().unwrap_or_default());
    lines.text()
}

#[cfg(test)]
mod tests {
    use super::*;
    use uuid::Uuid;
    use vbm_core::{FloatingIpId, FloatingIpSpec, Meta};

    fn kept(name: &str, address: [u8; 4]) -> FloatingIpView {
        FloatingIpView {
            floating_ip: vbm_core::FloatingIp {
                meta: Meta::new(
                    FloatingIpId::from_uuid(Uuid::from_u128(7)),
                    name.parse().unwrap(),
                    Timestamp::from_micros(0),
                ),
                spec: FloatingIpSpec {
                    address: address.into(),
                },
            },
            state: FloatingIpState::Free,
            port: None,
            vm_name: None,
            network_name: None,
            target_address: None,
        }
    }

    #[test]
    fn floating_ips_say_where_they_lead_and_whether_they_are_kept() {
        let nic = super::super::list::tests::sample().nics.remove(0);
        let mut view = PortView {
            port: nic.port,
            network_name: nic.network_name,
            vm_name: "web1".into(),
            group_names: nic.group_names,
        };
        view.port.spec.floating_ip = Some([192, 0, 2, 50].into());
        let all = lines(vec![kept("spare", [192, 0, 2, 51])], vec![view.clone()]);
        assert_eq!(
            table(&all).render(false, Some(100)),
            "NAME   FLOATING IP  STATE               ADDRESS   VM    NETWORK\n\
             spare  192.0.2.51   free                -         -     -\n\
             -      192.0.2.50   attached, not kept  10.0.0.2  web1  lan"
        );
        assert_eq!(lines(vec![kept("web", [192, 0, 2, 50])], vec![view]).len(), 1);
    }

    #[test]
    fn a_free_one_says_so() {
        let text = shown(&kept("spare", [192, 0, 2, 51]), Timestamp::from_micros(0));
        assert!(text.contains("192.0.2.51") && text.contains("free"), "{text}");
    }
}
