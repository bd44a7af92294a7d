//! What the servers that read whole frames of a link have in common: DHCPv4, DHCPv6 with the router's voice.
//!
//! ```text
//!   handle: Running --config--> task <--frames-- Ear <--- packet socket (cBPF)
//!                   <--leases--   |  ---frames-> Voice --^
//!                   <-counters-   |  ----news--> Context
//! ```
//!
//! The task owns all state; the handle shows what it may see of it. [`ear`] says when the task is woken.

pub(crate) mod ear;

use crate::{NetEvent, backend::EVENTS_MAX_PENDING, service::Leash};
use std::sync::Arc;
use tokio::sync::{broadcast, watch};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use vbm_core::{Clock, NetworkId};

/// What a server needs from outside.
#[derive(Clone)]
pub(crate) struct Context {
    pub(crate) network: NetworkId,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) events: broadcast::Sender<NetEvent>,
    pub(crate) tracker: TaskTracker,
}

impl Context {
    /// Of a server that nobody but its handle knows.
    pub(crate) fn alone(network: NetworkId, clock: Arc<dyn Clock>) -> Self {
        Self {
            network,
            clock,
            events: broadcast::channel(EVENTS_MAX_PENDING).0,
            tracker: TaskTracker::new(),
        }
    }

    /// Tells whoever listens. No listener is fine: events are news, not state.
    pub(crate) fn tell(&self, event: NetEvent) {
        drop(self.events.send(event));
    }
}

/// What a server's socket is bound to. A namespace that was made anew is another, whatever its name and the number of its interface: the
/// socket holds on to the old one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    /// `None`: that of who started it.
    pub(crate) namespace: Option<(u64, u64)>,
    pub(crate) interface: u32,
}

impl Place {
    /// An interface of the calling thread's namespace.
    pub(crate) fn here(interface: &str) -> std::io::Result<Self> {
        Ok(Self {
            namespace: None,
            interface: nix::net::if_::if_nametoindex(interface)?,
        })
    }
}

/// A running server, by its configuration `C`, what guests were told `L`, its counters `N`. Dropping it stops it.
pub(crate) struct Running<C, L, N> {
    place: Place,
    config: watch::Sender<Arc<C>>,
    leases: watch::Receiver<L>,
    counters: Arc<N>,
    leash: Leash,
}

/// The task's ends of all that.
pub(crate) struct Reins<C, L, N> {
    pub(crate) latest: watch::Receiver<Arc<C>>,
    pub(crate) leases: watch::Sender<L>,
    pub(crate) counters: Arc<N>,
    pub(crate) stop: CancellationToken,
}

impl<C: PartialEq, L: Clone, N: Default> Running<C, L, N> {
    /// Runs a task that holds the reins. `leases` is what guests were told by the one before.
    pub(crate) fn drive<F>(
        place: Place,
        config: &Arc<C>,
        leases: &L,
        tracker: &TaskTracker,
        task: impl FnOnce(Reins<C, L, N>) -> F,
    ) -> Self
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let (config, latest) = watch::channel(Arc::clone(config));
        let (leases_out, leases) = watch::channel(leases.clone());
        let counters = Arc::<N>::default();
        let stop = CancellationToken::new();
        let reins = Reins {
            latest,
            leases: leases_out,
            counters: Arc::clone(&counters),
            stop: stop.clone(),
        };
        Self {
            place,
            config,
            leases,
            counters,
            leash: Leash::on(tracker, stop, task(reins)),
        }
    }

    /// Whether it runs, at this place.
    pub(crate) fn serves(&self, place: Place) -> bool {
        self.place == place && self.leash.holds()
    }

    /// From the next frame on, this holds. Returns whether it differs from before.
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

    /// Ends it. When this returns its socket is closed, and what it owned is dropped.
    pub(crate) async fn stop(self) {
        self.leash.end().await;
    }
}
