//! How many connections a server of a network has, in all and of one port: who comes in gets a pass, and gives it back by dropping it.
//!
//! Where all places are taken, the oldest connection of who has the most makes room ([`who_yields`]): it is told so by its pass,
//! and its place is another's from then on.

use crate::share::who_yields;
use std::{
    collections::BTreeMap,
    net::{Ipv4Addr, SocketAddr, SocketAddrV4},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;

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
    next: u64,
    /// By the order in which they came.
    places: BTreeMap<u64, Place>,
}

#[derive(Debug)]
struct Place {
    who: Ipv4Addr,
    gone: CancellationToken,
}

/// The right to be in, until it is dropped or another has the place.
#[derive(Debug)]
pub(crate) struct Pass {
    inside: Arc<Mutex<Inside>>,
    number: u64,
    gone: CancellationToken,
}

impl Door {
    pub(crate) fn new(max: usize, max_each: usize) -> Self {
        Self {
            inside: Arc::default(),
            max,
            max_each,
        }
    }

    /// Lets one in, if there is room or somebody has to make it.
    pub(crate) fn enter(&self, who: Ipv4Addr) -> Option<Pass> {
        let mut inside = lock(&self.inside);
        let mine = inside.places.values().filter(|p| p.who == who).count();
        if mine >= self.max_each {
            return None;
        }
        if inside.places.len() >= self.max {
            inside.make_room(who)?;
        }
        let (number, gone) = (inside.next, CancellationToken::new());
        inside.next += 1;
        let place = Place {
            who,
            gone: gone.clone(),
        };
        inside.places.insert(number, place);
        let inside = Arc::clone(&self.inside);
        Some(Pass { inside, number, gone })
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

impl Inside {
    /// The oldest of who has the most goes.
    fn make_room(&mut self, me: Ipv4Addr) -> Option<()> {
        let yields = who_yields(self.places.values().map(|p| p.who), me)?;
        let oldest = self.places.iter().find(|(_, p)| p.who == yields);
        let number = oldest.map(|(number, _)| *number)?;
        let place = self.places.remove(&number)?;
        place.gone.cancel();
        Some(())
    }
}

impl Pass {
    /// Waits until the place is another's.
    ///
    /// # Cancel safety
    /// It changes nothing.
    pub(crate) async fn yielded(&self) {
        self.gone.cancelled().await;
    }
}

impl Drop for Pass {
    fn drop(&mut self) {
        // Nothing, where another has the place: numbers are not used again.
        lock(&self.inside).places.remove(&self.number);
    }
}

fn lock(inside: &Mutex<Inside>) -> MutexGuard<'_, Inside> {
    inside.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(n: u8) -> Ipv4Addr {
        [10, 0, 0, n].into()
    }

    #[test]
    fn nobody_takes_more_than_one_may_and_who_leaves_makes_room() {
        let door = Door::new(3, 2);
        let first = door.enter(ip(1)).unwrap();
        let _second = door.enter(ip(1)).unwrap();
        assert!(door.enter(ip(1)).is_none(), "its own limit");
        let third = door.enter(ip(2)).unwrap();
        assert!(door.enter(ip(2)).is_none(), "as many as the other then has");
        drop((first, third));
        assert!(door.enter(ip(1)).is_some());
        assert_eq!(lock(&door.inside).places.len(), 1);
    }

    #[test]
    fn a_few_who_take_all_places_do_not_keep_others_out() {
        let door = Door::new(256, 16);
        let greedy: Vec<Pass> = (0..16)
            .flat_map(|n| (0..16).map(move |_| n))
            .map(|n| door.enter(ip(n)).unwrap())
            .collect();
        let others: Vec<Pass> = (100..200).map(|n| door.enter(ip(n)).unwrap()).collect();
        assert_eq!(greedy.iter().filter(|p| p.gone.is_cancelled()).count(), 100);
        assert!(others.iter().all(|p| !p.gone.is_cancelled()));
        assert_eq!(lock(&door.inside).places.len(), 256, "never more than there are");
        drop(greedy);
        assert_eq!(
            lock(&door.inside).places.len(),
            100,
            "who lost a place gives none back"
        );
    }

    #[tokio::test]
    async fn the_one_who_must_go_is_told() {
        let door = Door::new(2, 2);
        let (old, _new) = (door.enter(ip(1)).unwrap(), door.enter(ip(1)).unwrap());
        let _other = door.enter(ip(2)).unwrap();
        old.yielded().await;
    }
}
