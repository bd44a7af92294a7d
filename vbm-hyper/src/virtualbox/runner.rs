//! Runs VBoxManage: the only place that does.
//!
//! ```text
//!   call --permit--> process in a group of its own --deadline--> answer, or a complaint
//!            ^                 |  dropped or late: the group is killed
//!            '-- pause <-- "already locked"
//! ```
//!
//! VBoxSVC and VBoxHeadless are no children of VBoxManage: they make sessions of their own and outlive it, and us.

use super::words::{self, Complaint};
use crate::{
    Error, Result,
    limits::{
        VBOX_COMMAND_DEADLINE, VBOX_COMMANDS_MAX_PARALLEL, VBOX_ERRORS_MAX_BYTES, VBOX_OUTPUT_GRACE,
        VBOX_OUTPUT_MAX_BYTES,
    },
};
use std::{
    ffi::OsString,
    hash::{BuildHasher, RandomState},
    io,
    path::PathBuf,
    process::{ExitStatus, Stdio},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};
use tokio::{
    io::{AsyncRead, AsyncReadExt},
    process::Command,
    sync::Semaphore,
    time::{Instant, sleep, timeout},
};

/// The Debian package that has VBoxManage.
pub(super) const DEBIAN_PACKAGE: &str = "virtualbox";
/// The size of the pieces that are read of its output.
const PIECE_BYTES: usize = 16 * 1024;

/// A command for VBoxManage.
#[derive(Clone, Debug)]
pub(super) struct Call {
    args: Vec<String>,
    deadline: Duration,
    registry: bool,
}

impl Call {
    pub(super) fn new<S: Into<String>>(args: impl IntoIterator<Item = S>) -> Self {
        Self {
            args: args.into_iter().map(Into::into).collect(),
            deadline: VBOX_COMMAND_DEADLINE,
            registry: false,
        }
    }

    pub(super) const fn within(mut self, deadline: Duration) -> Self {
        self.deadline = deadline;
        self
    }

    /// It changes what belongs to all VMs: the registry, or media. One such runs at a time.
    pub(super) const fn on_registry(mut self) -> Self {
        self.registry = true;
        self
    }

    fn name(&self) -> String {
        let word = |at: usize| self.args.get(at).map_or("", String::as_str);
        match word(0) {
            "controlvm" => format!("VBoxManage controlvm {}", word(2)),
            "snapshot" => format!("VBoxManage snapshot {}", word(2)),
            first => format!("VBoxManage {first}"),
        }
    }
}

/// What VBoxManage answered.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Answer {
    /// Standard output.
    pub(super) said: String,
    /// The wrapper's warnings in it.
    pub(super) warned: String,
    /// What it complained of. Only told here by [`Runner::ask`]; [`Runner::run`] fails with it.
    pub(super) complaint: Option<Complaint>,
}

/// Why a command failed.
#[derive(Debug)]
pub(super) enum Fault {
    /// VBoxManage refused it, in these words.
    Refused(String, Complaint),
    Other(Error),
}

impl From<Fault> for Error {
    fn from(fault: Fault) -> Self {
        match fault {
            Fault::Refused(command, complaint) => Self::Hypervisor {
                command,
                why: complaint.why,
            },
            Fault::Other(error) => error,
        }
    }
}

impl Fault {
    /// What VirtualBox itself said.
    pub(super) const fn complaint(&self) -> Option<&Complaint> {
        match self {
            Self::Refused(_, complaint) => Some(complaint),
            Self::Other(_) => None,
        }
    }
}

/// VBoxManage with one registry.
#[derive(Clone, Debug)]
pub(super) struct Runner {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    program: PathBuf,
    env: Vec<(&'static str, OsString)>,
    slots: Semaphore,
    registry: Semaphore,
    chance: RandomState,
}

impl Runner {
    pub(super) fn new(program: PathBuf, env: Vec<(&'static str, OsString)>) -> Self {
        let inner = Inner {
            program,
            env,
            slots: Semaphore::new(VBOX_COMMANDS_MAX_PARALLEL),
            registry: Semaphore::new(1),
            chance: RandomState::new(),
        };
        Self {
            inner: Arc::new(inner),
        }
    }

    /// Runs a command; again, for a while, when somebody else has the VM's session.
    ///
    /// # Cancel safety
    /// Dropping it kills VBoxManage; what was asked may have taken effect.
    pub(super) async fn run(&self, call: &Call) -> Result<Answer, Fault> {
        let begun = Instant::now();
        let mut tries = 1;
        loop {
            let mut answer = self.ask(call).await.map_err(Fault::Other)?;
            let Some(complaint) = answer.complaint.take() else {
                return Ok(answer);
            };
            match self.pause(tries, begun).filter(|_| words::is_locked(&complaint)) {
                Some(pause) => sleep(pause).await,
                None => return Err(Fault::Refused(call.name(), complaint)),
            }
            tries += 1;
        }
    }

    /// How long to wait before the next try, while there is one.
    fn pause(&self, tries: u32, begun: Instant) -> Option<Duration> {
        let chance = u32::try_from(self.inner.chance.hash_one(begun.elapsed()) % 1000).unwrap_or_default();
        words::retry_pause(tries, begun.elapsed(), chance)
    }

    /// Runs a command, again only when it found no VirtualBox to ask; a complaint is part of the answer.
    ///
    /// # Cancel safety
    /// As that of [`run`](Self::run).
    pub(super) async fn ask(&self, call: &Call) -> Result<Answer> {
        let begun = Instant::now();
        let mut tries = 1;
        loop {
            let answer = self.ask_once(call).await?;
            let is_alone = answer.complaint.as_ref().is_some_and(words::found_no_server);
            match self.pause(tries, begun).filter(|_| is_alone) {
                Some(pause) => sleep(pause).await,
                None => return Ok(answer),
            }
            tries += 1;
        }
    }

    async fn ask_once(&self, call: &Call) -> Result<Answer> {
        const CLOSED: Error = Error::ShutDown("the VirtualBox driver");
        let _slot = self.inner.slots.acquire().await.map_err(|_| CLOSED)?;
        let _registry = if call.registry {
            Some(self.inner.registry.acquire().await.map_err(|_| CLOSED)?)
        } else {
            None
        };
        let late = |_| Error::Timeout {
            command: call.name(),
            after: call.deadline,
        };
        let (status, out, err) = timeout(call.deadline, self.exchange(call))
            .await
            .map_err(late)??;
        let (said, warned) = words::without_warnings(&String::from_utf8_lossy(&out));
        let err = String::from_utf8_lossy(&err);
        tracing::trace!(command = call.name(), %status, "VBoxManage answered");
        Ok(Answer {
            said,
            warned,
            complaint: words::complaint(&err, status.success()),
        })
    }

    async fn exchange(&self, call: &Call) -> Result<(ExitStatus, Vec<u8>, Vec<u8>)> {
        let program = &self.inner.program;
        let mut child = Command::new(program)
            .args(&call.args)
            .envs(self.inner.env.iter().map(|(key, value)| (key, value)))
            .current_dir("/")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .process_group(0)
            .kill_on_drop(true)
            .spawn()
            .map_err(|error| match error.kind() {
                io::ErrorKind::NotFound => missing(program),
                _ => Error::io("run", program)(error),
            })?;
        let mut group = Group(child.id());
        let (out, err) = (Mutex::default(), Mutex::default());
        let reading = {
            let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
            async {
                let read = tokio::join!(
                    collect(stdout, &out, VBOX_OUTPUT_MAX_BYTES),
                    collect(stderr, &err, VBOX_ERRORS_MAX_BYTES)
                );
                read.0
            }
        };
        tokio::pin!(reading);
        // Cancel safe: what was read stays in `out` and `err`; the status stays with the kernel.
        let (status, within) = tokio::select! {
            within = &mut reading => (child.wait().await, within),
            status = child.wait() => (status, timeout(VBOX_OUTPUT_GRACE, &mut reading).await.unwrap_or(true)),
        };
        let status = status.map_err(Error::io("wait for", program))?;
        group.0 = None;
        if !within {
            return Err(Error::Hypervisor {
                command: call.name(),
                why: format!("it said more than {VBOX_OUTPUT_MAX_BYTES} bytes"),
            });
        }
        let take = |bytes: &Mutex<Vec<u8>>| {
            std::mem::take(&mut *bytes.lock().unwrap_or_else(PoisonError::into_inner))
        };
        Ok((status, take(&out), take(&err)))
    }
}

fn missing(program: &std::path::Path) -> Error {
    Error::MissingProgram {
        program: program.display().to_string(),
        package: DEBIAN_PACKAGE,
    }
}

/// A process group that is killed unless its leader has ended.
struct Group(Option<u32>);

impl Drop for Group {
    fn drop(&mut self) {
        let pid = self.0.and_then(|pid| i32::try_from(pid).ok());
        if let Some(pid) = pid.and_then(rustix::process::Pid::from_raw)
            && let Err(errno) = rustix::process::kill_process_group(pid, rustix::process::Signal::KILL)
        {
            tracing::debug!(%errno, "VBoxManage has ended already");
        }
    }
}

/// Reads to the end and keeps the first `max` bytes; `false` when there were more.
async fn collect(stream: Option<impl AsyncRead + Unpin>, into: &Mutex<Vec<u8>>, max: usize) -> bool {
    let Some(mut stream) = stream else { return true };
    let mut piece = vec![0; PIECE_BYTES];
    let mut within = true;
    while let Ok(read) = stream.read(&mut piece).await {
        if read == 0 {
            break;
        }
        let mut kept = into.lock().unwrap_or_else(PoisonError::into_inner);
        let room = max - kept.len();
        within &= read <= room;
        kept.extend_from_slice(&piece[..read.min(room)]);
    }
    within
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell() -> Runner {
        Runner::new("/bin/sh".into(), vec![("VBOX_USER_HOME", "/nowhere".into())])
    }

    fn script(text: &str) -> Call {
        Call::new(["-c", text])
    }

    #[tokio::test]
    async fn what_is_said_is_the_answer_without_warnings() {
        let answer = shell()
            .run(&script("echo 'WARNING: x'; echo ' y'; echo $VBOX_USER_HOME"))
            .await
            .unwrap();
        assert_eq!(
            (answer.said.as_str(), answer.warned.as_str()),
            ("/nowhere\n", "WARNING: x\n y\n")
        );
    }

    #[tokio::test]
    async fn an_error_on_standard_error_fails_also_with_status_0() {
        let fault = shell()
            .run(&script("echo 'VBoxManage: error: no' >&2"))
            .await
            .unwrap_err();
        assert_eq!(fault.complaint().unwrap().why, "no");
        assert!(shell().run(&script("echo 0%...100% >&2")).await.is_ok());
    }

    #[tokio::test]
    async fn a_late_command_is_ended_with_all_it_started() {
        let dir = tempfile::tempdir().unwrap();
        let pid = dir.path().join("pid");
        let text = format!("sleep 1000 & echo $! > {}; wait", pid.display());
        let call = script(&text).within(Duration::from_millis(700));
        assert!(matches!(
            shell().run(&call).await,
            Err(Fault::Other(Error::Timeout { .. }))
        ));
        let child: u32 = std::fs::read_to_string(&pid).unwrap().trim().parse().unwrap();
        let gone = async {
            // A killed child of a killed shell is a zombie until init takes it.
            while std::fs::read_to_string(format!("/proc/{child}/stat"))
                .is_ok_and(|stat| !stat.contains(") Z "))
            {
                sleep(Duration::from_millis(10)).await;
            }
        };
        timeout(Duration::from_secs(10), gone).await.unwrap();
    }

    #[tokio::test]
    async fn a_daemon_that_holds_the_pipe_open_is_not_waited_for() {
        let begun = Instant::now();
        let answer = shell().run(&script("setsid sleep 20 & echo done")).await.unwrap();
        assert_eq!(answer.said, "done\n");
        assert!(begun.elapsed() < Duration::from_secs(10));
    }

    #[tokio::test]
    async fn too_much_output_is_an_error_and_too_many_errors_are_cut() {
        let flood = |fd: u8, bytes: usize| script(&format!("head -c {bytes} /dev/zero >&{fd}"));
        assert!(shell().run(&flood(1, VBOX_OUTPUT_MAX_BYTES + 1)).await.is_err());
        assert!(shell().run(&flood(2, 2 * VBOX_ERRORS_MAX_BYTES)).await.is_ok());
    }

    /// A command that works at the third try and complains with `words` before.
    fn third_time(dir: &tempfile::TempDir, words: &str) -> Call {
        script(&format!(
            "cd {}; echo >> tries; test $(wc -l < tries) -ge 3 || {{ echo \"VBoxManage: error: {words}\" >&2; exit 1; }}",
            dir.path().display()
        ))
    }

    fn tries(dir: &tempfile::TempDir) -> usize {
        let tries = std::fs::read_to_string(dir.path().join("tries")).unwrap();
        tries.lines().count()
    }

    #[tokio::test]
    async fn a_locked_session_is_tried_again() {
        let dir = tempfile::tempdir().unwrap();
        let locked = "The machine 'a' is already locked for a session (or being unlocked)";
        shell().run(&third_time(&dir, locked)).await.unwrap();
        assert_eq!(tries(&dir), 3);
    }

    #[tokio::test]
    async fn a_server_that_is_just_ending_is_asked_again() {
        let dir = tempfile::tempdir().unwrap();
        let ending = "Failed to create the VirtualBox object!";
        let answer = shell().ask(&third_time(&dir, ending)).await.unwrap();
        assert_eq!((answer.complaint, tries(&dir)), (None, 3));
    }

    #[tokio::test]
    async fn what_was_refused_is_not_asked_again() {
        let dir = tempfile::tempdir().unwrap();
        let answer = shell().ask(&third_time(&dir, "Could not find it")).await.unwrap();
        assert_eq!((answer.complaint.is_some(), tries(&dir)), (true, 1));
    }

    #[tokio::test]
    async fn a_missing_program_is_told_with_its_package() {
        let runner = Runner::new("/nonexistent/VBoxManage".into(), vec![]);
        let error = Error::from(runner.run(&script("")).await.unwrap_err());
        assert!(vbm_core::Error::from(error).fix().ends_with("virtualbox`"));
    }
}
