//! Long-term keys: made once a process' place on the bus, kept in a file that only its user may read.
//!
//! One secret of 32 random bytes gives two key pairs, each by a derivation of its own: Ed25519 to sign, X25519 to agree
//! on keys with others. Their public halves together are the [`PublicKey`]; its hash is the [`KeyId`].
//!
//! [`Keys`] may hold several: the first seals, all open. That is what makes a change of keys possible without a moment in
//! which an entry cannot be opened (see `docs/rpc/security.md`).

use ed25519_dalek::{Signature, Signer, SigningKey, VerifyingKey};
use std::{
    fmt,
    io::Write,
    os::unix::fs::{OpenOptionsExt, PermissionsExt},
    path::Path,
    str::FromStr,
    sync::Arc,
};
use vbm_core::{Error, ErrorKind, NodePath};
use zeroize::{Zeroize, Zeroizing};

/// The bytes of a secret.
const SECRET_BYTES: usize = 32;
/// How the text of a secret begins.
const SECRET_PREFIX: &str = "vbm-secret-1:";
/// How the text of a public key begins.
const PUBLIC_PREFIX: &str = "vbm-public-1:";
/// The most keys of one process.
const KEYS_MAX: usize = 8;
/// The largest key file, in bytes.
const FILE_MAX_BYTES: u64 = 64 * 1024;

const CONTEXT_SIGN: &str = "vbm bus 2026-11 ed25519 secret";
const CONTEXT_AGREE: &str = "vbm bus 2026-11 x25519 secret";
const CONTEXT_ID: &str = "vbm bus 2026-11 key id";
const CONTEXT_PAIR: &str = "vbm bus 2026-11 pair key";

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

/// The keys of one process: the first seals, all open. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Keys(Arc<[KeyPair]>);

impl Keys {
    /// One new key.
    ///
    /// # Errors
    /// When the kernel gives no random bytes.
    pub fn generate() -> Result<Self, Error> {
        Ok(Self(Arc::new([KeyPair::generate()?])))
    }

    /// These, the first of which seals.
    ///
    /// # Errors
    /// Invalid input, when there are none or more than 8.
    pub fn new(pairs: Vec<KeyPair>) -> Result<Self, Error> {
        if pairs.is_empty() || pairs.len() > KEYS_MAX {
            return Err(Error::new(
                ErrorKind::InvalidInput,
                "these keys cannot be used",
                format!("there are {} of them; 1 to {KEYS_MAX} are allowed", pairs.len()),
                "make a key with `vbm bus key new`, remove keys that nobody seals with any more",
            ));
        }
        Ok(Self(pairs.into()))
    }

    /// The key that seals.
    pub fn active(&self) -> &KeyPair {
        &self.0[0]
    }

    /// The key of that name.
    pub fn find(&self, id: KeyId) -> Option<&KeyPair> {
        self.0.iter().find(|pair| pair.id == id)
    }

    /// These and a new one, which opens and does not seal yet.
    ///
    /// # Errors
    /// When there are 8 already.
    pub fn with_next(&self) -> Result<Self, Error> {
        let next = KeyPair::generate()?;
        Self::new(self.0.iter().cloned().chain([next]).collect())
    }

    /// The same, of which that one seals.
    ///
    /// # Errors
    /// Not found, when it is not among them.
    pub fn sealing_with(&self, id: KeyId) -> Result<Self, Error> {
        let first = self.find(id).ok_or_else(|| not_among(id))?.clone();
        let others = self.0.iter().filter(|pair| pair.id != id).cloned();
        Self::new(std::iter::once(first).chain(others).collect())
    }

    /// The others.
    ///
    /// # Errors
    /// Not found, when it is not among them; invalid input, when it is the last.
    pub fn without(&self, id: KeyId) -> Result<Self, Error> {
        self.find(id).ok_or_else(|| not_among(id))?;
        Self::new(self.0.iter().filter(|pair| pair.id != id).cloned().collect())
    }

    /// All, the one that seals first.
    pub fn all(&self) -> &[KeyPair] {
        &self.0
    }

    /// Reads a file of secrets, one a line.
    ///
    /// # Errors
    /// When it cannot be read, when others than its owner may read it, and when it holds anything else.
    pub fn load(path: &Path) -> Result<Self, Error> {
        let shown = path.display();
        let what = || format!("the keys in {shown} cannot be used");
        let fail = |kind, why: String, fix: &str| Err(Error::new(kind, what(), why, fix));
        let meta = match std::fs::metadata(path) {
            Ok(meta) => meta,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
                return fail(
                    ErrorKind::NotFound,
                    "there is no such file".into(),
                    "make it with `vbm bus key new`",
                );
            }
            Err(e) => {
                return fail(
                    ErrorKind::PermissionDenied,
                    e.to_string(),
                    "let this user read it",
                );
            }
        };
        let mode = meta.permissions().mode() & 0o777;
        if mode & 0o077 != 0 {
            let why = format!("others than its owner may open it (mode {mode:03o})");
            return fail(
                ErrorKind::PermissionDenied,
                why,
                "chmod 600 it; if others had a look, make a new key",
            );
        }
        if meta.len() > FILE_MAX_BYTES {
            let why = format!("it has {} bytes; {FILE_MAX_BYTES} are allowed", meta.len());
            return fail(
                ErrorKind::InvalidInput,
                why,
                "give the file that `vbm bus key new` wrote",
            );
        }
        let text = match std::fs::read_to_string(path) {
            Ok(text) => Zeroizing::new(text),
            Err(e) => {
                return fail(
                    ErrorKind::PermissionDenied,
                    e.to_string(),
                    "let this user read it",
                );
            }
        };
        let mut pairs = Vec::new();
        for (number, line) in text.lines().enumerate() {
            let line = line.trim();
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            match secret_of(line) {
                Some(secret) => pairs.push(KeyPair::from_secret(secret)),
                None => {
                    let why = format!("line {} is no secret", number + 1);
                    return fail(
                        ErrorKind::InvalidInput,
                        why,
                        "give the file that `vbm bus key new` wrote",
                    );
                }
            }
        }
        Self::new(pairs)
    }

    /// Writes them to a file that only this user may open, in place of what is there.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn save(&self, path: &Path) -> Result<(), Error> {
        let fail = |e: std::io::Error| {
            Error::new(
                ErrorKind::PermissionDenied,
                format!("the keys cannot be written to {}", path.display()),
                e.to_string(),
                "name a directory that this user may write to",
            )
        };
        let mut text = Zeroizing::new(String::from(
            "# Secret keys of the bus: the first seals, all open.\n",
        ));
        for pair in self.0.iter() {
            let secret = Zeroizing::new(hex::encode(pair.secret.as_slice()));
            text.push_str(&format!("# {}\n{SECRET_PREFIX}{}\n", pair.id, *secret));
        }
        // Beside its place and renamed: a crash leaves the old or the new file, never a half.
        let beside = path.with_extension(format!("new-{}", std::process::id()));
        let mut file = std::fs::OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&beside)
            .map_err(fail)?;
        let written = file
            .write_all(text.as_bytes())
            .and_then(|()| file.sync_all())
            .and_then(|()| std::fs::rename(&beside, path));
        if written.is_err() {
            // What cannot be removed was reported by the write.
            drop(std::fs::remove_file(&beside));
        }
        written.map_err(fail)
    }
}

fn not_among(id: KeyId) -> Error {
    Error::new(
        ErrorKind::NotFound,
        format!("there is no key {id} in this file"),
        "a key is named by the 16 digits of its id",
        "see what there is with `vbm bus key show`",
    )
}

fn secret_of(line: &str) -> Option<[u8; SECRET_BYTES]> {
    let mut secret = [0; SECRET_BYTES];
    hex::decode_to_slice(line.strip_prefix(SECRET_PREFIX)?, &mut secret).ok()?;
    Some(secret)
}

#[cfg(test)]
mod tests {
    use super::*;

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
    fn keys_survive_their_file_in_order_and_only_their_owner_may_read_it() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("bus.key");
        let keys = Keys::new(vec![KeyPair::generate().unwrap(), KeyPair::generate().unwrap()]).unwrap();
        keys.save(&file).unwrap();
        assert_eq!(
            std::fs::metadata(&file).unwrap().permissions().mode() & 0o777,
            0o600
        );
        let read = Keys::load(&file).unwrap();
        let ids = |keys: &Keys| keys.all().iter().map(KeyPair::id).collect::<Vec<_>>();
        assert_eq!(ids(&read), ids(&keys));
        assert_eq!(
            std::fs::read_dir(dir.path()).unwrap().count(),
            1,
            "nothing is left beside it"
        );

        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o640)).unwrap();
        let error = Keys::load(&file).unwrap_err();
        assert!(
            error.why().contains("640") && error.fix().contains("chmod 600"),
            "{error}"
        );
    }

    #[test]
    fn a_key_is_added_turned_to_and_dropped() {
        let keys = Keys::generate().unwrap().with_next().unwrap();
        let [old, new] = [keys.all()[0].id(), keys.all()[1].id()];
        assert_eq!(keys.active().id(), old, "the next one does not seal yet");
        let turned = keys.sealing_with(new).unwrap();
        assert_eq!((turned.active().id(), turned.all().len()), (new, 2));
        let left = turned.without(old).unwrap();
        assert_eq!((left.active().id(), left.all().len()), (new, 1));
        assert!(left.without(new).is_err() && left.sealing_with(old).is_err());
        assert_eq!(old.to_string().parse::<KeyId>().unwrap(), old);
    }

    #[test]
    fn a_file_of_anything_else_is_refused_without_showing_it() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("bus.key");
        assert_eq!(Keys::load(&file).unwrap_err().kind(), ErrorKind::NotFound);
        for text in ["", "# only a remark\n", "vbm-secret-1:abcdef\n", "hunter2\n"] {
            std::fs::write(&file, text).unwrap();
            std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o600)).unwrap();
            let error = Keys::load(&file).unwrap_err().to_string();
            assert!(!error.contains("abcdef") && !error.contains("hunter2"), "{error}");
        }
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
