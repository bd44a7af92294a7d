//! The guard over what is kept: presence, recorded answers, tickets, dead letters. What does not open is counted, logged
//! once for each place and reason, and counts as not there.

use super::{Guard, Trust, lock};
use crate::{
    MemberInfo, Route,
    auth::{
        Bound, Counts, PRESENT_MAX_AGE, PRESENT_RENEW, Place, Refusal, Ring, Speaker, Writer,
        keep_for_others, keep_for_self, open_kept, open_presence, seal_for_any, seal_presence,
    },
    envelope::{EndCode, Envelope, Kind},
    transport::{Destination, TicketPlace},
};
use bytes::Bytes;
use std::{collections::HashMap, sync::atomic::Ordering, time::Duration};
use vbm_core::NodePath;

/// The most presences whose seal is remembered to fit.
const SEEN_MAX: usize = 16_384;

/// What the guard remembers of presences.
#[derive(Default)]
pub(super) struct Presences {
    /// My own, as it was sealed last, and when.
    mine: Option<(u64, String, String)>,
    /// The hash of what fitted last and the time in its seal, by path: a signature is checked once.
    seen: HashMap<NodePath, (blake3::Hash, u64)>,
    /// What stands at my place and is a forgery: the next heartbeat writes over it.
    forged: Option<String>,
}

fn ms(span: Duration) -> u64 {
    u64::try_from(span.as_millis()).unwrap_or(u64::MAX)
}

/// The member of a presence, if its own key says so.
fn believed(
    ring: &Ring,
    key: &str,
    path: &NodePath,
    text: &str,
    now_ms: u64,
) -> Result<(MemberInfo, u64), Refusal> {
    let (speaker, json) = open_presence(ring, key, text, now_ms)?;
    let member: MemberInfo = serde_json::from_str(&json).map_err(|_| Refusal::Malformed)?;
    if speaker.path != *path || member.path != *path || member.boot_id != speaker.boot_id {
        return Err(Refusal::NoSay { sender: speaker.path });
    }
    Ok((member, speaker.time_ms))
}

/// The same for who has no keys of its own: the operator.
pub(in super::super) fn believed_by(
    (trust, counts): (&Trust, &Counts),
    key: &str,
    path: &NodePath,
    text: &str,
    now_ms: u64,
) -> Option<MemberInfo> {
    match believed(&trust.ring(), key, path, text, now_ms) {
        Ok((member, _)) => Some(member),
        Err(refusal) => {
            counts.refused_one(&refusal);
            tracing::warn!(
                key,
                reason = refusal.name(),
                "a presence is not believed: {refusal}"
            );
            None
        }
    }
}

impl Guard {
    /// Who speaks, in the next seal.
    pub(super) fn speaker(&self, now_ms: u64) -> Speaker {
        Speaker {
            path: self.me.clone(),
            boot_id: self.boot_id.clone(),
            session: self.session,
            seq: self.seq.fetch_add(1, Ordering::Relaxed),
            time_ms: now_ms,
        }
    }

    /// My presence with its seal, made anew when it is old.
    pub(in super::super) fn presence(&self, key: &str, json: &str, now_ms: u64) -> String {
        let mut presences = lock(&self.presences);
        if let Some((at, of, sealed)) = &presences.mine
            && of == json
            && now_ms.abs_diff(*at) < ms(PRESENT_RENEW)
        {
            return sealed.clone();
        }
        self.counts.sealed_one();
        let sealed = seal_presence(self.keys.active(), self.speaker(now_ms), key, json);
        presences.mine = Some((now_ms, json.to_owned(), sealed.clone()));
        sealed
    }

    /// The member that a presence shows; nothing when it is forged.
    pub(in super::super) fn member(
        &self,
        key: &str,
        path: &NodePath,
        text: &str,
        now_ms: u64,
    ) -> Option<MemberInfo> {
        let hash = blake3::hash(text.as_bytes());
        let fits = lock(&self.presences)
            .seen
            .get(path)
            .is_some_and(|(seen, at)| *seen == hash && now_ms.abs_diff(*at) <= ms(PRESENT_MAX_AGE));
        if fits {
            return serde_json::from_str(text).ok();
        }
        match believed(&self.trust.ring(), key, path, text, now_ms) {
            Ok((member, time_ms)) => {
                self.counts.opened_one();
                let mut presences = lock(&self.presences);
                if presences.seen.len() >= SEEN_MAX {
                    presences.seen.clear();
                }
                presences.seen.insert(path.clone(), (hash, time_ms));
                Some(member)
            }
            Err(refusal) => {
                self.refuse(key, "presence", &refusal);
                None
            }
        }
    }

    /// What stands at my place of presence is a forgery.
    pub(in super::super) fn forged(&self, text: &str) {
        lock(&self.presences).forged = Some(text.to_owned());
    }

    /// The forgery that the next heartbeat writes over; empty when there is none.
    pub(in super::super) fn to_overwrite(&self) -> String {
        lock(&self.presences).forged.clone().unwrap_or_default()
    }

    /// Seals what one batch keeps: what this member leaves to itself, and what others read.
    pub(in super::super) fn keep(
        &self,
        now_ms: u64,
        own: &[(Place<'_>, &[u8])],
        others: &[(Place<'_>, &[u8])],
    ) -> (Vec<Bytes>, Vec<Bytes>) {
        let (pair, by) = (self.keys.active(), (&self.me, now_ms));
        let own: Vec<Bytes> = own
            .iter()
            .map(|(place, value)| keep_for_self(pair, by, *place, value))
            .collect();
        let others = keep_for_others(pair, by, others);
        for _ in own.iter().chain(&others) {
            self.counts.sealed_one();
        }
        (own, others)
    }

    /// The value of something kept, from who may say it.
    fn open(
        &self,
        place: Place<'_>,
        raw: &Bytes,
        may: impl FnOnce(&Writer, &Bytes) -> bool,
    ) -> Result<Bytes, Refusal> {
        let (writer, value) = open_kept(raw, place, Some(&self.keys), &self.trust.ring())?;
        match may(&writer, &value) {
            true => Ok(value),
            false => Err(Refusal::NoSay { sender: writer.path }),
        }
    }

    fn counted(&self, place: Place<'_>, opened: Result<Bytes, Refusal>) -> Option<Bytes> {
        match opened {
            Ok(value) => {
                self.counts.opened_one();
                Some(value)
            }
            Err(refusal) => {
                self.refuse(place.key, &String::from_utf8_lossy(place.field), &refusal);
                None
            }
        }
    }

    /// A recorded answer of `home`: from this member itself, or from any that serves there.
    pub(in super::super) fn open_answer(&self, home: &Route, place: Place<'_>, raw: &Bytes) -> Option<Bytes> {
        let may = |writer: &Writer, _: &Bytes| match home {
            Route::Node(path) => writer.own && writer.path == *path,
            _ => may_answer(home, &writer.path),
        };
        self.counted(place, self.open(place, raw, may))
    }

    /// What the submitter of a ticket wrote.
    pub(in super::super) fn open_opened(&self, place: Place<'_>, raw: &Bytes) -> Option<Bytes> {
        self.counted(place, self.open(place, raw, |_, _| true))
    }

    /// Who has begun: only who may.
    pub(in super::super) fn open_begun(&self, home: &Route, place: Place<'_>, raw: &Bytes) -> Option<Bytes> {
        let may = |writer: &Writer, _: &Bytes| may_answer(home, &writer.path);
        self.counted(place, self.open(place, raw, may))
    }

    /// How a ticket ended: from who may answer it, in its own name; that it was lost or given up from any reader.
    pub(in super::super) fn open_end(
        &self,
        ticket: &TicketPlace,
        place: Place<'_>,
        raw: &Bytes,
    ) -> Option<Bytes> {
        let may = |writer: &Writer, end: &Bytes| {
            let Ok(end) = Envelope::decode(end) else {
                return false;
            };
            let code = end.body.first().copied().and_then(EndCode::from_byte);
            let given_up = end.kind == Kind::End && matches!(code, Some(EndCode::Lost | EndCode::Cancelled));
            end.id == ticket.id
                && end.caller == writer.path
                && (given_up || may_answer(&ticket.home, &writer.path))
        };
        self.counted(place, self.open(place, raw, may))
    }

    /// Vouches for a dead letter: this member had it, and gave it up for that reason.
    pub(in super::super) fn vouch(
        &self,
        dead_letters: &str,
        about: &str,
        frames: &[u8],
        now_ms: u64,
    ) -> Vec<u8> {
        self.counts.sealed_one();
        let bound = Bound {
            stream: dead_letters,
            scope: about,
            service: "",
            frames,
        };
        seal_for_any(self.keys.active(), self.speaker(now_ms), &bound)
    }

    /// Broadcasts that were sealed before then are for others.
    pub(in super::super) fn joined(&self, at_ms: u64) {
        self.joined_ms.store(at_ms, Ordering::Relaxed);
    }
}

fn may_answer(home: &Route, path: &NodePath) -> bool {
    Destination::Route(home.clone()).may_answer(path)
}
