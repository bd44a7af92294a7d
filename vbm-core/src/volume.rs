//! Volumes: disks that VMs write to.

use crate::{ImageId, Meta, VmId, VolumeId};
use serde::{Deserialize, Serialize};

/// A volume: its record in the store.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct Volume {
    /// Id, name, generation.
    #[serde(flatten)]
    pub meta: Meta<VolumeId>,
    /// What is wanted.
    pub spec: VolumeSpec,
}

/// What is wanted of a volume.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct VolumeSpec {
    /// The image it is a linked clone of.
    pub image: ImageId,
    /// Its size as the guest sees it, in bytes; at least that of the image.
    pub virtual_bytes: u64,
    /// The VM it belongs to; deleted with it.
    pub vm: VmId,
}
