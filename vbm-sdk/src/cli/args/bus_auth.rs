//! What may be typed after `vbm bus key` and `vbm bus acl`.

use clap::{Args, Subcommand};
use std::path::PathBuf;

/// Where the keys of a host are when nothing else is said.
const DEFAULT_KEYS: &str = "/var/lib/vbm/bus.key";

#[derive(Debug, Subcommand)]
pub(in crate::cli) enum BusKey {
    /// Make a key; with --next another one, which opens what is sealed for it and does not seal yet
    New(BusKeyNew),
    /// Print the lines for the trust list of every node
    Show(BusKeyShow),
    /// Seal with this key from the next start on
    Use(BusKeyOne),
    /// Forget a key that nobody seals for any more
    Drop(BusKeyOne),
}

/// Which file of keys.
#[derive(Debug, Args)]
pub(in crate::cli) struct BusKeyFile {
    /// The file of secret keys
    #[arg(long, value_name = "FILE", env = "VBM_BUS_KEY", default_value = DEFAULT_KEYS)]
    pub(in crate::cli) file: PathBuf,
}

#[derive(Debug, Args)]
pub(in crate::cli) struct BusKeyNew {
    #[command(flatten)]
    pub(in crate::cli) keys: BusKeyFile,
    /// Add a key to those that are there
    #[arg(long)]
    pub(in crate::cli) next: bool,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  vbm bus key show eu/r1/n1 >> trust            on each node; the list goes to all of them
  vbm bus key show control/c1 --commands        a controller: its requests may carry an epoch")]
pub(in crate::cli) struct BusKeyShow {
    /// The paths that the keys speak for, such as zone/cluster/node
    #[arg(required = true, value_name = "PATH")]
    pub(in crate::cli) paths: Vec<String>,
    #[command(flatten)]
    pub(in crate::cli) keys: BusKeyFile,
    /// It may command
    #[arg(long)]
    pub(in crate::cli) commands: bool,
    /// It may put back what others sent: dead letters
    #[arg(long)]
    pub(in crate::cli) relays: bool,
}

#[derive(Debug, Args)]
pub(in crate::cli) struct BusKeyOne {
    /// The key's id: see `vbm bus key show`
    pub(in crate::cli) key: String,
    #[command(flatten)]
    pub(in crate::cli) keys: BusKeyFile,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  vbm bus acl eu/r1/n1 --service agent --asks controller --password-file n1.pw
  vbm bus acl control/c1 --service controller --asks-all --password-file c1.pw --apply --redis redis://localhost
Then on the node: --redis redis://USER:PASSWORD@HOST:PORT")]
pub(in crate::cli) struct BusAcl {
    /// The node, such as zone/cluster/node
    pub(in crate::cli) node: String,
    /// A service that it offers; may be repeated
    #[arg(long = "service", value_name = "SERVICE")]
    pub(in crate::cli) services: Vec<String>,
    /// A service that it may ask; may be repeated; none when left out
    #[arg(long = "asks", value_name = "SERVICE", conflicts_with = "asks_all")]
    pub(in crate::cli) asks: Vec<String>,
    /// It may ask everybody, single nodes included
    #[arg(long)]
    pub(in crate::cli) asks_all: bool,
    /// How the keys of this bus begin
    #[arg(long, value_name = "NAME", default_value = "vbm")]
    pub(in crate::cli) namespace: String,
    /// Also all keys that match this pattern: such as {vbm:store:v1}:* for a controller whose records are there
    #[arg(long = "keys", value_name = "PATTERN")]
    pub(in crate::cli) also: Vec<String>,
    /// The file of its password; written with a new one when it is not there
    #[arg(long, value_name = "FILE")]
    pub(in crate::cli) password_file: PathBuf,
    /// Make the user, instead of printing the line
    #[arg(long, requires = "redis")]
    pub(in crate::cli) apply: bool,
    /// The Redis to make it on, as somebody who may
    #[arg(long, env = "VBM_REDIS", value_name = "URL", hide_env_values = true)]
    pub(in crate::cli) redis: Option<String>,
}
