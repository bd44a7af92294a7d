//! Processes, held by pidfd: no signal can reach a stranger that got the same pid.

use crate::{Error, Result};
use rustix::process::{Pid, PidfdFlags, Signal, WaitId, WaitIdOptions};
use std::{
    fs::File,
    io,
    os::{
        fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd},
        unix::process::CommandExt,
    },
    path::Path,
    process::{Command, Stdio},
};
use tokio::io::{Interest, unix::AsyncFd};
use vbm_core::VmId;

/// How a process ended; both `None` when somebody else was its parent and nobody can tell.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Exit {
    pub(crate) code: Option<i32>,
    pub(crate) signal: Option<i32>,
}

/// A process that cannot be mistaken for another.
#[derive(Debug)]
pub(crate) struct Proc {
    pid: u32,
    start_ticks: u64,
    fd: AsyncFd<OwnedFd>,
}

impl Proc {
    /// Holds on to a process. The start time is read after the pidfd pins the pid.
    pub(crate) fn open(pid: u32) -> io::Result<Self> {
        let raw = i32::try_from(pid).ok().and_then(Pid::from_raw);
        let fd = rustix::process::pidfd_open(raw.ok_or(io::ErrorKind::NotFound)?, PidfdFlags::empty())?;
        let start_ticks =
            start_ticks(&std::fs::read(format!("/proc/{pid}/stat"))?).ok_or(io::ErrorKind::InvalidData)?;
        let fd = watch(fd)?;
        Ok(Self { pid, start_ticks, fd })
    }

    pub(crate) const fn pid(&self) -> u32 {
        self.pid
    }
    pub(crate) const fn start_ticks(&self) -> u64 {
        self.start_ticks
    }

    /// Ends it now. A process that has ended already is no error.
    pub(crate) fn kill(&self) {
        crate::steps::step("kill");
        match rustix::process::pidfd_send_signal(self.fd.get_ref(), Signal::KILL) {
            Ok(()) | Err(rustix::io::Errno::SRCH) => {}
            Err(errno) => tracing::error!(pid = self.pid, %errno, "a process cannot be killed"),
        }
    }

    /// Waits until it has ended, and takes its status if it is a child of ours.
    ///
    /// # Cancel safety
    /// Safe: the status is only taken on return.
    pub(crate) async fn exited(&self) -> Exit {
        // An error would mean that the runtime is going away; then nobody needs the status.
        drop(self.fd.readable().await);
        self.reap()
    }

    /// Whether it has ended.
    pub(crate) fn has_exited(&self) -> bool {
        use rustix::event::{PollFd, PollFlags, Timespec, poll};
        let now = Timespec {
            tv_sec: 0,
            tv_nsec: 0,
        };
        let mut fds = [PollFd::new(self.fd.get_ref(), PollFlags::IN)];
        matches!(poll(&mut fds, Some(&now)), Ok(n) if n > 0)
    }

    fn reap(&self) -> Exit {
        let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG;
        match rustix::process::waitid(WaitId::PidFd(self.fd.get_ref().as_fd()), options) {
            Ok(Some(status)) => Exit {
                code: status.exit_status(),
                signal: status.terminating_signal(),
            },
            // ECHILD: another process was its parent.
            Ok(None) | Err(_) => Exit::default(),
        }
    }

    /// Whether this is the hypervisor's process that was started for `id`: its command line says so.
    pub(crate) fn runs(&self, id: VmId) -> bool {
        cmdline(self.pid).is_ok_and(|args| names_vm(&args, id)) && !self.has_exited()
    }
}

/// Registers a descriptor with the runtime.
#[expect(
    unsafe_code,
    reason = "tokio has no safe way to register a descriptor of a type of its caller's choice"
)]
fn watch(fd: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an `OwnedFd` is open as long as it lives and always gives the same number; the `AsyncFd` owns it.
    let watched = unsafe { AsyncFd::register_with_interest(fd, Interest::READABLE) };
    watched.map_err(io::Error::from)
}

/// Field 22 of `/proc/<pid>/stat` (proc_pid_stat(5)). The name in field 2 may hold spaces and brackets.
fn start_ticks(stat: &[u8]) -> Option<u64> {
    let after_name = stat.iter().rposition(|b| *b == b')')? + 1;
    let text = std::str::from_utf8(&stat[after_name..]).ok()?;
    text.split_ascii_whitespace().nth(19)?.parse().ok()
}

/// When a process was started, in ticks; `None` when it is gone.
pub(crate) fn started(pid: u32) -> Option<u64> {
    start_ticks(&std::fs::read(format!("/proc/{pid}/stat")).ok()?)
}

pub(crate) fn cmdline(pid: u32) -> io::Result<Vec<Vec<u8>>> {
    let bytes = std::fs::read(format!("/proc/{pid}/cmdline"))?;
    Ok(bytes.split(|b| *b == 0).map(<[u8]>::to_vec).collect())
}

/// `-uuid` is QEMU's argument, `--startvm` that of VirtualBox's front ends.
fn names_vm(args: &[Vec<u8>], id: VmId) -> bool {
    let id = id.to_string();
    args.windows(2)
        .any(|pair| matches!(pair[0].as_slice(), b"-uuid" | b"--startvm") && pair[1] == id.as_bytes())
}

/// Finds the process of a VM on this host by its command line.
pub(crate) fn find(id: VmId) -> Option<Proc> {
    candidates(|args| names_vm(args, id))
        .into_iter()
        .find(|found| found.runs(id))
}

fn candidates(wanted: impl Fn(&[Vec<u8>]) -> bool) -> Vec<Proc> {
    let Ok(entries) = std::fs::read_dir("/proc") else {
        return Vec::new();
    };
    entries
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<u32>().ok())
        .filter(|pid| cmdline(*pid).is_ok_and(|args| wanted(&args)))
        .filter_map(|pid| Proc::open(pid).ok())
        .collect()
}

/// Finds processes that were started for a VM below a run directory, but are in no manifest.
pub(crate) fn find_strays(id: VmId, dir: &Path) -> Vec<Proc> {
    let log = format!("logfile={}/", dir.display().to_string().replace(',', ",,"));
    let ours = |args: &[Vec<u8>]| {
        names_vm(args, id) && args.iter().any(|a| String::from_utf8_lossy(a).contains(&log))
    };
    candidates(ours)
        .into_iter()
        .filter(|found| found.runs(id))
        .collect()
}

/// What becomes of a process when ours ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Bond {
    /// It runs on.
    Outlives,
    /// The kernel ends it with the thread that started it (`PR_SET_PDEATHSIG`, prctl(2)), also when we are killed.
    DiesWithUs,
}

/// Runs a program in a session of its own, with `inherit` open under the numbers they have here. Its words go to `log`.
pub(crate) fn spawn(
    program: &Path,
    args: &[String],
    inherit: &[OwnedFd],
    log: File,
    bond: Bond,
) -> Result<Proc> {
    let mut command = Command::new(program);
    command
        .args(args)
        .env_clear()
        .envs(std::env::var_os("PATH").map(|path| ("PATH", path)))
        .env("LC_ALL", "C")
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(log.try_clone().map_err(Error::io("open", "the log"))?)
        .stderr(log);
    detach(
        &mut command,
        inherit.iter().map(AsRawFd::as_raw_fd).collect(),
        bond,
    );
    crate::steps::step("spawn");
    let child = command.spawn().map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => Error::MissingProgram {
            program: program.display().to_string(),
            package: crate::qemu::DEBIAN_PACKAGE,
        },
        _ => Error::io("run", program)(error),
    })?;
    crate::steps::step("spawned");
    let pid = child.id();
    // Not reaped by `child`, so the pid is pinned until we have the pidfd.
    Proc::open(pid).map_err(Error::io("hold on to", format!("/proc/{pid}")))
}

/// Lets the child keep `fds` and gives it a session of its own.
#[expect(
    unsafe_code,
    reason = "pre_exec runs between fork and exec, where std has no safe way to keep a descriptor open"
)]
fn detach(command: &mut Command, fds: Vec<RawFd>, bond: Bond) {
    let before_exec = move || {
        rustix::process::setsid()?;
        if bond == Bond::DiesWithUs {
            rustix::process::set_parent_process_death_signal(Some(Signal::KILL))?;
        }
        for fd in &fds {
            // SAFETY: the caller of `spawn` keeps the owner of each descriptor alive until after the fork.
            let fd = unsafe { BorrowedFd::borrow_raw(*fd) };
            rustix::io::fcntl_setfd(fd, rustix::io::FdFlags::empty())?;
        }
        Ok(())
    };
    // SAFETY: the closure only makes system calls that are async-signal-safe and allocates nothing.
    unsafe { command.pre_exec(before_exec) };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_start_time_is_found_whatever_the_name() {
        let stat = |name: &str| {
            let fields = (3..=52)
                .map(|n| n.to_string())
                .collect::<Vec<_>>()
                .join(" ")
                .replacen('3', "S", 1);
            format!("42 ({name}) {fields}\n")
        };
        for name in ["qemu", "a b", "x) R 1 (y", ")"] {
            assert_eq!(start_ticks(stat(name).as_bytes()), Some(22), "{name}");
        }
        for bad in ["", "42", "42 (x", "42 (x) S 1"] {
            assert_eq!(start_ticks(bad.as_bytes()), None);
        }
    }

    #[test]
    fn a_vm_is_named_by_the_argument_after_uuid_only() {
        let id = VmId::from_uuid(uuid::Uuid::from_u128(5));
        let args = |list: &[&str]| list.iter().map(|a| a.as_bytes().to_vec()).collect::<Vec<_>>();
        assert!(names_vm(&args(&["qemu", "-uuid", &id.to_string()]), id));
        assert!(!names_vm(&args(&["grep", &id.to_string()]), id));
        assert!(!names_vm(&args(&["qemu", "-uuid"]), id));
    }

    #[tokio::test]
    async fn a_child_is_ended_and_its_status_taken() {
        let log = tempfile::tempfile().unwrap();
        let child = spawn(Path::new("/bin/sleep"), &["60".into()], &[], log, Bond::Outlives).unwrap();
        assert!(!child.has_exited());
        child.kill();
        assert_eq!(
            child.exited().await,
            Exit {
                code: None,
                signal: Some(9)
            }
        );
        assert!(child.has_exited());
        child.kill();
    }

    #[tokio::test]
    async fn a_descriptor_is_kept_under_its_number_in_its_child_only() {
        let (read, write) = std::io::pipe().unwrap();
        let write = OwnedFd::from(write);
        let script = format!("echo through >/proc/self/fd/{}", write.as_raw_fd());
        let log = tempfile::tempfile().unwrap();
        let child = spawn(
            Path::new("/bin/sh"),
            &["-c".into(), script],
            std::slice::from_ref(&write),
            log,
            Bond::Outlives,
        )
        .unwrap();
        assert_eq!(child.exited().await.code, Some(0));
        drop(write);
        assert_eq!(io::read_to_string(read).unwrap(), "through\n");
    }

    #[tokio::test]
    async fn a_bound_process_ends_with_the_thread_that_started_it() {
        let log = tempfile::tempfile().unwrap();
        let runtime = tokio::runtime::Handle::current();
        let starter = std::thread::spawn(move || {
            let _inside = runtime.enter();
            spawn(
                Path::new("/bin/sleep"),
                &["60".into()],
                &[],
                log,
                Bond::DiesWithUs,
            )
            .unwrap()
        });
        let child = tokio::task::spawn_blocking(|| starter.join().unwrap())
            .await
            .unwrap();
        let exit = tokio::time::timeout(std::time::Duration::from_secs(10), child.exited())
            .await
            .unwrap();
        assert_eq!(exit.signal, Some(9));
    }

    #[tokio::test]
    async fn a_missing_program_is_told_with_its_package() {
        let log = tempfile::tempfile().unwrap();
        let error = spawn(Path::new("/nonexistent/qemu"), &[], &[], log, Bond::Outlives).unwrap_err();
        assert!(matches!(error, Error::MissingProgram { .. }));
    }
}
