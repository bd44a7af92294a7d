//! Several controllers and an agent in one process, on one store and one bus: who leads, what is finished, what is kept.

use crate::house::{PATIENCE, done, import, lan, launch, name, request, unlist, until};
use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};
use tokio::time::timeout;
use vbm_core::{EventKind, PowerState};
use vbm_hyper::{Latency, SimDriver, SimWorld};
use vbm_net::SimNetwork;
use vbm_rpc::memory::MemoryBus;
use vbm_sdk::{
    api::Leader,
    client::Client,
    server::{Role, Server},
    source::SystemClock,
    store::{Entry, MemoryStore, Page, Revision, Store, StoreError, Txn, TxnOutcome, Watch},
};

/// How soon another controller leads after the leader is gone.
const TAKEOVER_MAX: Duration = Duration::from_secs(5);
/// How often it is looked who leads.
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// A way to the store that can be cut: what is asked then fails, as over a broken line.
#[derive(Clone, Debug, Default)]
struct Line {
    store: MemoryStore,
    cut: Arc<AtomicBool>,
}

impl Line {
    fn to(store: &MemoryStore) -> Self {
        Self {
            store: store.clone(),
            cut: Arc::default(),
        }
    }
    fn cut(&self, cut: bool) {
        self.cut.store(cut, Ordering::SeqCst);
    }
    fn reach(&self) -> Result<&MemoryStore, StoreError> {
        match self.cut.load(Ordering::SeqCst) {
            true => Err(StoreError::Failed("the line is cut".into())),
            false => Ok(&self.store),
        }
    }
}

#[async_trait::async_trait]
impl Store for Line {
    async fn get(&self, key: &str) -> Result<Option<Entry>, StoreError> {
        self.reach()?.get(key).await
    }
    async fn list(&self, prefix: &str, after: Option<&str>, limit: usize) -> Result<Page, StoreError> {
        self.reach()?.list(prefix, after, limit).await
    }
    async fn txn(&self, txn: Txn) -> Result<TxnOutcome, StoreError> {
        self.reach()?.txn(txn).await
    }
    async fn watch(&self, prefix: &str, from: Revision) -> Result<Watch, StoreError> {
        self.reach()?.watch(prefix, from).await
    }
    async fn revision(&self) -> Result<Revision, StoreError> {
        self.reach()?.revision().await
    }
    async fn close(&self) {}
}

/// A cluster in this process.
struct Cluster {
    dir: tempfile::TempDir,
    bus: MemoryBus,
    store: MemoryStore,
    world: SimWorld,
}

impl Drop for Cluster {
    fn drop(&mut self) {
        unlist(&self.dir.path().join("agent"));
    }
}

impl Cluster {
    fn new() -> Self {
        Self {
            dir: tempfile::tempdir().unwrap(),
            bus: MemoryBus::new(),
            store: MemoryStore::new(),
            world: SimWorld::instant(),
        }
    }

    async fn controller(&self, called: &str) -> (Server, Client, Line) {
        let line = Line::to(&self.store);
        let server = Server::builder(self.dir.path().join(called))
            .run_dir(self.dir.path().join(format!("run-{called}")))
            .ephemeral(true)
            .role(Role::Controller)
            .name(called)
            .with_transport(self.bus.clone())
            .with_store(Arc::new(line.clone()) as Arc<dyn Store>)
            .start()
            .await
            .unwrap();
        let client = server.client().unwrap();
        (server, client, line)
    }

    async fn agent(&self) -> Server {
        Server::builder(self.dir.path().join("agent"))
            .run_dir(self.dir.path().join("run-agent"))
            .ephemeral(true)
            .role(Role::Agent)
            .node("lab/n1".parse().unwrap())
            .with_transport(self.bus.clone())
            .with_drivers(vec![Arc::new(SimDriver::open(self.world.clone()).unwrap())])
            .with_networks(Arc::new(SimNetwork::new(Arc::new(SystemClock))))
            .start()
            .await
            .unwrap()
    }
}

async fn until_leader(client: &Client, called: &str) -> Leader {
    let seen = async {
        loop {
            if let Some(leader) = client.version().await.unwrap().leader
                && leader.name == called
            {
                return leader;
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    };
    timeout(PATIENCE, seen)
        .await
        .unwrap_or_else(|_| panic!("{called} does not lead"))
}

#[tokio::test]
async fn a_launch_begun_under_one_leader_is_finished_by_the_next() {
    let cluster = Cluster::new();
    let (first, to_first, line) = cluster.controller("first").await;
    assert_eq!(until_leader(&to_first, "first").await.epoch.0, 1);
    let (second, to_second, _) = cluster.controller("second").await;
    let agent = cluster.agent().await;
    import(&to_first, cluster.dir.path()).await;
    lan(&to_first, "lan", "10.0.0.0/24").await;
    // Slow enough that the leader is gone in the middle of it.
    cluster.world.set_latency(Latency {
        start: Duration::from_secs(6),
        ..Latency::NONE
    });
    let made = to_first.vms().launch(request("web")).await.unwrap();
    until(&to_second, "web", |v| v.vm.status.power == PowerState::Starting).await;
    line.cut(true);
    let begun = tokio::time::Instant::now();
    assert_eq!(until_leader(&to_second, "second").await.epoch.0, 2);
    assert!(begun.elapsed() < TAKEOVER_MAX, "{:?}", begun.elapsed());
    let ended = done(&to_second, &made.operation).await.unwrap();
    assert!(ended.state.is_final() && ended.error.is_none());
    // Who comes back follows, and answers requests all the same.
    line.cut(false);
    cluster.world.set_latency(Latency::NONE);
    assert_eq!(until_leader(&to_first, "second").await.epoch.0, 2);
    launch(&to_first, "web2").await;
    let log = to_first.vms().console_log("web2", None).await;
    assert!(
        log.as_ref()
            .err()
            .is_none_or(|e| e.kind() != vbm_core::ErrorKind::Stale),
        "a standby speaks in the leader's epoch: {log:?}"
    );
    let mut events = to_first.events().open();
    let mut elected = Vec::new();
    while let Some(event) = events.next().await {
        let event = event.unwrap().event;
        if event.kind == EventKind::ControllerElected {
            elected.push(event.object.name);
        }
    }
    assert_eq!(elected, ["first", "second"]);
    for server in [agent, first, second] {
        server.shutdown().await;
    }
}

#[tokio::test]
async fn a_leader_that_shuts_down_hands_over_at_once() {
    let cluster = Cluster::new();
    let (first, to_first, _) = cluster.controller("first").await;
    until_leader(&to_first, "first").await;
    let (second, to_second, _) = cluster.controller("second").await;
    let begun = tokio::time::Instant::now();
    first.shutdown().await;
    until_leader(&to_second, "second").await;
    assert!(begun.elapsed() < Duration::from_secs(2), "{:?}", begun.elapsed());
    second.shutdown().await;
}

#[tokio::test]
async fn an_image_outlives_the_controller_that_it_was_given_to() {
    let cluster = Cluster::new();
    let (first, to_first, _) = cluster.controller("first").await;
    let (second, to_second, _) = cluster.controller("second").await;
    let agent = cluster.agent().await;
    import(&to_first, cluster.dir.path()).await;
    let image = to_second.images().get("tiny").await.unwrap();
    let copy = cluster
        .dir
        .path()
        .join("second/images/sha256")
        .join(image.spec.disk.to_string());
    let copied = async {
        while !copy.exists() {
            tokio::time::sleep(LOOK_EVERY).await;
        }
    };
    timeout(PATIENCE, copied).await.unwrap();
    first.shutdown().await;
    until_leader(&to_second, "second").await;
    lan(&to_second, "lan", "10.0.0.0/24").await;
    launch(&to_second, "web").await;
    // A deleted image leaves no copy anywhere.
    let (third, _, _) = cluster.controller("third").await;
    let other = cluster
        .dir
        .path()
        .join("third/images/sha256")
        .join(image.spec.disk.to_string());
    let there = |wanted: bool| {
        let other = other.clone();
        async move {
            while other.exists() != wanted {
                tokio::time::sleep(LOOK_EVERY).await;
            }
        }
    };
    timeout(PATIENCE, there(true)).await.unwrap();
    crate::house::through(&to_second, to_second.vms().delete("web").force(true).await)
        .await
        .unwrap();
    to_second.images().delete("tiny").await.unwrap();
    timeout(PATIENCE, there(false)).await.unwrap();
    assert!(!copy.exists());
    for server in [agent, second, third] {
        server.shutdown().await;
    }
}

#[tokio::test]
async fn an_agent_is_answered_by_whichever_controller_has_the_file() {
    use vbm_core::NodePath;
    use vbm_rpc::{Bus, CallOptions, Member, Route, Router};
    use vbm_sdk::methods::{ImageRead, ImageReadRequest};
    let cluster = Cluster::new();
    let (first, to_first, _) = cluster.controller("first").await;
    let (second, _, _) = cluster.controller("second").await;
    // Uploaded, but no image yet: nobody has a reason to copy it.
    let file = cluster.dir.path().join("file");
    std::fs::write(&file, "some bytes").unwrap();
    let blob = to_first.images().upload(&file).await.unwrap();
    let member = Member::new("lab/n1".parse().unwrap(), "boot");
    let bus = Bus::attach(cluster.bus.clone(), member, Router::new())
        .await
        .unwrap();
    let read = async |whose: NodePath, here_only: bool| {
        let request = ImageReadRequest {
            digest: blob.digest,
            offset: 5,
            max_bytes: 100,
            here_only,
        };
        bus.call::<ImageRead>(&Route::node(whose), &request, CallOptions::default())
            .await
            .map(|part| part.0)
            .map_err(vbm_core::Error::from)
    };
    let controllers: Vec<NodePath> = bus
        .members(&"control".parse().unwrap())
        .await
        .unwrap()
        .into_iter()
        .map(|m| m.path)
        .collect();
    assert_eq!(controllers.len(), 2);
    let (mut had, mut lacked) = (0, 0);
    for path in controllers {
        assert_eq!(read(path.clone(), false).await.unwrap(), b"bytes");
        match read(path, true).await {
            Ok(part) => {
                assert_eq!(part, b"bytes");
                had += 1;
            }
            Err(e) => {
                assert!(e.is_not_found(), "{e}");
                lacked += 1;
            }
        }
    }
    assert_eq!((had, lacked), (1, 1), "it was passed on, not copied");
    bus.shutdown().await;
    for server in [first, second] {
        server.shutdown().await;
    }
}

#[tokio::test]
async fn launches_through_two_controllers_at_once_get_different_addresses() {
    let cluster = Cluster::new();
    let (first, to_first, _) = cluster.controller("first").await;
    let (second, to_second, _) = cluster.controller("second").await;
    let agent = cluster.agent().await;
    import(&to_first, cluster.dir.path()).await;
    lan(&to_first, "lan", "10.0.0.0/24").await;
    let launches = (0..24).map(|n| {
        let client = if n % 2 == 0 { &to_first } else { &to_second };
        async move {
            let mut request = request("x");
            request.name = Some(name(&format!("vm{n}")));
            client.vms().launch(request).await.unwrap()
        }
    });
    let made = futures::future::join_all(launches).await;
    let addresses: std::collections::BTreeSet<_> =
        made.iter().map(|m| m.item.nics[0].port.spec.address).collect();
    assert_eq!(addresses.len(), 24);
    for made in &made {
        done(&to_second, &made.operation).await.unwrap();
    }
    for server in [agent, first, second] {
        server.shutdown().await;
    }
}
