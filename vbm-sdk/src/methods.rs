//! What controllers and agents say to each other over the bus.
//!
//! ```text
//!   controller --- network.*, vm.*, console.* ---> agent
//!   controller <-- node.report, vm.report, port.report, image.read --------------------------------- agent
//! ```
//!
//! Desired state travels whole and is idempotent: a lost or doubled message does no harm, the next one
//! heals it. What an agent does not know it asks for by reporting itself with a new boot id.

use crate::api::{ConsoleKind, Counted, TriedPath};
use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use std::{
    collections::BTreeMap,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
    time::Duration,
};
use vbm_core::{
    AddressPair, Boot, Capability, Consistency, Digest, DiskFormat, DriverKind, Epoch, Error, ForwardId,
    Freeze, Generation, GroupId, GroupSpec, GuestData, Mac, MissingFacet, Name, NetworkId, NetworkSpec,
    NetworkStatus, NodePath, OperationId, PortId, PortLimits, PowerState, Protocol, Rule, SnapshotContent,
    SnapshotId, Timestamp, Uplink, VmId, VmRevert, VmStatus, VolumeId, WantedPower,
};
use vbm_hyper::{Landing, MachineFacts, MoveCheck, MoveOptions};
use vbm_rpc::{Method, StreamMethod};

/// The service that controllers offer on the bus.
pub const CONTROLLER_SERVICE: &str = "controller";
/// The service that agents offer on the bus.
pub const AGENT_SERVICE: &str = "agent";
/// How much of a file one answer of `image.read` carries: well under the bus's frame, few calls for an image.
pub const IMAGE_CHUNK_BYTES: u32 = 512 * 1024;
/// How often an agent reports itself, in seconds.
pub const REPORT_EVERY: Duration = Duration::from_secs(5);
/// A node that was silent so long counts as lost.
pub const LOST_AFTER: Duration = Duration::from_secs(16);
/// The most of a console that one item of its stream carries: eight of them fill the stream's window.
pub const CONSOLE_ITEM_MAX_BYTES: usize = 64 * 1024;

/// The version of these methods. A controller takes in agents of this one and of the one before. (3: consoles are streams;
/// those of an agent of version 2 cannot be opened, everything else of it works.)
pub const PROTOCOL_VERSION: u32 = 3;

/// Controllers of earlier versions do not tell it.
const fn one_port() -> u16 {
    1
}

/// Agents of the first version do not tell it.
const fn first_protocol() -> u32 {
    1
}

macro_rules! methods {
    ($($(#[$doc:meta])* $method:ident = $name:literal: $request:ty => $reply:ty;)*) => {$(
        $(#[$doc])*
        #[derive(Debug)]
        pub struct $method;
        impl Method for $method {
            const NAME: &'static str = $name;
            type Request = $request;
            type Reply = $reply;
        }
    )*};
}

methods! {
    /// Makes a network on the node what it shall be.
    NetworkEnsure = "network.ensure": WantedNetwork => NetworkStatus;
    /// Takes a network off the node.
    NetworkRemove = "network.remove": NetworkId => ();
    /// What [`NetworkEnsure`] would change now, a line each.
    NetworkForesee = "network.foresee": WantedNetwork => Vec<String>;
    /// What passed on a network of the node.
    NetworkCount = "network.count": NetworkId => CountedNetwork;
    /// Tries every path between the networks of the node.
    NetworkCheck = "network.check": () => Vec<TriedPath>;
    /// Tells the node what a VM shall be; the node goes there by itself and reports as it goes.
    VmEnsure = "vm.ensure": WantedVm => VmStatus;
    /// Takes a VM and its disk off the node, at once.
    VmRemove = "vm.remove": GoneVm => ();
    /// Prepares the node to take in a VM that runs elsewhere. The answer says where its memory is to be sent to.
    VmReceive = "vm.receive": ReceiveVm => Receiving;
    /// Begins to send a VM away; [`VmLook`] tells how it goes.
    VmSend = "vm.send": SendVm => ();
    /// How far a VM is on this node, whether it comes, goes or stays.
    VmLook = "vm.look": LookAt => LookedAt;
    /// Lets a VM go on here that has come whole, with a copy of its disk: its source has let go of it, or runs it no more.
    VmFinish = "vm.finish": VmId => ();
    /// What a VM on this node is, and what stands in the way of its leaving; nothing is changed.
    VmCheckLeave = "vm.check-leave": CheckLeave => CheckedLeave;
    /// What stands in the way of taking a VM in; nothing is changed.
    VmCheckArrive = "vm.check-arrive": CheckArrive => Vec<MoveCheck>;
    /// Gives up waiting for a VM that should have come.
    VmAbandon = "vm.abandon": GoneVm => ();
    /// The flows of a NIC, which may go with it to another node.
    NicFlowsOf = "nic.flows": WantedNic => NicFlows;
    /// Takes in flows that came with a NIC from another node: those that its groups would let begin.
    NicTakeFlows = "nic.take-flows": NicFlows => ();
    /// Presses the reset button.
    VmReset = "vm.reset": VmId => ();
    /// A picture of the screen, as PNG.
    VmScreenshot = "vm.screenshot": VmId => Bytes;
    /// The newest part of the serial console's log.
    ConsoleLog = "console.log": ConsoleLogRequest => Bytes;
    /// Opens a console, the serial line or the screen, or goes on with one: a stream of what it says. It ends well when the
    /// VM's side ends.
    ConsoleOpen = "console.open": ConsoleOpenRequest => ();
    /// Types, points and clicks.
    ConsoleWrite = "console.write": ConsoleInput => ();
    /// Closes a console.
    ConsoleClose = "console.close": ConsoleId => ();
    /// An agent tells of itself; the answer says what it shall hold.
    NodeReport = "node.report": NodeReportRequest => NodeReportReply;
    /// An agent tells of its VMs.
    VmReport = "vm.report": VmReportRequest => ();
    /// An agent tells of a lease.
    PortReport = "port.report": PortReportRequest => ();
    /// A part of a file that an image is made of. A controller that lacks it passes on what another one has.
    ImageRead = "image.read": ImageReadRequest => Bytes;
}

impl StreamMethod for ConsoleOpen {
    type Item = ConsoleItem;
}

/// Bytes that travel as bytes, not as a list of numbers.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Bytes(pub Vec<u8>);

impl Serialize for Bytes {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_bytes(&self.0)
    }
}
impl<'de> Deserialize<'de> for Bytes {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl<'de> serde::de::Visitor<'de> for Visitor {
            type Value = Bytes;
            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("bytes")
            }
            fn visit_bytes<E: serde::de::Error>(self, bytes: &[u8]) -> Result<Bytes, E> {
                Ok(Bytes(bytes.to_vec()))
            }
            fn visit_byte_buf<E: serde::de::Error>(self, bytes: Vec<u8>) -> Result<Bytes, E> {
                Ok(Bytes(bytes))
            }
            fn visit_seq<A: serde::de::SeqAccess<'de>>(self, mut seq: A) -> Result<Bytes, A::Error> {
                let mut bytes = Vec::new();
                while let Some(byte) = seq.next_element()? {
                    bytes.push(byte);
                }
                Ok(Bytes(bytes))
            }
        }
        deserializer.deserialize_bytes(Visitor)
    }
}

/// A network as a node shall have it: with the ports of this node's VMs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WantedNetwork {
    /// Its id.
    pub id: NetworkId,
    /// Its name.
    pub name: Name,
    /// The generation of its record.
    pub generation: Generation,
    /// Its spec.
    pub spec: NetworkSpec,
    /// The ports of this node's VMs.
    pub ports: Vec<WantedPort>,
    /// The forwards to those ports.
    pub forwards: Vec<WantedForward>,
    /// How it reaches its ports on other nodes; `None`: it is on this node alone.
    #[serde(default)]
    pub overlay: Option<WantedOverlay>,
    /// The groups that its ports are in, and those that their rules speak of.
    #[serde(default)]
    pub groups: Vec<WantedGroup>,
}

/// A security group, as far as a network on a node is concerned.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WantedGroup {
    /// Its id.
    pub id: GroupId,
    /// Its name.
    pub name: Name,
    /// Its rules.
    pub spec: GroupSpec,
    /// The addresses of its members on other nodes, where rules of this one speak of it.
    #[serde(default)]
    pub members: Vec<IpNet>,
}

/// How a network reaches other nodes: by VXLAN.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WantedOverlay {
    /// The VXLAN network identifier.
    pub vni: u32,
    /// This node's address among the nodes.
    pub local: Ipv4Addr,
    /// All ports of the network that are on other nodes.
    pub remotes: Vec<WantedRemote>,
    /// The host names of those ports, by address.
    #[serde(default)]
    pub names: Vec<(Ipv4Addr, Name)>,
}

/// A port on another node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WantedRemote {
    /// Its MAC.
    pub mac: Mac,
    /// Its address.
    pub address: Ipv4Addr,
    /// Its IPv6 address, if it has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address6: Option<Ipv6Addr>,
    /// Its node's address among the nodes.
    pub host: Ipv4Addr,
}

/// A port as a node shall have it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WantedPort {
    /// Its id.
    pub id: PortId,
    /// Its MAC.
    pub mac: Mac,
    /// Its address.
    pub address: Ipv4Addr,
    /// Its address of the network's IPv6.
    #[serde(default)]
    pub address6: Option<Ipv6Addr>,
    /// The host name its VM is told.
    pub hostname: Name,
    /// Whether its VM is told here the way to its metadata.
    #[serde(default)]
    pub metadata_route: bool,
    /// What may reach it, beside what its groups allow.
    #[serde(default)]
    pub rules: Vec<Rule>,
    /// Its groups.
    #[serde(default)]
    pub groups: Vec<GroupId>,
    /// Addresses beside its own that it may use.
    #[serde(default)]
    pub pairs: Vec<AddressPair>,
    /// How much it may carry.
    #[serde(default)]
    pub limits: PortLimits,
    /// The address by which the world reaches it and sees it.
    #[serde(default)]
    pub floating_ip: Option<Ipv4Addr>,
}

/// What passed on a network of a node.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CountedNetwork {
    /// By port.
    pub ports: Vec<CountedPort>,
    /// By rule.
    pub rules: Vec<CountedRule>,
}

/// What passed a port.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CountedPort {
    /// Its id.
    pub port: PortId,
    /// What reached its VM.
    pub received: Counted,
    /// What its VM sent.
    pub sent: Counted,
    /// Packets to the VM that its limit dropped.
    pub received_dropped: u64,
    /// Packets of the VM that its limit dropped.
    pub sent_dropped: u64,
    /// Packets that would have begun a connection beyond its limit.
    pub connections_refused: u64,
}

/// What a rule let begin.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CountedRule {
    /// Its group.
    pub group: Option<GroupId>,
    /// The rule.
    pub rule: Rule,
    /// The packets that it let begin something.
    pub passed: Counted,
}

/// A forward as a node shall have it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WantedForward {
    /// Its id.
    pub id: ForwardId,
    /// tcp or udp.
    pub protocol: Protocol,
    /// The host's address.
    pub listen_address: Option<Ipv4Addr>,
    /// The host's port.
    pub listen_port: u16,
    /// How many ports, one beside the other, from both on.
    #[serde(default = "one_port")]
    pub count: u16,
    /// Where it goes.
    pub target: PortId,
    /// Which port there.
    pub target_port: u16,
}

/// A VM as a node shall have it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WantedVm {
    /// Its id.
    pub id: VmId,
    /// Its name.
    pub name: Name,
    /// The generation of its record.
    pub generation: Generation,
    /// Which hypervisor.
    pub driver: DriverKind,
    /// Virtual CPUs.
    pub vcpus: u16,
    /// Memory in MiB.
    pub memory_mib: u32,
    /// Its disk.
    pub root: WantedRoot,
    /// How it boots.
    pub boot: Boot,
    /// Its NICs, in order.
    pub nics: Vec<WantedNic>,
    /// The power state wanted.
    pub power: WantedPower,
    /// Whether it is left as it is, because it is on its way to another node.
    #[serde(default)]
    pub held: bool,
    /// Snapshots to be taken, in this order.
    #[serde(default)]
    pub take: Vec<SnapshotId>,
    /// Those of them that are taken without memory, and whether the guest is frozen for it.
    #[serde(default)]
    pub without_memory: BTreeMap<SnapshotId, Freeze>,
    /// Snapshots to be deleted, each with the generation in which that was asked for: asked again, it is tried again.
    #[serde(default)]
    pub drop: Vec<(SnapshotId, Generation)>,
    /// The snapshot to go back to.
    #[serde(default)]
    pub revert: Option<VmRevert>,
    /// What the guest is given to read.
    #[serde(default)]
    pub guest: GuestData,
}

/// A VM that shall go to another node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SendVm {
    /// The VM, held.
    pub vm: WantedVm,
    /// Where it is waited for.
    pub to: SocketAddr,
    /// The same in full; an older controller names the address only.
    #[serde(default)]
    pub landing: Option<Landing>,
    /// What it is moved with.
    #[serde(default)]
    pub options: MoveOptions,
}

/// A VM that shall come from another node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReceiveVm {
    /// The VM.
    #[serde(flatten)]
    pub vm: WantedVm,
    /// What it is moved with.
    #[serde(default)]
    pub options: MoveOptions,
}

/// Asks whether a VM can leave.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CheckLeave {
    /// The VM.
    pub vm: VmId,
    /// What it would be moved with.
    pub options: MoveOptions,
}

/// What a VM that may leave is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CheckedLeave {
    /// What a destination must be able to make.
    pub machine: MachineFacts,
    /// What was looked at.
    pub checks: Vec<MoveCheck>,
}

/// Asks whether a VM can be taken in.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CheckArrive {
    /// The VM.
    pub vm: WantedVm,
    /// What it is where it runs.
    pub machine: MachineFacts,
    /// What it would be moved with.
    pub options: MoveOptions,
}

/// How far a move is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MoveProgress {
    /// What is sent: `disks` or `memory`.
    pub phase: String,
    /// How much of it, in bytes.
    pub done: u64,
    /// Of how much, as far as that is known.
    pub total: u64,
}

/// A node that waits for a VM.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Receiving {
    /// Where its memory is to be sent to.
    pub at: SocketAddr,
    /// The same in full.
    #[serde(default)]
    pub landing: Option<Landing>,
}

/// Which move of which VM.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LookAt {
    /// The VM.
    pub vm: VmId,
    /// Its generation while it moves.
    pub generation: Generation,
}

/// How far a VM is on a node.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LookedAt {
    /// What is seen of it here; `Off` when it is not here.
    pub power: PowerState,
    /// Where it is waited for, if so.
    pub receiving: Option<SocketAddr>,
    /// The same in full.
    #[serde(default)]
    pub landing: Option<Landing>,
    /// How far its sending is.
    #[serde(default)]
    pub progress: Option<MoveProgress>,
    /// How the sending of that generation goes, when it was begun since the agent was started.
    pub sent: Option<Sent>,
}

/// How the sending of a VM went.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Sent {
    /// It goes on.
    UnderWay,
    /// All of it is there.
    Done {
        /// How long it took, in milliseconds.
        took_ms: u64,
        /// How long the guest ran nowhere, in milliseconds.
        downtime_ms: u64,
        /// How much was sent, in bytes.
        bytes: u64,
    },
    /// It failed; the VM goes on here.
    Failed(Error),
}

/// A VM's disk: a linked clone of an image.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WantedRoot {
    /// The volume.
    pub volume: VolumeId,
    /// The image's content.
    pub image: Digest,
    /// The image's format.
    pub format: DiskFormat,
    /// The image's file in bytes.
    pub image_bytes: u64,
    /// The volume's size in bytes.
    pub virtual_bytes: u64,
}

/// A NIC as a node shall have it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WantedNic {
    /// The network.
    pub network: NetworkId,
    /// The port.
    pub port: PortId,
    /// The MAC.
    pub mac: Mac,
}

/// What a NIC has begun and answered with others of its network.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NicFlows {
    /// The NIC.
    pub nic: WantedNic,
    /// Its flows, [`vbm_net::plan::carry::PORT_MAX_CARRIED_FLOWS`] at most: all of them fit one message.
    pub flows: Vec<vbm_net::PortFlow>,
}

/// A VM that a node shall give up, with all that it may hold of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GoneVm {
    /// Its id.
    pub id: VmId,
    /// Its disk.
    pub volume: VolumeId,
    /// Its NICs: network and port of each.
    pub nics: Vec<(NetworkId, PortId)>,
    /// Whether its disk stays, because the VM went to another node that shares it.
    #[serde(default)]
    pub keep_volume: bool,
}

/// An open console.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct ConsoleId(pub u64);

/// Which console of which VM.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConsoleOpenRequest {
    /// Whose.
    pub vm: VmId,
    /// Which.
    #[serde(default)]
    pub kind: ConsoleKind,
    /// Goes on with one that is open, and whose stream broke; whoever reads it meanwhile is sent away.
    #[serde(default)]
    pub resume: Option<ConsoleResume>,
}

/// Where a console is read on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConsoleResume {
    /// Which.
    pub console: ConsoleId,
    /// How many bytes of it were read: the next item begins there, none lost and none twice.
    pub from: u64,
}

/// How much of a console's log.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConsoleLogRequest {
    /// Whose.
    pub vm: VmId,
    /// The newest so many bytes.
    pub max_bytes: u32,
}

/// An item of a console's stream.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ConsoleItem {
    /// The first one: it is open under this name.
    Open(ConsoleId),
    /// What it said, at most [`CONSOLE_ITEM_MAX_BYTES`].
    Said(Bytes),
}

/// What somebody typed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConsoleInput {
    /// Where.
    pub console: ConsoleId,
    /// What.
    pub bytes: Bytes,
}

/// An agent tells of itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeReportRequest {
    /// Where it stands.
    pub path: NodePath,
    /// Changes with each start of the agent.
    pub boot_id: String,
    /// The version of the agent.
    pub version: String,
    /// The version of these methods that it speaks.
    #[serde(default = "first_protocol")]
    pub protocol: u32,
    /// Stays with the agent's data directory.
    #[serde(default)]
    pub identity: String,
    /// What its clock shows.
    #[serde(default)]
    pub at: Timestamp,
    /// Its address among the nodes.
    #[serde(default)]
    pub underlay: Option<Ipv4Addr>,
    /// The word for the directory of images and disks that it shares with others.
    #[serde(default)]
    pub shared_storage: Option<String>,
    /// Its interfaces that networks may name; nothing: it does not tell.
    #[serde(default)]
    pub uplinks: Option<Vec<Uplink>>,
    /// Its drivers.
    pub capabilities: Vec<Capability>,
    /// What its drivers cannot do.
    #[serde(default)]
    pub missing: Vec<MissingFacet>,
    /// Its processors.
    pub cpus: u32,
    /// Its memory in MiB.
    pub memory_mib: u64,
    /// Memory not in use, in MiB.
    pub memory_free_mib: u64,
    /// The highest epoch it has obeyed.
    pub epoch: Epoch,
    /// The VMs that may run there.
    pub vms: Vec<VmId>,
    /// The networks it holds.
    pub networks: Vec<NetworkId>,
}

/// What a controller answers an agent that told of itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeReportReply {
    /// The controller's epoch.
    pub epoch: Epoch,
    /// Networks that it holds and nobody wants: to be removed.
    pub surplus_networks: Vec<NetworkId>,
    /// VMs that it holds and no record knows. They are left alone and shown by `vbm doctor`.
    pub orphan_vms: Vec<VmId>,
    /// VMs that it holds and that are another node's now: to be taken off it.
    #[serde(default)]
    pub stray_vms: Vec<GoneVm>,
}

/// An agent tells of its VMs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VmReportRequest {
    /// From where.
    pub node: NodePath,
    /// What it saw.
    pub vms: Vec<VmSeen>,
}

/// What an agent saw of a VM.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VmSeen {
    /// Which.
    pub id: VmId,
    /// Its status.
    pub status: VmStatus,
    /// What the agent is doing with it, in words.
    pub doing: Option<String>,
    /// Whether it is a VM found running after a restart of the agent.
    pub adopted: bool,
    /// What came of the snapshots that the node was told to take or delete, until it is told so no more.
    #[serde(default)]
    pub snapshots: Vec<SnapshotSeen>,
    /// What came of the way back to a snapshot.
    #[serde(default)]
    pub reverted: Option<RevertSeen>,
}

/// What came of a snapshot.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SnapshotSeen {
    /// Which.
    pub id: SnapshotId,
    /// What.
    pub fate: SnapshotFate,
}

/// What came of a snapshot.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SnapshotFate {
    /// It was taken.
    Taken {
        /// What it holds.
        content: SnapshotContent,
        /// How long the guest was halted for it, in microseconds.
        paused_micros: u64,
        /// When.
        at: Timestamp,
        /// What going back to it gives.
        #[serde(default)]
        consistency: Option<Consistency>,
        /// Why it is less than was asked for, if so.
        #[serde(default)]
        note: Option<String>,
    },
    /// It could not be taken; nothing of it is left.
    NotTaken(Error),
    /// It is deleted.
    Gone,
    /// It could not be deleted.
    NotGone(Error),
}

/// What came of the way back to a snapshot.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RevertSeen {
    /// The operation that asked for it.
    pub operation: OperationId,
    /// Why the VM is not as it was then, if so.
    pub problem: Option<Error>,
}

/// An agent tells of a lease.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PortReportRequest {
    /// Which port.
    pub port: PortId,
    /// From when.
    pub at: Timestamp,
    /// Until when; `None` when the guest gave it back.
    pub until: Option<Timestamp>,
    /// Whether it gave it back because somebody else uses the address.
    #[serde(default)]
    pub declined: bool,
}

/// Which part of which file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageReadRequest {
    /// The file.
    pub digest: Digest,
    /// From which byte.
    pub offset: u64,
    /// At most so many; [`IMAGE_CHUNK_BYTES`] is the limit.
    pub max_bytes: u32,
    /// Of the asked controller only: one that lacks the file does not ask the others.
    #[serde(default)]
    pub here_only: bool,
}
