//! The members of groups that rules speak of, as ipsets: one a group and family.
//!
//! ```text
//!   rules:  -m set --match-set vbm4-<group> src -j ACCEPT
//!   change: create vbm4-<group>-t, add..., swap vbm4-<group>-t vbm4-<group>, destroy vbm4-<group>-t     one `ipset restore`
//! ```
//!
//! A set is filled aside and swapped in, so a packet sees the old members or the new ones, never half of them; rules are not
//! touched. A set comes before the rules that name it, and goes after them.

use super::policy::Policies;
use crate::names;
use ipnet::IpNet;
use std::collections::{BTreeMap, BTreeSet};

/// The most members of a set: those elsewhere, and all that the ports of this host may be. Told explicitly: what ipset assumes would cut a
/// larger group short.
pub const SET_MAX_MEMBERS: usize = 262_144;

/// Members by the name of the set. A set that stands is here even if it is empty.
pub type Sets = BTreeMap<String, BTreeSet<IpNet>>;

/// The sets that are wanted.
pub fn render(policies: &Policies<'_>) -> Sets {
    let mut sets = Sets::new();
    for (group, members) in policies.members() {
        for v6 in [false, true] {
            let of_family = members.iter().filter(|net| matches!(net, IpNet::V6(_)) == v6);
            sets.insert(names::group_set(*group, v6), of_family.copied().collect());
        }
    }
    sets
}

/// What comes before the rules, what comes after, and a line a change.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SetDiff {
    /// Input for `ipset restore`, before the rules are written.
    pub before: String,
    /// Input for `ipset restore`, when no rule names the sets any more.
    pub after: String,
    /// For people.
    pub changes: Vec<String>,
    /// The sets that were filled.
    pub filled: Vec<String>,
}

/// What to do so that the sets are those wanted.
pub fn diff(want: &Sets, have: &Sets) -> SetDiff {
    let mut diff = SetDiff::default();
    // Left by a crash between two steps.
    for aside in have.keys().filter(|name| name.ends_with(names::SET_ASIDE)) {
        diff.before += &format!("destroy {aside}\n");
    }
    for (name, members) in want {
        let stands = have.get(name);
        if stands == Some(members) {
            continue;
        }
        let family = if name.starts_with(names::SET6_PREFIX) {
            "inet6"
        } else {
            "inet"
        };
        let new = |name: &str| format!("create {name} hash:net family {family} maxelem {SET_MAX_MEMBERS}\n");
        let aside = format!("{name}{}", names::SET_ASIDE);
        let into = if stands.is_some() { &aside } else { name };
        diff.before += &new(into);
        for member in members {
            diff.before += &format!("add {into} {member}\n");
        }
        if stands.is_some() {
            diff.before += &format!("swap {aside} {name}\ndestroy {aside}\n");
        }
        diff.changes.push(format!("{} members of {name}", members.len()));
        diff.filled.push(name.clone());
    }
    let ours = |name: &&String| is_ours(name) && !name.ends_with(names::SET_ASIDE);
    for name in have.keys().filter(ours).filter(|name| !want.contains_key(*name)) {
        diff.after += &format!("destroy {name}\n");
        diff.changes.push(format!("no more set {name}"));
    }
    diff
}

fn is_ours(name: &str) -> bool {
    name.starts_with(names::SET4_PREFIX) || name.starts_with(names::SET6_PREFIX)
}

/// Reads `ipset save`; others' sets are passed over.
pub fn parse(text: &str) -> Sets {
    let mut sets = Sets::new();
    for line in text.lines() {
        let words: Vec<_> = line.split_whitespace().collect();
        match words.as_slice() {
            ["create", name, ..] if is_ours(name) => {
                sets.entry((*name).to_owned()).or_default();
            }
            ["add", name, member, ..] if is_ours(name) => {
                let single = || member.parse::<std::net::IpAddr>().ok().map(IpNet::from);
                let net = member.parse::<IpNet>().ok().or_else(single);
                sets.entry((*name).to_owned()).or_default().extend(net);
            }
            _ => {}
        }
    }
    sets
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const SAVED: &str = "create vbm4-0000000a hash:net family inet hashsize 1024 maxelem 65536 bucketsize 12 initval 0x56cab605\nadd vbm4-0000000a 10.0.0.0/8\nadd vbm4-0000000a 10.0.0.1\ncreate others hash:ip\nadd others 1.2.3.4\ncreate vbm6-0000000a hash:net family inet6\n";

    #[test]
    fn what_ipset_saves_is_read_and_what_is_anothers_is_not() {
        let sets = parse(SAVED);
        assert_eq!(sets.len(), 2);
        assert!(sets["vbm4-0000000a"].contains(&"10.0.0.1/32".parse().unwrap()));
        assert!(sets["vbm6-0000000a"].is_empty());
    }

    #[test]
    fn members_are_swapped_in_whole_and_sets_go_after_the_rules() {
        let have = parse(SAVED);
        assert_eq!(diff(&have, &have), SetDiff::default());
        let mut want = have.clone();
        want.remove("vbm6-0000000a");
        want.insert("vbm4-0000000a".into(), ["10.0.0.2/32".parse().unwrap()].into());
        let diff = diff(&want, &have);
        assert_eq!(
            diff.before,
            "create vbm4-0000000a-t hash:net family inet maxelem 262144\nadd vbm4-0000000a-t 10.0.0.2/32\n\
             swap vbm4-0000000a-t vbm4-0000000a\ndestroy vbm4-0000000a-t\n"
        );
        assert_eq!(diff.after, "destroy vbm6-0000000a\n");
    }

    #[test]
    fn a_set_that_a_crash_left_aside_goes_first() {
        let have =
            parse("create vbm4-0000000a-t hash:net family inet\ncreate vbm4-0000000a hash:net family inet\n");
        let want = parse("create vbm4-0000000a hash:net family inet\n");
        assert_eq!(diff(&want, &have).before, "destroy vbm4-0000000a-t\n");
    }

    proptest! {
        #[test]
        fn reading_garbage_never_panics(text in "((create|add) vbm[46]-[a-z0-9/.: ]{0,20}\n){0,9}") { parse(&text); }
    }
}
