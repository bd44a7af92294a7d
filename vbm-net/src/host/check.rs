//! Tries paths with real packets, from inside the namespaces. [`crate::check`] says which.

use super::netns::NetNs;
use crate::{
    NetError,
    check::{PathSeen, Way, echo_reply, echo_request},
};
use futures::future::join_all;
use socket2::{Domain, Protocol, Socket, Type};
use std::{
    io::{self, Read},
    net::{Ipv4Addr, SocketAddrV4},
    time::Duration,
};
use tokio::{net::TcpSocket, time::Instant};

/// How long an answer is waited for: all of it is on this host, or next to it.
const ANSWER_MAX: Duration = Duration::from_secs(1);
/// The shortest wait for one more packet.
const WAIT_MIN: Duration = Duration::from_millis(1);
/// More than an echo reply with its headers.
const PACKET_MAX_BYTES: usize = 256;

/// Tries these, which all begin in one namespace.
pub(super) async fn from(ns: &NetNs, paths: &mut [PathSeen]) -> Result<(), NetError> {
    let mut pinged = Vec::new();
    let mut connected = Vec::new();
    for (index, path) in paths.iter().enumerate() {
        match path.way {
            Way::Ping => pinged.push((index, path.address)),
            Way::Tcp(port) => connected.push((index, SocketAddrV4::new(path.address, port))),
        }
    }
    let failed = |e| NetError::kernel("trying a path", e);
    let addresses: Vec<Ipv4Addr> = pinged.iter().map(|(_, a)| *a).collect();
    let count = connected.len();
    let sockets = move || -> io::Result<Vec<TcpSocket>> { (0..count).map(|_| TcpSocket::new_v4()).collect() };
    let sockets = ns.run(sockets).await?.map_err(failed)?;
    let tries = sockets
        .into_iter()
        .zip(&connected)
        .map(|(socket, (_, to))| connects(socket, *to));
    let (answered, reached) = tokio::join!(ns.run(move || ping(&addresses)), join_all(tries));
    let answered = answered?.map_err(failed)?;
    let indices = pinged
        .iter()
        .map(|(i, _)| i)
        .chain(connected.iter().map(|(i, _)| i));
    for (index, reached) in indices.zip(answered.into_iter().chain(reached)) {
        if let Some(path) = paths.get_mut(*index) {
            path.reached = reached;
        }
    }
    Ok(())
}

/// A refusal is an answer: somebody is there.
async fn connects(socket: TcpSocket, to: SocketAddrV4) -> bool {
    match tokio::time::timeout(ANSWER_MAX, socket.connect(to.into())).await {
        Ok(Ok(_)) => true,
        Ok(Err(error)) => error.kind() == io::ErrorKind::ConnectionRefused,
        Err(_) => false,
    }
}

/// Which of these answer, in their order. In the namespace of the calling thread, which it blocks.
fn ping(addresses: &[Ipv4Addr]) -> io::Result<Vec<bool>> {
    let mut answered = vec![false; addresses.len()];
    if addresses.is_empty() {
        return Ok(answered);
    }
    let mut socket = Socket::new(Domain::IPV4, Type::RAW.cloexec(), Some(Protocol::ICMPV4))?;
    let id = u16::try_from(std::process::id() & 0xffff).unwrap_or_default();
    for (address, sequence) in addresses.iter().zip(0u16..) {
        // What cannot even be sent, for want of a way, is not reached.
        drop(socket.send_to(
            &echo_request(id, sequence),
            &SocketAddrV4::new(*address, 0).into(),
        ));
    }
    let until = Instant::now() + ANSWER_MAX;
    let mut packet = [0; PACKET_MAX_BYTES];
    while answered.contains(&false) && Instant::now() < until {
        let left = until.saturating_duration_since(Instant::now());
        socket.set_read_timeout(Some(left.max(WAIT_MIN)))?;
        let Ok(length) = socket.read(&mut packet) else {
            break;
        };
        if let Some((of, sequence)) = packet.get(..length).and_then(echo_reply)
            && of == id
            && let Some(one) = answered.get_mut(usize::from(sequence))
        {
            *one = true;
        }
    }
    Ok(answered)
}
