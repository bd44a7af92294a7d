//! The server alone, on an interface that is there: for embedders that have their own network.

use super::{
    Counters, Leases, ServerConfig,
    book::LeaseRecord,
    server::{Beginning, Context, Place, Server},
    store::LeaseStore,
};
use crate::NetEvent;
use std::{io, sync::Arc};
use tokio::sync::broadcast;
use vbm_core::{Clock, NetworkId};

/// A DHCPv4 server on one interface. Needs `CAP_NET_RAW`. Dropping it stops it.
///
/// ```no_run
/// # use std::{net::Ipv4Addr, sync::Arc, time::Duration};
/// use vbm_net::dhcp::{DhcpServer, ServerConfig, Subnet, store::AppendLog};
/// # async fn example(clock: Arc<dyn vbm_core::Clock>, id: vbm_core::NetworkId) -> Result<(), Box<dyn std::error::Error>> {
/// let mut lan = Subnet::new("10.0.0.0/24".parse()?, Duration::from_secs(3_600));
/// lan.pool = Some(Ipv4Addr::new(10, 0, 0, 100)..=Ipv4Addr::new(10, 0, 0, 199));
/// let config = ServerConfig::new(Ipv4Addr::new(10, 0, 0, 1), "52:54:00:00:00:01".parse()?, lan);
/// let store = AppendLog::open("/var/lib/example/leases")?;
/// let server = DhcpServer::start("eth1", id, config, store, clock).await?;
/// let mut news = server.events();
/// println!("{:?}", news.recv().await?);
/// server.shutdown().await;
/// # Ok(())
/// # }
/// ```
pub struct DhcpServer {
    server: Server,
    events: broadcast::Sender<NetEvent>,
}

impl std::fmt::Debug for DhcpServer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("DhcpServer").finish_non_exhaustive()
    }
}

impl DhcpServer {
    /// Loads what is kept, then serves on this interface of the calling thread's network namespace. `network` is what events call it.
    ///
    /// # Errors
    /// An interface that is not there, no right to a packet socket, leases that cannot be read.
    ///
    /// # Cancel safety
    /// When it is dropped before it returns nothing is served.
    pub async fn start(
        interface: &str,
        network: NetworkId,
        config: ServerConfig,
        mut store: impl LeaseStore,
        clock: Arc<dyn Clock>,
    ) -> io::Result<Self> {
        // On this thread: another one may be in another namespace.
        let place = Place::here(interface)?;
        let socket = super::open_socket(place.interface)?;
        let (store, kept) = tokio::task::spawn_blocking(move || {
            let kept = store.load();
            (store, kept)
        })
        .await
        .map_err(io::Error::other)?;
        let begin = Beginning {
            socket,
            place,
            config,
            leases: Leases::new(),
            store: Box::new(store),
            kept: kept?,
        };
        let context = Context::alone(network, clock);
        Ok(Self {
            events: context.events.clone(),
            server: Server::start(begin, context)?,
        })
    }

    /// From the next request on, this holds. Returns whether it differs from before.
    pub fn reconfigure(&self, config: ServerConfig) -> bool {
        self.server.reconfigure(config)
    }

    /// What ports were last told.
    pub fn leases(&self) -> Leases {
        self.server.leases()
    }

    /// What clients of pools hold now, and which addresses rest.
    pub async fn clients(&self) -> Vec<LeaseRecord> {
        self.server.clients().await
    }

    /// How often what happened since the start.
    pub fn counters(&self) -> &Counters {
        self.server.counters()
    }

    /// What happens from now on. Who falls behind loses the oldest.
    pub fn events(&self) -> broadcast::Receiver<NetEvent> {
        self.events.subscribe()
    }

    /// Ends it. When this returns its socket and its store are closed, and what was being written is written.
    pub async fn shutdown(self) {
        self.server.stop().await;
    }
}
