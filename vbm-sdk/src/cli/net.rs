//! `vbm net`: networks seen from a packet.

use super::{
    args::{Net, NetTrace},
    looks,
    session::Session,
};
use crate::api::{ForwardView, PortView};
use serde::Serialize;
use std::{collections::BTreeSet, net::IpAddr};
use vbm_core::{Error, ErrorKind, Group, GroupId, Network, Peer, PortRange, Protocol, Rule};
use vbm_net::{
    DesiredForward, DesiredGroup, DesiredNetwork, DesiredPort, PortPolicy, Validated,
    plan::{
        policy::Packet,
        trace::{Trace, trace},
    },
};

pub(super) async fn run(on: &Session<'_>, verb: Net) -> Result<(), Error> {
    let args = match verb {
        Net::Trace(args) => args,
        Net::Plan(args) => return looks::plan(on, &args).await,
        Net::Check => return looks::check(on).await,
        Net::Counters(args) => return looks::counters(on, &args).await,
    };
    let ports = on.client.ports().list().all().await?;
    let network = on
        .client
        .networks()
        .get(network_of(&args, &ports)?)
        .await?
        .network;
    let here: Vec<PortView> = ports
        .into_iter()
        .filter(|p| p.port.spec.network == network.meta.id)
        .collect();
    let packet = packet(&args, &here)?;
    let groups = on.client.groups().list().all().await?;
    let forwards = on.client.forwards().list().all().await?;
    let wanted = desired(&network, &here, &groups, &forwards);
    let wanted = Validated::<DesiredNetwork>::new(wanted).map_err(Error::from)?;
    let found = trace(&wanted, &packet);
    on.out.item(
        &Told::from(&found),
        network.meta.name.as_str(),
        &found.to_string(),
    )
}

/// The answer for programs.
#[derive(Debug, Serialize)]
struct Told {
    allowed: bool,
    path: Vec<ToldStep>,
}

#[derive(Debug, Serialize)]
struct ToldStep {
    at: String,
    says: String,
    passes: bool,
}

impl From<&Trace> for Told {
    fn from(found: &Trace) -> Self {
        let step = |s: &vbm_net::plan::trace::Step| ToldStep {
            at: s.at.clone(),
            says: s.says.clone(),
            passes: s.passes,
        };
        Self {
            allowed: found.allowed,
            path: found.path.iter().map(step).collect(),
        }
    }
}

/// The network that was named, or the one that both VMs are on.
fn network_of(args: &NetTrace, ports: &[PortView]) -> Result<String, Error> {
    if let Some(name) = &args.network {
        return Ok(name.clone());
    }
    let of = |end: &str| -> Vec<String> {
        let own = ports.iter().filter(|p| p.vm_name == end);
        own.map(|p| p.port.spec.network.to_string()).collect()
    };
    let (from, to) = (of(&args.from), of(&args.to));
    let common = from.iter().find(|id| to.contains(id) || to.is_empty());
    let either = common.or_else(|| to.first().filter(|_| from.is_empty()));
    either.cloned().ok_or_else(|| {
        Error::new(
            ErrorKind::InvalidInput,
            format!("no network is both of {} and of {}", args.from, args.to),
            "a packet is traced on one network, and neither names a VM, or they share none",
            "name a VM, or the network with --network; networks reach each other by forwards alone",
        )
    })
}

fn packet(args: &NetTrace, ports: &[PortView]) -> Result<Packet, Error> {
    let what: Rule = args.what.parse()?;
    let one_port = what.ports.is_none_or(|p| p.first() == p.last());
    let complete = match what.protocol {
        Protocol::Tcp | Protocol::Udp => what.ports.is_some() && one_port,
        _ => true,
    };
    if !complete || what.from.is_some() || what.peer.is_some() {
        return Err(Error::new(
            ErrorKind::InvalidInput,
            format!("'{}' is not one packet", args.what),
            "a packet has one protocol, and with tcp or udp one port",
            "write for example tcp/443, udp/53, icmp/type=8 or any",
        ));
    }
    Ok(Packet {
        from: address(&args.from, ports)?,
        to: address(&args.to, ports)?,
        protocol: what.protocol,
        to_port: what.ports.map(PortRange::first),
        icmp: what.icmp.map(|kind| (kind.kind(), kind.code().unwrap_or(0))),
    })
}

fn address(end: &str, ports: &[PortView]) -> Result<IpAddr, Error> {
    if let Ok(address) = end.parse() {
        return Ok(address);
    }
    let port = ports.iter().find(|p| p.vm_name == end);
    port.map(|p| p.port.spec.address.into()).ok_or_else(|| {
        Error::new(
            ErrorKind::NotFound,
            format!("'{end}' has no NIC on that network"),
            "it is neither an address nor a VM with a NIC there",
            "see who is there with `vbm port list`",
        )
    })
}

/// The whole network as if it were on one host: then all groups decide in one place.
fn desired(
    network: &Network,
    ports: &[PortView],
    groups: &[Group],
    forwards: &[ForwardView],
) -> DesiredNetwork {
    let port = |view: &PortView| {
        let (meta, spec) = (&view.port.meta, &view.port.spec);
        DesiredPort {
            id: meta.id,
            mac: spec.mac,
            address: spec.address,
            address6: spec.address6,
            hostname: view.vm_name.parse().unwrap_or_else(|_| meta.name.clone()),
            metadata_route: false,
            rules: Vec::new(),
            policy: PortPolicy {
                groups: spec.groups.clone(),
                pairs: spec.pairs.clone(),
                limits: spec.limits,
                floating: spec.floating_ip,
            },
        }
    };
    let group = |group: &Group| DesiredGroup {
        id: group.meta.id,
        name: group.meta.name.clone(),
        spec: group.spec.clone(),
        members: Vec::new(),
    };
    let forward = |view: &ForwardView| DesiredForward {
        id: view.forward.meta.id,
        protocol: view.forward.spec.protocol,
        listen_address: view.forward.spec.listen_address,
        listen_port: view.forward.spec.listen_port,
        count: view.forward.spec.count,
        target: view.forward.spec.target,
        target_port: view.forward.spec.target_port,
    };
    // Only those that the ports are in, or that rules of those speak of: there may be many others.
    let worn: BTreeSet<GroupId> = ports
        .iter()
        .flat_map(|p| p.port.spec.groups.iter().copied())
        .collect();
    let worn_groups = groups.iter().filter(|g| worn.contains(&g.meta.id));
    let peers = worn_groups
        .flat_map(|g| &g.spec.rules)
        .filter_map(|r| match r.peer {
            Some(Peer::Group(id)) => Some(id),
            _ => None,
        });
    let known: BTreeSet<GroupId> = peers.chain(worn.iter().copied()).collect();
    let groups = groups.iter().filter(|g| known.contains(&g.meta.id));
    let of_network = forwards
        .iter()
        .filter(|f| f.forward.spec.network == network.meta.id);
    DesiredNetwork {
        id: network.meta.id,
        name: network.meta.name.clone(),
        spec: network.spec.clone(),
        ports: ports.iter().map(port).collect(),
        forwards: of_network.map(forward).collect(),
        overlay: None,
        groups: groups.map(group).collect(),
    }
}
