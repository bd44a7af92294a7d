//! Is this server fit to carry the bus? Asked once, before anything is written.

use super::{
    config::RedisConfig,
    connect::{Connector, Down},
    pack,
};
use crate::BusError;
use std::time::Duration;
use tokio::time::{Instant, sleep};

/// The oldest version that has what the bus uses (`XAUTOCLAIM` semantics, `NOMKSTREAM`, `EXPIRE` options).
const MIN_VERSION: (u32, u32) = (7, 0);
/// How long a server that is loading its data is waited for.
const LOADING_PATIENCE: Duration = Duration::from_secs(10);
/// How often it is asked meanwhile.
const LOADING_POLL: Duration = Duration::from_millis(100);

/// Reaches the server; gives the way to it and what is not as it should be.
pub(super) async fn check(config: &RedisConfig) -> Result<(Connector, Vec<String>), BusError> {
    let server = config.to_string();
    let connector = Connector::new(config).map_err(|down| unreachable(&server, down))?;
    let until = Instant::now() + LOADING_PATIENCE;
    loop {
        match info(&connector).await {
            Ok(info) => return judge(&server, &info).map(|warnings| (connector, warnings)),
            Err(Down(why)) if is_loading(&why) && Instant::now() < until => sleep(LOADING_POLL).await,
            Err(down) => return Err(unreachable(&server, down)),
        }
    }
}

fn is_loading(why: &str) -> bool {
    why.contains("LOADING") || why.contains("BusyLoading")
}

async fn info(connector: &Connector) -> Result<String, Down> {
    let mut commands = connector.commands().await?;
    match commands.one(redis::cmd("INFO")).await? {
        Ok(value) => Ok(pack::text(&value).unwrap_or_default().to_owned()),
        Err(why) => Err(Down(why)),
    }
}

fn unreachable(server: &str, Down(why): Down) -> BusError {
    let server = server.to_owned();
    let login = [
        "NOAUTH",
        "WRONGPASS",
        "NOPERM",
        "AuthenticationFailed",
        "authentication",
    ];
    if login.iter().any(|word| why.contains(word)) {
        return BusError::Unsuitable {
            server,
            why: format!("it does not let this user in: {why}"),
            fix: "give the right user and password: redis://user:password@host:port".into(),
        };
    }
    BusError::Unreachable { server, why }
}

/// Decides by the text of INFO.
fn judge(server: &str, info: &str) -> Result<Vec<String>, BusError> {
    let field = |name: &str| {
        info.lines()
            .find_map(|line| line.trim_end().strip_prefix(name)?.strip_prefix(':'))
            .unwrap_or_default()
    };
    let refuse = |why: String, fix: &str| {
        Err(BusError::Unsuitable {
            server: server.to_owned(),
            why,
            fix: fix.to_owned(),
        })
    };
    let version = field("redis_version");
    let mut parts = version.split('.').map(|part| part.parse::<u32>().unwrap_or(0));
    let number = (parts.next().unwrap_or(0), parts.next().unwrap_or(0));
    if number < MIN_VERSION {
        let shown = if version.is_empty() { "not told" } else { version };
        return refuse(
            format!(
                "its version is {shown}; the bus needs {}.{} or later",
                MIN_VERSION.0, MIN_VERSION.1
            ),
            "install Redis 7 or Valkey, for example from Debian 12: apt-get install redis-server",
        );
    }
    if field("redis_mode") == "cluster" {
        return refuse(
            "it runs in cluster mode, which the bus does not speak yet".into(),
            "give the address of a Redis that is no part of a cluster",
        );
    }
    if field("role") == "slave" {
        return refuse(
            "it is a replica and cannot be written to".into(),
            "give the address of its master",
        );
    }
    let mut warnings = Vec::new();
    let (policy, limit) = (field("maxmemory_policy"), field("maxmemory"));
    if policy != "noeviction" && !limit.is_empty() && limit != "0" {
        warnings.push(format!(
            "{server} may evict queues when its memory is full (maxmemory-policy {policy}): requests can be lost; \
             set maxmemory-policy to noeviction"
        ));
    }
    Ok(warnings)
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "redis_version:7.0.15\r\nredis_mode:standalone\r\nrole:master\r\nmaxmemory:0\r\nmaxmemory_policy:noeviction\r\n";

    #[test]
    fn a_plain_redis_7_is_fit() {
        assert_eq!(judge("r", GOOD).unwrap(), [""; 0]);
        assert!(judge("r", &GOOD.replace("7.0.15", "8.2.1")).is_ok());
    }

    #[test]
    fn what_cannot_carry_the_bus_is_refused_with_a_way_out() {
        for (from, to, word) in [
            ("7.0.15", "6.2.7", "6.2.7"),
            ("redis_version", "x", "not told"),
            ("standalone", "cluster", "cluster"),
            ("master", "slave", "replica"),
        ] {
            let error = vbm_core::Error::from(judge("r", &GOOD.replace(from, to)).unwrap_err());
            assert!(error.why().contains(word), "{error}");
            assert!(!error.fix().is_empty());
        }
    }

    #[test]
    fn eviction_is_warned_of_only_where_it_can_happen() {
        let evicting = GOOD.replace("noeviction", "allkeys-lru");
        assert!(judge("r", &evicting).unwrap().is_empty());
        assert_eq!(
            judge("r", &evicting.replace("maxmemory:0", "maxmemory:100"))
                .unwrap()
                .len(),
            1
        );
    }
}
