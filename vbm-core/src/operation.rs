//! Operations: things that take time. Each has steps, and ends once.

use crate::{Error, Generation, ObjectRef, OperationId, Timestamp};
use serde::{Deserialize, Serialize};
use std::fmt;

/// An operation: its record in the store.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct Operation {
    /// Its id.
    pub id: OperationId,
    /// What it does: `launch`, `delete`, `start`, ...
    pub verb: String,
    /// What it does it to.
    pub target: ObjectRef,
    /// How far it is.
    pub state: OperationState,
    /// What it has done and does now.
    #[serde(default)]
    pub steps: Vec<Step>,
    /// The generation of the target that it is about: it is over when the host has reached it.
    #[serde(default)]
    pub generation: Generation,
    /// When it was asked for.
    pub created_at: Timestamp,
    /// When it ended.
    #[serde(default)]
    pub ended_at: Option<Timestamp>,
    /// Why it failed, if so.
    #[serde(default)]
    pub error: Option<Error>,
    /// The request that asked for it, as a `traceparent` of W3C Trace Context: its trace id stands in the log of every
    /// process that works for it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trace: Option<String>,
}

/// How far an operation is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[serde(rename_all = "kebab-case")]
pub enum OperationState {
    /// Being worked on.
    Running,
    /// The wanted state was seen.
    Done,
    /// It cannot be reached; the error says why.
    Failed,
}

impl OperationState {
    /// Whether it is over.
    pub const fn is_final(self) -> bool {
        !matches!(self, Self::Running)
    }
}

impl fmt::Display for OperationState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Running => "running",
            Self::Done => "done",
            Self::Failed => "failed",
        })
    }
}

/// A part of an operation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct Step {
    /// What it is.
    pub name: String,
    /// How far it is.
    pub state: StepState,
    /// When that was written.
    pub at: Timestamp,
}

/// How far a step is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[serde(rename_all = "kebab-case")]
#[expect(missing_docs, reason = "the words say it")]
pub enum StepState {
    Running,
    Done,
    Failed,
}
