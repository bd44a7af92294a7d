//! The bus on Redis 7.0 or later.
//!
//! ```text
//!   send, post, complete                        Redis                                     the other process
//!        | queue                                                                               |
//!        v                                                                                     v
//!   +---------+  one batch at a time   n:<path>       XADD ... XREAD by cursor, XDEL      +--------+
//!   | writer  | --------------------->  g:<scope>:<s>  XADD ... XREADGROUP, XACK+XDEL      | reader |
//!   +---------+                         b              XADD ... XREAD by cursor            | taker  |
//!   | beat    | presence, takeover      r:<path>:<boot> XADD ... XREAD by cursor           +--------+
//!   +---------+
//! ```
//!
//! - The *writer* drains the queue, packs what goes to one key into as few entries as possible, sends all as one
//!   batch and takes the next batch when this one is answered: no timer, no latency added at one call. With each
//!   destination it asks in the same batch whether somebody is alive there. It owns the connection: when that breaks
//!   it makes another, registers again and raises the generation; what was not acknowledged goes again with the
//!   same ids.
//! - The *reader* blocks on one connection over the node's requests, its shard's broadcasts and the process' replies.
//!   Requests pass through the *feeder*, so that replies never wait behind them. Reads take nothing away: an entry
//!   goes when its requests are completed. After each reconnect the cursor of requests is set back to the
//!   beginning (what is left there is not done), and the others are compared with the stream's last id.
//! - The *taker* blocks on another connection over the groups of its services, in every scope above it; another taker
//!   with a connection of its own over their control lanes, which it takes also while the first one waits for room.
//! - The *beat* renews presence, the life of the queues and the lease of what handlers work on.
//! - The *rescuer* takes over what dead members had taken. The *quarantine* runs requests alone whose workers died, and
//!   gives up on those that kill them again and again (dead letters).
//! - What steers (cancels, the control lane) has a stream of its own, read and written before all else.
//!
//! No clock of a client is trusted: ages come from the ids of entries, which carry Redis' time.
//! - Recorded answers and tickets (`records.rs`) go through the writer too.
//!
//! Behind it stands one server, the master that sentinels name, or a cluster (`connect.rs` is the supervisor of
//! connections); with TLS or without. What is lost when one of them dies: `docs/rpc/connections.md`.

pub mod acl;
mod admin;
mod attachment;
mod batch;
mod beat;
mod belief;
mod clock;
mod cluster;
mod config;
mod connect;
mod countdown;
mod depth;
#[cfg(test)]
mod fuzz;
mod guard;
mod held;
mod keys;
mod last_word;
mod lease;
mod leftovers;
mod letters;
mod link;
mod master;
mod op;
mod pack;
mod plan;
mod presence;
mod present;
mod quarantine;
mod reader;
mod records;
mod replicas;
mod rescue;
mod results;
mod retract;
mod scripts;
mod sentinel;
mod start;
mod taker;
mod tls;
mod unfit;
mod writer;

pub use config::RedisConfig;
pub use master::MasterFinder;

use super::{Attached, Inbound, Transport};
use crate::{
    BadCounts, BusError, MemberInfo,
    admin::Admin,
    auth::{Counts, SecretIds},
};
use admin::RedisAdmin;
use async_trait::async_trait;
use attachment::{Core, Queues, lock};
use connect::Connector;
use guard::Guard;
use keys::Keys;
use link::RedisLink;
use std::sync::Arc;
use tokio::sync::mpsc;
use writer::Lane;

/// The atomics of the hand-made pieces, which a test replaces by those of loom.
mod atomic {
    pub(super) use std::sync::atomic::{AtomicU8, AtomicUsize, Ordering};
}

/// A Redis server that was found fit to carry the bus.
#[derive(Clone, Debug)]
pub struct RedisTransport {
    config: RedisConfig,
    connector: Connector,
    warnings: Vec<String>,
    counts: Arc<Counts>,
}

impl RedisTransport {
    /// Reaches the server, or every master of a cluster, and checks that it can carry the bus: version 7.0 or later,
    /// a master, of the kind that the address names, with memory and room for clients, without eviction. What
    /// works but can lose something, such as no persistence, is a [warning](Self::warnings).
    ///
    /// # Errors
    /// [`BusError::Unreachable`] and [`BusError::Unsuitable`].
    ///
    /// # Cancel safety
    /// Safe.
    pub async fn connect(config: RedisConfig) -> Result<Self, BusError> {
        let (connector, warnings) = start::check(&config).await?;
        for warning in &warnings {
            tracing::warn!("{warning}");
        }
        Ok(Self {
            config,
            connector,
            warnings,
            counts: Arc::default(),
        })
    }

    /// How often [`connect`](Self::connect) of this process failed because a server was not fit, by what was wrong with it:
    /// there was no attachment yet that could count it.
    pub fn refused_at_start() -> BadCounts {
        unfit::refused_at_start()
    }

    /// What is not as it should be with the server, one sentence each.
    pub fn warnings(&self) -> &[String] {
        &self.warnings
    }

    /// How many entries its attachments sealed, opened and refused; all zero with security off.
    pub fn entries(&self) -> &Counts {
        &self.counts
    }
}

impl From<RedisTransport> for Arc<dyn Transport> {
    fn from(transport: RedisTransport) -> Self {
        Arc::new(transport)
    }
}

#[async_trait]
impl Transport for RedisTransport {
    async fn attach(&self, member: MemberInfo, inbound: Inbound) -> Result<Attached, BusError> {
        let unreachable = |down: connect::Down| BusError::Unreachable {
            server: self.config.to_string(),
            why: down.0,
        };
        let guard = Guard::new(
            &self.config.security,
            &self.config.namespace,
            &member,
            (&self.counts, inbound.bad_inputs().clone()),
        )?;
        let guarded = guard.is_some();
        let keys = Keys::new(&self.config.namespace);
        let (home, presence) = (keys.node(&member.path), keys.presence(&member.path));
        let connector = self.connector.clone().at_home(&home);
        let mut commands = connector.commands().await.map_err(unreachable)?;
        let (ops, queue) = mpsc::unbounded_channel();
        let (replicated, replicated_queue) = mpsc::unbounded_channel();
        let (urgent, urgent_queue) = mpsc::unbounded_channel();
        let (suspects, suspected) = mpsc::unbounded_channel();
        let token = presence::token(&mut commands, &presence)
            .await
            .map_err(unreachable)?;
        let core = Arc::new(Core::new(
            &self.config,
            connector,
            (member, token),
            inbound,
            Queues {
                ops,
                urgent,
                replicated,
                suspects,
            },
            guard,
        ));
        let cursor = presence::register(&core, &mut commands, presence::Claim::Take)
            .await
            .map_err(unreachable)?
            .map_err(|refusal| refusal.into_error(&self.config, &core.me.path))?;
        core.conn.send_replace(Some(commands.clone()));
        let nonce = core.now_micros();
        let (feed, fed) = mpsc::unbounded_channel();
        core.spawn(writer::run(
            core.clone(),
            Lane::Fast,
            (Some(urgent_queue), queue),
            Some(commands),
        ));
        core.spawn(writer::run(
            core.clone(),
            Lane::Replicated,
            (None, replicated_queue),
            None,
        ));
        let watched = core.clone();
        core.spawn(async move { watched.connector.watch(watched.seed).await });
        core.spawn(reader::feed(core.clone(), fed));
        core.spawn(reader::run(core.clone(), feed, cursor));
        core.spawn(beat::run(core.clone()));
        for lane in taker::lanes(&core) {
            for queues in core.connector.apart(lane) {
                if !queues.is_empty() {
                    core.spawn(taker::run(core.clone(), queues));
                }
            }
        }
        if !core.me.services.is_empty() {
            core.spawn(rescue::run(core.clone()));
        }
        core.spawn(quarantine::run(core.clone(), suspected));
        core.tasks.close();
        let mut attached = Attached::new(Arc::new(RedisLink { core }), nonce);
        if guarded {
            let ids = SecretIds::new().map_err(|e| BusError::Untrusted {
                path: self.config.to_string(),
                why: e.to_string(),
            })?;
            attached = attached.with_ids(Arc::new(ids));
        }
        Ok(attached)
    }

    fn admin(&self) -> Option<Arc<dyn Admin>> {
        Some(Arc::new(RedisAdmin::new(
            &self.config,
            self.connector.clone(),
            self.counts.clone(),
        )))
    }
}
