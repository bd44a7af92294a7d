//! Every name that this crate gives to something on a host. Nowhere else is one made.
//!
//! Interface names have 15 usable bytes (`IFNAMSIZ` is 16 with its NUL), iptables chains 28. All names hold the
//! last eight hex digits of an id; ids whose tails collide are refused before anything is made.
//!
//! | thing | name | where |
//! |---|---|---|
//! | namespace | `vbm-<net>` | `/run/netns` |
//! | namespace of a host that is one itself | `vbm-<net>-<owner hash>` | `/run/netns` |
//! | transit, host end | `vbu<net>` | host |
//! | transit, inner end | `up0` | namespace |
//! | bridge | `br0` | namespace |
//! | leg to the LAN of a bridged network | `lan0` | namespace |
//! | the same, host end where it leads to a bridge | `vbl<net>` | host |
//! | vxlan | `vx0` | namespace |
//! | NIC | `tap<port>` | namespace |
//! | NIC, the end of one that is an interface | `vbp<port>` | host |
//! | a policy's chains, in and out | `VBM-P-<hash>`, `VBM-E-<hash>` | namespace, filter |
//! | dispatch, by tap and address | `VBM-TO`, `VBM-FROM`, `VBM-AT`, and these with digits | namespace, filter |
//! | where what a port sends is limited | `lim<port>` | namespace |
//! | connections of a port are counted | `VBM-C-<port>`, by `VBM-CF` and `VBM-CT` | namespace, mangle |
//! | members of a group | `vbm4-<group>`, `vbm6-<group>` | namespace, ipset |
//! | guard of a port, from and to it | `in-<port>`, `to-<port>` | namespace, nft bridge |
//! | where nft dispatches: marks; rules | `vbm-slots`, `vbm-filter` | namespace, nft bridge and inet |
//! | host chains | `VBM-<owner hash>-FWD` and so on | host |

use vbm_core::{GroupId, NetworkId, PortId};

/// The bridge of a network, in its namespace.
pub const BRIDGE: &str = "br0";
/// The inner end of the transit, in the namespace.
pub const UPLINK: &str = "up0";
/// The link that leads to other hosts, in the namespace.
pub const VXLAN: &str = "vx0";
/// The leg of a bridged network, in the namespace.
pub const LEG: &str = "lan0";
/// The table of the guard, family bridge.
pub const GUARD_TABLE: &str = "vbm";
/// The table that marks packets by their taps, family bridge, where nft dispatches.
pub const SLOTS_TABLE: &str = "vbm-slots";
/// The table of rules, family inet, where nft dispatches.
pub const FILTER_TABLE: &str = "vbm-filter";
/// The chain that chooses the policy of the port a packet goes to, by its tap.
pub const DISPATCH_CHAIN: &str = "VBM-TO";
/// The chain that chooses the policy of the port a packet comes from.
pub const FROM_CHAIN: &str = "VBM-FROM";
/// The chain that chooses the policy of the port a packet goes to, by its address.
pub const AT_CHAIN: &str = "VBM-AT";
/// What sets of IPv4 members begin with.
pub const SET4_PREFIX: &str = "vbm4-";
/// What sets of IPv6 members begin with.
pub const SET6_PREFIX: &str = "vbm6-";
/// What a set ends with while it is filled.
pub const SET_ASIDE: &str = "-t";
/// What host ends of transits begin with; `vbu+` in iptables.
pub const TRANSIT_PREFIX: &str = "vbu";
/// What host ends of legs to bridges begin with.
pub const LEG_PREFIX: &str = "vbl";
/// What namespaces begin with.
pub const NAMESPACE_PREFIX: &str = "vbm-";
/// What the host's ends of NICs that are interfaces begin with.
pub const INTERFACE_PREFIX: &str = "vbp";
/// What taps begin with.
pub const TAP_PREFIX: &str = "tap";

/// What intermediate devices begin with.
pub const LIMIT_PREFIX: &str = "lim";
/// The chain that finds the port which a new connection comes from.
pub const COUNT_FROM_CHAIN: &str = "VBM-CF";
/// The chain that finds the port which a new connection goes to.
pub const COUNT_TO_CHAIN: &str = "VBM-CT";

/// The longest owner tag, in bytes: it must fit an interface alias beside an id.
pub const OWNER_MAX_BYTES: usize = 64;

/// The namespace of a network.
pub fn namespace(network: NetworkId) -> String {
    format!("{NAMESPACE_PREFIX}{}", network.short())
}
/// The namespace of a network on a host that is itself a namespace: several of them may share one machine, and with it one
/// `/run/netns`, and hold the same network.
pub fn namespace_beside(owner: &str, network: NetworkId) -> String {
    format!("{}-{:08x}", namespace(network), fnv1a(owner))
}
/// The host end of a network's transit.
pub fn transit(network: NetworkId) -> String {
    format!("{TRANSIT_PREFIX}{}", network.short())
}
/// The host end of a network's leg to a bridge of the host.
pub fn leg(network: NetworkId) -> String {
    format!("{LEG_PREFIX}{}", network.short())
}
/// The tap of a port.
pub fn tap(port: PortId) -> String {
    format!("{TAP_PREFIX}{}", port.short())
}
/// The host's end of a port whose NIC is an interface.
pub fn interface(port: PortId) -> String {
    format!("{INTERFACE_PREFIX}{}", port.short())
}
/// The intermediate device by which what a port sends is limited.
pub fn limit(port: PortId) -> String {
    format!("{LIMIT_PREFIX}{}", port.short())
}
/// The chain that counts the connections of a port.
pub fn count_chain(port: PortId) -> String {
    format!("VBM-C-{}", port.short())
}
/// The chain of a policy: what may reach its ports.
pub fn ingress_chain(policy: u64) -> String {
    format!("VBM-P-{policy:016x}")
}
/// The chain of a policy: what may leave its ports.
pub fn egress_chain(policy: u64) -> String {
    format!("VBM-E-{policy:016x}")
}
/// The chain that asks the policies of several ports that share an address.
pub fn shared_chain(policies: u64) -> String {
    format!("VBM-A-{policies:016x}")
}
/// The set of a group's members.
pub fn group_set(group: GroupId, v6: bool) -> String {
    format!("{}{}", if v6 { SET6_PREFIX } else { SET4_PREFIX }, group.short())
}
/// The guard's chain for what a port sends.
pub fn guard_in(port: PortId) -> String {
    format!("in-{}", port.short())
}
/// The guard's chain for what is sent to a port.
pub fn guard_to(port: PortId) -> String {
    format!("to-{}", port.short())
}

/// The five host chains of an owner.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum HostChain {
    /// filter INPUT: what comes from networks to the host itself.
    Input,
    /// filter FORWARD.
    Forward,
    /// nat PREROUTING: forwards for the world.
    Prerouting,
    /// nat OUTPUT: forwards for the host itself.
    Output,
    /// nat POSTROUTING: the way out.
    Postrouting,
}

impl HostChain {
    /// All of them.
    pub const ALL: [Self; 5] = [
        Self::Input,
        Self::Forward,
        Self::Prerouting,
        Self::Output,
        Self::Postrouting,
    ];

    /// Its table.
    pub const fn table(self) -> &'static str {
        match self {
            Self::Input | Self::Forward => "filter",
            Self::Prerouting | Self::Output | Self::Postrouting => "nat",
        }
    }
    /// The built-in chain that jumps to it.
    pub const fn hook(self) -> &'static str {
        match self {
            Self::Input => "INPUT",
            Self::Forward => "FORWARD",
            Self::Prerouting => "PREROUTING",
            Self::Output => "OUTPUT",
            Self::Postrouting => "POSTROUTING",
        }
    }
    const fn suffix(self) -> &'static str {
        match self {
            Self::Input => "IN",
            Self::Forward => "FWD",
            Self::Prerouting => "PRE",
            Self::Output => "OUT",
            Self::Postrouting => "POST",
        }
    }
    /// Its name for an owner.
    pub fn name(self, owner: &str) -> String {
        format!("VBM-{:08x}-{}", fnv1a(owner), self.suffix())
    }
}

/// The tag on links, as their alias.
pub fn alias(owner: &str, network: NetworkId) -> String {
    format!("vbm owner={owner} network={network}")
}
/// Reads [`alias`].
pub fn parse_alias(text: &str) -> Option<(String, NetworkId)> {
    let (owner, network) = text.strip_prefix("vbm owner=")?.split_once(" network=")?;
    Some((owner.to_owned(), network.parse().ok()?))
}

/// The comment on host rules of a network.
pub fn rule_comment(owner: &str, network: NetworkId) -> String {
    format!("vbm:{owner}:{}", network.short())
}
/// The comment on the jumps from built-in chains to those of an owner.
pub fn hook_comment(owner: &str) -> String {
    format!("vbm:{owner}")
}

/// Whether text can be an owner tag: it stands in rules, aliases and file names.
pub fn is_owner(text: &str) -> bool {
    (1..=OWNER_MAX_BYTES).contains(&text.len())
        && text
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'))
        && !text.starts_with('.')
        && !text.starts_with('-')
}

/// FNV-1a: a short, stable name for an owner. Not for security: the full tag stands in comments and records.
pub(crate) fn fnv1a(text: &str) -> u32 {
    text.bytes().fold(0x811c_9dc5, |hash, byte| {
        (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193)
    })
}

/// FNV-1a of 64 bits. Not for security: who writes rules can shut or open ports anyway.
pub(crate) fn fnv1a64(text: &str) -> u64 {
    text.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use uuid::Uuid;

    const IFNAME_MAX_BYTES: usize = 15;
    const CHAIN_MAX_BYTES: usize = 28;

    proptest! {
        #[test]
        fn every_name_fits_its_limit(id: u128, owner in "[a-z0-9][a-z0-9_.-]{0,63}") {
            let (net, port) = (NetworkId::from_uuid(Uuid::from_u128(id)), PortId::from_uuid(Uuid::from_u128(id)));
            for name in [transit(net), leg(net), LEG.into(), tap(port), interface(port), limit(port), VXLAN.into(), UPLINK.into(), BRIDGE.into(), guard_in(port), guard_to(port)] {
                prop_assert!(name.len() <= IFNAME_MAX_BYTES, "{}", name);
            }
            for name in HostChain::ALL.map(|c| c.name(&owner)) {
                prop_assert!(name.len() <= CHAIN_MAX_BYTES, "{}", name);
            }
            for name in [ingress_chain(u64::MAX), egress_chain(u64::MAX)] {
                prop_assert!(name.len() <= CHAIN_MAX_BYTES, "{}", name);
            }
            let group = GroupId::from_uuid(Uuid::from_u128(id));
            prop_assert!(group_set(group, true).len() + SET_ASIDE.len() < 32, "IPSET_MAXNAMELEN");
            prop_assert!(is_owner(&owner));
            prop_assert!(alias(&owner, net).len() < 256, "IFALIASZ");
            prop_assert!(rule_comment(&owner, net).len() < 256, "xt_comment");
        }

        #[test]
        fn an_alias_is_read_as_it_was_written(id: u128, owner in "[a-z0-9][a-z0-9_.-]{0,63}") {
            let net = NetworkId::from_uuid(Uuid::from_u128(id));
            prop_assert_eq!(parse_alias(&alias(&owner, net)), Some((owner, net)));
        }

        #[test]
        fn no_foreign_alias_is_taken_for_ours_and_none_panics(text in ".{0,60}") {
            if let Some((owner, net)) = parse_alias(&text) { prop_assert_eq!(alias(&owner, net), text); }
        }
    }

    #[test]
    fn owner_tags_that_would_break_a_rule_or_a_path_are_refused() {
        for bad in ["", "a b", "a\"b", "../x", "a/b", ".x", "-x", "ä", &"a".repeat(65)] {
            assert!(!is_owner(bad), "{bad}");
        }
    }
}
