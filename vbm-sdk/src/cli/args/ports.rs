//! What may be typed after `vbm port limit` and `vbm floating-ip`.

use super::Belonging;
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

#[derive(Debug, Args)]
#[command(after_help = "\
For a virtual router, a shared service address, or containers with addresses of their own. What a
VM may use is given to no other. An address is one of IPv4 or IPv6 or a subnet, with =MAC where it
goes with another MAC than the port's.

Examples:
  vbm port allow web1 10.0.0.200                    as does web2: whoever answers has it
  vbm port allow router1 172.16.0.0/16 --network lan
  vbm port allow web1 10.0.0.201=00:00:5e:00:01:01
  vbm port deny web1 10.0.0.200")]
pub(in crate::cli) struct PortAddresses {
    /// The VM
    pub(in crate::cli) vm: String,
    /// Addresses or subnets, each with =MAC where it has its own
    #[arg(required = true, value_name = "ADDRESS")]
    pub(in crate::cli) addresses: Vec<String>,
    /// Its NIC on this network; needed where it has several
    #[arg(long, value_name = "NETWORK")]
    pub(in crate::cli) network: Option<String>,
}

#[derive(Debug, Subcommand)]
pub(in crate::cli) enum FloatingIp {
    /// Keep an address of the world, whether or not a VM has it
    Create(FloatingCreate),
    /// List floating IPs: those that are kept, and those that were only attached
    #[command(alias = "ls")]
    List(Belonging),
    /// Show one that is kept
    #[command(alias = "info")]
    Show(FloatingShow),
    /// Make a floating IP lead to a VM, and the VM be seen by it
    Attach(FloatingAttach),
    /// Let a floating IP lead nowhere; one that is kept stays
    Detach(FloatingDetach),
    /// Keep addresses no more; refused for those that a VM has
    #[command(alias = "rm")]
    Delete(FloatingDelete),
    /// Show or say from which addresses `create` picks
    Pool(FloatingPoolArgs),
}

#[derive(Debug, Args)]
#[command(after_help = "\
What is kept stays when its VM is deleted, until `vbm floating-ip delete`. An address that a VM has
already is kept for it.

Examples:
  vbm floating-ip create 192.0.2.50 --name shop
  vbm floating-ip create                            the first free one of the pool")]
pub(in crate::cli) struct FloatingCreate {
    /// The address; one of the pool when left out
    pub(in crate::cli) address: Option<String>,
    /// Its name; made up when left out
    #[arg(long)]
    pub(in crate::cli) name: Option<String>,
}

#[derive(Debug, Args)]
pub(in crate::cli) struct FloatingShow {
    /// Its name, id or address
    pub(in crate::cli) floating_ip: String,
}

#[derive(Debug, Args)]
#[command(after_help = "\
The address must lead to the VM's host: of a subnet that the host is on, where it answers ARP
for it, or routed to the host. One that is not kept is given back when it is detached or its VM
is deleted. The VM's groups still decide what may come in.

Examples:
  vbm floating-ip attach shop web1
  vbm floating-ip attach 192.0.2.50 web1 --network lan")]
pub(in crate::cli) struct FloatingAttach {
    /// The name of one that is kept, or an address
    pub(in crate::cli) floating_ip: String,
    /// The VM
    pub(in crate::cli) vm: String,
    /// Its NIC on this network; needed where it has several
    #[arg(long, value_name = "NETWORK")]
    pub(in crate::cli) network: Option<String>,
}

#[derive(Debug, Args)]
pub(in crate::cli) struct FloatingDetach {
    /// The floating IP, by its name or address; or the VM that has it
    #[arg(value_name = "FLOATING_IP|VM")]
    pub(in crate::cli) from: String,
    /// Of a VM: its NIC on this network; needed where it has several
    #[arg(long, value_name = "NETWORK")]
    pub(in crate::cli) network: Option<String>,
}

#[derive(Debug, Args)]
pub(in crate::cli) struct FloatingDelete {
    /// Their names, ids or addresses
    #[arg(required = true, value_name = "FLOATING_IP")]
    pub(in crate::cli) floating_ips: Vec<String>,
}

#[derive(Debug, Args)]
#[command(after_help = "\
What is named replaces the pool that was; what is kept stays.

Examples:
  vbm floating-ip pool                              show it
  vbm floating-ip pool 192.0.2.32-192.0.2.63 198.51.100.7
  vbm floating-ip pool none                         each floating IP is named")]
pub(in crate::cli) struct FloatingPoolArgs {
    /// FIRST-LAST or one address, or none; shows the pool when left out
    #[arg(value_name = "RANGE")]
    pub(in crate::cli) ranges: Vec<String>,
}
