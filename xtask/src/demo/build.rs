//! The two programs that the story is told with; the page of the web console is inside.

use std::path::PathBuf;
use std::process::Stdio;

use serde::Deserialize;

use crate::fault::{Done, Fault};
use crate::{place, run};

/// The development profile: a newcomer waits for the build and for the story, and the story waits for a guest to
/// boot, not for us; an optimised build would cost minutes more than it could save.
const ARGS: [&str; 8] = [
    "build",
    "--package",
    "vbm-sdk",
    "--bins",
    "--features",
    "web",
    "--message-format",
    "json-render-diagnostics",
];
const PROGRAMS: [&str; 2] = ["vbmd", "vbm"];

/// Builds them, cargo's own progress on stderr; gives the directory that they are in.
pub(crate) fn programs() -> Done<PathBuf> {
    let mut command = place::cargo();
    command
        .args(ARGS)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::inherit());
    let output = command
        .spawn()
        .and_then(std::process::Child::wait_with_output)
        .map_err(|error| run::not_started(&command, &error))?;
    if !output.status.success() {
        return Err(Fault::new(
            "the build failed",
            "the compiler's messages are above",
            "repair that, then run the demo again",
        ));
    }
    directory(&String::from_utf8_lossy(&output.stdout))
}

#[derive(Deserialize)]
struct Message {
    executable: Option<PathBuf>,
}

/// Where cargo says that it put the programs.
fn directory(messages: &str) -> Done<PathBuf> {
    let executables: Vec<PathBuf> = messages
        .lines()
        .filter_map(|line| serde_json::from_str::<Message>(line).ok()?.executable)
        .collect();
    let directory = |name: &&str| {
        let program = executables
            .iter()
            .find(|path| path.file_name().is_some_and(|file| file == *name));
        program?.parent().map(PathBuf::from)
    };
    let found: Vec<PathBuf> = PROGRAMS.iter().filter_map(directory).collect();
    match found.as_slice() {
        [first, second] if first == second => Ok(first.clone()),
        _ => Err(Fault::new(
            "cargo did not say where vbmd and vbm are",
            "its messages name no such programs in one directory",
            "compare cargo's version with rust-version",
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_programs_are_where_cargo_says() {
        let messages = "{\"reason\":\"compiler-artifact\",\"executable\":null}\n\
                        {\"reason\":\"compiler-artifact\",\"executable\":\"/t/debug/vbm\"}\n\
                        {\"reason\":\"compiler-artifact\",\"executable\":\"/t/debug/vbmd\"}\n\
                        {\"reason\":\"build-finished\",\"success\":true}\n";
        assert_eq!(directory(messages).unwrap(), PathBuf::from("/t/debug"));
        assert!(directory("{\"executable\":\"/t/debug/vbm\"}").is_err());
    }
}
