//! Ours: typed calls from one attachment to another.

use super::{
    PAYLOAD_BYTES,
    load::{Measured, measure},
    server::RedisServer,
};
use crate::harness::{
    fault::{Fault, Outcome},
    ground::Ground,
};
use std::sync::Arc;
use vbm_core::NodePath;
use vbm_rpc::{
    Bus, CallOptions, Member, Method, Route, Router, Transport,
    memory::MemoryBus,
    redis::{RedisConfig, RedisTransport},
};

struct Echo;

impl Method for Echo {
    const NAME: &'static str = "bench.echo";
    type Request = String;
    type Reply = String;
}

pub(super) async fn over_redis(ground: &Ground, server: &RedisServer, flights: usize) -> Outcome<Measured> {
    let transport = RedisTransport::connect(RedisConfig::from_url(&server.url())?).await?;
    round(ground, Arc::new(transport), Some(server), flights).await
}

pub(super) async fn over_memory(ground: &Ground, flights: usize) -> Outcome<Measured> {
    round(ground, Arc::new(MemoryBus::new()), None, flights).await
}

async fn round(
    ground: &Ground,
    transport: Arc<dyn Transport>,
    server: Option<&RedisServer>,
    flights: usize,
) -> Outcome<Measured> {
    let (node, caller): (NodePath, NodePath) = ("n1".parse()?, "c1".parse()?);
    let echo = Router::new().method::<Echo, _, _>(|_context, text: String| async move { Ok(text) });
    let worker = Bus::attach(Arc::clone(&transport), Member::new(node.clone(), "worker"), echo).await?;
    let bus = Bus::attach(transport, Member::new(caller, "caller"), Router::new()).await?;
    let (calling, route, text) = (bus.clone(), Route::node(node), "x".repeat(PAYLOAD_BYTES));
    let measured = measure(ground, server, flights, move |_lane| {
        let call = calling.call::<Echo>(&route, &text, CallOptions::default());
        async move {
            call.await
                .map(drop)
                .map_err(|fate| Fault::new(format!("a call: {fate:?}")))
        }
    })
    .await;
    bus.shutdown().await;
    worker.shutdown().await;
    measured
}
