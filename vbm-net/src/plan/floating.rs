//! Floating IPs: an address of the world outside that leads to one port and back, one to one. Pure.
//!
//! ```text
//!   world --ARP--> eth0 [proxy entry F] --> route F/32 by vbu<net> --> up0 --DNAT--> port
//!   world <------- eth0 <-- forward rule, no masquerade <-- vbu<net> <-- up0 <--SNAT to F-- port
//! ```
//!
//! The host does not have the address: it answers ARP for it where its subnet is, and routes it, so no service of the host
//! can be reached by it, and the host tracks no translation. Where no link of the host has its subnet, somebody must route it here.
//! The port's groups decide what may reach it, as they do for everybody. Other networks reach it as the world does.
//!
//! The route is the record: it is made before the ARP entry and removed after it, so that whatever a crash leaves is found by it.

use crate::{DesiredNetwork, names};
use ipnet::Ipv4Net;
use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    net::Ipv4Addr,
};

use super::Transit;

/// The mark on what we add to links of others: `NDA_PROTOCOL` of ARP entries, `rtm_protocol` of routes. 'V'; of those that
/// `/etc/iproute2/rt_protos` leaves free.
pub const PROTOCOL: u8 = 86;

/// The floating IPs of a network, each with the address of its port; in order.
pub fn all(net: &DesiredNetwork) -> BTreeMap<Ipv4Addr, Ipv4Addr> {
    let of = |p: &crate::DesiredPort| Some((p.policy.floating?, p.address));
    net.ports.iter().filter_map(of).collect()
}

/// The rules in the namespace's PREROUTING and POSTROUTING.
pub(super) fn inside(net: &DesiredNetwork) -> (Vec<String>, Vec<String>) {
    let up = names::UPLINK;
    let into = |(floating, port): (&Ipv4Addr, &Ipv4Addr)| {
        format!("-d {floating}/32 -i {up} -j DNAT --to-destination {port}")
    };
    let out = |(floating, port): (&Ipv4Addr, &Ipv4Addr)| {
        format!("-s {port}/32 -o {up} -j SNAT --to-source {floating}")
    };
    let all = all(net);
    (all.iter().map(into).collect(), all.iter().map(out).collect())
}

/// The rules in the host's FORWARD, before those that drop, and in its POSTROUTING.
pub(super) fn on_host(
    net: &DesiredNetwork,
    link: &str,
    tag: &str,
    transit: Transit,
) -> (Vec<String>, Vec<String>) {
    let (inner, outer) = (transit.inner(), transit.host());
    let any = format!("{}+", names::TRANSIT_PREFIX);
    let (mut forward, mut post) = (Vec::new(), Vec::new());
    for floating in all(net).into_keys() {
        forward.push(format!("-d {floating}/32 -o {link} {tag} -j ACCEPT"));
        forward.push(format!("-s {floating}/32 -i {link} ! -o {any} {tag} -j ACCEPT"));
        // Hairpin: a VM of the network that uses the floating IP of another must hear the answer from it.
        post.push(format!(
            "-s {inner}/32 -d {floating}/32 -o {link} {tag} -j SNAT --to-source {outer}"
        ));
    }
    (forward, post)
}

/// What stands on the host.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Seen {
    /// Addresses that are routed to the network.
    pub routes: BTreeSet<Ipv4Addr>,
    /// Addresses that are routed to other networks of ours.
    pub elsewhere: BTreeSet<Ipv4Addr>,
    /// All addresses of networks of ours whose mode is routed.
    pub routed: Vec<Ipv4Net>,
    /// ARP entries that bear our mark: index of the link, and address.
    pub answers: BTreeSet<(u32, Ipv4Addr)>,
    /// The host's own addresses with the subnets they are in, and their links, but for loopback and transits.
    pub links: Vec<(u32, Ipv4Net)>,
}

/// One thing to do on the host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Route an address to the network.
    Route(Ipv4Addr),
    /// Answer ARP for an address on the link with this index, and tell the neighbours there.
    Answer(u32, Ipv4Addr),
    /// Answer no more.
    Silence(u32, Ipv4Addr),
    /// Forget the flows of an address.
    Forget(Ipv4Addr),
    /// Route it no more.
    Unroute(Ipv4Addr),
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Route(a) => write!(f, "route of the floating IP {a}"),
            Self::Answer(link, a) => write!(f, "ARP for the floating IP {a} on link {link}"),
            Self::Silence(link, a) => write!(f, "no more ARP for the floating IP {a} on link {link}"),
            Self::Forget(a) => write!(f, "the flows of the floating IP {a} are forgotten"),
            Self::Unroute(a) => write!(f, "no more route of the floating IP {a}"),
        }
    }
}

/// A floating IP that cannot be here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Clash {
    /// It is an address of the host itself.
    Host(Ipv4Addr),
    /// It leads to another network of this host.
    Network(Ipv4Addr),
}

/// What is to be done so that these floating IPs, and no other, lead to the network.
///
/// # Errors
/// The first that cannot be here.
pub fn plan(wanted: &BTreeSet<Ipv4Addr>, seen: &Seen) -> Result<Vec<Step>, Clash> {
    for address in wanted {
        if seen.links.iter().any(|(_, net)| net.addr() == *address) {
            return Err(Clash::Host(*address));
        }
        if seen.elsewhere.contains(address) || seen.routed.iter().any(|net| net.contains(address)) {
            return Err(Clash::Network(*address));
        }
    }
    let mut steps = Vec::new();
    let answers = answers(wanted, seen);
    // One that nothing leads to is what a link that was taken away left.
    let ours = |a: &Ipv4Addr| !seen.elsewhere.contains(a);
    for (link, address) in seen.answers.difference(&answers).filter(|(_, a)| ours(a)) {
        steps.push(Step::Silence(*link, *address));
    }
    for address in seen.routes.difference(wanted) {
        steps.extend([Step::Forget(*address), Step::Unroute(*address)]);
    }
    steps.extend(wanted.difference(&seen.routes).map(|a| Step::Route(*a)));
    steps.extend(
        answers
            .difference(&seen.answers)
            .map(|(link, a)| Step::Answer(*link, *a)),
    );
    Ok(steps)
}

/// Where ARP is to be answered: on each link whose subnet an address is in.
fn answers(wanted: &BTreeSet<Ipv4Addr>, seen: &Seen) -> BTreeSet<(u32, Ipv4Addr)> {
    let on = |a: &Ipv4Addr| {
        let a = *a;
        let links = seen.links.iter().filter(move |(_, net)| net.contains(&a));
        links.map(move |(link, _)| (*link, a))
    };
    wanted.iter().flat_map(on).collect()
}

/// An ARP announcement (RFC 5227 section 3): a request of an address for itself, to everybody.
pub(crate) fn announcement(mac: vbm_core::Mac, address: Ipv4Addr) -> Vec<u8> {
    let mut frame = Vec::with_capacity(42);
    frame.extend([0xff; 6]);
    frame.extend(mac.octets());
    // ARP of Ethernet and IPv4, a request.
    frame.extend([0x08, 0x06, 0, 1, 0x08, 0, 6, 4, 0, 1]);
    frame.extend(mac.octets());
    frame.extend(address.octets());
    frame.extend([0; 6]);
    frame.extend(address.octets());
    frame
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        Validated,
        names::HostChain,
        plan::{fixture::lab, host, inside as rules},
    };
    use proptest::prelude::*;
    use vbm_core::NetworkMode;

    fn ip(last: u8) -> Ipv4Addr {
        Ipv4Addr::new(192, 0, 2, last)
    }

    fn outside() -> Vec<(u32, Ipv4Net)> {
        vec![
            (2, "192.0.2.1/24".parse().unwrap()),
            (3, "198.51.100.1/24".parse().unwrap()),
        ]
    }

    fn take(seen: &mut Seen, step: Step) {
        let leads = |seen: &Seen, a| seen.routes.contains(&a);
        match step {
            Step::Route(a) => assert!(seen.routes.insert(a)),
            Step::Answer(link, a) => {
                assert!(leads(seen, a), "answered before it leads anywhere");
                seen.answers.insert((link, a));
            }
            Step::Silence(link, a) => assert!(seen.answers.remove(&(link, a))),
            Step::Forget(a) => assert!(leads(seen, a)),
            Step::Unroute(a) => {
                assert!(seen.routes.remove(&a));
                assert!(
                    !seen.answers.iter().any(|(_, b)| *b == a),
                    "answered, and leads nowhere"
                );
            }
        }
    }

    #[test]
    fn the_port_is_seen_by_its_floating_ip_and_the_others_by_the_hosts() {
        let mut net = lab(NetworkMode::Nat).into_inner();
        net.ports[0].policy.floating = Some(ip(50));
        let net = Validated::<DesiredNetwork>::new(net).unwrap();
        let transit = Transit::new("169.254.64.2/31".parse().unwrap()).unwrap();
        let inside = rules::render(&net, Some(transit));
        assert!(
            inside["nat"]["PREROUTING"]
                .rules
                .contains(&"-d 192.0.2.50/32 -i up0 -j DNAT --to-destination 10.77.0.10".to_owned())
        );
        assert_eq!(
            inside["nat"]["POSTROUTING"].rules,
            [
                "-s 10.77.0.10/32 -o up0 -j SNAT --to-source 192.0.2.50",
                "-s 10.77.0.0/24 -o up0 -j SNAT --to-source 169.254.64.3"
            ]
        );
        let on_host = host::render("lab-1", &net, transit, None);
        let forward = on_host[&HostChain::Forward].join("\n");
        let accept = forward.find("-d 192.0.2.50/32 -o vbu0000beef").unwrap();
        assert!(accept < forward.find("-j DROP").unwrap(), "{forward}");
        assert!(
            on_host[&HostChain::Postrouting]
                .join("\n")
                .contains("-d 192.0.2.50/32")
        );
    }

    #[test]
    fn an_address_is_answered_where_its_subnet_is_and_routed_in_any_case() {
        let far = Ipv4Addr::new(203, 0, 113, 9);
        let seen = Seen {
            links: outside(),
            ..Seen::default()
        };
        let steps = plan(&BTreeSet::from([ip(50), far]), &seen).unwrap();
        assert_eq!(
            steps,
            [Step::Route(ip(50)), Step::Route(far), Step::Answer(2, ip(50))]
        );
    }

    #[test]
    fn an_address_of_the_host_or_of_another_network_is_refused() {
        let seen = Seen {
            links: outside(),
            elsewhere: BTreeSet::from([ip(60)]),
            ..Seen::default()
        };
        let routed = Seen {
            routed: vec!["192.0.2.64/26".parse().unwrap()],
            ..Seen::default()
        };
        assert_eq!(
            plan(&BTreeSet::from([ip(70)]), &routed),
            Err(Clash::Network(ip(70)))
        );
        assert!(plan(&BTreeSet::from([ip(60)]), &routed).is_ok());
        assert_eq!(plan(&BTreeSet::from([ip(1)]), &seen), Err(Clash::Host(ip(1))));
        assert_eq!(
            plan(&BTreeSet::from([ip(60)]), &seen),
            Err(Clash::Network(ip(60)))
        );
    }

    #[test]
    fn an_announcement_says_the_address_twice_and_the_mac_as_its_own() {
        let frame = announcement("52:54:00:00:00:01".parse().unwrap(), ip(50));
        assert_eq!(frame.len(), 42);
        assert_eq!(frame[28..32], [192, 0, 2, 50]);
        assert_eq!(frame[38..42], [192, 0, 2, 50]);
        assert_eq!(frame[22..28], frame[6..12]);
    }

    proptest! {
        #[test]
        fn from_any_state_one_plan_is_enough_and_others_are_left_alone(
            wanted in proptest::collection::btree_set(50u8..56, 0..4),
            routes in proptest::collection::btree_set(50u8..56, 0..4),
            others in proptest::collection::btree_set(60u8..66, 0..4),
            answers in proptest::collection::btree_set((2u32..5, 50u8..66), 0..6),
        ) {
            let set = |of: &BTreeSet<u8>| -> BTreeSet<Ipv4Addr> { of.iter().map(|n| ip(*n)).collect() };
            let wanted = set(&wanted);
            let mut seen = Seen {
                routes: set(&routes),
                elsewhere: set(&others),
                answers: answers.iter().map(|(l, n)| (*l, ip(*n))).collect(),
                links: outside(),
                routed: Vec::new(),
            };
            let theirs: BTreeSet<_> = seen.answers.iter().filter(|(_, a)| seen.elsewhere.contains(a)).copied().collect();
            for step in plan(&wanted, &seen).unwrap() {
                take(&mut seen, step);
            }
            prop_assert_eq!(plan(&wanted, &seen).unwrap(), Vec::new());
            prop_assert!(theirs.is_subset(&seen.answers));
        }
    }
}
