//! The bus of an example: in memory, or on Redis with `--redis URL`.

use std::{error::Error, sync::Arc};
use vbm_core::Name;
use vbm_rpc::{
    Transport,
    memory::MemoryBus,
    redis::{RedisConfig, RedisTransport},
};

/// The transport that the arguments name. On Redis each run has a namespace of its own, so that examples disturb nobody.
pub(crate) async fn transport() -> Result<Arc<dyn Transport>, Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    match (arguments.next().as_deref(), arguments.next()) {
        (None, _) => Ok(MemoryBus::new().into()),
        (Some("--redis"), Some(url)) => {
            let namespace: Name = format!("example-{}", std::process::id()).parse()?;
            let config = RedisConfig::from_url(&url)?.namespace(&namespace);
            Ok(RedisTransport::connect(config).await?.into())
        }
        _ => Err("say nothing, or --redis redis://HOST:PORT".into()),
    }
}
