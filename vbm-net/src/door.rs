//! How many connections a server of a network has, in all and of one port: who comes in gets a pass, and gives it back by dropping it.

use std::{
    collections::HashMap,
    net::{Ipv4Addr, SocketAddr, SocketAddrV4},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};
use tokio::net::{TcpListener, TcpStream};

/// How long to wait after an accept that failed for want of descriptors or memory.
const PAUSE: Duration = Duration::from_millis(100);
/// How many failures in a row mean that the socket is broken.
const FAILURES_MAX: usize = 100;

/// Counts who is in.
#[derive(Clone, Debug)]
pub(crate) struct Door {
    inside: Arc<Mutex<Inside>>,
    max: usize,
    max_each: usize,
}

#[derive(Debug, Default)]
struct Inside {
    all: usize,
    each: HashMap<Ipv4Addr, usize>,
}

/// The right to be in, until it is dropped.
#[derive(Debug)]
pub(crate) struct Pass {
    inside: Arc<Mutex<Inside>>,
    who: Ipv4Addr,
}

impl Door {
    pub(crate) fn new(max: usize, max_each: usize) -> Self {
        Self {
            inside: Arc::default(),
            max,
            max_each,
        }
    }

    /// Lets one in, if there is room.
    pub(crate) fn enter(&self, who: Ipv4Addr) -> Option<Pass> {
        let mut inside = self.inside.lock().unwrap_or_else(PoisonError::into_inner);
        let mine = inside.each.get(&who).copied().unwrap_or_default();
        if inside.all >= self.max || mine >= self.max_each {
            return None;
        }
        inside.all += 1;
        inside.each.insert(who, mine + 1);
        let inside = Arc::clone(&self.inside);
        Some(Pass { inside, who })
    }

    /// The next connection by IPv4. `None`: the socket is broken.
    ///
    /// # Cancel safety
    /// A connection not yet accepted stays in the queue.
    pub(crate) async fn accept(&self, listener: &TcpListener) -> Option<(TcpStream, SocketAddrV4)> {
        for _ in 0..FAILURES_MAX {
            match listener.accept().await {
                Ok((stream, SocketAddr::V4(from))) => return Some((stream, from)),
                Ok(_) => {}
                // A peer that left, or no descriptors for a moment.
                Err(error) => {
                    tracing::debug!(%error, "a connection was not accepted");
                    tokio::time::sleep(PAUSE).await;
                }
            }
        }
        None
    }
}

impl Drop for Pass {
    fn drop(&mut self) {
        let mut inside = self.inside.lock().unwrap_or_else(PoisonError::into_inner);
        inside.all -= 1;
        if let Some(mine) = inside.each.get_mut(&self.who) {
            *mine -= 1;
            if *mine == 0 {
                inside.each.remove(&self.who);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_takes_anothers_room_and_who_leaves_makes_room() {
        let (door, a, b) = (
            Door::new(3, 2),
            Ipv4Addr::new(10, 0, 0, 1),
            Ipv4Addr::new(10, 0, 0, 2),
        );
        let first = door.enter(a).unwrap();
        let _second = door.enter(a).unwrap();
        assert!(door.enter(a).is_none(), "its own limit");
        let third = door.enter(b).unwrap();
        assert!(door.enter(b).is_none(), "the limit of all");
        drop((first, third));
        assert!(door.enter(a).is_some());
        assert_eq!(door.inside.lock().unwrap().each.len(), 1);
    }
}
