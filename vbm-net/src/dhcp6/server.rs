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
    dhcp::rate::Limiter,
    ra::{
        self,
        schedule::{Due, Schedule},
    },
    station::{
        Context, Place, Reins, Running,
        ear::{self, Ear, Voice},
    },
};
use std::{io, os::fd::OwnedFd, sync::Arc, time::Duration};
use tokio::time::Instant;
use vbm_core::{Mac, Timestamp};

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
pub(crate) type Server = Running<ServerConfig, Leases, Counters>;

impl Server {
    /// Starts to serve.
    pub(crate) fn start(begin: Beginning, context: Context) -> io::Result<Self> {
        let (ear, voice) = ear::open(begin.socket)?;
        let config = Arc::new(begin.config);
        let tracker = context.tracker.clone();
        Ok(Self::drive(
            begin.place,
            &config,
            &begin.leases,
            &tracker,
            |reins| {
                let shell = Shell {
                    voice,
                    reins,
                    schedule: Schedule::new(seed(config.mac, context.clock.now()), Duration::ZERO),
                    config: Arc::clone(&config),
                    began: Instant::now(),
                    state: State {
                        leases: begin.leases.clone(),
                        ..State::default()
                    },
                    limiter: Limiter::default(),
                    context,
                };
                shell.run(ear)
            },
        ))
    }
}

/// Two hosts of one network, started at once, speak at different times.
fn seed(mac: Mac, now: Timestamp) -> u64 {
    let [_, _, a, b, c, d] = mac.octets();
    now.micros().unsigned_abs() ^ (u64::from(u32::from_be_bytes([a, b, c, d])) << 32)
}

struct Shell {
    voice: Voice,
    reins: Reins<ServerConfig, Leases, Counters>,
    config: Arc<ServerConfig>,
    schedule: Schedule,
    /// What times of the schedule are counted from.
    began: Instant,
    state: State,
    limiter: Limiter,
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
    async fn run(mut self, mut ear: Ear) {
        loop {
            let next = match self.config.router {
                Some(_) => self.began + self.schedule.next(),
                None => Instant::now() + IDLE,
            };
            let woken = tokio::select! {
                // Each is cancel safe: a frame not read stays in the socket, a configuration in its channel, a time in the schedule.
                () = self.reins.stop.cancelled() => Woken::Stop,
                changed = self.reins.latest.changed() => changed.map_or(Woken::Stop, |()| Woken::Changed),
                () = tokio::time::sleep_until(next) => Woken::Due,
                ready = ear.ready() => Woken::Frames(ready),
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
                Woken::Frames(ready) => ready.and_then(|()| self.listen(&mut ear)),
            };
            if let Err(error) = done {
                tracing::error!(network = %self.context.network, %error, "the DHCPv6 server stops");
                break;
            }
        }
    }

    /// Takes the newest configuration. A router that has something else to say says it soon.
    fn follow(&mut self) {
        let config = Arc::clone(&self.reins.latest.borrow_and_update());
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

    fn listen(&mut self, ear: &mut Ear) -> io::Result<()> {
        if self.reins.latest.has_changed().unwrap_or(false) {
            self.follow();
        }
        let now = self.context.clock.now();
        ear.read(now, |frame| self.hear(frame, now))
    }

    /// One frame. Nothing in it can make this fail: what is for nobody here is counted and passed over.
    fn hear(&mut self, bytes: &[u8], now: Timestamp) {
        let heard = if let Some((mac, from)) = ra::solicitor(bytes) {
            self.solicited(mac, from, now)
        } else if let Some(datagram) = frame::parse(bytes) {
            self.serve(&datagram, now)
        } else {
            Err(Reason::NotForUs)
        };
        match heard {
            Ok(why) => self.reins.counters.count(why),
            Err(why) => {
                self.reins.counters.count(why);
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
            None => self.reins.counters.count(Reason::NotEncoded),
        }
    }

    fn send(&self, frame: &[u8]) {
        if let Err(error) = self.voice.say(frame) {
            self.reins.counters.count(Reason::NotSent);
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
        self.context.tell(event);
    }

    fn show(&self, outcome: &Outcome) {
        self.reins.leases.send_modify(|leases| match *outcome {
            Outcome::Leased(port, lease) => drop(leases.insert(port, lease)),
            Outcome::Released(port, _) | Outcome::Declined(port, _, _) => drop(leases.remove(&port)),
        });
    }
}
