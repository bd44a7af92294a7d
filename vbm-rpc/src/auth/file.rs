//! Keys of a process: kept in a file that only its user may read.
//!
//! [`Keys`] may hold several: the first seals, all open. That is what makes a change of keys possible without a moment in
//! which an entry cannot be opened (see `docs/rpc/security.md`).

use super::keys::{KeyId, KeyPair, SECRET_BYTES};
use std::{
    io::Write,
    os::unix::fs::{OpenOptionsExt, PermissionsExt},
    path::Path,
    sync::Arc,
};
use vbm_core::{Error, ErrorKind};
use zeroize::Zeroizing;

/// How the text of a secret begins.
const SECRET_PREFIX: &str = "vbm-secret-1:";
/// The most keys of one process.
const KEYS_MAX: usize = 8;
/// The largest key file, in bytes.
const FILE_MAX_BYTES: u64 = 64 * 1024;

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
        self.0.iter().find(|pair| pair.id() == id)
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
        let others = self.0.iter().filter(|pair| pair.id() != id).cloned();
        Self::new(std::iter::once(first).chain(others).collect())
    }

    /// The others.
    ///
    /// # Errors
    /// Not found, when it is not among them; invalid input, when it is the last.
    pub fn without(&self, id: KeyId) -> Result<Self, Error> {
        self.find(id).ok_or_else(|| not_among(id))?;
        Self::new(self.0.iter().filter(|pair| pair.id() != id).cloned().collect())
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
            let secret = Zeroizing::new(hex::encode(pair.secret().as_slice()));
            text.push_str(&format!("# {}\n{SECRET_PREFIX}{}\n", pair.id(), *secret));
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
}
