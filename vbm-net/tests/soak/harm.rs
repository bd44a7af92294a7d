//! What somebody breaks on a host.

use super::{BRIDGE, Dice, One};
use vbm_core::PortId;
use vbm_net::{NicKind, names};

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Harm {
    /// On the host; else in the network's namespace.
    pub(crate) at_host: bool,
    pub(crate) command: String,
    /// Whose NIC does not survive it.
    pub(crate) kills: Option<PortId>,
}

/// In the network's namespace, whatever it is.
const INSIDE: [&str; 17] = [
    "nft flush ruleset",
    "nft delete table bridge vbm",
    "iptables -F",
    "iptables -X",
    "iptables -P FORWARD ACCEPT",
    "iptables -I FORWARD -j ACCEPT",
    "iptables -t nat -F",
    "iptables -t mangle -F",
    "ip6tables -P FORWARD ACCEPT",
    "ip link set br0 down",
    "ip link set br0 mtu 1280",
    "ip addr flush dev br0",
    "ip addr add 10.66.0.1/24 dev br0",
    "ip route flush table main",
    "sysctl -q -w net.ipv4.ip_forward=0",
    "sysctl -q -w net.bridge.bridge-nf-call-iptables=0",
    "sysctl -q -w net.netfilter.nf_conntrack_tcp_loose=1",
];

/// On the host, which has a network with a way out.
const AT_HOST: [&str; 10] = [
    "iptables -F",
    "iptables -t nat -F",
    "nft flush ruleset",
    "sysctl -q -w net.ipv4.ip_forward=0",
    "ip link del vbuNET",
    "ip link set vbuNET down",
    "ip addr flush dev vbuNET",
    "ip route flush table main proto 86",
    "ip6tables -F",
    "ip -6 route flush table main proto 86",
];

/// Of a network on a LAN.
const LEG: [&str; 7] = [
    "ip addr add 10.9.0.77/24 dev br0",
    "ip link set lan0 down",
    "ip link set lan0 nomaster",
    "ip link set lan0 mtu 1300",
    "ip link set lan0 alias somebody",
    "ip link del lan0",
    "nft flush chain bridge vbm in-lan0",
];

/// On the host, where the LAN is that of a bridge.
const LEG_AT_HOST: [&str; 5] = [
    "ip link set vblNET down",
    "ip link set vblNET nomaster",
    "ip link set vblNET alias somebody",
    "ip link del vblNET",
    "sysctl -q -w net.ipv4.conf.vblNET.arp_ignore=0",
];

/// Where it spans hosts.
const OVERLAY: [&str; 5] = [
    "ip link del vx0",
    "ip link set vx0 down",
    "ip link set vx0 nomaster",
    "bridge link set dev vx0 flood on learning on neigh_suppress off",
    "ip neigh add 10.9.0.99 lladdr 52:54:00:00:00:99 dev br0 nud permanent",
];

/// To an open NIC.
const NIC: [&str; 6] = [
    "ip link set TAP down",
    "ip link set TAP nomaster",
    "ip link set TAP mtu 1280",
    "bridge link set dev TAP isolated on hairpin on",
    "tc qdisc replace dev TAP root pfifo",
    "tc qdisc add dev TAP clsact",
];

impl Harm {
    pub(crate) fn random(dice: &mut Dice, one: &One) -> Option<Self> {
        let net = &one.wanted;
        let inside = |command: String| Self {
            at_host: false,
            command,
            kills: None,
        };
        match dice.below(10) {
            0..4 => Some(inside((*dice.pick(&INSIDE)).to_owned())),
            4..6 if net.spec.mode.goes_by_host() => {
                let command = dice.pick(&AT_HOST).replace("NET", &net.id.short());
                Some(Self {
                    at_host: true,
                    command,
                    kills: None,
                })
            }
            4..6 if one.goes_by(BRIDGE) && dice.one_in(2) => Some(Self {
                at_host: true,
                command: dice.pick(&LEG_AT_HOST).replace("NET", &net.id.short()),
                kills: None,
            }),
            4..6 if one.is_bridged() => Some(inside((*dice.pick(&LEG)).to_owned())),
            6 if net.overlay.is_some() => Some(inside((*dice.pick(&OVERLAY)).to_owned())),
            7 if !net.ports.is_empty() => {
                let port = dice.pick(&net.ports);
                Some(inside(format!(
                    "nft flush chain bridge vbm {}",
                    names::guard_in(port.id)
                )))
            }
            8 | 9 if !one.open.is_empty() => {
                let open: Vec<PortId> = one.open.keys().copied().collect();
                let port = *dice.pick(&open);
                if dice.one_in(4) && one.open[&port] == NicKind::Tap {
                    let command = format!("ip link del {}", names::tap(port));
                    return Some(Self {
                        at_host: false,
                        command,
                        kills: Some(port),
                    });
                }
                Some(inside(dice.pick(&NIC).replace("TAP", &names::tap(port))))
            }
            _ => None,
        }
    }
}
