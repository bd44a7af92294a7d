//! Connections, and the supervisor of where they go.
//!
//! ```text
//!   Connector ---- standalone: the one address
//!     |      \---- sentinel:   whom the sentinels name (sentinel.rs), if it says of itself that it is the master
//!     |       \--- cluster:    who owns the slot (cluster.rs)
//!     |
//!     +-- Commands: shared, answers at once; of a cluster: one wire to each master, a batch is split by key
//!     +-- Blocking: one reader's, to the server of one key
//!
//!   every wire ends when: it breaks | an answer is late | an answer says "not me, not now" | the master has moved
//! ```
//!
//! Two types, so that a blocking command can never stand in front of another one. redis-rs' own response time-out is
//! off for both: it forgets an answer that is on its way (redis-rs#1924), and neither its Sentinel nor its Cluster
//! client ends live connections when the master changes (redis-rs#1438). Each use here has a hard time-out instead,
//! after which the wire is thrown away.

mod wire;

pub(super) use wire::{Answer, Blocking, Commands, NODE_DOWN, Wire};

use super::{
    cluster::{self, Many, Slots},
    config::{Host, RedisConfig, Topology},
    lock, pack, sentinel,
};
use redis::{
    AsyncConnectionConfig, Client, ConnectionAddr, ConnectionInfo, RedisConnectionInfo, RedisError,
    TlsCertificates, aio::MultiplexedConnection,
};
use std::{
    sync::{Arc, Mutex},
    time::Duration,
};
use tokio::{
    sync::watch,
    time::{Instant, sleep, timeout},
};
use tokio_util::sync::CancellationToken;
use wire::Way;

/// The longest a connection may take to be made, hello included.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
/// The longest a batch of commands may take.
const COMMAND_TIMEOUT: Duration = Duration::from_secs(5);
/// How much longer than its server-side block a read may take before the connection counts as dead.
const BLOCK_GRACE: Duration = Duration::from_secs(3);
/// The first wait before another try to connect.
const BACKOFF_MIN: Duration = Duration::from_millis(50);
/// The longest wait before another try to connect.
pub(super) const BACKOFF_MAX: Duration = Duration::from_secs(1);
/// The most commands queued inside redis-rs for one connection.
const PIPELINE_BUFFER_COMMANDS: usize = 64;

/// The server cannot be used over this connection now: make another one.
#[derive(Clone, Debug)]
pub(super) struct Down(pub(super) String);

/// How long a number of replicas is believed.
const REPLICAS_KNOWN_FOR: Duration = Duration::from_secs(1);
/// Errors of single commands that mean: not this server, or not now.
const DOWN_CODES: [&str; 9] = [
    "LOADING",
    "READONLY",
    "MASTERDOWN",
    "CLUSTERDOWN",
    "UNBLOCKED",
    "MISCONF",
    "NOAUTH",
    "TRYAGAIN",
    // A master that was cut off from its replicas (min-replicas-to-write): there is, or will be, another one.
    "NOREPLICAS",
];

/// Whether an error of one command makes the connection useless.
pub(super) fn is_down(error: &RedisError) -> bool {
    error.is_unrecoverable_error()
        || error.is_io_error()
        || error.code().is_some_and(|code| DOWN_CODES.contains(&code))
}

/// How a single connection is made.
struct Dialer {
    config: RedisConfig,
    certificates: Option<TlsCertificates>,
}

/// The supervisor of where connections go. Clones share what was learnt.
#[derive(Clone)]
pub(super) struct Connector {
    shared: Arc<Shared>,
    /// In a cluster, commands without a key go to the server of this slot.
    home: u16,
}

pub(super) struct Shared {
    dialer: Dialer,
    place: Mutex<Place>,
    pub(super) slots: Mutex<Slots>,
    /// How many replicas there were, and when.
    replicas: Mutex<Option<(Instant, u64)>>,
    /// Grows when there is a reason to try at once.
    hint: watch::Sender<u64>,
}

/// The master that connections go to.
#[derive(Default)]
struct Place {
    host: Option<Host>,
    /// Ends every connection to it.
    moved: CancellationToken,
}

impl std::fmt::Debug for Connector {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Connector({})", self.shared.dialer.config)
    }
}

impl Connector {
    pub(super) fn new(config: &RedisConfig, certificates: Option<TlsCertificates>) -> Self {
        Self {
            shared: Arc::new(Shared {
                dialer: Dialer {
                    config: config.clone(),
                    certificates,
                },
                place: Mutex::default(),
                slots: Mutex::default(),
                replicas: Mutex::default(),
                hint: watch::Sender::new(0),
            }),
            home: 0,
        }
    }

    pub(super) fn shared(&self) -> &Shared {
        &self.shared
    }

    /// For a member whose own keys lie beside `key`.
    pub(super) fn at_home(mut self, key: &str) -> Self {
        self.home = cluster::slot(key.as_bytes());
        self
    }

    /// A way for commands: to the master, or to every master of a cluster.
    pub(super) async fn commands(&self) -> Result<Commands, Down> {
        match &self.shared.dialer.config.topology {
            Topology::Cluster { .. } => {
                self.shared.refresh_slots().await?;
                let many = Many::new(self.shared.clone(), self.home);
                many.open_home().await?;
                Ok(Commands(Way::Many(many)))
            }
            _ => self.shared.master().await.map(|wire| Commands(Way::One(wire))),
        }
    }

    /// A connection for blocking reads of `key`, and of those beside it.
    pub(super) async fn blocking(&self, key: &str) -> Result<Blocking, Down> {
        let wire = match &self.shared.dialer.config.topology {
            Topology::Cluster { .. } => self.shared.wire_of_slot(cluster::slot(key.as_bytes())).await?,
            _ => self.shared.master().await?,
        };
        Ok(Blocking {
            wire,
            shared: self.shared.clone(),
        })
    }

    /// Splits keys into those that one blocking read may name.
    pub(super) fn apart(&self, keys: Vec<Arc<str>>) -> Vec<Vec<Arc<str>>> {
        match &self.shared.dialer.config.topology {
            Topology::Cluster { .. } => cluster::by_slot(keys),
            _ => vec![keys],
        }
    }

    /// Waits before another try, or until there is a reason to try at once.
    pub(super) async fn pause(&self, attempt: u32, seed: u64) {
        let mut hint = self.shared.hint.subscribe();
        hint.mark_unchanged();
        tokio::select! {
            // Neither arm loses anything.
            () = sleep(backoff(attempt, seed)) => {}
            _changed = hint.changed() => {}
        }
    }

    /// Follows the sentinels' word until it is dropped; nothing to do for others.
    pub(super) async fn watch(&self, seed: u64) {
        if let Topology::Sentinel { sentinels, master } = &self.shared.dialer.config.topology {
            sentinel::watch(&self.shared, sentinels, master, seed).await;
        }
    }

    /// How many replicas must have what has to outlive the master. Under Sentinel all that could be promoted: one alone might
    /// still follow an old master that came back while another one is made the new one. Elsewhere one.
    pub(super) async fn replicas(&self) -> Result<u64, Down> {
        let Topology::Sentinel { sentinels, master } = &self.shared.dialer.config.topology else {
            return Ok(1);
        };
        let known = *lock(&self.shared.replicas);
        if let Some((at, replicas)) = known
            && at.elapsed() < REPLICAS_KNOWN_FOR
        {
            return Ok(replicas);
        }
        let asked = Instant::now();
        let set = sentinel::ask(&self.shared, sentinels, master).await?;
        let replicas = set.replicas.max(1);
        *lock(&self.shared.replicas) = Some((asked, replicas));
        Ok(replicas)
    }

    pub(super) fn topology(&self) -> &Topology {
        &self.shared.dialer.config.topology
    }

    /// One connection to every server that is written to: the master, or all masters of a cluster.
    pub(super) async fn every_master(&self) -> Result<Vec<(String, Commands)>, Down> {
        let shared = &self.shared;
        let mut all = Vec::new();
        match &shared.dialer.config.topology {
            Topology::Cluster { .. } => {
                shared.refresh_slots().await?;
                let masters = lock(&shared.slots).masters();
                for host in masters {
                    let wire = shared.wire(&host).await?;
                    all.push((host.to_string(), Commands(Way::One(wire))));
                }
            }
            Topology::One(_) => all.push((String::new(), self.commands().await?)),
            Topology::Sentinel { .. } => {
                let commands = self.commands().await?;
                let host = lock(&shared.place).host.as_ref().map(Host::to_string);
                all.push((host.unwrap_or_default(), commands));
            }
        }
        Ok(all)
    }
}

impl Shared {
    fn client(&self, addr: ConnectionAddr, login: &RedisConnectionInfo) -> Result<Client, Down> {
        let down = |error: RedisError| Down(error.to_string());
        let info: ConnectionInfo = RedisConfig::with_login(addr, login).map_err(down)?;
        match &self.dialer.certificates {
            Some(certificates) => Client::build_with_tls(info, certificates.clone()).map_err(down),
            None => Client::open(info).map_err(down),
        }
    }

    /// A client of one sentinel.
    pub(super) fn sentinel_client(&self, host: &Host) -> Result<Client, Down> {
        let config = &self.dialer.config;
        self.client(config.addr(host), &config.sentinel_login)
    }

    async fn dial(&self, addr: ConnectionAddr) -> Result<MultiplexedConnection, Down> {
        let client = self.client(addr, &self.dialer.config.login)?;
        let options = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(CONNECT_TIMEOUT))
            .set_response_timeout(None)
            .set_pipeline_buffer_size(PIPELINE_BUFFER_COMMANDS);
        let opening = client.get_multiplexed_async_connection_with_config(&options);
        match timeout(CONNECT_TIMEOUT, opening).await {
            Ok(Ok(connection)) => Ok(connection),
            Ok(Err(error)) => Err(Down(error.to_string())),
            Err(_late) => Err(Down(format!(
                "no connection within {} s",
                CONNECT_TIMEOUT.as_secs()
            ))),
        }
    }

    /// A wire to one node of a cluster.
    pub(super) async fn wire(&self, host: &Host) -> Result<Wire, Down> {
        let connection = self.dial(self.dialer.config.addr(host)).await?;
        Ok(Wire {
            connection,
            origin: host.to_string().into(),
            moved: None,
        })
    }

    /// A wire to the master, wherever it is now.
    async fn master(&self) -> Result<Wire, Down> {
        let (sentinels, name) = match &self.dialer.config.topology {
            Topology::Sentinel { sentinels, master } => (sentinels, master),
            Topology::One(addr) => {
                return Ok(Wire {
                    connection: self.dial(addr.clone()).await?,
                    origin: addr.to_string().into(),
                    moved: None,
                });
            }
            Topology::Cluster { .. } => return Err(Down("a cluster has several masters".into())),
        };
        let host = sentinel::ask(self, sentinels, name).await?.master;
        let mut wire = self.wire(&host).await?;
        let role = wire.one(&redis::cmd("ROLE")).await?;
        match role.as_ref().map(pack::texts) {
            Ok(words) if words.first() == Some(&"master") => {}
            Ok(_) => return Err(Down(format!("the sentinels name {host}, which is no master yet"))),
            // A user without the right to ask is trusted to have been sent to the right server.
            Err(why) if why.contains("NOPERM") => {}
            Err(why) => return Err(Down(why.clone())),
        }
        wire.moved = Some(self.settle_at(&host));
        Ok(wire)
    }

    /// The master is there: connections to any other end.
    fn settle_at(&self, host: &Host) -> CancellationToken {
        let mut place = lock(&self.place);
        if place.host.as_ref() != Some(host) {
            let before = std::mem::take(&mut *place);
            before.moved.cancel();
            if let Some(before) = before.host {
                tracing::warn!("the master has moved from {before} to {host}");
            }
            place.host = Some(host.clone());
        }
        place.moved.clone()
    }

    /// The sentinels say that the master is there: connections to any other end, and others are made at once.
    pub(super) fn told_of(&self, host: &Host) {
        let place = lock(&self.place);
        if place.host.as_ref().is_some_and(|known| known != host) {
            tracing::info!("the sentinels name another master: {host}");
            place.moved.cancel();
        }
        drop(place);
        self.hint.send_modify(|hint| *hint += 1);
    }

    /// A wire to the owner of a slot.
    async fn wire_of_slot(&self, slot: u16) -> Result<Wire, Down> {
        if lock(&self.slots).is_empty() {
            self.refresh_slots().await?;
        }
        let owner = lock(&self.slots).owner(slot);
        let Some(owner) = owner else {
            self.refresh_slots().await?;
            return Err(Down(format!("nobody in the cluster has the slot {slot}")));
        };
        match self.wire(&owner).await {
            Ok(wire) => Ok(wire),
            Err(down) => {
                // Whoever took it over is found by the next try.
                self.refresh_slots().await?;
                Err(down)
            }
        }
    }

    /// Asks the nodes of a cluster who owns what; the first who answers is believed.
    pub(super) async fn refresh_slots(&self) -> Result<(), Down> {
        let Topology::Cluster { seeds } = &self.dialer.config.topology else {
            return Ok(());
        };
        let mut nodes = lock(&self.slots).masters();
        nodes.extend(
            seeds
                .iter()
                .filter(|seed| !nodes.contains(seed))
                .cloned()
                .collect::<Vec<_>>(),
        );
        let slots = cluster::ask(self, &nodes).await?;
        *lock(&self.slots) = slots;
        Ok(())
    }
}

/// How long to wait before try number `attempt` (from 0): doubling, with jitter from `seed`, so that a thousand nodes
/// do not come back at once.
pub(super) fn backoff(attempt: u32, seed: u64) -> Duration {
    let full = BACKOFF_MIN.saturating_mul(1 << attempt.min(10)).min(BACKOFF_MAX);
    let mix = seed
        .wrapping_add(u64::from(attempt))
        .wrapping_mul(0x9e37_79b9_7f4a_7c15)
        >> 48;
    // Between a half and the whole.
    full.mul_f64(0.5 + f64::from(u32::try_from(mix).unwrap_or(0)) / 131_072.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_grow_to_their_limit_and_differ_between_processes() {
        assert!(backoff(0, 1) <= BACKOFF_MIN && backoff(0, 1) >= BACKOFF_MIN / 2);
        for attempt in 0..100 {
            assert!(backoff(attempt, 7) <= BACKOFF_MAX);
        }
        assert_ne!(backoff(5, 1), backoff(5, 2));
    }

    #[tokio::test]
    async fn a_master_that_moves_ends_the_connections_to_the_old_one_and_wakes_who_waits() {
        let config = RedisConfig::from_url("redis+sentinel://localhost/m").unwrap();
        let connector = Connector::new(&config, None);
        let (a, b) = (Host::parse("a", 1).unwrap(), Host::parse("b", 1).unwrap());
        let first = connector.shared.settle_at(&a);
        connector.shared.told_of(&a);
        assert!(!first.is_cancelled() && !connector.shared.settle_at(&a).is_cancelled());
        let waiter = connector.clone();
        let waits = tokio::spawn(async move { waiter.pause(20, 1).await });
        tokio::task::yield_now().await;
        connector.shared.told_of(&b);
        assert!(first.is_cancelled());
        waits.await.unwrap();
        assert!(!connector.shared.settle_at(&b).is_cancelled());
    }
}
