//! Events: what happened, in the past tense. They are records; a reader resumes from any revision.

use crate::{EventId, ObjectRef, Timestamp};
use serde::{Deserialize, Serialize};
use std::fmt;

/// An event: its record in the store.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct Event {
    /// Its id.
    pub id: EventId,
    /// When it happened.
    pub at: Timestamp,
    /// What happened.
    pub kind: EventKind,
    /// To what.
    pub object: ObjectRef,
    /// More, for people.
    #[serde(default)]
    pub message: String,
}

macro_rules! kinds {
    ($($(#[$doc:meta])* $kind:ident,)*) => {
        /// What happened.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
        #[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
        #[non_exhaustive]
        pub enum EventKind { $($(#[$doc])* $kind,)* }

        impl fmt::Display for EventKind {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(match self { $(Self::$kind => stringify!($kind),)* })
            }
        }
    };
}

kinds! {
    /// A VM's record was made.
    VmCreated,
    /// A VM runs.
    VmStarted,
    /// A VM is off.
    VmStopped,
    /// A VM is halted in memory.
    VmPaused,
    /// A paused VM runs again.
    VmResumed,
    /// A VM ended without being asked to.
    VmCrashed,
    /// A VM was reset.
    VmRestarted,
    /// A running VM was found again after a restart of the agent.
    VmAdopted,
    /// A VM's memory was written to disk, and it does not run.
    VmSaved,
    /// A VM began to move to another node.
    VmMoving,
    /// A VM is on another node.
    VmMigrated,
    /// A VM could not be moved; it is where it was.
    VmMigrationFailed,
    /// A snapshot was taken.
    SnapshotTaken,
    /// A snapshot could not be taken, gone back to or deleted.
    SnapshotFailed,
    /// A VM went back to a snapshot.
    SnapshotReverted,
    /// A snapshot is gone.
    SnapshotDeleted,
    /// A VM and all that belonged to it are gone.
    VmDeleted,
    /// The wanted state of a VM could not be reached; it is tried again.
    VmFailed,
    /// A guest took its address by DHCP.
    PortLeased,
    /// A guest gave its address back.
    PortReleased,
    /// An alarm: a guest found that its address is used by another.
    PortDeclined,
    /// The groups of a port were changed.
    PortChanged,
    /// A network's record was made.
    NetworkCreated,
    /// A network is up on its host.
    NetworkReady,
    /// The wanted state of a network could not be reached; it is tried again.
    NetworkFailed,
    /// A network is gone.
    NetworkDeleted,
    /// A group was made.
    GroupCreated,
    /// The rules of a group were changed.
    GroupChanged,
    /// A group is gone.
    GroupDeleted,
    /// A forward was made.
    ForwardCreated,
    /// A forward is gone.
    ForwardDeleted,
    /// An address was kept as a floating IP.
    FloatingIpCreated,
    /// A floating IP is kept no more.
    FloatingIpDeleted,
    /// An image was imported.
    ImageImported,
    /// An image is gone.
    ImageDeleted,
    /// A node answers.
    NodeReady,
    /// A node does not answer any more.
    NodeLost,
    /// A node may not take part.
    NodeRefused,
    /// A controller took the lead.
    ControllerElected,
}
