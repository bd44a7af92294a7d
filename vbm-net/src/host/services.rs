//! What a network serves to its VMs beside DHCP: DNS and metadata. Their sockets are opened in one visit to the namespace, and opened
//! again when what they are bound to changed.

use super::{HostShared, netns::NetNs};
use crate::{
    DesiredNetwork, NetError, ServicesSeen, Validated, dns,
    metadata::{self, Instance},
    names,
};
use socket2::{Domain, SockAddr, Socket, Type};
use std::{
    io,
    net::{Ipv4Addr, SocketAddrV4},
    sync::Arc,
};
use vbm_core::{PortId, network::METADATA_ADDRESS};

/// How many connections wait to be accepted.
const BACKLOG: i32 = 64;

/// What sockets are bound to. A namespace that was made anew is another, whatever its name and the number of its bridge.
type Place = (Option<(u64, u64)>, u32, Ipv4Addr);

/// The services of one network.
#[derive(Default)]
pub(crate) struct Services {
    place: Option<Place>,
    dns: Option<dns::server::Server>,
    metadata: Option<metadata::server::Server>,
    instances: metadata::Instances,
}

struct Opened {
    dns: Option<dns::server::Sockets>,
    metadata: Option<std::net::TcpListener>,
}

impl Services {
    /// Makes the services that are wanted run on the bridge that stands now. Adds a line for each that changed.
    pub(crate) async fn serve(
        &mut self,
        shared: &HostShared,
        ns: &NetNs,
        bridge: u32,
        net: &Validated<DesiredNetwork>,
        changed: &mut Vec<String>,
    ) -> Result<(), NetError> {
        self.instances
            .retain(|port, _| net.ports.iter().any(|p| p.id == *port));
        let place = (ns.identity(), bridge, net.spec.gateway);
        let moved = self.place.replace(place) != Some(place);
        let zone = net.spec.serve_dns.then(|| dns::Zone::from(net));
        let config = net
            .spec
            .serves_metadata()
            .then(|| metadata::Config::new(net, &self.instances));
        // What is not wanted, or has ended, goes; its sockets are closed before others are bound.
        if let Some(gone) = self.dns.take_if(|s| moved || zone.is_none() || !s.is_running()) {
            changed.extend(zone.is_none().then(|| "no more DNS server".to_owned()));
            gone.end().await;
        }
        if let Some(gone) = self
            .metadata
            .take_if(|s| moved || config.is_none() || !s.is_running())
        {
            changed.extend(config.is_none().then(|| "no more metadata service".to_owned()));
            gone.end().await;
        }
        let missing = (
            zone.is_some() && self.dns.is_none(),
            config.is_some() && self.metadata.is_none(),
        );
        let opened = open(ns, bridge, net.spec.gateway, missing).await?;
        if let Some(zone) = zone {
            self.serve_dns(shared, net, zone, opened.dns, changed)?;
        }
        if let Some(config) = config {
            self.serve_metadata(shared, net, config, opened.metadata, changed)?;
        }
        Ok(())
    }

    fn serve_dns(
        &mut self,
        shared: &HostShared,
        net: &DesiredNetwork,
        zone: dns::Zone,
        sockets: Option<dns::server::Sockets>,
        changed: &mut Vec<String>,
    ) -> Result<(), NetError> {
        if let Some(server) = &self.dns {
            changed.extend(server.reconfigure(zone).then(|| "DNS names".to_owned()));
        } else if let Some(sockets) = sockets {
            let context = dns::server::Context {
                network: net.id,
                tracker: shared.tracker.clone(),
                upstream: dns::upstream::Upstream::new(shared.host.clone(), shared.resolver_list.clone()),
            };
            let started = dns::server::Server::start(sockets, zone, context);
            self.dns = Some(started.map_err(|e| NetError::kernel("starting the DNS server", e))?);
            changed.push("DNS server".into());
        }
        Ok(())
    }

    fn serve_metadata(
        &mut self,
        shared: &HostShared,
        net: &DesiredNetwork,
        config: metadata::Config,
        listener: Option<std::net::TcpListener>,
        changed: &mut Vec<String>,
    ) -> Result<(), NetError> {
        if let Some(server) = &self.metadata {
            changed.extend(server.reconfigure(config).then(|| "metadata".to_owned()));
        } else if let Some(listener) = listener {
            let context = metadata::server::Context {
                network: net.id,
                clock: Arc::clone(&shared.clock),
                tracker: shared.tracker.clone(),
                key: shared.token_key.clone(),
            };
            let started = metadata::server::Server::start(listener, config, context);
            self.metadata = Some(started.map_err(|e| NetError::kernel("starting the metadata service", e))?);
            changed.push("metadata service".into());
        }
        Ok(())
    }

    /// From now on this is what the VM behind a port is told; `None`: what its port tells.
    pub(crate) fn describe(
        &mut self,
        net: &Validated<DesiredNetwork>,
        port: PortId,
        instance: Option<Instance>,
    ) {
        self.instances.insert(port, instance.map(Arc::new));
        if let Some(server) = &self.metadata {
            server.reconfigure(metadata::Config::new(net, &self.instances));
        }
    }

    /// Whether it was said what the VM behind a port is told.
    pub(crate) fn describes(&self, port: PortId) -> bool {
        self.instances.contains_key(&port)
    }

    /// Stops all and forgets what VMs are told. The sockets hold the namespace.
    pub(crate) async fn stop(&mut self) {
        let all = std::mem::take(self);
        if let Some(dns) = all.dns {
            dns.end().await;
        }
        if let Some(metadata) = all.metadata {
            metadata.end().await;
        }
    }

    pub(crate) fn seen(&self) -> ServicesSeen {
        ServicesSeen {
            dns: self.dns.as_ref().map(dns::server::Server::seen),
            metadata: self.metadata.as_ref().map(metadata::server::Server::seen),
        }
    }
}

async fn open(ns: &NetNs, bridge: u32, gateway: Ipv4Addr, missing: (bool, bool)) -> Result<Opened, NetError> {
    let (dns, metadata) = missing;
    if !dns && !metadata {
        return Ok(Opened {
            dns: None,
            metadata: None,
        });
    }
    let open = move || -> io::Result<Opened> {
        let at = |kind, address, port| bound(kind, bridge, SocketAddrV4::new(address, port));
        let dns = dns.then(|| -> io::Result<_> {
            let udp = at(Type::DGRAM, gateway, dns::PORT)?.into();
            let tcp = at(Type::STREAM, gateway, dns::PORT)?;
            tcp.listen(BACKLOG)?;
            Ok(dns::server::Sockets { udp, tcp: tcp.into() })
        });
        let metadata = metadata.then(|| -> io::Result<_> {
            let tcp = at(Type::STREAM, METADATA_ADDRESS, metadata::PORT)?;
            tcp.listen(BACKLOG)?;
            Ok(tcp.into())
        });
        Ok(Opened {
            dns: dns.transpose()?,
            metadata: metadata.transpose()?,
        })
    };
    let doing = "opening the sockets of DNS and metadata";
    ns.run(open).await?.map_err(|e| NetError::kernel(doing, e))
}

/// A socket that hears the bridge only.
fn bound(kind: Type, bridge: u32, address: SocketAddrV4) -> io::Result<Socket> {
    let socket = Socket::new(Domain::IPV4, kind.nonblocking().cloexec(), None)?;
    // Connections of a server that ended do not keep the next one out.
    socket.set_reuse_address(kind == Type::STREAM)?;
    socket.bind_device_by_index_v4(bridge.try_into().ok())?;
    socket.bind(&SockAddr::from(address)).map_err(|e| {
        let what = format!("{address} on {}: {e}", names::BRIDGE);
        io::Error::new(e.kind(), what)
    })?;
    Ok(socket)
}
