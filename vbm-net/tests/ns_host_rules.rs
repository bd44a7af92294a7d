//! A network's link to the host and the host's rules for it: never the one without the other, and no NIC without both.

#![allow(clippy::unwrap_used, reason = "a helper of a test that cannot go on panics")]

mod common;

use common::{Lab, in_netns, network, open_port};
use std::sync::{
    Arc, Mutex,
    atomic::{AtomicBool, AtomicUsize, Ordering},
};
use vbm_core::NetworkMode;
use vbm_net::{DesiredNetwork, HostNetwork, NetError, NetworkBackend, NicKind, names};

/// Whether a network's link stands on the host, and whether rules that shut it do.
fn found(host: &str, wanted: &DesiredNetwork) -> (bool, bool) {
    let link = names::transit(wanted.id);
    let said = |command: &str| String::from_utf8(in_netns(host, command).stdout).unwrap();
    let rules = said("iptables-save -t filter");
    let shut = |way: &str| {
        rules.lines().any(|l| {
            l.starts_with("-A VBM-") && l.contains(&format!("-{way} {link} ")) && l.ends_with("-j DROP")
        })
    };
    (said("ip -o link show").contains(&link), shut("i") && shut("o"))
}

/// A lab that calls this at each step.
async fn watched(on_step: impl Fn(&str, &str) + Send + Sync + 'static) -> Lab {
    let mut lab = Lab::new().await;
    lab.net.shutdown().await;
    let host = lab.host.0.clone();
    let mut config = lab.config();
    config.on_step = Some(Arc::new(move |step: &str| on_step(&host, step)));
    lab.net = HostNetwork::open(config).await.unwrap();
    lab
}

#[tokio::test(flavor = "multi_thread")]
async fn at_no_step_does_the_link_stand_without_the_hosts_rules() {
    needs_namespaces!();
    let mut wanted = network(NetworkMode::Nat, 1);
    let (of, bare, links) = (
        wanted.clone(),
        Arc::<Mutex<Vec<String>>>::default(),
        Arc::new(AtomicUsize::new(0)),
    );
    let (told, stood) = (Arc::clone(&bare), Arc::clone(&links));
    let lab = watched(move |host, step| {
        let (link, rules) = found(host, &of);
        stood.fetch_add(usize::from(link), Ordering::Relaxed);
        if link && !rules {
            told.lock().unwrap().push(step.to_owned());
        }
    })
    .await;
    for mode in [NetworkMode::Nat, NetworkMode::Isolated, NetworkMode::Nat] {
        wanted.spec.mode = mode;
        lab.ensure(&wanted).await;
        let both = found(&lab.host.0, &wanted);
        let nat = mode == NetworkMode::Nat;
        assert_eq!(both, (nat, nat));
    }
    assert!(
        links.load(Ordering::Relaxed) > 4,
        "the link was looked at while it stood"
    );
    assert_eq!(
        *bare.lock().unwrap(),
        Vec::<String>::new(),
        "steps at which it stood bare"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn where_the_hosts_rules_cannot_be_made_no_link_is_made_and_no_nic_opens() {
    needs_namespaces!();
    let spoil = Arc::new(AtomicBool::new(true));
    let spoils = Arc::clone(&spoil);
    // Somebody empties the chains of ours as soon as they are written.
    let lab = watched(move |host, step| {
        if step == "host chains" && spoils.load(Ordering::Relaxed) {
            let rules = String::from_utf8(in_netns(host, "iptables-save -t filter").stdout).unwrap();
            for chain in rules
                .lines()
                .filter_map(|l| l.strip_prefix(':')?.split(' ').next())
            {
                if chain.starts_with("VBM-") {
                    in_netns(host, &format!("iptables -F {chain}"));
                }
            }
        }
    })
    .await;
    let mut wanted = network(NetworkMode::Nat, 1);
    let (id, port) = (wanted.id, wanted.ports[0].id);
    let refused = |result: Result<_, NetError>| match result {
        Err(NetError::NotVerified { .. }) => {}
        other => panic!("{other:?}"),
    };
    refused(lab.net.ensure(wanted.clone()).await.map(drop));
    assert_eq!(found(&lab.host.0, &wanted), (false, false));
    refused(lab.net.open_nic(id, port, NicKind::Tap).await.map(drop));
    assert!(!in_netns(&lab.inside(id), "ip -o link show").stdout.is_empty());

    spoil.store(false, Ordering::Relaxed);
    lab.ensure(&wanted).await;
    drop(lab.net.open_nic(id, port, NicKind::Tap).await.unwrap());
    lab.net.close_nic(id, port).await.unwrap();

    // Whoever takes them away between an `ensure` and a NIC: that the one went well does not stand for what is there now.
    for gone in ["-t nat -F POSTROUTING", "-D FORWARD 1"] {
        in_netns(&lab.host.0, &format!("iptables {gone}"));
        refused(lab.net.open_nic(id, port, NicKind::Tap).await.map(drop));
        lab.ensure(&wanted).await;
        drop(lab.net.open_nic(id, port, NicKind::Tap).await.unwrap());
        lab.net.close_nic(id, port).await.unwrap();
    }

    // The same to one that stood: what is there stays, and nothing new is opened until it is whole again.
    spoil.store(true, Ordering::Relaxed);
    in_netns(&lab.host.0, "iptables -t nat -F POSTROUTING");
    open_port(&mut wanted, 0, &["tcp/80"]);
    common::forward(&mut wanted, 8_080, 0, 80);
    refused(lab.net.ensure(wanted.clone()).await.map(drop));
    refused(lab.net.open_nic(id, port, NicKind::Tap).await.map(drop));
    spoil.store(false, Ordering::Relaxed);
    lab.ensure(&wanted).await;
    drop(lab.net.open_nic(id, port, NicKind::Tap).await.unwrap());
}
