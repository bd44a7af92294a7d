//! Flows that go with a port to another host: which may, and as what they are written there. Pure.
//!
//! ```text
//!   host of before: conntrack -L --> parse --> of_port --> PortFlow ... by whatever joins the hosts ... PortFlow --> to_write --> conntrack -R
//!                                              between VMs of the network alone                                     judged by the rules here
//! ```
//!
//! A host knows the flows that it saw begin. `nf_conntrack_tcp_loose` is off, so one that it did not see begin is nobody's: else a flow that
//! was cut could begin again in its middle. So the flows of a VM that moves are told to its new host, which takes those that its rules
//! would let begin now, and no others: who sends flows can open nothing.
//!
//! What passed a translation stays behind. The world knows such a flow by an address of the host of before.

use super::{
    Transit,
    flows::{self, Flow},
};
use crate::{DesiredNetwork, DesiredPort, Validated};
use serde::{Deserialize, Serialize};
use std::{collections::BTreeSet, net::IpAddr};

/// The most flows of a port that go with it. The kernel lists the busiest in no order; what is over ends, as all did before.
pub const PORT_MAX_CARRIED_FLOWS: usize = 4_096;
/// The longest that a flow is kept without a packet, in seconds: as long as the kernel itself keeps one of TCP.
pub const CARRIED_FLOW_MAX_SECONDS: u32 = 432_000;
/// The states of TCP in which both ends know of each other: others begin or end within seconds, and may do so anew.
const TCP_STATES: [&str; 4] = ["ESTABLISHED", "FIN_WAIT", "CLOSE_WAIT", "LAST_ACK"];

/// One flow between a port and another VM of its network, as the kernel that saw it tells it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PortFlow {
    /// `tcp`, `udp`, `icmp`, `icmpv6`.
    pub protocol: FlowProtocol,
    /// Who began it.
    pub from: IpAddr,
    /// Who answers.
    pub to: IpAddr,
    /// The originator's port; the identifier, of ICMP.
    pub from_port: u16,
    /// The port that answers; type and code, of ICMP.
    pub to_port: u16,
    /// For how long it is kept without a packet, in seconds.
    pub seconds_left: u32,
    /// The state of TCP, in the words of conntrack.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub state: Option<String>,
    /// Whether it was answered.
    pub answered: bool,
}

/// What is spoken in a flow that may be carried.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
#[expect(missing_docs, reason = "each is the name of a protocol")]
pub enum FlowProtocol {
    Tcp,
    Udp,
    Icmp,
    Icmpv6,
}

impl FlowProtocol {
    const fn word(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
            Self::Icmp => "icmp",
            Self::Icmpv6 => "icmpv6",
        }
    }

    fn parse(word: &str) -> Option<Self> {
        [Self::Tcp, Self::Udp, Self::Icmp, Self::Icmpv6]
            .into_iter()
            .find(|p| p.word() == word)
    }

    const fn is_icmp(self) -> bool {
        matches!(self, Self::Icmp | Self::Icmpv6)
    }
}

/// Reads the flows of `conntrack -L` that a port has with others of its network.
pub fn of_port(net: &DesiredNetwork, port: &DesiredPort, text: &str) -> Vec<PortFlow> {
    let is_its_own = |a: IpAddr| a == IpAddr::V4(port.address) || port.address6.map(IpAddr::V6) == Some(a);
    let inside = |a: IpAddr| match a {
        IpAddr::V4(v4) => net.spec.cidr.contains(&v4) && v4 != net.spec.gateway,
        IpAddr::V6(v6) => net
            .spec
            .ipv6
            .as_ref()
            .is_some_and(|s| s.cidr.contains(&v6) && s.gateway != v6),
    };
    text.lines()
        .filter_map(parse_line)
        .filter(|flow| is_its_own(flow.from) || is_its_own(flow.to))
        .filter(|flow| inside(flow.from) && inside(flow.to))
        .take(PORT_MAX_CARRIED_FLOWS)
        .collect()
}

fn parse_line(line: &str) -> Option<PortFlow> {
    let flow = flows::parse(line).pop()?;
    // One that was translated is of this host.
    if flow.to != flow.answerer || flow.from != flow.answered || flow.to_port != flow.answerer_port {
        return None;
    }
    let protocol = FlowProtocol::parse(&flow.protocol)?;
    let mut words = line.split_whitespace().skip(2);
    let seconds_left: u32 = words.next()?.parse().ok()?;
    let state = match protocol {
        FlowProtocol::Tcp => Some(words.next().filter(|s| TCP_STATES.contains(s))?.to_owned()),
        _ => None,
    };
    let (from_port, to_port) = match flow.icmp {
        Some((kind, code, id)) => (id, u16::from_be_bytes([kind, code])),
        None => (flow.from_port?, flow.to_port?),
    };
    Some(PortFlow {
        protocol,
        from: flow.from,
        to: flow.to,
        from_port,
        to_port,
        seconds_left: seconds_left.min(CARRIED_FLOW_MAX_SECONDS),
        state,
        answered: !line.contains("[UNREPLIED]"),
    })
}

impl PortFlow {
    fn as_flow(&self) -> Flow {
        let [kind, code] = self.to_port.to_be_bytes();
        let icmp = self.protocol.is_icmp();
        Flow {
            protocol: self.protocol.word().to_owned(),
            from: self.from,
            to: self.to,
            from_port: (!icmp).then_some(self.from_port),
            to_port: (!icmp).then_some(self.to_port),
            answerer: self.to,
            answerer_port: (!icmp).then_some(self.to_port),
            answered: self.from,
            icmp: icmp.then_some((kind, code, self.from_port)),
        }
    }

    /// The same packets, whoever began.
    fn ends(&self) -> (FlowProtocol, BTreeSet<(IpAddr, u16)>) {
        (
            self.protocol,
            [(self.from, self.from_port), (self.to, self.to_port)].into(),
        )
    }

    /// Whether it can be one of the kernel's at all: it came from another host.
    fn makes_sense(&self) -> bool {
        let family = self.from.is_ipv4() == self.to.is_ipv4();
        let state = match self.protocol {
            FlowProtocol::Tcp => self.state.as_deref().is_some_and(|s| TCP_STATES.contains(&s)),
            FlowProtocol::Icmp => self.from.is_ipv4() && self.state.is_none(),
            FlowProtocol::Icmpv6 => self.from.is_ipv6() && self.state.is_none(),
            FlowProtocol::Udp => self.state.is_none(),
        };
        family && state && self.from != self.to && self.seconds_left <= CARRIED_FLOW_MAX_SECONDS
    }

    /// The line by which `conntrack -R` writes it.
    fn line(&self) -> String {
        let Self {
            from,
            to,
            from_port,
            to_port,
            seconds_left,
            ..
        } = self;
        let status = if self.answered {
            " -u SEEN_REPLY,ASSURED"
        } else {
            ""
        };
        let word = self.protocol.word();
        let start = format!("-A -t {seconds_left}{status} -s {from} -d {to} -p {word}");
        let [kind, code] = to_port.to_be_bytes();
        match (self.protocol, &self.state) {
            (FlowProtocol::Tcp, Some(state)) => {
                format!("{start} --sport {from_port} --dport {to_port} --state {state}")
            }
            (FlowProtocol::Tcp | FlowProtocol::Udp, _) => {
                format!("{start} --sport {from_port} --dport {to_port}")
            }
            _ => format!("{start} --{word}-type {kind} --{word}-code {code} --{word}-id {from_port}"),
        }
    }
}

/// Of the flows of a port that came here, those that the rules would let begin now, and that are not there already.
pub fn to_take(
    net: &Validated<DesiredNetwork>,
    transit: Option<Transit>,
    port: &DesiredPort,
    came: &[PortFlow],
    there: &[PortFlow],
) -> Vec<PortFlow> {
    let own = |a: IpAddr| a == IpAddr::V4(port.address) || port.address6.map(IpAddr::V6) == Some(a);
    let there: BTreeSet<_> = there.iter().map(PortFlow::ends).collect();
    let able: BTreeSet<&PortFlow> = came
        .iter()
        .take(PORT_MAX_CARRIED_FLOWS)
        .filter(|flow| flow.makes_sense() && (own(flow.from) || own(flow.to)))
        .filter(|flow| !there.contains(&flow.ends()))
        .collect();
    let all: Vec<Flow> = able.iter().map(|flow| flow.as_flow()).collect();
    let cut: BTreeSet<Flow> = flows::to_cut(net, transit, &all).into_iter().collect();
    let may_go_on = able.into_iter().filter(|flow| !cut.contains(&flow.as_flow()));
    may_go_on.cloned().collect()
}

/// The same as the lines by which `conntrack -R` writes them. `standing` is what `conntrack -L` says.
pub fn to_write(
    net: &Validated<DesiredNetwork>,
    transit: Option<Transit>,
    port: &DesiredPort,
    came: &[PortFlow],
    standing: &str,
) -> Vec<String> {
    let there: Vec<PortFlow> = standing.lines().filter_map(parse_line).collect();
    let taken = to_take(net, transit, port, came, &there);
    taken.iter().map(PortFlow::line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::fixture::spanning;

    const SSH: &str = "tcp      6 431999 ESTABLISHED src=10.77.0.100 dst=10.77.0.10 sport=4000 dport=80 src=10.77.0.10 dst=10.77.0.100 sport=80 dport=4000 [ASSURED] mark=0 use=1\n";
    const PING: &str = "icmp     1 29 src=10.77.0.10 dst=10.77.0.11 type=8 code=0 id=7 src=10.77.0.11 dst=10.77.0.10 type=0 code=0 id=7 mark=0 use=1\n";
    const DNS: &str = "udp      17 29 src=10.77.0.10 dst=10.77.0.101 sport=9 dport=53 [UNREPLIED] src=10.77.0.101 dst=10.77.0.10 sport=53 dport=9 mark=0 use=1\n";
    const LEFT_BEHIND: [&str; 7] = [
        // To the world, by a forward, to the gateway, of others, half open, without an end, and none.
        "tcp 6 99 ESTABLISHED src=10.77.0.10 dst=192.0.2.9 sport=1 dport=80 src=192.0.2.9 dst=169.254.64.3 sport=80 dport=1 [ASSURED]\n",
        "tcp 6 99 ESTABLISHED src=192.0.2.9 dst=169.254.64.3 sport=1 dport=8080 src=10.77.0.10 dst=192.0.2.9 sport=80 dport=1 [ASSURED]\n",
        "udp 17 29 src=10.77.0.10 dst=10.77.0.1 sport=1 dport=53 src=10.77.0.1 dst=10.77.0.10 sport=53 dport=1\n",
        "tcp 6 99 ESTABLISHED src=10.77.0.100 dst=10.77.0.11 sport=1 dport=80 src=10.77.0.11 dst=10.77.0.100 sport=80 dport=1 [ASSURED]\n",
        "tcp 6 99 SYN_SENT src=10.77.0.100 dst=10.77.0.10 sport=1 dport=80 [UNREPLIED] src=10.77.0.10 dst=10.77.0.100 sport=80 dport=1\n",
        "tcp 6 ESTABLISHED src=10.77.0.100 dst=10.77.0.10\n",
        "conntrack v1.4.7 (conntrack-tools): 0 flow entries have been shown.\n",
    ];

    #[test]
    fn what_a_port_has_with_others_of_its_network_goes_with_it_and_nothing_else() {
        let net = spanning();
        let text = [SSH, PING, DNS].concat() + &LEFT_BEHIND.concat();
        let flows = of_port(&net, &net.ports[0], &text);
        let told: Vec<_> = flows.iter().map(PortFlow::line).collect();
        assert_eq!(
            told,
            [
                "-A -t 431999 -u SEEN_REPLY,ASSURED -s 10.77.0.100 -d 10.77.0.10 -p tcp --sport 4000 --dport 80 --state ESTABLISHED",
                "-A -t 29 -u SEEN_REPLY,ASSURED -s 10.77.0.10 -d 10.77.0.11 -p icmp --icmp-type 8 --icmp-code 0 --icmp-id 7",
                "-A -t 29 -s 10.77.0.10 -d 10.77.0.101 -p udp --sport 9 --dport 53",
            ]
        );
        assert_eq!(
            serde_json::from_str::<Vec<PortFlow>>(&serde_json::to_string(&flows).unwrap()).unwrap(),
            flows
        );
    }

    #[test]
    fn a_flow_is_taken_in_only_if_it_could_begin_here_and_is_of_the_port_and_not_there_yet() {
        let net = spanning();
        let port = &net.ports[0];
        let flows = of_port(&net, port, &[SSH, DNS].concat());
        let taken = |flows: &[PortFlow], standing: &str| to_write(&net, None, port, flows, standing).len();
        assert_eq!(taken(&flows, ""), 2);
        assert_eq!(taken(&flows, SSH), 1, "it stands");
        let turned = "udp 17 29 src=10.77.0.101 dst=10.77.0.10 sport=53 dport=9 src=10.77.0.10 dst=10.77.0.101 sport=9 dport=53\n";
        assert_eq!(taken(&flows, turned), 1, "begun by the other side meanwhile");
        let change = |f: fn(&mut PortFlow)| {
            let mut one = flows[0].clone();
            f(&mut one);
            taken(&[one], "")
        };
        assert_eq!(change(|_| {}), 1);
        for (what, count) in [
            ("a port that no rule opens", change(|f| f.to_port = 22)),
            (
                "somebody who is not of the network",
                change(|f| f.from = [10, 77, 0, 200].into()),
            ),
            (
                "another port of this host",
                change(|f| f.to = [10, 77, 0, 11].into()),
            ),
            ("two families", change(|f| f.from = "fd00::1".parse().unwrap())),
            ("itself", change(|f| f.from = f.to)),
            (
                "a state that is none",
                change(|f| f.state = Some("ESTABLISHED -u x".into())),
            ),
            ("no state", change(|f| f.state = None)),
            ("for ever", change(|f| f.seconds_left = u32::MAX)),
            ("another protocol", change(|f| f.protocol = FlowProtocol::Icmpv6)),
        ] {
            assert_eq!(count, 0, "{what}");
        }
    }

    #[test]
    fn no_more_than_so_many_flows_go_along() {
        let net = spanning();
        let line = |n: usize| SSH.replace("4000", &(1_024 + n).to_string());
        let text: String = (0..PORT_MAX_CARRIED_FLOWS + 9).map(line).collect();
        let flows = of_port(&net, &net.ports[0], &text);
        assert_eq!(flows.len(), PORT_MAX_CARRIED_FLOWS);
        let twice = [flows.clone(), flows].concat();
        assert_eq!(
            to_write(&net, None, &net.ports[0], &twice, "").len(),
            PORT_MAX_CARRIED_FLOWS
        );
    }
}
