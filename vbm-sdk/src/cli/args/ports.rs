//! What may be typed after `vbm port limit` and `vbm floating-ip`.

use clap::{Args, Subcommand};

#[derive(Debug, Args)]
#[command(after_help = "\
What is not named stays as it is. A rate is that of Ethernet frames.

Examples:
  vbm port limit web1 --in 100mbit --out 20mbit
  vbm port limit web1 --connections 500 --network lan
  vbm port limit web1 --in none --out none --connections none")]
pub(in crate::cli) struct PortLimit {
    /// The VM
    pub(in crate::cli) vm: String,
    /// Only its NIC on this network; needed where it has several
    #[arg(long, value_name = "NETWORK")]
    pub(in crate::cli) network: Option<String>,
    /// The most that reaches the VM in a second: a number with kbit, mbit or gbit, or none
    #[arg(long = "in", value_name = "RATE")]
    pub(in crate::cli) into: Option<String>,
    /// The most that the VM sends in a second: a number with kbit, mbit or gbit, or none
    #[arg(long = "out", value_name = "RATE")]
    pub(in crate::cli) out: Option<String>,
    /// The most connections at one time, both ways together: a number, or none
    #[arg(long, value_name = "COUNT")]
    pub(in crate::cli) connections: Option<String>,
}

#[derive(Debug, Subcommand)]
pub(in crate::cli) enum FloatingIp {
    /// Make an address of the world lead to a VM, and the VM be seen by it
    Attach(FloatingAttach),
    /// Take the floating IP of a VM away
    Detach(FloatingDetach),
    /// List floating IPs
    #[command(alias = "ls")]
    List,
}

#[derive(Debug, Args)]
#[command(after_help = "\
The address must be one that leads to the VM's host: of a subnet of the host's, where the host answers ARP for it, or routed to
the host. The VM's groups still decide what may come in.

Examples:
  vbm floating-ip attach 192.0.2.50 web1
  vbm floating-ip attach 192.0.2.50 web1 --network lan")]
pub(in crate::cli) struct FloatingAttach {
    /// The address
    pub(in crate::cli) address: String,
    /// The VM
    pub(in crate::cli) vm: String,
    /// Its NIC on this network; needed where it has several
    #[arg(long, value_name = "NETWORK")]
    pub(in crate::cli) network: Option<String>,
}

#[derive(Debug, Args)]
pub(in crate::cli) struct FloatingDetach {
    /// The VM
    pub(in crate::cli) vm: String,
    /// Its NIC on this network; needed where it has several
    #[arg(long, value_name = "NETWORK")]
    pub(in crate::cli) network: Option<String>,
}
