//! Where Redis is, how one gets in, and how its keys begin.
//!
//! | address | means |
//! |---|---|
//! | `redis://[user:password@]host[:port][/db]` | one server |
//! | `redis+unix:///path/to/socket` | one server of this machine |
//! | `redis+sentinel://[user:password@]host[:port],host[:port].../master-name[?db=N]` | the master that these sentinels name |
//! | `redis+cluster://[user:password@]host[:port],host[:port]...` | the cluster that these belong to |
//! | `rediss://`, `rediss+sentinel://`, `rediss+cluster://` | the same over TLS |

use super::tls::TlsFiles;
use crate::{BusError, auth::Security};
use redis::{
    ConnectionAddr, ConnectionInfo, IntoConnectionInfo, ProtocolVersion, RedisConnectionInfo,
    io::tcp::TcpSettings,
};
use std::{fmt, path::PathBuf};
use vbm_core::Name;

/// The default beginning of every key.
const DEFAULT_NAMESPACE: &str = "vbm";
/// The port of a Redis that names none.
const REDIS_PORT: u16 = 6379;
/// The port of a sentinel that names none.
const SENTINEL_PORT: u16 = 26379;
/// The most sentinels or cluster nodes of one address.
const HOSTS_MAX: usize = 32;

/// A host and a port.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct Host {
    pub(super) name: String,
    pub(super) port: u16,
}

impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.name.contains(':') {
            true => write!(f, "[{}]:{}", self.name, self.port),
            false => write!(f, "{}:{}", self.name, self.port),
        }
    }
}

impl Host {
    /// `host`, `host:port`, `[v6]:port`, or what `MOVED` says: `v6:port`.
    pub(super) fn parse(text: &str, default_port: u16) -> Option<Self> {
        let (name, port) = match text.rsplit_once(':') {
            Some((name, port)) if !text.ends_with(']') => (name, port.parse().ok()?),
            _ => (text, default_port),
        };
        let name = name
            .strip_prefix('[')
            .map_or(name, |name| name.trim_end_matches(']'));
        let good = !name.is_empty() && !name.contains(['/', '@', ' ', '?', '#']);
        good.then(|| Self {
            name: name.to_owned(),
            port,
        })
    }
}

/// What stands behind the address.
#[derive(Clone, Debug)]
pub(super) enum Topology {
    One(ConnectionAddr),
    Sentinel { sentinels: Vec<Host>, master: String },
    Cluster { seeds: Vec<Host> },
}

/// Where Redis is, and how the keys of this bus begin. Its `Debug` and `Display` show no password.
///
/// ```
/// use vbm_rpc::redis::RedisConfig;
/// # fn main() -> Result<(), vbm_rpc::BusError> {
/// let one = RedisConfig::from_url("redis://:secret@db1:6379/0")?;
/// let watched = RedisConfig::from_url("redis+sentinel://s1:26379,s2:26379,s3:26379/mymaster")?;
/// let cluster = RedisConfig::from_url("rediss+cluster://bus:secret@a:7000,b:7000,c:7000")?
///     .ca_file("/etc/vbm/redis-ca.pem")
///     .client_certificate("/etc/vbm/node.pem", "/etc/vbm/node.key");
/// # Ok(()) }
/// ```
#[derive(Clone)]
pub struct RedisConfig {
    pub(super) topology: Topology,
    /// User, password, database.
    pub(super) login: RedisConnectionInfo,
    /// User and password of the sentinels, which have their own.
    pub(super) sentinel_login: RedisConnectionInfo,
    pub(super) secure: bool,
    pub(super) tls: TlsFiles,
    pub(super) namespace: String,
    /// Entries kept for one destination before senders are overloaded.
    pub(super) depth_limit: usize,
    pub(super) security: Security,
}

impl RedisConfig {
    /// From an address such as `redis://user:password@host:6379/0`, `redis+unix:///run/redis.sock`,
    /// `redis+sentinel://s1,s2,s3/master-name` or `redis+cluster://a:7000,b:7000`; with `rediss` over TLS.
    ///
    /// # Errors
    /// [`BusError::InvalidConfig`].
    pub fn from_url(url: &str) -> Result<Self, BusError> {
        let refuse = |why: String| BusError::InvalidConfig {
            given: without_password(url),
            why,
        };
        let scheme = url.split_once("://").map_or("", |(scheme, _)| scheme);
        let (topology, login, secure) = match scheme.split_once('+') {
            Some((redis @ ("redis" | "rediss"), kind @ ("sentinel" | "cluster"))) => {
                let (topology, login) = several(url, kind).map_err(refuse)?;
                (topology, login, redis == "rediss")
            }
            _ => {
                let info = url.into_connection_info().map_err(|e| {
                    refuse(match e.detail() {
                        Some(detail) => format!("{}: {detail}", e.category()),
                        None => e.to_string(),
                    })
                })?;
                let secure = matches!(info.addr(), ConnectionAddr::TcpTls { .. });
                (
                    Topology::One(info.addr().clone()),
                    info.redis_settings().clone(),
                    secure,
                )
            }
        };
        Ok(Self {
            topology,
            login: login.set_protocol(ProtocolVersion::RESP2),
            sentinel_login: RedisConnectionInfo::default().set_protocol(ProtocolVersion::RESP2),
            secure,
            tls: TlsFiles::default(),
            namespace: DEFAULT_NAMESPACE.to_owned(),
            depth_limit: crate::limits::DEPTH_SOFT_MAX_ENTRIES,
            security: Security::Off,
        })
    }

    /// Begins every key with `namespace`, so that several systems can share one Redis. The default is `vbm`.
    #[must_use]
    pub fn namespace(mut self, namespace: &Name) -> Self {
        self.namespace = namespace.as_str().to_owned();
        self
    }

    /// With TLS: trusts the servers whose certificate is signed by one in this file (PEM), and no others. Without it,
    /// those that the machine trusts. Read when the transport connects.
    #[must_use]
    pub fn ca_file(mut self, path: impl Into<PathBuf>) -> Self {
        self.tls.ca = Some(path.into());
        self
    }

    /// With TLS: shows the servers this certificate (PEM, a chain) with this key (PEM). Read when the transport
    /// connects.
    #[must_use]
    pub fn client_certificate(mut self, certificate: impl Into<PathBuf>, key: impl Into<PathBuf>) -> Self {
        self.tls.client = Some((certificate.into(), key.into()));
        self
    }

    /// The password of the sentinels, and their user if they have one. They do not share those of Redis.
    #[must_use]
    pub fn sentinel_login(mut self, user: Option<&str>, password: &str) -> Self {
        self.sentinel_login = self.sentinel_login.set_password(password);
        if let Some(user) = user {
            self.sentinel_login = self.sentinel_login.set_username(user);
        }
        self
    }

    /// Senders of this process are [`Overloaded`](crate::Fate::Overloaded) while so many entries (of up to 256 requests)
    /// are kept for a destination. The default is
    /// [`DEPTH_SOFT_MAX_ENTRIES`](crate::limits::DEPTH_SOFT_MAX_ENTRIES).
    #[must_use]
    pub fn depth_limit(mut self, entries: usize) -> Self {
        self.depth_limit = entries.max(1);
        self
    }

    /// Whether entries are sealed and opened. All members of a namespace must do the same. The default is off.
    #[must_use]
    pub fn security(mut self, security: Security) -> Self {
        self.security = security;
        self
    }

    /// A way to one server.
    pub(super) fn with_login(
        addr: ConnectionAddr,
        login: &RedisConnectionInfo,
    ) -> Result<ConnectionInfo, redis::RedisError> {
        Ok(addr
            .into_connection_info()?
            .set_redis_settings(login.clone())
            .set_tcp_settings(TcpSettings::default().set_nodelay(true)))
    }

    /// How one host is addressed: with TLS or without.
    pub(super) fn addr(&self, host: &Host) -> ConnectionAddr {
        match self.secure {
            true => ConnectionAddr::TcpTls {
                host: host.name.clone(),
                port: host.port,
                insecure: false,
                tls_params: None,
            },
            false => ConnectionAddr::Tcp(host.name.clone(), host.port),
        }
    }
}

/// The addresses that name several hosts.
fn several(url: &str, kind: &str) -> Result<(Topology, RedisConnectionInfo), String> {
    let rest = url.split_once("://").map_or("", |(_, rest)| rest);
    let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
    let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
    let (user, hosts) = authority.rsplit_once('@').unwrap_or(("", authority));
    let mut login = RedisConnectionInfo::default();
    let (user, password) = user.split_once(':').unwrap_or((user, ""));
    if !user.is_empty() {
        login = login.set_username(decoded(user)?);
    }
    if !password.is_empty() {
        login = login.set_password(decoded(password)?);
    }
    let sentinel = kind == "sentinel";
    let port = if sentinel { SENTINEL_PORT } else { REDIS_PORT };
    let hosts = hosts
        .split(',')
        .map(|host| Host::parse(host, port).ok_or_else(|| format!("'{host}' is no host:port")))
        .collect::<Result<Vec<_>, _>>()?;
    if hosts.len() > HOSTS_MAX {
        return Err(format!("it names {} hosts; {HOSTS_MAX} are allowed", hosts.len()));
    }
    match (query.split_once('='), query.is_empty()) {
        (_, true) => {}
        (Some(("db", db)), _) if sentinel => {
            login = login.set_db(db.parse().map_err(|_| format!("'{db}' is no database number"))?);
        }
        _ => return Err(format!("'{query}' is not understood")),
    }
    match (sentinel, path) {
        (true, "") => Err("the name of the master is missing behind the sentinels: .../mymaster".into()),
        (true, master) if master.contains('/') => Err(format!("'{master}' is no name of a master")),
        (true, master) => Ok((
            Topology::Sentinel {
                sentinels: hosts,
                master: decoded(master)?,
            },
            login,
        )),
        (false, "") => Ok((Topology::Cluster { seeds: hosts }, login)),
        (false, path) => Err(format!("a cluster has no databases: leave '/{path}' out")),
    }
}

/// Percent-encoding undone.
fn decoded(text: &str) -> Result<String, String> {
    let bad = || "a '%' is not followed by two hexadecimal digits".to_owned();
    let (mut out, mut rest) = (Vec::with_capacity(text.len()), text.as_bytes());
    while let Some((&byte, after)) = rest.split_first() {
        rest = after;
        if byte != b'%' {
            out.push(byte);
            continue;
        }
        let (digits, after) = rest.split_at_checked(2).ok_or_else(bad)?;
        let digits = std::str::from_utf8(digits).map_err(|_| bad())?;
        out.push(u8::from_str_radix(digits, 16).map_err(|_| bad())?);
        rest = after;
    }
    String::from_utf8(out).map_err(|_| bad())
}

impl fmt::Display for RedisConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let list = |hosts: &[Host]| hosts.iter().map(Host::to_string).collect::<Vec<_>>().join(",");
        match &self.topology {
            Topology::One(ConnectionAddr::Unix(path)) => write!(f, "Redis at {}", path.display()),
            Topology::One(address) => write!(f, "Redis at {address}"),
            Topology::Sentinel { sentinels, master } => {
                write!(f, "Redis '{master}' of the sentinels {}", list(sentinels))
            }
            Topology::Cluster { seeds } => write!(f, "Redis Cluster at {}", list(seeds)),
        }
    }
}

impl fmt::Debug for RedisConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "RedisConfig({self}, namespace {})", self.namespace)
    }
}

/// The address as given, with what stands between `:` and `@` of the authority, and a `pass` parameter, left out.
fn without_password(url: &str) -> String {
    let url = match url.split_once("pass=") {
        Some((before, rest)) => {
            let after = rest.find('&').map_or("", |at| &rest[at..]);
            format!("{before}pass=***{after}")
        }
        None => url.to_owned(),
    };
    let (scheme, rest) = url.split_once("://").unwrap_or(("", &url));
    let Some((login, host)) = rest.rsplit_once('@') else {
        return url;
    };
    let user = login.split(':').next().unwrap_or_default();
    format!("{scheme}://{user}:***@{host}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_of_every_kind_are_read() {
        for (url, shown) in [
            ("redis://localhost:7000/2", "Redis at localhost:7000"),
            ("redis+unix:///tmp/x.sock", "Redis at /tmp/x.sock"),
            ("rediss://localhost", "Redis at localhost:6379"),
            (
                "redis+sentinel://u:p@a,b:1,[::1]:2/m?db=3",
                "Redis 'm' of the sentinels a:26379,b:1,[::1]:2",
            ),
            ("rediss+cluster://a:1,b", "Redis Cluster at a:1,b:6379"),
        ] {
            assert_eq!(RedisConfig::from_url(url).unwrap().to_string(), shown);
        }
    }

    #[test]
    fn user_password_database_and_tls_are_taken_from_the_address() {
        let config = RedisConfig::from_url("rediss+sentinel://us%40er:p%3Aw@a/m?db=3").unwrap();
        assert_eq!(config.login.username(), Some("us@er"));
        assert_eq!(config.login.password(), Some("p:w"));
        assert_eq!(config.login.db(), 3);
        assert!(config.secure);
        assert!(!RedisConfig::from_url("redis+cluster://a").unwrap().secure);
    }

    #[test]
    fn a_bad_address_is_refused_without_showing_its_password() {
        for bad in [
            "",
            "localhost",
            "http://h",
            "redis://h:99999",
            "redis://u:secret@h/xx",
            "redis+sentinel://u:secret@h",
            "redis+sentinel://u:secret@h/",
            "redis+sentinel://u:secret@h/m/n",
            "redis+sentinel://u:secret@h/m?x=1",
            "redis+sentinel://u:secret@h:x/m",
            "redis+sentinel://u:secret%@h/m",
            "redis+sentinel:///m",
            "redis+cluster://u:secret@h,,i",
            "redis+cluster://u:secret@h/1",
            "redis+other://h",
        ] {
            let error = RedisConfig::from_url(bad).unwrap_err();
            assert!(!error.to_string().contains("secret"), "{error}");
        }
        assert!(!without_password("unix:///s?pass=secret&db=1").contains("secret"));
        for url in [
            "redis://u:secret@h",
            "redis+cluster://u:secret@h",
            "redis+sentinel://:secret@h/m",
        ] {
            assert!(!format!("{:?}", RedisConfig::from_url(url).unwrap()).contains("secret"));
        }
    }
}
