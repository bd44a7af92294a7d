//! One typed line: run by the shell as it is shown, within a time limit, its output collected.
//!
//! ```text
//!   sh -c LINE --one pipe, or two--> reader threads --+--> one channel --> until closed | late | interrupted
//!   interrupts ---------------------------------------/
//! ```
//!
//! The line has a process group of its own, so that ending it ends all of a pipeline, and so that ^C reaches the
//! demo alone.

use std::io::Read;
use std::os::unix::process::CommandExt as _;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::{Duration, Instant};

use super::interrupt::Interrupts;
use crate::fault::{Done, Fault};

/// What a reader takes from a pipe at once.
const CHUNK_BYTES: usize = 4096;
/// How long the pipes of a group that was told to end may stay open.
const DRAIN: Duration = Duration::from_secs(2);

/// What a line came to.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Answer {
    /// `None` when a signal ended it.
    pub(crate) code: Option<i32>,
    /// What [`Output`] was wanted.
    pub(crate) text: String,
    /// All that was heard.
    pub(crate) all: String,
}

/// What happens while a line runs.
pub(crate) enum Event {
    Out(Vec<u8>),
    Err(Vec<u8>),
    Closed,
    Interrupted,
}

/// Which outputs of a line are wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Output {
    /// Both, through one pipe, so that they stand in the order in which they came.
    Both,
    /// stdout, for reading; stderr is kept for the fault.
    Stdout,
}

/// Runs a command to its end. `interrupts: None` is for clearing up, which nothing interrupts.
pub(crate) fn run(
    command: &mut Command,
    line: &str,
    output: Output,
    limit: Duration,
    interrupts: Option<&Interrupts>,
) -> Done<Answer> {
    let deadline = Instant::now() + limit;
    let (tell, events) = channel();
    let lost = |error: std::io::Error| Fault::new(format!("lost `{line}`"), error, "run the command again");
    let (out, out_end) = std::io::pipe().map_err(lost)?;
    follow(out, Event::Out, tell.clone());
    let mut open = 1;
    let err_end = match output {
        Output::Both => out_end.try_clone().map_err(lost)?,
        Output::Stdout => {
            let (err, err_end) = std::io::pipe().map_err(lost)?;
            follow(err, Event::Err, tell.clone());
            open += 1;
            err_end
        }
    };
    command
        .stdin(Stdio::null())
        .stdout(out_end)
        .stderr(err_end)
        .process_group(0);
    let child = command.spawn();
    // The command holds the writing ends; without this the reading ends never end.
    command.stdout(Stdio::null()).stderr(Stdio::null());
    let mut child = child.map_err(|error| crate::run::not_started(command, &error))?;
    if let Some(interrupts) = interrupts {
        interrupts.subscribe(tell.clone());
    }
    drop(tell);
    let mut heard = Heard::default();
    let ended = heard.collect(&events, &mut open, deadline);
    if let Some(interrupts) = interrupts {
        interrupts.unsubscribe();
    }
    if ended != Ended::Closed {
        // As ^C would: it may have something to take back. Then without asking.
        for signal in ["INT", "KILL"] {
            signal_group(&child, signal);
            if heard.collect(&events, &mut open, Instant::now() + DRAIN) == Ended::Closed {
                break;
            }
        }
    }
    let answer = heard.answer(child.wait().map_err(lost)?.code());
    match ended {
        Ended::Closed => Ok(answer),
        Ended::Late => Err(Fault::new(
            format!("`{line}` did not end within {} s", limit.as_secs()),
            quoted(&answer.all),
            "see the daemon's log for what it waits for",
        )),
        Ended::Interrupted => Err(interrupted()),
    }
}

/// A command that the kernel kills when the demo is killed. Bound to the thread that starts it: start it from the
/// main one.
pub(crate) fn bound(command: Command) -> Command {
    let Some(setpriv) = crate::run::which("setpriv") else {
        return command;
    };
    let mut bound = Command::new(setpriv);
    bound
        .args(["--pdeathsig", "KILL", "--"])
        .arg(command.get_program())
        .args(command.get_args());
    bound
}

/// A line for the shell to become, rather than to wait for, where it is one plain command: so that what ends the
/// shell ends the command.
pub(crate) fn direct(line: &str) -> String {
    if line.contains(['|', '&', ';']) {
        line.to_owned()
    } else {
        format!("exec {line}")
    }
}

/// The fault of a story that a signal ended.
pub(crate) fn interrupted() -> Fault {
    Fault::new(
        "it was interrupted",
        "a signal came",
        "run the command again when you like",
    )
}

/// Output as the reason of a fault.
pub(crate) fn quoted(text: &str) -> String {
    let text = text.trim();
    if text.is_empty() {
        "it printed nothing".to_owned()
    } else {
        format!("it printed: {}", text.replace('\n', "\n       "))
    }
}

/// Signals a child's process group, the child being its leader.
fn signal_group(child: &Child, signal: &str) {
    let mut kill = Command::new("sh");
    kill.args([
        "-c",
        "kill -s \"$0\" -- \"-$1\" 2>/dev/null",
        signal,
        &child.id().to_string(),
    ]);
    // A group that has just ended by itself is as good.
    drop(crate::run::capture(&mut kill));
}

/// Reads a pipe to its end; the thread ends with the pipe.
pub(crate) fn follow(mut pipe: impl Read + Send + 'static, event: fn(Vec<u8>) -> Event, tell: Sender<Event>) {
    std::thread::spawn(move || {
        let mut chunk = [0; CHUNK_BYTES];
        while let Ok(length @ 1..) = pipe.read(&mut chunk) {
            let bytes = chunk.get(..length).unwrap_or_default().to_vec();
            if tell.send(event(bytes)).is_err() {
                return;
            }
        }
        // Nobody listens any more: nothing to tell.
        drop(tell.send(Event::Closed));
    });
}

#[derive(PartialEq, Eq)]
enum Ended {
    Closed,
    Late,
    Interrupted,
}

#[derive(Default)]
struct Heard {
    text: Vec<u8>,
    all: Vec<u8>,
}

impl Heard {
    fn collect(&mut self, events: &Receiver<Event>, open: &mut usize, deadline: Instant) -> Ended {
        while *open > 0 {
            let left = deadline.saturating_duration_since(Instant::now());
            match events.recv_timeout(left) {
                Ok(Event::Out(bytes)) => {
                    self.text.extend_from_slice(&bytes);
                    self.all.extend_from_slice(&bytes);
                }
                Ok(Event::Err(bytes)) => self.all.extend_from_slice(&bytes),
                Ok(Event::Closed) => *open -= 1,
                Ok(Event::Interrupted) => return Ended::Interrupted,
                Err(RecvTimeoutError::Timeout) => return Ended::Late,
                Err(RecvTimeoutError::Disconnected) => break,
            }
        }
        Ended::Closed
    }

    fn answer(self, code: Option<i32>) -> Answer {
        Answer {
            code,
            text: String::from_utf8_lossy(&self.text).into_owned(),
            all: String::from_utf8_lossy(&self.all).into_owned(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sh(line: &str, limit: Duration, interrupts: Option<&Interrupts>) -> Done<Answer> {
        run(
            Command::new("sh").args(["-c", line]),
            line,
            Output::Stdout,
            limit,
            interrupts,
        )
    }

    const LONG: Duration = Duration::from_secs(20);

    #[test]
    fn a_line_gives_its_code_and_both_outputs() {
        let answer = sh("echo one; echo two >&2; exit 28", LONG, None).unwrap();
        assert_eq!((answer.code, answer.text.as_str()), (Some(28), "one\n"));
        assert!(answer.all.contains("two"));
    }

    #[test]
    fn both_outputs_through_one_pipe_keep_their_order() {
        let line = "for n in 1 2 3 4 5 6 7 8; do echo o$n; echo e$n >&2; done";
        let mut command = Command::new("sh");
        let answer = run(command.args(["-c", line]), line, Output::Both, LONG, None).unwrap();
        let expected: String = (1..9).map(|n| format!("o{n}\ne{n}\n")).collect();
        assert_eq!(
            (answer.text.as_str(), answer.all.as_str()),
            (expected.as_str(), expected.as_str())
        );
    }

    #[test]
    fn a_late_line_ends_with_all_of_its_pipeline() {
        let started = Instant::now();
        let fault = sh(
            "echo begun; sleep 60 | sleep 60",
            Duration::from_millis(300),
            None,
        )
        .unwrap_err();
        assert!(fault.what.contains("did not end within"), "{fault}");
        assert!(fault.why.contains("begun"), "{fault}");
        // A surviving `sleep` would hold the pipes, and the reading of them, for a minute.
        assert!(started.elapsed() < DRAIN, "took {:?}", started.elapsed());
    }

    #[test]
    fn an_interrupt_ends_the_line_that_runs_and_those_after_it() {
        let interrupts = Interrupts::default();
        let other = interrupts.clone();
        let (begun, wait) = channel();
        let thread = std::thread::spawn(move || {
            wait.recv().unwrap();
            other.trip();
        });
        begun.send(()).unwrap();
        let started = Instant::now();
        assert_eq!(
            sh("sleep 60", LONG, Some(&interrupts)).unwrap_err(),
            interrupted()
        );
        assert_eq!(
            sh("sleep 60", LONG, Some(&interrupts)).unwrap_err(),
            interrupted()
        );
        assert!(started.elapsed() < LONG);
        thread.join().unwrap();
        assert_eq!(sh("echo x", LONG, None).unwrap().text, "x\n");
    }

    #[test]
    fn a_line_that_is_ended_may_take_something_back_but_not_refuse() {
        let short = Duration::from_millis(300);
        let fault = sh("trap 'echo taken back; exit' INT; sleep 60", short, None).unwrap_err();
        assert!(fault.why.contains("taken back"), "{fault}");
        assert!(
            sh("trap '' INT; echo deaf; sleep 60", short, None)
                .unwrap_err()
                .why
                .contains("deaf")
        );
    }

    #[test]
    fn only_a_plain_command_takes_the_place_of_its_shell() {
        assert_eq!(direct("vbm list"), "exec vbm list");
        for line in ["a | b", "a && b", "a; b", "a || b"] {
            assert_eq!(direct(line), line);
        }
        let bound = bound(Command::new("true"));
        assert!(crate::run::shown(&bound).ends_with("true"));
    }

    #[test]
    fn silence_is_quoted_as_such() {
        assert_eq!(quoted(" \n"), "it printed nothing");
        assert_eq!(quoted("a\nb\n"), "it printed: a\n       b");
    }
}
