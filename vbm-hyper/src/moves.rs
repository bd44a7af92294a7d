//! What the two sides of a migration tell each other, and what it is done with.
//!
//! ```text
//!   source                                    destination
//!   check_source   --> MachineFacts  -------> check_destination      nothing is changed by either
//!                      MoveOptions   -------> receive --> Landing    prepare
//!   send(Landing)  <--------------------------------'                perform
//!   Migrated       -------------------------> finish                 only with copied disks
//!                                             abandon                abort, at any time before that
//! ```
//!
//! All of it can be written down and carried between hosts.

use crate::{
    Error, Result,
    limits::{
        MIGRATION_BANDWIDTH_MIN_BYTES_PER_SECOND, MIGRATION_CHANNELS_MAX, MIGRATION_DOWNTIME_CEILING,
        MIGRATION_DOWNTIME_FLOOR, MIGRATION_DOWNTIME_MAX,
    },
};
use serde::{Deserialize, Serialize};
use std::{net::SocketAddr, time::Duration};
use vbm_core::{DriverKind, ErrorKind};

/// What becomes of the disks of a VM that moves.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum MovedDisks {
    /// Both hosts see the same files.
    #[default]
    Shared,
    /// They are copied while the VM runs, to files that the destination's definition names. These must be there, of the same
    /// size, and nothing may have been written to them.
    Copied,
}

/// What a migration is done with. Both sides are given the same.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct MoveOptions {
    /// What becomes of the disks.
    pub disks: MovedDisks,
    /// How long the guest may be halted before one more round of its memory is sent, in milliseconds.
    pub downtime_max_millis: u64,
    /// The most that is sent in a second, in bytes; of memory, and of each disk. No limit, if none.
    pub bandwidth_max_bytes: Option<u64>,
    /// Whether a guest that writes faster than its memory can be sent is slowed down.
    pub auto_converge: bool,
    /// Connections that memory is sent over; 1: one stream. More are of use where one does not fill the link.
    pub channels: u8,
    /// What the source is ([`Migration::check_source`](crate::Migration::check_source)): the destination makes the same
    /// hardware. Without it, the destination makes what it knows of the VM, or its newest.
    pub machine: Option<MachineFacts>,
}

impl Default for MoveOptions {
    fn default() -> Self {
        Self {
            disks: MovedDisks::Shared,
            downtime_max_millis: u64::try_from(MIGRATION_DOWNTIME_MAX.as_millis()).unwrap_or(u64::MAX),
            bandwidth_max_bytes: None,
            auto_converge: true,
            channels: 1,
            machine: None,
        }
    }
}

impl MoveOptions {
    /// The same with disks that are copied.
    #[must_use]
    pub fn copying_disks(mut self) -> Self {
        self.disks = MovedDisks::Copied;
        self
    }

    /// The same for that machine.
    #[must_use]
    pub fn of(mut self, machine: MachineFacts) -> Self {
        self.machine = Some(machine);
        self
    }

    /// Whether the disks are copied.
    pub fn copies(&self) -> bool {
        self.disks == MovedDisks::Copied
    }

    /// How long the guest may be halted before one more round is sent.
    pub const fn downtime_max(&self) -> Duration {
        Duration::from_millis(self.downtime_max_millis)
    }

    /// Checks each number against its limit.
    ///
    /// # Errors
    /// [`Error::Invalid`], with the limit.
    pub fn check(&self) -> Result<()> {
        let downtime = MIGRATION_DOWNTIME_FLOOR..=MIGRATION_DOWNTIME_CEILING;
        if !downtime.contains(&self.downtime_max()) {
            return Err(Error::invalid(
                format!(
                    "the downtime of a migration cannot be {} ms",
                    self.downtime_max_millis
                ),
                format!(
                    "{} to {} ms are allowed",
                    downtime.start().as_millis(),
                    downtime.end().as_millis()
                ),
                format!(
                    "choose a time in that range; {} ms are usual",
                    MIGRATION_DOWNTIME_MAX.as_millis()
                ),
            ));
        }
        if let Some(bytes) = self.bandwidth_max_bytes
            && bytes < MIGRATION_BANDWIDTH_MIN_BYTES_PER_SECOND
        {
            return Err(Error::invalid(
                format!("the bandwidth of a migration cannot be {bytes} bytes in a second"),
                format!(
                    "with less than {MIGRATION_BANDWIDTH_MIN_BYTES_PER_SECOND} no memory comes to its end"
                ),
                "allow more, or leave the limit out",
            ));
        }
        if !(1..=MIGRATION_CHANNELS_MAX).contains(&self.channels) {
            return Err(Error::invalid(
                format!("a migration cannot have {} channels", self.channels),
                format!("1 to {MIGRATION_CHANNELS_MAX} are allowed"),
                "choose a number in that range; 1 is usual",
            ));
        }
        Ok(())
    }
}

/// Where a VM that is to arrive is waited for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Landing {
    /// Where its memory is to be sent to.
    pub memory: SocketAddr,
    /// Where its disks are to be written to, when they are copied.
    #[serde(default)]
    pub disks: Option<LandingDisks>,
}

/// Where disks are written to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LandingDisks {
    /// The address.
    pub at: SocketAddr,
    /// What is there, in the order of the VM's disks.
    pub disks: Vec<DiskFacts>,
}

impl Landing {
    /// A place for a VM whose disks are shared.
    pub const fn shared(memory: SocketAddr) -> Self {
        Self { memory, disks: None }
    }
}

impl From<SocketAddr> for Landing {
    fn from(memory: SocketAddr) -> Self {
        Self::shared(memory)
    }
}

/// One disk, as far as a migration is concerned.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskFacts {
    /// What the hypervisor calls it.
    pub name: String,
    /// The size that the guest sees, in bytes.
    pub virtual_bytes: u64,
    /// What its own file takes on the host, in bytes.
    pub used_bytes: u64,
    /// The content that it is a thin clone of, by the name of its file: equal names are equal content.
    #[serde(default)]
    pub base: Option<String>,
    /// Snapshots within the file.
    #[serde(default)]
    pub snapshots: usize,
}

/// What a running VM is made of: what a destination must be able to make.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MachineFacts {
    /// The driver that runs it.
    pub driver: DriverKind,
    /// The version of its hypervisor.
    pub version: String,
    /// The versioned machine type.
    pub machine: String,
    /// The CPU model.
    pub cpu: String,
    /// How its instructions are run.
    pub accelerator: String,
    /// Its disks.
    #[serde(default)]
    pub disks: Vec<DiskFacts>,
    /// Where its devices are, in words of the driver.
    #[serde(default)]
    pub places: Option<String>,
}

/// One thing that was looked at before a move, and what was found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MoveCheck {
    /// What was looked at.
    pub what: String,
    /// Whether a move may go on.
    pub passed: bool,
    /// What was found, in words.
    pub found: String,
}

impl MoveCheck {
    /// Something that is as it should be.
    pub fn passed(what: &str, found: impl Into<String>) -> Self {
        Self {
            what: what.to_owned(),
            passed: true,
            found: found.into(),
        }
    }

    /// Something that stands in the way.
    pub fn failed(what: &str, found: impl Into<String>) -> Self {
        Self {
            what: what.to_owned(),
            passed: false,
            found: found.into(),
        }
    }

    /// One or the other.
    pub fn of(what: &str, found: std::result::Result<String, String>) -> Self {
        match found {
            Ok(found) => Self::passed(what, found),
            Err(found) => Self::failed(what, found),
        }
    }

    /// Everything that stands in the way, as one error.
    ///
    /// # Errors
    /// [`Error::Refused`], naming each check that did not pass.
    pub fn verdict(checks: &[Self]) -> Result<()> {
        let failed: Vec<String> = checks
            .iter()
            .filter(|check| !check.passed)
            .map(|check| format!("{}: {}", check.what, check.found))
            .collect();
        if failed.is_empty() {
            return Ok(());
        }
        Err(Error::Refused(vbm_core::Error::new(
            ErrorKind::Conflict,
            "the VM cannot be moved like that",
            failed.join("; "),
            "remove what stands in the way, or choose another destination",
        )))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_number_has_a_limit_and_the_error_names_it() {
        let usual = MoveOptions::default();
        usual.check().unwrap();
        for (options, limit) in [
            (
                MoveOptions {
                    downtime_max_millis: 0,
                    ..usual.clone()
                },
                "1 to 60000 ms",
            ),
            (
                MoveOptions {
                    downtime_max_millis: u64::MAX,
                    ..usual.clone()
                },
                "1 to 60000 ms",
            ),
            (
                MoveOptions {
                    bandwidth_max_bytes: Some(1),
                    ..usual.clone()
                },
                "65536",
            ),
            (
                MoveOptions {
                    channels: 0,
                    ..usual.clone()
                },
                "1 to 16",
            ),
            (
                MoveOptions {
                    channels: 17,
                    ..usual.clone()
                },
                "1 to 16",
            ),
        ] {
            let error = vbm_core::Error::from(options.check().unwrap_err());
            assert_eq!(error.kind(), ErrorKind::InvalidInput);
            assert!(error.why().contains(limit), "{error}");
        }
    }

    #[test]
    fn options_of_an_older_side_are_the_usual_ones() {
        let options: MoveOptions = serde_json::from_str("{}").unwrap();
        assert_eq!(options, MoveOptions::default());
    }

    #[test]
    fn a_verdict_names_everything_that_stands_in_the_way() {
        let checks = [
            MoveCheck::passed("state", "it runs"),
            MoveCheck::failed("memory", "64 MiB are free, 96 are needed"),
            MoveCheck::failed("CPU", "Icelake-Server-v2 does not run here"),
        ];
        let error = vbm_core::Error::from(MoveCheck::verdict(&checks).unwrap_err());
        assert!(
            error.why().contains("memory: 64") && error.why().contains("CPU: Icelake"),
            "{error}"
        );
        MoveCheck::verdict(&checks[..1]).unwrap();
    }
}
