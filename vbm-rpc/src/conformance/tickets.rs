//! Submitted calls: a ticket has exactly one end, for whoever looks.

use super::*;
use crate::{Fate, SubmitOptions, Ticket, TicketOutcome, TicketState};
use std::sync::{Mutex, PoisonError};

/// A deadline and a keeping that a test can wait for.
const BRIEF: Duration = Duration::from_millis(300);

/// Told the end of a ticket.
struct Told;
impl Method for Told {
    const NAME: &'static str = "conformance.told";
    const FENCED: bool = false;
    type Request = TicketOutcome;
    type Reply = ();
}

/// What callbacks said.
type Heard = Arc<Mutex<Vec<TicketOutcome>>>;

fn heard(list: &Heard) -> Vec<TicketOutcome> {
    list.lock().unwrap_or_else(PoisonError::into_inner).clone()
}

/// A member that callbacks go to.
async fn listener(transport: &Arc<dyn Transport>, at: &str, list: &Heard) -> Bus {
    let list = list.clone();
    let router = Router::new().method::<Told, _, _>(move |_context: Context, outcome: TicketOutcome| {
        list.lock().unwrap_or_else(PoisonError::into_inner).push(outcome);
        async move { Ok(()) }
    });
    Bus::attach(transport.clone(), Member::new(path(at), boot()), router)
        .await
        .expect("a listener attaches")
}

fn node() -> Route {
    Route::node(path("eu/n1"))
}

async fn submit(bus: &Bus, route: &Route, request: &Ask, options: SubmitOptions) -> Ticket<Echo> {
    soon("a submission", bus.submit::<Echo>(route, request, options))
        .await
        .expect("a ticket")
}

/// The ticket as another process reads it, from its text.
fn read(ticket: &Ticket<Echo>) -> Ticket<Echo> {
    ticket.to_string().parse().expect("a ticket")
}

async fn poll(bus: &Bus, ticket: &Ticket<Echo>) -> TicketState<(NodePath, String)> {
    let handle = bus.ticket(&read(ticket)).expect("a store");
    soon("a look at a ticket", handle.poll())
        .await
        .expect("an answer")
}

async fn wait(bus: &Bus, ticket: &Ticket<Echo>) -> TicketState<(NodePath, String)> {
    let handle = bus.ticket(&read(ticket)).expect("a store");
    soon("a ticket", handle.wait(PATIENCE)).await.expect("an answer")
}

fn done(text: &str) -> TicketState<(NodePath, String)> {
    TicketState::Ended(Ok((path("eu/n1"), text.into())))
}

/// Waits until a look at the ticket shows what is wanted.
async fn until_state(
    bus: &Bus,
    ticket: &Ticket<Echo>,
    what: &str,
    is: impl Fn(&TicketState<(NodePath, String)>) -> bool,
) {
    let watch = async {
        while !is(&poll(bus, ticket).await) {
            sleep(Duration::from_millis(10)).await;
        }
    };
    assert!(timeout(PATIENCE, watch).await.is_ok(), "{what}");
}

/// A submitted call is pending, is run by somebody who is named, and ends in its reply, for the submitter and for any
/// other process, as often as they look.
pub async fn a_ticket_shows_who_is_at_it_and_then_its_reply(transport: Arc<dyn Transport>) {
    let seen = Seen::default();
    let buses = [
        serve(&transport, "eu/n1", &seen).await,
        client(&transport, "c1").await,
        client(&transport, "c2").await,
    ];
    for route in [node(), Route::any(path("eu"), worker())] {
        let ticket = submit(&buses[1], &route, &slow(SHORT), within(PATIENCE).into()).await;
        until_state(&buses[2], &ticket, "it is running", |state| match state {
            TicketState::Running { by, .. } => *by == path("eu/n1"),
            state => {
                assert!(matches!(state, TicketState::Pending { .. }), "{state:?}");
                false
            }
        })
        .await;
        let (own, other) = futures::future::join(wait(&buses[1], &ticket), wait(&buses[2], &ticket)).await;
        assert_eq!((own, other), (done("slow"), done("slow")));
        assert_eq!(poll(&buses[1], &ticket).await, done("slow"));
    }
    assert_eq!(seen.started(), 2);
    end(buses).await;
}

/// A refusal ends a ticket as it ends a call; so does a method that the worker does not know.
pub async fn a_ticket_ends_in_the_fate_of_its_call(transport: Arc<dyn Transport>) {
    let seen = Seen::default();
    let buses = [
        serve(&transport, "eu/n1", &seen).await,
        client(&transport, "c1").await,
    ];
    let ticket = submit(&buses[1], &node(), &ask("refuse"), within(PATIENCE).into()).await;
    let refusal = Error::new(ErrorKind::Conflict, "no", "because", "do this");
    let state = wait(&buses[1], &ticket).await;
    assert_eq!(state, TicketState::Ended(Err(Fate::Refused(refusal))));
    let unknown = buses[1].submit::<Unknown>(&node(), &(), within(PATIENCE).into());
    let unknown = soon("a submission", unknown).await.expect("a ticket");
    let handle = buses[1].ticket(&unknown).expect("a store");
    let state = soon("a ticket", handle.wait(PATIENCE)).await;
    assert!(
        matches!(&state, Ok(TicketState::Ended(Err(Fate::NoRoute { why, .. }))) if why.contains("conformance.unknown")),
        "{state:?}"
    );
    end(buses).await;
}

/// A ticket is good after its submitter is gone, for the next process of the same path too.
pub async fn a_ticket_outlives_its_submitter(transport: Arc<dyn Transport>) {
    let seen = Seen::default();
    let (n1, c1) = (
        serve(&transport, "eu/n1", &seen).await,
        client(&transport, "c1").await,
    );
    let ticket = submit(&c1, &node(), &slow(SHORT), within(PATIENCE).into()).await;
    let text = ticket.to_string();
    c1.kill().await;
    let c1 = client(&transport, "c1").await;
    let ticket: Ticket<Echo> = text.parse().expect("a ticket");
    assert_eq!(wait(&c1, &ticket).await, done("slow"));
    assert_eq!((seen.started(), seen.cancelled.load(Ordering::SeqCst)), (1, 0));
    end([n1, c1]).await;
}

/// Dropping what waits for a ticket does not cancel it; waiting has a limit and gives the state that it has then.
pub async fn waiting_for_a_ticket_has_a_limit_and_changes_nothing(transport: Arc<dyn Transport>) {
    let seen = Seen::default();
    let buses = [
        serve(&transport, "eu/n1", &seen).await,
        client(&transport, "c1").await,
    ];
    let ticket = submit(&buses[1], &node(), &slow(SHORT), within(PATIENCE).into()).await;
    let handle = buses[1].ticket(&ticket).expect("a store");
    let state = soon("a limit", handle.wait(Duration::from_millis(50))).await;
    let state = state.expect("an answer");
    assert!(!state.is_final(), "{state:?}");
    assert_eq!(wait(&buses[1], &ticket).await, done("slow"));
    assert_eq!(seen.cancelled.load(Ordering::SeqCst), 0);
    end(buses).await;
}

/// A ticket is kept as long as was said, and says afterwards that it was.
pub async fn a_ticket_expires(transport: Arc<dyn Transport>) {
    let seen = Seen::default();
    let buses = [
        serve(&transport, "eu/n1", &seen).await,
        client(&transport, "c1").await,
    ];
    let options = SubmitOptions::from(within(BRIEF)).keep(BRIEF);
    let ticket = submit(&buses[1], &node(), &ask("x"), options).await;
    assert_eq!(wait(&buses[1], &ticket).await, done("x"));
    until_state(&buses[1], &ticket, "it expires", |state| {
        assert!(*state == done("x") || *state == TicketState::Expired, "{state:?}");
        *state == TicketState::Expired
    })
    .await;
    end(buses).await;
}

/// A ticket that nobody submitted, or that was forgotten, is unknown; text that is no ticket is refused.
pub async fn an_unknown_ticket_is_told_from_an_expired_one(transport: Arc<dyn Transport>) {
    let seen = Seen::default();
    let buses = [
        serve(&transport, "eu/n1", &seen).await,
        client(&transport, "c1").await,
    ];
    let ticket = submit(&buses[1], &node(), &ask("x"), within(PATIENCE).into()).await;
    let never = ticket
        .to_string()
        .replace(&ticket.id().simple().to_string(), &"7".repeat(32));
    let never: Ticket<Echo> = never.parse().expect("a ticket");
    assert_eq!(poll(&buses[1], &never).await, TicketState::Unknown);
    assert_eq!(wait(&buses[1], &ticket).await, done("x"));
    let handle = buses[1].ticket(&ticket).expect("a store");
    soon("it is forgotten", handle.forget()).await.expect("an answer");
    assert_eq!(poll(&buses[1], &ticket).await, TicketState::Unknown);
    assert!("vt1;garbage".parse::<Ticket<Echo>>().is_err());
    assert!(
        ticket.to_string().parse::<Ticket<Count>>().is_err(),
        "another method"
    );
    end(buses).await;
}

/// Nobody there, or a route to all: no ticket.
pub async fn a_submission_that_cannot_be_sent_has_no_ticket(transport: Arc<dyn Transport>) {
    let bus = client(&transport, "c1").await;
    let fate = soon(
        "a submission",
        bus.submit::<Echo>(&node(), &ask("x"), within(PATIENCE).into()),
    )
    .await;
    assert!(matches!(fate, Err(Fate::NoRoute { .. })), "{fate:?}");
    let all = Route::all(NodePath::root(), worker());
    let fate = bus.submit::<Echo>(&all, &ask("x"), within(PATIENCE).into()).await;
    assert!(
        matches!(&fate, Err(Fate::Refused(e)) if e.kind() == ErrorKind::InvalidInput),
        "{fate:?}"
    );
    end([bus]).await;
}

/// What a killed worker left is done by its next process, and the ticket ends with its reply.
pub async fn a_ticket_of_a_killed_worker_is_done_by_the_next(transport: Arc<dyn Transport>) {
    let (first, second) = (Seen::default(), Seen::default());
    let (n1, bus) = (
        serve(&transport, "eu/n1", &first).await,
        client(&transport, "c1").await,
    );
    let ticket = submit(&bus, &node(), &slow(SHORT), within(PATIENCE).into()).await;
    until("it is running", || first.started() == 1).await;
    n1.kill().await;
    let n1 = serve(&transport, "eu/n1", &second).await;
    assert_eq!(wait(&bus, &ticket).await, done("slow"));
    assert_eq!(second.started(), 1);
    end([n1, bus]).await;
}

/// When the worker dies and nobody takes over by the deadline, the first who looks ends the ticket: lost, and by whom
/// it was begun. That end stays, also when the worker comes back; the request is not begun again.
pub async fn a_ticket_that_nobody_ended_is_lost_for_all_who_look(transport: Arc<dyn Transport>) {
    let (first, second) = (Seen::default(), Seen::default());
    let (n1, c1, c2) = (
        serve(&transport, "eu/n1", &first).await,
        client(&transport, "c1").await,
        client(&transport, "c2").await,
    );
    let ticket = submit(&c1, &node(), &slow(PATIENCE), within(BRIEF * 3).into()).await;
    until_state(&c2, &ticket, "it is running", |state| {
        matches!(state, TicketState::Running { .. })
    })
    .await;
    n1.kill().await;
    let lost = wait(&c2, &ticket).await;
    match &lost {
        TicketState::Ended(Err(Fate::Lost {
            started: true,
            worker,
            ..
        })) => assert_eq!(*worker, Some(path("eu/n1"))),
        other => panic!("{other:?}"),
    }
    let n1 = serve(&transport, "eu/n1", &second).await;
    echo(&c1, &node(), "behind it in the queue").await;
    assert_eq!((poll(&c1, &ticket).await, second.started()), (lost, 1));
    end([n1, c1, c2]).await;
}

/// Two submissions with one key have one effect and two tickets with one outcome; another content is a conflict.
pub async fn submissions_with_one_key_have_one_effect(transport: Arc<dyn Transport>) {
    let seen = Seen::default();
    let buses = [
        serve(&transport, "eu/n1", &seen).await,
        client(&transport, "c1").await,
    ];
    let options = || within(PATIENCE).idempotency_key("k").into();
    let (first, second) = (
        submit(&buses[1], &node(), &slow(BRIEF), options()).await,
        submit(&buses[1], &node(), &slow(BRIEF), options()).await,
    );
    assert_ne!(first, second);
    assert_eq!(wait(&buses[1], &first).await, done("slow"));
    assert_eq!(wait(&buses[1], &second).await, done("slow"));
    let third = submit(&buses[1], &node(), &slow(BRIEF), options()).await;
    assert_eq!(wait(&buses[1], &third).await, done("slow"));
    assert_eq!(seen.started(), 1);
    let other = submit(&buses[1], &node(), &ask("other"), options()).await;
    let state = wait(&buses[1], &other).await;
    assert!(
        matches!(&state, TicketState::Ended(Err(Fate::Refused(e))) if e.kind() == ErrorKind::Conflict),
        "{state:?}"
    );
    end(buses).await;
}

/// What nobody has begun can be cancelled by its ticket, from any process, and is not begun later.
pub async fn a_ticket_cancelled_before_it_began_is_not_begun(transport: Arc<dyn Transport>) {
    let (first, second) = (Seen::default(), Seen::default());
    let (n1, c1, c2) = (
        serve(&transport, "eu/n1", &first).await,
        client(&transport, "c1").await,
        client(&transport, "c2").await,
    );
    n1.kill().await;
    let ticket = submit(&c1, &node(), &ask("x"), within(PATIENCE).into()).await;
    let handle = c2.ticket(&read(&ticket)).expect("a store");
    let cancelled = TicketState::Ended(Err(Fate::Cancelled));
    assert_eq!(soon("a cancel", handle.cancel()).await, Ok(cancelled.clone()));
    let n1 = serve(&transport, "eu/n1", &second).await;
    echo(&c1, &node(), "behind it in the queue").await;
    assert_eq!((poll(&c1, &ticket).await, second.started()), (cancelled, 1));
    end([n1, c1, c2]).await;
}

/// A handler that runs is told of a cancel by ticket, and the ticket ends with what it answers.
pub async fn a_running_ticket_is_cancelled_by_telling_its_handler(transport: Arc<dyn Transport>) {
    let seen = Seen::default();
    let buses = [
        serve(&transport, "eu/n1", &seen).await,
        client(&transport, "c1").await,
        client(&transport, "c2").await,
    ];
    let route = Route::any(path("eu"), worker());
    let ticket = submit(&buses[1], &route, &slow(PATIENCE), within(PATIENCE).into()).await;
    until_state(&buses[2], &ticket, "it is running", |state| {
        matches!(state, TicketState::Running { .. })
    })
    .await;
    let handle = buses[2].ticket(&read(&ticket)).expect("a store");
    let state = soon("a cancel", handle.cancel()).await.expect("an answer");
    assert!(!state.is_final(), "{state:?}");
    assert_eq!(wait(&buses[1], &ticket).await, done("slow"));
    assert_eq!(seen.cancelled.load(Ordering::SeqCst), 1);
    end(buses).await;
}

/// A callback is told the ticket and its end.
pub async fn a_callback_is_told_the_end(transport: Arc<dyn Transport>) {
    let (seen, list) = (Seen::default(), Heard::default());
    let buses = [
        serve(&transport, "eu/n1", &seen).await,
        client(&transport, "c1").await,
        listener(&transport, "c2", &list).await,
    ];
    let options = || SubmitOptions::from(within(PATIENCE)).callback::<Told>(&Route::node(path("c2")));
    let good = submit(&buses[1], &node(), &ask("x"), options()).await;
    let bad = submit(&buses[1], &node(), &ask("refuse"), options()).await;
    until("both are told", || heard(&list).len() >= 2).await;
    let outcome_of = |ticket: &Ticket<Echo>| {
        let told = heard(&list);
        let mine = told.iter().find(|outcome| outcome.ticket == ticket.to_string());
        mine.expect("it was told").read::<Echo>().expect("an end")
    };
    assert_eq!(outcome_of(&good), Ok((path("eu/n1"), "x".into())));
    assert!(matches!(outcome_of(&bad), Err(Fate::Refused(_))));
    let told = heard(&list);
    let mine = told[0].ticket::<Echo>().expect("a ticket");
    assert!(mine == good || mine == bad);
    assert!(told[0].read::<Count>().is_err(), "another method");
    end(buses).await;
}

/// A callback whose receiver is away comes when it is back; one of a ticket whose worker died comes too, from another
/// member of the destination. It is told the end that every reader sees.
pub async fn a_callback_is_told_at_least_once(transport: Arc<dyn Transport>) {
    let (seen, list) = (Seen::default(), Heard::default());
    let (n1, n2, c1) = (
        serve(&transport, "eu/n1", &seen).await,
        serve(&transport, "eu/n2", &Seen::default()).await,
        client(&transport, "c1").await,
    );
    let options = |deadline| SubmitOptions::from(within(deadline)).callback::<Told>(&Route::node(path("c2")));
    let early = submit(&c1, &node(), &ask("x"), options(PATIENCE)).await;
    assert_eq!(wait(&c1, &early).await, done("x"));
    let orphan = submit(&c1, &node(), &slow(PATIENCE), options(BRIEF)).await;
    until("it is running", || seen.started() == 2).await;
    n1.kill().await;
    c1.kill().await;
    let c2 = listener(&transport, "c2", &list).await;
    let told = |ticket: &Ticket<Echo>| {
        let list = heard(&list);
        list.iter().any(|outcome| outcome.ticket == ticket.to_string())
    };
    until("both are told", || told(&early) && told(&orphan)).await;
    for outcome in heard(&list) {
        let state = poll(&n2, &outcome.ticket().expect("a ticket")).await;
        assert_eq!(state, TicketState::Ended(outcome.read::<Echo>().expect("an end")));
    }
    let lost = poll(&n2, &orphan).await;
    assert!(
        matches!(lost, TicketState::Ended(Err(Fate::Lost { .. }))),
        "{lost:?}"
    );
    end([n2, c2]).await;
}
