//! Reads and cuts flows of the kernel's table.

use super::{exec, netns::NetNs, present};
use crate::{
    NetError,
    plan::{
        Transit,
        flows::{self, Flow},
    },
};
use std::{
    collections::{BTreeSet, HashMap},
    net::IpAddr,
};

/// The most calls of `conntrack` for one cutting. Where flows are fewer they are cut one by one; beyond it all flows from or to an
/// address are cut at once, those that may go on too: too much rather than too little, and in bounded time.
const CUT_CALLS_MAX: usize = 64;

const IPV4: &str = "ipv4";
const IPV6: &str = "ipv6";

/// The flows of a namespace, of both families: whether or not IPv6 is spoken now, what was begun may have been before.
pub(super) async fn inside(ns: &NetNs) -> Result<Vec<Flow>, NetError> {
    read(ns, &["-L"]).await
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
    if !present::has_flows(ns).await? {
        return Ok(Vec::new());
    }
    let text = exec::must(ns, exec::Program::Conntrack, args, "", "reading flows").await?;
    Ok(flows::parse(&text))
}

/// Deletes flows; one that ended by itself meanwhile makes `conntrack` answer 1, so the caller reads again instead.
pub(super) async fn delete(ns: &NetNs, flows: &[Flow]) -> Result<(), NetError> {
    for args in calls(flows) {
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        exec::run(ns, exec::Program::Conntrack, &args, "").await?;
    }
    Ok(())
}

/// One end of a flow, as `conntrack` selects it. In order of preference: who lost a rule or a forward is most often who answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum End {
    Begins(IpAddr),
    Answers(IpAddr),
}

impl End {
    fn of(flow: &Flow) -> [Self; 2] {
        [Self::Begins(flow.from), Self::Answers(flow.answerer)]
    }

    fn args(self) -> Vec<String> {
        let (option, address) = match self {
            Self::Begins(address) => ("--orig-src", address),
            Self::Answers(address) => ("--reply-src", address),
        };
        let address_family = if address.is_ipv4() { IPV4 } else { IPV6 };
        ["-D", "-f", address_family, option, &address.to_string()]
            .map(str::to_owned)
            .into()
    }
}

/// The arguments of each call, [`CUT_CALLS_MAX`] at most. Many flows that end together mostly share an end, for it is a port that
/// lost its ground: each time the address with most of what is left goes. What is then still left, in a network
/// where many ports did to many peers, is all that there is of its family.
fn calls(flows: &[Flow]) -> Vec<Vec<String>> {
    if flows.len() <= CUT_CALLS_MAX {
        return flows.iter().map(one).collect();
    }
    let mut counts = HashMap::<End, usize>::new();
    for end in flows.iter().flat_map(End::of) {
        *counts.entry(end).or_default() += 1;
    }
    let mut rest: Vec<&Flow> = flows.iter().collect();
    let mut calls = Vec::new();
    // Two are kept for the families.
    while calls.len() < CUT_CALLS_MAX - 2 {
        let most = counts.iter().max_by_key(|(end, count)| (**count, **end));
        let Some((end, _)) = most.filter(|_| !rest.is_empty()) else {
            return calls;
        };
        let end = *end;
        let (gone, left): (Vec<&Flow>, Vec<&Flow>) =
            rest.into_iter().partition(|flow| End::of(flow).contains(&end));
        for other in gone.into_iter().flat_map(End::of) {
            if let Some(count) = counts.get_mut(&other) {
                *count -= 1;
            }
        }
        rest = left;
        calls.push(end.args());
    }
    let families: BTreeSet<&str> = rest.into_iter().map(family).collect();
    calls.extend(
        families
            .into_iter()
            .map(|f| ["-D", "-f", f].map(str::to_owned).into()),
    );
    calls
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

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn flow(from: IpAddr, answerer: IpAddr, from_port: u16) -> Flow {
        Flow {
            protocol: "udp".into(),
            from,
            to: answerer,
            from_port: Some(from_port),
            to_port: Some(53),
            answerer,
            answerer_port: Some(53),
            answered: from,
            icmp: None,
        }
    }

    fn v4(n: u16) -> IpAddr {
        let [a, b] = n.to_be_bytes();
        [10, 1, a, b].into()
    }

    /// What a call of `conntrack` does.
    fn is_cut_by(flow: &Flow, args: &[String]) -> bool {
        let words: Vec<&str> = args.iter().map(String::as_str).collect();
        let (from, answerer) = (flow.from.to_string(), flow.answerer.to_string());
        match words[..] {
            ["-D", "-f", f] => f == family(flow),
            ["-D", "-f", f, "--orig-src", a] => f == family(flow) && a == from,
            ["-D", "-f", f, "--reply-src", a] => f == family(flow) && a == answerer,
            _ => words == one(flow),
        }
    }

    #[test]
    fn a_port_that_spoke_with_thousands_is_cut_by_one_call() {
        let port: IpAddr = [10, 77, 0, 10].into();
        let out: Vec<Flow> = (0..3_000).map(|n| flow(port, v4(n), n)).collect();
        assert_eq!(calls(&out), [["-D", "-f", "ipv4", "--orig-src", "10.77.0.10"]]);
        let r#in: Vec<Flow> = (0..3_000).map(|n| flow(v4(n), port, n)).collect();
        assert_eq!(calls(&r#in), [["-D", "-f", "ipv4", "--reply-src", "10.77.0.10"]]);
        assert_eq!(calls(&[out, r#in].concat()).len(), 2, "one that did both");
    }

    #[test]
    fn of_two_ends_that_lost_as_much_the_one_that_answers_is_cut() {
        let flows: Vec<Flow> = (0..300).map(|n| flow(v4(1), v4(2), n)).collect();
        assert_eq!(calls(&flows), [["-D", "-f", "ipv4", "--reply-src", "10.1.0.2"]]);
    }

    #[test]
    fn few_flows_take_no_others_along() {
        let flows: Vec<Flow> = (0..9).map(|n| flow(v4(1), v4(2), n)).collect();
        assert_eq!(calls(&flows), flows.iter().map(one).collect::<Vec<_>>());
        assert!(calls(&[]).is_empty());
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(16))]

        #[test]
        fn every_flow_is_cut_by_a_bounded_number_of_calls(ends in prop::collection::vec((0u16..200, 0u16..200, any::<bool>()), 0..500)) {
            let six = |n: u16| IpAddr::from([0xfd00, 0, 0, 0, 0, 0, 0, n]);
            let flows: Vec<Flow> = ends
                .iter()
                .map(|(a, b, v6)| if *v6 { flow(six(*a), six(*b), 1) } else { flow(v4(*a), v4(*b), 1) })
                .collect();
            let calls = calls(&flows);
            prop_assert!(calls.len() <= CUT_CALLS_MAX, "{}", calls.len());
            for flow in &flows {
                prop_assert!(calls.iter().any(|args| is_cut_by(flow, args)), "{flow:?}");
            }
        }
    }
}
