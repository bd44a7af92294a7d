//! Leader election: of all candidates for a name one leads, under an epoch that only grows.
//!
//! ```text
//!   candidate                     Redis                        members (Elections::serve)
//!      | take the lease             |                                |
//!      |--------------------------->| epoch = max(kept, floor) + 1   |
//!      |<---- mine, epoch 8 --------|                                |
//!      | propose 8 to all present --|------------------------------->| remember 8, say what was the highest before
//!      |<---------------------------|--------------------------- 9 --|
//!      | raise above 9 ------------>| epoch = max(8, 9) + 1 = 10     |
//!      | propose 10 ----------------|------------------------------->| remember 10; 8 and 9 are refused from now on
//!      | leads under 10             |                                |
//! ```
//!
//! What it promises:
//! - *One at a time*, by the lease: a leader has stopped ([`Term::is_valid`], [`Term::lost`]) a margin before another
//!   may take over, counted on its own monotonic clock from before it asked. This holds as long as Redis keeps the
//!   lease; after a loss of Redis' memory nobody takes over for one whole lease.
//! - *No harm by a stale leader*, by the epoch: who commands bears [`Term::epoch`], and who obeys has an
//!   [`EpochGate`](crate::EpochGate). A leader that was paused, cut off, or whose lease was forgotten, is refused by everyone
//!   who has heard of its successor: and a successor tells all who are present before it leads.
//! - *The epoch only grows*, also when Redis has lost its newest writes or all of them: members remember the highest
//!   epoch they saw ([`EpochMemory`]; [`FileEpochGate`] also across restarts), and no one leads under an epoch that a
//!   member who answers has seen.
//!
//! What it does not: a member that does not answer while a leader is elected (dead, cut off) may have seen a higher
//! epoch, if Redis has lost that too. It then refuses the new leader's commands as stale: the leader calls
//! [`Campaign::stand_down`], and the next term is above what this member saw.
//!
//! The platform's own leadership is not this one: it lives in the platform's store, whose transactions compare the epoch
//! (`vbm-sdk`, `controller::leadership`). This one is for those who use the bus without that store.

mod campaign;
mod decide;
mod gate;
mod lease;
mod witness;

pub use campaign::{Campaign, Term};
pub use gate::{EpochMemory, FileEpochGate};
pub use lease::{Holder, LeaseAnswer, LeaseOp, Leases};

use crate::{Bus, BusError, Router, limits};
use std::{collections::BTreeMap, sync::Arc, time::Duration};
use vbm_core::{Epoch, Error, Name, NodePath};

/// How a candidate stands for election.
#[derive(Clone, Debug)]
#[must_use]
pub struct CampaignOptions {
    lease: Duration,
    scope: NodePath,
}

impl Default for CampaignOptions {
    fn default() -> Self {
        Self {
            lease: limits::LEASE_DEFAULT,
            scope: NodePath::root(),
        }
    }
}

impl CampaignOptions {
    /// How long a leader leads without renewing, and so the longest that nobody leads after a crash. It renews three
    /// times as often. Between [`LEASE_MIN`](limits::LEASE_MIN) and [`LEASE_MAX`](limits::LEASE_MAX).
    pub fn lease(mut self, lease: Duration) -> Self {
        self.lease = lease::clamp(lease);
        self
    }

    /// Only members below this scope are asked what they saw: those who are commanded by this leader.
    pub fn scope(mut self, scope: NodePath) -> Self {
        self.scope = scope;
        self
    }

    /// How much earlier than its lease a leader ends.
    fn margin(&self) -> Duration {
        self.lease / 5
    }

    /// How often a follower looks, and how soon something that failed is tried again.
    fn poll(&self) -> Duration {
        (self.lease / 10).clamp(Duration::from_millis(50), Duration::from_millis(300))
    }
}

/// What a process knows of elections: which epochs it remembers, for itself and for those who ask. Cheap to clone.
///
/// ```
/// use std::sync::Arc;
/// use vbm_rpc::{Bus, Member, MemoryEpochGate, Router, memory::MemoryBus};
/// use vbm_rpc::election::{CampaignOptions, Elections};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// // Whoever is commanded remembers, and refuses who is stale. FileEpochGate remembers across restarts.
/// let gate = Arc::new(MemoryEpochGate::default());
/// let elections = Elections::new().remember("control".parse()?, gate.clone());
/// let router = elections.serve(Router::new().with_epoch_gate(gate));
/// let bus = Bus::attach(MemoryBus::new(), Member::new("eu/c1".parse()?, "boot-1"), router).await?;
///
/// let mut campaign = elections.campaign(&bus, "control".parse()?, CampaignOptions::default())?;
/// let term = campaign.elected().await?;
/// assert!(term.is_valid());
/// // bus.call::<M>(&route, &request, term.options()).await ... until term.lost().await
/// campaign.stop().await; // hands over at once
/// bus.shutdown().await;
/// # Ok(()) }
/// ```
#[derive(Clone, Default)]
pub struct Elections {
    memories: BTreeMap<String, Arc<dyn EpochMemory>>,
}

impl Elections {
    /// Remembers nothing.
    pub fn new() -> Self {
        Self::default()
    }

    /// Remembers the epochs of the leaders elected under `name` in `memory`. Give the same one to
    /// [`Router::with_epoch_gate`], so that what is remembered is also enforced.
    #[must_use]
    pub fn remember(mut self, name: Name, memory: Arc<dyn EpochMemory>) -> Self {
        self.memories.insert(name.to_string(), memory);
        self
    }

    /// The router, answering candidates too.
    pub fn serve(&self, router: Router) -> Router {
        router.merge(witness::router(self.clone()))
    }

    /// Stands for election, until the campaign is stopped or dropped, or the bus ends.
    ///
    /// # Errors
    /// When the bus is shut down.
    pub fn campaign(&self, bus: &Bus, name: Name, options: CampaignOptions) -> Result<Campaign, BusError> {
        campaign::start(self.clone(), bus, name, options)
    }

    fn memory(&self, name: &str) -> Option<&Arc<dyn EpochMemory>> {
        self.memories.get(name)
    }

    /// Notes an epoch here; gives the highest before it.
    async fn note(&self, name: &str, epoch: Epoch) -> Result<Option<Epoch>, Error> {
        match self.memory(name) {
            Some(memory) => memory.note(epoch).await.map(Some),
            None => Ok(None),
        }
    }
}

impl std::fmt::Debug for Elections {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(self.memories.keys()).finish()
    }
}
