//! Leader election: one leads at a time, a crash has a successor, and the old leader's commands are refused.
//!
//! `cargo run --bin 08-rpc-leader-election [-- --redis redis://HOST:PORT]`. On a Redis where nobody was elected before, the
//! first election waits for one lease: that Redis may have lost its memory.
#![expect(clippy::print_stdout, reason = "an example speaks to people")]

#[path = "support/bus.rs"]
mod bus;

use std::{sync::Arc, time::Duration};
use vbm_core::{ErrorKind, Name};
use vbm_rpc::{
    Bus, Context, Fate, Member, Method, Route, Router,
    election::{CampaignOptions, Elections, FileEpochGate},
};

/// A command that only the leader may give. Methods are fenced unless they say otherwise.
struct Switch;
impl Method for Switch {
    const NAME: &'static str = "example.switch";
    type Request = bool;
    type Reply = String;
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let transport = bus::transport().await?;
    let name: Name = "control".parse()?;

    // The lamp obeys leaders only. It remembers the highest epoch on disk, and says it to candidates.
    let dir = tempfile::tempdir()?;
    let gate = Arc::new(FileEpochGate::open(dir.path().join("epoch"))?);
    let elections = Elections::new().remember(name.clone(), gate.clone());
    let router =
        Router::new()
            .with_epoch_gate(gate)
            .method::<Switch, _, _>(|context: Context, on: bool| async move {
                let state = if on { "on" } else { "off" };
                Ok(format!(
                    "{state} by order of {} under epoch {}",
                    context.caller, context.epoch
                ))
            });
    let lamp = Member::new("house/lamp".parse()?, "boot-1");
    let lamp = Bus::attach(transport.clone(), lamp, elections.serve(router)).await?;
    let to_lamp = Route::node("house/lamp".parse()?);

    let options = CampaignOptions::default().lease(Duration::from_secs(1));
    let elections = Elections::new();
    let attach = |path: &str| {
        let member = path.parse().map(|path| Member::new(path, "boot-1"));
        let transport = transport.clone();
        async move { Ok::<_, Box<dyn std::error::Error>>(Bus::attach(transport, member?, Router::new()).await?) }
    };
    let one = attach("house/one").await?;
    let mut first = elections.campaign(&one, name.clone(), options.clone())?;
    let old = first.elected().await?;
    println!("{}", one.call::<Switch>(&to_lamp, &true, old.options()).await?);

    let two = attach("house/two").await?;
    let mut second = elections.campaign(&two, name, options)?;
    one.kill().await;
    println!("the leader is gone");
    let new = second.elected().await?;
    println!("{}", two.call::<Switch>(&to_lamp, &false, new.options()).await?);

    // What the old one would say, had it only been asleep.
    let ghost = attach("house/ghost").await?;
    match ghost.call::<Switch>(&to_lamp, &true, old.options()).await {
        Err(Fate::Refused(error)) if error.kind() == ErrorKind::Stale => {
            println!("the old leader is refused: {}", error.what());
        }
        other => return Err(format!("a stale command was obeyed: {other:?}").into()),
    }
    second.stop().await;
    for bus in [ghost, two, lamp] {
        bus.shutdown().await;
    }
    Ok(())
}
