//! One caller, one worker.

use super::*;
use crate::{Codec, Fate, MemoryEpochGate, limits};
use vbm_core::Epoch;

/// A call comes back with its reply.
pub async fn a_call_comes_back_with_its_reply(transport: Arc<dyn Transport>) {
    let (seen, n1) = (Seen::default(), Route::node(path("eu/r1/n1")));
    let buses = [
        serve(&transport, "eu/r1/n1", &seen).await,
        client(&transport, "eu/c1").await,
    ];
    assert_eq!(
        echo(&buses[1], &n1, "hello").await,
        (path("eu/r1/n1"), "hello".into())
    );
    assert_eq!(seen.started(), 1);
    end(buses).await;
}

/// A refusal arrives as it was made.
pub async fn a_refusal_arrives_as_it_was_made(transport: Arc<dyn Transport>) {
    let seen = Seen::default();
    let buses = [
        serve(&transport, "n1", &seen).await,
        client(&transport, "c1").await,
    ];
    let call = buses[1].call::<Echo>(&Route::node(path("n1")), &ask("refuse"), within(PATIENCE));
    let expected = Error::new(ErrorKind::Conflict, "no", "because", "do this");
    assert_eq!(soon("a refusal", call).await, Err(Fate::Refused(expected)));
    end(buses).await;
}

/// A method that the receiver does not know is a `NoRoute`, so that versions can differ.
pub async fn an_unknown_method_is_no_route(transport: Arc<dyn Transport>) {
    let seen = Seen::default();
    let buses = [
        serve(&transport, "n1", &seen).await,
        client(&transport, "c1").await,
    ];
    let fate = soon(
        "a call",
        buses[1].call::<Unknown>(&Route::node(path("n1")), &(), within(PATIENCE)),
    )
    .await;
    assert!(
        matches!(&fate, Err(Fate::NoRoute { why, .. }) if why.contains("conformance.unknown")),
        "{fate:?}"
    );
    end(buses).await;
}

/// A panic in a handler is a refusal for its caller; others are served on.
pub async fn a_panic_of_a_handler_is_a_refusal_and_not_the_end(transport: Arc<dyn Transport>) {
    let (seen, n1) = (Seen::default(), Route::node(path("n1")));
    let buses = [
        serve(&transport, "n1", &seen).await,
        client(&transport, "c1").await,
    ];
    let fate = soon(
        "a panic",
        buses[1].call::<Echo>(&n1, &ask("panic"), within(PATIENCE)),
    )
    .await;
    assert!(
        matches!(&fate, Err(Fate::Refused(e)) if e.kind() == ErrorKind::Internal),
        "{fate:?}"
    );
    echo(&buses[1], &n1, "still there").await;
    end(buses).await;
}

/// A call with no time left is expired and not started.
pub async fn a_call_with_no_time_left_is_not_started(transport: Arc<dyn Transport>) {
    let (seen, n1) = (Seen::default(), Route::node(path("n1")));
    let buses = [
        serve(&transport, "n1", &seen).await,
        client(&transport, "c1").await,
    ];
    let fate = soon(
        "a call",
        buses[1].call::<Echo>(&n1, &ask("late"), within(Duration::ZERO)),
    )
    .await;
    assert!(
        matches!(
            &fate,
            Err(Fate::Expired { .. } | Fate::Lost { started: false, .. })
        ),
        "{fate:?}"
    );
    echo(&buses[1], &n1, "in time").await;
    assert_eq!(seen.started(), 1, "only the call with time left was started");
    end(buses).await;
}

/// The caller of a handler that takes too long knows that it had begun, and where.
pub async fn a_slow_handler_is_lost_and_known_to_have_started(transport: Arc<dyn Transport>) {
    let seen = Seen::default();
    let buses = [
        serve(&transport, "eu/n1", &seen).await,
        client(&transport, "c1").await,
    ];
    let route = Route::any(path("eu"), worker());
    let fate = soon(
        "a slow call",
        buses[1].call::<Echo>(&route, &slow(PATIENCE), within(SHORT)),
    )
    .await;
    match fate {
        Err(Fate::Lost {
            started: true,
            worker,
            ..
        }) => assert_eq!(worker, Some(path("eu/n1"))),
        other => panic!("{other:?}"),
    }
    until("the handler learns that nobody waits", || {
        seen.cancelled.load(Ordering::SeqCst) == 1
    })
    .await;
    end(buses).await;
}

/// Dropping the future of a call tells its handler.
pub async fn a_dropped_call_cancels_its_handler(transport: Arc<dyn Transport>) {
    let seen = Seen::default();
    let buses = [
        serve(&transport, "n1", &seen).await,
        client(&transport, "c1").await,
    ];
    let call = buses[1].call::<Echo>(&Route::node(path("n1")), &slow(PATIENCE), within(PATIENCE));
    let begun = until("the handler begins", || seen.started() == 1);
    tokio::select! {
        reply = call => panic!("nobody answers that: {reply:?}"),
        () = begun => {}
    }
    until("the handler is told", || {
        seen.cancelled.load(Ordering::SeqCst) == 1
    })
    .await;
    end(buses).await;
}

/// A second request with a key gets the answer of the first, whoever sends it; the handler runs once.
pub async fn a_repeated_key_gets_the_recorded_answer(transport: Arc<dyn Transport>) {
    let (seen, n1) = (Seen::default(), Route::node(path("n1")));
    let buses = [
        serve(&transport, "n1", &seen).await,
        client(&transport, "c1").await,
        client(&transport, "c2").await,
    ];
    for bus in [&buses[1], &buses[2], &buses[1]] {
        let call = bus.call::<Count>(&n1, &"x".into(), within(PATIENCE).idempotency_key("k1"));
        assert_eq!(soon("a repeated call", call).await, Ok(1));
    }
    let other = buses[1].call::<Count>(&n1, &"x".into(), within(PATIENCE).idempotency_key("k2"));
    assert_eq!(soon("another key", other).await, Ok(2));
    end(buses).await;
}

/// One key for two contents is a conflict.
pub async fn a_key_used_for_another_request_is_a_conflict(transport: Arc<dyn Transport>) {
    let (seen, n1) = (Seen::default(), Route::node(path("n1")));
    let buses = [
        serve(&transport, "n1", &seen).await,
        client(&transport, "c1").await,
    ];
    let options = || within(PATIENCE).idempotency_key("k1");
    assert_eq!(
        soon("a call", buses[1].call::<Count>(&n1, &"x".into(), options())).await,
        Ok(1)
    );
    let fate = soon("a conflict", buses[1].call::<Count>(&n1, &"y".into(), options())).await;
    assert!(
        matches!(&fate, Err(Fate::Refused(e)) if e.kind() == ErrorKind::Conflict),
        "{fate:?}"
    );
    end(buses).await;
}

/// Requests with one key that come while the first is running wait for its answer.
pub async fn duplicates_of_a_running_request_share_its_answer(transport: Arc<dyn Transport>) {
    let (seen, n1) = (Seen::default(), Route::node(path("n1")));
    let buses = [
        serve(&transport, "n1", &seen).await,
        client(&transport, "c1").await,
    ];
    let request = slow(SHORT);
    let calls = (0..5).map(|_| buses[1].call::<Echo>(&n1, &request, within(PATIENCE).idempotency_key("k")));
    for reply in soon("duplicates", futures::future::join_all(calls)).await {
        assert!(reply.is_ok(), "{reply:?}");
    }
    assert_eq!(seen.started(), 1);
    end(buses).await;
}

/// A refusal with the outcome "not applied" does not use the key up.
pub async fn a_refusal_that_changed_nothing_may_be_tried_again_with_its_key(transport: Arc<dyn Transport>) {
    let (seen, n1) = (Seen::default(), Route::node(path("n1")));
    let buses = [
        serve(&transport, "n1", &seen).await,
        client(&transport, "c1").await,
    ];
    for tries in 1..=2 {
        let call = buses[1].call::<Echo>(&n1, &ask("refuse"), within(PATIENCE).idempotency_key("k"));
        assert!(soon("a refusal", call).await.is_err());
        assert_eq!(seen.started(), tries);
    }
    end(buses).await;
}

/// A command in the name of a lower epoch than was seen before is refused; what is not fenced passes.
pub async fn a_stale_epoch_is_refused(transport: Arc<dyn Transport>) {
    let (seen, n1) = (Seen::default(), Route::node(path("n1")));
    let gate = Arc::new(MemoryEpochGate::default());
    let member = Member::new(path("n1"), boot()).service(worker());
    let gated = router(&path("n1"), &seen).with_epoch_gate(gate.clone());
    let agent = Bus::attach(transport.clone(), member, gated)
        .await
        .expect("an agent attaches");
    let bus = client(&transport, "c1").await;
    let call = |epoch| bus.call::<Count>(&n1, &"x".into(), within(PATIENCE).epoch(Epoch(epoch)));
    assert_eq!(soon("a command", call(5)).await, Ok(1));
    let fate = soon("a stale command", call(4)).await;
    assert!(
        matches!(&fate, Err(Fate::Refused(e)) if e.kind() == ErrorKind::Stale),
        "{fate:?}"
    );
    assert_eq!(soon("a command", call(6)).await, Ok(2));
    assert_eq!(gate.highest(), Epoch(6));
    echo(&bus, &n1, "only reads").await;
    end([agent, bus]).await;
}

/// The payload limit holds on this side, with a clear error; what is just below it passes.
pub async fn a_payload_over_the_limit_is_refused_and_one_at_the_limit_passes(transport: Arc<dyn Transport>) {
    let (seen, n1) = (Seen::default(), Route::node(path("n1")));
    let buses = [
        serve(&transport, "n1", &seen).await,
        client(&transport, "c1").await,
    ];
    let large = "x".repeat(limits::PAYLOAD_MAX_BYTES);
    let fate = soon(
        "a large call",
        buses[1].call::<Echo>(&n1, &ask(&large), within(PATIENCE)),
    )
    .await;
    assert!(
        matches!(&fate, Err(Fate::Refused(e)) if e.kind() == ErrorKind::InvalidInput),
        "{fate:?}"
    );
    assert_eq!(seen.started(), 0);
    let fits = &large[..limits::PAYLOAD_MAX_BYTES - 100];
    assert_eq!(echo(&buses[1], &n1, fits).await.1, fits);
    end(buses).await;
}

/// MessagePack and JSON bodies both work; the reply comes in the codec of the request.
pub async fn both_codecs_carry_a_call(transport: Arc<dyn Transport>) {
    let (seen, n1) = (Seen::default(), Route::node(path("n1")));
    let buses = [
        serve(&transport, "n1", &seen).await,
        client(&transport, "c1").await,
    ];
    for codec in [Codec::MessagePack, Codec::Json] {
        let call = buses[1].call::<Echo>(&n1, &ask("ä"), within(PATIENCE).codec(codec));
        assert_eq!(soon("a call", call).await, Ok((path("n1"), "ä".into())));
    }
    end(buses).await;
}

/// A thousand calls at once all come back, each with its own reply.
pub async fn a_thousand_calls_are_in_flight_at_once(transport: Arc<dyn Transport>) {
    let (seen, n1) = (Seen::default(), Route::node(path("n1")));
    let buses = [
        serve(&transport, "n1", &seen).await,
        client(&transport, "c1").await,
    ];
    let calls = (0..1_000).map(|n| {
        let request = Ask {
            text: n.to_string(),
            wait_ms: 50,
        };
        buses[1].call::<Echo>(&n1, &request, within(PATIENCE))
    });
    let replies = soon("a thousand calls", futures::future::join_all(calls)).await;
    for (n, reply) in replies.into_iter().enumerate() {
        assert_eq!(reply, Ok((path("n1"), n.to_string())));
    }
    assert_eq!(seen.started(), 1_000);
    end(buses).await;
}

/// Two attachments that both serve and call, as controllers and agents do.
pub async fn both_directions_work_at_once_on_one_attachment(transport: Arc<dyn Transport>) {
    let seen = Seen::default();
    let buses = [
        serve(&transport, "c1", &seen).await,
        serve(&transport, "n1", &seen).await,
    ];
    let (to_c1, to_n1) = (Route::node(path("c1")), Route::node(path("n1")));
    let there = (0..200).map(|_| buses[0].call::<Echo>(&to_n1, &ask("there"), within(PATIENCE)));
    let back = (0..200).map(|_| buses[1].call::<Echo>(&to_c1, &ask("back"), within(PATIENCE)));
    let both = futures::future::join(futures::future::join_all(there), futures::future::join_all(back));
    let (there, back) = soon("both directions", both).await;
    assert!(there.iter().chain(&back).all(Result::is_ok));
    // A member may also call itself.
    assert_eq!(echo(&buses[0], &to_c1, "me").await.0, path("c1"));
    end(buses).await;
}

/// `call` along a route to all, and `broadcast` along a route to one, are refused.
pub async fn a_route_to_the_wrong_verb_is_refused(transport: Arc<dyn Transport>) {
    let bus = client(&transport, "c1").await;
    let all = Route::all(NodePath::root(), worker());
    let call = bus.call::<Echo>(&all, &ask(""), within(SHORT)).await.err();
    let broadcast = bus
        .broadcast::<Echo>(&Route::node(path("c1")), &ask(""), within(SHORT))
        .await
        .err();
    for fate in [call, broadcast] {
        assert!(
            matches!(&fate, Some(Fate::Refused(e)) if e.kind() == ErrorKind::InvalidInput),
            "{fate:?}"
        );
    }
    end([bus]).await;
}
