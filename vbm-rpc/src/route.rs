//! Where a message goes: one node, one of many, or all below a scope.
//!
//! ```text
//!   /                       Route::any("/", controller)      one live controller anywhere
//!   +- eu                   Route::all("eu", agent)          every live agent in eu
//!   |  +- r1                Route::any("eu/r1", agent)       one live agent of rack r1
//!   |  |  +- n1             Route::node("eu/r1/n1")          this one
//!   |  |  +- n2
//!   +- us ...
//! ```

use std::{fmt, str::FromStr};
use vbm_core::{Error, Name, NodePath};

/// What a member offers, by name: `controller`, `agent`. The same rules as for [`Name`].
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize)]
#[serde(transparent)]
pub struct Service(Name);

impl Service {
    /// The service of that name.
    ///
    /// # Errors
    /// Invalid input, when it is not a [`Name`].
    pub fn new(name: &str) -> Result<Self, Error> {
        name.parse().map(Self)
    }

    /// The name as text.
    pub fn as_str(&self) -> &str {
        self.0.as_str()
    }
}

impl From<Name> for Service {
    fn from(name: Name) -> Self {
        Self(name)
    }
}

impl FromStr for Service {
    type Err = Error;
    fn from_str(text: &str) -> Result<Self, Error> {
        Self::new(text)
    }
}

impl fmt::Display for Service {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Where a message goes. A scope is any prefix of node paths, the root included.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum Route {
    /// The member with exactly this path.
    Node(NodePath),
    /// One live member below `scope` that offers `service`.
    Any {
        /// The scope.
        scope: NodePath,
        /// The service.
        service: Service,
    },
    /// Every live member below `scope` that offers `service`.
    All {
        /// The scope.
        scope: NodePath,
        /// The service.
        service: Service,
    },
}

impl Route {
    /// To the member with exactly this path.
    pub const fn node(path: NodePath) -> Self {
        Self::Node(path)
    }
    /// To one live member below `scope` that offers `service`.
    pub fn any(scope: NodePath, service: impl Into<Service>) -> Self {
        Self::Any {
            scope,
            service: service.into(),
        }
    }
    /// To every live member below `scope` that offers `service`.
    pub fn all(scope: NodePath, service: impl Into<Service>) -> Self {
        Self::All {
            scope,
            service: service.into(),
        }
    }
}

impl fmt::Display for Route {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Node(path) => write!(f, "node {path}"),
            Self::Any { scope, service } => write!(f, "any {service} below {scope}"),
            Self::All { scope, service } => write!(f, "every {service} below {scope}"),
        }
    }
}
