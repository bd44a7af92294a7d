//! The operator's view of a Redis: over a connection of its own for each question, so that it disturbs no member.

use super::{
    config::RedisConfig,
    connect::{Answer, Commands, Connector, Down},
    guard::believed_by,
    keys::{self, Keys},
    letters::number_of,
    pack,
};
use crate::{
    BusError, MemberInfo,
    admin::{Admin, DeadLetter, Hop, Queue, QueueKind, Stage, Taker},
    auth::{Counts, Security},
};
use async_trait::async_trait;
use bytes::Bytes;
use redis::{Cmd, Pipeline, Value, cmd, pipe};
use std::{collections::BTreeSet, sync::Arc, time::Duration};
use uuid::Uuid;
use vbm_core::{Error, NodePath};

/// The most members that one question asks about at a time.
const PAGE_MEMBERS: usize = 256;

pub(super) struct RedisAdmin {
    pub(super) keys: Keys,
    pub(super) namespace: String,
    /// Off also on a bus with seals, for an operator without keys: it sees all, and believes all.
    pub(super) security: Security,
    pub(super) counts: Arc<Counts>,
    connector: Connector,
    server: String,
}

impl RedisAdmin {
    pub(super) fn new(config: &RedisConfig, connector: Connector, counts: Arc<Counts>) -> Self {
        Self {
            namespace: config.namespace.clone(),
            security: config.security.clone(),
            counts,
            keys: Keys::new(&config.namespace),
            connector,
            server: config.to_string(),
        }
    }

    fn unreachable(&self, why: String) -> Error {
        BusError::Unreachable {
            server: self.server.clone(),
            why,
        }
        .into()
    }

    pub(super) async fn commands(&self) -> Result<Commands, Error> {
        let connected = self.connector.commands().await;
        connected.map_err(|Down(why)| self.unreachable(why))
    }

    pub(super) async fn run(
        &self,
        commands: &mut Commands,
        batch: &mut Pipeline,
    ) -> Result<Vec<Answer>, Error> {
        let answers = commands.run(batch).await;
        answers.map_err(|Down(why)| self.unreachable(why))
    }

    pub(super) async fn one(&self, commands: &mut Commands, command: Cmd) -> Result<Value, Error> {
        match commands.one(command).await {
            Ok(Ok(value)) => Ok(value),
            Ok(Err(why)) | Err(Down(why)) => Err(self.unreachable(why)),
        }
    }

    pub(super) async fn now_ms(&self, commands: &mut Commands) -> Result<u64, Error> {
        let time = self.one(commands, cmd("TIME")).await?;
        let seconds = match &time {
            Value::Array(parts) => parts.first().and_then(pack::number),
            _ => None,
        };
        Ok(u64::try_from(seconds.unwrap_or(0))
            .unwrap_or(0)
            .saturating_mul(1_000))
    }

    async fn present(&self, commands: &mut Commands, scope: &NodePath) -> Result<Vec<MemberInfo>, Error> {
        let now = self.now_ms(commands).await?;
        let mut alive = cmd("ZRANGEBYSCORE");
        alive.arg(self.keys.alive(scope, None)).arg(now).arg("+inf");
        let alive = self.one(commands, alive).await?;
        let mut paths: Vec<NodePath> = pack::texts(&alive)
            .iter()
            .filter_map(|text| text.parse().ok())
            .collect();
        paths.sort();
        let mut members = Vec::with_capacity(paths.len());
        for page in paths.chunks(PAGE_MEMBERS) {
            let mut batch = pipe();
            for path in page {
                batch.cmd("GET").arg(self.keys.presence(path));
            }
            let now = self.now_ms(commands).await?;
            let answers = self.run(commands, &mut batch).await?.into_iter().zip(page);
            let read = |(answer, path): (Answer, &NodePath)| {
                let answer = answer.ok()?;
                let text = pack::text(&answer)?;
                match &self.security {
                    Security::On(_, trust) => {
                        believed_by((trust, &self.counts), &self.keys.presence(path), path, text, now)
                    }
                    Security::Off => serde_json::from_str(text).ok(),
                }
            };
            members.extend(answers.filter_map(read));
        }
        Ok(members)
    }

    /// The queues of a page of members, of the services they offer and of their shards.
    fn known(&self, scope: &NodePath, members: &[MemberInfo]) -> BTreeSet<(QueueKind, String, String)> {
        let mut queues = BTreeSet::new();
        for member in members {
            let (path, name) = (&member.path, member.path.to_string());
            queues.insert((QueueKind::Node, name.clone(), self.keys.node(path)));
            queues.insert((QueueKind::Control, name.clone(), self.keys.control(path)));
            let inbox = self.keys.inbox(path, &member.boot_id);
            queues.insert((QueueKind::Inbox, format!("{name} ({})", member.boot_id), inbox));
            for within in keys::scopes(path).iter().filter(|within| scope.contains(within)) {
                for service in &member.services {
                    let key = self.keys.any(within, service);
                    queues.insert((QueueKind::Any, format!("{service} in {within}"), key));
                    let key = self.keys.any_control(within, service);
                    queues.insert((QueueKind::Control, format!("any {service} in {within}"), key));
                }
            }
            let shard = keys::shard(path);
            queues.insert((
                QueueKind::Broadcast,
                shard.to_string(),
                self.keys.broadcast(&shard),
            ));
            queues.insert((
                QueueKind::DeadLetters,
                shard.to_string(),
                self.keys.dead_letters(&shard),
            ));
        }
        queues
    }
}

fn takers(answer: Option<&Answer>) -> Vec<Taker> {
    let Some(Ok(Value::Array(consumers))) = answer else {
        return Vec::new();
    };
    let number = |consumer: &Value, name: &str| {
        let number = pack::field(consumer, name).and_then(pack::number);
        u64::try_from(number.unwrap_or(0)).unwrap_or(0)
    };
    consumers
        .iter()
        .filter_map(|consumer| {
            Some(Taker {
                name: pack::text(pack::field(consumer, "name")?)?.to_owned(),
                pending: number(consumer, "pending"),
                idle_ms: number(consumer, "idle"),
            })
        })
        .collect()
}

#[async_trait]
impl Admin for RedisAdmin {
    async fn members(&self, scope: &NodePath) -> Result<Vec<MemberInfo>, Error> {
        let mut commands = self.commands().await?;
        self.present(&mut commands, scope).await
    }

    async fn queues(&self, scope: &NodePath) -> Result<Vec<Queue>, Error> {
        let mut commands = self.commands().await?;
        let members = self.present(&mut commands, scope).await?;
        let known: Vec<_> = self.known(scope, &members).into_iter().collect();
        let mut queues = Vec::with_capacity(known.len());
        for page in known.chunks(PAGE_MEMBERS) {
            let mut batch = pipe();
            for (kind, _, key) in page {
                batch.cmd("XINFO").arg("STREAM").arg(key);
                if *kind == QueueKind::Any {
                    batch.cmd("XINFO").arg("CONSUMERS").arg(key).arg(keys::GROUP);
                }
            }
            let answers = self.run(&mut commands, &mut batch).await?;
            let mut answers = answers.iter();
            for (kind, name, _) in page {
                let info = answers.next();
                let takers = match kind {
                    QueueKind::Any => takers(answers.next()),
                    _ => Vec::new(),
                };
                // No stream, no queue: dead letters and an old member's control lane.
                let Some(Ok(info)) = info else { continue };
                let number = |name| number_of(pack::field(info, name).cloned().map(Ok).as_ref());
                queues.push(Queue {
                    kind: *kind,
                    name: name.clone(),
                    depth: number("length"),
                    added: number("entries-added"),
                    takers,
                });
            }
        }
        Ok(queues)
    }

    async fn dead_letters(&self, scope: &NodePath) -> Result<Vec<DeadLetter>, Error> {
        self.letters(scope).await
    }

    async fn dead_letter(&self, id: &str) -> Result<(DeadLetter, Bytes), Error> {
        self.letter(id).await
    }

    async fn replay(&self, id: &str, ttl: Option<Duration>) -> Result<(), Error> {
        self.replay_letter(id, ttl).await
    }

    async fn drop_letter(&self, id: &str) -> Result<(), Error> {
        self.forget_letter(id).await
    }

    async fn trace(&self, call: Uuid) -> Result<Vec<Hop>, Error> {
        let mut commands = self.commands().await?;
        let mut range = cmd("XRANGE");
        range.arg(self.keys.hops(call)).arg("-").arg("+");
        let Value::Array(entries) = self.one(&mut commands, range).await? else {
            return Ok(Vec::new());
        };
        Ok(entries.iter().filter_map(hop).collect())
    }

    async fn commands_processed(&self) -> Result<Option<u64>, Error> {
        let masters = self.connector.every_master().await;
        let masters = masters.map_err(|Down(why)| self.unreachable(why))?;
        let mut all = 0_u64;
        for (_host, mut commands) in masters {
            let mut stats = cmd("INFO");
            stats.arg("stats");
            let answer = commands.one(stats).await;
            // A user who may not ask is none the worse for it.
            let Ok(told) = answer.map_err(|Down(why)| self.unreachable(why))? else {
                return Ok(None);
            };
            let Some(count) = pack::text(&told).and_then(total_commands) else {
                return Ok(None);
            };
            all = all.saturating_add(count);
        }
        Ok(Some(all))
    }
}

fn total_commands(info: &str) -> Option<u64> {
    info.lines()
        .find_map(|line| line.strip_prefix("total_commands_processed:"))?
        .trim()
        .parse()
        .ok()
}

/// The fields of a hop: what, by whom, more about it.
pub(super) const HOP_FIELDS: [&str; 3] = ["h", "by", "d"];

fn hop(entry: &Value) -> Option<Hop> {
    let Value::Array(pair) = entry else { return None };
    let (at_ms, _) = pack::parse_id(pack::text(pair.first()?)?)?;
    let fields = pair.get(1)?;
    let field = |name| pack::field(fields, name).and_then(pack::text).unwrap_or_default();
    let [stage, by, detail] = HOP_FIELDS.map(field);
    Some(Hop::new(
        at_ms,
        Stage::from_text(stage)?,
        by.to_owned(),
        detail.to_owned(),
    ))
}
