//! Is this server fit to hold the store? Asked once, before anything is written.

use crate::store::StoreError;

/// The oldest version that has what the store uses: flags of scripts, `ZRANGE ... BYLEX`.
const VERSION_MIN: (u32, u32) = (7, 0);

/// Decides by the text of `INFO`, and by `appendfsync` where the server tells it: what is not as it should be, in words.
pub(super) fn judge(server: &str, info: &str, appendfsync: Option<&str>) -> Result<Vec<String>, StoreError> {
    let field = |name: &str| {
        info.lines()
            .find_map(|line| line.trim_end().strip_prefix(name)?.strip_prefix(':'))
            .unwrap_or_default()
    };
    let refuse = |why: String, fix: &str| {
        Err(StoreError::Unsuitable {
            server: server.to_owned(),
            why,
            fix: fix.to_owned(),
        })
    };
    let version = field("redis_version");
    let mut parts = version.split('.').map(|part| part.parse::<u32>().unwrap_or(0));
    if (parts.next().unwrap_or(0), parts.next().unwrap_or(0)) < VERSION_MIN {
        let shown = if version.is_empty() { "not told" } else { version };
        return refuse(
            format!(
                "its version is {shown}; the store needs {}.{} or later",
                VERSION_MIN.0, VERSION_MIN.1
            ),
            "install Redis 7 or Valkey, for example from Debian 12: apt-get install redis-server",
        );
    }
    if field("redis_mode") == "cluster" {
        return refuse(
            "it runs in cluster mode, which the store does not speak yet".into(),
            "give the address of a Redis that is no part of a cluster",
        );
    }
    if field("role") == "slave" {
        return refuse(
            "it is a replica and cannot be written to".into(),
            "give the address of its master",
        );
    }
    let (policy, limit) = (field("maxmemory_policy"), field("maxmemory"));
    if policy != "noeviction" && !limit.is_empty() && limit != "0" {
        return refuse(
            format!("it throws records away when its memory is full (maxmemory-policy {policy})"),
            "set maxmemory-policy to noeviction: redis-cli CONFIG SET maxmemory-policy noeviction, and in its file",
        );
    }
    Ok(durability(server, field("aof_enabled") == "1", appendfsync))
}

fn durability(server: &str, aof: bool, appendfsync: Option<&str>) -> Vec<String> {
    if !aof {
        return vec![format!(
            "{server} keeps no append-only file: WHAT WAS ACKNOWLEDGED IS LOST when it ends. Set `appendonly yes` in its file"
        )];
    }
    match appendfsync {
        Some("always") | None => Vec::new(),
        Some(other) => vec![format!(
            "{server} writes its append-only file with appendfsync {other}: what was acknowledged in the last second may be lost \
             when its host fails (not when Redis alone is killed). Set `appendfsync always` to rule that out"
        )],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "redis_version:7.0.15\r\nredis_mode:standalone\r\nrole:master\r\nmaxmemory:0\r\n\
                        maxmemory_policy:noeviction\r\naof_enabled:1\r\n";

    #[test]
    fn a_redis_7_with_an_append_only_file_is_fit() {
        assert_eq!(judge("r", GOOD, Some("always")).unwrap(), [""; 0]);
        assert_eq!(
            judge("r", &GOOD.replace("7.0.15", "8.2.1"), None).unwrap(),
            [""; 0]
        );
        let unlimited = GOOD.replace("noeviction", "allkeys-lru");
        assert_eq!(
            judge("r", &unlimited, None).unwrap(),
            [""; 0],
            "without a limit nothing is thrown away"
        );
    }

    #[test]
    fn what_cannot_hold_the_store_is_refused_with_a_way_out() {
        for (from, to, word) in [
            ("7.0.15", "6.2.7", "6.2.7"),
            ("redis_version", "x", "not told"),
            ("standalone", "cluster", "cluster"),
            ("master", "slave", "replica"),
            (
                "maxmemory:0\r\nmaxmemory_policy:noeviction",
                "maxmemory:9\r\nmaxmemory_policy:allkeys-lru",
                "allkeys-lru",
            ),
        ] {
            let error = vbm_core::Error::from(judge("r", &GOOD.replace(from, to), None).unwrap_err());
            assert!(error.why().contains(word), "{error}");
            assert!(!error.fix().is_empty());
        }
    }

    #[test]
    fn what_may_be_lost_is_said_aloud() {
        let none = judge("r", &GOOD.replace("aof_enabled:1", "aof_enabled:0"), None).unwrap();
        assert!(none[0].contains("LOST"), "{none:?}");
        let everysec = judge("r", GOOD, Some("everysec")).unwrap();
        assert!(everysec[0].contains("everysec"), "{everysec:?}");
    }
}
