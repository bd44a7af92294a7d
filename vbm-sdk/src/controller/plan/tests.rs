//! The plan as sentences.

use super::*;
use vbm_core::{
    Boot, Capability, Digest, DiskFormat, DriverKind, ForwardId, ForwardSpec, GroupSpec, ImageSpec, Mac,
    Meta, NetworkMode, NetworkSpec, NetworkStatus, NodeSpec, NodeState, NodeStatus, PortSpec, PortStatus,
    Protocol, Timestamp, VmSpec, VmStatus, VolumeSpec, WantedPower, network::parse_cidr,
};

fn uuid(n: u128) -> uuid::Uuid {
    uuid::Uuid::from_u128(n)
}

fn meta<Id>(id: Id, name: &str) -> Meta<Id> {
    Meta::new(id, name.parse().unwrap(), Timestamp::default())
}

fn node(path: &str, free: u64) -> Node {
    let capability = Capability {
        driver: DriverKind::Qemu,
        version: "10".into(),
        accelerator: None,
        problem: None,
    };
    let status = NodeStatus {
        state: NodeState::Ready,
        capabilities: vec![capability],
        memory_free_mib: free,
        ..NodeStatus::default()
    };
    Node {
        path: path.parse().unwrap(),
        spec: NodeSpec::default(),
        status,
    }
}

/// A VM `n` with one port on network 1, a group that lets tcp/80 in, and a forward.
pub(crate) fn world() -> World {
    let network = NetworkId::from_uuid(uuid(1));
    let image = ImageId::from_uuid(uuid(2));
    let spec = NetworkSpec::new(NetworkMode::Nat, parse_cidr("10.0.0.0/24").unwrap()).unwrap();
    let mut world = World::default();
    world.networks.insert(
        network,
        Network {
            meta: meta(network, "lan"),
            spec,
            status: NetworkStatus::default(),
        },
    );
    let disk = ImageSpec {
        disk: Digest::new([7; 32]),
        format: DiskFormat::Qcow2,
        file_bytes: 1,
        virtual_bytes: 1,
        boot: Boot::Disk,
    };
    world.images.insert(
        image,
        Image {
            meta: meta(image, "tiny"),
            spec: disk,
        },
    );
    let group = GroupId::from_uuid(uuid(3));
    let rules = vec!["tcp/80".parse().unwrap()];
    world.groups.insert(
        group,
        Group {
            meta: meta(group, "web"),
            spec: GroupSpec {
                rules,
                egress_closed: false,
            },
        },
    );
    for path in ["a", "b"] {
        world.nodes.insert(path.parse().unwrap(), node(path, 1000));
    }
    world
}

pub(crate) fn add_vm(world: &mut World, n: u8, on: Option<&str>) -> VmId {
    let n128 = u128::from(n);
    let (vm, port, volume) = (
        VmId::from_uuid(uuid(100 + n128)),
        PortId::from_uuid(uuid(200 + n128)),
        VolumeId::from_uuid(uuid(300 + n128)),
    );
    let network = NetworkId::from_uuid(uuid(1));
    let spec = VmSpec {
        vcpus: 1,
        memory_mib: 256,
        image: ImageId::from_uuid(uuid(2)),
        root_volume: volume,
        ports: vec![port],
        driver: DriverKind::Qemu,
        power: WantedPower::Running,
        node: on.map(|p| p.parse().unwrap()),
        moving: None,
        reverting: None,
        guest: vbm_core::GuestData::default(),
    };
    world.vms.insert(
        vm,
        Vm {
            meta: meta(vm, &format!("vm{n}")),
            spec,
            status: VmStatus {
                power: vbm_core::PowerState::Off,
                ..VmStatus::default()
            },
        },
    );
    let groups = vec![GroupId::from_uuid(uuid(3))];
    let spec = PortSpec {
        network,
        vm,
        mac: Mac::local(n.into()),
        address: [10, 0, 0, n].into(),
        pinned: false,
        address6: None,
        groups,
        pairs: Vec::new(),
        limits: Default::default(),
        floating_ip: None,
    };
    world.ports.insert(
        port,
        Port {
            meta: meta(port, &format!("port{n}")),
            spec,
            status: PortStatus::default(),
        },
    );
    let spec = VolumeSpec {
        image: ImageId::from_uuid(uuid(2)),
        virtual_bytes: 1,
        vm,
    };
    world.volumes.insert(
        volume,
        Volume {
            meta: meta(volume, &format!("root{n}")),
            spec,
        },
    );
    vm
}

fn forward_to(world: &mut World, n: u8) {
    let id = ForwardId::from_uuid(uuid(400 + u128::from(n)));
    let target = PortId::from_uuid(uuid(200 + u128::from(n)));
    let network = NetworkId::from_uuid(uuid(1));
    let spec = ForwardSpec {
        network,
        protocol: Protocol::Tcp,
        listen_address: None,
        listen_port: 8080,
        count: 1,
        target,
        target_port: 80,
    };
    world.forwards.push(Forward {
        meta: meta(id, &format!("f{n}")),
        spec,
    });
}

#[test]
fn a_node_holds_the_ports_rules_and_forwards_of_its_own_vms_only() {
    let mut world = world();
    add_vm(&mut world, 5, Some("a"));
    add_vm(&mut world, 6, Some("b"));
    forward_to(&mut world, 6);
    let (a, b) = (
        world.node_plan(&"a".parse().unwrap()),
        world.node_plan(&"b".parse().unwrap()),
    );
    let addresses = |plan: &NodePlan| {
        plan.networks[0]
            .ports
            .iter()
            .map(|p| p.address.octets()[3])
            .collect::<Vec<_>>()
    };
    assert_eq!((addresses(&a), addresses(&b)), (vec![5], vec![6]));
    assert_eq!(
        (a.networks[0].forwards.len(), b.networks[0].forwards.len()),
        (0, 1)
    );
    let group = &a.networks[0].groups[0];
    assert_eq!(group.spec.rules, ["tcp/80".parse().unwrap()]);
    assert_eq!(a.networks[0].ports[0].groups, [group.id]);
    assert!(group.members.is_empty(), "no rule speaks of it");
    assert_eq!(a.networks[0].ports[0].hostname.as_str(), "vm5");
}

#[test]
fn of_a_vms_nics_the_first_whose_network_has_metadata_tells_the_way_there() {
    let mut world = world();
    let vm = add_vm(&mut world, 5, Some("a"));
    let first = world.ports[&world.vms[&vm].spec.ports[0]].clone();
    let mut other = world.networks[&first.spec.network].clone();
    other.meta.id = NetworkId::from_uuid(uuid(11));
    let mut second = first.clone();
    second.meta.id = PortId::from_uuid(uuid(250));
    second.spec.network = other.meta.id;
    second.spec.address6 = Some("fd00::5".parse().unwrap());
    world.vms.get_mut(&vm).unwrap().spec.ports.push(second.meta.id);
    world.ports.insert(second.meta.id, second);
    world.networks.insert(other.meta.id, other);
    let told = |world: &World| -> Vec<bool> {
        let plan = world.node_plan(&path("a"));
        let ports = plan.networks.iter().flat_map(|n| &n.ports);
        ports.map(|p| p.metadata_route).collect()
    };
    assert_eq!(told(&world), [true, false]);
    let network = world.networks.get_mut(&first.spec.network).unwrap();
    network.spec.metadata = vbm_core::MetadataMode::Off;
    assert_eq!(told(&world), [false, true]);
    let plan = world.node_plan(&path("a"));
    assert_eq!(
        plan.networks[1].ports[0].address6,
        Some("fd00::5".parse().unwrap()),
        "the address of IPv6 is told too"
    );
}

#[test]
fn a_node_is_told_the_members_that_are_elsewhere_of_groups_that_its_rules_speak_of() {
    let mut world = world();
    add_vm(&mut world, 5, Some("a"));
    add_vm(&mut world, 6, Some("b"));
    let id = *world.groups.keys().next().unwrap();
    world.groups.get_mut(&id).unwrap().spec = GroupSpec::default_group();
    let a = world.node_plan(&"a".parse().unwrap());
    assert_eq!(a.networks[0].groups[0].members, ["10.0.0.6/32".parse().unwrap()]);
}

#[test]
fn a_vm_that_is_being_deleted_gives_up_its_port_before_it_is_removed() {
    let mut world = world();
    let vm = add_vm(&mut world, 5, Some("a"));
    world.vms.get_mut(&vm).unwrap().meta.deleting = true;
    let plan = world.node_plan(&"a".parse().unwrap());
    assert!(plan.vms.is_empty() && plan.networks[0].ports.is_empty());
    assert_eq!(plan.remove_vms[0].nics.len(), 1);
}

#[test]
fn a_vm_waits_while_something_it_refers_to_is_missing() {
    let mut world = world();
    add_vm(&mut world, 5, Some("a"));
    world.images.clear();
    assert!(world.node_plan(&"a".parse().unwrap()).vms.is_empty());
}

#[test]
fn a_vm_goes_where_most_memory_is_left_counting_vms_that_are_about_to_start() {
    let mut world = world();
    world
        .nodes
        .get_mut(&"b".parse().unwrap())
        .unwrap()
        .status
        .memory_free_mib = 1200;
    let vm = add_vm(&mut world, 5, None);
    world.vms.get_mut(&vm).unwrap().spec.ports.clear();
    let vm = world.vms[&vm].clone();
    assert_eq!(world.place(&vm).unwrap().to_string(), "b");
    let other = add_vm(&mut world, 6, Some("b"));
    world.ports.clear();
    assert!(!world.vms[&other].status.power.is_live());
    assert_eq!(world.place(&vm).unwrap().to_string(), "a");
}

#[test]
fn vms_of_one_network_stay_on_one_node_until_networks_span_nodes() {
    let mut world = world();
    world
        .nodes
        .get_mut(&"b".parse().unwrap())
        .unwrap()
        .status
        .memory_free_mib = 100_000;
    add_vm(&mut world, 5, Some("a"));
    let vm = add_vm(&mut world, 6, None);
    assert_eq!(world.place(&world.vms[&vm]).unwrap().to_string(), "a");
}

#[test]
fn when_no_node_fits_each_says_why() {
    let mut world = world();
    world.nodes.get_mut(&"a".parse().unwrap()).unwrap().status.state = NodeState::Lost;
    world
        .nodes
        .get_mut(&"b".parse().unwrap())
        .unwrap()
        .status
        .memory_free_mib = 10;
    let vm = add_vm(&mut world, 5, None);
    let error = world.place(&world.vms[&vm]).unwrap_err();
    assert!(
        error.why().contains("a: it is lost") && error.why().contains("b: it has 10 MiB"),
        "{error}"
    );
}

/// A world whose network spans nodes `a` (10.9.0.1) and `b` (10.9.0.2).
pub(crate) fn spanning() -> World {
    let mut world = world();
    let network = NetworkId::from_uuid(uuid(1));
    world.networks.get_mut(&network).unwrap().spec.vni = Some(5_000);
    for (n, node) in world.nodes.values_mut().enumerate() {
        node.status.underlay = Some([10, 9, 0, u8::try_from(n).unwrap() + 1].into());
        node.status.shared_storage = Some("same".into());
    }
    world
}

fn hosts(plan: &NodePlan) -> Vec<u8> {
    let overlay = plan.networks[0].overlay.as_ref().unwrap();
    overlay.remotes.iter().map(|r| r.host.octets()[3]).collect()
}

pub(crate) fn path(text: &str) -> NodePath {
    text.parse().unwrap()
}

#[test]
fn a_network_that_spans_nodes_tells_each_where_the_other_ports_are() {
    let mut world = spanning();
    add_vm(&mut world, 5, Some("a"));
    add_vm(&mut world, 6, Some("b"));
    let (a, b) = (world.node_plan(&path("a")), world.node_plan(&path("b")));
    assert_eq!((hosts(&a), hosts(&b)), (vec![2], vec![1]));
    assert_eq!(
        a.networks[0].overlay.as_ref().unwrap().local,
        std::net::Ipv4Addr::new(10, 9, 0, 1)
    );
}

#[test]
fn a_vm_that_moves_has_its_port_on_both_nodes_and_its_power_on_none() {
    let mut world = spanning();
    let vm = add_vm(&mut world, 5, Some("a"));
    let moving = vbm_core::VmMove {
        from: path("a"),
        to: path("b"),
        live: true,
        how: vbm_core::MoveHow::default(),
        operation: vbm_core::OperationId::from_uuid(uuid(9)),
    };
    world.vms.get_mut(&vm).unwrap().spec.moving = Some(moving);
    let (a, b) = (world.node_plan(&path("a")), world.node_plan(&path("b")));
    assert_eq!((a.networks[0].ports.len(), b.networks[0].ports.len()), (1, 1));
    // The destination still reaches it where it is.
    assert_eq!((hosts(&a), hosts(&b)), (vec![], vec![1]));
    assert!(a.vms[0].held && b.vms.is_empty());
    world.vms.get_mut(&vm).unwrap().spec.node = Some(path("b"));
    let (a, b) = (world.node_plan(&path("a")), world.node_plan(&path("b")));
    assert!(a.vms.is_empty() && !b.vms[0].held);
    assert_eq!((hosts(&a), a.networks[0].ports.len()), (vec![2], 0));
}

#[test]
fn a_node_without_an_address_takes_no_part_in_a_network_that_is_elsewhere() {
    let mut world = spanning();
    world.nodes.get_mut(&path("b")).unwrap().status.underlay = None;
    add_vm(&mut world, 5, Some("a"));
    let vm = add_vm(&mut world, 6, None);
    let candidates = world.candidates(&world.vms[&vm]);
    assert_eq!(
        (candidates[0].node.to_string().as_str(), candidates[0].fits()),
        ("a", true)
    );
    assert!(
        candidates[1].reasons[0].contains("b has no address"),
        "{candidates:?}"
    );
    assert!(world.node_plan(&path("b")).networks[0].overlay.is_none());
}

#[test]
fn every_reason_against_a_node_is_told() {
    let mut world = spanning();
    let node = world.nodes.get_mut(&path("b")).unwrap();
    node.spec.cordoned = true;
    node.status.memory_free_mib = 1;
    node.status.capabilities.clear();
    let vm = add_vm(&mut world, 6, None);
    let candidates = world.candidates(&world.vms[&vm]);
    assert_eq!(candidates[1].reasons.len(), 3, "{candidates:?}");
}
