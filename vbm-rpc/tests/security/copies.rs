//! What was read from Redis and is put back: it does nothing a second time.

use super::world::*;
use crate::common::{left_out, words::*};
use tokio::time::timeout;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_copied_request_does_not_run_twice_wherever_it_is_put() {
    if left_out() {
        return;
    }
    let world = World::new().await;
    let (n1, c1) = (world.serve("eu/r1/n1", "boot-1").await, world.client().await);
    // While the node is dead, what is for it lies there to be copied.
    n1.kill().await;
    let waiting = [node(), any()].map(|route| {
        let c1 = c1.clone();
        tokio::spawn(async move { call(&c1, &route).await })
    });
    let mut raw = world.server.raw().await;
    until("both are queued", async || {
        look(&mut raw, N1).await.len() + look(&mut raw, ANY).await.len() == 2
    })
    .await;
    let copies = [look(&mut raw, N1).await, look(&mut raw, ANY).await].map(|mut entries| entries.remove(0));
    let (n1, n2) = (
        world.serve("eu/r1/n1", "boot-2").await,
        world.serve("eu/r1/n2", "boot-2").await,
    );
    for call in waiting {
        assert_eq!(timeout(PATIENCE, call).await.unwrap().unwrap(), Ok(42));
    }
    assert_eq!(world.ran(), 2);
    for copy in &copies {
        for key in [
            N1,
            ANY,
            ALL,
            "vbm:v1:{eu/r1}:n:eu/r1/n2",
            "vbm:v1:{eu}:g:eu:worker",
            INBOX,
        ] {
            let mut copy = copy.clone();
            if key == ALL {
                copy.extend([("s".into(), b"eu".to_vec()), ("v".into(), b"worker".to_vec())]);
            }
            for _ in 0..3 {
                add(&mut raw, key, &copy).await.unwrap();
            }
        }
    }
    until("every copy was looked at", async || {
        // 6 streams, 2 copies, 3 times; of the broadcasts each of two members looks at its own.
        world.bus.refused().values().sum::<u64>() >= 42
    })
    .await;
    let refused = world.bus.refused();
    assert_eq!(refused["replayed"], 6, "{refused:?}: the stream it was made for");
    assert!(
        refused["wrong-seal"] > 0 && refused["wrong-sort"] > 0,
        "{refused:?}"
    );
    assert_eq!(call(&c1, &node()).await, Ok(42));
    assert_eq!(world.ran(), 3, "copies ran nothing");
    for key in [N1, ANY] {
        until("copies are removed", async || {
            look(&mut raw, key).await.is_empty()
        })
        .await;
    }
    for bus in [c1, n1, n2] {
        bus.shutdown().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_copied_broadcast_and_a_copied_reply_do_nothing() {
    if left_out() {
        return;
    }
    let world = World::new().await;
    let (n1, c1) = (world.serve("eu/r1/n1", "boot-1").await, world.client().await);
    let mut replies = c1
        .broadcast::<Double>(&all(), &21, within(PATIENCE))
        .await
        .unwrap();
    assert_eq!(replies.next().await, Some((path("eu/r1/n1"), Ok(42))));
    let mut raw = world.server.raw().await;
    let (broadcast, reply) = (
        look(&mut raw, ALL).await.remove(0),
        look(&mut raw, INBOX).await.remove(0),
    );
    add(&mut raw, ALL, &broadcast).await.unwrap();
    add(&mut raw, INBOX, &reply).await.unwrap();
    until("both copies were refused", async || {
        world.bus.refused_for("replayed") == 2
    })
    .await;
    assert_eq!((call(&c1, &node()).await, world.ran()), (Ok(42), 2));
    c1.shutdown().await;
    n1.shutdown().await;
}
