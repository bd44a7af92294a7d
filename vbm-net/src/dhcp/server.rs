//! The task that serves one network: reads frames, asks [`super::respond`], keeps what must be kept, writes frames. It owns the state.
//!
//! One commit runs at a time, on a thread where it may block. What comes meanwhile is decided at once and waits; when the
//! commit returns, its replies leave and all that waits becomes the next commit.

use super::{
    Counters, Leases, Reason, ServerConfig,
    book::{Book, Change, LeaseRecord},
    frame,
    rate::Limiter,
    request::{self, Request},
    respond::{Arrival, Decision, Outcome, State, respond},
    store::LeaseStore,
    wire,
};
pub(crate) use crate::station::{Context, Place};
use crate::{
    NetEvent,
    station::{
        Reins, Running,
        ear::{self, Ear, Voice},
    },
};
use std::{io, os::fd::OwnedFd, sync::Arc};
use tokio::{
    sync::{mpsc, oneshot},
    task::{JoinError, JoinHandle},
};
use vbm_core::{Mac, NetworkId, Timestamp};

/// The most replies that wait for a commit. Who comes later is not heard, and asks again.
const WAITING_MAX_REPLIES: usize = 4_096;
/// The most questions that wait.
const QUESTIONS_MAX_PENDING: usize = 16;

/// What a server begins with.
pub(crate) struct Beginning {
    /// Of [`super::socket::open`] at `place`.
    pub(crate) socket: OwnedFd,
    pub(crate) place: Place,
    pub(crate) config: ServerConfig,
    /// What guests were told by the one before.
    pub(crate) leases: Leases,
    /// Loaded, with what it held.
    pub(crate) store: Box<dyn LeaseStore>,
    pub(crate) kept: Vec<LeaseRecord>,
}

/// A running server. Dropping it stops it.
pub(crate) struct Server {
    running: Running<ServerConfig, Leases, Counters>,
    questions: mpsc::Sender<Question>,
}

/// What can be asked of a running server.
enum Question {
    /// What clients of pools hold now, and what rests.
    Clients(oneshot::Sender<Vec<LeaseRecord>>),
}

impl std::ops::Deref for Server {
    type Target = Running<ServerConfig, Leases, Counters>;
    fn deref(&self) -> &Self::Target {
        &self.running
    }
}

impl Server {
    /// Starts to serve.
    pub(crate) fn start(begin: Beginning, context: Context) -> io::Result<Self> {
        let (ear, voice) = ear::open(begin.socket)?;
        let (questions, asked) = mpsc::channel(QUESTIONS_MAX_PENDING);
        let config = Arc::new(begin.config);
        let tracker = context.tracker.clone();
        let state = State {
            leases: begin.leases.clone(),
            resting: Default::default(),
            book: Book::load(&config, begin.kept),
        };
        let running = Running::drive(begin.place, &config, &begin.leases, &tracker, |reins| {
            let shell = Shell {
                voice,
                config: Arc::clone(&config),
                state,
                reins,
                limiter: Limiter::default(),
                questions: asked,
                store: Some(begin.store),
                waiting: Vec::new(),
                context,
            };
            shell.run(ear)
        });
        Ok(Self { running, questions })
    }

    /// What clients of pools hold now, and what rests. Nothing of a server that has ended.
    pub(crate) async fn clients(&self) -> Vec<LeaseRecord> {
        let (answer, heard) = oneshot::channel();
        if self.questions.send(Question::Clients(answer)).await.is_err() {
            return Vec::new();
        }
        heard.await.unwrap_or_default()
    }

    /// Ends it. When this returns its socket is closed and its store is dropped.
    pub(crate) async fn stop(self) {
        self.running.stop().await;
    }
}

/// A decision that is carried out when what it rests on is kept.
struct Waiting {
    record: LeaseRecord,
    mac: Mac,
    frame: Option<Vec<u8>>,
    outcome: Outcome,
}

/// A commit that runs.
struct Commit {
    task: JoinHandle<(Box<dyn LeaseStore>, io::Result<()>)>,
    replies: Vec<Waiting>,
}

struct Shell {
    voice: Voice,
    config: Arc<ServerConfig>,
    state: State,
    reins: Reins<ServerConfig, Leases, Counters>,
    limiter: Limiter,
    questions: mpsc::Receiver<Question>,
    /// Here when no commit runs.
    store: Option<Box<dyn LeaseStore>>,
    waiting: Vec<Waiting>,
    context: Context,
}

type Committed = Result<(Box<dyn LeaseStore>, io::Result<()>), JoinError>;

/// What woke the task.
enum Woken {
    Stop,
    Frames(io::Result<()>),
    Committed(Committed),
    Asked(Option<Question>),
}

impl Shell {
    async fn run(mut self, mut ear: Ear) {
        let mut commit: Option<Commit> = None;
        loop {
            let woken = tokio::select! {
                // Each is cancel safe: a frame not read stays in the socket, a question in its queue, a commit in its task.
                () = self.reins.stop.cancelled() => Woken::Stop,
                done = finished(&mut commit) => Woken::Committed(done),
                asked = self.questions.recv() => Woken::Asked(asked),
                ready = ear.ready() => Woken::Frames(ready),
            };
            let done = match woken {
                Woken::Stop => break,
                Woken::Frames(ready) => ready.and_then(|()| self.hear(&mut ear)),
                Woken::Committed(done) => self.committed(commit.take(), done),
                Woken::Asked(question) => {
                    self.answer(question);
                    Ok(())
                }
            };
            if let Err(error) = done {
                tracing::error!(network = %self.context.network, %error, "the DHCP server stops");
                break;
            }
            if commit.is_none() {
                commit = self.commit();
            }
        }
        // What is being written is acknowledged if it is kept, and the store is let go.
        if commit.is_some() {
            let done = finished(&mut commit).await;
            drop(self.committed(commit.take(), done));
        }
    }

    fn hear(&mut self, ear: &mut Ear) -> io::Result<()> {
        self.follow();
        let now = self.context.clock.now();
        ear.read(now, |frame| self.serve(frame, now))
    }

    /// Takes the newest configuration.
    fn follow(&mut self) {
        if self.reins.latest.has_changed().unwrap_or(false) {
            self.config = Arc::clone(&self.reins.latest.borrow_and_update());
            self.state.book = self.state.book.under(&self.config);
        }
    }

    /// One frame. Nothing in it can make this fail: what is no request is counted and passed over.
    fn serve(&mut self, bytes: &[u8], now: Timestamp) {
        let Some(datagram) = frame::parse(bytes) else {
            return self.reins.counters.count(Reason::NotDatagram);
        };
        let network = self.context.network;
        let (request, decision) = match self.decide(&datagram, now) {
            Ok(decided) => decided,
            Err(why) => {
                self.reins.counters.count(why);
                tracing::debug!(%network, from = %datagram.source, why = why.word(), "not a DHCP request");
                return;
            }
        };
        tracing::debug!(%network, mac = %request.mac, kind = ?request.kind, reply = ?decision.reply, why = decision.why.word(), "DHCP");
        let frame = decision
            .reply
            .as_ref()
            .and_then(|_| self.frame(&request, &decision));
        let Some(outcome) = decision.outcome else {
            self.reins.counters.count(decision.why);
            return self.send(frame.as_deref());
        };
        self.state.apply(&self.config, &outcome);
        match &outcome {
            Outcome::Client(change) if change.is_durable() => {
                if self.waiting.len() >= WAITING_MAX_REPLIES {
                    return self.reins.counters.count(Reason::StoreFailed);
                }
                self.reins.counters.count(decision.why);
                self.waiting.push(Waiting {
                    record: change.record().clone(),
                    mac: request.mac,
                    frame,
                    outcome,
                });
            }
            _ => {
                self.reins.counters.count(decision.why);
                self.send(frame.as_deref());
                self.tell(request.mac, &outcome);
            }
        }
    }

    fn decide(
        &mut self,
        datagram: &frame::Datagram<'_>,
        now: Timestamp,
    ) -> Result<(Request, Decision), Reason> {
        let request = request::parse(datagram.payload)?;
        let config = &self.config;
        // Behind a relay all frames are the relay's; it is trusted, and sees to its own clients.
        let by_relay = request.relayed() && config.relays.trusts(request.giaddr);
        if let Some(rate) = config.rate.filter(|_| !by_relay)
            && !self.limiter.allows(datagram.source, rate, now)
        {
            return Err(Reason::RateLimited);
        }
        let arrival = Arrival {
            source: datagram.source,
            from: datagram.from,
            to: datagram.to,
        };
        let decision = respond(config, &self.state, &request, arrival, now);
        Ok((request, decision))
    }

    fn frame(&self, request: &Request, decision: &Decision) -> Option<Vec<u8>> {
        let (config, reply) = (&self.config, decision.reply.as_ref()?);
        let port = config.ports.get(request.mac);
        let frame = match wire::encode(config, port, request, reply) {
            Ok(payload) => frame::build(
                (config.mac, config.address),
                (reply.to_mac, reply.to, reply.to_port),
                &payload,
            ),
            Err(error) => {
                tracing::error!(network = %self.context.network, %error, "a DHCP reply cannot be encoded");
                None
            }
        };
        if frame.is_none() {
            self.reins.counters.count(Reason::NotEncoded);
        }
        frame
    }

    fn send(&self, frame: Option<&[u8]>) {
        let Some(frame) = frame else { return };
        if let Err(error) = self.voice.say(frame) {
            self.reins.counters.count(Reason::NotSent);
            tracing::warn!(network = %self.context.network, %error, "a DHCP reply was not sent");
        }
    }

    /// Begins to keep what waits.
    fn commit(&mut self) -> Option<Commit> {
        if self.waiting.is_empty() {
            return None;
        }
        let mut store = self.store.take()?;
        let replies = std::mem::take(&mut self.waiting);
        let records: Vec<LeaseRecord> = replies.iter().map(|w| w.record.clone()).collect();
        let task = self.context.tracker.spawn_blocking(move || {
            let done = store.commit(&records);
            (store, done)
        });
        Some(Commit { task, replies })
    }

    /// Carries out what rested on a commit.
    fn committed(&mut self, commit: Option<Commit>, done: Committed) -> io::Result<()> {
        let replies = commit.map(|c| c.replies).unwrap_or_default();
        let (store, kept) = done.map_err(io::Error::other)?;
        self.store = Some(store);
        match kept {
            Ok(()) => {
                for waiting in &replies {
                    self.send(waiting.frame.as_deref());
                    self.tell(waiting.mac, &waiting.outcome);
                }
            }
            Err(error) => {
                for _ in &replies {
                    self.reins.counters.count(Reason::StoreFailed);
                }
                tracing::error!(network = %self.context.network, %error, lost = replies.len(), "leases cannot be kept, so they are not acknowledged");
            }
        }
        Ok(())
    }

    fn answer(&mut self, question: Option<Question>) {
        if let Some(Question::Clients(answer)) = question {
            self.follow();
            let now = self.context.clock.now();
            // Who left does not hear it.
            drop(answer.send(self.state.book.leased(now).collect()));
        }
    }

    /// Tells whoever listens, and shows what guests hold.
    fn tell(&self, mac: Mac, outcome: &Outcome) {
        let network = self.context.network;
        let event = match *outcome {
            Outcome::Leased(port, lease) => {
                self.reins.leases.send_modify(|leases| {
                    leases.insert(port, lease);
                });
                NetEvent::PortLeased {
                    network,
                    port,
                    address: lease.address,
                    since: lease.since,
                    until: lease.until,
                }
            }
            Outcome::Released(port, address) => {
                self.forget(port);
                NetEvent::PortReleased {
                    network,
                    port,
                    address,
                }
            }
            Outcome::Declined(port, address, _) => {
                tracing::warn!(%network, %port, %address, "a guest says that its address is used by another");
                self.forget(port);
                NetEvent::PortDeclined {
                    network,
                    port,
                    address,
                }
            }
            Outcome::Client(ref change) => match client_event(network, mac, change) {
                Some(event) => event,
                None => return,
            },
        };
        self.context.tell(event);
    }

    fn forget(&self, port: vbm_core::PortId) {
        self.reins.leases.send_modify(|leases| {
            leases.remove(&port);
        });
    }
}

fn client_event(network: NetworkId, mac: Mac, change: &Change) -> Option<NetEvent> {
    match change {
        Change::Offer(_) => None,
        Change::Bind(r) => Some(NetEvent::ClientLeased {
            network,
            mac,
            address: r.address,
            until: r.until,
        }),
        Change::Release(r) => Some(NetEvent::ClientReleased {
            network,
            mac,
            address: r.address,
        }),
        Change::Decline(r) => {
            tracing::warn!(%network, %mac, address = %r.address, "a client says that an address of the pool is used by another");
            Some(NetEvent::ClientDeclined {
                network,
                mac,
                address: r.address,
            })
        }
    }
}

/// Waits for the commit that runs, if one does.
async fn finished(commit: &mut Option<Commit>) -> Committed {
    match commit {
        Some(commit) => (&mut commit.task).await,
        None => std::future::pending().await,
    }
}
