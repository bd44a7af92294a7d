//! Keys: changed, unknown, in a file.

use super::world::*;
use crate::common::RedisServer;
use crate::common::{left_out, words::*};
use std::sync::Arc;
use vbm_rpc::{
    Bus, BusError, Fate, Member, Route, Router,
    auth::{Epochs, KeyPair, Keys, Ring, Security, Trust, Trusted},
    redis::{RedisConfig, RedisTransport},
};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn keys_are_changed_while_calls_go_on() {
    if left_out() {
        return;
    }
    let world = World::new().await;
    let (at, c1_at) = (path("eu/r1/n1"), path("eu/r1/c1"));
    let (old, new) = (|| KeyPair::from_secret([1; 32]), || KeyPair::from_secret([2; 32]));
    let line = |pair: &KeyPair| Trusted::new(*pair.public()).commands(Epochs::ANY);
    let rings = [
        vec![line(&old())],
        vec![line(&old()), line(&new())],
        vec![line(&new()), line(&old())],
        vec![line(&new())],
    ];
    let caller = || KeyPair::from_secret([3; 32]);
    world.bus.set_keys(&c1_at, vec![caller()]);
    let with_caller = |of_n1: &[Trusted]| {
        let mut ring = Ring::new();
        of_n1
            .iter()
            .for_each(|one| ring.add(at.clone(), one.clone()).unwrap());
        ring.add(c1_at.clone(), line(&caller())).unwrap();
        ring
    };
    world.bus.ring.set(with_caller(&rings[0]));
    world.bus.set_keys(&at, vec![old()]);
    let (mut n1, c1) = (world.serve("eu/r1/n1", "boot-0").await, world.client().await);
    // 1: the node opens with both. 2: all trust both. 3: the node seals with the new one. 4: entries for it are
    // sealed for the new one. 5: the old one is forgotten, here and there. Each step is taken while the last one holds.
    for step in 1..=5 {
        match step {
            1 => world.bus.set_keys(&at, vec![old(), new()]),
            2 => world.bus.ring.set(with_caller(&rings[1])),
            3 => world.bus.set_keys(&at, vec![new(), old()]),
            4 => world.bus.ring.set(with_caller(&rings[2])),
            _ => world.bus.ring.set(with_caller(&rings[3])),
        }
        for route in [node(), any()] {
            assert_eq!(
                call(&c1, &route).await,
                Ok(42),
                "step {step}, before the node restarts"
            );
        }
        let again = world.serve("eu/r1/n1", &format!("boot-{step}")).await;
        n1.kill().await;
        n1 = again;
        for route in [node(), any()] {
            assert_eq!(call(&c1, &route).await, Ok(42), "step {step}");
        }
    }
    assert_eq!(world.bus.refused(), std::collections::BTreeMap::new());
    c1.shutdown().await;
    n1.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_is_not_trusted_is_told_at_the_start_and_has_no_route() {
    if left_out() {
        return;
    }
    let world = World::new().await;
    let c1 = world.client().await;
    let stranger = Security::On(Keys::generate().unwrap(), Trust::fixed(Ring::new()));
    let transport = RedisTransport::connect(world.server.config().security(stranger))
        .await
        .unwrap();
    let member = Member::new(path("eu/r1/n9"), "boot");
    let error = Bus::attach(transport, member.clone(), Router::new())
        .await
        .unwrap_err();
    assert!(
        matches!(&error, BusError::Untrusted { path, .. } if path == "eu/r1/n9"),
        "{error}"
    );
    assert!(vbm_core::Error::from(error).fix().contains("vbm bus key show"));
    // Present without keys of its own: nobody has a key to seal for it.
    let plain = Bus::attach(world.server.transport().await, member, Router::new())
        .await
        .unwrap();
    let fate = call(&c1, &Route::node(path("eu/r1/n9"))).await;
    assert!(
        matches!(&fate, Err(Fate::NoRoute { why, .. }) if why.contains("key")),
        "{fate:?}"
    );
    c1.shutdown().await;
    plain.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_trust_list_in_a_file_counts_from_the_next_heartbeat_on() {
    if left_out() {
        return;
    }
    let server = RedisServer::start().await;
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("trust");
    let (k1, k2) = (Keys::generate().unwrap(), Keys::generate().unwrap());
    let c1_line = format!("c1 {}\n", k1.active().public());
    std::fs::write(&file, &c1_line).unwrap();
    let attach = async |keys: &Keys, at: &str| {
        let security = Security::On(keys.clone(), Trust::file(&file).unwrap());
        let config: RedisConfig = server.config().security(security);
        let transport = RedisTransport::connect(config).await.unwrap();
        Bus::attach(transport, Member::new(path(at), "boot"), router(&Arc::default())).await
    };
    let c1 = attach(&k1, "c1").await.unwrap();
    assert!(matches!(attach(&k2, "n1").await, Err(BusError::Untrusted { .. })));
    std::fs::write(&file, format!("{c1_line}n1 {}\n", k2.active().public())).unwrap();
    let n1 = attach(&k2, "n1").await.unwrap();
    until("c1 has read the list again", async || {
        call(&c1, &Route::node(path("n1"))).await == Ok(42)
    })
    .await;
    c1.shutdown().await;
    n1.shutdown().await;
}
