//! The server alone, on an interface that is there: for embedders that have their own network.

use super::{
    Counters, Leases, ServerConfig,
    server::{Beginning, Server},
};
use crate::{
    NetEvent,
    station::{Context, Place},
};
use std::{io, sync::Arc};
use tokio::sync::broadcast;
use vbm_core::{Clock, NetworkId};

/// A DHCPv6 server and a router's voice on one interface. Needs `CAP_NET_RAW`. Dropping it stops it.
///
/// ```no_run
/// # use std::{sync::Arc, time::Duration};
/// use vbm_net::dhcp6::{Dhcp6Server, ServerConfig};
/// # async fn example(clock: Arc<dyn vbm_core::Clock>, id: vbm_core::NetworkId, port: vbm_core::PortId) -> Result<(), Box<dyn std::error::Error>> {
/// let (mac, link) = ("52:54:00:00:00:01".parse()?, "fd00::/64".parse()?);
/// let mut config = ServerConfig::new("fe80::1".parse()?, mac, link, Duration::from_secs(3_600));
/// config.ports.insert("52:54:00:00:00:02".parse()?, (port, "fd00::2".parse()?));
/// let server = Dhcp6Server::start("eth1", id, config, clock)?;
/// let mut news = server.events();
/// println!("{:?}", news.recv().await?);
/// server.shutdown().await;
/// # Ok(())
/// # }
/// ```
pub struct Dhcp6Server {
    server: Server,
    events: broadcast::Sender<NetEvent>,
}

impl std::fmt::Debug for Dhcp6Server {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Dhcp6Server").finish_non_exhaustive()
    }
}

impl Dhcp6Server {
    /// Serves on this interface of the calling thread's network namespace. `network` is what events call it. Must be called on a
    /// tokio runtime with time and I/O.
    ///
    /// # Errors
    /// An interface that is not there, no right to a packet socket.
    pub fn start(
        interface: &str,
        network: NetworkId,
        config: ServerConfig,
        clock: Arc<dyn Clock>,
    ) -> io::Result<Self> {
        let place = Place::here(interface)?;
        let socket = super::open_socket(place.interface)?;
        let begin = Beginning {
            socket,
            place,
            config,
            leases: Leases::new(),
        };
        let context = Context::alone(network, clock);
        Ok(Self {
            events: context.events.clone(),
            server: Server::start(begin, context)?,
        })
    }

    /// From the next message on, this holds. Returns whether it differs from before.
    pub fn reconfigure(&self, config: ServerConfig) -> bool {
        self.server.reconfigure(config)
    }

    /// What ports were last told.
    pub fn leases(&self) -> Leases {
        self.server.leases()
    }

    /// How often what happened since the start.
    pub fn counters(&self) -> &Counters {
        self.server.counters()
    }

    /// What happens from now on. Who falls behind loses the oldest.
    pub fn events(&self) -> broadcast::Receiver<NetEvent> {
        self.events.subscribe()
    }

    /// Ends it. When this returns its socket is closed.
    pub async fn shutdown(self) {
        self.server.stop().await;
    }
}
