//! NATS: request and reply over a queue group, as its own client does it. At most once: it keeps nothing.

use super::load::{Measured, Shape, measure};
use crate::harness::{
    child::{Talker, command},
    fault::{During, Fault, Outcome},
    ground::Ground,
};
use futures::StreamExt;
use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};
use tokio::task::JoinSet;

const START_WITHIN: Duration = Duration::from_secs(30);

fn subject(node: usize) -> String {
    format!("bench.echo.{node}")
}

/// One connection for the callers and one for each node, as ours has one attachment each.
pub(super) async fn round(ground: &Ground, shape: Shape) -> Outcome<Measured> {
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
    // Dropped at the end: then the workers end.
    let mut workers = JoinSet::new();
    for node in 0..shape.nodes {
        let worker = async_nats::connect(&url).await?;
        let mut requests = worker
            .queue_subscribe(subject(node), "workers".to_owned())
            .await?;
        worker.flush().await?;
        workers.spawn(async move {
            while let Some(message) = requests.next().await {
                if let Some(reply) = message.reply
                    && worker.publish(reply, message.payload).await.is_err()
                {
                    return;
                }
            }
        });
    }
    let caller = async_nats::connect(&url).await?;
    let body = bytes::Bytes::from("x".repeat(shape.payload));
    let subjects: Arc<[String]> = (0..shape.nodes).map(subject).collect();
    let next = Arc::new(AtomicUsize::new(0));
    let measured = measure(ground, None, shape.flights, move |_lane| {
        let (caller, body) = (caller.clone(), body.clone());
        let to = subjects[next.fetch_add(1, Ordering::Relaxed) % subjects.len()].clone();
        async move {
            let sent = body.len();
            let reply = caller.request(to, body).await?;
            if reply.payload.len() == sent {
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
