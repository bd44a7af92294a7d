//! `vbm bus`: the operator's view of the bus.
//!
//! It talks to Redis itself and not to vbmd: what is wrong with the bus is looked for when vbmd does not answer.

mod acl;
mod bench;
mod dlq;
mod key;
mod ping;
mod top;
mod trace;

use super::{
    args::{Bus, BusPlace},
    session::Session,
};
use std::{path::Path, sync::Arc};
use vbm_core::Error;
use vbm_rpc::{
    Transport,
    admin::Admin,
    auth::{Keys, Security, Trust},
    redis::{RedisConfig, RedisTransport},
};

pub(super) async fn run(on: &Session<'_>, verb: Bus) -> Result<(), Error> {
    match verb {
        Bus::Top(args) => top::run(on, &args).await,
        Bus::Ping(args) => ping::run(on, &args).await,
        Bus::Trace(args) => trace::run(on, &args).await,
        Bus::Dlq(verb) => dlq::run(on, verb).await,
        Bus::Key(verb) => key::run(on, verb),
        Bus::Acl(args) => acl::run(on, &args).await,
        Bus::Bench(args) => bench::run(on, &args).await,
    }
}

/// The operator's view of the bus there.
async fn admin(place: &BusPlace) -> Result<Arc<dyn Admin>, Error> {
    of(&transport(place).await?)
}

/// The same for an operator with a key: keys and trust list.
async fn admin_with(place: &BusPlace, keys: Option<(&Path, &Path)>) -> Result<Arc<dyn Admin>, Error> {
    let Some((keys, trust)) = keys else {
        return admin(place).await;
    };
    let security = Security::On(Keys::load(keys)?, Trust::file(trust)?);
    let config = RedisConfig::from_url(&place.redis)?.security(security);
    of(&RedisTransport::connect(config).await?)
}

async fn transport(place: &BusPlace) -> Result<RedisTransport, Error> {
    let config = RedisConfig::from_url(&place.redis)?;
    Ok(RedisTransport::connect(config).await?)
}

fn of(transport: &RedisTransport) -> Result<Arc<dyn Admin>, Error> {
    transport.admin().ok_or_else(|| {
        Error::internal(
            "this bus has no operator's view",
            "its transport gives none; report this",
        )
    })
}
