//! One long-term key, and what two parties agree on with theirs. Where keys are kept: [`file`](super::file).
//!
//! One secret of 32 random bytes gives two key pairs, each by a derivation of its own: Ed25519 to sign, X25519 to agree
//! on keys with others. Their public halves together are the [`PublicKey`]; its hash is the [`KeyId`].

use ed25519_dalek::{Signature, Signer, SigningKey, VerifyingKey};
use std::{fmt, str::FromStr};
use vbm_core::{Error, ErrorKind, NodePath};
use zeroize::{Zeroize, Zeroizing};

/// The bytes of a secret.
pub(super) const SECRET_BYTES: usize = 32;
/// How the text of a public key begins.
const PUBLIC_PREFIX: &str = "vbm-public-1:";

const CONTEXT_SIGN: &str = "vbm bus 2026-11 ed25519 secret";
const CONTEXT_AGREE: &str = "vbm bus 2026-11 x25519 secret";
const CONTEXT_ID: &str = "vbm bus 2026-11 key id";
const CONTEXT_PAIR: &str = "vbm bus 2026-11 pair key";
const CONTEXT_OWN: &str = "vbm bus 2026-11 own records";

/// Random bytes of the kernel.
pub(super) fn random<const N: usize>() -> Result<[u8; N], Error> {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes)
        .map_err(|e| Error::internal("the kernel gives no random bytes", e.to_string()))?;
    Ok(bytes)
}

/// Names a public key: the first bytes of its hash.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct KeyId(pub [u8; 8]);

impl FromStr for KeyId {
    type Err = Error;
    fn from_str(text: &str) -> Result<Self, Error> {
        let mut id = [0; 8];
        hex::decode_to_slice(text, &mut id).map_err(|_| {
            Error::new(
                ErrorKind::InvalidInput,
                format!("'{text}' is no id of a key"),
                "an id has 16 hexadecimal digits",
                "see the ids with `vbm bus key show`",
            )
        })?;
        Ok(Self(id))
    }
}

impl fmt::Display for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}

/// The half that others may know: what a signature is checked with, and what a pair's key is agreed with.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct PublicKey {
    sign: VerifyingKey,
    agree: x25519_dalek::PublicKey,
}

impl PublicKey {
    /// Its name.
    pub fn id(&self) -> KeyId {
        let mut hasher = blake3::Hasher::new_derive_key(CONTEXT_ID);
        hasher.update(self.sign.as_bytes()).update(self.agree.as_bytes());
        let mut id = [0; 8];
        hasher.finalize_xof().fill(&mut id);
        KeyId(id)
    }

    /// Whether `signature` was made of `digest` by the other half.
    pub(super) fn verify(&self, digest: &[u8; 32], signature: &[u8; 64]) -> bool {
        self.sign
            .verify_strict(digest, &Signature::from_bytes(signature))
            .is_ok()
    }
}

impl fmt::Display for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{PUBLIC_PREFIX}{}{}",
            hex::encode(self.sign.as_bytes()),
            hex::encode(self.agree.as_bytes())
        )
    }
}

impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PublicKey({})", self.id())
    }
}

impl FromStr for PublicKey {
    type Err = Error;
    fn from_str(text: &str) -> Result<Self, Error> {
        let refuse = |why: &str| {
            Error::new(
                ErrorKind::InvalidInput,
                "this is not a public key of the bus",
                why,
                "copy the whole line that `vbm bus key show` prints",
            )
        };
        let digits = text
            .strip_prefix(PUBLIC_PREFIX)
            .ok_or_else(|| refuse(&format!("it does not begin with {PUBLIC_PREFIX}")))?;
        let mut bytes = [0; 64];
        hex::decode_to_slice(digits, &mut bytes).map_err(|_| refuse("it is not 128 hexadecimal digits"))?;
        let (mut sign, mut agree) = ([0; 32], [0; 32]);
        sign.copy_from_slice(&bytes[..32]);
        agree.copy_from_slice(&bytes[32..]);
        let sign =
            VerifyingKey::from_bytes(&sign).map_err(|_| refuse("its first half is no point of the curve"))?;
        if sign.is_weak() {
            return Err(refuse("its first half is a weak point of the curve"));
        }
        Ok(Self {
            sign,
            agree: agree.into(),
        })
    }
}

/// A secret and what follows from it. Shows nothing of it in `Debug`; wiped when dropped.
pub struct KeyPair {
    secret: Zeroizing<[u8; SECRET_BYTES]>,
    sign: SigningKey,
    agree: x25519_dalek::StaticSecret,
    own: PairKey,
    public: PublicKey,
    id: KeyId,
}

impl KeyPair {
    /// A new one.
    ///
    /// # Errors
    /// When the kernel gives no random bytes.
    pub fn generate() -> Result<Self, Error> {
        random().map(Self::from_secret)
    }

    /// The pair of a secret.
    pub fn from_secret(mut secret: [u8; SECRET_BYTES]) -> Self {
        let kept = Zeroizing::new(secret);
        let derive = |context| Zeroizing::new(blake3::derive_key(context, &*kept));
        let sign = SigningKey::from_bytes(&derive(CONTEXT_SIGN));
        let agree = x25519_dalek::StaticSecret::from(*derive(CONTEXT_AGREE));
        let public = PublicKey {
            sign: sign.verifying_key(),
            agree: (&agree).into(),
        };
        secret.zeroize();
        Self {
            own: PairKey(derive(CONTEXT_OWN)),
            secret: kept,
            sign,
            agree,
            id: public.id(),
            public,
        }
    }

    /// The half that others may know.
    pub const fn public(&self) -> &PublicKey {
        &self.public
    }

    /// The name of its public half.
    pub const fn id(&self) -> KeyId {
        self.id
    }

    pub(super) const fn secret(&self) -> &Zeroizing<[u8; SECRET_BYTES]> {
        &self.secret
    }

    /// The key for what this process leaves to its own next life.
    pub(super) const fn own(&self) -> &PairKey {
        &self.own
    }

    pub(super) fn sign(&self, digest: &[u8; 32]) -> [u8; 64] {
        self.sign.sign(digest).to_bytes()
    }

    /// The key for entries from one to the other. `self` is either side; `None` when the other's public half is one
    /// that agrees on the same with everybody.
    pub fn pair(&self, other: &PublicKey, namespace: &str, way: Way<'_>) -> Option<PairKey> {
        let shared = self.agree.diffie_hellman(&other.agree);
        if !shared.was_contributory() {
            return None;
        }
        let (from, to) = match way {
            Way::Sending { .. } => (self.id, other.id()),
            Way::Receiving { .. } => (other.id(), self.id),
        };
        let (Way::Sending {
            from: sender,
            to: receiver,
        }
        | Way::Receiving {
            from: sender,
            to: receiver,
        }) = way;
        let mut hasher = blake3::Hasher::new_derive_key(CONTEXT_PAIR);
        hasher.update(shared.as_bytes()).update(&from.0).update(&to.0);
        for part in [namespace, &sender.to_string(), &receiver.to_string()] {
            hasher.update(&u32::try_from(part.len()).unwrap_or(u32::MAX).to_be_bytes());
            hasher.update(part.as_bytes());
        }
        Some(PairKey(Zeroizing::new(*hasher.finalize().as_bytes())))
    }
}

impl fmt::Debug for KeyPair {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "KeyPair({})", self.id)
    }
}

/// Which way entries go that a pair's key is for: the two ways have two keys.
#[derive(Clone, Copy, Debug)]
pub enum Way<'a> {
    /// Mine to the other.
    Sending {
        /// My path.
        from: &'a NodePath,
        /// The other's.
        to: &'a NodePath,
    },
    /// The other's to me.
    Receiving {
        /// The other's path.
        from: &'a NodePath,
        /// Mine.
        to: &'a NodePath,
    },
}

/// What two parties and nobody else can make tags with, one way.
#[derive(Clone)]
pub struct PairKey(Zeroizing<[u8; 32]>);

impl PairKey {
    pub(super) fn bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl fmt::Debug for PairKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PairKey(..)")
    }
}

impl Clone for KeyPair {
    fn clone(&self) -> Self {
        Self::from_secret(*self.secret)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::auth::Keys;

    fn path(text: &str) -> NodePath {
        text.parse().unwrap()
    }

    #[test]
    fn both_sides_of_a_pair_derive_one_key_and_each_way_has_its_own() {
        let (a, b) = (KeyPair::generate().unwrap(), KeyPair::generate().unwrap());
        let (pa, pb) = (path("eu/a"), path("eu/b"));
        let way = |from, to| Way::Sending { from, to };
        let back = |from, to| Way::Receiving { from, to };
        let ab = a.pair(b.public(), "vbm", way(&pa, &pb)).unwrap();
        let same = b.pair(a.public(), "vbm", back(&pa, &pb)).unwrap();
        assert_eq!(ab.bytes(), same.bytes());
        let others = [
            b.pair(a.public(), "vbm", way(&pb, &pa)).unwrap(),
            a.pair(b.public(), "other", way(&pa, &pb)).unwrap(),
            a.pair(b.public(), "vbm", way(&pa, &path("eu/c"))).unwrap(),
            KeyPair::generate()
                .unwrap()
                .pair(b.public(), "vbm", way(&pa, &pb))
                .unwrap(),
        ];
        assert!(others.iter().all(|other| other.bytes() != ab.bytes()));
    }

    #[test]
    fn a_public_key_survives_its_text_and_a_damaged_one_is_refused() {
        let pair = KeyPair::generate().unwrap();
        let text = pair.public().to_string();
        assert_eq!(text.parse::<PublicKey>().unwrap(), *pair.public());
        let weak = format!("{PUBLIC_PREFIX}01{}", "0".repeat(126));
        for bad in ["", &text[1..], &text[..text.len() - 1], &weak] {
            assert!(bad.parse::<PublicKey>().is_err(), "{bad}");
        }
    }

    #[test]
    fn nothing_of_a_secret_is_shown() {
        let pair = KeyPair::from_secret([7; 32]);
        let shown = format!(
            "{pair:?} {:?}",
            Keys::new(vec![KeyPair::from_secret([7; 32])]).unwrap()
        );
        assert!(!shown.contains("0707") && !shown.contains("7, 7"), "{shown}");
    }

    #[test]
    fn a_public_half_that_agrees_with_everybody_gives_no_key() {
        let pair = KeyPair::generate().unwrap();
        let other = PublicKey {
            sign: pair.public().sign,
            agree: [0; 32].into(),
        };
        let (a, b) = (path("a"), path("b"));
        assert!(
            pair.pair(&other, "vbm", Way::Sending { from: &a, to: &b })
                .is_none()
        );
    }
}
