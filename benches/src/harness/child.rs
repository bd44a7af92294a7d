//! Programs that the harness starts: in a process group of their own, ended with their handle, and killed by the
//! kernel when the harness dies.
//!
//! The kernel's word about our death is bound to the *thread* that starts a child; so children are started from the main
//! future only (it stays on the main thread), never from a spawned task.

use super::{
    fault::{During, Fault, Outcome},
    rows::say,
};
use nix::{
    errno::Errno,
    sys::{
        prctl,
        signal::{Signal, kill},
    },
    unistd::Pid,
};
use std::{ffi::OsStr, process::Stdio, time::Duration};
use tokio::{
    io::{AsyncBufReadExt, AsyncRead, BufReader},
    process::{Child, Command},
    sync::mpsc,
    time::timeout,
};

/// The most lines of a child that wait to be looked at; further ones are dropped.
const LINES_MAX: usize = 4_096;
/// How much of what a failed program said is told.
const SAID_MAX_CHARS: usize = 300;

/// A program, not yet started. Killed when its handle is dropped or this process dies.
pub(crate) fn command(program: impl AsRef<OsStr>) -> Command {
    let mut command = Command::new(program);
    command.stdin(Stdio::null()).process_group(0).kill_on_drop(true);
    die_with_us(&mut command);
    command
}

#[expect(
    unsafe_code,
    reason = "pre_exec: the only way to ask the kernel to end a child with us"
)]
fn die_with_us(command: &mut Command) {
    // SAFETY: between fork and exec only prctl(2) is called, which is async-signal-safe and allocates nothing.
    unsafe {
        command.pre_exec(|| prctl::set_pdeathsig(Signal::SIGKILL).map_err(Into::into));
    }
}

/// Runs a program to its end and gives what it printed.
///
/// # Errors
/// It cannot be started, does not end within `limit` (it is killed), or ends with another code than 0.
pub(crate) async fn run(command: &mut Command, limit: Duration) -> Outcome<String> {
    let name = shown(command);
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    let child = command.spawn().during(format!("starting {name}"))?;
    let output = timeout(limit, child.wait_with_output())
        .await
        .map_err(|_late| Fault::new(format!("{name} did not end within {} s", limit.as_secs())))?
        .during(&name)?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let said = String::from_utf8_lossy(if output.stderr.is_empty() {
        &output.stdout
    } else {
        &output.stderr
    });
    Err(Fault::new(format!(
        "{name}: {}: {}",
        output.status,
        one_line(&said)
    )))
}

/// Program and arguments, shortened.
fn shown(command: &Command) -> String {
    let std = command.as_std();
    let words = std::iter::once(std.get_program()).chain(std.get_args());
    one_line(
        &words
            .map(|word| word.to_string_lossy())
            .collect::<Vec<_>>()
            .join(" "),
    )
}

fn one_line(text: &str) -> String {
    let line = text.split_whitespace().collect::<Vec<_>>().join(" ");
    line.chars().take(SAID_MAX_CHARS).collect()
}

/// A child whose lines, of both outputs, are read as they come.
pub(crate) struct Talker {
    pub(crate) child: Child,
    name: String,
    lines: mpsc::Receiver<String>,
    last: String,
}

impl Talker {
    pub(crate) fn start(command: &mut Command) -> Outcome<Self> {
        let name = command.as_std().get_program().to_string_lossy().into_owned();
        let mut child = command
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .during(format!("starting {name}"))?;
        let (tell, lines) = mpsc::channel(LINES_MAX);
        // Both readers end with the child: its outputs close.
        if let Some(out) = child.stdout.take() {
            tokio::spawn(read_lines(out, tell.clone()));
        }
        if let Some(err) = child.stderr.take() {
            tokio::spawn(read_lines(err, tell));
        }
        Ok(Self {
            child,
            name,
            lines,
            last: String::new(),
        })
    }

    pub(crate) fn pid(&self) -> Outcome<u32> {
        self.child
            .id()
            .ok_or_else(|| Fault::new(format!("{} has ended", self.name)))
    }

    /// The first line, from here on, that holds `wanted`.
    pub(crate) async fn hear(&mut self, wanted: &str, limit: Duration) -> Outcome<String> {
        let heard = timeout(limit, async {
            while let Some(line) = self.lines.recv().await {
                if line.contains(wanted) {
                    return Some(line);
                }
                self.last = line;
            }
            None
        });
        match heard.await {
            Ok(Some(line)) => Ok(line),
            Ok(None) => Err(Fault::new(format!(
                "{} ended: {}",
                self.name,
                one_line(&self.last)
            ))),
            Err(_late) => Err(Fault::new(format!(
                "{} did not say '{wanted}' within {} s; last: {}",
                self.name,
                limit.as_secs(),
                one_line(&self.last)
            ))),
        }
    }
}

/// Sends a signal to a process that we started, or that a driver of ours did. One that is gone already is fine.
pub(crate) fn signal(pid: u32, signal: Signal) {
    let sent = kill(Pid::from_raw(pid.cast_signed()), signal);
    if let Err(errno) = sent
        && errno != Errno::ESRCH
    {
        say(&format!("warning: {signal} to process {pid}: {errno}"));
    }
}

/// Reads to the end, so that the child never writes into a full pipe; keeps what has room.
async fn read_lines(source: impl AsyncRead + Unpin, tell: mpsc::Sender<String>) {
    let mut lines = BufReader::new(source).lines();
    while let Ok(Some(line)) = lines.next_line().await {
        drop(tell.try_send(line));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SOON: Duration = Duration::from_secs(20);

    #[tokio::test]
    async fn a_program_that_fails_is_told_with_its_words() {
        let fault = run(command("sh").args(["-c", "echo no >&2; exit 3"]), SOON)
            .await
            .unwrap_err();
        assert!(fault.0.contains("exit status: 3: no"), "{fault}");
        let fault = run(&mut command("/nonexistent/x"), SOON).await.unwrap_err();
        assert!(fault.0.starts_with("starting /nonexistent/x"), "{fault}");
    }

    #[tokio::test]
    async fn a_program_that_hangs_is_ended() {
        let fault = run(command("sleep").arg("60"), Duration::from_millis(50))
            .await
            .unwrap_err();
        assert!(fault.0.contains("did not end"), "{fault}");
    }

    #[tokio::test]
    async fn a_talker_is_heard_on_both_outputs_and_ends() {
        let mut talker =
            Talker::start(command("sh").args(["-c", "echo one; echo two >&2; exec sleep 60"])).unwrap();
        talker.hear("one", SOON).await.unwrap();
        drop(talker);
        let mut brief = Talker::start(command("sh").args(["-c", "echo alas"])).unwrap();
        let fault = brief.hear("never", SOON).await.unwrap_err();
        assert!(fault.0.contains("alas"), "{fault}");
    }
}
