//! The receiving side: methods and their handlers.

use crate::{
    Fate, ItemSink, Method, ProgressMethod, StreamMethod,
    bus::Outlet,
    codec::Codec,
    limits,
    progress::ProgressOut,
    service::{HandlerService, Incoming, Layered},
};
use async_trait::async_trait;
use bytes::Bytes;
use futures::future::BoxFuture;
use std::{
    collections::BTreeMap,
    future::Future,
    sync::{
        Arc,
        atomic::{AtomicU32, AtomicU64, Ordering},
    },
    time::Duration,
};
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

/// Decides which epochs may command. The receiver of commands persists the highest epoch it has seen.
#[async_trait]
pub trait EpochGate: Send + Sync + 'static {
    /// Admits a command in the name of `epoch`, or refuses it because a higher one was seen before. A higher epoch
    /// must be on disk before this returns `Ok`.
    ///
    /// # Errors
    /// [`ErrorKind::Stale`] for a lower epoch (see [`stale_epoch`]); anything else when it cannot be persisted.
    ///
    /// # Cancel safety
    /// Must be safe: the future is dropped when the process shuts down.
    async fn admit(&self, epoch: Epoch) -> Result<(), Error>;
}

/// The refusal of a command with an epoch lower than the highest seen.
pub fn stale_epoch(given: Epoch, highest: Epoch) -> Error {
    Error::new(
        ErrorKind::Stale,
        "the command comes from a controller that no longer leads",
        format!("its epoch is {given}; epoch {highest} has commanded here"),
        "let the leading controller give the command",
    )
}

/// A gate that remembers the highest epoch in memory only: for tests, and for what need not survive a restart.
#[derive(Debug, Default)]
pub struct MemoryEpochGate(AtomicU64);

impl MemoryEpochGate {
    /// A gate that has seen `epoch`.
    pub const fn new(epoch: Epoch) -> Self {
        Self(AtomicU64::new(epoch.0))
    }
    /// The highest epoch seen.
    pub fn highest(&self) -> Epoch {
        Epoch(self.0.load(Ordering::SeqCst))
    }
    /// Notes an epoch; gives the highest before it.
    pub(crate) fn fetch_max(&self, epoch: Epoch) -> Epoch {
        Epoch(self.0.fetch_max(epoch.0, Ordering::SeqCst))
    }
}

#[async_trait]
impl EpochGate for MemoryEpochGate {
    async fn admit(&self, epoch: Epoch) -> Result<(), Error> {
        let highest = self.0.fetch_max(epoch.0, Ordering::SeqCst);
        if epoch.0 < highest {
            return Err(stale_epoch(epoch, Epoch(highest)));
        }
        Ok(())
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

/// Whether the handler of a method is quick up to where it first waits. Such a one begins in the dispatcher: most end
/// there, and a task of their own would cost more than they do. One that was slow gets tasks for a while.
///
/// A call that is still at work counts for nothing: only one that was seen to be quick opens the dispatcher.
#[derive(Debug)]
pub(crate) struct Pace {
    /// [`QUICK`], [`ON_TRIAL`], or how many calls get tasks before the next trial.
    tasks_left: AtomicU32,
}

/// The next call may begin in the dispatcher.
const QUICK: u32 = 0;
/// Calls get tasks until one was quick.
const ON_TRIAL: u32 = 1;

impl Default for Pace {
    fn default() -> Self {
        Self {
            tasks_left: AtomicU32::new(ON_TRIAL),
        }
    }
}

impl Pace {
    /// Whether the next call may begin in the dispatcher.
    pub(crate) fn is_quick(&self) -> bool {
        let left = self.tasks_left.load(Ordering::Relaxed);
        if left > ON_TRIAL {
            // A lost update does no harm, and it never falls below a trial.
            self.tasks_left.store(left - 1, Ordering::Relaxed);
        }
        left == QUICK
    }

    /// A call was at work for `time` until it first waited or ended.
    pub(crate) fn saw(&self, time: Duration) {
        if time > limits::INLINE_MAX {
            self.tasks_left
                .store(limits::INLINE_AGAIN_CALLS, Ordering::Relaxed);
        } else if self.tasks_left.load(Ordering::Relaxed) == ON_TRIAL {
            // Not when another one was slow meanwhile: that counts.
            let seen =
                self.tasks_left
                    .compare_exchange(ON_TRIAL, QUICK, Ordering::Relaxed, Ordering::Relaxed);
            tracing::trace!(quick = seen.is_ok(), "a method was timed");
        }
    }
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

/// A handler without its types: bytes in, bytes or an error out.
pub(crate) trait Handler: Send + Sync {
    fn handle(&self, context: Context, codec: Codec, body: &Bytes)
    -> BoxFuture<'static, Result<Bytes, Fate>>;
}

struct Typed<M, F> {
    handler: F,
    method: std::marker::PhantomData<fn(M)>,
}

impl<M, F, Fut> Handler for Typed<M, F>
where
    M: Method,
    F: Fn(Context, M::Request) -> Fut + Send + Sync + 'static,
    Fut: Future<Output = Result<M::Reply, Error>> + Send + 'static,
{
    fn handle(
        &self,
        context: Context,
        codec: Codec,
        body: &Bytes,
    ) -> BoxFuture<'static, Result<Bytes, Fate>> {
        let request = match read_request::<M>(codec, body) {
            Ok(request) => request,
            Err(error) => return Box::pin(std::future::ready(Err(Fate::Refused(error)))),
        };
        let running = (self.handler)(context, request);
        Box::pin(async move {
            let reply = running.await.map_err(Fate::Refused)?;
            write_reply::<M>(codec, &reply).map_err(Fate::Refused)
        })
    }
}

struct Streaming<M, F> {
    handler: F,
    method: std::marker::PhantomData<fn(M)>,
}

impl<M, F, Fut> Handler for Streaming<M, F>
where
    M: StreamMethod,
    F: Fn(Context, M::Request, ItemSink<M>) -> Fut + Send + Sync + 'static,
    Fut: Future<Output = Result<M::Reply, Error>> + Send + 'static,
{
    fn handle(
        &self,
        context: Context,
        codec: Codec,
        body: &Bytes,
    ) -> BoxFuture<'static, Result<Bytes, Fate>> {
        let opened = match (&context.outlet, read_request::<M>(codec, body)) {
            (Some(outlet), Ok(request)) => Ok((ItemSink::new(outlet.clone(), codec), request)),
            (None, _) => Err(wrong_verb(M::NAME, true)),
            (_, Err(error)) => Err(error),
        };
        let (items, request) = match opened {
            Ok(opened) => opened,
            Err(error) => return Box::pin(std::future::ready(Err(Fate::Refused(error)))),
        };
        let running = (self.handler)(context, request, items);
        Box::pin(async move {
            let reply = running.await.map_err(Fate::Refused)?;
            write_reply::<M>(codec, &reply).map_err(Fate::Refused)
        })
    }
}

fn read_request<M: Method>(codec: Codec, body: &Bytes) -> Result<M::Request, Error> {
    codec.decode::<M::Request>(body).map_err(|why| {
        Error::new(
            ErrorKind::InvalidInput,
            format!("the request of {} cannot be read", M::NAME),
            why,
            "run the same version of VBM on both sides, or versions next to each other",
        )
    })
}

fn write_reply<M: Method>(codec: Codec, reply: &M::Reply) -> Result<Bytes, Error> {
    let body = codec.encode(reply).map_err(|why| {
        Error::internal(format!("the reply of {} cannot be written", M::NAME), why)
            .with_outcome(vbm_core::Outcome::Applied)
    })?;
    if body.len() > limits::PAYLOAD_MAX_BYTES {
        return Err(too_large(&format!("the reply of {}", M::NAME), body.len())
            .with_outcome(vbm_core::Outcome::Applied));
    }
    Ok(body)
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
    fn a_method_is_timed_in_a_task_first_and_a_slow_one_gets_tasks_for_a_while() {
        let pace = Pace::default();
        assert!(!pace.is_quick() && !pace.is_quick(), "nothing was seen yet");
        pace.saw(limits::INLINE_MAX);
        assert!(pace.is_quick() && pace.is_quick());
        pace.saw(limits::INLINE_MAX * 2);
        pace.saw(limits::INLINE_MAX);
        for _ in 0..2 * limits::INLINE_AGAIN_CALLS {
            assert!(!pace.is_quick());
        }
        pace.saw(limits::INLINE_MAX);
        assert!(pace.is_quick(), "seen to be quick again");
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
