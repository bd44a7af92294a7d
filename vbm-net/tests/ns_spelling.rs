//! Addresses of IPv6 are read back as they are written, however the tools spell them.

#![allow(clippy::unwrap_used, reason = "a helper of a test that cannot go on panics")]

mod common;

use common::{Lab, group_of, network};
use std::{collections::BTreeSet, net::Ipv6Addr};
use vbm_core::{
    AddressPair, NetworkMode,
    limits::{GROUP_MAX_RULES, PORT_MAX_PAIRS},
};

/// Addresses whose words are zeros and not: every way to write one differs in those.
fn addresses() -> BTreeSet<Ipv6Addr> {
    let mut all = BTreeSet::from(
        [
            "::1.2.3.0",
            "::ffff:1.2.3.4",
            "::2:5",
            "::1:0",
            "::ffff:0",
            "::5:0:0",
        ]
        .map(|a| a.parse().unwrap()),
    );
    for mask in 1u16..256 {
        let word = |n: usize| (mask >> n & 1) * [1u16, 0x102, 0xffff][n % 3];
        all.insert(Ipv6Addr::from(std::array::from_fn::<u16, 8, _>(word)));
    }
    let good = |a: &Ipv6Addr| !(a.is_loopback() || a.is_unspecified() || a.is_multicast());
    all.into_iter().filter(good).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_address_is_read_back_however_the_tools_spell_it() {
    needs_namespaces!();
    let lab = Lab::new().await;
    let addresses: Vec<Ipv6Addr> = addresses().into_iter().collect();
    let mut wanted = network(NetworkMode::Isolated, 24);
    let rules: Vec<String> = addresses
        .iter()
        .enumerate()
        .map(|(n, a)| format!("udp/{}@{a}/128", 1 + n))
        .chain([
            "tcp/1@::1.2.3.0/120".into(),
            "tcp/2@::2:0/112".into(),
            "egress:any@::1:0/112".into(),
        ])
        .collect();
    for (number, rules) in (1..).zip(rules.chunks(GROUP_MAX_RULES)) {
        let rules: Vec<&str> = rules.iter().map(String::as_str).collect();
        group_of(&mut wanted, number, &rules, &[0]);
    }
    let mut left = addresses.chunks(PORT_MAX_PAIRS);
    for port in &mut wanted.ports {
        let pairs = left.next().into_iter().flatten();
        port.policy.pairs = pairs.map(|a| AddressPair::of((*a).into())).collect();
    }
    assert!(left.next().is_none(), "each address is somebody's");
    wanted.ports[23].policy.pairs = vec![AddressPair {
        address: "::1.2.3.0/120".parse().unwrap(),
        mac: None,
    }];
    assert!(lab.ensure(&wanted).await.ready);
    assert_eq!(lab.ensure(&wanted).await.changed, Vec::<String>::new());
    drop(lab.raw(&wanted, 0).await);
}
