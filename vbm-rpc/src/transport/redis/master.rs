//! Where the master is now, for who keeps something of its own on the Redis of the bus.

use super::{
    config::{Host, RedisConfig, Topology},
    connect::{Connector, Down},
    sentinel, tls,
};
use crate::BusError;

/// Finds the master that the sentinels of an address name, each time it is asked. Cheap to clone.
#[derive(Clone, Debug)]
pub struct MasterFinder {
    config: RedisConfig,
    connector: Connector,
    sentinels: Vec<Host>,
    master: String,
}

impl MasterFinder {
    /// For an address such as `redis+sentinel://s1,s2,s3/mymaster`; `None` when it names no sentinels.
    ///
    /// # Errors
    /// [`BusError::InvalidConfig`] when the files for TLS cannot be read.
    ///
    /// # Cancel safety
    /// Safe.
    pub async fn of(config: &RedisConfig) -> Result<Option<Self>, BusError> {
        let Topology::Sentinel { sentinels, master } = &config.topology else {
            return Ok(None);
        };
        Ok(Some(Self {
            connector: Connector::new(config, tls::read(config).await?),
            sentinels: sentinels.clone(),
            master: master.clone(),
            config: config.clone(),
        }))
    }

    /// The address of the master now, such as `redis://user:password@host:6379/0`: by the majority's newest word. The
    /// password is in it.
    ///
    /// # Errors
    /// [`BusError::Unreachable`] when no sentinel names one.
    ///
    /// # Cancel safety
    /// Safe.
    pub async fn find(&self) -> Result<String, BusError> {
        let asked = sentinel::ask(self.connector.shared(), &self.sentinels, &self.master).await;
        let set = asked.map_err(|Down(why)| BusError::Unreachable {
            server: self.config.to_string(),
            why,
        })?;
        Ok(url(&self.config, &set.master))
    }
}

fn url(config: &RedisConfig, host: &Host) -> String {
    let scheme = if config.secure { "rediss" } else { "redis" };
    let user = config.login.username().map(encoded).unwrap_or_default();
    let login = match config.login.password() {
        Some(password) => format!("{user}:{}@", encoded(password)),
        None if user.is_empty() => String::new(),
        None => format!("{user}@"),
    };
    format!("{scheme}://{login}{host}/{}", config.login.db())
}

/// Percent-encoded but for what is allowed everywhere in an address (RFC 3986 section 2.3).
fn encoded(text: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~".contains(&byte);
    let mut out = String::new();
    for byte in text.bytes() {
        match plain(byte) {
            true => out.push(char::from(byte)),
            false => out.push_str(&format!("%{byte:02X}")),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_login_goes_on_to_the_master_whatever_is_in_it() {
        let host = Host {
            name: "10.0.0.7".into(),
            port: 6380,
        };
        let of = |url: &str| super::url(&RedisConfig::from_url(url).unwrap(), &host);
        assert_eq!(of("redis+sentinel://s1,s2/m"), "redis://10.0.0.7:6380/0");
        assert_eq!(of("rediss+sentinel://s1/m?db=3"), "rediss://10.0.0.7:6380/3");
        let odd = of("redis+sentinel://bus:a%2Fb%40c%3A%25@s1/m");
        assert_eq!(odd, "redis://bus:a%2Fb%40c%3A%25@10.0.0.7:6380/0");
        let read = RedisConfig::from_url(&odd).unwrap();
        assert_eq!(read.login.password(), Some("a/b@c:%"));
    }
}
