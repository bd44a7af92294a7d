//! What all records have in common.

use crate::{Error, Generation, Name, NodePath, Timestamp, error::invalid, limits};
use serde::{Deserialize, Serialize};
use std::{collections::BTreeMap, fmt};

/// The head of every record.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct Meta<Id> {
    /// Never changes, never re-used.
    pub id: Id,
    /// What people call it; unique within its kind.
    pub name: Name,
    /// Grows with each change of the spec.
    pub generation: Generation,
    /// Free `key=value` text for people and programs.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    /// When the record was made.
    pub created_at: Timestamp,
    /// Set once deletion was asked for: what it holds on hosts is being torn down.
    #[serde(default)]
    pub deleting: bool,
}

impl<Id> Meta<Id> {
    /// The head of a new record.
    pub const fn new(id: Id, name: Name, created_at: Timestamp) -> Self {
        Self {
            id,
            name,
            generation: Generation(1),
            labels: BTreeMap::new(),
            created_at,
            deleting: false,
        }
    }
}

/// The kinds of records.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
#[expect(missing_docs, reason = "each is the noun of its own module")]
pub enum Kind {
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
    Controller,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Vm => "vm",
            Self::Image => "image",
            Self::Volume => "volume",
            Self::Network => "network",
            Self::Port => "port",
            Self::Group => "group",
            Self::Forward => "forward",
            Self::FloatingIp => "floating-ip",
            Self::Snapshot => "snapshot",
            Self::Node => "node",
            Self::Operation => "operation",
            Self::Controller => "controller",
        })
    }
}

/// Points at a record in an operation, an event or a log line.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct ObjectRef {
    /// Its kind.
    pub kind: Kind,
    /// Its id; of a node, its path.
    pub id: String,
    /// Its name when this was written.
    pub name: String,
}

impl ObjectRef {
    /// Points at a record.
    pub fn new(kind: Kind, id: impl fmt::Display, name: impl fmt::Display) -> Self {
        Self {
            kind,
            id: id.to_string(),
            name: name.to_string(),
        }
    }

    /// Points at a node.
    pub fn node(path: &NodePath) -> Self {
        Self::new(Kind::Node, path, path)
    }
}

impl fmt::Display for ObjectRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.kind, self.name)
    }
}

/// Checks labels against the limits.
///
/// # Errors
/// Too many labels, an empty key, or a key or value that is too long.
pub fn check_labels(labels: &BTreeMap<String, String>) -> Result<(), Error> {
    let fix = "use at most 64 labels with keys and values of 1 to 256 bytes";
    if labels.len() > limits::LABELS_MAX {
        return Err(invalid(
            "too many labels",
            format!("{} were given", labels.len()),
            fix,
        ));
    }
    match labels
        .iter()
        .find(|(k, v)| k.is_empty() || k.len() > limits::LABEL_MAX_BYTES || v.len() > limits::LABEL_MAX_BYTES)
    {
        Some((key, _)) => Err(invalid(
            format!("label '{key:.32}' is not valid"),
            "its key is empty, or key or value is too long",
            fix,
        )),
        None => Ok(()),
    }
}
