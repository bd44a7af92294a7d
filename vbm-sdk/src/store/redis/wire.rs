//! What Redis answers, as values of ours. What cannot be read is a failure, never a guess.

use crate::store::{Change, Entry, Page, Revision, StoreError, TxnOutcome, watch::LogPart};
use bytes::Bytes;
use redis::Value;

/// The text of an answer.
pub(super) fn text(value: Value) -> Option<String> {
    match value {
        Value::BulkString(bytes) => String::from_utf8(bytes).ok(),
        Value::SimpleString(text) => Some(text),
        Value::VerbatimString { text, .. } => Some(text),
        Value::Int(number) => Some(number.to_string()),
        _ => None,
    }
}

/// The items of a list as text; those that are none are left out.
pub(super) fn texts(value: Value) -> Vec<String> {
    match value {
        Value::Array(items) => items.into_iter().filter_map(text).collect(),
        _ => Vec::new(),
    }
}

/// Reads the items of a list one after the other.
struct Items(std::vec::IntoIter<Value>);

impl Items {
    fn of(value: Value) -> Result<Self, StoreError> {
        match value {
            Value::Array(items) => Ok(Self(items.into_iter())),
            _ => Err(unreadable("a list")),
        }
    }
    fn is_empty(&self) -> bool {
        self.0.len() == 0
    }
    fn value(&mut self) -> Result<Value, StoreError> {
        self.0.next().ok_or_else(|| unreadable("one more item"))
    }
    fn text(&mut self) -> Result<String, StoreError> {
        text(self.value()?).ok_or_else(|| unreadable("text"))
    }
    fn revision(&mut self) -> Result<Revision, StoreError> {
        revision(&self.text()?)
    }
    fn bytes(&mut self) -> Result<Bytes, StoreError> {
        match self.value()? {
            Value::BulkString(bytes) => Ok(bytes.into()),
            _ => Err(unreadable("bytes")),
        }
    }
    /// The value that a change left: `+` and its bytes, or `-`.
    fn left(&mut self) -> Result<Option<Bytes>, StoreError> {
        let bytes = self.bytes()?;
        match bytes.first() {
            Some(b'+') => Ok(Some(bytes.slice(1..))),
            Some(b'-') => Ok(None),
            _ => Err(unreadable("a change")),
        }
    }
}

fn unreadable(wanted: &str) -> StoreError {
    StoreError::Failed(format!(
        "Redis answered something else than {wanted}: somebody else wrote to the keys of the store"
    ))
}

fn revision(text: &str) -> Result<Revision, StoreError> {
    text.parse().map(Revision).map_err(|_| unreadable("a revision"))
}

/// The answer of [`scripts::TXN`](super::scripts::TXN); with the lineage when it made its revision.
pub(super) fn outcome(answer: Value) -> Result<(TxnOutcome, Option<String>), StoreError> {
    let mut items = Items::of(answer)?;
    match items.text()?.as_str() {
        "done" => Ok((TxnOutcome::Done(items.revision()?), Some(items.text()?))),
        "same" => Ok((TxnOutcome::Done(items.revision()?), None)),
        "conflict" => Ok((TxnOutcome::Conflict(items.text()?), None)),
        _ => Err(unreadable("an outcome")),
    }
}

/// The answer of [`scripts::GET`](super::scripts::GET).
pub(super) fn entry(key: &str, answer: Value) -> Result<Option<Entry>, StoreError> {
    let mut items = Items::of(answer)?;
    if items.is_empty() {
        return Ok(None);
    }
    Ok(Some(Entry {
        revision: items.revision()?,
        value: items.bytes()?,
        key: key.to_owned(),
    }))
}

/// The answer of [`scripts::LIST`](super::scripts::LIST).
pub(super) fn page(answer: Value) -> Result<Page, StoreError> {
    let mut items = Items::of(answer)?;
    let mut page = Page {
        revision: items.revision()?,
        more: !items.text()?.is_empty(),
        entries: Vec::new(),
    };
    while !items.is_empty() {
        page.entries.push(Entry {
            key: items.text()?,
            revision: items.revision()?,
            value: items.bytes()?,
        });
    }
    Ok(page)
}

/// The answer of [`scripts::LOG`](super::scripts::LOG), asked after `asked`.
pub(super) fn log_part(asked: Revision, answer: Value) -> Result<LogPart, StoreError> {
    let mut items = Items::of(answer)?;
    let (_newest, oldest, upto) = (items.revision()?, items.revision()?, items.text()?);
    if upto.is_empty() {
        return Err(StoreError::Compacted { asked, oldest });
    }
    let mut part = LogPart {
        upto: revision(&upto)?,
        changes: Vec::new(),
    };
    while !items.is_empty() {
        part.changes.push(Change {
            revision: items.revision()?,
            key: items.text()?,
            value: items.left()?,
        });
    }
    Ok(part)
}

/// One revision of the log, as its stream has it.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Logged {
    pub(super) revision: Revision,
    pub(super) txn: String,
    pub(super) changes: Vec<Change>,
}

/// The answer of an XREAD of the log; nothing when the block timed out.
pub(super) fn read(answer: Value) -> Result<Vec<Logged>, StoreError> {
    if matches!(answer, Value::Nil) {
        return Ok(Vec::new());
    }
    let mut streams = Items::of(answer)?;
    if streams.is_empty() {
        return Ok(Vec::new());
    }
    let mut stream = Items::of(streams.value()?)?;
    stream.value()?;
    let mut entries = Items::of(stream.value()?)?;
    let mut logged = Vec::new();
    while !entries.is_empty() {
        logged.push(one(entries.value()?)?);
    }
    Ok(logged)
}

fn one(entry: Value) -> Result<Logged, StoreError> {
    let mut entry = Items::of(entry)?;
    let id = entry.text()?;
    let number = id.split_once('-').map_or(id.as_str(), |(number, _)| number);
    let revision = revision(number)?;
    let mut fields = Items::of(entry.value()?)?;
    fields.value()?;
    let mut logged = Logged {
        revision,
        txn: fields.text()?,
        changes: Vec::new(),
    };
    while !fields.is_empty() {
        logged.changes.push(Change {
            revision,
            key: fields.text()?,
            value: fields.left()?,
        });
    }
    Ok(logged)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bulk(text: &str) -> Value {
        Value::BulkString(text.as_bytes().to_vec())
    }
    fn list(items: &[&str]) -> Value {
        Value::Array(items.iter().map(|item| bulk(item)).collect())
    }

    #[test]
    fn a_log_entry_is_read_with_its_transaction_and_changes() {
        let entry = Value::Array(vec![bulk("7-1"), list(&["#", "t1", "a", "+1", "b", "-"])]);
        let answer = Value::Array(vec![Value::Array(vec![bulk("log"), Value::Array(vec![entry])])]);
        let logged = read(answer).unwrap();
        assert_eq!((logged[0].revision, logged[0].txn.as_str()), (Revision(7), "t1"));
        assert_eq!(logged[0].changes[0].value.as_deref(), Some(&b"1"[..]));
        assert_eq!(logged[0].changes[1].value, None);
    }

    #[test]
    fn what_is_no_answer_of_ours_is_a_failure() {
        for garbage in [
            Value::Nil,
            Value::Int(3),
            list(&[]),
            list(&["done"]),
            list(&["done", "x"]),
            list(&["?"]),
        ] {
            assert!(
                matches!(outcome(garbage.clone()), Err(StoreError::Failed(_))),
                "{garbage:?}"
            );
        }
        assert!(page(list(&["1"])).is_err());
        assert!(page(list(&["1", "", "key", "2"])).is_err());
        assert!(log_part(Revision(0), list(&["1", "1", "1", "1", "key", "?"])).is_err());
        assert!(read(Value::Int(1)).is_err());
    }
}
