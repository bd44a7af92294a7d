//! Signs of life: progress, silence, and what is known of a call.

use super::*;
use crate::{Fate, ProgressMethod, Unanswered, limits};
use std::sync::Mutex;
use tokio::time::Instant;

/// Reports the numbers below its request, one after the other, and gives them back.
struct Climb;
impl Method for Climb {
    const NAME: &'static str = "conformance.climb";
    const FENCED: bool = false;
    type Request = u64;
    type Reply = u64;
}
impl ProgressMethod for Climb {
    type Progress = u64;
}

async fn climber(transport: &Arc<dyn Transport>, at: &str, seen: &Seen) -> Bus {
    let member = Member::new(path(at), boot()).service(worker());
    let climb = Router::new().method::<Climb, _, _>(|context: Context, top: u64| async move {
        for n in 0..top {
            context.progress::<Climb>(&n);
            sleep(limits::PROGRESS_EVERY / 2).await;
        }
        Ok(top)
    });
    Bus::attach(transport.clone(), member, router(&path(at), seen).merge(climb))
        .await
        .expect("a worker attaches")
}

/// Progress arrives while the handler runs, in order, the newest first of what came meanwhile; then the reply.
pub async fn progress_arrives_in_order_and_before_the_reply(transport: Arc<dyn Transport>) {
    let (seen, n1) = (Seen::default(), Route::node(path("n1")));
    let buses = [
        climber(&transport, "n1", &seen).await,
        client(&transport, "c1").await,
    ];
    let told = Mutex::new(Vec::new());
    let call = buses[1].call_with_progress::<Climb, _>(&n1, &20, within(PATIENCE), |n| {
        told.lock().expect("one thread").push(n);
    });
    assert_eq!(soon("a climb", call).await, Ok(20));
    let told = told.into_inner().expect("one thread");
    assert!(told.len() >= 3, "some of it is heard: {told:?}");
    assert!(told.windows(2).all(|pair| pair[0] < pair[1]), "{told:?}");
    end(buses).await;
}

/// Progress is for who listens: a plain call of the same method is none the wiser.
pub async fn a_caller_that_does_not_listen_gets_its_reply_all_the_same(transport: Arc<dyn Transport>) {
    let (seen, n1) = (Seen::default(), Route::node(path("n1")));
    let buses = [
        climber(&transport, "n1", &seen).await,
        client(&transport, "c1").await,
    ];
    let call = buses[1].call::<Climb>(&n1, &3, within(PATIENCE));
    assert_eq!(soon("a call", call).await, Ok(3));
    end(buses).await;
}

/// A worker that says no word any more is noticed after some beats, not at the deadline.
pub async fn a_worker_that_falls_silent_is_noticed_long_before_the_deadline(transport: Arc<dyn Transport>) {
    let (seen, n1) = (Seen::default(), Route::node(path("n1")));
    let (dying, bus) = (
        serve(&transport, "n1", &seen).await,
        client(&transport, "c1").await,
    );
    let call = bus.call::<Echo>(&n1, &slow(PATIENCE * 10), within(PATIENCE * 10));
    let story = async {
        until("it is running", || seen.started() == 1).await;
        // Until its caller has heard so.
        sleep(limits::ACCEPT_AFTER * 10).await;
        dying.kill().await;
        Instant::now()
    };
    let (fate, killed) = soon("the end", futures::future::join(call, story)).await;
    match fate {
        Err(Fate::Lost {
            started: true,
            worker,
            ..
        }) => assert_eq!(worker, Some(path("n1"))),
        other => panic!("{other:?}"),
    }
    let most = limits::BEAT_EVERY * (limits::SILENT_BEATS + 8);
    assert!(killed.elapsed() < most, "{:?}", killed.elapsed());
    end([bus]).await;
}

/// A handler that runs for longer than silence lasts, and lives, answers.
pub async fn a_long_handler_is_not_taken_for_silent(transport: Arc<dyn Transport>) {
    let (seen, n1) = (Seen::default(), Route::node(path("n1")));
    let buses = [
        serve(&transport, "n1", &seen).await,
        client(&transport, "c1").await,
    ];
    let long = slow(limits::BEAT_EVERY * (limits::SILENT_BEATS + 4));
    let calls = (0..20).map(|_| buses[1].call::<Echo>(&n1, &long, within(PATIENCE)));
    for reply in soon("long calls", futures::future::join_all(calls)).await {
        assert!(reply.is_ok(), "{reply:?}");
    }
    end(buses).await;
}

/// A request for a node that died before it began it ends when the node is gone for good, and may be sent again.
pub async fn a_request_that_nobody_begins_ends_when_its_node_is_gone(transport: Arc<dyn Transport>) {
    let (seen, n1) = (Seen::default(), Route::node(path("n1")));
    let (dying, bus) = (
        serve(&transport, "n1", &seen).await,
        client(&transport, "c1").await,
    );
    dying.kill().await;
    let fate = soon("the end", bus.call::<Echo>(&n1, &ask("x"), within(PATIENCE * 10))).await;
    assert!(
        matches!(&fate, Err(Fate::Lost { started: false, why, .. }) if why.contains("n1 left the bus")),
        "{fate:?}"
    );
    assert!(fate.is_err_and(|fate| fate.is_retryable()));
    assert_eq!(seen.started(), 0);
    end([bus]).await;
}

/// Calls of one batch end each in its own way, and the answers stand in the order of the calls.
pub async fn a_batch_has_an_end_for_each_of_its_calls_in_order(transport: Arc<dyn Transport>) {
    let seen = Seen::default();
    let buses = [
        serve(&transport, "eu/n1", &seen).await,
        serve(&transport, "eu/n2", &seen).await,
        client(&transport, "c1").await,
    ];
    let (n1, n2, nowhere) = (
        Route::node(path("eu/n1")),
        Route::node(path("eu/n2")),
        Route::node(path("eu/n9")),
    );
    let mut batch = buses[2].batch::<Echo>();
    for n in 0..200 {
        batch.add([&n1, &n2][n % 2], &ask(&n.to_string()), within(PATIENCE));
    }
    batch
        .add(&nowhere, &ask("nobody"), within(PATIENCE))
        .add(&n1, &ask("refuse"), within(PATIENCE))
        .add(&n2, &slow(PATIENCE), within(SHORT))
        .add(
            &Route::all(NodePath::root(), worker()),
            &ask("all"),
            within(PATIENCE),
        )
        .add(&n2, &ask("last"), within(PATIENCE));
    assert_eq!(batch.len(), 205);
    let answers = soon("a batch", batch.send()).await;
    assert_eq!(answers.len(), 205);
    for (n, answer) in answers[..200].iter().enumerate() {
        let at = ["eu/n1", "eu/n2"][n % 2];
        assert_eq!(answer, &Ok((path(at), n.to_string())));
    }
    assert!(
        matches!(answers[200], Err(Fate::NoRoute { .. })),
        "{:?}",
        answers[200]
    );
    assert!(
        matches!(&answers[201], Err(Fate::Refused(e)) if e.kind() == ErrorKind::Conflict),
        "{:?}",
        answers[201]
    );
    assert!(
        matches!(answers[202], Err(Fate::Lost { started: true, .. })),
        "{:?}",
        answers[202]
    );
    assert!(
        matches!(&answers[203], Err(Fate::Refused(e)) if e.kind() == ErrorKind::InvalidInput),
        "{:?}",
        answers[203]
    );
    assert_eq!(answers[204], Ok((path("eu/n2"), "last".into())));
    let none = buses[2].batch::<Echo>();
    assert!(none.is_empty() && none.send().await.is_empty());
    end(buses).await;
}

/// A traced call tells who did it, when it was queued, begun and ended; a lost one tells how far it came.
pub async fn a_traced_call_tells_where_it_was_and_when(transport: Arc<dyn Transport>) {
    let (seen, n1) = (Seen::default(), Route::node(path("n1")));
    let buses = [
        serve(&transport, "n1", &seen).await,
        client(&transport, "c1").await,
    ];
    let request = slow(limits::ACCEPT_AFTER * 10);
    let traced = soon(
        "a call",
        buses[1].call_traced::<Echo>(&n1, &request, within(PATIENCE)),
    )
    .await;
    let journey = traced.journey;
    assert!(traced.result.is_ok(), "{:?}", traced.result);
    assert_eq!((&journey.worker, journey.sendings), (&Some(path("n1")), 1));
    assert!(journey.id.is_some() && journey.waited.is_some());
    assert!(
        journey
            .queued_after
            .is_some_and(|queued| queued <= journey.ended_after)
    );
    assert!(
        journey
            .begun_after
            .is_some_and(|begun| begun >= limits::ACCEPT_AFTER)
    );
    assert!(journey.ended_after >= limits::ACCEPT_AFTER * 10, "{journey}");
    let lost = soon(
        "a lost call",
        buses[1].call_traced::<Echo>(&n1, &slow(PATIENCE), within(SHORT)),
    )
    .await;
    assert!(
        matches!(&lost.result, Err(Fate::Lost { started: true, why, .. }) if why.contains("begun after")),
        "{:?}",
        lost.result
    );
    assert_eq!(lost.journey.worker, Some(path("n1")));
    assert!(lost.journey.ended_after >= SHORT && lost.journey.begun_after.is_some());
    let nowhere = Route::node(path("n9"));
    let unsent = soon(
        "a call",
        buses[1].call_traced::<Echo>(&nowhere, &ask("x"), within(PATIENCE)),
    )
    .await;
    assert!(matches!(unsent.result, Err(Fate::NoRoute { .. })));
    assert_eq!((unsent.journey.queued_after, unsent.journey.worker), (None, None));
    end(buses).await;
}

/// Of the members that did not answer a broadcast in time, it is told which had begun.
pub async fn a_broadcast_tells_which_of_the_silent_had_begun(transport: Arc<dyn Transport>) {
    let (seen, other) = (Seen::default(), Seen::default());
    let (n1, n2, bus) = (
        serve(&transport, "n1", &seen).await,
        serve(&transport, "n2", &other).await,
        client(&transport, "c1").await,
    );
    n2.kill().await;
    let all = Route::all(NodePath::root(), worker());
    let broadcast = bus.broadcast::<Echo>(&all, &slow(PATIENCE), within(SHORT));
    let mut replies = soon("a broadcast", broadcast).await.expect("it is sent");
    assert!(soon("its end", replies.next()).await.is_none());
    let told: Vec<(String, bool)> = replies
        .unanswered()
        .into_iter()
        .map(|Unanswered { path, started }| (path.to_string(), started))
        .collect();
    assert_eq!(told, [("n1".into(), true), ("n2".into(), false)]);
    assert_eq!(replies.silent().len(), 2);
    end([n1, bus]).await;
}
