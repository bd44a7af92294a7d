//! The metadata service of a network: HTTP on 169.254.169.254, where a VM reads who it is.
//!
//! ```text
//!   VM --TCP 80--> 169.254.169.254 on br0 --http::read--> Asked --respond(config, asker, asked, now)--> Answer
//!                    |                                              |
//!                    +- not from a port of this host: closed        +- by the source address: which port, hence which VM
//!                    +- its bucket is empty: 429                    +- a token, where the network wants one (IMDSv2)
//! ```
//!
//! Who asks is known by the source address alone, which the guard makes unforgeable; nothing in a request can name another VM, so none
//! is ever shown another's data. Until it was said since the start what a VM is told, it is told to ask again (503), and never something else. [`respond`] is pure. A connection has a few seconds for each request's head, a request a few
//! kilobytes; who is slower or larger is cut off.
//!
//! Two forms of the same facts, for the readers of cloud-init and others:
//!
//! | path | form |
//! |---|---|
//! | `/latest/…`, `/2009-04-04/…`, … | EC2: `meta-data/`, `user-data`, `dynamic/`; tokens by `PUT /latest/api/token` |
//! | `/nocloud/…` | NoCloud: `meta-data`, `user-data`, `vendor-data`, `network-config` |
//!
//! A token is bound to its port and its time by a keyed hash, so nothing is stored for it; the key is this process's, and after a restart a
//! client fetches a new one, as it does when one ends. The answer that bears a token leaves with a hop limit of 1, so that it
//! cannot be carried out of the VM. Requests that a proxy passed on, or that name another host, are refused: they are how a
//! stranger makes a guest's web server fetch its secrets.

mod documents;
pub mod http;
mod instance;
mod respond;
pub(crate) mod server;
mod token;

pub use instance::Instance;
pub(crate) use respond::Instances;
pub use respond::{Answer, Config, respond};
pub use token::TokenKey;

use std::time::Duration;

/// Where it is spoken.
pub const PORT: u16 = 80;
/// The most bytes of a request's head.
pub const HEAD_MAX_BYTES: usize = 8 * 1024;
/// The most header fields.
pub const HEAD_MAX_FIELDS: usize = 32;
/// The most bytes of a path.
pub const PATH_MAX_BYTES: usize = 512;
/// The most bytes of a body. Nothing that is served wants one; it is read so that the connection can go on.
pub const BODY_MAX_BYTES: usize = 1_024;
/// How long a head, a body or an answer may take on the wire.
pub const EXCHANGE_MAX: Duration = Duration::from_secs(5);
/// How long a connection may be silent between requests.
pub const IDLE_MAX: Duration = Duration::from_secs(15);
/// The most requests on one connection.
pub const CONNECTION_MAX_REQUESTS: usize = 256;
/// The most connections of a network.
pub const CONNECTIONS_MAX: usize = 256;
/// The most of one port.
pub const PORT_CONNECTIONS_MAX: usize = 16;
/// What a port may ask in a second, over time.
pub const PORT_REQUESTS_PER_SECOND: u32 = 50;
/// What a port may ask at once: cloud-init walks the whole tree.
pub const PORT_REQUESTS_BURST: u32 = 300;
/// The longest life of a token: six hours, as EC2 has it.
pub const TOKEN_MAX_SECONDS: u32 = 21_600;
/// How far the answer that bears a token may travel.
pub const TOKEN_HOP_LIMIT: u32 = 1;

/// What the metadata service of one network has done since it began to serve.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct MetadataSeen {
    /// Requests that were answered.
    pub requests: u64,
    /// Those refused for want of a token, or because a proxy passed them on.
    pub refused: u64,
    /// Bytes that are no request, or too many.
    pub malformed: u64,
    /// Connections and requests beyond what a port may have.
    pub limited: u64,
    /// Connections that came from no port of this host; closed.
    pub strangers: u64,
    /// Connections that were too slow, or went away in the middle of a request.
    pub broken: u64,
}
