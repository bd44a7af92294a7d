//! What travels over HTTP: requests, answers and their paths. Client, server and CLI share these types.
//!
//! | path | verbs |
//! |---|---|
//! | `/v1/version` | GET |
//! | `/v1/vms`, `/v1/vms/{vm}` | GET, POST, DELETE |
//! | `/v1/vms/{vm}/power` | POST [`PowerRequest`] |
//! | `/v1/vms/{vm}/migrate` | POST [`MigrateRequest`] |
//! | `/v1/vms/{vm}/migrate/check` | POST [`MigrateRequest`]: a [`MoveCheckView`] of each thing that a move would need |
//! | `/v1/vms/{vm}/placement` | GET: a [`Placement`] of each node |
//! | `/v1/vms/{vm}/snapshots`, `/v1/vms/{vm}/snapshots/{snapshot}` | GET, POST, DELETE |
//! | `/v1/vms/{vm}/snapshots/{snapshot}/revert` | POST |
//! | `/v1/vms/{vm}/groups` | PUT [`SetGroups`] |
//! | `/v1/vms/{vm}/port` | PATCH [`SetPort`] |
//! | `/v1/vms/{vm}/console` | GET: WebSocket, binary messages both ways |
//! | `/v1/vms/{vm}/console/log`, `/v1/vms/{vm}/screenshot` | GET: text, PNG |
//! | `/v1/networks`, `/v1/networks/{network}` | GET, POST, PATCH [`UpdateNetwork`], DELETE |
//! | `/v1/networks/{network}/plan` | GET: [`NodeChanges`] of each node |
//! | `/v1/networks/{network}/counters` | GET: [`NetworkCounts`] |
//! | `/v1/paths` | GET: [`NodePaths`] of each node |
//! | `/v1/ports`, `/v1/volumes` | GET |
//! | `/v1/groups`, `/v1/groups/{group}` | GET, POST, DELETE |
//! | `/v1/groups/{group}/rules` | PUT [`SetRules`] |
//! | `/v1/forwards`, `/v1/forwards/{forward}` | GET, POST, DELETE |
//! | `/v1/floating-ips`, `/v1/floating-ips/{floating-ip}` | GET, POST, DELETE |
//! | `/v1/floating-ips/{floating-ip}/target` | PUT [`AttachFloatingIp`], DELETE |
//! | `/v1/floating-pool` | GET, PUT [`vbm_core::FloatingPool`] |
//! | `/v1/blobs` | POST: a file's bytes; answers [`Blob`] |
//! | `/v1/images`, `/v1/images/{image}` | GET, POST, DELETE |
//! | `/v1/images/{image}/disk` | GET: the disk as a file, `?format=` |
//! | `/v1/nodes`, `/v1/nodes/{node}` | GET |
//! | `/v1/operations`, `/v1/operations/{operation}` | GET, `?wait_seconds=` |
//! | `/v1/events` | GET: newline-delimited JSON, `?from=&follow=` |
//! | `/v1/watch` | GET: Server-Sent Events, one [`RecordChange`] for each change of a record |
//! | `/v1/vms/{vm}/console-tokens` | POST [`CreateConsoleToken`]: a one-time token |
//! | `/v1/console` | GET `?token=`: WebSocket, binary messages both ways |
//! | `/v1/session` | GET: who asks |
//! | `/v1/web/links` | POST: a login link for a browser; on the unix socket only |
//!
//! A `{vm}` is a name, an id, or a prefix of an id that fits only one. Failures are problem JSON
//! (RFC 9457) with the fields of [`vbm_core::Error`].

mod addresses;
mod floating;
mod looks;
mod ports;
mod web;

pub use addresses::{AddressUsage, CreateIpv6, NetworkUsage, UpdateIpv6, UpdateNetwork};
pub use floating::{AttachFloatingIp, CreateFloatingIp, FloatingIpState, FloatingIpView};
pub use looks::{Counted, NetworkCounts, NodeChanges, NodePaths, PortCounts, RuleCounts, TriedPath};
pub use ports::{FLOATING_IP_NONE, SetPort};
pub use web::{
    ConsoleKind, ConsoleQuery, ConsoleToken, CreateConsoleToken, LoginLink, RecordChange, RecordView,
    SessionView, WatchMessage, WatchQuery, WatchReady, WatchReset, WatchedKind,
};

use crate::store::Revision;
use serde::{Deserialize, Serialize};
use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};
use utoipa::ToSchema;
use vbm_core::{
    Boot, DhcpSpec, Digest, DiskFormat, DriverKind, Epoch, Event, Forward, Freeze, GuestData, InterfaceName,
    Ipv4Range, Mac, MetadataMode, Name, Network, NetworkMode, NodePath, Operation, Port, Protocol,
    Reservation, Rule, Snapshot, Vm,
};

/// The version of the API: the first part of every path.
pub const API_VERSION: &str = "v1";
/// The longest that a request may wait for an operation, in seconds.
pub const WAIT_MAX_SECONDS: u64 = 60;

/// Who answers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Version {
    /// The version of the daemon.
    pub version: String,
    /// The version of the API.
    pub api: String,
    /// The instance: a word for this daemon and its data, in the tags of what it makes on hosts.
    pub instance: String,
    /// The controller that answers.
    #[serde(default)]
    pub controller: String,
    /// Who leads, as far as the one that answers knows; none between two leaderships.
    #[serde(default)]
    pub leader: Option<Leader>,
}

/// The controller that reconciles. All others answer requests all the same.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Leader {
    /// Its name.
    pub name: String,
    /// Its epoch.
    pub epoch: Epoch,
}

/// A part of a list.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct List<T> {
    /// The items, ordered by name.
    pub items: Vec<T>,
    /// Where the next part begins: pass as `?after=`. Absent at the end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next: Option<String>,
    /// The revision at which this was read.
    pub revision: Revision,
}

/// Makes a VM and starts it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct LaunchRequest {
    /// The image: a name or an id.
    pub image: String,
    /// The VM's name; made up when absent.
    #[serde(default)]
    pub name: Option<Name>,
    /// Virtual CPUs.
    #[serde(default = "default_vcpus")]
    pub vcpus: u16,
    /// Memory in MiB.
    #[serde(default = "default_memory_mib")]
    pub memory_mib: u32,
    /// The size of its disk in MiB; that of the image when absent.
    #[serde(default)]
    pub disk_mib: Option<u64>,
    /// Its NICs. Empty is a VM without network.
    #[serde(default)]
    pub nics: Vec<NicRequest>,
    /// Which hypervisor; what the nodes have when absent.
    #[serde(default)]
    pub driver: Option<DriverKind>,
    /// Which node; chosen when absent.
    #[serde(default)]
    pub node: Option<NodePath>,
    /// Make it, but leave it off.
    #[serde(default)]
    pub stopped: bool,
    /// Free `key=value` text.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    /// What the guest is given to read: user data and SSH keys.
    #[serde(default)]
    pub guest: GuestData,
}

/// Virtual CPUs of a VM when nobody says otherwise.
pub const fn default_vcpus() -> u16 {
    1
}
/// Memory of a VM in MiB when nobody says otherwise.
pub const fn default_memory_mib() -> u32 {
    256
}

/// A NIC of a VM that is to be made.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NicRequest {
    /// The network: a name or an id.
    pub network: String,
    /// Its address; from the pool when absent.
    #[serde(default)]
    #[schema(value_type = Option<String>)]
    pub address: Option<Ipv4Addr>,
    /// Its IPv6 address, on a network that has IPv6; from the pool when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub address6: Option<Ipv6Addr>,
    /// Its MAC; made up when absent.
    #[serde(default)]
    pub mac: Option<Mac>,
    /// Its security groups: names or ids.
    #[serde(default)]
    pub groups: Vec<String>,
}

/// A move to another node.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct MigrateRequest {
    /// Where to; the node that fits best when absent.
    #[serde(default)]
    pub to: Option<NodePath>,
    /// Whether it must run meanwhile (`true`) or must be off (`false`). When absent: as it is.
    #[serde(default)]
    pub live: Option<bool>,
    /// Whether its disk is copied, for nodes that do not share it.
    #[serde(default)]
    pub copy_disks: bool,
    /// How long it may be halted before one more round of its memory is sent, in milliseconds; 300 when absent.
    #[serde(default)]
    pub max_downtime_ms: Option<u64>,
    /// The most that is sent in a second, in bytes; no limit when absent.
    #[serde(default)]
    pub bandwidth_bytes: Option<u64>,
}

/// One thing that was looked at before a move, and what was found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct MoveCheckView {
    /// Where it was looked: a node, or the scheduler.
    pub at: String,
    /// What was looked at.
    pub what: String,
    /// Whether the move may go on.
    pub passed: bool,
    /// What was found, in words.
    pub found: String,
}

/// What the scheduler thinks of a node for a VM.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Placement {
    /// The node.
    pub node: NodePath,
    /// Whether the VM is on it.
    pub current: bool,
    /// Whether it could run there.
    pub fits: bool,
    /// Memory that would be left, in MiB; the most wins.
    pub score: u64,
    /// What stands in the way, if so.
    pub reasons: Vec<String>,
}

/// A change of power.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct PowerRequest {
    /// What is asked for.
    pub action: PowerAction,
}

/// What can be asked of a VM's power.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum PowerAction {
    /// It shall run.
    Start,
    /// The guest shall shut down.
    Stop,
    /// It shall end now.
    ForceOff,
    /// The reset button.
    Restart,
    /// It shall halt in memory.
    Pause,
    /// It shall go on.
    Resume,
    /// Its memory shall be on disk, and it shall not run; a start goes on from there.
    Save,
    /// The memory on disk shall be thrown away: off, as after a power cut.
    Discard,
}

/// A VM as lists show it: the record and what belongs to it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct VmView {
    /// The record.
    #[serde(flatten)]
    pub vm: Vm,
    /// The name of its image.
    pub image_name: String,
    /// Its NICs.
    pub nics: Vec<NicView>,
}

/// A NIC as lists show it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct NicView {
    /// The record of its port.
    #[serde(flatten)]
    pub port: Port,
    /// The name of its network.
    pub network_name: String,
    /// The names of its security groups.
    pub group_names: Vec<Name>,
}

/// What asking for something that takes time gives: what was made, and the operation that sees it through.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Accepted<T> {
    /// The record as it is now.
    pub item: T,
    /// What goes on.
    pub operation: Operation,
}

/// Takes a snapshot of a VM: of its disks when it is off, of disks and memory when it runs, unless its memory is not wanted.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CreateSnapshot {
    /// Its name, unique within the VM; `snap0`, `snap1` and so on when absent.
    #[serde(default)]
    pub name: Option<Name>,
    /// Free `key=value` text.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    /// Whether the memory of a VM that runs is kept too; it is when absent.
    #[serde(default)]
    pub memory: Option<bool>,
    /// Whether the guest's file systems are frozen for it; only without memory.
    #[serde(default)]
    pub freeze: Freeze,
}

/// A snapshot as lists show it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct SnapshotView {
    /// The record.
    #[serde(flatten)]
    pub snapshot: Snapshot,
    /// The name of its VM.
    pub vm_name: String,
    /// The name of the snapshot that it was taken after; absent for the first.
    #[serde(default)]
    pub parent_name: Option<Name>,
}

/// Makes a network.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CreateNetwork {
    /// Its name.
    pub name: Name,
    /// Its addresses, such as `10.0.0.0/24`.
    pub cidr: String,
    /// How it meets the world.
    #[serde(default)]
    pub mode: NetworkMode,
    /// The interface of each host that it goes by: a bridged network must name one (a bridge, or one without addresses), a routed one may.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uplink: Option<InterfaceName>,
    /// The gateway's address; the first usable one when absent. Of a bridged network the LAN's router.
    #[serde(default)]
    #[schema(value_type = Option<String>)]
    pub gateway: Option<Ipv4Addr>,
    /// The first address of the pool, where there is one pool.
    #[serde(default)]
    #[schema(value_type = Option<String>)]
    pub pool_first: Option<Ipv4Addr>,
    /// The last address of the pool.
    #[serde(default)]
    #[schema(value_type = Option<String>)]
    pub pool_last: Option<Ipv4Addr>,
    /// The pools; instead of `pool_first` and `pool_last`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub pools: Vec<Ipv4Range>,
    /// What is never given to a port.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub excluded: Vec<Ipv4Range>,
    /// What is kept for some.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub reservations: Vec<Reservation>,
    /// How long an address rests after it was given back, in seconds; not at all when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub quarantine_seconds: Option<u32>,
    /// IPv6 beside IPv4.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ipv6: Option<CreateIpv6>,
    /// DNS servers to tell VMs of.
    #[serde(default)]
    #[schema(value_type = Vec<String>)]
    pub dns: Vec<Ipv4Addr>,
    /// The domain to tell VMs of.
    #[serde(default)]
    pub domain: Option<String>,
    /// The MTU in bytes.
    #[serde(default)]
    pub mtu: Option<u16>,
    /// How long a lease lasts, in seconds.
    #[serde(default)]
    pub lease_seconds: Option<u32>,
    /// What else to tell VMs by DHCP.
    #[serde(default, skip_serializing_if = "DhcpSpec::is_usual")]
    pub dhcp: DhcpSpec,
    /// Whether the gateway answers DNS; it does when absent.
    #[serde(default)]
    pub serve_dns: Option<bool>,
    /// DNS servers that the gateway asks; those of the host when empty.
    #[serde(default)]
    #[schema(value_type = Vec<String>)]
    pub dns_upstreams: Vec<IpAddr>,
    /// The metadata service of its VMs; who shows a token is answered when absent, and nobody on a bridged network.
    #[serde(default)]
    pub metadata: Option<MetadataMode>,
    /// Whether VMs of a bridged network are told their addresses by VBM instead of the LAN's own server; not when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub serve_dhcp: Option<bool>,
}

/// A network as lists show it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct NetworkView {
    /// The record.
    #[serde(flatten)]
    pub network: Network,
    /// How many ports are on it.
    pub ports: u64,
    /// How much of its addresses is used; told of one network, not in lists.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub usage: Option<NetworkUsage>,
}

/// A port as lists show it: who has which address.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct PortView {
    /// The record.
    #[serde(flatten)]
    pub port: Port,
    /// The name of its network.
    pub network_name: String,
    /// The name of its VM.
    pub vm_name: String,
    /// The names of its security groups.
    pub group_names: Vec<Name>,
}

/// Makes a security group.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CreateGroup {
    /// Its name.
    pub name: Name,
    /// Its rules. A peer may be told by name.
    #[serde(default)]
    pub rules: Vec<Rule>,
    /// Whether nothing may leave but what egress rules allow, also when there is no such rule.
    #[serde(default)]
    pub egress_closed: bool,
}

/// Replaces the rules of a group.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct SetRules {
    /// All rules it shall have. A peer may be told by name.
    pub rules: Vec<Rule>,
    /// Whether nothing may leave but what egress rules allow; as it is when left out.
    #[serde(default)]
    pub egress_closed: Option<bool>,
    /// The generation that the rules were read at; refused as stale when the group has changed since.
    #[serde(default)]
    pub generation: Option<vbm_core::Generation>,
}

/// Replaces the groups of a VM's ports.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct SetGroups {
    /// All groups they shall have: names or ids.
    pub groups: Vec<String>,
    /// Only the port on this network: a name or an id.
    #[serde(default)]
    pub network: Option<String>,
    /// Addresses beside its own that the port may use; as they are when left out. Only with `network`.
    #[serde(default)]
    pub pairs: Option<Vec<vbm_core::AddressPair>>,
}

/// Makes a forward.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CreateForward {
    /// Its name; made up when absent.
    #[serde(default)]
    pub name: Option<Name>,
    /// tcp or udp.
    #[serde(default = "tcp")]
    pub protocol: Protocol,
    /// The host's address it listens on; each of them when absent.
    #[serde(default)]
    #[schema(value_type = Option<String>)]
    pub listen_address: Option<Ipv4Addr>,
    /// The host's port it listens on.
    pub listen_port: u16,
    /// How many ports, one beside the other: the first of the host's goes to the first of the VM's, and so on. 1 when absent.
    #[serde(default = "one_port")]
    pub count: u16,
    /// The VM it goes to: a name or an id.
    pub vm: String,
    /// Through which of its networks; needed when it has several.
    #[serde(default)]
    pub network: Option<String>,
    /// The VM's port it goes to.
    pub target_port: u16,
}

const fn one_port() -> u16 {
    1
}

const fn tcp() -> Protocol {
    Protocol::Tcp
}

/// A forward as lists show it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ForwardView {
    /// The record.
    #[serde(flatten)]
    pub forward: Forward,
    /// The name of its network.
    pub network_name: String,
    /// The name of its VM.
    pub vm_name: String,
    /// The address it goes to.
    #[schema(value_type = String)]
    pub target_address: Ipv4Addr,
}

/// A file that was uploaded.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Blob {
    /// Its SHA-256.
    pub digest: Digest,
    /// Its size in bytes.
    pub bytes: u64,
}

/// Makes an image of files that were uploaded.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CreateImage {
    /// Its name.
    pub name: Name,
    /// The disk's content.
    pub disk: Digest,
    /// The disk's format.
    pub format: DiskFormat,
    /// How it boots.
    pub boot: Boot,
}

/// How to export an image.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct ExportQuery {
    /// `qcow2`, `raw` or `vdi`; the format that it is kept in when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub format: Option<String>,
}

/// An event and where it stands.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct EventView {
    /// Its revision: read on from here.
    pub revision: Revision,
    /// The event.
    #[serde(flatten)]
    pub event: Event,
}

/// How to list.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct ListQuery {
    /// Items after this one: `next` of the part before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub after: Option<String>,
    /// At most so many, 1 to 1,000.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limit: Option<usize>,
    /// Of ports, forwards and floating IPs: only those of this network.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub network: Option<String>,
    /// Of ports, forwards, floating IPs and volumes: only those of this VM.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vm: Option<String>,
}

/// How to read an operation.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct WaitQuery {
    /// Answer when it is over, or when it has other steps than `seen_steps`, or after so many seconds (at most 60).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub wait_seconds: Option<u64>,
    /// How many steps the caller knows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seen_steps: Option<usize>,
}

/// How to read events.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct EventQuery {
    /// Events after this revision; all that are kept when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<u64>,
    /// Do not end: send what happens as it happens.
    #[serde(default)]
    pub follow: bool,
}

/// A failure as it travels: problem JSON (RFC 9457) that carries the fields of [`vbm_core::Error`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Problem {
    /// `urn:vbm:problem:` and the kind.
    #[serde(rename = "type")]
    pub type_: String,
    /// What failed.
    pub title: String,
    /// The HTTP status.
    pub status: u16,
    /// Why.
    pub detail: String,
    /// Kind, what, why, fix and outcome.
    pub error: vbm_core::Error,
}
