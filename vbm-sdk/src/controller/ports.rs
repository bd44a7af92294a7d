//! Requests about the limits, the floating IP and the allowed addresses of a port.

use super::{Controller, operations};
use crate::api::{Accepted, FLOATING_IP_NONE, SetPort, VmView};
use crate::records::{Edit, Held, until_uncrossed};
use bytes::Bytes;
use std::net::Ipv4Addr;
use vbm_core::{
    Error, ErrorKind, EventKind, Kind, Network, ObjectRef, Operation, Port, Result, Vm, VmId,
    bandwidth::rate_text,
};

impl Controller {
    /// Changes the limits, the floating IP or the allowed addresses of a VM's port.
    ///
    /// # Errors
    /// What is asked makes no sense, or the floating IP is another port's.
    pub async fn set_port(&self, vm: &str, request: &SetPort) -> Result<Accepted<VmView>> {
        let id = self.records().resolve::<Vm>(vm).await?.value.meta.id;
        let operation = until_uncrossed(|| self.set_port_once(id, request)).await?;
        Ok(Accepted {
            item: self.vm_view(&id.to_string()).await?,
            operation,
        })
    }

    async fn set_port_once(&self, id: VmId, request: &SetPort) -> Result<Operation> {
        let vm = self.records().must::<Vm>(id).await?.value;
        let cannot = format!("cannot change the port of {}", vm.meta.name);
        let held = self.one_port(&vm, request.network.as_deref(), &cannot).await?;
        let mut port = held.value.clone();
        let mut edit = Edit::default();
        let mut told = Vec::new();
        if let Some(limits) = request.limits {
            limits.check()?;
            port.spec.limits = limits;
            told.push(limits_text(&port));
        }
        if let Some(text) = &request.floating_ip {
            port.spec.floating_ip = floating_ip(text)?;
            edit = self.own_floating(edit, &held, port.spec.floating_ip).await?;
            told.push(format!("floating IP: {text}"));
        }
        if let Some(pairs) = &request.pairs {
            let network = self.records().must::<Network>(port.spec.network).await?.value;
            vbm_net::check_pairs(network.meta.id, &network.spec, pairs)?;
            port.spec.pairs.clone_from(pairs);
            if let Some(addresses) = self.readable_addresses(&network).await? {
                // Whoever picks an address of theirs just now is crossed, and picks another.
                edit = addresses.keep(edit)?;
            }
            told.push(format!("allowed addresses: {}", pairs.len()));
        }
        if told.is_empty() {
            return Err(Error::new(
                ErrorKind::InvalidInput,
                cannot,
                "the request names no limits, no floating IP and no allowed addresses",
                "say what shall change",
            ));
        }
        port.meta.generation = port.meta.generation.next();
        let target = ObjectRef::new(Kind::Port, port.meta.id, &vm.meta.name);
        let event = self.event(EventKind::PortChanged, target, told.join(", "));
        let operation = self.operation(
            operations::APPLY,
            ObjectRef::new(Kind::Vm, id, &vm.meta.name),
            vm.meta.generation,
        );
        let edit = edit.update(&held, &port).event(&event).create(&operation);
        self.records().commit(edit).await?;
        Ok(operation)
    }

    /// One port has it, of two requests for the same one looks again.
    async fn own_floating(
        &self,
        mut edit: Edit,
        held: &Held<Port>,
        wanted: Option<Ipv4Addr>,
    ) -> Result<Edit> {
        let port = &held.value;
        if let Some(earlier) = port.spec.floating_ip.filter(|e| Some(*e) != wanted) {
            edit = edit.release(floating_key(earlier));
        }
        let Some(address) = wanted else { return Ok(edit) };
        let network = self.records().must::<Network>(port.spec.network).await?;
        vbm_net::model::check_floating_ip(&network.value.spec, address)?;
        self.refuse_routed(address).await?;
        let others = self.records().all::<Port>().await?;
        let has =
            |o: &&Held<Port>| o.value.spec.floating_ip == Some(address) && o.value.meta.id != port.meta.id;
        if let Some(other) = others.iter().find(has) {
            let whose = self.name_of_vm(&other.value).await?;
            return Err(Error::new(
                ErrorKind::AlreadyExists,
                format!("the floating IP {address} is taken"),
                format!("it leads to {whose}"),
                format!("detach it with `vbm floating-ip detach {whose}`, or choose another"),
            ));
        }
        let key = floating_key(address);
        let seen = self.records().store().get(&key).await?.map(|e| e.revision);
        Ok(edit.swap(key, seen, Bytes::from(port.meta.id.to_string())))
    }
}

/// The key that requests for the same address cross at.
pub(super) fn floating_key(address: Ipv4Addr) -> String {
    format!("floating/{address}")
}

fn floating_ip(text: &str) -> Result<Option<Ipv4Addr>> {
    if text == FLOATING_IP_NONE {
        return Ok(None);
    }
    text.parse().map(Some).map_err(|_| {
        Error::new(
            ErrorKind::InvalidInput,
            format!("'{text}' cannot be a floating IP"),
            "it is no IPv4 address",
            "name an address such as 192.0.2.50, or none to take it away",
        )
    })
}

fn limits_text(port: &Port) -> String {
    let limits = port.spec.limits;
    let rate = |way: &str, kbit: Option<u32>| {
        format!("{way} {}", kbit.map_or_else(|| "unlimited".to_owned(), rate_text))
    };
    let connections = limits
        .connections
        .map_or_else(|| "any number of".to_owned(), |n| n.to_string());
    format!(
        "limits: {}, {}, {connections} connections",
        rate("in", limits.in_kbit_per_second),
        rate("out", limits.out_kbit_per_second)
    )
}

#[cfg(test)]
mod tests {
    use super::floating_ip;

    #[test]
    fn a_floating_ip_is_an_address_or_none() {
        assert_eq!(floating_ip("none").unwrap(), None);
        assert_eq!(floating_ip("192.0.2.50").unwrap(), Some([192, 0, 2, 50].into()));
        for bad in [
            "",
            "None",
            "192.0.2.256",
            "192.0.2.50/32",
            "fd00::1",
            " 192.0.2.50",
        ] {
            assert!(
                floating_ip(bad)
                    .unwrap_err()
                    .to_string()
                    .contains("no IPv4 address"),
                "{bad}"
            );
        }
    }
}
