//! A stamp says that something was made to its end, by which recipe, and what it looked like then.
//!
//! It is removed before the work begins and written after it has ended: no stamp, no thing.

use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use crate::fault::{Done, Fault};

/// What was made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Stamp {
    /// The hash of the recipe.
    pub(super) key: String,
    /// What is worth knowing about the result, such as versions.
    pub(super) facts: BTreeMap<String, String>,
    /// Files that tell whether it is whole: path below the lab's directory, and [`look`] of it.
    pub(super) files: BTreeMap<String, String>,
}

impl Stamp {
    /// The stamp of a thing that is there, whole, and made by this recipe; otherwise why not.
    pub(super) fn valid(dir: &Path, name: &str, key: &str) -> Result<Self, String> {
        let bytes =
            std::fs::read(dir.join(name)).map_err(|_| "it was not made yet, or not to the end".to_owned())?;
        let stamp: Self = serde_json::from_slice(&bytes).map_err(|_| "its stamp is damaged".to_owned())?;
        if stamp.key != key {
            return Err("the recipe has changed".to_owned());
        }
        for (file, then) in &stamp.files {
            match look(&dir.join(file)) {
                Ok(now) if now == *then => {}
                Ok(_) => return Err(format!("{file} was changed")),
                Err(_) => return Err(format!("{file} is missing")),
            }
        }
        Ok(stamp)
    }

    pub(super) fn new(key: &str) -> Self {
        Self {
            key: key.to_owned(),
            facts: BTreeMap::new(),
            files: BTreeMap::new(),
        }
    }

    /// Remembers how a file below `dir` looks now.
    pub(super) fn remember(&mut self, dir: &Path, file: &str) -> Done {
        let path = dir.join(file);
        let now = look(&path).map_err(|error| Fault::file("read", &path, &error))?;
        self.files.insert(file.to_owned(), now);
        Ok(())
    }

    pub(super) fn fact(&self, name: &str) -> &str {
        self.facts.get(name).map_or("?", String::as_str)
    }

    pub(super) fn write(&self, dir: &Path, name: &str) -> Done {
        let path = dir.join(name);
        let text = serde_json::to_string_pretty(self).expect("a stamp of strings is always JSON");
        std::fs::write(&path, text).map_err(|error| Fault::file("write", &path, &error))
    }
}

/// Size and time of the last change: a file of gigabytes is not read to see that it is the same.
fn look(path: &Path) -> std::io::Result<String> {
    let meta = std::fs::metadata(path)?;
    Ok(format!(
        "{} bytes, {}.{:09}",
        meta.len(),
        meta.mtime(),
        meta.mtime_nsec()
    ))
}

/// Removes a stamp; one that is not there is fine.
pub(super) fn remove(path: &Path) -> Done {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(Fault::file("remove", path, &error))
        }
        _ => Ok(()),
    }
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
    fn what_is_half_made_damaged_or_of_another_recipe_is_not_taken() {
        let dir = std::env::temp_dir().join(format!("vbm-xtask-stamp-{}", std::process::id()));
        std::fs::create_dir_all(dir.join("root")).unwrap();
        std::fs::write(dir.join("root/status"), "all is well").unwrap();
        assert!(
            Stamp::valid(&dir, "s.json", "k")
                .unwrap_err()
                .contains("not made")
        );
        let mut stamp = Stamp::new("k");
        stamp.remember(&dir, "root/status").unwrap();
        stamp.write(&dir, "s.json").unwrap();
        assert_eq!(Stamp::valid(&dir, "s.json", "k"), Ok(stamp));
        assert!(
            Stamp::valid(&dir, "s.json", "other")
                .unwrap_err()
                .contains("recipe")
        );
        std::fs::write(dir.join("root/status"), "all is bad").unwrap();
        assert!(Stamp::valid(&dir, "s.json", "k").unwrap_err().contains("changed"));
        std::fs::remove_file(dir.join("root/status")).unwrap();
        assert!(Stamp::valid(&dir, "s.json", "k").unwrap_err().contains("missing"));
        std::fs::write(dir.join("s.json"), "{\"key\": \"k\"").unwrap();
        assert!(Stamp::valid(&dir, "s.json", "k").unwrap_err().contains("damaged"));
        remove(&dir.join("s.json")).unwrap();
        remove(&dir.join("s.json")).unwrap();
        std::fs::remove_dir_all(&dir).unwrap();
    }

    #[test]
    fn keys_tell_neighbours_apart() {
        assert_ne!(key(["ab", "c"]), key(["a", "bc"]));
    }
}
