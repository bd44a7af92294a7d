//! The tasks that serve one network's DNS: one reads datagrams, one accepts connections, one for each connection and for each question
//! that others are asked. All of them end when the server is dropped.

use super::{
    CONNECTION_IDLE_MAX, CONNECTION_MAX_QUESTIONS, CONNECTIONS_MAX, DATAGRAM_MAX_BYTES, DnsSeen,
    PORT_CONNECTIONS_MAX, PORT_QUESTIONS_BURST, PORT_QUESTIONS_PER_SECOND,
    cache::{Cache, Key, Said},
    message::{self, Asked, Read},
    pending::{Joined, Pending, Ticket},
    upstream::Upstream,
    zone::Zone,
};
use crate::{
    rate::Buckets,
    service::{self, Host, Leash, Tasks, counts, lock},
};
use hickory_proto::op::{Message, ResponseCode};
use std::{
    io,
    net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV4},
    sync::{Arc, Mutex},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream, UdpSocket},
    sync::oneshot,
    time::{Instant, timeout},
};
use tokio_util::task::TaskTracker;
use vbm_core::NetworkId;

/// What a server needs from outside.
pub(crate) struct Context {
    pub(crate) network: NetworkId,
    pub(crate) tracker: TaskTracker,
    pub(crate) upstream: Upstream,
}

/// The sockets, opened in the network's namespace.
pub(crate) struct Sockets {
    pub(crate) udp: std::net::UdpSocket,
    pub(crate) tcp: std::net::TcpListener,
}

/// A running server. Dropping it stops it.
pub(crate) struct Server {
    engine: Arc<Engine>,
    leash: Leash,
}

impl Server {
    /// Starts to serve.
    pub(crate) fn start(sockets: Sockets, zone: Zone, context: Context) -> io::Result<Self> {
        let udp = UdpSocket::from_std(sockets.udp)?;
        let tcp = TcpListener::from_std(sockets.tcp)?;
        let engine = Arc::new(Engine {
            network: context.network,
            zone: Mutex::new(Arc::new(zone)),
            state: Mutex::new(State {
                buckets: Buckets::new(PORT_QUESTIONS_PER_SECOND, PORT_QUESTIONS_BURST),
                cache: Cache::default(),
                pending: Pending::default(),
            }),
            counts: Counts::default(),
            upstream: context.upstream,
            udp,
            began: Instant::now(),
            tasks: Tasks::default(),
        });
        let stop = engine.tasks.stop.clone();
        let leash = Leash::on(&context.tracker, stop, Arc::clone(&engine).run(tcp));
        Ok(Self { engine, leash })
    }

    /// Whether all of it runs.
    pub(crate) fn is_running(&self) -> bool {
        self.leash.holds()
    }

    /// Stops, and waits until its sockets are closed.
    pub(crate) async fn end(self) {
        self.leash.end().await;
    }

    /// From the next question on, this holds. Returns whether it differs from before.
    pub(crate) fn reconfigure(&self, zone: Zone) -> bool {
        let mut held = lock(&self.engine.zone);
        if **held == zone {
            return false;
        }
        let mut state = lock(&self.engine.state);
        if (held.forwards, &held.upstreams) != (zone.forwards, &zone.upstreams) {
            state.cache.clear();
        }
        state.buckets.retain(|who| zone.is_asker(*who));
        *held = Arc::new(zone);
        true
    }

    /// What it has done.
    pub(crate) fn seen(&self) -> DnsSeen {
        self.engine.counts.seen()
    }
}

counts!(
    DnsSeen: questions, local, cached, forwarded, failed, refused, malformed, limited, strangers, unsent
);

/// A question, and whom it was put to: an answer of servers that are no longer asked serves only those who waited for it.
type Asking = (Key, Vec<IpAddr>);

/// Where an answer goes.
enum Way {
    Udp(SocketAddr),
    Tcp(oneshot::Sender<Vec<u8>>),
}

struct Waiter {
    asked: Box<Asked>,
    from: Ipv4Addr,
    way: Way,
}

/// What changes with each question. Held for moments, never across an await.
struct State {
    buckets: Buckets,
    cache: Cache,
    pending: Pending<Asking, Waiter>,
}

struct Engine {
    network: NetworkId,
    zone: Mutex<Arc<Zone>>,
    state: Mutex<State>,
    counts: Counts,
    upstream: Upstream,
    udp: UdpSocket,
    began: Instant,
    /// All but the one that waits for them.
    tasks: Tasks,
}

impl Host for Engine {
    const CONNECTIONS_MAX: (usize, usize) = (CONNECTIONS_MAX, PORT_CONNECTIONS_MAX);

    fn tasks(&self) -> &Tasks {
        &self.tasks
    }

    fn admits(&self, who: Ipv4Addr) -> bool {
        let may = lock(&self.zone).is_asker(who);
        if !may {
            self.counts.strangers.add();
        }
        may
    }

    fn crowded(&self) {
        self.counts.limited.add();
    }

    async fn converse(self: Arc<Self>, stream: TcpStream, from: SocketAddrV4) {
        // How a peer ends it is its own business.
        drop(self.questions(stream, from).await);
    }
}

impl Engine {
    /// Serves until it is stopped or a socket fails, and ends when all its tasks have.
    async fn run(self: Arc<Self>, tcp: TcpListener) {
        let engine = Arc::clone(&self);
        self.tasks.tracker.spawn(async move {
            if !service::receive(&engine, tcp).await {
                tracing::error!(network = %engine.network, "DNS stops: its socket for TCP failed");
                engine.tasks.stop.cancel();
            }
        });
        Arc::clone(&self).datagrams().await;
        self.tasks.end().await;
    }

    fn now_ms(&self) -> u64 {
        u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    async fn datagrams(self: Arc<Self>) {
        let mut buffer = vec![0; DATAGRAM_MAX_BYTES];
        loop {
            let read = tokio::select! {
                // Cancel safe: a datagram not yet read stays in the socket.
                () = self.tasks.stop.cancelled() => return,
                read = self.udp.recv_from(&mut buffer) => read,
            };
            match read {
                Ok((length, SocketAddr::V4(from))) => {
                    let bytes = buffer.get(..length).unwrap_or_default();
                    self.handle(bytes, *from.ip(), Way::Udp(from.into()));
                }
                Ok(_) => self.counts.strangers.add(),
                // What an earlier answer met (ICMP), not a fault of the socket.
                Err(error) if is_passing(&error) => {}
                Err(error) => {
                    tracing::error!(network = %self.network, %error, "DNS by UDP stops: its socket failed");
                    return;
                }
            }
        }
    }

    /// Questions on one connection, one after the other (RFC 7766).
    async fn questions(self: &Arc<Self>, mut stream: TcpStream, from: SocketAddrV4) -> io::Result<()> {
        for _ in 0..CONNECTION_MAX_QUESTIONS {
            let read = async {
                let length = stream.read_u16().await?;
                if usize::from(length) > DATAGRAM_MAX_BYTES {
                    return Err(io::Error::other("a question that is too long"));
                }
                let mut bytes = vec![0; length.into()];
                stream.read_exact(&mut bytes).await?;
                Ok(bytes)
            };
            let question = timeout(CONNECTION_IDLE_MAX, read).await??;
            let (send, answer) = oneshot::channel();
            self.handle(&question, *from.ip(), Way::Tcp(send));
            // No answer: what was sent deserves none, and the connection ends.
            let answer = answer.await.map_err(io::Error::other)?;
            let length = u16::try_from(answer.len()).map_err(io::Error::other)?;
            let mut framed = length.to_be_bytes().to_vec();
            framed.extend(answer);
            timeout(CONNECTION_IDLE_MAX, stream.write_all(&framed)).await??;
        }
        Ok(())
    }

    /// One message. Nothing in it can make this fail.
    fn handle(self: &Arc<Self>, bytes: &[u8], from: Ipv4Addr, way: Way) {
        let zone = Arc::clone(&lock(&self.zone));
        if !zone.is_asker(from) {
            return self.counts.strangers.add();
        }
        if !lock(&self.state).buckets.take(from, self.now_ms()) {
            return self.counts.limited.add();
        }
        let asked = match message::read(bytes) {
            Read::Asked(asked) => asked,
            Read::Refused(answer, why) => {
                self.counts.malformed.add();
                tracing::debug!(network = %self.network, %from, why, "a DNS message is refused");
                return self.send(answer, way);
            }
            Read::Dropped(why) => {
                self.counts.malformed.add();
                tracing::debug!(network = %self.network, %from, why, "a DNS message is dropped");
                return;
            }
        };
        self.counts.questions.add();
        if let Some(answer) = message::local(&zone, &asked) {
            self.counts.local.add();
            return self.reply(&answer, &asked, way);
        }
        if !zone.forwards || !asked.recursion {
            self.counts.refused.add();
            return self.reply(&message::answer(&asked, ResponseCode::Refused), &asked, way);
        }
        self.look_outside(&zone, Waiter { asked, from, way });
    }

    /// From the cache, from who is being asked already, or by asking.
    fn look_outside(self: &Arc<Self>, zone: &Arc<Zone>, waiter: Waiter) {
        let key = Key::from(&*waiter.asked);
        let mut state = lock(&self.state);
        if let Some((said, age)) = state.cache.get(&key, self.now_ms()) {
            drop(state);
            self.counts.cached.add();
            let answer = passed_on(&waiter.asked, &said, age, most(&waiter.asked, &waiter.way));
            return self.reply(&answer, &waiter.asked, waiter.way);
        }
        let key: Asking = (key, zone.upstreams.clone());
        let (asked, from) = (waiter.asked.clone(), waiter.from);
        let mut unheard = Vec::new();
        let joined = state.pending.join(key.clone(), from, waiter, &mut unheard);
        drop(state);
        match joined {
            Joined::Waits => {}
            Joined::Begins(ticket) => {
                self.counts.forwarded.add();
                self.begin(key, ticket, asked, Arc::clone(zone));
            }
            Joined::Full(waiter) => unheard.push(waiter),
        }
        for Waiter { asked, way, .. } in unheard {
            self.counts.limited.add();
            self.reply(&message::answer(&asked, ResponseCode::ServFail), &asked, way);
        }
    }

    fn reply(&self, answer: &Message, asked: &Asked, way: Way) {
        match message::write(answer, most(asked, &way)) {
            Some(bytes) => self.send(bytes, way),
            None => self.counts.unsent.add(),
        }
    }

    fn send(&self, bytes: Vec<u8>, way: Way) {
        match way {
            // A full queue loses the answer; the client asks again.
            Way::Udp(to) => {
                if self.udp.try_send_to(&bytes, to).is_err() {
                    self.counts.unsent.add();
                }
            }
            // Who hung up does not hear it.
            Way::Tcp(to) => drop(to.send(bytes)),
        }
    }
}

impl Engine {
    /// Asks others in a task of its own, which ends with the server.
    fn begin(self: &Arc<Self>, key: Asking, ticket: Ticket, asked: Box<Asked>, zone: Arc<Zone>) {
        let engine = Arc::clone(self);
        self.tasks.tracker.spawn(async move {
            let said = tokio::select! {
                () = engine.tasks.stop.cancelled() => return,
                // Who waited has been answered.
                () = ticket.gone.cancelled() => return,
                said = engine.upstream.ask(&asked, &zone.upstreams) => said,
            };
            engine.finish(key, ticket.number, said);
        });
    }

    fn finish(&self, key: Asking, number: u64, said: Option<Said>) {
        let said = said.map(Arc::new);
        let waiters = {
            // In this order, as when the zone changes: until both are let go, it does not.
            let zone = lock(&self.zone);
            let mut state = lock(&self.state);
            let waiters = state.pending.finish(&key, number);
            let (key, upstreams) = key;
            if let Some(said) = &said
                && zone.forwards
                && zone.upstreams == upstreams
            {
                state.cache.put(key, Arc::clone(said), self.now_ms());
            }
            waiters
        };
        if said.is_none() {
            self.counts.failed.add();
        }
        for Waiter { asked, way, .. } in waiters {
            let answer = match &said {
                Some(said) => passed_on(&asked, said, 0, most(&asked, &way)),
                None => message::answer(&asked, ResponseCode::ServFail),
            };
            self.reply(&answer, &asked, way);
        }
    }
}

/// The most bytes of an answer that goes this way.
fn most(asked: &Asked, way: &Way) -> u16 {
    match way {
        Way::Udp(_) => asked.udp_max,
        Way::Tcp(_) => u16::MAX,
    }
}

/// The fewest bytes of a record: the root's name, type, class, time and the length of nothing.
const RECORD_MIN_BYTES: usize = 11;

/// What another server said, as an answer to this question, so many seconds later. Of more records than fit into `max_bytes` by any
/// means the rest is not even copied: it is one too many still, so it is cut and says so.
fn passed_on(asked: &Asked, said: &Said, age_seconds: u32, max_bytes: u16) -> Message {
    let mut answer = message::answer(asked, said.code);
    answer.metadata.recursion_available = true;
    answer.metadata.authentic_data = said.authentic && asked.wants_dnssec;
    let aged = |record: &hickory_proto::rr::Record| {
        let mut record = record.clone();
        record.decrement_ttl(age_seconds);
        record
    };
    let fit = usize::from(max_bytes) / RECORD_MIN_BYTES + 1;
    answer.answers = said.answers.iter().take(fit).map(aged).collect();
    let left = fit - answer.answers.len();
    answer.authorities = said.authorities.iter().take(left).map(aged).collect();
    answer
}

fn is_passing(error: &io::Error) -> bool {
    use nix::libc::{ECONNREFUSED, EHOSTUNREACH, EMSGSIZE, ENETDOWN, ENETUNREACH, ENOBUFS, EPERM};
    let passing = [
        ECONNREFUSED,
        EHOSTUNREACH,
        EMSGSIZE,
        ENETDOWN,
        ENETUNREACH,
        ENOBUFS,
        EPERM,
    ];
    error.raw_os_error().is_some_and(|code| passing.contains(&code))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{DesiredNetwork, Validated, host::netns::NetNs, plan::fixture::lab};
    use hickory_proto::{
        op::{MessageType, OpCode, Query},
        rr::{Name, RData, Record, RecordType, rdata::A},
    };

    fn zone(upstream: &str) -> Zone {
        let mut net = lab(vbm_core::NetworkMode::Nat).into_inner();
        net.spec.dns_upstreams = vec![upstream.parse().unwrap()];
        Zone::from(&Validated::<DesiredNetwork>::new(net).unwrap())
    }

    fn asked() -> Asked {
        let mut question = Message::new(7, MessageType::Query, OpCode::Query);
        question.add_query(Query::query("www.example.org.".parse().unwrap(), RecordType::A));
        match message::read(&question.to_vec().unwrap()) {
            Read::Asked(asked) => *asked,
            other => panic!("{other:?}"),
        }
    }

    fn said(records: usize) -> Said {
        let name: Name = "www.example.org.".parse().unwrap();
        let record = Record::from_rdata(name, 60, RData::A(A([192, 0, 2, 1].into())));
        let mut answer = message::answer(&asked(), ResponseCode::NoError);
        answer.answers = vec![record; records];
        Said::new(answer, 100)
    }

    #[tokio::test]
    async fn what_servers_say_that_are_no_longer_asked_is_not_kept() {
        let sockets = Sockets {
            udp: std::net::UdpSocket::bind("127.0.0.1:0").unwrap(),
            tcp: std::net::TcpListener::bind("127.0.0.1:0").unwrap(),
        };
        sockets.udp.set_nonblocking(true).unwrap();
        sockets.tcp.set_nonblocking(true).unwrap();
        let (old, new) = (zone("192.0.2.53"), zone("192.0.2.54"));
        let context = Context {
            network: NetworkId::from_uuid(uuid::Uuid::from_u128(1)),
            tracker: TaskTracker::new(),
            upstream: Upstream::new(NetNs::current(), "/nowhere".into()),
        };
        let server = Server::start(sockets, old.clone(), context).unwrap();
        let finish = |zone: &Zone| {
            let key = (Key::from(&asked()), zone.upstreams.clone());
            server.engine.finish(key, 0, Some(said(1)));
            lock(&server.engine.state)
                .cache
                .get(&Key::from(&asked()), 0)
                .is_some()
        };
        assert!(finish(&old), "while they are asked");
        assert!(server.reconfigure(new.clone()));
        assert!(!finish(&old), "an answer that was on its way");
        assert!(finish(&new));
        server.end().await;
    }

    #[test]
    fn of_an_answer_that_cannot_fit_only_so_much_is_copied_that_it_is_cut() {
        let passed = passed_on(&asked(), &said(5_000), 0, 512);
        assert!(passed.answers.len() < 50);
        let bytes = message::write(&passed, 512).unwrap();
        assert!(bytes.len() <= 512 && bytes[2] & 2 != 0, "it says that it is cut");
        let whole = passed_on(&asked(), &said(20), 0, 512);
        let bytes = message::write(&whole, 512).unwrap();
        assert_eq!(Message::from_vec(&bytes).unwrap().answers.len(), 20);
    }
}
