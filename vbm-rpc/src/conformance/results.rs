//! Recorded answers outlive the process that gave them.

use super::*;
use crate::Fate;

/// Counts; its answers are not kept.
struct Careless;
impl Method for Careless {
    const NAME: &'static str = "conformance.careless";
    const FENCED: bool = false;
    const KEPT: bool = false;
    type Request = ();
    type Reply = u64;
}

async fn count(bus: &Bus, route: &Route, name: &str, key: &str) -> Result<u64, Fate> {
    let options = within(PATIENCE).idempotency_key(key);
    soon("a keyed call", bus.call::<Count>(route, &name.into(), options)).await
}

/// The next process of a path gives the recorded answer for a key; the effect is not repeated.
pub async fn a_recorded_answer_outlives_its_worker(transport: Arc<dyn Transport>) {
    let (first, second, n1) = (Seen::default(), Seen::default(), Route::node(path("eu/n1")));
    second.count.store(100, Ordering::SeqCst);
    let bus = client(&transport, "c1").await;
    let worker = serve(&transport, "eu/n1", &first).await;
    assert_eq!(count(&bus, &n1, "x", "k").await, Ok(1));
    worker.kill().await;
    let worker = serve(&transport, "eu/n1", &second).await;
    for _ in 0..2 {
        assert_eq!(count(&bus, &n1, "x", "k").await, Ok(1), "the recorded answer");
    }
    assert_eq!(count(&bus, &n1, "x", "k2").await, Ok(101), "another key runs");
    end([worker, bus]).await;
}

/// Of the members of a service another one gives the recorded answer too.
pub async fn another_member_gives_the_recorded_answer(transport: Arc<dyn Transport>) {
    let (first, second) = (Seen::default(), Seen::default());
    second.count.store(100, Ordering::SeqCst);
    let route = Route::any(path("eu"), worker());
    let bus = client(&transport, "c1").await;
    let n1 = serve(&transport, "eu/n1", &first).await;
    assert_eq!(count(&bus, &route, "x", "k").await, Ok(1));
    let n2 = serve(&transport, "eu/n2", &second).await;
    end([n1]).await;
    assert_eq!(count(&bus, &route, "x", "k").await, Ok(1), "the recorded answer");
    assert_eq!(second.count.load(Ordering::SeqCst), 100);
    assert_eq!(count(&bus, &route, "x", "k2").await, Ok(101));
    end([n2, bus]).await;
}

/// A key that another process recorded for another request is a conflict.
pub async fn a_key_recorded_elsewhere_for_another_request_is_a_conflict(transport: Arc<dyn Transport>) {
    let (seen, n1) = (Seen::default(), Route::node(path("n1")));
    let bus = client(&transport, "c1").await;
    let worker = serve(&transport, "n1", &seen).await;
    assert_eq!(count(&bus, &n1, "x", "k").await, Ok(1));
    end([worker]).await;
    let worker = serve(&transport, "n1", &seen).await;
    let fate = count(&bus, &n1, "y", "k").await;
    assert!(
        matches!(&fate, Err(Fate::Refused(e)) if e.kind() == ErrorKind::Conflict),
        "{fate:?}"
    );
    assert_eq!(seen.count.load(Ordering::SeqCst), 1);
    end([worker, bus]).await;
}

/// A recorded refusal that changed nothing does not use the key up for the next process either.
pub async fn a_recorded_refusal_that_changed_nothing_may_be_tried_elsewhere(transport: Arc<dyn Transport>) {
    let (seen, n1) = (Seen::default(), Route::node(path("n1")));
    let bus = client(&transport, "c1").await;
    for tries in 1..=2 {
        let worker = serve(&transport, "n1", &seen).await;
        let call = bus.call::<Echo>(&n1, &ask("refuse"), within(PATIENCE).idempotency_key("k"));
        assert!(matches!(soon("a refusal", call).await, Err(Fate::Refused(_))));
        assert_eq!(seen.started(), tries);
        end([worker]).await;
    }
    end([bus]).await;
}

/// What is not for keeping is not recorded, even with a key.
pub async fn an_answer_that_is_not_kept_is_not_recorded(transport: Arc<dyn Transport>) {
    let (seen, n1) = (Seen::default(), Route::node(path("n1")));
    let bus = client(&transport, "c1").await;
    for tries in 1..=2 {
        let seen = seen.clone();
        let router = Router::new().method::<Careless, _, _>(move |_context: Context, ()| {
            let seen = seen.clone();
            async move { Ok(seen.count.fetch_add(1, Ordering::SeqCst) + 1) }
        });
        let member = Member::new(path("n1"), boot());
        let worker = Bus::attach(transport.clone(), member, router)
            .await
            .expect("a worker attaches");
        let call = bus.call::<Careless>(&n1, &(), within(PATIENCE).idempotency_key("k"));
        assert_eq!(soon("a call", call).await, Ok(tries));
        end([worker]).await;
    }
    end([bus]).await;
}
