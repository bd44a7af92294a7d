//! What the story is played on: the programs, the daemon, the outside world, what was learnt so far; and the clearing.
//!
//! ```text
//!   act --host / must / world--> shown, run by the shell (typed), shown again, answered
//!       --silent--------------> run, not shown: what a claim is checked by
//!   end, fault, ^C, panic -----> clear: VMs, networks (by a vbmd that is started again if need be), vbmd, world, files
//! ```

use std::ffi::OsString;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use indicatif::ProgressBar;

use super::claim::Claim;
use super::daemon::{Daemon, Recipe};
use super::facts::{self, Keep, Vm};
use super::interrupt::Interrupts;
use super::typed::{self, Answer, Output};
use super::world::World;
use crate::fault::{Done, Fault};
use crate::{run, say};

/// No command of the story takes longer; those that wait for a guest have a shorter limit of their own.
const LINE_WITHIN: Duration = Duration::from_secs(90);
const SHOWN_LINES: usize = 12;
/// On the host, as root.
const HOST: &str = "$";
/// In the namespace that plays the outside world.
const WORLD: &str = "world$";
/// Waits for what goes on (an interrupted command's work does), then deletes. What fails here because it is gone
/// already does no harm: [`LEFT`] decides.
const DELETE_ALL: [&str; 3] = [
    "vbm operation list -o name | xargs --no-run-if-empty --max-args 1 vbm operation wait --timeout 60",
    "vbm list -o name | xargs --no-run-if-empty vbm delete --force",
    "vbm network list -o name | xargs --no-run-if-empty vbm network delete",
];
/// Names what a daemon still has on the host.
const LEFT: &str = "vbm list -o name && vbm network list -o name";
/// Applets that stand in for a program that is not installed.
const STAND_INS: [&str; 1] = ["ping"];

/// See the module's header.
pub(super) struct Stage {
    pub(super) claim: Claim,
    pub(super) guest: PathBuf,
    /// Kept after the end: the picture and the log.
    pub(super) keep: PathBuf,
    pub(super) recipe: Recipe,
    pub(super) daemon: Option<Daemon>,
    pub(super) world: Option<World>,
    pub(super) learnt: Learnt,
    path: OsString,
    interrupts: Interrupts,
    bar: ProgressBar,
    /// A daemon of ours may have things on the host, even when it does not run.
    holds: bool,
}

/// What earlier chapters found, for later ones to compare with.
#[derive(Debug, Default)]
pub(super) struct Learnt {
    pub(super) vm: Option<Vm>,
    pub(super) boot_id: Option<String>,
    /// The tag of all that our vbmd makes on the host.
    pub(super) instance: String,
}

impl Stage {
    pub(super) fn set(
        programs: &Path,
        guest: PathBuf,
        keep: PathBuf,
        interrupts: Interrupts,
        bar: ProgressBar,
    ) -> Done<Self> {
        let claim = Claim::take()?;
        let dir = claim.dir.clone();
        for path in [&dir, &keep] {
            std::fs::create_dir_all(path).map_err(|error| Fault::file("create", path, &error))?;
        }
        let recipe = Recipe {
            program: programs.join("vbmd"),
            data_dir: dir.join("data"),
            socket: dir.join("sock"),
            log: keep.join("vbmd.log"),
        };
        let path = search_path(programs, &stand_ins(&dir)?)?;
        Ok(Self {
            claim,
            guest,
            keep,
            recipe,
            daemon: None,
            world: None,
            learnt: Learnt::default(),
            path,
            interrupts,
            bar,
            holds: false,
        })
    }

    /// A line to read.
    pub(super) fn say(&self, text: &str) {
        self.bar.suspend(|| say::line(text));
    }

    /// What is done that no shell line shows.
    pub(super) fn show_line(&self, line: &str) {
        self.say(&format!("   {HOST} {line}"));
    }

    /// A line on the host; any exit code.
    pub(super) fn host(&self, line: &str) -> Done<Answer> {
        self.perform(HOST, line, Keep::First)
    }

    /// A line on the host that must succeed.
    pub(super) fn must(&self, line: &str) -> Done<Answer> {
        successful(line, self.host(line)?)
    }

    /// The same, where the end of a long output says more than its beginning.
    pub(super) fn must_tail(&self, line: &str) -> Done<Answer> {
        successful(line, self.perform(HOST, line, Keep::Last)?)
    }

    /// A line in the outside world; any exit code.
    pub(super) fn world(&self, line: &str) -> Done<Answer> {
        self.perform(WORLD, line, Keep::First)
    }

    /// Not shown; gives stdout.
    pub(super) fn silent(&self, line: &str) -> Done<String> {
        let answer = typed::run(
            &mut self.command(HOST, line)?,
            line,
            Output::Stdout,
            LINE_WITHIN,
            Some(&self.interrupts),
        )?;
        successful(line, answer).map(|answer| answer.text)
    }

    /// What `vbm` knows of the VM, now.
    pub(super) fn look(&self) -> Done<Vm> {
        facts::vm(&self.silent("vbm info web -o json")?)
    }

    /// The VM as it was seen before.
    pub(super) fn vm(&self) -> Done<&Vm> {
        self.learnt.vm.as_ref().ok_or_else(|| {
            Fault::new(
                "the story is out of order",
                "no VM was launched yet",
                "see xtask/src/demo/story.rs",
            )
        })
    }

    pub(super) fn start_daemon(&mut self) -> Done {
        if self.interrupts.came() {
            return Err(typed::interrupted());
        }
        self.show_line(&self.recipe.line());
        self.holds = true;
        let daemon = Daemon::start(&self.recipe)?;
        self.learnt.instance.clone_from(&daemon.instance);
        self.daemon = Some(daemon);
        Ok(())
    }

    /// The daemon has said goodbye, after everything was deleted: nothing of it is left to be cleared.
    pub(super) fn daemon_ended(&mut self) {
        self.daemon = None;
        self.holds = false;
    }

    /// Deletes the VMs and networks by the daemon that made them, or by one that takes over from it; then ends it.
    fn clear_daemon(&mut self) -> Done {
        let running = self
            .daemon
            .take()
            .and_then(|mut daemon| daemon.is_running().then_some(daemon));
        let mut daemon = running.map_or_else(|| Daemon::start(&self.recipe), Ok)?;
        // Nothing interrupts the clearing.
        let run = |line| {
            typed::run(
                &mut self.command(HOST, line)?,
                line,
                Output::Both,
                LINE_WITHIN,
                None,
            )
        };
        let said: Vec<Answer> = DELETE_ALL.into_iter().map(run).collect::<Done<_>>()?;
        let left = run(LEFT).and_then(|answer| successful(LEFT, answer));
        let deleted = left.and_then(|left| {
            let why = said.iter().map(|answer| answer.all.as_str()).collect::<String>();
            claim(
                left.text.trim().is_empty(),
                "all VMs and networks are deleted",
                &why,
            )
        });
        let stopped = daemon.stop().map(drop);
        if stopped.is_err() {
            // It was asked; what it did not do is told.
            drop(daemon.kill());
        }
        deleted.and(stopped)
    }

    fn perform(&self, prompt: &str, line: &str, keep: Keep) -> Done<Answer> {
        self.say(&format!("   {prompt} {line}"));
        let mut command = self.command(prompt, line)?;
        let answer = typed::run(
            &mut command,
            line,
            Output::Both,
            LINE_WITHIN,
            Some(&self.interrupts),
        )?;
        for text in facts::trimmed(&answer.all, SHOWN_LINES, keep) {
            self.say(&format!("     {text}"));
        }
        Ok(answer)
    }

    fn command(&self, prompt: &str, line: &str) -> Done<Command> {
        let command = match (&self.world, prompt) {
            (Some(world), WORLD) => world.command(line),
            (None, WORLD) => {
                return Err(Fault::new(
                    "there is no outside world",
                    "it was not made",
                    "see xtask/src/demo/story.rs",
                ));
            }
            _ => {
                let mut command = Command::new("sh");
                command.args(["-c", &typed::direct(line)]);
                command
            }
        };
        let mut command = typed::bound(command);
        command
            .env("PATH", &self.path)
            .env("VBM_SOCKET", &self.recipe.socket);
        Ok(command)
    }

    /// Takes everything away that this run made, whatever the state of the story. What cannot be is told, and the
    /// rest goes on. Doing it again does nothing.
    pub(super) fn clear(&mut self) -> Vec<Fault> {
        let mut faults = Vec::new();
        if std::mem::take(&mut self.holds) {
            faults.extend(self.clear_daemon().err().map(|fault| Fault {
                fix: "run `vbm doctor --fix`: it ends what an ephemeral vbmd left".to_owned(),
                ..fault
            }));
        }
        self.world = None;
        let dir = &self.claim.dir;
        if let Err(error) = std::fs::remove_dir_all(dir)
            && error.kind() != std::io::ErrorKind::NotFound
        {
            faults.push(Fault::file("remove", dir, &error));
        }
        faults
    }
}

impl Drop for Stage {
    /// A panic must not leave a VM behind either.
    fn drop(&mut self) {
        for fault in self.clear() {
            say::fault(&fault);
        }
    }
}

pub(super) fn successful(line: &str, answer: Answer) -> Done<Answer> {
    if answer.code == Some(0) {
        return Ok(answer);
    }
    let code = answer
        .code
        .map_or_else(|| "a signal".to_owned(), |code| format!("exit code {code}"));
    Err(Fault::new(
        format!("`{line}` ended with {code}"),
        typed::quoted(&answer.all),
        "see the daemon's log",
    ))
}

/// Fails a chapter whose claim is not true.
pub(super) fn claim(is_true: bool, what: &str, why: &str) -> Done {
    if is_true {
        Ok(())
    } else {
        Err(Fault::new(
            format!("not true: {what}"),
            why,
            "this is a defect of VBM, or of what this host allows: see the daemon's log",
        ))
    }
}

/// Links busybox under the names of programs that are missing; gives the directory.
fn stand_ins(dir: &Path) -> Done<PathBuf> {
    let bin = dir.join("bin");
    std::fs::create_dir_all(&bin).map_err(|error| Fault::file("create", &bin, &error))?;
    for name in STAND_INS.iter().filter(|name| run::which(name).is_none()) {
        if let Some(busybox) = run::which("busybox") {
            let link = bin.join(name);
            symlink(busybox, &link).map_err(|error| Fault::file("link", &link, &error))?;
        }
    }
    Ok(bin)
}

/// Our programs first, the host's next, then administration programs and stand-ins.
pub(super) fn search_path(programs: &Path, stand_ins: &Path) -> Done<OsString> {
    let host = std::env::var_os("PATH").unwrap_or_default();
    let first = std::iter::once(programs.to_path_buf());
    let last = run::ADMIN_DIRS
        .iter()
        .map(PathBuf::from)
        .chain([stand_ins.to_path_buf()]);
    std::env::join_paths(first.chain(std::env::split_paths(&host)).chain(last)).map_err(|error| {
        Fault::new(
            "cannot make a search path",
            error,
            "choose a target directory without a colon in its name",
        )
    })
}
