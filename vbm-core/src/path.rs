//! Node paths: where a node stands in the tree of zones and clusters.

use crate::{Error, Name, error::invalid, limits::NODE_PATH_MAX_DEPTH};
use std::{
    cmp::Ordering,
    fmt,
    hash::{Hash, Hasher},
    str::FromStr,
    sync::Arc,
};

/// A path such as `eu/rack1/node7`: 0 to 8 names. The empty path, written `/`, is the root, the scope of all.
///
/// Any prefix of a node's path is a *scope* that holds the node; that is what routes address.
///
/// Cheap to clone: every call of the bus does it several times.
#[derive(Clone, Default)]
pub struct NodePath(Option<Arc<Below>>);

/// A path below the root, with its text: it is written and compared more often than it is made.
struct Below {
    names: Vec<Name>,
    text: String,
}

impl NodePath {
    /// The root: the scope that holds every node.
    pub const fn root() -> Self {
        Self(None)
    }

    fn of(names: Vec<Name>) -> Self {
        if names.is_empty() {
            return Self::root();
        }
        let text = names.iter().map(Name::as_str).collect::<Vec<_>>().join("/");
        Self(Some(Arc::new(Below { names, text })))
    }

    /// The path as text.
    pub fn as_str(&self) -> &str {
        self.0.as_deref().map_or("/", |below| below.text.as_str())
    }

    /// The names from the root down.
    pub fn segments(&self) -> &[Name] {
        self.0.as_deref().map_or(&[], |below| below.names.as_slice())
    }

    /// Whether this is the root.
    pub fn is_root(&self) -> bool {
        self.0.is_none()
    }

    /// Whether `self`, taken as a scope, holds `node`. A path holds itself.
    pub fn contains(&self, node: &Self) -> bool {
        node.segments().starts_with(self.segments())
    }

    /// The scope one level up; `None` at the root.
    pub fn parent(&self) -> Option<Self> {
        let (_, rest) = self.segments().split_last()?;
        Some(Self::of(rest.to_vec()))
    }
}

impl PartialEq for NodePath {
    fn eq(&self, other: &Self) -> bool {
        match (&self.0, &other.0) {
            (Some(a), Some(b)) => Arc::ptr_eq(a, b) || a.text == b.text,
            (None, None) => true,
            _ => false,
        }
    }
}
impl Eq for NodePath {}

impl Hash for NodePath {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.as_str().hash(state);
    }
}

/// By names, so that a scope stands directly before what is below it.
impl Ord for NodePath {
    fn cmp(&self, other: &Self) -> Ordering {
        self.segments().cmp(other.segments())
    }
}
impl PartialOrd for NodePath {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl FromStr for NodePath {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        if text == "/" {
            return Ok(Self::root());
        }
        let refuse = |why: String| {
            invalid(
                format!("'{text}' is not a node path"),
                why,
                "write zone/cluster/node, for example eu/rack1/node7; '/' is the root",
            )
        };
        let names = text
            .split('/')
            .map(str::parse::<Name>)
            .collect::<Result<Vec<_>, _>>()
            .map_err(|e| refuse(e.inline()))?;
        if names.len() > NODE_PATH_MAX_DEPTH {
            return Err(refuse(format!(
                "it is {} levels deep; {NODE_PATH_MAX_DEPTH} are allowed",
                names.len()
            )));
        }
        Ok(Self::of(names))
    }
}

impl fmt::Display for NodePath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}
impl fmt::Debug for NodePath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}
crate::text::string_serde!(NodePath, "a node path such as zone/cluster/node; '/' is the root");

#[cfg(test)]
mod tests {
    use super::*;

    fn path(text: &str) -> NodePath {
        text.parse().unwrap()
    }

    #[test]
    fn a_scope_holds_what_is_below_it_and_nothing_beside_it() {
        assert!(NodePath::root().contains(&path("eu/r1/n1")));
        assert!(path("eu/r1").contains(&path("eu/r1/n1")));
        assert!(path("eu/r1/n1").contains(&path("eu/r1/n1")));
        assert!(!path("eu/r1").contains(&path("eu/r10/n1")));
        assert!(!path("eu/r1/n1").contains(&path("eu/r1")));
    }

    #[test]
    fn what_is_below_a_scope_stands_directly_behind_it() {
        let mut paths = [path("a-b"), path("a/c"), path("b"), path("a"), path("/")];
        paths.sort();
        assert_eq!(paths.map(|p| p.to_string()), ["/", "a", "a/c", "a-b", "b"]);
    }

    #[test]
    fn paths_have_one_spelling_and_a_depth_limit() {
        assert_eq!(path("eu/r1").to_string(), "eu/r1");
        assert_eq!(path("/").to_string(), "/");
        assert_eq!(path("a/b").parent(), Some(path("a")));
        assert_eq!(path("a").parent(), Some(NodePath::root()));
        assert_eq!(NodePath::default(), path("/"));
        for bad in ["", "a/", "/a", "a//b", "A", "a/b/c/d/e/f/g/h/i"] {
            assert!(bad.parse::<NodePath>().is_err(), "{bad}");
        }
    }
}
