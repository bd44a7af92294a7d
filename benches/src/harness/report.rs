//! The JSON report.

use super::{
    fault::{During, Outcome},
    machine::Machine,
    row::Row,
};
use serde::Serialize;
use std::path::Path;

/// The version of the report's shape.
const SCHEMA: u32 = 1;

/// All that one call measured, and on what.
#[derive(Debug, Serialize)]
pub(crate) struct Report<'a> {
    pub(crate) schema: u32,
    /// When it began, UTC.
    pub(crate) date: String,
    /// The exact command.
    pub(crate) command: String,
    pub(crate) profile: &'static str,
    pub(crate) quick: bool,
    pub(crate) machine: &'a Machine,
    pub(crate) rows: &'a [Row],
}

impl<'a> Report<'a> {
    pub(crate) fn new(date: String, quick: bool, machine: &'a Machine, rows: &'a [Row]) -> Self {
        let command = std::env::args()
            .map(|word| quoted(&word))
            .collect::<Vec<_>>()
            .join(" ");
        Self {
            schema: SCHEMA,
            date,
            command,
            profile: profile(),
            quick,
            machine,
            rows,
        }
    }

    /// Writes it beside its place and renames it there: a report is whole or absent.
    pub(crate) fn write(&self, path: &Path) -> Outcome<()> {
        let beside = path.with_extension("json.new");
        let mut text = serde_json::to_string_pretty(self)?;
        text.push('\n');
        std::fs::write(&beside, text).during(format!("writing {}", beside.display()))?;
        std::fs::rename(&beside, path).during(format!("writing {}", path.display()))
    }
}

/// How this program was built.
pub(crate) const fn profile() -> &'static str {
    if cfg!(debug_assertions) {
        "debug"
    } else {
        "release"
    }
}

fn quoted(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./=:,".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        word.to_owned()
    } else {
        format!("'{}'", word.replace('\'', r"'\''"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_word_with_blanks_is_quoted() {
        assert_eq!(quoted("--json"), "--json");
        assert_eq!(quoted("a b"), "'a b'");
        assert_eq!(quoted("it's"), r"'it'\''s'");
    }

    #[test]
    fn a_report_holds_rows_with_samples_and_the_machine() {
        let machine = Machine::look();
        let rows = [Row::new("x", "ms", vec![1.0, 2.0, 3.0])
            .against("p", vec![4.0])
            .goal("<= 1x")];
        let json = serde_json::to_value(Report::new("2026".into(), true, &machine, &rows)).unwrap();
        assert_eq!(json["rows"][0]["met"], true);
        assert_eq!(json["rows"][0]["samples"]["ours"][2], 3.0);
        for field in ["cpu", "cores", "memory_mib", "kernel"] {
            assert!(!json["machine"][field].is_null(), "{field}");
        }
        for field in ["rust", "qemu", "redis"] {
            assert!(json["machine"]["versions"][field].is_string(), "{field}");
        }
    }
}
