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
    socket::FRAME_MAX_BYTES,
    store::LeaseStore,
    wire,
};
use crate::NetEvent;
use std::{
    io,
    os::fd::{AsRawFd, OwnedFd},
    sync::Arc,
};
use tokio::{
    io::{Interest, unix::AsyncFd},
    sync::{broadcast, mpsc, oneshot, watch},
    task::{JoinError, JoinHandle},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use vbm_core::{Clock, Mac, NetworkId, Timestamp};

/// The most frames that are read before others get their turn: commits, questions, the end.
const BATCH_MAX_FRAMES: usize = 64;
/// The most replies that wait for a commit. Who comes later is not heard, and asks again.
const WAITING_MAX_REPLIES: usize = 4_096;
/// The most questions that wait.
const QUESTIONS_MAX_PENDING: usize = 16;

/// What a server needs from outside.
#[derive(Clone)]
pub(crate) struct Context {
    pub(crate) network: NetworkId,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) events: broadcast::Sender<NetEvent>,
    pub(crate) tracker: TaskTracker,
}

/// What its socket is bound to. A namespace that was made anew is another, whatever its name and the number of its interface: the
/// socket holds on to the old one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    /// `None`: that of who started it.
    pub(crate) namespace: Option<(u64, u64)>,
    pub(crate) interface: u32,
}

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
    place: Place,
    config: watch::Sender<Arc<ServerConfig>>,
    leases: watch::Receiver<Leases>,
    questions: mpsc::Sender<Question>,
    counters: Arc<Counters>,
    stop: CancellationToken,
    task: JoinHandle<()>,
}

/// What can be asked of a running server.
enum Question {
    /// What clients of pools hold now, and what rests.
    Clients(oneshot::Sender<Vec<LeaseRecord>>),
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

impl Server {
    /// Starts to serve.
    pub(crate) fn start(begin: Beginning, context: Context) -> io::Result<Self> {
        let socket = register(begin.socket)?;
        let config = Arc::new(begin.config);
        let (config_out, config_seen) = watch::channel(Arc::clone(&config));
        let (leases_out, leases) = watch::channel(begin.leases.clone());
        let (questions, asked) = mpsc::channel(QUESTIONS_MAX_PENDING);
        let counters = Arc::<Counters>::default();
        let stop = CancellationToken::new();
        let tracker = context.tracker.clone();
        let shell = Shell {
            socket,
            latest: config_seen,
            state: State {
                leases: begin.leases,
                resting: Default::default(),
                book: Book::load(&config, begin.kept),
            },
            config,
            leases: leases_out,
            limiter: Limiter::default(),
            questions: asked,
            counters: Arc::clone(&counters),
            store: Some(begin.store),
            waiting: Vec::new(),
            context,
        };
        let task = tracker.spawn(shell.run(stop.clone()));
        Ok(Self {
            place: begin.place,
            config: config_out,
            leases,
            questions,
            counters,
            stop,
            task,
        })
    }

    /// Whether it runs, at this place.
    pub(crate) fn serves(&self, place: Place) -> bool {
        self.place == place && !self.task.is_finished()
    }

    /// From the next request on, this holds. Returns whether it differs from before.
    pub(crate) fn reconfigure(&self, config: ServerConfig) -> bool {
        self.config.send_if_modified(|old| {
            let differs = **old != config;
            if differs {
                *old = Arc::new(config);
            }
            differs
        })
    }

    /// What guests were told.
    pub(crate) fn leases(&self) -> Leases {
        self.leases.borrow().clone()
    }

    /// What clients of pools hold now, and what rests. Nothing of a server that has ended.
    pub(crate) async fn clients(&self) -> Vec<LeaseRecord> {
        let (answer, heard) = oneshot::channel();
        if self.questions.send(Question::Clients(answer)).await.is_err() {
            return Vec::new();
        }
        heard.await.unwrap_or_default()
    }

    /// How often what happened.
    pub(crate) fn counters(&self) -> &Counters {
        &self.counters
    }

    /// Ends it. When this returns its socket is closed and its store is dropped.
    pub(crate) async fn stop(mut self) {
        self.stop.cancel();
        // One that panicked has ended too.
        drop((&mut self.task).await);
    }
}

#[expect(
    unsafe_code,
    reason = "registering wants a promise that the descriptor stays open"
)]
pub(crate) fn register(socket: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an OwnedFd is open until it is dropped and always names the same descriptor; the AsyncFd owns it.
    Ok(unsafe { AsyncFd::register_with_interest(socket, Interest::READABLE) }?)
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
    socket: AsyncFd<OwnedFd>,
    latest: watch::Receiver<Arc<ServerConfig>>,
    config: Arc<ServerConfig>,
    state: State,
    leases: watch::Sender<Leases>,
    limiter: Limiter,
    questions: mpsc::Receiver<Question>,
    counters: Arc<Counters>,
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
    async fn run(mut self, stop: CancellationToken) {
        let mut buffer = vec![0; FRAME_MAX_BYTES];
        let mut commit: Option<Commit> = None;
        loop {
            let woken = tokio::select! {
                // Each is cancel safe: a frame not read stays in the socket, a question in its queue, a commit in its task.
                () = stop.cancelled() => Woken::Stop,
                done = finished(&mut commit) => Woken::Committed(done),
                asked = self.questions.recv() => Woken::Asked(asked),
                ready = self.socket.readable() => Woken::Frames(ready.map(|mut r| r.retain_ready())),
            };
            let done = match woken {
                Woken::Stop => break,
                Woken::Frames(ready) => ready.and_then(|()| self.drain(&mut buffer)),
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

    /// Reads what is there, up to a batch.
    fn drain(&mut self, buffer: &mut [u8]) -> io::Result<()> {
        self.follow();
        for _ in 0..BATCH_MAX_FRAMES {
            let read = self.socket.try_io(Interest::READABLE, |fd| {
                let flags = nix::sys::socket::MsgFlags::MSG_DONTWAIT;
                nix::sys::socket::recv(fd.as_raw_fd(), buffer, flags).map_err(io::Error::from)
            });
            match read {
                Ok(length) => self.serve(buffer.get(..length).unwrap_or_default()),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                // The bridge went down and comes up again, or a guest's route vanished: go on.
                Err(error) if error.raw_os_error() == Some(nix::libc::ENETDOWN) => return Ok(()),
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Takes the newest configuration.
    fn follow(&mut self) {
        if self.latest.has_changed().unwrap_or(false) {
            self.config = Arc::clone(&self.latest.borrow_and_update());
            self.state.book = self.state.book.under(&self.config);
        }
    }

    /// One frame. Nothing in it can make this fail: what is no request is counted and passed over.
    fn serve(&mut self, bytes: &[u8]) {
        let Some(datagram) = frame::parse(bytes) else {
            return self.counters.count(Reason::NotDatagram);
        };
        let network = self.context.network;
        let now = self.context.clock.now();
        let (request, decision) = match self.decide(&datagram, now) {
            Ok(decided) => decided,
            Err(why) => {
                self.counters.count(why);
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
            self.counters.count(decision.why);
            return self.send(frame.as_deref());
        };
        self.state.apply(&self.config, &outcome);
        match &outcome {
            Outcome::Client(change) if change.is_durable() => {
                if self.waiting.len() >= WAITING_MAX_REPLIES {
                    return self.counters.count(Reason::StoreFailed);
                }
                self.counters.count(decision.why);
                self.waiting.push(Waiting {
                    record: change.record().clone(),
                    mac: request.mac,
                    frame,
                    outcome,
                });
            }
            _ => {
                self.counters.count(decision.why);
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
            self.counters.count(Reason::NotEncoded);
        }
        frame
    }

    fn send(&self, frame: Option<&[u8]>) {
        let Some(frame) = frame else { return };
        // A full queue loses the reply; the client asks again (RFC 2131 section 4.1).
        let flags = nix::sys::socket::MsgFlags::MSG_DONTWAIT;
        if let Err(error) = nix::sys::socket::send(self.socket.get_ref().as_raw_fd(), frame, flags) {
            self.counters.count(Reason::NotSent);
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
                    self.counters.count(Reason::StoreFailed);
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
                self.leases.send_modify(|leases| {
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
        // No listener is fine: events are news, not state.
        drop(self.context.events.send(event));
    }

    fn forget(&self, port: vbm_core::PortId) {
        self.leases.send_modify(|leases| {
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
