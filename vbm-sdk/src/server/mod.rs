//! The server: everything that `vbmd` is, as a library.
//!
//! ```text
//!   Role::All         controller + agent on a bus inside the process; one redb file
//!   Role::Controller  controller on Redis: the bus, and the store that it shares with others
//!   Role::Agent       agent on Redis
//! ```
//!
//! ```no_run
//! # async fn example() -> vbm_core::Result<()> {
//! use vbm_sdk::server::Server;
//! let server = Server::builder("/var/lib/vbm").start().await?;
//! let vms = server.client()?.vms().list().all().await?;
//! println!("{} VMs", vms.len());
//! server.shutdown().await;
//! # Ok(())
//! # }
//! ```

mod builder;
mod client;
pub(crate) mod instance;
mod parts;

pub use builder::{Builder, DriverChoice, NetworkChoice, Role, StoreChoice};

use crate::{agent::Agent, client::Client, controller::Controller, http, store::Store};
use axum::Router;
use std::{
    fmt,
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::Arc,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use vbm_core::{Error, ErrorKind, Result};
use vbm_rpc::Bus;

/// A running server. Dropping it without [`Server::shutdown`] ends its tasks without waiting for them; VMs and
/// networks run on in either case.
pub struct Server {
    instance: instance::Instance,
    /// With the store that is closed with it; a store of the caller's is not.
    controller: Option<(Controller, Option<Arc<dyn Store>>)>,
    agent: Option<Agent>,
    buses: Vec<Bus>,
    router: Option<Router>,
    api: Option<http::ApiState>,
    socket: Option<PathBuf>,
    web: Option<SocketAddr>,
    stop: CancellationToken,
    tasks: TaskTracker,
}

impl fmt::Debug for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Server")
            .field("instance", &self.instance.tag())
            .field("socket", &self.socket)
            .field("web", &self.web)
            .finish_non_exhaustive()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.cancel();
        if let Some((controller, _)) = &self.controller {
            controller.end();
        }
    }
}

impl Server {
    /// A server whose data is in `data_dir`.
    pub fn builder(data_dir: impl Into<PathBuf>) -> Builder {
        Builder::new(data_dir.into())
    }

    /// A client of this server that stays inside the process.
    ///
    /// # Errors
    /// The server is an agent only: it has no API.
    pub fn client(&self) -> Result<Client> {
        let door = client::Door::new(self.router()?, self.stop.clone(), &self.tasks);
        Ok(Client::new(crate::client::Endpoint::in_process(Arc::new(door))))
    }

    /// The API as a router, to be nested in another. While it lives, the data directory stays in use.
    ///
    /// # Errors
    /// The server is an agent only: it has no API.
    pub fn router(&self) -> Result<Router> {
        self.router.clone().ok_or_else(no_api)
    }

    /// The socket that the API is served on, where it is.
    pub fn socket(&self) -> Option<&Path> {
        self.socket.as_deref()
    }

    /// Where browsers are served, where they are; with the port that the kernel chose when 0 was asked for.
    pub fn web(&self) -> Option<SocketAddr> {
        self.web
    }

    /// A new link that logs a browser in, once and soon.
    ///
    /// # Errors
    /// Browsers are not served.
    pub fn login_link(&self) -> Result<crate::api::LoginLink> {
        self.api()?.login_link()
    }

    fn api(&self) -> Result<&http::ApiState> {
        self.api.as_ref().ok_or_else(no_api)
    }

    /// The word for this server and its data, in the tags of what it makes on the host.
    pub fn instance(&self) -> &str {
        self.instance.tag()
    }

    /// Ends the server: requests under way, the controller, the agent, the bus, the store, in that order. VMs and networks run on.
    pub async fn shutdown(mut self) {
        self.stop.cancel();
        if let Some((controller, _)) = &self.controller {
            controller.end_streams();
        }
        self.tasks.close();
        self.tasks.wait().await;
        if let Some((controller, _)) = &self.controller {
            controller.shutdown().await;
        }
        let mut holds_nothing = true;
        if let Some(agent) = &self.agent {
            holds_nothing = agent.holds_nothing().await;
            agent.shutdown().await;
        }
        for bus in self.buses.drain(..) {
            bus.shutdown().await;
        }
        if let Some((_, Some(store))) = &self.controller {
            store.close().await;
        }
        if holds_nothing && let Err(e) = self.instance.forget() {
            tracing::warn!(error = %e, "the instance stays listed");
        }
    }

    async fn serve(&mut self, path: &Path) -> Result<()> {
        let socket = http::unix::Socket::bind(path).await?;
        self.tasks.spawn(socket.serve(self.router()?, self.stop.clone()));
        self.socket = Some(path.to_owned());
        Ok(())
    }

    async fn serve_web(&mut self, address: SocketAddr) -> Result<()> {
        let api = self.api()?.clone();
        let port = http::tcp::Port::bind(address).await?;
        api.opened_at(port.address())?;
        self.web = Some(port.address());
        self.tasks
            .spawn(port.serve(http::web::router(api), self.stop.clone()));
        Ok(())
    }
}

fn no_api() -> Error {
    Error::new(
        ErrorKind::Unsupported,
        "this server has no API",
        "it is an agent only",
        "ask a controller",
    )
}
