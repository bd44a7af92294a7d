//! The rules that every store keeps, as plain functions: what a transaction may hold, when it conflicts,
//! where a list begins, when the log forgets. Both stores call these, so they cannot disagree.

use super::{
    Compare, KEY_MAX_BYTES, LOG_MAX_BYTES, LOG_MAX_REVISIONS, Revision, StoreError, TXN_MAX_BYTES,
    TXN_MAX_ITEMS, Txn, VALUE_MAX_BYTES, Write,
};
use std::{collections::HashSet, ops::Bound};

impl Compare {
    /// The key it looks at.
    pub fn key(&self) -> &str {
        match self {
            Self::Absent(key) | Self::At(key, _) => key,
        }
    }
}

impl Write {
    /// The key it changes.
    pub fn key(&self) -> &str {
        match self {
            Self::Put(key, _) | Self::Delete(key) => key,
        }
    }

    /// The bytes of key and value.
    pub(super) fn bytes(&self) -> usize {
        match self {
            Self::Put(key, value) => key.len() + value.len(),
            Self::Delete(key) => key.len(),
        }
    }
}

impl Txn {
    /// The bytes of all keys and values that it carries.
    pub(super) fn bytes(&self) -> usize {
        self.compare
            .iter()
            .map(|compare| compare.key().len())
            .sum::<usize>()
            + self.write.iter().map(Write::bytes).sum::<usize>()
    }

    /// Whether it fits the limits of every store. Stores call this first; a caller may, to fail early.
    ///
    /// # Errors
    /// [`StoreError::Invalid`] with the reason.
    pub fn check(&self) -> Result<(), StoreError> {
        let items = self.compare.len() + self.write.len();
        if items > TXN_MAX_ITEMS {
            return Err(invalid(format!(
                "{items} comparisons and writes, at most {TXN_MAX_ITEMS} are allowed"
            )));
        }
        for key in self
            .compare
            .iter()
            .map(Compare::key)
            .chain(self.write.iter().map(Write::key))
        {
            check_key(key)?;
        }
        let mut written = HashSet::with_capacity(self.write.len());
        for write in &self.write {
            if let Write::Put(key, value) = write
                && value.len() > VALUE_MAX_BYTES
            {
                let bytes = value.len();
                return Err(invalid(format!(
                    "the value of '{key}' has {bytes} bytes, at most {VALUE_MAX_BYTES} are allowed"
                )));
            }
            if !written.insert(write.key()) {
                return Err(invalid(format!("the key '{}' is written twice", write.key())));
            }
        }
        let bytes = self.bytes();
        if bytes > TXN_MAX_BYTES {
            return Err(invalid(format!(
                "{bytes} bytes in one transaction, at most {TXN_MAX_BYTES} are allowed"
            )));
        }
        Ok(())
    }
}

fn invalid(why: String) -> StoreError {
    StoreError::Invalid(why)
}

fn check_key(key: &str) -> Result<(), StoreError> {
    match key.len() {
        0 => Err(invalid("a key is empty".into())),
        1..=KEY_MAX_BYTES => Ok(()),
        bytes => Err(invalid(format!(
            "a key has {bytes} bytes, at most {KEY_MAX_BYTES} are allowed"
        ))),
    }
}

/// The first key that is not as the transaction expects, by what `revision_of` tells.
pub(super) fn first_conflict<E>(
    txn: &Txn,
    mut revision_of: impl FnMut(&str) -> Result<Option<Revision>, E>,
) -> Result<Option<String>, E> {
    for compare in &txn.compare {
        let found = revision_of(compare.key())?;
        let holds = match compare {
            Compare::Absent(_) => found.is_none(),
            Compare::At(_, revision) => found == Some(*revision),
        };
        if !holds {
            return Ok(Some(compare.key().to_owned()));
        }
    }
    Ok(None)
}

/// Where a list begins. It ends at the first key without the prefix: such keys are neighbours.
pub(super) fn list_start<'a>(prefix: &'a str, after: Option<&'a str>) -> Bound<&'a str> {
    match after {
        Some(after) if after >= prefix => Bound::Excluded(after),
        _ => Bound::Included(prefix),
    }
}

/// Whether the log, which holds `oldest..=newest` in `bytes`, must forget its oldest revision.
pub(super) fn log_is_over(oldest: Revision, newest: Revision, bytes: usize) -> bool {
    let kept = newest.0 - oldest.0 + 1;
    kept > LOG_MAX_REVISIONS || (bytes > LOG_MAX_BYTES && kept > 1)
}

/// Whether the changes after `from` can be told by a log that begins at `oldest`. A revision that is yet to
/// come is refused too: who asks knew another store (one restored from a backup), and must list again.
pub(super) fn check_cursor(from: Revision, oldest: Revision, newest: Revision) -> Result<(), StoreError> {
    if from > newest || from.0 + 1 < oldest.0 {
        return Err(StoreError::Compacted { asked: from, oldest });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cursor_is_good_from_just_before_the_oldest_to_the_newest() {
        let good = |from| check_cursor(Revision(from), Revision(5), Revision(9)).is_ok();
        assert_eq!(
            (0..12).filter(|from| good(*from)).collect::<Vec<_>>(),
            [4, 5, 6, 7, 8, 9]
        );
        assert!(
            check_cursor(Revision(0), Revision(1), Revision(0)).is_ok(),
            "an empty store"
        );
        assert!(check_cursor(Revision(u64::MAX), Revision(1), Revision(0)).is_err());
    }

    #[test]
    fn the_log_keeps_its_newest_revision_however_large() {
        assert!(!log_is_over(Revision(9), Revision(9), usize::MAX));
        assert!(log_is_over(Revision(8), Revision(9), LOG_MAX_BYTES + 1));
        assert!(!log_is_over(Revision(1), Revision(LOG_MAX_REVISIONS), 0));
        assert!(log_is_over(Revision(1), Revision(LOG_MAX_REVISIONS + 1), 0));
    }

    #[test]
    fn a_list_never_begins_before_its_prefix() {
        assert_eq!(list_start("vm/", Some("a")), Bound::Included("vm/"));
        assert_eq!(list_start("vm/", Some("vm/1")), Bound::Excluded("vm/1"));
        assert_eq!(list_start("vm/", None), Bound::Included("vm/"));
    }
}
