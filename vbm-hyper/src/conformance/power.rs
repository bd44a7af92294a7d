//! Starting, stopping, and what may be done when.

use super::*;

/// A started VM runs, has a process, says since when and how it is run.
pub async fn a_started_vm_runs_and_is_seen(bench: &dyn Bench) -> Verdict {
    let ground = Ground::open(bench).await;
    let id = ground.started().await;
    let seen = ground.seen(id).await;
    assert_eq!(seen.power, PowerState::Running);
    assert!(
        seen.pid.is_some() && seen.accelerator.is_some() && seen.started_at.is_some(),
        "{seen:?}"
    );
    let capability = ground.driver.probe().await;
    assert_eq!(
        capability.accelerator, seen.accelerator,
        "a VM is run as the probe promised"
    );
    assert_eq!(
        (capability.driver, capability.problem),
        (ground.driver.kind(), None)
    );
    ground.done(&[id]).await
}

/// A VM that runs cannot be started again.
pub async fn a_vm_that_runs_cannot_be_started_again(bench: &dyn Bench) -> Verdict {
    let ground = Ground::open(bench).await;
    let definition = bench.definition();
    let id = ground.start(&definition).await;
    let before = ground.seen(id).await;
    refused(
        ground.driver.start(&ground.cx, &definition, NO_NICS).await,
        "a second start is refused",
    );
    assert_eq!(
        ground.seen(id).await,
        before,
        "a refused start leaves the VM alone"
    );
    ground.done(&[id]).await
}

/// Of two starts at the same time one wins and the other is refused.
pub async fn of_two_starts_at_the_same_time_one_wins(bench: &dyn Bench) -> Verdict {
    let ground = Ground::open(bench).await;
    let definition = bench.definition();
    // Whatever a first start prepares is ready, so that the two meet.
    drop(ground.driver.probe().await);
    let (a, b) = tokio::join!(
        ground.driver.start(&ground.cx, &definition, NO_NICS),
        ground.driver.start(&ground.cx, &definition, NO_NICS)
    );
    assert!(a.is_ok() != b.is_ok(), "one wins and one is refused: {a:?} {b:?}");
    refused(a.and(b), "the other is refused");
    assert_eq!(ground.power(definition.id).await, PowerState::Running);
    ground.done(&[definition.id]).await
}

/// A start whose future is dropped leaves the VM off, and it can be started after that.
pub async fn a_start_that_nobody_waits_for_leaves_nothing(bench: &dyn Bench) -> Verdict {
    let mut ground = Ground::open(bench).await;
    let definition = bench.definition();
    let id = definition.id;
    let begun = {
        let driver = Arc::clone(&ground.driver);
        let mut start = Box::pin(async move { driver.start(&OpCx::new(), &definition, NO_NICS).await });
        let wait = ground.event(id, |event| event == PowerEvent::Start);
        tokio::select! {
            biased;
            _ = wait => true,
            result = &mut start => { result.expect("it starts"); false }
        }
    };
    if begun {
        ground
            .event(id, |event| {
                matches!(event, PowerEvent::StartFailed | PowerEvent::ForceOff)
            })
            .await;
        assert_eq!(ground.power(id).await, PowerState::Off);
        assert_eq!(ground.seen(id).await.pid, None, "no process is left");
    } else {
        ground.kill(id).await;
    }
    let again = VmDefinition {
        id,
        ..bench.definition()
    };
    ground.start(&again).await;
    ground.done(&[id]).await
}

/// A definition that makes no sense is refused as such, and the VM is not known afterwards.
pub async fn a_definition_that_makes_no_sense_changes_nothing(bench: &dyn Bench) -> Verdict {
    let ground = Ground::open(bench).await;
    for spoil in [
        |d: &mut VmDefinition| d.vcpus = 0,
        |d: &mut VmDefinition| d.memory_mib = 1,
        |d: &mut VmDefinition| d.root_disk = "relative".into(),
    ] {
        let mut definition = bench.definition();
        spoil(&mut definition);
        let error = ground
            .driver
            .start(&ground.cx, &definition, NO_NICS)
            .await
            .expect_err("it makes no sense");
        assert_eq!(error.kind(), ErrorKind::InvalidInput, "{error}");
        let unknown = ground
            .driver
            .inspect(definition.id)
            .await
            .expect_err("nothing was made");
        assert_eq!(unknown.kind(), ErrorKind::NotFound);
    }
    ground.done(&[]).await
}

/// All that is asked of an unknown VM is answered by "not found"; forgetting it is no error.
pub async fn an_unknown_vm_is_not_found(bench: &dyn Bench) -> Verdict {
    let ground = Ground::open(bench).await;
    let (driver, id) = (&ground.driver, bench.definition().id);
    for result in [
        driver.stop(id).await,
        driver.kill(id).await,
        driver.reset(id).await,
        driver.pause(id).await,
        driver.resume(id).await,
        driver.inspect(id).await.map(drop),
    ] {
        assert_eq!(result.expect_err("it is unknown").kind(), ErrorKind::NotFound);
    }
    driver.undefine(id).await.expect("there is nothing to forget");
    ground.done(&[]).await
}

/// The button is pressed, the guest shuts down, the VM is off: and not crashed.
pub async fn the_button_shuts_an_obedient_guest_down(bench: &dyn Bench) -> Verdict {
    let definition = match bench.obedient() {
        Ok(definition) => definition,
        Err(why) => return Verdict::LeftOut(why),
    };
    let mut ground = Ground::open(bench).await;
    let id = ground.start(&definition).await;
    bench.booted(&*ground.driver, id).await;
    let driver = Arc::clone(&ground.driver);
    driver.stop(id).await.expect("the button can be pressed");
    let press_again = async {
        // A guest that still boots loses a press; a VM that was off in between refuses one.
        loop {
            sleep(BUTTON_RESEND_FIRST).await;
            drop(driver.stop(id).await);
        }
    };
    ground.event(id, |event| event == PowerEvent::Stop).await;
    let ended = |event| matches!(event, PowerEvent::ShutDown | PowerEvent::Crash(_));
    let end = tokio::select! {
        end = ground.event(id, ended) => end,
        () = press_again => unreachable!("it presses for ever"),
    };
    assert_eq!(
        (end.event, end.seen.power),
        (PowerEvent::ShutDown, PowerState::Off)
    );
    assert_eq!(ground.seen(id).await, Seen::resting(PowerState::Off));
    ground.done(&[id]).await
}

/// Force-off ends a VM that runs, is paused, or was asked to stop; and one that is off already.
pub async fn force_off_works_in_every_state_and_twice(bench: &dyn Bench) -> Verdict {
    let mut ground = Ground::open(bench).await;
    let id = ground.started().await;
    ground.kill(id).await;
    let off = ground.event(id, |event| event == PowerEvent::ForceOff).await;
    assert_eq!(off.seen, Seen::resting(PowerState::Off));
    ground.kill(id).await;
    for step in ["paused", "stopping"] {
        let again = VmDefinition {
            id,
            ..bench.definition()
        };
        ground.start(&again).await;
        match step {
            "paused" => ground.driver.pause(id).await.expect("it runs"),
            _ => ground.driver.stop(id).await.expect("it runs"),
        }
        ground.kill(id).await;
    }
    ground.done(&[id]).await
}

/// A paused VM says so and why; it goes on when it is told to.
pub async fn a_paused_vm_is_halted_and_goes_on(bench: &dyn Bench) -> Verdict {
    let mut ground = Ground::open(bench).await;
    let id = ground.started().await;
    ground.driver.pause(id).await.expect("it runs");
    assert_eq!(ground.power(id).await, PowerState::Paused(PauseReason::Requested));
    ground.driver.resume(id).await.expect("it is paused");
    assert_eq!(ground.power(id).await, PowerState::Running);
    ground.event(id, |event| event == PowerEvent::Resume).await;
    ground.done(&[id]).await
}

/// A reset VM runs on in the same process, and an event says that it was reset.
pub async fn a_reset_vm_runs_and_says_that_it_was_reset(bench: &dyn Bench) -> Verdict {
    let mut ground = Ground::open(bench).await;
    let id = ground.started().await;
    let before = ground.seen(id).await;
    ground.driver.reset(id).await.expect("it runs");
    ground.event(id, |event| event == PowerEvent::Reset).await;
    assert_eq!(ground.seen(id).await, before);
    ground.done(&[id]).await
}

/// What the power table does not allow is refused as a conflict and changes nothing.
pub async fn what_a_state_does_not_allow_is_refused(bench: &dyn Bench) -> Verdict {
    let ground = Ground::open(bench).await;
    let driver = &ground.driver;
    let id = ground.started().await;
    refused(driver.resume(id).await, "resume of a VM that runs");
    driver.pause(id).await.expect("it runs");
    refused(driver.pause(id).await, "pause of a paused VM");
    refused(driver.reset(id).await, "reset of a paused VM");
    refused(driver.stop(id).await, "stop of a paused VM");
    ground.kill(id).await;
    refused(driver.stop(id).await, "stop of a VM that is off");
    refused(driver.pause(id).await, "pause of a VM that is off");
    refused(driver.resume(id).await, "resume of a VM that is off");
    refused(driver.reset(id).await, "reset of a VM that is off");
    assert_eq!(ground.power(id).await, PowerState::Off);
    ground.done(&[id]).await
}

/// Each event is allowed by the power table in the state that the events before led to, and carries the state after it.
pub async fn the_events_replay_to_what_is_seen(bench: &dyn Bench) -> Verdict {
    let mut ground = Ground::open(bench).await;
    let id = ground.started().await;
    ground.driver.pause(id).await.expect("it runs");
    ground.driver.resume(id).await.expect("it is paused");
    ground.driver.reset(id).await.expect("it runs");
    ground.kill(id).await;
    let mut power = PowerState::Off;
    let mut story = Vec::new();
    while let Ok(event) = ground.events.try_recv() {
        if event.id == id {
            power = power.after(event.event).expect("the table allows each event");
            assert_eq!(power, event.seen.power, "{:?}", event.event);
            story.push(event.event);
        }
    }
    let wanted = [
        PowerEvent::Start,
        PowerEvent::Started,
        PowerEvent::Pause(PauseReason::Requested),
        PowerEvent::Resume,
        PowerEvent::Reset,
        PowerEvent::ForceOff,
    ];
    assert_eq!(story, wanted);
    ground.done(&[id]).await
}

/// The inventory has every VM, with what inspection says of it.
pub async fn the_inventory_has_all(bench: &dyn Bench) -> Verdict {
    let ground = Ground::open(bench).await;
    let ids = [ground.started().await, ground.started().await];
    ground.kill(ids[1]).await;
    let inventory = ground.driver.inventory().await.expect("it can be taken");
    for id in ids {
        let seen = inventory.iter().find(|(found, _)| *found == id);
        assert_eq!(
            seen.map(|(_, seen)| seen.clone()),
            Some(ground.seen(id).await),
            "{id} is in it"
        );
    }
    ground.done(&ids).await
}
