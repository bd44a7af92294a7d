//! Links, addresses and routes of one namespace, over netlink.

use super::netns::NetNs;
use crate::{NetError, limits::counters::Traffic};
use futures::TryStreamExt;
use ipnet::{IpNet, Ipv4Net};
use rtnetlink::{
    Error as NlError, Handle, LinkBridge, LinkBridgePort, LinkIfb, LinkMacVlan, LinkMessageBuilder,
    LinkUnspec, LinkVeth, LinkVxlan, RouteMessageBuilder,
    packet_route::{
        address::{AddressAttribute, AddressMessage},
        link::{
            BridgePortState, InfoBridge, InfoBridgePort, InfoData, InfoKind, InfoMacVlan, InfoPortData,
            InfoVeth, InfoVxlan, LinkAttribute, LinkFlags, LinkInfo, LinkMessage, MacVlanMode,
        },
        route::{RouteAddress, RouteAttribute, RouteMessage, RouteProtocol, RouteScope, RouteType},
    },
};
use std::{
    io,
    net::{IpAddr, Ipv4Addr},
    os::fd::AsRawFd,
};
use tokio::task::JoinHandle;
use vbm_core::Mac;

/// What is seen of a link.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Link {
    pub(crate) index: u32,
    pub(crate) name: String,
    pub(crate) mac: Option<Mac>,
    pub(crate) mtu: u32,
    /// Whether it was told to be up.
    pub(crate) up: bool,
    /// Whether it is: the kernel follows in its own time.
    pub(crate) running: bool,
    /// Whether it is a port of a bridge that forwards for it.
    pub(crate) forwarding: bool,
    pub(crate) alias: Option<String>,
    /// The bridge it is a port of.
    pub(crate) bridge: Option<u32>,
    /// The index of a veth's other end, in that end's namespace.
    pub(crate) peer: Option<u32>,
    pub(crate) loopback: bool,
    pub(crate) is_bridge: bool,
    /// Whether it is a macvlan that takes all that its lower link hears, whose index is `peer`.
    pub(crate) passthru: bool,
    /// What it is, if it is a vxlan.
    pub(crate) vxlan: Option<Vxlan>,
    /// What it is as a port of a bridge.
    pub(crate) port: Option<PortFlags>,
    /// The kind of queue before its way out.
    pub(crate) queue: Option<String>,
    pub(crate) passed: Passed,
}

/// What is seen of a route.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct SeenRoute {
    /// Where to; the default route is a /0.
    pub(crate) to: IpNet,
    pub(crate) via: Option<IpAddr>,
    /// The index of the link it leads by.
    pub(crate) by: Option<u32>,
    pub(crate) source: Option<IpAddr>,
    /// Who made it, as `rtm_protocol` says.
    pub(crate) protocol: u8,
    pub(crate) kind: RouteType,
}

/// What a link received and sent since it was made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Passed {
    pub(crate) received: Traffic,
    pub(crate) sent: Traffic,
}

/// What a vxlan was made with.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Vxlan {
    pub(crate) vni: u32,
    /// The source of what it sends.
    pub(crate) local: Option<Ipv4Addr>,
    /// The index of the link it sends by, in the namespace it was made in.
    pub(crate) device: u32,
    /// Of UDP.
    pub(crate) port: u16,
    pub(crate) learning: bool,
}

/// What a bridge does for a port.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct PortFlags {
    pub(crate) learning: bool,
    pub(crate) floods_unicast: bool,
    pub(crate) floods_multicast: bool,
    pub(crate) floods_broadcast: bool,
    /// ARP for what is behind it is answered by the bridge.
    pub(crate) suppresses_neighbours: bool,
    /// It does not reach other ports that are so.
    pub(crate) isolated: bool,
    /// What comes by it may go back by it.
    pub(crate) hairpin: bool,
}

/// A netlink connection into one namespace. Its task ends when this is dropped.
pub(crate) struct Links {
    handle: Handle,
    task: JoinHandle<()>,
}

impl Drop for Links {
    fn drop(&mut self) {
        self.task.abort();
    }
}

fn io_error(error: &NlError) -> io::Error {
    match error {
        NlError::NetlinkError(message) => message.to_io(),
        other => io::Error::other(other.to_string()),
    }
}

pub(crate) fn failed(doing: impl Into<String>) -> impl FnOnce(NlError) -> NetError {
    let doing = doing.into();
    move |error| NetError::kernel(doing, io_error(&error))
}

pub(crate) fn is_absent(error: &NlError) -> bool {
    use nix::libc::{ENODEV, ENOENT};
    matches!(io_error(error).raw_os_error(), Some(ENODEV | ENOENT))
}

impl Links {
    /// Opens a connection.
    pub(crate) async fn open(ns: &NetNs) -> Result<Self, NetError> {
        let made = ns.run(rtnetlink::new_connection).await?;
        let (connection, handle, _) = made.map_err(|e| NetError::kernel("opening netlink", e))?;
        Ok(Self {
            handle,
            task: tokio::spawn(connection),
        })
    }

    pub(crate) fn handle(&self) -> &Handle {
        &self.handle
    }

    pub(crate) async fn get(&self, name: &str) -> Result<Option<Link>, NetError> {
        let mut found = std::pin::pin!(self.handle.link().get().match_name(name).execute());
        match found.try_next().await {
            Ok(message) => Ok(message.map(read)),
            Err(error) if is_absent(&error) => Ok(None),
            Err(error) => Err(failed(format!("looking for {name}"))(error)),
        }
    }

    pub(crate) async fn list(&self) -> Result<Vec<Link>, NetError> {
        let all: Vec<LinkMessage> = self
            .handle
            .link()
            .get()
            .execute()
            .try_collect()
            .await
            .map_err(failed("listing links"))?;
        Ok(all.into_iter().map(read).collect())
    }

    /// Makes the bridge: no STP delay, no multicast snooping, no IGMP of its own.
    pub(crate) async fn add_bridge(&self, name: &str, mac: Mac) -> Result<(), NetError> {
        let bridge = LinkMessageBuilder::<LinkBridge>::new(name)
            .append_info_data(InfoBridge::ForwardDelay(0))
            .append_info_data(InfoBridge::MulticastSnooping(false))
            .address(mac.octets().to_vec())
            .down();
        self.handle
            .link()
            .add(bridge.build())
            .execute()
            .await
            .map_err(failed("making the bridge"))
    }

    /// Makes a veth pair here, its peer directly in the other namespace: moving one later costs far more.
    pub(crate) async fn add_veth(&self, name: &str, peer: &str, peer_ns: &NetNs) -> Result<(), NetError> {
        let file = peer_ns.open()?;
        let other = LinkUnspec::new_with_name(peer)
            .setns_by_fd(file.as_raw_fd())
            .build();
        let pair = LinkVeth::new(name, peer).set_info_data(InfoData::Veth(InfoVeth::Peer(other)));
        self.handle
            .link()
            .add(pair.build())
            .execute()
            .await
            .map_err(failed(format!("making {name}")))
    }

    /// Makes a vxlan directly in the other namespace. Its socket is here.
    pub(crate) async fn add_vxlan(&self, name: &str, wanted: &Vxlan, ns: &NetNs) -> Result<(), NetError> {
        let file = ns.open()?;
        let mut link = LinkVxlan::new(name, wanted.vni)
            .dev(wanted.device)
            .port(wanted.port)
            .learning(wanted.learning);
        if let Some(local) = wanted.local {
            link = link.local(local);
        }
        let link = link.setns_by_fd(file.as_raw_fd()).down();
        self.handle
            .link()
            .add(link.build())
            .execute()
            .await
            .map_err(|error| match io_error(&error).raw_os_error() {
                Some(nix::libc::EEXIST) => failed(format!(
                    "making {name} (the identifier {} is in use on this host, or its last user is just going)",
                    wanted.vni
                ))(error),
                _ => failed(format!("making {name}"))(error),
            })
    }

    /// Makes a macvlan in passthru mode over a link of this namespace, directly in the other namespace, down.
    pub(crate) async fn add_passthru(&self, name: &str, lower: &Link, ns: &NetNs) -> Result<(), NetError> {
        let file = ns.open()?;
        let link = LinkMacVlan::new(name, lower.index, MacVlanMode::Passthrough)
            .setns_by_fd(file.as_raw_fd())
            .down();
        let add = self.handle.link().add(link.build()).execute().await;
        add.map_err(|error| match io_error(&error).raw_os_error() {
            Some(nix::libc::EINVAL | nix::libc::EBUSY) => NetError::Conflict {
                what: format!("no network can take {} on this host", lower.name),
                why: "another network, a macvlan or a packet filter of somebody has all that comes by it"
                    .into(),
                fix: format!(
                    "make a bridge of the host with {} in it, and name that bridge in each network",
                    lower.name
                ),
            },
            _ => failed(format!("making {name} over {}", lower.name))(error),
        })
    }

    /// Makes an intermediate device, down.
    pub(crate) async fn add_ifb(&self, name: &str) -> Result<(), NetError> {
        let link = LinkIfb::new(name).down().build();
        let add = self.handle.link().add(link).execute().await;
        add.map_err(|error| match io_error(&error).raw_os_error() {
            Some(nix::libc::EOPNOTSUPP) => {
                failed(format!("making {name} (does the kernel have ifb?)"))(error)
            }
            _ => failed(format!("making {name}"))(error),
        })
    }

    /// Removes a link; one that is not there is fine. Returns whether it was.
    pub(crate) async fn delete(&self, name: &str) -> Result<bool, NetError> {
        let Some(link) = self.get(name).await? else {
            return Ok(false);
        };
        match self.handle.link().del(link.index).execute().await {
            Ok(()) => Ok(true),
            Err(error) if is_absent(&error) => Ok(false),
            Err(error) => Err(failed(format!("removing {name}"))(error)),
        }
    }

    /// A link of our name that bears another's tag is not ours to replace.
    pub(crate) async fn refuse_foreign(&self, name: &str, tag: &str) -> Result<(), NetError> {
        match self.get(name).await?.and_then(|l| l.alias) {
            Some(alias) if alias != tag => Err(NetError::Conflict {
                what: format!("link {name} cannot be made"),
                why: format!("a link of that name exists and is tagged '{alias}'"),
                fix: "remove it if nobody uses it".into(),
            }),
            _ => Ok(()),
        }
    }

    async fn set(&self, doing: String, message: LinkMessage) -> Result<(), NetError> {
        self.handle
            .link()
            .set(message)
            .execute()
            .await
            .map_err(failed(doing))
    }

    pub(crate) async fn set_alias(&self, link: &Link, alias: &str) -> Result<(), NetError> {
        let message = LinkUnspec::new_with_index(link.index).alias(alias).build();
        self.set(format!("tagging {}", link.name), message).await
    }
    pub(crate) async fn set_up(&self, link: &Link) -> Result<(), NetError> {
        let message = LinkUnspec::new_with_index(link.index).up().build();
        self.set(format!("bringing {} up", link.name), message).await
    }
    pub(crate) async fn set_mtu(&self, link: &Link, mtu: u32) -> Result<(), NetError> {
        let message = LinkUnspec::new_with_index(link.index).mtu(mtu).build();
        self.set(format!("setting the MTU of {}", link.name), message)
            .await
    }
    pub(crate) async fn set_mac(&self, link: &Link, mac: Mac) -> Result<(), NetError> {
        let message = LinkUnspec::new_with_index(link.index)
            .address(mac.octets().to_vec())
            .build();
        self.set(format!("setting the MAC of {}", link.name), message)
            .await
    }
    pub(crate) async fn set_bridge(&self, link: &Link, bridge: u32) -> Result<(), NetError> {
        let message = LinkUnspec::new_with_index(link.index).controller(bridge).build();
        self.set(format!("joining {} to the bridge", link.name), message)
            .await
    }

    pub(crate) async fn set_port(&self, link: &Link, flags: PortFlags) -> Result<(), NetError> {
        let message = LinkBridgePort::new(link.index)
            .learning(flags.learning)
            .flood(flags.floods_unicast)
            .mcast_flood(flags.floods_multicast)
            .bcast_flood(flags.floods_broadcast)
            .isolated(flags.isolated)
            .hairpin(flags.hairpin)
            .append_info_data(InfoBridgePort::NeighSupress(flags.suppresses_neighbours))
            .build();
        let set = self.handle.link().set_port(message).execute().await;
        set.map_err(failed(format!("setting what the bridge does for {}", link.name)))
    }

    /// The IPv4 addresses of this namespace with their links' indices.
    pub(crate) async fn addresses(&self) -> Result<Vec<(u32, Ipv4Net, AddressMessage)>, NetError> {
        let all: Vec<AddressMessage> = self
            .handle
            .address()
            .get()
            .execute()
            .try_collect()
            .await
            .map_err(failed("listing addresses"))?;
        Ok(all
            .into_iter()
            .filter_map(|m| Some((m.header.index, address(&m)?, m)))
            .collect())
    }

    /// Makes the link have just these addresses. Returns whether anything had to change.
    pub(crate) async fn only_addresses(&self, link: &Link, wanted: &[Ipv4Net]) -> Result<bool, NetError> {
        let mut changed = false;
        let mut there = Vec::new();
        for (index, net, message) in self.addresses().await? {
            if index != link.index {
                continue;
            }
            if wanted.contains(&net) {
                there.push(net);
            } else {
                changed = true;
                let gone = self.handle.address().del(message).execute().await;
                gone.map_err(failed(format!("removing {net} from {}", link.name)))?;
            }
        }
        for missing in wanted.iter().filter(|net| !there.contains(net)) {
            changed = true;
            let address = self.handle.address();
            let add = address.add(link.index, IpAddr::V4(missing.addr()), missing.prefix_len());
            add.execute()
                .await
                .map_err(failed(format!("giving {missing} to {}", link.name)))?;
        }
        Ok(changed)
    }

    /// Makes the route to the link's own subnet stand, which a flush of routes removes while the address stays. The link must be
    /// up. Returns whether it was missing.
    pub(crate) async fn connected_route(&self, link: &Link, address: Ipv4Net) -> Result<bool, NetError> {
        if self.has_route(address).await? {
            return Ok(false);
        }
        let route = RouteMessageBuilder::<Ipv4Addr>::new()
            .destination_prefix(address.network(), address.prefix_len())
            .output_interface(link.index)
            .pref_source(address.addr())
            .protocol(RouteProtocol::Kernel)
            .scope(RouteScope::Link)
            .build();
        let add = self.handle.route().add(route).replace().execute().await;
        add.map_err(failed(format!("setting the route to {}", address.trunc())))?;
        Ok(true)
    }

    /// Destinations of IPv4 routes, the default route among them as /0, with its gateway.
    pub(crate) async fn routes(&self) -> Result<Vec<(Ipv4Net, Option<Ipv4Addr>)>, NetError> {
        let read = |route: SeenRoute| match (route.to, route.via) {
            (IpNet::V4(to), Some(IpAddr::V4(via))) => Some((to, Some(via))),
            (IpNet::V4(to), _) => Some((to, None)),
            (IpNet::V6(_), _) => None,
        };
        let all = self.all_routes().await?;
        Ok(all.into_iter().filter_map(read).collect())
    }

    /// IPv4 routes of all tables.
    pub(crate) async fn all_routes(&self) -> Result<Vec<SeenRoute>, NetError> {
        let ask = RouteMessageBuilder::<Ipv4Addr>::new().build();
        let all: Vec<RouteMessage> = self
            .handle
            .route()
            .get(ask)
            .execute()
            .try_collect()
            .await
            .map_err(failed("listing routes"))?;
        let read = |m: &RouteMessage| read_route(m, Ipv4Addr::UNSPECIFIED.into());
        Ok(all.iter().filter_map(read).collect())
    }

    /// Makes the default route go here, with this address in what the namespace itself says of it. Returns whether it did not before.
    pub(crate) async fn default_route(
        &self,
        gateway: Ipv4Addr,
        source: Option<Ipv4Addr>,
    ) -> Result<bool, NetError> {
        if self.has_way_out(gateway, source).await? {
            return Ok(false);
        }
        let mut route = RouteMessageBuilder::<Ipv4Addr>::new().gateway(gateway);
        if let Some(source) = source {
            route = route.pref_source(source);
        }
        let route = route.build();
        let add = self.handle.route().add(route).replace().execute().await;
        add.map_err(failed("setting the default route"))?;
        Ok(true)
    }
}

/// `nowhere`: the unspecified address of its family, which a default route does not write.
pub(crate) fn read_route(message: &RouteMessage, nowhere: IpAddr) -> Option<SeenRoute> {
    let plain = |address: &RouteAddress| match address {
        RouteAddress::Inet(a) => Some(IpAddr::V4(*a)),
        RouteAddress::Inet6(a) => Some(IpAddr::V6(*a)),
        _ => None,
    };
    let (mut to, mut via, mut by, mut source) = (nowhere, None, None, None);
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Destination(a) => to = plain(a)?,
            RouteAttribute::Gateway(a) => via = plain(a),
            RouteAttribute::Oif(index) => by = Some(*index),
            RouteAttribute::PrefSource(a) => source = plain(a),
            _ => {}
        }
    }
    Some(SeenRoute {
        to: IpNet::new(to, message.header.destination_prefix_length).ok()?,
        via,
        by,
        source,
        protocol: message.header.protocol.into(),
        kind: message.header.kind,
    })
}

fn address(message: &AddressMessage) -> Option<Ipv4Net> {
    let v4 = |a: &IpAddr| match a {
        IpAddr::V4(a) => Some(*a),
        IpAddr::V6(_) => None,
    };
    // `Local` is the interface's own; on a point-to-point link `Address` is the other end's.
    let local = message.attributes.iter().find_map(|a| match a {
        AddressAttribute::Local(a) => v4(a),
        _ => None,
    });
    let plain = message.attributes.iter().find_map(|a| match a {
        AddressAttribute::Address(a) => v4(a),
        _ => None,
    });
    Ipv4Net::new(local.or(plain)?, message.header.prefix_len).ok()
}

fn read(message: LinkMessage) -> Link {
    let mut link = Link {
        index: message.header.index,
        name: String::new(),
        mac: None,
        mtu: 0,
        up: message.header.flags.contains(LinkFlags::Up),
        running: message.header.flags.contains(LinkFlags::Running),
        forwarding: false,
        alias: None,
        bridge: None,
        peer: None,
        loopback: message.header.flags.contains(LinkFlags::Loopback),
        is_bridge: false,
        passthru: false,
        vxlan: None,
        port: None,
        queue: None,
        passed: Passed::default(),
    };
    for attribute in message.attributes {
        match attribute {
            LinkAttribute::IfName(name) => link.name = name,
            LinkAttribute::Address(mac) => link.mac = <[u8; 6]>::try_from(mac).ok().map(Mac::new),
            LinkAttribute::Mtu(mtu) => link.mtu = mtu,
            LinkAttribute::IfAlias(alias) => link.alias = Some(alias),
            LinkAttribute::Controller(index) => link.bridge = Some(index),
            LinkAttribute::Link(index) => link.peer = Some(index),
            LinkAttribute::Qdisc(kind) => link.queue = Some(kind),
            LinkAttribute::Stats64(all) => {
                let traffic = |packets, bytes| Traffic { packets, bytes };
                link.passed.received = traffic(all.rx_packets, all.rx_bytes);
                link.passed.sent = traffic(all.tx_packets, all.tx_bytes);
            }
            LinkAttribute::LinkInfo(infos) => {
                for info in &infos {
                    read_info(&mut link, info);
                }
            }
            _ => {}
        }
    }
    link
}

fn read_info(link: &mut Link, info: &LinkInfo) {
    match info {
        LinkInfo::Kind(InfoKind::Bridge) => link.is_bridge = true,
        LinkInfo::Data(InfoData::MacVlan(infos)) => {
            link.passthru = infos.contains(&InfoMacVlan::Mode(MacVlanMode::Passthrough));
        }
        LinkInfo::PortData(InfoPortData::BridgePort(infos)) => {
            let mut flags = PortFlags::default();
            for info in infos {
                match info {
                    InfoBridgePort::State(state) => link.forwarding = *state == BridgePortState::Forwarding,
                    InfoBridgePort::Learning(is) => flags.learning = *is,
                    InfoBridgePort::UnicastFlood(is) => flags.floods_unicast = *is,
                    InfoBridgePort::MulticastFlood(is) => flags.floods_multicast = *is,
                    InfoBridgePort::BroadcastFlood(is) => flags.floods_broadcast = *is,
                    InfoBridgePort::NeighSupress(is) => flags.suppresses_neighbours = *is,
                    InfoBridgePort::Isolated(is) => flags.isolated = *is,
                    InfoBridgePort::HairpinMode(is) => flags.hairpin = *is,
                    _ => {}
                }
            }
            link.port = Some(flags);
        }
        LinkInfo::Data(InfoData::Vxlan(infos)) => {
            let mut vxlan = Vxlan::default();
            for info in infos {
                match info {
                    InfoVxlan::Id(vni) => vxlan.vni = *vni,
                    InfoVxlan::Local(local) => vxlan.local = Some(*local),
                    InfoVxlan::Link(device) => vxlan.device = *device,
                    InfoVxlan::Port(port) => vxlan.port = *port,
                    InfoVxlan::Learning(is) => vxlan.learning = *is,
                    _ => {}
                }
            }
            link.vxlan = Some(vxlan);
        }
        _ => {}
    }
}
