//! Of each mode: what somebody breaks is foreseen by `plan` and put right by `ensure`, and then nothing is left to do.

#![allow(clippy::unwrap_used, reason = "a helper of a test that cannot go on panics")]

mod common;

use common::{Lab, network};
use vbm_core::{Ipv6Spec, NetworkMode, NetworkSpec};
use vbm_net::{DesiredNetwork, NetworkBackend, names};

/// Breaks one thing after the other, in the network's namespace and on the host.
async fn foreseen_and_healed(lab: &Lab, wanted: &DesiredNetwork, inside: &[&str], at_host: &[&str]) {
    lab.ensure(wanted).await;
    let nothing = Vec::<String>::new();
    assert_eq!(lab.net.plan(wanted.clone()).await.unwrap(), nothing);
    let place = lab.inside(wanted.id);
    let all = inside.iter().map(|h| (&place, h));
    for (ns, harm) in all.chain(at_host.iter().map(|h| (&lab.host.0, h))) {
        let harm = harm
            .replace("TRANSIT", &names::transit(wanted.id))
            .replace("LEG", &names::leg(wanted.id));
        let done = common::in_netns(ns, &harm);
        let said = String::from_utf8_lossy(&done.stderr);
        assert!(done.status.success(), "{harm}: {said}");
        let foreseen = lab.net.plan(wanted.clone()).await.unwrap();
        assert_ne!(foreseen, nothing, "{harm} was not foreseen");
        let ensured = lab.net.ensure(wanted.clone()).await;
        let changed = ensured.unwrap_or_else(|e| panic!("{harm}: {e:?}")).changed;
        assert_ne!(
            changed, nothing,
            "{harm} was not seen, but foreseen: {foreseen:?}"
        );
        assert_eq!(lab.net.plan(wanted.clone()).await.unwrap(), nothing, "{harm}");
        assert_eq!(lab.ensure(wanted).await.changed, nothing, "{harm}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn of_a_routed_network_with_ipv6() {
    needs_namespaces!();
    let lab = Lab::new().await;
    let mut wanted = network(NetworkMode::Routed, 1);
    wanted.spec.ipv6 = Some(Ipv6Spec::new("fd00:9::/64".parse().unwrap()).unwrap());
    let inside = [
        "ip -6 addr flush dev up0",
        "ip -6 addr flush dev br0",
        "ip -6 route del default",
        "ip route del default",
        "ip link set up0 down",
        "sysctl -q -w net.ipv6.conf.all.forwarding=0",
        "ip6tables -F FORWARD",
    ];
    let at_host = [
        "ip6tables -F",
        "iptables -F",
        "ip -6 route flush proto 86",
        "ip route flush proto 86",
        "ip -6 addr flush dev TRANSIT",
        "ip link set TRANSIT down",
        "ip link set TRANSIT alias somebody",
        "sysctl -q -w net.ipv4.conf.TRANSIT.route_localnet=1",
        "sysctl -q -w net.ipv6.conf.all.forwarding=0",
    ];
    foreseen_and_healed(&lab, &wanted, &inside, &at_host).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn of_a_network_on_the_lan_of_a_bridge() {
    needs_namespaces!();
    let lab = Lab::new().await;
    lab.host.ip("link add br-lan type bridge forward_delay 0");
    lab.host.ip("link set br-lan up");
    let mut wanted = network(NetworkMode::Nat, 1);
    let uplink = Some("br-lan".parse().unwrap());
    wanted.spec = NetworkSpec::with_uplink(NetworkMode::Bridged, wanted.spec.cidr, uplink).unwrap();
    let inside = [
        "ip addr add 10.9.0.77/24 dev br0",
        "ip link set lan0 down",
        "ip link set lan0 nomaster",
        "ip link set lan0 mtu 1300",
        "ip link set lan0 alias somebody",
        "ip link del lan0",
        "nft flush chain bridge vbm in-lan0",
    ];
    let at_host = [
        "ip link set LEG down",
        "ip link set LEG nomaster",
        "ip link set LEG alias somebody",
        "sysctl -q -w net.ipv4.conf.LEG.arp_ignore=0",
    ];
    foreseen_and_healed(&lab, &wanted, &inside, &at_host).await;
}
