//! Controller and agent as two, over a real Redis.

use crate::{
    house::{import, lan, launch, through, unlist, until},
    redis_server::Redis,
};
use std::sync::Arc;
use vbm_core::{ErrorKind, PowerState};
use vbm_hyper::{SimDriver, SimWorld};
use vbm_net::SimNetwork;
use vbm_sdk::{
    api::PowerAction,
    server::{Role, Server},
    source::SystemClock,
};

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
    let Some(redis) = Redis::start() else { return };
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
