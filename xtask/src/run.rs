//! Running other programs: found on the path, captured or streamed, their failure turned into a [`Fault`].

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::fault::{Done, Fault};

/// Directories that hold administration programs and are often missing from a user's path.
pub(crate) const ADMIN_DIRS: [&str; 3] = ["/usr/local/sbin", "/usr/sbin", "/sbin"];
/// How much of a failed program's output an error quotes.
const QUOTED_LINES: usize = 6;

/// The full path of a program, looked for on `PATH` and in the administration directories.
pub(crate) fn which(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(ADMIN_DIRS.iter().map(PathBuf::from))
        .map(|dir| dir.join(program))
        .find(|file| is_executable(file))
}

fn is_executable(file: &Path) -> bool {
    use std::os::unix::fs::PermissionsExt as _;
    file.metadata()
        .is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0)
}

/// A command by name; a program outside `PATH` is found in the administration directories.
pub(crate) fn command(program: &str) -> Command {
    Command::new(which(program).unwrap_or_else(|| PathBuf::from(program)))
}

/// Runs to the end without showing anything; gives stdout.
pub(crate) fn capture(command: &mut Command) -> Done<String> {
    let output = command
        .stdin(Stdio::null())
        .output()
        .map_err(|error| not_started(command, &error))?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let mut said = String::from_utf8_lossy(&output.stderr).into_owned();
    if said.trim().is_empty() {
        said = String::from_utf8_lossy(&output.stdout).into_owned();
    }
    Err(failed(command, &output.status.to_string(), &last_lines(&said)))
}

/// Runs to the end with the terminal's own stdout and stderr.
pub(crate) fn stream(command: &mut Command) -> Done {
    let status = command
        .stdin(Stdio::null())
        .status()
        .map_err(|error| not_started(command, &error))?;
    if status.success() {
        Ok(())
    } else {
        Err(failed(command, &status.to_string(), "its output is above"))
    }
}

/// The command as one would type it.
pub(crate) fn shown(command: &Command) -> String {
    let program = Path::new(command.get_program());
    let name = program.file_name().unwrap_or(OsStr::new("?"));
    std::iter::once(name)
        .chain(command.get_args())
        .map(OsStr::to_string_lossy)
        .collect::<Vec<_>>()
        .join(" ")
}

/// The fault of a program that could not be started at all.
pub(crate) fn not_started(command: &Command, error: &std::io::Error) -> Fault {
    let name = Path::new(command.get_program()).display().to_string();
    Fault::new(
        format!("cannot start `{name}`"),
        error,
        format!("install the program `{name}`, then run the command again"),
    )
}

fn failed(command: &Command, status: &str, said: &str) -> Fault {
    Fault::new(
        format!("`{}` failed", shown(command)),
        format!("{status}: {said}"),
        "run that command by hand to see all of its output, repair the cause, then run this one again",
    )
}

fn last_lines(text: &str) -> String {
    let lines: Vec<&str> = text.lines().filter(|line| !line.trim().is_empty()).collect();
    let from = lines.len().saturating_sub(QUOTED_LINES);
    lines.get(from..).unwrap_or_default().join("\n       ")
}
