//! The handles of the plain nouns: each call is one request.

use super::{
    Client,
    call::{Call, Listing, json, nothing},
    path::ApiPath,
};
use crate::api::{
    Accepted, CreateForward, CreateGroup, CreateNetwork, ForwardView, List, LoginLink, NetworkCounts,
    NetworkView, NodeChanges, NodePaths, PortView, SetRules, UpdateNetwork,
};
use hyper::Method;
use vbm_core::{Error, Group, Node, Volume};

/// Gives a handle `list`, `get` and `get_opt`.
macro_rules! readable {
    ($handle:ident, $noun:literal, $singular:literal, $item:ty) => {
        impl $handle {
            /// All of them, ordered by name.
            pub fn list(&self) -> Listing<$item> {
                Listing::new(&self.0, $noun)
            }

            /// The one of this name or id. Absent is [`vbm_core::ErrorKind::NotFound`].
            pub fn get(&self, name: impl AsRef<str>) -> Call<$item> {
                let path = ApiPath::one($noun, $singular, name.as_ref());
                Call::new(&self.0, Method::GET, path, json)
            }

            /// The one of this name or id; `None` when there is none.
            ///
            /// # Errors
            /// Those of [`Call`], but not that it is absent.
            ///
            /// # Cancel safety
            /// Only reads.
            pub async fn get_opt(&self, name: impl AsRef<str>) -> Result<Option<$item>, Error> {
                match self.get(name).await {
                    Err(error) if error.is_not_found() => Ok(None),
                    found => found.map(Some),
                }
            }
        }
    };
}
pub(super) use readable;

/// Networks.
#[derive(Clone, Debug)]
pub struct Networks(pub(super) Client);

readable!(Networks, "networks", "network", NetworkView);

impl Networks {
    /// Makes one.
    pub fn create(&self, request: CreateNetwork) -> Call<Accepted<NetworkView>> {
        Call::new(&self.0, Method::POST, Ok(ApiPath::of("networks")), json).with_json(&request)
    }

    /// Changes who gets which of its addresses from now on; ports keep theirs.
    pub fn update(&self, network: impl AsRef<str>, request: UpdateNetwork) -> Call<Accepted<NetworkView>> {
        let path = ApiPath::one("networks", "network", network.as_ref());
        Call::new(&self.0, Method::PATCH, path, json).with_json(&request)
    }

    /// What each node would change of it now; nothing is changed.
    pub fn plan(&self, network: impl AsRef<str>) -> Call<List<NodeChanges>> {
        let path = ApiPath::one("networks", "network", network.as_ref());
        Call::new(&self.0, Method::GET, path.map(|p| p.sub("plan")), json)
    }

    /// Lets each node try every path between its networks with real packets.
    pub fn check(&self) -> Call<List<NodePaths>> {
        Call::new(&self.0, Method::GET, Ok(ApiPath::of("paths")), json)
    }

    /// What passed each of its ports, and what each rule let begin.
    pub fn counters(&self, network: impl AsRef<str>) -> Call<NetworkCounts> {
        let path = ApiPath::one("networks", "network", network.as_ref());
        Call::new(&self.0, Method::GET, path.map(|p| p.sub("counters")), json)
    }

    /// Deletes one that has no ports.
    pub fn delete(&self, network: impl AsRef<str>) -> Call<Accepted<NetworkView>> {
        let path = ApiPath::one("networks", "network", network.as_ref());
        Call::new(&self.0, Method::DELETE, path, json)
    }
}

/// Ports.
#[derive(Clone, Debug)]
pub struct Ports(pub(super) Client);

impl Ports {
    /// All of them.
    pub fn list(&self) -> Listing<PortView> {
        Listing::new(&self.0, "ports")
    }
}

impl Listing<PortView> {
    /// Only those of this network.
    pub fn network(self, network: impl Into<String>) -> Self {
        self.only_network(network)
    }

    /// Only those of this VM.
    pub fn vm(self, vm: impl Into<String>) -> Self {
        self.only_vm(vm)
    }
}

/// Volumes.
#[derive(Clone, Debug)]
pub struct Volumes(pub(super) Client);

impl Volumes {
    /// All of them.
    pub fn list(&self) -> Listing<Volume> {
        Listing::new(&self.0, "volumes")
    }
}

impl Listing<Volume> {
    /// Only those of this VM.
    pub fn vm(self, vm: impl Into<String>) -> Self {
        self.only_vm(vm)
    }
}

/// Security groups.
#[derive(Clone, Debug)]
pub struct Groups(pub(super) Client);

readable!(Groups, "groups", "group", Group);

impl Groups {
    /// Makes one.
    pub fn create(&self, request: CreateGroup) -> Call<Group> {
        Call::new(&self.0, Method::POST, Ok(ApiPath::of("groups")), json).with_json(&request)
    }

    /// Replaces its rules, for running VMs as well.
    pub fn set_rules(&self, group: impl AsRef<str>, request: SetRules) -> Call<Accepted<Group>> {
        let path = ApiPath::one("groups", "group", group.as_ref()).map(|path| path.sub("rules"));
        Call::new(&self.0, Method::PUT, path, json).with_json(&request)
    }

    /// Deletes one that no port uses.
    pub fn delete(&self, group: impl AsRef<str>) -> Call<()> {
        let path = ApiPath::one("groups", "group", group.as_ref());
        Call::new(&self.0, Method::DELETE, path, nothing)
    }
}

/// Port forwards.
#[derive(Clone, Debug)]
pub struct Forwards(pub(super) Client);

readable!(Forwards, "forwards", "forward", ForwardView);

impl Forwards {
    /// Makes one.
    pub fn create(&self, request: CreateForward) -> Call<Accepted<ForwardView>> {
        Call::new(&self.0, Method::POST, Ok(ApiPath::of("forwards")), json).with_json(&request)
    }

    /// Deletes one.
    pub fn delete(&self, forward: impl AsRef<str>) -> Call<Accepted<ForwardView>> {
        let path = ApiPath::one("forwards", "forward", forward.as_ref());
        Call::new(&self.0, Method::DELETE, path, json)
    }
}

impl Listing<ForwardView> {
    /// Only those of this network.
    pub fn network(self, network: impl Into<String>) -> Self {
        self.only_network(network)
    }

    /// Only those of this VM.
    pub fn vm(self, vm: impl Into<String>) -> Self {
        self.only_vm(vm)
    }
}

/// Nodes. The id of a node is its path.
#[derive(Clone, Debug)]
pub struct Nodes(pub(super) Client);

readable!(Nodes, "nodes", "node", Node);

/// The web console.
#[derive(Clone, Debug)]
pub struct Web(pub(super) Client);

impl Web {
    /// A link that logs a browser in, once and soon. Given on the unix socket and inside the process only.
    pub fn login_link(&self) -> Call<LoginLink> {
        Call::new(&self.0, Method::POST, Ok(ApiPath::of("web/links")), json)
    }
}
