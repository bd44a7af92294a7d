//! What clap has to say, in the three lines that all errors have.

use super::{
    args::{Cli, Format},
    exit,
    output::{self, Output},
};
use clap::{Command, CommandFactory};
use std::{ffi::OsString, process::ExitCode};
use vbm_core::{Error, ErrorKind};

/// Shows help, a version, or why a command line does not parse.
pub(super) fn explain(error: &clap::Error, args: &[OsString]) -> ExitCode {
    use clap::error::ErrorKind as Kind;
    match error.kind() {
        Kind::DisplayHelp | Kind::DisplayVersion => {
            output::raw(error);
            ExitCode::SUCCESS
        }
        // The one where nothing was given, the other where VBM_SOCKET was: for clap, that is an argument.
        Kind::DisplayHelpOnMissingArgumentOrSubcommand | Kind::MissingSubcommand => {
            let mut command = command_meant(args);
            // `vbm` alone is somebody who wants to know; `vbm network` alone is a command that is not complete.
            let alone = command.get_name() == "vbm";
            output::help(&command.render_help(), alone);
            if alone {
                ExitCode::SUCCESS
            } else {
                ExitCode::from(exit::USAGE)
            }
        }
        _ => {
            let format = if wants_json(args) {
                Format::Json
            } else {
                Format::Table
            };
            Output::new(format, false).error(&three_lines(&error.to_string()));
            ExitCode::from(exit::USAGE)
        }
    }
}

/// The command that these words lead to, as far as they do.
fn command_meant(args: &[OsString]) -> Command {
    let mut root = Cli::command();
    root.build();
    args.iter()
        .skip(1)
        .fold(root, |at, word| at.find_subcommand(word).cloned().unwrap_or(at))
}

/// Whether JSON was asked for on a command line that does not parse.
fn wants_json(args: &[OsString]) -> bool {
    let mut before = "";
    for arg in args.iter().filter_map(|a| a.to_str()) {
        let attached = ["--output=", "-o=", "-o"]
            .iter()
            .find_map(|flag| arg.strip_prefix(flag));
        if attached == Some("json") || (matches!(before, "-o" | "--output") && arg == "json") {
            return true;
        }
        before = arg;
    }
    false
}

/// Reads what, why and fix out of clap's message.
fn three_lines(message: &str) -> Error {
    let head: Vec<&str> = message
        .lines()
        .take_while(|line| !line.trim().is_empty())
        .map(str::trim)
        .collect();
    let what = head.join(" ");
    let what = what.strip_prefix("error: ").unwrap_or(&what);
    let usage = message.lines().find_map(|line| line.strip_prefix("Usage: "));
    let tip = message.lines().find_map(|line| line.trim().strip_prefix("tip: "));
    let command = usage.map_or_else(|| "vbm".to_owned(), command_of);
    let why = usage.map_or_else(
        || "this value is not one that it takes".to_owned(),
        |usage| format!("the usage is `{usage}`"),
    );
    let fix = tip.map_or_else(
        || format!("see `{command} --help`"),
        |tip| format!("{tip}; see `{command} --help`"),
    );
    Error::new(ErrorKind::InvalidInput, what, why, fix)
}

/// The words of a usage line that are typed as they stand.
fn command_of(usage: &str) -> String {
    let fixed = usage
        .split(' ')
        .take_while(|word| word.starts_with(|c: char| c.is_ascii_lowercase()));
    fixed.collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::super::args::Cli;
    use super::*;
    use clap::Parser;

    fn told(args: &[&str]) -> Error {
        three_lines(&Cli::try_parse_from(args).unwrap_err().to_string())
    }

    #[test]
    fn a_word_that_is_nearly_a_command_is_answered_with_the_command() {
        let error = told(&["vbm", "lunch"]);
        assert_eq!(error.what(), "unrecognized subcommand 'lunch'");
        assert!(error.fix().contains("'launch'"), "{}", error.fix());
        assert_eq!(error.to_string().lines().count(), 3);
    }

    #[test]
    fn what_is_missing_is_named_with_the_help_of_its_own_command() {
        let error = told(&["vbm", "network", "create", "lan"]);
        assert!(error.what().contains("<CIDR>"), "{}", error.what());
        assert_eq!(error.fix(), "see `vbm network create --help`");
    }

    #[test]
    fn the_help_of_a_command_that_is_not_complete_is_its_own() {
        for (words, expected) in [
            ("vbm", "vbm"),
            ("vbm --wait network", "network"),
            ("vbm group", "group"),
        ] {
            let args: Vec<OsString> = words.split(' ').map(OsString::from).collect();
            assert_eq!(command_meant(&args).get_name(), expected);
        }
    }

    #[test]
    fn a_bad_number_is_named() {
        let error = told(&["vbm", "launch", "tiny", "--cpus", "many"]);
        assert!(
            error.what().contains("many") && error.what().contains("--cpus"),
            "{}",
            error.what()
        );
        assert_eq!(error.to_string().lines().count(), 3);
    }

    #[test]
    fn json_is_recognised_however_it_is_asked_for() {
        let args = |words: &[&str]| words.iter().map(OsString::from).collect::<Vec<_>>();
        for words in [
            &["vbm", "-o", "json"][..],
            &["vbm", "-ojson"],
            &["vbm", "--output=json"],
            &["vbm", "--output", "json"],
        ] {
            assert!(wants_json(&args(words)), "{words:?}");
        }
        assert!(!wants_json(&args(&["vbm", "json", "-o", "yaml"])));
    }
}
