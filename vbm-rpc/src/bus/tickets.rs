//! The receiving side of submitted calls: the ticket's beginning and end, callbacks, and the sweep.
//!
//! ```text
//!   Submit frame --> has it ended? --yes--> say so again, complete
//!                         | no
//!                         v
//!                    run as a call --> end(ticket) --> callback --> complete
//!
//!   sweep: tickets with a callback that is not done --> end them (Lost) when overdue --> callback
//! ```
//!
//! The delivery is completed after the callback was taken by the bus or listed for the sweep: a worker that dies in
//! between leaves the request, and the next one finds the end and calls back again.

use super::server::{Asker, Server};
use crate::{
    BadInput, MemberInfo, Route,
    dedupe::Answer,
    envelope::{EndCode, Envelope, Kind},
    limits,
    submission::{Submission, TicketOutcome},
    ticket::{Begun, Lost, TicketName, millis},
    transport::{Delivery, Destination, Link, ResultStore},
};
use bytes::{Buf, BufMut, Bytes, BytesMut};
use std::{
    collections::HashSet,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};
use tokio::{
    sync::OwnedSemaphorePermit,
    time::{Instant, MissedTickBehavior, interval, sleep},
};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

/// How long to wait before a ticket is looked at or written again when the store did not answer.
const ASK_AGAIN_AFTER: Duration = Duration::from_millis(100);
/// The id of a callback is that of its ticket with these bits turned: duplicates are known.
const CALLBACK_BITS: u128 = 0xca11_bac4;
/// The most destinations whose tickets a submitter looks after.
const HOMES_MAX: usize = 1_024;

/// The ticket of one submitted request, as its worker knows it.
pub(super) struct TicketJob {
    pub(super) name: TicketName,
    submission: Submission,
    submitter: Destination,
}

/// The body of a Submit frame: the length of the header (two bytes), the header, the body of the request.
pub(super) fn wrap(header: &[u8], body: &Bytes) -> Option<Bytes> {
    if header.len() > limits::SUBMISSION_MAX_BYTES {
        return None;
    }
    let mut out = BytesMut::with_capacity(2 + header.len() + body.len());
    out.put_u16(u16::try_from(header.len()).ok()?);
    out.put_slice(header);
    out.put_slice(body);
    Some(out.freeze())
}

/// The ticket and the request of a Submit frame; `None` when it is not well-formed.
fn unwrap(request: &mut Envelope) -> Option<TicketJob> {
    let mut body = request.body.clone();
    let length = usize::from(body.try_get_u16().ok()?);
    if length > body.len() {
        return None;
    }
    let header = body.split_to(length);
    let submission: Submission = serde_json::from_slice(&header).ok()?;
    let name: TicketName = submission.ticket.parse().ok()?;
    if name.place.id != request.id || name.method != request.method {
        return None;
    }
    request.body = body;
    Some(TicketJob {
        name,
        submission,
        submitter: Destination::Inbox {
            path: request.caller.clone(),
            boot_id: request.boot_id.clone(),
        },
    })
}

/// The end that a reader gives to an overdue ticket.
pub(super) fn lost_frame(me: &MemberInfo, id: Uuid, lost: &Lost) -> Bytes {
    let mut body = vec![EndCode::Lost as u8];
    // Texts and a flag can always be written.
    body.extend(serde_json::to_vec(lost).unwrap_or_default());
    plain(me, Kind::End, id, body.into()).encode()
}

/// The end of a ticket that was cancelled before anybody had begun.
pub(super) fn cancelled_frame(me: &MemberInfo, id: Uuid) -> Bytes {
    plain(me, Kind::End, id, vec![EndCode::Cancelled as u8].into()).encode()
}

/// Tells a worker that nobody wants the request any more.
pub(super) fn cancel_frame(me: &MemberInfo, id: Uuid) -> Bytes {
    let ttl_ms = super::millis(limits::DEFAULT_DEADLINE);
    let cancel = plain(me, Kind::Cancel, id, Bytes::new());
    Envelope { ttl_ms, ..cancel }.encode()
}

fn plain(me: &MemberInfo, kind: Kind, id: Uuid, body: Bytes) -> Envelope {
    Envelope {
        kind,
        codec: crate::Codec::MessagePack,
        attempt: 1,
        id,
        ttl_ms: 0,
        epoch: me.epoch,
        method: String::new(),
        caller: me.path.clone(),
        boot_id: me.boot_id.clone(),
        traceparent: None,
        idempotency_key: None,
        body,
    }
}

impl Server {
    /// A submitted request has come. Looked at in a task of its own: the ticket may have ended.
    pub(super) fn accept_submitted(
        self: &Arc<Self>,
        mut request: Envelope,
        delivery: Delivery,
        permit: OwnedSemaphorePermit,
    ) {
        let (Some(job), Some(store)) = (unwrap(&mut request), self.results.clone()) else {
            let why = "it is submitted without a proper ticket";
            self.odd(BadInput::Unreadable, &request, why);
            return delivery.done.bury(delivery.frame, why);
        };
        let (server, job) = (self.clone(), Arc::new(job));
        self.tasks.spawn(async move {
            let until = server.ended.clone();
            let work = async {
                match end_so_far(&*store, &job.name).await {
                    Some(end) => {
                        server.call_back(&*store, &job, &end).await;
                        delivery.done.complete();
                    }
                    None => server.take(request, Some(job), delivery, permit).await,
                }
            };
            // Dropped at a hard end: the delivery is then not completed, and somebody else gets it.
            until.run_until_cancelled(work).await;
        });
    }

    /// Notes in the ticket that its handler runs.
    pub(super) fn note_begun(&self, job: &TicketJob) {
        let Some(store) = &self.results else { return };
        let now = store.now_ms();
        let note = Begun {
            by: self.me.path.clone(),
            at_ms: now,
        };
        // A path and a number can always be written.
        let note = serde_json::to_vec(&note).unwrap_or_default();
        store.begun(&job.name.place, note.into(), job.name.life(now));
    }

    /// Ends the ticket with the answer, calls back, and completes the delivery.
    pub(super) async fn end_ticket(&self, job: &TicketJob, asker: Asker, answer: &Answer) {
        let Some(store) = &self.results else { return };
        let end = self.frame(answer.kind, answer.codec, asker.id, answer.body.clone());
        if job.submission.callback.is_some() {
            // Somebody may have ended it before: the callback tells the one end that it has.
            if let Some(end) = settle(&**store, &job.name, end).await {
                self.call_back(&**store, job, &end).await;
            }
        } else {
            let life = job.name.life(store.now_ms());
            store.end(&job.name.place, end, life).await;
        }
        let settled = self.frame(Kind::Settled, answer.codec, asker.id, Bytes::new());
        if !self
            .link
            .try_post(job.submitter.clone(), settled, limits::DEFAULT_DEADLINE)
        {
            tracing::debug!(id = %asker.id, "no room to tell a submitter that its ticket has ended");
        }
        asker.done.complete();
    }

    /// Calls back, or lists the ticket for the sweep.
    async fn call_back(&self, store: &dyn ResultStore, job: &TicketJob, end: &Bytes) {
        if job.submission.callback.is_none() {
            return;
        }
        let called = call_back(&*self.link, &self.me, &job.name, &job.submission, end).await;
        after_callback(store, &job.name, called);
    }
}

/// The end of a ticket, asked until the store answers; `None` when there is none, or its life is over.
async fn end_so_far(store: &dyn ResultStore, name: &TicketName) -> Option<Bytes> {
    while store.now_ms() < name.gone_ms() {
        match store.look(&name.place).await {
            Ok(record) => return record.and_then(|record| record.end),
            Err(error) => {
                tracing::warn!(%error, id = %name.place.id, "a submitted request waits for the result store");
                sleep(ASK_AGAIN_AFTER).await;
            }
        }
    }
    None
}

/// Ends a ticket and gives the end that it has, asked until the store answers; `None` when its life is over.
async fn settle(store: &dyn ResultStore, name: &TicketName, end: Bytes) -> Option<Bytes> {
    loop {
        let now = store.now_ms();
        match store.settle(&name.place, end.clone(), name.life(now)).await {
            Ok(end) => return Some(end),
            Err(error) if now < name.gone_ms() => {
                tracing::warn!(%error, id = %name.place.id, "the end of a ticket is written again");
                sleep(ASK_AGAIN_AFTER).await;
            }
            Err(error) => {
                tracing::error!(%error, id = %name.place.id, "a ticket was given up: the result store does not answer");
                return None;
            }
        }
    }
}

/// Hands the callback to the bus. `Err` says why nobody took it.
async fn call_back(
    link: &dyn Link,
    me: &MemberInfo,
    name: &TicketName,
    submission: &Submission,
    end: &Bytes,
) -> Result<(), String> {
    let Some(callback) = &submission.callback else {
        return Ok(());
    };
    let outcome = TicketOutcome::new(submission.ticket.clone(), end);
    let body = crate::Codec::MessagePack.encode(&outcome)?;
    let id = Uuid::from_u128(name.place.id.as_u128() ^ CALLBACK_BITS);
    let ttl = limits::CALLBACK_DEADLINE;
    let frame = Envelope {
        kind: Kind::Cast,
        ttl_ms: super::millis(ttl),
        method: callback.method.clone(),
        idempotency_key: Some(format!("ticket-{}", name.place.id.simple())),
        ..plain(me, Kind::Cast, id, body)
    };
    let to = Destination::Route(callback.route()?);
    match link.send(&to, frame.encode(), ttl).await {
        Ok(_sent) => Ok(()),
        Err(why) => Err(format!("{to}: {why:?}")),
    }
}

/// Strikes the ticket off the list of what is due, or sets it down for later.
fn after_callback(store: &dyn ResultStore, name: &TicketName, called: Result<(), String>) {
    let now = store.now_ms();
    let next = now.saturating_add(millis(limits::TICKET_SWEEP_EVERY));
    let at = match called {
        Ok(()) => None,
        Err(why) if next < name.gone_ms() => {
            tracing::info!(id = %name.place.id, why, "a callback was not taken; it is tried again");
            Some(next)
        }
        Err(why) => {
            tracing::error!(id = %name.place.id, why, "a callback was given up: its ticket is kept no longer");
            None
        }
    };
    store.due(&name.place.home, name.to_string(), at);
}

/// The destinations to which this attachment submitted calls with a callback.
#[derive(Default)]
pub(super) struct Homes(Mutex<HashSet<Route>>);

impl Homes {
    pub(super) fn add(&self, home: &Route) {
        let mut homes = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if homes.len() < HOMES_MAX {
            homes.insert(home.clone());
        }
    }

    fn all(&self) -> Vec<Route> {
        let homes = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        homes.iter().cloned().collect()
    }
}

/// Looks after tickets whose callback is not done: those of the destinations around this member, if it serves, and of
/// those it submitted to. Ends with the bus.
pub(super) async fn sweep(
    link: Arc<dyn Link>,
    me: MemberInfo,
    homes: Arc<Homes>,
    closing: CancellationToken,
) {
    let Some(store) = link.results() else { return };
    let mut ticks = interval(limits::TICKET_SWEEP_EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    ticks.tick().await;
    loop {
        tokio::select! {
            () = closing.cancelled() => return,
            // Cancel safe: a tick missed here is not needed any more.
            _at = ticks.tick() => {}
        }
        let homes = homes.all();
        if homes.is_empty() && me.services.is_empty() {
            continue;
        }
        let work = sweep_once(&*link, &*store, &me, &homes);
        // Dropped at the end of the bus: what was not done stays on the list.
        closing.run_until_cancelled(work).await;
    }
}

async fn sweep_once(link: &dyn Link, store: &dyn ResultStore, me: &MemberInfo, homes: &[Route]) {
    let begin = Instant::now();
    let names = match store.overdue(homes).await {
        Ok(names) => names,
        Err(error) => return tracing::debug!(%error, "the list of due tickets was not read"),
    };
    for text in names {
        let Ok(name) = text.parse::<TicketName>() else {
            // Of a later version, perhaps: not ours to remove. It runs out with the list.
            tracing::debug!(text, "what is no ticket stands on the list of due tickets");
            continue;
        };
        if let Err(error) = look_after(link, store, me, &name).await {
            return tracing::debug!(%error, "due tickets were left for the next sweep");
        }
        if begin.elapsed() > limits::TICKET_SWEEP_EVERY {
            return;
        }
    }
}

async fn look_after(
    link: &dyn Link,
    store: &dyn ResultStore,
    me: &MemberInfo,
    name: &TicketName,
) -> Result<(), crate::BusError> {
    let place = &name.place;
    let strike = |at| store.due(&place.home, name.to_string(), at);
    let Some(record) = store.look(place).await? else {
        strike(None);
        return Ok(());
    };
    let submission = record.opened.as_deref().map(serde_json::from_slice::<Submission>);
    let Some(Ok(submission)) = submission else {
        strike(None);
        return Ok(());
    };
    let now = store.now_ms();
    let end = match record.end.clone() {
        Some(end) => end,
        None if now < name.overdue_ms() => {
            strike(Some(name.overdue_ms()));
            return Ok(());
        }
        None => {
            let lost = name.lost(crate::ticket::read_begun(&record).as_ref());
            store
                .settle(place, lost_frame(me, place.id, &lost), name.life(now))
                .await?
        }
    };
    let called = call_back(link, me, name, &submission, &end).await;
    after_callback(store, name, called);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_submit_frame_is_taken_apart_and_garbage_is_refused() {
        let me = MemberInfo {
            path: "c1".parse().unwrap(),
            boot_id: "b".into(),
            services: Vec::new(),
            methods: Vec::new(),
            epoch: vbm_core::Epoch::default(),
            versions: std::collections::BTreeMap::new(),
        };
        let id = Uuid::from_u128(5);
        let header = |id: Uuid| {
            let ticket = format!("vt1;{};1;2;3;node;n1;;m", id.simple());
            serde_json::to_vec(&serde_json::json!({ "ticket": ticket, "later": 1 })).unwrap()
        };
        let body = Bytes::from_static(b"the body");
        let frame = |body: Bytes| Envelope {
            method: "m".into(),
            ..plain(&me, Kind::Submit, id, body)
        };
        let mut good = frame(wrap(&header(id), &body).unwrap());
        let job = unwrap(&mut good).expect("it is well-formed");
        assert_eq!((good.body, job.name.deadline_ms), (body.clone(), 2));
        let whole = wrap(&header(id), &body).unwrap();
        for bad in [
            Bytes::new(),
            whole.slice(..20),
            wrap(b"{}", &body).unwrap(),
            wrap(&header(Uuid::from_u128(6)), &body).unwrap(),
        ] {
            assert!(unwrap(&mut frame(bad)).is_none());
        }
        let other_method = &mut Envelope {
            method: "x".into(),
            ..frame(whole)
        };
        assert!(unwrap(other_method).is_none());
        assert!(wrap(&[b'x'; limits::SUBMISSION_MAX_BYTES + 1], &body).is_none());
    }
}
