//! A member that was taken over.

use super::world::*;
use crate::common::{left_out, words::*};
use bytes::Bytes;
use tokio::time::timeout;
use uuid::Uuid;
use vbm_core::Epoch;
use vbm_rpc::{
    auth::{KeyPair, Trusted},
    envelope::{Envelope, Kind},
    redis::acl::Reach,
};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_that_was_taken_over_speaks_for_itself_only() {
    if left_out() {
        return;
    }
    let world = World::new().await;
    let (n1, c1) = (world.serve("eu/r1/n1", "boot-1").await, world.client().await);
    let mut raw = world.server.raw().await;
    // Trusted, but commands in no epoch: a node like any other.
    let evil = KeyPair::generate().unwrap();
    world
        .bus
        .ring
        .add(&path("eu/r1/evil"), Trusted::new(*evil.public()));
    let theirs = Trusted::new(*world.bus.keys(&path("eu/r1/n1")).active().public());
    let now = world.now_ms().await;
    let own = ("eu/r1/evil", "eu/r1/n1");
    let entry = |from: (&str, &str), at: &str, seq: u64, time: u64, what: Envelope| {
        sealed(
            &evil,
            from,
            &theirs,
            N1,
            speaker(at, seq, time),
            packed(&[what.encode()]),
        )
    };
    let command = |epoch| Envelope {
        epoch: Epoch(epoch),
        ..frame(Kind::Request, "eu/r1/evil", "test.double")
    };
    let minute = 60_000;
    let tries = [
        // In another's name, sealed with its own key.
        (
            "unknown-key",
            entry(
                ("eu/r1/c1", "eu/r1/n1"),
                "eu/r1/c1",
                1,
                now,
                frame(Kind::Request, "eu/r1/c1", "test.double"),
            ),
        ),
        // In its own name, with another's frame inside: a request, and a cancel of somebody's call.
        (
            "wrong-caller",
            entry(
                own,
                "eu/r1/evil",
                2,
                now,
                frame(Kind::Request, "eu/r1/c1", "test.double"),
            ),
        ),
        (
            "wrong-caller",
            entry(own, "eu/r1/evil", 3, now, frame(Kind::Cancel, "eu/r1/c1", "")),
        ),
        // A command in an epoch of which it is no controller, so that nobody else could command any more.
        ("wrong-epoch", entry(own, "eu/r1/evil", 4, now, command(u64::MAX))),
        // Made in store, to be used later; and dated ahead.
        (
            "wrong-time",
            entry(own, "eu/r1/evil", 5, now - minute, command(0)),
        ),
        (
            "wrong-time",
            entry(own, "eu/r1/evil", 6, now + minute, command(0)),
        ),
    ];
    let mut before = std::collections::BTreeMap::new();
    for (reason, entry) in tries {
        add(&mut raw, N1, &entry).await.unwrap();
        let count: &mut u64 = before.entry(reason).or_default();
        *count += 1;
        until(reason, async || world.bus.refused_for(reason) == *count).await;
    }
    assert_eq!(world.ran(), 0);
    // What it may do, it may: ask in its own name.
    add(&mut raw, N1, &entry(own, "eu/r1/evil", 7, now, command(0)))
        .await
        .unwrap();
    until("it runs", async || world.ran() == 1).await;
    assert_eq!(call(&c1, &node()).await, Ok(42));
    c1.shutdown().await;
    n1.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_forged_reply_is_refused_and_the_true_one_arrives() {
    if left_out() {
        return;
    }
    let world = World::new().await;
    let (n1, c1) = (world.serve("eu/r1/n1", "boot-1").await, world.client().await);
    let evil = KeyPair::generate().unwrap();
    world
        .bus
        .ring
        .add(&path("eu/r1/evil"), Trusted::new(*evil.public()));
    let waiting = {
        let c1 = c1.clone();
        tokio::spawn(async move { c1.call::<Slow>(&node(), &(), within(PATIENCE)).await })
    };
    // It even knows the id of the call: it looked into Redis.
    let mut raw = world.server.raw().await;
    let mut request = Vec::new();
    until("the request is there", async || {
        request = look(&mut raw, N1).await;
        !request.is_empty()
    })
    .await;
    let content = field(&mut request[0], "f");
    let id = Uuid::from_slice(&content[12..28]).unwrap();
    let answer = |caller: &str| {
        let body = Bytes::from_static(b"\xa5false");
        packed(&[Envelope {
            id,
            body,
            ..frame(Kind::Reply, caller, "")
        }
        .encode()])
    };
    let theirs = Trusted::new(*world.bus.keys(&path("eu/r1/c1")).active().public());
    let now = world.now_ms().await;
    // Its rights on Redis let it add to the inbox: it must, to answer.
    let login = world
        .bus
        .login(&path("eu/r1/evil"), &[worker()], &Reach::Answers)
        .await;
    let client = redis::Client::open(login).unwrap();
    let mut evil_raw = client.get_multiplexed_async_connection().await.unwrap();
    let bare = vec![("f".to_owned(), answer("eu/r1/n1"))];
    let as_n1 = sealed(
        &evil,
        ("eu/r1/n1", "eu/r1/c1"),
        &theirs,
        INBOX,
        speaker("eu/r1/n1", 1, now),
        answer("eu/r1/n1"),
    );
    let inside = sealed(
        &evil,
        ("eu/r1/evil", "eu/r1/c1"),
        &theirs,
        INBOX,
        speaker("eu/r1/evil", 2, now),
        answer("eu/r1/n1"),
    );
    let honest = sealed(
        &evil,
        ("eu/r1/evil", "eu/r1/c1"),
        &theirs,
        INBOX,
        speaker("eu/r1/evil", 3, now),
        answer("eu/r1/evil"),
    );
    for (reason, entry) in [
        ("missing", bare),
        ("unknown-key", as_n1),
        ("wrong-caller", inside),
    ] {
        add(&mut evil_raw, INBOX, &entry).await.unwrap();
        until(reason, async || world.bus.refused_for(reason) == 1).await;
    }
    // Well sealed and in its own name, but it was not asked.
    add(&mut evil_raw, INBOX, &honest).await.unwrap();
    assert!(!waiting.is_finished());
    assert_eq!(
        timeout(PATIENCE, waiting).await.unwrap().unwrap(),
        Ok("true".to_owned())
    );
    c1.shutdown().await;
    n1.shutdown().await;
}
