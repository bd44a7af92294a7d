//! The parts of a server, by what was chosen.

use super::{
    builder::{Builder, DriverChoice, NetworkChoice, StoreChoice},
    instance::InstanceRecord,
};
use crate::store::{RedbStore, RedisStore, Store};
use std::{
    io,
    path::{Path, PathBuf},
    sync::Arc,
};
use vbm_core::{Error, ErrorKind, Result};
use vbm_hyper::{
    Driver, ImageStore, Pool, QemuConfig, QemuDriver, SimDriver, VirtualBoxConfig, VirtualBoxDriver,
};
use vbm_net::{HostConfig, HostNetwork, NetworkBackend, SimNetwork};
use vbm_rpc::{
    Transport,
    auth::{Keys, Security, Trust},
};

pub(super) async fn store(builder: &Builder, record: &InstanceRecord) -> Result<Arc<dyn Store>> {
    if let Some(store) = &builder.own_store {
        return Ok(Arc::clone(store));
    }
    if let (StoreChoice::Redis, Some(url)) = (builder.store_choice(), &builder.redis) {
        return Ok(Arc::new(RedisStore::open(url).await?));
    }
    let path = record.data_dir.join("store.redb");
    let opened = tokio::task::spawn_blocking(move || RedbStore::open(path)).await;
    Ok(Arc::new(opened.map_err(|e| {
        Error::internal("the store could not be opened", e.to_string())
    })??))
}

/// Where an agent keeps images and disks.
pub(super) struct Storage {
    pub(super) images: ImageStore,
    pub(super) volumes: Pool,
    /// The word for the directory, when it is shared.
    pub(super) shared: Option<String>,
}

/// The agent's own directory, or the one that it shares.
pub(super) async fn storage(
    shared: Option<&Path>,
    record: &InstanceRecord,
    own_images: ImageStore,
) -> Result<Storage> {
    let Some(dir) = shared else {
        let volumes = Pool::open(record.data_dir.join("volumes"), own_images.clone()).await;
        return Ok(Storage {
            images: own_images,
            volumes: volumes.map_err(Error::from)?,
            shared: None,
        });
    };
    let word = word_of(dir).map_err(|e| {
        Error::new(
            ErrorKind::Unavailable,
            format!("the shared directory {} cannot be used", dir.display()),
            e.to_string(),
            "mount it, and see that root may write there",
        )
    })?;
    let images = ImageStore::open_shared(dir.join("images"))
        .await
        .map_err(Error::from)?;
    let volumes = Pool::open_shared(dir.join("volumes"), images.clone())
        .await
        .map_err(Error::from)?;
    Ok(Storage {
        images,
        volumes,
        shared: Some(word),
    })
}

/// The word that a shared directory is known by: whoever comes first writes it. It goes with the path, because disks name
/// their images by it.
fn word_of(dir: &Path) -> io::Result<String> {
    std::fs::create_dir_all(dir)?;
    let dir = dir.canonicalize()?;
    let path = dir.join("storage-id");
    let fresh = dir.join(format!(".storage-id-{}", uuid::Uuid::now_v7()));
    if !path.exists() {
        std::fs::write(&fresh, uuid::Uuid::now_v7().to_string())?;
        // A link fails when another was faster; then that one's word holds.
        let linked = std::fs::hard_link(&fresh, &path);
        std::fs::remove_file(&fresh)?;
        linked.or_else(|e| {
            if e.kind() == io::ErrorKind::AlreadyExists {
                Ok(())
            } else {
                Err(e)
            }
        })?;
    }
    let id = std::fs::read_to_string(&path)?;
    Ok(format!("{} at {}", id.trim(), dir.display()))
}

pub(super) async fn drivers(builder: &Builder, record: &InstanceRecord) -> Result<Vec<Arc<dyn Driver>>> {
    if let Some(drivers) = &builder.own_drivers {
        return Ok(drivers.clone());
    }
    let mut drivers: Vec<Arc<dyn Driver>> = Vec::new();
    for choice in &builder.drivers {
        drivers.push(match choice {
            DriverChoice::Sim => Arc::new(SimDriver::new()),
            DriverChoice::Qemu => {
                let config =
                    QemuConfig::new(record.run_dir.join("vm")).with_state(record.data_dir.join("vm"));
                Arc::new(QemuDriver::open(config).await.map_err(Error::from)?)
            }
            DriverChoice::VirtualBox => {
                let (root, run) = (record.data_dir.join("virtualbox"), record.run_dir.join("vb"));
                let opened = VirtualBoxDriver::open(VirtualBoxConfig::new(root, run)).await;
                Arc::new(opened.map_err(Error::from)?)
            }
        });
    }
    Ok(drivers)
}

pub(super) async fn networks(builder: &Builder, record: &InstanceRecord) -> Result<Arc<dyn NetworkBackend>> {
    if let Some(networks) = &builder.own_networks {
        return Ok(Arc::clone(networks));
    }
    Ok(match builder.network {
        NetworkChoice::Sim => Arc::new(SimNetwork::new(Arc::clone(&builder.clock))),
        NetworkChoice::Host => {
            let config = HostConfig::new(
                record.tag.clone(),
                record.run_dir.join("net"),
                Arc::clone(&builder.clock),
            )
            .with_dispatch(builder.dispatch);
            Arc::new(HostNetwork::open(config).await.map_err(Error::from)?)
        }
    })
}

pub(super) async fn redis(url: &str, keys: Option<&(PathBuf, PathBuf)>) -> Result<Arc<dyn Transport>> {
    let mut config = vbm_rpc::redis::RedisConfig::from_url(url).map_err(Error::from)?;
    if let Some((keys, trust)) = keys {
        let security = Security::On(Keys::load(keys)?, Trust::file(trust)?);
        config = config.security(security);
    }
    Ok(Arc::new(
        vbm_rpc::redis::RedisTransport::connect(config)
            .await
            .map_err(Error::from)?,
    ))
}
