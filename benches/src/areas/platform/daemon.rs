//! A `vbmd` of the bench's own. When its handle is dropped, whatever happened, its VMs, its networks, its process and its
//! folder are gone.

use crate::harness::{
    child::{Talker, command, run, signal},
    fault::{During, Fault, Outcome},
    ground::{Ground, Programs},
    rows::say,
};
use nix::sys::signal::Signal;
use std::{collections::BTreeSet, fs, path::Path, time::Duration};
use tempfile::TempDir;
use tokio::{
    process::Command,
    time::{sleep, timeout},
};
use vbm_sdk::client::{Client, Endpoint};

const READY_WITHIN: Duration = Duration::from_secs(60);
/// The longest that one `vbm` may take.
pub(super) const COMMAND_WITHIN: Duration = Duration::from_secs(180);
/// The longest that each step of clearing up may take.
const CLEAR_WITHIN: Duration = Duration::from_secs(60);
const STOP_WITHIN: Duration = Duration::from_secs(40);
const POLL: Duration = Duration::from_millis(20);

/// The image that [`Daemon::import`] makes.
pub(super) const IMAGE: &str = "tiny";
/// The network that [`Daemon::network`] makes.
pub(super) const NETWORK: &str = "lan";

/// What it drives.
#[derive(Clone, Copy, Debug)]
pub(super) struct Kind {
    pub(super) driver: &'static str,
    pub(super) network: &'static str,
}

pub(super) struct Daemon {
    process: Talker,
    pub(super) pid: u32,
    programs: Programs,
    instance: String,
    pub(super) dir: TempDir,
}

impl Daemon {
    /// Starts it in the harness's namespace and waits until it serves.
    pub(super) async fn start(ground: &Ground, kind: Kind) -> Outcome<Self> {
        ground.namespace()?;
        let programs = ground.programs()?.clone();
        let dir = tempfile::Builder::new().prefix("vbm-bench-").tempdir()?;
        let mut vbmd = command(&programs.vbmd);
        vbmd.arg("--data-dir")
            .arg(dir.path().join("data"))
            .arg("--run-dir")
            .arg(dir.path().join("run"))
            .arg("--socket")
            .arg(dir.path().join("sock"))
            .args([
                "--driver",
                kind.driver,
                "--network",
                kind.network,
                "--ephemeral",
                "--log",
                "warn",
            ]);
        let mut process = Talker::start(&mut vbmd)?;
        let ready = process.hear("vbmd ready", READY_WITHIN).await?;
        let instance = ready
            .split_whitespace()
            .find_map(|word| word.strip_prefix("instance="))
            .unwrap_or_default();
        Ok(Self {
            pid: process.pid()?,
            instance: instance.to_owned(),
            process,
            programs,
            dir,
        })
    }

    /// A `vbm` that talks to it.
    pub(super) fn vbm(&self, words: &[&str]) -> Command {
        let mut vbm = command(&self.programs.vbm);
        vbm.arg("--socket")
            .arg(self.dir.path().join("sock"))
            .arg("--quiet")
            .args(words);
        vbm
    }

    /// Runs `vbm` to its end.
    pub(super) async fn run(&self, words: &[&str]) -> Outcome<String> {
        run(&mut self.vbm(words), COMMAND_WITHIN).await
    }

    pub(super) async fn import(&self, guest: &Path) -> Outcome<()> {
        let guest = guest
            .to_str()
            .ok_or_else(|| Fault::new("the guest's path is not UTF-8"))?;
        self.run(&["image", "import", IMAGE, "--guest", guest])
            .await
            .map(drop)
    }

    pub(super) async fn network(&self, cidr: &str) -> Outcome<()> {
        self.run(&["network", "create", NETWORK, cidr]).await.map(drop)
    }

    pub(super) fn client(&self) -> Client {
        Client::new(Endpoint::unix(self.dir.path().join("sock")))
    }

    /// Its resident memory, in MB.
    pub(super) fn resident_mb(&self) -> Outcome<f64> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid)).during("vbmd")?;
        resident_kib(&status)
            .map(|kib| kib as f64 * 1024.0 / 1e6)
            .ok_or_else(|| Fault::new("no VmRSS of vbmd"))
    }

    /// Takes away VMs and networks, as a user would, then ends it.
    async fn clear(&self) -> Outcome<()> {
        let mut faults = Vec::new();
        for (list, delete) in [
            (&["list"][..], &["delete", "--force"][..]),
            (&["network", "list"], &["network", "delete"]),
        ] {
            if let Err(fault) = self.delete_all(list, delete).await {
                faults.push(fault.0);
            }
        }
        signal(self.pid, Signal::SIGTERM);
        if timeout(STOP_WITHIN, async {
            while runs(self.pid) {
                sleep(POLL).await
            }
        })
        .await
        .is_err()
        {
            faults.push("vbmd did not end".into());
        }
        // What a failure has left. All of it bears our instance, or our folder in its command line.
        for pid in processes_of(self.dir.path()) {
            signal(pid, Signal::SIGKILL);
        }
        let owners = BTreeSet::from([self.instance.clone()]);
        match timeout(CLEAR_WITHIN, vbm_net::doctor::remove_owners(&owners)).await {
            Ok(Ok(_removed)) => {}
            Ok(Err(error)) => faults.push(Fault::from(error).0),
            Err(_late) => faults.push("removing its networks took too long".into()),
        }
        if faults.is_empty() {
            Ok(())
        } else {
            Err(Fault::new(faults.join("; ")))
        }
    }

    async fn delete_all(&self, list: &[&str], delete: &[&str]) -> Outcome<()> {
        let names = run(self.vbm(&["-o", "name"]).args(list), CLEAR_WITHIN).await?;
        let names: Vec<&str> = names
            .lines()
            .map(str::trim)
            .filter(|name| !name.is_empty())
            .collect();
        // Simulated ones too: a daemon that holds nothing takes itself off the list of instances.
        if names.is_empty() {
            return Ok(());
        }
        run(self.vbm(delete).args(names), CLEAR_WITHIN).await.map(drop)
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let me = &*self;
        // A thread and a runtime of its own: this one may be in the middle of being interrupted.
        let cleared = std::thread::scope(|scope| {
            let clear = scope.spawn(|| -> Outcome<()> {
                let runtime = tokio::runtime::Builder::new_current_thread()
                    .enable_all()
                    .build()?;
                runtime.block_on(me.clear())
            });
            clear.join()
        });
        if let Ok(Err(fault)) = cleared {
            say(&format!(
                "warning: a vbmd of the bench was not cleared up in order: {fault}"
            ));
        }
        drop(self.process.child.start_kill());
    }
}

/// Whether a process runs; one that has ended and waits for its parent does not.
fn runs(pid: u32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(')')
        .is_some_and(|(_, rest)| !rest.trim_start().starts_with('Z'))
}

/// Processes whose command line names a file in this folder, which only we know.
fn processes_of(dir: &Path) -> Vec<u32> {
    let Ok(entries) = fs::read_dir("/proc") else {
        return Vec::new();
    };
    let dir = format!("{}/", dir.display());
    let names_it = |pid: &u32| {
        let cmdline = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        String::from_utf8_lossy(&cmdline).contains(&dir)
    };
    entries
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .filter(names_it)
        .collect()
}

/// Of `/proc/PID/status`.
fn resident_kib(status: &str) -> Option<u64> {
    crate::harness::machine::value_of(status, "VmRSS").and_then(crate::harness::machine::first_number)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn resident_memory_is_read_in_kib() {
        assert_eq!(
            resident_kib("VmPeak:\t  9 kB\nVmRSS:\t   51200 kB\n"),
            Some(51_200)
        );
        assert_eq!(resident_kib("Name: x"), None);
    }

    #[test]
    fn we_run_and_nobody_names_a_folder_that_is_not() {
        assert!(runs(std::process::id()) && !runs(u32::MAX));
        assert!(processes_of(Path::new("/nonexistent/vbm-bench-x")).is_empty());
    }
}
