//! A server on a simulated host, and what tests do with it again and again.

use std::{sync::Arc, time::Duration};
use vbm_core::{Name, Operation, Result};
use vbm_hyper::{Driver, SimDriver, SimWorld};
use vbm_net::SimNetwork;
use vbm_sdk::{
    api::{Accepted, CreateGroup, CreateImage, CreateNetwork, LaunchRequest, NicRequest, VmView},
    client::Client,
    server::{Builder, Server},
    source::SystemClock,
    store::{MemoryStore, Store},
};

/// How long anything of a simulated host may take.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// A host that outlives its daemons.
pub(crate) struct House {
    pub(crate) dir: tempfile::TempDir,
    pub(crate) world: SimWorld,
    pub(crate) networks: SimNetwork,
    pub(crate) store: MemoryStore,
}

impl Drop for House {
    fn drop(&mut self) {
        unlist(&self.dir.path().join("data"));
    }
}

/// Takes an instance off the host's list: its VMs were simulated, and are gone with the test.
pub(crate) fn unlist(data_dir: &std::path::Path) {
    let tag = std::fs::read_to_string(data_dir.join("instance")).unwrap_or_default();
    if !tag.trim().is_empty() {
        // It is not there when nothing was left on the host, or when the tests do not run as root.
        drop(std::fs::remove_file(format!(
            "/run/vbm/instances/{}.json",
            tag.trim()
        )));
    }
}

pub(crate) fn name(text: &str) -> Name {
    text.parse().unwrap()
}

impl House {
    pub(crate) fn new() -> Self {
        Self {
            dir: tempfile::tempdir().unwrap(),
            world: SimWorld::instant(),
            networks: SimNetwork::new(Arc::new(SystemClock)),
            store: MemoryStore::new(),
        }
    }

    /// A daemon of this host. Networks are simulated anew when the daemon before has shut them down.
    pub(crate) async fn serve(&self) -> Server {
        self.builder().start().await.unwrap()
    }

    /// A daemon of this host in the making.
    pub(crate) fn builder(&self) -> Builder {
        let driver = SimDriver::open(self.world.clone()).unwrap();
        self.builder_with(Arc::new(driver))
    }

    fn builder_with(&self, driver: Arc<dyn Driver>) -> Builder {
        Server::builder(self.dir.path().join("data"))
            .run_dir(self.dir.path().join("run"))
            .ephemeral(true)
            .with_store(Arc::new(self.store.clone()) as Arc<dyn Store>)
            .with_drivers(vec![driver])
            .with_networks(Arc::new(self.networks.clone()))
    }

    /// A daemon of this host with this driver.
    pub(crate) async fn serve_with(&self, driver: Arc<dyn Driver>) -> Server {
        self.builder_with(driver).start().await.unwrap()
    }

    /// A daemon with an image `tiny` and a network `lan`.
    pub(crate) async fn furnished(&self) -> (Server, Client) {
        let server = self.serve().await;
        let client = server.client().unwrap();
        import(&client, self.dir.path()).await;
        lan(&client, "lan", "10.0.0.0/24").await;
        (server, client)
    }
}

/// An image whose disk is an empty qcow2 of 1 MiB.
pub(crate) async fn import(client: &Client, dir: &std::path::Path) {
    let disk = dir.join("disk.qcow2");
    std::fs::write(&disk, empty_qcow2()).unwrap();
    let blob = client.images().upload(&disk).await.unwrap();
    let request = CreateImage {
        name: name("tiny"),
        disk: blob.digest,
        format: vbm_core::DiskFormat::Qcow2,
        boot: vbm_core::Boot::Disk,
    };
    client.images().create(request).await.unwrap();
}

/// The smallest qcow2 that QEMU takes: header, refcount table, refcount block, L1 table (docs/interop/qcow2.txt).
fn empty_qcow2() -> Vec<u8> {
    const CLUSTER: usize = 65_536;
    let mut file = vec![0_u8; 4 * CLUSTER];
    let mut put = |at: usize, bytes: &[u8]| file[at..at + bytes.len()].copy_from_slice(bytes);
    put(0, b"QFI\xfb");
    put(4, &3_u32.to_be_bytes());
    put(20, &16_u32.to_be_bytes());
    put(24, &(1_u64 << 20).to_be_bytes());
    put(36, &1_u32.to_be_bytes());
    put(40, &(3 * CLUSTER as u64).to_be_bytes());
    put(48, &(CLUSTER as u64).to_be_bytes());
    put(56, &1_u32.to_be_bytes());
    put(96, &4_u32.to_be_bytes());
    put(100, &104_u32.to_be_bytes());
    put(CLUSTER, &(2 * CLUSTER as u64).to_be_bytes());
    for cluster in 0..4 {
        put(2 * CLUSTER + 2 * cluster, &1_u16.to_be_bytes());
    }
    file
}

pub(crate) async fn lan(client: &Client, network: &str, cidr: &str) {
    let made = client
        .networks()
        .create(CreateNetwork::new(name(network), cidr))
        .await
        .unwrap();
    done(client, &made.operation).await.unwrap();
}

pub(crate) async fn group(client: &Client, group: &str, rules: &[&str]) {
    let rules = rules.iter().map(|r| r.parse().unwrap()).collect();
    client
        .groups()
        .create(CreateGroup {
            name: name(group),
            rules,
            egress_closed: false,
        })
        .await
        .unwrap();
}

/// A request for a VM on `lan`.
pub(crate) fn request(vm: &str) -> LaunchRequest {
    LaunchRequest::new("tiny")
        .name(name(vm))
        .nic(NicRequest::on("lan"))
}

/// A VM on `lan` that runs.
pub(crate) async fn launch(client: &Client, vm: &str) -> VmView {
    let made = client.vms().launch(request(vm)).await.unwrap();
    done(client, &made.operation).await.unwrap();
    client.vms().get(vm).await.unwrap()
}

/// Waits for the end of an operation.
pub(crate) async fn done(client: &Client, operation: &Operation) -> Result<Operation> {
    client.operations().wait(operation.id).deadline(PATIENCE).await
}

/// Sees an accepted request through.
pub(crate) async fn through<T>(client: &Client, accepted: Result<Accepted<T>>) -> Result<T> {
    let accepted = accepted?;
    done(client, &accepted.operation).await?;
    Ok(accepted.item)
}

/// Waits until a VM is as wanted.
pub(crate) async fn until(
    client: &Client,
    vm: &str,
    condition: impl Fn(&VmView) -> bool + Send + Sync + 'static,
) -> VmView {
    client
        .vms()
        .wait_for(vm, condition)
        .deadline(PATIENCE)
        .await
        .unwrap()
}
