//! What a caller may say about one call.

use crate::{codec::Codec, limits};
use std::time::Duration;
use vbm_core::Epoch;

/// What must be true before a request counts as kept by the transport.
///
/// | dies | `Fast` | `Replicated` |
/// |---|---|---|
/// | the worker | kept | kept |
/// | the caller of a `cast` | kept | kept |
/// | Redis, with a failover | a call is sent again by its caller; a cast of the last moments may be lost | kept |
///
/// The whole table, with what was tested: `docs/rpc/connections.md`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Durability {
    /// The master has it: one round trip.
    #[default]
    Fast,
    /// Its replicas have it too: under Sentinel all that could be promoted, elsewhere one. Without their word in a second, the call is [`Lost`](crate::Fate::Lost) with that
    /// reason, although the master has it and it may run. An answer that is there before counts all the same.
    Replicated,
}

/// Which way a request goes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Lane {
    /// With all others, in order.
    #[default]
    Bulk,
    /// Past all that wait on the bulk lane: for what steers others. At a node it has its own queue and its own handlers
    /// ([`CONTROL_HANDLERS_MAX`](limits::CONTROL_HANDLERS_MAX)); no depth limit refuses it. Cancels always go this way.
    Control,
}

/// What a caller may say about one call. All of it has defaults.
///
/// ```
/// # use std::time::Duration;
/// use vbm_rpc::CallOptions;
/// let options = CallOptions::default().deadline(Duration::from_secs(5)).idempotency_key("vm-7-start-1");
/// ```
#[derive(Clone, Debug)]
#[must_use]
pub struct CallOptions {
    pub(crate) deadline: Duration,
    pub(crate) idempotency_key: Option<String>,
    pub(crate) epoch: Epoch,
    pub(crate) traceparent: Option<String>,
    pub(crate) quorum: Option<usize>,
    pub(crate) codec: Codec,
    pub(crate) durability: Durability,
    pub(crate) lane: Lane,
    pub(crate) traced: bool,
}

impl Default for CallOptions {
    fn default() -> Self {
        Self {
            deadline: limits::DEFAULT_DEADLINE,
            idempotency_key: None,
            epoch: Epoch::default(),
            traceparent: None,
            quorum: None,
            codec: Codec::MessagePack,
            durability: Durability::Fast,
            lane: Lane::Bulk,
            traced: false,
        }
    }
}

impl CallOptions {
    /// The defaults: [`DEFAULT_DEADLINE`](limits::DEFAULT_DEADLINE), no key, epoch 0.
    pub fn new() -> Self {
        Self::default()
    }

    /// The call ends at the latest this long from its beginning, and is not started after it. At most
    /// [`DEADLINE_MAX`](limits::DEADLINE_MAX).
    pub fn deadline(mut self, deadline: Duration) -> Self {
        self.deadline = deadline.min(limits::DEADLINE_MAX);
        self
    }

    /// Two requests with one key and method have one effect: the second gets the recorded answer of the first.
    /// At most [`IDEMPOTENCY_KEY_MAX_BYTES`](limits::IDEMPOTENCY_KEY_MAX_BYTES) long.
    pub fn idempotency_key(mut self, key: impl Into<String>) -> Self {
        self.idempotency_key = Some(key.into());
        self
    }

    /// The epoch in whose name the caller commands.
    pub const fn epoch(mut self, epoch: Epoch) -> Self {
        self.epoch = epoch;
        self
    }

    /// The trace that this call belongs to (W3C Trace Context, section 3.2).
    pub fn traceparent(mut self, traceparent: impl Into<String>) -> Self {
        self.traceparent = Some(traceparent.into());
        self
    }

    /// For a call that a handler makes, or a task that works for one: it ends no later than the handler's caller stops
    /// waiting, and belongs to the same trace if none was named.
    pub fn inherit(mut self, context: &crate::Context) -> Self {
        self.deadline = self.deadline.min(context.remaining());
        if self.traceparent.is_none() {
            self.traceparent.clone_from(&context.traceparent);
        }
        self
    }

    /// A broadcast ends after this many replies.
    pub const fn quorum(mut self, replies: usize) -> Self {
        self.quorum = Some(replies);
        self
    }

    /// How safely the request is kept before it counts as sent. The default is [`Durability::Fast`].
    pub const fn durability(mut self, durability: Durability) -> Self {
        self.durability = durability;
        self
    }

    /// Which way the request goes.
    pub const fn lane(mut self, lane: Lane) -> Self {
        self.lane = lane;
        self
    }

    /// Records the hops of this call: queued, taken by whom, begun, ended; for `vbm bus trace` and
    /// [`Admin::trace`](crate::admin::Admin::trace). Costs a few writes; a call that is not traced pays nothing.
    pub const fn traced(mut self, traced: bool) -> Self {
        self.traced = traced;
        self
    }

    /// How the body is written.
    pub const fn codec(mut self, codec: Codec) -> Self {
        self.codec = codec;
        self
    }
}
