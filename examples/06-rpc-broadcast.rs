//! A broadcast: to all below a scope, at any depth; a quorum; and who did not answer is named.
//!
//! `cargo run --bin 06-rpc-broadcast [-- --redis redis://HOST:PORT]`
#![expect(clippy::print_stdout, reason = "an example speaks to people")]

#[path = "support/bus.rs"]
mod bus;

use std::time::Duration;
use vbm_rpc::{Bus, CallOptions, Context, Member, Method, Route, Router, Service};

struct Load;
impl Method for Load {
    const NAME: &'static str = "example.load";
    type Request = ();
    type Reply = u32;
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let transport = bus::transport().await?;
    let agent = Service::new("agent")?;
    let mut nodes = Vec::new();
    // The last one takes longer than anybody will wait.
    for (path, load, takes) in [
        ("eu/rack1/a", 10, 0),
        ("eu/rack1/b", 20, 0),
        ("eu/rack2/c", 30, 0),
        ("us/rack1/d", 40, 0),
        ("us/rack1/e", 50, 60),
    ] {
        let router = Router::new().method::<Load, _, _>(move |context: Context, ()| async move {
            tokio::select! {
                () = tokio::time::sleep(Duration::from_secs(takes)) => {}
                () = context.cancelled.cancelled() => {}
            }
            Ok(load)
        });
        let member = Member::new(path.parse()?, "boot-1").service(agent.clone());
        nodes.push(Bus::attach(transport.clone(), member, router).await?);
    }
    let caller = Bus::attach(
        transport,
        Member::new("eu/caller".parse()?, "boot-1"),
        Router::new(),
    )
    .await?;

    for scope in ["/", "eu", "eu/rack1"] {
        let route = Route::all(scope.parse()?, agent.clone());
        let options = CallOptions::default().deadline(Duration::from_secs(2));
        let mut replies = caller.broadcast::<Load>(&route, &(), options).await?;
        let mut sum = 0;
        while let Some((_who, load)) = replies.next().await {
            sum += load?;
        }
        println!("below {scope}: {sum}, silent: {:?}", replies.silent());
    }

    let all = Route::all("/".parse()?, agent);
    let mut replies = caller
        .broadcast::<Load>(&all, &(), CallOptions::default().quorum(2))
        .await?;
    let mut answers = 0;
    while replies.next().await.is_some() {
        answers += 1;
    }
    println!("a quorum of {answers} is enough");

    drop(replies);
    caller.shutdown().await;
    for node in nodes {
        node.shutdown().await;
    }
    Ok(())
}
