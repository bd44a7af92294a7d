//! Controller and agent as two, over a real Redis.
#![expect(clippy::print_stdout, reason = "a test that is left out says so")]

use crate::house::{PATIENCE, import, lan, launch, through, unlist, until};
use std::{
    process::{Child, Command, Stdio},
    sync::Arc,
    time::Duration,
};
use vbm_core::{ErrorKind, PowerState};
use vbm_hyper::{SimDriver, SimWorld};
use vbm_net::SimNetwork;
use vbm_sdk::{
    api::PowerAction,
    server::{Role, Server},
    source::SystemClock,
};

/// A Redis of this test's own, on a socket in its own directory. Ends with the value.
struct Redis {
    process: Child,
    dir: tempfile::TempDir,
}

impl Redis {
    async fn start() -> Option<Self> {
        let dir = tempfile::tempdir().unwrap();
        let server = Command::new("redis-server")
            .args([
                "--port",
                "0",
                "--save",
                "",
                "--appendonly",
                "no",
                "--maxmemory-policy",
                "noeviction",
                "--unixsocket",
            ])
            .arg(dir.path().join("s"))
            .arg("--dir")
            .arg(dir.path())
            .stdout(Stdio::null())
            .spawn();
        let process = match server {
            Ok(process) => process,
            Err(e) if left_out("redis") => {
                println!("LEFT OUT: redis-server cannot be started: {e}");
                return None;
            }
            Err(e) => panic!(
                "redis-server cannot be started ({e}): install redis-server, or set VBM_LEAVE_OUT=redis"
            ),
        };
        let redis = Self { process, dir };
        let ready = async {
            while tokio::net::UnixStream::connect(redis.dir.path().join("s"))
                .await
                .is_err()
            {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        tokio::time::timeout(PATIENCE, ready).await.unwrap();
        Some(redis)
    }

    fn url(&self) -> String {
        format!("redis+unix://{}", self.dir.path().join("s").display())
    }
}

impl Drop for Redis {
    fn drop(&mut self) {
        drop(self.process.kill());
        drop(self.process.wait());
    }
}

fn left_out(what: &str) -> bool {
    std::env::var("VBM_LEAVE_OUT").is_ok_and(|v| v.split(',').any(|w| w == what))
}

async fn controller(redis: &Redis, dir: &std::path::Path) -> Server {
    let builder = Server::builder(dir.join("controller"))
        .run_dir(dir.join("run-c"))
        .role(Role::Controller)
        .ephemeral(true);
    builder.redis(redis.url()).start().await.unwrap()
}

async fn agent(redis: &Redis, dir: &std::path::Path, world: &SimWorld) -> Server {
    Server::builder(dir.join("agent"))
        .run_dir(dir.join("run-a"))
        .role(Role::Agent)
        .ephemeral(true)
        .redis(redis.url())
        .node("lab/rack1/n1".parse().unwrap())
        .with_drivers(vec![Arc::new(SimDriver::open(world.clone()).unwrap())])
        .with_networks(Arc::new(SimNetwork::new(Arc::new(SystemClock))))
        .start()
        .await
        .unwrap()
}

#[tokio::test]
async fn a_controller_and_an_agent_do_the_same_over_redis() {
    let Some(redis) = Redis::start().await else { return };
    let dir = tempfile::tempdir().unwrap();
    let world = SimWorld::instant();
    let brain = controller(&redis, dir.path()).await;
    let hand = agent(&redis, dir.path(), &world).await;
    let client = brain.client().unwrap();
    import(&client, dir.path()).await;
    lan(&client, "lan", "10.0.0.0/24").await;
    let vm = launch(&client, "web").await;
    assert_eq!(vm.vm.spec.node, Some("lab/rack1/n1".parse().unwrap()));

    hand.shutdown().await;
    let hand = agent(&redis, dir.path(), &world).await;
    until(&client, "web", |v| v.vm.status.power == PowerState::Running).await;
    through(&client, client.vms().power("web", PowerAction::Stop).await)
        .await
        .unwrap();
    through(&client, client.vms().delete("web").await).await.unwrap();
    hand.shutdown().await;
    brain.shutdown().await;
    unlist(&dir.path().join("agent"));
}

#[tokio::test]
async fn a_controller_without_redis_says_so_in_three_lines() {
    let dir = tempfile::tempdir().unwrap();
    let builder = Server::builder(dir.path().join("c"))
        .run_dir(dir.path().join("r"))
        .role(Role::Controller)
        .ephemeral(true);
    let error = builder
        .redis(format!("redis+unix://{}", dir.path().join("none").display()))
        .start()
        .await
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}");
    assert_eq!(error.to_string().lines().count(), 3, "{error}");
}
