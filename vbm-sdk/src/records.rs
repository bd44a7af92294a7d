//! Typed records on the store: what is under which key, and how names and uniqueness are kept.
//!
//! ```text
//!   vm/<id>                       the record, JSON
//!   name/vm/<name>                -> id            a name is unique within its kind
//!   address/<network>/<address>   -> port id       an address is given once
//!   ipam/<network>                which addresses of a network are taken or rest
//!   mac/<mac>                     -> port id       a MAC is given once
//!   listen/<protocol>/<port>      -> forward ids   a forward's place is given once
//!   snapshot/<vm>/<id>            the record; its name is unique within its VM: name/snapshot/<vm>/<name>
//!   op/<id>, event/<id>, node/<path>
//! ```
//!
//! Uniqueness is never checked and then hoped for: the transaction that makes a record writes its index
//! keys under the comparison that they are absent.

use crate::store::{Compare, Entry, Revision, Store, Txn, TxnOutcome, Write};
use bytes::Bytes;
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use std::{fmt::Display, sync::Arc, time::Duration};
use vbm_core::{
    Error, ErrorKind, Event, FloatingIp, Forward, Group, Image, Kind, Network, Node, Operation, Port, Result,
    Snapshot, Timestamp, Vm, VmId, Volume, limits::PAGE_MAX_ITEMS,
};

/// How often a change that others keep crossing is tried before it is given up.
const EDIT_MAX_TRIES: usize = 32;
/// The shortest part of an id that may stand for the whole.
const ID_PREFIX_MIN_CHARS: usize = 4;

/// A kind of record.
pub(crate) trait Record: Serialize + DeserializeOwned + Clone + Send + Sync + 'static {
    /// Its noun.
    const KIND: Kind;
    /// The first part of its keys, with the slash.
    const PREFIX: &'static str;
    /// The last part of its key.
    fn id(&self) -> String;
    /// Its unique name, where it has one.
    fn name(&self) -> Option<String>;
    /// Its key.
    fn key(&self) -> String {
        format!("{}{}", Self::PREFIX, self.id())
    }
}

macro_rules! records {
    ($($type:ident = $prefix:literal;)*) => {$(
        impl Record for $type {
            const KIND: Kind = Kind::$type;
            const PREFIX: &'static str = $prefix;
            fn id(&self) -> String { self.meta.id.to_string() }
            fn name(&self) -> Option<String> { Some(self.meta.name.to_string()) }
        }
    )*};
}
records! {
    Vm = "vm/";
    Network = "network/";
    Port = "port/";
    Group = "group/";
    Forward = "forward/";
    FloatingIp = "floating-ip/";
    Image = "image/";
    Volume = "volume/";
}
impl Record for Node {
    const KIND: Kind = Kind::Node;
    const PREFIX: &'static str = "node/";
    fn id(&self) -> String {
        self.path.to_string()
    }
    fn name(&self) -> Option<String> {
        None
    }
}
impl Record for Snapshot {
    const KIND: Kind = Kind::Snapshot;
    const PREFIX: &'static str = "snapshot/";
    fn id(&self) -> String {
        format!("{}/{}", self.spec.vm, self.meta.id)
    }
    fn name(&self) -> Option<String> {
        Some(format!("{}/{}", self.spec.vm, self.meta.name))
    }
}
impl Record for Operation {
    const KIND: Kind = Kind::Operation;
    const PREFIX: &'static str = "op/";
    fn id(&self) -> String {
        self.id.to_string()
    }
    fn name(&self) -> Option<String> {
        None
    }
}

/// The first part of the keys of events.
pub(crate) const EVENT_PREFIX: &str = "event/";

/// The index key of a name.
fn name_key(kind: Kind, name: &str) -> String {
    format!("name/{kind}/{name}")
}

/// The answer to a request with an idempotency key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Answer {
    /// The hash of the request.
    pub(crate) fingerprint: String,
    pub(crate) status: u16,
    pub(crate) content_type: String,
    pub(crate) body: String,
    pub(crate) at: Timestamp,
}

/// The first part of the keys of answers.
const ANSWER_PREFIX: &str = "answer/";

impl Records {
    /// The answer that a request with this key got.
    pub(crate) async fn answer(&self, key: &str) -> Result<Option<Answer>> {
        Ok(self
            .store
            .get(&format!("{ANSWER_PREFIX}{key}"))
            .await?
            .map(decode)
            .transpose()?
            .map(|held| held.value))
    }

    pub(crate) async fn record_answer(&self, key: &str, answer: &Answer) -> Result<()> {
        let write = vec![Write::Put(format!("{ANSWER_PREFIX}{key}"), encode(answer)?)];
        // Nothing is compared, so nothing can be crossed.
        self.store
            .txn(Txn {
                compare: Vec::new(),
                write,
            })
            .await
            .map(drop)
            .map_err(Error::from)
    }

    /// The keys of answers that are older than `kept`.
    pub(crate) async fn answers_before(&self, now: Timestamp, kept: Duration) -> Result<Vec<String>> {
        let mut old = Vec::new();
        for key in self.keys_below(ANSWER_PREFIX).await? {
            if self.answer(&key).await?.is_some_and(|a| now.since(a.at) > kept) {
                old.push(format!("{ANSWER_PREFIX}{key}"));
            }
        }
        Ok(old)
    }
}

/// A record and the revision it was read at.
#[derive(Clone, Debug)]
pub(crate) struct Held<T> {
    pub(crate) value: T,
    pub(crate) revision: Revision,
}

/// The records of a store.
#[derive(Clone, Debug)]
pub(crate) struct Records {
    store: Arc<dyn Store>,
    /// Compared by every write: a key that must not have changed since this revision.
    fence: Option<(&'static str, Revision)>,
}

impl Records {
    pub(crate) fn new(store: Arc<dyn Store>) -> Self {
        Self { store, fence: None }
    }

    /// The same records for a leader: nothing is written once `key` has another revision.
    pub(crate) fn fenced(&self, key: &'static str, revision: Revision) -> Self {
        Self {
            store: Arc::clone(&self.store),
            fence: Some((key, revision)),
        }
    }

    pub(crate) fn store(&self) -> &Arc<dyn Store> {
        &self.store
    }

    /// The record of an id.
    pub(crate) async fn get<T: Record>(&self, id: impl Display) -> Result<Option<Held<T>>> {
        self.store
            .get(&format!("{}{id}", T::PREFIX))
            .await?
            .map(decode)
            .transpose()
    }

    /// The record of an id that something else refers to.
    pub(crate) async fn must<T: Record>(&self, id: impl Display) -> Result<Held<T>> {
        let id = id.to_string();
        self.get(&id)
            .await?
            .ok_or_else(|| Error::not_found(&T::KIND.to_string(), id))
    }

    /// The record that people call `text`: by name, by id, or by the beginning of an id that fits only one.
    pub(crate) async fn resolve<T: Record>(&self, text: &str) -> Result<Held<T>> {
        if let Some(entry) = self.store.get(&name_key(T::KIND, text)).await? {
            let id = String::from_utf8_lossy(&entry.value).into_owned();
            if let Some(held) = self.get::<T>(id).await? {
                return Ok(held);
            }
        }
        let plain = !text.is_empty() && text.bytes().all(|b| b.is_ascii_hexdigit() || b == b'-');
        if plain && text.len() >= ID_PREFIX_MIN_CHARS {
            let page = self
                .store
                .list(&format!("{}{}", T::PREFIX, text.to_ascii_lowercase()), None, 2)
                .await?;
            match page.entries.len() {
                0 => {}
                1 => {
                    return page
                        .entries
                        .into_iter()
                        .next()
                        .map(decode)
                        .transpose()?
                        .ok_or_else(|| Error::not_found(&T::KIND.to_string(), text));
                }
                _ => {
                    return Err(Error::new(
                        ErrorKind::InvalidInput,
                        format!("'{text}' fits more than one {}", T::KIND),
                        "it is the beginning of several ids",
                        "write more of the id, or use the name",
                    ));
                }
            }
        }
        Err(Error::not_found(&T::KIND.to_string(), text))
    }

    /// All records of a kind, ordered by key.
    pub(crate) async fn all<T: Record>(&self) -> Result<Vec<Held<T>>> {
        self.below(T::PREFIX).await
    }

    /// The snapshots of a VM, in the order in which they were asked for.
    pub(crate) async fn snapshots(&self, vm: VmId) -> Result<Vec<Held<Snapshot>>> {
        self.below(&format!("{}{vm}/", Snapshot::PREFIX)).await
    }

    async fn below<T: Record>(&self, prefix: &str) -> Result<Vec<Held<T>>> {
        let mut records = Vec::new();
        let mut after: Option<String> = None;
        loop {
            let page = self.store.list(prefix, after.as_deref(), PAGE_MAX_ITEMS).await?;
            after = page.entries.last().map(|e| e.key.clone());
            for entry in page.entries {
                records.push(decode(entry)?);
            }
            if !page.more {
                return Ok(records);
            }
        }
    }

    /// The keys below a prefix, without it.
    pub(crate) async fn keys_below(&self, prefix: &str) -> Result<Vec<String>> {
        let mut keys = Vec::new();
        let mut after: Option<String> = None;
        loop {
            let page = self.store.list(prefix, after.as_deref(), PAGE_MAX_ITEMS).await?;
            after = page.entries.last().map(|e| e.key.clone());
            keys.extend(page.entries.iter().map(|e| e.key[prefix.len()..].to_owned()));
            if !page.more {
                return Ok(keys);
            }
        }
    }

    /// Runs an edit; a crossing by somebody else becomes [`ErrorKind::Stale`].
    pub(crate) async fn commit(&self, edit: Edit) -> Result<Revision> {
        match self.attempt(edit.txn?).await? {
            Ok(revision) => Ok(revision),
            Err(key) if edit.picked.contains(&key) => Err(changed(&key)),
            Err(key) => Err(conflict(&key)),
        }
    }

    /// Runs a transaction, under the fence.
    pub(crate) async fn run(&self, txn: Txn) -> Result<Revision> {
        self.attempt(txn).await?.map_err(|key| conflict(&key))
    }

    /// The same; the key of a conflict is given back.
    async fn attempt(&self, mut txn: Txn) -> Result<std::result::Result<Revision, String>> {
        if let Some((key, revision)) = self.fence {
            txn.compare.push(Compare::At(key.to_owned(), revision));
        }
        match self.store.txn(txn).await? {
            TxnOutcome::Done(revision) => Ok(Ok(revision)),
            TxnOutcome::Conflict(key) if self.fence.is_some_and(|(fence, _)| fence == key) => {
                Err(superseded())
            }
            TxnOutcome::Conflict(key) => Ok(Err(key)),
        }
    }

    /// Changes one record until nobody crosses. `change` sees the newest record and says whether to write it.
    pub(crate) async fn update<T: Record>(
        &self,
        id: impl Display,
        mut change: impl FnMut(&mut T) -> Result<bool>,
    ) -> Result<T> {
        let id = id.to_string();
        for _ in 0..EDIT_MAX_TRIES {
            let held = self.must::<T>(&id).await?;
            let mut value = held.value.clone();
            if !change(&mut value)? {
                return Ok(value);
            }
            match self.commit(Edit::default().update(&held, &value)).await {
                Ok(_) => return Ok(value),
                Err(e) if e.kind() == ErrorKind::Stale => {}
                Err(e) => return Err(e),
            }
        }
        Err(crossed())
    }
}

/// Runs `attempt` again while others cross it.
pub(crate) async fn until_uncrossed<T, F: Future<Output = Result<T>>>(
    mut attempt: impl FnMut() -> F,
) -> Result<T> {
    for _ in 0..EDIT_MAX_TRIES {
        match attempt().await {
            Err(e) if e.kind() == ErrorKind::Stale => {}
            done => return done,
        }
    }
    Err(crossed())
}

fn crossed() -> Error {
    Error::new(
        ErrorKind::Unavailable,
        "the change was given up",
        "others changed the same records each time",
        "try again",
    )
}

fn superseded() -> Error {
    Error::new(
        ErrorKind::Cancelled,
        "this controller leads no more",
        "another one took over, and finishes what was begun",
        "nothing needs to be done; `vbm version` shows who leads",
    )
}

/// What a failed comparison means to people: a taken name, MAC, address or listening port, or a crossing.
fn conflict(key: &str) -> Error {
    let taken = |what: String, fix: &str| {
        Error::new(ErrorKind::AlreadyExists, what, "each can be given only once", fix)
    };
    let mut parts = key.splitn(3, '/');
    match (parts.next(), parts.next(), parts.next()) {
        (Some("name"), Some(kind), Some(name)) => {
            // The name of a snapshot stands below its VM.
            let name = name.rsplit('/').next().unwrap_or(name);
            taken(format!("{kind} '{name}' exists already"), "choose another name")
        }
        (Some("mac"), Some(mac), _) => taken(
            format!("the MAC {mac} is taken"),
            "leave the MAC out, or choose another",
        ),
        (Some("address"), _, Some(address)) => taken(
            format!("the address {address} is taken"),
            "leave the address out, or choose another",
        ),
        _ => changed(key),
    }
}

fn changed(key: &str) -> Error {
    Error::new(
        ErrorKind::Stale,
        "somebody else changed it in between",
        format!("at {key}"),
        "read it again and repeat",
    )
}

fn decode<T: DeserializeOwned>(entry: Entry) -> Result<Held<T>> {
    let value = serde_json::from_slice(&entry.value).map_err(|e| {
        Error::new(
            ErrorKind::Corrupt,
            format!("the record {} cannot be read", entry.key),
            e.to_string(),
            "it was written by a newer VBM, or the store was damaged: restore a backup",
        )
    })?;
    Ok(Held {
        value,
        revision: entry.revision,
    })
}

fn encode<T: Serialize>(value: &T) -> Result<Bytes> {
    serde_json::to_vec(value)
        .map(Bytes::from)
        .map_err(|e| Error::internal("a record cannot be written", e.to_string()))
}

/// A transaction in the making.
#[must_use]
pub(crate) struct Edit {
    txn: Result<Txn>,
    /// Keys that we chose ourselves: when somebody else was faster, others can be chosen.
    picked: Vec<String>,
}

impl Default for Edit {
    fn default() -> Self {
        Self {
            txn: Ok(Txn::default()),
            picked: Vec::new(),
        }
    }
}

impl Edit {
    fn with(mut self, step: impl FnOnce(&mut Txn) -> Result<()>) -> Self {
        if let Ok(txn) = &mut self.txn
            && let Err(e) = step(txn)
        {
            self.txn = Err(e);
        }
        self
    }

    /// Makes a record; refused when its id or name exists.
    pub(crate) fn create<T: Record>(self, value: &T) -> Self {
        self.with(|txn| {
            if let Some(name) = value.name() {
                let key = name_key(T::KIND, &name);
                txn.compare.push(Compare::Absent(key.clone()));
                txn.write.push(Write::Put(key, Bytes::from(value.id())));
            }
            txn.compare.push(Compare::Absent(value.key()));
            txn.write.push(Write::Put(value.key(), encode(value)?));
            Ok(())
        })
    }

    /// Changes a record; refused when it changed since it was read. Names do not change.
    pub(crate) fn update<T: Record>(self, held: &Held<T>, value: &T) -> Self {
        self.with(|txn| {
            txn.compare.push(Compare::At(held.value.key(), held.revision));
            txn.write.push(Write::Put(value.key(), encode(value)?));
            Ok(())
        })
    }

    /// Removes a record and its name; refused when it changed since it was read.
    pub(crate) fn delete<T: Record>(self, held: &Held<T>) -> Self {
        self.with(|txn| {
            txn.compare.push(Compare::At(held.value.key(), held.revision));
            txn.write.push(Write::Delete(held.value.key()));
            if let Some(name) = held.value.name() {
                txn.write.push(Write::Delete(name_key(T::KIND, &name)));
            }
            Ok(())
        })
    }

    /// Refused when a record that this rests on changed since it was read.
    pub(crate) fn rests_on<T: Record>(self, held: &Held<T>) -> Self {
        let compare = Compare::At(held.value.key(), held.revision);
        self.with(|txn| {
            if !txn.compare.contains(&compare) {
                txn.compare.push(compare);
            }
            Ok(())
        })
    }

    /// Takes a key that can be taken only once.
    pub(crate) fn claim(self, key: String, owner: impl Display) -> Self {
        self.with(|txn| {
            txn.compare.push(Compare::Absent(key.clone()));
            txn.write.push(Write::Put(key, Bytes::from(owner.to_string())));
            Ok(())
        })
    }

    /// Takes a key that can be taken only once and that we chose: when it was taken meanwhile, that is a crossing.
    pub(crate) fn pick(mut self, key: String, owner: impl Display) -> Self {
        self.picked.push(key.clone());
        self.claim(key, owner)
    }

    /// Gives a key back.
    pub(crate) fn release(self, key: String) -> Self {
        self.with(|txn| {
            txn.write.push(Write::Delete(key));
            Ok(())
        })
    }

    /// Sets a plain key that was read as `seen` (`None`: it was absent).
    pub(crate) fn swap(self, key: String, seen: Option<Revision>, value: Bytes) -> Self {
        self.with(|txn| {
            txn.compare
                .push(seen.map_or_else(|| Compare::Absent(key.clone()), |r| Compare::At(key.clone(), r)));
            txn.write.push(Write::Put(key, value));
            Ok(())
        })
    }

    /// Tells what happened, in the same transaction.
    pub(crate) fn event(self, event: &Event) -> Self {
        self.with(|txn| {
            txn.write
                .push(Write::Put(format!("{EVENT_PREFIX}{}", event.id), encode(event)?));
            Ok(())
        })
    }
}
