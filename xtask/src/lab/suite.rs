//! The driver's conformance suite on VMs that run: its test program, brought into the machine and run there.
//!
//! Each test is a process of its own, so that one that fails or hangs says nothing about the next. VirtualBox gives up on a VM now
//! and then in the emulated machine (a "guru meditation": see docs/lab.md); a test that failed by that is tried again, and said so.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use serde::Deserialize;

use super::Times;
use super::image::Image;
use super::machine::{Machine, Plan, pause};
use crate::demo::Interrupts;
use crate::fault::{Done, Fault};
use crate::{guest, place, say};

const PROGRAM: &str = "virtualbox_lab";
const INSIDE: &str = "/lab/bin/virtualbox_lab";
/// What the test program reads: that it is in the lab, and where the tiny guest is.
const VARIABLES: &str = "VBM_VBOX_LAB=1 VBM_GUEST_DIR=/lab/guest RUST_BACKTRACE=0";
const LIST_WITHIN: Duration = Duration::from_secs(60);
/// What `cargo xtask test` runs: a sentence of each thing that only a VM that runs can show, each with one VM at a time. Two
/// of them beside each other were seen to be halted by VirtualBox itself in the emulated machine; all of the suite takes ten minutes
/// to half an hour. Adoption is the story's, too.
const CORE: [&str; 8] = [
    "a_started_vm_runs_and_is_seen",
    "a_paused_vm_is_halted_and_goes_on",
    "the_serial_line_answers_and_remembers",
    "a_vnc_session_begins_with_its_version",
    "the_button_shuts_an_obedient_guest_down",
    "an_accident_is_a_crash_and_not_a_shutdown",
    "a_vm_goes_back_to_a_snapshot_of_disk_and_memory",
    "nothing_is_known_before_it_is_adopted",
];
/// `all` makes the tests run all of the suite.
const EXTENT: &str = "VBM_LAB_SUITE";
/// All of it; some ten minutes when the host does nothing else.
const SUITE_WITHIN: Duration = Duration::from_secs(25 * 60);
/// At a time. With two, VMs were seen to crash and guests to be silent for two minutes in a machine on a busy host.
const JOBS: u32 = 1;
/// How often a test may be tried: only again when VirtualBox itself gave up on its VM, or the guest said nothing, once in three to ten boots.
const TRIES: u32 = 5;
/// The exit status of a test whose VM VirtualBox gave up on, also at the last try.
const GAVE_UP: i32 = 75;
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// How many emulated machines the suite may use: QEMU itself was seen to end under one.
const MACHINES_MAX: u32 = 2;
/// Lists the tests that have ended.
const ENDED: &str =
    "cd /run/suite && for f in *.done; do [ -e \"$f\" ] && echo \"${f%.done} $(cat \"$f\")\"; done; true";
const SAID_BYTES: u32 = 20_000;
/// A test boots a guest or two, each 50 s when the host is idle, and waits 180 s for one.
const TEST_WITHIN: Duration = Duration::from_secs(540);
const SHOWN_LINES: usize = 25;

/// Whether somebody asks for all of the suite where the core is usual.
pub(super) fn all_wanted() -> bool {
    std::env::var(EXTENT).is_ok_and(|extent| extent == "all")
}

/// Builds the test program, boots the machine, runs every test. A test that fails is noted, and the others run.
pub(super) fn run(dir: &Path, image: &Image, core: bool, interrupts: &Interrupts, times: &mut Times) -> Done {
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
    let plan = Plan {
        files,
        ..Plan::default()
    };
    let mut machine = boot(dir, image, &plan, interrupts, times)?;
    let list = machine.must(
        &format!("{VARIABLES} {INSIDE} --list --format terse"),
        LIST_WITHIN,
    )?;
    let all = names(&list);
    let mut tests: BTreeSet<String> = all
        .iter()
        .filter(|t| !core || CORE.contains(&t.as_str()))
        .cloned()
        .collect();
    if core {
        say::note(&format!(
            "{} of the suite's {} sentences: {EXTENT}=all runs all of them",
            tests.len(),
            all.len()
        ));
    }
    if tests.is_empty() || (core && tests.len() != CORE.len()) {
        return Err(Fault::new(
            "the suite has not the tests that it should have",
            list,
            format!("see vbm-hyper/tests/{PROGRAM}.rs"),
        ));
    }
    for machines_left in (0..MACHINES_MAX).rev() {
        match go_on(&mut machine, &mut tests, interrupts, times) {
            Ok(()) => break,
            // The emulation of a processor that emulates one crashes, too.
            Err(fault) if machines_left > 0 && machine.has_ended() && !interrupts.came() => {
                say::fault(&fault);
                say::note(&format!("another machine goes on with the other {}", tests.len()));
                drop(machine);
                machine = boot(dir, image, &plan, interrupts, times)?;
            }
            Err(fault) => return Err(fault),
        }
    }
    machine.end()
}

fn boot(dir: &Path, image: &Image, plan: &Plan, interrupts: &Interrupts, times: &mut Times) -> Done<Machine> {
    let since = Instant::now();
    let machine = Machine::boot(dir, image, plan, interrupts)?;
    times.note("machine for the suite", "up", since);
    Ok(machine)
}

/// Runs these tests in a machine that has run none; those that have ended are taken away.
fn go_on(
    machine: &mut Machine,
    tests: &mut BTreeSet<String>,
    interrupts: &Interrupts,
    times: &mut Times,
) -> Done {
    let begin = format!(
        "mkdir -p /run/suite; printf '%s\\n' {} >/run/suite.list; {VARIABLES} setsid /lab/suite {INSIDE} {} {JOBS} {TRIES} </run/suite.list >/run/suite.log 2>&1 &",
        tests.iter().cloned().collect::<Vec<_>>().join(" "),
        TEST_WITHIN.as_secs()
    );
    machine.must(&begin, LIST_WITHIN)?;
    follow(machine, tests, interrupts, times)
}

/// Tells of each test when it has ended, until all have or the time is over.
fn follow(
    machine: &mut Machine,
    waiting: &mut BTreeSet<String>,
    interrupts: &Interrupts,
    times: &mut Times,
) -> Done {
    let since = Instant::now();
    let deadline = since + SUITE_WITHIN;
    while !waiting.is_empty() && Instant::now() < deadline {
        pause(interrupts, LOOK_EVERY)?;
        for end in ends(&machine.must(ENDED, LIST_WITHIN)?) {
            if !waiting.remove(&end.test) {
                continue;
            }
            let said = machine.must(
                &format!("tail -c {SAID_BYTES} '/run/suite/{}.said'", end.test),
                LIST_WITHIN,
            )?;
            let step = format!("  {}", end.test);
            let mut gave_up = String::new();
            if end.tries > 1 {
                let why = machine.must(&format!("cat '/run/suite/{}.again'", end.test), LIST_WITHIN)?;
                gave_up = format!("{}; tried {} times", why.trim(), end.tries);
                say::note(&format!("{}: {gave_up}", end.test));
            }
            match judge(end.status, &said) {
                _ if end.status == GAVE_UP => times.not_run(&step, &gave_up, end.took),
                Verdict::Passed => times.took(&step, "passed", end.took),
                Verdict::LeftOut(why) => times.left_out(&step, &why, end.took),
                Verdict::Failed(why) => {
                    times.failed(&step, &why, end.took);
                    for shown in last(&said) {
                        say::note(&format!("| {shown}"));
                    }
                }
            }
        }
    }
    for test in waiting.iter() {
        let why = format!(
            "had no end when the suite's {} s were over",
            SUITE_WITHIN.as_secs()
        );
        times.failed(&format!("  {test}"), &why, Duration::ZERO);
    }
    times.note("suite", format!("{JOBS} at a time"), since);
    Ok(())
}

/// How a test ended.
#[derive(Debug, PartialEq, Eq)]
struct End {
    test: String,
    status: i32,
    took: Duration,
    tries: u32,
}

/// Reads what [`ENDED`] prints: `NAME STATUS MILLISECONDS TRIES` a line.
fn ends(text: &str) -> Vec<End> {
    let end = |line: &str| {
        let mut words = line.split(' ');
        Some(End {
            test: words.next()?.to_owned(),
            status: words.next()?.parse().ok()?,
            took: Duration::from_millis(words.next()?.parse().ok()?),
            tries: words.next()?.parse().ok()?,
        })
    };
    text.lines().filter_map(end).collect()
}

/// What a test came to.
#[derive(Debug, PartialEq, Eq)]
enum Verdict {
    Passed,
    /// The driver declares that it lacks what the test is about, with its reason: neither passed nor failed.
    LeftOut(String),
    Failed(String),
}

/// A test counts as passed when its program says that it ran one, that it is well, and that it left nothing out.
fn judge(status: i32, said: &str) -> Verdict {
    /// `timeout`'s own exit status for a line that it ended.
    const LATE: i32 = 124;
    const LEFT_OUT: &str = "LEFT OUT: ";
    if status == LATE {
        return Verdict::Failed(format!("had no end within {} s", TEST_WITHIN.as_secs()));
    }
    if status != 0 || !said.contains("1 passed; 0 failed") {
        return Verdict::Failed(format!("exit status {status}"));
    }
    match said.lines().find_map(|line| line.split_once(LEFT_OUT)) {
        Some((_, why)) => Verdict::LeftOut(why.split_once(": ").map_or(why, |(_, why)| why).to_owned()),
        None => Verdict::Passed,
    }
}

fn names(list: &str) -> BTreeSet<String> {
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

/// With the features of the whole workspace, as the tests are built: what they have built is not built again.
fn build() -> Done<PathBuf> {
    let mut command = place::cargo();
    command
        .args([
            "test",
            "--workspace",
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
        assert_eq!(judge(0, good), Verdict::Passed);
        let failed = |verdict| matches!(verdict, Verdict::Failed(_));
        assert!(failed(judge(0, "test result: ok. 0 passed; 0 failed; 1 ignored")));
        assert!(failed(judge(101, good)));
        assert!(failed(judge(124, good)));
        assert_eq!(
            judge(0, &format!("LEFT OUT: a_test: it cannot move\n{good}")),
            Verdict::LeftOut("it cannot move".to_owned())
        );
    }

    #[test]
    fn tests_are_listed_and_the_program_is_found() {
        let listed = names("a::b: test\nx: benchmark\nc: test\n");
        assert_eq!(listed.into_iter().collect::<Vec<_>>(), ["a::b", "c"]);
        let ended = ends("a::b 101 2500 2\nhalf 1\n");
        assert_eq!(ended.len(), 1);
        assert_eq!(
            (ended[0].test.as_str(), ended[0].status, ended[0].tries),
            ("a::b", 101, 2)
        );
        let messages = "{\"reason\":\"x\"}\n{\"target\":{\"name\":\"other\"},\"executable\":\"/o\"}\n\
                        {\"target\":{\"name\":\"virtualbox_lab\"},\"executable\":\"/t/virtualbox_lab-1\"}\n";
        assert_eq!(executable(messages), Some(PathBuf::from("/t/virtualbox_lab-1")));
        assert_eq!(executable(""), None);
    }
}
