//! The way to the server: connections that come back, and requests that are asked until they are answered or out of time.
//!
//! ```text
//!   request ---> one shared connection, pipelined ---> script
//!      ^              | lost: thrown away
//!      |              v
//!      +--- wait, with jitter ---> connect, hello (RESUME), then the same request again
//! ```
//!
//! The first word over each connection is [`scripts::RESUME`]: nothing else is asked of a server before it is known
//! whether it is the store of before; where sentinels are named, they are asked first where the master is now, so a failover
//! is one more connection that broke. redis-rs' own response time-out is off: it forgets an answer that is on its way
//! (redis-rs#1924); each use here has a hard time-out instead, after which the connection is thrown away.

use super::{keys::Keys, scripts, start, wire};
use crate::store::{Revision, StoreError};
use redis::{
    AsyncConnectionConfig, Client, Cmd, IntoConnectionInfo, ProtocolVersion, RedisError, Script, Value,
    aio::MultiplexedConnection, io::tcp::TcpSettings,
};
use std::{
    sync::{Mutex, PoisonError},
    time::Duration,
};
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;
use vbm_rpc::redis::{MasterFinder, RedisConfig};

/// The longest a connection may take to be made.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
/// The longest one request may take over one connection.
const COMMAND_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a request is asked again while the server cannot be used: a restart of Redis fits into it.
const REQUEST_PATIENCE: Duration = Duration::from_secs(15);
/// How much longer than its server-side block a read may take before the connection counts as dead.
const BLOCK_GRACE: Duration = Duration::from_secs(3);
/// How long a server that is loading its data at our start is waited for.
const LOADING_PATIENCE: Duration = Duration::from_secs(10);
/// The first wait before another try.
const BACKOFF_MIN: Duration = Duration::from_millis(20);
/// The longest wait before another try.
const BACKOFF_MAX: Duration = Duration::from_millis(500);
/// How far the count of revisions jumps when writes were lost: farther than any process may have counted meanwhile.
const LINEAGE_JUMP: u64 = 1_000_000;

/// Errors that mean: not this server, or not now.
const DOWN_CODES: [&str; 8] = [
    "LOADING",
    "READONLY",
    "MASTERDOWN",
    "CLUSTERDOWN",
    "UNBLOCKED",
    "MISCONF",
    "NOAUTH",
    "TRYAGAIN",
];

/// The error of a server that does not know a script.
const NO_SCRIPT: &str = "NOSCRIPT";

/// The server cannot be used over this connection now.
#[derive(Clone, Debug)]
pub(super) struct Down(pub(super) String);

fn client_of(url: &str) -> Result<Client, Down> {
    let down = |error: RedisError| Down(error.to_string());
    let info = url.into_connection_info().map_err(down)?;
    let settings = info.redis_settings().clone().set_protocol(ProtocolVersion::RESP2);
    let info = info
        .set_redis_settings(settings)
        .set_tcp_settings(TcpSettings::default().set_nodelay(true));
    Client::open(info).map_err(down)
}

fn is_down(error: &RedisError) -> bool {
    error.is_unrecoverable_error()
        || error.is_io_error()
        || error.code().is_some_and(|code| DOWN_CODES.contains(&code))
}

/// What this process knew last of the store.
#[derive(Clone, Debug, Default)]
struct Known {
    lineage: String,
    revision: Revision,
    txn: String,
}

/// A connection, and how the store stood when it was made.
pub(super) struct Resumed {
    connection: MultiplexedConnection,
    pub(super) revision: Revision,
    pub(super) lineage: String,
}

/// Where the server is.
enum Place {
    /// There.
    One(Client),
    /// Where the sentinels say, each time anew.
    Watched(MasterFinder),
}

/// The way to one server.
pub(super) struct Way {
    place: Place,
    pub(super) server: String,
    pub(super) keys: Keys,
    /// The shared connection and its number. Held while it is made, so that one makes it for all.
    slot: tokio::sync::Mutex<(u64, Option<MultiplexedConnection>)>,
    known: Mutex<Known>,
    seed: u64,
    /// No further tries.
    pub(super) closing: CancellationToken,
}

impl Way {
    /// Reaches the server, and looks whether it is fit.
    pub(super) async fn open(url: &str, namespace: &str) -> Result<Self, StoreError> {
        let config = RedisConfig::from_url(url).map_err(|error| {
            let error = vbm_core::Error::from(error);
            StoreError::Unsuitable {
                server: "the address of Redis".into(),
                why: error.why().to_owned(),
                fix: "give an address such as redis://user:password@host:6379/0, redis+unix:///run/redis.sock or \
                      redis+sentinel://s1,s2,s3/mymaster"
                    .into(),
            }
        })?;
        let server = config.to_string();
        let unreachable = |why: String| StoreError::Unreachable {
            server: server.clone(),
            why,
        };
        if url
            .split_once("://")
            .is_some_and(|(scheme, _)| scheme.ends_with("+cluster"))
        {
            return Err(StoreError::Unsuitable {
                server: server.clone(),
                why: "a store is in one place, and a cluster spreads its keys; its bus can be a cluster".into(),
                fix: "keep the records in a file with --store redb (one controller), or give the address of a Redis that is \
                      no part of a cluster, with sentinels if it shall outlive its host: redis+sentinel://s1,s2,s3/mymaster"
                    .into(),
            });
        }
        let finder = MasterFinder::of(&config).await;
        let place = match finder.map_err(|error| unreachable(error.to_string()))? {
            Some(finder) => Place::Watched(finder),
            None => Place::One(client_of(url).map_err(|Down(why)| unreachable(why))?),
        };
        let way = Self {
            place,
            server,
            keys: Keys::new(namespace),
            slot: tokio::sync::Mutex::new((0, None)),
            known: Mutex::default(),
            seed: Uuid::now_v7().as_u64_pair().1,
            closing: CancellationToken::new(),
        };
        way.check().await?;
        Ok(way)
    }

    async fn check(&self) -> Result<(), StoreError> {
        let until = Instant::now() + LOADING_PATIENCE;
        let mut attempt = 0;
        let (info, [appendfsync, min_replicas]) = loop {
            match self.ask_about().await {
                Ok(told) => break told,
                Err(Down(why)) if why.contains("LOADING") && Instant::now() < until => {
                    sleep(backoff(attempt, self.seed)).await;
                    attempt += 1;
                }
                Err(Down(why)) => return Err(self.unreachable(why)),
            }
        };
        let warnings = start::judge(&self.server, &info, appendfsync.as_deref())?;
        for warning in warnings
            .into_iter()
            .chain(self.isolation(min_replicas.as_deref()))
        {
            tracing::warn!("{warning}");
        }
        Ok(())
    }

    async fn ask_about(&self) -> Result<(String, [Option<String>; 2]), Down> {
        let mut connection = self.connect().await?;
        let info = run(&mut connection, &redis::cmd("INFO")).await?.map_err(Down)?;
        let mut settings = [None, None];
        for (setting, name) in settings.iter_mut().zip(["appendfsync", "min-replicas-to-write"]) {
            let mut ask = redis::cmd("CONFIG");
            ask.arg("GET").arg(name);
            // A server that does not let this user ask is not worse for it.
            let told = run(&mut connection, &ask).await?.ok();
            *setting = told.and_then(|told| wire::texts(told).into_iter().nth(1));
        }
        Ok((wire::text(info).unwrap_or_default(), settings))
    }

    /// Behind sentinels: what a master that was cut off goes on acknowledging is lost when another one is made.
    fn isolation(&self, min_replicas: Option<&str>) -> Option<String> {
        let alone = matches!(self.place, Place::Watched(_)) && min_replicas == Some("0");
        alone.then(|| {
            format!(
                "{} may go on acknowledging writes while it is cut off from its replicas, and they are LOST when another \
                 master is made. Set `min-replicas-to-write 1` in the files of all servers",
                self.server
            )
        })
    }

    fn unreachable(&self, why: String) -> StoreError {
        let server = self.server.clone();
        let login = [
            "NOAUTH",
            "WRONGPASS",
            "NOPERM",
            "AuthenticationFailed",
            "authentication",
        ];
        if login.iter().any(|word| why.contains(word)) {
            return StoreError::Unsuitable {
                server,
                why: format!("it does not let this user in: {why}"),
                fix: "give the right user and password: redis://user:password@host:port".into(),
            };
        }
        StoreError::Unreachable { server, why }
    }

    async fn connect(&self) -> Result<MultiplexedConnection, Down> {
        let config = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(CONNECT_TIMEOUT))
            .set_response_timeout(None);
        let client = match &self.place {
            Place::One(client) => client.clone(),
            Place::Watched(finder) => match finder.find().await {
                Ok(url) => client_of(&url)?,
                Err(error) => return Err(Down(vbm_core::Error::from(error).why().to_owned())),
            },
        };
        let opening = client.get_multiplexed_async_connection_with_config(&config);
        match timeout(CONNECT_TIMEOUT, opening).await {
            Ok(Ok(connection)) => Ok(connection),
            Ok(Err(error)) => Err(Down(error.to_string())),
            Err(_late) => Err(Down(format!(
                "no connection within {} s",
                CONNECT_TIMEOUT.as_secs()
            ))),
        }
    }

    /// A new connection to what is known to be the store of before, or to be told from it.
    pub(super) async fn resume(&self) -> Result<Resumed, Down> {
        let mut connection = self.connect().await?;
        let known = self.known().clone();
        let mut script = Call::new(scripts::RESUME);
        script.key(self.keys.meta()).key(self.keys.log());
        script
            .arg(&known.lineage)
            .arg(known.revision.0)
            .arg(&known.txn)
            .arg(Uuid::now_v7().to_string())
            .arg(LINEAGE_JUMP);
        let answer = script.run(&mut connection).await?.map_err(Down)?;
        let [revision, lineage, lost] = <[String; 3]>::try_from(wire::texts(answer))
            .map_err(|_| Down("the first answer of the store cannot be read".into()))?;
        let revision = Revision(revision.parse().unwrap_or_default());
        if !known.lineage.is_empty() && known.lineage != lineage {
            tracing::warn!(
                server = self.server,
                known = known.revision.0,
                revision = revision.0,
                by_me = !lost.is_empty(),
                "the store came back without writes that it had acknowledged; everything is read anew"
            );
        }
        let mut now = self.known();
        if now.lineage != lineage {
            *now = Known {
                lineage: lineage.clone(),
                ..Known::default()
            };
        }
        drop(now);
        Ok(Resumed {
            connection,
            revision,
            lineage,
        })
    }

    fn known(&self) -> std::sync::MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Remembers that this transaction made this revision. What belongs to another lineage than the one that this
    /// process knows says nothing.
    pub(super) fn saw(&self, lineage: &str, revision: Revision, txn: &str) {
        let mut known = self.known();
        if lineage == known.lineage && revision > known.revision {
            known.revision = revision;
            txn.clone_into(&mut known.txn);
        }
    }

    async fn shared(&self) -> Result<(u64, MultiplexedConnection), Down> {
        let mut slot = self.slot.lock().await;
        if let (number, Some(connection)) = &*slot {
            return Ok((*number, connection.clone()));
        }
        let connection = self.resume().await?.connection;
        *slot = (slot.0 + 1, Some(connection.clone()));
        Ok((slot.0, connection))
    }

    async fn discard(&self, number: u64) {
        let mut slot = self.slot.lock().await;
        if slot.0 == number {
            slot.1 = None;
        }
    }

    /// Asks until it is answered, or until the patience is used up.
    ///
    /// Cancel safety: a dropped request is asked at most once more than it was, never by halves.
    pub(super) async fn ask(&self, call: &Call) -> Result<Value, StoreError> {
        let until = Instant::now() + REQUEST_PATIENCE;
        let mut attempt = 0;
        loop {
            let Down(why) = match tokio::time::timeout_at(until, self.once(call)).await {
                Ok(Ok(answer)) => return answer.map_err(|why| self.failed(&why)),
                Ok(Err(down)) => down,
                Err(_late) => Down("it did not answer in time".into()),
            };
            let wait = backoff(attempt, self.seed);
            attempt += 1;
            if Instant::now() + wait >= until {
                let seconds = REQUEST_PATIENCE.as_secs();
                return Err(self.failed(&format!("no answer within {seconds} s: {why}")));
            }
            tokio::select! {
                () = sleep(wait) => {}
                // What was asked may have been done: that is a failure, not a closed store.
                () = self.closing.cancelled() => return Err(self.failed(&why)),
            }
        }
    }

    async fn once(&self, call: &Call) -> Result<Result<Value, String>, Down> {
        let (number, mut connection) = self.shared().await?;
        let answer = call.run(&mut connection).await;
        if answer.is_err() {
            self.discard(number).await;
        }
        answer
    }

    fn failed(&self, why: &str) -> StoreError {
        StoreError::Failed(format!("{}: {why}", self.server))
    }

    /// The wait before try number `attempt`.
    pub(super) fn backoff(&self, attempt: u32) -> Duration {
        backoff(attempt, self.seed)
    }
}

/// How long to wait before try number `attempt` (from 0): doubling, with jitter from `seed`, so that many processes do
/// not come back at once.
fn backoff(attempt: u32, seed: u64) -> Duration {
    let full = BACKOFF_MIN.saturating_mul(1 << attempt.min(10)).min(BACKOFF_MAX);
    let mix = seed
        .wrapping_add(u64::from(attempt))
        .wrapping_mul(0x9e37_79b9_7f4a_7c15)
        >> 48;
    // Between a half and the whole.
    full.mul_f64(0.5 + f64::from(u32::try_from(mix).unwrap_or(0)) / 131_072.0)
}

impl Resumed {
    /// Runs a command that the server may hold for up to `block`.
    pub(super) async fn read(&mut self, command: &Cmd, block: Duration) -> Result<Value, Down> {
        match timeout(
            block + BLOCK_GRACE,
            command.query_async::<Value>(&mut self.connection),
        )
        .await
        {
            Ok(Ok(value)) => Ok(value),
            Ok(Err(error)) => Err(Down(error.to_string())),
            Err(_late) => Err(Down("a blocking read was not answered in time".into())),
        }
    }
}

/// A script with its keys and arguments.
pub(super) struct Call {
    code: &'static str,
    hash: String,
    keys: Vec<String>,
    arguments: Vec<Vec<u8>>,
}

impl Call {
    pub(super) fn new(code: &'static str) -> Self {
        Self {
            code,
            hash: Script::new(code).get_hash().to_owned(),
            keys: Vec::new(),
            arguments: Vec::new(),
        }
    }

    pub(super) fn key(&mut self, key: String) -> &mut Self {
        self.keys.push(key);
        self
    }

    pub(super) fn arg(&mut self, argument: impl redis::ToRedisArgs) -> &mut Self {
        self.arguments.extend(argument.to_redis_args());
        self
    }

    fn command(&self, verb: &str, script: &str) -> Cmd {
        let mut command = redis::cmd(verb);
        command.arg(script).arg(self.keys.len());
        for key in &self.keys {
            command.arg(key);
        }
        for argument in &self.arguments {
            command.arg(argument.as_slice());
        }
        command
    }

    /// By its hash; with its text when the server does not know it (yet, or any more).
    async fn run(&self, connection: &mut MultiplexedConnection) -> Result<Result<Value, String>, Down> {
        match run(connection, &self.command("EVALSHA", &self.hash)).await? {
            Err(why) if why == NO_SCRIPT => run(connection, &self.command("EVAL", self.code)).await,
            answer => Ok(answer),
        }
    }
}

async fn run(connection: &mut MultiplexedConnection, command: &Cmd) -> Result<Result<Value, String>, Down> {
    match timeout(COMMAND_TIMEOUT, command.query_async::<Value>(connection)).await {
        Ok(Ok(value)) => Ok(Ok(value)),
        Ok(Err(error)) if is_down(&error) => Err(Down(error.to_string())),
        Ok(Err(error)) if error.code() == Some(NO_SCRIPT) => Ok(Err(NO_SCRIPT.to_owned())),
        Ok(Err(error)) => Ok(Err(error.to_string())),
        Err(_late) => Err(Down(format!("no answer within {} s", COMMAND_TIMEOUT.as_secs()))),
    }
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
}
