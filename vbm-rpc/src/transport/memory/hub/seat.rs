//! One attachment's place at the hub, what it is given, and what becomes of that.

use super::{Given, Hub};
use crate::{
    BusError, Route, Service,
    transport::{Delivery, Keeper},
};
use bytes::Bytes;
use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};
use tokio::{
    sync::{Notify, watch},
    time::Instant,
};
use vbm_core::NodePath;

/// Where a frame was to go.
#[derive(Clone, PartialEq, Eq)]
pub(super) enum Origin {
    Node,
    Any(NodePath, Service),
    All,
}

impl Origin {
    /// The destination whose members share the results.
    pub(super) fn home(&self, path: &NodePath) -> Option<Arc<Route>> {
        match self {
            Self::Node => Some(Arc::new(Route::node(path.clone()))),
            Self::Any(scope, service) => Some(Arc::new(Route::any(scope.clone(), service.clone()))),
            Self::All => None,
        }
    }
}

/// One attachment's place.
pub(in crate::transport::memory) struct Seat {
    pub(super) path: NodePath,
    pub(in crate::transport::memory) serial: u64,
    pub(super) requests: Notify,
    pub(super) urgent: Notify,
    pub(super) replies: Notify,
    /// It is heard again, or severed.
    pub(in crate::transport::memory) voice: Notify,
    pub(in crate::transport::memory) generations: watch::Sender<u64>,
    pub(in crate::transport::memory) ended: watch::Sender<Option<BusError>>,
    /// Its process crashed: what it still says is not heard.
    pub(super) severed: AtomicBool,
}

impl Seat {
    /// Whose it is, for people.
    pub(in crate::transport::memory) fn name(&self) -> String {
        self.path.to_string()
    }

    pub(in crate::transport::memory) fn wake(&self, lane: Pumped) -> &Notify {
        match lane {
            Pumped::Requests => &self.requests,
            Pumped::Urgent => &self.urgent,
            Pumped::Replies => &self.replies,
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub(in crate::transport::memory) enum Pumped {
    Requests,
    Urgent,
    Replies,
}

pub(in crate::transport::memory) enum Next {
    Request(Delivery),
    Reply(Bytes),
    Wait(Option<Instant>),
    Ended,
}

/// Forgets an entry when it is completed.
pub(super) struct Kept {
    pub(super) hub: Arc<Hub>,
    pub(super) seat: Arc<Seat>,
    pub(super) serial: u64,
    pub(super) again: bool,
}

impl Keeper for Kept {
    fn home(&self) -> Option<Arc<Route>> {
        let state = self.hub.lock();
        let entry = state.nodes.get(&self.seat.path)?.kept.get(&self.serial)?;
        entry.origin.home(&self.seat.path)
    }

    fn again(&self) -> bool {
        self.again
    }

    fn completed(&self) {
        if self.seat.severed.load(Ordering::SeqCst) {
            return;
        }
        self.hub.lock().completed(&self.seat, self.serial);
    }

    fn buried(&self, frame: Bytes, reason: &str) {
        if self.seat.severed.load(Ordering::SeqCst) {
            return;
        }
        let entry = {
            let state = self.hub.lock();
            let node = state.nodes.get(&self.seat.path);
            node.and_then(|node| node.kept.get(&self.serial))
                .map(|entry| (entry.origin.route(&self.seat.path), entry.deliveries, entry.since))
        };
        if let Some((route, deliveries, since)) = entry {
            let given = Given {
                deliveries,
                worker: self.seat.path.to_string(),
                since,
            };
            self.hub.desk.bury(route, frame, reason, &given);
        }
        self.completed();
    }
}

impl Origin {
    /// The route that leads where it was to go; a broadcast that one member cannot handle is that member's.
    pub(super) fn route(&self, path: &NodePath) -> Route {
        match self {
            Self::Any(scope, service) => Route::any(scope.clone(), service.clone()),
            Self::Node | Self::All => Route::node(path.clone()),
        }
    }
}
