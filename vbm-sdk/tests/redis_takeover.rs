//! Real processes over a real Redis: the leading controller is killed in the middle of launches, Redis is killed and
//! comes back; everything that was begun is finished.
#![expect(clippy::unwrap_used, reason = "a test ends at its first surprise")]

#[path = "common/daemons.rs"]
mod daemons;
#[path = "common/redis.rs"]
mod redis_server;

use daemons::{Daemon, LOOK_EVERY, PATIENCE, ended, furnish, until_leader};
use futures::{FutureExt as _, StreamExt as _, stream};
use redis_server::{DURABLE, Redis};
use std::{fs, time::Duration};
use tokio::time::{Instant, sleep, timeout};
use vbm_core::{EventKind, Operation, OperationState, PowerState};
use vbm_sdk::{
    api::{LaunchRequest, NicRequest},
    client::Client,
};

/// How soon another controller leads after the leader was killed.
const TAKEOVER_MAX: Duration = Duration::from_secs(5);
/// Launches under way at once.
const LAUNCHES_AT_ONCE: usize = 4;

/// Launches until they were all accepted; one that was not is asked for again.
async fn launch(client: &Client, called: String) -> Operation {
    let request = LaunchRequest::new("tiny")
        .name(called.parse().unwrap())
        .nic(NicRequest::on("lan"));
    let accepted = async {
        loop {
            match client.vms().launch(request.clone()).await {
                Ok(made) => return made.operation,
                // Whether it was done is known to the store.
                Err(e) if e.is_retryable() => sleep(LOOK_EVERY).await,
                Err(e) => panic!("{called}: {e}"),
            }
        }
    };
    timeout(PATIENCE, accepted).await.unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn when_the_leader_is_killed_another_takes_over_and_every_launch_ends_done() {
    let Some(mut redis) = Redis::with(DURABLE) else {
        return;
    };
    let place = tempfile::Builder::new().prefix("vbm-t-").tempdir().unwrap();
    let mut first = Daemon::start(&redis, place.path(), "controller", "first");
    assert_eq!(until_leader(&first.client(), "first").await, 1);
    let second = Daemon::start(&redis, place.path(), "controller", "second");
    let _agent = Daemon::start(&redis, place.path(), "agent", "n1");
    let client = second.client();
    assert_eq!(until_leader(&client, "first").await, 1);
    furnish(&first.client(), place.path()).await;
    // The image's file has its copy before its giver dies.
    let copies = second.dir.join("data/images/sha256");
    let copied = async {
        while fs::read_dir(&copies).map_or(0, Iterator::count) == 0 {
            sleep(LOOK_EVERY).await;
        }
    };
    timeout(PATIENCE, copied).await.unwrap();

    let launches = tokio::spawn({
        let client = client.clone();
        async move {
            stream::iter(0..40)
                .map(|n| launch(&client, format!("vm{n}")).boxed())
                .buffered(LAUNCHES_AT_ONCE)
                .collect::<Vec<_>>()
                .await
        }
    });
    while client.vms().list().all().await.unwrap().len() < 5 {
        sleep(LOOK_EVERY).await;
    }
    let killed = Instant::now();
    first.kill();
    assert_eq!(until_leader(&client, "second").await, 2);
    let took = killed.elapsed();
    println!("take-over after kill -9: {} ms", took.as_millis());
    assert!(took < TAKEOVER_MAX, "{took:?}");
    for operation in timeout(PATIENCE, launches).await.unwrap().unwrap() {
        let ended = ended(&client, &operation).await;
        assert_eq!(ended.state, OperationState::Done, "{ended:?}");
    }
    let finished = killed.elapsed();
    println!(
        "40 launches, all Done, {} ms after the kill",
        finished.as_millis()
    );

    // Who was killed comes back and follows; Redis dies and comes back, and everything goes on.
    let first = Daemon::start(&redis, place.path(), "controller", "first");
    until_leader(&first.client(), "second").await;
    redis.kill();
    redis.restart();
    let restarted = Instant::now();
    let operation = launch(&first.client(), "after".into()).await;
    assert_eq!(ended(&client, &operation).await.state, OperationState::Done);
    println!(
        "a launch {} ms after Redis was killed and restarted",
        restarted.elapsed().as_millis()
    );
    let vms = client.vms().list().all().await.unwrap();
    assert_eq!(vms.len(), 41);
    assert!(vms.iter().all(|v| v.vm.status.power == PowerState::Running));
    let mut events = client.events().open();
    let (mut elected, mut started) = (Vec::new(), 0);
    while let Some(event) = events.next().await {
        let event = event.unwrap().event;
        match event.kind {
            EventKind::ControllerElected => elected.push(event.object.name),
            EventKind::VmStarted => started += 1,
            _ => {}
        }
    }
    assert_eq!(elected[..2], ["first", "second"]);
    assert_eq!(started, 41, "each was started once");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_that_is_told_to_end_hands_over_at_once() {
    let Some(redis) = Redis::with(DURABLE) else { return };
    let place = tempfile::Builder::new().prefix("vbm-t-").tempdir().unwrap();
    let mut first = Daemon::start(&redis, place.path(), "controller", "first");
    until_leader(&first.client(), "first").await;
    let second = Daemon::start(&redis, place.path(), "controller", "second");
    until_leader(&second.client(), "first").await;
    let begun = Instant::now();
    let pid = nix::unistd::Pid::from_raw(i32::try_from(first.process.id()).unwrap());
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).unwrap();
    assert_eq!(until_leader(&second.client(), "second").await, 2);
    let took = begun.elapsed();
    println!("hand-over after SIGTERM: {} ms", took.as_millis());
    assert!(took < Duration::from_secs(2), "{took:?}");
    assert!(first.process.wait().unwrap().success());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_that_is_stopped_and_goes_on_later_finds_that_it_leads_no_more() {
    let Some(redis) = Redis::with(DURABLE) else { return };
    let place = tempfile::Builder::new().prefix("vbm-t-").tempdir().unwrap();
    let first = Daemon::start(&redis, place.path(), "controller", "first");
    until_leader(&first.client(), "first").await;
    let second = Daemon::start(&redis, place.path(), "controller", "second");
    until_leader(&second.client(), "first").await;
    let pid = nix::unistd::Pid::from_raw(i32::try_from(first.process.id()).unwrap());
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGSTOP).unwrap();
    assert_eq!(until_leader(&second.client(), "second").await, 2);
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGCONT).unwrap();
    assert_eq!(until_leader(&first.client(), "second").await, 2);
    assert_eq!(until_leader(&second.client(), "second").await, 2);
}
