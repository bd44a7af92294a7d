//! Leases on the transport's server: a name is one holder's for a time, under an epoch that grows with each taking.
//!
//! A lease says who *should* act; it cannot stop who was paused. What must not happen twice bears the epoch and is
//! refused by its receiver ([`EpochGate`](crate::EpochGate)).

use crate::{Bus, BusError, limits};
use std::time::Duration;
use vbm_core::{Epoch, Name};

/// A question about a lease, for transports.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum LeaseOp {
    /// Take it if it is free, under an epoch above the last one and above `floor`. Asked again by who has it, it
    /// answers the same and lasts `ttl` from now. With `blank` also where nothing was ever kept under the name.
    Take {
        /// Who asks: a word of this taking alone.
        holder: String,
        /// For how long.
        ttl: Duration,
        /// The highest epoch known elsewhere.
        floor: Epoch,
        /// Whether to take it where the server remembers no epoch at all.
        blank: bool,
    },
    /// Keep it for `ttl` from now if it is still `holder`'s under `epoch`.
    Renew {
        /// Who has it.
        holder: String,
        /// Under which epoch.
        epoch: Epoch,
        /// For how long.
        ttl: Duration,
    },
    /// Keep it for `ttl` from now under a higher epoch: above the last one and above `floor`.
    Raise {
        /// Who has it.
        holder: String,
        /// For how long.
        ttl: Duration,
        /// The highest epoch known elsewhere.
        floor: Epoch,
    },
    /// Give it back if it is `holder`'s.
    Release {
        /// Who has it.
        holder: String,
    },
    /// Only look.
    Look,
}

/// What a transport's server says about a lease.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum LeaseAnswer {
    /// The asker has it, under this epoch.
    Mine(Epoch),
    /// Somebody else has it.
    Held {
        /// Who.
        holder: String,
        /// Under which epoch.
        epoch: Epoch,
        /// How much longer, if not renewed.
        left: Duration,
    },
    /// Nobody has it; the last epoch was this.
    Free(Epoch),
    /// Nobody has it and no epoch is remembered: nobody ever had it, or the server has lost its memory.
    Blank,
}

/// Who holds a lease.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Holder {
    /// The word that it was taken with. A [`Campaign`](super::Campaign)'s begins with its member's path and a `|`.
    pub holder: String,
    /// Under which epoch.
    pub epoch: Epoch,
    /// How much longer, if not renewed.
    pub left: Duration,
}

/// The leases of the transport's server. For leadership use [`Elections`](super::Elections), which also asks the
/// members and fences; this is the bare lease.
#[derive(Clone, Debug)]
pub struct Leases {
    bus: Bus,
}

impl Bus {
    /// The leases of the transport's server.
    pub fn leases(&self) -> Leases {
        Leases { bus: self.clone() }
    }
}

impl Leases {
    /// Takes a lease if it is free: `Ok(Some(epoch))`. `holder` is a word of this taking alone; `ttl` is between
    /// [`LEASE_MIN`](limits::LEASE_MIN) and [`LEASE_MAX`](limits::LEASE_MAX). The holder counts the time from before
    /// it asked, on a monotonic clock.
    ///
    /// # Errors
    /// When the server does not answer, or the transport has no leases. It may have been taken all the same.
    ///
    /// # Cancel safety
    /// A dropped future may have taken it; it runs out.
    pub async fn take(&self, name: &Name, holder: &str, ttl: Duration) -> Result<Option<Epoch>, BusError> {
        let op = LeaseOp::Take {
            holder: holder.to_owned(),
            ttl: clamp(ttl),
            floor: Epoch(0),
            blank: true,
        };
        self.mine(name, op).await
    }

    /// Keeps a lease for `ttl` from now; `Ok(None)` when it is lost.
    ///
    /// # Errors
    /// When the server does not answer. It may have been renewed all the same.
    ///
    /// # Cancel safety
    /// A dropped future may have renewed it.
    pub async fn renew(
        &self,
        name: &Name,
        holder: &str,
        epoch: Epoch,
        ttl: Duration,
    ) -> Result<Option<Epoch>, BusError> {
        let op = LeaseOp::Renew {
            holder: holder.to_owned(),
            epoch,
            ttl: clamp(ttl),
        };
        self.mine(name, op).await
    }

    async fn mine(&self, name: &Name, op: LeaseOp) -> Result<Option<Epoch>, BusError> {
        Ok(match self.bus.lease(name, &op).await? {
            LeaseAnswer::Mine(epoch) => Some(epoch),
            _ => None,
        })
    }

    /// Gives a lease back, if it is still the holder's.
    ///
    /// # Errors
    /// When the server does not answer; the lease then runs out.
    ///
    /// # Cancel safety
    /// A dropped future may have given it back.
    pub async fn release(&self, name: &Name, holder: &str) -> Result<(), BusError> {
        let holder = holder.to_owned();
        self.bus.lease(name, &LeaseOp::Release { holder }).await.map(drop)
    }

    /// Who has it now, as the server sees it.
    ///
    /// # Errors
    /// When the server does not answer.
    pub async fn look(&self, name: &Name) -> Result<Option<Holder>, BusError> {
        Ok(match self.bus.lease(name, &LeaseOp::Look).await? {
            LeaseAnswer::Held { holder, epoch, left } => Some(Holder { holder, epoch, left }),
            _ => None,
        })
    }
}

pub(super) fn clamp(ttl: Duration) -> Duration {
    ttl.clamp(limits::LEASE_MIN, limits::LEASE_MAX)
}
