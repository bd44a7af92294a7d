//! NATS: request and reply over a queue group, as its own client does it. At most once: it keeps nothing.

use super::{
    PAYLOAD_BYTES,
    load::{Measured, measure},
};
use crate::harness::{
    child::{Talker, command},
    fault::{During, Fault, Outcome},
    ground::Ground,
};
use futures::StreamExt;
use std::time::Duration;
use tokio::task::JoinSet;

const START_WITHIN: Duration = Duration::from_secs(30);
const SUBJECT: &str = "bench.echo";

/// One connection for the callers and one for the worker, as ours has one attachment each.
pub(super) async fn round(ground: &Ground, flights: usize) -> Outcome<Measured> {
    // Inside the harness's own namespace or at least on loopback; the port is chosen by the kernel.
    let port = std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
    let mut nats = command("nats-server");
    nats.args(["--addr", "127.0.0.1", "--port", &port.to_string()]);
    let mut server = Talker::start(&mut nats)?;
    server
        .hear("Server is ready", START_WITHIN)
        .await
        .during("nats-server")?;
    let url = format!("nats://127.0.0.1:{port}");
    let worker = async_nats::connect(&url).await?;
    let mut requests = worker.queue_subscribe(SUBJECT, "workers".to_owned()).await?;
    worker.flush().await?;
    // Dropped at the end: then the worker ends.
    let mut workers = JoinSet::new();
    workers.spawn(async move {
        while let Some(message) = requests.next().await {
            if let Some(reply) = message.reply
                && worker.publish(reply, message.payload).await.is_err()
            {
                return;
            }
        }
    });
    let caller = async_nats::connect(&url).await?;
    let body = bytes::Bytes::from("x".repeat(PAYLOAD_BYTES));
    let measured = measure(ground, None, flights, move |_lane| {
        let (caller, body) = (caller.clone(), body.clone());
        async move {
            let reply = caller.request(SUBJECT, body).await?;
            if reply.payload.len() == PAYLOAD_BYTES {
                Ok(())
            } else {
                Err(Fault::new("NATS answered something else"))
            }
        }
    })
    .await;
    drop(server);
    measured
}
