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
        if have.get(name) == Some(chain) {
            continue;
        }
        changes.push(format!("rules of {table} {name}"));
        headers += &format!(":{name} {} [0:0]\n", chain.policy.as_deref().unwrap_or("-"));
        // A user chain named in a header is flushed; a built-in one is not.
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
        fn reading_garbage_never_panics(text in "[*:A-Z \\n\"-]{0,200}") { parse(&text); }
    }
}
