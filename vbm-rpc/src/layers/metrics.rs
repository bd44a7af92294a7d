//! Metrics in the text format of OpenMetrics, which Prometheus reads.
//!
//! | metric | type | labels | what |
//! |---|---|---|---|
//! | `vbm_bus_calls_total` | counter | side, method, fate | ended calls (client) or handled requests (server); fate `dropped`: its future was dropped |
//! | `vbm_bus_call_seconds` | histogram | side, method | how long they took |
//! | `vbm_bus_in_flight` | gauge | side, method | begun and not ended |
//! | `vbm_bus_retries_total` | counter | method | calls sent again |
//! | `vbm_bus_retries_denied_total` | counter | method | not sent again for want of budget |
//! | `vbm_bus_unanswered` | gauge | member | calls of an attachment that wait for their answer |
//! | `vbm_bus_handlers_running` | gauge | member | |
//! | `vbm_bus_requests_waiting` | gauge | member | in the process, for a handler |
//! | `vbm_bus_frames_refused_total` | counter | member | what was no frame of the bus, or none that fits there |
//! | `vbm_bus_bad_input_total` | counter | member, what | what could not be used as it was meant, by its kind ([`BadInput`](crate::BadInput)); without a member: servers that were refused at the start |
//! | `vbm_bus_generation` | gauge | member | grows when the transport may have forgotten something |
//!
//! Methods are those that the program knows, never what a stranger sent: the number of series is bounded.

use super::{retry::Verdict, word};
use crate::{
    Bus, Fate,
    bus::{BusStats, Probe},
    redis::RedisTransport,
    service::Message,
};
use futures::future::BoxFuture;
use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeLabelSet, EncodeMetric, text},
    metrics::{
        counter::{ConstCounter, Counter},
        family::{Family, MetricConstructor},
        gauge::{ConstGauge, Gauge},
        histogram::Histogram,
    },
    registry::Registry,
};
use std::{
    fmt,
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll},
};
use tokio::time::Instant;
use tower::{Layer, Service};

/// Upper bounds of the latency buckets, in seconds: from one round trip in memory to the longest deadline's tenth.
const BUCKETS_S: [f64; 14] = [
    0.000_1, 0.000_25, 0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.025, 0.1, 0.5, 1.0, 5.0, 30.0, 360.0,
];

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Ended {
    side: &'static str,
    method: &'static str,
    fate: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Of {
    side: &'static str,
    method: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfMethod {
    method: &'static str,
}

#[derive(Clone)]
struct Buckets;
impl MetricConstructor<Histogram> for Buckets {
    fn new_metric(&self) -> Histogram {
        Histogram::new(BUCKETS_S)
    }
}

/// Counts what goes over the bus. Clones count together. Give [`BusMetrics::layer`] to callers and routers, and
/// [`BusMetrics::text`] to who scrapes.
#[derive(Clone)]
pub struct BusMetrics(Arc<Inner>);

struct Inner {
    registry: Registry,
    watched: Watched,
    calls: Family<Ended, Counter>,
    seconds: Family<Of, Histogram, Buckets>,
    in_flight: Family<Of, Gauge>,
    retries: Family<OfMethod, Counter>,
    retries_denied: Family<OfMethod, Counter>,
}

impl Default for BusMetrics {
    fn default() -> Self {
        Self::new()
    }
}

impl BusMetrics {
    /// What [`BusMetrics::text`] is, for the header `Content-Type`.
    pub const CONTENT_TYPE: &'static str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

    /// All at zero.
    pub fn new() -> Self {
        let mut registry = Registry::with_prefix("vbm_bus");
        let watched = Watched::default();
        let calls = Family::default();
        let seconds = Family::new_with_constructor(Buckets);
        let in_flight = Family::default();
        let (retries, retries_denied) = (Family::default(), Family::default());
        registry.register(
            "calls",
            "Calls that ended and requests that were handled",
            calls.clone(),
        );
        registry.register("call_seconds", "How long they took", seconds.clone());
        registry.register("in_flight", "Begun and not ended", in_flight.clone());
        registry.register("retries", "Calls sent again", retries.clone());
        registry.register(
            "retries_denied",
            "Calls not sent again for want of budget",
            retries_denied.clone(),
        );
        registry.register_collector(Box::new(watched.clone()));
        Self(Arc::new(Inner {
            registry,
            watched,
            calls,
            seconds,
            in_flight,
            retries,
            retries_denied,
        }))
    }

    /// A layer for callers ([`Caller::layered`](crate::Caller::layered)) and routers
    /// ([`Router::layer`](crate::Router::layer)).
    pub fn layer(&self) -> MetricsLayer {
        MetricsLayer(self.clone())
    }

    /// Shows what this attachment does ([`Bus::stats`]) from now on, until it ends. Does not keep it alive.
    pub fn watch(&self, bus: &Bus) {
        let mut probes = self.0.watched.lock();
        probes.retain(|probe| probe.read().is_some());
        probes.push(bus.probe());
    }

    /// All of it, as OpenMetrics text ([`Self::CONTENT_TYPE`]).
    pub fn text(&self) -> String {
        let mut out = String::new();
        // Writing to a string does not fail.
        if text::encode(&mut out, &self.0.registry).is_err() {
            tracing::warn!("the metrics of the bus could not be written down");
        }
        out
    }

    pub(super) fn retry(&self, method: &'static str, verdict: &Verdict) {
        let family = match verdict {
            Verdict::Again(_) => &self.0.retries,
            Verdict::NoBudget => &self.0.retries_denied,
            Verdict::End => return,
        };
        family.get_or_create(&OfMethod { method }).inc();
    }
}

impl fmt::Debug for BusMetrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("BusMetrics")
    }
}

/// See [`BusMetrics::layer`].
#[derive(Clone, Debug)]
pub struct MetricsLayer(BusMetrics);

impl<S> Layer<S> for MetricsLayer {
    type Service = Metrics<S>;
    fn layer(&self, inner: S) -> Metrics<S> {
        Metrics {
            inner,
            metrics: self.0.clone(),
        }
    }
}

/// See [`BusMetrics::layer`].
#[derive(Clone, Debug)]
pub struct Metrics<S> {
    inner: S,
    metrics: BusMetrics,
}

/// One that began; counted when it ends, also when its future is dropped.
struct Begun {
    metrics: BusMetrics,
    of: Of,
    at: Instant,
    fate: &'static str,
}

impl Begun {
    fn new(metrics: BusMetrics, of: Of) -> Self {
        metrics.0.in_flight.get_or_create(&of).inc();
        Self {
            metrics,
            of,
            at: Instant::now(),
            fate: "dropped",
        }
    }

    fn ended(mut self, fate: &'static str) {
        self.fate = fate;
    }
}

impl Drop for Begun {
    fn drop(&mut self) {
        let inner = &self.metrics.0;
        inner.in_flight.get_or_create(&self.of).dec();
        inner
            .seconds
            .get_or_create(&self.of)
            .observe(self.at.elapsed().as_secs_f64());
        let Of { side, method } = self.of;
        let fate = self.fate;
        inner.calls.get_or_create(&Ended { side, method, fate }).inc();
    }
}

impl<S, R> Service<R> for Metrics<S>
where
    R: Message,
    S: Service<R, Error = Fate>,
    S::Future: Send + 'static,
    S::Response: Send + 'static,
{
    type Response = S::Response;
    type Error = Fate;
    type Future = BoxFuture<'static, Result<S::Response, Fate>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Fate>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: R) -> Self::Future {
        let of = Of {
            side: R::SIDE.as_str(),
            method: request.method(),
        };
        let begun = Begun::new(self.metrics.clone(), of);
        let running = self.inner.call(request);
        Box::pin(async move {
            let result = running.await;
            begun.ended(word(&result));
            result
        })
    }
}

/// The attachments that are shown at each scrape.
#[derive(Clone, Default)]
struct Watched(Arc<Mutex<Vec<Probe>>>);

impl Watched {
    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<Probe>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Watched {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Watched")
    }
}

type Read = fn(&BusStats) -> u64;
const GAUGES: [(&str, &str, Read); 4] = [
    ("unanswered", "Calls that wait for their answer", |s| {
        wide(s.unanswered)
    }),
    ("handlers_running", "Handlers that run", |s| {
        wide(s.handlers_running)
    }),
    ("requests_waiting", "Requests that wait for a handler", |s| {
        wide(s.requests_waiting)
    }),
    (
        "generation",
        "Grows when the transport may have forgotten something",
        |s| s.generation,
    ),
];

fn wide(count: usize) -> u64 {
    u64::try_from(count).unwrap_or(u64::MAX)
}

impl Collector for Watched {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let read: Vec<_> = self.lock().iter().filter_map(Probe::read).collect();
        for (name, help, value) in GAUGES {
            let gauge = |stats| ConstGauge::new(i64::try_from(value(stats)).unwrap_or(i64::MAX));
            let mut family =
                encoder.encode_descriptor(name, help, None, ConstGauge::new(0_i64).metric_type())?;
            for (member, stats) in &read {
                gauge(stats).encode(family.encode_family(&[("member", member.as_str())])?)?;
            }
        }
        let zero = ConstCounter::new(0_u64);
        let help = "Entries that were no frames of the bus";
        let mut family = encoder.encode_descriptor("frames_refused", help, None, zero.metric_type())?;
        for (member, stats) in &read {
            let counter = ConstCounter::new(stats.frames_refused);
            counter.encode(family.encode_family(&[("member", member.as_str())])?)?;
        }
        let help = "What came in and could not be used as it was meant";
        let mut family = encoder.encode_descriptor("bad_input", help, None, zero.metric_type())?;
        // Nobody's: a server that was refused before there was a member.
        let at_start = ("", RedisTransport::refused_at_start());
        let of_members = read
            .iter()
            .map(|(member, stats)| (member.as_str(), stats.bad_input));
        for (member, counts) in of_members.chain([at_start]) {
            for (what, count) in counts.iter() {
                let labels = [("member", member), ("what", what.name())];
                ConstCounter::new(count).encode(family.encode_family(&labels)?)?;
            }
        }
        Ok(())
    }
}
