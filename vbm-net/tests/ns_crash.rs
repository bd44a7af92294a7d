//! Killed at every step, flushed by others, swept by the next: what is left can always be repaired or removed.

#![allow(clippy::unwrap_used, reason = "a helper of a test that cannot go on panics")]
#![allow(clippy::cast_possible_truncation, reason = "test values are small")]

mod common;

use common::{FreshIds, Lab, SystemClock, forward, network, open_port};
use std::{
    collections::BTreeSet,
    path::Path,
    process::{Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};
use vbm_core::{IdSource, NetworkId, NetworkMode};
use vbm_net::{
    DesiredNetwork, DesiredOverlay, HostConfig, HostNetwork, NetworkBackend, NicKind, RemotePort, doctor,
};

const OWNER: &str = "VBM_TEST_OWNER";
const HOST: &str = "VBM_TEST_HOST";
const NETWORK: &str = "VBM_TEST_NETWORK";
/// A number, or a name.
const STEP: &str = "VBM_TEST_STEP";
const MODE: &str = "VBM_TEST_MODE";
/// The host's bridge that bridged networks are on here.
const LAN: &str = "br-lan";

/// The network that a child makes, the same in each of them.
fn wanted(id: NetworkId) -> DesiredNetwork {
    let mut wanted = network(NetworkMode::Nat, 2);
    wanted.id = id;
    for (i, port) in wanted.ports.iter_mut().enumerate() {
        let bits = id.uuid().as_u128().wrapping_add(1 + i as u128);
        port.id = vbm_core::PortId::from_uuid(uuid::Uuid::from_u128(bits));
    }
    wanted.spec.ipv6 = Some(vbm_core::Ipv6Spec::new("fd00::/64".parse().unwrap()).unwrap());
    wanted.ports[0].address6 = Some("fd00::a".parse().unwrap());
    open_port(&mut wanted, 0, &["tcp/80", "icmp"]);
    wanted.ports[0].policy.floating = Some([192, 0, 2, 50].into());
    wanted.ports[0].policy.limits = vbm_core::PortLimits {
        in_kbit_per_second: Some(10_000),
        out_kbit_per_second: Some(10_000),
        connections: Some(100),
    };
    forward(&mut wanted, 8080, 0, 80);
    wanted.forwards[0].id = vbm_core::ForwardId::from_uuid(id.uuid());
    let vni = (id.uuid().as_u128() % 0x00ff_0000) as u32 + vbm_core::network::VNI_FIRST;
    wanted.overlay = Some(DesiredOverlay {
        vni,
        local: common::HOST_OUTSIDE,
        names: Default::default(),
        remotes: vec![RemotePort {
            mac: vbm_core::Mac::local(0x09_01_00),
            address: [10, 9, 0, 99].into(),
            address6: Some("fd00::99".parse().unwrap()),
            host: common::OUTSIDE,
        }],
    });
    wanted
}

/// The same without what only NAT has; IPv6 is routed, and a LAN leaves it out.
fn wanted_as(id: NetworkId, mode: NetworkMode) -> DesiredNetwork {
    let mut wanted = wanted(id);
    if mode == NetworkMode::Nat {
        return wanted;
    }
    wanted.forwards.clear();
    wanted.ports[0].policy.floating = None;
    let ipv6 = wanted.spec.ipv6.take();
    let lan = (mode == NetworkMode::Bridged).then(|| LAN.parse().unwrap());
    wanted.spec = vbm_core::NetworkSpec::with_uplink(mode, wanted.spec.cidr, lan).unwrap();
    if mode == NetworkMode::Bridged {
        wanted.ports[0].address6 = None;
        wanted.overlay = None;
    } else {
        wanted.spec.ipv6 = ipv6;
    }
    wanted
}

/// Not a test of its own: the child that dies. It is this program, run with an environment that says where.
#[tokio::test(flavor = "multi_thread")]
async fn child_that_is_killed_at_a_step() {
    let Ok(owner) = std::env::var(OWNER) else { return };
    let env = |key: &str| std::env::var(key).unwrap();
    let name = env(STEP);
    let at: Option<usize> = name.parse().ok();
    let mode: NetworkMode = env(MODE).parse().unwrap();
    let dir = tempfile::tempdir().unwrap();
    let mut config = HostConfig::new(owner, dir.path(), Arc::new(SystemClock)).in_namespace(env(HOST));
    let count = AtomicUsize::new(0);
    config.on_step = Some(Arc::new(move |step: &str| {
        let nth = count.fetch_add(1, Ordering::SeqCst);
        if at.map_or(step == name, |at| nth == at) {
            nix::sys::signal::raise(nix::sys::signal::Signal::SIGKILL).unwrap();
        }
    }));
    let net = HostNetwork::open(config).await.unwrap();
    let wanted = wanted_as(env(NETWORK).parse().unwrap(), mode);
    net.ensure(wanted).await.unwrap();
}

/// Runs the child; answers whether it was killed (and did not come to its end).
fn dies_at(owner: &str, host: &Path, id: NetworkId, step: usize) -> bool {
    dies(owner, host, (id, NetworkMode::Nat), &step.to_string())
}

fn dies(owner: &str, host: &Path, (id, mode): (NetworkId, NetworkMode), step: &str) -> bool {
    use std::os::unix::process::ExitStatusExt;
    let status = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "child_that_is_killed_at_a_step", "--test-threads=1"])
        .env(OWNER, owner)
        .env(HOST, host)
        .env(NETWORK, id.to_string())
        .env(STEP, step)
        .env(MODE, mode.to_string())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .unwrap();
    assert!(
        status.success() || status.signal() == Some(9),
        "the child failed: {status:?}"
    );
    status.signal() == Some(9)
}

/// More than `ensure` has; the loops below end by themselves.
const STEPS_MAX: usize = 40;

#[tokio::test(flavor = "multi_thread")]
async fn killed_at_any_step_the_next_ensure_ends_in_the_same_place() {
    needs_namespaces!();
    let mut lab = Lab::new().await;
    let owner = lab.owner.clone();
    let id = NetworkId::from_uuid(FreshIds.next());
    lab.net.shutdown().await;
    for step in 0..STEPS_MAX {
        let died = dies_at(&owner, &lab.host.path(), id, step);
        lab.reopen().await;
        let seen = lab.ensure(&wanted(id)).await;
        assert!(seen.ready && seen.ports.iter().all(|p| p.guarded), "step {step}");
        assert_eq!(
            lab.ensure(&wanted(id)).await.changed,
            Vec::<String>::new(),
            "step {step}"
        );
        drop(
            lab.net
                .open_nic(id, wanted(id).ports[0].id, NicKind::Tap)
                .await
                .unwrap(),
        );
        lab.net.remove(id).await.unwrap();
        lab.net.shutdown().await;
        if !died {
            assert!(step > 8, "the child has too few steps to prove anything");
            return;
        }
    }
    panic!("the child never came to its end");
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_at_any_step_a_sweep_or_the_doctor_leaves_nothing() {
    needs_namespaces!();
    let mut lab = Lab::new().await;
    let owner = lab.owner.clone();
    let id = NetworkId::from_uuid(FreshIds.next());
    let clean = common::footprint(&lab.host, &[id]);
    lab.net.shutdown().await;
    for step in 0..STEPS_MAX {
        let died = dies_at(&owner, &lab.host.path(), id, step);
        assert_ne!(
            common::footprint(&lab.host, &[id]),
            clean,
            "step {step}: a crash leaves something"
        );
        let found = doctor::find_orphans().await.unwrap();
        assert!(
            found.iter().any(|f| f.owner == owner && f.network == Some(id)),
            "step {step}: {found:?}"
        );
        if step % 2 == 0 {
            lab.reopen().await;
            assert!(!lab.net.sweep(&BTreeSet::new()).await.unwrap().is_empty());
            lab.net.shutdown().await;
        } else {
            assert!(
                !doctor::remove_owners(&BTreeSet::from([owner.clone()]))
                    .await
                    .unwrap()
                    .is_empty()
            );
        }
        assert_eq!(common::footprint(&lab.host, &[id]), clean, "step {step}");
        assert!(!doctor::find_all().await.unwrap().iter().any(|f| f.owner == owner));
        if !died {
            return;
        }
    }
    panic!("the child never came to its end");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_others_flush_or_delete_is_healed_by_the_next_ensure() {
    needs_namespaces!();
    let lab = Lab::new().await;
    let id = NetworkId::from_uuid(FreshIds.next());
    let wanted = wanted(id);
    lab.ensure(&wanted).await;
    let inside = lab.inside(id);
    let harm: [(&str, &str); 14] = [
        (&lab.host.0, "iptables -F"),
        (&lab.host.0, "iptables -t nat -F"),
        (&lab.host.0, "nft flush ruleset"),
        (&lab.host.0, &format!("ip link del vbu{}", id.short())),
        (&lab.host.0, &format!("ip link set vbu{} down", id.short())),
        (&lab.host.0, "sysctl -q -w net.ipv4.ip_forward=0"),
        (&inside, "nft flush ruleset"),
        (&inside, "nft delete table bridge vbm"),
        (
            &inside,
            &format!("nft flush chain bridge vbm in-{}", wanted.ports[0].id.short()),
        ),
        (&inside, "iptables -P FORWARD ACCEPT"),
        (&inside, "iptables -I FORWARD -j ACCEPT"),
        (&inside, "ip link del br0"),
        (&inside, "ip addr flush dev br0"),
        (&inside, "ip route flush table main"),
    ];
    for (place, command) in harm {
        let out = common::in_netns(place, command);
        assert!(out.status.success(), "{command}: {out:?}");
        let seen = lab.ensure(&wanted).await;
        assert!(
            seen.ready && !seen.changed.is_empty(),
            "{command} was not noticed"
        );
        assert_eq!(
            lab.ensure(&wanted).await.changed,
            Vec::<String>::new(),
            "after {command}"
        );
    }
    let mut guest = lab.guest(&wanted, 0).await;
    guest.dhcp();
    guest.serve("healed").await;
    assert_eq!(
        lab.outside.get((common::HOST_OUTSIDE, 8080)).as_deref(),
        Some("healed")
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_nic_does_not_open_while_its_guard_or_its_rules_are_not_in_the_kernel() {
    needs_namespaces!();
    let lab = Lab::new().await;
    let id = NetworkId::from_uuid(FreshIds.next());
    let wanted = wanted(id);
    let inside = lab.inside(id);
    for harm in [
        "nft delete table bridge vbm",
        "iptables -F VBM-TO",
        "iptables -P FORWARD ACCEPT",
        "sysctl -q -w net.bridge.bridge-nf-call-iptables=0",
        "sysctl -q -w net.netfilter.nf_conntrack_tcp_loose=1",
    ] {
        lab.ensure(&wanted).await;
        assert!(common::in_netns(&inside, harm).status.success(), "{harm}");
        let refused = lab.net.open_nic(id, wanted.ports[0].id, NicKind::Tap).await;
        assert!(
            matches!(refused, Err(vbm_net::NetError::NotVerified { .. })),
            "{harm}: {refused:?}"
        );
        assert!(
            !String::from_utf8_lossy(&common::in_netns(&inside, "ip -o link").stdout).contains("tap"),
            "{harm}"
        );
    }
    lab.ensure(&wanted).await;
    assert!(
        lab.net
            .open_nic(id, wanted.ports[0].id, NicKind::Tap)
            .await
            .is_ok()
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn two_instances_on_one_host_do_not_touch_each_other() {
    needs_namespaces!();
    let lab = Lab::new().await;
    let dir = tempfile::tempdir().unwrap();
    let other_owner = common::fresh("test-");
    let other = HostNetwork::open(common::config(&other_owner, &lab.host, dir.path()))
        .await
        .unwrap();
    let second = HostNetwork::open(lab.config()).await;
    assert!(
        matches!(second, Err(vbm_net::NetError::Conflict { .. })),
        "one process an instance"
    );
    let (mut mine, mut theirs) = (network(NetworkMode::Nat, 1), network(NetworkMode::Nat, 1));
    forward(&mut mine, 8001, 0, 80);
    forward(&mut theirs, 8002, 0, 80);
    lab.ensure(&mine).await;
    other.ensure(theirs.clone()).await.unwrap();
    lab.net.sweep(&BTreeSet::new()).await.unwrap();
    assert_eq!(
        other.ensure(theirs.clone()).await.unwrap().changed,
        Vec::<String>::new()
    );
    assert!(matches!(
        lab.net.ensure(theirs.clone()).await,
        Err(vbm_net::NetError::Conflict { .. })
    ));
    lab.net.remove(theirs.id).await.unwrap();
    assert_eq!(other.ensure(theirs).await.unwrap().changed, Vec::<String>::new());
    let refused = doctor::remove_owners(&BTreeSet::from([other_owner.clone()])).await;
    assert!(refused.is_err(), "the doctor leaves a running instance alone");
    assert!(
        doctor::find_all()
            .await
            .unwrap()
            .iter()
            .any(|f| f.owner == other_owner && f.alive)
    );
    other.shutdown().await;
    assert!(
        !doctor::remove_owners(&BTreeSet::from([other_owner]))
            .await
            .unwrap()
            .is_empty()
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_network_goes_although_a_vm_holds_its_tap_and_nothing_of_it_lives_on() {
    needs_namespaces!();
    let lab = Lab::new().await;
    let wanted = network(NetworkMode::Nat, 1);
    let clean = common::footprint(&lab.host, &[wanted.id]);
    lab.ensure(&wanted).await;
    let guest = lab.guest(&wanted, 0).await;
    guest.dhcp();
    lab.net.remove(wanted.id).await.unwrap();
    assert_eq!(common::footprint(&lab.host, &[wanted.id]), clean);
    assert!(!guest.ns.pings(wanted.spec.gateway), "no ghost answers");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_caller_who_leaves_in_the_middle_leaves_nothing_half_made() {
    needs_namespaces!();
    let lab = Lab::new().await;
    let id = NetworkId::from_uuid(FreshIds.next());
    let clean = common::footprint(&lab.host, &[id]);
    for patience_ms in (0..120).step_by(7) {
        let patience = std::time::Duration::from_millis(patience_ms);
        let _left = tokio::time::timeout(patience, lab.net.ensure(wanted(id))).await;
        let _left = tokio::time::timeout(
            patience / 2,
            lab.net.open_nic(id, wanted(id).ports[0].id, NicKind::Tap),
        )
        .await;
        let _left = tokio::time::timeout(patience / 2, lab.net.remove(id)).await;
        assert!(lab.ensure(&wanted(id)).await.ready, "{patience_ms} ms");
        assert_eq!(
            lab.ensure(&wanted(id)).await.changed,
            Vec::<String>::new(),
            "{patience_ms} ms"
        );
    }
    lab.net.remove(id).await.unwrap();
    assert_eq!(common::footprint(&lab.host, &[id]), clean);
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_at_the_steps_of_other_modes_the_next_ensure_heals_and_the_doctor_leaves_nothing() {
    needs_namespaces!();
    let mut lab = Lab::new().await;
    lab.host.ip(&format!("link add {LAN} type bridge"));
    let owner = lab.owner.clone();
    let six = |lab: &Lab| {
        let rules = lab.host.sh("ip6tables-save");
        let rules = rules.lines().filter(|l| l.contains("VBM"));
        rules.map(str::to_owned).collect::<Vec<_>>()
    };
    let before = common::footprint(&lab.host, &[]);
    for (mode, steps) in [
        (
            NetworkMode::Routed,
            ["record", "host chains", "host rules", "uplink", "routes", "vxlan"],
        ),
        (
            NetworkMode::Bridged,
            ["record", "bridge", "rules", "uplink", "leg", "limits"],
        ),
    ] {
        for step in steps {
            let id = NetworkId::from_uuid(FreshIds.next());
            let net = wanted_as(id, mode);
            lab.net.shutdown().await;
            assert!(
                dies(&owner, &lab.host.path(), (id, mode), step),
                "{mode}: no step {step}"
            );
            lab.reopen().await;
            if step != "routes" && step != "leg" {
                let seen = lab.ensure(&net).await;
                assert!(seen.ready, "{mode} at {step}");
                assert_eq!(
                    lab.ensure(&net).await.changed,
                    Vec::<String>::new(),
                    "{mode} at {step}"
                );
            }
            lab.net.shutdown().await;
            doctor::remove_owners(&BTreeSet::from([owner.clone()]))
                .await
                .unwrap();
            assert_eq!(common::footprint(&lab.host, &[id]), before, "{mode} at {step}");
            assert_eq!(six(&lab), Vec::<String>::new(), "{mode} at {step}");
            assert_eq!(lab.host.ip("-6 route show proto 86"), "", "{mode} at {step}");
        }
    }
    lab.reopen().await;
}
