//! Who is on the bus.

use crate::{BusError, Service, limits};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use vbm_core::{Epoch, NodePath};

/// Who I am on the bus: one attachment of one process.
///
/// A path is an address: two live members with one path cannot both be reached. The one that attached last
/// wins; the other is told ([`BusError::Displaced`]) and stops serving.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    /// My address.
    pub path: NodePath,
    /// Names this run of the process; another run has another one. Also part of the name of my reply inbox.
    pub boot_id: String,
    /// What I offer. A pure client offers nothing.
    pub services: Vec<Service>,
    /// The epoch I know, for others to see.
    pub epoch: Epoch,
}

impl Member {
    /// A member that offers nothing.
    pub fn new(path: NodePath, boot_id: impl Into<String>) -> Self {
        Self {
            path,
            boot_id: boot_id.into(),
            services: Vec::new(),
            epoch: Epoch::default(),
        }
    }

    /// The same member, offering `service` too.
    #[must_use]
    pub fn service(mut self, service: impl Into<Service>) -> Self {
        let service = service.into();
        if !self.services.contains(&service) {
            self.services.push(service);
        }
        self
    }

    /// The same member, knowing `epoch`.
    #[must_use]
    pub const fn epoch(mut self, epoch: Epoch) -> Self {
        self.epoch = epoch;
        self
    }

    /// Checks the limits and adds what the router can do.
    pub(crate) fn into_info(self, methods: Vec<String>) -> Result<MemberInfo, BusError> {
        let refuse = |why: String| Err(BusError::InvalidMember { why });
        let boot = self.boot_id.as_bytes();
        if boot.is_empty() || boot.len() > limits::BOOT_ID_MAX_BYTES {
            return refuse(format!(
                "the boot id has {} bytes; 1 to {} are allowed",
                boot.len(),
                limits::BOOT_ID_MAX_BYTES
            ));
        }
        if !boot
            .iter()
            .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'))
        {
            return refuse(
                "the boot id holds a character other than letters, digits, '-', '_' and '.'".into(),
            );
        }
        if self.services.len() > limits::MEMBER_MAX_SERVICES {
            return refuse(format!(
                "it offers {} services; {} are allowed",
                self.services.len(),
                limits::MEMBER_MAX_SERVICES
            ));
        }
        Ok(MemberInfo {
            path: self.path,
            boot_id: self.boot_id,
            services: self.services,
            methods,
            versions: BTreeMap::new(),
            epoch: self.epoch,
        })
    }
}

/// A live member, as presence shows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct MemberInfo {
    /// Its address.
    pub path: NodePath,
    /// Its run.
    pub boot_id: String,
    /// What it offers.
    #[serde(default)]
    pub services: Vec<Service>,
    /// The names of the methods it answers, sorted.
    #[serde(default)]
    pub methods: Vec<String>,
    /// The [version](crate::Method::VERSION) of each of its methods, by name; empty in what old members show.
    #[serde(default)]
    pub versions: BTreeMap<String, u32>,
    /// The epoch it knew when it attached.
    #[serde(default)]
    pub epoch: Epoch,
}

impl MemberInfo {
    /// Whether it stands below `scope` and offers `service`.
    pub fn serves(&self, scope: &NodePath, service: &Service) -> bool {
        scope.contains(&self.path) && self.services.contains(service)
    }
}
