//! The bus: typed calls, casts and broadcasts between the nodes of a system, in memory or over Redis.
//!
//! ```text
//!   bus.call::<Ping>(&Route::node("eu/r1/n1"), ..)          one node
//!   bus.call::<Ping>(&Route::any("eu", agent), ..)          one live agent below eu
//!   bus.broadcast::<Ping>(&Route::all("/", agent), ..)      all of them; replies as a stream
//!        |                                        ^
//!        v                                        |
//!   Bus: ids, deadlines, limits, fates      Bus: dedupe, epoch gate, handlers (Router)
//!        |                                        ^
//!        v                                        |
//!   Transport: memory::MemoryBus | redis::RedisTransport | yours
//! ```
//!
//! What callers can rely on:
//! - Every call ends by its deadline, in its reply or in exactly one [`Fate`]. Nothing hangs. A worker that falls
//!   silent is noticed within some [beats](limits::BEAT_EVERY), long before the deadline.
//! - A [stream](Bus::stream) gives its items in order, none missing, none twice, and ends in its end value or in
//!   one fate; a slow reader stops its sender.
//! - Delivery is at least once while the deadline lasts. The effect is once while the receiver's record of the
//!   idempotency key lives ([`limits::DEDUPE_TTL`], in the memory of its process and with the transport): a repeated
//!   key gets the recorded answer, from any process of the destination. A process that dies between effect and
//!   record runs the request again in its next life; a handler that must not, records [`Context::request_id`] with
//!   its effect. Requests without a key are recorded with the transport where [`Method::RECORDED`] says so.
//! - A submitted call ([`Bus::submit`]) has a ticket, a line of text with which any process may poll, await or cancel
//!   it, also when the submitter is gone. It has exactly one end, the same for every reader.
//! - A destination without a live member fails in one round trip ([`Fate::NoRoute`]).
//! - A stale epoch is refused where the router has an [`EpochGate`]; a passed deadline is not started.
//! - One attachment carries both directions: controllers call agents while agents call controllers.
//!
//! A path is an address and one attachment has one path: two parts of a system in one process either share an
//! attachment (merge their routers, offer both services) or have a path each.
//!
//! ```
//! use serde::{Deserialize, Serialize};
//! use vbm_rpc::{Bus, CallOptions, Context, Fate, Member, Method, Route, Router, Service, memory::MemoryBus};
//!
//! #[derive(Serialize, Deserialize)]
//! struct Greet { name: String }
//!
//! struct GreetMethod;
//! impl Method for GreetMethod {
//!     const NAME: &'static str = "demo.greet";
//!     type Request = Greet;
//!     type Reply = String;
//! }
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let transport = MemoryBus::new(); // or RedisTransport::connect(RedisConfig::from_url(url)?).await?
//!
//! // One process serves ...
//! let agent = Service::new("agent")?;
//! let router = Router::new().method::<GreetMethod, _, _>(|context: Context, request: Greet| async move {
//!     Ok(format!("hello {} from {}", request.name, context.caller))
//! });
//! let node = Member::new("eu/r1/n1".parse()?, "boot-1").service(agent.clone());
//! let server = Bus::attach(transport.clone(), node, router).await?;
//!
//! // ... another calls.
//! let client = Bus::attach(transport, Member::new("eu/c1".parse()?, "boot-7"), Router::new()).await?;
//! let anywhere = Route::any("eu".parse()?, agent);
//! let request = Greet { name: "you".into() };
//! let reply = client.call::<GreetMethod>(&anywhere, &request, CallOptions::default()).await?;
//! assert_eq!(reply, "hello you from eu/c1");
//!
//! // Nobody there is known at once.
//! let nowhere = Route::node("us/n9".parse()?);
//! let fate = client.call::<GreetMethod>(&nowhere, &request, CallOptions::default()).await;
//! assert!(matches!(fate, Err(Fate::NoRoute { .. })));
//!
//! client.shutdown().await;
//! server.shutdown().await;
//! # Ok(()) }
//! ```
//!
//! | module | holds |
//! |---|---|
//! | [`bus`] | attaching, verbs, fates, the receiving side |
//! | [`service`], [`layers`] | calls and handlers as tower services, and what can stand around them |
//! | [`admin`] | dead letters, queues, the hops of a call: the operator's view |
//! | [`envelope`], [`codec`] | the frame and the body |
//! | [`election`] | leases, leaders, epochs that only grow |
//! | [`transport`] | the contract of transports; [`memory`] and [`redis`] |
//! | [`conformance`] | that contract as tests, for any transport |
//! | [`auth`] | who wrote an entry: keys, trust, seals |
//! | [`limits`] | every limit, with its unit |

pub mod admin;
pub mod auth;
mod bad_input;
pub mod bus;
pub mod codec;
pub mod conformance;
mod dedupe;
pub mod election;
pub mod envelope;
mod error;
mod fate;
mod journey;
pub mod layers;
pub mod limits;
mod member;
mod method;
mod options;
mod progress;
mod route;
mod router;
pub mod service;
mod submission;
mod ticket;
pub mod transport;

pub use bad_input::{BadCounts, BadInput};
pub use bus::{
    Batch, Bus, BusStats, Caller, ItemSink, ItemStream, Replies, StreamOptions, TicketHandle, Unanswered,
};
pub use codec::Codec;
pub use error::BusError;
pub use fate::Fate;
pub use journey::{Journey, Traced};
pub use member::{Member, MemberInfo};
pub use method::{Method, ProgressMethod, StreamMethod};
pub use options::{CallOptions, Durability, Lane};
pub use route::{Route, Service};
pub use router::{Context, EpochGate, MemoryEpochGate, Router, stale_epoch};
pub use service::{Incoming, Outgoing, Replied};
pub use submission::{SubmitOptions, TicketOutcome};
pub use ticket::{Ticket, TicketState};
pub use transport::{Transport, memory, redis};
