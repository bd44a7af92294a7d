//! `cargo xtask ci`: the tests, then what keeps the code in shape. Every check runs, whatever failed before it.
//!
//! The closing line counts tests and checks together, so that it never says "0 failed" of a run that failed.

use std::process::Command;
use std::time::Instant;

use crate::fault::{Done, Fault};
use crate::test::{self, Counts};
use crate::{demo, place, run, say, tidy};

/// Set to `1` to let `ci` install cargo-deny where it is missing.
const INSTALL_DENY: &str = "VBM_CI_INSTALL_DENY";
const LEVEL: &str = "checks";

/// Runs everything.
pub(crate) fn command() -> Done {
    let mut counts = Counts::default();
    let mut rows = Vec::new();
    let started = Instant::now();
    match test::all(&[]) {
        Ok(tests) => {
            rows.push(row("tests", verdict(tests.failed() == 0), started));
            counts.merge(&tests);
        }
        Err(fault) => {
            say::fault(&fault);
            rows.push(row("tests", "FAILED to run", started));
            counts.add("tests", 0, 1);
        }
    }
    for (name, check) in checks() {
        say::title(name);
        let started = Instant::now();
        match check() {
            Ok(Outcome::Passed) => {
                counts.add(LEVEL, 1, 0);
                rows.push(row(name, "ok", started));
            }
            Ok(Outcome::NotRun) => rows.push(row(name, "NOT RUN", started)),
            Err(fault) => {
                say::fault(&fault);
                counts.add(LEVEL, 0, 1);
                rows.push(row(name, "FAILED", started));
            }
        }
    }
    say::title("ci");
    say::table(&["step", "result", "seconds"], &rows);
    test::summary(&counts);
    if counts.failed() == 0 {
        return Ok(());
    }
    let what = format!("{} tests or checks failed", counts.failed());
    Err(Fault::new(
        what,
        "the table above names the steps",
        "look for the step's heading in the output above",
    ))
}

enum Outcome {
    Passed,
    NotRun,
}

type Check = fn() -> Done<Outcome>;

fn checks() -> [(&'static str, Check); 7] {
    [
        ("demo", || demo::command(1).map(|()| Outcome::Passed)),
        ("demo of two nodes", || demo::command(2).map(|()| Outcome::Passed)),
        ("format", || cargo(&["fmt", "--all", "--check"], None)),
        ("clippy", || {
            cargo(
                &[
                    "clippy",
                    "--workspace",
                    "--all-targets",
                    "--all-features",
                    "--",
                    "-D",
                    "warnings",
                ],
                None,
            )
        }),
        ("rustdoc", || {
            cargo(
                &["doc", "--workspace", "--no-deps", "--all-features"],
                Some(("RUSTDOCFLAGS", "-D warnings")),
            )
        }),
        ("cargo-deny", deny),
        ("tidy", || tidy::command().map(|()| Outcome::Passed)),
    ]
}

fn cargo(args: &[&str], variable: Option<(&str, &str)>) -> Done<Outcome> {
    let mut command: Command = place::cargo();
    command.args(args).envs(variable);
    run::stream(&mut command).map(|()| Outcome::Passed)
}

/// Advisories are left out: they need a clone of a remote repository.
fn deny() -> Done<Outcome> {
    if run::which("cargo-deny").is_none() {
        if std::env::var(INSTALL_DENY).as_deref() != Ok("1") {
            say::line(&format!(
                "*** cargo-deny is NOT installed: licences, bans and sources were NOT checked ({INSTALL_DENY}=1 installs it) ***"
            ));
            return Ok(Outcome::NotRun);
        }
        run::stream(place::cargo().args(["install", "cargo-deny", "--locked"]))?;
    }
    cargo(
        &["deny", "--all-features", "check", "bans", "licenses", "sources"],
        None,
    )
}

fn verdict(good: bool) -> &'static str {
    if good { "ok" } else { "FAILED" }
}

fn row(name: &str, result: &str, started: Instant) -> Vec<String> {
    vec![
        name.to_owned(),
        result.to_owned(),
        format!("{:.1}", started.elapsed().as_secs_f64()),
    ]
}
