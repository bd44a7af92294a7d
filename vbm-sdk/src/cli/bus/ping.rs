//! `vbm bus ping`: is a member there, and how long does a call take?
//!
//! For the time of the call this process is a member of the bus, under a name of its own below the root.

use crate::cli::{args::BusPing, session::Session};
use serde::Serialize;
use std::time::Duration;
use tokio::time::{Instant, sleep};
use uuid::Uuid;
use vbm_core::{Error, NodePath};
use vbm_rpc::{
    Bus, CallOptions, Lane, Member, Route, Router,
    admin::{Admin, Hop, Ping, Pong, Stage},
};

/// How long an answer is waited for when nothing else is said.
const PATIENCE: Duration = Duration::from_secs(5);
/// How long the last hop, that of the answer, is waited for: it is written after the answer came.
const LAST_HOP: Duration = Duration::from_secs(1);
/// How often it is looked for.
const LAST_HOP_POLL: Duration = Duration::from_millis(5);

#[derive(Serialize)]
struct Answered {
    #[serde(flatten)]
    pong: Pong,
    micros: u64,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    hops: Vec<Hop>,
}

pub(super) async fn run(on: &Session<'_>, args: &BusPing) -> Result<(), Error> {
    let to = Route::node(args.member.parse::<NodePath>()?);
    let transport = super::transport(&args.place).await?;
    let admin = super::of(&transport)?;
    let name = Uuid::now_v7().simple().to_string();
    let member = Member::new(format!("vbm-ping-{name}").parse()?, name);
    let bus = Bus::attach(transport, member, Router::new()).await?;
    let lane = if args.control { Lane::Control } else { Lane::Bulk };
    let options = CallOptions::default()
        .deadline(on.timeout.unwrap_or(PATIENCE))
        .lane(lane)
        .traced(args.trace);
    let begun = Instant::now();
    let answer = bus.call::<Ping>(&to, &(), options).await;
    let micros = u64::try_from(begun.elapsed().as_micros()).unwrap_or(u64::MAX);
    let hops = match &answer {
        Ok(pong) if args.trace => hops(&*admin, pong.call).await,
        _ => Ok(Vec::new()),
    };
    bus.shutdown().await;
    let answered = Answered {
        pong: answer?,
        micros,
        hops: hops?,
    };
    let mut text = format!(
        "{} ({}) answered after {}.{:03} ms",
        answered.pong.path,
        answered.pong.boot_id,
        micros / 1_000,
        micros % 1_000
    );
    if args.trace {
        text.push('\n');
        text.push_str(&super::trace::table(&answered.hops).render(false, None));
    }
    on.out.item(&answered, &args.member, &text)
}

/// All hops of a call that was answered.
async fn hops(admin: &dyn Admin, call: Uuid) -> Result<Vec<Hop>, Error> {
    let begun = Instant::now();
    loop {
        let hops = admin.trace(call).await?;
        let is_complete = hops.last().is_some_and(|hop| hop.stage == Stage::Answered);
        if is_complete || begun.elapsed() > LAST_HOP {
            return Ok(hops);
        }
        sleep(LAST_HOP_POLL).await;
    }
}
