//! Which request a command to a node belongs to.
//!
//! ```text
//!   HTTP request --Ambient--> operation.trace --store--> the leader's World --> keeper, mover --Ambient--> TraceLayer --> node
//! ```
//!
//! A request writes down what is wanted, and the leader, perhaps in another process, sees to it later. The operation
//! carries the trace from one to the other.

use super::plan::World;
use crate::methods::WantedVm;
use crate::records::Held;
use std::collections::BTreeMap;
use vbm_core::{Operation, OperationState};
use vbm_rpc::layers::{Ambient, TraceContext};

/// The traces of operations that go on, by the id of what they are about.
#[derive(Clone, Debug, Default)]
pub(crate) struct Traces(BTreeMap<String, TraceContext>);

impl Traces {
    /// Of these, which begin with the oldest: of several about one thing the newest counts.
    pub(super) fn of(operations: &[Held<Operation>]) -> Self {
        let running = operations.iter().map(|held| &held.value);
        let running = running.filter(|operation| operation.state == OperationState::Running);
        Self(
            running
                .filter_map(|o| Some((o.target.id.clone(), o.trace.as_ref()?.parse().ok()?)))
                .collect(),
        )
    }

    /// What a task knows that works for the request about one of these.
    fn ambient(&self, ids: impl IntoIterator<Item = String>) -> Ambient {
        let mut ambient = Ambient::default();
        ambient.trace = ids.into_iter().find_map(|id| self.0.get(&id).copied());
        ambient
    }
}

impl World {
    /// For commands about this thing.
    pub(super) fn on_behalf(&self, id: impl ToString) -> Ambient {
        self.traces.ambient([id.to_string()])
    }

    /// For commands about this VM and its snapshots.
    pub(super) fn on_behalf_of_vm(&self, wanted: &WantedVm) -> Ambient {
        let taken = wanted.take.iter().map(ToString::to_string);
        let dropped = wanted.drop.iter().map(|(id, _)| id.to_string());
        let reverted = wanted.revert.iter().map(|revert| revert.snapshot.to_string());
        self.traces.ambient(
            std::iter::once(wanted.id.to_string())
                .chain(taken)
                .chain(dropped)
                .chain(reverted),
        )
    }
}
