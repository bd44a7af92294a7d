//! From what is wanted to the exact text of rules: pure functions, no I/O.
//!
//! ```text
//!   Validated<DesiredNetwork> --inside::render--> Tables   --+
//!                             --sets::render----> Sets     --+
//!                             --guard::render---> Guard    --+-- diff(observed) --> script or nothing
//!                             --host::render----> HostRules--+
//!                             --overlay::render-> Entries  --+
//!   iptables-save, nft list  --parse------------> observed --+
//! ```
//!
//! Rules are written in the very form in which `iptables-save` and `nft list` print them, so that reading back
//! is a comparison of text: no hash to trust, no rule that merely looks applied. Each script is one transaction of
//! the kernel: either the whole new set stands or the whole old one.

pub mod carry;
pub(crate) mod connections;
pub(crate) mod dispatch;
pub(crate) mod filter;
pub mod floating;
pub mod flows;
pub mod guard;
mod guard6;
pub(crate) mod guard_back;
mod guard_leg;
pub mod host;
pub mod inside;
pub mod leg;
pub(crate) mod nft_table;
pub mod overlay;
pub mod policy;
pub mod routed;
pub mod sets;
mod spelling;
pub mod tables;
pub mod trace;
pub mod transit;
mod tree;
pub(crate) mod verdict;

use ipnet::Ipv4Net;
use std::net::Ipv4Addr;

/// The addresses between host and namespace: a /31 (RFC 3021), the host has the even one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Transit(Ipv4Net);

impl Transit {
    /// From its /31; `None` for any other size.
    pub fn new(net: Ipv4Net) -> Option<Self> {
        (net.prefix_len() == 31).then(|| Self(net.trunc()))
    }
    /// The /31.
    pub const fn net(self) -> Ipv4Net {
        self.0
    }
    /// The host's end.
    pub fn host(self) -> Ipv4Addr {
        self.0.network()
    }
    /// The namespace's end.
    pub fn inner(self) -> Ipv4Addr {
        self.0.broadcast()
    }
}

#[cfg(test)]
pub(crate) mod fixture {
    use crate::{DesiredNetwork, Validated, conformance::Fixture};
    use vbm_core::{NetworkMode, SeededIds};

    /// A group with such an id and rules.
    pub(crate) fn group(id: u128, rules: &[&str]) -> crate::DesiredGroup {
        crate::DesiredGroup {
            id: vbm_core::GroupId::from_uuid(uuid::Uuid::from_u128(id)),
            name: format!("group-{id}").parse().unwrap(),
            spec: vbm_core::GroupSpec {
                rules: rules.iter().map(|r| r.parse().unwrap()).collect(),
                egress_closed: false,
            },
            members: Vec::new(),
        }
    }

    /// [`lab`] with two ports on another host.
    pub(crate) fn spanning() -> Validated<DesiredNetwork> {
        let ids = SeededIds::new(2);
        let mut net = lab(NetworkMode::Nat).into_inner();
        net.overlay = Some(Fixture::new(&ids).overlay(2));
        Validated::<DesiredNetwork>::new(net).unwrap()
    }

    /// Two ports, the first open for some traffic; one forward of each kind.
    pub(crate) fn lab(mode: NetworkMode) -> Validated<DesiredNetwork> {
        let ids = SeededIds::new(1);
        let fixture = Fixture::new(&ids);
        let mut net = fixture.network(mode, 2);
        net.id = "0190b6f2-4c1e-7cc3-a7a4-0d1f0000beef".parse().unwrap();
        net.ports[0].id = "0190b6f2-4c1e-7cc3-a7a4-0d1f0000000a".parse().unwrap();
        net.ports[1].id = "0190b6f2-4c1e-7cc3-a7a4-0d1f0000000b".parse().unwrap();
        net.ports[0].rules = ["tcp/80", "udp/5000-5010@10.0.0.0/8", "icmp", "any@192.168.0.0/16"]
            .map(|r| r.parse().unwrap())
            .into();
        if mode == NetworkMode::Nat {
            net.forwards.push(fixture.forward(8080, net.ports[0].id, 80));
            let mut second = fixture.forward(8080, net.ports[1].id, 81);
            second.listen_address = Some([192, 0, 2, 1].into());
            second.protocol = vbm_core::Protocol::Udp;
            net.forwards.push(second);
        }
        Validated::<DesiredNetwork>::new(net).unwrap()
    }
}
