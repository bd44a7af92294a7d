//! The other dispatch: a network that stands is taken over by it and given back, and what others break of it is healed.

#![allow(clippy::unwrap_used, reason = "a helper of a test that cannot go on panics")]
#![allow(clippy::cast_possible_truncation, reason = "test values are small")]

mod common;

use common::{
    Lab, network,
    packet::{Wire, ethernet, udp},
};
use vbm_core::NetworkMode;
use vbm_net::{DesiredNetwork, Dispatch, NetError, NetworkBackend, NicKind};

/// What the second port is open for.
const OPEN: u16 = 7_777;

fn wanted() -> DesiredNetwork {
    let mut wanted = network(NetworkMode::Nat, 2);
    wanted.ports[1].rules = vec![format!("udp/{OPEN}").parse().unwrap()];
    wanted
}

/// Two datagrams, one that nothing allows and then one that is allowed: only the second arrives.
fn judged(wires: &[Wire; 2], wanted: &DesiredNetwork, source: u16) {
    let (from, to) = (&wanted.ports[0], &wanted.ports[1]);
    for (port, mark) in [(OPEN + 1, "mark:never"), (OPEN, "mark:yes")] {
        let packet = udp((from.address, source), (to.address, port), mark.as_bytes());
        wires[0].send(&ethernet(from.mac, to.mac, 0x0800, &packet));
    }
    assert_eq!(wires[1].next_mark(), "yes", "source port {source}");
}

/// Whether rules stand: of iptables, of nft.
fn standing(lab: &Lab, wanted: &DesiredNetwork) -> (bool, bool) {
    let said = |command: &str| {
        let out = common::in_netns(&lab.inside(wanted.id), command);
        String::from_utf8_lossy(&out.stdout).into_owned()
    };
    let tables = said("nft list tables");
    let (marks, rules) = (
        tables.contains("bridge vbm-slots"),
        tables.contains("inet vbm-filter"),
    );
    assert_eq!(marks, rules, "they come and go together: {tables}");
    (said("iptables -S").contains("VBM-"), rules)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_network_that_stands_is_taken_over_by_the_other_dispatch_and_given_back() {
    needs_namespaces!();
    let mut lab = Lab::dispatched(Dispatch::Iptables).await;
    let wanted = wanted();
    lab.ensure(&wanted).await;
    let wires = [lab.raw(&wanted, 0).await, lab.raw(&wanted, 1).await];
    judged(&wires, &wanted, 2_000);
    assert_eq!(standing(&lab, &wanted), (true, false));
    for (n, (dispatch, stands)) in [
        (Dispatch::Nft, (false, true)),
        (Dispatch::Iptables, (true, false)),
        (Dispatch::Nft, (false, true)),
    ]
    .into_iter()
    .enumerate()
    {
        lab.reopen_dispatched(dispatch).await;
        assert!(!lab.ensure(&wanted).await.changed.is_empty());
        assert_eq!(
            lab.ensure(&wanted).await.changed,
            Vec::<String>::new(),
            "{dispatch}"
        );
        assert_eq!(standing(&lab, &wanted), stands, "{dispatch}");
        judged(&wires, &wanted, 3_000 + n as u16);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_others_break_of_the_rules_of_nft_is_seen_by_a_nic_that_opens_and_healed() {
    needs_namespaces!();
    let lab = Lab::dispatched(Dispatch::Nft).await;
    let wanted = wanted();
    lab.ensure(&wanted).await;
    let inside = lab.inside(wanted.id);
    let port = wanted.ports[0].id;
    let tap = vbm_net::names::tap(port);
    for harm in [
        "nft delete table inet vbm-filter".to_owned(),
        "nft delete table bridge vbm-slots".to_owned(),
        "nft flush chain inet vbm-filter forward".to_owned(),
        format!("nft delete element bridge vbm-slots in {{ {tap} }}"),
        "nft add rule inet vbm-filter forward accept".to_owned(),
        "iptables -I FORWARD -j DROP".to_owned(),
    ] {
        assert!(common::in_netns(&inside, &harm).status.success(), "{harm}");
        let refused = lab.net.open_nic(wanted.id, port, NicKind::Tap).await;
        assert!(
            matches!(refused, Err(NetError::NotVerified { .. })),
            "{harm}: {refused:?}"
        );
        assert!(!lab.ensure(&wanted).await.changed.is_empty(), "{harm}");
        assert_eq!(lab.ensure(&wanted).await.changed, Vec::<String>::new(), "{harm}");
    }
    let wires = [lab.raw(&wanted, 0).await, lab.raw(&wanted, 1).await];
    judged(&wires, &wanted, 4_000);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_port_that_comes_and_goes_writes_only_what_is_its_own() {
    needs_namespaces!();
    let lab = Lab::dispatched(Dispatch::Nft).await;
    let mut wanted = network(NetworkMode::Nat, 40);
    let last = wanted.ports.pop().unwrap();
    lab.ensure(&wanted).await;
    let mut more = wanted.clone();
    more.ports.push(last);
    for net in [&more, &wanted, &more] {
        let changed = lab.ensure(net).await.changed;
        // Two chains of the guard, one of the marks, entries of five maps; and what is served.
        assert!(!changed.is_empty() && changed.len() <= 10, "{changed:?}");
        assert!(
            !changed.iter().any(|c| c.contains("rules of vbm-filter")),
            "{changed:?}"
        );
        assert_eq!(lab.ensure(net).await.changed, Vec::<String>::new());
    }
}
