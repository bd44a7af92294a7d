//! The task that serves IPv6 on one link: reads frames, asks [`super::respond`] and [`crate::ra::schedule`], writes frames. It owns the
//! state. Nothing has to be kept, so an answer leaves at once.

use super::{
    Counters, Leases, Reason, ServerConfig, frame,
    request::{self, Request},
    respond::{Arrival, Decision, Outcome, State, respond},
    wire,
};
use crate::{
    NetEvent,
    dhcp::{
        rate::Limiter,
        server::{Context, Place, register},
        socket::FRAME_MAX_BYTES,
    },
    ra::{
        self,
        schedule::{Due, Schedule},
    },
};
use std::{
    io,
    os::fd::{AsRawFd, OwnedFd},
    sync::Arc,
    time::Duration,
};
use tokio::{
    io::{Interest, unix::AsyncFd},
    sync::watch,
    task::JoinHandle,
    time::Instant,
};
use tokio_util::sync::CancellationToken;
use vbm_core::{Mac, Timestamp};

/// The most frames that are read before others get their turn.
const BATCH_MAX_FRAMES: usize = 64;
/// How long the task sleeps at most when it is no router.
const IDLE: Duration = Duration::from_secs(3_600);

/// What a server begins with.
pub(crate) struct Beginning {
    /// Of [`super::socket::open`] at `place`.
    pub(crate) socket: OwnedFd,
    pub(crate) place: Place,
    pub(crate) config: ServerConfig,
    /// What guests were told by the one before.
    pub(crate) leases: Leases,
}

/// A running server. Dropping it stops it.
pub(crate) struct Server {
    place: Place,
    config: watch::Sender<Arc<ServerConfig>>,
    leases: watch::Receiver<Leases>,
    counters: Arc<Counters>,
    stop: CancellationToken,
    task: JoinHandle<()>,
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
        let (config_out, latest) = watch::channel(Arc::clone(&config));
        let (leases_out, leases) = watch::channel(begin.leases.clone());
        let counters = Arc::<Counters>::default();
        let stop = CancellationToken::new();
        let tracker = context.tracker.clone();
        let shell = Shell {
            socket,
            latest,
            schedule: Schedule::new(seed(config.mac, context.clock.now()), Duration::ZERO),
            config,
            began: Instant::now(),
            state: State {
                leases: begin.leases,
                ..State::default()
            },
            leases: leases_out,
            limiter: Limiter::default(),
            counters: Arc::clone(&counters),
            context,
        };
        let task = tracker.spawn(shell.run(stop.clone()));
        Ok(Self {
            place: begin.place,
            config: config_out,
            leases,
            counters,
            stop,
            task,
        })
    }

    /// Whether it runs, at this place.
    pub(crate) fn serves(&self, place: Place) -> bool {
        self.place == place && !self.task.is_finished()
    }

    /// From the next message on, this holds. Returns whether it differs from before.
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

    /// How often what happened.
    pub(crate) fn counters(&self) -> &Counters {
        &self.counters
    }

    /// Ends it. When this returns its socket is closed.
    pub(crate) async fn stop(mut self) {
        self.stop.cancel();
        // One that panicked has ended too.
        drop((&mut self.task).await);
    }
}

/// Two hosts of one network, started at once, speak at different times.
fn seed(mac: Mac, now: Timestamp) -> u64 {
    let [_, _, a, b, c, d] = mac.octets();
    now.micros().unsigned_abs() ^ (u64::from(u32::from_be_bytes([a, b, c, d])) << 32)
}

struct Shell {
    socket: AsyncFd<OwnedFd>,
    latest: watch::Receiver<Arc<ServerConfig>>,
    config: Arc<ServerConfig>,
    schedule: Schedule,
    /// What times of the schedule are counted from.
    began: Instant,
    state: State,
    leases: watch::Sender<Leases>,
    limiter: Limiter,
    counters: Arc<Counters>,
    context: Context,
}

/// What woke the task.
enum Woken {
    Stop,
    Changed,
    Due,
    Frames(io::Result<()>),
}

impl Shell {
    async fn run(mut self, stop: CancellationToken) {
        let mut buffer = vec![0; FRAME_MAX_BYTES];
        loop {
            let next = match self.config.router {
                Some(_) => self.began + self.schedule.next(),
                None => Instant::now() + IDLE,
            };
            let woken = tokio::select! {
                // Each is cancel safe: a frame not read stays in the socket, a configuration in its channel, a time in the schedule.
                () = stop.cancelled() => Woken::Stop,
                changed = self.latest.changed() => changed.map_or(Woken::Stop, |()| Woken::Changed),
                () = tokio::time::sleep_until(next) => Woken::Due,
                ready = self.socket.readable() => Woken::Frames(ready.map(|mut r| r.retain_ready())),
            };
            let done = match woken {
                Woken::Stop => break,
                Woken::Changed => {
                    self.follow();
                    Ok(())
                }
                Woken::Due => {
                    self.advertise();
                    Ok(())
                }
                Woken::Frames(ready) => ready.and_then(|()| self.drain(&mut buffer)),
            };
            if let Err(error) = done {
                tracing::error!(network = %self.context.network, %error, "the DHCPv6 server stops");
                break;
            }
        }
    }

    /// Takes the newest configuration. A router that has something else to say says it soon.
    fn follow(&mut self) {
        let config = Arc::clone(&self.latest.borrow_and_update());
        if config.router != self.config.router {
            self.schedule.changed(self.began.elapsed());
        }
        self.config = config;
    }

    /// Sends the advertisements that are due.
    fn advertise(&mut self) {
        let due = self.schedule.due(self.began.elapsed());
        let config = Arc::clone(&self.config);
        let Some(router) = &config.router else { return };
        for one in due {
            match one {
                Due::Everybody => self.send(&ra::render(router)),
                Due::One { mac, to } => self.send(&ra::render_to(router, mac, to)),
            }
        }
    }

    /// Reads what is there, up to a batch.
    fn drain(&mut self, buffer: &mut [u8]) -> io::Result<()> {
        if self.latest.has_changed().unwrap_or(false) {
            self.follow();
        }
        for _ in 0..BATCH_MAX_FRAMES {
            let read = self.socket.try_io(Interest::READABLE, |fd| {
                let flags = nix::sys::socket::MsgFlags::MSG_DONTWAIT;
                nix::sys::socket::recv(fd.as_raw_fd(), buffer, flags).map_err(io::Error::from)
            });
            match read {
                Ok(length) => self.hear(buffer.get(..length).unwrap_or_default()),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                // The bridge went down and comes up again: go on.
                Err(error) if error.raw_os_error() == Some(nix::libc::ENETDOWN) => return Ok(()),
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// One frame. Nothing in it can make this fail: what is for nobody here is counted and passed over.
    fn hear(&mut self, bytes: &[u8]) {
        let now = self.context.clock.now();
        let heard = if let Some((mac, from)) = ra::solicitor(bytes) {
            self.solicited(mac, from, now)
        } else if let Some(datagram) = frame::parse(bytes) {
            self.serve(&datagram, now)
        } else {
            Err(Reason::NotForUs)
        };
        match heard {
            Ok(why) => self.counters.count(why),
            Err(why) => {
                self.counters.count(why);
                tracing::debug!(network = %self.context.network, why = why.word(), "nothing to answer");
            }
        }
    }

    fn may_ask(&mut self, mac: Mac, now: Timestamp) -> Result<(), Reason> {
        match self.config.rate {
            Some(rate) if !self.limiter.allows(mac, rate, now) => Err(Reason::RateLimited),
            _ => Ok(()),
        }
    }

    fn solicited(&mut self, mac: Mac, from: std::net::Ipv6Addr, now: Timestamp) -> Result<Reason, Reason> {
        self.may_ask(mac, now)?;
        if self.config.router.is_none() {
            return Err(Reason::NotForUs);
        }
        if !self.config.ports.contains_key(&mac) {
            return Err(Reason::UnknownMac);
        }
        if self.schedule.solicited(mac, from, self.began.elapsed()) {
            Ok(Reason::Solicited)
        } else {
            Err(Reason::RateLimited)
        }
    }

    fn serve(&mut self, datagram: &frame::Datagram<'_>, now: Timestamp) -> Result<Reason, Reason> {
        self.may_ask(datagram.source, now)?;
        let request = request::parse(datagram.payload)?;
        let arrival = Arrival {
            source: datagram.source,
            from: datagram.from,
            to: datagram.to,
        };
        let decision = respond(&self.config, &self.state, &request, arrival, now);
        tracing::debug!(network = %self.context.network, mac = %arrival.source, kind = ?request.kind, reply = ?decision.reply, why = decision.why.word(), "DHCPv6");
        self.answer(&request, &decision);
        if let Some(outcome) = &decision.outcome {
            self.state.apply(outcome);
            self.tell(outcome);
        }
        Ok(decision.why)
    }

    fn answer(&self, request: &Request, decision: &Decision) {
        let Some(reply) = &decision.reply else { return };
        let payload = wire::encode(&self.config, request, reply);
        let from = (self.config.mac, self.config.address);
        match frame::build(from, (reply.to_mac, reply.to), &payload) {
            Some(frame) => self.send(&frame),
            None => self.counters.count(Reason::NotEncoded),
        }
    }

    fn send(&self, frame: &[u8]) {
        // A full queue loses the frame; who waits for it asks again.
        let flags = nix::sys::socket::MsgFlags::MSG_DONTWAIT;
        if let Err(error) = nix::sys::socket::send(self.socket.get_ref().as_raw_fd(), frame, flags) {
            self.counters.count(Reason::NotSent);
            tracing::warn!(network = %self.context.network, %error, "a frame of DHCPv6 or of the router was not sent");
        }
    }

    /// Tells whoever listens, and shows what guests hold.
    fn tell(&self, outcome: &Outcome) {
        let network = self.context.network;
        self.show(outcome);
        let event = match *outcome {
            Outcome::Leased(port, lease) => NetEvent::PortLeased6 {
                network,
                port,
                address: lease.address,
                since: lease.since,
                until: lease.until,
            },
            Outcome::Released(port, address) => NetEvent::PortReleased6 {
                network,
                port,
                address,
            },
            Outcome::Declined(port, address, _) => {
                tracing::warn!(%network, %port, %address, "a guest says that its address is used by another");
                NetEvent::PortDeclined6 {
                    network,
                    port,
                    address,
                }
            }
        };
        // No listener is fine: events are news, not state.
        drop(self.context.events.send(event));
    }

    fn show(&self, outcome: &Outcome) {
        self.leases.send_modify(|leases| match *outcome {
            Outcome::Leased(port, lease) => drop(leases.insert(port, lease)),
            Outcome::Released(port, _) | Outcome::Declined(port, _, _) => drop(leases.remove(&port)),
        });
    }
}
