//! Where leases of pools are kept, so that a restart forgets none that was acknowledged.
//!
//! ```text
//!   "VBMDHCP1" | record | record | record ... | zeroes      record: length u16 | CRC-32 of the body | body
//!                                                           body:   address | until | 0 none, 1 MAC, 2 client id | its bytes
//! ```
//!
//! What is written stays as it is, one write and one `fdatasync` for all records of a commit. They go where zeroes were, so that the
//! length of the file does not change with each: the disk is spared what a file system writes about that. A crash can leave the last
//! commit half written: reading stops at the first record that is not whole. None of what follows was acknowledged, as its
//! commit had not returned; it is put aside in a file beside, in case it was damage and not a crash. When most of the log
//! is history it is written anew beside and renamed.

mod record;

use super::book::LeaseRecord;
use record::{put, take};
use std::{
    collections::HashMap,
    fs::{File, OpenOptions},
    io::{self, Read as _, Write as _},
    net::Ipv4Addr,
    os::unix::fs::FileExt as _,
    path::{Path, PathBuf},
};

/// Keeps leases. Called by one server at a time, on a thread where it may block.
pub trait LeaseStore: Send + 'static {
    /// All that is kept, each address once. Called before the first answer.
    ///
    /// # Errors
    /// What cannot be read; the server does not start then, for it could give an address twice.
    fn load(&mut self) -> io::Result<Vec<LeaseRecord>>;

    /// Keeps these, in this order. When it returns well they outlive a crash; when not, none of them is acknowledged, and some may be kept.
    ///
    /// # Errors
    /// What cannot be written.
    fn commit(&mut self, records: &[LeaseRecord]) -> io::Result<()>;
}

/// Keeps nothing: for servers without a pool, and for those whose leases may be forgotten.
#[derive(Clone, Copy, Debug, Default)]
pub struct Forgetful;

impl LeaseStore for Forgetful {
    fn load(&mut self) -> io::Result<Vec<LeaseRecord>> {
        Ok(Vec::new())
    }
    fn commit(&mut self, _: &[LeaseRecord]) -> io::Result<()> {
        Ok(())
    }
}

const MAGIC: &[u8; 8] = b"VBMDHCP1";
/// The log is written anew when it has this many records more than twice the addresses.
const HISTORY_MAX_RECORDS: usize = 16_384;
/// The file grows by so many bytes: some two thousand records.
const GROWTH_BYTES: usize = 64 << 10;

/// A log in a file.
#[derive(Debug)]
pub struct AppendLog {
    path: PathBuf,
    file: File,
    /// Where the last whole commit ends.
    end: u64,
    /// The length of the file; there are zeroes from `end` on.
    room: u64,
    records: usize,
    live: HashMap<Ipv4Addr, LeaseRecord>,
    /// Whether a commit failed half way: what stands behind `end` is taken away before the next.
    torn: bool,
    /// Whether it is not known that the file of this name outlives a crash: nothing is acknowledged until it is written anew.
    adrift: bool,
    set_aside_bytes: u64,
    sync_folder: fn(&Path) -> io::Result<()>,
}

impl AppendLog {
    /// Opens the log, or makes it. What a crash left half written is put aside.
    ///
    /// # Errors
    /// A file that cannot be read or written, that another process has open, or that is something else.
    pub fn open(path: impl Into<PathBuf>) -> io::Result<Self> {
        let path = path.into();
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(&path)?;
        file.try_lock().map_err(|e| match e {
            std::fs::TryLockError::WouldBlock => io::Error::new(
                io::ErrorKind::ResourceBusy,
                format!("another server keeps its leases in {}", path.display()),
            ),
            std::fs::TryLockError::Error(error) => error,
        })?;
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes)?;
        let mut log = Self {
            path,
            file,
            end: 0,
            room: 0,
            records: 0,
            live: HashMap::new(),
            torn: false,
            adrift: false,
            set_aside_bytes: 0,
            sync_folder,
        };
        if bytes.len() < MAGIC.len() && MAGIC.starts_with(&bytes) {
            // New, or a crash while it was made.
            log.begin()?;
        } else if bytes.starts_with(MAGIC) {
            log.read(&bytes)?;
        } else {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                format!("{} is no log of DHCP leases", log.path.display()),
            ));
        }
        Ok(log)
    }

    /// How many bytes of a half-written commit were put aside when it was opened.
    pub const fn set_aside_bytes(&self) -> u64 {
        self.set_aside_bytes
    }

    fn begin(&mut self) -> io::Result<()> {
        self.file.set_len(0)?;
        self.file.write_all_at(MAGIC, 0)?;
        self.file.sync_all()?;
        (self.sync_folder)(&self.path)?;
        self.end = MAGIC.len() as u64;
        self.room = self.end;
        Ok(())
    }

    fn read(&mut self, bytes: &[u8]) -> io::Result<()> {
        let mut rest = bytes.get(MAGIC.len()..).unwrap_or_default();
        while let Some((record, behind)) = take(rest) {
            self.live.insert(record.address, record);
            self.records += 1;
            rest = behind;
        }
        self.end = (bytes.len() - rest.len()) as u64;
        self.room = bytes.len() as u64;
        let written = rest
            .iter()
            .rposition(|byte| *byte != 0)
            .map_or(0, |last| last + 1);
        let rest = rest.get(..written).unwrap_or_default();
        self.set_aside_bytes = rest.len() as u64;
        if !rest.is_empty() {
            let mut name = self.path.clone().into_os_string();
            name.push(".torn");
            std::fs::write(&name, rest)?;
            tracing::warn!(log = %self.path.display(), bytes = rest.len(), aside = ?name, "the end of the log of leases was half written");
            self.cut()?;
            self.file.sync_all()?;
        }
        Ok(())
    }

    /// Nothing stands behind the last whole commit.
    fn cut(&mut self) -> io::Result<()> {
        self.file.set_len(self.end)?;
        self.room = self.end;
        Ok(())
    }

    /// Writes the log anew, with what holds now alone. After a crash either the old or the new one stands, whole. From the moment
    /// when the new one has the name, it is the one that is written to, whatever fails then.
    fn compact(&mut self) -> io::Result<()> {
        let mut name = self.path.clone().into_os_string();
        name.push(".new");
        let beside = PathBuf::from(name);
        let mut bytes = MAGIC.to_vec();
        for record in self.live.values() {
            put(&mut bytes, record)?;
        }
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(true)
            .open(&beside)?;
        file.lock()?;
        file.write_all(&bytes)?;
        file.sync_all()?;
        std::fs::rename(&beside, &self.path)?;
        self.file = file;
        self.end = bytes.len() as u64;
        self.room = self.end;
        self.records = self.live.len();
        self.torn = false;
        self.adrift = true;
        (self.sync_folder)(&self.path)?;
        self.adrift = false;
        Ok(())
    }
}

impl LeaseStore for AppendLog {
    fn load(&mut self) -> io::Result<Vec<LeaseRecord>> {
        Ok(self.live.values().cloned().collect())
    }

    fn commit(&mut self, records: &[LeaseRecord]) -> io::Result<()> {
        // Renamed once more: a folder that could not be synced may say the next time that it has nothing to sync.
        if self.adrift {
            self.compact()?;
        }
        if self.torn {
            self.cut()?;
            self.torn = false;
        }
        let mut bytes = Vec::with_capacity(records.len() * 64);
        for record in records {
            put(&mut bytes, record)?;
        }
        let end = self.end + bytes.len() as u64;
        let grows = end > self.room;
        if grows {
            bytes.resize(bytes.len() + GROWTH_BYTES, 0);
        }
        self.torn = true;
        self.file.write_all_at(&bytes, self.end)?;
        self.file.sync_data()?;
        self.torn = false;
        if grows {
            self.room = self.end + bytes.len() as u64;
        }
        self.end = end;
        self.records += records.len();
        for record in records {
            self.live.insert(record.address, record.clone());
        }
        if self.records > 2 * self.live.len() + HISTORY_MAX_RECORDS {
            // What was committed stands in the old file and in the new one.
            if let Err(error) = self.compact() {
                tracing::warn!(log = %self.path.display(), %error, "the log of leases cannot be made smaller");
                self.records = self.live.len();
            }
        }
        Ok(())
    }
}

/// A rename or a new file is durable when its folder is.
fn sync_folder(path: &Path) -> io::Result<()> {
    let folder = path.parent().filter(|p| !p.as_os_str().is_empty());
    File::open(folder.unwrap_or(Path::new(".")))?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::{record::HEAD_BYTES, *};
    use crate::dhcp::book::ClientKey;
    use proptest::prelude::*;
    use vbm_core::{Mac, Timestamp};

    fn record(n: u32, until: i64) -> LeaseRecord {
        LeaseRecord {
            address: Ipv4Addr::from(0x0a00_0000 + n),
            client: match n % 3 {
                0 => None,
                1 => Some(ClientKey::Mac(Mac::local(n))),
                _ => Some(ClientKey::Id(vec![7; usize::try_from(n).unwrap() % 300].into())),
            },
            until: Timestamp::from_micros(until),
        }
    }

    fn sorted(log: &mut AppendLog) -> Vec<LeaseRecord> {
        let mut all = log.load().unwrap();
        all.sort_by_key(|r| r.address);
        all
    }

    #[test]
    fn what_was_committed_is_there_after_a_restart_the_last_word_counts() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("leases");
        let mut log = AppendLog::open(&path).unwrap();
        assert!(log.load().unwrap().is_empty());
        log.commit(&[record(1, 5), record(2, 5)]).unwrap();
        log.commit(&[record(2, 9), record(3, 1)]).unwrap();
        assert!(AppendLog::open(&path).is_err(), "one server at a time");
        drop(log);
        let mut log = AppendLog::open(&path).unwrap();
        assert_eq!(sorted(&mut log), [record(1, 5), record(2, 9), record(3, 1)]);
        assert_eq!(log.set_aside_bytes(), 0);
    }

    #[test]
    fn a_file_that_is_something_else_is_not_written_over() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("leases");
        std::fs::write(&path, "lease 10.0.0.1 {}").unwrap();
        assert_eq!(
            AppendLog::open(&path).unwrap_err().kind(),
            io::ErrorKind::InvalidData
        );
        assert_eq!(std::fs::read(&path).unwrap(), b"lease 10.0.0.1 {}");
    }

    #[test]
    fn history_is_dropped_when_there_is_too_much_of_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("leases");
        let mut log = AppendLog::open(&path).unwrap();
        let rounds = i64::try_from(HISTORY_MAX_RECORDS / 64).unwrap() + 3;
        for until in 0..rounds {
            let all: Vec<_> = (0..64).map(|n| record(n, until)).collect();
            log.commit(&all).unwrap();
        }
        assert!(log.records < HISTORY_MAX_RECORDS);
        log.commit(&[record(1, 77_777)]).unwrap();
        drop(log);
        let mut log = AppendLog::open(&path).unwrap();
        let all = sorted(&mut log);
        assert_eq!(all.len(), 64);
        assert_eq!(all[1], record(1, 77_777));
        assert_eq!(all[2], record(2, rounds - 1));
        assert!(AppendLog::open(&path).is_err(), "the new file is locked too");
    }

    #[test]
    fn the_file_grows_seldom_and_zeroes_are_no_damage() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("leases");
        let mut lengths = std::collections::BTreeSet::new();
        for round in 0..4 {
            let mut log = AppendLog::open(&path).unwrap();
            assert_eq!(log.set_aside_bytes(), 0);
            assert_eq!(log.load().unwrap().len(), round * 500);
            for n in round * 500..round * 500 + 500 {
                log.commit(&[record(u32::try_from(n).unwrap() * 3 + 1, 7)])
                    .unwrap();
                lengths.insert(std::fs::metadata(&path).unwrap().len());
            }
        }
        assert!(lengths.len() <= 2, "{lengths:?}");
        assert!(!path.with_extension("torn").exists());
    }

    /// A folder that cannot be synced.
    fn failing(_: &Path) -> io::Result<()> {
        Err(io::Error::other("the disk failed"))
    }

    fn compacted_but_not_synced(path: &Path) -> AppendLog {
        let mut log = AppendLog::open(path).unwrap();
        log.commit(&[record(1, 1)]).unwrap();
        log.records = HISTORY_MAX_RECORDS + 8;
        log.sync_folder = failing;
        log.commit(&[record(2, 2)]).unwrap();
        log
    }

    #[test]
    fn what_is_acknowledged_after_a_compaction_that_failed_half_way_is_there_after_a_restart() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("leases");
        let mut log = compacted_but_not_synced(&path);
        log.sync_folder = sync_folder;
        log.commit(&[record(3, 3)]).unwrap();
        drop(log);
        let mut log = AppendLog::open(&path).unwrap();
        assert_eq!(sorted(&mut log), [record(1, 1), record(2, 2), record(3, 3)]);
    }

    #[test]
    fn nothing_is_acknowledged_while_a_crash_could_bring_back_the_old_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("leases");
        let mut log = compacted_but_not_synced(&path);
        assert!(log.commit(&[record(3, 3)]).is_err());
        assert!(log.commit(&[record(4, 4)]).is_err());
        drop(log);
        let mut log = AppendLog::open(&path).unwrap();
        assert_eq!(sorted(&mut log), [record(1, 1), record(2, 2)]);
    }

    proptest! {
        // Each record of each case waits for the disk.
        #![proptest_config(ProptestConfig::with_cases(40))]

        /// Cut anywhere, or with any byte spoilt: what stands before it is read, what comes behind can be added and is read again.
        #[test]
        fn a_torn_tail_costs_only_itself(count in 1u32..20, cut in 0usize..4_000, spoil: Option<u8>) {
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join("leases");
            let mut log = AppendLog::open(&path).unwrap();
            let mut ends = vec![log.end];
            for n in 0..count {
                log.commit(&[record(n, i64::from(n))]).unwrap();
                ends.push(log.end);
            }
            drop(log);
            let mut bytes = std::fs::read(&path).unwrap();
            // In what was written, or in the zeroes right behind it.
            let written = usize::try_from(*ends.last().unwrap()).unwrap();
            let cut = MAGIC.len() + cut % (written + HEAD_BYTES - MAGIC.len());
            match spoil {
                Some(byte) if bytes[cut] != byte => bytes[cut] = byte,
                _ => bytes.truncate(cut),
            }
            std::fs::write(&path, &bytes).unwrap();
            let whole = ends.iter().filter(|e| **e <= cut as u64).count() - 1;
            let mut log = AppendLog::open(&path).unwrap();
            let expected: Vec<_> = (0..u32::try_from(whole).unwrap()).map(|n| record(n, i64::from(n))).collect();
            prop_assert_eq!(sorted(&mut log), expected);
            log.commit(&[record(1_000, 3)]).unwrap();
            drop(log);
            let mut log = AppendLog::open(&path).unwrap();
            prop_assert_eq!(log.load().unwrap().len(), whole + 1);
            prop_assert_eq!(log.set_aside_bytes(), 0);
        }
    }
}
