//! What can be read: lists, single records, events.

use super::{Controller, views::Tables};
use crate::api::{EventView, ForwardView, List, ListQuery, NetworkView, PortView, VmView};
use crate::records::{EVENT_PREFIX, Record};
use crate::store::Revision;
use futures::{StreamExt, stream::BoxStream};
use vbm_core::{
    Error, Event, Forward, Group, Image, Network, NetworkId, Node, Operation, Port, Result, Vm, VmId, Volume,
    limits::PAGE_MAX_ITEMS,
};

/// Events as they are read. Ends with an error when what comes next is no longer kept.
pub type EventStream = BoxStream<'static, Result<EventView>>;

/// Sorts by name, cuts the part out that was asked for, and says where the next begins.
pub(super) fn part<T>(
    mut items: Vec<T>,
    query: &ListQuery,
    name: impl Fn(&T) -> String,
    revision: Revision,
) -> List<T> {
    items.sort_by_key(&name);
    if let Some(after) = &query.after {
        items.retain(|item| name(item).as_str() > after.as_str());
    }
    let limit = query.limit.unwrap_or(PAGE_MAX_ITEMS).clamp(1, PAGE_MAX_ITEMS);
    let next = (items.len() > limit).then(|| name(&items[limit - 1]));
    items.truncate(limit);
    List {
        items,
        next,
        revision,
    }
}

impl Controller {
    pub(super) async fn values<T: Record>(&self) -> Result<(Revision, Vec<T>)> {
        let revision = self.records().store().revision().await?;
        Ok((
            revision,
            self.records()
                .all::<T>()
                .await?
                .into_iter()
                .map(|h| h.value)
                .collect(),
        ))
    }

    /// The VMs.
    ///
    /// # Errors
    /// The store cannot be read.
    pub async fn list_vms(&self, query: &ListQuery) -> Result<List<VmView>> {
        let (revision, vms) = self.values::<Vm>().await?;
        let tables = Tables::load(self.records()).await?;
        let list = part(vms, query, |v| v.meta.name.to_string(), revision);
        Ok(List {
            items: list.items.iter().map(|v| tables.vm(v)).collect(),
            next: list.next,
            revision,
        })
    }

    /// The networks.
    ///
    /// # Errors
    /// The store cannot be read.
    pub async fn list_networks(&self, query: &ListQuery) -> Result<List<NetworkView>> {
        let (revision, networks) = self.values::<Network>().await?;
        let tables = Tables::load(self.records()).await?;
        let list = part(networks, query, |n| n.meta.name.to_string(), revision);
        Ok(List {
            items: list.items.iter().map(|n| tables.network(n)).collect(),
            next: list.next,
            revision,
        })
    }

    pub(super) async fn filters(&self, query: &ListQuery) -> Result<(Option<NetworkId>, Option<VmId>)> {
        let network = match &query.network {
            Some(text) => Some(self.records().resolve::<Network>(text).await?.value.meta.id),
            None => None,
        };
        let vm = match &query.vm {
            Some(text) => Some(self.records().resolve::<Vm>(text).await?.value.meta.id),
            None => None,
        };
        Ok((network, vm))
    }

    /// The ports, or those of one network or VM.
    ///
    /// # Errors
    /// The network or VM does not exist.
    pub async fn list_ports(&self, query: &ListQuery) -> Result<List<PortView>> {
        let (network, vm) = self.filters(query).await?;
        let (revision, mut ports) = self.values::<Port>().await?;
        ports.retain(|p| network.is_none_or(|n| n == p.spec.network) && vm.is_none_or(|v| v == p.spec.vm));
        let tables = Tables::load(self.records()).await?;
        let list = part(ports, query, |p| p.meta.name.to_string(), revision);
        Ok(List {
            items: list.items.iter().map(|p| tables.port(p)).collect(),
            next: list.next,
            revision,
        })
    }

    /// The forwards, or those of one network or VM.
    ///
    /// # Errors
    /// The network or VM does not exist.
    pub async fn list_forwards(&self, query: &ListQuery) -> Result<List<ForwardView>> {
        let (network, vm) = self.filters(query).await?;
        let (revision, forwards) = self.values::<Forward>().await?;
        let tables = Tables::load(self.records()).await?;
        let vm_name = match vm {
            Some(id) => Some(self.records().must::<Vm>(id).await?.value.meta.name.to_string()),
            None => None,
        };
        let views = forwards
            .iter()
            .filter(|f| network.is_none_or(|n| n == f.spec.network))
            .filter_map(|f| tables.forward(f));
        let views = views
            .filter(|f| vm_name.as_ref().is_none_or(|n| *n == f.vm_name))
            .collect();
        Ok(part(views, query, |f| f.forward.meta.name.to_string(), revision))
    }

    /// The volumes, or those of one VM.
    ///
    /// # Errors
    /// The VM does not exist.
    pub async fn list_volumes(&self, query: &ListQuery) -> Result<List<Volume>> {
        let (_, vm) = self.filters(query).await?;
        let (revision, mut volumes) = self.values::<Volume>().await?;
        volumes.retain(|v| vm.is_none_or(|id| id == v.spec.vm));
        Ok(part(volumes, query, |v| v.meta.name.to_string(), revision))
    }

    /// The security groups.
    ///
    /// # Errors
    /// The store cannot be read.
    pub async fn list_groups(&self, query: &ListQuery) -> Result<List<Group>> {
        let (revision, groups) = self.values::<Group>().await?;
        Ok(part(groups, query, |g| g.meta.name.to_string(), revision))
    }

    /// The images.
    ///
    /// # Errors
    /// The store cannot be read.
    pub async fn list_images(&self, query: &ListQuery) -> Result<List<Image>> {
        let (revision, images) = self.values::<Image>().await?;
        Ok(part(images, query, |i| i.meta.name.to_string(), revision))
    }

    /// The nodes.
    ///
    /// # Errors
    /// The store cannot be read.
    pub async fn list_nodes(&self, query: &ListQuery) -> Result<List<Node>> {
        let (revision, nodes) = self.values::<Node>().await?;
        Ok(part(nodes, query, |n| n.path.to_string(), revision))
    }

    /// The operations, the oldest first.
    ///
    /// # Errors
    /// The store cannot be read.
    pub async fn list_operations(&self, query: &ListQuery) -> Result<List<Operation>> {
        let (revision, operations) = self.values::<Operation>().await?;
        Ok(part(operations, query, |o| o.id.to_string(), revision))
    }

    /// One group.
    ///
    /// # Errors
    /// It does not exist.
    pub async fn group(&self, group: &str) -> Result<Group> {
        Ok(self.records().resolve::<Group>(group).await?.value)
    }

    /// One image.
    ///
    /// # Errors
    /// It does not exist.
    pub async fn image(&self, image: &str) -> Result<Image> {
        Ok(self.records().resolve::<Image>(image).await?.value)
    }

    /// One node.
    ///
    /// # Errors
    /// It does not exist.
    pub async fn node(&self, path: &str) -> Result<Node> {
        Ok(self.records().must::<Node>(path).await?.value)
    }

    /// The events after a revision, those that are kept; with `follow`, also those to come.
    ///
    /// # Errors
    /// The store cannot be read.
    pub async fn events(&self, from: Revision, follow: bool) -> Result<EventStream> {
        let mut past = Vec::new();
        let mut after: Option<String> = None;
        let mut at = self.records().store().revision().await?;
        loop {
            let page = self
                .records()
                .store()
                .list(EVENT_PREFIX, after.as_deref(), PAGE_MAX_ITEMS)
                .await?;
            after = page.entries.last().map(|e| e.key.clone());
            for entry in page.entries {
                if entry.revision > from && entry.revision <= at {
                    past.push(view(entry.revision, &entry.key, &entry.value));
                }
            }
            if !page.more {
                break;
            }
        }
        past.sort_by_key(|e| e.as_ref().map(|e| e.revision).unwrap_or_default());
        let past = futures::stream::iter(past);
        if !follow {
            return Ok(past.boxed());
        }
        at = at.max(from);
        let coming = self.records().store().watch(EVENT_PREFIX, at).await?;
        let coming = coming.filter_map(|change| async move {
            match change {
                Ok(change) => change
                    .value
                    .map(|value| view(change.revision, &change.key, &value)),
                Err(e) => Some(Err(e.into())),
            }
        });
        let stop = self.inner.closing.clone().cancelled_owned();
        Ok(past.chain(coming.take_until(stop)).boxed())
    }
}

fn view(revision: Revision, key: &str, value: &[u8]) -> Result<EventView> {
    let event: Event = serde_json::from_slice(value)
        .map_err(|e| Error::internal(format!("the event at {key} cannot be read"), e.to_string()))?;
    Ok(EventView { revision, event })
}
