//! What a cluster consists of: pure.

use serde::{Deserialize, Serialize};
use std::{
    net::Ipv4Addr,
    path::{Path, PathBuf},
};
use vbm_core::{Error, ErrorKind, Result};

/// The most nodes of a cluster on one machine.
const NODES_MAX: u8 = 32;
/// The most controllers.
const CONTROLLERS_MAX: u8 = 8;
/// The port of Redis, in the hub's namespace.
const REDIS_PORT: u16 = 6379;
/// The network of the cluster; it is in namespaces of its own, so that every cluster can have the same.
const LAN: [u8; 3] = [10, 77, 0];
/// The hub's host number.
const HUB: u8 = 1;
/// The first node's.
const FIRST_NODE: u8 = 11;

/// What a cluster shall be.
#[derive(Clone, Debug)]
pub struct Options {
    /// Where everything of it is.
    pub dir: PathBuf,
    /// How many nodes, 1 to 32.
    pub nodes: u8,
    /// How many controllers, 1 to 8.
    pub controllers: u8,
    /// The words that choose the agents' hypervisors and networks, such as `--driver sim`.
    pub agent_args: Vec<String>,
    /// `vbmd`.
    pub vbmd: PathBuf,
}

/// What a member is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// The bus and the store.
    Redis,
    /// A controller.
    Controller,
    /// The agent of a node.
    Agent,
}

/// A process of the cluster.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Member {
    /// Its name.
    pub name: String,
    /// What it is.
    pub kind: Kind,
    /// The namespace that it is in.
    pub namespace: String,
    /// Its address there.
    pub address: Ipv4Addr,
    /// Its data.
    pub data: PathBuf,
    /// What it says.
    pub log: PathBuf,
    /// Its API, where it has one.
    pub socket: Option<PathBuf>,
    /// The program and its words.
    pub command: Vec<String>,
}

impl Member {
    /// The tag of its instance, once it was started.
    pub(super) fn instance(&self) -> Option<String> {
        let tag = std::fs::read_to_string(self.data.join("instance")).ok()?;
        Some(tag.trim().to_owned())
    }
}

/// What a cluster consists of.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Plan {
    dir: PathBuf,
    hub: String,
    members: Vec<Member>,
}

impl Plan {
    pub(super) fn new(dir: PathBuf, options: &Options) -> Result<Self> {
        check("nodes", options.nodes, NODES_MAX)?;
        check("controllers", options.controllers, CONTROLLERS_MAX)?;
        let tag = tag_of(&dir);
        let hub = format!("vbd-{tag}-hub");
        let place = Place {
            dir: &dir,
            vbmd: text(&options.vbmd),
            redis: format!("redis://{}:{REDIS_PORT}", address(HUB)),
        };
        let mut members = vec![place.redis(&hub)];
        members.extend((1..=options.controllers).map(|n| place.controller(n, &hub)));
        members.extend((1..=options.nodes).map(|n| place.agent(n, &tag, &options.agent_args)));
        Ok(Self { dir, hub, members })
    }

    pub(super) fn dir(&self) -> &Path {
        &self.dir
    }

    /// The namespace that joins the others.
    pub(super) fn hub(&self) -> &str {
        &self.hub
    }

    pub(super) fn hub_address(&self) -> Ipv4Addr {
        address(HUB)
    }

    /// In the order in which they are started.
    pub(super) fn members(&self) -> impl DoubleEndedIterator<Item = &Member> {
        self.members.iter()
    }

    pub(super) fn nodes(&self) -> impl Iterator<Item = &Member> {
        self.members.iter().filter(|m| m.kind == Kind::Agent)
    }
}

struct Place<'a> {
    dir: &'a Path,
    vbmd: String,
    redis: String,
}

impl Place<'_> {
    fn member(&self, name: &str, kind: Kind, namespace: &str, host: u8, command: Vec<String>) -> Member {
        Member {
            name: name.to_owned(),
            kind,
            namespace: namespace.to_owned(),
            address: address(host),
            data: self.dir.join(name),
            log: self.dir.join(format!("{name}.log")),
            socket: None,
            command,
        }
    }

    /// What it acknowledged is on the disk: the store's records are in it.
    fn redis(&self, hub: &str) -> Member {
        let (bind, port) = (address(HUB).to_string(), REDIS_PORT.to_string());
        let data = text(&self.dir.join("redis"));
        let words = [
            "redis-server",
            "--bind",
            &bind,
            "--port",
            &port,
            "--protected-mode",
            "no",
            "--dir",
            &data,
            "--appendonly",
            "yes",
            "--appendfsync",
            "always",
            "--save",
            "",
            "--maxmemory-policy",
            "noeviction",
        ];
        let command = words.into_iter().map(str::to_owned).collect();
        self.member("redis", Kind::Redis, hub, HUB, command)
    }

    fn vbmd(&self, role: &str, name: &str, more: &[String]) -> Vec<String> {
        let data = text(&self.dir.join(name));
        let words = [
            &*self.vbmd,
            role,
            "--redis",
            &self.redis,
            "--data-dir",
            &data,
            "--ephemeral",
        ];
        let words = words.into_iter().map(str::to_owned);
        words.chain(more.iter().cloned()).collect()
    }

    fn controller(&self, n: u8, hub: &str) -> Member {
        let name = format!("c{n}");
        let socket = self.dir.join(format!("{name}.sock"));
        let command = self.vbmd("controller", &name, &["--socket".to_owned(), text(&socket)]);
        Member {
            socket: Some(socket),
            ..self.member(&name, Kind::Controller, hub, HUB, command)
        }
    }

    fn agent(&self, n: u8, tag: &str, choices: &[String]) -> Member {
        let name = format!("n{n}");
        let host = FIRST_NODE + n - 1;
        let mut more = vec![
            "--node".to_owned(),
            format!("dev/{name}"),
            "--underlay".to_owned(),
            address(host).to_string(),
            "--shared-storage".to_owned(),
            text(&self.dir.join("shared")),
        ];
        more.extend(choices.iter().cloned());
        let command = self.vbmd("agent", &name, &more);
        self.member(&name, Kind::Agent, &format!("vbd-{tag}-{name}"), host, command)
    }
}

fn check(noun: &str, count: u8, most: u8) -> Result<()> {
    if (1..=most).contains(&count) {
        return Ok(());
    }
    Err(Error::new(
        ErrorKind::InvalidInput,
        format!("a cluster on one machine cannot have {count} {noun}"),
        format!("1 to {most} are allowed"),
        format!("choose --{noun} in that range"),
    ))
}

pub(super) fn member_not_found<'a>(name: &str, members: impl Iterator<Item = &'a Member>) -> Error {
    let names: Vec<&str> = members.map(|m| m.name.as_str()).collect();
    Error::new(
        ErrorKind::NotFound,
        format!("the cluster has no member {name}"),
        format!("it has {}", names.join(", ")),
        "choose one of them",
    )
}

/// The same for the same directory: a second cluster there would be the same one.
fn tag_of(dir: &Path) -> String {
    use sha2::{Digest, Sha256};
    use std::os::unix::ffi::OsStrExt;
    hex::encode(Sha256::digest(dir.as_os_str().as_bytes()))[..6].to_owned()
}

const fn address(host: u8) -> Ipv4Addr {
    Ipv4Addr::new(LAN[0], LAN[1], LAN[2], host)
}

fn text(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(nodes: u8, controllers: u8) -> Options {
        Options {
            dir: "/x".into(),
            nodes,
            controllers,
            agent_args: vec!["--driver".into(), "sim".into()],
            vbmd: "/bin/vbmd".into(),
        }
    }

    #[test]
    fn two_nodes_have_an_address_each_and_share_their_disks() {
        let plan = Plan::new("/x".into(), &options(2, 2)).unwrap();
        let names: Vec<&str> = plan.members().map(|m| m.name.as_str()).collect();
        assert_eq!(names, ["redis", "c1", "c2", "n1", "n2"]);
        let nodes: Vec<&Member> = plan.nodes().collect();
        assert_ne!(nodes[0].address, nodes[1].address);
        assert_ne!(nodes[0].namespace, nodes[1].namespace);
        let storage = |m: &Member| {
            let at = m.command.iter().position(|w| w == "--shared-storage").unwrap();
            m.command[at + 1].clone()
        };
        assert_eq!(storage(nodes[0]), storage(nodes[1]));
    }

    #[test]
    fn the_store_is_on_disk_before_it_is_acknowledged() {
        let plan = Plan::new("/x".into(), &options(1, 1)).unwrap();
        let words = plan.members().next().unwrap().command.join(" ");
        assert!(words.contains("--appendonly yes --appendfsync always"), "{words}");
    }

    #[test]
    fn names_of_namespaces_differ_between_clusters_and_fit() {
        let of = |dir: &str| Plan::new(dir.into(), &options(32, 8)).unwrap();
        let (a, b) = (of("/a"), of("/b"));
        assert_ne!(a.hub(), b.hub());
        assert!(a.members().all(|m| m.namespace.len() <= 28));
    }

    #[test]
    fn a_cluster_without_nodes_or_with_too_many_is_refused() {
        for (nodes, controllers) in [(0, 1), (33, 1), (1, 0), (1, 9)] {
            let error = Plan::new("/x".into(), &options(nodes, controllers)).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidInput);
        }
    }
}
