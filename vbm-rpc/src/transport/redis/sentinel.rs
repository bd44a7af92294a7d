//! Which server is the master, by the word of the sentinels.
//!
//! All sentinels are asked at once, each with a hard time-out, and of a majority's answers the one with the highest
//! configuration epoch wins: one that was cut off and still names the old master loses to one that saw the failover. Two signals lead to
//! asking: a connection that broke (the writer and the readers ask when they connect), and `+switch-master`, which
//! each sentinel sends to its subscribers. The second is only a hint (Pub/Sub may be lost, so it is asked anew every
//! [`RECHECK_EVERY`] too), but it is what finds a master that hangs instead of dying.

use super::{
    config::Host,
    connect::{Down, Shared, backoff},
    pack,
};
use futures::{StreamExt, stream::FuturesUnordered};
use redis::{AsyncConnectionConfig, RedisResult, Value};
use std::time::Duration;
use tokio::time::{sleep, timeout};

/// The longest one sentinel may take to be reached and to answer.
const ASK_TIMEOUT: Duration = Duration::from_secs(1);
/// How often the sentinels are asked without a reason.
const RECHECK_EVERY: Duration = Duration::from_secs(10);
/// What a sentinel sends when a failover is over.
const SWITCH: &str = "+switch-master";

/// What one sentinel says.
#[derive(Debug, PartialEq, Eq)]
struct Word {
    epoch: i64,
    host: Host,
    replicas: u64,
}

/// The set, by the word of the sentinels.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Set {
    pub(super) master: Host,
    /// How many servers could be promoted: those that the sentinels do not take for dead.
    pub(super) replicas: u64,
}

/// Whom the sentinels name as the master, and how many could follow it. A majority is enough: among any majority is one that took part in the last failover.
pub(super) async fn ask(shared: &Shared, sentinels: &[Host], master: &str) -> Result<Set, Down> {
    let mut asking: FuturesUnordered<_> = sentinels
        .iter()
        .map(|sentinel| async move {
            match timeout(ASK_TIMEOUT, ask_one(shared, sentinel, master)).await {
                Ok(word) => word.map_err(|Down(why)| format!("{sentinel}: {why}")),
                Err(_late) => Err(format!(
                    "{sentinel}: no answer within {} s",
                    ASK_TIMEOUT.as_secs()
                )),
            }
        })
        .collect();
    let mut words = Vec::new();
    while let Some(word) = asking.next().await {
        words.push(word);
        if words.iter().filter(|word| word.is_ok()).count() > sentinels.len() / 2 {
            break;
        }
    }
    judge(master, words)
}

/// The master of the word with the highest epoch; as many replicas as any of them sees.
fn judge(master: &str, words: Vec<Result<Word, String>>) -> Result<Set, Down> {
    let (mut best, mut troubles, mut replicas) = (None::<Word>, Vec::new(), 0);
    for word in words {
        replicas = replicas.max(word.as_ref().map_or(0, |word| word.replicas));
        match word {
            Ok(word) if best.as_ref().is_none_or(|best| word.epoch > best.epoch) => best = Some(word),
            Ok(_) => {}
            Err(why) => troubles.push(why),
        }
    }
    let set = |word: Word| Set {
        master: word.host,
        replicas,
    };
    best.map(set).ok_or_else(|| {
        Down(format!(
            "no sentinel names the master '{master}': {}",
            troubles.join("; ")
        ))
    })
}

async fn ask_one(shared: &Shared, sentinel: &Host, master: &str) -> Result<Word, Down> {
    let down = |error: redis::RedisError| Down(error.to_string());
    let options = AsyncConnectionConfig::new()
        .set_connection_timeout(Some(ASK_TIMEOUT))
        .set_response_timeout(None);
    let mut connection = shared
        .sentinel_client(sentinel)?
        .get_multiplexed_async_connection_with_config(&options)
        .await
        .map_err(down)?;
    // The address is that of the new master as soon as one was chosen; the other answer is still about the old one.
    let mut questions = redis::pipe();
    questions
        .cmd("SENTINEL")
        .arg("GET-MASTER-ADDR-BY-NAME")
        .arg(master);
    questions.cmd("SENTINEL").arg("MASTER").arg(master);
    questions.cmd("SENTINEL").arg("REPLICAS").arg(master);
    questions.ignore_errors();
    let answers: Vec<RedisResult<Value>> = questions.query_async(&mut connection).await.map_err(down)?;
    let mut answers = answers.into_iter();
    let address = answers
        .next()
        .ok_or_else(|| Down("no answer".into()))?
        .map_err(down)?;
    let [name, port] = pack::texts(&address)[..] else {
        return Err(Down(format!("it does not know the master '{master}'")));
    };
    let host = Host {
        name: name.to_owned(),
        port: port.parse().map_err(|_| Down(format!("'{port}' is no port")))?,
    };
    let about = answers.next().and_then(Result::ok);
    let epoch = about
        .as_ref()
        .and_then(|about| pack::number(pack::field(about, "config-epoch")?))
        .unwrap_or(0);
    let replicas = answers.next().and_then(Result::ok);
    Ok(Word {
        epoch,
        host,
        replicas: replicas.as_ref().map_or(0, could_follow),
    })
}

/// How many of the replicas that a sentinel lists are not down.
fn could_follow(replicas: &Value) -> u64 {
    let Value::Array(replicas) = replicas else {
        return 0;
    };
    let up = |replica: &&Value| {
        let flags = pack::field(replica, "flags").and_then(pack::text);
        flags.is_some_and(|flags| {
            !flags
                .split(',')
                .any(|flag| ["s_down", "o_down", "disconnected"].contains(&flag))
        })
    };
    replicas.iter().filter(up).count().try_into().unwrap_or(u64::MAX)
}

/// Follows the sentinels until it is dropped.
pub(super) async fn watch(shared: &Shared, sentinels: &[Host], master: &str, seed: u64) {
    let listening = sentinels
        .iter()
        .zip(0u64..)
        .map(|(sentinel, number)| listen(shared, sentinels, sentinel, master, seed ^ number));
    let recheck = async {
        loop {
            // Between one and two of it, so that processes do not ask at the same time.
            sleep(RECHECK_EVERY + backoff(u32::MAX, seed) * 10).await;
            follow(shared, sentinels, master).await;
        }
    };
    tokio::join!(futures::future::join_all(listening), recheck);
}

async fn follow(shared: &Shared, sentinels: &[Host], master: &str) {
    match ask(shared, sentinels, master).await {
        Ok(set) => shared.told_of(&set.master),
        Err(Down(why)) => tracing::debug!(why, "the sentinels do not answer"),
    }
}

/// Hears one sentinel, and connects to it again when it is gone.
async fn listen(shared: &Shared, sentinels: &[Host], sentinel: &Host, master: &str, seed: u64) {
    for attempt in 0u32.. {
        if let Err(Down(why)) = hear(shared, sentinels, sentinel, master).await {
            tracing::debug!(%sentinel, why, "a sentinel is not heard");
        }
        sleep(backoff(attempt, seed)).await;
    }
}

async fn hear(shared: &Shared, sentinels: &[Host], sentinel: &Host, master: &str) -> Result<(), Down> {
    let down = |error: redis::RedisError| Down(error.to_string());
    let client = shared.sentinel_client(sentinel)?;
    let subscribing = async {
        let mut heard = client.get_async_pubsub().await.map_err(down)?;
        heard.subscribe(SWITCH).await.map_err(down)?;
        Ok(heard)
    };
    let mut heard = timeout(ASK_TIMEOUT, subscribing)
        .await
        .unwrap_or_else(|_| Err(Down("it did not answer".into())))?;
    let mut messages = heard.on_message();
    while let Some(message) = messages.next().await {
        let text: String = message.get_payload().unwrap_or_default();
        if switched(&text, master).is_some() {
            follow(shared, sentinels, master).await;
        }
    }
    Ok(())
}

/// The new master in a `+switch-master` message: `name old-ip old-port new-ip new-port`.
fn switched(text: &str, master: &str) -> Option<Host> {
    let words: Vec<&str> = text.split_ascii_whitespace().collect();
    match words[..] {
        [name, _, _, host, port] if name == master => Some(Host {
            name: host.to_owned(),
            port: port.parse().ok()?,
        }),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host(name: &str) -> Host {
        Host {
            name: name.into(),
            port: 1,
        }
    }

    #[test]
    fn the_sentinel_that_saw_the_last_failover_is_believed() {
        let word = |epoch, name, replicas| {
            Ok(Word {
                epoch,
                host: host(name),
                replicas,
            })
        };
        let words = vec![
            word(3, "old", 2),
            Err("dead".into()),
            word(4, "new", 1),
            word(3, "old", 0),
        ];
        let set = Set {
            master: host("new"),
            replicas: 2,
        };
        assert_eq!(judge("m", words).unwrap(), set);
    }

    #[test]
    fn a_replica_that_is_down_is_not_waited_for() {
        let bulk = |text: &str| Value::BulkString(text.into());
        let replica = |flags| Value::Array(vec![bulk("name"), bulk("r"), bulk("flags"), bulk(flags)]);
        let all = ["slave", "slave,s_down", "slave,disconnected", "slave"].map(replica);
        assert_eq!(could_follow(&Value::Array(all.into())), 2);
        assert_eq!(could_follow(&Value::Nil), 0);
    }

    #[test]
    fn what_every_sentinel_said_is_told_when_none_names_a_master() {
        let Err(Down(why)) = judge("m", vec![Err("a: refused".into()), Err("b: late".into())]) else {
            panic!("nobody named one");
        };
        assert!(why.contains("'m'") && why.contains("a: refused") && why.contains("b: late"));
    }

    #[test]
    fn only_the_switch_of_ones_own_master_counts() {
        assert_eq!(switched("m 1.1.1.1 5 b 1", "m"), Some(host("b")));
        assert_eq!(switched("other 1.1.1.1 5 b 1", "m"), None);
        assert_eq!(switched("m 1.1.1.1 5 b x", "m"), None);
        assert_eq!(switched("m", "m"), None);
    }
}
