//! `cargo xtask`: everything a developer types. See `cargo xtask help`.
//!
//! ```text
//!  main -> demo | test | lab | bench | guest | setup | web | ci | tidy   one module a command
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
mod lab;
mod place;
mod run;
mod say;
mod setup;
mod test;
mod tidy;
mod web;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::lab::Unable;

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
    Demo {
        /// More than one: a cluster of so many nodes on this machine, and what it outlives.
        #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u8).range(1..=8))]
        nodes: u8,
    },
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
    /// Real VirtualBox, in a machine that is emulated: made when it is not there, and tried.
    Lab(lab::Args),
    /// What the gate runs: tests, format, clippy, rustdoc, cargo-deny, tidy.
    Ci,
    /// Build the page of the web console into `vbm-sdk/web/dist`.
    Web {
        /// Also run its tests, in Chromium against a real guest.
        #[arg(long)]
        test: bool,
    },
    /// Check the direction of dependencies, file lengths and paths.
    Tidy,
}

/// The exit code of a lab that the package archive does not provide: neither passed nor failed.
const EXIT_NOT_RUN: u8 = 3;

fn main() -> ExitCode {
    match run(Args::parse().command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(Unable::Failed(fault)) => {
            say::fault(&fault);
            ExitCode::FAILURE
        }
        Err(Unable::NotProvided(fault)) => {
            say::not_run(&fault);
            ExitCode::from(EXIT_NOT_RUN)
        }
    }
}

fn run(command: Command) -> Result<(), Unable> {
    match command {
        Command::Demo { nodes } => demo::command(nodes)?,
        Command::Bench { area, quick, json } => bench::command(&area, quick, json.as_deref())?,
        Command::Guest { out } => {
            let guest = guest::ensure(out.as_deref())?;
            let how = if guest.made { "made" } else { "up to date" };
            say::line(&format!(
                "guest {how}: {} ({})",
                guest.dir.display(),
                guest.manifest.key.get(..12).unwrap_or("?")
            ));
        }
        Command::Setup => {
            setup::ensure(&setup::Need::ALL)?;
            say::line("everything is there");
        }
        Command::Test { filters } => test::command(&filters)?,
        Command::Lab(args) => lab::command(&args)?,
        Command::Ci => ci::command()?,
        Command::Web { test } => web::command(test)?,
        Command::Tidy => tidy::command()?,
    }
    Ok(())
}
