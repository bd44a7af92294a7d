//! A driver that has none of it.

use super::*;
use vbm_hyper::OpCx;

/// A driver that can do nothing but what each must.
struct Plain(SimDriver);

const WHY: &str = "its disks are on tape";

#[async_trait::async_trait]
impl Driver for Plain {
    fn kind(&self) -> DriverKind {
        self.0.kind()
    }
    async fn probe(&self) -> Capability {
        self.0.probe().await
    }
    async fn start(
        &self,
        cx: &OpCx,
        definition: &VmDefinition,
        nics: Vec<NicBackend>,
    ) -> vbm_hyper::Result<Seen> {
        self.0.start(cx, definition, nics).await
    }
    async fn stop(&self, id: VmId) -> vbm_hyper::Result<()> {
        self.0.stop(id).await
    }
    async fn kill(&self, id: VmId) -> vbm_hyper::Result<()> {
        self.0.kill(id).await
    }
    async fn reset(&self, id: VmId) -> vbm_hyper::Result<()> {
        self.0.reset(id).await
    }
    async fn pause(&self, id: VmId) -> vbm_hyper::Result<()> {
        self.0.pause(id).await
    }
    async fn resume(&self, id: VmId) -> vbm_hyper::Result<()> {
        self.0.resume(id).await
    }
    async fn inspect(&self, id: VmId) -> vbm_hyper::Result<Seen> {
        self.0.inspect(id).await
    }
    async fn inventory(&self) -> vbm_hyper::Result<Vec<(VmId, Seen)>> {
        self.0.inventory().await
    }
    async fn adopt(&self) -> vbm_hyper::Result<Vec<Adopted>> {
        self.0.adopt().await
    }
    fn events(&self) -> tokio::sync::broadcast::Receiver<DriverEvent> {
        self.0.events()
    }
    fn consoles(&self) -> Option<&dyn Consoles> {
        self.0.consoles()
    }
    fn missing(&self, facet: Facet) -> Option<String> {
        matches!(facet, Facet::Snapshots | Facet::SavedState).then(|| WHY.to_owned())
    }
    async fn undefine(&self, id: VmId) -> vbm_hyper::Result<()> {
        self.0.undefine(id).await
    }
    async fn shutdown(&self) {
        self.0.shutdown().await;
    }
}

#[tokio::test]
async fn what_a_driver_cannot_do_is_refused_with_its_reason_before_anything_is_made() {
    let house = House::new();
    let driver = SimDriver::open(house.world.clone()).unwrap();
    let server = house.serve_with(Arc::new(Plain(driver))).await;
    let client = server.client().unwrap();
    crate::house::import(&client, house.dir.path()).await;
    crate::house::lan(&client, "lan", "10.0.0.0/24").await;
    launch(&client, "web").await;
    let snapshots = client.vms().snapshots("web");
    for error in [
        snapshots
            .create(CreateSnapshot::default())
            .await
            .map(drop)
            .unwrap_err(),
        client
            .vms()
            .power("web", PowerAction::Save)
            .await
            .map(drop)
            .unwrap_err(),
    ] {
        assert_eq!(error.kind(), ErrorKind::Unsupported, "{error}");
        assert!(error.why().contains(WHY), "{error}");
    }
    assert!(snapshots.list().all().await.unwrap().is_empty());
    let vm = client.vms().get("web").await.unwrap().vm;
    assert_eq!((vm.status.power, vm.status.problem), (PowerState::Running, None));
    server.shutdown().await;
}
