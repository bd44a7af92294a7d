//! Node paths: where a node stands in the tree of zones and clusters.

use crate::{Error, Name, error::invalid, limits::NODE_PATH_MAX_DEPTH};
use std::{fmt, str::FromStr};

/// A path such as `eu/rack1/node7`: 0 to 8 names. The empty path, written `/`, is the root, the scope of all.
///
/// Any prefix of a node's path is a *scope* that holds the node; that is what routes address.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct NodePath(Vec<Name>);

impl NodePath {
    /// The root: the scope that holds every node.
    pub const fn root() -> Self {
        Self(Vec::new())
    }

    /// The names from the root down.
    pub fn segments(&self) -> &[Name] {
        &self.0
    }

    /// Whether this is the root.
    pub fn is_root(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether `self`, taken as a scope, holds `node`. A path holds itself.
    pub fn contains(&self, node: &Self) -> bool {
        node.0.starts_with(&self.0)
    }

    /// The scope one level up; `None` at the root.
    pub fn parent(&self) -> Option<Self> {
        let (_, rest) = self.0.split_last()?;
        Some(Self(rest.to_vec()))
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
        Ok(Self(names))
    }
}

impl fmt::Display for NodePath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_root() {
            return f.pad("/");
        }
        f.pad(&self.0.iter().map(Name::as_str).collect::<Vec<_>>().join("/"))
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
    fn paths_have_one_spelling_and_a_depth_limit() {
        assert_eq!(path("eu/r1").to_string(), "eu/r1");
        assert_eq!(path("/").to_string(), "/");
        assert_eq!(path("a/b").parent(), Some(path("a")));
        assert_eq!(path("a").parent(), Some(NodePath::root()));
        for bad in ["", "a/", "/a", "a//b", "A", "a/b/c/d/e/f/g/h/i"] {
            assert!(bad.parse::<NodePath>().is_err(), "{bad}");
        }
    }
}
