//! Entries that are damaged, or hold nonsense.

use super::world::*;
use crate::common::{left_out, words::*};
use bytes::Bytes;
use uuid::Uuid;
use vbm_rpc::{
    auth::{Bound, Trusted, seal_for_any},
    envelope::{Envelope, Kind},
};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn entries_without_a_seal_or_with_a_damaged_one_are_refused_and_disturb_nobody() {
    if left_out() {
        return;
    }
    let world = World::new().await;
    let (n1, c1) = (world.serve("eu/r1/n1", "boot-1").await, world.client().await);
    let mut raw = world.server.raw().await;
    let me = world.bus.keys(&path("eu/r1/c1"));
    let theirs = Trusted::new(*world.bus.keys(&path("eu/r1/n1")).active().public());
    let now = world.now_ms().await;
    let frames = packed(&[frame(Kind::Request, "eu/r1/c1", "test.double").encode()]);
    let good = |seq| {
        let way = ("eu/r1/c1", "eu/r1/n1");
        sealed(
            me.active(),
            way,
            &theirs,
            N1,
            speaker("eu/r1/c1", seq, now),
            frames.clone(),
        )
    };
    let mut expected = Vec::new();
    let mut try_one = async |entry: Fields, reason: &'static str| {
        add(&mut raw, N1, &entry).await.unwrap();
        expected.push(reason);
        let count = expected.iter().filter(|known| **known == reason).count();
        until(reason, async || {
            world.bus.refused_for(reason) == u64::try_from(count).unwrap()
        })
        .await;
    };
    try_one(vec![("f".into(), frames.clone())], "missing").await;
    try_one(vec![("x".into(), b"y".to_vec())], "missing").await;
    for end in [0, 1, 43, 60, 90] {
        let mut entry = good(1);
        field(&mut entry, "a").truncate(end);
        try_one(entry, "malformed").await;
    }
    let mut entry = good(1);
    field(&mut entry, "a").extend_from_slice(&[0; 8_192]);
    try_one(entry, "malformed").await;
    let mut entry = good(1);
    field(&mut entry, "a")[0] = 9;
    try_one(entry, "version").await;
    // Each part that can be changed: my key, session, number, time, tag, and the frames.
    for at in [12, 20, 30, 36] {
        let mut entry = good(1);
        field(&mut entry, "a")[at] ^= 1;
        try_one(entry, if at == 12 { "not-for-me" } else { "wrong-seal" }).await;
    }
    let mut entry = good(1);
    *field(&mut entry, "a").last_mut().unwrap() ^= 1;
    try_one(entry, "wrong-seal").await;
    let mut entry = good(1);
    *field(&mut entry, "f").last_mut().unwrap() ^= 1;
    try_one(entry, "wrong-seal").await;
    let mut entry = good(1);
    *field(&mut entry, "f") = vec![0; 2 * 1024 * 1024];
    try_one(entry, "oversized").await;
    assert_eq!(world.ran(), 0);
    // The same entry unharmed is taken: it was the damage that was refused.
    add(&mut raw, N1, &good(1)).await.unwrap();
    until("it runs", async || world.ran() == 1).await;
    assert_eq!(call(&c1, &node()).await, Ok(42));
    until("nothing is left", async || look(&mut raw, N1).await.is_empty()).await;
    c1.shutdown().await;
    n1.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nonsense_well_sealed_by_a_trusted_member_disturbs_nobody() {
    if left_out() {
        return;
    }
    let world = World::new().await;
    let (n1, c1) = (world.serve("eu/r1/n1", "boot-1").await, world.client().await);
    let mut raw = world.server.raw().await;
    let me = world.bus.keys(&path("eu/r1/c1"));
    let ring = world.bus.trust().ring();
    let now = world.now_ms().await;
    let good = frame(Kind::Cast, "eu/r1/c1", "test.double");
    let version = {
        let mut bytes = good.encode().to_vec();
        bytes[2] = 99;
        bytes
    };
    let cut = good.encode().slice(..30).to_vec();
    let unknown = Envelope {
        id: Uuid::from_u128(10),
        ..frame(Kind::Request, "eu/r1/c1", "test.unknown")
    };
    let no_body = Envelope {
        id: Uuid::from_u128(11),
        body: Bytes::from_static(&[0xc1]),
        ..good.clone()
    };
    let too_late = Envelope {
        id: Uuid::from_u128(12),
        ttl_ms: 0,
        ..good.clone()
    };
    let reply_to_nobody = frame(Kind::Reply, "eu/r1/c1", "");
    let frames: Vec<Bytes> = vec![
        version.into(),
        cut.into(),
        unknown.encode(),
        no_body.encode(),
        too_late.encode(),
        reply_to_nobody.encode(),
        Bytes::new(),
        good.encode(),
    ];
    let mut seq = 0;
    for (stream, to) in [(N1, "eu/r1/n1"), (INBOX, "eu/r1/c1")] {
        seq += 1;
        let theirs = ring.first(&path(to)).unwrap();
        let entry = sealed(
            me.active(),
            ("eu/r1/c1", to),
            theirs,
            stream,
            speaker("eu/r1/c1", seq, now),
            packed(&frames),
        );
        add(&mut raw, stream, &entry).await.unwrap();
    }
    for (stream, scope) in [(ANY, ""), (ALL, "eu")] {
        seq += 1;
        let service = if scope.is_empty() { "" } else { "worker" };
        let content = packed(&frames);
        let bound = Bound {
            stream,
            scope,
            service,
            frames: &content,
        };
        let seal = seal_for_any(me.active(), speaker("eu/r1/c1", seq, now), &bound);
        let mut entry = vec![("f".to_owned(), content), ("a".to_owned(), seal)];
        if !scope.is_empty() {
            entry.extend([
                ("s".to_owned(), scope.as_bytes().to_vec()),
                ("v".to_owned(), service.as_bytes().to_vec()),
            ]);
        }
        add(&mut raw, stream, &entry).await.unwrap();
    }
    // The good frame among them is one request under one id, however often it comes.
    until("the good frame runs", async || world.ran() == 1).await;
    for route in [node(), any()] {
        assert_eq!(call(&c1, &route).await, Ok(42));
    }
    assert_eq!(
        (world.ran(), world.bus.refused()),
        (3, std::collections::BTreeMap::new())
    );
    for key in [N1, ANY] {
        until("nothing is left", async || look(&mut raw, key).await.is_empty()).await;
    }
    c1.shutdown().await;
    n1.shutdown().await;
}
