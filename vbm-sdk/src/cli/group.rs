//! `vbm group`.

use super::{
    args::{Group, GroupVm},
    forms, human,
    info::Lines,
    session::Session,
    table::Table,
};
use crate::api::{CreateGroup, NicView, SetGroups, SetRules, VmView};
use std::collections::BTreeMap;
use vbm_core::{Error, ErrorKind, GroupId, Name, Rule, Timestamp, group::Peer};

const NONE_YET: &str = "no groups yet: make one with `vbm group create web tcp/80 icmp`";
/// How often a change is tried again when somebody else changes the same group.
const STALE_RETRY_MAX: usize = 5;

pub(super) async fn run(on: &Session<'_>, verb: Group) -> Result<(), Error> {
    let groups = on.client.groups();
    match verb {
        Group::Create(args) => {
            let request = CreateGroup {
                name: args.group.parse()?,
                rules: forms::rules(&args.rules)?,
                egress_closed: args.egress_closed,
            };
            let made = groups.create(request).await?;
            let name = made.meta.name.to_string();
            let named = known(on).await?.group(&made);
            on.out.done(&made, &name, &told(&named))?;
            on.out
                .hint(&format!("put a VM into it with `vbm group attach {name} VM`"));
            Ok(())
        }
        Group::List => {
            let all = groups.list().all().await?;
            on.out.list(
                &all,
                |g| g.meta.name.to_string(),
                &table(&all, &Known::of(&all), on.now()),
                NONE_YET,
            )
        }
        Group::Info(args) => {
            let group = groups.get(&args.group).await?;
            let named = known(on).await?.group(&group);
            on.out
                .item(&group, group.meta.name.as_str(), &detail(&named, on.now()))
        }
        Group::Delete(args) => {
            let act = |name: String| groups.delete(name).into_future();
            on.each_at_once(&args.groups, act, |name| format!("{name} is gone"))
                .await
        }
        Group::Allow(args) => {
            let more = forms::rules(&args.rules)?;
            change(on, &args.group, |has| Ok(with(has, &more))).await
        }
        Group::Deny(args) => {
            let less = forms::rules(&args.rules)?;
            change(on, &args.group, |has| without(has, &less, &args.group)).await
        }
        Group::Attach(args) => move_vm(on, &args, Move::In).await,
        Group::Detach(args) => move_vm(on, &args, Move::Out).await,
    }
}

/// Reads the rules, changes them, writes them back; again when somebody else was faster.
async fn change(
    on: &Session<'_>,
    name: &str,
    next: impl Fn(&[Rule]) -> Result<Vec<Rule>, Error>,
) -> Result<(), Error> {
    let groups = on.client.groups();
    let mut tries = 0;
    let known = known(on).await?;
    let accepted = loop {
        let group = groups.get(name).await?;
        let request = SetRules {
            // By name, as they are typed and listed.
            rules: next(&known.group(&group).spec.rules)?,
            egress_closed: None,
            generation: Some(group.meta.generation),
        };
        match groups.set_rules(group.meta.id.to_string(), request).await {
            Err(error) if error.kind() == ErrorKind::Stale && tries < STALE_RETRY_MAX => tries += 1,
            other => break other?,
        }
    };
    if on.finish(&accepted.operation).await? {
        on.out.done(
            &accepted.item,
            accepted.item.meta.name.as_str(),
            &told(&known.group(&accepted.item)),
        )?;
    }
    Ok(())
}

/// The names of groups: records hold the ids of peers, people their names.
struct Known(BTreeMap<GroupId, Name>);

async fn known(on: &Session<'_>) -> Result<Known, Error> {
    Ok(Known::of(&on.client.groups().list().all().await?))
}

impl Known {
    fn of(groups: &[vbm_core::Group]) -> Self {
        let all = groups.iter().map(|g| (g.meta.id, g.meta.name.clone()));
        Self(all.collect())
    }

    /// The same group, with the peers of its rules by name where they have one.
    fn group(&self, group: &vbm_core::Group) -> vbm_core::Group {
        let mut named = group.clone();
        for rule in &mut named.spec.rules {
            if let Some(Peer::Group(id)) = &rule.peer
                && let Some(name) = self.0.get(id)
            {
                rule.peer = Some(Peer::Named(name.clone()));
            }
        }
        named
    }
}

fn with(has: &[Rule], more: &[Rule]) -> Vec<Rule> {
    let new = more.iter().filter(|rule| !has.contains(rule));
    has.iter().chain(new).cloned().collect()
}

fn without(has: &[Rule], less: &[Rule], group: &str) -> Result<Vec<Rule>, Error> {
    if let Some(unknown) = less.iter().find(|rule| !has.contains(rule)) {
        return Err(Error::new(
            ErrorKind::NotFound,
            format!("group '{group}' has no rule '{unknown}'"),
            if has.is_empty() {
                "it has no rules".into()
            } else {
                format!("its rules are {}", spelled(has))
            },
            "name a rule as it is listed: rules are taken away whole",
        ));
    }
    Ok(has.iter().filter(|rule| !less.contains(rule)).cloned().collect())
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Move {
    In,
    Out,
}

async fn move_vm(on: &Session<'_>, args: &GroupVm, way: Move) -> Result<(), Error> {
    let group = on.client.groups().get(&args.group).await?;
    let mut vm = on.client.vms().get(&args.vm).await?;
    let of = match &args.network {
        None => None,
        Some(name) => Some(on.client.networks().get(name).await?.network.meta.id),
    };
    let nics: Vec<&NicView> = vm
        .nics
        .iter()
        .filter(|nic| of.is_none_or(|id| nic.port.spec.network == id))
        .collect();
    let requests = requests(&nics, group.meta.id, way);
    refuse_nothing_to_move(&vm, &nics, &args.group, way, requests.is_empty())?;
    for request in requests {
        let accepted = on
            .client
            .vms()
            .set_groups(vm.vm.meta.id.to_string(), request)
            .await?;
        if !on.finish(&accepted.operation).await? {
            return Ok(());
        }
        vm = accepted.item;
    }
    let word = if way == Move::In { "is in" } else { "is out of" };
    let text = format!("{} {word} {}", vm.vm.meta.name, group.meta.name);
    on.out.done(&vm, vm.vm.meta.name.as_str(), &text)
}

/// Attaching twice is no failure: the VM is as it was asked for. Detaching what is not there is a mistake.
fn refuse_nothing_to_move(
    vm: &VmView,
    nics: &[&NicView],
    group: &str,
    way: Move,
    idle: bool,
) -> Result<(), Error> {
    let name = &vm.vm.meta.name;
    if nics.is_empty() {
        return Err(Error::new(
            ErrorKind::NotFound,
            format!("vm '{name}' has no such NIC"),
            "groups belong to NICs, and it has none there",
            format!("see its NICs with `vbm info {name}`"),
        ));
    }
    if way == Move::Out && idle {
        return Err(Error::new(
            ErrorKind::NotFound,
            format!("vm '{name}' is not in group '{group}'"),
            "none of its NICs is in that group",
            format!("see its groups with `vbm info {name}`"),
        ));
    }
    Ok(())
}

/// One request for each network on which the groups change.
fn requests(nics: &[&NicView], group: vbm_core::GroupId, way: Move) -> Vec<SetGroups> {
    let mut requests: Vec<SetGroups> = Vec::new();
    for nic in nics {
        let network = Some(nic.port.spec.network.to_string());
        let has = &nic.port.spec.groups;
        if has.contains(&group) == (way == Move::In) || requests.iter().any(|r| r.network == network) {
            continue;
        }
        let mut groups: Vec<String> = has
            .iter()
            .filter(|id| **id != group)
            .map(ToString::to_string)
            .collect();
        if way == Move::In {
            groups.push(group.to_string());
        }
        requests.push(SetGroups {
            groups,
            network,
            pairs: None,
        });
    }
    requests
}

fn spelled(rules: &[Rule]) -> String {
    rules
        .iter()
        .map(ToString::to_string)
        .collect::<Vec<_>>()
        .join(" ")
}

fn told(group: &vbm_core::Group) -> String {
    let name = &group.meta.name;
    let egress = |r: &&Rule| r.direction == vbm_core::Direction::Egress;
    let (out, into): (Vec<Rule>, Vec<Rule>) = group.spec.rules.iter().cloned().partition(|r| egress(&r));
    let mut text = if into.is_empty() {
        format!("{name} lets nothing in")
    } else {
        format!("{name} lets in {}", spelled(&into))
    };
    if !out.is_empty() {
        text += &format!(", and out {}", spelled(&out));
    } else if group.spec.egress_closed {
        text += ", and nothing out";
    }
    text
}

fn table(groups: &[vbm_core::Group], known: &Known, now: Timestamp) -> Table {
    let mut table = Table::new(&["NAME", "RULES", "AGE"], &["ID", "GENERATION"]);
    for group in groups {
        table.row([
            group.meta.name.to_string(),
            spelled(&known.group(group).spec.rules),
            human::age(now, group.meta.created_at),
            group.meta.id.to_string(),
            group.meta.generation.to_string(),
        ]);
    }
    table
}

fn detail(group: &vbm_core::Group, now: Timestamp) -> String {
    let mut lines = Lines::default();
    lines.meta(&group.meta, now);
    if group.spec.rules.is_empty() {
        lines.put("Rules", "none: nothing may come in");
    }
    for rule in &group.spec.rules {
        lines.put("Rule", rule.to_string());
    }
    lines.put(
        "Way out",
        if group.spec.egress_open() {
            "open"
        } else {
            "by egress rules only"
        },
    );
    lines.text()
}

#[cfg(test)]
mod tests {
    use super::super::list::tests::sample;
    use super::*;
    use vbm_core::{GroupId, GroupSpec, Meta};

    fn rules(texts: &[&str]) -> Vec<Rule> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }
    fn id(n: u128) -> GroupId {
        GroupId::from_uuid(uuid::Uuid::from_u128(n))
    }

    #[test]
    fn allowing_adds_each_rule_once_and_keeps_the_others() {
        let (has, more) = (rules(&["tcp/80"]), rules(&["icmp", "tcp/80"]));
        assert_eq!(with(&has, &more), rules(&["tcp/80", "icmp"]));
    }

    #[test]
    fn a_rule_is_listed_and_taken_away_by_the_name_of_its_peer() {
        let of = |n, name: &str| vbm_core::Group {
            meta: Meta::new(id(n), name.parse().unwrap(), Timestamp::from_micros(0)),
            spec: GroupSpec {
                rules: rules(&["tcp/5432@group:web"]),
                egress_closed: false,
            },
        };
        let (web, mut db) = (of(1, "web"), of(2, "db"));
        db.spec.rules[0].peer = Some(Peer::Group(id(1)));
        let known = Known::of(&[web, db.clone()]);
        assert!(told(&known.group(&db)).contains("tcp/5432@group:web"));
        let typed = rules(&["tcp/5432@group:web"]);
        assert_eq!(without(&known.group(&db).spec.rules, &typed, "db").unwrap(), []);
        db.spec.rules[0].peer = Some(Peer::Group(id(9)));
        assert_eq!(known.group(&db), db, "one that is gone has no name");
    }

    #[test]
    fn denying_takes_rules_away_and_refuses_what_is_not_there() {
        let has = rules(&["tcp/80", "icmp"]);
        assert_eq!(
            without(&has, &rules(&["icmp"]), "web").unwrap(),
            rules(&["tcp/80"])
        );
        let error = without(&has, &rules(&["tcp/443"]), "web").unwrap_err();
        assert_eq!(error.kind(), ErrorKind::NotFound);
        assert_eq!(error.why(), "its rules are tcp/80 icmp");
    }

    #[test]
    fn attaching_keeps_the_groups_that_a_nic_is_in() {
        let mut vm = sample();
        vm.nics[0].port.spec.groups = vec![id(1)];
        let nics: Vec<&NicView> = vm.nics.iter().collect();
        let made = requests(&nics, id(2), Move::In);
        assert_eq!(made.len(), 1);
        assert_eq!(made[0].groups, [id(1).to_string(), id(2).to_string()]);
        assert!(requests(&nics, id(1), Move::In).is_empty(), "it is in it already");
        assert!(requests(&nics, id(1), Move::Out)[0].groups.is_empty());
        assert!(requests(&nics, id(2), Move::Out).is_empty());
    }

    #[test]
    fn a_group_is_told_with_its_rules() {
        let mut group = vbm_core::Group {
            meta: Meta::new(id(1), "web".parse().unwrap(), Timestamp::from_micros(0)),
            spec: GroupSpec {
                rules: rules(&["tcp/80", "icmp@10.0.0.0/8"]),
                egress_closed: false,
            },
        };
        assert_eq!(told(&group), "web lets in tcp/80 icmp@10.0.0.0/8");
        assert_eq!(
            table(&[group.clone()], &Known::of(&[]), Timestamp::from_micros(0)).render(false, None),
            "NAME  RULES                   AGE\nweb   tcp/80 icmp@10.0.0.0/8  0s"
        );
        group.spec.rules.push("egress:udp/53".parse().unwrap());
        assert_eq!(
            told(&group),
            "web lets in tcp/80 icmp@10.0.0.0/8, and out egress:udp/53"
        );
        group.spec.rules.clear();
        assert_eq!(told(&group), "web lets nothing in");
        group.spec.egress_closed = true;
        assert_eq!(told(&group), "web lets nothing in, and nothing out");
    }
}
