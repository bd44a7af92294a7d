//! What others do to the host's firewall, and that no network pays for it.

#![allow(clippy::unwrap_used, reason = "a helper of a test that cannot go on panics")]

mod common;

use common::{Lab, network};
use vbm_core::NetworkMode;
use vbm_net::{HostNetwork, NetworkBackend};

/// A rule that `iptables-save` cannot print, nor any of its table then.
const FOREIGN: &str = "nft insert rule FAMILY filter INPUT ct state vmap { established : accept }";

/// That rule on the host, for as long as this lives: what cannot be read is not cleaned up either.
struct Foreign<'a>(&'a Lab);

impl<'a> Foreign<'a> {
    fn new(lab: &'a Lab) -> Self {
        lab.host.sh(&FOREIGN.replace("FAMILY", "ip"));
        Self(lab)
    }
}

impl Drop for Foreign<'_> {
    fn drop(&mut self) {
        let listed = self.0.host.try_sh("nft -a list chain ip filter INPUT").stdout;
        let listed = String::from_utf8_lossy(&listed).into_owned();
        let mut rules = listed.lines().filter(|line| line.contains("vmap"));
        if let Some((_, handle)) = rules.next().and_then(|line| line.rsplit_once("# handle ")) {
            self.0
                .host
                .try_sh(&format!("nft delete rule ip filter INPUT handle {handle}"));
        }
    }
}

/// The rules of one network, as `nft` lists them: it knows the link, and not the comment.
fn rules_of(lab: &Lab, network: vbm_core::NetworkId) -> usize {
    let listed = lab.host.sh("nft list table ip filter");
    let link = vbm_net::names::transit(network);
    listed.lines().filter(|line| line.contains(&link)).count()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rule_that_iptables_cannot_print_costs_no_other_network_its_rules() {
    needs_namespaces!();
    let lab = Lab::new().await;
    let (first, second) = (network(NetworkMode::Nat, 1), network(NetworkMode::Nat, 1));
    lab.ensure(&first).await;
    let before = rules_of(&lab, first.id);
    assert!(before > 0, "the rules of the first stand");
    let _rule = Foreign::new(&lab);
    let error = vbm_core::Error::from(lab.net.ensure(second.clone()).await.unwrap_err());
    assert!(error.to_string().contains("ip filter"), "{error}");
    assert!(error.fix().contains("nft list table ip filter"), "{error}");
    assert_eq!(rules_of(&lab, first.id), before, "the first keeps its rules");
    // Nor does an end of the second, or a start of the daemon, take them for gone.
    assert!(
        lab.net.remove(second.id).await.is_err(),
        "what cannot be seen is not removed"
    );
    lab.net.shutdown().await;
    let _either = HostNetwork::open(lab.config()).await;
    assert_eq!(rules_of(&lab, first.id), before, "the first keeps its rules");
}

#[tokio::test(flavor = "multi_thread")]
async fn when_the_rule_is_gone_all_goes_on() {
    needs_namespaces!();
    let lab = Lab::new().await;
    let (first, second) = (network(NetworkMode::Nat, 1), network(NetworkMode::Nat, 1));
    lab.ensure(&first).await;
    let rule = Foreign::new(&lab);
    assert!(lab.net.ensure(second.clone()).await.is_err());
    drop(rule);
    assert!(lab.ensure(&second).await.ready);
    assert!(lab.ensure(&first).await.ready);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_inside_that_cannot_be_read_is_an_error_in_both_families() {
    needs_namespaces!();
    for family in ["ip", "ip6"] {
        let lab = Lab::new().await;
        let mut wanted = network(NetworkMode::Nat, 1);
        wanted.ports[0].policy.pairs = vec![vbm_core::AddressPair {
            address: "fd00:9::1/128".parse().unwrap(),
            mac: None,
        }];
        lab.ensure(&wanted).await;
        let inside = lab.inside(wanted.id);
        let done = common::in_netns(&inside, &FOREIGN.replace("FAMILY", family));
        assert!(done.status.success(), "{done:?}");
        let error = vbm_core::Error::from(lab.net.ensure(wanted).await.unwrap_err());
        assert!(error.to_string().contains(&format!("{family} filter")), "{error}");
    }
}
