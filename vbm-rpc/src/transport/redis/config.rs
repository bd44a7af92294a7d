//! Where Redis is, and how its keys begin.

use crate::{BusError, auth::Security};
use redis::{ConnectionAddr, ConnectionInfo, IntoConnectionInfo, ProtocolVersion, io::tcp::TcpSettings};
use std::fmt;
use vbm_core::Name;

/// The default beginning of every key.
const DEFAULT_NAMESPACE: &str = "vbm";

/// Where Redis is, and how the keys of this bus begin. Its `Debug` and `Display` show no password.
#[derive(Clone)]
pub struct RedisConfig {
    pub(super) info: ConnectionInfo,
    pub(super) namespace: String,
    /// Entries kept for one destination before senders are overloaded.
    pub(super) depth_limit: usize,
    pub(super) security: Security,
}

impl RedisConfig {
    /// From an address such as `redis://user:password@host:6379/0` or `redis+unix:///run/redis.sock`.
    ///
    /// # Errors
    /// [`BusError::InvalidConfig`].
    pub fn from_url(url: &str) -> Result<Self, BusError> {
        let refuse = |why: String| BusError::InvalidConfig {
            given: without_password(url),
            why,
        };
        let info = url.into_connection_info().map_err(|e| {
            refuse(match e.detail() {
                Some(detail) => format!("{}: {detail}", e.category()),
                None => e.to_string(),
            })
        })?;
        let settings = info.redis_settings().clone().set_protocol(ProtocolVersion::RESP2);
        let info = info
            .set_redis_settings(settings)
            .set_tcp_settings(TcpSettings::default().set_nodelay(true));
        Ok(Self {
            info,
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
}

impl fmt::Display for RedisConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.info.addr() {
            ConnectionAddr::Unix(path) => write!(f, "Redis at {}", path.display()),
            address => write!(f, "Redis at {address}"),
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
    fn addresses_of_both_kinds_are_read() {
        let tcp = RedisConfig::from_url("redis://localhost:7000/2").unwrap();
        assert_eq!(tcp.to_string(), "Redis at localhost:7000");
        let unix = RedisConfig::from_url("redis+unix:///tmp/x.sock").unwrap();
        assert_eq!(unix.to_string(), "Redis at /tmp/x.sock");
    }

    #[test]
    fn a_bad_address_is_refused_without_showing_its_password() {
        for bad in [
            "",
            "localhost",
            "http://h",
            "redis://h:99999",
            "redis://u:secret@h/xx",
            "rediss://u:secret@h",
        ] {
            let error = RedisConfig::from_url(bad).unwrap_err();
            assert!(!error.to_string().contains("secret"), "{error}");
        }
        assert!(!without_password("unix:///s?pass=secret&db=1").contains("secret"));
        assert!(!format!("{:?}", RedisConfig::from_url("redis://u:secret@h").unwrap()).contains("secret"));
    }
}
