//! The driver's conformance suite on VMs that run: its test program, brought into the machine and run there.
//!
//! Each test is a process of its own, so that one that fails or hangs says nothing about the next.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use serde::Deserialize;

use super::Times;
use super::image::Image;
use super::machine::{Machine, Plan};
use crate::demo::Interrupts;
use crate::fault::{Done, Fault};
use crate::{guest, place, say};

const PACKAGE: &str = "vbm-hyper";
const PROGRAM: &str = "virtualbox_lab";
const INSIDE: &str = "/lab/bin/virtualbox_lab";
/// What the test program reads: that it is in the lab, and where the tiny guest is.
const VARIABLES: &str = "VBM_VBOX_LAB=1 VBM_GUEST_DIR=/lab/guest RUST_BACKTRACE=0";
const LIST_WITHIN: Duration = Duration::from_secs(60);
/// A test boots a guest or two, each 20 s when the host is idle.
const TEST_WITHIN: Duration = Duration::from_secs(300);
const SHOWN_LINES: usize = 25;

/// Builds the test program, boots the machine, runs every test. A test that fails is noted, and the others run.
pub(super) fn run(dir: &Path, image: &Image, interrupts: &Interrupts, times: &mut Times) -> Done {
    say::title("suite: the driver's promises, with VMs that run");
    let since = Instant::now();
    let program = build()?;
    let guest = guest::ensure(None)?;
    let mut files = vec![("bin/virtualbox_lab".to_owned(), program)];
    for name in [
        "guest.json",
        &guest.manifest.kernel,
        &guest.manifest.initrd,
        &guest.manifest.disk,
    ] {
        files.push((format!("guest/{name}"), guest.dir.join(name)));
    }
    times.note("test program and guest", "built", since);
    let since = Instant::now();
    let plan = Plan {
        files,
        ..Plan::default()
    };
    let mut machine = Machine::boot(dir, image, &plan, interrupts)?;
    times.note("machine for the suite", "up", since);
    let list = machine.must(
        &format!("{VARIABLES} {INSIDE} --list --format terse"),
        LIST_WITHIN,
    )?;
    let tests = names(&list);
    if tests.is_empty() {
        return Err(Fault::new(
            "the suite has no tests",
            list,
            format!("see vbm-hyper/tests/{PROGRAM}.rs"),
        ));
    }
    for test in tests {
        let since = Instant::now();
        let line = format!("{VARIABLES} {INSIDE} --exact '{test}' --nocapture");
        let reply = machine.run(&line, TEST_WITHIN)?;
        let told = judge(reply.status, &reply.text);
        match told {
            Ok(()) => times.note(&format!("  {test}"), "ok", since),
            Err(why) => {
                times.failed(&format!("  {test}"), &why, since);
                for shown in last(&reply.text) {
                    say::note(&format!("| {shown}"));
                }
            }
        }
    }
    machine.end()
}

/// A test counts as passed when its program says that it ran one and that it is well: one that left itself out did not.
fn judge(status: i32, said: &str) -> Result<(), String> {
    /// `timeout`'s own exit status for a line that it ended.
    const LATE: i32 = 124;
    if status == LATE {
        return Err(format!("had no end within {} s", TEST_WITHIN.as_secs()));
    }
    if let Some(line) = said.lines().find(|line| line.contains("LEFT OUT")) {
        return Err(format!("did not run: {line}"));
    }
    if status == 0 && said.contains("1 passed; 0 failed") {
        return Ok(());
    }
    Err(format!("failed, exit status {status}"))
}

fn names(list: &str) -> Vec<String> {
    list.lines()
        .filter_map(|line| line.strip_suffix(": test"))
        .map(str::to_owned)
        .collect()
}

fn last(text: &str) -> Vec<&str> {
    let lines: Vec<&str> = text.lines().filter(|line| !line.trim().is_empty()).collect();
    let from = lines.len().saturating_sub(SHOWN_LINES);
    lines.get(from..).unwrap_or_default().to_vec()
}

#[derive(Deserialize)]
struct Message {
    target: Option<Target>,
    executable: Option<PathBuf>,
}

#[derive(Deserialize)]
struct Target {
    name: String,
}

fn build() -> Done<PathBuf> {
    let mut command = place::cargo();
    command
        .args([
            "test",
            "--package",
            PACKAGE,
            "--all-features",
            "--test",
            PROGRAM,
            "--no-run",
        ])
        .args(["--message-format", "json-render-diagnostics"])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::inherit());
    let output = command
        .spawn()
        .and_then(std::process::Child::wait_with_output)
        .map_err(|error| crate::run::not_started(&command, &error))?;
    let found = executable(&String::from_utf8_lossy(&output.stdout));
    found.filter(|_| output.status.success()).ok_or_else(|| {
        Fault::new(
            "the driver's test program was not built",
            "the compiler's messages are above",
            "repair that, then run the lab again",
        )
    })
}

fn executable(messages: &str) -> Option<PathBuf> {
    messages
        .lines()
        .filter_map(|line| serde_json::from_str::<Message>(line).ok())
        .filter(|message| {
            message
                .target
                .as_ref()
                .is_some_and(|target| target.name == PROGRAM)
        })
        .find_map(|message| message.executable)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_test_that_ran_and_is_well_counts() {
        let good = "running 1 test\ntest a ... ok\ntest result: ok. 1 passed; 0 failed; 0 ignored";
        assert_eq!(judge(0, good), Ok(()));
        assert!(judge(0, "test result: ok. 0 passed; 0 failed; 1 ignored").is_err());
        assert!(
            judge(0, &format!("LEFT OUT: no lab\n{good}"))
                .unwrap_err()
                .contains("did not run")
        );
        assert!(judge(101, good).is_err());
        assert!(judge(124, good).unwrap_err().contains("no end"));
    }

    #[test]
    fn tests_are_listed_and_the_program_is_found() {
        assert_eq!(names("a::b: test\nx: benchmark\nc: test\n"), ["a::b", "c"]);
        let messages = "{\"reason\":\"x\"}\n{\"target\":{\"name\":\"other\"},\"executable\":\"/o\"}\n\
                        {\"target\":{\"name\":\"virtualbox_lab\"},\"executable\":\"/t/virtualbox_lab-1\"}\n";
        assert_eq!(executable(messages), Some(PathBuf::from("/t/virtualbox_lab-1")));
        assert_eq!(executable(""), None);
    }
}
