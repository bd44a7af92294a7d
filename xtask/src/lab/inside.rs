//! Programs that run inside the lab's folder, as if it were this machine's root.
//!
//! What must be mounted there is mounted in a mount namespace of the program's own: this machine never sees it, and it
//! is gone when the program ends, however it ends. So nothing of this machine can be deleted through a leftover mount.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use crate::demo::{Interrupts, typed};
use crate::fault::{Done, Fault};
use crate::run;

const ENTER: &str = r#"
root=$1; shift
for place in dev sys; do mount --rbind "/$place" "$root/$place"; done
mount -t proc proc "$root/proc"
mount -t tmpfs -o mode=755 run "$root/run"
exec env -i HOME=/root USER=root LOGNAME=root LC_ALL=C.UTF-8 DEBIAN_FRONTEND=noninteractive \
    PATH=/usr/sbin:/usr/bin:/sbin:/bin chroot "$root" "$@"
"#;
const QUOTED_LINES: usize = 8;
/// Own mounts and processes; killing the first process ends all of them.
const APART: [&str; 7] = [
    "--mount",
    "--pid",
    "--fork",
    "--kill-child=KILL",
    "--propagation",
    "private",
    "--mount-proc",
];

/// A program of this machine whose mounts and processes are its own.
pub(super) fn apart(name: &str) -> Command {
    let mut command = run::command("unshare");
    command.args(APART).arg("--").arg(name);
    command
}

/// A program of the folder; give it its arguments.
pub(super) fn program(root: &Path, name: &str) -> Command {
    let mut command = apart("sh");
    command.args(["-ec", ENTER, "inside"]).arg(root).arg(name);
    command
}

/// Runs to the end, within a time; all it says goes to a log.
pub(super) fn logged(command: &mut Command, log: &Path, limit: Duration, interrupts: &Interrupts) -> Done {
    let line = short(&run::shown(command));
    let answer =
        typed::run(command, &line, typed::Output::Both, limit, Some(interrupts)).map_err(|fault| Fault {
            why: last_lines(&fault.why),
            ..fault
        })?;
    std::fs::write(log, &answer.all).map_err(|error| Fault::file("write", log, &error))?;
    if answer.code == Some(0) {
        return Ok(());
    }
    Err(Fault::new(
        format!("`{line}` failed"),
        last_lines(&answer.all),
        format!("all it said is in {}", log.display()),
    ))
}

fn last_lines(text: &str) -> String {
    let lines: Vec<&str> = text.lines().filter(|line| !line.trim().is_empty()).collect();
    let from = lines.len().saturating_sub(QUOTED_LINES);
    lines.get(from..).unwrap_or_default().join("\n       ")
}

/// The end of a long command says what it was about.
fn short(line: &str) -> String {
    const CHARS: usize = 160;
    let line = line.rsplit("inside ").next().unwrap_or(line);
    line.chars().take(CHARS).collect()
}

/// Removes a folder that programs ran in; refuses when something is mounted below it.
pub(super) fn remove(dir: &Path) -> Done {
    let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    let shown = dir.display().to_string();
    if let Some(place) = mounted_below(&mounts, &shown) {
        return Err(Fault::new(
            format!("{shown} is not removed"),
            format!("something is mounted at {place}, and would be emptied too"),
            format!("look at it, then `umount {place}` and run the command again"),
        ));
    }
    match std::fs::remove_dir_all(dir) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(Fault::file("remove", dir, &error)),
        _ => Ok(()),
    }
}

fn mounted_below<'a>(mounts: &'a str, dir: &str) -> Option<&'a str> {
    mounts
        .lines()
        .filter_map(|line| line.split(' ').nth(1))
        .find(|place| {
            place
                .strip_prefix(dir)
                .is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_mounted_below_is_seen() {
        let mounts = "proc /proc proc rw 0 0\ndev /t/root/dev devtmpfs rw 0 0\n";
        assert_eq!(mounted_below(mounts, "/t/root"), Some("/t/root/dev"));
        assert_eq!(mounted_below(mounts, "/t/roo"), None);
        assert_eq!(mounted_below(mounts, "/t/root2"), None);
    }

    #[test]
    fn a_failed_program_is_quoted_and_its_log_named() {
        let log = std::env::temp_dir().join(format!("vbm-xtask-inside-{}.log", std::process::id()));
        let mut command = Command::new("sh");
        command.args(["-c", "echo one; echo two >&2; exit 3"]);
        let fault = logged(
            &mut command,
            &log,
            Duration::from_secs(10),
            &Interrupts::default(),
        )
        .unwrap_err();
        assert!(
            fault.why.contains("two") && fault.fix.contains("vbm-xtask-inside"),
            "{fault}"
        );
        std::fs::remove_file(&log).unwrap();
    }
}
