//! The leg of a bridged network: how its bridge is joined to the LAN that an operator named. Pure.
//!
//! ```text
//!   uplink is a bridge of the host     br0 -- lan0 ==veth== vbl<net> -- uplink     the host goes on using it, with its addresses
//!   uplink is any other interface      br0 -- lan0 (macvlan, passthru) -- uplink   all that it hears is the network's
//! ```
//!
//! No address of the host is ever moved, and no interface that has one is taken: with a macvlan in passthru mode the host hears nothing there
//! any more, so the host's own connection could be cut. A network has one leg, and the guard lets a VM speak with its own MACs only, so
//! no loop can be built. The macvlan is made directly in the namespace and goes with it: the interface is then as it was, but up.

use crate::NetError;
use ipnet::IpNet;
use std::fmt;
use vbm_core::{InterfaceName, Uplink};

/// What is seen of the interface that was named.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Seen {
    /// Whether it is a bridge.
    pub is_bridge: bool,
    /// Whether it is the loopback.
    pub is_loopback: bool,
    /// Whether it is one of ours: it bears a tag, or a name that only we give.
    pub is_ours: bool,
    /// The bridge or bond that it is a part of.
    pub part_of: Option<String>,
    /// Its addresses, but for link-local ones of IPv6.
    pub addresses: Vec<IpNet>,
    /// Where the host goes by it, but for link-local and multicast of IPv6.
    pub routes: Vec<IpNet>,
}

/// How it is joined.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Join {
    /// By a pair of links, one of them a port of it.
    Pair,
    /// By a macvlan that takes all that it hears.
    Passthru,
}

/// Why it cannot be joined.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// There is none of that name.
    Absent,
    /// It is the loopback, or made by VBM.
    NotAWay,
    /// It is a part of something else.
    PartOf(String),
    /// The host has an address there.
    HasAddress(IpNet),
    /// The host goes somewhere by it.
    HasRoute(IpNet),
}

impl Refusal {
    /// Why, in the words of a sentence.
    fn why(&self) -> String {
        match self {
            Self::Absent => "there is no such interface on this host".to_owned(),
            Self::NotAWay => "it is the loopback or was made by VBM, and leads to no LAN".to_owned(),
            Self::PartOf(other) => format!("it is a part of {other}, which hears all that comes by it"),
            Self::HasAddress(address) => {
                format!("the host has the address {address} there, and would no longer be reached by it")
            }
            Self::HasRoute(to) if to.prefix_len() == 0 => {
                "the host's default route leads there, and the host would be cut off".to_owned()
            }
            Self::HasRoute(to) => format!("the host's route to {to} leads there, and would end"),
        }
    }

    /// As it is told.
    pub fn told(&self, uplink: &InterfaceName) -> NetError {
        let what = format!("no network can go by {uplink} on this host");
        let bridge = format!(
            "make a bridge of the host with {uplink} and its addresses in it, and name that bridge; or name an interface that the host does not use"
        );
        let fix = match self {
            Self::Absent => "make it, or name one that `ip link` shows".to_owned(),
            Self::NotAWay => "name a bridge of the host, or an interface that leads to the LAN".to_owned(),
            Self::PartOf(other) => format!("name {other}"),
            Self::HasAddress(_) | Self::HasRoute(_) => bridge,
        };
        let why = self.why();
        NetError::Conflict { what, why, fix }
    }
}

impl fmt::Display for Join {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Pair => "a port of it",
            Self::Passthru => "all of it",
        })
    }
}

/// How an interface is joined. `stands`: it is joined already, so what came to it since cannot be harmed any more.
///
/// # Errors
/// It cannot be, or must not.
pub fn choose(seen: Option<&Seen>, stands: bool) -> Result<Join, Refusal> {
    let seen = seen.ok_or(Refusal::Absent)?;
    if seen.is_loopback || seen.is_ours {
        return Err(Refusal::NotAWay);
    }
    if let Some(other) = &seen.part_of {
        return Err(Refusal::PartOf(other.clone()));
    }
    if seen.is_bridge {
        return Ok(Join::Pair);
    }
    if stands {
        return Ok(Join::Passthru);
    }
    if let Some(address) = seen.addresses.first() {
        return Err(Refusal::HasAddress(*address));
    }
    match seen.routes.first() {
        Some(to) => Err(Refusal::HasRoute(*to)),
        None => Ok(Join::Passthru),
    }
}

/// The interfaces that a network may name, each with what keeps a bridged one from it.
pub(crate) fn offered(all: impl Iterator<Item = (String, Seen)>) -> Vec<Uplink> {
    let uplink = |(name, seen): (String, Seen)| {
        let unfit = match choose(Some(&seen), false) {
            Ok(_) => None,
            Err(Refusal::Absent | Refusal::NotAWay) => return None,
            Err(refusal) => Some(refusal.why()),
        };
        // One that cannot be named is no use to anybody.
        let name = name.parse().ok()?;
        Some(Uplink { name, unfit })
    };
    all.filter_map(uplink).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plain() -> Seen {
        Seen::default()
    }

    #[test]
    fn a_bridge_is_joined_whatever_the_host_has_there_and_an_interface_only_if_it_has_nothing() {
        let used = Seen {
            addresses: vec!["192.0.2.1/24".parse().unwrap()],
            routes: vec!["0.0.0.0/0".parse().unwrap()],
            ..plain()
        };
        let bridge = Seen {
            is_bridge: true,
            ..used.clone()
        };
        assert_eq!(choose(Some(&bridge), false), Ok(Join::Pair));
        assert_eq!(choose(Some(&plain()), false), Ok(Join::Passthru));
        assert!(matches!(choose(Some(&used), false), Err(Refusal::HasAddress(_))));
        assert_eq!(choose(Some(&used), true), Ok(Join::Passthru), "it stands already");
        let routed = Seen {
            addresses: vec![],
            ..used
        };
        assert!(matches!(choose(Some(&routed), false), Err(Refusal::HasRoute(_))));
    }

    #[test]
    fn what_leads_to_no_lan_or_is_a_part_of_something_is_refused_with_what_to_do() {
        let uplink: InterfaceName = "eth7".parse().unwrap();
        let part = Seen {
            part_of: Some("bond0".into()),
            ..plain()
        };
        let refusals = [
            choose(None, false),
            choose(
                Some(&Seen {
                    is_loopback: true,
                    ..plain()
                }),
                false,
            ),
            choose(
                Some(&Seen {
                    is_ours: true,
                    is_bridge: true,
                    ..plain()
                }),
                false,
            ),
            choose(Some(&part), true),
        ];
        for refused in refusals {
            let told = vbm_core::Error::from(refused.unwrap_err().told(&uplink));
            assert!(
                told.what().contains("eth7") && !told.why().is_empty() && told.fix().contains("name"),
                "{told}"
            );
        }
        let told = vbm_core::Error::from(choose(Some(&part), false).unwrap_err().told(&uplink));
        assert_eq!(told.fix(), "name bond0");
    }

    #[test]
    fn what_a_network_may_name_is_told_with_what_keeps_a_bridged_one_from_it() {
        let used = Seen {
            addresses: vec!["192.0.2.1/24".parse().unwrap()],
            ..plain()
        };
        let part = Seen {
            part_of: Some("br-lan".into()),
            ..plain()
        };
        let bridge = Seen {
            is_bridge: true,
            ..used.clone()
        };
        let ours = Seen {
            is_ours: true,
            ..plain()
        };
        let loopback = Seen {
            is_loopback: true,
            ..plain()
        };
        let all = [
            ("lo", loopback),
            ("eth0", used),
            ("eth1", part),
            ("eth2", plain()),
            ("br-lan", bridge),
            ("vbu0000000a", ours),
            ("eth+", plain()),
        ];
        let offered = offered(all.into_iter().map(|(name, seen)| (name.to_owned(), seen)));
        let told: Vec<(&str, bool)> = offered
            .iter()
            .map(|uplink| (uplink.name.as_str(), uplink.unfit.is_none()))
            .collect();
        assert_eq!(
            told,
            [("eth0", false), ("eth1", false), ("eth2", true), ("br-lan", true)]
        );
        let why = |at: usize| offered[at].unfit.clone().unwrap();
        assert!(
            why(0).contains("192.0.2.1/24") && why(1).contains("br-lan"),
            "{offered:?}"
        );
    }
}
