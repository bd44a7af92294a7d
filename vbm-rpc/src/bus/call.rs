//! One question, one answer: the way of a call, with what is known of it, its progress, and many at once.

use super::{
    Bus, Flight, FlightState,
    life::{Life, Newest},
    pending::{Answer, End, Sending},
    refused,
};
use crate::{
    BadInput, CallOptions, Fate, Journey, Method, ProgressMethod, Route, admin::Stage, envelope::Kind,
    journey::Traced, transport::SendWatch,
};
use std::{future::Future, time::SystemTime};
use tokio::{
    sync::watch,
    time::{Instant, timeout_at},
};

/// What is known of the way of a call that has ended.
#[derive(Default)]
pub(super) struct Way {
    /// The transport kept it.
    queued: Option<Instant>,
    life: Option<Box<Life>>,
}

impl Way {
    fn known(self) -> Life {
        let mut life = self.life.map_or_else(Life::default, |life| *life);
        life.queued = self.queued;
        life
    }
}

/// Sends a request and waits for its answer or the deadline. The flight is over then.
pub(super) async fn exchange(
    flight: &mut Flight,
    progress: Option<watch::Sender<Newest>>,
) -> (Result<Answer, Fate>, Way) {
    let (answer, sending) = flight.pending().one(
        flight.id,
        flight.to.clone(),
        flight.frame.clone(),
        flight.deadline,
    );
    if let Some(newest) = progress {
        flight.pending().listen(flight.id, newest);
    }
    let mut answer = std::pin::pin!(answer);
    let early = if flight.try_send(&sending) {
        None
    } else {
        // The answer may be here before the transport has said that it took the request.
        tokio::select! {
            biased;
            answer = &mut answer => Some(answer),
            sent = flight.send() => match sent {
                Ok(_members) => {
                    sending.kept();
                    None
                }
                Err(fate) => return (Err(fate), Way::default()),
            },
        }
    };
    let answered = match early {
        Some(answer) => Ok(answer),
        None => timeout_at(flight.deadline, answer).await,
    };
    let queued = sending.kept_at();
    flight.note(Stage::Answered, || match &answered {
        Ok(Ok(answer)) => format!("by {}", answer.from),
        Ok(Err(_closed)) => "this side's bus was shut down".into(),
        Err(_late) => "no reply by the deadline".into(),
    });
    match answered {
        Ok(Ok(mut answer)) => {
            // Whoever answers takes it off the table.
            flight.state = FlightState::Over;
            let life = answer.life.take();
            match answer.end {
                End::Unsent(error) => (Err(flight.unsent(error)), Way::default()),
                _ => (Ok(answer), Way { queued, life }),
            }
        }
        Ok(Err(_closed)) => (Err(flight.closed(&sending)), Way { queued, life: None }),
        Err(_late) => late(flight, &sending),
    }
}

/// The end of a call that was not answered by its deadline.
#[cold]
fn late(flight: &mut Flight, sending: &Sending) -> (Result<Answer, Fate>, Way) {
    let way = Way {
        queued: sending.kept_at(),
        life: flight.pending().take_life(flight.id),
    };
    let life = way.known();
    let tale = life.tale(flight.called_at(), Instant::now());
    let way = Way {
        queued: life.queued,
        life: Some(Box::new(life)),
    };
    (Err(flight.late(sending, &tale)), way)
}

impl Bus {
    /// The same as [`Bus::call`], with what is known of its way: queued when, begun by whom and when, heard of last.
    ///
    /// # Cancel safety
    /// As for [`Bus::call`].
    pub fn call_traced<M: Method>(
        &self,
        route: &Route,
        request: &M::Request,
        options: CallOptions,
    ) -> impl Future<Output = Traced<M::Reply>> + Send + use<M> {
        let flight = self.launch_one::<M>(Kind::Request, route, request, &options);
        let to = route.to_string();
        async move {
            let (called_at, begin) = (SystemTime::now(), Instant::now());
            let (id, answered_by, result, way) = match flight {
                Ok(mut flight) => {
                    let (ended, way) = exchange(&mut flight, None).await;
                    let answered_by = ended.as_ref().ok().map(|answer| answer.from.clone());
                    let result = ended.and_then(|answer| flight.read::<M>(answer));
                    (Some(flight.id), answered_by, result, way)
                }
                Err(fate) => (None, None, Err(fate), Way::default()),
            };
            let worker = match &result {
                Err(Fate::Lost { worker, .. }) => worker.clone(),
                _ => answered_by,
            };
            let journey = Journey::of(id, to, called_at, begin, &way.known(), worker);
            Traced { result, journey }
        }
    }

    /// Calls a method that says how far it is: `on_progress` gets the newest each time the caller looks, in order; older
    /// ones may be skipped, never repeated.
    ///
    /// # Errors
    /// The [`Fate`] of the call.
    ///
    /// # Cancel safety
    /// As for [`Bus::call`].
    pub fn call_with_progress<M, F>(
        &self,
        route: &Route,
        request: &M::Request,
        options: CallOptions,
        mut on_progress: F,
    ) -> impl Future<Output = Result<M::Reply, Fate>> + Send + use<M, F>
    where
        M: ProgressMethod,
        F: FnMut(M::Progress) + Send,
    {
        let flight = self.launch_one::<M>(Kind::Watched, route, request, &options);
        async move {
            let (sender, mut newest) = watch::channel(None);
            let mut flight = flight?;
            let (counters, to) = (flight.shared.counters.clone(), flight.to.to_string());
            let ended = {
                let mut exchange = std::pin::pin!(exchange(&mut flight, Some(sender)));
                loop {
                    // Cancel safe: a change is seen by the next turn, the exchange outlives it.
                    tokio::select! {
                        biased;
                        Ok(()) = newest.changed() => {
                            let taken = newest.borrow_and_update().clone();
                            let Some((codec, body)) = taken else { continue };
                            match codec.decode(&body) {
                                Ok(progress) => on_progress(progress),
                                Err(why) => {
                                    let detail = format_args!("the progress of {} cannot be read: {why}", M::NAME);
                                    counters.bad.note(BadInput::Unreadable, &to, detail);
                                }
                            }
                        }
                        (ended, _way) = &mut exchange => break ended,
                    }
                }
            };
            flight.read::<M>(ended?)
        }
    }

    /// Many calls of one method, to one or several routes, that are sent at once.
    ///
    /// ```no_run
    /// # use vbm_rpc::{Bus, CallOptions, Method, Route};
    /// # struct Ping; impl Method for Ping { const NAME: &'static str = "ping"; type Request = u32; type Reply = u32; }
    /// # async fn example(bus: Bus, nodes: Vec<Route>) {
    /// let mut batch = bus.batch::<Ping>();
    /// for node in &nodes {
    ///     batch.add(node, &7, CallOptions::default());
    /// }
    /// let answers = batch.send().await; // one for each, in this order
    /// # }
    /// ```
    pub fn batch<M: Method>(&self) -> Batch<M> {
        Batch {
            bus: self.clone(),
            flights: Vec::new(),
            method: std::marker::PhantomData,
        }
    }

    /// A request to one member.
    pub(super) fn launch_one<M: Method>(
        &self,
        kind: Kind,
        route: &Route,
        request: &M::Request,
        options: &CallOptions,
    ) -> Result<Flight, Fate> {
        match route {
            Route::All { .. } => Err(refused(
                "a call goes to one member",
                "the route names all",
                "use broadcast",
            )),
            _ => self.launch::<M>(kind, route, request, options),
        }
    }
}

/// Calls that are sent at once: see [`Bus::batch`].
#[must_use = "nothing is sent before `send`"]
pub struct Batch<M> {
    bus: Bus,
    flights: Vec<Result<Flight, Fate>>,
    method: std::marker::PhantomData<fn() -> M>,
}

impl<M: Method> Batch<M> {
    /// Writes one more request; its deadline begins now. What cannot be sent has its fate among the answers.
    pub fn add(&mut self, route: &Route, request: &M::Request, options: CallOptions) -> &mut Self {
        self.flights
            .push(self.bus.launch_one::<M>(Kind::Request, route, request, &options));
        self
    }

    /// How many requests it holds.
    pub fn len(&self) -> usize {
        self.flights.len()
    }

    /// Whether it holds none.
    pub fn is_empty(&self) -> bool {
        self.flights.is_empty()
    }

    /// Sends all of them and waits until each has ended: its reply or its own fate, in the order of adding. No call waits
    /// for another one to be sent.
    ///
    /// # Cancel safety
    /// Dropping the future gives up what has not ended, as for [`Bus::call`].
    pub fn send(self) -> impl Future<Output = Vec<Result<M::Reply, Fate>>> + Send + use<M> {
        let calls = self.flights.into_iter().map(|flight| async move {
            let mut flight = flight?;
            let (ended, _way) = exchange(&mut flight, None).await;
            flight.read::<M>(ended?)
        });
        futures::future::join_all(calls.collect::<Vec<_>>())
    }
}

impl<M> std::fmt::Debug for Batch<M> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Batch")
            .field("len", &self.flights.len())
            .finish_non_exhaustive()
    }
}
