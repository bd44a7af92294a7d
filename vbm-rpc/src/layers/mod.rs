//! Layers for both sides of the bus.
//!
//! ```text
//!                       client: Caller::layered       server: Router::layer
//!   DeadlineLayer       takes what is left, if the    what the handler calls in turn
//!                       caller is itself a handler    takes what is left here
//!   TraceLayer          child span id into the        span of the handler; what it calls
//!                       envelope, span of the call    in turn belongs to it
//!   MetricsLayer        calls by method and fate      the same
//!   ConcurrencyLimit    waits, at most to the deadline; refuses when too many wait
//!   RetryLayer          only what the fate allows     -
//! ```
//!
//! What a handler's layers know reaches the layers of the calls that it makes through its task ([`Ambient`]). A task
//! that the handler spawns does not inherit it: give it [`CallOptions::inherit`](crate::CallOptions::inherit).
//!
//! A good order from the inside out: trace, metrics, concurrency limit, retry, deadline. Then each attempt is traced and
//! counted, and all attempts share one deadline.

mod ambient;
mod budget;
mod concurrency;
mod deadline;
mod metrics;
mod retry;
mod trace;
mod w3c;

pub use ambient::Ambient;
pub use budget::RetryBudget;
pub use concurrency::{ConcurrencyLimit, ConcurrencyLimitLayer};
pub use deadline::{Deadline, DeadlineLayer};
pub use metrics::{BusMetrics, Metrics, MetricsLayer};
pub use retry::{Retry, RetryLayer};
pub use trace::{Trace, TraceLayer};
pub use w3c::TraceContext;

use crate::Fate;

/// Where a layer of this process ended a call.
const HERE: &str = "a layer of this process";

/// The deadline passed in a layer.
fn expired(at: &str) -> Fate {
    Fate::Expired { at: at.to_owned() }
}

/// A layer has no room.
fn overloaded(why: String) -> Fate {
    Fate::Overloaded {
        at: HERE.to_owned(),
        why,
    }
}

/// How a call ended, in one word, for metrics and spans.
fn word<T>(result: &Result<T, Fate>) -> &'static str {
    match result {
        Ok(_) => "done",
        Err(fate) => fate.word(),
    }
}
