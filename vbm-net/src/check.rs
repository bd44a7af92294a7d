//! Which networks of a host can reach what: the paths that are tried, and whether they may be there. Pure; the trying is the backend's.
//!
//! ```text
//!   from the stack of each network's namespace  --> transit of each other network       never
//!                                               --> doors of its forwards behind that   never
//!                                               --> its forwards on the host            where the group lets them in
//!                                               --> its floating IPs                    where the group lets them in
//!                                               --> VMs of each other routed network    never
//!                                               --> the host's own addresses            never
//! ```
//!
//! A probe begins where what a VM sends has passed the guard and its groups, so what it cannot reach no VM of the network can. A path that may
//! be there and is not reached is no fault: nobody need answer behind it. One that may not be there and is reached is a hole.
//! The addresses inside another network are not tried by themselves: no route leads there, and they may be the network's own.

use crate::{
    DesiredForward, DesiredNetwork, NetError, Validated,
    plan::{
        Transit, inside,
        policy::{Packet, Policies},
    },
};
use std::{fmt, net::Ipv4Addr};
use vbm_core::{Direction, Error, ErrorKind, NetworkId, NetworkMode, PortId, Protocol};

/// The most networks between which paths are tried at once.
pub const CHECK_MAX_NETWORKS: usize = 64;
/// The most forwards, and the most floating IPs, of one network that are tried.
pub const CHECK_MAX_EACH: usize = 8;
/// What a host often listens on: SSH.
const HOST_PORT: u16 = 22;

/// How a path is tried.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum Way {
    /// By an echo request.
    Ping,
    /// By a connection to this port. A refusal is an answer too.
    Tcp(u16),
}

impl fmt::Display for Way {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ping => f.write_str("ping"),
            Self::Tcp(port) => write!(f, "tcp/{port}"),
        }
    }
}

/// A path, and whether it was there.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct PathSeen {
    /// The network that it begins in.
    pub from: NetworkId,
    /// The network that it leads to; `None`: the host itself.
    pub to: Option<NetworkId>,
    /// Where to.
    pub address: Ipv4Addr,
    /// How it was tried.
    pub way: Way,
    /// Whether it may be there.
    pub allowed: bool,
    /// Whether somebody answered.
    pub reached: bool,
}

impl PathSeen {
    /// Whether somebody answered who may not be reached.
    pub const fn is_hole(&self) -> bool {
        self.reached && !self.allowed
    }
}

/// A network whose paths are tried.
#[derive(Clone, Debug)]
pub struct Known {
    /// What is wanted of it.
    pub net: Validated<DesiredNetwork>,
    /// The pair between host and namespace.
    pub transit: Option<Transit>,
}

/// The paths to try, none reached yet. `host` are the host's own addresses, but for loopback and transits.
///
/// # Errors
/// [`NetError::Invalid`] when there are more networks than [`CHECK_MAX_NETWORKS`].
pub fn paths(all: &[Known], host: &[Ipv4Addr]) -> Result<Vec<PathSeen>, NetError> {
    if all.len() > CHECK_MAX_NETWORKS {
        return Err(NetError::Invalid(Error::new(
            ErrorKind::InvalidInput,
            "the paths between the networks of this host cannot be tried",
            format!(
                "there are {} networks, and between {CHECK_MAX_NETWORKS} at most all paths are tried",
                all.len()
            ),
            "ask `vbm net trace` for a single packet",
        )));
    }
    let mut paths = Vec::new();
    for from in all {
        for to in all.iter().filter(|to| to.net.id != from.net.id) {
            between(from, to, host, &mut paths);
        }
        for address in host {
            path(from, None, *address, Way::Ping, false, &mut paths);
            let forwarded = |n: &Known| {
                let ours = |f: &DesiredForward| f.in_step(f.listen_port, HOST_PORT, 1).is_some();
                n.net.forwards.iter().any(ours)
            };
            if !all.iter().any(forwarded) {
                path(from, None, *address, Way::Tcp(HOST_PORT), false, &mut paths);
            }
        }
    }
    Ok(paths)
}

fn path(
    from: &Known,
    to: Option<NetworkId>,
    address: Ipv4Addr,
    way: Way,
    allowed: bool,
    paths: &mut Vec<PathSeen>,
) {
    paths.push(PathSeen {
        from: from.net.id,
        to,
        address,
        way,
        allowed,
        reached: false,
    });
}

fn between(from: &Known, to: &Known, host: &[Ipv4Addr], paths: &mut Vec<PathSeen>) {
    let Some(transit) = to.transit else { return };
    let id = Some(to.net.id);
    path(from, id, transit.inner(), Way::Ping, false, paths);
    path(from, None, transit.host(), Way::Ping, false, paths);
    if to.net.spec.mode == NetworkMode::Routed {
        let addresses = to.net.ports.iter().map(|p| p.address);
        let own = from.net.spec.cidr;
        // One of its own range is its own machine, if anybody's.
        for address in addresses.filter(|a| !own.contains(a)).take(CHECK_MAX_EACH) {
            path(from, id, address, Way::Ping, false, paths);
            path(from, id, address, Way::Tcp(HOST_PORT), false, paths);
        }
    }
    let doors = inside::doors(&to.net);
    // As the host sends it: by the address of the network that asks.
    let sender = from.transit.map_or(Ipv4Addr::UNSPECIFIED, Transit::inner);
    let lets_in = |port: PortId, protocol, to_port, icmp| {
        let found = to.net.ports.iter().find(|p| p.id == port);
        found.is_some_and(|port| {
            let packet = Packet {
                from: sender.into(),
                to: port.address.into(),
                protocol,
                to_port,
                icmp,
            };
            from.transit.is_some() && Policies::new(&to.net).allows(port, Direction::Ingress, &packet)
        })
    };
    let tcp = to.net.forwards.iter().filter(|f| f.protocol == Protocol::Tcp);
    for forward in tcp.take(CHECK_MAX_EACH) {
        path(
            from,
            id,
            transit.inner(),
            Way::Tcp(doors[&forward.id]),
            false,
            paths,
        );
        if let Some(listens) = forward.listen_address.or_else(|| host.first().copied()) {
            let allowed = lets_in(forward.target, Protocol::Tcp, Some(forward.target_port), None);
            path(from, id, listens, Way::Tcp(forward.listen_port), allowed, paths);
        }
    }
    let floating = to
        .net
        .ports
        .iter()
        .filter_map(|p| Some((p.id, p.policy.floating?)));
    for (port, address) in floating.take(CHECK_MAX_EACH) {
        let ping = lets_in(port, Protocol::Icmp, None, Some((8, 0)));
        path(from, id, address, Way::Ping, ping, paths);
        let tcp = lets_in(port, Protocol::Tcp, Some(HOST_PORT), None);
        path(from, id, address, Way::Tcp(HOST_PORT), tcp, paths);
    }
}

/// An echo request (RFC 792).
pub(crate) fn echo_request(id: u16, sequence: u16) -> [u8; 8] {
    let mut packet = [8, 0, 0, 0, 0, 0, 0, 0];
    packet[4..6].copy_from_slice(&id.to_be_bytes());
    packet[6..8].copy_from_slice(&sequence.to_be_bytes());
    let words = packet
        .chunks_exact(2)
        .map(|w| u32::from(u16::from_be_bytes([w[0], w[1]])));
    let sum: u32 = words.sum();
    let folded = (sum & 0xffff) + (sum >> 16);
    let checksum = !u16::try_from(folded).unwrap_or(u16::MAX);
    packet[2..4].copy_from_slice(&checksum.to_be_bytes());
    packet
}

/// Identifier and sequence of an echo reply, in a packet with its IPv4 header.
pub(crate) fn echo_reply(packet: &[u8]) -> Option<(u16, u16)> {
    let header = usize::from(packet.first()? & 15) * 4;
    let reply = packet.get(header..header + 8)?;
    let word = |at: usize| u16::from_be_bytes([reply[at], reply[at + 1]]);
    (reply[0] == 0 && reply[1] == 0).then(|| (word(4), word(6)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::fixture::lab;
    use proptest::prelude::*;

    fn known(id: &str, transit: Option<&str>) -> Known {
        let mode = if transit.is_some() {
            NetworkMode::Nat
        } else {
            NetworkMode::Isolated
        };
        let mut net = lab(mode).into_inner();
        net.id = id.parse().unwrap();
        if mode == NetworkMode::Nat {
            net.ports[0].policy.floating = Some([192, 0, 2, 50].into());
            net.forwards.truncate(1);
        }
        Known {
            net: Validated::<DesiredNetwork>::new(net).unwrap(),
            transit: transit.and_then(|t| Transit::new(t.parse().unwrap())),
        }
    }

    #[test]
    fn the_host_and_what_is_behind_a_transit_may_never_be_reached_and_what_a_group_lets_in_may() {
        let one = known("0190b6f2-4c1e-7cc3-a7a4-0d1f00000001", Some("169.254.64.2/31"));
        let two = known("0190b6f2-4c1e-7cc3-a7a4-0d1f00000002", None);
        let all = paths(&[one.clone(), two.clone()], &[[192, 0, 2, 1].into()]).unwrap();
        let told = |p: &PathSeen| format!("{} {} {}", p.address, p.way, p.allowed);
        let from = |id| all.iter().filter(|p| p.from == id).map(told).collect::<Vec<_>>();
        assert_eq!(
            from(one.net.id),
            ["192.0.2.1 ping false", "192.0.2.1 tcp/22 false"]
        );
        assert_eq!(
            from(two.net.id),
            [
                "169.254.64.3 ping false",
                "169.254.64.2 ping false",
                "169.254.64.3 tcp/8080 false",
                // An isolated network has no way out, whatever the groups say.
                "192.0.2.1 tcp/8080 false",
                "192.0.2.50 ping false",
                "192.0.2.50 tcp/22 false",
                "192.0.2.1 ping false",
                "192.0.2.1 tcp/22 false",
            ]
        );
        let three = known("0190b6f2-4c1e-7cc3-a7a4-0d1f00000003", Some("169.254.64.4/31"));
        let all = paths(&[one, three.clone()], &[[192, 0, 2, 1].into()]).unwrap();
        let allowed: Vec<_> = all
            .iter()
            .filter(|p| p.from == three.net.id && p.allowed)
            .map(told)
            .collect();
        assert_eq!(allowed, ["192.0.2.1 tcp/8080 true", "192.0.2.50 ping true"]);
    }

    #[test]
    fn too_many_networks_are_refused_with_their_number() {
        let one = known("0190b6f2-4c1e-7cc3-a7a4-0d1f00000001", None);
        let all = vec![one; CHECK_MAX_NETWORKS + 1];
        let error = vbm_core::Error::from(paths(&all, &[]).unwrap_err());
        assert!(error.why().contains("65 networks"), "{error}");
    }

    proptest! {
        #[test]
        fn an_echo_is_known_by_its_reply(id: u16, sequence: u16) {
            let mut packet = vec![0x45; 20];
            packet.extend(echo_request(id, sequence));
            prop_assert_eq!(echo_reply(&packet), None, "a request is no reply");
            let sum: u32 = packet[20..].chunks(2).map(|w| u32::from(u16::from_be_bytes([w[0], w[1]]))).sum();
            prop_assert_eq!((sum & 0xffff) + (sum >> 16), 0xffff, "checksum");
            packet[20] = 0;
            prop_assert_eq!(echo_reply(&packet), Some((id, sequence)));
        }

        #[test]
        fn reading_garbage_never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..80)) {
            let _reply = echo_reply(&bytes);
        }
    }
}
