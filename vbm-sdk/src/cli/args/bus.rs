//! What may be typed after `vbm bus`.

use super::bus_auth::{BusAcl, BusKey};
use clap::{Args, Subcommand};
use std::path::PathBuf;

#[derive(Debug, Subcommand)]
pub(in crate::cli) enum Bus {
    /// Show who is alive, how deep the queues are and how fast they move
    Top(BusTop),
    /// Call a member and show how long it takes to answer
    Ping(BusPing),
    /// Show the hops of one traced call
    Trace(BusTrace),
    /// Dead letters: requests that can never be handled
    #[command(subcommand)]
    Dlq(BusDlq),
    /// The keys by which this host is believed on the bus
    #[command(subcommand)]
    Key(BusKey),
    /// Print the Redis user of a node, who may do what it needs and nothing else
    Acl(BusAcl),
    /// Measure calls a second, latency and commands a call on this Redis
    Bench(BusBench),
}

impl Bus {
    /// Whether it ends by itself when it is interrupted, after taking back what it has made.
    pub(in crate::cli) const fn tidies_up(&self) -> bool {
        matches!(self, Self::Bench(_))
    }
}

/// Where the bus is. `vbm bus` asks Redis itself, so that it works while vbmd is down.
#[derive(Debug, Args)]
pub(in crate::cli) struct BusPlace {
    /// The Redis of the bus: redis://HOST:PORT or redis+unix:///PATH
    #[arg(long, env = "VBM_REDIS", value_name = "URL", hide_env_values = true)]
    pub(in crate::cli) redis: String,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  vbm bus top --redis redis://localhost:6379
  vbm bus top --scope eu/rack1 --every 5s
  vbm bus top --once -o json")]
pub(in crate::cli) struct BusTop {
    #[command(flatten)]
    pub(in crate::cli) place: BusPlace,
    /// Only what is below this scope
    #[arg(long, value_name = "SCOPE", default_value = "/")]
    pub(in crate::cli) scope: String,
    /// How often to look, such as 2s; the rates are those between two looks
    #[arg(long, value_name = "SPAN", default_value = "2s")]
    pub(in crate::cli) every: String,
    /// Print once and end; it takes one --every to know the rates
    #[arg(long)]
    pub(in crate::cli) once: bool,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  vbm bus ping eu/n1 --redis redis://localhost:6379
  vbm bus ping eu/n1 --trace     where the time goes
  vbm bus ping eu/n1 --control   past all that waits there")]
pub(in crate::cli) struct BusPing {
    #[command(flatten)]
    pub(in crate::cli) place: BusPlace,
    /// The path of the member
    pub(in crate::cli) member: String,
    /// Record the hops of the call and show them
    #[arg(long)]
    pub(in crate::cli) trace: bool,
    /// On the control lane
    #[arg(long)]
    pub(in crate::cli) control: bool,
}

#[derive(Debug, Args)]
pub(in crate::cli) struct BusTrace {
    #[command(flatten)]
    pub(in crate::cli) place: BusPlace,
    /// The id of the request
    pub(in crate::cli) id: String,
}

#[derive(Debug, Subcommand)]
pub(in crate::cli) enum BusDlq {
    /// List dead letters, the oldest first
    List(BusDlqList),
    /// Show one of them
    Show(BusDlqOne),
    /// Put dead letters back into their queues
    Replay(BusDlqReplay),
    /// Forget dead letters
    Drop(BusDlqSome),
}

#[derive(Debug, Args)]
pub(in crate::cli) struct BusDlqList {
    #[command(flatten)]
    pub(in crate::cli) place: BusPlace,
    /// Only those for what is below this scope
    #[arg(long, value_name = "SCOPE", default_value = "/")]
    pub(in crate::cli) scope: String,
}

#[derive(Debug, Args)]
pub(in crate::cli) struct BusDlqOne {
    #[command(flatten)]
    pub(in crate::cli) place: BusPlace,
    /// The dead letter: see `vbm bus dlq list`
    pub(in crate::cli) letter: String,
}

#[derive(Debug, Args)]
pub(in crate::cli) struct BusDlqSome {
    #[command(flatten)]
    pub(in crate::cli) place: BusPlace,
    /// The dead letters: see `vbm bus dlq list`
    #[arg(required = true, value_name = "LETTER")]
    pub(in crate::cli) letters: Vec<String>,
}

#[derive(Debug, Args)]
pub(in crate::cli) struct BusDlqReplay {
    #[command(flatten)]
    pub(in crate::cli) some: BusDlqSome,
    /// How long they may wait to be started, such as 30s; as long as at first when left out
    #[arg(long, value_name = "SPAN")]
    pub(in crate::cli) ttl: Option<String>,
    /// On a bus with seals: the file of secret keys of the operator, whose line in the trust lists says `relays`
    #[arg(long, value_name = "FILE", requires = "bus_trust")]
    pub(in crate::cli) bus_key: Option<PathBuf>,
    /// The trust list
    #[arg(long, value_name = "FILE", requires = "bus_key")]
    pub(in crate::cli) bus_trust: Option<PathBuf>,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Caller and answerer are both in this process, under a name of their own; they leave no key behind. The calls are load all
the same: others on this Redis wait longer meanwhile.

Examples:
  vbm bus bench --redis redis://localhost:6379
  vbm bus bench --in-flight 1,64,512 --payload 4096 --time 10s
  vbm bus bench --seals
  vbm bus bench -o json")]
pub(in crate::cli) struct BusBench {
    #[command(flatten)]
    pub(in crate::cli) place: BusPlace,
    /// How many calls are under way at once; several with commas between are measured one after the other
    #[arg(
        long,
        value_name = "NUMBER",
        default_value = "1,64,512",
        value_delimiter = ','
    )]
    pub(in crate::cli) in_flight: Vec<usize>,
    /// The bytes of each request, and of its answer
    #[arg(long, value_name = "BYTES", default_value_t = 128)]
    pub(in crate::cli) payload: usize,
    /// How long each is measured, such as 3s; at most a minute
    #[arg(long, value_name = "SPAN", default_value = "3s")]
    pub(in crate::cli) time: String,
    /// Seal what is written, with keys that are made for this and forgotten: what a bus with security pays
    #[arg(long)]
    pub(in crate::cli) seals: bool,
}
