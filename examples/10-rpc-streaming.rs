//! Server streaming: items in order, none missing, none twice; a reader that is slow stops the sender, one that leaves ends
//! it.
//!
//! `cargo run --bin 10-rpc-streaming [-- --redis redis://HOST:PORT]`
#![expect(clippy::print_stdout, reason = "an example speaks to people")]

#[path = "support/bus.rs"]
mod bus;

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};
use tokio::time::{Instant, sleep};
use vbm_rpc::{
    Bus, Context, Fate, ItemSink, Member, Method, Route, Router, StreamMethod, StreamOptions, limits,
};

const PATIENCE: Duration = Duration::from_secs(30);

/// The lines of a log: a stream of them, and at its end how many there were.
struct Tail;
impl Method for Tail {
    const NAME: &'static str = "example.tail";
    type Request = u64;
    type Reply = u64;
}
impl StreamMethod for Tail {
    type Item = String;
}

/// Waits until something is so.
async fn until(what: &str, is_so: impl Fn() -> bool) -> Result<(), String> {
    let begun = Instant::now();
    while !is_so() {
        if begun.elapsed() > PATIENCE {
            return Err(format!("{what} did not come"));
        }
        sleep(Duration::from_millis(5)).await;
    }
    Ok(())
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let transport = bus::transport().await?;

    // The server: a send waits while the reader has no room for more.
    let sent = Arc::new(AtomicU64::new(0));
    let left = Arc::new(AtomicU64::new(0));
    let (counts, leaves) = (sent.clone(), left.clone());
    let router = Router::new().stream::<Tail, _, _>(
        move |_context: Context, lines: u64, mut items: ItemSink<Tail>| {
            let (counts, leaves) = (counts.clone(), leaves.clone());
            async move {
                for n in 0..lines {
                    if let Err(gone) = items.send(&format!("line {n}")).await {
                        leaves.fetch_add(1, Ordering::Relaxed);
                        return Err(gone);
                    }
                    counts.fetch_add(1, Ordering::Relaxed);
                }
                Ok(lines)
            }
        },
    );
    let server = Bus::attach(
        transport.clone(),
        Member::new("lab/server".parse()?, "boot-1"),
        router,
    )
    .await?;
    let client = Bus::attach(
        transport,
        Member::new("lab/client".parse()?, "boot-1"),
        Router::new(),
    )
    .await?;
    let route = Route::node("lab/server".parse()?);
    let options = || StreamOptions::new().idle(PATIENCE);

    // All of it, and the end value behind the last item.
    let mut lines = client.stream::<Tail>(&route, &1_000, options()).await?;
    let mut count = 0;
    while let Some(line) = lines.next().await {
        if line? != format!("line {count}") {
            return Err("a line is missing, or came twice".into());
        }
        count += 1;
    }
    println!("{count} lines in order, the end says {:?}", lines.end());

    // A reader that does not read: the sender gets as far as its credit, and waits there.
    sent.store(0, Ordering::Relaxed);
    let mut slow = client.stream::<Tail>(&route, &u64::MAX, options()).await?;
    let window = limits::STREAM_WINDOW_ITEMS;
    until("the end of the credit", || sent.load(Ordering::Relaxed) == window).await?;
    let _first = slow.next().await.ok_or("it ended early")??;
    println!(
        "unread, the sender stops after {} lines",
        sent.load(Ordering::Relaxed)
    );

    // A reader that leaves: the sender is told.
    drop(slow);
    until("the end of the sender", || left.load(Ordering::Relaxed) == 1).await?;
    println!("the reader left, and so does the sender");

    // Nobody there: known at once, before any item.
    match client
        .stream::<Tail>(&Route::node("lab/nobody".parse()?), &1, options())
        .await
    {
        Err(fate @ Fate::NoRoute { .. }) => println!("{fate}"),
        other => return Err(format!("expected no route, got {other:?}").into()),
    }

    client.shutdown().await;
    server.shutdown().await;
    Ok(())
}
