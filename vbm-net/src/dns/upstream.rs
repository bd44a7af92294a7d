//! Asking other servers. The sockets are made in the host's namespace, by a thread that goes there; a few are kept ready, so that not
//! each question costs a thread. Each is used for one question only: its port is the kernel's choice at that moment.

use super::{
    DATAGRAM_MAX_BYTES, UPSTREAM_MAX, UPSTREAM_TCP_TRY, UPSTREAM_TRY,
    cache::Said,
    message::{Asked, forwarded, heard},
};
use crate::host::netns::NetNs;
use hickory_proto::op::{Message, ResponseCode};
use socket2::{Domain, Socket, Type};
use std::{
    io,
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, SystemTime},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpSocket, UdpSocket},
    time::{Instant, timeout},
};

/// How many sockets one visit to the host's namespace makes.
const READY_SOCKETS: usize = 16;
/// How often each server is tried.
const ROUNDS: usize = 2;
/// How often the host's list of servers is looked at, at most.
const RELOAD_EVERY: Duration = Duration::from_secs(2);
/// The most servers that the host's list gives (resolv.conf(5): `MAXNS` is 3).
const HOST_SERVERS_MAX: usize = 3;
/// The most bytes of that list that are read.
const LIST_MAX_BYTES: u64 = 64 * 1024;
/// How many wrong datagrams are passed over before a server counts as silent.
const WRONG_MAX: usize = 16;

/// The way to other servers, for one network.
#[derive(Debug)]
pub(crate) struct Upstream {
    host: NetNs,
    list: PathBuf,
    ready: Mutex<Vec<Socket>>,
    known: tokio::sync::Mutex<Known>,
    /// The server that answered last, by its place.
    good: AtomicUsize,
}

#[derive(Debug, Default)]
struct Known {
    looked: Option<Instant>,
    changed: Option<SystemTime>,
    servers: Vec<IpAddr>,
}

impl Upstream {
    /// `list` is the host's `resolv.conf`.
    pub(crate) fn new(host: NetNs, list: PathBuf) -> Self {
        Self {
            host,
            list,
            ready: Mutex::default(),
            known: tokio::sync::Mutex::default(),
            good: AtomicUsize::new(0),
        }
    }

    /// Asks these servers, or the host's where there are none, until one answers. `None`: none did in time.
    ///
    /// # Cancel safety
    /// Dropping the future closes its socket.
    pub(crate) async fn ask(&self, asked: &Asked, servers: &[IpAddr]) -> Option<Said> {
        let host;
        let servers = if servers.is_empty() {
            host = self.host_servers().await;
            &host[..]
        } else {
            servers
        };
        let mut unwilling = None;
        let all = self.ask_in_turn(asked, servers, &mut unwilling);
        match timeout(UPSTREAM_MAX, all).await {
            Ok(Some(said)) => Some(said),
            _ => unwilling,
        }
    }

    async fn ask_in_turn(
        &self,
        asked: &Asked,
        servers: &[IpAddr],
        unwilling: &mut Option<Said>,
    ) -> Option<Said> {
        let first = self.good.load(Ordering::Relaxed);
        for turn in 0..servers.len() * ROUNDS {
            let place = (first + turn) % servers.len();
            let server = SocketAddr::new(servers[place], super::PORT);
            match self.ask_one(asked, server).await {
                Ok(said) if matches!(said.code, ResponseCode::NoError | ResponseCode::NXDomain) => {
                    self.good.store(place, Ordering::Relaxed);
                    return Some(said);
                }
                // It may be broken, or not know this part of the tree: another may.
                Ok(said) => *unwilling = Some(said),
                Err(error) => tracing::debug!(%server, %error, "a DNS server does not answer"),
            }
        }
        None
    }

    async fn ask_one(&self, asked: &Asked, server: SocketAddr) -> io::Result<Said> {
        let id = random_id()?;
        let question = forwarded(asked, id).ok_or(io::ErrorKind::InvalidInput)?;
        let by_udp = self.by_udp(asked, server, id, &question);
        let (message, bytes) = timeout(UPSTREAM_TRY, by_udp).await??;
        if !message.metadata.truncation {
            return Ok(Said::new(message, bytes));
        }
        let by_tcp = self.by_tcp(asked, server, id, &question);
        let (message, bytes) = timeout(UPSTREAM_TCP_TRY, by_tcp).await??;
        Ok(Said::new(message, bytes))
    }

    async fn by_udp(
        &self,
        asked: &Asked,
        server: SocketAddr,
        id: u16,
        question: &[u8],
    ) -> io::Result<(Message, usize)> {
        let socket = UdpSocket::from_std(self.datagram(server).await?.into())?;
        // Connected: the kernel hands over only what comes from that server.
        socket.connect(server).await?;
        socket.send(question).await?;
        let mut buffer = vec![0; DATAGRAM_MAX_BYTES];
        for _ in 0..WRONG_MAX {
            let length = socket.recv(&mut buffer).await?;
            if let Some(message) = heard(&buffer[..length], asked, id) {
                return Ok((message, length));
            }
        }
        Err(io::Error::other("it sent answers to other questions"))
    }

    async fn by_tcp(
        &self,
        asked: &Asked,
        server: SocketAddr,
        id: u16,
        question: &[u8],
    ) -> io::Result<(Message, usize)> {
        let socket = self.made(move || stream(server)).await?;
        let mut stream = TcpSocket::from_std_stream(socket.into()).connect(server).await?;
        let length = u16::try_from(question.len()).map_err(io::Error::other)?;
        let mut framed = length.to_be_bytes().to_vec();
        framed.extend_from_slice(question);
        stream.write_all(&framed).await?;
        let length = stream.read_u16().await?;
        let mut buffer = vec![0; length.into()];
        stream.read_exact(&mut buffer).await?;
        let message =
            heard(&buffer, asked, id).ok_or_else(|| io::Error::other("it answered another question"))?;
        Ok((message, buffer.len()))
    }

    /// A datagram socket of the host's namespace, bound to nothing yet.
    async fn datagram(&self, server: SocketAddr) -> io::Result<Socket> {
        if server.is_ipv6() {
            return self.made(|| datagram(Domain::IPV6)).await;
        }
        let ready = self.ready.lock().unwrap_or_else(PoisonError::into_inner).pop();
        if let Some(socket) = ready {
            return Ok(socket);
        }
        let make = || {
            (0..READY_SOCKETS)
                .map(|_| datagram(Domain::IPV4))
                .collect::<io::Result<Vec<_>>>()
        };
        let mut made = self.made(make).await?;
        let one = made.pop().ok_or(io::ErrorKind::NotFound)?;
        let mut ready = self.ready.lock().unwrap_or_else(PoisonError::into_inner);
        if ready.is_empty() {
            *ready = made;
        }
        Ok(one)
    }

    async fn made<T: Send + 'static>(
        &self,
        f: impl FnOnce() -> io::Result<T> + Send + 'static,
    ) -> io::Result<T> {
        self.host.run(f).await.map_err(io::Error::other)?
    }

    /// The servers of the host's list, read again when it changed.
    async fn host_servers(&self) -> Vec<IpAddr> {
        let mut known = self.known.lock().await;
        if known.looked.is_none_or(|at| at.elapsed() >= RELOAD_EVERY) {
            known.looked = Some(Instant::now());
            let changed = tokio::fs::metadata(&self.list)
                .await
                .and_then(|m| m.modified())
                .ok();
            if changed.is_none() || changed != known.changed {
                known.changed = changed;
                known.servers = parse_list(&read_list(&self.list).await.unwrap_or_default());
            }
        }
        known.servers.clone()
    }
}

async fn read_list(path: &Path) -> io::Result<String> {
    let mut bytes = Vec::new();
    let file = tokio::fs::File::open(path).await?;
    file.take(LIST_MAX_BYTES).read_to_end(&mut bytes).await?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// The servers of a `resolv.conf`; the host itself where it names none, as resolv.conf(5) says.
pub(crate) fn parse_list(text: &str) -> Vec<IpAddr> {
    let lines = text
        .lines()
        .filter_map(|line| line.trim().strip_prefix("nameserver"));
    // An address with a scope (`fe80::1%eth0`) is passed over: it means nothing without its interface.
    let servers = lines.filter_map(|rest| rest.split_whitespace().next()?.parse().ok());
    let servers: Vec<IpAddr> = servers.take(HOST_SERVERS_MAX).collect();
    if servers.is_empty() {
        return vec![IpAddr::from([127, 0, 0, 1])];
    }
    servers
}

fn datagram(domain: Domain) -> io::Result<Socket> {
    Socket::new(domain, Type::DGRAM.nonblocking().cloexec(), None)
}

fn stream(server: SocketAddr) -> io::Result<Socket> {
    Socket::new(
        Domain::for_address(server),
        Type::STREAM.nonblocking().cloexec(),
        None,
    )
}

fn random_id() -> io::Result<u16> {
    let mut bytes = [0; 2];
    getrandom::fill(&mut bytes).map_err(io::Error::other)?;
    Ok(u16::from_ne_bytes(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hosts_list_is_read_as_the_c_library_reads_it() {
        let text = "# made by hand\nsearch example.org\nnameserver 127.0.0.53\n nameserver\t2001:db8::53 # second\nnameserver fe80::1%eth0\nnameserver x\noptions edns0\n";
        assert_eq!(
            parse_list(text),
            [
                "127.0.0.53".parse::<IpAddr>().unwrap(),
                "2001:db8::53".parse().unwrap()
            ]
        );
        assert_eq!(
            parse_list("nameserver 192.0.2.1\n".repeat(9).as_str()).len(),
            HOST_SERVERS_MAX
        );
        for empty in ["", "\u{0}\u{0}", "nameserver\n"] {
            assert_eq!(parse_list(empty), [IpAddr::from([127, 0, 0, 1])]);
        }
    }
}
