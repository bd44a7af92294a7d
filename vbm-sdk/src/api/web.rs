//! What a browser needs besides the records: who it is, one-time tokens for consoles, changes as they happen.

use super::{ForwardView, NetworkView, PortView, VmView};
use crate::store::Revision;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use vbm_core::{Event, FloatingIp, Group, Image, Node, Operation, Snapshot, Timestamp, VmId, Volume};

/// Who asks, and whom.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct SessionView {
    /// The user in whose name things are done: that of the daemon.
    pub user: String,
    /// The version of the daemon.
    pub version: String,
    /// The version of the API.
    pub api: String,
    /// The instance: a word for this daemon and its data.
    pub instance: String,
    /// When the session ends, however much it is used. Absent on the unix socket, which has no sessions.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires_at: Option<Timestamp>,
}

/// A link that logs a browser in, once.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct LoginLink {
    /// To be opened in a browser on this machine. Whoever has it can use it: do not pass it on.
    pub url: String,
    /// After this it is worth nothing.
    pub expires_at: Timestamp,
}

impl std::fmt::Debug for LoginLink {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LoginLink")
            .field("expires_at", &self.expires_at)
            .finish_non_exhaustive()
    }
}

/// What of a VM is looked at.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum ConsoleKind {
    /// Its serial line: bytes as a terminal understands them.
    #[default]
    Serial,
    /// Its screen, keyboard and mouse: RFB 3.8 (RFC 6143) without a password.
    Vnc,
}

impl std::fmt::Display for ConsoleKind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(match self {
            Self::Serial => "serial",
            Self::Vnc => "vnc",
        })
    }
}

/// Asks for a one-time token of a console.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CreateConsoleToken {
    /// Which console.
    pub kind: ConsoleKind,
}

/// A one-time token of a console.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ConsoleToken {
    /// The token: good for one connection.
    pub token: String,
    /// Where the WebSocket is, with the token in it: a path on the host that was asked.
    pub url: String,
    /// By then it must be used.
    pub expires_at: Timestamp,
    /// The VM that it was given for.
    pub vm: VmId,
    /// The console that it was given for.
    pub kind: ConsoleKind,
}

impl std::fmt::Debug for ConsoleToken {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ConsoleToken")
            .field("vm", &self.vm)
            .field("kind", &self.kind)
            .field("expires_at", &self.expires_at)
            .finish_non_exhaustive()
    }
}

/// How to connect with a one-time token.
#[derive(Clone, Deserialize, utoipa::IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct ConsoleQuery {
    /// The token.
    pub token: String,
}

impl std::fmt::Debug for ConsoleQuery {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ConsoleQuery").finish_non_exhaustive()
    }
}

/// From where to watch.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct WatchQuery {
    /// Changes after this revision. From now on when absent. A `Last-Event-ID` counts for more.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<u64>,
}

/// The kinds of records whose changes are told.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
#[expect(missing_docs, reason = "each is a noun of the API")]
pub enum WatchedKind {
    Vm,
    Image,
    Volume,
    Network,
    Port,
    Group,
    Forward,
    FloatingIp,
    Snapshot,
    Node,
    Operation,
    Event,
}

/// A record was made, changed or removed. The `data` of the messages `change` of `/v1/watch`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
pub struct RecordChange {
    /// Its kind.
    pub kind: WatchedKind,
    /// Its id; the path of a node.
    pub id: String,
    /// The revision that did it. Views of the same record with a lower one are older.
    pub revision: Revision,
    /// Whether it is gone.
    pub deleted: bool,
    /// How it is now, in the form in which `kind` is listed. Absent when it is gone.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub view: Option<RecordView>,
}

/// A record as its own list shows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
#[serde(untagged)]
#[non_exhaustive]
#[expect(missing_docs, reason = "each is a noun of the API")]
#[expect(
    clippy::large_enum_variant,
    reason = "made, written and dropped one at a time"
)]
pub enum RecordView {
    Vm(VmView),
    Image(Image),
    Volume(Volume),
    Network(NetworkView),
    Port(PortView),
    Group(Group),
    Forward(ForwardView),
    /// The record alone: who has it is said by the ports, whose changes are told too.
    FloatingIp(FloatingIp),
    Snapshot(Snapshot),
    Node(Node),
    Operation(Operation),
    Event(Event),
}

/// The `data` of the message `ready` of `/v1/watch`: what is listed after it misses nothing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct WatchReady {
    /// Changes after this revision are told.
    pub revision: Revision,
}

/// The `data` of the message `reset` of `/v1/watch`: what happened in between is no longer kept. List everything again.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct WatchReset {
    /// Changes after this revision are told.
    pub revision: Revision,
    /// Why.
    pub why: String,
}

/// The `data` of a message of `/v1/watch`; which one it is, its event says: `ready`, `change` or `reset`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
#[serde(untagged)]
#[expect(
    clippy::large_enum_variant,
    reason = "made, written and dropped one at a time"
)]
pub enum WatchMessage {
    /// `ready`: the first message.
    Ready(WatchReady),
    /// `change`.
    Change(RecordChange),
    /// `reset`.
    Reset(WatchReset),
}
