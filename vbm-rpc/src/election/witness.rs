//! Members bear witness: the highest epoch that each has seen, asked and told over the bus.

use super::Elections;
use crate::{Bus, CallOptions, Context, Method, Route, Router, limits};
use futures::{StreamExt as _, stream};
use serde::{Deserialize, Serialize};
use std::time::Duration;
use vbm_core::{Epoch, Error, ErrorKind, Name, NodePath};

/// A leader-to-be says its epoch; the member remembers it and says what was the highest before.
pub(super) struct Propose;

#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Proposal {
    election: String,
    epoch: Epoch,
}

#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Witness {
    /// The highest epoch before this one; nothing when this member does not remember this election.
    before: Option<Epoch>,
}

impl Method for Propose {
    const NAME: &'static str = "bus.election.propose";
    // It is what fences, and cannot be fenced itself.
    const FENCED: bool = false;
    // Small, and another answer the second time is the truth.
    const KEPT: bool = false;
    type Request = Proposal;
    type Reply = Witness;
}

pub(super) fn router(elections: Elections) -> Router {
    Router::new().method::<Propose, _, _>(move |_: Context, proposal: Proposal| {
        let elections = elections.clone();
        async move {
            if proposal.epoch.0 > limits::EPOCH_MAX {
                return Err(Error::new(
                    ErrorKind::InvalidInput,
                    "the epoch is not believed",
                    format!(
                        "it is {}; the highest possible one is {}",
                        proposal.epoch,
                        limits::EPOCH_MAX
                    ),
                    "find out who proposed it",
                ));
            }
            let before = elections.note(&proposal.election, proposal.epoch).await?;
            Ok(Witness { before })
        }
    })
}

/// Proposes an epoch to this process and to all members present below `scope` that can bear witness. Gives the highest
/// epoch that any of them saw before it; nothing when it cannot be known who is present.
pub(super) async fn ask(
    elections: &Elections,
    bus: &Bus,
    name: &Name,
    scope: &NodePath,
    epoch: Epoch,
    span: Duration,
) -> Option<Epoch> {
    let own = match elections.note(name.as_str(), epoch).await {
        Ok(before) => before.unwrap_or_default(),
        Err(error) => {
            tracing::warn!(election = %name, %error, "this process cannot remember the epoch");
            return None;
        }
    };
    let members = match bus.members(scope).await {
        Ok(members) => members,
        Err(error) => {
            tracing::warn!(election = %name, %error, "it cannot be known whom to ask about the epoch");
            return None;
        }
    };
    let witnesses = members
        .into_iter()
        .filter(|member| member.path != bus.member().path)
        .filter(|member| member.methods.iter().any(|method| method == Propose::NAME))
        .map(|member| async move {
            let proposal = Proposal {
                election: name.to_string(),
                epoch,
            };
            let options = CallOptions::default().deadline(span.min(limits::PROPOSE_DEADLINE));
            let route = Route::node(member.path.clone());
            (member.path, bus.call::<Propose>(&route, &proposal, options).await)
        });
    let mut answers = stream::iter(witnesses).buffer_unordered(limits::PROPOSE_PARALLEL_MAX);
    let mut highest = own;
    while let Some((path, answer)) = answers.next().await {
        match answer.map(|witness| witness.before.unwrap_or_default()) {
            Ok(before) if before.0 < limits::EPOCH_MAX => highest = highest.max(before),
            Ok(before) => tracing::warn!(election = %name, %path, %before, "such an epoch is not believed"),
            Err(fate) => tracing::warn!(election = %name, %path, %fate, "a member bears no witness"),
        }
    }
    Some(highest)
}
