//! The bus alone: calls, a broadcast, and what becomes of a call that nobody can take.
//!
//! Here three members share one process and a bus in memory. With
//! `RedisTransport::connect(RedisConfig::from_url("redis://HOST:PORT")?)` instead they may be anywhere.
#![expect(clippy::print_stdout, reason = "an example speaks to people")]

use vbm_rpc::{Bus, CallOptions, Context, Fate, Member, Method, Route, Router, Service, memory::MemoryBus};

struct Load;
impl Method for Load {
    const NAME: &'static str = "example.load";
    type Request = ();
    type Reply = u32;
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let transport = MemoryBus::new();
    let worker = Service::new("worker")?;

    let mut workers = Vec::new();
    for (path, load) in [("eu/rack1/a", 10_u32), ("eu/rack2/b", 20)] {
        let router = Router::new().method::<Load, _, _>(move |_: Context, ()| async move { Ok(load) });
        let member = Member::new(path.parse()?, "boot-1").service(worker.clone());
        workers.push(Bus::attach(transport.clone(), member, router).await?);
    }
    let caller = Bus::attach(
        transport,
        Member::new("eu/caller".parse()?, "boot-1"),
        Router::new(),
    )
    .await?;

    let one = Route::node("eu/rack1/a".parse()?);
    println!(
        "one node answers: {}",
        caller.call::<Load>(&one, &(), CallOptions::default()).await?
    );

    let any = Route::any("eu/rack2".parse()?, worker.clone());
    println!(
        "any below a scope: {}",
        caller.call::<Load>(&any, &(), CallOptions::default()).await?
    );

    let all = Route::all("eu".parse()?, worker);
    let mut replies = caller
        .broadcast::<Load>(&all, &(), CallOptions::default())
        .await?;
    while let Some((who, load)) = replies.next().await {
        println!("of all: {who} says {}", load?);
    }

    let nowhere = Route::node("us/none".parse()?);
    match caller.call::<Load>(&nowhere, &(), CallOptions::default()).await {
        Err(fate @ Fate::NoRoute { .. }) => println!("nobody there, known at once: {fate}"),
        other => return Err(format!("expected no route, got {other:?}").into()),
    }

    caller.shutdown().await;
    for worker in workers {
        worker.shutdown().await;
    }
    Ok(())
}
