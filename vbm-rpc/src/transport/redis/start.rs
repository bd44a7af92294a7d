//! Is this server fit to carry the bus? Asked before anything is written, and of a server that came back.

use super::{
    Core,
    config::{RedisConfig, Topology},
    connect::{Commands, Connector, Down},
    pack, tls,
    unfit::{Unfit, full, hung_up, is_another_program, wants_login},
};
use crate::{BadInput, BusError};
use redis::{ConnectionAddr, cmd};
use std::time::Duration;
use tokio::{
    io::AsyncReadExt,
    net::{TcpStream, UnixStream},
    time::{Instant, sleep, timeout},
};

/// The oldest version that has what the bus uses (`XAUTOCLAIM` semantics, `NOMKSTREAM`, `EXPIRE` options).
const MIN_VERSION: (u32, u32) = (7, 0);
/// How long a server that is loading its data, or a failover, is waited for.
const LOADING_PATIENCE: Duration = Duration::from_secs(10);
/// How often it is asked meanwhile.
const LOADING_POLL: Duration = Duration::from_millis(100);
/// How long a server is listened to before it was asked anything.
const GREETING_TIMEOUT: Duration = Duration::from_millis(300);
/// As much of that is looked at.
const GREETING_MAX_BYTES: usize = 128;
/// With fewer places left for clients than this, somebody will soon be left out.
const CLIENTS_LEFT_MIN: u64 = 64;

/// What INFO and CONFIG tell about a server.
#[derive(Clone, Debug, Default)]
struct Told {
    info: String,
    /// `save`; nothing when this user may not ask.
    save: Option<String>,
}

/// Reaches the server; gives the way to it and what is not as it should be.
pub(super) async fn check(config: &RedisConfig) -> Result<(Connector, Vec<String>), BusError> {
    let (server, connector) = (
        config.to_string(),
        Connector::new(config, tls::read(config).await?),
    );
    match reach(config, &connector, &server).await {
        Ok(warnings) => Ok((connector, warnings)),
        Err(Refused::Unfit(unfit)) => Err(unfit.at_start(&server)),
        Err(Refused::Away(why)) => Err(BusError::Unreachable { server, why }),
    }
}

/// Why there is no way to a server.
enum Refused {
    Unfit(Unfit),
    Away(String),
}

/// Gives what is not as it should be with a server that is fit.
async fn reach(config: &RedisConfig, connector: &Connector, server: &str) -> Result<Vec<String>, Refused> {
    let until = Instant::now() + LOADING_PATIENCE;
    loop {
        match look(connector).await {
            Ok(servers) => {
                let mut warnings = Vec::new();
                for (host, told) in servers {
                    let server = match host.is_empty() {
                        true => server.to_owned(),
                        false => format!("{server} ({host})"),
                    };
                    let judged = judge(&server, &told, connector.topology());
                    let found = judged.map_err(|unfit| Refused::Unfit(unfit.of(&host)));
                    warnings.extend(found?);
                }
                return Ok(warnings);
            }
            Err(Down(why)) if passes_by_itself(&why) && Instant::now() < until => sleep(LOADING_POLL).await,
            Err(Down(why)) => {
                let first = greeting(config).await.unwrap_or_default();
                let why = if first.contains("max number of clients") {
                    first
                } else {
                    why
                };
                return Err(explain(config.secure, &why));
            }
        }
    }
}

/// What a server says before it is asked anything: one that has no place for a client says so and hangs up, which
/// redis-rs sees only as a broken connection.
async fn greeting(config: &RedisConfig) -> Option<String> {
    let mut said = vec![0; GREETING_MAX_BYTES];
    let read = async {
        match &config.topology {
            Topology::One(ConnectionAddr::Tcp(host, port)) => {
                let mut stream = TcpStream::connect((host.as_str(), *port)).await.ok()?;
                stream.read(&mut said).await.ok()
            }
            Topology::One(ConnectionAddr::Unix(path)) => {
                let mut stream = UnixStream::connect(path).await.ok()?;
                stream.read(&mut said).await.ok()
            }
            _ => None,
        }
    };
    let count = timeout(GREETING_TIMEOUT, read).await.ok()??;
    said.truncate(count);
    Some(String::from_utf8_lossy(&said).trim().to_owned())
}

fn passes_by_itself(why: &str) -> bool {
    why.contains("LOADING") || why.contains("BusyLoading") || why.contains("which is no master yet")
}

async fn look(connector: &Connector) -> Result<Vec<(String, Told)>, Down> {
    let mut all = Vec::new();
    for (host, mut commands) in connector.every_master().await? {
        all.push((host, told(&mut commands).await?));
    }
    Ok(all)
}

async fn told(commands: &mut Commands) -> Result<Told, Down> {
    let info = commands.one(cmd("INFO")).await?.map_err(Down)?;
    let mut question = cmd("CONFIG");
    question.arg("GET").arg("save");
    let save = commands.one(question).await?.ok();
    Ok(Told {
        info: pack::text(&info).unwrap_or_default().to_owned(),
        save: save.and_then(|pair| pack::texts(&pair).get(1).map(|&save| save.to_owned())),
    })
}

/// The same once more, of the server of a connection that was just made again.
pub(super) async fn look_again(core: &Core, commands: &mut Commands) -> Result<Result<(), Unfit>, Down> {
    let Ok(info) = commands.one(cmd("INFO")).await? else {
        // This user may not ask any more.
        return Ok(Ok(()));
    };
    let told = Told {
        info: pack::text(&info).unwrap_or_default().to_owned(),
        save: None,
    };
    Ok(judge(&core.server, &told, core.connector.topology()).map(drop))
}

/// What a failure to connect means. `why` is what redis-rs, the system or the server said.
fn explain(secure: bool, why: &str) -> Refused {
    let says = |words: &[&str]| words.iter().any(|word| why.contains(word));
    let unfit = |what: BadInput, is: &str, fix: &'static str| {
        let why = format!("{is}: {why}");
        Refused::Unfit(Unfit { what, why, fix })
    };
    let other = |is: &str, fix| unfit(BadInput::ServerOther, is, fix);
    if wants_login(why) {
        return unfit(
            BadInput::ServerPassword,
            "it does not let this user in",
            "give the right user and password: redis://user:password@host:port",
        );
    }
    if says(&["max number of clients"]) {
        return unfit(
            BadInput::ServerFull,
            "it has no place for another client",
            "raise maxclients in its configuration; a process of the bus needs up to 6 connections",
        );
    }
    if says(&["does not know the master"]) {
        return other(
            "its sentinels watch no master of that name",
            "give the name of `sentinel monitor NAME ...`: redis+sentinel://host:port/NAME",
        );
    }
    if says(&["unknown command 'SENTINEL'", "unknown command `SENTINEL`"]) {
        return other(
            "what answers is Redis, but no sentinel",
            "give the port of the sentinels (26379), or write redis://host:port for a single server",
        );
    }
    if says(&["cluster support disabled"]) {
        return other("it is no cluster", "write redis://host:port for a single server");
    }
    if says(&[
        "certificate",
        "Certificate",
        "BadSignature",
        "UnknownIssuer",
        "NotValidForName",
        "invalid peer",
    ]) {
        return other(
            "the two sides do not trust each other's certificates",
            "give the CA that signed the server's certificate, the name or address that stands in it, and the client \
             certificate that the server asks for",
        );
    }
    if secure
        && says(&[
            "InvalidContentType",
            "corrupt message",
            "unexpected eof",
            "tls handshake",
        ])
    {
        return other(
            "it does not speak TLS on this port",
            "write redis:// or give its TLS port",
        );
    }
    if is_another_program(why) {
        return other(
            "another program than Redis answers there",
            "give the address of a Redis server; its usual port is 6379",
        );
    }
    let hint = match secure {
        false if hung_up(why) => " (it hung up: if it speaks TLS there, write rediss://)",
        true if says(&["timed out", "no connection within"]) => {
            " (no TLS came back: if it does not speak TLS there, write redis://)"
        }
        _ => "",
    };
    Refused::Away(format!("{why}{hint}"))
}

/// Decides by the text of INFO.
fn judge(server: &str, told: &Told, topology: &Topology) -> Result<Vec<String>, Unfit> {
    let field = |name: &str| {
        told.info
            .lines()
            .find_map(|line| line.trim_end().strip_prefix(name)?.strip_prefix(':'))
            .unwrap_or_default()
    };
    let number = |name: &str| field(name).parse::<u64>().unwrap_or(0);
    let refuse = |what, why, fix| Err(Unfit { what, why, fix });
    let version = field("redis_version");
    let mut parts = version.split('.').map(|part| part.parse::<u32>().unwrap_or(0));
    let parsed = (parts.next().unwrap_or(0), parts.next().unwrap_or(0));
    if parsed < MIN_VERSION {
        let shown = if version.is_empty() { "not told" } else { version };
        return refuse(
            BadInput::ServerOther,
            format!(
                "its version is {shown}; the bus needs {}.{} or later",
                MIN_VERSION.0, MIN_VERSION.1
            ),
            "install Redis 7 or Valkey, for example from Debian 12: apt-get install redis-server",
        );
    }
    match (field("redis_mode"), topology) {
        ("sentinel", _) => {
            return refuse(
                BadInput::ServerOther,
                "it is a sentinel and carries no data".into(),
                "write redis+sentinel://host:port,host:port/master-name",
            );
        }
        ("cluster", Topology::One(_) | Topology::Sentinel { .. }) => {
            return refuse(
                BadInput::ServerOther,
                "it is a node of a cluster and has a part of the keys only".into(),
                "write redis+cluster://host:port,host:port with some of its nodes",
            );
        }
        (mode, Topology::Cluster { .. }) if mode != "cluster" => {
            return refuse(
                BadInput::ServerOther,
                "it is no cluster".into(),
                "write redis://host:port for a single server",
            );
        }
        _ => {}
    }
    if field("role") == "slave" {
        return refuse(
            BadInput::ServerReplica,
            "it is a replica and cannot be written to".into(),
            "give the address of its master, or of the sentinels: redis+sentinel://host:port/master-name",
        );
    }
    let (policy, limit, used) = (
        field("maxmemory_policy"),
        number("maxmemory"),
        number("used_memory"),
    );
    if policy != "noeviction" && limit > 0 {
        return refuse(
            BadInput::ServerEvicts,
            format!("it throws queues away when its memory is full (maxmemory-policy {policy})"),
            "set maxmemory-policy to noeviction: redis-cli CONFIG SET maxmemory-policy noeviction",
        );
    }
    if limit > 0 && used >= limit {
        return Err(full(&format!("it uses {used} of {limit} bytes")));
    }
    Ok(warnings(server, told, &field, &number))
}

/// What works, but can lose something or will soon not work.
fn warnings<'a>(
    server: &str,
    told: &Told,
    field: &impl Fn(&str) -> &'a str,
    number: &impl Fn(&str) -> u64,
) -> Vec<String> {
    let mut warnings = Vec::new();
    if field("aof_enabled") == "0" && told.save.as_deref() == Some("") {
        warnings.push(format!(
            "{server} keeps nothing on disk: what is queued when it is restarted is lost, but for calls whose callers \
             still wait; set appendonly to yes"
        ));
    }
    for (name, what) in [
        ("aof_last_write_status", "write its append-only file"),
        ("aof_last_bgrewrite_status", "rewrite its append-only file"),
        ("rdb_last_bgsave_status", "save its data"),
    ] {
        if field(name) == "err" {
            warnings.push(format!(
                "{server} could not {what} the last time ({name}): look at its log and its disk"
            ));
        }
    }
    let (places, taken) = (number("maxclients"), number("connected_clients"));
    if places > 0 && places.saturating_sub(taken) < CLIENTS_LEFT_MIN {
        warnings.push(format!(
            "{server} has places for {places} clients, and {taken} are taken; a process of the bus needs up to 6: raise \
             maxclients"
        ));
    }
    warnings
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "redis_version:7.0.15\r\nredis_mode:standalone\r\nrole:master\r\nmaxmemory:0\r\n\
        used_memory:500\r\nmaxmemory_policy:noeviction\r\naof_enabled:1\r\nmaxclients:10000\r\nconnected_clients:3\r\n";

    fn told(info: &str) -> Told {
        Told {
            info: info.to_owned(),
            save: Some(String::new()),
        }
    }
    fn judged(info: &str) -> Result<Vec<String>, BusError> {
        let one = Topology::One(ConnectionAddr::Tcp("h".into(), 1));
        judge("r", &told(info), &one).map_err(|unfit| unfit.into_error("r"))
    }

    #[test]
    fn a_plain_redis_7_is_fit() {
        assert_eq!(judged(GOOD).unwrap(), [""; 0]);
        assert!(judged(&GOOD.replace("7.0.15", "8.2.1")).is_ok());
    }

    #[test]
    fn what_cannot_carry_the_bus_is_refused_with_a_way_out() {
        let evicting = GOOD.replace("maxmemory:0", "maxmemory:900");
        for (info, from, to, word) in [
            (GOOD, "7.0.15", "6.2.7", "6.2.7"),
            (GOOD, "redis_version", "x", "not told"),
            (GOOD, "standalone", "cluster", "node of a cluster"),
            (GOOD, "standalone", "sentinel", "sentinel"),
            (GOOD, "role:master", "role:slave", "replica"),
            (&evicting, "noeviction", "allkeys-lru", "allkeys-lru"),
            (&evicting, "used_memory:500", "used_memory:901", "full"),
        ] {
            let error = vbm_core::Error::from(judged(&info.replace(from, to)).unwrap_err());
            assert!(error.why().contains(word), "{error}");
            assert!(!error.fix().is_empty());
        }
        let cluster = Topology::Cluster { seeds: Vec::new() };
        assert!(judge("r", &told(GOOD), &cluster).is_err());
        assert!(judge("r", &told(&GOOD.replace("standalone", "cluster")), &cluster).is_ok());
    }

    #[test]
    fn eviction_counts_only_where_it_can_happen() {
        assert!(judged(&GOOD.replace("noeviction", "allkeys-lru")).is_ok());
    }

    #[test]
    fn what_can_lose_something_is_warned_of() {
        for (from, to, word) in [
            ("aof_enabled:1", "aof_enabled:0", "appendonly"),
            (
                "aof_enabled:1",
                "aof_enabled:1\r\nrdb_last_bgsave_status:err",
                "save its data",
            ),
            ("maxclients:10000", "maxclients:20", "maxclients"),
        ] {
            let warnings = judged(&GOOD.replace(from, to)).unwrap();
            assert!(warnings.len() == 1 && warnings[0].contains(word), "{warnings:?}");
        }
        let unknown = Told {
            info: GOOD.replace("aof_enabled:1", "aof_enabled:0"),
            save: None,
        };
        let one = Topology::One(ConnectionAddr::Tcp("h".into(), 1));
        assert!(
            judge("r", &unknown, &one).unwrap().is_empty(),
            "who may not ask is not warned on suspicion"
        );
    }

    #[test]
    fn each_failure_to_connect_is_explained() {
        for (secure, why, word) in [
            (
                false,
                "WRONGPASS: invalid username-password pair",
                "let this user in",
            ),
            (false, "An error: max number of clients reached", "no place"),
            (true, "invalid peer certificate: UnknownIssuer", "trust"),
            (true, "received corrupt message of type InvalidContentType", "TLS"),
            (false, "unexpected end of file", "rediss://"),
            (
                false,
                "h:1: it does not know the master 'm'",
                "no master of that name",
            ),
        ] {
            let text = match explain(secure, why) {
                Refused::Unfit(unfit) => unfit.why,
                Refused::Away(why) => why,
            };
            assert!(text.contains(word), "{text}");
        }
    }
}
