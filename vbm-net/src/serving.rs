//! What all servers of a network have in common: a task that ends when it is told to, a configuration that it follows, counts.
//!
//! ```text
//!   Serving     the task of a server and the word that ends it           DNS, metadata
//!   Handle      that, with a configuration to follow and leases to see   DHCPv4, DHCPv6
//!   welcome     connections, let in by a door, each a task               DNS by TCP, metadata
//! ```

use crate::door::Door;
use std::{
    io,
    net::{Ipv4Addr, SocketAddrV4},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::watch,
    task::JoinHandle,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

/// One who panicked with it left a value that is whole: nothing here is changed in two steps.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

pub(crate) fn count(what: &AtomicU64) {
    what.fetch_add(1, Ordering::Relaxed);
}

/// A task that serves. Dropping it ends it.
#[derive(Debug)]
pub(crate) struct Serving {
    stop: CancellationToken,
    task: JoinHandle<()>,
}

impl Drop for Serving {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

impl Serving {
    /// Starts a task that ends when `stop` is cancelled.
    pub(crate) fn start(
        tracker: &TaskTracker,
        stop: CancellationToken,
        task: impl Future<Output = ()> + Send + 'static,
    ) -> Self {
        let task = tracker.spawn(task);
        Self { stop, task }
    }

    pub(crate) fn is_running(&self) -> bool {
        !self.task.is_finished()
    }

    /// Ends it. When this returns its sockets are closed.
    pub(crate) async fn end(mut self) {
        self.stop.cancel();
        // One that panicked has ended too.
        drop((&mut self.task).await);
    }
}

/// What its socket is bound to. A namespace that was made anew is another, whatever its name and the number of its interface: the
/// socket holds on to the old one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    /// `None`: that of who started it.
    pub(crate) namespace: Option<(u64, u64)>,
    pub(crate) interface: u32,
}

/// A running server that follows a configuration (`C`), shows what guests hold (`L`) and counts (`N`).
pub(crate) struct Handle<C, L, N> {
    place: Place,
    config: watch::Sender<Arc<C>>,
    leases: watch::Receiver<L>,
    counters: Arc<N>,
    serving: Serving,
}

/// The task's ends of a [`Handle`].
pub(crate) struct Ends<C, L, N> {
    pub(crate) latest: watch::Receiver<Arc<C>>,
    pub(crate) leases: watch::Sender<L>,
    pub(crate) counters: Arc<N>,
    pub(crate) stop: CancellationToken,
}

impl<C: PartialEq, L: Clone, N: Default> Handle<C, L, N> {
    /// Starts the task that `task` makes of its ends.
    pub(crate) fn start<F: Future<Output = ()> + Send + 'static>(
        place: Place,
        config: Arc<C>,
        leases: L,
        tracker: &TaskTracker,
        task: impl FnOnce(Ends<C, L, N>) -> F,
    ) -> Self {
        let (config, latest) = watch::channel(config);
        let (leases_out, leases) = watch::channel(leases);
        let (counters, stop) = (Arc::<N>::default(), CancellationToken::new());
        let task = task(Ends {
            latest,
            leases: leases_out,
            counters: Arc::clone(&counters),
            stop: stop.clone(),
        });
        Self {
            place,
            config,
            leases,
            counters,
            serving: Serving::start(tracker, stop, task),
        }
    }

    /// Whether it runs, at this place.
    pub(crate) fn serves(&self, place: Place) -> bool {
        self.place == place && self.serving.is_running()
    }

    /// From the next message on, this holds. Returns whether it differs from before.
    pub(crate) fn reconfigure(&self, config: C) -> bool {
        self.config.send_if_modified(|old| {
            let differs = **old != config;
            if differs {
                *old = Arc::new(config);
            }
            differs
        })
    }

    /// What guests were told.
    pub(crate) fn leases(&self) -> L {
        self.leases.borrow().clone()
    }

    /// How often what happened.
    pub(crate) fn counters(&self) -> &N {
        &self.counters
    }

    /// Ends it. When this returns its socket is closed.
    pub(crate) async fn stop(self) {
        self.serving.end().await;
    }
}

/// Why one was not let in, or had to leave.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Turned {
    /// It is no port of this host.
    Stranger,
    /// It has as many connections as it may, or had to make room.
    Crowded,
}

/// A server that is spoken to by connections.
pub(crate) trait Converse: Send + Sync + 'static {
    /// Whether one may ask.
    fn is_asker(&self, who: Ipv4Addr) -> bool;
    /// Counts one who was not served.
    fn turned(&self, why: Turned);
    /// Serves one connection to its end.
    fn converse(
        self: &Arc<Self>,
        stream: TcpStream,
        from: SocketAddrV4,
    ) -> impl Future<Output = io::Result<()>> + Send;
    /// How it ended.
    fn ended(&self, _result: io::Result<()>) {}
}

/// Lets in who may come, each served by a task of `tasks`, until `stop` is cancelled: true; false when the socket is broken.
pub(crate) async fn welcome<S: Converse>(
    server: &Arc<S>,
    door: Door,
    listener: TcpListener,
    tasks: &TaskTracker,
    stop: &CancellationToken,
) -> bool {
    loop {
        let accepted = tokio::select! {
            // Cancel safe: a connection not yet accepted stays in the queue.
            () = stop.cancelled() => return true,
            accepted = door.accept(&listener) => accepted,
        };
        let Some((stream, from)) = accepted else {
            return false;
        };
        if !server.is_asker(*from.ip()) {
            server.turned(Turned::Stranger);
            continue;
        }
        let Some(pass) = door.enter(*from.ip()) else {
            server.turned(Turned::Crowded);
            continue;
        };
        let (server, stop) = (Arc::clone(server), stop.clone());
        tasks.spawn(async move {
            tokio::select! {
                // The peer sees its connection end.
                () = stop.cancelled() => {}
                () = pass.yielded() => server.turned(Turned::Crowded),
                ended = server.converse(stream, from) => server.ended(ended),
            }
            drop(pass);
        });
    }
}
