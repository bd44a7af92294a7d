//! How a packet finds the policy of its port, and who judges it then: one trait, two ways.
//!
//! | | [`Dispatch::Iptables`] | [`Dispatch::Nft`] |
//! |---|---|---|
//! | finds a port | a tree of chains, 16 rules a step ([`super::tree`]) | one lookup in a verdict map ([`super::verdict`]) |
//! | policies | chains of iptables and ip6tables | chains of one table for both families |
//! | members of groups | ipset | sets of that table |
//! | a change | `iptables-restore --noflush` | part of the `nft -f` that writes the guard |
//!
//! Both are rendered from the same [`Policies`], so they let the same packets pass; the test `ns_policy` asks both with real ones.
//! NAT and the number of connections stay with iptables either way.

use super::{
    Transit, connections,
    filter::Family,
    inside,
    nft_table::NftTable,
    policy::Policies,
    sets::{self, Sets},
    tables::{Table, Tables, chain},
    verdict,
};
use crate::{DesiredNetwork, Validated};

/// Which part of the kernel's firewall finds a port's policy and judges by it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Dispatch {
    /// Chains of iptables, as a tree.
    #[default]
    Iptables,
    /// Verdict maps of nf_tables.
    Nft,
}

impl Dispatch {
    /// All there are.
    pub const ALL: [Self; 2] = [Self::Iptables, Self::Nft];

    /// The way itself.
    pub(crate) fn backend(self) -> &'static dyn Backend {
        match self {
            Self::Iptables => &PrefixTree,
            Self::Nft => &VerdictMaps,
        }
    }
}

impl std::fmt::Display for Dispatch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Iptables => "iptables",
            Self::Nft => "nft",
        })
    }
}

impl std::str::FromStr for Dispatch {
    type Err = vbm_core::Error;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::ALL
            .into_iter()
            .find(|d| d.to_string() == text)
            .ok_or_else(|| {
                vbm_core::Error::new(
                    vbm_core::ErrorKind::InvalidInput,
                    format!("'{text}' is no way to dispatch packets"),
                    "there are two: iptables and nft",
                    "write iptables, or leave it out",
                )
            })
    }
}

/// The two tables of nf_tables that verdict maps need; both empty where iptables dispatches.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Nft {
    /// Which tap a packet came by and goes out by, as its mark.
    pub(crate) slots: NftTable,
    /// The rules.
    pub(crate) filter: NftTable,
}

/// Everything that judges packets in a network's namespace, but for the guard.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Rules {
    pub(crate) sets: Sets,
    pub(crate) v4: Tables,
    pub(crate) v6: Tables,
    pub(crate) nft: Nft,
}

/// One way to let packets find their port's policy.
pub(crate) trait Backend: Sync {
    /// The rules of a network. `transit` is `None` where it has no way out.
    fn render(&self, net: &Validated<DesiredNetwork>, transit: Option<Transit>) -> Rules;
}

/// Chains of iptables.
struct PrefixTree;

impl Backend for PrefixTree {
    fn render(&self, net: &Validated<DesiredNetwork>, transit: Option<Transit>) -> Rules {
        Rules {
            sets: sets::render(&Policies::new(net)),
            v4: inside::render(net, transit),
            v6: inside::render6(net),
            nft: Nft::default(),
        }
    }
}

/// Maps of nf_tables.
struct VerdictMaps;

impl Backend for VerdictMaps {
    fn render(&self, net: &Validated<DesiredNetwork>, transit: Option<Transit>) -> Rules {
        let mut v4 = Tables::from([
            ("filter".into(), open()),
            ("nat".into(), inside::nat(net, transit)),
        ]);
        connections::add(&mut v4, net, Family::V4);
        let mut v6 = Tables::new();
        if inside::speaks_ipv6(net) {
            v6.insert("filter".into(), open());
            connections::add(&mut v6, net, Family::V6);
        }
        Rules {
            sets: Sets::new(),
            v4,
            v6,
            nft: Nft {
                slots: verdict::slots_table(net),
                filter: verdict::filter_table(net, transit),
            },
        }
    }
}

/// A filter table that leaves it to the other.
fn open() -> Table {
    let mut table = Table::new();
    for name in ["INPUT", "FORWARD", "OUTPUT"] {
        chain(&mut table, name, Some("ACCEPT"), Vec::new());
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::fixture::lab;
    use vbm_core::NetworkMode;

    #[test]
    fn what_is_printed_is_read_and_what_is_unknown_is_told() {
        for way in Dispatch::ALL {
            assert_eq!(way.to_string().parse::<Dispatch>().unwrap(), way);
        }
        let error = "ebpf".parse::<Dispatch>().unwrap_err().to_string();
        assert!(error.contains("ebpf"), "{error}");
    }

    #[test]
    fn where_maps_dispatch_iptables_holds_nat_and_no_filter() {
        let net = lab(NetworkMode::Isolated);
        let (tree, maps) = (
            Dispatch::Iptables.backend().render(&net, None),
            Dispatch::Nft.backend().render(&net, None),
        );
        assert!(tree.nft == Nft::default() && !tree.v4["filter"]["FORWARD"].rules.is_empty());
        assert_eq!(tree.v4["nat"], maps.v4["nat"]);
        assert!(maps.v4["filter"].values().all(|c| c.rules.is_empty()) && maps.sets.is_empty());
        assert!(!maps.nft.filter.is_empty() && !maps.nft.slots.is_empty());
    }
}
