//! `vbm port allow` and `deny`: addresses that a VM may use beside its own.

use super::{super::args::PortAddresses, one_nic};
use crate::{api::SetPort, cli::session::Session};
use ipnet::IpNet;
use std::net::IpAddr;
use vbm_core::{AddressPair, Error, ErrorKind};

pub(super) async fn allow(on: &Session<'_>, args: &PortAddresses) -> Result<(), Error> {
    change(on, args, |has, named| {
        let new = named.iter().filter(|pair| !has.contains(pair));
        Ok(has.iter().chain(new).copied().collect())
    })
    .await
}

pub(super) async fn deny(on: &Session<'_>, args: &PortAddresses) -> Result<(), Error> {
    change(on, args, |has, named| without(has, named, &args.vm)).await
}

fn without(has: &[AddressPair], named: &[AddressPair], vm: &str) -> Result<Vec<AddressPair>, Error> {
    if let Some(unknown) = named.iter().find(|pair| !has.contains(pair)) {
        return Err(Error::new(
            ErrorKind::NotFound,
            format!("vm '{vm}' is not allowed {}", one_text(unknown)),
            match has {
                [] => "it is allowed no address beside its own".to_owned(),
                has => format!("it is allowed {}", text(has)),
            },
            "name an address as it is listed by `vbm port list -o wide`",
        ));
    }
    Ok(has.iter().filter(|pair| !named.contains(pair)).copied().collect())
}

async fn change(
    on: &Session<'_>,
    args: &PortAddresses,
    next: impl Fn(&[AddressPair], &[AddressPair]) -> Result<Vec<AddressPair>, Error>,
) -> Result<(), Error> {
    let named = args
        .addresses
        .iter()
        .map(|a| pair(a))
        .collect::<Result<Vec<_>, _>>()?;
    let vm = on.client.vms().get(&args.vm).await?;
    let nic = one_nic(on, &vm, args.network.as_deref()).await?;
    let pairs = next(&nic.port.spec.pairs, &named)?;
    let told = format!(
        "{} on {}: {}",
        vm.vm.meta.name,
        nic.network_name,
        match &pairs[..] {
            [] => "no address beside its own".to_owned(),
            pairs => format!("beside its own it may use {}", text(pairs)),
        }
    );
    let request = SetPort {
        network: Some(nic.port.spec.network.to_string()),
        pairs: Some(pairs),
        ..SetPort::default()
    };
    let id = vm.vm.meta.id.to_string();
    let accepted = on.client.vms().set_port(id, &request).await?;
    if on.finish(&accepted.operation).await? {
        let name = accepted.item.vm.meta.name.to_string();
        on.out.done(&accepted.item, &name, &told)?;
    }
    Ok(())
}

/// `ADDRESS[/BITS][=MAC]`.
fn pair(text: &str) -> Result<AddressPair, Error> {
    let (address, mac) = match text.split_once('=') {
        Some((address, mac)) => (address, Some(mac.parse()?)),
        None => (text, None),
    };
    let net = address.parse::<IpAddr>().map(IpNet::from);
    let net = net.or_else(|_| address.parse::<IpNet>()).map_err(|_| {
        Error::new(
            ErrorKind::InvalidInput,
            format!("'{address}' is no address"),
            "it is neither an IPv4 or IPv6 address nor a subnet",
            "write for example 10.0.0.200, 172.16.0.0/16, fd00::5 or 10.0.0.201=00:00:5e:00:01:01",
        )
    })?;
    Ok(AddressPair {
        address: net.trunc(),
        mac,
    })
}

/// As it is typed.
pub(super) fn text(pairs: &[AddressPair]) -> String {
    let all: Vec<String> = pairs.iter().map(one_text).collect();
    all.join(",")
}

fn one_text(pair: &AddressPair) -> String {
    let address = match pair.address.prefix_len() == pair.address.max_prefix_len() {
        true => pair.address.addr().to_string(),
        false => pair.address.to_string(),
    };
    match pair.mac {
        Some(mac) => format!("{address}={mac}"),
        None => address,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_listed_as_they_are_typed() {
        for typed in [
            "10.0.0.200",
            "172.16.0.0/16",
            "fd00::5",
            "10.0.0.201=00:00:5e:00:01:01",
        ] {
            assert_eq!(one_text(&pair(typed).unwrap()), typed);
        }
        assert_eq!(one_text(&pair("172.16.3.4/16").unwrap()), "172.16.0.0/16");
        for bad in [
            "",
            "here",
            "10.0.0.1-9",
            "10.0.0.1/33",
            "10.0.0.1=zz",
            "=00:00:5e:00:01:01",
        ] {
            assert_eq!(pair(bad).unwrap_err().kind(), ErrorKind::InvalidInput, "{bad}");
        }
    }

    #[test]
    fn what_was_not_allowed_cannot_be_denied() {
        let has = [pair("10.0.0.200").unwrap(), pair("fd00::5").unwrap()];
        assert_eq!(without(&has, &has[..1], "web1").unwrap(), has[1..]);
        let refused = without(&has, &[pair("10.0.0.201").unwrap()], "web1").unwrap_err();
        assert!(refused.to_string().contains("10.0.0.200,fd00::5"), "{refused}");
    }
}
