//! What is kept in Redis, and a forger who may write all of it: presence, recorded answers, tickets.

use super::world::*;
use crate::common::{left_out, words::*};
use redis::AsyncCommands;
use std::{sync::Arc, sync::atomic::Ordering, time::Duration};
use tokio::time::timeout;
use vbm_core::NodePath;
use vbm_rpc::{
    Bus, Fate, Member, Route, Router, SubmitOptions, Ticket, TicketState, Transport,
    auth::{KeyPair, Place, Speaker, Trusted, keep_for_others, seal_presence},
    envelope::Kind,
};

const P_N1: &str = "vbm:v1:{eu/r1}:p:eu/r1/n1";

/// A member like any other, whose key the forger has.
fn evil(world: &World) -> KeyPair {
    let evil = KeyPair::generate().unwrap();
    world
        .bus
        .ring
        .add(&path("eu/r1/evil"), Trusted::new(*evil.public()));
    evil
}

fn as_of(at: &str, boot: &str, time_ms: u64) -> Speaker {
    Speaker {
        boot_id: boot.into(),
        ..speaker(at, 1, time_ms)
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_forged_presence_shows_nobody_and_drives_nobody_out() {
    if left_out() {
        return;
    }
    let world = World::new().await;
    let (n1, c1) = (world.serve("eu/r1/n1", "boot-1").await, world.client().await);
    let evil = evil(&world);
    let mut raw = world.server.raw().await;
    let there = async || {
        let members = c1.members(&path("eu/r1/n1")).await.unwrap();
        members
            .into_iter()
            .map(|member| member.boot_id)
            .collect::<Vec<_>>()
    };
    assert_eq!(there().await, ["boot-1"]);
    let honest: String = raw.get(P_N1).await.unwrap();
    let now = world.now_ms().await;
    let lie = |boot: &str| {
        format!(
            r#"{{"path":"eu/r1/n1","boot_id":"{boot}","services":["worker"],"methods":[],"epoch":9,"token":"x"}}"#
        )
    };
    let own = as_of("eu/r1/evil", "boot-x", now);
    let as_n1 = as_of("eu/r1/n1", "boot-2", now);
    let forgeries = [
        ("missing", lie("boot-2")),
        ("missing", "no json".to_owned()),
        ("unknown-key", seal_presence(&evil, as_n1, P_N1, &lie("boot-2"))),
        ("no-say", seal_presence(&evil, own, P_N1, &lie("boot-2"))),
        ("wrong-seal", honest.replace("boot-1", "boot-2")),
        (
            "malformed",
            format!("{},\"seal\":\"00zz\"}}", lie("boot-2").trim_end_matches('}')),
        ),
    ];
    let mut wanted = std::collections::BTreeMap::<_, u64>::new();
    for (reason, forgery) in &forgeries {
        let before = world.bus.refused_for(reason);
        let () = raw.set(P_N1, forgery).await.unwrap();
        assert_eq!(there().await, Vec::<String>::new(), "{forgery}");
        *wanted.entry(*reason).or_default() += 1;
        assert!(world.bus.refused_for(reason) > before, "{reason} is counted");
        // It has its place again at its next heartbeat but one, and was never told that it had lost it.
        until("n1 is present again", async || there().await == ["boot-1"]).await;
        assert_eq!(call(&c1, &node()).await, Ok(42));
    }
    // Who truly takes the path has it.
    let again = world.serve("eu/r1/n1", "boot-2").await;
    until("the new one is present", async || there().await == ["boot-2"]).await;
    until("the old one is told", async || {
        n1.member().boot_id == "boot-1" && call(&c1, &node()).await == Ok(42)
    })
    .await;
    for bus in [n1, again, c1] {
        bus.shutdown().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_forged_recorded_answer_is_not_given() {
    if left_out() {
        return;
    }
    let world = World::new().await;
    let (mut n1, c1) = (world.serve("eu/r1/n1", "boot-0").await, world.client().await);
    let evil = evil(&world);
    let mut raw = world.server.raw().await;
    let keyed = |key: &str| within(PATIENCE).idempotency_key(key);
    for (round, route) in [node(), any()].into_iter().enumerate() {
        let name = format!("key-{round}");
        let ask = async || c1.call::<Double>(&route, &21, keyed(&name)).await;
        assert_eq!((ask().await, world.ran()), (Ok(42), round * 6 + 1));
        let home = if round == 0 {
            "n:eu/r1/n1"
        } else {
            "g:eu/r1:worker"
        };
        let mut bucket: Vec<String> = raw.keys(format!("vbm:v1:{{eu/r1}}:idem:{home}:*")).await.unwrap();
        let bucket = bucket.remove(0);
        let mut kept: Vec<(Vec<u8>, Vec<u8>)> = raw.hgetall(&bucket).await.unwrap();
        let (field, honest) = kept.remove(0);
        // A new life of the worker remembers nothing itself: it finds the honest record.
        let restart = async |n1: Bus, boot: &str| {
            n1.kill().await;
            world.serve("eu/r1/n1", boot).await
        };
        n1 = restart(n1, &format!("boot-{round}-honest")).await;
        assert_eq!(
            (ask().await, world.ran()),
            (Ok(42), round * 6 + 1),
            "the record is found"
        );
        // The record behind its seal, with another number in its body.
        let plain = vec![1, Kind::Reply as u8, 1, 0];
        let place = Place {
            key: &bucket,
            field: &field,
        };
        let now = world.now_ms().await;
        let other = keep_for_others(&evil, (&path("us/evil"), now), &[(place, &plain)]).remove(0);
        let mut changed = honest.clone();
        *changed.last_mut().unwrap() ^= 1;
        // Of another span of time: a record cannot be moved.
        let moved = keep_for_others(
            &evil,
            (&path("eu/r1/evil"), now),
            &[(
                Place {
                    key: "elsewhere",
                    field: &field,
                },
                &plain,
            )],
        )
        .remove(0);
        let as_n1 = keep_for_others(&evil, (&path("eu/r1/n1"), now), &[(place, &plain)]).remove(0);
        let forgeries = [
            ("missing", plain.clone()),
            ("wrong-seal", changed),
            ("wrong-seal", moved.to_vec()),
            ("unknown-key", other.to_vec()),
            ("unknown-key", as_n1.to_vec()),
        ];
        for (at, (reason, forgery)) in forgeries.into_iter().enumerate() {
            let before = world.bus.refused_for(reason);
            let _: usize = raw.hset(&bucket, &field, forgery).await.unwrap();
            n1 = restart(n1, &format!("boot-{round}-{at}")).await;
            // It runs again rather than say what a forger said: the window that a lost record leaves, and no more.
            assert_eq!(
                (ask().await, world.ran()),
                (Ok(42), round * 6 + at + 2),
                "{reason}"
            );
            assert!(
                world.bus.refused_for(reason) > before,
                "{reason} is counted: {:?}",
                world.bus.refused()
            );
        }
    }
    n1.shutdown().await;
    c1.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_forged_end_of_a_ticket_does_not_count_and_the_true_one_takes_its_place() {
    if left_out() {
        return;
    }
    let world = World::new().await;
    let (n1, c1) = (world.serve("eu/r1/n1", "boot-1").await, world.client().await);
    let evil = evil(&world);
    let mut raw = world.server.raw().await;
    let options = || SubmitOptions::from(within(PATIENCE));
    let now = world.now_ms().await;
    for (reason, by) in [
        ("missing", None),
        ("no-say", Some("eu/r1/evil")),
        ("unknown-key", Some("eu/r1/n1")),
    ] {
        let before = world.bus.refused_for(reason);
        let ticket: Ticket<Slow> = c1.submit::<Slow>(&node(), &(), options()).await.unwrap();
        let key = format!("vbm:v1:{{eu/r1}}:t:n:eu/r1/n1:{}", ticket.id().simple());
        let mut end = frame(Kind::Reply, by.unwrap_or("eu/r1/n1"), "");
        end.id = ticket.id();
        end.body = bytes::Bytes::from_static(b"\xa5false");
        let place = Place {
            key: &key,
            field: b"e",
        };
        let frame = end.encode();
        let forgery = match by {
            None => frame.to_vec(),
            Some(by) => keep_for_others(&evil, (&path(by), now), &[(place, &frame)])
                .remove(0)
                .to_vec(),
        };
        let set: usize = raw.hset(&key, "e", forgery).await.unwrap();
        assert_eq!(set, 1, "the forger was there first");
        let handle = c1.ticket(&ticket).unwrap();
        let state = handle.poll().await.unwrap();
        assert!(!state.is_final(), "{reason}: {state:?}");
        assert!(world.bus.refused_for(reason) > before, "{reason} is counted");
        let state = timeout(PATIENCE, handle.wait(PATIENCE)).await.unwrap().unwrap();
        assert_eq!(state, TicketState::Ended(Ok("true".to_owned())), "{reason}");
    }
    c1.shutdown().await;
    n1.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_forged_note_that_somebody_has_begun_is_not_believed_and_a_lost_ticket_can_still_be_ended() {
    if left_out() {
        return;
    }
    let world = World::new().await;
    let (n1, c1) = (world.serve("eu/r1/n1", "boot-1").await, world.client().await);
    n1.kill().await;
    let evil = evil(&world);
    let mut raw = world.server.raw().await;
    let short = SubmitOptions::from(within(Duration::from_millis(500)));
    let ticket: Ticket<Slow> = c1.submit::<Slow>(&node(), &(), short).await.unwrap();
    let key = format!("vbm:v1:{{eu/r1}}:t:n:eu/r1/n1:{}", ticket.id().simple());
    let now = world.now_ms().await;
    let begun = format!(r#"{{"by":"eu/r1/evil","at_ms":{now}}}"#);
    let place = Place {
        key: &key,
        field: b"b",
    };
    let by = path("eu/r1/evil");
    let begun = keep_for_others(&evil, (&by, now), &[(place, begun.as_bytes())]).remove(0);
    let _: usize = raw.hset(&key, "b", begun.to_vec()).await.unwrap();
    // And an end that nobody sealed, which must not stay for ever.
    let _: usize = raw.hset(&key, "e", "forged").await.unwrap();
    let state = c1.ticket(&ticket).unwrap().wait(PATIENCE).await.unwrap();
    assert!(
        matches!(
            &state,
            TicketState::Ended(Err(Fate::Lost {
                started: false,
                worker: None,
                ..
            }))
        ),
        "{state:?}"
    );
    assert!(world.bus.refused_for("no-say") > 0 && world.bus.refused_for("missing") > 0);
    c1.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_copy_of_a_broadcast_from_before_a_member_joined_does_nothing_there() {
    if left_out() {
        return;
    }
    let world = World::new().await;
    let (n1, c1) = (world.serve("eu/r1/n1", "boot-1").await, world.client().await);
    let mut raw = world.server.raw().await;
    let mut last = Vec::new();
    // One from longer ago than clocks differ, and one from just now.
    for pause in [Duration::from_millis(2_500), Duration::ZERO] {
        let mut replies = c1
            .broadcast::<Double>(&all(), &21, within(PATIENCE))
            .await
            .unwrap();
        assert_eq!(replies.next().await, Some((path("eu/r1/n1"), Ok(42))));
        last = look(&mut raw, ALL).await;
        tokio::time::sleep(pause).await;
    }
    let copies = last;
    assert_eq!(copies.len(), 2);
    let n2 = world.serve("eu/r1/n2", "boot-1").await;
    assert_eq!(call(&c1, &Route::node(path("eu/r1/n2"))).await, Ok(42));
    let ran = world.ran();
    for copy in &copies {
        add(&mut raw, ALL, copy).await.unwrap();
    }
    until("both looked at both", async || {
        world.bus.refused_for("before-joined") == 1 && world.bus.refused_for("replayed") == 3
    })
    .await;
    assert_eq!(world.ran(), ran);
    // What is for it, it gets.
    let mut replies = c1
        .broadcast::<Double>(&all(), &21, within(PATIENCE))
        .await
        .unwrap();
    let mut from = Vec::<NodePath>::new();
    while let Some((at, reply)) = replies.next().await {
        assert_eq!(reply, Ok(42));
        from.push(at);
    }
    from.sort();
    assert_eq!(from, [path("eu/r1/n1"), path("eu/r1/n2")]);
    for bus in [n1, n2, c1] {
        bus.shutdown().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_submitted_request_commands_only_in_the_epochs_of_its_key() {
    if left_out() {
        return;
    }
    let world = World::new().await;
    let n1 = world.serve("eu/r1/n1", "boot-1").await;
    // Its key commands in no epoch.
    let keys = vbm_rpc::auth::Keys::generate().unwrap();
    let line = Trusted::new(*keys.active().public());
    world.bus.ring.add(&path("eu/r1/plain"), line);
    world.bus.set_keys(&path("eu/r1/plain"), keys.all().to_vec());
    let transport: Arc<dyn Transport> = world.bus.clone();
    let member = Member::new(path("eu/r1/plain"), "boot");
    let plain = Bus::attach(transport, member, Router::new()).await.unwrap();
    let short = SubmitOptions::from(within(Duration::from_millis(500)).epoch(vbm_core::Epoch(9)));
    let ticket = plain.submit::<Double>(&node(), &21, short).await.unwrap();
    until("it is refused", async || {
        world.bus.refused_for("wrong-epoch") == 1
    })
    .await;
    let state = plain.ticket(&ticket).unwrap().wait(PATIENCE).await.unwrap();
    assert!(
        matches!(state, TicketState::Ended(Err(Fate::Lost { .. }))),
        "{state:?}"
    );
    assert_eq!(world.ran.load(Ordering::SeqCst), 0);
    plain.shutdown().await;
    n1.shutdown().await;
}
