//! Who is there: registering, asking, leaving.

use super::{
    Core,
    config::RedisConfig,
    connect::{Answer, Commands, Down, NODE_DOWN},
    guard::Guard,
    keys::{self, GROUP, INBOX_TTL, Keys, STREAM_TTL},
    lock, pack,
    rescue::Run,
    scripts,
};
use crate::{BusError, MemberInfo, Service, limits::PRESENCE_TTL};
use redis::{Pipeline, Value, cmd, pipe};
use serde::Serialize;
use std::{sync::atomic::Ordering, time::Duration};
use tokio::time::Instant;
use vbm_core::NodePath;

/// Before any time that Redis tells.
const UNSET_CLOCK_MS: u64 = 1_000_000_000;

/// Whether registering takes the path from another process.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Claim {
    /// At the start: who comes last wins.
    Take,
    /// Later: another one who came since has won.
    Keep,
}

/// Why registering was refused.
pub(super) enum Refusal {
    Displaced(String),
    Redis(String),
}

impl Refusal {
    pub(super) fn into_error(self, config: &RedisConfig, path: &NodePath) -> BusError {
        match self {
            Self::Displaced(by) => BusError::Displaced {
                path: path.to_string(),
                by,
            },
            Self::Redis(why) if why.contains("OOM") => {
                super::unfit::full(&why).into_error(&config.to_string())
            }
            Self::Redis(why) if why.starts_with(NODE_DOWN) => BusError::Unreachable {
                server: config.to_string(),
                why,
            },
            Self::Redis(why) => BusError::Unsuitable {
                server: config.to_string(),
                why,
                fix: "let this user read and write the keys of the bus and run scripts (ACL SETUSER)".into(),
            },
        }
    }
}

/// What stands in a presence key.
#[derive(Serialize)]
struct Present<'a> {
    #[serde(flatten)]
    member: &'a MemberInfo,
    token: &'a str,
}

/// A word that no other attachment has: Redis' time and its number for this connection. Of two runs of a path the one
/// that came later has the greater time, also where the clock of the server was set back or another server has taken over.
pub(super) async fn token(commands: &mut Commands, presence: &str) -> Result<String, Down> {
    let mut batch = pipe();
    batch.cmd("TIME");
    batch.cmd("CLIENT").arg("ID");
    batch.cmd("GET").arg(presence);
    let answers = commands.run(&mut batch).await?;
    let mut words = answers.iter().map(|answer| answer.as_ref().ok());
    let time = words
        .next()
        .flatten()
        .map(pack::texts)
        .unwrap_or_default()
        .join(".");
    let id = words.next().flatten().and_then(pack::number).unwrap_or_default();
    let there = words.next().flatten().and_then(pack::text).and_then(born);
    let (seconds, micros) = parse_time(&time)
        .unwrap_or_default()
        .max(there.map_or((0, 0), next));
    Ok(format!("{seconds}.{micros}-{id}"))
}

/// When the run that stands in a presence came: seconds and microseconds.
fn born(presence: &str) -> Option<(u64, u64)> {
    let presence: serde_json::Value = serde_json::from_str(presence).ok()?;
    let (time, _id) = presence.get("token")?.as_str()?.split_once('-')?;
    parse_time(time)
}

fn parse_time(text: &str) -> Option<(u64, u64)> {
    let (seconds, micros) = text.split_once('.')?;
    Some((seconds.parse().ok()?, micros.parse().ok()?))
}

/// Just after.
const fn next((seconds, micros): (u64, u64)) -> (u64, u64) {
    (seconds, micros.saturating_add(1))
}

/// The anycast queues that a member serves: scope and service.
pub(super) fn served(me: &MemberInfo) -> Vec<(NodePath, Service)> {
    let scopes = keys::scopes(&me.path);
    let pairs = me
        .services
        .iter()
        .flat_map(|service| scopes.iter().map(move |scope| (scope.clone(), service.clone())));
    pairs.collect()
}

/// The keys of the anycast queues that a member serves, of both lanes.
pub(super) fn queues(core: &Core) -> impl Iterator<Item = String> {
    served(&core.me)
        .into_iter()
        .flat_map(|(scope, service)| core.keys.lanes(&scope, &service))
}

/// The liveness sets that a member stands in.
fn liveness_keys(core: &Core) -> Vec<String> {
    let services = || core.me.services.iter().map(Some).chain([None]);
    let scopes = keys::scopes(&core.me.path);
    scopes
        .iter()
        .flat_map(|scope| services().map(move |service| core.keys.alive(scope, service)))
        .collect()
}

fn ms(span: std::time::Duration) -> u64 {
    u64::try_from(span.as_millis()).unwrap_or(u64::MAX)
}

/// What was there before anyone could see the member.
pub(super) struct Begin {
    /// From here on broadcasts are for it.
    pub(super) broadcast_cursor: String,
    /// The last entry of the node's queue, if there is any: left by an earlier process.
    pub(super) node_last: Option<(u64, u64)>,
    /// By then, in Redis' ms, nobody had seen the member yet.
    pub(super) joined_ms: u64,
}

/// Makes the queues, appears in presence.
pub(super) async fn register(
    core: &Core,
    commands: &mut Commands,
    claim: Claim,
) -> Result<Result<Begin, Refusal>, Down> {
    if core.guard.is_some() && core.now_ms() < UNSET_CLOCK_MS {
        // Presence is sealed with Redis' time.
        let asked = Instant::now();
        let time = commands.one(cmd("TIME")).await?;
        set_clock(core, asked, Some(&time));
    }
    let mut batch = pipe();
    batch.add_command(cmd("TIME"));
    let broadcast = core.keys.broadcast(&keys::shard(&core.me.path));
    let own = [
        (core.keys.node(&core.me.path), STREAM_TTL),
        (core.keys.control(&core.me.path), STREAM_TTL),
        (core.keys.inbox(&core.me.path, &core.me.boot_id), INBOX_TTL),
        (broadcast.clone(), STREAM_TTL),
    ];
    for (key, ttl) in &own {
        // An empty stream comes of a group that is made and removed.
        batch
            .cmd("XGROUP")
            .arg("CREATE")
            .arg(key)
            .arg("making")
            .arg("$")
            .arg("MKSTREAM");
        batch.cmd("XGROUP").arg("DESTROY").arg(key).arg("making");
        batch.cmd("PEXPIRE").arg(key).arg(ms(*ttl));
    }
    for key in queues(core) {
        batch
            .cmd("XGROUP")
            .arg("CREATE")
            .arg(&key)
            .arg(GROUP)
            .arg("0")
            .arg("MKSTREAM");
        batch.cmd("PEXPIRE").arg(&key).arg(ms(STREAM_TTL));
    }
    batch
        .cmd("XREVRANGE")
        .arg(core.keys.node(&core.me.path))
        .arg("+")
        .arg("-")
        .arg("COUNT")
        .arg(1);
    batch.cmd("XINFO").arg("STREAM").arg(&broadcast);
    add_presence(core, &mut batch, claim);
    let asked = Instant::now();
    let answers = commands.run(&mut batch).await?;
    set_clock(core, asked, answers.first());
    // The clock lags by no more than the answers took.
    let by_now = core.now_ms() + ms(asked.elapsed()) + 1;
    core.suspect_ms.fetch_max(by_now, Ordering::Relaxed);
    let Some([left, stream, presence]) = answers.last_chunk() else {
        return Err(Down("too few answers".into()));
    };
    if let Err(refusal) = read_presence(core, presence, claim) {
        return Ok(Err(refusal));
    }
    let cursor = stream
        .as_ref()
        .ok()
        .and_then(|info| pack::text(pack::field(info, "last-generated-id")?));
    let Some(cursor) = cursor.map(str::to_owned) else {
        let why = stream
            .as_ref()
            .err()
            .cloned()
            .unwrap_or_else(|| "it has no streams".into());
        return Ok(Err(Refusal::Redis(why)));
    };
    let mut batch = pipe();
    add_liveness(core, &mut batch);
    for answer in commands.run(&mut batch).await? {
        match answer {
            // The rest of the cluster works; the next heartbeat tries again.
            Err(why) if claim == Claim::Keep && why.starts_with(NODE_DOWN) => {
                tracing::debug!(why, "not everybody can see this member now");
            }
            Err(why) => return Ok(Err(Refusal::Redis(why))),
            Ok(_) => {}
        }
    }
    core.renewed(asked);
    let left = left.as_ref().map(|left| pack::entries(left.clone()));
    let node_last = left.ok().and_then(|entries| pack::parse_id(&entries.first()?.id));
    Ok(Ok(Begin {
        broadcast_cursor: cursor,
        node_last,
        joined_ms: by_now,
    }))
}

pub(super) fn add_presence(core: &Core, batch: &mut Pipeline, claim: Claim) {
    let key = core.keys.presence(&core.me.path);
    let present = Present {
        member: &core.me,
        token: &core.token,
    };
    // A struct of strings and numbers can always be written.
    let mut value = serde_json::to_string(&present).unwrap_or_default();
    if let Some(guard) = &core.guard {
        value = guard.presence(&key, &value, core.now_ms());
    }
    match claim {
        Claim::Take => batch
            .cmd("SET")
            .arg(key)
            .arg(value)
            .arg("PX")
            .arg(ms(PRESENCE_TTL)),
        Claim::Keep => batch
            .cmd("EVAL")
            .arg(scripts::RENEW)
            .arg(1)
            .arg(key)
            .arg(value)
            .arg(&core.token)
            .arg(ms(PRESENCE_TTL))
            .arg(core.guard.as_ref().map(Guard::to_overwrite).unwrap_or_default()),
    };
}

pub(super) fn read_presence(core: &Core, answer: &Answer, claim: Claim) -> Result<(), Refusal> {
    match (answer, claim) {
        (Err(why), _) => Err(Refusal::Redis(why.clone())),
        (Ok(_), Claim::Take) => Ok(()),
        (Ok(value), Claim::Keep) => match pack::text(value) {
            Some("") | None => Ok(()),
            Some(other) => match (read_member(core, &core.me.path, other), &core.guard) {
                (Some(member), _) => Err(Refusal::Displaced(member.boot_id)),
                // Nobody who may has taken the path: the next heartbeat writes over it.
                (None, Some(guard)) => {
                    guard.forged(other);
                    Ok(())
                }
                (None, None) => Err(Refusal::Displaced("what it is cannot be read".into())),
            },
        },
    }
}

/// The member that stands in the presence of `path`; with security on, only if its own key says so.
fn read_member(core: &Core, path: &NodePath, text: &str) -> Option<MemberInfo> {
    match &core.guard {
        Some(guard) => guard.member(&core.keys.presence(path), path, text, core.now_ms()),
        None => serde_json::from_str(text).ok(),
    }
}

/// Everything about liveness; at the start, and rarely later.
pub(super) fn add_liveness(core: &Core, batch: &mut Pipeline) {
    renew_liveness(core, batch);
    let now = core.now_ms();
    for key in liveness_keys(core) {
        batch.cmd("PEXPIRE").arg(&key).arg(ms(STREAM_TTL));
    }
    // Of those who offered a service the rescuer forgets the dead when nothing is left of them.
    for scope in keys::scopes(&core.me.path) {
        let key = core.keys.alive(&scope, None);
        batch.cmd("ZREMRANGEBYSCORE").arg(&key).arg("-inf").arg(now);
    }
}

/// Alive for another while. Gives how many commands.
pub(super) fn renew_liveness(core: &Core, batch: &mut Pipeline) -> usize {
    let path = core.me.path.to_string();
    let until = core.now_ms() + ms(PRESENCE_TTL);
    let keys = liveness_keys(core);
    for key in &keys {
        batch.cmd("ZADD").arg(key).arg(until).arg(&path);
    }
    keys.len()
}

/// Asks for each service who is the next to die: path and when. Gives how many commands.
pub(super) fn ask_for_deaths(core: &Core, batch: &mut Pipeline, before_ms: u64) -> usize {
    for service in &core.me.services {
        batch
            .cmd("ZRANGEBYSCORE")
            .arg(core.keys.alive(&NodePath::root(), Some(service)))
            .arg("-inf")
            .arg(before_ms)
            .arg("WITHSCORES")
            .arg("LIMIT")
            .arg(0)
            .arg(1);
    }
    core.me.services.len()
}

/// Notes Redis' time, which it told between asking and now.
pub(super) fn set_clock(core: &Core, asked: Instant, answer: Option<&Answer>) {
    let Some(Ok(Value::Array(parts))) = answer else {
        return;
    };
    let mut parts = parts
        .iter()
        .filter_map(pack::number)
        .filter_map(|n| u64::try_from(n).ok());
    if let (Some(seconds), Some(micros)) = (parts.next(), parts.next()) {
        let micros = seconds.saturating_mul(1_000_000).saturating_add(micros);
        lock(&core.clock).note(asked, Instant::now(), micros);
    }
}

/// Who is present below a scope, sorted by path.
pub(super) async fn members(core: &Core, scope: &NodePath) -> Result<Vec<MemberInfo>, BusError> {
    let paths = core.alive(scope, None).await?;
    let mut batch = pipe();
    for path in &paths {
        batch.cmd("GET").arg(core.keys.presence(path));
    }
    let mut commands = core.commands().await?;
    let answers = commands
        .run(&mut batch)
        .await
        .map_err(|Down(why)| BusError::Unreachable {
            server: core.server.clone(),
            why,
        })?;
    let read = |(answer, path): (Answer, &NodePath)| read_member(core, path, pack::text(&answer.ok()?)?);
    Ok(answers.into_iter().zip(&paths).filter_map(read).collect())
}

/// What has become of runs of members, for each.
pub(super) async fn runs(
    core: &Core,
    commands: &mut Commands,
    runs: &[(NodePath, String)],
) -> Result<Vec<Run>, Down> {
    let mut batch = pipe();
    for (path, _) in runs {
        batch.cmd("GET").arg(core.keys.presence(path));
    }
    let answers = commands.run(&mut batch).await?;
    // An answer that cannot be read says nothing against the run: the next look tells.
    let same = |(answer, (path, boot_id)): (Answer, &(NodePath, String))| {
        let value = answer.ok();
        let member = value
            .as_ref()
            .and_then(|value| read_member(core, path, pack::text(value)?));
        match member {
            Some(member) if member.boot_id == *boot_id => Run::Alive,
            Some(_) => Run::Displaced,
            None => Run::Absent,
        }
    };
    Ok(answers.into_iter().zip(runs).map(same).collect())
}

/// Takes the member off presence, unless another process has its path.
pub(super) async fn retire(core: &Core) {
    let retire = || {
        let mut command = cmd("EVAL");
        command
            .arg(scripts::RETIRE)
            .arg(3)
            .arg(core.keys.presence(&core.me.path))
            .arg(core.keys.node(&core.me.path))
            .arg(core.keys.control(&core.me.path))
            .arg(&core.token);
        command
    };
    let mine = match core.ask(retire).await {
        Ok(answer) => pack::number(&answer) == Some(1),
        Err(error) => return tracing::warn!(%error, "presence was not taken back; it runs out by itself"),
    };
    if !mine {
        core.disowned.store(true, Ordering::SeqCst);
        return;
    }
    let path = core.me.path.to_string();
    let mut batch = pipe();
    for key in liveness_keys(core) {
        batch.cmd("ZREM").arg(key).arg(&path);
    }
    run_last(core, &mut batch).await;
}

/// Forgets what is empty and serves nobody any more. Of a path that another attachment has taken it touches nothing.
pub(super) async fn forget(core: &Core) {
    if core.disowned.load(Ordering::SeqCst) {
        return;
    }
    let me = &core.me;
    let now = core.now_ms();
    let mut batch = pipe();
    batch.cmd("DEL").arg(core.keys.inbox(&me.path, &me.boot_id));
    batch
        .cmd("EVAL")
        .arg(scripts::FORGET_NODE)
        .arg(4)
        .arg(core.keys.presence(&me.path))
        .arg(core.keys.node(&me.path))
        .arg(Keys::counts(&core.keys.node(&me.path)))
        .arg(core.keys.control(&me.path))
        .arg(ms(STREAM_TTL));
    let given_up = core.held_longer(Duration::ZERO);
    for (key, ids) in &given_up {
        // Nobody need wait for the lease of what will certainly not be done here.
        let claim = batch
            .cmd("XCLAIM")
            .arg(&**key)
            .arg(GROUP)
            .arg(&core.consumer)
            .arg(0);
        claim.arg(ids).arg("IDLE").arg(ms(PRESENCE_TTL)).arg("JUSTID");
    }
    for (scope, service) in served(me) {
        let alive = core.keys.alive(&scope, Some(&service));
        for queue in core.keys.lanes(&scope, &service) {
            let eval = batch
                .cmd("EVAL")
                .arg(scripts::FORGET_ANY)
                .arg(4)
                .arg(&alive)
                .arg(&queue)
                .arg(Keys::counts(&queue))
                .arg(core.keys.rescuer(&scope, &service));
            eval.arg(now).arg(GROUP).arg(&core.consumer);
        }
    }
    for shard in keys::shards_above(&me.path) {
        let (alive, stream) = (core.keys.alive(&shard, None), core.keys.broadcast(&shard));
        batch
            .cmd("EVAL")
            .arg(scripts::FORGET_BROADCAST)
            .arg(2)
            .arg(alive)
            .arg(stream)
            .arg(now);
    }
    if !given_up.is_empty() {
        // Others see somebody die, and look for what is left.
        for service in &me.services {
            let alive = core.keys.alive(&NodePath::root(), Some(service));
            batch.cmd("ZADD").arg(&alive).arg(now).arg(me.path.to_string());
            batch.cmd("PEXPIRE").arg(&alive).arg(ms(STREAM_TTL));
        }
    }
    run_last(core, &mut batch).await;
}

async fn run_last(core: &Core, batch: &mut Pipeline) {
    let Ok(mut commands) = core.commands().await else {
        return;
    };
    match commands.run(batch).await {
        Ok(answers) => {
            for why in answers.into_iter().filter_map(Answer::err) {
                tracing::warn!(why, "something was left behind; it runs out by itself");
            }
        }
        Err(Down(why)) => tracing::warn!(why, "queues were left behind; they run out by themselves"),
    }
}
