//! iptables tables as data: parsed from `iptables-save`, compared, rendered for `iptables-restore --noflush`.

use std::{collections::BTreeMap, fmt::Write as _};

/// One chain.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Chain {
    /// The policy of a built-in chain; `None` for our own.
    pub policy: Option<String>,
    /// Its rules, without `-A CHAIN`.
    pub rules: Vec<String>,
}

/// The chains of one table, by name.
pub type Table = BTreeMap<String, Chain>;
/// Tables by name.
pub type Tables = BTreeMap<String, Table>;

/// Adds a chain with its rules.
pub(crate) fn chain(table: &mut Table, name: impl Into<String>, policy: Option<&str>, rules: Vec<String>) {
    table.insert(
        name.into(),
        Chain {
            policy: policy.map(str::to_owned),
            rules,
        },
    );
}

/// Reads `iptables-save`. Quotes are dropped: none of our values holds one, and versions differ in when they print them.
pub fn parse(text: &str) -> Tables {
    let mut tables = Tables::new();
    let mut table: Option<&mut Table> = None;
    for line in text.lines().map(str::trim) {
        if let Some(name) = line.strip_prefix('*') {
            table = Some(tables.entry(name.to_owned()).or_default());
        } else if line == "COMMIT" {
            table = None;
        } else if let Some(current) = table.as_deref_mut() {
            if let Some(header) = line.strip_prefix(':') {
                let mut words = header.split_whitespace();
                let name = words.next().unwrap_or_default().to_owned();
                let policy = words.next().filter(|p| *p != "-").map(str::to_owned);
                current.entry(name).or_default().policy = policy;
            } else if let Some((name, rule)) = line.strip_prefix("-A ").and_then(|r| r.split_once(' ')) {
                current
                    .entry(name.to_owned())
                    .or_default()
                    .rules
                    .push(rule.replace('"', ""));
            }
        }
    }
    tables
}

/// The tables that `iptables-save` did not print, though they stand: they hold something that only `nft` can write. It says so in
/// a comment, and ends as if all was well.
pub fn unread(text: &str) -> impl Iterator<Item = &str> {
    text.lines().filter_map(|line| {
        let (name, rest) = line.trim().strip_prefix("# Table `")?.split_once('\'')?;
        rest.contains("incompatible").then_some(name)
    })
}

/// What to do so that observed tables become the desired ones.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Diff {
    /// Input for one `iptables-restore --noflush`; empty when nothing is to be done.
    pub script: String,
    /// A line a chain, for people.
    pub changes: Vec<String>,
}

/// The difference. In a namespace all is ours, so chains that nobody wants go; tables that nobody names are left alone.
pub fn diff(desired: &Tables, observed: &Tables) -> Diff {
    let empty = Table::new();
    let mut diff = Diff::default();
    for (name, want) in desired {
        let have = observed.get(name).unwrap_or(&empty);
        let body = diff_table(name, want, have, &mut diff.changes);
        if !body.is_empty() {
            // A String never refuses to be written to.
            let _infallible = write!(diff.script, "*{name}\n{body}COMMIT\n");
        }
    }
    diff
}

fn diff_table(table: &str, want: &Table, have: &Table, changes: &mut Vec<String>) -> String {
    let (mut headers, mut rules, mut gone) = (String::new(), String::new(), String::new());
    for (name, chain) in want {
        let stands = have.get(name);
        if stands == Some(chain) {
            continue;
        }
        changes.push(format!("rules of {table} {name}"));
        let header = format!(":{name} {} [0:0]\n", chain.policy.as_deref().unwrap_or("-"));
        let added = stands.and_then(|stands| added(name, &stands.rules, &chain.rules));
        // A user chain named in a header is flushed; a built-in one is not.
        if stands.is_none_or(|stands| stands.policy != chain.policy)
            || chain.policy.is_none() && added.is_none()
        {
            headers += &header;
        }
        if let Some(added) = added {
            rules += &added;
            continue;
        }
        if chain.policy.is_some() {
            rules += &format!("-F {name}\n");
        }
        for rule in &chain.rules {
            rules += &format!("-A {name} {rule}\n");
        }
    }
    for (name, chain) in have.iter().filter(|(name, _)| !want.contains_key(*name)) {
        if chain.policy.is_none() {
            changes.push(format!("no more rules of {table} {name}"));
            headers += &format!(":{name} - [0:0]\n");
            gone += &format!("-X {name}\n");
        }
    }
    headers + &rules + &gone
}

/// The lines that put in what is missing, each in its place, where nothing that stands has to go. The kernel has nothing to forget then,
/// for which it takes some ten milliseconds each time.
fn added(name: &str, stands: &[String], want: &[String]) -> Option<String> {
    let mut lines = String::new();
    let mut rest = stands.iter().peekable();
    for (place, rule) in want.iter().enumerate() {
        if rest.next_if_eq(&rule).is_some() {
            continue;
        }
        match rest.peek() {
            Some(_) => lines += &format!("-I {name} {} {rule}\n", place + 1),
            None => lines += &format!("-A {name} {rule}\n"),
        }
    }
    rest.next().is_none().then_some(lines)
}

/// The built-in chains of tables that do not stand at all, for `nft`: with their policies from the beginning. `iptables` makes them with
/// another and changes it, and the kernel takes some ten milliseconds to forget what was.
pub fn beginning(family: &str, want: &Tables, have: &Tables) -> (String, Tables) {
    let (mut script, mut begun) = (String::new(), have.clone());
    for (name, table) in want.iter().filter(|(name, _)| !have.contains_key(*name)) {
        let chains: Option<Vec<String>> = table
            .iter()
            .filter_map(|(chain, c)| Some((chain, c.policy.as_deref()?)))
            .map(|(chain, policy)| {
                let hook = hook(name, chain)?;
                let policy = policy.to_lowercase();
                Some(format!("chain {chain} {{ type {hook}; policy {policy}; }}\n"))
            })
            .collect();
        let Some(chains) = chains else { continue };
        script += &format!("table {family} {name} {{\n{}}}\n", chains.concat());
        let empty = |(chain, c): (&String, &Chain)| {
            let policy = Some(c.policy.clone()?);
            let rules = Vec::new();
            Some((chain.clone(), Chain { policy, rules }))
        };
        begun.insert(name.clone(), table.iter().filter_map(empty).collect());
    }
    (script, begun)
}

/// Where `iptables` hooks a built-in chain in, of the tables that are begun here.
fn hook(table: &str, chain: &str) -> Option<&'static str> {
    Some(match (table, chain) {
        ("filter", "INPUT") => "filter hook input priority 0",
        ("filter", "FORWARD") => "filter hook forward priority 0",
        ("filter", "OUTPUT") => "filter hook output priority 0",
        ("nat", "PREROUTING") => "nat hook prerouting priority -100",
        ("nat", "INPUT") => "nat hook input priority 100",
        ("nat", "OUTPUT") => "nat hook output priority -100",
        ("nat", "POSTROUTING") => "nat hook postrouting priority 100",
        _ => return None,
    })
}

/// The chains that a change wrote: those of `want` that differ from `have`.
pub fn changed(want: &Tables, have: &Tables) -> Tables {
    let mut out = Tables::new();
    for (name, table) in want {
        let old = have.get(name);
        let new = |chain: &&String| old.and_then(|t| t.get(*chain)) != table.get(*chain);
        let chains: Table = table
            .keys()
            .filter(new)
            .map(|c| (c.clone(), table[c].clone()))
            .collect();
        if !chains.is_empty() {
            out.insert(name.clone(), chains);
        }
    }
    out
}

/// Input for `iptables-restore --noflush` that prints chains, one table after the other.
pub fn asking(chains: &Tables) -> String {
    let mut script = String::new();
    for (table, chains) in chains {
        let all: String = chains.keys().map(|name| format!("-S {name}\n")).collect();
        script += &format!("*{table}\n{all}COMMIT\n");
    }
    script
}

/// Reads the answer to [`asking`]; `None` where it is not one, chain after chain.
pub fn parse_asked_all(text: &str, asked: &Tables) -> Option<Tables> {
    let mut chains = asked
        .iter()
        .flat_map(|(table, chains)| chains.keys().map(move |chain| (table, chain)));
    let mut parts: BTreeMap<&String, String> = BTreeMap::new();
    let mut inside = None;
    for line in text.lines().map(str::trim) {
        if let Some(header) = line.strip_prefix("-N ").or_else(|| line.strip_prefix("-P ")) {
            let (table, chain) = chains.next()?;
            if header.split(' ').next() != Some(chain) {
                return None;
            }
            inside = Some(table);
        }
        let part = parts.entry(inside?).or_default();
        *part += line;
        part.push('\n');
    }
    let told = |(table, part): (&String, String)| (table.clone(), parse_asked(&part));
    chains
        .next()
        .is_none()
        .then(|| parts.into_iter().map(told).collect())
}

/// Reads the answer to [`asking`] for one table.
pub fn parse_asked(text: &str) -> Table {
    let mut table = Table::new();
    for line in text.lines().map(str::trim) {
        let mut words = line.splitn(3, ' ');
        match (words.next(), words.next(), words.next()) {
            (Some("-N"), Some(name), _) => {
                table.entry(name.to_owned()).or_default();
            }
            (Some("-P"), Some(name), policy) => {
                table.entry(name.to_owned()).or_default().policy = policy.map(str::to_owned);
            }
            (Some("-A"), Some(name), Some(rule)) => {
                let chain = table.entry(name.to_owned()).or_default();
                chain.rules.push(rule.replace('"', ""));
            }
            _ => {}
        }
    }
    table
}

/// Whether these chains stand just so.
pub fn holds(have: &Tables, chains: &Tables) -> bool {
    chains.iter().all(|(table, chains)| {
        let have = have.get(table);
        chains
            .iter()
            .all(|(name, chain)| have.and_then(|t| t.get(name)) == Some(chain))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn tables(text: &str) -> Tables {
        parse(text)
    }

    #[test]
    fn what_was_saved_is_read() {
        let t = tables(
            "# x\n*filter\n:INPUT DROP [1:2]\n:A - [0:0]\n-A INPUT -j A\n-A A -m comment --comment \"vbm:x\" -j DROP\nCOMMIT\n",
        );
        assert_eq!(t["filter"]["INPUT"].policy.as_deref(), Some("DROP"));
        assert_eq!(
            t["filter"]["A"],
            Chain {
                policy: None,
                rules: vec!["-m comment --comment vbm:x -j DROP".into()]
            }
        );
    }

    #[test]
    fn a_table_that_was_not_printed_is_not_an_empty_one() {
        let text = "# Table `filter' is incompatible, use 'nft' tool.\n\
                    # Generated by iptables-save v1.8.9 (nf_tables)\n*nat\n:OUTPUT ACCEPT [0:0]\nCOMMIT\n";
        assert_eq!(unread(text).collect::<Vec<_>>(), ["filter"]);
        assert_eq!(
            unread("# Generated by iptables-save\n*filter\nCOMMIT\n").count(),
            0
        );
    }

    #[test]
    fn equal_tables_need_nothing() {
        let t = tables("*filter\n:INPUT DROP [1:2]\n-A INPUT -j DROP\nCOMMIT\n");
        assert_eq!(diff(&t, &t), Diff::default());
    }

    #[test]
    fn only_what_differs_is_written_and_what_nobody_wants_goes() {
        let have = tables(
            "*filter\n:INPUT ACCEPT [0:0]\n:A - [0:0]\n:B - [0:0]\n-A A -j DROP\n-A INPUT -j B\nCOMMIT\n",
        );
        let want = tables("*filter\n:INPUT DROP [0:0]\n:A - [0:0]\n-A A -j DROP\n-A INPUT -j A\nCOMMIT\n");
        assert_eq!(
            diff(&want, &have).script,
            "*filter\n:INPUT DROP [0:0]\n:B - [0:0]\n-F INPUT\n-A INPUT -j A\n-X B\nCOMMIT\n"
        );
    }

    #[test]
    fn what_only_comes_is_put_in_its_place_and_nothing_else_is_touched() {
        let have = tables(
            "*filter\n:INPUT DROP [0:0]\n:A - [0:0]\n-A A -s 1.0.0.1/32\n-A A -s 1.0.0.3/32\nCOMMIT\n",
        );
        let want = tables(
            "*filter\n:INPUT DROP [0:0]\n:A - [0:0]\n:B - [0:0]\n-A INPUT -j A\n-A A -s 1.0.0.0/32\n-A A -s 1.0.0.1/32\n-A A -s 1.0.0.2/32\n-A A -s 1.0.0.3/32\n-A A -j B\nCOMMIT\n",
        );
        assert_eq!(
            diff(&want, &have).script,
            "*filter\n:B - [0:0]\n-I A 1 -s 1.0.0.0/32\n-I A 3 -s 1.0.0.2/32\n-A A -j B\n-A INPUT -j A\nCOMMIT\n"
        );
        let script = diff(&have, &want).script;
        assert!(
            script.contains(":A - [0:0]") && script.contains("-F INPUT"),
            "{script}"
        );
    }

    #[test]
    fn tables_that_do_not_stand_begin_with_the_policies_they_keep() {
        let want = tables(
            "*filter\n:INPUT DROP [0:0]\n:A - [0:0]\n-A INPUT -j A\nCOMMIT\n*nat\n:INPUT ACCEPT [0:0]\nCOMMIT\n*mangle\n:INPUT ACCEPT [0:0]\nCOMMIT\n",
        );
        let (script, begun) = beginning("ip", &want, &Tables::new());
        assert_eq!(
            script,
            "table ip filter {\nchain INPUT { type filter hook input priority 0; policy drop; }\n}\n\
             table ip nat {\nchain INPUT { type nat hook input priority 100; policy accept; }\n}\n"
        );
        assert_eq!(
            diff(&want, &begun).script,
            "*filter\n:A - [0:0]\n-A INPUT -j A\nCOMMIT\n*mangle\n:INPUT ACCEPT [0:0]\n-F INPUT\nCOMMIT\n"
        );
        assert_eq!(beginning("ip", &want, &want), (String::new(), want.clone()));
    }

    #[test]
    fn chains_of_one_name_in_two_tables_are_told_apart() {
        let asked = tables(
            "*filter\n:A - [0:0]\n:INPUT DROP [0:0]\nCOMMIT\n*nat\n:INPUT ACCEPT [0:0]\n-A INPUT -j DROP\nCOMMIT\n",
        );
        let said = "-N A\n-P INPUT DROP\n-P INPUT ACCEPT\n-A INPUT -j DROP\n";
        assert_eq!(parse_asked_all(said, &asked), Some(asked.clone()));
        assert_eq!(parse_asked_all("-N A\n-P INPUT DROP\n", &asked), None);
        assert_eq!(
            parse_asked_all("-P INPUT DROP\n-N A\n-P INPUT ACCEPT\n", &asked),
            None
        );
        assert_eq!(parse_asked_all("", &Tables::new()), Some(Tables::new()));
    }

    #[test]
    fn what_a_change_wrote_is_asked_for_and_compared() {
        let have = tables("*filter\n:INPUT DROP [0:0]\n:A - [0:0]\n-A A -j DROP\nCOMMIT\n");
        let want = tables(
            "*filter\n:INPUT ACCEPT [0:0]\n:A - [0:0]\n-A A -j DROP\n:B - [0:0]\n-A B -s 1.2.3.4/32 -j DROP\nCOMMIT\n",
        );
        let some = changed(&want, &have);
        assert_eq!(asking(&some), "*filter\n-S B\n-S INPUT\nCOMMIT\n");
        let said = Tables::from([(
            "filter".into(),
            parse_asked("-N B\n-A B -s 1.2.3.4/32 -j DROP\n-P INPUT ACCEPT\n"),
        )]);
        assert!(holds(&said, &some));
        assert!(!holds(&have, &some));
    }

    proptest! {
        #[test]
        fn reading_garbage_never_panics(text in "[*:A-Z \\n\"-]{0,200}") {
            let _parsed = (parse(&text), parse_asked_all(&text, &tables("*filter\n:A - [0:0]\nCOMMIT\n")));
        }

        /// As `iptables-restore` runs them.
        #[test]
        fn what_is_added_makes_what_is_wanted(want in prop::collection::vec("[ab]", 0..8), keep in prop::collection::vec(any::<bool>(), 8)) {
            let mut stands: Vec<String> = want.iter().zip(&keep).filter(|(_, k)| **k).map(|(r, _)| r.clone()).collect();
            for line in added("A", &stands, &want).unwrap().lines() {
                let words: Vec<&str> = line.split(' ').collect();
                match words[..] {
                    ["-A", "A", rule] => stands.push(rule.into()),
                    ["-I", "A", place, rule] => stands.insert(place.parse::<usize>().unwrap() - 1, rule.into()),
                    _ => panic!("{line}"),
                }
            }
            prop_assert_eq!(stands, want);
        }
    }
}
