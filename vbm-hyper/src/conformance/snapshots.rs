//! Going back to how a VM was.

use super::{guest::Guest, *};
use vbm_core::{SnapshotContent, SnapshotId};

/// A snapshot id that nobody else has.
pub(super) fn snapshot_of(vm: VmId, number: u128) -> SnapshotId {
    let number = vm.uuid().as_u128() ^ (number << 64);
    SnapshotId::from_uuid(uuid::Uuid::from_u128(number))
}

/// What the checks with a guest need; or why they are left out.
pub(super) struct Scene {
    pub(super) definition: VmDefinition,
    pub(super) words: GuestWords,
}

impl Scene {
    pub(super) fn set(ground: &Ground<'_>) -> Result<Self, Verdict> {
        ground.consoles()?;
        Ok(Self {
            definition: ground.bench.obedient().map_err(Verdict::LeftOut)?,
            words: ground.bench.words().map_err(Verdict::LeftOut)?,
        })
    }

    /// Boots the guest.
    pub(super) async fn boot<'a>(&'a self, ground: &'a Ground<'a>) -> Guest<'a> {
        let id = ground.start(&self.definition).await;
        ground.bench.booted(&*ground.driver, id).await;
        self.guest(ground)
    }

    pub(super) fn guest<'a>(&'a self, ground: &'a Ground<'a>) -> Guest<'a> {
        Guest {
            ground,
            driver: &*ground.driver,
            id: self.definition.id,
            words: &self.words,
        }
    }
}

macro_rules! or_left_out {
    ($wanted:expr) => {
        match $wanted {
            Ok(there) => there,
            Err(left_out) => return left_out,
        }
    };
}
pub(super) use or_left_out;

/// A VM that is off is snapshotted; after a revert its disk is as it was, and it is off.
pub async fn a_vm_goes_back_to_a_snapshot_of_its_disk(bench: &dyn Bench) -> Verdict {
    let ground = Ground::open(bench).await;
    let snapshots = or_left_out!(ground.snapshots());
    let scene = or_left_out!(Scene::set(&ground));
    let (definition, id) = (&scene.definition, scene.definition.id);
    let snapshot = snapshot_of(id, 1);

    scene.boot(&ground).await.write("apple").await;
    ground.kill(id).await;
    let taken = snapshots
        .take(&ground.cx, definition, snapshot.into())
        .await
        .expect("it is off");
    assert_eq!(
        (taken.content, taken.paused),
        (SnapshotContent::Disk, Duration::ZERO)
    );
    let guest = scene.boot(&ground).await;
    guest.has_written("apple").await;
    guest.write("berry").await;
    ground.kill(id).await;

    let seen = ground.patiently(
        "revert",
        snapshots.revert(&ground.cx, definition, snapshot, NO_NICS),
    );
    assert_eq!(seen.await.expect("it is off"), Seen::resting(PowerState::Off));
    assert_eq!(ground.power(id).await, PowerState::Off);
    scene.boot(&ground).await.has_written("apple").await;
    ground.kill(id).await;
    snapshots
        .delete(&ground.cx, definition, snapshot)
        .await
        .expect("it is there");
    assert_eq!(snapshots.list(definition).await.expect("it can be listed"), []);
    ground.done(&[id]).await
}

/// A VM that runs is snapshotted and goes on; after a revert its memory and its disk are of that moment, and it runs.
pub async fn a_vm_goes_back_to_a_snapshot_of_disk_and_memory(bench: &dyn Bench) -> Verdict {
    let ground = Ground::open(bench).await;
    let snapshots = or_left_out!(ground.snapshots());
    let scene = or_left_out!(Scene::set(&ground));
    let (definition, id) = (&scene.definition, scene.definition.id);
    let snapshot = snapshot_of(id, 1);

    let guest = scene.boot(&ground).await;
    guest.remember("alpha").await;
    guest.write("apple").await;
    let before = guest.count().await;
    let taken = ground.patiently(
        "snapshot",
        snapshots.take(&ground.cx, definition, snapshot.into()),
    );
    let taken = taken.await.expect("it runs");
    assert_eq!(taken.content, SnapshotContent::DiskAndMemory);
    assert!(
        taken.paused > Duration::ZERO && taken.paused < bench.patience(),
        "{:?}",
        taken.paused
    );
    tracing::info!(paused = ?taken.paused, "a VM was snapshotted");
    assert_eq!(ground.power(id).await, PowerState::Running);
    guest.remembers("alpha").await;
    guest.remember("bravo").await;
    guest.write("berry").await;
    let mut after = guest.next_count().await;
    while after < before + 4 {
        after = guest.next_count().await;
    }
    refused(
        snapshots.revert(&ground.cx, definition, snapshot, NO_NICS).await,
        "revert of a VM that runs",
    );
    ground.kill(id).await;

    let reverted = ground.patiently(
        "revert",
        snapshots.revert(&ground.cx, definition, snapshot, NO_NICS),
    );
    assert_eq!(reverted.await.expect("it is off").power, PowerState::Running);
    assert_eq!(ground.power(id).await, PowerState::Running);
    let guest = scene.guest(&ground);
    guest.remembers("alpha").await;
    guest.has_written("apple").await;
    let again = guest.next_count().await;
    assert!(before <= again, "it goes on counting: {before}, {again}");
    let listed = snapshots.list(definition).await.expect("it can be listed");
    assert_eq!(
        listed,
        [(snapshot, SnapshotContent::DiskAndMemory)],
        "a revert uses nothing up"
    );
    let deleted = ground.patiently("delete", snapshots.delete(&ground.cx, definition, snapshot));
    deleted.await.expect("it may run");
    assert_eq!(snapshots.list(definition).await.expect("it can be listed"), []);
    guest.remembers("alpha").await;
    ground.done(&[id]).await
}

/// A paused VM is snapshotted with its memory and stays paused; after a revert it runs.
pub async fn a_paused_vm_is_snapshotted_and_stays_paused(bench: &dyn Bench) -> Verdict {
    let ground = Ground::open(bench).await;
    let snapshots = or_left_out!(ground.snapshots());
    let definition = bench.definition();
    let id = ground.start(&definition).await;
    ground.driver.pause(id).await.expect("it runs");
    let snapshot = snapshot_of(id, 1);
    let taken = ground.patiently(
        "snapshot",
        snapshots.take(&ground.cx, &definition, snapshot.into()),
    );
    assert_eq!(
        taken.await.expect("it is paused").content,
        SnapshotContent::DiskAndMemory
    );
    assert_eq!(ground.power(id).await, PowerState::Paused(PauseReason::Requested));
    ground.driver.resume(id).await.expect("it goes on all the same");
    let twice = snapshots
        .take(&ground.cx, &definition, snapshot.into())
        .await
        .expect("it is there");
    assert_eq!(
        (twice.content, twice.paused),
        (SnapshotContent::DiskAndMemory, Duration::ZERO)
    );
    ground.kill(id).await;
    let reverted = ground.patiently(
        "revert",
        snapshots.revert(&ground.cx, &definition, snapshot, NO_NICS),
    );
    assert_eq!(reverted.await.expect("it is off").power, PowerState::Running);
    ground.done(&[id]).await
}

/// Of several snapshots any can be deleted, also while the VM runs, and the others are still there to go back to.
pub async fn snapshots_are_deleted_whatever_stands_before_and_after(bench: &dyn Bench) -> Verdict {
    let ground = Ground::open(bench).await;
    let snapshots = or_left_out!(ground.snapshots());
    let definition = bench.definition();
    let id = ground.start(&definition).await;
    ground.kill(id).await;
    let all: Vec<SnapshotId> = (1..=4).map(|number| snapshot_of(id, number)).collect();
    for snapshot in &all {
        snapshots
            .take(&ground.cx, &definition, (*snapshot).into())
            .await
            .expect("it is off");
    }
    let listed = async || {
        let listed = snapshots.list(&definition).await.expect("it can be listed");
        let mut ids: Vec<_> = listed.into_iter().map(|(id, _)| id).collect();
        ids.sort();
        ids
    };
    let mut there = all.clone();
    there.sort();
    assert_eq!(listed().await, there);
    snapshots
        .delete(&ground.cx, &definition, all[1])
        .await
        .expect("it is there");
    let again = snapshots.delete(&ground.cx, &definition, all[1]).await;
    again.expect("deleting what is not there is no error");
    ground.start(&definition).await;
    snapshots
        .delete(&ground.cx, &definition, all[0])
        .await
        .expect("it is there");
    ground.kill(id).await;
    there.retain(|snapshot| ![all[0], all[1]].contains(snapshot));
    assert_eq!(listed().await, there);
    for snapshot in [all[2], all[3]] {
        let reverted = snapshots.revert(&ground.cx, &definition, snapshot, NO_NICS).await;
        assert_eq!(reverted.expect("it is there").power, PowerState::Off);
    }
    let gone = snapshots.revert(&ground.cx, &definition, all[0], NO_NICS).await;
    assert_eq!(gone.expect_err("it is gone").kind(), ErrorKind::NotFound);
    ground.start(&definition).await;
    ground.done(&[id]).await
}

/// A snapshot is still there for the next driver.
pub async fn a_snapshot_outlives_the_driver(bench: &dyn Bench) -> Verdict {
    let ground = Ground::open(bench).await;
    or_left_out!(ground.snapshots());
    let definition = bench.definition();
    let id = ground.start(&definition).await;
    let snapshot = snapshot_of(id, 1);
    let taken = or_left_out!(ground.snapshots())
        .take(&ground.cx, &definition, snapshot.into())
        .await;
    taken.expect("it runs");
    let (ground, _) = reopen(ground).await;
    let snapshots = or_left_out!(ground.snapshots());
    assert_eq!(
        snapshots.list(&definition).await.expect("it can be listed"),
        [(snapshot, SnapshotContent::DiskAndMemory)]
    );
    ground.kill(id).await;
    let reverted = ground.patiently(
        "revert",
        snapshots.revert(&ground.cx, &definition, snapshot, NO_NICS),
    );
    assert_eq!(reverted.await.expect("it is off").power, PowerState::Running);
    ground.done(&[id]).await
}

/// A VM that has crashed goes back to a snapshot, and is not crashed any more.
pub async fn a_crashed_vm_goes_back_to_a_snapshot(bench: &dyn Bench) -> Verdict {
    let mut ground = Ground::open(bench).await;
    let definition = bench.definition();
    let id = definition.id;
    let snapshot = snapshot_of(id, 1);
    let taken = or_left_out!(ground.snapshots())
        .take(&ground.cx, &definition, snapshot.into())
        .await;
    assert_eq!(
        taken.expect("it never ran").content,
        SnapshotContent::Disk,
        "what never ran is off"
    );
    ground.start(&definition).await;
    bench.accident(id, &ground.seen(id).await).await;
    ground
        .event(id, |event| matches!(event, PowerEvent::Crash(_)))
        .await;
    let snapshots = or_left_out!(ground.snapshots());
    let reverted = ground.patiently(
        "revert",
        snapshots.revert(&ground.cx, &definition, snapshot, NO_NICS),
    );
    assert_eq!(reverted.await.expect("it has crashed").power, PowerState::Off);
    assert_eq!(ground.power(id).await, PowerState::Off);
    ground.done(&[id]).await
}

/// A saved VM goes back to a snapshot; the memory that was saved of what came after is gone.
pub async fn a_saved_vm_goes_back_to_a_snapshot_and_its_saved_memory_is_gone(bench: &dyn Bench) -> Verdict {
    let ground = Ground::open(bench).await;
    let snapshots = or_left_out!(ground.snapshots());
    let saved_state = or_left_out!(ground.saved_state());
    let definition = bench.definition();
    let id = ground.start(&definition).await;
    let snapshot = snapshot_of(id, 1);
    snapshots
        .take(&ground.cx, &definition, snapshot.into())
        .await
        .expect("it runs");
    let saved = ground.patiently("save", saved_state.save(&ground.cx, id)).await;
    saved.expect("it runs");
    refused(
        snapshots
            .take(&ground.cx, &definition, snapshot_of(id, 2).into())
            .await,
        "snapshot of a saved VM",
    );
    let reverted = ground.patiently(
        "revert",
        snapshots.revert(&ground.cx, &definition, snapshot, NO_NICS),
    );
    assert_eq!(reverted.await.expect("it is saved").power, PowerState::Running);
    ground.kill(id).await;
    refused(
        saved_state.restore(&ground.cx, &definition, NO_NICS).await,
        "restore of what was used up",
    );
    ground.done(&[id]).await
}

/// Where no snapshot can be taken, or gone back to, that is refused, and nothing changes.
pub async fn what_no_snapshot_can_be_taken_of_is_refused(bench: &dyn Bench) -> Verdict {
    let ground = Ground::open(bench).await;
    or_left_out!(ground.snapshots());
    let definition = bench.definition();
    let id = ground.start(&definition).await;
    let snapshot = snapshot_of(id, 1);
    let taken = or_left_out!(ground.snapshots())
        .take(&ground.cx, &definition, snapshot.into())
        .await;
    taken.expect("it runs");
    // What may run is judged by nobody before it is adopted.
    ground.driver.shutdown().await;
    drop(ground);
    let ground = Ground::open(bench).await;
    let snapshots = or_left_out!(ground.snapshots());
    refused(
        snapshots
            .take(&ground.cx, &definition, snapshot_of(id, 2).into())
            .await,
        "snapshot of what nobody knows",
    );
    refused(
        snapshots.revert(&ground.cx, &definition, snapshot, NO_NICS).await,
        "revert of what nobody knows",
    );
    ground.driver.adopt().await.expect("it can be adopted");
    assert_eq!(ground.power(id).await, PowerState::Running);
    assert_eq!(
        snapshots.list(&definition).await.expect("it can be listed"),
        [(snapshot, SnapshotContent::DiskAndMemory)]
    );
    ground.done(&[id]).await
}
