//! Virtual machines on one host.
//!
//! ```text
//!    Machines --VmHandle--> actor, one per VM         what may be done now, one job at a time
//!                             |
//!    ImageStore, Pool         v
//!      disks it boots from -> Driver                  small trait, the same for all hypervisors
//!                             |      `-- Consoles     facets: there, or missing with a reason
//!              .--------------+--------------.
//!          QemuDriver                    SimDriver    conformance: one suite for both
//!              |                             |
//!       QEMU processes, which         SimWorld, which
//!       outlive the daemon            outlives drivers
//! ```
//!
//! The crate knows nothing of nodes, networks or stores: it takes definitions and open taps, and gives power states,
//! events and streams of bytes.
//!
//! | module | holds |
//! |---|---|
//! | [`driver`] | the trait, definitions, what is seen |
//! | [`actor`] | [`Machines`], [`VmHandle`]: serialised work on each VM, force-off past everything |
//! | [`console`] | serial line, screen, VNC |
//! | [`op`] | whose an operation is, how long it may take, how far it is |
//! | [`registry`] | the drivers of a host, what each can do, who may use the processor |
//! | [`facets`], [`snapshot`] | snapshots, saved memory, migration, hot-plug; what is asked of a snapshot |
//! | [`moves`] | what the two sides of a migration tell each other |
//! | [`qemu`], [`virtualbox`], [`sim`] | drivers |
//! | [`disk`] | [`ImageStore`], [`Pool`], the qcow2 format |
//! | [`conformance`] | what every driver promises, as checks |
//! | [`limits`] | every limit, with its unit |
//!
//! # Example
//!
//! ```
//! use std::{sync::Arc, time::Duration};
//! use vbm_hyper::{BootSource, Hardware, Machines, SimDriver, VmDefinition};
//!
//! # #[tokio::main(flavor = "current_thread", start_paused = true)]
//! # async fn main() -> vbm_hyper::Result<()> {
//! // With a real hypervisor: QemuDriver::open(QemuConfig::new("/run/vbm")).await?
//! let machines = Machines::open(Arc::new(SimDriver::new())).await?;
//! let definition = VmDefinition {
//!     id: vbm_core::VmId::from_uuid(uuid::Uuid::from_u128(1)),
//!     name: "web-1".parse()?,
//!     vcpus: 1,
//!     memory_mib: 128,
//!     root_disk: "/var/lib/vbm/pool/web-1.qcow2".into(),
//!     boot: BootSource::Disk,
//!     disks: vec![],
//!     hardware: Hardware::default(),
//!     nics: vec![],
//! };
//! let vm = machines.vm(definition.id);
//! let seen = vm.start(definition, vec![]).await?;
//! assert_eq!(seen.power, vbm_core::PowerState::Running);
//! assert!(vm.stop(Duration::from_secs(30)).await?.is_off());
//! machines.shutdown().await;
//! # Ok(())
//! # }
//! ```

pub mod actor;
mod clock;
pub mod conformance;
pub mod console;
mod devices;
pub mod disk;
pub mod driver;
mod error;
pub mod facets;
mod files;
#[cfg(test)]
mod fuzz;
pub mod limits;
pub mod moves;
pub mod op;
mod process;
pub mod qemu;
pub mod registry;
mod scope;
mod serial;
pub mod sim;
pub mod snapshot;
#[doc(hidden)]
pub mod steps;
pub mod virtualbox;

pub use actor::{
    Change, Changes, EndedJob, Gap, Gate, Job, JobEnd, Machines, MachinesConfig, Seq, StartPass, StopOutcome,
    VmHandle, VmSeen, Work,
};
pub use clock::SystemClock;
pub use console::{ByteIo, ByteStream, Consoles, SerialStream};
pub use disk::{
    ChainLink, ContentKind, DiskKind, Expected, Exported, ImageFormat, ImageSource, ImageStore, ImportedDisk,
    ImportedFile, Pool, Room, SourceAnswer, StoredFile, VolumeFile,
};
pub use driver::{
    Adopted, BootSource, DiskDefinition, Driver, DriverEvent, Facet, Firmware, Hardware, NicBackend,
    NicDefinition, Seen, VmDefinition,
};
pub use error::{Error, Result};
pub use facets::{Hotplug, Migrated, Migration, SavedState, Snapshots, WhichDisk};
pub use moves::{DiskFacts, Landing, LandingDisks, MachineFacts, MoveCheck, MoveOptions, MovedDisks};
pub use op::{OpCx, Progress};
pub use qemu::{AcceleratorChoice, Orphan, OrphanKind, QemuConfig, QemuDriver};
pub use registry::{
    CapabilityMatrix, DriverReport, Health, HostFacts, Registry, Technique, capability_matrix,
};
pub use sim::{Fault, Latency, SimDriver, SimWorld};
pub use snapshot::{ExportedDisk, Freezer, NoAgent, SnapshotInfo, SnapshotRequest, SnapshotTaken};
pub use virtualbox::{RegisteredVm, VirtualBoxConfig, VirtualBoxDriver};
