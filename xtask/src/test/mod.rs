//! `cargo xtask test`: installs what is missing, makes the guest, runs everything and counts it by level.
//!
//! The tests find the guest in `VBM_GUEST_DIR`. What `VBM_LEAVE_OUT` names does not run and is said at the end.

mod count;
mod machine;

use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Instant;

pub(crate) use count::Counts;
use count::{Event, Libtest, NotRun};
use machine::LeaveOut;

use crate::fault::{Done, Fault};
use crate::{guest, lab, place, run, say, setup, web};

/// The part that the package archive may fail to provide.
const VIRTUALBOX: &str = "virtualbox";
/// The same: Debian 12 has it among its backports only.
const VALKEY: &str = "valkey";

/// Runs all tests, or those that `filters` name; prints the table and the closing line.
pub(crate) fn command(filters: &[String]) -> Done {
    let counts = all(filters)?;
    summary(&counts);
    if counts.failed() == 0 {
        return Ok(());
    }
    Err(Fault::new(
        format!(
            "{} of {} tests failed",
            counts.failed(),
            counts.failed() + counts.passed()
        ),
        "their output is above",
        "repair them; `cargo xtask test -- NAME` runs only the tests whose names contain NAME",
    ))
}

/// Runs all tests; a test that fails is a count, not an error.
pub(crate) fn all(filters: &[String]) -> Done<Counts> {
    let leave_out = LeaveOut::from_environment()?;
    setup::ensure(&leave_out.needs())?;
    machine::check(&leave_out)?;
    let mut guest_dir = None;
    if !leave_out.has("qemu") {
        let guest = guest::ensure(None)?;
        say::line(&format!("guest: {}", guest.dir.display()));
        guest_dir = Some(guest.dir);
    }
    let without_valkey = valkey(&leave_out);
    let (virtualbox, not_run) = virtualbox(&leave_out)?;
    let cargo = || {
        let mut command = place::cargo();
        if let Some(dir) = &guest_dir {
            command.env("VBM_GUEST_DIR", dir);
        }
        match &virtualbox {
            Some(lab) => command.envs(lab.variables()),
            None => command.env(machine::LEAVE_OUT, leave_out.and(VIRTUALBOX)),
        };
        command
    };
    say::title("build");
    web::ensure_built()?;
    run::stream(cargo().args(["build", "--workspace", "--all-features", "--bins", "--examples"]))?;
    say::title("tests");
    let mut counts = watched(&mut cargo(), filters, without_valkey.is_none())?;
    if filters.is_empty() {
        say::title("doc tests");
        counts.merge(&doc_tests(&mut cargo())?);
        counts.merge(&page_tests(&leave_out, guest_dir.as_deref())?);
        if virtualbox.is_some() {
            say::title("lab");
            match lab::as_level() {
                Ok(level) => {
                    counts.add("lab", level.passed, level.failed);
                    let gave_up = level.not_run.into_iter();
                    counts.not_run.extend(gave_up.map(|why| NotRun {
                        part: VIRTUALBOX,
                        why,
                    }));
                }
                Err(unable) => counts.not_run.push(excuse(unable)?),
            }
        }
    }
    counts.not_run.extend(not_run);
    counts.not_run.extend(without_valkey);
    counts.left_out = leave_out.list().to_vec();
    Ok(counts)
}

/// Why the bus is not tried on Valkey, if it is not.
fn valkey(leave_out: &LeaveOut) -> Option<NotRun> {
    if leave_out.has("redis") {
        return None;
    }
    let offered = setup::offer(
        "valkey-server",
        "valkey-server",
        "the bus keeps its promises on it too",
    );
    offered.err().map(|fault| {
        say::not_run(&fault);
        NotRun {
            part: VALKEY,
            why: format!("{}: {}", fault.what, fault.why),
        }
    })
}

/// The real VBoxManage for the tests of its driver; or why there is none, which is not their failure.
fn virtualbox(leave_out: &LeaveOut) -> Done<(Option<lab::ForTests>, Option<NotRun>)> {
    if !leave_out.virtualbox() {
        return Ok((None, None));
    }
    match lab::ForTests::ensure() {
        Ok(lab) => Ok((Some(lab), None)),
        Err(unable) => Ok((None, Some(excuse(unable)?))),
    }
}

/// What the archive does not provide is told and counted as not run; anything else is a fault.
fn excuse(unable: lab::Unable) -> Done<NotRun> {
    match unable {
        lab::Unable::NotProvided(fault) => {
            say::not_run(&fault);
            Ok(NotRun {
                part: VIRTUALBOX,
                why: format!("{}: {}", fault.what, fault.why),
            })
        }
        lab::Unable::Failed(fault) => Err(fault),
    }
}

/// The page of the web console: its own functions, and all of it in a browser.
fn page_tests(leave_out: &LeaveOut, guest: Option<&Path>) -> Done<Counts> {
    say::title("the page");
    let mut counts = web::unit_tests()?;
    if let Some(guest) = guest.filter(|_| leave_out.browser()) {
        counts.merge(&web::browser_tests(&place::target().join("debug"), guest)?);
    }
    Ok(counts)
}

/// The table by level, and the closing line that other programs read.
pub(crate) fn summary(counts: &Counts) {
    say::title("counts");
    say::table(&["level", "passed", "failed"], &counts.rows());
    if counts.skipped > 0 {
        say::line(&format!(
            "{} not run: marked #[ignore] or not matched by the filter",
            counts.skipped
        ));
    }
    for part in &counts.left_out {
        say::line(&format!(
            "LEFT OUT by {}: tests that need {part}",
            machine::LEAVE_OUT
        ));
    }
    for test in &counts.flaky {
        say::line(&format!(
            "*** FAILED AT FIRST, passed when tried again: {test} ***"
        ));
    }
    for NotRun { part, why } in &counts.not_run {
        say::line(&format!("*** NOT RUN: tests that need {part}: {why} ***"));
    }
    say::line(&format!("{} passed, {} failed", counts.passed(), counts.failed()));
}

/// Unit and integration tests: by nextest where it is installed, which gives each test a process and a time-out.
fn watched(cargo: &mut Command, filters: &[String], valkey: bool) -> Done<Counts> {
    if run::which("cargo-nextest").is_some() {
        cargo.args([
            "nextest",
            "run",
            "--workspace",
            "--all-features",
            "--no-fail-fast",
            "--color",
            "never",
        ]);
        cargo.args([
            "--status-level",
            "pass",
            "--final-status-level",
            "none",
            "--failure-output",
            "immediate",
        ]);
        cargo
            .args([
                "--success-output",
                "never",
                "--show-progress",
                "none",
                "--no-tests",
                "warn",
            ])
            .args(["--retries", &(count::TRIES - 1).to_string()])
            .args(filters);
        if !valkey {
            // They would say that they were left out, and be counted as passed.
            cargo.args(["-E", "not binary(valkey)"]);
        }
        return follow(cargo, count::nextest);
    }
    say::note("cargo-nextest is not installed: using `cargo test`");
    cargo.args([
        "test",
        "--workspace",
        "--all-features",
        "--no-fail-fast",
        "--color",
        "never",
    ]);
    cargo
        .args(["--lib", "--bins", "--tests", "--examples"])
        .args(["--"])
        .args(filters);
    let mut reader = Libtest::default();
    follow(cargo, |line| reader.line(line))
}

fn doc_tests(cargo: &mut Command) -> Done<Counts> {
    cargo.args([
        "test",
        "--doc",
        "--workspace",
        "--all-features",
        "--no-fail-fast",
        "--color",
        "never",
    ]);
    let mut reader = Libtest::default();
    follow(cargo, |line| reader.line(line))
}

/// Runs a test runner, counts by its lines, shows every line that is no mere pass.
fn follow(command: &mut Command, mut read: impl FnMut(&str) -> Event) -> Done<Counts> {
    let started = Instant::now();
    let broken =
        |error: std::io::Error| Fault::new("lost the test runner's output", error, "run the command again");
    let (output, input) = std::io::pipe().map_err(broken)?;
    command
        .stdin(Stdio::null())
        .stdout(input.try_clone().map_err(broken)?)
        .stderr(input);
    let mut child = command
        .spawn()
        .map_err(|error| run::not_started(command, &error))?;
    // The command holds the pipe's writing ends; without this the reading end never ends.
    command.stdout(Stdio::null()).stderr(Stdio::null());

    let mut counts = Counts::default();
    let bar = say::bar(0, "tests");
    for line in BufReader::new(output).split(b'\n') {
        let line = String::from_utf8_lossy(&line.map_err(broken)?).into_owned();
        match read(&line) {
            Event::Starting(total) => bar.set_length(total),
            Event::Passed { level } => {
                counts.add(&level, 1, 0);
                bar.inc(1);
                continue;
            }
            Event::Failed { level } => {
                counts.add(&level, 0, 1);
                bar.inc(1);
            }
            Event::PassedAtLast { level, test } => {
                counts.add(&level, 1, 0);
                counts.flaky.push(test);
                bar.inc(1);
            }
            Event::Skipped(number) => counts.skipped += number,
            Event::Other => {}
        }
        bar.suspend(|| say::note(&line));
    }
    bar.finish_and_clear();
    let status = child.wait().map_err(broken)?;
    if !status.success() && counts.failed() == 0 {
        say::note(&format!(
            "`{}` failed without a failed test: {status}",
            run::shown(command)
        ));
        counts.add("build", 0, 1);
    }
    say::note(&format!("took {:.1} s", started.elapsed().as_secs_f64()));
    Ok(counts)
}
