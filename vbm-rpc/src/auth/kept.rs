//! Sealing what is kept: recorded answers, tickets. Pure functions from keys, place and content to bytes, and back.
//!
//! ```text
//!  0       1      2     10        18         20     .             +1       +3              .     .
//!  +-------+------+-----+---------+----------+------+-------------+--------+---------------+-----+-------+
//!  |version| sort | key | time ms | path len | path | siblings: n | place  | n x 32 bytes  | tag | value |
//!  +-------+------+-----+---------+----------+------+-------------+--------+---------------+-----+-------+
//! ```
//!
//! All numbers are big-endian. Who reads it decides the sort:
//!
//! - 3: a tag of 32 bytes (keyed BLAKE3), by a key that follows from the writer's secret alone: for what a process leaves
//!   to its own next life. No siblings. Over everything before the tag, then the place and the value.
//! - 4: an Ed25519 signature of 64 bytes, for what others read. What one batch writes has one signature: the hashes of
//!   all are the leaves of a tree, and each carries the siblings on its way to the root.
//!
//! ```text
//!            root  <- signed, with version, sort, key, time and path
//!           /    \
//!         .        .          a leaf: key of Redis, field, value, each behind its length (u32)
//!        / \      / \         a level that is not full is filled up with zeros
//!      [0] [1]  [2]  0
//! ```

use super::{
    Keys, Refusal, Ring,
    keys::{KeyId, KeyPair},
    trust::Trusted,
};
use bytes::Bytes;
use vbm_core::NodePath;

/// The high bit tells it from what has no seal: records, JSON and frames begin otherwise.
const VERSION: u8 = 0x81;
const SORT_OWN: u8 = 3;
const SORT_TREE: u8 = 4;
const FIXED_BYTES: usize = 20;
const HASH_BYTES: usize = 32;
const SIGNATURE_BYTES: usize = 64;
/// The most values under one signature.
pub const TREE_MAX_LEAVES: usize = 256;
/// The most siblings of a leaf: as deep as a full tree is.
const SIBLINGS_MAX: usize = 8;

const CONTEXT_LEAF: &str = "vbm bus 2026-11 kept leaf";
const CONTEXT_NODE: &str = "vbm bus 2026-11 kept node";
const CONTEXT_ROOT: &str = "vbm bus 2026-11 kept root";

type Hash = [u8; HASH_BYTES];

/// Where a value is kept.
#[derive(Clone, Copy, Debug)]
pub struct Place<'a> {
    /// The key of Redis.
    pub key: &'a str,
    /// The field of it.
    pub field: &'a [u8],
}

/// Who wrote it, as its seal proves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Writer {
    /// Its path.
    pub path: NodePath,
    /// Redis' time as the writer reckoned it, in milliseconds.
    pub time_ms: u64,
    /// Whether it is this process, or an earlier life of it.
    pub own: bool,
    /// What else its key may.
    pub trusted: Option<Trusted>,
}

fn feed(hasher: &mut blake3::Hasher, place: Place<'_>, value: &[u8]) {
    for part in [place.key.as_bytes(), place.field, value] {
        hasher.update(&u32::try_from(part.len()).unwrap_or(u32::MAX).to_be_bytes());
        hasher.update(part);
    }
}

fn leaf(place: Place<'_>, value: &[u8]) -> Hash {
    let mut hasher = blake3::Hasher::new_derive_key(CONTEXT_LEAF);
    feed(&mut hasher, place, value);
    *hasher.finalize().as_bytes()
}

fn node(left: &Hash, right: &Hash) -> Hash {
    let mut hasher = blake3::Hasher::new_derive_key(CONTEXT_NODE);
    hasher.update(left).update(right);
    *hasher.finalize().as_bytes()
}

/// What is signed: everything before the siblings, and the root.
fn digest(head: &[u8], root: &Hash) -> Hash {
    let mut hasher = blake3::Hasher::new_derive_key(CONTEXT_ROOT);
    hasher.update(head).update(root);
    *hasher.finalize().as_bytes()
}

/// All levels of a tree, the leaves first, the root last.
fn levels(leaves: Vec<Hash>) -> Vec<Vec<Hash>> {
    let mut levels = vec![leaves];
    while let Some(level) = levels.last().filter(|level| level.len() > 1) {
        let above = level
            .chunks(2)
            .map(|pair| node(&pair[0], pair.get(1).unwrap_or(&[0; HASH_BYTES])))
            .collect();
        levels.push(above);
    }
    levels
}

fn head(sort: u8, key: KeyId, path: &NodePath, time_ms: u64) -> Vec<u8> {
    let path = path.as_str();
    let mut out = Vec::with_capacity(FIXED_BYTES + path.len());
    out.extend_from_slice(&[VERSION, sort]);
    out.extend_from_slice(&key.0);
    out.extend_from_slice(&time_ms.to_be_bytes());
    out.extend_from_slice(&u16::try_from(path.len()).unwrap_or(u16::MAX).to_be_bytes());
    out.extend_from_slice(path.as_bytes());
    out
}

/// Seals a value that only holders of the same secret read.
pub fn keep_for_self(
    pair: &KeyPair,
    (path, time_ms): (&NodePath, u64),
    place: Place<'_>,
    value: &[u8],
) -> Bytes {
    let mut out = head(SORT_OWN, pair.id(), path, time_ms);
    out.extend_from_slice(&[0; 3]);
    let tag = own_tag(pair, &out, place, value);
    out.extend_from_slice(tag.as_bytes());
    out.extend_from_slice(value);
    out.into()
}

fn own_tag(pair: &KeyPair, head: &[u8], place: Place<'_>, value: &[u8]) -> blake3::Hash {
    let mut hasher = blake3::Hasher::new_keyed(pair.own().bytes());
    hasher.update(head);
    feed(&mut hasher, place, value);
    hasher.finalize()
}

/// Seals values that others read, with one signature for every [`TREE_MAX_LEAVES`].
pub fn keep_for_others(
    pair: &KeyPair,
    (path, time_ms): (&NodePath, u64),
    values: &[(Place<'_>, &[u8])],
) -> Vec<Bytes> {
    let mut sealed = Vec::with_capacity(values.len());
    let head = head(SORT_TREE, pair.id(), path, time_ms);
    for values in values.chunks(TREE_MAX_LEAVES) {
        let levels = levels(values.iter().map(|(place, value)| leaf(*place, value)).collect());
        let root = levels.last().and_then(|level| level.first());
        let signature = pair.sign(&digest(&head, root.unwrap_or(&[0; HASH_BYTES])));
        for (at, (_, value)) in values.iter().enumerate() {
            sealed.push(with_way(&head, &levels, at, &signature, value));
        }
    }
    sealed
}

fn with_way(head: &[u8], levels: &[Vec<Hash>], at: usize, signature: &[u8], value: &[u8]) -> Bytes {
    let siblings = levels.len().saturating_sub(1);
    let length = head.len() + 3 + siblings * HASH_BYTES + signature.len() + value.len();
    let mut out = Vec::with_capacity(length);
    out.extend_from_slice(head);
    out.push(u8::try_from(siblings).unwrap_or(u8::MAX));
    out.extend_from_slice(&u16::try_from(at).unwrap_or(u16::MAX).to_be_bytes());
    for (depth, level) in levels.iter().take(siblings).enumerate() {
        out.extend_from_slice(level.get((at >> depth) ^ 1).unwrap_or(&[0; HASH_BYTES]));
    }
    out.extend_from_slice(signature);
    out.extend_from_slice(value);
    out.into()
}

/// The value of what was kept, and who wrote it. `own` are this process' keys, which open what its earlier lives left
/// to themselves.
///
/// # Errors
/// Why it is not believed.
pub fn open_kept(
    kept: &Bytes,
    place: Place<'_>,
    own: Option<&Keys>,
    ring: &Ring,
) -> Result<(Writer, Bytes), Refusal> {
    let cut = |from: usize, length: usize| kept.get(from..from + length).ok_or(Refusal::Malformed);
    match kept.first() {
        Some(&VERSION) => {}
        Some(&other) if other & 0x80 != 0 => return Err(Refusal::Version(other)),
        _ => return Err(Refusal::Missing),
    }
    let number = |from| -> Result<u64, Refusal> {
        let bytes = cut(from, 8)?.try_into().map_err(|_| Refusal::Malformed)?;
        Ok(u64::from_be_bytes(bytes))
    };
    let short = |from| -> Result<usize, Refusal> {
        let bytes = cut(from, 2)?.try_into().map_err(|_| Refusal::Malformed)?;
        Ok(usize::from(u16::from_be_bytes(bytes)))
    };
    let sort = *cut(1, 1)?.first().ok_or(Refusal::Malformed)?;
    let (key, time_ms) = (KeyId(number(2)?.to_be_bytes()), number(10)?);
    let path_length = short(18)?;
    let head_bytes = FIXED_BYTES + path_length;
    let path: NodePath = std::str::from_utf8(cut(FIXED_BYTES, path_length)?)
        .ok()
        .and_then(|text| text.parse().ok())
        .ok_or(Refusal::Malformed)?;
    let siblings = usize::from(*cut(head_bytes, 1)?.first().ok_or(Refusal::Malformed)?);
    let at = short(head_bytes + 1)?;
    let way = head_bytes + 3;
    match sort {
        SORT_OWN => {
            let unknown = Refusal::UnknownKey {
                key: key.to_string(),
                path: path.clone(),
            };
            let pair = own.and_then(|keys| keys.find(key)).ok_or(unknown)?;
            let given: Hash = cut(way, HASH_BYTES)?.try_into().map_err(|_| Refusal::Malformed)?;
            let value = kept.slice(way + HASH_BYTES..);
            // `Hash` compares in constant time.
            if own_tag(pair, cut(0, way)?, place, &value) != blake3::Hash::from_bytes(given) {
                return Err(Refusal::WrongSeal);
            }
            let writer = Writer {
                path,
                time_ms,
                own: true,
                trusted: None,
            };
            Ok((writer, value))
        }
        SORT_TREE if siblings <= SIBLINGS_MAX => {
            let trusted = ring.find(&path, key).ok_or_else(|| Refusal::UnknownKey {
                key: key.to_string(),
                path: path.clone(),
            })?;
            let signed = way + siblings * HASH_BYTES;
            let given: [u8; SIGNATURE_BYTES] = cut(signed, SIGNATURE_BYTES)?
                .try_into()
                .map_err(|_| Refusal::Malformed)?;
            let value = kept.slice(signed + SIGNATURE_BYTES..);
            let mut root = leaf(place, &value);
            for depth in 0..siblings {
                let sibling: Hash = cut(way + depth * HASH_BYTES, HASH_BYTES)?
                    .try_into()
                    .map_err(|_| Refusal::Malformed)?;
                root = match (at >> depth) & 1 {
                    0 => node(&root, &sibling),
                    _ => node(&sibling, &root),
                };
            }
            if !trusted.key.verify(&digest(cut(0, head_bytes)?, &root), &given) {
                return Err(Refusal::WrongSeal);
            }
            let writer = Writer {
                path,
                time_ms,
                own: false,
                trusted: Some(trusted.clone()),
            };
            Ok((writer, value))
        }
        SORT_TREE => Err(Refusal::Malformed),
        _ => Err(Refusal::WrongSort),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn path() -> NodePath {
        "eu/r1/n1".parse().unwrap()
    }
    fn ring(pair: &KeyPair) -> Ring {
        let mut ring = Ring::new();
        ring.add(path(), Trusted::new(*pair.public())).unwrap();
        ring
    }
    fn place(field: &[u8]) -> Place<'_> {
        Place { key: "k", field }
    }

    #[test]
    fn every_value_of_a_batch_of_any_size_opens_at_its_place_and_at_no_other() {
        let pair = KeyPair::generate().unwrap();
        let ring = ring(&pair);
        for count in [1, 2, 3, 5, 8, 255, 256, 257, 600] {
            let fields: Vec<_> = (0..count).map(|n: usize| n.to_be_bytes()).collect();
            let values: Vec<_> = fields.iter().map(|field| (place(field), &field[..])).collect();
            let sealed = keep_for_others(&pair, (&path(), 7), &values);
            assert_eq!(sealed.len(), count);
            for (at, sealed) in sealed.iter().enumerate() {
                let (writer, value) = open_kept(sealed, values[at].0, None, &ring).unwrap();
                assert_eq!(
                    (&value[..], writer.path, writer.time_ms),
                    (values[at].1, path(), 7)
                );
                let elsewhere = values[(at + 1) % count].0;
                let moved = open_kept(sealed, elsewhere, None, &ring);
                assert!(count == 1 || moved == Err(Refusal::WrongSeal), "{moved:?}");
            }
        }
    }

    #[test]
    fn what_a_process_leaves_to_itself_opens_with_its_own_keys_alone() {
        let keys = Keys::generate().unwrap();
        let sealed = keep_for_self(keys.active(), (&path(), 7), place(b"f"), b"value");
        // Also after a change of keys: the old one still opens.
        let next = keys.with_next().unwrap();
        let next = next.sealing_with(next.all()[1].id()).unwrap();
        for keys in [&keys, &next] {
            let (writer, value) = open_kept(&sealed, place(b"f"), Some(keys), &Ring::new()).unwrap();
            assert!(writer.own && value == b"value"[..]);
        }
        let others = Keys::generate().unwrap();
        for keys in [None, Some(&others)] {
            let refused = open_kept(&sealed, place(b"f"), keys, &ring(keys_of(&others)));
            assert!(matches!(refused, Err(Refusal::UnknownKey { .. })), "{refused:?}");
        }
        assert_eq!(
            open_kept(&sealed, place(b"g"), Some(&keys), &Ring::new()),
            Err(Refusal::WrongSeal)
        );
    }

    fn keys_of(keys: &Keys) -> &KeyPair {
        keys.active()
    }

    #[test]
    fn a_value_of_somebody_unknown_or_without_a_seal_is_refused() {
        let (pair, other) = (KeyPair::generate().unwrap(), KeyPair::generate().unwrap());
        let sealed = keep_for_others(&other, (&path(), 7), &[(place(b"f"), b"v")]);
        assert!(matches!(
            open_kept(&sealed[0], place(b"f"), None, &ring(&pair)),
            Err(Refusal::UnknownKey { .. })
        ));
        let bare =
            |bytes: &'static [u8]| open_kept(&Bytes::from_static(bytes), place(b"f"), None, &ring(&pair));
        assert_eq!(bare(b""), Err(Refusal::Missing));
        assert_eq!(bare(b"{}"), Err(Refusal::Missing));
        assert_eq!(bare(b"\x82"), Err(Refusal::Version(0x82)));
        assert_eq!(bare(b"\x81"), Err(Refusal::Malformed));
    }

    proptest! {
        #[test]
        fn a_value_that_was_changed_anywhere_does_not_open(at in 0usize..500, bit in 0u8..8, count in 1usize..9) {
            let keys = Keys::new(vec![KeyPair::from_secret([5; 32])]).unwrap();
            let (pair, ring) = (keys.active(), ring(keys.active()));
            let values: Vec<_> = (0..count).map(|_| (place(b"f"), &b"value"[..])).collect();
            let tree = keep_for_others(pair, (&path(), 7), &values).remove(count / 2);
            for sealed in [tree, keep_for_self(pair, (&path(), 7), place(b"f"), b"value")] {
                let mut changed = sealed.to_vec();
                let at = at % changed.len();
                changed[at] ^= 1 << bit;
                // All leaves of this batch are the same, so a turn at its place may lead to the same root.
                if let Ok((writer, value)) = open_kept(&changed.into(), place(b"f"), Some(&keys), &ring) {
                    prop_assert_eq!((writer.path, &value[..]), (path(), &b"value"[..]));
                }
            }
        }

        #[test]
        fn garbage_is_never_a_panic(mut bytes in proptest::collection::vec(any::<u8>(), 0..400), sort in 0u8..6) {
            let keys = Keys::new(vec![KeyPair::from_secret([5; 32])]).unwrap();
            if bytes.len() > 1 { bytes[..2].copy_from_slice(&[VERSION, sort]); }
            let _ignored = open_kept(&bytes.into(), place(b"f"), Some(&keys), &ring(keys.active()));
        }
    }
}
