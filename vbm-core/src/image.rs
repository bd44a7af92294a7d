//! Images: content that VMs are cloned from.

use crate::{Digest, Error, ImageId, Meta, error::invalid, limits};
use serde::{Deserialize, Serialize};
use std::fmt;

/// An image: its record in the store.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct Image {
    /// Id, name, generation.
    #[serde(flatten)]
    pub meta: Meta<ImageId>,
    /// What it is.
    pub spec: ImageSpec,
}

/// What an image is. Immutable: other content is another image.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct ImageSpec {
    /// The disk's content.
    pub disk: Digest,
    /// The disk's format.
    pub format: DiskFormat,
    /// The size of the disk's file in bytes.
    pub file_bytes: u64,
    /// The size that a guest sees in bytes.
    pub virtual_bytes: u64,
    /// How it boots.
    pub boot: Boot,
}

/// The format of a disk file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
#[expect(missing_docs, reason = "each is the name of a format")]
pub enum DiskFormat {
    Qcow2,
    Raw,
}

impl fmt::Display for DiskFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Qcow2 => "qcow2",
            Self::Raw => "raw",
        })
    }
}

/// How a guest boots.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[serde(rename_all = "kebab-case", tag = "from")]
#[non_exhaustive]
pub enum Boot {
    /// From the disk, by the firmware.
    Disk,
    /// From a kernel that the hypervisor loads itself; seconds faster under emulation.
    Kernel {
        /// The kernel's content.
        kernel: Digest,
        /// The initial RAM disk's content.
        initrd: Digest,
        /// The kernel's command line.
        cmdline: String,
    },
}

impl Boot {
    /// Checks the command line.
    ///
    /// # Errors
    /// It is too long or holds a control character.
    pub fn check(&self) -> Result<(), Error> {
        let Self::Kernel { cmdline, .. } = self else {
            return Ok(());
        };
        if cmdline.len() > limits::CMDLINE_MAX_BYTES || cmdline.chars().any(char::is_control) {
            return Err(invalid(
                "the kernel command line is not valid",
                "it is longer than 2,048 bytes or holds a control character",
                "shorten it to one plain line",
            ));
        }
        Ok(())
    }
}
