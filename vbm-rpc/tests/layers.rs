//! Layers on both sides of the bus: what they promise, seen from outside.
#![allow(clippy::unwrap_used, reason = "a helper of tests fails as a test does")]

use serde::{Deserialize, Serialize};
use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};
use tokio::{sync::Notify, time::Instant};
use tower::ServiceExt as _;
use vbm_core::{Error, ErrorKind, Outcome};
use vbm_rpc::{
    Bus, CallOptions, Context, Fate, Member, Method, Outgoing, Replied, Route, Router, Service,
    layers::{
        BusMetrics, ConcurrencyLimitLayer, DeadlineLayer, RetryBudget, RetryLayer, TraceContext, TraceLayer,
    },
    memory::MemoryBus,
    service::Verb,
};

const S: fn(u64) -> Duration = Duration::from_secs;

macro_rules! method {
    ($name:ident, $wire:literal, $request:ty, $reply:ty) => {
        struct $name;
        impl Method for $name {
            const NAME: &'static str = $wire;
            type Request = $request;
            type Reply = $reply;
        }
    };
}
method!(Add, "test.add", u32, u32);
method!(Outer, "test.outer", u64, Seen);
method!(Inner, "test.inner", (), Seen);
method!(Wait, "test.wait", (), ());

/// What a handler saw of its request.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Seen {
    left_ms: u64,
    traceparent: Option<String>,
}

fn seen(context: &Context) -> Seen {
    Seen {
        left_ms: context.remaining().as_millis().try_into().unwrap(),
        traceparent: context.traceparent.clone(),
    }
}

async fn attach(transport: &MemoryBus, path: &str, router: Router) -> Bus {
    let member = Member::new(path.parse().unwrap(), "boot").service(Service::new("worker").unwrap());
    Bus::attach(transport.clone(), member, router).await.unwrap()
}

fn node(path: &str) -> Route {
    Route::node(path.parse().unwrap())
}

fn within(span: Duration) -> CallOptions {
    CallOptions::default().deadline(span)
}

fn adder() -> Router {
    Router::new().method::<Add, _, _>(|_, n| async move { Ok(n + 1) })
}

/// Adds, after failing as told for the first times.
fn failing(times: usize, fate: impl Fn() -> Error + Send + Sync + 'static) -> (Router, Arc<AtomicUsize>) {
    let runs = Arc::new(AtomicUsize::new(0));
    let (counted, fate) = (runs.clone(), Arc::new(fate));
    let router = Router::new().method::<Add, _, _>(move |_, n| {
        let (run, fate) = (counted.fetch_add(1, Ordering::SeqCst), fate.clone());
        async move { if run < times { Err(fate()) } else { Ok(n + 1) } }
    });
    (router, runs)
}

fn busy() -> Error {
    Error::new(ErrorKind::Unavailable, "busy", "of a test", "try again")
}

#[tokio::test(start_paused = true)]
async fn a_caller_with_layers_does_what_the_bus_does() {
    let transport = MemoryBus::new();
    let server = attach(&transport, "s", adder()).await;
    let bus = attach(&transport, "c", Router::new()).await;
    let caller = bus
        .layered(TraceLayer::new())
        .layered(BusMetrics::new().layer())
        .layered(ConcurrencyLimitLayer::new(4))
        .layered(RetryLayer::default())
        .layered(DeadlineLayer::new())
        .boxed();
    assert_eq!(caller.call::<Add>(&node("s"), &1, within(S(5))).await, Ok(2));
    assert_eq!(
        bus.caller().call::<Add>(&node("s"), &2, within(S(5))).await,
        Ok(3)
    );
    caller.cast::<Add>(&node("s"), &1, within(S(5))).await.unwrap();
    let nobody = caller.bus().call::<Add>(&node("nobody"), &1, within(S(5))).await;
    assert!(matches!(nobody, Err(Fate::NoRoute { .. })));
    let all = Route::all("/".parse().unwrap(), Service::new("worker").unwrap());
    let refused = caller.call::<Add>(&all, &1, within(S(5))).await;
    assert!(matches!(refused, Err(Fate::Refused(_))), "{refused:?}");
    server.shutdown().await;
    bus.shutdown().await;
}

#[tokio::test(start_paused = true)]
async fn the_bus_is_a_plain_tower_service() {
    let transport = MemoryBus::new();
    let server = attach(&transport, "s", adder()).await;
    let bus = attach(&transport, "c", Router::new()).await;
    let counted = Arc::new(AtomicUsize::new(0));
    let count = counted.clone();
    // Layers of tower itself, and a hand-made one.
    let service = tower::ServiceBuilder::new()
        .map_request(move |request: Outgoing| {
            count.fetch_add(1, Ordering::SeqCst);
            request
        })
        .map_response(|reply: Replied| reply.body)
        .service(bus.service());
    let request = bus
        .outgoing::<Add>(Verb::Call, &node("s"), &41, CallOptions::default())
        .unwrap();
    let body = service.oneshot(request).await.unwrap();
    assert_eq!(body.as_ref(), [42], "42 in MessagePack");
    assert_eq!(counted.load(Ordering::SeqCst), 1);
    server.shutdown().await;
    bus.shutdown().await;
}

/// An outer handler that takes a while and calls an inner one, both behind the layers.
async fn chain(transport: &MemoryBus) -> [Bus; 3] {
    let inner = Router::new()
        .method::<Inner, _, _>(|context: Context, ()| async move { Ok(seen(&context)) })
        .layer(TraceLayer::new());
    let inner = attach(transport, "inner", inner).await;
    let own: Arc<std::sync::OnceLock<Bus>> = Arc::default();
    let bus = own.clone();
    let outer = Router::new()
        .method::<Outer, _, _>(move |_, wait_ms| {
            let bus = bus.get().cloned();
            async move {
                tokio::time::sleep(Duration::from_millis(wait_ms)).await;
                let caller = bus
                    .unwrap()
                    .layered(TraceLayer::new())
                    .layered(DeadlineLayer::new());
                // It would wait for a minute.
                let asked = caller.call::<Inner>(&node("inner"), &(), within(S(60))).await;
                asked.map_err(Error::from)
            }
        })
        .layer(TraceLayer::new())
        .layer(DeadlineLayer::new());
    let outer = attach(transport, "outer", outer).await;
    own.set(outer.clone()).unwrap();
    [inner, outer, attach(transport, "c", Router::new()).await]
}

#[tokio::test(start_paused = true)]
async fn a_handler_that_calls_on_takes_what_is_left() {
    let transport = MemoryBus::new();
    let [inner, outer, bus] = chain(&transport).await;
    let seen = bus
        .call::<Outer>(&node("outer"), &3_000, within(S(10)))
        .await
        .unwrap();
    assert!((6_000..=7_000).contains(&seen.left_ms), "{} ms", seen.left_ms);
    for bus in [bus, outer, inner] {
        bus.shutdown().await;
    }
}

#[tokio::test(start_paused = true)]
async fn one_trace_goes_through_all_hops_with_a_span_id_for_each() {
    let transport = MemoryBus::new();
    let [inner, outer, bus] = chain(&transport).await;
    let given: TraceContext = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
        .parse()
        .unwrap();
    let options = within(S(10)).traceparent(given.to_string());
    let caller = bus.layered(TraceLayer::new());
    let seen = caller.call::<Outer>(&node("outer"), &0, options).await.unwrap();
    let innermost: TraceContext = seen.traceparent.unwrap().parse().unwrap();
    assert_eq!(innermost.trace_id, given.trace_id);
    assert_ne!(innermost.span_id, given.span_id);
    // Without one, or with one that is none, a trace begins.
    for options in [within(S(10)), within(S(10)).traceparent("00-zz")] {
        let seen = caller.call::<Outer>(&node("outer"), &0, options).await.unwrap();
        let other: TraceContext = seen.traceparent.unwrap().parse().unwrap();
        assert_ne!(other.trace_id, given.trace_id);
    }
    for bus in [bus, outer, inner] {
        bus.shutdown().await;
    }
}

/// Writes the fields of spans down: name, then field=value.
#[derive(Clone, Default)]
struct Tape(Arc<Mutex<Vec<String>>>);

struct Fields<'a>(&'a mut String);
impl tracing::field::Visit for Fields<'_> {
    fn record_debug(&mut self, field: &tracing::field::Field, value: &dyn std::fmt::Debug) {
        use std::fmt::Write as _;
        write!(self.0, " {}={value:?}", field.name()).unwrap();
    }
}

impl tracing::Subscriber for Tape {
    fn enabled(&self, metadata: &tracing::Metadata<'_>) -> bool {
        metadata.is_span() && metadata.name().starts_with("bus.")
    }
    fn new_span(&self, span: &tracing::span::Attributes<'_>) -> tracing::span::Id {
        let mut tape = self.0.lock().unwrap();
        let mut line = span.metadata().name().to_owned();
        span.record(&mut Fields(&mut line));
        tape.push(line);
        tracing::span::Id::from_u64(tape.len().try_into().unwrap())
    }
    fn record(&self, span: &tracing::span::Id, values: &tracing::span::Record<'_>) {
        let at = usize::try_from(span.into_u64()).unwrap() - 1;
        values.record(&mut Fields(&mut self.0.lock().unwrap()[at]));
    }
    fn record_follows_from(&self, _: &tracing::span::Id, _: &tracing::span::Id) {}
    fn event(&self, _: &tracing::Event<'_>) {}
    fn enter(&self, _: &tracing::span::Id) {}
    fn exit(&self, _: &tracing::span::Id) {}
}

#[tokio::test(start_paused = true)]
async fn spans_on_both_sides_say_method_peer_id_attempt_and_fate() {
    let transport = MemoryBus::new();
    let server = attach(&transport, "s", adder().layer(TraceLayer::new())).await;
    let bus = attach(&transport, "c", Router::new()).await;
    let tape = Tape::default();
    let subscribed = tracing::subscriber::set_default(tape.clone());
    let caller = bus.layered(TraceLayer::new());
    caller.call::<Add>(&node("s"), &1, within(S(5))).await.unwrap();
    caller
        .call::<Add>(&node("nobody"), &1, within(S(5)))
        .await
        .unwrap_err();
    drop(subscribed);
    let lines = tape.0.lock().unwrap().clone();
    let found = |words: &[&str]| {
        lines
            .iter()
            .any(|line| words.iter().all(|word| line.contains(word)))
    };
    assert!(
        found(&[
            "bus.call",
            "method=\"test.add\"",
            "peer=node s",
            "id=",
            "attempt=1",
            "fate=\"done\""
        ]),
        "{lines:#?}"
    );
    assert!(
        found(&["bus.call", "peer=node nobody", "fate=\"no_route\""]),
        "{lines:#?}"
    );
    assert!(
        found(&[
            "bus.handle",
            "method=\"test.add\"",
            "peer=c",
            "attempt=1",
            "fate=\"done\""
        ]),
        "{lines:#?}"
    );
    server.shutdown().await;
    bus.shutdown().await;
}

#[tokio::test(start_paused = true)]
async fn a_refusal_that_may_be_repeated_is_repeated_with_one_key() {
    let transport = MemoryBus::new();
    let keys = Arc::new(Mutex::new(Vec::new()));
    let noted = keys.clone();
    let router = Router::new().method::<Add, _, _>(move |context: Context, n| {
        let mut keys = noted.lock().unwrap();
        keys.push((context.idempotency_key, context.request_id, context.attempt));
        let run = keys.len();
        async move { if run < 3 { Err(busy()) } else { Ok(n + 1) } }
    });
    let server = attach(&transport, "s", router).await;
    let bus = attach(&transport, "c", Router::new()).await;
    let metrics = BusMetrics::new();
    let caller = bus.layered(RetryLayer::default().metrics(metrics.clone()));
    assert_eq!(caller.call::<Add>(&node("s"), &1, within(S(5))).await, Ok(2));
    let keys = keys.lock().unwrap().clone();
    assert_eq!(keys.len(), 3);
    assert!(
        keys[0].0.is_some() && keys.iter().all(|key| key.0 == keys[0].0),
        "{keys:?}"
    );
    assert!(
        keys[0].1 != keys[1].1 && keys[1].1 != keys[2].1,
        "each has an id of its own"
    );
    assert_eq!(keys.iter().map(|key| key.2).collect::<Vec<_>>(), [1, 2, 3]);
    let text = metrics.text();
    assert!(
        text.contains("vbm_bus_retries_total{method=\"test.add\"} 2"),
        "{text}"
    );
    server.shutdown().await;
    bus.shutdown().await;
}

#[tokio::test(start_paused = true)]
async fn what_may_have_been_done_is_not_repeated() {
    let transport = MemoryBus::new();
    let (router, runs) = failing(9, || busy().with_outcome(Outcome::Unknown));
    let server = attach(&transport, "s", router).await;
    let bus = attach(&transport, "c", Router::new()).await;
    let caller = bus.layered(RetryLayer::default());
    caller
        .call::<Add>(&node("s"), &1, within(S(5)))
        .await
        .unwrap_err();
    assert_eq!(runs.load(Ordering::SeqCst), 1);
    server.shutdown().await;
    bus.shutdown().await;
}

#[tokio::test(start_paused = true)]
async fn retries_end_with_the_budget_and_with_the_deadline() {
    let transport = MemoryBus::new();
    let (router, runs) = failing(usize::MAX, busy);
    let server = attach(&transport, "s", router).await;
    let bus = attach(&transport, "c", Router::new()).await;
    let metrics = BusMetrics::new();
    let poor = RetryLayer::new(RetryBudget::new(0, 0, 10)).metrics(metrics.clone());
    let caller = bus.layered(poor);
    for _ in 0..5 {
        caller
            .call::<Add>(&node("s"), &1, within(S(60)))
            .await
            .unwrap_err();
    }
    assert_eq!(runs.load(Ordering::SeqCst), 6, "five calls, one retry saved");
    assert!(
        metrics
            .text()
            .contains("vbm_bus_retries_denied_total{method=\"test.add\"} 5")
    );
    let eager = RetryLayer::new(RetryBudget::new(100_000, 0, 1_000)).attempts_max(1_000);
    let began = Instant::now();
    bus.layered(eager)
        .call::<Add>(&node("s"), &1, within(S(10)))
        .await
        .unwrap_err();
    assert!(began.elapsed() <= S(10), "{:?}", began.elapsed());
    server.shutdown().await;
    bus.shutdown().await;
}

#[tokio::test(start_paused = true)]
async fn a_client_limit_lets_the_rest_wait_to_their_deadline_and_refuses_a_crowd() {
    let transport = MemoryBus::new();
    let (running, most, release) = (
        Arc::new(AtomicUsize::new(0)),
        Arc::new(AtomicUsize::new(0)),
        Arc::new(Notify::new()),
    );
    let (run, max, gate) = (running.clone(), most.clone(), release.clone());
    let router = Router::new().method::<Wait, _, _>(move |_, ()| {
        let (run, max, gate) = (run.clone(), max.clone(), gate.clone());
        async move {
            max.fetch_max(run.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
            gate.notified().await;
            run.fetch_sub(1, Ordering::SeqCst);
            Ok(())
        }
    });
    let server = attach(&transport, "s", router).await;
    let bus = attach(&transport, "c", Router::new()).await;
    let caller = bus.layered(ConcurrencyLimitLayer::with_waiting(2, 1));
    let call = |span| caller.call::<Wait>(&node("s"), &(), within(span));
    let (one, two) = (tokio::spawn(call(S(60))), tokio::spawn(call(S(60))));
    while running.load(Ordering::SeqCst) < 2 {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    let (third, fourth) = tokio::join!(call(S(1)), call(S(1)));
    assert!(
        matches!(&third, Err(Fate::Expired { at }) if at.contains("limit of 2")),
        "{third:?}"
    );
    assert!(matches!(fourth, Err(Fate::Overloaded { .. })), "{fourth:?}");
    let fifth = tokio::spawn(call(S(60)));
    for _ in 0..3 {
        release.notify_one();
        tokio::time::sleep(S(1)).await;
    }
    for call in [one, two, fifth] {
        call.await.unwrap().unwrap();
    }
    assert_eq!(most.load(Ordering::SeqCst), 2);
    server.shutdown().await;
    bus.shutdown().await;
}

#[tokio::test(start_paused = true)]
async fn a_server_limit_arrives_at_the_caller_as_overloaded() {
    let transport = MemoryBus::new();
    let release = Arc::new(Notify::new());
    let gate = release.clone();
    let router = Router::new()
        .method::<Wait, _, _>(move |_, ()| {
            let gate = gate.clone();
            async move {
                gate.notified().await;
                Ok(())
            }
        })
        .layer(ConcurrencyLimitLayer::with_waiting(1, 0));
    let server = attach(&transport, "s", router).await;
    let bus = attach(&transport, "c", Router::new()).await;
    let call = || bus.call::<Wait>(&node("s"), &(), within(S(60)));
    let first = tokio::spawn(call());
    tokio::time::sleep(S(1)).await;
    let second = call().await;
    assert!(
        matches!(&second, Err(Fate::Overloaded { at, .. }) if at.contains("node s")),
        "{second:?}"
    );
    release.notify_one();
    first.await.unwrap().unwrap();
    server.shutdown().await;
    bus.shutdown().await;
}

#[tokio::test(start_paused = true)]
async fn metrics_count_calls_by_fate_on_both_sides_and_show_the_attachment() {
    let transport = MemoryBus::new();
    let metrics = BusMetrics::new();
    let server = attach(&transport, "s", adder().layer(metrics.layer())).await;
    let bus = attach(&transport, "c", Router::new()).await;
    metrics.watch(&server);
    metrics.watch(&bus);
    let caller = bus.layered(metrics.layer());
    for n in 0..3 {
        caller.call::<Add>(&node("s"), &n, within(S(5))).await.unwrap();
    }
    caller
        .call::<Add>(&node("nobody"), &1, within(S(5)))
        .await
        .unwrap_err();
    let pending = caller.call::<Add>(&node("s"), &1, within(S(5)));
    drop(pending);
    bus.call::<Wait>(&node("s"), &(), within(S(5))).await.unwrap_err();
    let text = metrics.text();
    for line in [
        r#"vbm_bus_calls_total{side="client",method="test.add",fate="done"} 3"#,
        r#"vbm_bus_calls_total{side="server",method="test.add",fate="done"} 3"#,
        r#"vbm_bus_calls_total{side="client",method="test.add",fate="no_route"} 1"#,
        r#"vbm_bus_in_flight{side="client",method="test.add"} 0"#,
        r#"vbm_bus_call_seconds_count{side="client",method="test.add"} 4"#,
        r#"vbm_bus_unanswered{member="c"} 0"#,
        r#"vbm_bus_handlers_running{member="s"} 0"#,
        r#"vbm_bus_frames_refused_total{member="s"} 0"#,
        r#"vbm_bus_bad_input_total{member="s",what="unknown-method"} 1"#,
        r#"vbm_bus_bad_input_total{member="s",what="late"} 0"#,
        "# EOF",
    ] {
        assert!(
            text.lines().any(|found| found == line),
            "{line} is not in:\n{text}"
        );
    }
    server.shutdown().await;
    bus.shutdown().await;
    assert!(
        !metrics.text().contains(r#"member="c""#),
        "what has ended is not shown"
    );
}
