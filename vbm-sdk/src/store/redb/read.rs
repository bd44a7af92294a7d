//! What is read from a snapshot of the file.

use super::file::{LOG, LogPlace, LogRow, META, RECORDS, REVISION, SCHEMA};
use crate::store::{
    Change, Entry, PAGE_MAX_ENTRIES, Page, Revision, StoreError, rules,
    watch::{LOG_READ_MAX_BYTES, LOG_READ_MAX_REVISIONS, LogPart},
};
use ::redb::{ReadTransaction, ReadableTable};
use bytes::Bytes;
use std::ops::Bound;

/// Why a read failed.
pub(super) enum ReadError {
    /// The file could not be read.
    File(::redb::Error),
    /// It could, but what was asked cannot be answered.
    Store(StoreError),
}

impl<E: Into<::redb::Error>> From<E> for ReadError {
    fn from(error: E) -> Self {
        Self::File(error.into())
    }
}

/// What the writer must know of a file that was just opened.
#[derive(Clone, Copy, Debug)]
pub(super) struct FileState {
    pub(super) schema: u64,
    pub(super) revision: Revision,
    /// The bytes of keys and values in the log.
    pub(super) log_bytes: usize,
}

pub(super) fn state(snapshot: &ReadTransaction) -> Result<FileState, ReadError> {
    let schema = number(snapshot, SCHEMA)?;
    let revision = revision(snapshot)?;
    // Opened here, so that a store without records is found out now.
    snapshot.open_table(RECORDS)?;
    let mut log_bytes = 0;
    for row in snapshot.open_table(LOG)?.iter()? {
        log_bytes += row_bytes(row?.1.value());
    }
    Ok(FileState {
        schema,
        revision,
        log_bytes,
    })
}

/// The bytes of key and value of a row of the log.
pub(super) fn row_bytes((key, value): LogRow<'_>) -> usize {
    key.len() + value.map_or(0, <[u8]>::len)
}

fn number(snapshot: &ReadTransaction, name: &str) -> Result<u64, ReadError> {
    let found = snapshot.open_table(META)?.get(name)?.map(|number| number.value());
    found.ok_or_else(|| ::redb::Error::Corrupted(format!("it does not tell its {name}")).into())
}

pub(super) fn revision(snapshot: &ReadTransaction) -> Result<Revision, ReadError> {
    number(snapshot, REVISION).map(Revision)
}

pub(super) fn get(snapshot: &ReadTransaction, key: String) -> Result<Option<Entry>, ReadError> {
    let records = snapshot.open_table(RECORDS)?;
    let found = records.get(key.as_str())?.map(|found| {
        let (revision, value) = found.value();
        (Revision(revision), Bytes::copy_from_slice(value))
    });
    Ok(found.map(|(revision, value)| Entry { key, value, revision }))
}

pub(super) fn list(
    snapshot: &ReadTransaction,
    prefix: &str,
    after: Option<&str>,
    limit: usize,
) -> Result<Page, ReadError> {
    let limit = limit.min(PAGE_MAX_ENTRIES);
    let records = snapshot.open_table(RECORDS)?;
    let mut page = Page {
        entries: Vec::new(),
        more: false,
        revision: revision(snapshot)?,
    };
    for row in records.range::<&str>((rules::list_start(prefix, after), Bound::Unbounded))? {
        let (key, found) = row?;
        if !key.value().starts_with(prefix) {
            break;
        }
        if page.entries.len() == limit {
            page.more = true;
            break;
        }
        let (revision, value) = found.value();
        page.entries.push(Entry {
            key: key.value().to_owned(),
            value: Bytes::copy_from_slice(value),
            revision: Revision(revision),
        });
    }
    Ok(page)
}

/// The oldest revision of the log; the next one to come when the log is empty.
pub(super) fn oldest(
    log: &impl ReadableTable<LogPlace, LogRow<'static>>,
    newest: Revision,
) -> Result<Revision, ::redb::StorageError> {
    let first = log.first()?.map(|(place, _)| place.value().0);
    Ok(Revision(first.unwrap_or(newest.0 + 1)))
}

pub(super) fn log_after(
    snapshot: &ReadTransaction,
    prefix: &str,
    after: Revision,
) -> Result<LogPart, ReadError> {
    let newest = revision(snapshot)?;
    let log = snapshot.open_table(LOG)?;
    rules::check_cursor(after, oldest(&log, newest)?, newest).map_err(ReadError::Store)?;
    let last = after.0.saturating_add(LOG_READ_MAX_REVISIONS).min(newest.0);
    let mut part = LogPart {
        changes: Vec::new(),
        upto: Revision(last),
    };
    let mut bytes = 0;
    for row in log.range((after.0 + 1, 0)..=(last, u32::MAX))? {
        let (place, change) = row?;
        let (revision, _) = place.value();
        let (key, value) = change.value();
        if !key.starts_with(prefix) {
            continue;
        }
        // A part ends with a whole revision.
        let begins_another = part
            .changes
            .last()
            .is_some_and(|last| last.revision.0 != revision);
        if bytes >= LOG_READ_MAX_BYTES && begins_another {
            part.upto = Revision(revision - 1);
            break;
        }
        bytes += row_bytes((key, value));
        part.changes.push(Change {
            revision: Revision(revision),
            key: key.to_owned(),
            value: value.map(Bytes::copy_from_slice),
        });
    }
    Ok(part)
}
