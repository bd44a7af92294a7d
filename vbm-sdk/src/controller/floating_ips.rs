//! Requests about floating IPs that are kept.
//!
//! ```text
//!   floating-ip/<id>      an address that is kept, whoever has it: this module
//!   port/<id>             who has which: PortSpec::floating_ip, changed by `set_port` alone
//!   floating/<address>    where two requests about one address cross
//!   floating-pool         what may be picked
//! ```

use super::{Controller, ports::floating_key, reads::part, views::Tables};
use crate::api::{
    Accepted, AttachFloatingIp, CreateFloatingIp, FLOATING_IP_NONE, FloatingIpView, List, ListQuery, SetPort,
};
use crate::records::{Edit, Held, until_uncrossed};
use bytes::Bytes;
use std::{collections::BTreeSet, net::Ipv4Addr};
use vbm_core::{
    Error, ErrorKind, EventKind, FloatingIp, FloatingIpId, FloatingIpSpec, FloatingPool, Kind, Meta,
    ObjectRef, Port, Result, Vm,
};
use vbm_net::model::check_floating_address;

const POOL_KEY: &str = "floating-pool";

impl Controller {
    /// Keeps an address: the one that is asked for, or the first free one of the pool.
    ///
    /// # Errors
    /// It is kept already, nobody can have it, or the pool has none.
    pub async fn create_floating_ip(&self, request: &CreateFloatingIp) -> Result<FloatingIpView> {
        let id = until_uncrossed(|| self.create_floating_ip_once(request)).await?;
        self.floating_ip_view(&id.to_string()).await
    }

    async fn create_floating_ip_once(&self, request: &CreateFloatingIp) -> Result<FloatingIpId> {
        let kept = self.records().all::<FloatingIp>().await?;
        let address = match request.address {
            Some(address) => {
                check_floating_address(address)?;
                let has = |k: &&Held<FloatingIp>| k.value.spec.address == address;
                if let Some(other) = kept.iter().find(has) {
                    return Err(Error::new(
                        ErrorKind::AlreadyExists,
                        format!("the floating IP {address} is kept already"),
                        format!("it is called {}", other.value.meta.name),
                        "use that one, or choose another address",
                    ));
                }
                address
            }
            None => self.pick_floating(&kept).await?,
        };
        let id = FloatingIpId::from_uuid(self.inner.ids.next());
        let name = match &request.name {
            Some(name) => name.clone(),
            None => format!("floating-{}", id.short()).parse()?,
        };
        let floating = FloatingIp {
            meta: Meta::new(id, name, self.inner.clock.now()),
            spec: FloatingIpSpec { address },
        };
        let event = self.event(
            EventKind::FloatingIpCreated,
            target(&floating),
            address.to_string(),
        );
        let edit = Edit::default().create(&floating).event(&event);
        let edit = self.cross_at(edit, address).await?;
        self.records().commit(edit).await?;
        Ok(id)
    }

    async fn pick_floating(&self, kept: &[Held<FloatingIp>]) -> Result<Ipv4Addr> {
        let pool = self.floating_pool().await?;
        let refuse = |why: String, fix: &str| {
            Error::new(ErrorKind::Exhausted, "no floating IP can be picked", why, fix)
        };
        if pool.ranges.is_empty() {
            return Err(refuse(
                "no pool says which addresses lead to your hosts".into(),
                "name the address, or say which may be picked: `vbm floating-ip pool 192.0.2.32-192.0.2.63`",
            ));
        }
        let mut taken: BTreeSet<Ipv4Addr> = kept.iter().map(|k| k.value.spec.address).collect();
        let ports = self.records().all::<Port>().await?;
        taken.extend(ports.iter().filter_map(|p| p.value.spec.floating_ip));
        pool.pick(|address| taken.contains(&address)).ok_or_else(|| {
            refuse(
                format!("all {} of the pool are kept or attached", pool.size()),
                "delete one that is free (`vbm floating-ip list`), or make the pool larger",
            )
        })
    }

    /// Keeps an address no more.
    ///
    /// # Errors
    /// It does not exist, or a port has it.
    pub async fn delete_floating_ip(&self, floating: &str) -> Result<FloatingIpView> {
        let id = self.resolve_floating(floating).await?.value.meta.id;
        until_uncrossed(|| self.delete_floating_ip_once(id)).await
    }

    async fn delete_floating_ip_once(&self, id: FloatingIpId) -> Result<FloatingIpView> {
        let held = self.records().must::<FloatingIp>(id).await?;
        let view = Tables::load(self.records()).await?.floating_ip(&held.value);
        let (name, address) = (&held.value.meta.name, held.value.spec.address);
        if let Some(vm) = &view.vm_name {
            return Err(Error::new(
                ErrorKind::Conflict,
                format!("the floating IP {name} cannot be deleted"),
                format!("{address} leads to {vm}"),
                format!("detach it first: `vbm floating-ip detach {name}`"),
            ));
        }
        let event = self.event(
            EventKind::FloatingIpDeleted,
            target(&held.value),
            address.to_string(),
        );
        let edit = Edit::default().delete(&held).event(&event);
        let edit = self.cross_at(edit, address).await?;
        self.records().commit(edit).await?;
        Ok(view)
    }

    /// Lets a floating IP lead to a VM.
    ///
    /// # Errors
    /// It or the VM does not exist, it leads to another one, or the VM's network has no way in.
    pub async fn attach_floating_ip(
        &self,
        floating: &str,
        request: &AttachFloatingIp,
    ) -> Result<Accepted<FloatingIpView>> {
        let held = self.resolve_floating(floating).await?.value;
        let change = SetPort {
            network: request.network.clone(),
            floating_ip: Some(held.spec.address.to_string()),
            ..SetPort::default()
        };
        let operation = self.set_port(&request.vm, &change).await?.operation;
        Ok(Accepted {
            item: self.floating_ip_view(&held.meta.id.to_string()).await?,
            operation,
        })
    }

    /// Lets a floating IP lead nowhere; it is kept.
    ///
    /// # Errors
    /// It does not exist, or leads nowhere already.
    pub async fn detach_floating_ip(&self, floating: &str) -> Result<Accepted<FloatingIpView>> {
        let held = self.resolve_floating(floating).await?.value;
        let ports = self.records().all::<Port>().await?;
        let has = |p: &&Held<Port>| p.value.spec.floating_ip == Some(held.spec.address);
        let Some(port) = ports.iter().find(has) else {
            return Err(Error::new(
                ErrorKind::Conflict,
                format!("the floating IP {} cannot be detached", held.meta.name),
                "no port has it",
                "nothing needs to be done; `vbm floating-ip list` shows which lead where",
            ));
        };
        let change = SetPort {
            network: Some(port.value.spec.network.to_string()),
            floating_ip: Some(FLOATING_IP_NONE.to_owned()),
            ..SetPort::default()
        };
        let vm = port.value.spec.vm.to_string();
        let operation = self.set_port(&vm, &change).await?.operation;
        Ok(Accepted {
            item: self.floating_ip_view(&held.meta.id.to_string()).await?,
            operation,
        })
    }

    /// A floating IP and where it leads, by its name, its id or its address.
    ///
    /// # Errors
    /// It is not kept.
    pub async fn floating_ip_view(&self, floating: &str) -> Result<FloatingIpView> {
        let held = self.resolve_floating(floating).await?;
        Ok(Tables::load(self.records()).await?.floating_ip(&held.value))
    }

    /// The floating IPs that are kept, or those of one VM or network.
    ///
    /// # Errors
    /// The VM or network does not exist.
    pub async fn list_floating_ips(&self, query: &ListQuery) -> Result<List<FloatingIpView>> {
        let (network, vm) = self.filters(query).await?;
        let (revision, all) = self.values::<FloatingIp>().await?;
        let tables = Tables::load(self.records()).await?;
        let wanted = |view: &FloatingIpView| {
            let port = view.port.and_then(|id| tables.port_of(id));
            let fits =
                |p: &Port| network.is_none_or(|n| n == p.spec.network) && vm.is_none_or(|v| v == p.spec.vm);
            port.map_or(network.is_none() && vm.is_none(), fits)
        };
        let views = all.iter().map(|f| tables.floating_ip(f)).filter(wanted).collect();
        Ok(part(
            views,
            query,
            |f| f.floating_ip.meta.name.to_string(),
            revision,
        ))
    }

    /// What may be picked.
    ///
    /// # Errors
    /// The store cannot be read.
    pub async fn floating_pool(&self) -> Result<FloatingPool> {
        let Some(entry) = self.records().store().get(POOL_KEY).await? else {
            return Ok(FloatingPool::default());
        };
        serde_json::from_slice(&entry.value).map_err(|e| {
            Error::new(
                ErrorKind::Corrupt,
                format!("the record {POOL_KEY} cannot be read"),
                e.to_string(),
                "set the pool again: `vbm floating-ip pool RANGE`",
            )
        })
    }

    /// Says what may be picked from now on. What is kept stays.
    ///
    /// # Errors
    /// It is too large, or has addresses that nobody can have.
    pub async fn set_floating_pool(&self, pool: &FloatingPool) -> Result<FloatingPool> {
        pool.check(check_floating_address)?;
        let value = serde_json::to_vec(pool)
            .map_err(|e| Error::internal("the pool of floating IPs cannot be written", e.to_string()))?;
        until_uncrossed(|| async {
            let seen = self.records().store().get(POOL_KEY).await?.map(|e| e.revision);
            let edit = Edit::default().swap(POOL_KEY.to_owned(), seen, Bytes::from(value.clone()));
            self.records().commit(edit).await
        })
        .await?;
        Ok(pool.clone())
    }

    async fn resolve_floating(&self, text: &str) -> Result<Held<FloatingIp>> {
        let found = self.records().resolve::<FloatingIp>(text).await;
        match (found, text.parse::<Ipv4Addr>()) {
            (Err(error), Ok(address)) if error.is_not_found() => {
                let mut all = self.records().all::<FloatingIp>().await?;
                let at = all.iter().position(|f| f.value.spec.address == address);
                at.map(|at| all.swap_remove(at)).ok_or(error)
            }
            (found, _) => found,
        }
    }

    /// Of two requests about one address the later looks again.
    async fn cross_at(&self, edit: Edit, address: Ipv4Addr) -> Result<Edit> {
        let key = floating_key(address);
        let entry = self.records().store().get(&key).await?;
        let (seen, owner) = entry.map_or((None, Bytes::new()), |e| (Some(e.revision), e.value));
        Ok(edit.swap(key, seen, owner))
    }

    /// What a VM that is named has, for errors.
    pub(super) async fn name_of_vm(&self, port: &Port) -> Result<String> {
        let vm = self.records().get::<Vm>(port.spec.vm).await?;
        Ok(vm.map_or_else(
            || format!("port {}", port.meta.name),
            |vm| vm.value.meta.name.to_string(),
        ))
    }
}

fn target(floating: &FloatingIp) -> ObjectRef {
    ObjectRef::new(Kind::FloatingIp, floating.meta.id, &floating.meta.name)
}
