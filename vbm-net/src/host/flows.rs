//! Reads and cuts flows of the kernel's table.

use super::{exec, netns::NetNs};
use crate::{
    NetError,
    plan::{
        Transit,
        flows::{self, Flow},
    },
};
use std::collections::BTreeSet;

/// The most flows that are cut one by one. Beyond it all flows to the same VM are cut at once, those that may go on too: too much
/// rather than too little, and in bounded time.
const FLOWS_CUT_SINGLY_MAX: usize = 64;

const IPV4: &str = "ipv4";
const IPV6: &str = "ipv6";

/// The flows of a namespace; of IPv6 too, where it is spoken.
pub(super) async fn inside(ns: &NetNs, ipv6: bool) -> Result<Vec<Flow>, NetError> {
    let mut all = read(ns, &["-L", "-f", IPV4]).await?;
    if ipv6 {
        all.extend(read(ns, &["-L", "-f", IPV6]).await?);
    }
    Ok(all)
}

/// The flows of the host that a namespace answers.
pub(super) async fn answered_by(host: &NetNs, transit: Transit) -> Result<Vec<Flow>, NetError> {
    read(
        host,
        &["-L", "-f", IPV4, "--reply-src", &transit.inner().to_string()],
    )
    .await
}

async fn read(ns: &NetNs, args: &[&str]) -> Result<Vec<Flow>, NetError> {
    let text = exec::must(ns, exec::Program::Conntrack, args, "", "reading flows").await?;
    Ok(flows::parse(&text))
}

/// Deletes flows; one that ended by itself meanwhile makes `conntrack` answer 1, so the caller reads again instead.
pub(super) async fn delete(ns: &NetNs, flows: &[Flow]) -> Result<(), NetError> {
    let (singly, rest) = flows.split_at(flows.len().min(FLOWS_CUT_SINGLY_MAX));
    for flow in singly {
        let args = one(flow);
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        exec::run(ns, exec::Program::Conntrack, &args, "").await?;
    }
    // Those that begin and those that are answered: a way out that was closed has its flows at many answerers.
    let mut ends = BTreeSet::new();
    for flow in rest {
        ends.insert((family(flow), flow.answerer.to_string()));
    }
    for (family, answerer) in ends {
        let args = ["-D", "-f", family, "--reply-src", &answerer];
        exec::run(ns, exec::Program::Conntrack, &args, "").await?;
    }
    Ok(())
}

fn family(flow: &Flow) -> &'static str {
    if flow.from.is_ipv4() { IPV4 } else { IPV6 }
}

/// The arguments that name just this flow.
fn one(flow: &Flow) -> Vec<String> {
    let mut args: Vec<String> = ["-D", "-f", family(flow), "-s"].map(str::to_owned).into();
    args.extend([flow.from.to_string(), "-d".into(), flow.to.to_string()]);
    if flow.protocol != "unknown" {
        args.extend(["-p".into(), flow.protocol.clone()]);
    }
    if let (Some(from), Some(to)) = (flow.from_port, flow.to_port) {
        args.extend([
            "--sport".into(),
            from.to_string(),
            "--dport".into(),
            to.to_string(),
        ]);
    }
    if let Some((kind, code, id)) = flow.icmp {
        let option = |name: &str| format!("--{}-{name}", flow.protocol);
        args.extend([option("type"), kind.to_string(), option("code"), code.to_string()]);
        args.extend([option("id"), id.to_string()]);
    }
    args
}
