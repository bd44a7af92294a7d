//! The guard's part for IPv6: who may answer for an address, and that nobody is a router.
//!
//! ```text
//!   from a port: ICMPv6 in pieces                                    dropped
//!                router advertisement, redirect, DHCPv6 server        dropped
//!                neighbour advertisement, or a claim (from ::), of an address that is not its own    dropped
//!                a claim of its own; a question for routers           accepted, from ::
//!                its own sources, each with its MAC                   accepted
//!   to a port:   who asks and answers neighbours; advertisements of the gateway; its own addresses
//! ```
//!
//! RFC 4861 (neighbours), RFC 4862 (claims), RFC 6105 (router advertisements). A message in pieces is seen by its first piece only, so
//! ICMPv6 does not pass in pieces (RFC 6980, which speaks of neighbours alone: a ping larger than the MTU is lost too), nor what could
//! hide it (RFC 7113). The group rules, which see packets whole, drop routers' messages again ([`super::inside::render6`]).

use super::guard::spelled;
use ipnet::{IpNet, Ipv6Net};
use std::collections::BTreeSet;
use vbm_core::Mac;

/// Where the target stands behind the start of a neighbour's message (RFC 4861 section 4.3), in bits.
const TARGET_AT_BITS: u32 = 64;
/// Where solicitations go (RFC 4291 section 2.7.1).
const SOLICITED_NODES: &str = "ff02::1:ff00:0/104";
const ALL_NODES: &str = "ff02::1";

/// Pieces of ICMPv6 (58), or of what may hide it: hop-by-hop options, routing, pieces again, options (0, 43, 44, 60).
const IN_PIECES: &str = "frag nexthdr { 0, 43, 44, 58, 60 } drop";

/// What a port may say, without the last drop.
pub(super) fn from_port(identities: &[(Mac, IpNet)], macs: &BTreeSet<Mac>) -> Vec<String> {
    let mut own: Vec<Ipv6Net> = Vec::new();
    for (_, net) in identities {
        if let IpNet::V6(net) = net
            && !own.contains(net)
        {
            own.push(*net);
        }
    }
    let foreign: Vec<String> = own
        .iter()
        .map(|net| format!("@th,{TARGET_AT_BITS},{}", not_within(*net)))
        .collect();
    let foreign = foreign.join(" ");
    let mut lines = vec![
        IN_PIECES.to_owned(),
        "icmpv6 type 134 drop".to_owned(),
        "icmpv6 type 137 drop".to_owned(),
        "udp sport 547 drop".to_owned(),
        format!("icmpv6 type 136 {foreign} drop"),
        format!("ip6 saddr :: icmpv6 type 135 {foreign} drop"),
    ];
    for mac in macs {
        lines.push(format!(
            "ether saddr {mac} ip6 saddr :: ip6 daddr {SOLICITED_NODES} icmpv6 type 135 accept"
        ));
        lines.push(format!("ether saddr {mac} ip6 saddr :: icmpv6 type 133 accept"));
    }
    for (mac, net) in identities.iter().filter(|(_, net)| matches!(net, IpNet::V6(_))) {
        lines.push(format!("ether saddr {mac} ip6 saddr {} accept", spelled(net)));
    }
    lines
}

/// The length and the value of a raw match for what lies outside of a network.
fn not_within(net: Ipv6Net) -> String {
    let length = u32::from(net.prefix_len());
    // nft speaks of whole bytes, and masks what is too much.
    let whole = length.next_multiple_of(8);
    let cut = |bits: u128| bits.checked_shr(128 - whole).unwrap_or(0);
    let (mask, bits) = (cut(u128::from(net.netmask())), cut(u128::from(net.network())));
    if whole == length {
        format!("{length} != 0x{bits:x}")
    } else {
        format!("{whole} & 0x{mask:x} != 0x{bits:x}")
    }
}

/// What never crosses to another host: what routers say or are asked, neighbours (each host answers for all), DHCPv6, and what could hide
/// it.
pub(super) fn stays_on_its_host() -> [String; 4] {
    [
        IN_PIECES.into(),
        "icmpv6 type 133-137 drop".into(),
        "udp sport 546-547 drop".into(),
        "udp dport 546-547 drop".into(),
    ]
}

/// What a port may hear.
pub(super) fn to_port(nets: &[IpNet]) -> Vec<String> {
    let mut lines = vec![
        format!("ip6 daddr {SOLICITED_NODES} icmpv6 type 135 accept"),
        format!("ip6 daddr {ALL_NODES} icmpv6 type 134 accept"),
        format!("ip6 daddr {ALL_NODES} icmpv6 type 136 accept"),
    ];
    let own = nets.iter().filter(|net| matches!(net, IpNet::V6(_)));
    lines.extend(own.map(|net| format!("ip6 daddr {} accept", spelled(net))));
    lines
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        DesiredNetwork, Validated,
        plan::{fixture::lab, guard},
    };
    use vbm_core::{AddressPair, NetworkMode};

    #[test]
    fn a_port_with_an_address_of_ipv6_answers_for_it_alone() {
        let mut net = lab(NetworkMode::Nat).into_inner();
        net.ports[0].policy.pairs = vec![AddressPair::of("fd00::a".parse().unwrap())];
        let guard = guard::render(&Validated::<DesiredNetwork>::new(net).unwrap());
        let (mine, claims) = (&guard.chains["in-0000000a"], &guard.chains["to-0000000a"]);
        let line = "icmpv6 type 136 @th,64,128 != 0xfe80000000000000505400fffe770000 @th,64,128 != 0xfd00000000000000000000000000000a drop";
        assert!(mine.iter().any(|l| l == line), "{mine:#?}");
        assert!(
            mine.iter()
                .any(|l| l == "ether saddr 52:54:00:77:00:00 ip6 saddr fd00::a accept")
        );
        assert_eq!(mine.last().unwrap(), "drop");
        assert!(claims.iter().any(|l| l == "ip6 daddr fd00::a accept"));
        assert!(
            !guard.chains["in-0000000b"].join(" ").contains("ip6"),
            "another port has none"
        );
    }

    #[test]
    fn an_address_of_its_own_is_as_good_as_one_that_it_was_allowed() {
        let net = lab(NetworkMode::Nat).into_inner();
        let (mut own, mut pair) = (net.clone(), net);
        own.spec.ipv6 = Some(vbm_core::Ipv6Spec::new("fd00::/64".parse().unwrap()).unwrap());
        own.ports[0].address6 = Some("fd00::a".parse().unwrap());
        pair.ports[0].policy.pairs = vec![AddressPair::of("fd00::a".parse().unwrap())];
        let [own, pair] =
            [own, pair].map(|net| guard::render(&Validated::<DesiredNetwork>::new(net).unwrap()));
        assert_eq!(own, pair);
    }

    #[test]
    fn the_target_is_compared_as_far_as_the_network_says() {
        assert_eq!(not_within("fd00::/8".parse().unwrap()), "8 != 0xfd");
        assert_eq!(
            not_within("fd00:0:0:1::/64".parse().unwrap()),
            "64 != 0xfd00000000000001"
        );
        assert_eq!(
            not_within("fd00::/60".parse().unwrap()),
            "64 & 0xfffffffffffffff0 != 0xfd00000000000000"
        );
    }
}
