//! Trees of snapshots: of what they are, of which disks, and what is in each of them.

use super::{
    snapshots::{Scene, or_left_out, snapshot_of},
    *,
};
use crate::{DiskDefinition, SnapshotInfo, SnapshotRequest};
use tokio_util::sync::CancellationToken;
use vbm_core::{Consistency, Freeze, SnapshotContent, SnapshotId};

/// A VM that runs is snapshotted without its memory: that is told, it runs on, and after a revert it is off.
pub async fn a_snapshot_without_memory_is_told_and_reverts_to_off(bench: &dyn Bench) -> Verdict {
    let ground = Ground::open(bench).await;
    let snapshots = or_left_out!(ground.snapshots());
    let definition = bench.definition();
    let id = ground.start(&definition).await;
    let request = SnapshotRequest::new(snapshot_of(id, 1)).without_memory(Freeze::No);
    let taken = ground.patiently("snapshot", snapshots.take(&ground.cx, &definition, request));
    let taken = match taken.await {
        Err(error) if error.kind() == ErrorKind::Unsupported => {
            let why = error.to_string();
            assert_eq!(snapshots.list(&definition).await.expect("it can be listed"), []);
            drop(ground.done(&[id]).await);
            return Verdict::LeftOut(why);
        }
        taken => taken.expect("it runs"),
    };
    assert_eq!(
        (taken.content, taken.consistency),
        (SnapshotContent::Disk, Consistency::Crash)
    );
    assert_eq!(ground.power(id).await, PowerState::Running);
    ground.kill(id).await;
    let seen = ground.patiently(
        "revert",
        snapshots.revert(&ground.cx, &definition, request.id, NO_NICS),
    );
    assert_eq!(seen.await.expect("it is off"), Seen::resting(PowerState::Off));
    ground.done(&[id]).await
}

/// Where the guest can be frozen it is, and else that is said; where it must be and cannot, nothing of the snapshot is left.
pub async fn a_guest_is_frozen_or_it_is_said_why_not(bench: &dyn Bench) -> Verdict {
    let ground = Ground::open(bench).await;
    let snapshots = or_left_out!(ground.snapshots());
    let definition = bench.definition();
    let id = ground.start(&definition).await;
    let request = |number, freeze| SnapshotRequest::new(snapshot_of(id, number)).without_memory(freeze);
    let tried = snapshots
        .take(&ground.cx, &definition, request(1, Freeze::IfPossible))
        .await;
    let tried = match tried {
        Err(error) if error.kind() == ErrorKind::Unsupported => {
            let why = error.to_string();
            drop(ground.done(&[id]).await);
            return Verdict::LeftOut(why);
        }
        tried => tried.expect("it runs"),
    };
    let required = snapshots
        .take(&ground.cx, &definition, request(2, Freeze::Required))
        .await;
    let listed = snapshots.list(&definition).await.expect("it can be listed");
    match tried.consistency {
        Consistency::Frozen => {
            let required = required.expect("it was possible a moment ago");
            assert_eq!(required.consistency, Consistency::Frozen);
            assert_eq!(listed.len(), 2);
        }
        _ => {
            assert!(tried.note.is_some(), "it is said why it was not frozen");
            let error = required.expect_err("it cannot be frozen");
            assert_eq!(error.kind(), ErrorKind::Unsupported, "{error}");
            assert_eq!(listed.len(), 1, "nothing of it is left");
        }
    }
    assert_eq!(ground.power(id).await, PowerState::Running);
    ground.driver.pause(id).await.expect("it runs");
    let paused = snapshots
        .take(&ground.cx, &definition, request(3, Freeze::Required))
        .await;
    refused(paused, "freezing a guest that is halted");
    ground.done(&[id]).await
}

/// A snapshot that is called off, or out of time, is undone unless it was done already; the VM runs on.
pub async fn a_snapshot_that_is_called_off_leaves_nothing(bench: &dyn Bench) -> Verdict {
    let ground = Ground::open(bench).await;
    let snapshots = or_left_out!(ground.snapshots());
    let definition = bench.definition();
    let id = ground.start(&definition).await;
    let before = OpCx::new();
    before.cancel();
    let called_off = snapshots
        .take(&before, &definition, snapshot_of(id, 1).into())
        .await;
    assert_eq!(
        called_off.expect_err("it was called off").kind(),
        ErrorKind::Cancelled
    );
    let late = OpCx::new().within(Duration::ZERO);
    let late = snapshots
        .take(&late, &definition, snapshot_of(id, 1).into())
        .await;
    assert_eq!(late.expect_err("it is late").kind(), ErrorKind::DeadlineExceeded);
    assert_eq!(snapshots.list(&definition).await.expect("it can be listed"), []);
    // In the middle of it: whichever comes first.
    let cx = OpCx::new();
    let snapshot = snapshot_of(id, 2);
    let mut progress = cx.progress();
    let over = CancellationToken::new();
    let take = async {
        let taken = snapshots.take(&cx, &definition, snapshot.into()).await;
        over.cancel();
        taken
    };
    let call_off = async {
        // Cancel safe: both only wait. Not every driver says how far it is.
        tokio::select! {
            _ = progress.changed() => cx.cancel(),
            () = over.cancelled() => {}
        }
    };
    let both = async { tokio::join!(take, call_off) };
    let (taken, ()) = ground.patiently("snapshot", both).await;
    let listed = snapshots.list(&definition).await.expect("it can be listed");
    match taken {
        Ok(taken) => assert_eq!(listed, [(snapshot, taken.content)]),
        Err(error) => {
            assert_eq!(error.kind(), ErrorKind::Cancelled, "{error}");
            assert_eq!(listed, []);
        }
    }
    assert_eq!(ground.power(id).await, PowerState::Running);
    let again = snapshots.take(&ground.cx, &definition, snapshot.into());
    ground
        .patiently("snapshot", again)
        .await
        .expect("it can be taken after that");
    ground.done(&[id]).await
}

/// What came after what is told, where the driver knows; and when one is deleted its place is its parent's.
pub async fn a_tree_tells_what_came_after_what(bench: &dyn Bench) -> Verdict {
    let ground = Ground::open(bench).await;
    let snapshots = or_left_out!(ground.snapshots());
    let definition = bench.definition();
    let id = ground.start(&definition).await;
    ground.kill(id).await;
    let one = |number| snapshot_of(id, number);
    let take = async |number| {
        let taken = snapshots.take(&ground.cx, &definition, one(number).into()).await;
        taken.expect("it is off");
    };
    let back = async |number| {
        let back = snapshots
            .revert(&ground.cx, &definition, one(number), NO_NICS)
            .await;
        back.expect("it is there");
    };
    take(1).await;
    take(2).await;
    take(3).await;
    back(2).await;
    take(4).await;
    let tree = async || -> Vec<SnapshotInfo> { snapshots.tree(&definition).await.expect("it can be told") };
    let parents = async || -> Vec<(SnapshotId, Option<SnapshotId>)> {
        let mut all: Vec<_> = tree().await.iter().map(|info| (info.id, info.parent)).collect();
        all.sort();
        all
    };
    let sorted = |mut all: Vec<(SnapshotId, Option<SnapshotId>)>| {
        all.sort();
        all
    };
    if tree().await.iter().all(|info| info.parent.is_none()) {
        drop(ground.done(&[id]).await);
        return Verdict::LeftOut("its driver does not know what came after what".into());
    }
    let all = vec![
        (one(1), None),
        (one(2), Some(one(1))),
        (one(3), Some(one(2))),
        (one(4), Some(one(2))),
    ];
    assert_eq!(parents().await, sorted(all));
    if snapshots.delete(&ground.cx, &definition, one(2)).await.is_ok() {
        let all = vec![(one(1), None), (one(3), Some(one(1))), (one(4), Some(one(1)))];
        assert_eq!(parents().await, sorted(all));
    }
    ground.done(&[id]).await
}

/// In each branch of a tree is what was written and remembered there, whatever else of the tree was deleted.
pub async fn each_branch_holds_what_was_written_there(bench: &dyn Bench) -> Verdict {
    let ground = Ground::open(bench).await;
    let snapshots = or_left_out!(ground.snapshots());
    let mut scene = or_left_out!(Scene::set(&ground));
    let data = bench.data_disk();
    if let Ok(disk) = &data {
        scene.definition.disks.push(disk.clone());
    }
    let two = data.is_ok();
    let (definition, id) = (&scene.definition, scene.definition.id);
    let guest = scene.boot(&ground).await;
    let write = async |word: &str| {
        guest.remember(word).await;
        guest.write(word).await;
        if two {
            guest.write_data(&format!("{word}-data")).await;
        }
    };
    let holds = async |word: &str| {
        guest.remembers(word).await;
        guest.has_written(word).await;
        if two {
            guest.has_written_data(&format!("{word}-data")).await;
        }
    };
    let take = async |number| {
        let taken = snapshots.take(&ground.cx, definition, snapshot_of(id, number).into());
        ground.patiently("snapshot", taken).await.expect("it runs");
    };
    let back = async |number| {
        ground.kill(id).await;
        let back = snapshots.revert(&ground.cx, definition, snapshot_of(id, number), NO_NICS);
        let seen = ground.patiently("revert", back).await.expect("it is there");
        assert_eq!(seen.power, PowerState::Running);
    };
    let delete = async |number| {
        let deleted = snapshots.delete(&ground.cx, definition, snapshot_of(id, number));
        ground.patiently("delete", deleted).await
    };
    write("root").await;
    take(1).await;
    write("middle").await;
    take(2).await;
    write("leaf").await;
    take(3).await;
    back(2).await;
    holds("middle").await;
    write("branch").await;
    take(4).await;
    back(1).await;
    holds("root").await;
    // The middle one, with two others after it, while the VM runs.
    let middle = delete(2).await;
    let tree_is_kept = middle.is_ok();
    back(3).await;
    holds("leaf").await;
    if tree_is_kept {
        delete(1).await.expect("the first can go");
    }
    delete(3).await.expect("the last can go");
    back(4).await;
    holds("branch").await;
    ground.done(&[id]).await
}

/// A VM does not go back to a snapshot of another one, and nothing of it is changed.
pub async fn a_snapshot_of_another_vm_is_not_found(bench: &dyn Bench) -> Verdict {
    let ground = Ground::open(bench).await;
    let snapshots = or_left_out!(ground.snapshots());
    let (mine, mut other) = (bench.definition(), bench.definition());
    if other.root_disk == mine.root_disk {
        other.root_disk.as_mut_os_string().push("-other");
    }
    let snapshot = snapshot_of(mine.id, 1);
    for definition in [&mine, &other] {
        ground.start(definition).await;
        ground.kill(definition.id).await;
    }
    let taken = snapshots.take(&ground.cx, &mine, snapshot.into()).await;
    taken.expect("it is off");
    let back = snapshots.revert(&ground.cx, &other, snapshot, NO_NICS).await;
    assert_eq!(back.expect_err("it is another's").kind(), ErrorKind::NotFound);
    let gone = snapshots.delete(&ground.cx, &other, snapshot).await;
    gone.expect("what is not there is no error");
    let listed = snapshots.list(&mine).await.expect("it can be listed");
    assert_eq!(listed, [(snapshot, SnapshotContent::Disk)]);
    ground.done(&[mine.id, other.id]).await
}

/// A VM that got or lost a disk since a snapshot does not go back to it, and is told which; with its disks again it does.
pub async fn disks_that_came_or_went_since_are_told(bench: &dyn Bench) -> Verdict {
    let ground = Ground::open(bench).await;
    let snapshots = or_left_out!(ground.snapshots());
    let data = |bench: &dyn Bench| -> Result<DiskDefinition, Verdict> {
        bench.data_disk().map_err(Verdict::LeftOut)
    };
    let (first, second) = (or_left_out!(data(bench)), or_left_out!(data(bench)));
    let read_only = DiskDefinition {
        read_only: true,
        ..second.clone()
    };
    let mut definition = bench.definition();
    let snapshot = snapshot_of(definition.id, 1);
    definition.disks = vec![first.clone(), read_only];
    let taken = snapshots.take(&ground.cx, &definition, snapshot.into()).await;
    taken.expect("it never ran");
    let with = |disks: &[&DiskDefinition]| VmDefinition {
        disks: disks.iter().map(|disk| (*disk).clone()).collect(),
        ..definition.clone()
    };
    for (other, named) in [(with(&[]), &first), (with(&[&first, &second]), &second)] {
        let back = snapshots.revert(&ground.cx, &other, snapshot, NO_NICS).await;
        let error = back.expect_err("it has other disks");
        assert_eq!(error.kind(), ErrorKind::Conflict, "{error}");
        assert!(error.to_string().contains(&named.volume.to_string()), "{error}");
    }
    // What it may not write to is no part of it.
    for same in [with(&[&first]), definition.clone()] {
        let back = snapshots.revert(&ground.cx, &same, snapshot, NO_NICS).await;
        assert_eq!(back.expect("it has its disks").power, PowerState::Off);
    }
    let deleted = snapshots.delete(&ground.cx, &definition, snapshot).await;
    deleted.expect("it is there");
    ground.driver.shutdown().await;
    Verdict::Kept
}
