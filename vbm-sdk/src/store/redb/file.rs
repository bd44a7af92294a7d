//! The file: opening it, making it, its tables, what its failures mean.

use super::read::{self, FileState, ReadError};
use crate::store::{Revision, StoreError};
use ::redb::{
    Builder, Database, DatabaseError, ReadableDatabase as _, StorageError, TableDefinition,
    backends::FileBackend,
};
use std::{
    fs::{self, File, OpenOptions},
    io,
    os::unix::fs::OpenOptionsExt as _,
    panic::{AssertUnwindSafe, catch_unwind},
    path::{Path, PathBuf},
};

/// Numbers of the store itself, by name.
pub(super) const META: TableDefinition<'_, &str, u64> = TableDefinition::new("meta");
/// key -> (revision, value)
pub(super) const RECORDS: TableDefinition<'_, &str, (u64, &[u8])> = TableDefinition::new("records");
/// Which revision, and the place of the change in its transaction.
pub(super) type LogPlace = (u64, u32);
/// Which key, and its new value; none when it was removed.
pub(super) type LogRow<'a> = (&'a str, Option<&'a [u8]>);
/// The changes of the newest revisions.
pub(super) const LOG: TableDefinition<'_, LogPlace, LogRow<'_>> = TableDefinition::new("log");

/// In [`META`]: the newest revision.
pub(super) const REVISION: &str = "revision";
/// In [`META`]: how the tables are to be read.
pub(super) const SCHEMA: &str = "schema";
/// The schema that this code reads and writes. A change of the tables raises it and brings a migration.
pub(super) const SCHEMA_VERSION: u64 = 1;

/// The most memory that pages of the file may take.
const CACHE_MAX_BYTES: usize = 16 << 20;
/// The file holds what only its owner may read.
const FILE_MODE: u32 = 0o600;

/// Opens the store, or makes it.
pub(super) fn open_or_create(path: &Path) -> Result<(Database, FileState), StoreError> {
    // When several make it at once, one wins the link and the others find it in use.
    if !exists(path)?
        && let Some(made) = create(path)?
    {
        return Ok(made);
    }
    let opened = open(path, Check::All)?;
    // With the file open and so locked, nobody else is making it: this is left from one that was killed.
    remove_if_there(&beside(path))?;
    Ok(opened)
}

/// How much is verified when a file is opened.
#[derive(Clone, Copy, PartialEq)]
pub(super) enum Check {
    /// Every checksum.
    All,
    /// What redb finds necessary: for a file that this process had open a moment ago.
    Little,
}

/// Opens the store in a file that exists.
pub(super) fn open(path: &Path, check: Check) -> Result<(Database, FileState), StoreError> {
    let file = options().open(path).map_err(|error| failed(path, &error))?;
    let length = file.metadata().map_err(|error| failed(path, &error))?.len();
    if length == 0 {
        return Err(corrupt(path, "the file is empty"));
    }
    let database = open_database(path, file, check)?;
    let state = guarded(path, || {
        let snapshot = database.begin_read().map_err(ReadError::from)?;
        read::state(&snapshot)
    })?
    .map_err(|error| unreadable(path, error))?;
    if state.schema != SCHEMA_VERSION {
        let found = state.schema;
        return Err(corrupt(
            path,
            format!(
                "its schema is {found}, and this version of VBM reads schema {SCHEMA_VERSION}: it was made by another version"
            ),
        ));
    }
    Ok((database, state))
}

/// Makes the store and links it to its place; `None` when somebody else was faster.
pub(super) fn create(path: &Path) -> Result<Option<(Database, FileState)>, StoreError> {
    let beside = beside(path);
    let file = options()
        .create(true)
        .open(&beside)
        .map_err(|error| failed(&beside, &error))?;
    let database = match open_database(&beside, file, Check::All) {
        Err(StoreError::Corrupt { .. }) => {
            // Left half made by one that was killed.
            remove_if_there(&beside)?;
            let file = options()
                .create_new(true)
                .open(&beside)
                .map_err(|error| failed(&beside, &error))?;
            open_database(&beside, file, Check::All)?
        }
        // Somebody else is making it now: to the caller it is the store that is in use.
        Err(StoreError::InUse { .. }) => {
            return Err(StoreError::InUse {
                path: path.to_owned(),
            });
        }
        other => other?,
    };
    initialise(&database)
        .map_err(|error| StoreError::Failed(format!("making {}: {error}", path.display())))?;
    let linked = fs::hard_link(&beside, path);
    remove_if_there(&beside)?;
    match linked {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => return Ok(None),
        Err(error) => return Err(failed(path, &error)),
    }
    sync_directory(path).map_err(|error| failed(path, &error))?;
    let state = FileState {
        schema: SCHEMA_VERSION,
        revision: Revision(0),
        log_bytes: 0,
    };
    Ok(Some((database, state)))
}

fn initialise(database: &Database) -> Result<(), ::redb::Error> {
    let write = database.begin_write()?;
    {
        let mut meta = write.open_table(META)?;
        meta.insert(SCHEMA, SCHEMA_VERSION)?;
        meta.insert(REVISION, 0)?;
        write.open_table(RECORDS)?;
        write.open_table(LOG)?;
    }
    Ok(write.commit()?)
}

fn open_database(path: &Path, file: File, check: Check) -> Result<Database, StoreError> {
    guarded(path, || {
        let mut builder = Builder::new();
        builder.set_cache_size(CACHE_MAX_BYTES);
        builder.set_check_integrity_on_open(check == Check::All);
        builder.create_with_backend(FileBackend::new(file)?)
    })?
    .map_err(|error| match error {
        DatabaseError::DatabaseAlreadyOpen | DatabaseError::LockProtocolMismatch => StoreError::InUse {
            path: path.to_owned(),
        },
        DatabaseError::UpgradeRequired(version) => {
            corrupt(path, format!("the file has the old format {version} of redb"))
        }
        DatabaseError::Storage(StorageError::Io(error)) if !says_corrupt(&error) => failed(path, &error),
        other => corrupt(path, other.to_string()),
    })
}

/// A damaged file may make its reader panic, although checksums are verified first; that is damage, too.
fn guarded<T>(path: &Path, read: impl FnOnce() -> T) -> Result<T, StoreError> {
    catch_unwind(AssertUnwindSafe(read)).map_err(|_panic| corrupt(path, "reading it made the reader panic"))
}

fn unreadable(path: &Path, error: ReadError) -> StoreError {
    use ::redb::Error::{
        Corrupted, Io, TableDoesNotExist, TableIsMultimap, TableTypeMismatch, TypeDefinitionChanged,
    };
    match error {
        ReadError::Store(error) => error,
        ReadError::File(Io(error)) if !says_corrupt(&error) => failed(path, &error),
        ReadError::File(
            error @ (TableDoesNotExist(_)
            | TableIsMultimap(_)
            | TableTypeMismatch { .. }
            | TypeDefinitionChanged { .. }),
        ) => corrupt(
            path,
            format!("it is a redb file, but not a store of VBM: {error}"),
        ),
        ReadError::File(Corrupted(why)) => corrupt(path, why),
        ReadError::File(error) => corrupt(path, error.to_string()),
    }
}

fn says_corrupt(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::InvalidData | io::ErrorKind::UnexpectedEof
    )
}

/// Whether a failure only says that there is no space.
pub(super) fn says_full(error: &::redb::Error) -> bool {
    use io::ErrorKind::{FileTooLarge, QuotaExceeded, StorageFull};
    matches!(error, ::redb::Error::Io(error) if matches!(error.kind(), StorageFull | QuotaExceeded | FileTooLarge))
}

fn corrupt(path: &Path, detail: impl Into<String>) -> StoreError {
    StoreError::Corrupt {
        path: path.to_owned(),
        detail: detail.into(),
    }
}

fn failed(path: &Path, error: &io::Error) -> StoreError {
    StoreError::Failed(format!("{}: {error}", path.display()))
}

fn options() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.read(true).write(true).mode(FILE_MODE);
    options
}

/// Where a store is made before it is put in its place.
fn beside(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".new");
    name.into()
}

fn exists(path: &Path) -> Result<bool, StoreError> {
    path.try_exists().map_err(|error| failed(path, &error))
}

fn remove_if_there(path: &Path) -> Result<(), StoreError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(failed(path, &error)),
        _ => Ok(()),
    }
}

/// Makes the name of a new file durable.
fn sync_directory(path: &Path) -> io::Result<()> {
    let directory = match path.parent() {
        Some(parent) if parent != Path::new("") => parent,
        _ => Path::new("."),
    };
    File::open(directory)?.sync_all()
}
