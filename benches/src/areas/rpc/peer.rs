//! Who the bus is measured beside, and what each needs.

use super::{
    load::{Measured, Shape},
    naive, oslo, rabbit,
    server::RedisServer,
};
use crate::harness::{
    fault::{Fault, Outcome},
    ground::{Ground, which},
};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Peer {
    /// What one would write with Redis on a first day.
    Blpop,
    Nats,
    Rabbit,
    Grpc,
    Oslo,
}

/// The most calls in flight that BLPOP can take: it needs two connections for each.
const BLPOP_MAX_FLIGHTS: usize = 512;
/// A thread for each call: more would measure the threads of Python.
const OSLO_MAX_FLIGHTS: usize = 64;

impl Peer {
    pub(super) const ALL: [Self; 5] = [Self::Blpop, Self::Nats, Self::Rabbit, Self::Grpc, Self::Oslo];

    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Blpop => "BLPOP request and reply",
            Self::Nats => "NATS request (at most once)",
            Self::Rabbit => "RabbitMQ, lapin, direct reply-to",
            Self::Grpc => "tonic, one channel (no broker)",
            Self::Oslo => "oslo.messaging on RabbitMQ",
        }
    }

    /// Whether it is made for such a load.
    pub(super) const fn fits(self, shape: Shape) -> bool {
        match self {
            Self::Blpop => shape.flights <= BLPOP_MAX_FLIGHTS,
            Self::Oslo => shape.flights <= OSLO_MAX_FLIGHTS,
            Self::Nats | Self::Rabbit | Self::Grpc => true,
        }
    }

    /// Why it cannot be measured beside, and how to get it.
    pub(super) fn missing(self) -> Option<String> {
        let feature =
            |there: bool, name: &str| (!there).then(|| format!("built without the feature `{name}`"));
        match self {
            Self::Blpop => None,
            Self::Nats if which("nats-server").is_none() => {
                Some("nats-server is missing (Debian: nats-server)".into())
            }
            Self::Nats => feature(cfg!(feature = "nats"), "nats"),
            Self::Rabbit => rabbit::missing().or_else(|| feature(cfg!(feature = "rabbitmq"), "rabbitmq")),
            Self::Grpc => feature(cfg!(feature = "tonic"), "tonic"),
            Self::Oslo => oslo::missing(),
        }
    }

    /// One sample, on a broker of its own.
    pub(super) async fn round(self, ground: &Ground, shape: Shape) -> Outcome<Measured> {
        match self {
            Self::Blpop => {
                let server = RedisServer::start().await?;
                naive::round(ground, &server, shape).await
            }
            #[cfg(feature = "nats")]
            Self::Nats => super::nats::round(ground, shape).await,
            #[cfg(feature = "rabbitmq")]
            Self::Rabbit => rabbit::over_lapin::round(ground, shape).await,
            #[cfg(feature = "tonic")]
            Self::Grpc => super::grpc::round(ground, shape).await,
            Self::Oslo => oslo::round(ground, shape).await,
            #[allow(unreachable_patterns, reason = "with all features nobody is left")]
            other => Err(Fault::new(format!("{} was not built in", other.name()))),
        }
    }
}
