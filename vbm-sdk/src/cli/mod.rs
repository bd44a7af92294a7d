//! The command line `vbm`.
//!
//! ```text
//!   args      what may be typed           clap, one enum a noun
//!     |  forms  NICs, forwards, sizes     pure: text -> request
//!     v
//!   one module a noun ---- client ----> vbmd
//!     |  table, human                     pure: answer -> text
//!     v
//!   output    the only place that prints: answers on stdout, all else on stderr
//! ```
//!
//! # Exit codes
//!
//! | code | kinds of [`ErrorKind`] |
//! |---|---|
//! | 0 | it was done |
//! | 1 | internal, and `vbm doctor` that found a problem |
//! | 2 | invalid-input; a command line that does not parse |
//! | 3 | not-found |
//! | 4 | already-exists, conflict, stale |
//! | 5 | permission-denied |
//! | 6 | exhausted |
//! | 7 | unsupported, missing-dependency |
//! | 8 | unavailable |
//! | 9 | deadline-exceeded |
//! | 10 | corrupt |
//! | 11 | cancelled |
//!
//! Errors are three lines on stderr, `error:`, `why:` and `fix:`; with `-o json` they are the API's problem JSON.

mod args;
mod bus;
mod console;
mod dev;
mod doctor;
mod events;
mod exit;
mod floating;
mod forms;
mod forward;
mod group;
mod guest;
mod human;
mod image;
mod info;
mod launch;
mod list;
mod looks;
mod migrate;
mod net;
mod network;
mod node;
mod operation;
mod orphans;
mod output;
mod port;
mod power;
mod progress;
mod session;
mod snapshot;
mod table;
mod usage;
mod volume;
mod web;

use args::{Cli, Command};
use clap::{CommandFactory, Parser};
use output::Output;
use session::Session;
use std::{ffi::OsString, process::ExitCode};
use vbm_core::{Error, ErrorKind};

pub use exit::exit_code;

#[cfg(test)]
pub(crate) use list::tests::sample as sample_vm;

/// Runs `vbm` with the arguments of this process.
///
/// Makes its own runtime: call it from `main`, not from async code.
pub fn main() -> ExitCode {
    run(std::env::args_os().collect())
}

fn run(args: Vec<OsString>) -> ExitCode {
    let cli = match Cli::try_parse_from(&args) {
        Ok(cli) => cli,
        Err(error) => return usage::explain(&error, &args),
    };
    let out = Output::new(cli.globals.output, cli.globals.quiet);
    match block_on(cli, &out) {
        Ok(code) => code,
        Err(error) => {
            out.error(&error);
            ExitCode::from(exit_code(error.kind()))
        }
    }
}

fn block_on(cli: Cli, out: &Output) -> Result<ExitCode, Error> {
    let tidies_up = matches!(&cli.command, Command::Bus(verb) if verb.tidies_up());
    // A load is made by as many threads as there are; everything else needs one.
    let mut builder = match tidies_up {
        true => tokio::runtime::Builder::new_multi_thread(),
        false => tokio::runtime::Builder::new_current_thread(),
    };
    let runtime = builder
        .enable_all()
        .build()
        .map_err(|e| Error::internal("vbm cannot start", e.to_string()))?;
    let done = runtime.block_on(async {
        // Both arms may be dropped: an operation that was begun goes on at the server.
        tokio::select! {
            done = obey(cli, out) => done,
            () = interrupted(), if !tidies_up => Err(given_up()),
        }
    });
    // A thread may still be blocked in a read of stdin; it ends with the process.
    runtime.shutdown_background();
    done
}

async fn interrupted() {
    if tokio::signal::ctrl_c().await.is_err() {
        std::future::pending::<()>().await;
    }
}

fn given_up() -> Error {
    Error::new(
        ErrorKind::Cancelled,
        "interrupted",
        "Ctrl-C was pressed; what vbmd has begun goes on",
        "see what goes on with `vbm operation list`",
    )
    .with_outcome(vbm_core::Outcome::Unknown)
}

/// The whole command surface, in one place.
async fn obey(cli: Cli, out: &Output) -> Result<ExitCode, Error> {
    let on = Session::new(&cli.globals, out)?;
    match cli.command {
        Command::Launch(args) => launch::run(&on, args).await,
        Command::List => list::run(&on).await,
        Command::Info(args) => info::run(&on, &args.vm).await,
        Command::Start(args) => power::start(&on, &args.vms).await,
        Command::Stop(args) => power::stop(&on, &args).await,
        Command::Restart(args) => power::restart(&on, &args.vms).await,
        Command::Dev(verb) => dev::run(&on, verb).await,
        Command::Migrate(args) => migrate::migrate(&on, &args).await,
        Command::Placement(args) => migrate::placement(&on, &args).await,
        Command::Pause(args) => power::pause(&on, &args.vms).await,
        Command::Resume(args) => power::resume(&on, &args.vms).await,
        Command::Save(args) => power::save(&on, &args.vms).await,
        Command::Discard(args) => power::discard(&on, &args.vms).await,
        Command::Snapshot(verb) => snapshot::run(&on, verb).await,
        Command::Delete(args) => power::delete(&on, &args).await,
        Command::Wait(args) => power::wait(&on, &args).await,
        Command::Console(args) => console::run(&on, &args).await,
        Command::Screenshot(args) => image::screenshot(&on, &args).await,
        Command::Network(verb) => network::run(&on, verb).await,
        Command::Port(verb) => port::run(&on, verb).await,
        Command::Net(verb) => net::run(&on, verb).await,
        Command::Group(verb) => group::run(&on, verb).await,
        Command::Forward(verb) => forward::run(&on, verb).await,
        Command::FloatingIp(verb) => floating::run(&on, verb).await,
        Command::Volume(verb) => volume::run(&on, verb).await,
        Command::Image(verb) => image::run(&on, verb).await,
        Command::Node(verb) => node::run(&on, verb).await,
        Command::Bus(verb) => bus::run(&on, verb).await,
        Command::Operation(verb) => operation::run(&on, verb).await,
        Command::Web(verb) => web::run(&on, verb).await,
        Command::Events(args) => events::run(&on, &args).await,
        Command::Version => node::version(&on).await,
        Command::Doctor(args) => return doctor::run(&on, &args).await,
        Command::Orphans(verb) => orphans::run(&on, verb).await,
        Command::Completions(args) => {
            let mut script = Vec::new();
            clap_complete::generate(args.shell, &mut Cli::command(), "vbm", &mut script);
            on.out.bytes(&script)
        }
    }?;
    Ok(ExitCode::SUCCESS)
}
