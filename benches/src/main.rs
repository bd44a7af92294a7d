//! `vbm-benches AREA [--quick] [--only TEXT]... [--json FILE]`: every figure that is told of VBM comes from here.
//!
//! ```text
//!   ground: own network namespace, guest, programs
//!     |
//!   areas: platform  rpc  hyper  net -----> rows: ours, peer, ratio, goal, met, samples, note
//!     each bench: A B A B A B, medians        |
//!                                             +--> table on standard output
//!                                             `--> JSON: rows, machine, date, command
//! ```
//!
//! Peers run in the same call, in turn with ours. `met` is information: nothing gates by the clock. The exit code is 0,
//! 1 when a bench could not be run (its row says why), 130 when interrupted (what was measured is printed).
//!
//! A bench owns what it makes and its guards remove it, also when it fails or is interrupted: processes by the pid they
//! were started with, files below one temporary folder, links and rules in namespaces of the harness.

mod areas;
#[cfg_attr(
    not(feature = "platform"),
    allow(dead_code, reason = "an area alone needs less of it")
)]
mod harness;

use clap::{Parser, ValueEnum};
use harness::{
    fault::{During, Outcome},
    ground::{self, Ground, Guest, Programs},
    machine::Machine,
    report::{Report, profile},
    rows::{Rows, say},
    table,
};
use std::{io::Write, path::PathBuf, process::ExitCode};
use tokio::signal::unix::{SignalKind, signal};

/// Measures VBM beside its peers.
#[derive(Debug, Parser)]
struct Args {
    /// What to measure.
    area: Area,
    /// Smaller loads and three rounds: for a first look.
    #[arg(long)]
    quick: bool,
    /// Only rows of the bus or of machines whose name contains one of these texts; of networks, these parts: create, port, packet, TCP, agent, address,
    /// DHCP.
    #[arg(long, value_name = "TEXT")]
    only: Vec<String>,
    /// Also write rows, machine and command to this file.
    #[arg(long)]
    json: Option<PathBuf>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Area {
    #[cfg(feature = "platform")]
    Platform,
    Rpc,
    #[cfg(feature = "hyper")]
    Hyper,
    #[cfg(feature = "net")]
    Net,
    All,
}

impl Area {
    fn has(self, area: Self) -> bool {
        self == area || self == Self::All
    }
}

/// The exit code of a run that ^C ended.
const INTERRUPTED: u8 = 130;

fn main() -> ExitCode {
    #[cfg(feature = "net")]
    if let Some(served) = areas::dhcp::serve_if_asked() {
        return match served {
            Ok(()) => ExitCode::SUCCESS,
            Err(fault) => {
                say(&format!("error: {fault}"));
                ExitCode::FAILURE
            }
        };
    }
    match run(&Args::parse()) {
        Ok(code) => ExitCode::from(code),
        Err(fault) => {
            say(&format!("error: {fault}"));
            ExitCode::FAILURE
        }
    }
}

fn run(args: &Args) -> Outcome<u8> {
    let machine = Machine::look();
    // Before the namespace: cargo may need the network. Before the first thread: a namespace is a thread's.
    let programs = if needs_programs(args.area) {
        Programs::find()
    } else {
        Err(harness::fault::Fault::new("not looked for"))
    };
    let ground = Ground {
        quick: args.quick,
        only: args.only.clone(),
        guest: Guest::find(),
        programs,
        namespace: ground::enter_namespace(),
    };
    let date = jiff::Timestamp::now().to_string();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let mut rows = Rows::default();
    let interrupted = runtime.block_on(measure(args.area, &ground, &mut rows))?;
    let mut out = std::io::stdout().lock();
    let title = format!(
        "{} build, {}\n{}",
        profile(),
        if args.quick { "quick" } else { "full" },
        machine.line()
    );
    writeln!(out, "{title}\n{}", table::render(&rows.rows))?;
    if let Some(path) = &args.json {
        Report::new(date, args.quick, &machine, &rows.rows)
            .write(path)
            .during("the report")?;
    }
    Ok(if interrupted {
        INTERRUPTED
    } else {
        u8::from(!rows.all_ran())
    })
}

#[cfg(feature = "platform")]
fn needs_programs(area: Area) -> bool {
    area.has(Area::Platform)
}

#[cfg(not(feature = "platform"))]
fn needs_programs(_: Area) -> bool {
    false
}

/// Whether it was interrupted. The benches' future is dropped then, and with it all that it made.
async fn measure(area: Area, ground: &Ground, rows: &mut Rows) -> Outcome<bool> {
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    tokio::select! {
        biased;
        _ = interrupt.recv() => Ok(true),
        _ = terminate.recv() => Ok(true),
        () = benches(area, ground, rows) => Ok(false),
    }
}

async fn benches(area: Area, ground: &Ground, rows: &mut Rows) {
    #[cfg(feature = "platform")]
    if area.has(Area::Platform) {
        rows.enter("platform");
        areas::platform::run(ground, rows).await;
    }
    if area.has(Area::Rpc) {
        rows.enter("rpc");
        areas::rpc::run(ground, rows).await;
    }
    #[cfg(feature = "hyper")]
    if area.has(Area::Hyper) {
        rows.enter("hyper");
        areas::hyper::run(ground, rows).await;
    }
    #[cfg(feature = "net")]
    if area.has(Area::Net) {
        rows.enter("net");
        areas::net::run(ground, rows).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_typed_is_understood() {
        let args = Args::try_parse_from(["vbm-benches", "rpc", "--quick", "--json", "x.json"]).unwrap();
        assert!(args.area == Area::Rpc && args.quick && args.json.is_some());
        assert!(Area::All.has(Area::Rpc) && !Area::Rpc.has(Area::All));
        assert!(Args::try_parse_from(["vbm-benches", "cooking"]).is_err());
    }
}
