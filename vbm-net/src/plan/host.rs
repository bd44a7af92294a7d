//! The few rules on the host itself, in chains of our own.
//!
//! ```text
//!   filter INPUT   --> VBM-<owner>-IN    from a network to the host itself: answers only
//!   filter FORWARD --> VBM-<owner>-FWD   out to the world; in only what a forward let in; never network to network
//!   nat PREROUTING --> VBM-<owner>-PRE   forwards, for the world
//!   nat OUTPUT     --> VBM-<owner>-OUT   forwards, for the host itself, loopback included
//!   nat POSTROUTING--> VBM-<owner>-POST  masquerade
//! ```
//!
//! Each rule bears the comment `vbm:<owner>:<network>`: that is how one network's rules are found, compared and removed
//! without looking at another's. No rule depends on its place among those of other networks, so they come and go in any order; but for
//! the drop of what other networks begin towards a routed one ([`super::routed`]), which is put before all that is accepted.
//! A VM reaches neither the host's own addresses nor another network, but through a forward, as the world does.

use super::{
    Transit, floating, inside, routed,
    tables::{Diff, Tables},
};
use crate::{
    DesiredNetwork, Validated,
    names::{self, HostChain},
};
use std::collections::BTreeMap;
use vbm_core::{NetworkId, NetworkMode};

/// The rules of one network by host chain, as `iptables-save` prints them behind `-A CHAIN`.
pub type HostRules = BTreeMap<HostChain, Vec<String>>;

/// The host's rules for a network. `underlay` is the interface by which other hosts are reached, where the network spans hosts.
pub fn render(
    owner: &str,
    net: &Validated<DesiredNetwork>,
    transit: Transit,
    underlay: Option<&str>,
) -> HostRules {
    if net.spec.mode == NetworkMode::Routed {
        return routed::on_host(owner, net, underlay);
    }
    let link = names::transit(net.id);
    let tag = format!("-m comment --comment {}", names::rule_comment(owner, net.id));
    let (outer, inner) = (transit.host(), transit.inner());
    let any = format!("{}+", names::TRANSIT_PREFIX);
    let dnat = dnat_rules(net, &tag, transit);
    let (forward, post) = floating::on_host(net, &link, &tag, transit);
    let mut rules = BTreeMap::from([
        (
            HostChain::Input,
            vec![
                format!("-i {link} {tag} -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT"),
                format!("-i {link} {tag} -j DROP"),
            ],
        ),
        (
            HostChain::Forward,
            vec![
                format!("-o {link} {tag} -m conntrack --ctstate RELATED,ESTABLISHED,DNAT -j ACCEPT"),
                format!("-s {inner}/32 -i {link} ! -o {any} {tag} -j ACCEPT"),
            ],
        ),
        (HostChain::Prerouting, dnat.clone()),
        (HostChain::Output, dnat),
        (
            HostChain::Postrouting,
            vec![
                format!("-s {inner}/32 ! -o {any} {tag} -j MASQUERADE"),
                // From the host's loopback: the namespace could not answer 127.0.0.1.
                format!("-s 127.0.0.0/8 -o {link} {tag} -j SNAT --to-source {outer}"),
                // Hairpin: a VM that uses the host's address to reach a VM of its own network.
                format!("-s {inner}/32 -d {inner}/32 -o {link} {tag} -j SNAT --to-source {outer}"),
            ],
        ),
    ]);
    let drops = [
        format!("-o {link} {tag} -j DROP"),
        format!("-i {link} ! -o {any} {tag} -j DROP"),
    ];
    let all = forward.into_iter().chain(drops);
    rules.entry(HostChain::Forward).or_default().extend(all);
    rules.entry(HostChain::Postrouting).or_default().extend(post);
    rules
}

fn dnat_rules(net: &Validated<DesiredNetwork>, tag: &str, transit: Transit) -> Vec<String> {
    let doors = inside::doors(net);
    inside::forwards(net)
        .into_iter()
        .map(|(forward, _)| {
            let p = forward.protocol;
            let to = forward
                .listen_address
                .map(|a| format!("-d {a}/32 "))
                .unwrap_or_default();
            let rest = inside::dnat(forward, forward.listen_port, transit.inner(), doors[&forward.id]);
            format!("{to}-p {p} {tag} -m {p} {rest}")
        })
        .collect()
}

/// The jump from a built-in chain, as it is printed behind `-A HOOK`.
pub fn hook_rule(owner: &str, chain: HostChain) -> String {
    let condition = match chain {
        HostChain::Input => format!("-i {}+ ", names::TRANSIT_PREFIX),
        HostChain::Prerouting | HostChain::Output => "-m addrtype --dst-type LOCAL ".to_owned(),
        HostChain::Forward | HostChain::Postrouting => String::new(),
    };
    format!(
        "{condition}-m comment --comment {} -j {}",
        names::hook_comment(owner),
        chain.name(owner)
    )
}

/// The hooks that are missing, or stand more than once or in another form.
pub fn missing_hooks(owner: &str, observed: &Tables) -> Vec<HostChain> {
    let count = |chain: &HostChain| {
        rules(observed, *chain, chain.hook())
            .filter(|r| **r == hook_rule(owner, *chain))
            .count()
    };
    HostChain::ALL
        .into_iter()
        .filter(|chain| count(chain) != 1)
        .collect()
}

fn rules<'a>(tables: &'a Tables, chain: HostChain, name: &str) -> impl Iterator<Item = &'a String> {
    tables
        .get(chain.table())
        .and_then(|t| t.get(name))
        .into_iter()
        .flat_map(|c| &c.rules)
}

/// What to do on the host so that this network's rules are those wanted (none: `None`). Makes our chains where they are
/// missing, and removes them with their hooks when the last network leaves.
pub fn diff(owner: &str, network: NetworkId, want: Option<&HostRules>, observed: &Tables) -> Diff {
    let comment = names::rule_comment(owner, network);
    let others = HostChain::ALL
        .into_iter()
        .flat_map(|c| rules(observed, c, &c.name(owner)).collect::<Vec<_>>())
        .any(|rule| !bears(rule, &comment));
    let leaving = Leaving {
        owner,
        comment: &comment,
        last: want.is_none() && !others,
    };
    let mut out = Diff::default();
    for table in ["filter", "nat"] {
        let mut body = (String::new(), String::new());
        for chain in HostChain::ALL.into_iter().filter(|c| c.table() == table) {
            diff_chain(&leaving, chain, want, observed, &mut body, &mut out.changes);
        }
        if !(body.0.is_empty() && body.1.is_empty()) {
            out.script += &format!("*{table}\n{}{}COMMIT\n", body.0, body.1);
        }
    }
    out
}

/// Whose rules are compared, and whether chains and hooks go with them.
struct Leaving<'a> {
    owner: &'a str,
    comment: &'a str,
    last: bool,
}

fn bears(rule: &str, comment: &str) -> bool {
    rule.split_whitespace().any(|word| word == comment)
}

fn diff_chain(
    leaving: &Leaving<'_>,
    chain: HostChain,
    want: Option<&HostRules>,
    observed: &Tables,
    (headers, body): &mut (String, String),
    changes: &mut Vec<String>,
) {
    let name = chain.name(leaving.owner);
    let exists = observed.get(chain.table()).is_some_and(|t| t.contains_key(&name));
    let have: Vec<&String> = rules(observed, chain, &name)
        .filter(|rule| bears(rule, leaving.comment))
        .collect();
    let none = Vec::new();
    let wanted = want.and_then(|w| w.get(&chain)).unwrap_or(&none);
    if want.is_some() && !exists {
        // Made, not declared: a declaration empties a chain that stands after all, with the rules of every network.
        *headers += &format!("-N {name}\n");
        changes.push(format!("host chain {name}"));
    }
    if !have.iter().copied().eq(wanted) {
        changes.push(format!("host rules in {name}"));
        have.iter()
            .for_each(|rule| *body += &format!("-D {name} {rule}\n"));
        let (first, rest): (Vec<_>, Vec<_>) = wanted.iter().partition(|rule| routed::goes_first(rule));
        // Each goes before the one that was put there last.
        for rule in first.iter().rev() {
            *body += &format!("-I {name} {rule}\n");
        }
        rest.iter()
            .for_each(|rule| *body += &format!("-A {name} {rule}\n"));
    }
    if leaving.last && exists {
        changes.push(format!("no more host chain {name}"));
        for hook in rules(observed, chain, chain.hook()).filter(|r| jumps_to(r, &name)) {
            *body += &format!("-D {} {hook}\n", chain.hook());
        }
        *body += &format!("-F {name}\n-X {name}\n");
    }
}

/// Removes every chain, hook and rule of an owner, whatever networks they are of.
pub fn remove_all(owner: &str, observed: &Tables) -> Diff {
    let mut out = Diff::default();
    for table in ["filter", "nat"] {
        let mut body = String::new();
        for chain in HostChain::ALL.into_iter().filter(|c| c.table() == table) {
            let name = chain.name(owner);
            if observed.get(table).is_some_and(|t| t.contains_key(&name)) {
                for hook in rules(observed, chain, chain.hook()).filter(|r| jumps_to(r, &name)) {
                    body += &format!("-D {} {hook}\n", chain.hook());
                }
                body += &format!("-F {name}\n-X {name}\n");
                out.changes.push(format!("host chain {name}"));
            }
        }
        if !body.is_empty() {
            out.script += &format!("*{table}\n{body}COMMIT\n");
        }
    }
    out
}

fn jumps_to(rule: &str, chain: &str) -> bool {
    rule.ends_with(&format!("-j {chain}"))
}

/// The owners and the tails of network ids that host rules speak of.
pub fn tagged(observed: &Tables) -> Vec<(String, Option<String>)> {
    let mut found = Vec::new();
    for rule in observed.values().flat_map(|t| t.values()).flat_map(|c| &c.rules) {
        let mut words = rule.split_whitespace().skip_while(|w| *w != "--comment").skip(1);
        let Some(tag) = words.next().and_then(|w| w.strip_prefix("vbm:")) else {
            continue;
        };
        let (owner, network) = match tag.split_once(':') {
            Some((owner, network)) => (owner, Some(network.to_owned())),
            None => (tag, None),
        };
        let one = (owner.to_owned(), network);
        if names::is_owner(owner) && !found.contains(&one) {
            found.push(one);
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::{fixture::lab, tables};

    const OWNER: &str = "lab-1";

    fn rules_of_lab() -> (Validated<DesiredNetwork>, HostRules) {
        let net = lab(NetworkMode::Nat);
        let rules = render(
            OWNER,
            &net,
            Transit::new("169.254.64.2/31".parse().unwrap()).unwrap(),
            None,
        );
        (net, rules)
    }

    /// What `iptables-save` would print when these rules stand.
    fn standing(rules: &HostRules) -> Tables {
        let mut tables = Tables::new();
        for chain in HostChain::ALL {
            let table = tables.entry(chain.table().to_owned()).or_default();
            tables::chain(table, chain.hook(), Some("ACCEPT"), vec![hook_rule(OWNER, chain)]);
            tables::chain(table, chain.name(OWNER), None, rules[&chain].clone());
        }
        tables
    }

    #[test]
    fn the_host_lets_in_only_what_a_forward_let_in() {
        let (_, rules) = rules_of_lab();
        assert_eq!(
            rules[&HostChain::Forward].join("\n"),
            "-o vbu0000beef -m comment --comment vbm:lab-1:0000beef -m conntrack --ctstate RELATED,ESTABLISHED,DNAT -j ACCEPT\n\
             -s 169.254.64.3/32 -i vbu0000beef ! -o vbu+ -m comment --comment vbm:lab-1:0000beef -j ACCEPT\n\
             -o vbu0000beef -m comment --comment vbm:lab-1:0000beef -j DROP\n\
             -i vbu0000beef ! -o vbu+ -m comment --comment vbm:lab-1:0000beef -j DROP"
        );
    }

    #[test]
    fn a_forward_listens_where_it_was_told_to() {
        let (_, rules) = rules_of_lab();
        let pre = rules[&HostChain::Prerouting].join("\n");
        assert!(pre.contains("-p tcp -m comment --comment vbm:lab-1:0000beef -m tcp --dport 8080 -j DNAT --to-destination 169.254.64.3:8080"), "{pre}");
        assert!(pre.contains("-d 192.0.2.1/32 -p udp"), "{pre}");
        assert_eq!(rules[&HostChain::Prerouting], rules[&HostChain::Output]);
    }

    #[test]
    fn rules_that_stand_need_nothing() {
        let (net, rules) = rules_of_lab();
        let observed = standing(&rules);
        assert_eq!(diff(OWNER, net.id, Some(&rules), &observed), Diff::default());
        assert!(missing_hooks(OWNER, &observed).is_empty());
        assert_eq!(missing_hooks(OWNER, &Tables::new()).len(), 5);
    }

    #[test]
    fn the_last_network_takes_chains_and_hooks_along_and_no_other_rule() {
        let (net, rules) = rules_of_lab();
        let mut observed = standing(&rules);
        let script = diff(OWNER, net.id, None, &observed).script;
        assert!(
            script.contains("-D FORWARD -m comment") && script.contains("-X VBM-"),
            "{script}"
        );
        let other = "-i vbu12345678 -m comment --comment vbm:lab-1:12345678 -j DROP".to_owned();
        for chain in HostChain::ALL {
            let table = observed.get_mut(chain.table()).unwrap();
            let rules = &mut table.get_mut(&chain.name(OWNER)).unwrap().rules;
            if chain == HostChain::Input {
                rules.push(other.clone());
            }
        }
        let script = diff(OWNER, net.id, None, &observed).script;
        assert!(!script.contains("12345678") && !script.contains("-X"), "{script}");
        assert!(script.contains("-D VBM-"));
        assert_eq!(tagged(&observed).len(), 3, "the owner and two networks");
    }

    #[test]
    fn no_script_empties_a_chain_that_other_networks_have_rules_in() {
        let (net, rules) = rules_of_lab();
        let script = diff(OWNER, net.id, Some(&rules), &Tables::new()).script;
        assert!(script.contains("-N VBM-"), "{script}");
        let empties = |line: &str| line.starts_with(':') || line.starts_with("-F");
        assert!(!script.lines().any(empties), "{script}");
    }

    #[test]
    fn another_owner_is_not_seen() {
        let (net, rules) = rules_of_lab();
        let observed = standing(&rules);
        assert_eq!(diff("lab-2", net.id, None, &observed), Diff::default());
        assert_eq!(remove_all("lab-2", &observed), Diff::default());
        assert_eq!(remove_all(OWNER, &observed).changes.len(), 5);
    }
}
