//! `cargo xtask`: everything a developer types. See `cargo xtask help`.
//!
//! ```text
//!  main -> demo | test | bench | guest | setup | ci | tidy        one module a command
//!           \_______ run, place, say, fault                     programs, paths, terminal, errors
//! ```
#![allow(
    clippy::disallowed_types,
    reason = "a synchronous tool that times real programs: std's clock is the right one"
)]

mod bench;
mod ci;
mod demo;
mod fault;
mod guest;
mod place;
mod run;
mod say;
mod setup;
mod test;
mod tidy;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::fault::Done;

/// What a developer of VBM types.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask", disable_version_flag = true)]
struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Show all of it on this machine: installs what is missing, builds, and tells the story with real commands.
    Demo,
    /// Measure an area against its peers, side by side.
    Bench {
        /// Which: `cargo xtask bench help` lists them.
        area: String,
        /// Fewer and shorter runs: to see that it works, not to quote.
        #[arg(long)]
        quick: bool,
        /// Where to write the figures, with the machine and the command.
        #[arg(long, value_name = "FILE")]
        json: Option<PathBuf>,
    },
    /// Make the tiny guest operating system that demo and tests boot.
    Guest {
        /// Where to put it, instead of `target/guest`.
        #[arg(long, value_name = "DIR")]
        out: Option<PathBuf>,
    },
    /// Install the Debian packages that demo and tests need.
    Setup,
    /// Install what is missing and run every test, on real namespaces, Redis and QEMU.
    Test {
        /// Run only tests whose names contain one of these.
        #[arg(last = true, value_name = "NAME")]
        filters: Vec<String>,
    },
    /// What the gate runs: tests, format, clippy, rustdoc, cargo-deny, tidy.
    Ci,
    /// Check the direction of dependencies, file lengths and paths.
    Tidy,
}

fn main() -> ExitCode {
    match run(Args::parse().command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(fault) => {
            say::fault(&fault);
            ExitCode::FAILURE
        }
    }
}

fn run(command: Command) -> Done {
    match command {
        Command::Demo => demo::command(),
        Command::Bench { area, quick, json } => bench::command(&area, quick, json.as_deref()),
        Command::Guest { out } => {
            let guest = guest::ensure(out.as_deref())?;
            let how = if guest.made { "made" } else { "up to date" };
            say::line(&format!(
                "guest {how}: {} ({})",
                guest.dir.display(),
                guest.manifest.key.get(..12).unwrap_or("?")
            ));
            Ok(())
        }
        Command::Setup => setup::ensure(&setup::Need::ALL).map(|()| say::line("everything is there")),
        Command::Test { filters } => test::command(&filters),
        Command::Ci => ci::command(),
        Command::Tidy => tidy::command(),
    }
}
