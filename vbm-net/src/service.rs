//! What every server of a network has in common: a task that ends with its handle, and what it counts. Those that accept connections
//! also share how they let them in.

use crate::door::Door;
use std::{
    net::{Ipv4Addr, SocketAddrV4},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};
use tokio::{
    net::{TcpListener, TcpStream},
    task::JoinHandle,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

/// The task of a server. Dropping this tells it to stop.
pub(crate) struct Leash {
    stop: CancellationToken,
    task: JoinHandle<()>,
}

impl Leash {
    /// Runs a task that ends when it is told to stop.
    pub(crate) fn on(
        tracker: &TaskTracker,
        stop: CancellationToken,
        task: impl Future<Output = ()> + Send + 'static,
    ) -> Self {
        let task = tracker.spawn(task);
        Self { stop, task }
    }

    /// Whether it has not ended.
    pub(crate) fn holds(&self) -> bool {
        !self.task.is_finished()
    }

    /// Stops it. When this returns all that it owned is dropped, its sockets too.
    pub(crate) async fn end(mut self) {
        self.stop.cancel();
        // One that panicked has ended too.
        drop((&mut self.task).await);
    }
}

impl Drop for Leash {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

/// The tasks of a server beside its first one, and the word at which all of them end.
#[derive(Debug, Default)]
pub(crate) struct Tasks {
    pub(crate) tracker: TaskTracker,
    pub(crate) stop: CancellationToken,
}

impl Tasks {
    /// Ends them all, and waits for that.
    pub(crate) async fn end(&self) {
        self.stop.cancel();
        self.tracker.close();
        self.tracker.wait().await;
    }
}

/// Who has connections.
pub(crate) trait Host: Send + Sync + 'static {
    /// The most connections, in all and of one port.
    const CONNECTIONS_MAX: (usize, usize);

    /// The tasks, of which each connection is one.
    fn tasks(&self) -> &Tasks;

    /// Whether this one may connect. Who may not is counted.
    fn admits(&self, who: Ipv4Addr) -> bool;

    /// A connection was refused or ended, since there are too many.
    fn crowded(&self);

    /// What is done about a connection. It is dropped when another gets its place, and when the server stops.
    fn converse(self: Arc<Self>, stream: TcpStream, from: SocketAddrV4) -> impl Future<Output = ()> + Send;
}

/// Lets connections in, until the server is stopped or its socket is broken: false then.
pub(crate) async fn receive<H: Host>(host: &Arc<H>, listener: TcpListener) -> bool {
    let (max, max_each) = H::CONNECTIONS_MAX;
    let door = Door::new(max, max_each);
    loop {
        let accepted = tokio::select! {
            // Cancel safe: a connection not yet accepted stays in the queue.
            () = host.tasks().stop.cancelled() => return true,
            accepted = door.accept(&listener) => accepted,
        };
        let Some((stream, from)) = accepted else {
            return false;
        };
        if !host.admits(*from.ip()) {
            continue;
        }
        let Some(pass) = door.enter(*from.ip()) else {
            host.crowded();
            continue;
        };
        let guest_of = Arc::clone(host);
        host.tasks().tracker.spawn(async move {
            tokio::select! {
                // The peer sees its connection end.
                () = guest_of.tasks().stop.cancelled() => {}
                () = pass.yielded() => guest_of.crowded(),
                () = Arc::clone(&guest_of).converse(stream, from) => {}
            }
            drop(pass);
        });
    }
}

/// What is held for moments, never across an await. One that panicked with it left it whole.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// How often something happened.
#[derive(Debug, Default)]
pub(crate) struct Count(AtomicU64);

impl Count {
    /// Once more.
    pub(crate) fn add(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// Makes `Counts`, of which `seen` is a plain value with the same fields.
macro_rules! counts {
    ($seen:ident: $($name:ident),+ $(,)?) => {
        #[derive(Default)]
        struct Counts { $($name: crate::service::Count),+ }

        impl Counts {
            fn seen(&self) -> $seen {
                $seen { $($name: self.$name.get()),+ }
            }
        }
    };
}
pub(crate) use counts;
