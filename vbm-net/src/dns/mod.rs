//! DNS on the gateway's address of a network: the names of its VMs, and the world's by asking others.
//!
//! ```text
//!   VM --UDP, TCP 53--> gateway address on br0 --message::read--> Asked
//!                                                                  |
//!        its port's bucket is empty: dropped     zone::look -------+--> ours: A, AAAA, PTR, SOA, NXDOMAIN
//!        not from a port of this host: dropped                     |
//!                                                cache ------------+--> said before, and it still holds
//!                                                                  |
//!                                                upstream ---------+--> one question for all who ask the same;
//!                                                (sockets in the host's namespace, a new one for each question)
//! ```
//!
//! The sockets are bound to the gateway's address and to the bridge, and only what comes from the bridge is let in by the rules: no
//! other network and nothing outside can ask. Who asks is known by the source address, which the guard makes unforgeable. The
//! table holds only this network's names, so two networks may use the same ones.
//!
//! An isolated network asks nobody: what is not its own is refused. Upstream servers are asked from the host's namespace, so that the
//! host's own resolver, also one on its loopback, serves where the network names none. A question takes a socket of its own, hence a
//! port and an id that cannot be guessed; hickory reads and writes the messages, and nothing of its types is seen from outside.
//!
//! Read RFC 1035, 2308 (denials), 6891 (EDNS), 7766 (TCP), 5452 (answers that are forged), 8482, 9520.

mod cache;
pub(crate) mod message;
mod pending;
pub(crate) mod server;
pub(crate) mod upstream;
pub(crate) mod zone;

pub use zone::Zone;

use std::time::Duration;

/// Where DNS is spoken.
pub const PORT: u16 = 53;
/// The most bytes of an answer by UDP to a client without EDNS (RFC 1035 section 4.2.1).
pub const UDP_PLAIN_MAX_BYTES: u16 = 512;
/// The most bytes of an answer by UDP to one with it: what no path has to cut (DNS flag day 2020).
pub const EDNS_MAX_BYTES: u16 = 1_232;
/// The most bytes of a question or of an answer from upstream by UDP that are read.
pub const DATAGRAM_MAX_BYTES: usize = 4_096;
/// How long a VM's name may be kept by who asked: VMs come and go.
pub const LOCAL_TTL_SECONDS: u32 = 30;
/// How long the absence of a name may be kept: the VM may just be being made.
pub const NEGATIVE_TTL_SECONDS: u32 = 5;
/// The most answers that a network keeps.
pub const CACHE_MAX_ENTRIES: usize = 4_096;
/// The most bytes that they take, as they are held and not as they came.
pub const CACHE_MAX_BYTES: usize = 4 * 1024 * 1024;
/// The most records of an answer that is kept; a longer one is passed on only.
pub const CACHED_MAX_RECORDS: usize = 64;
/// The most bytes that such an answer had as it came.
pub const CACHED_ANSWER_MAX_BYTES: usize = 8 * 1024;
/// The longest that an answer is kept, whatever it says.
pub const POSITIVE_MAX_SECONDS: u32 = 86_400;
/// The longest that a denial is kept.
pub const NEGATIVE_MAX_SECONDS: u32 = 300;
/// How long a failure is kept (RFC 9520 asks for a second at least).
pub const FAILURE_TTL_SECONDS: u32 = 1;
/// What a port may ask in a second, over time.
pub const PORT_QUESTIONS_PER_SECOND: u32 = 1_000;
/// What a port may ask at once.
pub const PORT_QUESTIONS_BURST: u32 = 2_000;
/// The most questions of a network that others are asked at a time.
pub const FORWARDS_MAX_PENDING: usize = 256;
/// The most of them that one port waits for.
pub const PORT_FORWARDS_MAX_PENDING: usize = 64;
/// The most that wait for the same answer.
pub const WAITERS_MAX: usize = 64;
/// How long one server is waited for.
pub const UPSTREAM_TRY: Duration = Duration::from_millis(1_500);
/// How long all of them together: stub resolvers ask again after five seconds.
pub const UPSTREAM_MAX: Duration = Duration::from_millis(4_500);
/// How long an answer by TCP is waited for, where it did not fit in UDP.
pub const UPSTREAM_TCP_TRY: Duration = Duration::from_secs(3);
/// The most connections of a network by TCP.
pub const CONNECTIONS_MAX: usize = 128;
/// The most of one port.
pub const PORT_CONNECTIONS_MAX: usize = 8;
/// How long a connection may be silent (RFC 7766 section 6.2.3), and how long one message may take.
pub const CONNECTION_IDLE_MAX: Duration = Duration::from_secs(10);
/// The most questions on one connection.
pub const CONNECTION_MAX_QUESTIONS: usize = 256;

/// What the DNS of one network has done since it began to serve.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct DnsSeen {
    /// Questions that came from ports.
    pub questions: u64,
    /// Those answered from the table of names.
    pub local: u64,
    /// Those answered from the cache.
    pub cached: u64,
    /// Questions that others were asked.
    pub forwarded: u64,
    /// Those of them that nobody answered.
    pub failed: u64,
    /// Questions about what is not ours, where nobody is asked.
    pub refused: u64,
    /// Messages that are no questions.
    pub malformed: u64,
    /// Questions beyond what a port may ask; dropped.
    pub limited: u64,
    /// Messages that came from no port of this host; dropped.
    pub strangers: u64,
    /// Answers that the kernel did not take.
    pub unsent: u64,
}
