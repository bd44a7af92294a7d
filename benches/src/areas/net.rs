//! Networks on a host: inside the namespace that the harness has made for itself, which is "the host" here.

use crate::harness::{
    clock::SystemClock,
    child::{command, run as run_program},
    duel::{duel, solo},
    fault::{During, Fault, Outcome},
    ground::Ground,
    row::Row,
    rows::{Rows, say},
};
use std::{cell::Cell, collections::BTreeSet, net::Ipv4Addr, sync::Arc, time::Duration};
use tempfile::TempDir;
use tokio::time::{Instant, timeout};
use uuid::Uuid;
use vbm_core::{Mac, NetworkId, NetworkMode, NetworkSpec, PortId, network::parse_cidr};
use vbm_net::{DesiredNetwork, DesiredPort, HostConfig, HostNetwork, NetworkBackend, doctor};

/// The longest that one `ip` call may take.
const IP_WITHIN: Duration = Duration::from_secs(10);
/// The longest that clearing up may take.
const CLEAR_WITHIN: Duration = Duration::from_secs(60);
/// The ports of a large network, and of a small one to compare with.
const PORTS: usize = 1_000;
const FEW_PORTS: usize = 200;
const QUICK_PORTS: usize = 200;
const QUICK_FEW_PORTS: usize = 40;

pub(crate) async fn run(ground: &Ground, rows: &mut Rows) {
    rows.measure("create a network", "ms", create(ground)).await;
    let ports = ground.size(PORTS, QUICK_PORTS);
    let again = format!("ensure {ports} ports again, nothing to change");
    let add = format!("add a port to a network of {ports}");
    rows.measure_all(&[(&again, "ms"), (&add, "ms")], grow(ground, &again, &add))
        .await;
    super::ipam::run(ground, rows).await;
    super::dhcp::run(ground, rows).await;
}

/// A backend with an owner of its own. What it made is removed when it is dropped, whatever happened.
struct Lab {
    net: HostNetwork,
    owner: String,
    _state: TempDir,
}

impl Lab {
    async fn open(ground: &Ground) -> Outcome<Self> {
        ground.namespace()?;
        let state = tempfile::Builder::new().prefix("vbm-bench-").tempdir()?;
        let owner = format!("bench-{}", Uuid::now_v7().simple());
        let net = HostNetwork::open(HostConfig::new(&owner, state.path(), Arc::new(SystemClock))).await?;
        Ok(Self {
            net,
            owner,
            _state: state,
        })
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        let (net, owner) = (self.net.clone(), self.owner.clone());
        // A runtime of its own: this one may be in the middle of being interrupted.
        let cleared = std::thread::spawn(move || -> Outcome<()> {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()?;
            runtime.block_on(async {
                drop(timeout(CLEAR_WITHIN, net.shutdown()).await);
                timeout(CLEAR_WITHIN, doctor::remove_owners(&BTreeSet::from([owner]))).await??;
                Ok(())
            })
        });
        if let Ok(Err(fault)) = cleared.join() {
            say(&format!(
                "warning: a network of the bench was not cleared up: {fault}"
            ));
        }
    }
}

fn network(ports: usize) -> Outcome<DesiredNetwork> {
    let id = NetworkId::from_uuid(Uuid::now_v7());
    let spec = NetworkSpec::new(NetworkMode::Nat, parse_cidr("10.9.0.0/16")?)?;
    let mut wanted = DesiredNetwork {
        id,
        name: "bench".parse()?,
        spec,
        ports: Vec::new(),
        forwards: Vec::new(),
        overlay: None,
        groups: vec![],
    };
    for number in 0..ports {
        wanted.ports.push(port(number)?);
    }
    Ok(wanted)
}

fn port(number: usize) -> Outcome<DesiredPort> {
    let number = u32::try_from(number)?;
    Ok(DesiredPort {
        id: PortId::from_uuid(Uuid::now_v7()),
        mac: Mac::local(number + 1),
        address: Ipv4Addr::from(u32::from(Ipv4Addr::new(10, 9, 1, 0)) + number),
        address6: None,
        hostname: format!("guest-{number}").parse()?,
        metadata_route: true,
        rules: vec!["tcp/22".parse()?, "tcp/80-90".parse()?, "icmp".parse()?],
        policy: Default::default(),
    })
}

/// A network of mode NAT without ports, beside the least that one types for less.
async fn create(ground: &Ground) -> Outcome<Row> {
    let lab = Lab::open(ground).await?;
    // The first one also makes what all networks share: measured apart from the others.
    let first = network(0)?;
    lab.net.ensure(first.clone()).await?;
    let samples = duel(
        ground.rounds() * 2,
        async |_| {
            let wanted = network(0)?;
            let begin = Instant::now();
            let seen = lab.net.ensure(wanted.clone()).await?;
            let took = begin.elapsed().as_secs_f64() * 1e3;
            lab.net.remove(wanted.id).await?;
            if seen.ready {
                Ok(took)
            } else {
                Err(Fault::new("it is not ready"))
            }
        },
        async |round| six_ip_calls(round).await,
    )
    .await?;
    lab.net.remove(first.id).await?;
    Ok(Row::new("create a network", "ms", samples.ours)
        .against("six calls of `ip`: namespace, bridge, its address, up, veth, its address", samples.peer)
        .goal("<= 0.4x")
        .noted("ours also makes guard, NAT, filter rules and the DHCP server, and reads them back; the six calls do not"))
}

async fn six_ip_calls(round: usize) -> Outcome<f64> {
    let space = Typed(format!("bench-vbm-{}-{round}", std::process::id()));
    let (ns, link) = (&space.0, format!("vbmb{round}"));
    let ip = async |line: &str| -> Outcome<()> {
        let mut call = command("ip");
        run_program(call.args(line.split(' ')), IP_WITHIN).await.map(drop)
    };
    let begin = Instant::now();
    ip(&format!("netns add {ns}")).await?;
    ip(&format!("-n {ns} link add br0 type bridge")).await?;
    ip(&format!("-n {ns} address add 10.8.0.1/24 dev br0")).await?;
    ip(&format!("-n {ns} link set br0 up")).await?;
    ip(&format!("link add {link} type veth peer name up0 netns {ns}")).await?;
    ip(&format!("address add 100.127.255.0/31 dev {link}")).await?;
    Ok(begin.elapsed().as_secs_f64() * 1e3)
}

/// A namespace made by `ip`; deleted when dropped. Its link goes with it, a moment later; so each round has its own name.
struct Typed(String);

impl Drop for Typed {
    fn drop(&mut self) {
        let done = std::process::Command::new("ip")
            .args(["netns", "delete", &self.0])
            .output();
        if !done.is_ok_and(|output| output.status.success()) {
            say(&format!("warning: the namespace {} was not deleted", self.0));
        }
    }
}

/// What a network costs as it grows.
async fn grow(ground: &Ground, again: &str, add: &str) -> Outcome<Vec<Row>> {
    let (many, few) = (
        ground.size(PORTS, QUICK_PORTS),
        ground.size(FEW_PORTS, QUICK_FEW_PORTS),
    );
    let lab = Lab::open(ground).await?;
    let (large, small) = (Cell::new(Some(network(many)?)), Cell::new(Some(network(few)?)));
    for wanted in [&large, &small] {
        let made = wanted.take().ok_or_else(|| Fault::new("no network"))?;
        lab.net.ensure(made.clone()).await.during("making it")?;
        wanted.set(Some(made));
    }
    let unchanged = solo(ground.rounds(), async |_| {
        let wanted = large.take().ok_or_else(|| Fault::new("no network"))?;
        let begin = Instant::now();
        let seen = lab.net.ensure(wanted.clone()).await?;
        let took = begin.elapsed().as_secs_f64() * 1e3;
        large.set(Some(wanted));
        if seen.changed.is_empty() {
            Ok(took)
        } else {
            Err(Fault::new(format!("it changed {:?}", seen.changed)))
        }
    })
    .await?;
    let grown = async |which: &Cell<Option<DesiredNetwork>>| {
        let mut wanted = which.take().ok_or_else(|| Fault::new("no network"))?;
        wanted.ports.push(port(wanted.ports.len())?);
        let begin = Instant::now();
        lab.net.ensure(wanted.clone()).await?;
        let took = begin.elapsed().as_secs_f64() * 1e3;
        which.set(Some(wanted));
        Ok(took)
    };
    let added = duel(
        ground.rounds(),
        async |_| grown(&large).await,
        async |_| grown(&small).await,
    )
    .await?;
    Ok(vec![
        Row::new(again, "ms", unchanged),
        Row::new(add, "ms", added.ours.clone()).goal("<= 50"),
        Row::new(format!("{add}, beside one of {few}"), "ms", added.ours)
            .against(format!("the same with {few} ports"), added.peer)
            .goal("<= 1.3x"),
    ])
}
