//! What an agent does beside single ports: members of a group that change, a start with many networks, compiling of rules.

use super::lab::{Lab, network};
use crate::harness::{
    duel::solo,
    fault::{During, Fault, Outcome},
    ground::Ground,
    row::Row,
    rows::Rows,
    space::Space,
};
use futures::{StreamExt, TryStreamExt, stream};
use std::{hint::black_box, net::Ipv4Addr};
use tokio::time::Instant;
use vbm_core::{GroupId, GroupSpec};
use vbm_net::{DesiredGroup, DesiredNetwork, NetworkBackend, Validated, plan};

/// The members of a group, on other hosts.
const MEMBERS: u32 = 1_000;
/// Networks of an agent that is started again.
const NETWORKS: usize = 1_000;
const NETWORKS_QUICK: usize = 50;
/// How many are made side by side, as a node does.
const AT_ONCE: usize = 8;
/// The ports whose rules are compiled.
const COMPILED: usize = 4_000;

pub(super) async fn run(ground: &Ground, rows: &mut Rows) {
    let name = format!("compile the rules of {COMPILED} ports");
    rows.measure(&name, "ms", compile(ground, &name)).await;
    let name = format!("a member more in a group of {MEMBERS}");
    rows.measure(&name, "ms", member(ground, &name)).await;
    let networks = ground.size(NETWORKS, NETWORKS_QUICK);
    let name = format!("restart with {networks} networks, all read back");
    rows.measure(&name, "s", restart(ground, networks, &name)).await;
}

async fn compile(ground: &Ground, name: &str) -> Outcome<Row> {
    let wanted = Validated::<DesiredNetwork>::new(network(COMPILED)?)?;
    let samples = solo(ground.rounds(), async |_| {
        let begin = Instant::now();
        black_box(plan::guard::render(&wanted));
        black_box(plan::inside::render(&wanted, None));
        Ok(begin.elapsed().as_secs_f64() * 1e3)
    })
    .await?;
    Ok(Row::new(name, "ms", samples).noted("guard and iptables of IPv4, as text"))
}

fn group(members: u32) -> Outcome<DesiredGroup> {
    let address = |n| Ipv4Addr::from(u32::from(Ipv4Addr::new(10, 9, 100, 0)) + n);
    let rules = ["any@self", "egress:any"].into_iter().map(str::parse);
    Ok(DesiredGroup {
        id: GroupId::from_uuid(uuid::Uuid::from_u128(7)),
        name: "many".parse()?,
        spec: GroupSpec {
            rules: rules.collect::<Result<_, _>>()?,
            egress_closed: false,
        },
        members: (0..members)
            .map(|n| format!("{}/32", address(n)).parse())
            .collect::<Result<_, _>>()
            .map_err(|_bad| Fault::new("a member is no address"))?,
    })
}

/// One member more, and the peer of each: a call of `ipset` for one, as it is common to do for all.
async fn member(ground: &Ground, name: &str) -> Outcome<Row> {
    let lab = Lab::open(ground).await?;
    let mut wanted = network(10)?;
    wanted.groups = vec![group(MEMBERS)?];
    for port in &mut wanted.ports {
        port.rules.clear();
        port.policy.groups = vec![wanted.groups[0].id];
    }
    lab.ensure(&wanted).await?;
    let typed = Space::make("ipset").await?;
    typed.run("ipset", &["create", "many", "hash:net", "maxelem", "262144"], "")?;
    let (mut ours, mut peer, mut members) = (Vec::new(), Vec::new(), MEMBERS);
    for round in 0..u32::try_from(ground.rounds())? {
        members += 1;
        wanted.groups = vec![group(members)?];
        let begin = Instant::now();
        let seen = lab.ensure(&wanted).await?;
        ours.push(begin.elapsed().as_secs_f64() * 1e3);
        if let Some(rule) = seen.changed.iter().find(|c| c.contains("rules")) {
            return Err(Fault::new(format!("rules were touched: {rule}")));
        }
        let begin = Instant::now();
        for n in 0..MEMBERS {
            let address = Ipv4Addr::from(0x0a0a_0000 + round * MEMBERS + n).to_string();
            typed.run("ipset", &["add", "many", &address], "")?;
        }
        peer.push(begin.elapsed().as_secs_f64() * 1e3);
    }
    Ok(Row::new(name, "ms", ours)
        .against(format!("`ipset add` for each of {MEMBERS}"), peer)
        .goal("<= 20")
        .noted("no iptables takes part, which is checked; flows are looked through"))
}

/// An agent that finds all its networks as they should be.
async fn restart(ground: &Ground, networks: usize, name: &str) -> Outcome<Row> {
    let mut lab = Lab::open(ground).await?;
    let all: Vec<DesiredNetwork> = (0..networks).map(|_| network(2)).collect::<Outcome<_>>()?;
    let ensure_all = async |lab: &Lab| -> Outcome<usize> {
        let each = all.iter().map(|wanted| lab.net.ensure(wanted.clone()));
        let seen: Vec<_> = stream::iter(each).buffer_unordered(AT_ONCE).try_collect().await?;
        Ok(seen.iter().filter(|s| s.ready).count())
    };
    let begin = Instant::now();
    ensure_all(&lab).await.during("making them")?;
    let made = begin.elapsed().as_secs_f64();
    let mut samples = Vec::new();
    for _ in 0..3 {
        let begin = Instant::now();
        lab.reopen().await?;
        if ensure_all(&lab).await? != networks {
            return Err(Fault::new("not all are ready"));
        }
        samples.push(begin.elapsed().as_secs_f64());
    }
    let goal = format!("<= {}", 10.0 * networks as f64 / NETWORKS as f64);
    Ok(Row::new(name, "s", samples).goal(&goal).noted(format!(
        "the goal is 10 s for {NETWORKS}, here in proportion; making them took {made:.1} s"
    )))
}
