//! The machine that QEMU makes of a definition, as QEMU itself tells it.

#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "helpers of tests panic and print as tests do"
)]

mod common;

use common::{QemuBench, QmpClient, left_out};
use serde_json::{Value, json};
use std::path::PathBuf;
use vbm_core::{ErrorKind, VolumeId};
use vbm_hyper::{DiskDefinition, Driver, Firmware, Hardware, OpCx, QemuDriver, VmDefinition};

async fn started(bench: &QemuBench, definition: &VmDefinition) -> (QemuDriver, QmpClient) {
    let driver = QemuDriver::open(bench.config()).await.unwrap();
    driver.start(&OpCx::new(), definition, vec![]).await.unwrap();
    let qmp = QmpClient::connect(bench, definition.id);
    (driver, qmp)
}

async fn over(driver: QemuDriver, definition: &VmDefinition) {
    driver.kill(definition.id).await.unwrap();
    driver.undefine(definition.id).await.unwrap();
    driver.shutdown().await;
}

/// The devices of a bus and behind its bridges, by their ids: `(id, slot, function)`.
fn devices(pci: &Value) -> Vec<(String, u64, u64)> {
    let mut found = Vec::new();
    for device in pci.as_array().into_iter().flatten() {
        let id = device["qdev_id"].as_str().unwrap_or_default().to_owned();
        found.push((
            id,
            device["slot"].as_u64().unwrap(),
            device["function"].as_u64().unwrap(),
        ));
        found.extend(devices(&device["pci_bridge"]["devices"]));
    }
    found
}

fn short(volume: VolumeId) -> String {
    volume.uuid().simple().to_string()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn disks_drive_and_places_are_as_defined() {
    if left_out("qemu") {
        return;
    }
    let bench = QemuBench::make().await;
    let medium = bench.dir.path().join("install,it.iso");
    std::fs::write(&medium, vec![7; 64 * 1024]).unwrap();
    let mut definition = bench.on_disk();
    definition.disks = vec![bench.data_disk(8 << 20, false), bench.data_disk(16 << 20, true)];
    definition.hardware.cdrom = Some(medium.clone());
    let (driver, mut qmp) = started(&bench, &definition).await;

    let blocks = qmp.run("query-block", json!({}));
    let of = |device: &str| {
        let wanted = |block: &&Value| block["qdev"].as_str().is_some_and(|qdev| qdev.contains(device));
        blocks
            .as_array()
            .unwrap()
            .iter()
            .find(wanted)
            .unwrap_or_else(|| panic!("{device}: {blocks}"))
    };
    for disk in &definition.disks {
        let id = &short(disk.volume)[..30];
        let block = of(&format!("v{id}"));
        assert_eq!(block["inserted"]["node-name"], format!("d{id}"));
        assert_eq!(block["inserted"]["ro"], disk.read_only);
        assert_eq!(
            block["inserted"]["image"]["filename"],
            disk.path.to_str().unwrap()
        );
        let serial = qmp.run(
            "qom-get",
            json!({ "path": format!("/machine/peripheral/v{id}"), "property": "serial" }),
        );
        assert_eq!(serial, short(disk.volume)[..20]);
    }
    assert_eq!(of("disk0")["inserted"]["node-name"], "root");
    let drive = of("cd0");
    assert_eq!(
        (&drive["removable"], &drive["inserted"]["ro"]),
        (&json!(true), &json!(true))
    );
    assert_eq!(drive["inserted"]["image"]["filename"], medium.to_str().unwrap());

    let pci = qmp.run("query-pci", json!({}));
    let devices = devices(&pci[0]["devices"]);
    for (id, slot) in [
        ("video0", 1),
        ("disk0", 2),
        ("serial0", 5),
        ("watchdog0", 6),
        ("balloon0", 7),
    ] {
        assert!(
            devices.iter().any(|(d, s, _)| d == id && *s == slot),
            "{id}: {devices:?}"
        );
    }
    let ports = devices
        .iter()
        .filter(|(id, ..)| id.starts_with('p') && id[1..].parse::<u8>().is_ok());
    assert_eq!(ports.count(), 24);
    let peripherals = qmp.run("qom-list", json!({ "path": "/machine/peripheral" }));
    assert!(
        peripherals
            .as_array()
            .unwrap()
            .iter()
            .any(|p| p["name"] == "agent0"),
        "{peripherals}"
    );
    for disk in &definition.disks {
        let path = format!("/machine/peripheral/v{}", &short(disk.volume)[..30]);
        for policy in ["werror", "rerror"] {
            let found = qmp.run("qom-get", json!({ "path": path, "property": policy }));
            assert_eq!(found, "stop");
        }
    }
    over(driver, &definition).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_disk_keeps_its_place_when_others_go_and_a_drive_stays() {
    if left_out("qemu") {
        return;
    }
    let bench = QemuBench::make().await;
    let medium = bench.dir.path().join("install.iso");
    std::fs::write(&medium, vec![7; 64 * 1024]).unwrap();
    let mut definition = bench.on_disk();
    definition.disks = vec![bench.data_disk(8 << 20, false), bench.data_disk(8 << 20, false)];
    definition.hardware.cdrom = Some(medium);
    let (driver, mut qmp) = started(&bench, &definition).await;
    let second = format!(
        "/machine/peripheral/v{}",
        &short(definition.disks[1].volume)[..30]
    );
    let bus = json!({ "path": second, "property": "parent_bus" });
    let before = qmp.run("qom-get", bus.clone());
    driver.kill(definition.id).await.unwrap();

    definition.disks.remove(0);
    definition.disks.push(bench.data_disk(8 << 20, false));
    definition.hardware.cdrom = None;
    driver.start(&OpCx::new(), &definition, vec![]).await.unwrap();
    let mut qmp = QmpClient::connect(&bench, definition.id);
    assert_eq!(qmp.run("qom-get", bus), before);
    let blocks = qmp.run("query-block", json!({}));
    let drive = blocks
        .as_array()
        .unwrap()
        .iter()
        .find(|b| b["qdev"] == "cd0")
        .unwrap();
    assert!(drive["inserted"].is_null(), "it is empty: {drive}");
    over(driver, &definition).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn uefi_has_variables_of_its_own_that_go_with_the_vm() {
    if left_out("qemu") {
        return;
    }
    let bench = QemuBench::make().await;
    let mut definition = bench.on_disk();
    definition.hardware = Hardware {
        firmware: Firmware::Uefi,
        cpu: Some("Westmere-v1".into()),
        cdrom: None,
    };
    let (driver, mut qmp) = started(&bench, &definition).await;
    let nodes = qmp.run("query-named-block-nodes", json!({ "flat": true }));
    let node = |name: &str| {
        nodes
            .as_array()
            .unwrap()
            .iter()
            .find(|n| n["node-name"] == name)
            .unwrap()
            .clone()
    };
    assert_eq!(
        (&node("fw-code")["ro"], &node("fw-vars")["ro"]),
        (&json!(true), &json!(false))
    );
    let variables = PathBuf::from(node("fw-vars")["image"]["filename"].as_str().unwrap());
    assert!(variables.starts_with(bench.dir.path()) && variables.is_file());
    let cpus = qmp.run("query-cpus-fast", json!({}));
    let kind = qmp.run(
        "qom-get",
        json!({ "path": cpus[0]["qom-path"], "property": "type" }),
    );
    assert_eq!(kind, "Westmere-v1-x86_64-cpu");

    driver.kill(definition.id).await.unwrap();
    assert!(variables.is_file(), "they stay through restarts");
    over(driver, &definition).await;
    assert!(!variables.exists());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_this_host_lacks_is_named_before_anything_is_made() {
    if left_out("qemu") {
        return;
    }
    let bench = QemuBench::make().await;
    let empty = bench.dir.path().join("no-firmware");
    let driver = QemuDriver::open(bench.config().with_firmware(empty))
        .await
        .unwrap();
    let sound = bench.on_disk();
    let with = |hardware: Hardware| VmDefinition {
        hardware,
        ..sound.clone()
    };
    let gone = DiskDefinition {
        volume: VolumeId::from_uuid(uuid::Uuid::now_v7()),
        path: bench.dir.path().join("gone.qcow2"),
        read_only: false,
    };
    for (definition, kind, named) in [
        (
            with(Hardware {
                firmware: Firmware::Uefi,
                ..Hardware::default()
            }),
            ErrorKind::MissingDependency,
            "apt-get install --no-install-recommends ovmf",
        ),
        (
            with(Hardware {
                cpu: Some("Pentium-9".into()),
                ..Hardware::default()
            }),
            ErrorKind::InvalidInput,
            "CPU model Pentium-9",
        ),
        (
            with(Hardware {
                cdrom: Some(gone.path.clone()),
                ..Hardware::default()
            }),
            ErrorKind::InvalidInput,
            "gone.qcow2",
        ),
        (
            VmDefinition {
                disks: vec![gone],
                ..sound.clone()
            },
            ErrorKind::InvalidInput,
            "gone.qcow2",
        ),
    ] {
        let error = driver.start(&OpCx::new(), &definition, vec![]).await.unwrap_err();
        let told = vbm_core::Error::from(error);
        assert_eq!(told.kind(), kind, "{told:?}");
        assert!(format!("{told:?}").contains(named), "{told:?}");
        assert!(
            driver.inventory().await.unwrap().is_empty(),
            "nothing is left of it"
        );
    }
    driver.shutdown().await;
}
