//! What can be called, as a type.

use serde::{Serialize, de::DeserializeOwned};

/// A method of the bus: a name and the types of what goes and what comes.
///
/// Bodies travel with their field names, so a field may be added with `#[serde(default)]` and versions n and
/// n-1 keep talking. A method that reports progress is a [`ProgressMethod`] too, one that gives many items a
/// [`StreamMethod`].
///
/// ```
/// use serde::{Deserialize, Serialize};
///
/// #[derive(Serialize, Deserialize)]
/// struct Ping { text: String }
/// #[derive(Serialize, Deserialize)]
/// struct Pong { text: String }
///
/// struct PingMethod;
/// impl vbm_rpc::Method for PingMethod {
///     const NAME: &'static str = "demo.ping";
///     type Request = Ping;
///     type Reply = Pong;
/// }
/// ```
pub trait Method: 'static {
    /// The name on the wire, for example `agent.vm.ensure`; at most
    /// [`METHOD_MAX_BYTES`](crate::limits::METHOD_MAX_BYTES) long.
    const NAME: &'static str;
    /// Shown in presence with the name. Raise it when the meaning changes; an added field with a default is no change.
    const VERSION: u32 = 1;
    /// Whether the receiver's [`EpochGate`](crate::EpochGate) must admit the caller's epoch. Set it to `false`
    /// for what only reads.
    const FENCED: bool = true;
    /// Whether an answer is kept for duplicates of its request. Set it to `false` for answers that are large and many,
    /// so that they do not displace others; its handler must then bear to run twice for one request.
    const KEPT: bool = true;
    /// Whether the answer of a request without a key is recorded with the transport too, so that another process
    /// which gets the request again does not run it twice. Costs about a quarter of the rate of calls. Requests with
    /// a key are always recorded, and those of a method that is not [`KEPT`](Self::KEPT) never are. See also
    /// [`Router::record_all`](crate::Router::record_all).
    const RECORDED: bool = false;
    /// What goes.
    type Request: Serialize + DeserializeOwned + Send + 'static;
    /// What comes back.
    type Reply: Serialize + DeserializeOwned + Send + 'static;
}

/// A method whose handler says how far it is ([`Context::progress`](crate::Context::progress)) and whose caller may
/// listen ([`Bus::call_with_progress`](crate::Bus::call_with_progress)). Every caller may still just call it.
pub trait ProgressMethod: Method {
    /// How far it is.
    type Progress: Serialize + DeserializeOwned + Send + 'static;
}

/// A method that gives a stream of items and, at its end, a [`Reply`](Method::Reply): see
/// [`Router::stream`](crate::Router::stream) and [`Bus::stream`](crate::Bus::stream). Its answers are never kept for
/// duplicates, whatever [`KEPT`](Method::KEPT) says.
pub trait StreamMethod: Method {
    /// One item; at most [`PAYLOAD_MAX_BYTES`](crate::limits::PAYLOAD_MAX_BYTES) long when written.
    type Item: Serialize + DeserializeOwned + Send + 'static;
}
