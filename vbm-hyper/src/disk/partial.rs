//! What came of an import that broke: a file that stays for a while.

use super::Temp;
use crate::{Error, Result, limits::PARTIAL_MAX_AGE};
use rustix::fs::FlockOperation;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use std::{
    fs::{self, File, OpenOptions},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};
use vbm_core::Digest;

const PREFIX: &str = "partial-";
const NOTE: &str = "note";
/// How often what another import has is tried again, and how long to wait in between.
const OPEN_MAX_TRIES: u32 = 50;
const OPEN_RETRY: Duration = Duration::from_millis(20);

/// What is remembered beside the file.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Note {
    validator: Option<String>,
}

/// A file that stays unless it is forgotten. One import at a time has it.
#[derive(Debug)]
pub(super) struct Partial {
    temp: Temp,
    note_path: PathBuf,
    note: Note,
}

impl Partial {
    /// Opens what came of a source, or makes an empty file.
    ///
    /// # Errors
    /// [`Error::Invalid`] when another import of the same source goes on; [`Error::Io`].
    pub(super) async fn open(dir: &Path, key: &str) -> Result<Self> {
        let mut tries = 0;
        loop {
            match Self::open_now(dir, key)? {
                Some(partial) => return Ok(partial),
                None if tries == OPEN_MAX_TRIES => {
                    return Err(Error::Refused(vbm_core::Error::new(
                        vbm_core::ErrorKind::Conflict,
                        "this source is being imported already",
                        "one import of a source goes on at a time",
                        "wait until it is done",
                    )));
                }
                None => {}
            }
            // One that was called off may still be at its last write.
            tokio::time::sleep(OPEN_RETRY).await;
            tries += 1;
        }
    }

    /// `None` while another one has it.
    fn open_now(dir: &Path, key: &str) -> Result<Option<Self>> {
        let name = hex::encode(Sha256::digest(key.as_bytes()));
        let path = dir.join(format!("{PREFIX}{}", &name[..32]));
        let note_path = path.with_extension(NOTE);
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(&path)
            .map_err(Error::io("create", &path))?;
        match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(rustix::io::Errno::WOULDBLOCK) => return Ok(None),
            Err(errno) => return Err(Error::io("lock", &path)(errno.into())),
        }
        // Whoever had it may have taken it away between the opening and the lock.
        if !same(&file, &path) {
            return Ok(None);
        }
        let note = fs::read(&note_path)
            .ok()
            .and_then(|bytes| serde_json::from_slice(&bytes).ok())
            .unwrap_or_default();
        let temp = Temp {
            path,
            file,
            kept: true,
        };
        Ok(Some(Self {
            temp,
            note_path,
            note,
        }))
    }

    pub(super) const fn file(&self) -> &File {
        &self.temp.file
    }

    pub(super) fn bytes(&self) -> Result<u64> {
        let about = self.temp.file.metadata();
        about
            .map(|about| about.len())
            .map_err(Error::io("look at", &self.temp.path))
    }

    pub(super) fn validator(&self) -> Option<&str> {
        self.note.validator.as_deref()
    }

    /// Whether what is here can be told from other content: by the source, or by the digest at the end.
    pub(super) const fn may_go_on(&self, expected: Option<Digest>) -> bool {
        self.note.validator.is_some() || expected.is_some()
    }

    pub(super) fn begin_anew(&mut self) -> Result<()> {
        self.note = Note::default();
        self.temp
            .file
            .set_len(0)
            .map_err(Error::io("write", &self.temp.path))
    }

    /// Notes by what the content is known.
    pub(super) fn note(&mut self, validator: Option<String>) -> Result<()> {
        self.note.validator = validator;
        let text = serde_json::to_vec(&self.note)
            .map_err(|error| Error::io("write", &self.note_path)(error.into()))?;
        fs::write(&self.note_path, text).map_err(Error::io("write", &self.note_path))
    }

    /// Nothing is kept.
    pub(super) fn forget(mut self) {
        self.drop_note();
        self.temp.kept = false;
    }

    /// It is whole: it goes away unless it is kept as something else.
    pub(super) fn into_temp(mut self) -> Temp {
        self.drop_note();
        self.temp.kept = false;
        self.temp
    }

    fn drop_note(&self) {
        match fs::remove_file(&self.note_path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                tracing::warn!(path = %self.note_path.display(), %error, "a note of an import stays behind");
            }
            _ => {}
        }
    }
}

fn same(file: &File, path: &Path) -> bool {
    use std::os::unix::fs::MetadataExt;
    let place = |about: &fs::Metadata| (about.dev(), about.ino());
    match (file.metadata(), path.symlink_metadata()) {
        (Ok(open), Ok(named)) => place(&open) == place(&named),
        _ => false,
    }
}

/// Removes what nobody came back for. Returns how many imports.
pub(super) fn sweep(dir: &Path, now: SystemTime) -> Result<usize> {
    let mut swept = 0;
    for entry in fs::read_dir(dir).map_err(Error::io("list", dir))? {
        let entry = entry.map_err(Error::io("list", dir))?;
        let name = entry.file_name();
        if !name.to_str().is_some_and(|name| name.starts_with(PREFIX)) {
            continue;
        }
        let Ok(changed) = entry.metadata().and_then(|about| about.modified()) else {
            continue;
        };
        if now.duration_since(changed).is_ok_and(|age| age > PARTIAL_MAX_AGE) {
            fs::remove_file(entry.path()).map_err(Error::io("remove", entry.path()))?;
            swept += usize::from(entry.path().extension().is_none());
        }
    }
    Ok(swept)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    #[tokio::test(start_paused = true)]
    async fn what_came_is_found_again_by_one_at_a_time_and_goes_with_age() {
        let dir = tempfile::tempdir().unwrap();
        let mut partial = Partial::open(dir.path(), "a").await.unwrap();
        partial.file().write_all(b"half").unwrap();
        partial.note(Some("\"v1\"".into())).unwrap();
        assert!(matches!(
            Partial::open(dir.path(), "a").await,
            Err(Error::Refused(_))
        ));
        drop(partial);
        let partial = Partial::open(dir.path(), "a").await.unwrap();
        assert_eq!(
            (partial.bytes().unwrap(), partial.validator()),
            (4, Some("\"v1\""))
        );
        assert_eq!(Partial::open(dir.path(), "b").await.unwrap().bytes().unwrap(), 0);
        drop(partial);
        let now = SystemTime::now();
        assert_eq!(sweep(dir.path(), now).unwrap(), 0);
        let later = now + PARTIAL_MAX_AGE + Duration::from_secs(60);
        assert_eq!(sweep(dir.path(), later).unwrap(), 2);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
        Partial::open(dir.path(), "c").await.unwrap().forget();
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }
}
