//! Sealing: pure functions from keys, place and content to the bytes of an entry's seal.
//!
//! ```text
//!  0       1      2          10           18        26    34       42        44          .          .
//!  +-------+------+----------+------------+---------+-----+--------+---------+------+----------+------+-----+
//!  |version| sort |sender key|receiver key| session | seq |time ms |path len | path | boot len | boot | tag |
//!  +-------+------+----------+------------+---------+-----+--------+---------+------+----------+------+-----+
//! ```
//!
//! All numbers are big-endian; the length of the path has two bytes, that of the boot id one. Sort 1 is a tag of 32
//! bytes (keyed BLAKE3), sort 2 an Ed25519 signature of 64 bytes over a BLAKE3 digest, with zeros for the receiver's key.
//! Both are over: everything before the tag; then the stream's key, the scope and the service, each behind its length as
//! u32; then the packed frames behind their length as u32.

use super::{
    Refusal,
    keys::{KeyId, KeyPair, PairKey},
};
use crate::limits;
use vbm_core::NodePath;

pub(super) const VERSION: u8 = 1;
pub(super) const SORT_TAG: u8 = 1;
pub(super) const SORT_SIGNATURE: u8 = 2;
const FIXED_BYTES: usize = 44;
const TAG_BYTES: usize = 32;
const SIGNATURE_BYTES: usize = 64;
/// The longest path in a seal.
const PATH_MAX_BYTES: usize = 4_096;
/// The longest seal.
pub const SEAL_MAX_BYTES: usize =
    FIXED_BYTES + PATH_MAX_BYTES + 1 + limits::BOOT_ID_MAX_BYTES + SIGNATURE_BYTES;

const CONTEXT_DIGEST: &str = "vbm bus 2026-11 entry signature";

/// What a seal binds an entry to, besides who made it.
#[derive(Clone, Copy, Debug)]
pub struct Bound<'a> {
    /// The key of the stream it is written to.
    pub stream: &'a str,
    /// The scope of a broadcast; else empty.
    pub scope: &'a str,
    /// The service of a broadcast; else empty.
    pub service: &'a str,
    /// The packed frames.
    pub frames: &'a [u8],
}

/// Who seals, and when.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Speaker {
    /// Its path.
    pub path: NodePath,
    /// Its run.
    pub boot_id: String,
    /// Its attachment: random, never used twice.
    pub session: u64,
    /// Grows with each entry of the session.
    pub seq: u64,
    /// Redis' time as the speaker reckons it, in milliseconds.
    pub time_ms: u64,
}

/// What stands in a seal before its tag.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Header {
    /// Whether one reader was meant.
    pub for_one: bool,
    /// Whose key made it.
    pub sender: KeyId,
    /// For whose key; zeros when many may read it.
    pub receiver: KeyId,
    /// Who says that it made it.
    pub speaker: Speaker,
}

impl Header {
    fn encode(&self) -> Vec<u8> {
        let path = self.speaker.path.to_string();
        let mut out =
            Vec::with_capacity(FIXED_BYTES + path.len() + self.speaker.boot_id.len() + 1 + SIGNATURE_BYTES);
        out.push(VERSION);
        out.push(if self.for_one { SORT_TAG } else { SORT_SIGNATURE });
        out.extend_from_slice(&self.sender.0);
        out.extend_from_slice(&self.receiver.0);
        for number in [self.speaker.session, self.speaker.seq, self.speaker.time_ms] {
            out.extend_from_slice(&number.to_be_bytes());
        }
        out.extend_from_slice(&u16::try_from(path.len()).unwrap_or(u16::MAX).to_be_bytes());
        out.extend_from_slice(path.as_bytes());
        out.push(u8::try_from(self.speaker.boot_id.len()).unwrap_or(u8::MAX));
        out.extend_from_slice(self.speaker.boot_id.as_bytes());
        out
    }

    /// Takes a seal apart: what stands before the tag, its bytes, and the tag.
    ///
    /// # Errors
    /// [`Refusal::Malformed`] and [`Refusal::Version`].
    pub fn decode(seal: &[u8]) -> Result<(Self, &[u8], &[u8]), Refusal> {
        let cut = |from: usize, length: usize| seal.get(from..from + length).ok_or(Refusal::Malformed);
        let number = |from: usize| -> Result<u64, Refusal> {
            let bytes = cut(from, 8)?.try_into().map_err(|_| Refusal::Malformed)?;
            Ok(u64::from_be_bytes(bytes))
        };
        let text = |bytes| std::str::from_utf8(bytes).map_err(|_| Refusal::Malformed);
        match seal.first() {
            Some(&VERSION) => {}
            Some(&other) => return Err(Refusal::Version(other)),
            None => return Err(Refusal::Malformed),
        }
        if seal.len() > SEAL_MAX_BYTES {
            return Err(Refusal::Malformed);
        }
        let (for_one, tag_bytes) = match cut(1, 1)? {
            [SORT_TAG] => (true, TAG_BYTES),
            [SORT_SIGNATURE] => (false, SIGNATURE_BYTES),
            _ => return Err(Refusal::Malformed),
        };
        let path_length = usize::from(u16::from_be_bytes(
            cut(42, 2)?.try_into().map_err(|_| Refusal::Malformed)?,
        ));
        let boot_at = FIXED_BYTES + path_length;
        let boot_length = usize::from(*cut(boot_at, 1)?.first().ok_or(Refusal::Malformed)?);
        let end = boot_at + 1 + boot_length;
        if seal.len() != end + tag_bytes {
            return Err(Refusal::Malformed);
        }
        let header = Self {
            for_one,
            sender: KeyId(number(2)?.to_be_bytes()),
            receiver: KeyId(number(10)?.to_be_bytes()),
            speaker: Speaker {
                path: text(cut(FIXED_BYTES, path_length)?)?
                    .parse()
                    .map_err(|_| Refusal::Malformed)?,
                boot_id: text(cut(boot_at + 1, boot_length)?)?.to_owned(),
                session: number(18)?,
                seq: number(26)?,
                time_ms: number(34)?,
            },
        };
        Ok((header, &seal[..end], &seal[end..]))
    }
}

fn feed(hasher: &mut blake3::Hasher, head: &[u8], bound: &Bound<'_>) {
    hasher.update(head);
    let parts = [
        bound.stream.as_bytes(),
        bound.scope.as_bytes(),
        bound.service.as_bytes(),
        bound.frames,
    ];
    for part in parts {
        hasher.update(&u32::try_from(part.len()).unwrap_or(u32::MAX).to_be_bytes());
        hasher.update(part);
    }
}

pub(super) fn tag(key: &PairKey, head: &[u8], bound: &Bound<'_>) -> blake3::Hash {
    let mut hasher = blake3::Hasher::new_keyed(key.bytes());
    feed(&mut hasher, head, bound);
    hasher.finalize()
}

pub(super) fn digest(head: &[u8], bound: &Bound<'_>) -> [u8; 32] {
    let mut hasher = blake3::Hasher::new_derive_key(CONTEXT_DIGEST);
    feed(&mut hasher, head, bound);
    *hasher.finalize().as_bytes()
}

/// A seal that one receiver can open, and could have made itself.
pub fn seal_for_one(
    sender: KeyId,
    receiver: KeyId,
    key: &PairKey,
    speaker: Speaker,
    bound: &Bound<'_>,
) -> Vec<u8> {
    let header = Header {
        for_one: true,
        sender,
        receiver,
        speaker,
    };
    let mut out = header.encode();
    let tag = tag(key, &out, bound);
    out.extend_from_slice(tag.as_bytes());
    out
}

/// A seal that everybody can open who knows the sender's public key.
pub fn seal_for_any(pair: &KeyPair, speaker: Speaker, bound: &Bound<'_>) -> Vec<u8> {
    let header = Header {
        for_one: false,
        sender: pair.id(),
        receiver: KeyId([0; 8]),
        speaker,
    };
    let mut out = header.encode();
    let signature = pair.sign(&digest(&out, bound));
    out.extend_from_slice(&signature);
    out
}
