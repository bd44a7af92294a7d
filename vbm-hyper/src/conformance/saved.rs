//! Memory kept on disk while the VM does not run.

use super::{
    snapshots::{Scene, or_left_out},
    *,
};
use tokio_util::sync::CancellationToken;

/// A saved VM does not run; restored, it goes on where it was, and the saved memory is used up.
pub async fn a_saved_vm_goes_on_where_it_was(bench: &dyn Bench) -> Verdict {
    let mut ground = Ground::open(bench).await;
    let scene = or_left_out!(Scene::set(&ground));
    or_left_out!(ground.saved_state());
    let (definition, id) = (&scene.definition, scene.definition.id);
    let guest = scene.boot(&ground).await;
    guest.remember("alpha").await;
    let before = guest.count().await;
    {
        let saved_state = or_left_out!(ground.saved_state());
        let seen = ground.patiently("save", saved_state.save(&ground.cx, id)).await;
        assert_eq!(seen.expect("it runs"), Seen::resting(PowerState::Saved));
    }
    ground.event(id, |event| event == PowerEvent::SaveDone).await;
    assert_eq!(ground.seen(id).await, Seen::resting(PowerState::Saved));
    refused(
        ground.driver.start(&ground.cx, definition, NO_NICS).await,
        "start of a saved VM",
    );
    refused(ground.driver.undefine(id).await, "forgetting a saved VM");

    let saved_state = or_left_out!(ground.saved_state());
    let seen = ground.patiently("restore", saved_state.restore(&ground.cx, definition, NO_NICS));
    assert_eq!(seen.await.expect("it is saved").power, PowerState::Running);
    let guest = scene.guest(&ground);
    guest.remembers("alpha").await;
    let after = guest.next_count().await;
    assert!(
        before <= after && after < before + 100,
        "it goes on counting: {before}, {after}"
    );
    ground.kill(id).await;
    refused(
        saved_state.restore(&ground.cx, definition, NO_NICS).await,
        "restore of what was used up",
    );
    ground.done(&[id]).await
}

/// A saved VM is still saved for the next driver, which adopts it as that.
pub async fn a_saved_vm_outlives_its_driver(bench: &dyn Bench) -> Verdict {
    let ground = Ground::open(bench).await;
    or_left_out!(ground.saved_state());
    let definition = bench.definition();
    let id = ground.start(&definition).await;
    ground.driver.pause(id).await.expect("it runs");
    let saved = or_left_out!(ground.saved_state()).save(&ground.cx, id).await;
    saved.expect("a paused VM is saved too");
    let (ground, adopted) = reopen(ground).await;
    let mine = adopted.iter().find(|vm| vm.id == id);
    let mine = mine.expect("the VM is among the adopted");
    assert_eq!(
        (&mine.definition, &mine.seen),
        (&definition, &Seen::resting(PowerState::Saved))
    );
    assert_eq!(ground.power(id).await, PowerState::Saved);
    let saved_state = or_left_out!(ground.saved_state());
    let seen = ground.patiently("restore", saved_state.restore(&ground.cx, &definition, NO_NICS));
    assert_eq!(seen.await.expect("it is saved").power, PowerState::Running);
    let (ground, _) = reopen(ground).await;
    assert_eq!(
        ground.power(id).await,
        PowerState::Running,
        "it is not saved any more"
    );
    ground.done(&[id]).await
}

/// Saved memory is thrown away when somebody says so, or forces the VM off; then the VM boots.
pub async fn saved_memory_can_be_thrown_away(bench: &dyn Bench) -> Verdict {
    let mut ground = Ground::open(bench).await;
    or_left_out!(ground.saved_state());
    let definition = bench.definition();
    let id = ground.start(&definition).await;
    for by_force in [false, true] {
        let saved = or_left_out!(ground.saved_state()).save(&ground.cx, id).await;
        saved.expect("it runs");
        if by_force {
            ground.kill(id).await;
        } else {
            let discarded = or_left_out!(ground.saved_state()).discard(id).await;
            discarded.expect("it is saved");
        }
        ground.event(id, |event| event == PowerEvent::ForceOff).await;
        assert_eq!(ground.seen(id).await, Seen::resting(PowerState::Off));
        ground.start(&definition).await;
    }
    let discarded = or_left_out!(ground.saved_state()).discard(id).await;
    discarded.expect("where nothing is saved it does nothing");
    assert_eq!(ground.power(id).await, PowerState::Running);
    ground.done(&[id]).await
}

/// What cannot be saved or restored is refused, and nothing changes.
pub async fn what_cannot_be_saved_or_restored_is_refused(bench: &dyn Bench) -> Verdict {
    let ground = Ground::open(bench).await;
    let saved_state = or_left_out!(ground.saved_state());
    let definition = bench.definition();
    let unknown = saved_state.save(&ground.cx, definition.id).await;
    assert_eq!(unknown.expect_err("it is unknown").kind(), ErrorKind::NotFound);
    let id = ground.start(&definition).await;
    refused(
        saved_state.restore(&ground.cx, &definition, NO_NICS).await,
        "restore of a VM that runs",
    );
    assert_eq!(ground.power(id).await, PowerState::Running);
    ground.kill(id).await;
    refused(saved_state.save(&ground.cx, id).await, "save of a VM that is off");
    refused(
        saved_state.restore(&ground.cx, &definition, NO_NICS).await,
        "restore of a VM that is off",
    );
    assert_eq!(ground.power(id).await, PowerState::Off);
    ground.done(&[id]).await
}

/// A save that is called off is undone unless it was done already: the VM runs on, or is saved.
pub async fn a_save_that_is_called_off_lets_the_vm_run_on(bench: &dyn Bench) -> Verdict {
    let ground = Ground::open(bench).await;
    let saved_state = or_left_out!(ground.saved_state());
    let definition = bench.definition();
    let id = ground.start(&definition).await;
    let late = OpCx::new().within(Duration::ZERO);
    let late = saved_state.save(&late, id).await;
    assert_eq!(late.expect_err("it is late").kind(), ErrorKind::DeadlineExceeded);
    assert_eq!(ground.power(id).await, PowerState::Running);
    let cx = OpCx::new();
    let mut progress = cx.progress();
    let over = CancellationToken::new();
    let save = async {
        let saved = saved_state.save(&cx, id).await;
        over.cancel();
        saved
    };
    let call_off = async {
        // Cancel safe: both only wait. Not every driver says how far it is.
        tokio::select! {
            _ = progress.changed() => cx.cancel(),
            () = over.cancelled() => {}
        }
    };
    let both = async { tokio::join!(save, call_off) };
    let (saved, ()) = ground.patiently("save", both).await;
    match saved {
        Ok(seen) => assert_eq!(seen.power, PowerState::Saved),
        Err(error) => {
            assert_eq!(error.kind(), ErrorKind::Cancelled, "{error}");
            assert_eq!(ground.power(id).await, PowerState::Running);
            let again = ground.patiently("save", saved_state.save(&ground.cx, id));
            again.await.expect("it can be saved after that");
        }
    }
    let restored = saved_state.restore(&ground.cx, &definition, NO_NICS);
    let restored = ground.patiently("restore", restored).await;
    assert_eq!(restored.expect("it is saved").power, PowerState::Running);
    ground.done(&[id]).await
}
