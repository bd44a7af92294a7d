//! What a reader may say.

use crate::{CallOptions, codec::Codec, limits};
use std::time::Duration;
use vbm_core::Epoch;

/// What a reader may say about one stream. All of it has defaults.
///
/// ```
/// # use std::time::Duration;
/// use vbm_rpc::StreamOptions;
/// let follow_a_log = StreamOptions::new().idle(Duration::from_secs(600));
/// ```
#[derive(Clone, Debug)]
#[must_use]
pub struct StreamOptions {
    pub(super) call: CallOptions,
    pub(super) idle: Duration,
}

impl Default for StreamOptions {
    fn default() -> Self {
        let call = CallOptions {
            deadline: limits::STREAM_DEADLINE_MAX,
            ..CallOptions::default()
        };
        Self {
            call,
            idle: limits::STREAM_IDLE,
        }
    }
}

impl StreamOptions {
    /// The defaults: an item at least every [`STREAM_IDLE`](limits::STREAM_IDLE), for at most
    /// [`STREAM_DEADLINE_MAX`](limits::STREAM_DEADLINE_MAX); epoch 0.
    pub fn new() -> Self {
        Self::default()
    }

    /// The longest wait for one item, and for the end after the last. Counted while somebody waits for it.
    pub const fn idle(mut self, idle: Duration) -> Self {
        self.idle = idle;
        self
    }

    /// The stream ends at the latest this long from its beginning, however many items come. At most
    /// [`STREAM_DEADLINE_MAX`](limits::STREAM_DEADLINE_MAX).
    pub fn deadline(mut self, deadline: Duration) -> Self {
        self.call.deadline = deadline.min(limits::STREAM_DEADLINE_MAX);
        self
    }

    /// The epoch in whose name the reader commands.
    pub fn epoch(mut self, epoch: Epoch) -> Self {
        self.call = self.call.epoch(epoch);
        self
    }

    /// The trace that this stream belongs to.
    pub fn traceparent(mut self, traceparent: impl Into<String>) -> Self {
        self.call = self.call.traceparent(traceparent);
        self
    }

    /// How the request and the items are written.
    pub fn codec(mut self, codec: Codec) -> Self {
        self.call = self.call.codec(codec);
        self
    }
}
