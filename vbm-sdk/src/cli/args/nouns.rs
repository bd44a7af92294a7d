//! `vbm NOUN VERB`.

use super::ports::{PortAddresses, PortLimit};
use clap::{Args, Subcommand};
use std::path::PathBuf;

#[derive(Debug, Subcommand)]
pub(in crate::cli) enum Network {
    /// Make a network
    Create(Box<NetworkCreate>),
    /// List networks
    #[command(alias = "ls")]
    List,
    /// Show all about a network, and how many of its addresses are used
    #[command(alias = "show")]
    Info(OneNetwork),
    /// Change who gets which of its addresses from now on; ports keep theirs
    Update(NetworkUpdate),
    /// Delete networks that have no ports
    #[command(alias = "rm")]
    Delete(SomeNetworks),
    /// Show who has which address, and since when
    Leases(OneNetwork),
}

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  vbm network create lan 10.0.0.0/24
  vbm network create lab 10.1.0.0/24 --mode isolated --pool 10.1.0.100-10.1.0.200 --domain lab.example
  vbm network create web 10.2.0.0/24 --exclude 10.2.0.200-10.2.0.254 --reserve 10.2.0.9=52:54:00:ab:cd:ef --quarantine 5m
  vbm network create six 10.3.0.0/24 --ipv6 fd00:3::/64
  vbm network create dmz 203.0.113.0/26 --mode routed
  vbm network create office 192.168.1.0/24 --mode bridged --uplink br-lan --pool 192.168.1.200-192.168.1.239
  vbm network create far 10.2.0.0/24 --ntp 10.2.0.3 --route 10.9.0.0/16=10.2.0.7")]
pub(in crate::cli) struct NetworkCreate {
    /// Its name
    pub(in crate::cli) name: String,
    /// Its addresses, such as 10.0.0.0/24
    pub(in crate::cli) cidr: String,
    /// How it meets the world: nat, isolated, routed (as it is, by the host's routes) or bridged (on the LAN of --uplink)
    #[arg(long, value_name = "MODE", default_value = "nat")]
    pub(in crate::cli) mode: String,
    /// The host's interface that it goes by: of a bridged network a bridge, or an interface without addresses; of a routed one the only
    /// way in and out
    #[arg(long, value_name = "INTERFACE")]
    pub(in crate::cli) uplink: Option<String>,
    /// VBM tells the VMs of a bridged network their addresses, instead of the LAN's own DHCP server
    #[arg(long)]
    pub(in crate::cli) serve_dhcp: bool,
    /// The gateway's address; the first usable one when left out. Of a bridged network the LAN's router
    #[arg(long, value_name = "IP")]
    pub(in crate::cli) gateway: Option<String>,
    #[command(flatten)]
    pub(in crate::cli) plan: AddressPlan,
    /// Its IPv6 addresses, such as fd00:1::/64; none when left out
    #[arg(long, value_name = "CIDR")]
    pub(in crate::cli) ipv6: Option<String>,
    /// The gateway's IPv6 address; the first usable one when left out
    #[arg(long, value_name = "IP", requires = "ipv6")]
    pub(in crate::cli) gateway6: Option<String>,
    /// VMs make their IPv6 addresses themselves, of the prefix and their MAC, instead of asking for them
    #[arg(long, requires = "ipv6")]
    pub(in crate::cli) stateless6: bool,
    /// A DNS server to tell VMs of by IPv6; may be repeated
    #[arg(long = "dns6", value_name = "IP", requires = "ipv6")]
    pub(in crate::cli) dns6: Vec<String>,
    /// A DNS server to tell VMs of; may be repeated
    #[arg(long = "dns", value_name = "IP")]
    pub(in crate::cli) dns: Vec<String>,
    /// The domain to tell VMs of
    #[arg(long, value_name = "DOMAIN")]
    pub(in crate::cli) domain: Option<String>,
    /// The MTU in bytes
    #[arg(long, value_name = "BYTES")]
    pub(in crate::cli) mtu: Option<u16>,
    /// How long a lease lasts, such as 1h
    #[arg(long, value_name = "SPAN")]
    pub(in crate::cli) lease: Option<String>,
    /// A time server to tell VMs of; may be repeated
    #[arg(long = "ntp", value_name = "IP")]
    pub(in crate::cli) ntp: Vec<String>,
    /// A domain in which VMs search names; may be repeated
    #[arg(long = "search", value_name = "DOMAIN")]
    pub(in crate::cli) search: Vec<String>,
    /// A route to tell VMs of, such as 10.9.0.0/16=10.0.0.7; may be repeated
    #[arg(long = "route", value_name = "CIDR=IP")]
    pub(in crate::cli) routes: Vec<String>,
    /// The file that VMs boot from the network
    #[arg(long, value_name = "FILE")]
    pub(in crate::cli) boot_file: Option<String>,
    /// The server that has it
    #[arg(long, value_name = "IP")]
    pub(in crate::cli) boot_server: Option<String>,
    /// The gateway answers no DNS
    #[arg(long)]
    pub(in crate::cli) no_dns: bool,
    /// A DNS server that the gateway asks; may be repeated; those of the host when left out
    #[arg(long = "dns-upstream", value_name = "IP")]
    pub(in crate::cli) dns_upstreams: Vec<String>,
    /// The metadata service of its VMs: off, token (as EC2's IMDSv2) or open; token when left out, and off where there is none
    #[arg(long, value_name = "MODE")]
    pub(in crate::cli) metadata: Option<String>,
}

/// Who gets which address.
#[derive(Debug, Args)]
pub(in crate::cli) struct AddressPlan {
    /// The addresses for VMs that ask for none, IPv4 or IPv6; may be repeated; all usable ones when left out
    #[arg(long = "pool", value_name = "FIRST-LAST")]
    pub(in crate::cli) pools: Vec<String>,
    /// Addresses that no VM gets, IPv4 or IPv6; may be repeated
    #[arg(long = "exclude", value_name = "RANGE")]
    pub(in crate::cli) excluded: Vec<String>,
    /// An address for the NIC with this MAC or, without one, for who asks for it; may be repeated
    #[arg(long = "reserve", value_name = "IP[=MAC]")]
    pub(in crate::cli) reservations: Vec<String>,
    /// How long an address rests after its VM was deleted, such as 5m; not at all when left out
    #[arg(long, value_name = "SPAN")]
    pub(in crate::cli) quarantine: Option<String>,
}

#[derive(Debug, Args)]
#[command(after_help = "\
What is given replaces all that was, of IPv4 and IPv6 each; `none` leaves nothing of it.

Examples:
  vbm network update lan --pool 10.0.0.10-10.0.0.99 --pool 10.0.0.150-10.0.0.199
  vbm network update lan --exclude none --quarantine 0s")]
pub(in crate::cli) struct NetworkUpdate {
    /// The network
    pub(in crate::cli) network: String,
    #[command(flatten)]
    pub(in crate::cli) plan: AddressPlan,
}

#[derive(Debug, Args)]
pub(in crate::cli) struct OneNetwork {
    /// The network
    pub(in crate::cli) network: String,
}

#[derive(Debug, Args)]
pub(in crate::cli) struct SomeNetworks {
    /// The networks
    #[arg(required = true, value_name = "NETWORK")]
    pub(in crate::cli) networks: Vec<String>,
}

#[derive(Debug, Subcommand)]
pub(in crate::cli) enum Snapshot {
    /// Take a snapshot: of the disks when the VM is off, of disks and memory when it runs
    Create(SnapshotCreate),
    /// List the snapshots of a VM, as the tree that they are
    #[command(alias = "ls")]
    List(SnapshotsOf),
    /// Show all about a snapshot
    Info(OneSnapshot),
    /// Go back to a snapshot: what the VM had since then is lost
    #[command(aliases = ["restore", "rollback"])]
    Revert(OneSnapshot),
    /// Delete snapshots; the VM stays as it is, and may run
    #[command(alias = "rm")]
    Delete(SomeSnapshots),
}

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  vbm snapshot create web1                    named snap0, snap1 and so on
  vbm snapshot create web1 before-upgrade
  vbm snapshot create web1 --no-memory        the disks alone, as after a power cut
  vbm snapshot create web1 --no-memory --freeze
                                              the guest writes all that it has, or none is taken
  vbm snapshot revert web1 before-upgrade     as it was: it runs again when it ran then")]
pub(in crate::cli) struct SnapshotCreate {
    /// The VM
    pub(in crate::cli) vm: String,
    /// Its name, unique within the VM; made up when left out
    pub(in crate::cli) name: Option<String>,
    /// Free text for you and your programs; may be repeated
    #[arg(long = "label", value_name = "KEY=VALUE")]
    pub(in crate::cli) labels: Vec<String>,
    /// Leave out the memory of a VM that runs: after a revert it is off
    #[arg(long)]
    pub(in crate::cli) no_memory: bool,
    /// Let the guest's agent write out and freeze its file systems: `required` (or no snapshot is taken) or `if-possible`
    #[arg(long, value_name = "HOW", num_args = 0..=1, require_equals = true, default_missing_value = "required",
        value_parser = ["required", "if-possible"], requires = "no_memory")]
    pub(in crate::cli) freeze: Option<String>,
}

#[derive(Debug, Args)]
pub(in crate::cli) struct SnapshotsOf {
    /// The VM
    pub(in crate::cli) vm: String,
}

#[derive(Debug, Args)]
pub(in crate::cli) struct OneSnapshot {
    /// The VM
    pub(in crate::cli) vm: String,
    /// The snapshot
    pub(in crate::cli) snapshot: String,
}

#[derive(Debug, Args)]
pub(in crate::cli) struct SomeSnapshots {
    /// The VM
    pub(in crate::cli) vm: String,
    /// The snapshots
    #[arg(required = true, value_name = "SNAPSHOT")]
    pub(in crate::cli) snapshots: Vec<String>,
}

#[derive(Debug, Subcommand)]
pub(in crate::cli) enum Port {
    /// List ports
    #[command(alias = "ls")]
    List(Belonging),
    /// Limit what a VM's port may carry, running or not
    Limit(PortLimit),
    /// Let a VM use addresses beside its own, running or not
    Allow(PortAddresses),
    /// Let a VM no more use addresses beside its own
    Deny(PortAddresses),
}

#[derive(Debug, Subcommand)]
pub(in crate::cli) enum Net {
    /// Show whether a packet passes, its path, and the group and rule that decide
    Trace(NetTrace),
    /// Show what each node would change of a network now; changes nothing
    Plan(OneNetwork),
    /// Try every path between the networks of each node with real packets; fails when one is there that may not be
    Check,
    /// Show what passed each port of a network, and what each rule let begin
    Counters(OneNetwork),
}

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  vbm net trace web1 db1 tcp/5432
  vbm net trace 192.0.2.9 web1 tcp/80         by a forward
  vbm net trace web1 10.0.0.1 icmp/type=8 --network lan")]
pub(in crate::cli) struct NetTrace {
    /// Who sends: a VM or an address
    pub(in crate::cli) from: String,
    /// Who shall receive: a VM or an address
    pub(in crate::cli) to: String,
    /// What is sent: PROTOCOL[/PORT], or icmp/type=8
    #[arg(value_name = "WHAT")]
    pub(in crate::cli) what: String,
    /// The network; found by the VMs when left out
    #[arg(long, value_name = "NETWORK")]
    pub(in crate::cli) network: Option<String>,
}

#[derive(Debug, Default, Args)]
pub(in crate::cli) struct Belonging {
    /// Only those of this network
    #[arg(long, value_name = "NETWORK")]
    pub(in crate::cli) network: Option<String>,
    /// Only those of this VM
    #[arg(long, value_name = "VM")]
    pub(in crate::cli) vm: Option<String>,
}

#[derive(Debug, Subcommand)]
pub(in crate::cli) enum Group {
    /// Make a group; without rules it lets nothing in
    Create(GroupRules),
    /// List groups
    #[command(alias = "ls")]
    List,
    /// Show all about a group
    Info(OneGroup),
    /// Delete groups that no port uses
    #[command(alias = "rm")]
    Delete(SomeGroups),
    /// Add rules, also for VMs that run
    Allow(GroupSomeRules),
    /// Take rules away, also for VMs that run
    Deny(GroupSomeRules),
    /// Put a VM into a group, running or not
    Attach(GroupVm),
    /// Take a VM out of a group, running or not
    Detach(GroupVm),
}

const RULES: &str = "\
A rule is [egress:]PROTOCOL[/PORTS][@PEER]:
  tcp/80                    TCP port 80, from anywhere
  udp/5000-5010@10.0.0.0/8  UDP ports 5000 to 5010, from there only
  icmp                      ping and all else of ICMP; icmp/type=8 is ping alone, icmpv6 is of IPv6
  any@self                  everything, from members of the same group
  tcp/5432@group:web        TCP port 5432, from members of the group web
  egress:tcp/443@fd00::/8   out, to there; with an egress rule nothing else may leave

The group 'default' is made when it is first named: its members reach each other and everything else.";

#[derive(Debug, Args)]
#[command(after_help = RULES)]
pub(in crate::cli) struct GroupRules {
    /// The group
    pub(in crate::cli) group: String,
    /// What may come in, or with egress: go out
    #[arg(value_name = "RULE")]
    pub(in crate::cli) rules: Vec<String>,
    /// Let nothing out that no egress rule allows, also without such a rule
    #[arg(long)]
    pub(in crate::cli) egress_closed: bool,
}

#[derive(Debug, Args)]
#[command(after_help = RULES)]
pub(in crate::cli) struct GroupSomeRules {
    /// The group
    pub(in crate::cli) group: String,
    /// What may come in, or with egress: go out
    #[arg(required = true, value_name = "RULE")]
    pub(in crate::cli) rules: Vec<String>,
}

#[derive(Debug, Args)]
pub(in crate::cli) struct OneGroup {
    /// The group
    pub(in crate::cli) group: String,
}

#[derive(Debug, Args)]
pub(in crate::cli) struct SomeGroups {
    /// The groups
    #[arg(required = true, value_name = "GROUP")]
    pub(in crate::cli) groups: Vec<String>,
}

#[derive(Debug, Args)]
pub(in crate::cli) struct GroupVm {
    /// The group
    pub(in crate::cli) group: String,
    /// The VM
    pub(in crate::cli) vm: String,
    /// Only its NICs on this network
    #[arg(long, value_name = "NETWORK")]
    pub(in crate::cli) network: Option<String>,
}

#[derive(Debug, Subcommand)]
pub(in crate::cli) enum Forward {
    /// Make a port of the host lead to a VM
    Create(ForwardCreate),
    /// List forwards
    #[command(alias = "ls")]
    List(Belonging),
    /// Delete forwards
    #[command(alias = "rm")]
    Delete(SomeForwards),
}

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  vbm forward create web1 8080:80
  vbm forward create web1 127.0.0.1:8080:80
  vbm forward create dns1 5353:53/udp
  vbm forward create sip1 10000-10099:10000-10099/udp     ports in step")]
pub(in crate::cli) struct ForwardCreate {
    /// The VM it leads to
    pub(in crate::cli) vm: String,
    /// From which port of the host to which port of the VM
    #[arg(value_name = "[ADDRESS:]HOSTPORT:VMPORT[/udp]")]
    pub(in crate::cli) ports: String,
    /// Its name; made up when left out
    #[arg(long, value_name = "NAME")]
    pub(in crate::cli) name: Option<String>,
    /// Through which of the VM's networks; needed when it has several
    #[arg(long, value_name = "NETWORK")]
    pub(in crate::cli) network: Option<String>,
}

#[derive(Debug, Args)]
pub(in crate::cli) struct SomeForwards {
    /// The forwards
    #[arg(required = true, value_name = "FORWARD")]
    pub(in crate::cli) forwards: Vec<String>,
}

#[derive(Debug, Subcommand)]
pub(in crate::cli) enum Volume {
    /// List volumes
    #[command(alias = "ls")]
    List(VolumeList),
}

#[derive(Debug, Args)]
pub(in crate::cli) struct VolumeList {
    /// Only those of this VM
    #[arg(long, value_name = "VM")]
    pub(in crate::cli) vm: Option<String>,
}

#[derive(Debug, Subcommand)]
pub(in crate::cli) enum Image {
    /// Make an image of files
    Import(ImageImport),
    /// List images
    #[command(alias = "ls")]
    List,
    /// Show all about an image
    Info(OneImage),
    /// Write an image into a file
    Export(ImageExport),
    /// Delete images that no VM uses
    #[command(alias = "rm")]
    Delete(SomeImages),
}

#[derive(Debug, Args)]
#[command(
    after_help = "\
Examples:
  vbm image import debian --disk debian-12.qcow2
  vbm image import debian --disk https://HOST/debian-12.qcow2 --sha256 HEX    goes on where it broke off
  vbm image import old --disk appliance.vmdk   from VMware or VirtualBox: kept as qcow2
  vbm image import tiny --guest DIR            a directory that `cargo xtask guest` made
  vbm image import fast --disk disk.raw --kernel vmlinuz --initrd initrd.gz --cmdline 'console=ttyS0'",
    group(clap::ArgGroup::new("source").required(true).args(["disk", "guest"])),
)]
pub(in crate::cli) struct ImageImport {
    /// Its name
    pub(in crate::cli) name: String,
    /// The file of its disk, or its address on the web
    #[arg(long, value_name = "FILE|URL")]
    pub(in crate::cli) disk: Option<PathBuf>,
    /// The format of the disk: qcow2, raw, vdi or vmdk; recognised when left out
    #[arg(long, value_name = "FORMAT", requires = "disk", value_parser = ["qcow2", "raw", "vdi", "vmdk"])]
    pub(in crate::cli) format: Option<String>,
    /// What the SHA-256 of that file must be
    #[arg(long, value_name = "HEX", requires = "disk")]
    pub(in crate::cli) sha256: Option<String>,
    /// A kernel to boot instead of the disk's boot loader
    #[arg(long, value_name = "FILE", requires_all = ["disk", "initrd"])]
    pub(in crate::cli) kernel: Option<PathBuf>,
    /// The kernel's initial RAM disk
    #[arg(long, value_name = "FILE", requires = "kernel")]
    pub(in crate::cli) initrd: Option<PathBuf>,
    /// The kernel's command line
    #[arg(
        long,
        value_name = "TEXT",
        requires = "kernel",
        default_value = "console=ttyS0"
    )]
    pub(in crate::cli) cmdline: String,
    /// A directory with guest.json, as `cargo xtask guest` makes it
    #[arg(long, value_name = "DIR")]
    pub(in crate::cli) guest: Option<PathBuf>,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  vbm image export debian debian.qcow2
  vbm image export debian debian.vdi --format vdi    for VirtualBox")]
pub(in crate::cli) struct ImageExport {
    /// The image
    pub(in crate::cli) image: String,
    /// The new file
    pub(in crate::cli) file: PathBuf,
    /// The format of the file: qcow2, raw or vdi; the one it is kept in when left out
    #[arg(long, value_name = "FORMAT", value_parser = ["qcow2", "raw", "vdi"])]
    pub(in crate::cli) format: Option<String>,
}

#[derive(Debug, Args)]
pub(in crate::cli) struct OneImage {
    /// The image
    pub(in crate::cli) image: String,
}

#[derive(Debug, Args)]
pub(in crate::cli) struct SomeImages {
    /// The images
    #[arg(required = true, value_name = "IMAGE")]
    pub(in crate::cli) images: Vec<String>,
}

#[derive(Debug, Subcommand)]
pub(in crate::cli) enum Node {
    /// List nodes
    #[command(alias = "ls")]
    List,
    /// Show all about a node
    Info(OneNode),
}

#[derive(Debug, Args)]
pub(in crate::cli) struct OneNode {
    /// The node: its path
    pub(in crate::cli) node: String,
}

#[derive(Debug, Subcommand)]
pub(in crate::cli) enum Operation {
    /// List operations
    #[command(alias = "ls")]
    List,
    /// Show all about an operation
    Info(OneOperation),
    /// Wait until an operation is over
    Wait(OneOperation),
}

#[derive(Debug, Args)]
pub(in crate::cli) struct OneOperation {
    /// The operation
    pub(in crate::cli) operation: String,
}

/// Where a cluster on this machine is.
#[derive(Debug, Args)]
pub(in crate::cli) struct DevPlace {
    /// Where everything of the cluster is
    #[arg(
        long,
        env = "VBM_DEV_DIR",
        value_name = "DIR",
        default_value = "/var/lib/vbm-dev"
    )]
    pub(in crate::cli) dir: PathBuf,
}

#[derive(Debug, Subcommand)]
pub(in crate::cli) enum Dev {
    /// Make a cluster: Redis, controllers, nodes
    Up(DevUp),
    /// Show its members
    Status(DevPlace),
    /// End it with everything in it, VMs included
    Down(DevDown),
    /// Start a member that ended
    Start(DevMember),
    /// End a member politely
    Stop(DevMember),
    /// Kill a member, as a crash does
    Kill(DevMember),
    /// Cut a node off from the others
    Cut(DevMember),
    /// Join a node again that was cut off
    Mend(DevMember),
}

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  sudo vbm dev up --nodes 2
  sudo vbm dev up --nodes 3 --controllers 3 --driver sim --network sim --dir /tmp/cluster")]
pub(in crate::cli) struct DevUp {
    #[command(flatten)]
    pub(in crate::cli) place: DevPlace,
    /// How many nodes
    #[arg(long, value_name = "N", default_value_t = 2)]
    pub(in crate::cli) nodes: u8,
    /// How many controllers
    #[arg(long, value_name = "N", default_value_t = 2)]
    pub(in crate::cli) controllers: u8,
    /// The hypervisor of the nodes; that of vbmd when left out
    #[arg(long, value_name = "DRIVER")]
    pub(in crate::cli) driver: Option<String>,
    /// Where the nodes make networks: host or sim; that of vbmd when left out
    #[arg(long, value_name = "WHERE")]
    pub(in crate::cli) network: Option<String>,
}

#[derive(Debug, Args)]
pub(in crate::cli) struct DevDown {
    #[command(flatten)]
    pub(in crate::cli) place: DevPlace,
    /// Leave logs and data in the directory
    #[arg(long)]
    pub(in crate::cli) keep: bool,
}

#[derive(Debug, Args)]
pub(in crate::cli) struct DevMember {
    /// Its name: redis, c1, n1, ...
    pub(in crate::cli) member: String,
    #[command(flatten)]
    pub(in crate::cli) place: DevPlace,
}

#[derive(Debug, Subcommand)]
pub(in crate::cli) enum Web {
    /// Print a link that logs a browser on this machine in, once, within ten minutes
    Login,
}
