//! Changes of records as they happen, each with the record as its list shows it.
//!
//! ```text
//!   store.watch --changes--> a batch of what is there --joined with names once--> RecordChange ...
//!                  |
//!                  +-- the log no longer holds what comes next --> Reset, and on from now
//! ```
//!
//! Nothing is queued: a watcher that is slow leaves changes in the store's log until the log has forgotten them.

use super::{Controller, views::Tables};
use crate::api::{RecordChange, RecordView, WatchedKind};
use crate::records::{EVENT_PREFIX, Record};
use crate::store::{Change, Revision, StoreError, Watch};
use futures::{FutureExt, StreamExt, stream::BoxStream};
use serde::de::DeserializeOwned;
use std::collections::BTreeSet;
use vbm_core::{
    Error, Event, FloatingIp, Forward, Group, Image, Network, NetworkId, Node, Operation, Port, Result,
    Snapshot, Vm, VmId, Volume,
};

/// The most changes of one batch; the revision in which that is reached is taken whole.
const BATCH_MAX_CHANGES: usize = 256;
/// The first part of the keys of snapshots; their VM comes next.
const SNAPSHOT_PREFIX: &str = "snapshot/";

/// What a watcher is told.
#[derive(Clone, Debug)]
pub(crate) enum Watched {
    /// Changes after this revision follow.
    Ready(Revision),
    /// Changes, and the revision up to which they are complete.
    Changes(Vec<RecordChange>, Revision),
    /// Changes were missed; those after this revision follow.
    Reset(Revision, String),
}

/// What a watcher is told, as it happens. Ends with the controller, or with an error of the store.
pub(crate) type Watching = BoxStream<'static, Result<Watched>>;

struct Watcher {
    controller: Controller,
    from: Option<Revision>,
    log: Option<Watch>,
    /// The first change of the next batch.
    next: Option<Change>,
}

impl Controller {
    /// Watches all records, after `from` or from now on.
    pub(crate) fn watch(&self, from: Option<Revision>) -> Watching {
        let watcher = Watcher {
            controller: self.clone(),
            from,
            log: None,
            next: None,
        };
        let told = futures::stream::unfold(Some(watcher), |watcher| async move {
            let mut watcher = watcher?;
            match watcher.step().await {
                Ok(told) => Some((Ok(told), Some(watcher))),
                Err(e) => Some((Err(e), None)),
            }
        });
        told.take_until(self.inner.closing.clone().cancelled_owned())
            .boxed()
    }
}

impl Watcher {
    async fn step(&mut self) -> Result<Watched> {
        let Some(log) = &mut self.log else {
            return self.begin().await;
        };
        let mut batch: Vec<Change> = Vec::new();
        let first = match self.next.take() {
            Some(change) => Some(Ok(change)),
            None => log.next().await,
        };
        let mut item = first.ok_or(StoreError::Closed)?;
        loop {
            match item {
                Ok(change) => {
                    let last = batch.last().map(|c| c.revision);
                    if batch.len() >= BATCH_MAX_CHANGES && last != Some(change.revision) {
                        self.next = Some(change);
                        break;
                    }
                    batch.push(change);
                }
                Err(StoreError::Compacted { .. }) if batch.is_empty() => return self.begin().await,
                // Told when it is asked for the next time: a watch repeats no failure, but begins anew.
                Err(_) if !batch.is_empty() => {
                    self.log = None;
                    break;
                }
                Err(e) => return Err(e.into()),
            }
            match log.next().now_or_never() {
                Some(Some(next)) => item = next,
                Some(None) | None => break,
            }
        }
        let upto = batch.last().map_or_else(Revision::default, |c| c.revision);
        self.from = Some(upto);
        let controller = self.controller.clone();
        Ok(Watched::Changes(controller.told(batch).await?, upto))
    }

    /// Opens the watch, where it was or, when that is forgotten, at the newest revision.
    async fn begin(&mut self) -> Result<Watched> {
        let store = self.controller.records().store();
        let newest = store.revision().await?;
        let from = self.from.unwrap_or(newest);
        match store.watch("", from).await {
            Ok(log) => {
                (self.log, self.from) = (Some(log), Some(from));
                Ok(Watched::Ready(from))
            }
            Err(e @ StoreError::Compacted { .. }) => {
                self.log = Some(store.watch("", newest).await?);
                self.from = Some(newest);
                Ok(Watched::Reset(newest, Error::from(e).inline()))
            }
            Err(e) => Err(e.into()),
        }
    }
}

impl Controller {
    async fn told(&self, batch: Vec<Change>) -> Result<Vec<RecordChange>> {
        if !batch.iter().any(|c| kind_of(&c.key).is_some()) {
            return Ok(Vec::new());
        }
        let tables = Tables::load(self.records()).await?;
        let mut told: Vec<RecordChange> = batch.iter().filter_map(|c| tell(c, &tables)).collect();
        let upto = batch.last().map_or_else(Revision::default, |c| c.revision);
        told.extend(self.touched(&told, upto, &tables).await?);
        Ok(told)
    }

    /// What shows a port in its own view changes with it: its VM, and the number of ports of its network.
    async fn touched(
        &self,
        told: &[RecordChange],
        revision: Revision,
        tables: &Tables,
    ) -> Result<Vec<RecordChange>> {
        let (mut vms, mut networks) = (BTreeSet::<VmId>::new(), BTreeSet::<NetworkId>::new());
        let mut gone = false;
        for change in told.iter().filter(|c| c.kind == WatchedKind::Port) {
            match &change.view {
                Some(RecordView::Port(view)) => {
                    vms.insert(view.port.spec.vm);
                    networks.insert(view.port.spec.network);
                }
                // Nobody knows any more on which network it was.
                _ => gone = true,
            }
        }
        let records = self.records();
        let mut touched = Vec::new();
        for id in vms {
            if let Some(vm) = records.get::<Vm>(id).await? {
                let view = RecordView::Vm(tables.vm(&vm.value));
                touched.push(now(WatchedKind::Vm, id.to_string(), revision, view));
            }
        }
        if gone {
            networks.extend(records.all::<Network>().await?.iter().map(|n| n.value.meta.id));
        }
        for id in networks {
            if let Some(network) = records.get::<Network>(id).await? {
                let view = RecordView::Network(tables.network(&network.value));
                touched.push(now(WatchedKind::Network, id.to_string(), revision, view));
            }
        }
        Ok(touched)
    }
}

fn now(kind: WatchedKind, id: String, revision: Revision, view: RecordView) -> RecordChange {
    RecordChange {
        kind,
        id,
        revision,
        deleted: false,
        view: Some(view),
    }
}

/// The kind of a record's key; `None` for keys that are no records: indexes, answers, epochs.
fn kind_of(key: &str) -> Option<(WatchedKind, &str)> {
    const KINDS: [(WatchedKind, &str); 12] = [
        (WatchedKind::Vm, Vm::PREFIX),
        (WatchedKind::Image, Image::PREFIX),
        (WatchedKind::Volume, Volume::PREFIX),
        (WatchedKind::Network, Network::PREFIX),
        (WatchedKind::Port, Port::PREFIX),
        (WatchedKind::Group, Group::PREFIX),
        (WatchedKind::Forward, Forward::PREFIX),
        (WatchedKind::FloatingIp, FloatingIp::PREFIX),
        (WatchedKind::Snapshot, SNAPSHOT_PREFIX),
        (WatchedKind::Node, Node::PREFIX),
        (WatchedKind::Operation, Operation::PREFIX),
        (WatchedKind::Event, EVENT_PREFIX),
    ];
    KINDS
        .iter()
        .find_map(|(kind, prefix)| Some((*kind, key.strip_prefix(prefix)?)))
}

/// A change as watchers are told it; `None` when it is of no record.
fn tell(change: &Change, tables: &Tables) -> Option<RecordChange> {
    let (kind, mut id) = kind_of(&change.key)?;
    if let (WatchedKind::Snapshot, Some((_vm, snapshot))) = (kind, id.split_once('/')) {
        id = snapshot;
    }
    Some(RecordChange {
        kind,
        id: id.to_owned(),
        revision: change.revision,
        deleted: change.value.is_none(),
        view: change
            .value
            .as_deref()
            .and_then(|value| view(kind, value, tables)),
    })
}

/// How a record is listed; `None` when it cannot be read, or has no view while what it rests on is being deleted.
fn view(kind: WatchedKind, value: &[u8], tables: &Tables) -> Option<RecordView> {
    fn read<T: DeserializeOwned>(value: &[u8]) -> Option<T> {
        serde_json::from_slice(value)
            .inspect_err(|e| tracing::warn!(error = %e, "a record that changed cannot be read"))
            .ok()
    }
    Some(match kind {
        WatchedKind::Vm => RecordView::Vm(tables.vm(&read(value)?)),
        WatchedKind::Image => RecordView::Image(read::<Image>(value)?),
        WatchedKind::Volume => RecordView::Volume(read::<Volume>(value)?),
        WatchedKind::Network => RecordView::Network(tables.network(&read(value)?)),
        WatchedKind::Port => RecordView::Port(tables.port(&read(value)?)),
        WatchedKind::Group => RecordView::Group(read::<Group>(value)?),
        WatchedKind::Forward => RecordView::Forward(tables.forward(&read(value)?)?),
        WatchedKind::FloatingIp => RecordView::FloatingIp(read::<FloatingIp>(value)?),
        WatchedKind::Snapshot => RecordView::Snapshot(read::<Snapshot>(value)?),
        WatchedKind::Node => RecordView::Node(read::<Node>(value)?),
        WatchedKind::Operation => RecordView::Operation(read::<Operation>(value)?),
        WatchedKind::Event => RecordView::Event(read::<Event>(value)?),
    })
}
