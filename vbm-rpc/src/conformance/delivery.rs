//! Leases, dead letters, lanes, hops.

use super::*;
use crate::{
    Fate, Lane,
    admin::{DeadLetter, Ping, Stage},
    limits::{DELIVERIES_MAX, PRESENCE_TTL},
    transport::{Destination, Inbound},
};
use bytes::Bytes;
use std::sync::Mutex;
use tokio::sync::mpsc;
use uuid::Uuid;
use vbm_core::Epoch;

/// How many bulk requests wait before a slow worker in the sentence about lanes.
const BULK: usize = 5_000;
/// What a burst has beyond what can begin.
const BURST_REST: usize = 256;

/// Waits for cancellation on "hold", tells its request id on "id".
struct Hold;
impl Method for Hold {
    const NAME: &'static str = "conformance.hold";
    const FENCED: bool = false;
    const VERSION: u32 = 3;
    type Request = String;
    type Reply = Uuid;
}

/// What the handler of [`Hold`] has seen.
#[derive(Clone, Default)]
struct Held {
    /// The texts of all that began, in order.
    begun: Arc<Mutex<Vec<String>>>,
    cancelled: Arc<AtomicUsize>,
    /// How many processes have died: a "neighbour" hangs in the first two.
    lives: Arc<AtomicUsize>,
    /// How many neighbours were done.
    done: Arc<AtomicUsize>,
    /// A "panic" panics while this is set.
    panics: Arc<std::sync::atomic::AtomicBool>,
}

impl Held {
    fn begun(&self, text: &str) -> usize {
        let begun = self
            .begun
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        begun.iter().filter(|known| *known == text).count()
    }

    fn router(&self) -> Router {
        let held = self.clone();
        Router::new().method::<Hold, _, _>(move |context: Context, text: String| {
            let held = held.clone();
            async move {
                held.begun
                    .lock()
                    .unwrap_or_else(std::sync::PoisonError::into_inner)
                    .push(text.clone());
                match text.as_str() {
                    "hold" | "poison" => {
                        context.cancelled.cancelled().await;
                        held.cancelled.fetch_add(1, Ordering::SeqCst);
                    }
                    "neighbour" if held.lives.load(Ordering::SeqCst) < 2 => {
                        context.cancelled.cancelled().await;
                    }
                    "neighbour" => drop(held.done.fetch_add(1, Ordering::SeqCst)),
                    "long" => sleep(PRESENCE_TTL + Duration::from_secs(4)).await,
                    "panic" if held.panics.load(Ordering::SeqCst) => panic!("on request of a test"),
                    _ => {}
                }
                Ok(context.request_id)
            }
        })
    }

    async fn serve(&self, transport: &Arc<dyn Transport>, at: &str) -> Bus {
        let member = Member::new(path(at), boot()).service(worker());
        Bus::attach(transport.clone(), member, self.router())
            .await
            .expect("a worker attaches")
    }
}

/// Waits until there are so many dead letters below a scope.
async fn letters(bus: &Bus, scope: &str, count: usize) -> Vec<DeadLetter> {
    let waiting = async {
        loop {
            let found = bus.dead_letters(path(scope)).list().await.expect("an answer");
            if found.len() == count {
                return found;
            }
            sleep(Duration::from_millis(20)).await;
        }
    };
    soon("dead letters", waiting).await
}

/// What is no frame, or no request, is kept for people to look at, is found by its scope, and can be dropped; it cannot
/// be replayed, and nobody else's call is disturbed.
pub async fn what_cannot_be_read_goes_to_the_dead_letters(transport: Arc<dyn Transport>) {
    let (seen, bus) = (Seen::default(), client(&transport, "eu/c1").await);
    let n1 = serve(&transport, "eu/n1", &seen).await;
    let (sender, _requests) = mpsc::channel(1);
    let raw = Member::new(path("eu/raw"), boot())
        .into_info(Vec::new())
        .expect("a member");
    let raw = transport
        .attach(raw, Inbound::new(sender, Arc::new(|_frame| {})))
        .await
        .expect("it attaches");
    let to = Destination::Route(Route::node(path("eu/n1")));
    let garbage = Bytes::from_static(b"this is no frame");
    soon("a send", raw.link.send(&to, garbage.clone(), PATIENCE))
        .await
        .expect("it is sent");
    let found = letters(&bus, "/", 1).await;
    assert_eq!(
        (found[0].method.as_str(), found[0].request_id, found[0].bytes),
        ("", None, 16)
    );
    assert!(
        found[0].to.contains("eu/n1") && found[0].reason.contains("magic"),
        "{found:?}"
    );
    assert_eq!(letters(&bus, "eu/n1", 1).await, found);
    letters(&bus, "us", 0).await;
    let there = bus.dead_letters(NodePath::root());
    assert_eq!(there.show(&found[0].id).await.expect("it is there").1, garbage);
    let refused = there
        .replay(&found[0].id, None)
        .await
        .expect_err("it is no request");
    assert_eq!(refused.kind(), ErrorKind::Unsupported);
    echo(&bus, &Route::node(path("eu/n1")), "others go on").await;
    there.drop(&found[0].id).await.expect("it is dropped");
    let gone = there.drop(&found[0].id).await.expect_err("it is gone");
    assert_eq!(gone.kind(), ErrorKind::NotFound);
    letters(&bus, "/", 0).await;
    raw.link.retire().await;
    raw.link.close().await;
    end([n1, bus]).await;
}

/// Nobody hears of a panic in the handler of a cast: it is a dead letter. Replayed, it is the same request once more;
/// where entries are sealed and the operator has no key it cannot be replayed, says so, and stays.
pub async fn a_cast_whose_handler_panics_is_a_dead_letter_that_can_be_replayed(
    transport: Arc<dyn Transport>,
) {
    let (held, bus) = (Held::default(), client(&transport, "c1").await);
    let n1 = held.serve(&transport, "eu/n1").await;
    held.panics.store(true, Ordering::SeqCst);
    for route in [Route::node(path("eu/n1")), Route::any(path("eu"), worker())] {
        let cast = bus.cast::<Hold>(&route, &"panic".into(), within(PATIENCE));
        soon("a cast", cast).await.expect("it is sent");
    }
    let found = letters(&bus, "eu", 2).await;
    for letter in &found {
        assert_eq!(
            (letter.method.as_str(), letter.deliveries),
            (Hold::NAME, 1),
            "{letter:?}"
        );
        assert!(
            letter.reason.contains("panic") && letter.caller == "c1",
            "{letter:?}"
        );
        assert!(letter.worker.as_ref().is_some_and(|w| w.contains("eu/n1")));
    }
    assert_eq!(held.begun("panic"), 2);
    held.panics.store(false, Ordering::SeqCst);
    for letter in &found {
        let replay = bus.dead_letters(NodePath::root());
        match soon("a replay", replay.replay(&letter.id, Some(PATIENCE))).await {
            Ok(()) => {}
            Err(error) if error.kind() == ErrorKind::Unsupported && error.to_string().contains("sealed") => {
                letters(&bus, "/", 2).await;
                return end([n1, bus]).await;
            }
            Err(error) => panic!("it is replayed: {error}"),
        }
    }
    until("both ran again", || held.begun("panic") == 4).await;
    letters(&bus, "/", 0).await;
    // A letter whose destination nobody serves stays where it is.
    held.panics.store(true, Ordering::SeqCst);
    let cast = bus.cast::<Hold>(&Route::node(path("eu/n1")), &"panic".into(), within(PATIENCE));
    soon("a cast", cast).await.expect("it is sent");
    let found = letters(&bus, "eu/n1", 1).await;
    end([n1]).await;
    let refused = bus
        .dead_letters(NodePath::root())
        .replay(&found[0].id, None)
        .await;
    assert_eq!(
        refused.expect_err("nobody is there").kind(),
        ErrorKind::Unavailable
    );
    letters(&bus, "/", 1).await;
    end([bus]).await;
}

/// Along a route, a request that kills its process each time, between two neighbours that hang in the first lives.
async fn poison(transport: Arc<dyn Transport>, route: Route) {
    let (held, bus) = (Held::default(), client(&transport, "c1").await);
    let lives = usize::try_from(DELIVERIES_MAX).expect("a small number");
    for life in 1..=lives {
        let worker = held.serve(&transport, "eu/n1").await;
        if life == 1 {
            for text in ["neighbour", "poison", "neighbour"] {
                let cast = bus.cast::<Hold>(&route, &text.to_owned(), within(PATIENCE));
                soon("a cast", cast).await.expect("it is sent");
            }
        }
        until("the poison is begun", || held.begun("poison") == life).await;
        if life <= 2 {
            until("its neighbours are begun", || held.begun("neighbour") == 2 * life).await;
        }
        held.lives.store(life, Ordering::SeqCst);
        worker.kill().await;
    }
    let last = held.serve(&transport, "eu/n1").await;
    let found = letters(&bus, "eu", 1).await;
    assert_eq!(
        (found[0].deliveries, found[0].method.as_str()),
        (DELIVERIES_MAX, Hold::NAME),
        "{found:?}"
    );
    until("its neighbours are done", || {
        held.done.load(Ordering::SeqCst) >= 2
    })
    .await;
    let reply = soon("a call", bus.call::<Hold>(&route, &"id".into(), within(PATIENCE))).await;
    assert!(reply.is_ok(), "{reply:?}");
    assert_eq!(
        held.begun("poison"),
        lives,
        "it is not run once more after it was given up"
    );
    letters(&bus, "/", 1).await;
    end([last, bus]).await;
}

/// A request whose node dies with it each time is given up after [`DELIVERIES_MAX`] lives; what was there with it is
/// done, and the node goes on.
pub async fn a_request_that_kills_its_node_again_and_again_is_a_dead_letter_and_its_neighbours_are_done(
    transport: Arc<dyn Transport>,
) {
    poison(transport, Route::node(path("eu/n1"))).await;
}

/// The same for a request that any member may take.
pub async fn a_request_for_any_that_kills_its_workers_again_and_again_is_a_dead_letter(
    transport: Arc<dyn Transport>,
) {
    poison(transport, Route::any(path("eu"), worker())).await;
}

/// What a living member works on is not given to another, however long it takes.
pub async fn a_handler_that_outlives_the_lease_keeps_its_request(transport: Arc<dyn Transport>) {
    let (held, bus) = (Held::default(), client(&transport, "c1").await);
    let route = Route::any(path("eu"), worker());
    let n1 = held.serve(&transport, "eu/n1").await;
    let request = "long".to_owned();
    let call = bus.call::<Hold>(&route, &request, within(PATIENCE));
    let story = async {
        until("it is begun", || held.begun("long") == 1).await;
        held.serve(&transport, "eu/n2").await
    };
    let (reply, n2) = soon("a long call", futures::future::join(call, story)).await;
    assert!(reply.is_ok(), "{reply:?}");
    assert_eq!(held.begun("long"), 1);
    end([n1, n2, bus]).await;
}

/// A cancel, and a call of the control lane, arrive while thousands of bulk requests wait before a worker that is busy
/// with others.
pub async fn a_cancel_and_control_pass_five_thousand_bulk_requests(transport: Arc<dyn Transport>) {
    let (held, bus, n1) = (
        Held::default(),
        client(&transport, "c1").await,
        Route::node(path("n1")),
    );
    let worker = held.serve(&transport, "n1").await;
    let request = "hold".to_owned();
    let mut held_call = Box::pin(bus.call::<Hold>(&n1, &request, within(PATIENCE)));
    let story = async {
        until("it is begun", || held.begun("hold") == 1).await;
        let bulk: Vec<_> = (0..BULK)
            .map(|_| bus.cast::<Hold>(&n1, &request, within(PATIENCE)))
            .collect();
        for sent in futures::future::join_all(bulk).await {
            sent.expect("it is kept");
        }
        until("the worker is busy", || {
            held.begun("hold") == crate::limits::HANDLERS_MAX
        })
        .await;
        let control = within(PATIENCE).lane(Lane::Control);
        bus.call::<Hold>(&n1, &"id".into(), control).await
    };
    let reply = tokio::select! {
        biased;
        held = &mut held_call => panic!("nothing ends it: {held:?}"),
        reply = soon("a control call", story) => reply,
    };
    assert!(reply.is_ok(), "{reply:?}");
    assert_eq!(held.cancelled.load(Ordering::SeqCst), 0);
    drop(held_call);
    until("the cancel arrives", || {
        held.cancelled.load(Ordering::SeqCst) == 1
    })
    .await;
    assert!(
        held.begun("hold") < BULK / 2,
        "the bulk still waits: {}",
        held.begun("hold")
    );
    worker.kill().await;
    end([bus]).await;
}

/// A control call for any member, and one to all, are answered while thousands of bulk requests wait before members that
/// are all busy with others.
pub async fn control_for_any_and_for_all_passes_five_thousand_bulk_requests(transport: Arc<dyn Transport>) {
    let (held, bus) = (Held::default(), client(&transport, "c1").await);
    let members = [
        held.serve(&transport, "eu/n1").await,
        held.serve(&transport, "eu/n2").await,
    ];
    let (any, all) = (Route::any(path("eu"), worker()), Route::all(path("eu"), worker()));
    let busy = crate::limits::HANDLERS_MAX * members.len();
    let bulk: Vec<_> = (0..BULK)
        .map(|_| bus.cast::<Hold>(&any, &"hold".into(), within(PATIENCE)))
        .collect();
    for sent in futures::future::join_all(bulk).await {
        sent.expect("it is kept");
    }
    until("all members are busy", || held.begun("hold") == busy).await;
    let control = || within(PATIENCE).lane(Lane::Control);
    for _ in 0..3 {
        let reply = soon("a control call", bus.call::<Hold>(&any, &"id".into(), control())).await;
        assert!(reply.is_ok(), "{reply:?}");
    }
    let mut replies = bus
        .broadcast::<Hold>(&all, &"id".into(), control())
        .await
        .expect("it is sent");
    for _ in &members {
        let (from, reply) = soon("a reply", replies.next()).await.expect("a reply");
        assert!(reply.is_ok(), "{from}: {reply:?}");
    }
    assert_eq!(held.begun("hold"), busy, "the bulk still waits");
    for member in members {
        member.kill().await;
    }
    end([bus]).await;
}

/// Whoever is asked first does not take what it cannot begin: of a burst each member gets as much as it has handlers.
pub async fn of_a_burst_for_any_a_busy_member_leaves_to_the_others_what_it_cannot_begin(
    transport: Arc<dyn Transport>,
) {
    let (held, bus) = (Held::default(), client(&transport, "c1").await);
    let members = [
        held.serve(&transport, "eu/n1").await,
        held.serve(&transport, "eu/n2").await,
    ];
    let any = Route::any(path("eu"), worker());
    let cast = || bus.cast::<Hold>(&any, &"hold".into(), within(PATIENCE));
    // The sender knows by now how many there are.
    cast().await.expect("it is kept");
    let busy = crate::limits::HANDLERS_MAX * members.len();
    for sent in futures::future::join_all((0..busy + BURST_REST).map(|_| cast())).await {
        sent.expect("it is kept");
    }
    until("each member begins what it can", || held.begun("hold") >= busy).await;
    for member in members {
        member.kill().await;
    }
    end([bus]).await;
}

/// Queued, taken, begun, ended, answered, in this order and with who did it; nothing of a call that did not ask.
pub async fn the_hops_of_a_call_are_recorded_when_it_asks_for_it_and_only_then(
    transport: Arc<dyn Transport>,
) {
    let (held, bus, n1) = (
        Held::default(),
        client(&transport, "eu/c1").await,
        Route::node(path("eu/n1")),
    );
    let worker = held.serve(&transport, "eu/n1").await;
    let admin = bus.admin().expect("a transport that has an operator's view");
    let call = async |options| {
        let reply = soon("a call", bus.call::<Hold>(&n1, &"id".into(), options)).await;
        reply.expect("the id of the request")
    };
    let (quiet, traced) = (
        call(within(PATIENCE)).await,
        call(within(PATIENCE).traced(true)).await,
    );
    const HOPS: usize = 5;
    let hops = async {
        loop {
            let hops = admin.trace(traced).await.expect("an answer");
            if hops.len() == HOPS {
                return hops;
            }
            sleep(Duration::from_millis(10)).await;
        }
    };
    let hops = soon("its hops", hops).await;
    // Two processes tell their hops by connections of their own: each one's come in their order.
    let of = |who: &str| {
        let theirs = hops.iter().filter(|hop| hop.by.contains(who));
        theirs.map(|hop| hop.stage).collect::<Vec<_>>()
    };
    assert_eq!(of("eu/c1"), [Stage::Queued, Stage::Answered]);
    assert_eq!(of("eu/n1"), [Stage::Taken, Stage::Begun, Stage::Ended]);
    assert!(hops.is_sorted_by_key(|hop| hop.at_ms));
    assert_eq!(admin.trace(quiet).await.expect("an answer"), []);
    let fate = bus.call::<Unknown>(&n1, &(), within(PATIENCE)).await;
    assert!(matches!(fate, Err(Fate::NoRoute { .. })), "{fate:?}");
    end([worker, bus]).await;
}

/// Who answers nothing of its own still answers that it is there.
pub async fn every_member_answers_a_ping(transport: Arc<dyn Transport>) {
    let (bus, other) = (
        client(&transport, "eu/c1").await,
        client(&transport, "eu/c2").await,
    );
    let to = Route::node(path("eu/c2"));
    let pong = soon("a ping", bus.call::<Ping>(&to, &(), within(PATIENCE)))
        .await
        .expect("a pong");
    assert_eq!(
        (&pong.path, &pong.boot_id),
        (&other.member().path, &other.member().boot_id)
    );
    assert!(other.member().methods.is_empty());
    end([bus, other]).await;
}

/// Presence has the version of each method beside its name, and the epoch that a member knows.
pub async fn presence_tells_the_versions_of_methods(transport: Arc<dyn Transport>) {
    let held = Held::default();
    let member = Member::new(path("n1"), boot()).epoch(Epoch(9));
    let router = held.router().merge(router(&path("n1"), &Seen::default()));
    let n1 = Bus::attach(transport.clone(), member, router)
        .await
        .expect("it attaches");
    let found = soon("presence", n1.members(&NodePath::root()))
        .await
        .expect("an answer");
    assert_eq!(found[0].versions.get(Hold::NAME), Some(&3));
    assert_eq!(found[0].versions.get(Echo::NAME), Some(&1));
    assert_eq!(found[0].epoch, Epoch(9));
    end([n1]).await;
}
