//! Coming and going.

use super::*;
use crate::{BusError, Fate};
use vbm_core::Epoch;

/// Presence lists who is below a scope, with run, services and methods; who leaves is gone from it at once.
pub async fn presence_tells_who_is_there_and_what_they_can(transport: Arc<dyn Transport>) {
    let seen = Seen::default();
    let member = Member::new(path("eu/n1"), "boot-x")
        .service(worker())
        .epoch(Epoch(7));
    let n1 = Bus::attach(transport.clone(), member, router(&path("eu/n1"), &seen))
        .await
        .expect("it attaches");
    let (n2, c1) = (
        serve(&transport, "us/n2", &seen).await,
        client(&transport, "eu/c1").await,
    );
    let paths =
        |members: &[crate::MemberInfo]| members.iter().map(|m| m.path.to_string()).collect::<Vec<_>>();
    let all = soon("presence", c1.members(&NodePath::root()))
        .await
        .expect("an answer");
    assert_eq!(paths(&all), ["eu/c1", "eu/n1", "us/n2"]);
    let eu = soon("presence", c1.members(&path("eu")))
        .await
        .expect("an answer");
    assert_eq!(paths(&eu), ["eu/c1", "eu/n1"]);
    let info = &eu[1];
    assert_eq!((info.boot_id.as_str(), info.epoch), ("boot-x", Epoch(7)));
    assert_eq!(info.services, [worker()]);
    assert_eq!(info.methods, ["conformance.count", "conformance.echo"]);
    end([n2]).await;
    let left = soon("presence", c1.members(&NodePath::root()))
        .await
        .expect("an answer");
    assert_eq!(paths(&left), ["eu/c1", "eu/n1"]);
    end([n1, c1]).await;
}

/// After a shutdown a path has no route; after a new attachment it is served again.
pub async fn a_restarted_worker_serves_again(transport: Arc<dyn Transport>) {
    let (seen, n1) = (Seen::default(), Route::node(path("n1")));
    let bus = client(&transport, "c1").await;
    for round in 0..3 {
        let worker = serve(&transport, "n1", &seen).await;
        echo(&bus, &n1, "x").await;
        end([worker]).await;
        let fate = soon("a call", bus.call::<Echo>(&n1, &ask("x"), within(PATIENCE))).await;
        assert!(
            matches!(fate, Err(Fate::NoRoute { .. })),
            "round {round}: {fate:?}"
        );
    }
    end([bus]).await;
}

/// A request for a node whose process died is kept for its next process.
pub async fn a_request_waits_for_a_killed_worker_to_return(transport: Arc<dyn Transport>) {
    let (first, second, n1) = (Seen::default(), Seen::default(), Route::node(path("n1")));
    let (worker, bus) = (
        serve(&transport, "n1", &first).await,
        client(&transport, "c1").await,
    );
    // One that is running when the process dies, one that comes after.
    let request = slow(SHORT);
    let running = bus.call::<Echo>(&n1, &request, within(PATIENCE));
    let story = async {
        until("it is running", || first.started() == 1).await;
        worker.kill().await;
        let waiting = bus.call::<Echo>(&n1, &ask("after"), within(PATIENCE));
        let again = async { serve(&transport, "n1", &second).await };
        futures::future::join(waiting, again).await
    };
    let (running, (waiting, worker)) = soon("the next process", futures::future::join(running, story)).await;
    assert!(running.is_ok() && waiting.is_ok(), "{running:?} {waiting:?}");
    assert_eq!((first.started(), second.started()), (1, 2));
    end([worker, bus]).await;
}

/// A request whose deadline passed while it waited is never started, and its caller was told in time.
pub async fn a_request_whose_deadline_passed_in_the_queue_is_never_started(transport: Arc<dyn Transport>) {
    let (first, second, n1) = (Seen::default(), Seen::default(), Route::node(path("n1")));
    let (worker, bus) = (
        serve(&transport, "n1", &first).await,
        client(&transport, "c1").await,
    );
    worker.kill().await;
    let fate = soon("a call", bus.call::<Echo>(&n1, &ask("x"), within(SHORT))).await;
    assert!(matches!(fate, Err(Fate::Lost { started: false, .. })), "{fate:?}");
    let worker = serve(&transport, "n1", &second).await;
    echo(&bus, &n1, "behind it in the queue").await;
    assert_eq!((first.started(), second.started()), (0, 1));
    end([worker, bus]).await;
}

/// What a dead member had taken for a service is done by another when its presence has run out.
pub async fn a_request_of_a_killed_worker_for_any_goes_to_another(transport: Arc<dyn Transport>) {
    let (first, second) = (Seen::default(), Seen::default());
    let route = Route::any(path("eu"), worker());
    let (dying, bus) = (
        serve(&transport, "eu/n1", &first).await,
        client(&transport, "c1").await,
    );
    let request = slow(SHORT);
    let calls = (0..10).map(|_| bus.call::<Echo>(&route, &request, within(PATIENCE)));
    let story = async {
        until("they are running", || first.started() == 10).await;
        let other = serve(&transport, "eu/n2", &second).await;
        dying.kill().await;
        other
    };
    let calls = futures::future::join_all(calls);
    let (replies, other) = soon("the other member", futures::future::join(calls, story)).await;
    for reply in replies {
        assert_eq!(reply.expect("a reply").0, path("eu/n2"));
    }
    assert_eq!((first.started(), second.started()), (10, 10));
    end([other, bus]).await;
}

/// Of two processes with one path the one that attached last is reached, and the other is told.
pub async fn who_attaches_last_has_the_path(transport: Arc<dyn Transport>) {
    let (first, second, n1) = (Seen::default(), Seen::default(), Route::node(path("n1")));
    let old = serve(&transport, "n1", &first).await;
    let new = serve(&transport, "n1", &second).await;
    let bus = client(&transport, "c1").await;
    soon("the old one is told", old.closed()).await;
    assert!(
        matches!(old.health(), Err(BusError::Displaced { .. })),
        "{:?}",
        old.health()
    );
    let fate = old.call::<Echo>(&n1, &ask("x"), within(PATIENCE)).await;
    assert!(
        matches!(&fate, Err(Fate::Refused(e)) if e.kind() == ErrorKind::Conflict),
        "{fate:?}"
    );
    end([old]).await;
    for _ in 0..10 {
        echo(&bus, &n1, "x").await;
    }
    assert_eq!((first.started(), second.started()), (0, 10));
    end([new, bus]).await;
}

/// The same holds for two attachments of one process, which have one boot id.
pub async fn a_second_attachment_of_one_process_takes_the_path_too(transport: Arc<dyn Transport>) {
    let (first, second, n1) = (Seen::default(), Seen::default(), Route::node(path("n1")));
    let boot_id = boot();
    let attach = |seen: &Seen| {
        let member = Member::new(path("n1"), boot_id.clone()).service(worker());
        Bus::attach(transport.clone(), member, router(&path("n1"), seen))
    };
    let old = attach(&first).await.expect("it attaches");
    let new = attach(&second).await.expect("it attaches");
    let bus = client(&transport, "c1").await;
    soon("the old one is told", old.closed()).await;
    end([old]).await;
    for _ in 0..10 {
        echo(&bus, &n1, "x").await;
    }
    assert_eq!((first.started(), second.started()), (0, 10));
    end([new, bus]).await;
}

/// A shutdown ends every task of the attachment, and what its callers wait for.
pub async fn a_shutdown_ends_every_task_and_every_wait(transport: Arc<dyn Transport>) {
    let (seen, n1) = (Seen::default(), Route::node(path("n1")));
    let (worker, bus) = (
        serve(&transport, "n1", &seen).await,
        client(&transport, "c1").await,
    );
    let (observer, call) = (
        bus.clone(),
        bus.call::<Echo>(&n1, &slow(PATIENCE), within(PATIENCE)),
    );
    let story = async {
        until("it is running", || seen.started() == 1).await;
        bus.shutdown().await;
    };
    let (fate, ()) = soon("a shutdown", futures::future::join(call, story)).await;
    assert!(matches!(fate, Err(Fate::Lost { .. })), "{fate:?}");
    assert_eq!(observer.task_count(), 0);
    let after = observer.call::<Echo>(&n1, &ask("x"), within(PATIENCE)).await;
    assert_eq!(after, Err(Fate::Cancelled));
    assert!(matches!(
        observer.members(&NodePath::root()).await,
        Err(BusError::Closed)
    ));
    end([worker]).await;
}

/// Running handlers are told of a shutdown and their replies still arrive.
pub async fn a_shutdown_lets_running_handlers_answer(transport: Arc<dyn Transport>) {
    let (seen, n1) = (Seen::default(), Route::node(path("n1")));
    let (worker, bus) = (
        serve(&transport, "n1", &seen).await,
        client(&transport, "c1").await,
    );
    let call = bus.call::<Echo>(&n1, &slow(PATIENCE), within(PATIENCE));
    let story = async {
        until("it is running", || seen.started() == 1).await;
        worker.shutdown().await;
    };
    let (reply, ()) = soon("a shutdown", futures::future::join(call, story)).await;
    assert!(reply.is_ok(), "{reply:?}");
    assert_eq!(seen.cancelled.load(Ordering::SeqCst), 1);
    end([bus]).await;
}

/// A member over the limits is refused before it appears.
pub async fn a_bad_member_is_refused(transport: Arc<dyn Transport>) {
    for boot_id in ["", "a b", &"x".repeat(1_000)] {
        let member = Member::new(path("n1"), boot_id);
        let refused = Bus::attach(transport.clone(), member, Router::new()).await.err();
        assert!(
            matches!(refused, Some(BusError::InvalidMember { .. })),
            "{refused:?}"
        );
    }
}
