//! What of the guard is read back after a change: only what was written, so that it costs as much as the change.

use super::{guard::Guard, nft_table};
use crate::names;
use std::collections::{BTreeMap, BTreeSet};

/// The chains and elements that a change wrote: those of `want` that differ from `have`.
pub(crate) fn changed(want: &Guard, have: &Guard) -> Guard {
    let differs = |name: &&String| want.chains.get(*name) != have.chains.get(*name);
    let news = |all: &BTreeMap<String, BTreeSet<String>>, old: &BTreeMap<String, BTreeSet<String>>| {
        let none = BTreeSet::new();
        let new = |name: &String, e: &BTreeSet<String>| {
            e.difference(old.get(name).unwrap_or(&none)).cloned().collect()
        };
        all.iter().map(|(name, e)| (name.clone(), new(name, e))).collect()
    };
    Guard {
        chains: want
            .chains
            .keys()
            .filter(differs)
            .map(|n| (n.clone(), want.chains[n].clone()))
            .collect(),
        maps: news(&want.maps, &have.maps),
        sets: news(&want.sets, &have.sets),
    }
}

/// Commands of nft that print chains and elements; they fail where one is missing. One thing each: of two chains in one `nft -f` nft
/// 1.0.6 finds the last only, and a chain beside an element makes it read the whole table. One after the other they may be asked.
pub(crate) fn asking(some: &Guard) -> Vec<String> {
    let t = names::GUARD_TABLE;
    let chain = |c: &String| format!("list chain bridge {t} {c}");
    let mut scripts: Vec<String> = some.chains.keys().map(chain).collect();
    let table = format!("bridge {t}");
    for (kind, all) in [("map", &some.maps), ("set", &some.sets)] {
        let changed = all.iter().filter(|(_, elements)| !elements.is_empty());
        scripts.extend(changed.map(|(name, e)| nft_table::elements_asked(kind, &table, name, e)));
    }
    scripts
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        DesiredNetwork, Validated,
        plan::{
            fixture::{lab, spanning},
            guard::{parse, render},
        },
    };
    use vbm_core::NetworkMode;

    /// As nft 1.0.6 answers `get element`.
    const GOT: &str = "table bridge vbm {\n\tmap in {\n\t\ttype ifname : verdict\n\t\telements = { \"tap0000000b\" : jump in-0000000b }\n\t}\n}\n";

    fn without_second() -> Guard {
        let mut net = lab(NetworkMode::Nat).into_inner();
        net.ports.pop();
        net.forwards.clear();
        render(&Validated::<DesiredNetwork>::new(net).unwrap())
    }

    #[test]
    fn one_more_port_is_two_chains_and_two_elements_each_asked_for_alone() {
        let some = changed(&render(&lab(NetworkMode::Nat)), &without_second());
        assert_eq!(
            asking(&some),
            [
                "list chain bridge vbm in-0000000b",
                "list chain bridge vbm to-0000000b",
                "get element bridge vbm in { \"tap0000000b\" }",
                "get element bridge vbm to { \"tap0000000b\" }",
            ]
        );
        assert_eq!(parse(GOT).maps["in"], some.maps["in"]);
    }

    #[test]
    fn what_went_is_not_asked_for_and_nothing_changed_asks_nothing() {
        let both = render(&lab(NetworkMode::Nat));
        assert_eq!(asking(&changed(&without_second(), &both)), Vec::<String>::new());
        assert_eq!(asking(&changed(&both, &both)), Vec::<String>::new());
    }

    #[test]
    fn one_more_remote_port_is_one_element() {
        let have = render(&spanning());
        let mut net = spanning().into_inner();
        let overlay = net.overlay.as_mut().unwrap();
        let mut more = overlay.remotes[0];
        (more.mac, more.address) = (vbm_core::Mac::local(0x99), [10, 77, 0, 200].into());
        overlay.remotes.push(more);
        let want = render(&Validated::<DesiredNetwork>::new(net).unwrap());
        let element = format!("{} . 10.77.0.200", more.mac);
        assert_eq!(
            asking(&changed(&want, &have)),
            [format!("get element bridge vbm remotes {{ {element} }}")]
        );
    }
}
