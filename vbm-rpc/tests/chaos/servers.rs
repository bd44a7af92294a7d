//! What a seed's processes talk to: one Redis behind proxies, or a master that sentinels watch.

use crate::common::{
    RedisServer,
    proxy::Proxy,
    sets::{SentinelSet, Server},
};
use nix::sys::signal::Signal;
use vbm_rpc::redis::RedisConfig;

/// What a server of a set is doing.
#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    Up,
    Dead,
    Stopped,
}

/// A master, its replicas and its sentinels; every process talks to them directly.
pub(crate) struct Watched {
    pub(crate) set: SentinelSet,
    servers: Vec<State>,
    sentinels: Vec<State>,
}

pub(crate) enum Servers {
    One {
        redis: Box<RedisServer>,
        lives: bool,
        /// Of the workers, of the callers.
        proxies: [Proxy; 2],
    },
    Watched(Box<Watched>),
}

impl Servers {
    pub(crate) async fn one(fsync: &str) -> Self {
        let redis = RedisServer::with(&["--appendonly", "yes", "--appendfsync", fsync]).await;
        let proxies = [Proxy::to(&redis.socket()).await, Proxy::to(&redis.socket()).await];
        Self::One {
            redis: Box::new(redis),
            lives: true,
            proxies,
        }
    }

    pub(crate) async fn watched(fsync: &str) -> Self {
        let configuration = format!("appendonly yes\nappendfsync {fsync}");
        let here = tokio::runtime::Handle::current();
        // Its asynchronous closures are not for tasks that change their thread.
        let starting = move || here.block_on(SentinelSet::start(&configuration));
        let set = tokio::task::spawn_blocking(starting).await.unwrap();
        Self::Watched(Box::new(Watched {
            servers: vec![State::Up; set.servers.len()],
            sentinels: vec![State::Up; set.sentinels.len()],
            set,
        }))
    }

    /// The address that processes are given: of the workers (0), of the callers (1).
    pub(crate) fn url(&self, whose: usize) -> String {
        match self {
            Self::One { proxies, .. } => proxies[whose].url(),
            Self::Watched(watched) => watched.set.url(),
        }
    }

    /// The way in of the test.
    pub(crate) fn config(&self) -> RedisConfig {
        match self {
            Self::One { redis, .. } => redis.config(),
            Self::Watched(watched) => watched.set.config(),
        }
    }

    /// Redis is killed; with `forget`, what was on its disk is gone too.
    pub(crate) async fn kill(&mut self, forget: bool) {
        if let Self::One { redis, lives, .. } = self {
            if *lives {
                redis.kill().await;
                *lives = false;
            }
            if forget {
                redis.forget();
            }
        }
    }

    pub(crate) fn signal(&self, signal: Signal) {
        if let Self::One { redis, .. } = self {
            redis.signal(signal);
        }
    }

    pub(crate) fn cut(&self, whose: usize) {
        if let Self::One { proxies, .. } = self {
            proxies[whose].cut();
        }
    }

    pub(crate) fn stall(&self, whose: usize, stalled: bool) {
        if let Self::One { proxies, .. } = self {
            proxies[whose].stall(stalled);
        }
    }

    /// Takes the master away, when all of its set is up; gives which it was. What was confirmed is then on a replica
    /// that is there.
    pub(crate) async fn take_master(&mut self, kill: bool) -> Option<usize> {
        let Self::Watched(watched) = self else { return None };
        if watched.servers.iter().any(|state| *state != State::Up) {
            return None;
        }
        let master = watched.set.master().await?;
        match kill {
            true => watched.set.servers[master].kill(),
            false => watched.set.servers[master].signal("STOP"),
        }
        watched.servers[master] = if kill { State::Dead } else { State::Stopped };
        Some(master)
    }

    /// Kills a sentinel; two are still a majority. Not the first, of which the test asks.
    pub(crate) fn kill_sentinel(&mut self) {
        if let Self::Watched(watched) = self
            && watched.sentinels.iter().all(|state| *state == State::Up)
            && let Some(last) = watched.set.sentinels.last_mut()
        {
            last.kill();
            *watched.sentinels.last_mut().unwrap() = State::Dead;
        }
    }

    /// Everything that is dead or stopped goes on with what is on its disk.
    pub(crate) async fn heal(&mut self) {
        match self {
            Self::One { redis, lives, .. } => {
                redis.signal(Signal::SIGCONT);
                if !*lives {
                    redis.restart().await;
                    *lives = true;
                }
            }
            Self::Watched(watched) => {
                let Watched {
                    set,
                    servers,
                    sentinels,
                } = &mut **watched;
                heal_all(&mut set.servers, servers).await;
                heal_all(&mut set.sentinels, sentinels).await;
            }
        }
    }
}

async fn heal_all(servers: &mut [Server], states: &mut [State]) {
    for (server, state) in servers.iter_mut().zip(states) {
        match state {
            State::Up => {}
            State::Dead => server.restart().await,
            State::Stopped => server.signal("CONT"),
        }
        *state = State::Up;
    }
}
