//! Reading what test runners print, and counting by level. Pure.
//!
//! A level says what a test needs: `unit` nothing, the others are named by their test file's first word
//! (`tests/ns_dhcp.rs` is `ns`), examples and doc tests are levels of their own.

use std::collections::BTreeMap;

/// How often a test is tried. Hundreds of them run real servers, guests and clients against real time beside each other:
/// one that failed once is named in the summary, and does not take the rest of a run with it.
pub(super) const TRIES: u64 = 2;

/// File or module prefixes that name a level even inside a test binary that bundles several.
const LEVELS: [&str; 6] = ["conformance", "ns", "redis", "qemu", "cli", "api"];

/// Passed and failed, by level.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Counts {
    levels: BTreeMap<String, (u64, u64)>,
    /// Tests that a runner left out (`#[ignore]` or a filter).
    pub(crate) skipped: u64,
    /// What the caller chose not to run.
    pub(crate) left_out: Vec<String>,
    /// What could not be run, and why: neither passed nor failed.
    pub(crate) not_run: Vec<NotRun>,
    /// Tests that failed and passed when they were tried again: a fault of theirs, or of what they test.
    pub(crate) flaky: Vec<String>,
}

/// A part of the tests that is impossible here, though nobody left it out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct NotRun {
    pub(crate) part: &'static str,
    pub(crate) why: String,
}

impl Counts {
    pub(crate) fn add(&mut self, level: &str, passed: u64, failed: u64) {
        let sum = self.levels.entry(level.to_owned()).or_default();
        sum.0 += passed;
        sum.1 += failed;
    }

    pub(crate) fn merge(&mut self, other: &Self) {
        for (level, (passed, failed)) in &other.levels {
            self.add(level, *passed, *failed);
        }
        self.skipped += other.skipped;
        self.left_out.extend_from_slice(&other.left_out);
        self.not_run.extend_from_slice(&other.not_run);
        self.flaky.extend_from_slice(&other.flaky);
    }

    pub(crate) fn passed(&self) -> u64 {
        self.levels.values().map(|(passed, _)| passed).sum()
    }

    pub(crate) fn failed(&self) -> u64 {
        self.levels.values().map(|(_, failed)| failed).sum()
    }

    /// Rows for a table: level, passed, failed.
    pub(crate) fn rows(&self) -> Vec<Vec<String>> {
        let row = |(level, (passed, failed)): (&String, &(u64, u64))| {
            vec![level.clone(), passed.to_string(), failed.to_string()]
        };
        self.levels.iter().map(row).collect()
    }
}

/// What a line of a runner means.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Event {
    /// So many tests will run.
    Starting(u64),
    Passed {
        level: String,
    },
    Failed {
        level: String,
    },
    /// It failed before.
    PassedAtLast {
        level: String,
        test: String,
    },
    /// So many tests were left out.
    Skipped(u64),
    /// Something else, to be shown.
    Other,
}

/// One line of `cargo nextest run`.
pub(super) fn nextest(line: &str) -> Event {
    let text = line.trim();
    if let Some(rest) = text.strip_prefix("Starting ") {
        return number(rest).map_or(Event::Other, Event::Starting);
    }
    if text.starts_with("Summary [") {
        let skipped = text
            .split(", ")
            .find_map(|part| number(part.strip_suffix(" skipped")?));
        return skipped.map_or(Event::Other, Event::Skipped);
    }
    let Some((status, binary, test)) = nextest_result(text) else {
        return Event::Other;
    };
    let level = nextest_level(binary, test);
    match status {
        "PASS" | "LEAK" => Event::Passed { level },
        "SLOW" | "TERMINATING" | "SKIP" => Event::Other,
        other => match other.strip_prefix("TRY ").and_then(number) {
            Some(_) if other.ends_with(" PASS") || other.ends_with(" LEAK") => Event::PassedAtLast {
                level,
                test: format!("{binary} {test}"),
            },
            Some(tries) if tries < TRIES => Event::Other,
            _ => Event::Failed { level },
        },
    }
}

/// `PASS [   0.005s] ( 1/18) vbm-net::ns_dhcp renews` gives status, binary and test; the place may be absent.
fn nextest_result(text: &str) -> Option<(&str, &str, &str)> {
    let (status, rest) = text.split_once(" [")?;
    let (took, rest) = rest.split_once("] ")?;
    took.trim().strip_suffix('s')?.parse::<f64>().ok()?;
    let rest = match rest.strip_prefix('(') {
        Some(place) => place.split_once(") ")?.1,
        None => rest,
    };
    let (binary, test) = rest.trim().split_once(' ')?;
    let is_status = status
        .chars()
        .all(|c| c.is_ascii_uppercase() || c.is_ascii_digit() || " -".contains(c));
    is_status.then_some((status, binary, test))
}

fn nextest_level(binary: &str, test: &str) -> String {
    let (package, target) = binary.split_once("::").unwrap_or((binary, ""));
    if package == "vbm-examples" || target.starts_with("example/") {
        return "examples".to_owned();
    }
    if target.is_empty() || target.contains('/') {
        "unit".to_owned()
    } else {
        file_level(target, test)
    }
}

/// The level of a test file; a bundle of several is told apart by the test's own first word.
fn file_level(file: &str, test: &str) -> String {
    let word = |text: &str| text.split(['_', ':']).next().unwrap_or_default().to_owned();
    let (by_file, by_test) = (word(file), word(test));
    if !LEVELS.contains(&by_file.as_str()) && LEVELS.contains(&by_test.as_str()) {
        by_test
    } else {
        by_file
    }
}

/// Reads `cargo test`, where a line names the binary and later lines its tests.
#[derive(Default)]
pub(super) struct Libtest {
    file: Option<String>,
    doc: bool,
}

impl Libtest {
    pub(super) fn line(&mut self, line: &str) -> Event {
        let text = line.trim();
        if let Some(rest) = text.strip_prefix("Running ") {
            self.file = running_file(rest);
            self.doc = false;
        } else if text.starts_with("Doc-tests ") {
            self.doc = true;
        } else if let Some(rest) = text.strip_prefix("test result: ") {
            let ignored = rest
                .split("; ")
                .find_map(|part| number(part.strip_suffix(" ignored")?));
            return ignored.map_or(Event::Other, Event::Skipped);
        } else if let Some((test, result)) = text
            .strip_prefix("test ")
            .and_then(|rest| rest.rsplit_once(" ... "))
        {
            return match result {
                "ok" => Event::Passed {
                    level: self.level(test),
                },
                "FAILED" => Event::Failed {
                    level: self.level(test),
                },
                _ => Event::Other,
            };
        }
        Event::Other
    }

    fn level(&self, test: &str) -> String {
        match &self.file {
            _ if self.doc => "doc".to_owned(),
            Some(file) if file == "examples" => file.clone(),
            Some(file) => file_level(file, test),
            None => "unit".to_owned(),
        }
    }
}

/// `tests/ns_dhcp.rs (target/debug/deps/ns_dhcp-0a)` is `ns_dhcp`; unit tests of a library or program have none.
fn running_file(rest: &str) -> Option<String> {
    if rest.contains("examples") {
        return Some("examples".to_owned());
    }
    let path = rest.split(" (").next()?.strip_prefix("tests/")?;
    let name = path
        .strip_suffix("/main.rs")
        .or_else(|| path.strip_suffix(".rs"))?;
    Some(name.to_owned())
}

fn number(text: &str) -> Option<u64> {
    text.split_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn passed(level: &str) -> Event {
        Event::Passed {
            level: level.to_owned(),
        }
    }

    #[test]
    fn nextest_lines_become_events_with_their_level() {
        assert_eq!(
            nextest("    Starting 18 tests across 1 binary"),
            Event::Starting(18)
        );
        assert_eq!(
            nextest("  PASS [   0.005s] ( 1/18) vbm-core mac::tests::parses"),
            passed("unit")
        );
        assert_eq!(
            nextest("  PASS [   0.005s] (2/18) vbm-sdk::bin/vbm cli::x"),
            passed("unit")
        );
        assert_eq!(
            nextest("  LEAK [   0.005s] (3/18) vbm-net::ns_dhcp renews"),
            passed("ns")
        );
        assert_eq!(
            nextest("  PASS [   0.005s] (4/18) vbm-net::it redis_x::works"),
            passed("redis")
        );
        assert_eq!(
            nextest("  PASS [   0.005s] (4/18) vbm-examples::run all"),
            passed("examples")
        );
        let failed = Event::Failed {
            level: "qemu".to_owned(),
        };
        assert_eq!(
            nextest("  FAIL [   0.005s] (5/18) vbm-hyper::qemu_power stops"),
            failed
        );
        assert_eq!(
            nextest("  TIMEOUT [ 60.005s] (5/18) vbm-hyper::qemu_power stops"),
            failed
        );
        assert_eq!(
            nextest("  SIGABRT [ 0.1s] (5/18) vbm-hyper::qemu_power stops"),
            failed
        );
    }

    #[test]
    fn a_test_has_failed_with_its_last_try_and_is_named_when_it_needed_it() {
        assert_eq!(
            nextest("  TRY 1 FAIL [   0.005s] (5/18) vbm-rpc::redis x::works"),
            Event::Other
        );
        assert_eq!(
            nextest("  TRY 2 PASS [   0.005s] (5/18) vbm-rpc::redis x::works"),
            Event::PassedAtLast {
                level: "redis".to_owned(),
                test: "vbm-rpc::redis x::works".to_owned()
            }
        );
        for last in ["TRY 2 FAIL", "TRY 2 TIMEOUT", "TRY 2 SIGABRT"] {
            assert_eq!(
                nextest(&format!("  {last} [   0.005s] (5/18) vbm-rpc::redis x::works")),
                Event::Failed {
                    level: "redis".to_owned()
                }
            );
        }
    }

    #[test]
    fn nextest_lines_may_lack_the_place() {
        assert_eq!(
            nextest("           PASS [   0.008s] vbm-core::ns_x dir"),
            passed("ns")
        );
    }

    #[test]
    fn nextest_lines_that_decide_nothing_are_shown() {
        assert_eq!(
            nextest("  SLOW [> 60.000s] (---) vbm-net::ns_dhcp renews"),
            Event::Other
        );
        assert_eq!(nextest("   Compiling vbm-core v0.1.0 (/x)"), Event::Other);
        assert_eq!(nextest("thread 'x' panicked [a] (1/2) b c"), Event::Other);
        assert_eq!(
            nextest("   Summary [ 0.05s] 18 tests run: 17 passed, 1 failed, 3 skipped"),
            Event::Skipped(3)
        );
    }

    #[test]
    fn libtest_lines_belong_to_the_binary_named_before() {
        let mut reader = Libtest::default();
        reader.line("     Running unittests src/lib.rs (target/debug/deps/vbm_core-0a)");
        assert_eq!(reader.line("test mac::parses ... ok"), passed("unit"));
        reader.line("     Running tests/ns_dhcp.rs (target/debug/deps/ns_dhcp-0a)");
        assert_eq!(
            reader.line("test renews ... FAILED"),
            Event::Failed {
                level: "ns".to_owned()
            }
        );
        assert_eq!(reader.line("test later ... ignored"), Event::Other);
        assert_eq!(
            reader.line("test result: FAILED. 0 passed; 1 failed; 1 ignored; 0 measured"),
            Event::Skipped(1)
        );
        reader.line("   Doc-tests vbm_core");
        assert_eq!(
            reader.line("test src/lib.rs - Mac (line 3) ... ok"),
            passed("doc")
        );
        assert_eq!(
            reader.line("test src/lib.rs - Mac (line 9) - compile fail ... ok"),
            passed("doc")
        );
    }

    #[test]
    fn counts_add_up() {
        let mut counts = Counts::default();
        counts.add("unit", 2, 0);
        counts.add("ns", 1, 1);
        let mut all = counts.clone();
        all.merge(&counts);
        assert_eq!((all.passed(), all.failed()), (6, 2));
        assert_eq!(all.rows(), [["ns", "2", "2"], ["unit", "4", "0"]]);
    }
}
