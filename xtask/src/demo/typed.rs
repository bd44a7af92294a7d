//! One typed line: run by the shell as it is shown, within a time limit, its output collected.
//!
//! ```text
//!   sh -c LINE --stdout--> reader thread --\
//!              --stderr--> reader thread ---+--> one channel --> until both are closed | late | interrupted
//!   interrupts ---------------------------/
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
/// How long the pipes of an ended group may stay open.
const DRAIN: Duration = Duration::from_secs(2);

/// What a line came to.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Answer {
    /// `None` when a signal ended it.
    pub(super) code: Option<i32>,
    pub(super) stdout: String,
    /// stdout and stderr as they came.
    pub(super) shown: String,
}

/// What happens while a line runs.
pub(super) enum Event {
    Out(Vec<u8>),
    Err(Vec<u8>),
    Closed,
    Interrupted,
}

/// Runs a command to its end. `interrupts: None` is for clearing up, which nothing interrupts.
pub(super) fn run(
    command: &mut Command,
    line: &str,
    limit: Duration,
    interrupts: Option<&Interrupts>,
) -> Done<Answer> {
    let deadline = Instant::now() + limit;
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0)
        .spawn()
        .map_err(|error| crate::run::not_started(command, &error))?;
    let (tell, events) = channel();
    let mut open = 0;
    if let Some(pipe) = child.stdout.take() {
        open += 1;
        follow(pipe, Event::Out, tell.clone());
    }
    if let Some(pipe) = child.stderr.take() {
        open += 1;
        follow(pipe, Event::Err, tell.clone());
    }
    if let Some(interrupts) = interrupts {
        interrupts.subscribe(tell.clone());
    }
    drop(tell);
    let mut output = Output::default();
    let ended = output.collect(&events, &mut open, deadline);
    if let Some(interrupts) = interrupts {
        interrupts.unsubscribe();
    }
    if ended != Ended::Closed {
        end_group(&child);
        output.collect(&events, &mut open, Instant::now() + DRAIN);
    }
    let status = child
        .wait()
        .map_err(|error| Fault::new(format!("lost `{line}`"), error, "run the command again"))?;
    let answer = output.answer(status.code());
    match ended {
        Ended::Closed => Ok(answer),
        Ended::Late => Err(Fault::new(
            format!("`{line}` did not end within {} s", limit.as_secs()),
            quoted(&answer.shown),
            "see the daemon's log for what it waits for",
        )),
        Ended::Interrupted => Err(interrupted()),
    }
}

/// The fault of a story that a signal ended.
pub(super) fn interrupted() -> Fault {
    Fault::new(
        "the demo was interrupted",
        "a signal came",
        "run `cargo xtask demo` again when you like",
    )
}

/// Output as the reason of a fault.
pub(super) fn quoted(text: &str) -> String {
    let text = text.trim();
    if text.is_empty() {
        "it printed nothing".to_owned()
    } else {
        format!("it printed: {}", text.replace('\n', "\n       "))
    }
}

/// Ends a child's process group, the child being its leader.
fn end_group(child: &Child) {
    let mut kill = Command::new("sh");
    kill.args([
        "-c",
        "kill -s KILL -- \"-$0\" 2>/dev/null",
        &child.id().to_string(),
    ]);
    // A group that has just ended by itself is as good.
    drop(crate::run::capture(&mut kill));
}

/// Reads a pipe to its end; the thread ends with the pipe.
fn follow(mut pipe: impl Read + Send + 'static, event: fn(Vec<u8>) -> Event, tell: Sender<Event>) {
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
struct Output {
    stdout: Vec<u8>,
    shown: Vec<u8>,
}

impl Output {
    fn collect(&mut self, events: &Receiver<Event>, open: &mut usize, deadline: Instant) -> Ended {
        while *open > 0 {
            let left = deadline.saturating_duration_since(Instant::now());
            match events.recv_timeout(left) {
                Ok(Event::Out(bytes)) => {
                    self.stdout.extend_from_slice(&bytes);
                    self.shown.extend_from_slice(&bytes);
                }
                Ok(Event::Err(bytes)) => self.shown.extend_from_slice(&bytes),
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
            stdout: String::from_utf8_lossy(&self.stdout).into_owned(),
            shown: String::from_utf8_lossy(&self.shown).into_owned(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sh(line: &str, limit: Duration, interrupts: Option<&Interrupts>) -> Done<Answer> {
        run(Command::new("sh").args(["-c", line]), line, limit, interrupts)
    }

    const LONG: Duration = Duration::from_secs(20);

    #[test]
    fn a_line_gives_its_code_and_both_outputs() {
        let answer = sh("echo one; echo two >&2; exit 28", LONG, None).unwrap();
        assert_eq!((answer.code, answer.stdout.as_str()), (Some(28), "one\n"));
        assert!(answer.shown.contains("two"));
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
        assert_eq!(sh("echo x", LONG, None).unwrap().stdout, "x\n");
    }

    #[test]
    fn silence_is_quoted_as_such() {
        assert_eq!(quoted(" \n"), "it printed nothing");
        assert_eq!(quoted("a\nb\n"), "it printed: a\n       b");
    }
}
