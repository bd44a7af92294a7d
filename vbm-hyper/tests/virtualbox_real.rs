//! The VirtualBox driver on the real VBoxManage, which does everything here but run VMs: there is no kernel driver.
//!
//! `VBM_VBOXMANAGE` names a program that is VBoxManage, `VBM_VBOX_WORK` a directory that it sees at the same path. Both are
//! given by `cargo xtask lab virtualbox`.

#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "helpers of tests panic and print as tests do"
)]

mod common;

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};
use tokio::time::Instant;
use vbm_core::{DiskFormat, ErrorKind, PowerState, SnapshotContent, SnapshotId, VolumeId};
use vbm_hyper::{
    ContentKind, DiskKind, Driver, ImageStore, OpCx, Pool, Snapshots, VirtualBoxConfig, VirtualBoxDriver,
    VmDefinition,
};

/// The size of the disks, in bytes.
const DISK_BYTES: u64 = 64 << 20;
/// How many VMs are counted.
const MANY: usize = 20;

/// The size of the image that the disks are made from, in bytes; and what stands in it.
const IMAGE_BYTES: usize = 3 << 20;

fn byte_at(at: usize) -> u8 {
    u8::try_from(at / 4096 % 251).unwrap()
}

struct Real {
    dir: tempfile::TempDir,
    run: tempfile::TempDir,
    program: PathBuf,
    pool: Pool,
    image: vbm_core::Digest,
    driver: VirtualBoxDriver,
}

/// The real VBoxManage with a registry of the test's own; `None` when it is left out.
async fn real() -> Option<Real> {
    if common::left_out("virtualbox") {
        return None;
    }
    let given = |name: &str| {
        let value = std::env::var_os(name);
        PathBuf::from(value.unwrap_or_else(|| {
            panic!(
                "{name} is not set: `cargo xtask lab virtualbox` makes a real VBoxManage and tells how to reach it; \
                 or leave these tests out with VBM_LEAVE_OUT=virtualbox"
            )
        }))
    };
    let (program, work) = (given("VBM_VBOXMANAGE"), given("VBM_VBOX_WORK"));
    fs::create_dir_all(&work).unwrap();
    let dir = tempfile::Builder::new().prefix("real-").tempdir_in(work).unwrap();
    let run = tempfile::tempdir().unwrap();
    let images = ImageStore::open(dir.path().join("images")).await.unwrap();
    let content: Vec<u8> = (0..IMAGE_BYTES).map(byte_at).collect();
    let kind = ContentKind::Disk(DiskFormat::Raw);
    let image = images.import(&content[..], None, kind).await.unwrap().digest;
    let pool = Pool::open(dir.path().join("pool"), images).await.unwrap();
    let config = VirtualBoxConfig::new(dir.path().join("vbox"), run.path()).with_program(&program);
    let driver = VirtualBoxDriver::open(config).await.unwrap();
    Some(Real {
        dir,
        run,
        program,
        pool,
        image,
        driver,
    })
}

impl Real {
    async fn vm(&self) -> VmDefinition {
        let volume = VolumeId::from_uuid(uuid::Uuid::now_v7());
        let made = self
            .pool
            .clone_image_as(self.image, volume, DISK_BYTES, DiskKind::Vdi);
        common::definition(made.await.unwrap())
    }

    /// Runs VBoxManage as the operator would, on the same registry.
    fn by_hand(&self, args: &[&str]) -> String {
        let home = self.dir.path().join("vbox/home");
        let out = Command::new(&self.program)
            .args(args)
            .env("VBOX_USER_HOME", home)
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&out.stdout).into_owned();
        assert!(
            out.status.success(),
            "{args:?}: {said}{}",
            String::from_utf8_lossy(&out.stderr)
        );
        said
    }

    fn info(&self, vm: &VmDefinition) -> String {
        self.by_hand(&["showvminfo", &vm.id.to_string(), "--machinereadable"])
    }
}

impl Drop for Real {
    /// VBoxSVC ends by itself; what it has open is in the directory that goes.
    fn drop(&mut self) {
        println!(
            "registry: {} {}",
            self.dir.path().display(),
            self.run.path().display()
        );
    }
}

fn snapshot(number: u128) -> SnapshotId {
    SnapshotId::from_uuid(uuid::Uuid::from_u128(
        0x0198_f000_0000_7000_8000_0000_0000_0000 + number,
    ))
}

#[tokio::test]
async fn a_vm_is_made_snapshotted_reverted_and_forgotten_by_the_real_one() {
    let Some(real) = real().await else { return };
    let (driver, vm) = (&real.driver, real.vm().await);
    for number in [1, 2] {
        let taken = driver
            .take(&OpCx::new(), &vm, snapshot(number).into())
            .await
            .unwrap();
        assert_eq!(taken.content, SnapshotContent::Disk);
    }
    let info = real.info(&vm);
    for line in [
        "VMState=\"poweroff\"".to_owned(),
        "groups=\"/vbm\"".into(),
        "memory=96".into(),
        "vrde=\"on\"".into(),
        "vrdeaddress=\"127.0.0.1\"".into(),
        format!("UUID=\"{}\"", vm.id),
        format!("uartmode1=\"server,{}/{}/tty\"", real.run.path().display(), vm.id),
    ] {
        assert!(info.contains(&line), "{line} is not in {info}");
    }
    driver
        .revert(&OpCx::new(), &vm, snapshot(1), vec![])
        .await
        .unwrap();
    driver.take(&OpCx::new(), &vm, snapshot(3).into()).await.unwrap();
    let mut listed = driver.list(&vm).await.unwrap();
    listed.sort_by_key(|(id, _)| *id);
    assert_eq!(listed, [1, 2, 3].map(|n| (snapshot(n), SnapshotContent::Disk)));
    let error = vbm_core::Error::from(driver.delete(&OpCx::new(), &vm, snapshot(1)).await.unwrap_err());
    assert!(error.why().starts_with("2 snapshots stand on it"), "{error}");
    for number in [2, 1, 3, 3] {
        driver.delete(&OpCx::new(), &vm, snapshot(number)).await.unwrap();
    }
    assert_eq!(driver.list(&vm).await.unwrap(), []);
    let gone = driver
        .revert(&OpCx::new(), &vm, snapshot(1), vec![])
        .await
        .unwrap_err();
    assert_eq!(gone.kind(), ErrorKind::NotFound);
    driver.undefine(vm.id).await.unwrap();
    assert_eq!(driver.registered().await.unwrap(), []);
    assert!(vm.root_disk.exists(), "the disk is the pool's");
    let left = fs::read_dir(real.dir.path().join("vbox/machines/vbm")).unwrap();
    assert_eq!(left.count(), 0);
    assert!(
        !real.by_hand(&["list", "hdds"]).contains("UUID"),
        "no medium is left in the registry"
    );
}

#[tokio::test]
async fn without_the_kernel_driver_a_start_is_refused_with_what_to_do() {
    let Some(real) = real().await else { return };
    assert!(
        !Path::new("/dev/vboxdrv").exists(),
        "this host has VirtualBox's kernel driver: the lab's tests are the ones for it"
    );
    let capability = real.driver.probe().await;
    assert!(capability.version.starts_with('7'), "{capability:?}");
    let problem = capability.problem.unwrap();
    assert!(problem.why().contains("/dev/vboxdrv"), "{problem}");
    let vm = real.vm().await;
    let error = real.driver.start(&OpCx::new(), &vm, vec![]).await.unwrap_err();
    assert_eq!(vbm_core::Error::from(error), problem);
    assert_eq!(real.driver.registered().await.unwrap(), []);
}

#[tokio::test]
async fn a_vm_made_by_hand_is_seen_and_untouched_by_the_real_one() {
    let Some(real) = real().await else { return };
    let (driver, vm) = (&real.driver, real.vm().await);
    let name = "hand 'made' \"quoted\" 虚拟机 <script>";
    let folder = real.dir.path().join("theirs").display().to_string();
    real.by_hand(&[
        "createvm",
        "--name",
        name,
        "--groups",
        "/vbm",
        "--basefolder",
        &folder,
        "--register",
    ]);
    driver.take(&OpCx::new(), &vm, snapshot(1).into()).await.unwrap();
    let before = real.by_hand(&["showvminfo", name, "--machinereadable"]);
    let seen = driver.registered().await.unwrap();
    let mut told: Vec<_> = seen
        .iter()
        .map(|vm| (vm.ours, vm.name.as_str(), vm.power))
        .collect();
    told.sort_by_key(|(ours, ..)| *ours);
    assert_eq!(told[0], (false, name, PowerState::Off));
    assert!(told[1].0 && told.len() == 2, "{told:?}");
    driver.undefine(vm.id).await.unwrap();
    assert_eq!(real.by_hand(&["showvminfo", name, "--machinereadable"]), before);
}

#[tokio::test]
async fn a_vdi_of_ours_is_read_by_virtualbox_and_holds_the_image() {
    let Some(real) = real().await else { return };
    let vm = real.vm().await;
    let (disk, raw) = (
        vm.root_disk.display().to_string(),
        real.dir.path().join("raw.img"),
    );
    let told = real.by_hand(&["showmediuminfo", "disk", &disk]);
    assert!(told.contains("64 MBytes"), "{told}");
    real.by_hand(&[
        "clonemedium",
        "disk",
        &disk,
        raw.to_str().unwrap(),
        "--format",
        "RAW",
    ]);
    let copied = fs::read(&raw).unwrap();
    assert_eq!(copied.len() as u64, DISK_BYTES);
    let differs = (0..IMAGE_BYTES).find(|at| copied[*at] != byte_at(*at));
    assert_eq!(differs, None, "the image stands at its beginning");
    assert!(
        copied[IMAGE_BYTES..].iter().all(|byte| *byte == 0),
        "and zeros after it"
    );
}

#[tokio::test]
async fn a_look_at_many_is_one_process_and_ten_times_faster_than_asking_for_each() {
    let Some(real) = real().await else { return };
    let mut vms = Vec::new();
    let folder = real.dir.path().join("many").display().to_string();
    for number in 0..MANY {
        let name = format!("many-{number}");
        real.by_hand(&["createvm", "--name", &name, "--basefolder", &folder, "--register"]);
        vms.push(name);
    }
    // All find VBoxSVC running.
    assert_eq!(real.driver.registered().await.unwrap().len(), MANY);
    let begun = Instant::now();
    let running = real.driver.running().await.unwrap();
    let look = begun.elapsed();
    assert_eq!(running, [], "none can be started here");
    let begun = Instant::now();
    let all = real.driver.registered().await.unwrap();
    let states = begun.elapsed();
    assert_eq!(all.len(), MANY);
    let begun = Instant::now();
    for name in &vms {
        real.by_hand(&["showvminfo", name, "--machinereadable"]);
    }
    let each = begun.elapsed();
    let factor = each.as_secs_f64() / look.as_secs_f64();
    println!(
        "{MANY} VMs: look {look:?}, states {states:?}, each by one process; {each:?} by {MANY} times showvminfo; factor {factor:.1}"
    );
    // Ten times when the host is quiet; half of that is asked of one that is not.
    assert!(factor > 5.0, "one list is faster by far, not {factor:.1} times");
}
