//! Requests about port forwards.

use super::{Controller, operations, room, views::Tables};
use crate::api::{Accepted, CreateForward, ForwardView};
use crate::records::{Edit, Held, until_uncrossed};
use bytes::Bytes;
use vbm_core::{
    Error, ErrorKind, EventKind, Forward, ForwardId, ForwardSpec, Kind, Meta, Network, NetworkMode,
    ObjectRef, Operation, Port, Result, Vm,
};

/// The ports of one crossing key: few, so that requests side by side seldom cross; a forward of the most ports touches 33.
const LISTEN_BLOCK_PORTS: u16 = 16;

impl Controller {
    /// Makes a forward.
    ///
    /// # Errors
    /// What is asked makes no sense, or its place is taken.
    pub async fn create_forward(&self, request: &CreateForward) -> Result<Accepted<ForwardView>> {
        let (id, operation) = until_uncrossed(|| self.create_forward_once(request)).await?;
        Ok(Accepted {
            item: self.forward_view(&id.to_string()).await?,
            operation,
        })
    }

    async fn create_forward_once(&self, request: &CreateForward) -> Result<(ForwardId, Operation)> {
        let vm = self.records().resolve::<Vm>(&request.vm).await?;
        let cannot = format!("cannot forward to {}", vm.value.meta.name);
        let port = self
            .one_port(&vm.value, request.network.as_deref(), &cannot)
            .await?;
        let network = self.records().must::<Network>(port.value.spec.network).await?;
        if network.value.spec.mode != NetworkMode::Nat {
            return Err(Error::new(
                ErrorKind::Conflict,
                format!("cannot forward to {}", vm.value.meta.name),
                format!(
                    "network {} is {}",
                    network.value.meta.name, network.value.spec.mode
                ),
                "forwards need a network of mode nat",
            ));
        }
        let id = ForwardId::from_uuid(self.inner.ids.next());
        let spec = ForwardSpec {
            network: network.value.meta.id,
            protocol: request.protocol,
            listen_address: request.listen_address,
            listen_port: request.listen_port,
            count: request.count,
            target: port.value.meta.id,
            target_port: request.target_port,
        };
        spec.check()?;
        let name = match &request.name {
            Some(name) => name.clone(),
            None => format!("forward-{}", id.short()).parse()?,
        };
        let forward = Forward {
            meta: Meta::new(id, name, self.inner.clock.now()),
            spec,
        };
        let others = self.records().all::<Forward>().await?;
        if let Some(other) = others.iter().find(|o| o.value.spec.clashes_with(&forward.spec)) {
            return Err(Error::new(
                ErrorKind::AlreadyExists,
                format!(
                    "{} port {} of the host is taken",
                    forward.spec.protocol,
                    ports_text(forward.spec.listen_port, forward.spec.count)
                ),
                format!(
                    "forward {} listens on {}",
                    other.value.meta.name,
                    ports_text(other.value.spec.listen_port, other.value.spec.count)
                ),
                "choose another port of the host, or delete that forward",
            ));
        }
        let of_network = others
            .iter()
            .filter(|o| o.value.spec.network == network.value.meta.id);
        room::forwards(&network.value.meta.name, of_network.count() + 1)?;
        let message = format!(
            "{}/{} -> {}:{}",
            ports_text(forward.spec.listen_port, forward.spec.count),
            forward.spec.protocol,
            vm.value.meta.name,
            ports_text(forward.spec.target_port, forward.spec.count)
        );
        let event = self.event(EventKind::ForwardCreated, target(&forward), message);
        let operation = self.operation(operations::APPLY, target(&forward), forward.meta.generation);
        let edit = Edit::default()
            .create(&forward)
            .create(&operation)
            .rests_on(&port)
            .event(&event);
        let edit = self.own_listener(edit, &forward).await?;
        self.records().commit(edit).await?;
        Ok((id, operation))
    }

    /// Lets two requests for the same place cross each other, so that one of them looks again. So do some for places side by side.
    async fn own_listener(&self, mut edit: Edit, forward: &Forward) -> Result<Edit> {
        for key in listen_keys(&forward.spec) {
            let seen = self.records().store().get(&key).await?.map(|e| e.revision);
            edit = edit.swap(key, seen, Bytes::from(forward.meta.id.to_string()));
        }
        Ok(edit)
    }

    /// The one port of a VM that is meant; `cannot` is what an error says.
    pub(super) async fn one_port(&self, vm: &Vm, network: Option<&str>, cannot: &str) -> Result<Held<Port>> {
        let refuse = |why: String, fix: &str| Err(Error::new(ErrorKind::InvalidInput, cannot, why, fix));
        let wanted = match network {
            Some(network) => Some(self.records().resolve::<Network>(network).await?.value.meta.id),
            None => None,
        };
        let mut found = Vec::new();
        for port in &vm.spec.ports {
            let held = self.records().must::<Port>(port).await?;
            if wanted.is_none_or(|n| n == held.value.spec.network) {
                found.push(held);
            }
        }
        match (found.len(), found.pop()) {
            (1, Some(port)) => Ok(port),
            (0, _) => refuse("it has no NIC there".into(), "see its NICs with `vbm info`"),
            (n, _) => refuse(format!("{n} of its NICs fit"), "name the network with --network"),
        }
    }

    /// Deletes a forward.
    ///
    /// # Errors
    /// It does not exist.
    pub async fn delete_forward(&self, forward: &str) -> Result<Accepted<ForwardView>> {
        let held = self.records().resolve::<Forward>(forward).await?;
        let view = self.forward_view(forward).await?;
        let event = self.event(EventKind::ForwardDeleted, target(&held.value), "");
        let operation = self.operation(operations::APPLY, target(&held.value), held.value.meta.generation);
        let edit = Edit::default().delete(&held).event(&event).create(&operation);
        self.records().commit(edit).await?;
        Ok(Accepted {
            item: view,
            operation,
        })
    }

    /// A forward with the names of what it joins.
    ///
    /// # Errors
    /// It does not exist.
    pub async fn forward_view(&self, forward: &str) -> Result<ForwardView> {
        let record = self.records().resolve::<Forward>(forward).await?.value;
        let view = Tables::load(self.records()).await?.forward(&record);
        view.ok_or_else(|| Error::not_found("forward", forward))
    }
}

/// The keys that requests for the same place cross at, one for each block of ports that a forward touches. They stay when it goes:
/// others cross there too, and there are not many.
fn listen_keys(spec: &ForwardSpec) -> Vec<String> {
    let ports = spec.listens();
    let blocks = ports.start() / LISTEN_BLOCK_PORTS..=ports.end() / LISTEN_BLOCK_PORTS;
    blocks
        .map(|block| format!("listen/{}/block-{block}", spec.protocol))
        .collect()
}

/// One port, or the first and the last.
fn ports_text(first: u16, count: u16) -> String {
    match count {
        0 | 1 => first.to_string(),
        _ => format!("{first}-{}", first.saturating_add(count - 1)),
    }
}

fn target(forward: &Forward) -> ObjectRef {
    ObjectRef::new(Kind::Forward, forward.meta.id, &forward.meta.name)
}
