//! The guard: seals what the writer writes, opens what the readers read. [`crate::auth`] decides; here are the
//! attachment's keys, its numbers, what it has seen, and the counting.
//!
//! | stream | seal | seen before? |
//! |---|---|---|
//! | `n:`, `r:` | tag by the pair's key | a [`Judge`] in this process: it is the only reader |
//! | `b` | signature | the same: each member for itself |
//! | `g:` | signature | claimed in Redis, once a read: any of the members may have had it |
//!
//! A claim is `SET <claim> <entry id> NX GET`: the first entry with a seal gets it, the same entry read again by whoever
//! takes it over finds its own id, a copy finds another. It lives as long as a copy could still be begun: the time that
//! a seal may be off, and the longest deadline in the entry.
//!
//! What is kept, and not on its way, is guarded in [`kept`].
//!
//! With [`Security::Off`] there is no guard, and no entry has a seal.

use super::{
    Core,
    connect::Down,
    keys::Keys as RedisKeys,
    lock,
    op::Target,
    pack::{self, Entry, PACK_MAX_BYTES, parse_id},
};
use crate::{
    BadInput, BusError, MemberInfo, Service,
    auth::{
        Bound, Counts, Judge, KeyId, KeyPair, Keys, PairKey, Refusal, Ring, SKEW_MAX, Security, Speaker,
        Trust, Trusted, Way, check_frames, in_time, open, seal_for_any, seal_for_one,
    },
    bad_input::{BadInputs, Said, Say},
    envelope, limits,
    transport::SendError,
};
use redis::{Value, pipe};
use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};
use vbm_core::NodePath;

mod kept;

pub(super) use kept::believed_by;

/// The largest content of an entry: one frame may be larger than what is packed together.
const CONTENT_MAX_BYTES: usize = PACK_MAX_BYTES + envelope::FRAME_MAX_BYTES;
/// The most keys of pairs that are kept.
const PAIRS_MAX: usize = 16_384;
/// How far a sender's reckoning of Redis' time may be behind that of a member that has just joined.
pub(super) const JOIN_SLACK: Duration = Duration::from_secs(2);
/// The bytes of a claim's name.
const CLAIM_BYTES: usize = 16;

/// What a pair's key belongs to: whether it seals, the other's path and key, my key.
type PairName = (bool, NodePath, KeyId, KeyId);

pub(super) struct Guard {
    namespace: String,
    me: NodePath,
    boot_id: String,
    session: u64,
    seq: AtomicU64,
    keys: Keys,
    trust: Trust,
    counts: Arc<Counts>,
    pairs: Mutex<HashMap<PairName, PairKey>>,
    judges: Mutex<HashMap<Arc<str>, Judge>>,
    /// What of the refusals was logged, by stream and reason.
    said: Said,
    /// Those of the attachment.
    bad: Arc<BadInputs>,
    presences: Mutex<kept::Presences>,
    /// When this member joined, by Redis' time: earlier broadcasts are for others.
    joined_ms: AtomicU64,
}

impl Guard {
    /// Nothing with security off.
    ///
    /// # Errors
    /// When nobody would believe this member, or the kernel gives no random bytes.
    pub(super) fn new(
        security: &Security,
        namespace: &str,
        me: &MemberInfo,
        (counts, bad): (&Arc<Counts>, Arc<BadInputs>),
    ) -> Result<Option<Self>, BusError> {
        let Security::On(keys, trust) = security else {
            return Ok(None);
        };
        let untrusted = |why: String| BusError::Untrusted {
            path: me.path.to_string(),
            why,
        };
        let id = keys.active().id();
        if trust.ring().find(&me.path, id).is_none() {
            return Err(untrusted(format!(
                "the trust list has no line for it with the key {id}"
            )));
        }
        let mut session = [0; 8];
        getrandom::fill(&mut session)
            .map_err(|e| untrusted(format!("the kernel gives no random bytes: {e}")))?;
        Ok(Some(Self {
            namespace: namespace.to_owned(),
            me: me.path.clone(),
            boot_id: me.boot_id.clone(),
            session: u64::from_be_bytes(session),
            seq: AtomicU64::new(1),
            keys: keys.clone(),
            trust: trust.clone(),
            counts: counts.clone(),
            pairs: Mutex::default(),
            judges: Mutex::default(),
            said: Said::default(),
            bad,
            presences: Mutex::default(),
            joined_ms: AtomicU64::new(0),
        }))
    }

    /// Whether an entry for that target can be sealed.
    pub(super) fn can_seal(&self, target: &Target) -> Result<(), SendError> {
        match receiver(target) {
            Some(path) if self.trust.ring().first(path).is_none() => Err(SendError::NoRoute(format!(
                "no key is trusted for {path}: add its line to the trust list of {}",
                self.me
            ))),
            _ => Ok(()),
        }
    }

    /// The seal of an entry; nothing when the receiver's key is not trusted any more, and the entry is then refused.
    pub(super) fn seal(&self, target: &Target, stream: &str, frames: &[u8], now_ms: u64) -> Vec<u8> {
        let (scope, service) = match target {
            Target::Shard { scope, service, .. } => (scope.to_string(), service.as_str()),
            _ => (String::new(), ""),
        };
        let bound = Bound {
            stream,
            scope: &scope,
            service,
            frames,
        };
        let speaker = self.speaker(now_ms);
        self.counts.sealed_one();
        let mine = self.keys.active();
        let Some(path) = receiver(target) else {
            return seal_for_any(mine, speaker, &bound);
        };
        let ring = self.trust.ring();
        let Some(other) = ring.first(path) else {
            return Vec::new();
        };
        match self.pair(other, mine, path, true) {
            Some(key) => seal_for_one(mine.id(), other.id, &key, speaker, &bound),
            None => Vec::new(),
        }
    }

    /// The key of a pair, derived at most once.
    fn pair(&self, other: &Trusted, mine: &KeyPair, path: &NodePath, sending: bool) -> Option<PairKey> {
        let name = (sending, path.clone(), other.id, mine.id());
        if let Some(key) = lock(&self.pairs).get(&name) {
            return Some(key.clone());
        }
        let way = match sending {
            true => Way::Sending {
                from: &self.me,
                to: path,
            },
            false => Way::Receiving {
                from: path,
                to: &self.me,
            },
        };
        let key = mine.pair(&other.key, &self.namespace, way)?;
        let mut pairs = lock(&self.pairs);
        if pairs.len() >= PAIRS_MAX {
            pairs.clear();
        }
        pairs.insert(name, key.clone());
        Some(key)
    }

    /// Checks everything about an entry but whether it was seen before.
    fn unseal(&self, ring: &Ring, stream: &str, for_one: bool, entry: &Entry) -> Result<Speaker, Refusal> {
        if entry.content.len() > CONTENT_MAX_BYTES {
            return Err(Refusal::Oversized {
                bytes: entry.content.len(),
                max: CONTENT_MAX_BYTES,
            });
        }
        let seal = entry.seal.as_ref().ok_or(Refusal::Missing)?;
        let bound = Bound {
            stream,
            scope: entry.scope.as_deref().unwrap_or_default(),
            service: entry.service.as_deref().unwrap_or_default(),
            frames: &entry.content,
        };
        let pair = |other: &Trusted, mine: &KeyPair, path: &NodePath| self.pair(other, mine, path, false);
        let (opened, trusted) = open(seal, &bound, for_one, &self.keys, ring, pair)?;
        check_frames(&opened.speaker, &trusted, ring, &entry.frames)?;
        Ok(opened.speaker)
    }

    /// Whether an entry of a stream that only this process reads, or each member for itself, may be looked at.
    fn open_own(&self, stream: &Arc<str>, for_one: bool, entry: &Entry) -> Result<(), Refusal> {
        let speaker = self.unseal(&self.trust.ring(), stream, for_one, entry)?;
        let place = parse_id(&entry.id).ok_or(Refusal::Malformed)?;
        let slack = u64::try_from(JOIN_SLACK.as_millis()).unwrap_or(u64::MAX);
        let since = self.joined_ms.load(Ordering::Relaxed).saturating_sub(slack);
        if !for_one && speaker.time_ms < since {
            let early_ms = since.saturating_add(slack).saturating_sub(speaker.time_ms);
            return Err(Refusal::BeforeJoined { early_ms });
        }
        lock(&self.judges)
            .entry(stream.clone())
            .or_default()
            .judge(&speaker, place)?;
        Ok(())
    }

    /// The same for an anycast stream, but for the claim.
    fn open_shared(&self, ring: &Ring, stream: &str, entry: &Entry) -> Result<(), Refusal> {
        let speaker = self.unseal(ring, stream, false, entry)?;
        let place = parse_id(&entry.id).ok_or(Refusal::Malformed)?;
        in_time(speaker.time_ms, place.0)
    }

    /// Notes the broadcasts that were there before this member, so that a copy of one is known.
    pub(super) fn note_earlier(&self, stream: &Arc<str>, entries: &[Entry]) {
        for entry in entries {
            // What does not open now does not open later.
            drop(self.open_own(stream, false, entry));
        }
    }

    fn refuse(&self, stream: &str, id: &str, refusal: &Refusal) {
        self.counts.refused_one(refusal);
        self.bad.count(BadInput::Seal);
        let name = refusal.name();
        match self.said.say(stream, refusal.index()) {
            Say::First | Say::Full => tracing::warn!(stream, id, reason = name, "it was refused: {refusal}"),
            Say::Nothing => tracing::debug!(stream, id, reason = name, "it was refused: {refusal}"),
        }
    }
}

/// Whose key a target's entries are sealed for; nothing where many may read them.
fn receiver(target: &Target) -> Option<&NodePath> {
    match target {
        Target::Control(path) | Target::Node(path) | Target::Inbox { path, .. } => Some(path),
        Target::Any { .. } | Target::AnyControl { .. } | Target::Shard { .. } => None,
    }
}

/// How long a copy of an entry could still be begun.
fn claim_ttl_ms(entry: &Entry) -> u64 {
    let longest = entry
        .frames
        .iter()
        .filter_map(|frame| envelope::peek(frame))
        .map(|frame| Duration::from_millis(frame.ttl_ms.into()))
        .max()
        .unwrap_or_default()
        .min(limits::DEADLINE_MAX);
    u64::try_from((SKEW_MAX * 2 + longest).as_millis()).unwrap_or(u64::MAX)
}

fn claim_name(seal: &[u8]) -> String {
    let hash = blake3::hash(seal);
    hex::encode(&hash.as_bytes()[..CLAIM_BYTES])
}

impl Core {
    /// Whether the frames of an entry may be looked at; one that may not is removed. Without a guard all may.
    ///
    /// `for_one` says whether this process is the only reader of the stream.
    pub(super) fn admits(&self, stream: &Arc<str>, for_one: bool, entry: &Entry) -> bool {
        let Some(guard) = &self.guard else { return true };
        if entry.admitted {
            return true;
        }
        match guard.open_own(stream, for_one, entry) {
            Ok(()) => {
                guard.counts.opened_one();
                true
            }
            Err(refusal) => {
                guard.refuse(stream, &entry.id, &refusal);
                false
            }
        }
    }

    /// Opens and claims the entries of one read of an anycast stream; those that are refused are removed.
    pub(super) async fn admit_shared(
        &self,
        stream: &Arc<str>,
        (scope, service): (&NodePath, &Service),
        entries: Vec<Entry>,
    ) -> Result<Vec<Entry>, Down> {
        let Some(guard) = &self.guard else {
            return Ok(entries);
        };
        let ring = guard.trust.ring();
        let refuse = |entry: &Entry, refusal: &Refusal| {
            guard.refuse(stream, &entry.id, refusal);
            self.complete(stream.clone(), entry.id.clone(), true);
        };
        let mut opened = Vec::with_capacity(entries.len());
        let mut claims = pipe();
        for mut entry in entries {
            if let Err(refusal) = guard.open_shared(&ring, stream, &entry) {
                refuse(&entry, &refusal);
                continue;
            }
            entry.admitted = true;
            claims
                .cmd("SET")
                .arg(claim_key(&self.keys, scope, service, &entry))
                .arg(&entry.id)
                .arg("NX")
                .arg("GET")
                .arg("PX")
                .arg(claim_ttl_ms(&entry));
            opened.push(entry);
        }
        if opened.is_empty() {
            return Ok(opened);
        }
        let connection = self.conn.borrow().clone();
        let mut connection =
            connection.ok_or_else(|| Down("there is no connection to claim entries with".into()))?;
        let answers = connection.run(&mut claims).await?;
        let mut ours = Vec::with_capacity(opened.len());
        for (entry, answer) in opened.into_iter().zip(answers) {
            match answer {
                Ok(Value::Nil) => {}
                Ok(before) if pack::text(&before) == Some(&entry.id) => {}
                Ok(_copy) => {
                    refuse(&entry, &Refusal::Replayed);
                    continue;
                }
                // Not known whether it is a copy: it stays in the group, and is read again.
                Err(why) => return Err(Down(why)),
            }
            guard.counts.opened_one();
            ours.push(entry);
        }
        Ok(ours)
    }

    /// Looks for a newer trust list.
    pub(super) async fn refresh_trust(&self) {
        let Some(trust) = self.guard.as_ref().map(|guard| guard.trust.clone()) else {
            return;
        };
        match tokio::task::spawn_blocking(move || trust.refresh()).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::warn!(%error, "the trust list stays as it was"),
            Err(panic) => tracing::error!(%panic, "the trust list stays as it was"),
        }
    }
}

fn claim_key(keys: &RedisKeys, scope: &NodePath, service: &Service, entry: &Entry) -> String {
    keys.claim(
        scope,
        service,
        &claim_name(entry.seal.as_deref().unwrap_or_default()),
    )
}
