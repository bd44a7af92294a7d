//! `guest.json`: what the guest directory holds, for tests, the demo and image import.

use std::collections::BTreeMap;
use std::path::Path;

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use crate::fault::{Done, Fault};

pub(super) const FILE: &str = "guest.json";
/// Raised when a field changes its meaning.
pub(super) const FORMAT: u32 = 1;

/// The manifest beside the guest's files; all names are relative to its directory.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Manifest {
    pub(crate) format: u32,
    /// sha256 over the recipe's version, the package versions and the scripts.
    pub(crate) key: String,
    pub(crate) kernel: String,
    pub(crate) initrd: String,
    pub(crate) disk: String,
    /// For direct boot; the disk's boot loader has the same.
    pub(crate) cmdline: String,
    pub(crate) memory_mib_min: u32,
    /// What the serial line says when the guest can be used; `{hostname}` and `{ip}` are filled in.
    pub(crate) ready: String,
    pub(crate) sha256: BTreeMap<String, String>,
    pub(crate) packages: BTreeMap<String, String>,
}

impl Manifest {
    /// The manifest in `dir`, whatever the state of the files beside it.
    pub(super) fn read(dir: &Path) -> Option<Self> {
        serde_json::from_slice(&std::fs::read(dir.join(FILE)).ok()?).ok()
    }

    /// The manifest of a complete guest with this key; `None` when anything is missing or differs.
    pub(super) fn cached(dir: &Path, key: &str) -> Option<Self> {
        let manifest = Self::read(dir)?;
        let whole =
            |(name, sum): (&String, &String)| hash_file(&dir.join(name)).is_ok_and(|found| found == *sum);
        let fits = manifest.format == FORMAT && manifest.key == key && manifest.sha256.iter().all(whole);
        fits.then_some(manifest)
    }

    pub(super) fn write(&self, dir: &Path) -> Done {
        let path = dir.join(FILE);
        let mut text = serde_json::to_string_pretty(self).expect("a manifest of strings is always JSON");
        text.push('\n');
        std::fs::write(&path, text).map_err(|error| Fault::file("write", &path, &error))
    }
}

pub(super) fn hash_file(path: &Path) -> Done<String> {
    let bytes = std::fs::read(path).map_err(|error| Fault::file("read", path, &error))?;
    Ok(hex::encode(Sha256::digest(bytes)))
}

/// A key over named parts; length prefixes keep two neighbours from trading bytes.
pub(super) fn key<'a>(parts: impl IntoIterator<Item = &'a str>) -> String {
    let mut hash = Sha256::new();
    for part in parts {
        hash.update((part.len() as u64).to_le_bytes());
        hash.update(part.as_bytes());
    }
    hex::encode(hash.finalize())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_tell_neighbours_apart() {
        assert_ne!(key(["ab", "c"]), key(["a", "bc"]));
        assert_eq!(key(["ab", "c"]), key(["ab", "c"]));
    }

    #[test]
    fn a_damaged_guest_is_not_taken_from_the_cache() {
        let dir = std::env::temp_dir().join(format!("vbm-xtask-manifest-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        std::fs::write(dir.join("vmlinuz"), "kernel").unwrap();
        let sum = hash_file(&dir.join("vmlinuz")).unwrap();
        let manifest = Manifest {
            format: FORMAT,
            key: "k".into(),
            kernel: "vmlinuz".into(),
            initrd: String::new(),
            disk: String::new(),
            cmdline: String::new(),
            memory_mib_min: 96,
            ready: String::new(),
            sha256: [("vmlinuz".to_owned(), sum)].into(),
            packages: BTreeMap::new(),
        };
        manifest.write(&dir).unwrap();
        assert_eq!(Manifest::cached(&dir, "k"), Some(manifest));
        assert_eq!(Manifest::cached(&dir, "other"), None);
        std::fs::write(dir.join("vmlinuz"), "kernal").unwrap();
        assert_eq!(Manifest::cached(&dir, "k"), None);
        std::fs::remove_dir_all(&dir).unwrap();
    }
}
