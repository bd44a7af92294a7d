//! Streams and tickets among the calls: what is opened and submitted, read and awaited from elsewhere, and what must be
//! true of it.
//!
//! ```text
//!   stream   items in order, none missing, none twice; one end; no wait longer than was allowed; never more under way
//!            than the window; a sender whose reader is gone is told
//!   ticket   one end, the same for all who look and whenever; done means done; whoever was to be called back is called
//! ```

use crate::{
    common::dice::Dice,
    ledger::{END_SLACK, End, Verb},
    plan::SPAN,
    world::{Put, Shared, WORKERS, Work, issue, path, service},
};
use serde::{Deserialize, Serialize};
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex},
    time::Duration,
};
use tokio::{
    task::JoinSet,
    time::{Instant, sleep, timeout},
};
use vbm_core::Error;
use vbm_rpc::{
    Bus, Context, Fate, ItemSink, Member, Method, Route, Router, StreamMethod, StreamOptions, SubmitOptions,
    Ticket, TicketOutcome, TicketState, limits, memory::MemoryBus,
};

/// Where tickets are awaited and callbacks go: it submits nothing, and nobody kills it.
pub(crate) const WATCHER: &str = "eu/r2/w";
/// The longest pause between two streams, or two submissions, of one caller.
const GAP_MAX: Duration = Duration::from_millis(1_500);
/// The most items of a stream: some windows full.
const ITEMS_MAX: u64 = 300;
/// The longest deadline of a submission.
const TICKET_DEADLINE_MAX: Duration = Duration::from_secs(20);
/// Within this after all is healed, what was left open is closed and what is owed is told: deadlines pass, sweeps come.
const CLOSE_MAX: Duration = Duration::from_secs(180);
/// What a stream may be refused with: its sender's process shuts down, or its reader was killed and its next life has
/// the path.
const EXPECTED: [&str; 2] = ["the stream was given up", "served by another process"];
/// The keys of submissions begin here.
const TICKET_KEYS: u64 = 500_000_000;

#[derive(Clone, Copy, Serialize, Deserialize)]
struct Want {
    stream: usize,
    items: u64,
    pause_ms: u64,
    /// Waits for the end of its reader after the items.
    hang: bool,
}

struct Feed;
impl Method for Feed {
    const NAME: &'static str = "simulation.feed";
    const FENCED: bool = false;
    type Request = Want;
    type Reply = u64;
}
impl StreamMethod for Feed {
    type Item = u64;
}

struct Told;
impl Method for Told {
    const NAME: &'static str = "simulation.told";
    const FENCED: bool = false;
    type Request = TicketOutcome;
    type Reply = ();
}

struct Submitted {
    call: usize,
    ticket: String,
    callback: bool,
    /// What those who waited were shown as final.
    shown: Vec<String>,
}

/// What really happened, outside the bus.
#[derive(Default)]
pub(crate) struct Book {
    /// Items that the reader of each stream has taken.
    read: Vec<u64>,
    /// Handlers of streams that run.
    open: usize,
    tickets: Vec<Submitted>,
    /// By ticket: what callbacks said.
    told: BTreeMap<String, BTreeSet<String>>,
    pub(crate) counts: FlowCounts,
    wrong: Vec<String>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct FlowCounts {
    pub(crate) streams: usize,
    pub(crate) items: u64,
    pub(crate) ended_well: usize,
    pub(crate) tickets: usize,
    pub(crate) callbacks: usize,
}

pub(crate) type Books = Arc<Mutex<Book>>;

/// Counts a handler while it lives, however it ends.
struct Open(Books);

impl Open {
    fn new(book: &Books) -> Self {
        book.lock().unwrap().open += 1;
        Self(book.clone())
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.0.lock().unwrap().open -= 1;
    }
}

pub(crate) fn router(book: &Books) -> Router {
    let book = book.clone();
    Router::new().stream::<Feed, _, _>(move |context: Context, want: Want, items: ItemSink<Feed>| {
        feed(book.clone(), context, want, items)
    })
}

fn look_at_window(book: &mut Book, stream: usize, sent: u64) {
    let under_way = sent.saturating_sub(book.read[stream]);
    if under_way > limits::STREAM_WINDOW_ITEMS {
        book.wrong.push(format!(
            "stream {stream} has {under_way} items under way, more than its window"
        ));
    }
}

async fn feed(book: Books, context: Context, want: Want, mut items: ItemSink<Feed>) -> Result<u64, Error> {
    let _open = Open::new(&book);
    for n in 0..want.items {
        items.send(&n).await?;
        look_at_window(&mut book.lock().unwrap(), want.stream, n + 1);
        if want.pause_ms > 0 {
            sleep(Duration::from_millis(want.pause_ms)).await;
        }
    }
    if want.hang {
        context.cancelled.cancelled().await;
    }
    Ok(want.items)
}

/// Who waits for tickets and is called back.
pub(crate) async fn watcher(hub: &MemoryBus, book: &Books) -> Bus {
    let book = book.clone();
    let router = Router::new().method::<Told, _, _>(move |_context: Context, outcome: TicketOutcome| {
        let mut book = book.lock().unwrap();
        book.counts.callbacks += 1;
        let text = format!("{:?}", outcome.read::<Put>().unwrap());
        book.told.entry(outcome.ticket).or_default().insert(text);
        async move { Ok(()) }
    });
    Bus::attach(hub.clone(), Member::new(path(WATCHER), "watcher"), router)
        .await
        .unwrap()
}

fn route(dice: &mut Dice) -> (Option<&'static str>, Route) {
    let node = (!dice.one_in(3)).then(|| dice.pick(&WORKERS));
    let any = Route::any(path(dice.pick(&["/", "eu", "eu/r1", "us"])), service());
    (node, node.map_or(any, |node| Route::node(path(node))))
}

/// One caller's streams and submissions, besides its calls.
pub(crate) async fn load(
    which: usize,
    seed: u64,
    callers: Arc<Mutex<Vec<Bus>>>,
    watcher: Bus,
    (ledger, book): (Shared, Books),
) {
    let (mut dice, end) = (Dice::new(seed, 30 + which as u64), Instant::now() + SPAN);
    let mut flying = JoinSet::new();
    let mut key = TICKET_KEYS + which as u64 * 1_000_000;
    while Instant::now() < end {
        sleep(dice.span(Duration::ZERO, GAP_MAX)).await;
        let bus = callers.lock().unwrap()[which].clone();
        let (dice_of_it, book) = (dice.clone(), book.clone());
        match dice.one_in(2) {
            true => drop(flying.spawn(stream(bus, book, dice_of_it))),
            false => {
                key += 1;
                flying.spawn(submit(
                    bus,
                    watcher.clone(),
                    ledger.clone(),
                    book,
                    dice_of_it,
                    key,
                ));
            }
        }
        dice.roll();
    }
    while let Some(ended) = flying.join_next().await {
        ended.unwrap();
    }
}

async fn stream(bus: Bus, book: Books, mut dice: Dice) {
    dice.roll();
    let want = {
        let mut book = book.lock().unwrap();
        book.read.push(0);
        book.counts.streams += 1;
        Want {
            stream: book.read.len() - 1,
            items: dice.below(ITEMS_MAX),
            pause_ms: if dice.one_in(2) { dice.below(100) } else { 0 },
            hang: dice.one_in(4),
        }
    };
    let idle = dice.span(Duration::from_millis(500), Duration::from_secs(8));
    let whole = dice.span(Duration::from_secs(2), Duration::from_secs(60));
    // Some take a while over an item, some stop in the midst and let it go.
    let rest = if dice.one_in(3) {
        dice.span(Duration::ZERO, idle * 2)
    } else {
        Duration::ZERO
    };
    let leave_at = if dice.one_in(4) {
        dice.below(ITEMS_MAX)
    } else {
        u64::MAX
    };
    let (_, route) = route(&mut dice);
    let begun = Instant::now();
    let options = StreamOptions::new().idle(idle).deadline(whole);
    let Ok(mut items) = bus.stream::<Feed>(&route, &want, options).await else {
        return;
    };
    let (mut next, mut wrong) = (0, Vec::new());
    let end = loop {
        let asked = Instant::now();
        let item = items.next().await;
        if asked.elapsed() > idle + END_SLACK {
            wrong.push(format!(
                "an item was waited for {:?}, {idle:?} are allowed",
                asked.elapsed()
            ));
        }
        match item {
            Some(Ok(n)) => {
                if n != next {
                    wrong.push(format!("item {n} came where {next} was to come"));
                }
                next += 1;
                book.lock().unwrap().read[want.stream] = next;
                if next == leave_at {
                    return;
                }
                if next == 10 {
                    sleep(rest).await;
                }
            }
            Some(Err(fate)) => break Some(fate),
            None => break None,
        }
    };
    // What was rested was nobody's fault.
    if begun.elapsed() > whole + rest + END_SLACK {
        wrong.push(format!("it lasted {:?}, {whole:?} are allowed", begun.elapsed()));
    }
    if !matches!(timeout(END_SLACK, items.next()).await, Ok(None)) {
        wrong.push("something came after its end".to_owned());
    }
    let mut book = book.lock().unwrap();
    match (end, items.end()) {
        (None, Some(said)) if said == next && said == want.items => book.counts.ended_well += 1,
        (None, said) => wrong.push(format!(
            "it ended well with {next} of {} items, and said {said:?}",
            want.items
        )),
        (Some(Fate::Refused(error)), _) if !EXPECTED.iter().any(|text| error.what().contains(text)) => {
            wrong.push(format!("it was refused by nobody: {error}"));
        }
        (Some(_), _) => {}
    }
    book.counts.items += next;
    for sentence in wrong {
        book.wrong.push(format!("stream {}: {sentence}", want.stream));
    }
}

async fn submit(bus: Bus, watcher: Bus, ledger: Shared, book: Books, mut dice: Dice, key: u64) {
    dice.roll();
    let slow_ms = if dice.one_in(3) { dice.below(3_000) } else { 0 };
    let deadline = dice.span(Duration::from_secs(1), TICKET_DEADLINE_MAX);
    let (node, route) = route(&mut dice);
    let callback = dice.one_in(2);
    let (call, options) = issue(&ledger, Verb::Submit, node, key, deadline);
    let mut options = SubmitOptions::from(options);
    if callback {
        options = options.callback::<Told>(&Route::node(path(WATCHER)));
    }
    let ticket = match bus.submit::<Put>(&route, &Work { key, slow_ms }, options).await {
        Ok(ticket) => ticket,
        Err(fate) => return ledger.lock().unwrap().end(call, fate.into()),
    };
    let at = {
        let mut book = book.lock().unwrap();
        book.counts.tickets += 1;
        book.tickets.push(Submitted {
            call,
            ticket: ticket.to_string(),
            callback,
            shown: Vec::new(),
        });
        book.tickets.len() - 1
    };
    // Its submitter may be dead by now: another process waits.
    let patience = dice.span(Duration::ZERO, deadline * 2);
    let shown = watcher.ticket(&ticket).unwrap().wait(patience).await;
    if let Ok(TicketState::Ended(end)) = shown {
        book.lock().unwrap().tickets[at].shown.push(format!("{end:?}"));
    }
}

/// After all is healed (the transport `forgets` what it kept, or `loses` what it has taken, a callback too): tickets have their one end, callbacks come, streams that nobody reads are closed. Every sentence
/// that is not true.
pub(crate) async fn close(
    watcher: &Bus,
    others: &[Bus],
    ledger: &Shared,
    book: &Books,
    (forgets, loses): (bool, bool),
) -> Vec<String> {
    sleep(TICKET_DEADLINE_MAX + limits::TICKET_GRACE).await;
    let begin = Instant::now();
    while !is_closed(book, loses) && begin.elapsed() < CLOSE_MAX {
        sleep(Duration::from_secs(1)).await;
    }
    let mut wrong = Vec::new();
    let tickets = std::mem::take(&mut book.lock().unwrap().tickets);
    for submitted in &tickets {
        let ticket: Ticket<Put> = submitted.ticket.parse().unwrap();
        let mut seen: BTreeSet<String> = submitted.shown.iter().cloned().collect();
        let mut end = End::Lost;
        for bus in others.iter().chain([watcher]) {
            match bus.ticket(&ticket).unwrap().poll().await {
                Ok(TicketState::Ended(ended)) => {
                    seen.insert(format!("{ended:?}"));
                    end = ended.map_or_else(End::from, End::Done);
                }
                Ok(TicketState::Unknown) if forgets => {}
                other => wrong.push(format!("the ticket of call {} shows {other:?}", submitted.call)),
            }
        }
        let told = book
            .lock()
            .unwrap()
            .told
            .remove(&submitted.ticket)
            .unwrap_or_default();
        if submitted.callback && told.is_empty() && !loses {
            wrong.push(format!("nobody was called back for call {}", submitted.call));
        }
        seen.extend(told);
        if seen.len() > 1 && !forgets {
            wrong.push(format!(
                "the ticket of call {} had the ends {seen:?}",
                submitted.call
            ));
        }
        ledger.lock().unwrap().end(submitted.call, end);
    }
    let book = book.lock().unwrap();
    if book.open > 0 {
        wrong.push(format!(
            "{} senders of streams are left without a reader",
            book.open
        ));
    }
    wrong.extend(book.wrong.iter().cloned());
    wrong
}

fn is_closed(book: &Books, loses: bool) -> bool {
    let book = book.lock().unwrap();
    let told = |submitted: &Submitted| !submitted.callback || book.told.contains_key(&submitted.ticket);
    book.open == 0 && (loses || book.tickets.iter().all(told))
}
