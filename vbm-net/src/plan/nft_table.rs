//! Tables of nf_tables as data: compared, rendered for `nft -f`, asked for again. Of any family; what differs is a [`Shape`].
//!
//! Lines are written in the very form in which `nft -s -nn list` prints them, as in [`super::guard`], which has a table of its own.

use std::collections::{BTreeMap, BTreeSet};

/// Elements by the name of their map or set.
pub(crate) type Elements = BTreeMap<String, BTreeSet<String>>;

/// A table: its chains, its maps with `key : value`, its sets. Empty: it is not there.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct NftTable {
    /// Lines of each chain; the first one of a base chain is its hook.
    pub(crate) chains: BTreeMap<String, Vec<String>>,
    /// Elements of each map.
    pub(crate) maps: Elements,
    /// Elements of each set.
    pub(crate) sets: Elements,
}

impl NftTable {
    pub(crate) fn is_empty(&self) -> bool {
        self.chains.is_empty() && self.maps.is_empty() && self.sets.is_empty()
    }
    /// How many chains, maps and sets, each of which takes a question.
    pub(crate) fn questions(&self) -> usize {
        let full = |all: &Elements| all.values().filter(|e| !e.is_empty()).count();
        self.chains.len() + full(&self.maps) + full(&self.sets)
    }
    /// Adds an element to a map.
    pub(crate) fn put(&mut self, map: &str, element: String) {
        self.maps.entry(map.to_owned()).or_default().insert(element);
    }
}

/// What a table is beside its content.
#[derive(Debug)]
pub(crate) struct Shape {
    /// `bridge`, `inet`.
    pub(crate) family: &'static str,
    /// Its name.
    pub(crate) name: &'static str,
    /// The type of a map, by its name.
    pub(crate) map_type: fn(&str) -> &'static str,
    /// The type of a set, by its name; with its flags.
    pub(crate) set_type: fn(&str) -> &'static str,
}

/// What to do: a script for one `nft -f`, empty when they are equal, and a line a change.
pub(crate) fn diff(shape: &Shape, want: &NftTable, have: &NftTable) -> (String, Vec<String>) {
    if want == have {
        return (String::new(), Vec::new());
    }
    let (family, name) = (shape.family, shape.name);
    if want.is_empty() {
        let script = format!("delete table {family} {name}\n");
        return (script, vec![format!("no more rules of {name}")]);
    }
    if have.is_empty() || hooks(want) != hooks(have) || !want.maps.keys().eq(have.maps.keys()) {
        return (whole(shape, want), vec![format!("rules of {name}")]);
    }
    changes(shape, want, have)
}

/// Base chains with their hooks: one whose hook is another cannot be changed in place.
fn hooks(table: &NftTable) -> Vec<(&String, &String)> {
    let first = table
        .chains
        .iter()
        .filter_map(|(name, lines)| Some((name, lines.first()?)));
    first.filter(|(_, line)| is_hook(line)).collect()
}

/// Whether a line is what makes a chain a base chain.
pub(crate) fn is_hook(line: &str) -> bool {
    line.starts_with("type filter hook ")
}

/// The whole table, replacing what stands.
fn whole(shape: &Shape, want: &NftTable) -> String {
    let Shape { family, name, .. } = shape;
    let mut script =
        format!("table {family} {name}\ndelete table {family} {name}\ntable {family} {name} {{\n");
    for (kind, all, of) in [
        ("map", &want.maps, shape.map_type),
        ("set", &want.sets, shape.set_type),
    ] {
        for (name, elements) in all {
            script += &format!("{kind} {name} {{\ntype {}\n", of(name));
            if !elements.is_empty() {
                script += &format!("elements = {{ {} }}\n", joined(elements));
            }
            script += "}\n";
        }
    }
    for (name, lines) in &want.chains {
        script += &format!("chain {name} {{\n{}\n}}\n", lines.join("\n"));
    }
    script + "}\n"
}

fn joined(elements: &BTreeSet<String>) -> String {
    elements.iter().map(String::as_str).collect::<Vec<_>>().join(", ")
}

fn key(element: &str) -> &str {
    element.split(" : ").next().unwrap_or(element)
}

/// Only what differs. Elements go before the chains that they lead to, and come after; chains are made before any is filled.
fn changes(shape: &Shape, want: &NftTable, have: &NftTable) -> (String, Vec<String>) {
    let t = format!("{} {}", shape.family, shape.name);
    let [
        mut first,
        mut sets,
        mut made,
        mut rules,
        mut last,
        mut flushed,
        mut gone,
    ] = [const { String::new() }; 7];
    let mut told = BTreeSet::new();
    for (map, w) in &want.maps {
        let h = &have.maps[map];
        let (out, new): (BTreeSet<_>, BTreeSet<_>) = (
            h.difference(w).cloned().collect(),
            w.difference(h).cloned().collect(),
        );
        if !out.is_empty() {
            let keys: Vec<&str> = out.iter().map(|e| key(e)).collect();
            first += &format!("delete element {t} {map} {{ {} }}\n", keys.join(", "));
        }
        if !new.is_empty() {
            last += &format!("add element {t} {map} {{ {} }}\n", joined(&new));
        }
        if !(out.is_empty() && new.is_empty()) {
            told.insert(format!("entries of {} {map}", shape.name));
        }
    }
    for (name, w) in want.sets.iter().filter(|(n, w)| have.sets.get(*n) != Some(w)) {
        if have.sets.contains_key(name) {
            // Intervals that touch are told apart by nobody while some go and some come: all at once instead.
            sets += &format!("flush set {t} {name}\n");
        } else {
            let kind = (shape.set_type)(name).replace('\n', "; ");
            sets += &format!("add set {t} {name} {{ type {kind}; }}\n");
        }
        if !w.is_empty() {
            sets += &format!("add element {t} {name} {{ {} }}\n", joined(w));
        }
        told.insert(format!("{} members of {name}", w.len()));
    }
    for (name, lines) in want.chains.iter().filter(|(n, l)| have.chains.get(*n) != Some(l)) {
        if !have.chains.contains_key(name) {
            made += &format!("add chain {t} {name}\n");
        } else {
            made += &format!("flush chain {t} {name}\n");
        }
        for line in lines.iter().filter(|l| !is_hook(l)) {
            rules += &format!("add rule {t} {name} {line}\n");
        }
        told.insert(format!("rules of {} {name}", shape.name));
    }
    for name in have.chains.keys().filter(|n| !want.chains.contains_key(*n)) {
        // All are emptied before the first goes: one may lead to another.
        flushed += &format!("flush chain {t} {name}\n");
        gone += &format!("delete chain {t} {name}\n");
        told.insert(format!("no more rules of {} {name}", shape.name));
    }
    for name in have.sets.keys().filter(|n| !want.sets.contains_key(*n)) {
        gone += &format!("delete set {t} {name}\n");
        told.insert(format!("no more set {name}"));
    }
    let script = [first, sets, made, rules, last, flushed, gone].concat();
    (script, told.into_iter().collect())
}

/// What a change wrote: chains, elements and sets of `want` that differ from `have`.
pub(crate) fn changed(want: &NftTable, have: &NftTable) -> NftTable {
    let none = BTreeSet::new();
    let news = |(name, e): (&String, &BTreeSet<String>)| {
        let old = have.maps.get(name).unwrap_or(&none);
        (name.clone(), e.difference(old).cloned().collect())
    };
    let differs = |name: &String| want.chains.get(name) != have.chains.get(name);
    NftTable {
        chains: want
            .chains
            .iter()
            .filter(|(n, _)| differs(n))
            .map(owned)
            .collect(),
        maps: want.maps.iter().map(news).collect(),
        sets: want
            .sets
            .iter()
            .filter(|(n, e)| have.sets.get(*n) != Some(*e))
            .map(owned)
            .collect(),
    }
}

fn owned<V: Clone>((name, value): (&String, &V)) -> (String, V) {
    (name.clone(), value.clone())
}

/// The most elements that are asked for by name: of a thousand nft 1.0.6 says nothing and fails.
const GET_ELEMENTS_MAX: usize = 64;

/// A line that prints elements of a map or a set, or where they are many all of it.
pub(super) fn elements_asked(kind: &str, table: &str, name: &str, elements: &BTreeSet<String>) -> String {
    if elements.len() > GET_ELEMENTS_MAX {
        return format!("list {kind} {table} {name}");
    }
    let keys: Vec<&str> = elements.iter().map(|e| key(e)).collect();
    format!("get element {table} {name} {{ {} }}", keys.join(", "))
}

/// Lines that print these, each a command of its own.
pub(crate) fn asking(shape: &Shape, some: &NftTable) -> Vec<String> {
    let t = format!("{} {}", shape.family, shape.name);
    let mut lines: Vec<String> = some
        .chains
        .keys()
        .map(|c| format!("list chain {t} {c}"))
        .collect();
    let changed = some.maps.iter().filter(|(_, e)| !e.is_empty());
    lines.extend(changed.map(|(name, elements)| elements_asked("map", &t, name, elements)));
    lines.extend(some.sets.keys().map(|s| format!("list set {t} {s}")));
    lines
}

/// Whether what was asked for stands just so.
pub(crate) fn holds(have: &NftTable, some: &NftTable) -> bool {
    some.chains.iter().all(|(n, l)| have.chains.get(n) == Some(l))
        && some.sets.iter().all(|(n, e)| have.sets.get(n) == Some(e))
        && some
            .maps
            .iter()
            .all(|(n, e)| e.is_empty() || have.maps.get(n).is_some_and(|h| h.is_superset(e)))
}

/// Reads `nft -s -nn list table`.
pub(crate) fn parse(text: &str) -> NftTable {
    let super::guard::Guard { chains, maps, sets } = super::guard::parse(text);
    NftTable { chains, maps, sets }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHAPE: Shape = Shape {
        family: "inet",
        name: "t",
        map_type: |_| "mark : verdict",
        set_type: |_| "ipv4_addr\nflags interval",
    };

    fn table(chains: &[(&str, &[&str])], map: &[&str], set: Option<&[&str]>) -> NftTable {
        let words = |all: &[&str]| all.iter().map(|w| (*w).to_owned()).collect();
        NftTable {
            chains: chains
                .iter()
                .map(|(n, l)| ((*n).to_owned(), l.iter().map(|l| (*l).to_owned()).collect()))
                .collect(),
            maps: [("m".to_owned(), words(map))].into(),
            sets: set.map(|e| ("s".to_owned(), words(e))).into_iter().collect(),
        }
    }

    const BASE: (&str, &[&str]) = (
        "f",
        &[
            "type filter hook forward priority 0; policy drop;",
            "meta mark vmap @m",
        ],
    );

    #[test]
    fn what_is_written_whole_is_what_is_wanted_and_nothing_is_a_table_that_goes() {
        let want = table(
            &[BASE, ("a", &["accept"])],
            &["0x1 : goto a"],
            Some(&["10.0.0.1"]),
        );
        let (script, _) = diff(&SHAPE, &want, &NftTable::default());
        assert_eq!(parse(&script), want);
        assert_eq!(diff(&SHAPE, &want, &want), (String::new(), Vec::new()));
        assert_eq!(
            diff(&SHAPE, &NftTable::default(), &want).0,
            "delete table inet t\n"
        );
    }

    #[test]
    fn only_what_differs_is_written_in_an_order_in_which_nothing_leads_nowhere() {
        let have = table(
            &[BASE, ("a", &["accept"])],
            &["0x1 : goto a"],
            Some(&["10.0.0.1"]),
        );
        let want = table(&[BASE, ("b", &["drop"])], &["0x1 : goto b"], Some(&["10.0.0.2"]));
        let (script, _) = diff(&SHAPE, &want, &have);
        assert_eq!(
            script,
            "delete element inet t m { 0x1 }\nflush set inet t s\nadd element inet t s { 10.0.0.2 }\n\
             add chain inet t b\nadd rule inet t b drop\nadd element inet t m { 0x1 : goto b }\n\
             flush chain inet t a\ndelete chain inet t a\n"
        );
        let some = changed(&want, &have);
        assert_eq!(
            asking(&SHAPE, &some),
            [
                "list chain inet t b",
                "get element inet t m { 0x1 }",
                "list set inet t s"
            ]
        );
        assert!(holds(&want, &some) && !holds(&have, &some));
    }
}
