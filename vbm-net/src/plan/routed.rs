//! Routed networks on the host: who may pass, which routes lead to them, and whose addresses they may not have. Pure.
//!
//! ```text
//!   world --> eth0 --> route CIDR by vbu<net> --> up0 --> br0 --> VM            a port of this host
//!                  \-> route A/32 by the host that has A ----> that host        a port of another host
//!   world <-- eth0 <------------ vbu<net> <-- up0 <-- br0 <-- VM                as it is, from each host its own
//! ```
//!
//! Nothing is translated, so on one host the addresses of a routed network are its alone: no other routed network, no subnet of the
//! host and no route of somebody else's may share them. Where the network spans hosts, each of them takes what is for it from outside and
//! passes on what is for a port of another, so a route to any of them will do.
//!
//! Other networks of this instance reach it as little as they reach each other. The drop that says so stands before what is accepted,
//! because a packet for a port of another host leaves by no link of ours.
//!
//! IPv6 goes the same way, by link-local addresses of the transit; a port of another host is led to by no route of it, since hosts know each
//! other by IPv4.
//!
//! Routes bear the protocol number 86, as those of floating IPs do: what bears another is never touched.

use super::{host::HostRules, spelling};
use crate::{DesiredNetwork, NetError, Validated, names, names::HostChain};
use ipnet::IpNet;
use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};
use vbm_core::NetworkMode;

/// What a drop has that stands before all that is accepted.
const OF_NO_ANSWER: &str = "-m conntrack ! --ctstate RELATED,ESTABLISHED -j DROP";

/// The host's end of a transit that carries IPv6.
pub const HOST_LINK_LOCAL: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1);
/// The namespace's end.
pub const INNER_LINK_LOCAL: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 2);

/// Whether the IPv6 of a network has a way out of its namespace. That of `nat` has none: the host would have to forward IPv6 for it, and
/// forget its own routers by that.
pub fn carries_ipv6(net: &DesiredNetwork) -> bool {
    net.spec.mode == NetworkMode::Routed && net.spec.ipv6.is_some()
}

/// The rules of IPv6 on the host; `None` where none of it leaves.
pub fn on_host6(owner: &str, net: &Validated<DesiredNetwork>) -> Option<HostRules> {
    let six = net.spec.ipv6.as_ref().filter(|_| carries_ipv6(net))?;
    let link = names::transit(net.id);
    let tag = format!("-m comment --comment {}", names::rule_comment(owner, net.id));
    // Neighbours: the two ends of the transit ask each other.
    let neighbours = |kind| format!("-i {link} -p ipv6-icmp {tag} -m icmp6 --icmpv6-type {kind} -j ACCEPT");
    let mut input: Vec<String> = [135, 136].map(neighbours).into();
    input.push(format!(
        "-i {link} {tag} -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT"
    ));
    input.push(format!("-i {link} {tag} -j DROP"));
    let cidr = spelling::net(six.cidr.into());
    let forward = forward(net, &cidr, &link, &tag, None);
    Some(BTreeMap::from([
        (HostChain::Input, input),
        (HostChain::Forward, forward),
    ]))
}

/// The rules of a routed network on the host. `underlay`: where other hosts are, if it spans hosts.
pub(super) fn on_host(owner: &str, net: &Validated<DesiredNetwork>, underlay: Option<&str>) -> HostRules {
    let link = names::transit(net.id);
    let tag = format!("-m comment --comment {}", names::rule_comment(owner, net.id));
    let input = vec![
        format!("-i {link} {tag} -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT"),
        format!("-i {link} {tag} -j DROP"),
    ];
    let underlay = underlay.filter(|_| net.overlay.is_some());
    let forward = forward(net, &net.spec.cidr.to_string(), &link, &tag, underlay);
    BTreeMap::from([(HostChain::Input, input), (HostChain::Forward, forward)])
}

fn forward(net: &DesiredNetwork, cidr: &str, link: &str, tag: &str, underlay: Option<&str>) -> Vec<String> {
    let any = format!("{}+", names::TRANSIT_PREFIX);
    let mut forward = vec![
        format!("-d {cidr} -i {any} {tag} {OF_NO_ANSWER}"),
        format!("-o {link} {tag} -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT"),
    ];
    match &net.spec.uplink {
        None => {
            forward.push(format!("-d {cidr} ! -i {any} -o {link} {tag} -j ACCEPT"));
            forward.push(format!("-s {cidr} -i {link} ! -o {any} {tag} -j ACCEPT"));
            // On to the host that has it; this one is on the way.
            forward.extend(underlay.map(|u| format!("-d {cidr} ! -i {any} -o {u} {tag} -j ACCEPT")));
        }
        Some(uplink) => {
            let ways: BTreeSet<&str> = underlay.into_iter().chain([uplink.as_str()]).collect();
            forward.extend(
                ways.iter()
                    .map(|way| format!("-d {cidr} -i {way} -o {link} {tag} -j ACCEPT")),
            );
            forward.push(format!("-s {cidr} -i {link} -o {uplink} {tag} -j ACCEPT"));
            forward.extend(underlay.map(|u| format!("-d {cidr} -i {uplink} -o {u} {tag} -j ACCEPT")));
        }
    }
    forward.push(format!("-o {link} {tag} -j DROP"));
    forward.push(format!("-i {link} ! -o {any} {tag} -j DROP"));
    forward
}

/// Whether a rule stands before those of all networks that accept.
pub(super) fn goes_first(rule: &str) -> bool {
    rule.ends_with(OF_NO_ANSWER)
}

/// A route on the host.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Way {
    /// Where to.
    pub to: IpNet,
    /// By whom: the namespace's end of the transit, or another host.
    pub via: IpAddr,
}

/// The routes to a network on this host: to itself by `inner`, to each port of another host by that host. None unless it is routed.
pub fn ways(net: &DesiredNetwork, inner: Option<Ipv4Addr>) -> BTreeSet<Way> {
    let Some(inner) = inner.filter(|_| net.spec.mode == NetworkMode::Routed) else {
        return BTreeSet::new();
    };
    // A port that is on its way here is still there.
    let remotes = net.overlay.iter().flat_map(|o| &o.remotes);
    let there = remotes.map(|r| Way {
        to: IpAddr::V4(r.address).into(),
        via: r.host.into(),
    });
    let all = Way {
        to: net.spec.cidr.into(),
        via: inner.into(),
    };
    let six = net.spec.ipv6.as_ref().map(|six| Way {
        to: six.cidr.into(),
        via: INNER_LINK_LOCAL.into(),
    });
    there.chain([all]).chain(six).collect()
}

/// The addresses of a network, of both families.
pub fn cidrs(net: &DesiredNetwork) -> impl Iterator<Item = IpNet> + use<> {
    let six = net.spec.ipv6.as_ref().map(|six| IpNet::V6(six.cidr));
    std::iter::once(IpNet::V4(net.spec.cidr)).chain(six)
}

/// One change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Lead there; what led there otherwise is replaced.
    Lead(Way),
    /// Lead there no more.
    Unlead(Way),
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Lead(way) => write!(f, "route to {} by {}", way.to, way.via),
            Self::Unlead(way) => write!(f, "no more route to {} by {}", way.to, way.via),
        }
    }
}

/// What turns the routes that stand into those wanted. New ones come first: a port that moved is reached at every moment by the old
/// route or the new.
pub fn plan(want: &BTreeSet<Way>, have: &BTreeSet<Way>) -> Vec<Step> {
    let lead = want.difference(have).map(|way| Step::Lead(*way));
    let replaced = |way: &Way| want.iter().any(|w| w.to == way.to);
    let unlead = have.difference(want).filter(|way| !replaced(way));
    lead.chain(unlead.map(|way| Step::Unlead(*way))).collect()
}

/// Whose addresses stand on the host, but for what is of this network itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Others {
    /// Routed networks, with how they are called.
    pub networks: Vec<(IpNet, String)>,
    /// Addresses of the host's interfaces, with their subnets.
    pub interfaces: Vec<(IpNet, String)>,
    /// Routes, with the interface they lead to.
    pub routes: Vec<(IpNet, String)>,
}

/// Why a network cannot have its addresses on this host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Clash {
    /// Another routed network has some of them.
    Network(IpNet, String),
    /// They are of a subnet that an interface of the host is in.
    Interface(IpNet, String),
    /// The host routes some of them elsewhere.
    Route(IpNet, String),
}

impl Clash {
    /// As it is told of a network with these addresses.
    pub fn told(&self, cidr: IpNet) -> NetError {
        let (why, fix) = match self {
            Self::Network(net, name) => (
                format!("{net} is routed to {name}, and nothing tells the two apart"),
                "choose other addresses, or a network of mode nat, which may have any",
            ),
            Self::Interface(net, name) => (
                format!("the host's interface {name} is in {net}"),
                "choose addresses that the host has no part in; for the LAN's own there is mode bridged",
            ),
            Self::Route(net, name) => (
                format!("the host routes {net} to {name}"),
                "choose addresses that lead nowhere else, or remove that route",
            ),
        };
        NetError::Conflict {
            what: format!("the addresses {cidr} cannot be routed on this host"),
            why,
            fix: fix.into(),
        }
    }
}

/// Whether two networks share an address.
fn overlaps(a: &IpNet, b: &IpNet) -> bool {
    a.contains(b) || b.contains(a)
}

/// Whether somebody else has some of these addresses; the first found. A route that merely covers them is none: the narrower one leads.
pub fn clash(cidr: IpNet, others: &Others) -> Option<Clash> {
    let found = |all: &[(IpNet, String)]| all.iter().find(|(net, _)| overlaps(net, &cidr)).cloned();
    if let Some((net, name)) = found(&others.networks) {
        return Some(Clash::Network(net, name));
    }
    if let Some((net, name)) = found(&others.interfaces) {
        return Some(Clash::Interface(net, name));
    }
    let within = others.routes.iter().find(|(net, _)| cidr.contains(net));
    within.cloned().map(|(net, name)| Clash::Route(net, name))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::{Transit, fixture::lab, fixture::spanning, host};
    use proptest::prelude::*;

    fn net(text: &str) -> IpNet {
        text.parse().unwrap()
    }

    fn routed(uplink: Option<&str>, spans: bool) -> Validated<DesiredNetwork> {
        let mut net = lab(NetworkMode::Routed).into_inner();
        net.spec.uplink = uplink.map(|u| u.parse().unwrap());
        net.overlay = spans.then(|| spanning().into_inner().overlay.unwrap());
        Validated::<DesiredNetwork>::new(net).unwrap()
    }

    fn forward(net: &Validated<DesiredNetwork>) -> String {
        let transit = Transit::new("169.254.64.2/31".parse().unwrap()).unwrap();
        let rules = host::render("lab-1", net, transit, Some("und0"));
        assert!(
            !rules.contains_key(&HostChain::Postrouting),
            "nothing is translated"
        );
        rules[&HostChain::Forward]
            .join("\n")
            .replace(" -m comment --comment vbm:lab-1:0000beef", "")
    }

    #[test]
    fn the_world_passes_both_ways_and_no_other_network_does() {
        assert_eq!(
            forward(&routed(None, false)),
            "-d 10.77.0.0/24 -i vbu+ -m conntrack ! --ctstate RELATED,ESTABLISHED -j DROP\n\
             -o vbu0000beef -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT\n\
             -d 10.77.0.0/24 ! -i vbu+ -o vbu0000beef -j ACCEPT\n\
             -s 10.77.0.0/24 -i vbu0000beef ! -o vbu+ -j ACCEPT\n\
             -o vbu0000beef -j DROP\n\
             -i vbu0000beef ! -o vbu+ -j DROP"
        );
    }

    #[test]
    fn with_an_uplink_it_goes_by_that_alone_and_between_hosts_by_the_underlay() {
        let one = forward(&routed(Some("eth7"), false));
        assert!(one.contains("-d 10.77.0.0/24 -i eth7 -o vbu0000beef -j ACCEPT\n-s 10.77.0.0/24 -i vbu0000beef -o eth7 -j ACCEPT"));
        assert!(!one.contains("und0"), "{one}");
        let many = forward(&routed(Some("eth7"), true));
        for rule in [
            "-d 10.77.0.0/24 -i und0 -o vbu0000beef -j ACCEPT",
            "-d 10.77.0.0/24 -i eth7 -o und0 -j ACCEPT",
        ] {
            assert!(many.contains(rule), "{many}");
        }
        assert!(forward(&routed(None, true)).contains("-d 10.77.0.0/24 ! -i vbu+ -o und0 -j ACCEPT"));
    }

    #[test]
    fn the_drop_between_networks_is_put_before_what_others_accept() {
        let net = routed(None, false);
        let transit = Transit::new("169.254.64.2/31".parse().unwrap()).unwrap();
        let rules = host::render("lab-1", &net, transit, None);
        let script = host::diff("lab-1", net.id, Some(&rules), &Default::default()).script;
        let first: Vec<_> = script.lines().filter(|l| l.starts_with("-I ")).collect();
        assert_eq!(first.len(), 1, "{script}");
        assert!(first[0].ends_with(OF_NO_ANSWER));
    }

    #[test]
    fn a_port_of_another_host_is_led_to_there() {
        let here = Ipv4Addr::new(169, 254, 64, 3);
        let all = ways(&routed(None, true), Some(here));
        assert_eq!(all.len(), 3);
        assert!(all.contains(&Way {
            to: net("10.77.0.0/24"),
            via: here.into()
        }));
        assert!(all.contains(&Way {
            to: net("10.77.0.100/32"),
            via: Ipv4Addr::new(198, 18, 0, 2).into()
        }));
        assert!(ways(&lab(NetworkMode::Nat), Some(here)).is_empty());
    }

    #[test]
    fn who_has_an_address_already_is_named_and_a_route_that_merely_covers_is_nobody() {
        let cidr = net("10.77.0.0/24");
        let with = |networks: &[&str], interfaces: &[&str], routes: &[&str]| {
            let all = |of: &[&str], name: &str| of.iter().map(|n| (net(n), name.to_owned())).collect();
            clash(
                cidr,
                &Others {
                    networks: all(networks, "red"),
                    interfaces: all(interfaces, "eth0"),
                    routes: all(routes, "eth1"),
                },
            )
        };
        assert_eq!(
            with(&["10.78.0.0/24"], &["192.0.2.1/24"], &["0.0.0.0/0", "10.0.0.0/8"]),
            None
        );
        for overlap in ["10.77.0.0/24", "10.77.0.128/25", "10.0.0.0/8"] {
            assert_eq!(
                with(&[overlap], &[], &[]),
                Some(Clash::Network(net(overlap), "red".into()))
            );
            assert_eq!(
                with(&[], &[overlap], &[]),
                Some(Clash::Interface(net(overlap), "eth0".into()))
            );
        }
        assert_eq!(
            with(&[], &[], &["10.77.0.9/32"]),
            Some(Clash::Route(net("10.77.0.9/32"), "eth1".into()))
        );
    }

    #[test]
    fn ipv6_passes_as_ipv4_does_and_the_ends_of_the_transit_find_each_other() {
        let mut net = lab(NetworkMode::Routed).into_inner();
        net.spec.ipv6 = Some(vbm_core::Ipv6Spec::new("fd00:77::/64".parse().unwrap()).unwrap());
        let six = Validated::<DesiredNetwork>::new(net.clone()).unwrap();
        let rules = on_host6("lab-1", &six).unwrap();
        let text = |chain| {
            rules[&chain]
                .join("\n")
                .replace(" -m comment --comment vbm:lab-1:0000beef", "")
        };
        assert_eq!(
            text(HostChain::Input),
            "-i vbu0000beef -p ipv6-icmp -m icmp6 --icmpv6-type 135 -j ACCEPT\n\
             -i vbu0000beef -p ipv6-icmp -m icmp6 --icmpv6-type 136 -j ACCEPT\n\
             -i vbu0000beef -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT\n\
             -i vbu0000beef -j DROP"
        );
        let passes = text(HostChain::Forward);
        assert!(
            passes.contains("-d fd00:77::/64 ! -i vbu+ -o vbu0000beef -j ACCEPT"),
            "{passes}"
        );
        let all = ways(&six, Some([169, 254, 64, 3].into()));
        assert!(all.contains(&Way {
            to: "fd00:77::/64".parse().unwrap(),
            via: INNER_LINK_LOCAL.into()
        }));
        net.spec.mode = NetworkMode::Nat;
        let nat = Validated::<DesiredNetwork>::new(net).unwrap();
        assert!(on_host6("lab-1", &nat).is_none(), "of NAT none leaves");
    }

    fn some() -> impl Strategy<Value = BTreeSet<Way>> {
        let way = (0u8..4, 0u8..3).prop_map(|(to, via)| Way {
            to: IpAddr::from([10, 77, 0, to]).into(),
            via: [198, 18, 0, via].into(),
        });
        // One route to each place, as the kernel has it.
        prop::collection::vec(way, 0..6).prop_map(|all| {
            let by: BTreeMap<_, _> = all.into_iter().map(|way| (way.to, way)).collect();
            by.into_values().collect()
        })
    }

    proptest! {
        #[test]
        fn the_steps_lead_from_anywhere_to_what_is_wanted(want in some(), have in some()) {
            let mut now = have.clone();
            for step in plan(&want, &have) {
                match step {
                    Step::Lead(way) => {
                        now.retain(|w| w.to != way.to);
                        now.insert(way);
                    }
                    Step::Unlead(way) => prop_assert!(now.remove(&way)),
                }
            }
            prop_assert_eq!(&now, &want);
            prop_assert_eq!(plan(&want, &now), vec![]);
        }
    }
}
