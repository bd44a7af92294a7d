//! A synchronous call: the reply or exactly one fate, with layers for what every call needs.
//!
//! `cargo run --bin 05-rpc-call [-- --redis redis://HOST:PORT]`
#![expect(clippy::print_stdout, reason = "an example speaks to people")]

#[path = "support/bus.rs"]
mod bus;

use std::time::Duration;
use vbm_core::{Error, ErrorKind};
use vbm_rpc::{
    Bus, CallOptions, Context, Fate, Member, Method, Route, Router,
    layers::{BusMetrics, DeadlineLayer, RetryLayer, TraceLayer},
};

/// Divides one number by another.
struct Divide;
impl Method for Divide {
    const NAME: &'static str = "example.divide";
    type Request = (u32, u32);
    type Reply = u32;
}

async fn divide(_context: Context, (a, b): (u32, u32)) -> Result<u32, Error> {
    a.checked_div(b).ok_or_else(|| {
        Error::new(
            ErrorKind::InvalidInput,
            "cannot divide",
            "the divisor is 0",
            "give another divisor",
        )
    })
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let transport = bus::transport().await?;
    let metrics = BusMetrics::new();

    // The server: layers stand around every handler that was added before them.
    let router = Router::new()
        .method::<Divide, _, _>(divide)
        .layer(TraceLayer::new())
        .layer(DeadlineLayer::new())
        .layer(metrics.layer());
    let server = Bus::attach(
        transport.clone(),
        Member::new("lab/server".parse()?, "boot-1"),
        router,
    )
    .await?;

    // The client: from the inside out.
    let client = Bus::attach(
        transport,
        Member::new("lab/client".parse()?, "boot-1"),
        Router::new(),
    )
    .await?;
    let caller = client
        .layered(TraceLayer::new())
        .layered(metrics.layer())
        .layered(RetryLayer::default().metrics(metrics.clone()))
        .layered(DeadlineLayer::new().at_most(Duration::from_secs(10)));

    let route = Route::node("lab/server".parse()?);
    let options = || CallOptions::default().deadline(Duration::from_secs(5));
    println!(
        "84 / 2 = {}",
        caller.call::<Divide>(&route, &(84, 2), options()).await?
    );

    match caller.call::<Divide>(&route, &(1, 0), options()).await {
        Err(Fate::Refused(error)) => println!("refused, and not repeated: {}", error.why()),
        other => return Err(format!("expected a refusal, got {other:?}").into()),
    }

    let nobody = Route::node("lab/nobody".parse()?);
    match caller.call::<Divide>(&nobody, &(1, 1), options()).await {
        Err(fate @ Fate::NoRoute { .. }) => println!("after some tries: {fate}"),
        other => return Err(format!("expected no route, got {other:?}").into()),
    }
    let text = metrics.text();
    let lines = text
        .lines()
        .filter(|line| line.starts_with("vbm_bus_calls_total"));
    lines.for_each(|line| println!("{line}"));

    client.shutdown().await;
    server.shutdown().await;
    Ok(())
}
