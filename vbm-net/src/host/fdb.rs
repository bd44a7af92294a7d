//! The kernel's forwarding and neighbour entries of a namespace, over netlink: [`crate::plan::overlay`] says which.

use super::link::{Links, failed, is_absent};
use crate::{
    NetError,
    plan::overlay::{Entries, Step},
};
use futures::TryStreamExt;
use rtnetlink::{
    Error as NlError,
    packet_route::{
        AddressFamily,
        neighbour::{NeighbourAddress, NeighbourAttribute, NeighbourFlags, NeighbourMessage, NeighbourState},
    },
};
use std::net::{IpAddr, Ipv4Addr};
use vbm_core::Mac;

/// Between which links the entries stand.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Between {
    pub(crate) bridge: u32,
    pub(crate) vxlan: u32,
}

impl Links {
    async fn neighbours(&self, family: AddressFamily) -> Result<Vec<NeighbourMessage>, NetError> {
        self.handle()
            .neighbours()
            .get()
            .set_address_family(family)
            .execute()
            .try_collect()
            .await
            .map_err(failed("listing neighbours"))
    }

    /// The entries that stand: of the forwarding ones all that somebody wrote, of the neighbours those that never age.
    pub(crate) async fn entries(&self, between: Between) -> Result<Entries, NetError> {
        let mut entries = Entries::default();
        for message in self.neighbours(AddressFamily::Bridge).await? {
            if message.header.ifindex != between.vxlan {
                continue;
            }
            let Some(mac) = mac(&message) else { continue };
            if message.header.flags.contains(NeighbourFlags::Own) {
                entries
                    .tunnel
                    .insert((mac, address(&message).unwrap_or(Ipv4Addr::UNSPECIFIED)));
            } else if message.header.state != NeighbourState::Permanent {
                // Permanent is the link's own address, which the kernel keeps.
                entries.bridge.insert(mac);
            }
        }
        let mut all = self.neighbours(AddressFamily::Inet).await?;
        all.extend(self.neighbours(AddressFamily::Inet6).await?);
        for message in all {
            if message.header.ifindex == between.bridge
                && message.header.state == NeighbourState::Permanent
                && let (Some(mac), Some(address)) = (mac(&message), any_address(&message))
            {
                entries.neighbours.insert((address, mac));
            }
        }
        Ok(entries)
    }

    /// Takes one step. Removing what is not there is fine.
    pub(crate) async fn step(&self, between: Between, step: Step) -> Result<(), NetError> {
        let neighbours = self.handle().neighbours();
        let done = match step {
            Step::AddTunnel(mac, host) => {
                let add = neighbours.add_bridge(between.vxlan, &mac.octets());
                let add = add.flags(NeighbourFlags::Own).destination(IpAddr::V4(host));
                add.replace().execute().await
            }
            Step::AddBridge(mac) => {
                let add = neighbours.add_bridge(between.vxlan, &mac.octets());
                // Noarp is what the bridge calls static; permanent would be an address of its own.
                let add = add.flags(NeighbourFlags::Controller).state(NeighbourState::Noarp);
                add.replace().execute().await
            }
            Step::AddNeighbour(address, mac) => {
                let add = neighbours.add(between.bridge, address);
                let add = add.link_layer_address(&mac.octets()).replace();
                add.execute().await
            }
            Step::RemoveTunnel(mac, host) => {
                let mut gone = forwarding(between.vxlan, mac, NeighbourFlags::Own);
                if !host.is_unspecified() {
                    gone.attributes
                        .push(NeighbourAttribute::Destination(NeighbourAddress::Inet(host)));
                }
                absent_is_fine(neighbours.del(gone).execute().await)
            }
            Step::RemoveBridge(mac) => {
                let gone = forwarding(between.vxlan, mac, NeighbourFlags::Controller);
                absent_is_fine(neighbours.del(gone).execute().await)
            }
            Step::RemoveNeighbour(address, _) => {
                let mut gone = NeighbourMessage::default();
                let (family, address) = match address {
                    IpAddr::V4(a) => (AddressFamily::Inet, NeighbourAddress::Inet(a)),
                    IpAddr::V6(a) => (AddressFamily::Inet6, NeighbourAddress::Inet6(a)),
                };
                gone.header.family = family;
                gone.header.ifindex = between.bridge;
                gone.attributes.push(NeighbourAttribute::Destination(address));
                absent_is_fine(neighbours.del(gone).execute().await)
            }
        };
        done.map_err(failed(format!("writing that {step}")))
    }
}

fn forwarding(link: u32, mac: Mac, table: NeighbourFlags) -> NeighbourMessage {
    let mut message = NeighbourMessage::default();
    message.header.family = AddressFamily::Bridge;
    message.header.ifindex = link;
    message.header.flags = table;
    message
        .attributes
        .push(NeighbourAttribute::LinkLayerAddress(mac.octets().to_vec()));
    message
}

fn absent_is_fine(result: Result<(), NlError>) -> Result<(), NlError> {
    match result {
        Err(error) if is_absent(&error) => Ok(()),
        other => other,
    }
}

fn mac(message: &NeighbourMessage) -> Option<Mac> {
    message.attributes.iter().find_map(|a| match a {
        NeighbourAttribute::LinkLayerAddress(mac) => <[u8; 6]>::try_from(mac.as_slice()).ok().map(Mac::new),
        _ => None,
    })
}

fn any_address(message: &NeighbourMessage) -> Option<IpAddr> {
    message.attributes.iter().find_map(|a| match a {
        NeighbourAttribute::Destination(NeighbourAddress::Inet(address)) => Some((*address).into()),
        NeighbourAttribute::Destination(NeighbourAddress::Inet6(address)) => Some((*address).into()),
        _ => None,
    })
}

fn address(message: &NeighbourMessage) -> Option<Ipv4Addr> {
    message.attributes.iter().find_map(|a| match a {
        NeighbourAttribute::Destination(NeighbourAddress::Inet(address)) => Some(*address),
        // Of a forwarding entry the codec does not know that it is one of IPv4.
        NeighbourAttribute::Destination(NeighbourAddress::Other(bytes)) => {
            <[u8; 4]>::try_from(bytes.as_slice()).ok().map(Ipv4Addr::from)
        }
        _ => None,
    })
}
