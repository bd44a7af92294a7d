//! The registry with drivers that say of themselves what a test wants.

use super::*;
use crate::{Adopted, Consoles, DriverEvent, Machines, MachinesConfig, NicBackend, OpCx, Seen, SimDriver};
use std::sync::atomic::{AtomicU32, Ordering};
use tokio::sync::broadcast;
use vbm_core::Accelerator;

/// A simulated driver that takes itself for another one.
struct Posing {
    kind: DriverKind,
    accelerator: &'static str,
    inner: SimDriver,
    probes: AtomicU32,
    fails: AtomicU32,
}

impl Posing {
    fn new(kind: DriverKind, accelerator: &'static str) -> Arc<Self> {
        Arc::new(Self {
            kind,
            accelerator,
            inner: SimDriver::new(),
            probes: AtomicU32::new(0),
            fails: AtomicU32::new(0),
        })
    }

    fn pose(&self, mut seen: Seen) -> Seen {
        if let Some(accelerator) = &mut seen.accelerator {
            accelerator.name = self.accelerator.into();
        }
        seen
    }
}

#[async_trait]
impl Driver for Posing {
    fn kind(&self) -> DriverKind {
        self.kind
    }
    async fn probe(&self) -> Capability {
        self.probes.fetch_add(1, Ordering::SeqCst);
        Capability {
            driver: self.kind,
            version: "7.1.4".into(),
            accelerator: Some(Accelerator {
                name: self.accelerator.into(),
                reason: "it was chosen".into(),
            }),
            problem: None,
        }
    }
    async fn start(&self, cx: &OpCx, definition: &VmDefinition, nics: Vec<NicBackend>) -> Result<Seen> {
        let left = self.fails.load(Ordering::SeqCst);
        if left > 0 {
            self.fails.store(left - 1, Ordering::SeqCst);
            return Err(Error::StartFailed { why: "no".into() });
        }
        self.inner
            .start(cx, definition, nics)
            .await
            .map(|seen| self.pose(seen))
    }
    async fn stop(&self, id: VmId) -> Result<()> {
        self.inner.stop(id).await
    }
    async fn kill(&self, id: VmId) -> Result<()> {
        self.inner.kill(id).await
    }
    async fn reset(&self, id: VmId) -> Result<()> {
        self.inner.reset(id).await
    }
    async fn pause(&self, id: VmId) -> Result<()> {
        self.inner.pause(id).await
    }
    async fn resume(&self, id: VmId) -> Result<()> {
        self.inner.resume(id).await
    }
    async fn inspect(&self, id: VmId) -> Result<Seen> {
        self.inner.inspect(id).await.map(|seen| self.pose(seen))
    }
    async fn inventory(&self) -> Result<Vec<(VmId, Seen)>> {
        let all = self.inner.inventory().await?;
        Ok(all.into_iter().map(|(id, seen)| (id, self.pose(seen))).collect())
    }
    async fn adopt(&self) -> Result<Vec<Adopted>> {
        self.inner.adopt().await
    }
    fn events(&self) -> broadcast::Receiver<DriverEvent> {
        self.inner.events()
    }
    fn consoles(&self) -> Option<&dyn Consoles> {
        None
    }
    fn missing(&self, facet: Facet) -> Option<String> {
        (facet == Facet::Migration).then(|| "it stays where it is".into())
    }
    async fn undefine(&self, id: VmId) -> Result<()> {
        self.inner.undefine(id).await
    }
    async fn shutdown(&self) {
        self.inner.shutdown().await;
    }
}

fn definition(n: u128) -> VmDefinition {
    VmDefinition {
        id: VmId::from_uuid(uuid::Uuid::from_u128(n)),
        name: "web-1".parse().unwrap(),
        vcpus: 1,
        memory_mib: 64,
        root_disk: "/nonexistent/disk".into(),
        boot: crate::BootSource::Disk,
        disks: vec![],
        hardware: crate::Hardware::default(),
        nics: vec![],
    }
}

/// A host of an old kernel, with a QEMU by KVM and a VirtualBox.
async fn both() -> (Registry, Machines, Machines) {
    let registry = Registry::on(HostFacts::default());
    let mut machines = Vec::new();
    for driver in [
        Posing::new(DriverKind::Qemu, "kvm"),
        Posing::new(DriverKind::VirtualBox, "amd-v"),
    ] {
        registry.add(driver.clone()).unwrap();
        let config = MachinesConfig::new().with_gate(Arc::new(registry.clone()));
        machines.push(Machines::open_with(driver, config).await.unwrap());
    }
    let virtualbox = machines.pop().unwrap();
    (registry, machines.pop().unwrap(), virtualbox)
}

#[tokio::test(start_paused = true)]
async fn of_kvm_and_virtualbox_one_runs_at_a_time_and_the_other_is_told_who_has_it() {
    let (_registry, qemu, virtualbox) = both().await;
    let (a, b) = (definition(1), definition(2));
    qemu.vm(a.id).start(a.clone(), vec![]).await.unwrap();
    let error = virtualbox.vm(b.id).start(b.clone(), vec![]).await.unwrap_err();
    let error = vbm_core::Error::from(error);
    assert_eq!(error.kind(), ErrorKind::Conflict);
    assert!(
        error.why().contains(&a.id.to_string()) && error.why().contains("qemu"),
        "{error}"
    );
    assert_eq!(
        virtualbox.vm(b.id).inspect().await.unwrap().power(),
        vbm_core::PowerState::Off
    );
    qemu.vm(definition(3).id)
        .start(definition(3), vec![])
        .await
        .unwrap();
    for id in [a.id, definition(3).id] {
        qemu.vm(id).force_off().await.unwrap();
    }
    virtualbox.vm(b.id).start(b.clone(), vec![]).await.unwrap();
    let error = qemu.vm(a.id).start(a, vec![]).await.unwrap_err();
    assert!(error.to_string().contains("KVM"), "{error}");
    qemu.shutdown().await;
    virtualbox.shutdown().await;
}

#[tokio::test(start_paused = true)]
async fn of_two_starts_at_once_never_both_go_through_and_a_start_that_is_over_holds_nothing() {
    let (registry, qemu, virtualbox) = both().await;
    let (a, b) = (definition(1), definition(2));
    let (one, other) = tokio::join!(async { qemu.vm(a.id).start(a.clone(), vec![]).await }, async {
        virtualbox.vm(b.id).start(b.clone(), vec![]).await
    });
    assert!(!(one.is_ok() && other.is_ok()), "both run");
    qemu.vm(a.id).force_off().await.unwrap();
    virtualbox.vm(b.id).force_off().await.unwrap();
    assert!(registry.starting().is_empty());
    qemu.vm(a.id).start(a, vec![]).await.unwrap();
    qemu.shutdown().await;
    virtualbox.shutdown().await;
}

#[tokio::test(start_paused = true)]
async fn a_driver_is_probed_again_by_age_and_after_starts_that_failed() {
    let registry = Registry::on(HostFacts::default());
    let driver = Posing::new(DriverKind::Qemu, "tcg");
    registry.add(driver.clone()).unwrap();
    let probes = || driver.probes.load(Ordering::SeqCst);
    let report = registry.report(DriverKind::Qemu).await.unwrap();
    assert_eq!((report.health, probes()), (Health::Good, 1));
    assert!(report.hints[0].contains("it was chosen"), "{:?}", report.hints);
    assert_eq!(
        report.missing,
        [(Facet::Migration, "it stays where it is".to_owned())]
    );
    registry.report(DriverKind::Qemu).await.unwrap();
    assert_eq!(probes(), 1, "a young one is believed");
    tokio::time::advance(REGISTRY_PROBE_TTL).await;
    registry.report(DriverKind::Qemu).await.unwrap();
    assert_eq!(probes(), 2);

    let config = MachinesConfig::new().with_gate(Arc::new(registry.clone()));
    let machines = Machines::open_with(driver.clone(), config).await.unwrap();
    driver.fails.store(REGISTRY_FAILED_STARTS_MAX, Ordering::SeqCst);
    let vm = machines.vm(definition(1).id);
    for _ in 0..REGISTRY_FAILED_STARTS_MAX {
        vm.start(definition(1), vec![]).await.unwrap_err();
    }
    let report = registry.report(DriverKind::Qemu).await.unwrap();
    assert_eq!(
        (report.health, probes()),
        (Health::Failing(REGISTRY_FAILED_STARTS_MAX), 3)
    );
    assert!(report.hints.iter().any(|hint| hint.contains("starts failed")));
    registry.report(DriverKind::Qemu).await.unwrap();
    assert_eq!(probes(), 3, "it is not probed for the same starts again");
    vm.start(definition(1), vec![]).await.unwrap();
    assert_eq!(
        registry.report(DriverKind::Qemu).await.unwrap().health,
        Health::Good
    );
    machines.shutdown().await;
}

#[tokio::test]
async fn a_driver_that_is_not_there_and_one_that_is_there_twice_are_told() {
    let registry = Registry::on(HostFacts::default());
    registry.add(Posing::new(DriverKind::Qemu, "tcg")).unwrap();
    let twice = registry.add(Posing::new(DriverKind::Qemu, "kvm")).unwrap_err();
    assert_eq!(twice.kind(), ErrorKind::InvalidInput);
    let Err(error) = registry.driver(DriverKind::VirtualBox) else {
        panic!("it is not there")
    };
    assert!(vbm_core::Error::from(error).why().contains("qemu"));
    assert_eq!(registry.reports().await.len(), 1);
    let why = registry.missing_for(DriverKind::Qemu, &definition(1), Facet::Migration);
    assert_eq!(why.unwrap().unwrap(), "it stays where it is");
    assert!(
        registry
            .capability_matrix()
            .to_markdown()
            .contains("| live migration | no (1) |")
    );
}
