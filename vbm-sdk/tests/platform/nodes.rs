//! Which machines take part, and what becomes of VMs whose node is silent.

use crate::{
    house::{done, launch, through, until},
    site::{Site, events, on, until_node, until_node_is, until_so},
};
use std::{sync::Arc, time::Duration};
use vbm_core::{Clock, DriverKind, ErrorKind, EventKind, Node, NodeState, PowerState, Timestamp};
use vbm_rpc::{Bus, CallOptions, Member, Route, Router, Service};
use vbm_sdk::{
    api::{MigrateRequest, PowerAction},
    client::Client,
    methods::{CONTROLLER_SERVICE, LOST_AFTER, NodeReport, NodeReportRequest, PROTOCOL_VERSION},
    source::SystemClock,
};

const HOUR: Duration = Duration::from_secs(3_600);

#[tokio::test]
async fn a_second_machine_under_the_path_of_another_is_refused_and_the_first_goes_on() {
    let site = Site::new();
    let (brain, client) = site.controller().await;
    let first = site.agent("a").await;
    let known = until_node(&client, "lab/a", NodeState::Ready).await;
    let mut rivals = Vec::new();
    for _ in 0..2 {
        let second = site
            .agent_with("second", |b| b.node("lab/a".parse().unwrap()))
            .await;
        let error = second.err().unwrap();
        assert_eq!(error.kind(), ErrorKind::AlreadyExists, "{error}");
        assert!(error.what().contains("cannot be node lab/a"), "{error}");
        assert!(error.fix().contains("--node"), "{error}");
        let node = client.nodes().get("lab/a").await.unwrap();
        assert_eq!(node.status.state, NodeState::Ready);
        assert_eq!(node.status.identity, known.status.identity);
        rivals.push(node.status.rival.unwrap().identity);
    }
    assert_eq!(rivals[0], rivals[1]);
    assert_ne!(rivals[0], known.status.identity);
    assert_eq!(events(&client, EventKind::NodeRefused).await.len(), 1);
    // The first one has its place still.
    site.furnish(&client).await;
    let web = launch(&client, "web").await;
    assert_eq!(first.power(web.vm.meta.id).await, Some(PowerState::Running));
    first.shutdown().await;
    brain.shutdown().await;
}

#[tokio::test(start_paused = true)]
async fn a_machine_that_took_the_path_of_another_while_no_controller_looked_runs_nothing() {
    let site = Site::new();
    let (brain, client) = site.controller().await;
    let first = site.agent("a").await;
    site.furnish(&client).await;
    let web = launch(&client, "web").await;
    brain.shutdown().await;
    let second = site
        .agent_with("second", |b| b.node("lab/a".parse().unwrap()))
        .await
        .unwrap();
    let (brain, client) = site.controller().await;
    // What the node is asked goes to whoever has its place on the bus.
    let asked = client.vms().power("web", PowerAction::Pause).await.unwrap();
    until_node_is(&client, "lab/a", |n| {
        n.status.rival.is_some() && n.status.state == NodeState::Lost
    })
    .await;
    assert!(second.holds_no_vm().await, "it runs the other machine's VM");
    assert_eq!(first.power(web.vm.meta.id).await, Some(PowerState::Running));
    // With the second gone, the first is started again and takes its place.
    second.shutdown().await;
    first.shutdown().await;
    let first = site.agent("a").await;
    done(&client, &asked.operation).await.unwrap();
    assert!(matches!(
        first.power(web.vm.meta.id).await,
        Some(PowerState::Paused(_))
    ));
    first.shutdown().await;
    brain.shutdown().await;
}

/// A clock that is an hour off.
struct Off {
    ahead: bool,
}

impl Clock for Off {
    fn now(&self) -> Timestamp {
        let now = SystemClock.now();
        if self.ahead {
            return now.plus(HOUR);
        }
        Timestamp::from_micros(now.micros() - i64::try_from(HOUR.as_micros()).unwrap())
    }
}

#[tokio::test]
async fn a_clock_an_hour_off_is_shown_and_harms_nobody() {
    for ahead in [true, false] {
        let site = Site::new();
        let (brain, client) = site.controller().await;
        let a = site
            .agent_with("a", |b| b.clock(Arc::new(Off { ahead })))
            .await
            .unwrap();
        let node = until_node(&client, "lab/a", NodeState::Ready).await;
        let why = node.status.warnings[0].why();
        let direction = if ahead { "ahead of" } else { "behind" };
        assert!(why.contains("60 min") && why.contains(direction), "{why}");
        site.furnish(&client).await;
        launch(&client, "web").await;
        through(&client, client.vms().power("web", PowerAction::Stop).await)
            .await
            .unwrap();
        assert!(events(&client, EventKind::NodeLost).await.is_empty());
        a.shutdown().await;
        brain.shutdown().await;
    }
}

/// What an agent of this version tells of itself; it has a driver, and memory for everything.
fn report(protocol: u32) -> NodeReportRequest {
    serde_json::from_value(serde_json::json!({
        "path": "lab/a", "boot_id": "boot", "version": "0.0.7", "protocol": protocol, "identity": "one",
        "capabilities": [{"driver": "sim", "version": "1", "accelerator": null, "problem": null}],
        "cpus": 2, "memory_mib": 65_536, "memory_free_mib": 65_536, "epoch": 0, "vms": [], "networks": [],
        "at": SystemClock.now(),
    }))
    .unwrap()
}

async fn problem_of(client: &Client, vm: &str) -> String {
    let problem = until(client, vm, |v| v.vm.status.problem.is_some()).await;
    problem.vm.status.problem.unwrap().why().to_owned()
}

#[tokio::test]
async fn an_agent_of_a_version_that_is_too_far_off_is_refused_and_takes_no_vm() {
    let site = Site::new();
    let (brain, client) = site.controller().await;
    let member = Member::new("lab/a".parse().unwrap(), "boot");
    let bus = Bus::attach(site.bus.clone(), member, Router::new())
        .await
        .unwrap();
    let tell = async |protocol| {
        let route = Route::any(
            vbm_core::NodePath::root(),
            Service::new(CONTROLLER_SERVICE).unwrap(),
        );
        bus.call::<NodeReport>(&route, &report(protocol), CallOptions::default())
            .await
            .map_err(vbm_core::Error::from)
    };
    let shown = async || -> Node { client.nodes().get("lab/a").await.unwrap() };
    crate::house::import(&client, site.dir.path()).await;
    for (protocol, fix) in [(99, "upgrade the controllers"), (0, "upgrade vbmd")] {
        let error = tell(protocol).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unsupported, "{error}");
        let status = shown().await.status;
        let reason = status.reason.unwrap();
        assert_eq!(status.state, NodeState::Refused);
        assert!(
            reason.why().contains(&format!("protocol {protocol};")),
            "{reason}"
        );
        assert!(reason.fix().contains(fix), "{reason}");
    }
    assert_eq!(events(&client, EventKind::NodeRefused).await.len(), 1);
    let mut request = on("a", "web");
    (request.node, request.nics, request.driver) = (None, vec![], Some(DriverKind::Sim));
    client.vms().launch(request).await.unwrap();
    let why = problem_of(&client, "web").await;
    assert!(why.contains("lab/a: it is refused"), "{why}");
    let web = client.vms().get("web").await.unwrap();
    assert_eq!(web.vm.spec.node, None);

    // Upgraded, or at least to the version before, it takes part.
    tell(PROTOCOL_VERSION - 1).await.unwrap();
    let status = shown().await.status;
    assert_eq!((status.state, status.reason), (NodeState::Ready, None));
    until(&client, "web", |v| {
        v.vm.spec.node == Some("lab/a".parse().unwrap())
    })
    .await;
    bus.shutdown().await;
    brain.shutdown().await;
}

#[tokio::test(start_paused = true)]
async fn a_node_that_falls_silent_is_lost_and_known_again_when_it_comes_back() {
    let site = Site::new();
    let (brain, client) = site.controller().await;
    let (a, b) = (site.agent("a").await, site.agent("b").await);
    for node in ["lab/a", "lab/b"] {
        until_node(&client, node, NodeState::Ready).await;
    }
    site.furnish(&client).await;
    let mut vms = Vec::new();
    for vm in ["web", "db"] {
        through(&client, client.vms().launch(on("a", vm)).await)
            .await
            .unwrap();
        vms.push(client.vms().get(vm).await.unwrap().vm.meta.id);
    }
    let boot = client.nodes().get("lab/a").await.unwrap().status.boot_id;
    let since = tokio::time::Instant::now();
    a.cable.cut(true);
    // A call that is pending when the node is lost: it was heard, and its answer was not.
    let asked = client.vms().power("web", PowerAction::Pause).await.unwrap();
    let lost = until_node(&client, "lab/a", NodeState::Lost).await;
    let took = since.elapsed();
    assert!(
        (LOST_AFTER - Duration::from_secs(6)..LOST_AFTER + Duration::from_secs(4)).contains(&took),
        "{took:?}"
    );
    let reason = lost.status.reason.unwrap();
    assert!(reason.why().contains("has not reported itself"), "{reason}");
    for vm in ["web", "db"] {
        let unknown = until(&client, vm, |v| v.vm.status.power == PowerState::Unknown).await;
        let problem = unknown.vm.status.problem.unwrap();
        assert!(problem.fix().contains("never runs twice"), "{problem}");
        let request = MigrateRequest {
            to: Some("lab/b".parse().unwrap()),
            ..MigrateRequest::default()
        };
        let error = client.vms().migrate(vm, &request).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Conflict);
        assert!(error.why().contains("could run twice"), "{error}");
    }
    tokio::time::sleep(2 * LOST_AFTER).await;
    assert!(b.holds_no_vm().await, "it was started elsewhere");
    assert_eq!(events(&client, EventKind::NodeLost).await.len(), 1);

    a.cable.cut(false);
    let back = until_node(&client, "lab/a", NodeState::Ready).await;
    assert_eq!(back.status.boot_id, boot, "the same start of the agent");
    until(&client, "db", |v| {
        v.vm.status.power == PowerState::Running && v.vm.status.problem.is_none()
    })
    .await;
    done(&client, &asked.operation).await.unwrap();
    until_so("the VM is not as wanted", async || {
        matches!(a.power(vms[0]).await, Some(PowerState::Paused(_)))
    })
    .await;
    assert!(b.holds_no_vm().await);
    for machine in [a, b] {
        machine.shutdown().await;
    }
    brain.shutdown().await;
}
