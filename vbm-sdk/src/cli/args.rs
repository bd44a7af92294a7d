//! What may be typed. Values with a form of their own stay text here and are read by `forms`, so that their
//! errors have three lines like all others.

mod bus;
mod bus_auth;
mod nouns;
mod orphans;
mod ports;

pub(super) use bus::*;
pub(super) use bus_auth::*;
pub(super) use nouns::*;
pub(super) use orphans::*;
pub(super) use ports::*;

use super::exit;
use crate::client::DEFAULT_SOCKET;
use clap::{Args, Parser, Subcommand, ValueEnum};
use std::path::PathBuf;

const EXAMPLES: &str = "\
The first minutes:
  vbm image import tiny --guest DIR                 an image, made by `cargo xtask guest`
  vbm network create lan 10.0.0.0/24                a network with NAT and DHCP
  vbm group create web tcp/80 icmp                  what may reach a VM
  vbm launch tiny web1 --network lan --group web    a VM that runs
  vbm forward create web1 8080:80                   http://localhost:8080 is its port 80
  vbm list                                          what there is
  vbm console web1                                  its serial console; Ctrl-] detaches
  vbm delete web1 --force                           gone

Everything else is `vbm NOUN VERB`; each command has --help.
Things are named by their name, their id, or the beginning of their id.";

/// VBM: virtual machines, their networks and their disks.
#[derive(Debug, Parser)]
#[command(
    name = "vbm",
    version,
    arg_required_else_help = true,
    disable_help_subcommand = true,
    after_help = format!("{EXAMPLES}\n\n{}", exit::TABLE),
)]
pub(super) struct Cli {
    #[command(flatten)]
    pub(super) globals: Globals,
    #[command(subcommand)]
    pub(super) command: Command,
}

#[derive(Debug, Args)]
#[command(next_help_heading = "Global options")]
pub(super) struct Globals {
    /// The socket that vbmd listens on; several with commas between: the first that answers is used
    #[arg(long, global = true, env = "VBM_SOCKET", value_name = "PATH", default_value = DEFAULT_SOCKET, value_delimiter = ',')]
    pub(super) socket: Vec<PathBuf>,
    /// How to print answers; json is the API's own and stays stable
    #[arg(short, long, global = true, value_enum, default_value_t = Format::Table, value_name = "FORMAT")]
    pub(super) output: Format,
    /// Wait until it is done: the default
    #[arg(long, global = true, conflicts_with = "no_wait")]
    pub(super) wait: bool,
    /// Do not wait: print the operation that sees it through
    #[arg(long = "async", id = "no_wait", global = true)]
    pub(super) no_wait: bool,
    /// How long to wait, such as 30, 30s or 5m [default: 5m]
    #[arg(long, global = true, value_name = "SPAN")]
    pub(super) timeout: Option<String>,
    /// Print only answers: no progress, no hints
    #[arg(short, long, global = true)]
    pub(super) quiet: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum Format {
    /// Columns for people
    Table,
    /// The same with more columns
    Wide,
    /// The API's JSON
    Json,
    /// The same as YAML
    Yaml,
    /// One name a line
    Name,
}

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Make a VM of an image and start it
    Launch(Launch),
    /// List VMs
    #[command(alias = "ls")]
    List,
    /// Show all about a VM
    Info(OneVm),
    /// Start VMs
    Start(SomeVms),
    /// Ask VMs to shut down, or end them with --force
    Stop(Stop),
    /// Reset VMs
    Restart(SomeVms),
    /// Halt VMs in memory
    Pause(SomeVms),
    /// Let paused VMs go on
    Resume(SomeVms),
    /// Move a VM to another node, while it runs or while it is off
    Migrate(Migrate),
    /// Show what the scheduler thinks of each node for a VM
    Placement(OneVm),
    /// Write the memory of VMs to disk and end them; `vbm start` goes on from there
    Save(SomeVms),
    /// Throw the saved memory of VMs away: they are off, as after a power cut
    Discard(SomeVms),
    /// Snapshots: a VM as it was, to go back to
    #[command(subcommand)]
    Snapshot(Snapshot),
    /// Delete VMs with their disks and snapshots; those that run only with --force
    #[command(alias = "rm")]
    Delete(Delete),
    /// Wait until a VM runs, is off, or has its address
    Wait(Wait),
    /// Use the serial console of a VM
    Console(Console),
    /// Save a picture of a VM's screen as PNG
    Screenshot(Screenshot),
    /// Networks: addresses, DHCP, NAT
    #[command(subcommand)]
    Network(Network),
    /// Ports: who has which address, and what it may carry
    #[command(subcommand)]
    Port(Port),
    /// Networks seen from a packet: what passes, and why
    #[command(subcommand)]
    Net(Net),
    /// Security groups: what may reach a VM
    #[command(subcommand)]
    Group(Group),
    /// Forwards: ports of the host that lead to a VM
    #[command(subcommand)]
    Forward(Forward),
    /// Floating IPs: addresses of the world that lead to a VM, one to one
    #[command(subcommand, name = "floating-ip")]
    FloatingIp(FloatingIp),
    /// Volumes: the disks of VMs
    #[command(subcommand)]
    Volume(Volume),
    /// Images: what VMs are made of
    #[command(subcommand)]
    Image(Image),
    /// Nodes: the machines that run VMs
    #[command(subcommand)]
    Node(Node),
    /// The bus under it all: who is alive, queues, dead letters; works while vbmd is down
    #[command(subcommand)]
    Bus(Bus),
    /// Operations: what takes time
    #[command(subcommand)]
    Operation(Operation),
    /// A cluster on this machine, to try and to develop: nodes are namespaces
    #[command(subcommand)]
    Dev(Dev),
    /// The web console: log a browser in
    #[command(subcommand)]
    Web(Web),
    /// Show what happened, and with --follow what happens
    Events(Events),
    /// Show the versions of vbm and vbmd
    Version,
    /// Look for what is missing or left over on this host, and repair it with --fix
    Doctor(Doctor),
    /// VMs of this host that no daemon looks after; works without a vbmd
    #[command(subcommand)]
    Orphans(Orphans),
    /// Print the completions for a shell
    Completions(Completions),
}

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  vbm launch tiny
  vbm launch tiny web1 --network lan --group web
  vbm launch tiny db1 --cpus 2 --memory 1G --network lan,address=10.0.0.5 --network backup
  vbm launch debian app1 --network lan --user-data cloud-config.yaml --ssh-key ~/.ssh/id_ed25519.pub")]
pub(super) struct Launch {
    /// The image: see `vbm image list`
    pub(super) image: String,
    /// Its name; made up when left out
    pub(super) name: Option<String>,
    /// Virtual CPUs
    #[arg(long, value_name = "N", default_value_t = crate::api::default_vcpus())]
    pub(super) cpus: u16,
    /// Memory, such as 512 (MiB), 512M or 2G
    #[arg(long, value_name = "SIZE", default_value = "256M")]
    pub(super) memory: String,
    /// The size of its disk, such as 10G; that of the image when left out
    #[arg(long, value_name = "SIZE")]
    pub(super) disk: Option<String>,
    /// A NIC on this network; may be repeated
    #[arg(
        long = "network",
        value_name = "NET[,address=IP][,address6=IP][,mac=MAC][,group=GROUP]"
    )]
    pub(super) networks: Vec<String>,
    /// A security group for each NIC; may be repeated
    #[arg(long = "group", value_name = "GROUP")]
    pub(super) groups: Vec<String>,
    /// The address of its only NIC; from the network's pool when left out
    #[arg(long, value_name = "IP")]
    pub(super) address: Option<String>,
    /// The MAC of its only NIC; made up when left out
    #[arg(long, value_name = "MAC")]
    pub(super) mac: Option<String>,
    /// The node that shall run it; chosen when left out
    #[arg(long, value_name = "NODE")]
    pub(super) node: Option<String>,
    /// The hypervisor: qemu, virtual-box or sim; what the node offers when left out
    #[arg(long, value_name = "DRIVER")]
    pub(super) driver: Option<String>,
    /// Make it, but leave it off
    #[arg(long)]
    pub(super) stopped: bool,
    /// Free text for you and your programs; may be repeated
    #[arg(long = "label", value_name = "KEY=VALUE")]
    pub(super) labels: Vec<String>,
    /// A file that the guest reads as user data (cloud-init); at most 16 KiB
    #[arg(long, value_name = "FILE")]
    pub(super) user_data: Option<std::path::PathBuf>,
    /// A file of public SSH keys that may log in, one a line; may be repeated
    #[arg(long = "ssh-key", value_name = "FILE")]
    pub(super) ssh_keys: Vec<std::path::PathBuf>,
}

#[derive(Debug, Args)]
pub(super) struct OneVm {
    /// The VM
    pub(super) vm: String,
}

#[derive(Debug, Args)]
pub(super) struct SomeVms {
    /// The VMs
    #[arg(required = true, value_name = "VM")]
    pub(super) vms: Vec<String>,
}

#[derive(Debug, Args)]
pub(super) struct Stop {
    /// The VMs
    #[arg(required = true, value_name = "VM")]
    pub(super) vms: Vec<String>,
    /// End them at once, without asking the guest
    #[arg(short, long)]
    pub(super) force: bool,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  vbm migrate web1                   to the node that fits best
  vbm migrate web1 --to zone/n2      to this one
  vbm migrate web1 --live            only while it runs
  vbm migrate web1 --copy-disks      to a node that does not share its disk
  vbm migrate web1 --dry-run         what would be looked at, and what is found")]
pub(super) struct Migrate {
    /// The VM
    pub(super) vm: String,
    /// The node that it shall go to; the one that fits best when left out
    #[arg(long, value_name = "NODE")]
    pub(super) to: Option<String>,
    /// Only while it runs
    #[arg(long, conflicts_with = "cold")]
    pub(super) live: bool,
    /// Only while it is off
    #[arg(long)]
    pub(super) cold: bool,
    /// Copy its disk, for nodes that do not share it
    #[arg(long, conflicts_with = "cold")]
    pub(super) copy_disks: bool,
    /// How long it may be halted before one more round of its memory is sent, in milliseconds [default: 300]
    #[arg(long, value_name = "MS")]
    pub(super) max_downtime: Option<u64>,
    /// The most that is sent in a second, in MiB [default: no limit]
    #[arg(long, value_name = "MIB", value_parser = clap::value_parser!(u64).range(1..=1_048_576))]
    pub(super) bandwidth: Option<u64>,
    /// Only tell what would be looked at and what is found; nothing is changed
    #[arg(long)]
    pub(super) dry_run: bool,
}

#[derive(Debug, Args)]
pub(super) struct Delete {
    /// The VMs
    #[arg(required = true, value_name = "VM")]
    pub(super) vms: Vec<String>,
    /// Also those that run: end them first, without asking the guest
    #[arg(short, long)]
    pub(super) force: bool,
}

#[derive(Debug, Args)]
pub(super) struct Wait {
    /// The VM
    pub(super) vm: String,
    /// What to wait for
    #[arg(long = "for", value_enum, value_name = "WHAT")]
    pub(super) what: WaitWhat,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum WaitWhat {
    /// It runs
    Running,
    /// It is off
    Off,
    /// It runs and took its addresses by DHCP
    Lease,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  vbm console web1                                       in a terminal: Ctrl-] detaches
  vbm console web1 --log                                 what it said so far
  vbm console web1 --until 'guest ready' --timeout 60    what it said and says, until that is among it
  echo hostname | vbm console web1                       types a line, prints what comes of it
  echo hostname | vbm console web1 --until web1          the same, until that comes of it")]
pub(super) struct Console {
    /// The VM
    pub(super) vm: String,
    /// Print what it said so far, at most so many bytes from the end
    #[arg(long, value_name = "BYTES", num_args = 0..=1, conflicts_with = "until")]
    pub(super) log: Option<Option<u64>>,
    /// End when it has said this; exit code 9 when it does not within --timeout
    #[arg(long, value_name = "TEXT")]
    pub(super) until: Option<String>,
}

#[derive(Debug, Args)]
pub(super) struct Screenshot {
    /// The VM
    pub(super) vm: String,
    /// Where to save it; `-` is stdout
    pub(super) file: PathBuf,
}

#[derive(Debug, Args)]
pub(super) struct Events {
    /// Only those after this revision
    #[arg(long, value_name = "REVISION")]
    pub(super) from: Option<u64>,
    /// Do not end: show what happens as it happens
    #[arg(short, long)]
    pub(super) follow: bool,
}

#[derive(Debug, Args)]
pub(super) struct Doctor {
    /// Repair what can be repaired: remove what is left over of VBM on this host
    #[arg(long)]
    pub(super) fix: bool,
    /// With --fix: also end VMs that run without a vbmd
    #[arg(long, requires = "fix")]
    pub(super) end_vms: bool,
}

#[derive(Debug, Args)]
pub(super) struct Completions {
    /// The shell
    #[arg(value_enum)]
    pub(super) shell: clap_complete::Shell,
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_contradicts_itself_nowhere() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_command_and_option_says_what_it_is() {
        fn walk(command: &clap::Command) {
            assert!(
                command.get_about().is_some(),
                "{} has no help",
                command.get_name()
            );
            for arg in command.get_arguments() {
                assert!(
                    arg.get_help().is_some(),
                    "{} {} has no help",
                    command.get_name(),
                    arg.get_id()
                );
            }
            command.get_subcommands().for_each(walk);
        }
        walk(&Cli::command());
    }

    #[test]
    fn help_shows_the_first_minutes_and_the_exit_codes() {
        let help = Cli::command().render_help().to_string();
        assert!(help.contains("vbm launch tiny web1 --network lan") && help.contains("Exit codes:"));
    }

    #[test]
    fn waiting_and_not_waiting_exclude_each_other() {
        assert!(Cli::try_parse_from(["vbm", "start", "a", "--wait", "--async"]).is_err());
    }
}
