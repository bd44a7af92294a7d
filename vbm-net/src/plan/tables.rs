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

    proptest! {
        #[test]
        fn reading_garbage_never_panics(text in "[*:A-Z \\n\"-]{0,200}") { parse(&text); }
    }
}
