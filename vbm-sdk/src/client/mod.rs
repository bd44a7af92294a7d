//! The client: everything that a server of VBM offers, as typed calls.
//!
//! ```text
//!   client.vms().launch(request)          Call: described, not sent
//!          |  .deadline(..) .key(..)
//!          v  .await
//!   transport -- Endpoint --> unix socket --> vbmd
//!                         \-> DuplexStream --> a server in this process
//! ```
//!
//! A [`Client`] is an address and settings: cheap to clone, `Send + Sync`, with no task or connection of its
//! own between calls. Calls that change something carry an idempotency key. What takes time is answered at
//! once with an [`Operation`](vbm_core::Operation); [`Operations::wait`] sees it through.
//!
//! Failures are [`vbm_core::Error`]: what, why, what to do; [`retry_advice`](vbm_core::Error::retry_advice) says
//! whether the call may be repeated. Each future here may be dropped at any time; [`Call`] says what that means
//! for what was asked.
//!
//! ```no_run
//! # async fn story() -> vbm_core::Result<()> {
//! use vbm_sdk::api::{LaunchRequest, NicRequest};
//! use vbm_sdk::client::{Client, Endpoint};
//!
//! let client = Client::connect(Endpoint::default()).await?;
//! let request = LaunchRequest::new("tiny").nic(NicRequest::on("lan").group("web"));
//! let made = client.vms().launch(request).await?;
//! client.operations().wait(made.operation.id).await?;
//! println!("{} has {}", made.item.vm.meta.name, made.item.nics[0].port.spec.address);
//! # Ok(())
//! # }
//! ```

mod call;
mod console;
mod download;
mod endpoint;
mod events;
mod floating_ips;
mod images;
mod nouns;
mod operations;
mod path;
mod requests;
mod snapshots;
mod transport;
mod vms;

#[cfg(test)]
mod tests;

pub use self::{
    call::{CALL_DEADLINE, Call, IDEMPOTENCY_KEY, Listing},
    console::Console,
    download::{DOWNLOAD_DEADLINE, Download},
    endpoint::{BoxedIo, Connect, DEFAULT_SOCKET, Endpoint, Io},
    events::{EventStream, Events},
    floating_ips::FloatingIps,
    images::{Images, UPLOAD_DEADLINE, Upload},
    nouns::{Forwards, Groups, Networks, Nodes, Ports, Volumes, Web},
    operations::{OPERATION_DEADLINE, Operations, Wait},
    snapshots::Snapshots,
    transport::ANSWER_MAX_BYTES,
    vms::{Delete, Vms, WaitFor},
};

pub(crate) use images::cannot_read;

use crate::{
    api::{API_VERSION, Version},
    source::RandomIds,
};
use hyper::Method;
use path::ApiPath;
use std::{fmt, sync::Arc, time::Duration};
use vbm_core::{Error, ErrorKind, IdSource};

/// A client of one server.
#[derive(Clone)]
pub struct Client {
    shared: Arc<Shared>,
}

#[derive(Clone)]
struct Shared {
    endpoint: Endpoint,
    deadline: Duration,
    ids: Arc<dyn IdSource>,
}

impl Client {
    /// A client of the server at `endpoint`. Sends nothing yet.
    pub fn new(endpoint: Endpoint) -> Self {
        Self {
            shared: Arc::new(Shared {
                endpoint,
                deadline: CALL_DEADLINE,
                ids: Arc::new(RandomIds),
            }),
        }
    }

    /// A client of the server at `endpoint`, after a look whether it is there and speaks the same version of the API.
    ///
    /// # Errors
    /// [`ErrorKind::Unavailable`] when it cannot be reached, [`ErrorKind::Unsupported`] when it speaks another version.
    ///
    /// # Cancel safety
    /// Nothing is left behind.
    pub async fn connect(endpoint: Endpoint) -> Result<Self, Error> {
        let client = Self::new(endpoint);
        let version = client.version().await?;
        if version.api == API_VERSION {
            return Ok(client);
        }
        Err(Error::new(
            ErrorKind::Unsupported,
            format!(
                "vbmd at {} speaks another version of the API",
                client.endpoint().place()
            ),
            format!("it speaks {}, this client {API_VERSION}", version.api),
            "use a client and a vbmd of the same version",
        ))
    }

    /// The same client with another deadline for calls that name none.
    #[must_use]
    pub fn with_deadline(self, deadline: Duration) -> Self {
        self.changed(|shared| shared.deadline = deadline)
    }

    /// The same client with another source of idempotency keys. UUIDv7 when not said.
    #[must_use]
    pub fn with_ids(self, ids: Arc<dyn IdSource>) -> Self {
        self.changed(|shared| shared.ids = ids)
    }

    fn changed(mut self, change: impl FnOnce(&mut Shared)) -> Self {
        change(Arc::make_mut(&mut self.shared));
        self
    }

    /// Where the server is.
    pub fn endpoint(&self) -> &Endpoint {
        &self.shared.endpoint
    }

    fn deadline(&self) -> Duration {
        self.shared.deadline
    }

    fn new_key(&self) -> String {
        self.shared.ids.next().hyphenated().to_string()
    }

    /// Who answers.
    pub fn version(&self) -> Call<Version> {
        Call::new(self, Method::GET, Ok(ApiPath::of("version")), call::json)
    }

    /// Virtual machines.
    pub fn vms(&self) -> Vms {
        Vms(self.clone())
    }

    /// Networks.
    pub fn networks(&self) -> Networks {
        Networks(self.clone())
    }

    /// Ports: who has which address.
    pub fn ports(&self) -> Ports {
        Ports(self.clone())
    }

    /// Volumes: the disks of VMs.
    pub fn volumes(&self) -> Volumes {
        Volumes(self.clone())
    }

    /// Security groups.
    pub fn groups(&self) -> Groups {
        Groups(self.clone())
    }

    /// Floating IPs that are kept.
    pub fn floating_ips(&self) -> FloatingIps {
        FloatingIps(self.clone())
    }

    /// Port forwards.
    pub fn forwards(&self) -> Forwards {
        Forwards(self.clone())
    }

    /// Images.
    pub fn images(&self) -> Images {
        Images(self.clone())
    }

    /// Nodes.
    pub fn nodes(&self) -> Nodes {
        Nodes(self.clone())
    }

    /// Operations: what takes time.
    pub fn operations(&self) -> Operations {
        Operations(self.clone())
    }

    /// The web console.
    pub fn web(&self) -> Web {
        Web(self.clone())
    }

    /// Events: what happened, and what happens.
    pub fn events(&self) -> Events {
        Events::new(self.clone())
    }
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client")
            .field("endpoint", self.endpoint())
            .field("deadline", &self.shared.deadline)
            .finish_non_exhaustive()
    }
}
