//! The decisions, and controllers on one store under a paused clock.

use super::*;
use crate::controller::ControllerConfig;
use crate::source::{RandomIds, SystemClock};
use crate::store::{MemoryStore, Page, Watch};
use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};
use tokio::time::advance;
use vbm_hyper::ImageStore;
use vbm_rpc::{Bus, Member, Router, memory::MemoryBus};

fn lease(id: &str, released: bool) -> Lease {
    Lease {
        name: id.to_uppercase(),
        id: id.into(),
        boot_id: format!("boot of {id}"),
        epoch: Epoch(7),
        released,
    }
}

fn seat(id: &str, released: bool) -> Seat {
    Seat {
        lease: Some((Revision(9), lease(id, released))),
        epoch: Some((Revision(5), Epoch(7))),
    }
}

#[test]
fn a_lease_is_taken_when_it_is_free_mine_or_unchanged_for_its_time() {
    let short = LEASE - Duration::from_millis(1);
    assert!(may_take_over("a", &Seat::default(), Duration::ZERO), "nobody led");
    assert!(may_take_over("a", &seat("b", true), Duration::ZERO), "given back");
    assert!(
        may_take_over("a", &seat("a", false), Duration::ZERO),
        "of a former life"
    );
    assert!(!may_take_over("a", &seat("b", false), short));
    assert!(may_take_over("a", &seat("b", false), LEASE));
}

#[tokio::test(start_paused = true)]
async fn time_counts_from_the_answer_that_first_showed_a_revision_to_the_last_question() {
    let at = {
        let zero = Instant::now();
        move |ms| zero + Duration::from_millis(ms)
    };
    let mut patience = Patience::default();
    let r = |n| Some(Revision(n));
    assert_eq!(patience.unchanged(r(1), at(0), at(900)), Duration::ZERO);
    assert_eq!(
        patience.unchanged(r(1), at(1_000), at(5_000)),
        Duration::from_millis(100)
    );
    assert_eq!(
        patience.unchanged(r(2), at(6_000), at(6_001)),
        Duration::ZERO,
        "it was renewed"
    );
    assert_eq!(
        patience.unchanged(r(1), at(7_000), at(7_001)),
        Duration::ZERO,
        "any other revision counts, a lower one too"
    );
    assert_eq!(patience.unchanged(None, at(8_000), at(8_001)), Duration::ZERO);
}

#[test]
fn a_renewal_that_was_done_and_not_heard_of_is_not_taken_for_a_loss() {
    let mine = |seat: &Seat| judge_renewal(seat, "boot of a", Epoch(7));
    assert_eq!(mine(&seat("a", false)), Renewal::Again(Revision(9)));
    assert_eq!(mine(&seat("b", false)), Renewal::Lost);
    assert_eq!(mine(&seat("a", true)), Renewal::Lost);
    assert_eq!(mine(&Seat::default()), Renewal::Lost);
    let succeeded = Seat {
        epoch: Some((Revision(9), Epoch(8))),
        ..seat("a", false)
    };
    assert_eq!(mine(&succeeded), Renewal::Lost);
}

#[test]
fn a_leader_has_stopped_before_anybody_may_take_over() {
    const { assert!(STOP_AFTER.as_millis() + 500 <= LEASE.as_millis()) };
    const { assert!(RENEW_EVERY.as_millis() * 2 < STOP_AFTER.as_millis()) };
    const { assert!(LEASE.as_millis() + 2 * LOOK_EVERY.as_millis() < 5_000) };
}

/// A way to the store that can be cut: what is asked then is never answered.
struct Cuttable {
    store: MemoryStore,
    cut: Arc<AtomicBool>,
}

impl fmt::Debug for Cuttable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Cuttable")
    }
}

impl Cuttable {
    async fn reach(&self) {
        if self.cut.load(Ordering::SeqCst) {
            std::future::pending::<()>().await;
        }
    }
}

#[async_trait::async_trait]
impl Store for Cuttable {
    async fn get(&self, key: &str) -> Result<Option<Entry>, StoreError> {
        self.reach().await;
        self.store.get(key).await
    }
    async fn list(&self, prefix: &str, after: Option<&str>, limit: usize) -> Result<Page, StoreError> {
        self.reach().await;
        self.store.list(prefix, after, limit).await
    }
    async fn txn(&self, txn: Txn) -> Result<TxnOutcome, StoreError> {
        self.reach().await;
        self.store.txn(txn).await
    }
    async fn watch(&self, prefix: &str, from: Revision) -> Result<Watch, StoreError> {
        self.reach().await;
        self.store.watch(prefix, from).await
    }
    async fn revision(&self) -> Result<Revision, StoreError> {
        self.reach().await;
        self.store.revision().await
    }
    async fn close(&self) {}
}

/// A controller among others, and the means to cut it off.
struct One {
    controller: Controller,
    cut: Arc<AtomicBool>,
    bus: Bus,
    _dir: tempfile::TempDir,
}

async fn one(store: &MemoryStore, bus: &MemoryBus, id: &str) -> One {
    one_with(store, bus, id, Rivals::Possible).await
}

async fn one_with(store: &MemoryStore, bus: &MemoryBus, id: &str, rivals: Rivals) -> One {
    let dir = tempfile::tempdir().unwrap();
    let cut = Arc::new(AtomicBool::new(false));
    let controller = Controller::open(ControllerConfig {
        store: Arc::new(Cuttable {
            store: store.clone(),
            cut: Arc::clone(&cut),
        }),
        images: ImageStore::open(dir.path()).await.unwrap(),
        clock: Arc::new(SystemClock),
        ids: Arc::new(RandomIds),
        name: id.to_uppercase(),
        id: id.to_owned(),
        rivals,
    })
    .await
    .unwrap();
    let member = Member::new(format!("control/{id}").parse().unwrap(), "boot");
    let bus = Bus::attach(bus.clone(), member, Router::new()).await.unwrap();
    controller.start(bus.clone()).unwrap();
    One {
        controller,
        cut,
        bus,
        _dir: dir,
    }
}

impl One {
    async fn until_it_leads(&self) -> Duration {
        let begun = Instant::now();
        let leads = self.controller.inner.presiding.subscribe();
        timeout(Duration::from_secs(60), { leads }.wait_for(|p| p.mine))
            .await
            .unwrap()
            .unwrap();
        begun.elapsed()
    }

    async fn until_it_leads_no_more(&self) -> Duration {
        let begun = Instant::now();
        let leads = self.controller.inner.presiding.subscribe();
        timeout(Duration::from_secs(60), { leads }.wait_for(|p| !p.mine))
            .await
            .unwrap()
            .unwrap();
        begun.elapsed()
    }

    async fn end(self) {
        self.controller.shutdown().await;
        self.bus.shutdown().await;
    }
}

#[tokio::test(start_paused = true)]
async fn the_first_leads_at_once_and_the_second_follows() {
    let (store, bus) = (MemoryStore::new(), MemoryBus::new());
    let a = one(&store, &bus, "a").await;
    assert!(a.until_it_leads().await < Duration::from_millis(10));
    let b = one(&store, &bus, "b").await;
    sleep(10 * LEASE).await;
    assert!(a.controller.leads() && !b.controller.leads());
    let known = b.controller.leader().unwrap();
    assert_eq!((known.name.as_str(), known.epoch), ("A", Epoch(1)));
    assert_eq!(b.controller.epoch(), Epoch(1), "it speaks in the leader's name");
    a.end().await;
    b.end().await;
}

#[tokio::test(start_paused = true)]
async fn a_leader_that_is_cut_off_has_stopped_before_the_other_takes_over() {
    let (store, bus) = (MemoryStore::new(), MemoryBus::new());
    let a = one(&store, &bus, "a").await;
    a.until_it_leads().await;
    let b = one(&store, &bus, "b").await;
    sleep(LEASE).await;
    a.cut.store(true, Ordering::SeqCst);
    let (stopped, took) = tokio::join!(a.until_it_leads_no_more(), b.until_it_leads());
    assert!(stopped <= STOP_AFTER, "{stopped:?}");
    assert!(
        took > stopped && took < Duration::from_secs(5),
        "{stopped:?}, {took:?}"
    );
    assert_eq!(b.controller.epoch(), Epoch(2));
    a.cut.store(false, Ordering::SeqCst);
    sleep(10 * LEASE).await;
    assert!(
        b.controller.leads() && !a.controller.leads(),
        "who comes back follows"
    );
    a.end().await;
    b.end().await;
}

#[tokio::test(start_paused = true)]
async fn a_leader_that_ends_hands_over_at_once() {
    let (store, bus) = (MemoryStore::new(), MemoryBus::new());
    let a = one(&store, &bus, "a").await;
    a.until_it_leads().await;
    let b = one(&store, &bus, "b").await;
    let ((), took) = tokio::join!(a.end(), b.until_it_leads());
    assert!(took <= 2 * LOOK_EVERY, "{took:?}");
    b.end().await;
}

#[tokio::test(start_paused = true)]
async fn a_controller_that_was_killed_leads_again_at_once_when_it_returns() {
    let (store, bus) = (MemoryStore::new(), MemoryBus::new());
    let a = one(&store, &bus, "a").await;
    a.until_it_leads().await;
    // Cut off and ended: the lease stays as it is, as after a kill.
    a.cut.store(true, Ordering::SeqCst);
    a.end().await;
    let again = one(&store, &bus, "a").await;
    assert!(again.until_it_leads().await < Duration::from_millis(10));
    assert_eq!(again.controller.epoch(), Epoch(2));
    again.end().await;
}

#[tokio::test(start_paused = true)]
async fn a_write_in_the_name_of_a_past_leadership_is_refused() {
    let (store, bus) = (MemoryStore::new(), MemoryBus::new());
    let a = one(&store, &bus, "a").await;
    a.until_it_leads().await;
    let seat = Seat::read(&store).await.unwrap();
    let past = Mandate::new(Epoch(1), seat.epoch.unwrap().0, &a.controller.inner.stop);
    let acting = a.controller.acting(&past);
    let write = |n: &str| Txn {
        compare: vec![],
        write: vec![Write::Put("vm/x".into(), n.to_owned().into())],
    };
    acting.records().run(write("1")).await.unwrap();
    let b = one(&store, &bus, "b").await;
    a.cut.store(true, Ordering::SeqCst);
    b.until_it_leads().await;
    a.cut.store(false, Ordering::SeqCst);
    let refused = acting.records().run(write("2")).await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Cancelled, "{refused}");
    assert_eq!(&store.get("vm/x").await.unwrap().unwrap().value[..], b"1");
    assert_eq!(acting.epoch(), Epoch(1), "and agents refuse its number");
    a.controller.records().run(write("3")).await.unwrap();
    a.end().await;
    b.end().await;
}

#[tokio::test(start_paused = true)]
async fn a_standby_that_has_not_heard_of_the_newest_leadership_reads_it_and_speaks_again() {
    use crate::methods::VmReset;
    let (store, bus) = (MemoryStore::new(), MemoryBus::new());
    let a = one(&store, &bus, "a").await;
    a.until_it_leads().await;
    let b = one(&store, &bus, "b").await;
    let router = Router::new()
        .with_epoch_gate(Arc::new(vbm_rpc::MemoryEpochGate::new(Epoch(1))))
        .method::<VmReset, _, _>(|_, _| async { Ok(()) });
    let path: vbm_core::NodePath = "lab/n1".parse().unwrap();
    let node = Bus::attach(bus.clone(), Member::new(path.clone(), "boot"), router)
        .await
        .unwrap();
    let vm = vbm_core::VmId::from_uuid(uuid::Uuid::from_u128(1));
    b.controller.preside(false, None, Epoch(0));
    b.controller.ask_node::<VmReset>(&path, &vm).await.unwrap();
    assert_eq!(b.controller.epoch(), Epoch(1));
    // Who acts as a leader of the past is refused, and does not speak in the name of another.
    let past = Mandate::new(Epoch(0), Revision(0), &b.controller.inner.stop);
    let refused = b.controller.acting(&past).ask_node::<VmReset>(&path, &vm).await;
    assert_eq!(refused.unwrap_err().kind(), ErrorKind::Stale);
    node.shutdown().await;
    a.end().await;
    b.end().await;
}

/// A node that has obeyed this epoch reports itself.
async fn a_node_knows(store: &MemoryStore, epoch: Epoch) {
    let node = Node {
        path: "lab/n1".parse().unwrap(),
        spec: vbm_core::NodeSpec::default(),
        status: vbm_core::NodeStatus {
            epoch,
            ..vbm_core::NodeStatus::default()
        },
    };
    let write = Write::Put("node/lab/n1".into(), serde_json::to_vec(&node).unwrap().into());
    let txn = Txn {
        compare: vec![],
        write: vec![write],
    };
    assert!(matches!(store.txn(txn).await.unwrap(), TxnOutcome::Done(_)));
}

#[tokio::test(start_paused = true)]
async fn an_epoch_that_a_node_has_obeyed_is_exceeded_although_the_store_has_forgotten_it() {
    for rivals in [Rivals::None, Rivals::Possible] {
        let (store, bus) = (MemoryStore::new(), MemoryBus::new());
        let a = one_with(&store, &bus, "a", rivals).await;
        a.until_it_leads().await;
        assert_eq!(a.controller.epoch(), Epoch(1));
        a_node_knows(&store, Epoch(50)).await;
        let mut presiding = a.controller.inner.presiding.subscribe();
        let exceeded = presiding.wait_for(|p| p.mine && p.epoch == Epoch(51));
        timeout(LEASE, exceeded).await.unwrap().unwrap();
        // Nonsense is not believed.
        a_node_knows(&store, Epoch(u64::MAX)).await;
        sleep(10 * LEASE).await;
        assert_eq!(a.controller.epoch(), Epoch(51));
        assert!(a.controller.leads());
        a.end().await;
    }
}

#[tokio::test(start_paused = true)]
async fn whoever_is_cut_off_at_whatever_moment_there_are_never_two_leaders() {
    let (store, bus) = (MemoryStore::new(), MemoryBus::new());
    let mut all = Vec::new();
    for id in ["a", "b", "c"] {
        all.push(one(&store, &bus, id).await);
    }
    // A small generator: each run is the same story.
    let mut seed = 0x2545_f491_4f6c_dd1d_u64;
    let mut roll = |sides: u64| {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        seed % sides
    };
    let (mut highest, mut led) = (Epoch(0), std::collections::BTreeSet::new());
    for _ in 0..20_000 {
        if roll(150) == 0 {
            let whom = usize::try_from(roll(3)).unwrap();
            all[whom].cut.fetch_xor(true, Ordering::SeqCst);
        }
        advance(Duration::from_millis(roll(25))).await;
        tokio::task::yield_now().await;
        let leaders: Vec<&One> = all.iter().filter(|one| one.controller.leads()).collect();
        assert!(leaders.len() <= 1, "two lead");
        if let [leader] = leaders[..] {
            let epoch = leader.controller.epoch();
            assert!(epoch >= highest, "{epoch} after {highest}");
            highest = epoch;
            led.insert(leader.controller.name().to_owned());
        }
    }
    assert_eq!(led.len(), 3, "each led at some time");
    assert!(highest.0 > 10, "{highest}");
    // Each epoch was told once, with its leader's name.
    let events = store.list("event/", None, 10_000).await.unwrap().entries;
    let elected: Vec<vbm_core::Event> = events
        .iter()
        .map(|entry| serde_json::from_slice::<vbm_core::Event>(&entry.value).unwrap())
        .filter(|event| event.kind == EventKind::ControllerElected)
        .collect();
    let told: std::collections::BTreeSet<&str> = elected
        .iter()
        .filter_map(|e| e.message.split_whitespace().nth(3))
        .collect();
    assert_eq!(told.len(), elected.len());
    for one in all {
        one.cut.store(false, Ordering::SeqCst);
        one.end().await;
    }
}
