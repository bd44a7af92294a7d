//! Moving a running VM to another host.

use super::{
    guest::Guest,
    snapshots::{Scene, or_left_out, snapshot_of},
    *,
};
use crate::{Landing, MoveCheck, MoveOptions};
use std::net::Ipv4Addr;
use vbm_core::SnapshotContent;

const HERE: Ipv4Addr = Ipv4Addr::LOCALHOST;

/// Both hosts see the same disks.
fn shared() -> MoveOptions {
    MoveOptions::default()
}

/// The other host: a driver, and its events.
struct Beside {
    driver: Arc<dyn Driver>,
    events: broadcast::Receiver<DriverEvent>,
}

impl Beside {
    async fn open(ground: &Ground<'_>) -> Result<Self, Verdict> {
        ground.migration()?;
        let driver = ground.bench.open_beside().await.map_err(Verdict::LeftOut)?;
        let events = driver.events();
        Ok(Self { driver, events })
    }

    fn migration(&self) -> &dyn Migration {
        self.driver.migration().expect("both hosts can do it")
    }

    async fn power(&self, id: VmId) -> PowerState {
        self.driver.inspect(id).await.expect("it is known").power
    }

    async fn done(self, id: VmId) {
        match self.driver.kill(id).await {
            Err(Error::NoSuchVm(_)) => {}
            killed => killed.expect("force-off works"),
        }
        self.driver.undefine(id).await.expect("it is off");
        self.driver.shutdown().await;
    }

    async fn arrived(&mut self, ground: &Ground<'_>, id: VmId) {
        let arrived = async {
            loop {
                let event = self.events.recv().await.expect("the driver goes on telling");
                if event.id == id && event.event == PowerEvent::Started {
                    return event.seen;
                }
            }
        };
        let seen = ground.patiently("the arrival", arrived).await;
        assert_eq!(seen.power, PowerState::Running);
    }
}

/// A VM that runs moves to another host: it is off here, runs there, and its guest has noticed nothing.
pub async fn a_running_vm_moves_to_another_host_and_goes_on(bench: &dyn Bench) -> Verdict {
    let mut ground = Ground::open(bench).await;
    let scene = or_left_out!(Scene::set(&ground));
    let mut beside = or_left_out!(Beside::open(&ground).await);
    let (definition, id) = (&scene.definition, scene.definition.id);
    let guest = scene.boot(&ground).await;
    guest.remember("alpha").await;
    guest.write("apple").await;
    let before = guest.count().await;

    let to = beside
        .migration()
        .receive(&ground.cx, definition, NO_NICS, HERE, &shared())
        .await;
    let to = to.expect("it can be taken in");
    assert_eq!(to.memory.ip(), HERE, "it listens where it was told to");
    assert_eq!(beside.power(id).await, PowerState::MigratingIn);
    let sent = ground
        .patiently(
            "send",
            or_left_out!(ground.migration()).send(&ground.cx, id, &to, &shared()),
        )
        .await;
    let sent = sent.expect("somebody waits for it");
    assert!(sent.bytes > 0 && sent.downtime <= sent.took, "{sent:?}");
    tracing::info!(?sent, "a VM has moved");
    ground.event(id, |event| event == PowerEvent::MigratedAway).await;
    assert_eq!(ground.seen(id).await, Seen::resting(PowerState::Off));
    beside.arrived(&ground, id).await;
    assert_eq!(beside.power(id).await, PowerState::Running);

    let guest = Guest {
        driver: &*beside.driver,
        ..scene.guest(&ground)
    };
    guest.remembers("alpha").await;
    guest.has_written("apple").await;
    let after = guest.next_count().await;
    assert!(before <= after, "it goes on counting: {before}, {after}");
    refused(
        beside.migration().abandon(id).await,
        "giving up a VM that has arrived",
    );
    beside.done(id).await;
    ground.done(&[id]).await
}

/// A VM that has snapshots moves; at the other host it goes back to one.
pub async fn a_vm_moves_with_its_snapshots(bench: &dyn Bench) -> Verdict {
    let ground = Ground::open(bench).await;
    let scene = or_left_out!(Scene::set(&ground));
    let snapshots = or_left_out!(ground.snapshots());
    let mut beside = or_left_out!(Beside::open(&ground).await);
    let (definition, id) = (&scene.definition, scene.definition.id);
    let guest = scene.boot(&ground).await;
    guest.remember("alpha").await;
    guest.write("apple").await;
    let snapshot = snapshot_of(id, 1);
    snapshots
        .take(&ground.cx, definition, snapshot.into())
        .await
        .expect("it runs");
    guest.remember("bravo").await;
    guest.write("berry").await;
    let to = beside
        .migration()
        .receive(&ground.cx, definition, NO_NICS, HERE, &shared())
        .await;
    let to = to.expect("it can be taken in");
    let sent = ground
        .patiently(
            "send",
            or_left_out!(ground.migration()).send(&ground.cx, id, &to, &shared()),
        )
        .await;
    sent.expect("somebody waits for it");
    beside.arrived(&ground, id).await;

    let guest = Guest {
        driver: &*beside.driver,
        ..scene.guest(&ground)
    };
    guest.remembers("bravo").await;
    guest.has_written("berry").await;
    let there = beside.driver.snapshots().expect("both hosts can do it");
    assert_eq!(
        there.list(definition).await.expect("it can be listed"),
        [(snapshot, SnapshotContent::DiskAndMemory)]
    );
    beside.driver.kill(id).await.expect("force-off works");
    let reverted = ground.patiently("revert", there.revert(&ground.cx, definition, snapshot, NO_NICS));
    assert_eq!(reverted.await.expect("it is off").power, PowerState::Running);
    guest.remembers("alpha").await;
    guest.has_written("apple").await;
    there
        .delete(&ground.cx, definition, snapshot)
        .await
        .expect("it may run");
    beside.done(id).await;
    ground.done(&[id]).await
}

/// A VM that is sent to where nobody waits stays, and goes on.
pub async fn a_vm_that_nobody_waits_for_stays_and_goes_on(bench: &dyn Bench) -> Verdict {
    let mut ground = Ground::open(bench).await;
    or_left_out!(ground.migration());
    let id = ground.started().await;
    // A port that was free a moment ago; nobody listens on it.
    let nowhere = std::net::TcpListener::bind((HERE, 0))
        .and_then(|listener| listener.local_addr())
        .expect("the host has ports");
    let sent = ground
        .patiently(
            "send",
            or_left_out!(ground.migration()).send(&ground.cx, id, &nowhere.into(), &shared()),
        )
        .await;
    sent.expect_err("nobody waits there");
    ground.event(id, |event| event == PowerEvent::MigrateFailed).await;
    assert_eq!(ground.power(id).await, PowerState::Running);
    ground.driver.pause(id).await.expect("it runs");
    ground.driver.resume(id).await.expect("it is paused");
    ground.kill(id).await;
    refused(
        or_left_out!(ground.migration())
            .send(&ground.cx, id, &nowhere.into(), &shared())
            .await,
        "sending a VM that is off",
    );
    ground.done(&[id]).await
}

/// An arrival that is given up leaves nothing: the VM is off there, runs on here, and can still move later.
pub async fn an_arrival_that_is_given_up_leaves_nothing(bench: &dyn Bench) -> Verdict {
    let ground = Ground::open(bench).await;
    let mut beside = or_left_out!(Beside::open(&ground).await);
    let definition = bench.definition();
    let id = ground.start(&definition).await;
    let to = beside
        .migration()
        .receive(&ground.cx, &definition, NO_NICS, HERE, &shared())
        .await
        .expect("it can be taken in");
    refused(
        beside.driver.start(&ground.cx, &definition, NO_NICS).await,
        "start of a VM that is expected",
    );
    beside.migration().abandon(id).await.expect("it is expected");
    assert_eq!(beside.power(id).await, PowerState::Off);
    let sent = ground
        .patiently(
            "send",
            or_left_out!(ground.migration()).send(&ground.cx, id, &to, &shared()),
        )
        .await;
    sent.expect_err("nobody waits there any more");
    assert_eq!(ground.power(id).await, PowerState::Running);

    let to = beside
        .migration()
        .receive(&ground.cx, &definition, NO_NICS, HERE, &shared())
        .await;
    let to = to.expect("it can be taken in");
    let sent = ground
        .patiently(
            "send",
            or_left_out!(ground.migration()).send(&ground.cx, id, &to, &shared()),
        )
        .await;
    sent.expect("somebody waits for it");
    beside.arrived(&ground, id).await;
    assert_eq!(ground.power(id).await, PowerState::Off);
    beside.done(id).await;
    ground.done(&[id]).await
}

/// A VM whose disk is the host's own moves with a copy of it: it is halted there until it is let go, and has all it wrote.
pub async fn a_running_vm_moves_with_a_copy_of_its_disk(bench: &dyn Bench) -> Verdict {
    let ground = Ground::open(bench).await;
    let scene = or_left_out!(Scene::set(&ground));
    let mut beside = or_left_out!(Beside::open(&ground).await);
    let (definition, id) = (&scene.definition, scene.definition.id);
    let there = match bench.elsewhere(definition).await {
        Ok(there) => there,
        Err(why) => return Verdict::LeftOut(why),
    };
    let guest = scene.boot(&ground).await;
    guest.remember("alpha").await;
    guest.write("apple").await;
    let before = guest.count().await;

    let source = or_left_out!(ground.migration());
    let options = MoveOptions::default().copying_disks();
    let (machine, checks) = source
        .check_source(&ground.cx, id, &options)
        .await
        .expect("it runs");
    MoveCheck::verdict(&checks).expect("nothing stands in the way here");
    let options = options.of(machine.clone());
    let checks = beside
        .migration()
        .check_destination(&ground.cx, &there, &machine, &options)
        .await;
    MoveCheck::verdict(&checks.expect("it can be asked")).expect("nothing stands in the way there");
    let landing = beside
        .migration()
        .receive(&ground.cx, &there, NO_NICS, HERE, &options)
        .await;
    let landing: Landing = landing.expect("it can be taken in");
    refused(
        beside.migration().finish(&ground.cx, id).await,
        "letting a VM go on that has not come",
    );
    source
        .send(&ground.cx, id, &landing, &shared())
        .await
        .expect_err("source and destination must agree whether disks are copied");
    assert_eq!(ground.power(id).await, PowerState::Running);
    let sent = ground
        .patiently("send", source.send(&ground.cx, id, &landing, &options))
        .await;
    let sent = sent.expect("somebody waits for it");
    assert!(sent.bytes > 0 && sent.disk_bytes > 0, "{sent:?}");
    assert_eq!(ground.seen(id).await, Seen::resting(PowerState::Off));
    assert_eq!(
        beside.power(id).await,
        PowerState::MigratingIn,
        "it waits for a word"
    );
    beside.migration().renew(id).await.expect("it is waited for");
    let seen = beside
        .migration()
        .finish(&ground.cx, id)
        .await
        .expect("it has come");
    assert_eq!(seen.power, PowerState::Running);
    let again = beside
        .migration()
        .finish(&ground.cx, id)
        .await
        .expect("it has come");
    assert_eq!(again.power, PowerState::Running, "a second word changes nothing");
    beside.arrived(&ground, id).await;

    let guest = Guest {
        driver: &*beside.driver,
        ..scene.guest(&ground)
    };
    guest.remembers("alpha").await;
    guest.has_written("apple").await;
    let after = guest.next_count().await;
    assert!(before <= after, "it goes on counting: {before}, {after}");
    beside.done(id).await;
    ground.done(&[id]).await
}

/// Options outside their limits are refused by each side, before anything is changed.
pub async fn a_migration_outside_its_limits_changes_nothing(bench: &dyn Bench) -> Verdict {
    let ground = Ground::open(bench).await;
    let migration = or_left_out!(ground.migration());
    let definition = bench.definition();
    let id = ground.start(&definition).await;
    let none = MoveOptions {
        channels: 0,
        ..shared()
    };
    let (machine, checks) = migration
        .check_source(&ground.cx, id, &shared())
        .await
        .expect("it runs");
    MoveCheck::verdict(&checks).expect("nothing stands in the way");
    let here = migration
        .check_destination(&ground.cx, &definition, &machine, &shared())
        .await;
    MoveCheck::verdict(&here.expect("it can be asked")).expect_err("it is not moved to where it is");
    let unknown = crate::MachineFacts {
        machine: "a-machine-of-tomorrow".into(),
        ..machine.clone()
    };
    let there = migration
        .check_destination(&ground.cx, &definition, &unknown, &shared())
        .await;
    let there = there.expect("it can be asked");
    assert!(
        there
            .iter()
            .any(|check| !check.passed && check.found.contains("a-machine-of-tomorrow")),
        "it says which machine type is not here: {there:?}"
    );
    let nowhere = Landing::shared((HERE, 1).into());
    let invalid = [
        migration.check_source(&ground.cx, id, &none).await.map(drop),
        migration
            .check_destination(&ground.cx, &definition, &machine, &none)
            .await
            .map(drop),
        migration.send(&ground.cx, id, &nowhere, &none).await.map(drop),
        migration
            .receive(&ground.cx, &definition, NO_NICS, HERE, &none)
            .await
            .map(drop),
    ];
    for result in invalid {
        assert!(matches!(result, Err(Error::Invalid { .. })), "{result:?}");
    }
    assert_eq!(ground.power(id).await, PowerState::Running);
    ground.kill(id).await;
    ground.done(&[id]).await
}
