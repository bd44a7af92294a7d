//! The parts of a server, by what was chosen.

use super::{
    builder::{Builder, DriverChoice, NetworkChoice},
    instance::InstanceRecord,
};
use crate::store::{RedbStore, Store};
use std::sync::Arc;
use vbm_core::{Error, Result};
use vbm_hyper::{Driver, QemuConfig, QemuDriver, SimDriver};
use vbm_net::{HostConfig, HostNetwork, NetworkBackend, SimNetwork};
use vbm_rpc::Transport;

pub(super) async fn store(builder: &Builder, record: &InstanceRecord) -> Result<Arc<dyn Store>> {
    if let Some(store) = &builder.own_store {
        return Ok(Arc::clone(store));
    }
    let path = record.data_dir.join("store.redb");
    let opened = tokio::task::spawn_blocking(move || RedbStore::open(path)).await;
    Ok(Arc::new(opened.map_err(|e| {
        Error::internal("the store could not be opened", e.to_string())
    })??))
}

pub(super) async fn drivers(builder: &Builder, record: &InstanceRecord) -> Result<Vec<Arc<dyn Driver>>> {
    if let Some(drivers) = &builder.own_drivers {
        return Ok(drivers.clone());
    }
    Ok(match builder.driver {
        DriverChoice::Sim => vec![Arc::new(SimDriver::new())],
        DriverChoice::Qemu => vec![Arc::new(
            QemuDriver::open(QemuConfig::new(record.run_dir.join("vm")))
                .await
                .map_err(Error::from)?,
        )],
    })
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
            );
            Arc::new(HostNetwork::open(config).await.map_err(Error::from)?)
        }
    })
}

pub(super) async fn redis(url: &str) -> Result<Arc<dyn Transport>> {
    let config = vbm_rpc::redis::RedisConfig::from_url(url).map_err(Error::from)?;
    Ok(Arc::new(
        vbm_rpc::redis::RedisTransport::connect(config)
            .await
            .map_err(Error::from)?,
    ))
}
