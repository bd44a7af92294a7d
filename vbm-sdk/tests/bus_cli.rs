//! `vbm bus` against a real Redis and real members: it needs no vbmd.

#![expect(clippy::unwrap_used, reason = "a test ends at its first surprise")]

#[path = "common/redis.rs"]
mod redis_server;

use redis_server::Redis;
use serde_json::Value;
use std::{
    process::Output,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};
use tokio::{
    process::Command,
    time::{sleep, timeout},
};
use vbm_rpc::{
    Bus, CallOptions, Context, Member, Method, Route, Router, Service,
    auth::{Keys, Ring, Security, Trust, Trusted},
    redis::{RedisConfig, RedisTransport},
};

const PATIENCE: Duration = Duration::from_secs(30);

/// Tells the id of its request; panics while it is told to.
struct Tell;
impl Method for Tell {
    const NAME: &'static str = "test.tell";
    type Request = ();
    type Reply = String;
}

struct Stage {
    redis: Redis,
    panics: Arc<AtomicBool>,
    worker: Bus,
    client: Bus,
}

impl Stage {
    /// A worker `eu/n1` and a client; `None` when Redis is left out.
    async fn set() -> Option<Self> {
        Self::set_with(Security::Off).await
    }

    /// The same, sealing and opening by `security`.
    async fn set_with(security: Security) -> Option<Self> {
        let redis = Redis::start()?;
        let config = RedisConfig::from_url(&redis.url()).unwrap().security(security);
        let transport = RedisTransport::connect(config).await.unwrap();
        let panics = Arc::new(AtomicBool::new(false));
        let told = panics.clone();
        let router = Router::new().method::<Tell, _, _>(move |context: Context, ()| {
            let panics = told.load(Ordering::SeqCst);
            async move {
                assert!(!panics, "on request of a test");
                Ok(context.request_id.to_string())
            }
        });
        let member = Member::new("eu/n1".parse().unwrap(), "boot-1").service(Service::new("worker").unwrap());
        let worker = Bus::attach(transport.clone(), member, router).await.unwrap();
        let member = Member::new("c1".parse().unwrap(), "boot-c");
        let client = Bus::attach(transport, member, Router::new()).await.unwrap();
        Some(Self {
            redis,
            panics,
            worker,
            client,
        })
    }

    async fn vbm(&self, words: &[&str]) -> Output {
        let run = Command::new(env!("CARGO_BIN_EXE_vbm"))
            .arg("bus")
            .args(words)
            .env("VBM_REDIS", self.redis.url())
            .kill_on_drop(true)
            .output();
        timeout(PATIENCE, run).await.expect("it ends").unwrap()
    }

    async fn json(&self, words: &[&str]) -> Value {
        let output = self.vbm(&[words, &["-o", "json"]].concat()).await;
        assert!(output.status.success(), "{words:?}: {}", text(&output.stderr));
        serde_json::from_slice(&output.stdout).unwrap()
    }

    async fn letters(&self, count: usize) -> Value {
        let waiting = async {
            loop {
                let list = self.json(&["dlq", "list"]).await;
                if list.as_array().unwrap().len() == count {
                    return list;
                }
                sleep(Duration::from_millis(50)).await;
            }
        };
        timeout(PATIENCE, waiting).await.expect("so many dead letters")
    }

    async fn end(self) {
        self.client.shutdown().await;
        self.worker.shutdown().await;
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn top_tells_who_is_there_and_what_waits_for_them() {
    let Some(stage) = Stage::set().await else { return };
    let top = stage.json(&["top", "--once", "--every", "1s"]).await;
    assert_eq!(top["members"][1]["path"], "eu/n1");
    assert_eq!(top["members"][1]["versions"]["test.tell"], 1);
    let queues = top["queues"].as_array().unwrap();
    let any = queues
        .iter()
        .find(|queue| queue["name"] == "worker in eu")
        .unwrap();
    assert_eq!((&any["kind"], &any["depth"]), (&"any".into(), &0.into()));
    let plain = stage
        .vbm(&["top", "--once", "--every", "1s", "--scope", "eu"])
        .await;
    let plain = text(&plain.stdout);
    assert!(plain.starts_with("1 members") && plain.contains("worker in eu/n1") && !plain.contains("c1"));
    stage.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn dead_letters_are_listed_shown_replayed_and_dropped() {
    let Some(stage) = Stage::set().await else { return };
    let none = stage.vbm(&["dlq", "list"]).await;
    assert!(none.status.success() && text(&none.stderr).contains("no dead letters"));
    stage.panics.store(true, Ordering::SeqCst);
    let node = Route::node("eu/n1".parse().unwrap());
    for _ in 0..2 {
        stage
            .client
            .cast::<Tell>(&node, &(), CallOptions::default())
            .await
            .unwrap();
    }
    let list = stage.letters(2).await;
    let (first, second) = (list[0]["id"].as_str().unwrap(), list[1]["id"].as_str().unwrap());
    let shown = text(&stage.vbm(&["dlq", "show", first]).await.stdout);
    for word in ["node eu/n1", "its handler panicked", "test.tell", "1 times", "c1"] {
        assert!(shown.contains(word), "{word}: {shown}");
    }
    let dropped = stage.vbm(&["dlq", "drop", first]).await;
    assert!(dropped.status.success(), "{}", text(&dropped.stderr));
    let gone = stage.vbm(&["dlq", "show", first]).await;
    assert_eq!(gone.status.code(), Some(3), "{}", text(&gone.stderr));
    stage.panics.store(false, Ordering::SeqCst);
    let replayed = stage.vbm(&["dlq", "replay", second, "--ttl", "30s"]).await;
    assert!(replayed.status.success(), "{}", text(&replayed.stderr));
    stage.letters(0).await;
    stage.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_letter_of_a_bus_with_seals_is_replayed_with_a_key_that_relays_and_not_without() {
    let (members, operator) = (Keys::generate().unwrap(), Keys::generate().unwrap());
    let mut ring = Ring::new();
    for at in ["eu/n1", "c1"] {
        let line = Trusted::new(*members.active().public());
        ring.add(at.parse().unwrap(), line).unwrap();
    }
    let line = Trusted::new(*operator.active().public()).relays();
    ring.add("operator".parse().unwrap(), line).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let (key, trust) = (dir.path().join("operator.key"), dir.path().join("trust"));
    operator.save(&key).unwrap();
    std::fs::write(&trust, ring.to_string()).unwrap();
    let security = Security::On(members, Trust::fixed(ring));
    let Some(stage) = Stage::set_with(security).await else {
        return;
    };
    stage.panics.store(true, Ordering::SeqCst);
    let node = Route::node("eu/n1".parse().unwrap());
    let cast = stage.client.cast::<Tell>(&node, &(), CallOptions::default());
    cast.await.unwrap();
    let list = stage.letters(1).await;
    let letter = list[0]["id"].as_str().unwrap();
    stage.panics.store(false, Ordering::SeqCst);
    let without = stage.vbm(&["dlq", "replay", letter]).await;
    let told = text(&without.stderr);
    assert!(!without.status.success() && told.contains("--bus-key"), "{told}");
    stage.letters(1).await;
    let (key, trust) = (key.to_str().unwrap(), trust.to_str().unwrap());
    let with = ["dlq", "replay", letter, "--bus-key", key, "--bus-trust", trust];
    let replayed = stage.vbm(&with).await;
    assert!(replayed.status.success(), "{}", text(&replayed.stderr));
    stage.letters(0).await;
    stage.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_hops_of_a_traced_call_are_shown() {
    let Some(stage) = Stage::set().await else { return };
    let node = Route::node("eu/n1".parse().unwrap());
    let call = async |traced| {
        let options = CallOptions::default().traced(traced);
        stage.client.call::<Tell>(&node, &(), options).await.unwrap()
    };
    let (traced, quiet) = (call(true).await, call(false).await);
    let waiting = async {
        loop {
            let hops = stage.json(&["trace", &traced]).await;
            if hops.as_array().unwrap().len() == 5 {
                return hops;
            }
        }
    };
    let hops = timeout(PATIENCE, waiting).await.expect("all hops");
    let stages: Vec<_> = hops
        .as_array()
        .unwrap()
        .iter()
        .map(|hop| hop["stage"].as_str().unwrap())
        .collect();
    assert_eq!(stages, ["queued", "taken", "begun", "ended", "answered"]);
    let nothing = stage.vbm(&["trace", &quiet]).await;
    assert!(text(&nothing.stderr).contains("nothing is known"));
    let bad = stage.vbm(&["trace", "x"]).await;
    assert_eq!(bad.status.code(), Some(2), "{}", text(&bad.stderr));
    stage.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_ping_shows_its_hops_and_leaves_nothing_behind() {
    let Some(stage) = Stage::set().await else { return };
    let pong = stage.json(&["ping", "eu/n1", "--trace", "--control"]).await;
    assert_eq!(
        (&pong["path"], &pong["boot_id"]),
        (&"eu/n1".into(), &"boot-1".into())
    );
    let hops = pong["hops"].as_array().unwrap();
    assert_eq!((hops.len(), &hops[4]["stage"]), (5, &"answered".into()));
    let nobody = stage.vbm(&["ping", "eu/n9"]).await;
    assert_eq!(nobody.status.code(), Some(8), "{}", text(&nobody.stderr));
    let members = stage.client.members(&vbm_core::NodePath::root()).await.unwrap();
    assert_eq!(members.len(), 2, "{members:?}");
    stage.end().await;
}

#[tokio::test]
async fn a_redis_that_is_not_there_is_told_in_three_lines() {
    let run = Command::new(env!("CARGO_BIN_EXE_vbm"))
        .args([
            "bus",
            "top",
            "--once",
            "--redis",
            "redis+unix:///nowhere/redis.sock",
        ])
        .output();
    let output = timeout(PATIENCE, run).await.expect("it ends").unwrap();
    assert_eq!(output.status.code(), Some(8));
    let told = text(&output.stderr);
    assert_eq!(told.lines().count(), 3, "{told}");
}

/// The keys of a server, sorted; but for who looks after the dead of a group just now, which come and go by themselves.
fn keys(redis: &Redis) -> Vec<String> {
    let mut keys: Vec<String> = ::redis::cmd("KEYS").arg("*").query(&mut redis.raw()).unwrap();
    keys.retain(|key| !key.contains(":j:"));
    keys.sort();
    keys
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bench_tells_rates_latency_and_commands_and_leaves_every_key_as_it_was() {
    let Some(stage) = Stage::set().await else { return };
    let before = keys(&stage.redis);
    let words = ["bench", "--in-flight", "1,16", "--time", "1s", "--payload", "64"];
    let report = stage.json(&words).await;
    let rows = report["rows"].as_array().unwrap();
    assert_eq!((rows.len(), &report["payload_bytes"]), (2, &64.into()));
    for (row, flights) in rows.iter().zip([1, 16]) {
        let number = |name: &str| row[name].as_f64().unwrap_or_else(|| panic!("{name}: {row}"));
        assert_eq!(row["in_flight"], flights);
        assert!(number("calls") > 1.0 && number("calls_per_second") > 1.0, "{row}");
        assert!(
            number("p50_micros") > 0.0 && number("p50_micros") <= number("p99_micros"),
            "{row}"
        );
        assert!(number("p99_micros") <= number("p999_micros"), "{row}");
        assert!(number("commands_per_call") > 0.0, "{row}");
    }
    // Calls that are in flight together share commands.
    let commands = |row: usize| rows[row]["commands_per_call"].as_f64().unwrap();
    assert!(commands(1) < commands(0), "{report}");
    for (further, seals) in [(&[][..], "seals off"), (&["--seals"], "seals on")] {
        let words = [&["bench", "--in-flight", "2", "--time", "1s"], further].concat();
        let told = text(&stage.vbm(&words).await.stdout);
        assert!(
            told.contains("128 bytes there and back")
                && told.contains(seals)
                && told.contains("COMMANDS/CALL"),
            "{told}"
        );
    }
    assert_eq!(keys(&stage.redis), before);
    let bad = stage.vbm(&["bench", "--in-flight", "0"]).await;
    assert_eq!(bad.status.code(), Some(2), "{}", text(&bad.stderr));
    stage.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bench_that_is_interrupted_takes_its_keys_back() {
    let Some(stage) = Stage::set().await else { return };
    let before = keys(&stage.redis);
    for kill in [
        nix::sys::signal::Signal::SIGINT,
        nix::sys::signal::Signal::SIGTERM,
    ] {
        let child = Command::new(env!("CARGO_BIN_EXE_vbm"))
            .args(["bus", "bench", "--in-flight", "64", "--time", "60s"])
            .env("VBM_REDIS", stage.redis.url())
            .stdout(std::process::Stdio::piped())
            .stderr(std::process::Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let underway = async {
            while !keys(&stage.redis).iter().any(|key| key.contains("n:vbm-bench-")) {
                sleep(Duration::from_millis(20)).await;
            }
        };
        timeout(PATIENCE, underway).await.expect("it begins to call");
        let pid = nix::unistd::Pid::from_raw(child.id().unwrap().try_into().unwrap());
        nix::sys::signal::kill(pid, kill).unwrap();
        let output = timeout(PATIENCE, child.wait_with_output())
            .await
            .expect("it ends")
            .unwrap();
        let told = text(&output.stderr);
        assert_eq!(output.status.code(), Some(11), "{told}");
        assert!(told.contains("was interrupted"), "{told}");
        assert_eq!(keys(&stage.redis), before);
    }
    stage.end().await;
}
