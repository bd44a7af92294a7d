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
