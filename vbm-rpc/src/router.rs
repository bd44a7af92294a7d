//! The receiving side: methods and their handlers.

mod gate;
mod handler;
mod pace;

pub use gate::{EpochGate, MemoryEpochGate, stale_epoch};
pub(crate) use handler::Handler;
pub(crate) use pace::Pace;

use crate::{
    Fate, ItemSink, Method, ProgressMethod, StreamMethod,
    bus::Outlet,
    codec::Codec,
    limits,
    progress::ProgressOut,
    service::{HandlerService, Incoming, Layered},
};
use bytes::Bytes;
use handler::{Streaming, Typed, read_request};
use std::{collections::BTreeMap, future::Future, sync::Arc, time::Duration};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tower::{Layer, Service};
use uuid::Uuid;
use vbm_core::{Epoch, Error, ErrorKind, NodePath};

/// What a handler knows about the request besides its content.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Context {
    /// The request. A handler whose effect must happen once even if this process dies records it with the effect.
    pub request_id: Uuid,
    /// The key the caller chose, if any.
    pub idempotency_key: Option<String>,
    /// Who asks.
    pub caller: NodePath,
    /// In whose name.
    pub epoch: Epoch,
    /// Which sending of the request this is, from 1.
    pub attempt: u16,
    /// The trace it belongs to.
    pub traceparent: Option<String>,
    /// Fires when the caller gives up, the deadline passes or this process shuts down. The handler decides where it
    /// is safe to stop; nothing stops it by force but the end of the process.
    pub cancelled: CancellationToken,
    pub(crate) deadline: Instant,
    /// Where progress goes, when the caller listens.
    pub(crate) progress: Option<ProgressOut>,
    /// Where items go, when the caller asked for a stream.
    pub(crate) outlet: Option<Arc<Outlet>>,
}

impl Context {
    /// What is left until the caller stops waiting.
    pub fn remaining(&self) -> Duration {
        self.deadline.saturating_duration_since(Instant::now())
    }

    /// When the caller stops waiting.
    pub const fn deadline(&self) -> Instant {
        self.deadline
    }

    /// Says how far it is. Does not wait: the newest goes at most every
    /// [`PROGRESS_EVERY`](limits::PROGRESS_EVERY), older ones may be skipped. Costs nothing when the caller does not
    /// listen. `M` is the method that is handled.
    pub fn progress<M: ProgressMethod>(&self, progress: &M::Progress) {
        if let Some(out) = &self.progress {
            out.report::<M>(progress);
        }
    }
}

/// The methods that a member answers. Cheap to clone.
///
/// ```
/// # use vbm_rpc::{Context, Method, Router};
/// # struct Ping; impl Method for Ping { const NAME: &'static str = "ping"; type Request = u32; type Reply = u32; }
/// let router = Router::new().method::<Ping, _, _>(|_context: Context, n: u32| async move { Ok(n + 1) });
/// assert_eq!(router.methods(), ["ping"]);
/// ```
#[derive(Clone, Default)]
pub struct Router {
    routes: BTreeMap<&'static str, Entry>,
    gate: Option<Arc<dyn EpochGate>>,
    record_all: bool,
    records_any: bool,
}

#[derive(Clone)]
pub(crate) struct Entry {
    pub(crate) handler: Arc<dyn Handler>,
    pub(crate) fenced: bool,
    pub(crate) kept: bool,
    pub(crate) recorded: bool,
    /// Gives items before its end.
    pub(crate) streams: bool,
    pub(crate) version: u32,
    pub(crate) pace: Arc<Pace>,
    /// Whether a body can be read as its request.
    pub(crate) reads: fn(Codec, &Bytes) -> bool,
}

impl Router {
    /// A router that answers nothing: all that a pure client needs.
    pub fn new() -> Self {
        Self::default()
    }

    /// Answers `M` with `handler`. A second handler for a method replaces the first. Name the method and leave the
    /// other two types to the compiler: `.method::<Ping, _, _>(handler)`.
    #[must_use]
    pub fn method<M, F, Fut>(mut self, handler: F) -> Self
    where
        M: Method,
        F: Fn(Context, M::Request) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<M::Reply, Error>> + Send + 'static,
    {
        let typed = Typed::<M, F> {
            handler,
            method: std::marker::PhantomData,
        };
        self.records_any |= M::RECORDED;
        self.routes.insert(
            M::NAME,
            Entry {
                handler: Arc::new(typed),
                fenced: M::FENCED,
                kept: M::KEPT,
                pace: Arc::default(),
                recorded: M::RECORDED,
                version: M::VERSION,
                reads: |codec, body| read_request::<M>(codec, body).is_ok(),
                streams: false,
            },
        );
        self
    }

    /// Answers `M` with a stream: `handler` puts its items into the [`ItemSink`] and returns the end value. It should end
    /// when a send fails.
    ///
    /// ```
    /// # use vbm_rpc::{Context, ItemSink, Method, Router, StreamMethod};
    /// struct Count;
    /// impl Method for Count {
    ///     const NAME: &'static str = "demo.count";
    ///     type Request = u64;
    ///     type Reply = String;
    /// }
    /// impl StreamMethod for Count {
    ///     type Item = u64;
    /// }
    /// let router = Router::new().stream::<Count, _, _>(|_context: Context, to: u64, mut items: ItemSink<Count>| async move {
    ///     for n in 0..to {
    ///         items.send(&n).await?;
    ///     }
    ///     Ok("counted".to_owned())
    /// });
    /// ```
    #[must_use]
    pub fn stream<M, F, Fut>(mut self, handler: F) -> Self
    where
        M: StreamMethod,
        F: Fn(Context, M::Request, ItemSink<M>) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<M::Reply, Error>> + Send + 'static,
    {
        let typed = Streaming::<M, F> {
            handler,
            method: std::marker::PhantomData,
        };
        self.routes.insert(
            M::NAME,
            Entry {
                handler: Arc::new(typed),
                fenced: M::FENCED,
                kept: false,
                recorded: false,
                version: M::VERSION,
                reads: |codec, body| read_request::<M>(codec, body).is_ok(),
                streams: true,
                pace: Arc::default(),
            },
        );
        self
    }

    /// Every fenced method must be admitted by `gate` first.
    #[must_use]
    pub fn with_epoch_gate(mut self, gate: Arc<dyn EpochGate>) -> Self {
        self.gate = Some(gate);
        self
    }

    /// The answers of all kept methods are recorded as those of [`Method::RECORDED`] are.
    #[must_use]
    pub const fn record_all(mut self) -> Self {
        self.record_all = true;
        self
    }

    /// This router and what `other` answers; where both answer, `other` does. The gate of `other` is taken when it
    /// has one.
    #[must_use]
    pub fn merge(mut self, other: Self) -> Self {
        self.routes.extend(other.routes);
        self.gate = other.gate.or(self.gate);
        self.record_all |= other.record_all;
        self.records_any |= other.records_any;
        self
    }

    /// Puts `layer` around every handler that was added so far; handlers added later stand outside. The last layer
    /// is the outermost. A layer sees requests that will run: what was seen before, came too late, is not known or
    /// has a stale epoch is answered before.
    ///
    /// ```
    /// # use vbm_rpc::{Context, Method, Router, layers::{ConcurrencyLimitLayer, DeadlineLayer}};
    /// # struct Ping; impl Method for Ping { const NAME: &'static str = "ping"; type Request = u32; type Reply = u32; }
    /// let router = Router::new()
    ///     .method::<Ping, _, _>(|_context: Context, n: u32| async move { Ok(n + 1) })
    ///     .layer(ConcurrencyLimitLayer::new(8))
    ///     .layer(DeadlineLayer::new());
    /// ```
    #[must_use]
    pub fn layer<L>(mut self, layer: L) -> Self
    where
        L: Layer<HandlerService>,
        L::Service: Service<Incoming, Response = Bytes, Error = Fate> + Clone + Send + Sync + 'static,
        <L::Service as Service<Incoming>>::Future: Send + 'static,
    {
        for (name, entry) in &mut self.routes {
            let service = layer.layer(HandlerService::new(entry.handler.clone()));
            entry.handler = Arc::new(Layered::new(name, service));
        }
        self
    }

    /// The names of the methods, sorted.
    pub fn methods(&self) -> Vec<String> {
        self.routes.keys().map(|&name| name.to_owned()).collect()
    }

    /// The versions of the methods, by name.
    pub fn versions(&self) -> BTreeMap<String, u32> {
        let pairs = self.routes.iter();
        pairs
            .map(|(&name, entry)| (name.to_owned(), entry.version))
            .collect()
    }

    /// Whether it answers nothing.
    pub fn is_empty(&self) -> bool {
        self.routes.is_empty()
    }

    pub(crate) fn find(&self, method: &str) -> Option<&Entry> {
        self.routes.get(method)
    }

    /// Whether there is a method whose answers are recorded without a key.
    pub(crate) const fn records_any(&self) -> bool {
        self.record_all || self.records_any
    }

    /// Whether the answer of a request without a key is recorded with the transport.
    pub(crate) const fn records(&self, entry: &Entry) -> bool {
        entry.kept && (entry.recorded || self.record_all)
    }

    /// Whether the gate, if there is one, lets a command of this method and epoch through.
    pub(crate) async fn admit(&self, fenced: bool, epoch: Epoch) -> Result<(), Error> {
        match &self.gate {
            Some(gate) if fenced => gate.admit(epoch).await,
            _ => Ok(()),
        }
    }
}

impl std::fmt::Debug for Router {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Router")
            .field("methods", &self.routes.keys())
            .finish_non_exhaustive()
    }
}

/// A stream was asked for and there is none, or the other way round.
pub(crate) fn wrong_verb(method: &str, streams: bool) -> Error {
    let (is, fix) = match streams {
        true => ("it gives a stream of items", "open it with `Bus::stream`"),
        false => ("it gives one reply and no stream", "use `Bus::call`"),
    };
    Error::new(
        ErrorKind::InvalidInput,
        format!("{method} was asked for in the wrong way"),
        is,
        fix,
    )
}

/// A body over the limit.
pub(crate) fn too_large(what: &str, bytes: usize) -> Error {
    Error::new(
        ErrorKind::InvalidInput,
        format!("{what} is too large for the bus"),
        format!("it has {bytes} bytes; {} are allowed", limits::PAYLOAD_MAX_BYTES),
        "send large content in parts, or say where it can be fetched",
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    struct A;
    impl Method for A {
        const NAME: &'static str = "a";
        type Request = u32;
        type Reply = u32;
    }
    struct B;
    impl Method for B {
        const NAME: &'static str = "b";
        type Request = u32;
        type Reply = u32;
    }

    #[test]
    fn routers_merge_and_list_their_methods_sorted() {
        let a = Router::new().method::<B, _, _>(|_, n| async move { Ok(n) });
        let b = Router::new().method::<A, _, _>(|_, n| async move { Ok(n) });
        assert_eq!(a.merge(b).methods(), ["a", "b"]);
    }

    #[tokio::test]
    async fn a_lower_epoch_than_the_highest_seen_is_refused() {
        let gate = Arc::new(MemoryEpochGate::new(Epoch(4)));
        let router = Router::new().with_epoch_gate(gate.clone());
        assert!(router.admit(true, Epoch(4)).await.is_ok());
        assert!(router.admit(true, Epoch(6)).await.is_ok());
        assert_eq!(
            router.admit(true, Epoch(5)).await.unwrap_err().kind(),
            ErrorKind::Stale
        );
        assert!(
            router.admit(false, Epoch(5)).await.is_ok(),
            "what only reads is not fenced"
        );
        assert_eq!(gate.highest(), Epoch(6));
    }
}
