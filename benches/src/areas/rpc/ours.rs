//! Ours: typed calls from one attachment to another.

use super::{
    load::{Measured, Shape, measure},
    server::RedisServer,
};
use crate::harness::{
    fault::{Fault, Outcome},
    ground::Ground,
};
use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};
use vbm_core::NodePath;
use vbm_rpc::{
    Bus, CallOptions, Member, Method, Route, Router, Transport,
    memory::MemoryBus,
    redis::{RedisConfig, RedisTransport},
};

pub(super) struct Echo;

impl Method for Echo {
    const NAME: &'static str = "bench.echo";
    type Request = String;
    type Reply = String;
}

/// Answers it with what was asked.
pub(super) fn echo() -> Router {
    Router::new().method::<Echo, _, _>(|_context, text: String| async move { Ok(text) })
}

pub(super) async fn over_redis(ground: &Ground, server: &RedisServer, shape: Shape) -> Outcome<Measured> {
    let transport = RedisTransport::connect(RedisConfig::from_url(&server.url())?).await?;
    round(ground, Arc::new(transport), Some(server), shape).await
}

pub(super) async fn over_memory(ground: &Ground, shape: Shape) -> Outcome<Measured> {
    round(ground, Arc::new(MemoryBus::new()), None, shape).await
}

async fn round(
    ground: &Ground,
    transport: Arc<dyn Transport>,
    server: Option<&RedisServer>,
    shape: Shape,
) -> Outcome<Measured> {
    let (mut workers, mut routes) = (Vec::new(), Vec::new());
    for node in 0..shape.nodes {
        let node: NodePath = format!("n{node}").parse()?;
        let member = Member::new(node.clone(), "worker");
        workers.push(Bus::attach(Arc::clone(&transport), member, echo()).await?);
        routes.push(Route::node(node));
    }
    let bus = Bus::attach(transport, Member::new("c1".parse()?, "caller"), Router::new()).await?;
    let (calling, text) = (bus.clone(), "x".repeat(shape.payload));
    let (routes, next): (Arc<[Route]>, _) = (routes.into(), Arc::new(AtomicUsize::new(0)));
    let measured = measure(ground, server, shape.flights, move |_lane| {
        let route = &routes[next.fetch_add(1, Ordering::Relaxed) % routes.len()];
        let call = calling.call::<Echo>(route, &text, CallOptions::default());
        async move {
            call.await
                .map(drop)
                .map_err(|fate| Fault::new(format!("a call: {fate:?}")))
        }
    })
    .await;
    bus.shutdown().await;
    for worker in workers {
        worker.shutdown().await;
    }
    measured
}
