//! VMs that move between simulated machines: where they run, what becomes of a move when a part dies in its middle.

use crate::{
    house::{done, launch, through, until},
    site::{Machine, Site, events, on, until_node, until_so},
};
use std::time::Duration;
use vbm_core::{CrashCause, ErrorKind, EventKind, NodeState, Operation, OperationState, PowerState, VmId};
use vbm_hyper::{Fault, Latency};
use vbm_sdk::{
    api::{CreateSnapshot, MigrateRequest, PowerAction, VmView},
    client::Client,
    server::Server,
};

/// A sending that takes so long lasts while something else happens.
const SLOW: Latency = Latency {
    transfer: Duration::from_secs(2),
    ..Latency::NONE
};

/// A controller, the machines `a` and `b`, and a VM `web` that runs on `a`.
pub(crate) struct Pair {
    site: Site,
    brain: Server,
    pub(crate) client: Client,
    pub(crate) a: Machine,
    pub(crate) b: Machine,
    pub(crate) web: VmView,
}

impl Pair {
    pub(crate) async fn new() -> Self {
        let site = Site::new();
        let brain = site.controller().await;
        let machines = (site.agent("a").await, site.agent("b").await);
        Self::of(site, brain, machines).await
    }

    /// The same on machines that do not share their disks.
    async fn apart() -> Self {
        let site = Site::new();
        let brain = site.controller().await;
        let own = async |machine: &str, address: [u8; 4]| {
            let agent = site.agent_with(machine, |b| b.underlay(address.into()));
            agent.await.unwrap()
        };
        let machines = (own("a", [10, 9, 0, 1]).await, own("b", [10, 9, 0, 2]).await);
        Self::of(site, brain, machines).await
    }

    async fn of(site: Site, (brain, client): (Server, Client), (a, b): (Machine, Machine)) -> Self {
        for node in ["lab/a", "lab/b"] {
            until_node(&client, node, NodeState::Ready).await;
        }
        site.furnish(&client).await;
        through(&client, client.vms().launch(on("a", "web")).await)
            .await
            .unwrap();
        let web = client.vms().get("web").await.unwrap();
        Self {
            site,
            brain,
            client,
            a,
            b,
            web,
        }
    }

    fn id(&self) -> VmId {
        self.web.vm.meta.id
    }

    pub(crate) async fn begin(&self, to: Option<&str>) -> Operation {
        let request = to_machine(to);
        self.client
            .vms()
            .migrate("web", &request)
            .await
            .unwrap()
            .operation
    }

    async fn until_sending(&self) {
        until(&self.client, "web", |v| {
            v.vm.status.power == PowerState::MigratingOut
        })
        .await;
    }

    /// It runs on `there` and is not on `gone`, in the records, in the hypervisors and in the networks.
    async fn is_on(&self, there: &Machine, gone: &Machine, power: PowerState) {
        let node = if std::ptr::eq(there, &self.a) {
            "lab/a"
        } else {
            "lab/b"
        };
        let web = until(&self.client, "web", move |v| v.vm.status.power == power).await;
        assert_eq!(web.vm.spec.node, Some(node.parse().unwrap()));
        assert!(web.vm.spec.moving.is_none());
        assert_eq!(web.nics[0].port.spec.address, self.web.nics[0].port.spec.address);
        assert_eq!(web.nics[0].port.spec.mac, self.web.nics[0].port.spec.mac);
        assert_eq!(
            there.power(self.id()).await.unwrap_or(PowerState::Off),
            power,
            "on {node}"
        );
        assert_eq!(
            gone.power(self.id()).await,
            None,
            "it is left on the other machine"
        );
        until_so("its port is not where it is", async || {
            gone.port(&self.web).await.is_none() && there.port(&self.web).await.is_some()
        })
        .await;
    }

    pub(crate) async fn shutdown(self) {
        self.a.shutdown().await;
        self.b.shutdown().await;
        self.brain.shutdown().await;
    }
}

fn to_machine(to: Option<&str>) -> MigrateRequest {
    MigrateRequest {
        to: to.map(|m| format!("lab/{m}").parse().unwrap()),
        ..MigrateRequest::default()
    }
}

#[tokio::test]
async fn a_vm_keeps_its_address_as_it_moves_live_and_at_rest_and_runs_once() {
    let pair = Pair::new().await;
    let client = &pair.client;
    let ended = done(client, &pair.begin(Some("b")).await).await.unwrap();
    assert_eq!(ended.state, OperationState::Done);
    pair.is_on(&pair.b, &pair.a, PowerState::Running).await;
    assert_eq!(pair.b.port(&pair.web).await, Some(true), "its NIC is open there");
    assert_eq!(events(client, EventKind::VmMigrated).await.len(), 1);
    assert_eq!(
        events(client, EventKind::VmStarted).await.len(),
        1,
        "it never stopped"
    );

    through(client, client.vms().power("web", PowerAction::ForceOff).await)
        .await
        .unwrap();
    done(client, &pair.begin(None).await).await.unwrap();
    pair.is_on(&pair.a, &pair.b, PowerState::Off).await;
    through(client, client.vms().power("web", PowerAction::Start).await)
        .await
        .unwrap();
    pair.is_on(&pair.a, &pair.b, PowerState::Running).await;
    pair.shutdown().await;
}

#[tokio::test]
async fn a_paused_vm_is_paused_where_it_arrives_and_goes_on_there() {
    let pair = Pair::new().await;
    let client = &pair.client;
    through(client, client.vms().power("web", PowerAction::Pause).await)
        .await
        .unwrap();
    done(client, &pair.begin(Some("b")).await).await.unwrap();
    let paused = until(client, "web", |v| {
        matches!(v.vm.status.power, PowerState::Paused(_))
    })
    .await;
    assert_eq!(paused.vm.spec.node, Some("lab/b".parse().unwrap()));
    through(client, client.vms().power("web", PowerAction::Resume).await)
        .await
        .unwrap();
    pair.is_on(&pair.b, &pair.a, PowerState::Running).await;
    pair.shutdown().await;
}

#[tokio::test]
async fn a_vm_whose_sending_fails_runs_on_where_it_was_and_says_why() {
    let pair = Pair::new().await;
    let client = &pair.client;
    let fault = Fault::NextMigrationFails("the cable burns".into());
    pair.site.world("a").add_fault(pair.id(), fault);
    let error = done(client, &pair.begin(Some("b")).await).await.unwrap_err();
    assert!(error.inline().contains("the cable burns"), "{error}");
    pair.is_on(&pair.a, &pair.b, PowerState::Running).await;
    assert_eq!(pair.a.port(&pair.web).await, Some(true), "its NIC stays open");
    let told = events(client, EventKind::VmMigrationFailed).await;
    assert_eq!(told.len(), 1);
    assert!(told[0].message.contains("the cable burns"), "{}", told[0].message);

    // The next try is a new one.
    done(client, &pair.begin(Some("b")).await).await.unwrap();
    pair.is_on(&pair.b, &pair.a, PowerState::Running).await;
    pair.shutdown().await;
}

#[tokio::test]
async fn a_move_is_seen_through_by_the_controller_that_comes_after() {
    let mut pair = Pair::new().await;
    pair.site.world("a").set_latency(SLOW);
    let operation = pair.begin(Some("b")).await;
    pair.until_sending().await;
    pair.brain.shutdown().await;
    (pair.brain, pair.client) = pair.site.controller().await;
    let ended = done(&pair.client, &operation).await.unwrap();
    assert_eq!(ended.state, OperationState::Done);
    pair.is_on(&pair.b, &pair.a, PowerState::Running).await;
    pair.shutdown().await;
}

#[tokio::test]
async fn a_move_goes_on_when_the_agent_of_its_destination_is_restarted() {
    let mut pair = Pair::new().await;
    pair.site.world("a").set_latency(SLOW);
    let operation = pair.begin(Some("b")).await;
    pair.until_sending().await;
    pair.b.shutdown().await;
    pair.b = pair.site.agent("b").await;
    done(&pair.client, &operation).await.unwrap();
    pair.is_on(&pair.b, &pair.a, PowerState::Running).await;
    pair.shutdown().await;
}

#[tokio::test]
async fn a_move_goes_on_when_the_agent_of_its_source_is_restarted() {
    let mut pair = Pair::new().await;
    pair.site.world("a").set_latency(SLOW);
    let operation = pair.begin(Some("b")).await;
    pair.until_sending().await;
    pair.a.shutdown().await;
    pair.a = pair.site.agent("a").await;
    done(&pair.client, &operation).await.unwrap();
    pair.is_on(&pair.b, &pair.a, PowerState::Running).await;
    pair.shutdown().await;
}

#[tokio::test]
async fn a_vm_that_crashes_on_its_way_runs_nowhere_and_its_move_says_so() {
    let pair = Pair::new().await;
    pair.site.world("a").set_latency(SLOW);
    let operation = pair.begin(Some("b")).await;
    pair.until_sending().await;
    pair.site.world("a").crash(pair.id(), CrashCause::Hypervisor);
    let error = done(&pair.client, &operation).await.unwrap_err();
    assert!(error.inline().contains("it ended"), "{error}");
    let web = until(&pair.client, "web", |v| {
        matches!(v.vm.status.power, PowerState::Crashed(_))
    })
    .await;
    assert_eq!(web.vm.spec.node, Some("lab/a".parse().unwrap()));
    assert_eq!(pair.b.power(pair.id()).await, None);
    pair.shutdown().await;
}

#[tokio::test(start_paused = true)]
async fn a_vm_that_may_have_arrived_is_not_started_where_it_came_from() {
    let pair = Pair::new().await;
    pair.site.world("a").set_latency(SLOW);
    let operation = pair.begin(Some("b")).await;
    pair.until_sending().await;
    pair.b.cable.cut(true);
    until_node(&pair.client, "lab/b", NodeState::Lost).await;
    assert_eq!(
        pair.b.power(pair.id()).await,
        Some(PowerState::Running),
        "it arrived, and nobody heard of it"
    );
    // Long after a move is given up of which nothing more is heard.
    for _ in 0..30 {
        tokio::time::sleep(Duration::from_secs(5)).await;
        assert_eq!(
            pair.a.power(pair.id()).await,
            Some(PowerState::Off),
            "it runs twice"
        );
    }
    pair.b.cable.cut(false);
    done(&pair.client, &operation).await.unwrap();
    pair.is_on(&pair.b, &pair.a, PowerState::Running).await;
    pair.shutdown().await;
}

#[tokio::test]
async fn nothing_else_is_done_with_a_vm_while_it_moves() {
    let pair = Pair::new().await;
    let vms = pair.client.vms();
    pair.site.world("a").set_latency(SLOW);
    let operation = pair.begin(Some("b")).await;
    let mut refused = Vec::new();
    for action in [
        PowerAction::Stop,
        PowerAction::ForceOff,
        PowerAction::Restart,
        PowerAction::Pause,
        PowerAction::Save,
    ] {
        refused.push((format!("{action:?}"), vms.power("web", action).await.err()));
    }
    refused.push(("delete".into(), vms.delete("web").force(true).await.err()));
    let again = vms.migrate("web", &to_machine(None)).await;
    refused.push(("migrate".into(), again.err()));
    let snapshot = vms.snapshots("web").create(CreateSnapshot::default()).await;
    refused.push(("snapshot".into(), snapshot.err()));
    for (what, error) in refused {
        let error = error.unwrap_or_else(|| panic!("{what} of a VM that moves was accepted"));
        assert_eq!(error.kind(), ErrorKind::Conflict, "{what}: {error}");
        let clear = ["on its way", "moving to another node"];
        assert!(clear.iter().any(|c| error.why().contains(c)), "{what}: {error}");
    }
    done(&pair.client, &operation).await.unwrap();
    pair.is_on(&pair.b, &pair.a, PowerState::Running).await;
    pair.shutdown().await;
}

#[tokio::test]
async fn the_scheduler_tells_of_each_node_what_stands_in_the_way() {
    let site = Site::new();
    let (brain, client) = site.controller().await;
    let a = site.agent("a").await;
    let b = site.agent_with("b", |b| b).await.unwrap();
    for node in ["lab/a", "lab/b"] {
        until_node(&client, node, NodeState::Ready).await;
    }
    site.furnish(&client).await;
    for vm in ["web", "db"] {
        through(&client, client.vms().launch(on("a", vm)).await)
            .await
            .unwrap();
    }
    let placement = client.vms().placement("web").await.unwrap().items;
    let told: Vec<_> = placement
        .iter()
        .map(|p| (p.node.to_string(), p.current, p.fits))
        .collect();
    assert_eq!(
        told,
        [("lab/a".into(), true, true), ("lab/b".into(), false, false)]
    );
    assert!(placement[0].reasons.is_empty(), "{:?}", placement[0].reasons);
    assert!(
        placement[1].reasons[0].contains("network lan is on lab/a")
            && placement[1].reasons[0].contains("--underlay"),
        "{:?}",
        placement[1].reasons
    );
    let error = client
        .vms()
        .migrate("web", &to_machine(Some("b")))
        .await
        .unwrap_err();
    for part in ["--underlay", "--shared-storage"] {
        assert!(error.why().contains(part), "{error}");
    }
    // A third VM goes where its network reaches.
    let third = launch(&client, "third").await;
    assert_eq!(third.vm.spec.node, Some("lab/a".parse().unwrap()));
    for server in [a, b] {
        server.shutdown().await;
    }
    brain.shutdown().await;
}

fn with_a_copy(to: &str) -> MigrateRequest {
    MigrateRequest {
        copy_disks: true,
        ..to_machine(Some(to))
    }
}

#[tokio::test]
async fn a_vm_moves_with_a_copy_of_its_disk_between_machines_that_do_not_share_it() {
    let pair = Pair::apart().await;
    let client = &pair.client;
    let refused = client
        .vms()
        .migrate("web", &to_machine(Some("b")))
        .await
        .unwrap_err();
    assert!(refused.why().contains("--copy-disks"), "{refused}");
    let checks = client
        .vms()
        .check_migrate("web", &to_machine(Some("b")))
        .await
        .unwrap()
        .items;
    assert!(checks.len() == 1 && !checks[0].passed, "{checks:?}");
    let checks = client
        .vms()
        .check_migrate("web", &with_a_copy("b"))
        .await
        .unwrap()
        .items;
    assert!(checks.iter().all(|check| check.passed), "{checks:?}");
    for at in ["the records", "lab/a", "lab/b"] {
        assert!(checks.iter().any(|check| check.at == at), "{at}: {checks:?}");
    }
    let never = MigrateRequest {
        max_downtime_ms: Some(0),
        ..with_a_copy("b")
    };
    let refused = client.vms().migrate("web", &never).await.unwrap_err();
    assert!(refused.why().contains("1 to 60000 ms"), "{refused}");

    let moving = client
        .vms()
        .migrate("web", &with_a_copy("b"))
        .await
        .unwrap()
        .operation;
    let ended = done(client, &moving).await.unwrap();
    assert_eq!(ended.state, OperationState::Done);
    pair.is_on(&pair.b, &pair.a, PowerState::Running).await;
    // And back: nothing of it was left.
    let moving = client
        .vms()
        .migrate("web", &with_a_copy("a"))
        .await
        .unwrap()
        .operation;
    done(client, &moving).await.unwrap();
    pair.is_on(&pair.a, &pair.b, PowerState::Running).await;

    through(client, client.vms().power("web", PowerAction::ForceOff).await)
        .await
        .unwrap();
    let refused = client.vms().migrate("web", &with_a_copy("b")).await.unwrap_err();
    assert!(
        refused.why().contains("only be copied while it runs"),
        "{refused}"
    );
    pair.shutdown().await;
}

#[tokio::test]
async fn a_copy_whose_arrival_was_never_heard_of_is_dropped_and_the_vm_goes_on_where_it_was() {
    let pair = Pair::apart().await;
    let client = &pair.client;
    pair.site
        .world("a")
        .add_fault(pair.id(), Fault::NextConfirmationIsLost);
    let moving = client
        .vms()
        .migrate("web", &with_a_copy("b"))
        .await
        .unwrap()
        .operation;
    let ended = done(client, &moving).await;
    assert!(ended.is_err() || ended.unwrap().state != OperationState::Done);
    pair.is_on(&pair.a, &pair.b, PowerState::Running).await;
    let moving = client
        .vms()
        .migrate("web", &with_a_copy("b"))
        .await
        .unwrap()
        .operation;
    done(client, &moving).await.unwrap();
    pair.is_on(&pair.b, &pair.a, PowerState::Running).await;
    pair.shutdown().await;
}
