//! Many members.

use super::*;
use crate::{Fate, Replies};
use std::collections::BTreeSet;
use tokio::time::Instant;

/// Without a live destination every verb fails at once, long before the deadline.
pub async fn nobody_there_is_no_route_at_once(transport: Arc<dyn Transport>) {
    let bus = client(&transport, "c1").await;
    let begin = Instant::now();
    let node = bus
        .call::<Echo>(&Route::node(path("n9")), &ask(""), within(PATIENCE))
        .await
        .err();
    let any = bus
        .call::<Echo>(&Route::any(path("eu"), worker()), &ask(""), within(PATIENCE))
        .await
        .err();
    let cast = bus
        .cast::<Echo>(&Route::node(path("n9")), &ask(""), within(PATIENCE))
        .await
        .err();
    let all = bus
        .broadcast::<Echo>(&Route::all(path("eu"), worker()), &ask(""), within(PATIENCE))
        .await
        .err();
    for fate in [node, any, cast, all] {
        assert!(matches!(fate, Some(Fate::NoRoute { .. })), "{fate:?}");
    }
    assert!(begin.elapsed() < PATIENCE / 10, "it took {:?}", begin.elapsed());
    end([bus]).await;
}

/// Each call for any runs on exactly one member.
pub async fn any_picks_exactly_one_member(transport: Arc<dyn Transport>) {
    let seen = Seen::default();
    let mut buses = Vec::new();
    for at in ["eu/n1", "eu/n2", "us/n1"] {
        buses.push(serve(&transport, at, &seen).await);
    }
    let bus = client(&transport, "c1").await;
    let route = Route::any(path("eu"), worker());
    let calls = (0..100).map(|_| bus.call::<Echo>(&route, &ask("x"), within(PATIENCE)));
    for reply in soon("calls for any", futures::future::join_all(calls)).await {
        let (by, _) = reply.expect("a reply");
        assert!(path("eu").contains(&by), "{by} is not below the scope");
    }
    assert_eq!(seen.started(), 100);
    buses.push(bus);
    end(buses).await;
}

/// A scope is any prefix, from the root down to the node itself, and holds nothing beside it.
pub async fn scopes_are_prefixes_of_paths_at_every_depth(transport: Arc<dyn Transport>) {
    let (seen, deep) = (Seen::default(), "a/b/c/d/e/f/g/h");
    let mut buses = Vec::new();
    for at in [deep, "a/b/n1", "a/bb/n1", "z"] {
        buses.push(serve(&transport, at, &seen).await);
    }
    let bus = client(&transport, "c1").await;
    for scope in ["a/b/c", "a/b/c/d/e/f/g", deep] {
        assert_eq!(
            echo(&bus, &Route::any(path(scope), worker()), "x").await.0,
            path(deep)
        );
    }
    for (scope, expected) in [
        ("/", vec![deep, "a/b/n1", "a/bb/n1", "z"]),
        ("a", vec![deep, "a/b/n1", "a/bb/n1"]),
        ("a/b", vec![deep, "a/b/n1"]),
    ] {
        let route = Route::all(path(scope), worker());
        let replies = soon(
            "a broadcast",
            bus.broadcast::<Echo>(&route, &ask("x"), within(PATIENCE)),
        )
        .await;
        let (who, silent) = collect(replies.expect("somebody is there")).await;
        assert_eq!(who, expected.into_iter().map(path).collect(), "below {scope}");
        assert!(silent.is_empty());
    }
    let beside = bus
        .call::<Echo>(&Route::any(path("a/b/c/x"), worker()), &ask("x"), within(SHORT))
        .await;
    assert!(matches!(beside, Err(Fate::NoRoute { .. })), "{beside:?}");
    buses.push(bus);
    end(buses).await;
}

async fn collect(mut replies: Replies<Echo>) -> (BTreeSet<NodePath>, Vec<NodePath>) {
    let mut who = BTreeSet::new();
    while let Some((from, reply)) = soon("a reply of a broadcast", replies.next()).await {
        let (by, _) = reply.expect("a reply");
        assert_eq!(by, from);
        assert!(who.insert(from), "one reply each");
    }
    (who, replies.silent())
}

/// A cast runs once on its destination, along every route.
pub async fn a_cast_runs_once(transport: Arc<dyn Transport>) {
    let seen = Seen::default();
    let buses = [
        serve(&transport, "eu/n1", &seen).await,
        serve(&transport, "eu/n2", &seen).await,
        client(&transport, "c").await,
    ];
    let cast = |route: Route| {
        let bus = &buses[2];
        async move {
            soon("a cast", bus.cast::<Echo>(&route, &ask("x"), within(PATIENCE)))
                .await
                .expect("it is kept")
        }
    };
    cast(Route::node(path("eu/n1"))).await;
    until("one ran", || seen.started() == 1).await;
    cast(Route::any(path("eu"), worker())).await;
    until("one more ran", || seen.started() == 2).await;
    cast(Route::all(path("eu"), worker())).await;
    until("both ran", || seen.started() == 4).await;
    // What comes after a call in the same queue would have run by now.
    for at in ["eu/n1", "eu/n2"] {
        echo(&buses[2], &Route::node(path(at)), "after").await;
    }
    assert_eq!(seen.started(), 6);
    end(buses).await;
}

/// A broadcast is answered by every member below its scope that offers its service, and by nobody else.
pub async fn a_broadcast_reaches_all_below_its_scope(transport: Arc<dyn Transport>) {
    let seen = Seen::default();
    let mut buses = Vec::new();
    for at in ["eu/r1/n1", "eu/r1/n2", "eu/r2/n1", "us/r1/n1"] {
        buses.push(serve(&transport, at, &seen).await);
    }
    // Below the scope, but without the service.
    buses.push(client(&transport, "eu/r1/c1").await);
    let route = Route::all(path("eu"), worker());
    let replies = soon(
        "a broadcast",
        buses[4].broadcast::<Echo>(&route, &ask("x"), within(PATIENCE)),
    )
    .await;
    let (who, silent) = collect(replies.expect("somebody is there")).await;
    assert_eq!(
        who,
        ["eu/r1/n1", "eu/r1/n2", "eu/r2/n1"]
            .into_iter()
            .map(path)
            .collect()
    );
    assert!(silent.is_empty() && seen.started() == 3);
    end(buses).await;
}

/// A broadcast ends at its deadline and names who was there and said nothing.
pub async fn a_broadcast_names_the_silent(transport: Arc<dyn Transport>) {
    let seen = Seen::default();
    let (n1, n2) = (
        serve(&transport, "eu/n1", &seen).await,
        serve(&transport, "eu/n2", &seen).await,
    );
    let bus = client(&transport, "c1").await;
    // Crashed a moment ago: presence does not know yet.
    n2.kill().await;
    let route = Route::all(path("eu"), worker());
    let replies = soon(
        "a broadcast",
        bus.broadcast::<Echo>(&route, &ask("x"), within(SHORT)),
    )
    .await;
    let (who, silent) = collect(replies.expect("somebody is there")).await;
    assert_eq!(who, [path("eu/n1")].into());
    assert_eq!(silent, [path("eu/n2")]);
    end([n1, bus]).await;
}

/// With enough good replies a broadcast ends before its deadline.
pub async fn a_broadcast_ends_at_its_quorum(transport: Arc<dyn Transport>) {
    let seen = Seen::default();
    let mut buses = Vec::new();
    for at in ["n1", "n2", "n3"] {
        buses.push(serve(&transport, at, &seen).await);
    }
    let route = Route::all(NodePath::root(), worker());
    let bus = client(&transport, "c1").await;
    let replies = bus.broadcast::<Echo>(&route, &ask("x"), within(PATIENCE).quorum(2));
    let (who, silent) = collect(soon("a broadcast", replies).await.expect("somebody is there")).await;
    assert_eq!((who.len(), silent.len()), (2, 1));
    buses.push(bus);
    end(buses).await;
}

/// Who joins after a broadcast does not see it.
pub async fn a_later_joiner_sees_no_old_broadcast(transport: Arc<dyn Transport>) {
    let (early, late) = (Seen::default(), Seen::default());
    let (n1, bus) = (
        serve(&transport, "eu/n1", &early).await,
        client(&transport, "c1").await,
    );
    let route = Route::all(path("eu"), worker());
    soon("a cast", bus.cast::<Echo>(&route, &ask("old"), within(PATIENCE)))
        .await
        .expect("it is kept");
    until("who was there sees it", || early.started() == 1).await;
    let n2 = serve(&transport, "eu/n2", &late).await;
    let replies = bus.broadcast::<Echo>(&route, &ask("new"), within(PATIENCE));
    let (who, _) = collect(soon("a broadcast", replies).await.expect("somebody is there")).await;
    assert_eq!(who.len(), 2);
    assert_eq!((early.started(), late.started()), (2, 1));
    end([n1, n2, bus]).await;
}
