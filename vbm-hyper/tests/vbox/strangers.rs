//! What is refused, what is seen and never touched, and what the driver makes of a definition.

use crate::vbox::FakeBench;
use std::{fs, path::Path};
use vbm_core::{ErrorKind, PortId};
use vbm_hyper::{
    BootSource, Driver, Facet, Hardware, NicBackend, NicDefinition, OpCx, SavedState, VirtualBoxConfig,
    VirtualBoxDriver, VmDefinition,
};

fn settings(bench: &FakeBench, vm: &VmDefinition) -> serde_json::Value {
    let path = bench.fake().join(format!("{}.json", vm.id));
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

#[tokio::test]
async fn a_vm_made_by_hand_is_seen_and_never_touched() {
    let bench = FakeBench::make().await;
    let (driver, vm) = (bench.driver().await, bench.vm().await);
    let folder = bench.dir.path().join("theirs").display().to_string();
    let name = "<script>alert(\"1\")</script> 'quoted' 虚拟机 --delete";
    bench.by_hand(&["createvm", "--name", "hand", "--basefolder", &folder]);
    let theirs = "0198f000-0000-4000-8000-000000000001";
    bench.by_hand(&[
        "createvm",
        "--name",
        &name.replace('/', "|"),
        "--uuid",
        theirs,
        "--groups",
        "/vbm",
        "--basefolder",
        &folder,
    ]);
    driver.start(&OpCx::new(), &vm, vec![]).await.unwrap();
    let seen = driver.registered().await.unwrap();
    let told: Vec<_> = seen
        .iter()
        .map(|vm| (vm.name.contains("script"), vm.ours))
        .collect();
    assert_eq!(told.iter().filter(|(_, ours)| *ours).count(), 1);
    assert!(
        told.contains(&(true, false)),
        "that it stands in our group does not make it ours: {seen:?}"
    );
    let before = bench.by_hand(&["showvminfo", "hand", "--machinereadable"]);
    // Neither adopted nor listed as ours, and no request reaches it.
    assert_eq!(driver.inventory().await.unwrap().len(), 1);
    let stranger = theirs.parse().unwrap();
    assert_eq!(
        driver.kill(stranger).await.unwrap_err().kind(),
        ErrorKind::NotFound
    );
    driver.undefine(stranger).await.expect("it is not known");
    driver.kill(vm.id).await.unwrap();
    driver.undefine(vm.id).await.unwrap();
    assert_eq!(
        bench.by_hand(&["showvminfo", "hand", "--machinereadable"]),
        before
    );
    assert_eq!(driver.registered().await.unwrap().len(), 2);
}

#[tokio::test]
async fn a_strangers_vm_with_our_id_is_told_and_left_alone() {
    let bench = FakeBench::make().await;
    let (driver, vm) = (bench.driver().await, bench.vm().await);
    let folder = bench.dir.path().join("theirs").display().to_string();
    bench.by_hand(&[
        "createvm",
        "--name",
        "hand",
        "--uuid",
        &vm.id.to_string(),
        "--basefolder",
        &folder,
    ]);
    let error = vbm_core::Error::from(driver.start(&OpCx::new(), &vm, vec![]).await.unwrap_err());
    assert_eq!(error.kind(), ErrorKind::Conflict);
    assert!(error.why().contains("not VBM's"), "{error}");
    driver.undefine(vm.id).await.unwrap();
    assert_eq!(driver.registered().await.unwrap()[0].name, "hand");
    assert!(Path::new(&folder).join("hand/hand.vbox").exists());
}

#[tokio::test]
async fn a_forgotten_vm_leaves_its_disk_and_nothing_else() {
    let bench = FakeBench::make().await;
    let (driver, vm) = (bench.driver().await, bench.vm().await);
    driver.start(&OpCx::new(), &vm, vec![]).await.unwrap();
    driver.kill(vm.id).await.unwrap();
    let machines = bench.dir.path().join("vbox/machines/vbm");
    assert_eq!(fs::read_dir(&machines).unwrap().count(), 1);
    driver.undefine(vm.id).await.unwrap();
    assert_eq!(fs::read_dir(&machines).unwrap().count(), 0);
    assert_eq!(
        fs::read_dir(bench.dir.path().join("vbox/vms")).unwrap().count(),
        0
    );
    assert!(vm.root_disk.exists());
    assert_eq!(driver.registered().await.unwrap(), []);
}

#[tokio::test]
async fn without_vboxmanage_the_package_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let config = VirtualBoxConfig::new(dir.path().join("vbox"), dir.path().join("run"));
    let driver = VirtualBoxDriver::open(config.with_program("/nonexistent/VBoxManage"))
        .await
        .unwrap();
    let problem = driver.probe().await.problem.unwrap();
    assert_eq!(problem.kind(), ErrorKind::MissingDependency);
    assert!(problem.fix().ends_with("virtualbox`"), "{problem}");
}

#[tokio::test]
async fn without_its_kernel_driver_the_probe_says_what_to_do_and_a_start_refuses_in_the_same_words() {
    let bench = FakeBench::make().await;
    fs::remove_file(bench.dir.path().join("host/dev/vboxdrv")).unwrap();
    let (driver, vm) = (bench.driver().await, bench.vm().await);
    let problem = driver.probe().await.problem.unwrap();
    assert_eq!(problem.kind(), ErrorKind::MissingDependency);
    assert!(problem.fix().contains("virtualbox-dkms") && problem.fix().contains("modprobe vboxdrv"));
    let error = driver.start(&OpCx::new(), &vm, vec![]).await.unwrap_err();
    assert_eq!(vbm_core::Error::from(error), problem);
    assert_eq!(driver.registered().await.unwrap(), [], "nothing was made");
    // Repaired while the daemon runs.
    fs::write(bench.dir.path().join("host/dev/vboxdrv"), "").unwrap();
    driver.start(&OpCx::new(), &vm, vec![]).await.unwrap();
    driver.kill(vm.id).await.unwrap();
}

#[tokio::test]
async fn what_virtualbox_cannot_run_is_refused_before_anything_is_made() {
    let bench = FakeBench::make().await;
    let (driver, vm) = (bench.driver().await, bench.vm().await);
    let kernel = BootSource::Kernel {
        kernel: "/boot/vmlinuz".into(),
        initrd: "/boot/initrd".into(),
        cmdline: String::new(),
    };
    let direct = VmDefinition {
        boot: kernel,
        ..vm.clone()
    };
    let error = vbm_core::Error::from(driver.start(&OpCx::new(), &direct, vec![]).await.unwrap_err());
    assert_eq!(error.kind(), ErrorKind::Unsupported);
    assert!(error.why().contains("boots from disks only"), "{error}");
    let qcow2 = bench.dir.path().join("disk.qcow2");
    fs::write(&qcow2, b"QFI\xfb and so on").unwrap();
    let clone = VmDefinition {
        root_disk: qcow2,
        ..vm.clone()
    };
    let error = driver.start(&OpCx::new(), &clone, vec![]).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidInput);
    let nic = NicDefinition {
        port: PortId::from_uuid(uuid::Uuid::from_u128(1)),
        mac: "52:54:00:00:00:01".parse().unwrap(),
        mtu: None,
    };
    let wired = VmDefinition {
        disks: vec![],
        hardware: Hardware::default(),
        nics: vec![nic],
        ..vm.clone()
    };
    let tap = NicBackend::Tap(fs::File::open("/dev/null").unwrap().into());
    assert_eq!(
        driver
            .start(&OpCx::new(), &wired, vec![tap])
            .await
            .unwrap_err()
            .kind(),
        ErrorKind::Unsupported
    );
    let option = NicBackend::HostInterface("--natdnshost".into());
    assert_eq!(
        driver
            .start(&OpCx::new(), &wired, vec![option])
            .await
            .unwrap_err()
            .kind(),
        ErrorKind::InvalidInput
    );
    assert!(driver.missing(Facet::TapNics).is_some() && driver.missing(Facet::HostInterfaceNics).is_none());
    assert_eq!(driver.registered().await.unwrap(), []);
}

#[tokio::test]
async fn a_vm_is_made_as_it_is_defined_and_made_again_when_that_changes() {
    let bench = FakeBench::make().await;
    let driver = bench.driver().await;
    let nic = NicDefinition {
        port: PortId::from_uuid(uuid::Uuid::from_u128(1)),
        mac: "52:54:00:00:00:0a".parse().unwrap(),
        mtu: None,
    };
    let vm = VmDefinition {
        disks: vec![],
        hardware: Hardware::default(),
        nics: vec![nic],
        ..bench.vm().await
    };
    let plug = |name: &str| vec![NicBackend::HostInterface(name.into())];
    driver.start(&OpCx::new(), &vm, plug("vbp-one")).await.unwrap();
    let made = settings(&bench, &vm);
    assert_eq!(made["settings"]["bridgeadapter1"], "vbp-one");
    assert_eq!(made["settings"]["macaddress1"], "52540000000A");
    assert_eq!(made["settings"]["memory"], "96");
    assert_eq!(made["settings"]["disk-0-0"], vm.root_disk.display().to_string());
    driver.save(&OpCx::new(), vm.id).await.unwrap();
    driver.restore(&OpCx::new(), &vm, plug("vbp-two")).await.unwrap();
    assert_eq!(
        settings(&bench, &vm)["settings"]["bridgeadapter1"],
        "vbp-two",
        "replugged beside saved memory"
    );
    driver.kill(vm.id).await.unwrap();
    let larger = VmDefinition {
        memory_mib: 128,
        root_disk: bench.disk().await,
        ..vm.clone()
    };
    driver
        .start(&OpCx::new(), &larger, plug("vbp-one"))
        .await
        .unwrap();
    let made = settings(&bench, &vm);
    assert_eq!(made["settings"]["memory"], "128");
    assert_eq!(made["settings"]["bridgeadapter1"], "vbp-one");
    assert_eq!(
        made["settings"]["disk-0-0"],
        larger.root_disk.display().to_string()
    );
    driver.kill(vm.id).await.unwrap();
}

#[tokio::test]
async fn two_daemons_do_not_share_a_registry() {
    let bench = FakeBench::make().await;
    let _first = bench.driver().await;
    let error = VirtualBoxDriver::open(bench.config()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Conflict);
}
