//! What a change costs does not follow from what stands: chains that one more port changes, among many.

#![allow(clippy::unwrap_used, reason = "a helper of a test that cannot go on panics")]
#![allow(clippy::cast_possible_truncation, reason = "test values are small")]
#![allow(
    clippy::print_stdout,
    reason = "how long it took is worth knowing, and no ground to fail on"
)]

mod common;

use common::{Lab, group_of, network};
use std::net::Ipv4Addr;
use vbm_core::{IdSource, Mac, NetworkMode, PortId, network::parse_cidr};
use vbm_net::{DesiredNetwork, DesiredPort};

const PORTS: usize = 1_000;

fn port(number: usize) -> DesiredPort {
    DesiredPort {
        id: PortId::from_uuid(common::FreshIds.next()),
        mac: Mac::local(number as u32 + 1),
        address: Ipv4Addr::from(0x0a09_0100 + number as u32),
        address6: None,
        hostname: format!("guest-{number}").parse().unwrap(),
        metadata_route: true,
        rules: vec![
            "tcp/22".parse().unwrap(),
            "tcp/80-90".parse().unwrap(),
            "icmp".parse().unwrap(),
        ],
        policy: Default::default(),
    }
}

fn crowd() -> DesiredNetwork {
    let mut wanted = network(NetworkMode::Nat, 0);
    wanted.spec.cidr = parse_cidr("10.9.0.0/16").unwrap();
    wanted.spec.pool_last = Ipv4Addr::new(10, 9, 255, 254);
    wanted.ports = (0..PORTS).map(port).collect();
    wanted
}

#[tokio::test(flavor = "multi_thread")]
async fn one_more_port_among_a_thousand_changes_a_handful_of_chains() {
    needs_namespaces!();
    let lab = Lab::new().await;
    let mut wanted = crowd();
    let begin = tokio::time::Instant::now();
    lab.ensure(&wanted).await;
    println!("{PORTS} ports: {:?}", begin.elapsed());
    assert_eq!(
        lab.ensure(&wanted).await.changed,
        Vec::<String>::new(),
        "it converges"
    );
    let mut least = std::time::Duration::MAX;
    for more in 0..5 {
        wanted.ports.push(port(PORTS + more));
        let begin = tokio::time::Instant::now();
        let seen = lab.ensure(&wanted).await;
        least = least.min(begin.elapsed());
        // Two chains of the guard; in the rules a leaf of each tree, unless one splits.
        assert!(seen.changed.len() <= 2 + 2 * 17, "{:#?}", seen.changed);
    }
    println!("one more: {least:?} at best");
    let begin = tokio::time::Instant::now();
    assert_eq!(lab.ensure(&wanted).await.changed, Vec::<String>::new());
    println!("nothing to do: {:?}", begin.elapsed());
    lab.raw(&wanted, 0).await;
    println!("... and a NIC opened: {:?}", begin.elapsed());
    // A rule of a group that all are in is one chain.
    let all: Vec<usize> = (0..wanted.ports.len()).collect();
    group_of(&mut wanted, 1, &["udp/53"], &all);
    lab.ensure(&wanted).await;
    group_of(&mut wanted, 1, &["udp/54"], &all);
    let seen = lab.ensure(&wanted).await;
    let rules = seen.changed.iter().filter(|c| c.starts_with("rules of")).count();
    assert_eq!(rules, 1, "{:?}", seen.changed);
    // What another did in between is seen, and healed, whether or not something else was wanted as well.
    let inside = lab.inside(wanted.id);
    common::in_netns(&inside, "iptables -F VBM-TO");
    wanted.ports.push(port(PORTS + 9));
    let healed = lab.ensure(&wanted).await;
    assert!(
        healed.changed.iter().any(|c| c.ends_with("filter VBM-TO")),
        "{:?}",
        healed.changed
    );
    assert_eq!(lab.ensure(&wanted).await.changed, Vec::<String>::new());
}
