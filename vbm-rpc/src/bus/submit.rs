//! The calling side of submitted calls: submit, look, wait, cancel.

use super::{Bus, Flight, Shared, decode, pending, refused, replied, tickets};
use crate::{
    BusError, Fate, Method, Route, SubmitOptions, Ticket, TicketOutcome, TicketState,
    envelope::{Envelope, Kind},
    limits,
    submission::Submission,
    ticket::{Judged, Lost, TicketName, judge, millis, read_begun},
    transport::{Destination, ResultStore, TicketPlace, TicketRecord},
};
use bytes::Bytes;
use std::{marker::PhantomData, sync::Arc, time::Duration};
use tokio::time::{Instant, sleep_until, timeout_at};
use vbm_core::{Error, ErrorKind, NodePath, Outcome};

impl Bus {
    /// Submits a request: `Ok` means that the bus keeps it and delivers it at least once before its deadline, and that
    /// its [`Ticket`] has, by its deadline and [`TICKET_GRACE`](limits::TICKET_GRACE), exactly one end, the same for
    /// every process that looks. Dropping the ticket changes nothing.
    ///
    /// ```
    /// # use vbm_rpc::*;
    /// # struct Add; impl Method for Add { const NAME: &'static str = "add"; type Request = u32; type Reply = u32; }
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let hub = memory::MemoryBus::new();
    /// # let router = Router::new().method::<Add, _, _>(|_context: Context, n: u32| async move { Ok(n + 1) });
    /// # let n1: vbm_core::NodePath = "n1".parse()?;
    /// # let worker = Bus::attach(hub.clone(), Member::new(n1.clone(), "b"), router).await?;
    /// # let bus = Bus::attach(hub.clone(), Member::new("c1".parse()?, "b"), Router::new()).await?;
    /// # let other = Bus::attach(hub, Member::new("c2".parse()?, "b"), Router::new()).await?;
    /// let ticket = bus.submit::<Add>(&Route::node(n1), &41, SubmitOptions::default()).await?;
    /// let text = ticket.to_string(); // keep it, send it, write it down
    ///
    /// // In any process, now or later:
    /// let ticket: Ticket<Add> = text.parse()?;
    /// let state = other.ticket(&ticket)?.wait(std::time::Duration::from_secs(5)).await?;
    /// assert_eq!(state, TicketState::Ended(Ok(42)));
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// The [`Fate`] of the sending; then there is no ticket. After [`Fate::Lost`] it may run all the same: submit it
    /// again with the same idempotency key. `Refused` (unsupported) where the transport has no result store.
    ///
    /// # Cancel safety
    /// Dropping the future may or may not submit the request.
    pub fn submit<M: Method>(
        &self,
        route: &Route,
        request: &M::Request,
        options: SubmitOptions,
    ) -> impl Future<Output = Result<Ticket<M>, Fate>> + Send + use<M> {
        let prepared = self.prepare::<M>(route, request, &options);
        async move {
            let (mut flight, store, name, opened) = prepared?;
            let due = opened.callback.is_some().then(|| {
                flight.shared.homes.add(&name.place.home);
                (name.to_string(), name.overdue_ms())
            });
            let due_listed = due.is_some();
            // In the queue before the request, so in the store before anybody has it.
            let until = flight.deadline;
            let open = store.open(&name.place, header(&opened), name.life(name.submitted_ms), due);
            if timeout_at(until, open).await.is_err() {
                let at = "the queue of this process".into();
                return Err(Fate::Expired { at });
            }
            match flight.send().await {
                Ok(_members) => {
                    flight.over();
                    Ok(Ticket::new(name))
                }
                Err(fate) => {
                    if fate.is_certainly_not_started() {
                        if due_listed {
                            store.due(&name.place.home, name.to_string(), None);
                        }
                        if let Err(error) = store.forget(&name.place).await {
                            tracing::debug!(%error, "the ticket of a call that was not sent runs out by itself");
                        }
                    }
                    Err(fate)
                }
            }
        }
    }

    fn prepare<M: Method>(
        &self,
        route: &Route,
        request: &M::Request,
        options: &SubmitOptions,
    ) -> Result<(Flight, Arc<dyn ResultStore>, TicketName, Submission), Fate> {
        if let Route::All { .. } = route {
            return Err(refused(
                "a submitted call goes to one member",
                "the route names all",
                "use broadcast, or submit one for each",
            ));
        }
        let store = self.shared.link.results().ok_or_else(|| {
            Fate::Refused(Error::new(
                ErrorKind::Unsupported,
                "calls cannot be submitted here",
                "this transport keeps no results",
                "use call, or a transport with a result store: memory or Redis",
            ))
        })?;
        let mut flight = self.launch::<M>(Kind::Submit, route, request, &options.call)?;
        let name = TicketName {
            place: TicketPlace {
                home: route.clone(),
                id: flight.id,
            },
            method: M::NAME.to_owned(),
            submitted_ms: store.now_ms(),
            deadline_ms: millis(options.call.deadline),
            keep_ms: millis(options.keep),
        };
        let submission = Submission {
            ticket: name.to_string(),
            callback: options.callback.clone(),
        };
        let mut envelope = Envelope::decode(&flight.frame)
            .map_err(|why| Fate::Refused(Error::internal("a frame was not written well", why.to_string())))?;
        envelope.body = tickets::wrap(&header(&submission), &envelope.body).ok_or_else(|| {
            refused(
                "the ticket is too long",
                "its route, method and callback have too many bytes",
                "use shorter paths or names of methods",
            )
        })?;
        flight.frame = envelope.encode();
        Ok((flight, store, name, submission))
    }

    /// A ticket, to be looked at, awaited or cancelled from this process, whoever submitted it.
    ///
    /// # Errors
    /// Unsupported, when the transport has no result store.
    pub fn ticket<M: Method>(&self, ticket: &Ticket<M>) -> Result<TicketHandle<M>, Error> {
        let store = self.shared.link.results().ok_or_else(|| {
            Error::new(
                ErrorKind::Unsupported,
                "there are no tickets here",
                "this transport keeps no results",
                "use a transport with a result store: memory or Redis",
            )
        })?;
        Ok(TicketHandle {
            shared: self.shared.clone(),
            store,
            name: ticket.name.clone(),
            method: PhantomData,
        })
    }
}

fn header(submission: &Submission) -> Bytes {
    // Texts can always be written.
    serde_json::to_vec(submission).unwrap_or_default().into()
}

/// A ticket in the hands of one process.
pub struct TicketHandle<M> {
    shared: Arc<Shared>,
    store: Arc<dyn ResultStore>,
    name: TicketName,
    method: PhantomData<fn() -> M>,
}

impl<M: Method> TicketHandle<M> {
    /// How it is doing. Who looks after the deadline and [`TICKET_GRACE`](limits::TICKET_GRACE) at a ticket that
    /// nobody ended, ends it: [`Fate::Lost`], for everybody.
    ///
    /// # Errors
    /// When the transport's server does not answer, or the bus is shut down.
    ///
    /// # Cancel safety
    /// Safe.
    pub async fn poll(&self) -> Result<TicketState<M::Reply>, BusError> {
        self.look().await.map(|(state, _record)| state)
    }

    /// Waits until it is final, at most for `limit`; gives the state that it has then.
    ///
    /// # Errors
    /// When the transport's server does not answer at the end of the limit, or the bus is shut down.
    ///
    /// # Cancel safety
    /// Safe: it can be awaited again, by anybody.
    pub async fn wait(&self, limit: Duration) -> Result<TicketState<M::Reply>, BusError> {
        let until = Instant::now() + limit;
        let waiting = self.shared.pending.wait_for(self.name.place.id);
        let mut pause = limits::TICKET_POLL_MIN;
        loop {
            let settled = waiting.settled.notified();
            let mut settled = std::pin::pin!(settled);
            // From here on a word is heard, also while the record is read.
            settled.as_mut().enable();
            let state = self.poll().await;
            let now = Instant::now();
            match &state {
                Ok(state) if state.is_final() => {}
                Err(BusError::Closed | BusError::Displaced { .. }) => {}
                _ if now >= until => {}
                _ => {
                    tokio::select! {
                        // Cancel safe: both only wake.
                        () = &mut settled => {}
                        () = sleep_until(until.min(now + pause)) => {}
                        () = self.shared.closing.cancelled() => return Err(BusError::Closed),
                    }
                    pause = (pause * 3 / 2).min(limits::TICKET_POLL_MAX);
                    continue;
                }
            }
            return state;
        }
    }

    /// Gives it up. What is pending ends [`Fate::Cancelled`] for everybody, and is not begun any more. (It may have
    /// been begun in the last [`ACCEPT_AFTER`](limits::ACCEPT_AFTER); its answer then comes too late.) A handler that
    /// runs is told, as that of a dropped call is, and the ticket ends with what it answers. Gives the state after
    /// that.
    ///
    /// # Errors
    /// When the transport's server does not answer, or the bus is shut down.
    ///
    /// # Cancel safety
    /// Dropping the future may or may not cancel it.
    pub async fn cancel(&self) -> Result<TicketState<M::Reply>, BusError> {
        let (state, record) = self.look().await?;
        let worker = match (&state, &self.name.place.home) {
            (TicketState::Running { by, .. }, _) => Some(by.clone()),
            (TicketState::Pending { .. }, Route::Node(path)) => Some(path.clone()),
            (TicketState::Pending { .. }, _) => record.as_ref().and_then(read_begun).map(|begun| begun.by),
            _ => return Ok(state),
        };
        let state = match state {
            TicketState::Pending { .. } => {
                let end = tickets::cancelled_frame(&self.shared.me, self.name.place.id);
                TicketState::Ended(self.settle(end).await?)
            }
            running => running,
        };
        if let Some(worker) = worker {
            self.tell(worker);
        }
        Ok(state)
    }

    /// Forgets its record: it is [`TicketState::Unknown`] from now on. What runs goes on.
    ///
    /// # Errors
    /// When the transport's server does not answer.
    ///
    /// # Cancel safety
    /// Dropping the future may or may not forget it.
    pub async fn forget(self) -> Result<(), BusError> {
        self.store.forget(&self.name.place).await
    }

    async fn look(&self) -> Result<(TicketState<M::Reply>, Option<TicketRecord>), BusError> {
        if self.shared.closing.is_cancelled() {
            return Err(BusError::Closed);
        }
        let record = self.store.look(&self.name.place).await?;
        let state = match judge(&self.name, record.as_ref(), self.store.now_ms()) {
            Judged::Pending(since) => TicketState::Pending { since },
            Judged::Running(by, since) => TicketState::Running { by, since },
            Judged::Ended(end) => TicketState::Ended(read_end::<M>(&end)),
            Judged::Overdue(lost) => {
                let end = tickets::lost_frame(&self.shared.me, self.name.place.id, &lost);
                TicketState::Ended(self.settle(end).await?)
            }
            Judged::Expired => TicketState::Expired,
            Judged::Unknown => TicketState::Unknown,
        };
        Ok((state, record))
    }

    /// Ends it unless it has ended; the end that it has.
    async fn settle(&self, end: Bytes) -> Result<Result<M::Reply, Fate>, BusError> {
        let life = self.name.life(self.store.now_ms());
        let end = self.store.settle(&self.name.place, end, life).await?;
        Ok(read_end::<M>(&end))
    }

    /// Tells a worker that nobody wants it any more, as well as it can be told.
    fn tell(&self, worker: NodePath) {
        let id = self.name.place.id;
        let frame = tickets::cancel_frame(&self.shared.me, id);
        let to = Destination::Route(Route::node(worker));
        if !self.shared.link.try_post(to, frame, limits::DEFAULT_DEADLINE) {
            tracing::debug!(%id, "no room to send a cancel");
        }
    }
}

impl<M> std::fmt::Debug for TicketHandle<M> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "TicketHandle({})", self.name)
    }
}

impl TicketOutcome {
    /// How the call ended, for the method of the ticket.
    ///
    /// # Errors
    /// Invalid input when the ticket is of another method; exhausted when the end was too large to be sent along:
    /// look at the ticket then ([`Bus::ticket`]).
    pub fn read<M: Method>(&self) -> Result<Result<M::Reply, Fate>, Error> {
        self.ticket::<M>()?;
        match &self.end {
            Some(end) => Ok(read_end::<M>(&end.0)),
            None => Err(Error::new(
                ErrorKind::Exhausted,
                "the end of the call was not sent along",
                format!("it has more than {} bytes", limits::CALLBACK_END_MAX_BYTES),
                "look at the ticket with `Bus::ticket`",
            )),
        }
    }
}

/// The end of a ticket as that of a call.
fn read_end<M: Method>(end: &Bytes) -> Result<M::Reply, Fate> {
    let answer = Envelope::decode(end).ok();
    match answer.and_then(|end| pending::read_answer(end).ok()) {
        Some(answer) => decode::<M>(&replied(answer)?),
        None => Err(unreadable("it is no frame of the bus that ends a call")),
    }
}

/// What stands behind [`EndCode::Lost`](crate::envelope::EndCode::Lost).
pub(super) fn lost(text: &str) -> Fate {
    match serde_json::from_str::<Lost>(text) {
        Ok(lost) => Fate::Lost {
            started: lost.started,
            to: lost.to,
            worker: lost.worker,
            why: lost.why,
        },
        Err(why) => unreadable(&why.to_string()),
    }
}

fn unreadable(why: &str) -> Fate {
    let error = Error::internal("the end of a ticket cannot be read", why);
    Fate::Refused(error.with_outcome(Outcome::Unknown))
}
