//! What outlives a driver, what crashes, and what is forgotten.

use super::*;

/// A VM outlives its driver; the next one adopts it as it is, and all works as before.
pub async fn vms_outlive_their_driver_and_are_adopted(bench: &dyn Bench) -> Verdict {
    let ground = Ground::open(bench).await;
    let definition = bench.definition();
    let id = ground.start(&definition).await;
    let paused = ground.started().await;
    ground.driver.pause(paused).await.expect("it runs");
    let before = [ground.seen(id).await, ground.seen(paused).await];

    let (mut ground, adopted) = reopen(ground).await;
    let mine = adopted
        .iter()
        .find(|vm| vm.id == id)
        .expect("the VM is among the adopted");
    assert_eq!((&mine.definition, &mine.seen), (&definition, &before[0]));
    assert_eq!(
        [ground.seen(id).await, ground.seen(paused).await],
        before,
        "same process, same state"
    );
    assert_eq!(
        ground.driver.adopt().await.expect("it can be asked twice").len(),
        adopted.len()
    );
    ground.driver.resume(paused).await.expect("it is paused");
    ground.driver.pause(id).await.expect("it runs");
    ground
        .event(id, |event| event == PowerEvent::Pause(PauseReason::Requested))
        .await;
    ground.driver.resume(id).await.expect("it is paused");
    bench.accident(id, &ground.seen(id).await).await;
    ground
        .event(id, |event| event == PowerEvent::Crash(CrashCause::Hypervisor))
        .await;
    ground.done(&[id, paused]).await
}

/// Before it is adopted a VM is `Unknown`: not started, not forgotten, but it can be ended.
pub async fn nothing_is_known_before_it_is_adopted(bench: &dyn Bench) -> Verdict {
    let ground = Ground::open(bench).await;
    let definition = bench.definition();
    let id = ground.start(&definition).await;
    ground.driver.shutdown().await;
    let ground = Ground::open(bench).await;
    assert_eq!(ground.power(id).await, PowerState::Unknown);
    refused(
        ground.driver.start(&ground.cx, &definition, NO_NICS).await,
        "start of what may run",
    );
    refused(ground.driver.undefine(id).await, "forgetting what may run");
    ground.kill(id).await;
    ground.start(&definition).await;
    ground.done(&[id]).await
}

/// A VM that ends by an accident has crashed, and can be started again.
pub async fn an_accident_is_a_crash_and_not_a_shutdown(bench: &dyn Bench) -> Verdict {
    let mut ground = Ground::open(bench).await;
    let definition = bench.definition();
    let id = ground.start(&definition).await;
    bench.accident(id, &ground.seen(id).await).await;
    let crash = ground
        .event(id, |event| {
            matches!(event, PowerEvent::Crash(_) | PowerEvent::ShutDown)
        })
        .await;
    assert_eq!(crash.event, PowerEvent::Crash(CrashCause::Hypervisor));
    assert_eq!(
        ground.seen(id).await,
        Seen::resting(PowerState::Crashed(CrashCause::Hypervisor))
    );
    ground.start(&definition).await;
    ground.done(&[id]).await
}

/// An accident while no driver looked is found by adoption, and remembered by the driver after that.
pub async fn an_accident_that_nobody_saw_is_a_crash_too(bench: &dyn Bench) -> Verdict {
    let ground = Ground::open(bench).await;
    let id = ground.started().await;
    let crash = PowerState::Crashed(CrashCause::Hypervisor);
    let seen = ground.seen(id).await;
    ground.driver.shutdown().await;
    bench.accident(id, &seen).await;
    let (ground, adopted) = reopen(ground).await;
    let mine = adopted
        .iter()
        .find(|vm| vm.id == id)
        .expect("the VM is among the adopted");
    assert_eq!(mine.seen, Seen::resting(crash));
    assert_eq!(ground.power(id).await, crash);
    let (ground, _) = reopen(ground).await;
    assert_eq!(ground.power(id).await, crash, "it is remembered");
    ground.done(&[id]).await
}

/// Only what is off is forgotten; after that it is unknown, and forgetting it again is no error.
pub async fn only_what_is_off_is_forgotten(bench: &dyn Bench) -> Verdict {
    let ground = Ground::open(bench).await;
    let id = ground.started().await;
    refused(ground.driver.undefine(id).await, "forgetting a VM that runs");
    ground.kill(id).await;
    for _ in 0..2 {
        ground
            .driver
            .undefine(id)
            .await
            .expect("what is off is forgotten");
    }
    let error = ground.driver.inspect(id).await.expect_err("it is forgotten");
    assert_eq!(error.kind(), ErrorKind::NotFound);
    ground.done(&[]).await
}

/// A driver that was shut down refuses work; the VM runs on.
pub async fn a_driver_that_was_shut_down_refuses_work(bench: &dyn Bench) -> Verdict {
    let ground = Ground::open(bench).await;
    let id = ground.started().await;
    let before = ground.seen(id).await;
    ground.driver.shutdown().await;
    for result in [
        ground
            .driver
            .start(&ground.cx, &bench.definition(), NO_NICS)
            .await
            .map(drop),
        ground.driver.kill(id).await,
        ground.driver.inspect(id).await.map(drop),
        ground.driver.inventory().await.map(drop),
    ] {
        assert_eq!(
            result.expect_err("it was shut down").kind(),
            ErrorKind::Unavailable
        );
    }
    let (ground, _) = reopen(ground).await;
    assert_eq!(ground.seen(id).await, before);
    ground.done(&[id]).await
}
