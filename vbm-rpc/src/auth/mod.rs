//! Who wrote an entry: keys, trust, seals.
//!
//! ```text
//!   writer                                            reader, taker
//!     | frames for one key of Redis                     | entry: id, frames, seal
//!     v                                                 v
//!   Keys (mine) + Ring (theirs)                       Ring: may this key speak for this path?
//!     | unicast, reply: MAC by the pair's key           | MAC or signature over stream, sender, time, number, frames
//!     | anycast, broadcast: signature                   | Judge: written when it says? seen before?
//!     v                                                 v
//!   seal --------------------- Redis -------------->  frames, or a [`Refusal`]
//! ```
//!
//! One seal covers one stream *entry*, which holds up to 256 frames: a call costs a share of it.
//!
//! - *Unicast and replies* have one reader, whose key is known: both sides derive the same key from X25519 of their
//!   long-term keys, the namespace, both paths, both key ids and the direction, once a pair. A tag is one keyed BLAKE3.
//! - *Anycast and broadcast* have readers that the sender does not know: Ed25519 over a BLAKE3 digest.
//! - The seal names the stream it was made for, so an entry cannot be moved to another queue; the sender's path, boot id
//!   and session; a number that grows within the session; Redis' time as the sender reckoned it. No client's clock counts.
//! - What a key may say stands in the [`Ring`]: its path, which epochs it may command in, whether it may put back what
//!   others sent. A frame inside that claims another caller is refused with its whole entry.
//!
//! What is kept in Redis and read by others is sealed too: presence ([`seal_presence`]), recorded answers and tickets
//! ([`keep_for_others`]: one signature a batch; [`keep_for_self`]: a tag, for one's own next life), dead letters.
//!
//! Everything here is a function of its arguments; the glue to Redis is `transport::redis::guard`. What is protected
//! against whom, and what is not: `docs/rpc/security.md`.

mod file;
mod judge;
mod kept;
mod keys;
mod open;
mod present;
mod refusal;
mod seal;
mod trust;

pub use file::Keys;
pub use judge::{Judge, SKEW_MAX, Seen, in_time};
pub use kept::{Place, TREE_MAX_LEAVES, Writer, keep_for_others, keep_for_self, open_kept};
pub use keys::{KeyId, KeyPair, PairKey, PublicKey, Way};
pub(crate) use open::check_frames;
pub use open::{Opened, open, open_for_any};
pub use present::{PRESENT_MAX_AGE, PRESENT_RENEW, open_presence, seal_presence};
pub use refusal::{Counts, Refusal};
pub use seal::{Bound, Header, SEAL_MAX_BYTES, Speaker, seal_for_any, seal_for_one};
pub use trust::{Epochs, Ring, Trust, TrustSource, Trusted};

use std::{
    fmt,
    sync::atomic::{AtomicU64, Ordering},
};
use uuid::Uuid;
use vbm_core::IdSource;

/// Whether entries are sealed and opened.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub enum Security {
    /// Entries are taken as they are: for a bus inside one machine, where who reaches Redis is trusted.
    #[default]
    Off,
    /// What this process writes is sealed with its keys; what is not sealed by a trusted key is refused.
    On(Keys, Trust),
}

/// Ids that nobody can guess from others: a reply can only be forged by who has seen its request.
pub(crate) struct SecretIds {
    key: [u8; 32],
    next: AtomicU64,
}

impl SecretIds {
    /// # Errors
    /// When the kernel gives no random bytes.
    pub(crate) fn new() -> Result<Self, vbm_core::Error> {
        Ok(Self {
            key: keys::random()?,
            next: AtomicU64::new(1),
        })
    }
}

impl IdSource for SecretIds {
    fn next(&self) -> Uuid {
        let count = self.next.fetch_add(1, Ordering::Relaxed);
        let hash = blake3::keyed_hash(&self.key, &count.to_be_bytes());
        let (id, _) = hash.as_bytes().split_at(16);
        Uuid::from_slice(id).unwrap_or_default()
    }
}

impl fmt::Debug for SecretIds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SecretIds(..)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secret_ids_differ_from_each_other_and_between_processes() {
        let (a, b) = (SecretIds::new().unwrap(), SecretIds::new().unwrap());
        let all: std::collections::HashSet<_> = (0..1_000).flat_map(|_| [a.next(), b.next()]).collect();
        assert_eq!(all.len(), 2_000);
    }
}
