//! Hosts and a world for examples of networks: namespaces, joined by pairs of links. All of it is gone when it is dropped.

#![allow(dead_code, reason = "each example uses a part of it")]

use std::{
    error::Error,
    io,
    path::{Path, PathBuf},
    process::Command,
};
use vbm_core::{Mac, Name, NetworkId, NetworkMode, NetworkSpec, PortId, network::parse_cidr};
use vbm_net::{DesiredNetwork, DesiredPort, ipam::Ipam};

/// What an example answers.
pub(crate) type Done<T = ()> = Result<T, Box<dyn Error + Send + Sync>>;

/// A namespace; gone when dropped.
pub(crate) struct Namespace(pub(crate) String);

impl Namespace {
    /// Makes one whose name no other process has.
    pub(crate) fn new(role: &str) -> io::Result<Self> {
        let name = format!("vbmex-{role}-{}", std::process::id());
        ip(&format!("netns add {name}"))?;
        let made = Self(name);
        made.ip("link set lo up")?;
        Ok(made)
    }

    pub(crate) fn path(&self) -> PathBuf {
        Path::new("/run/netns").join(&self.0)
    }

    /// Runs `ip` in it.
    pub(crate) fn ip(&self, words: &str) -> io::Result<()> {
        ip(&format!("-n {} {words}", self.0))
    }

    /// Joins it to another one by a link, with these addresses at its ends.
    pub(crate) fn join(
        &self,
        link: &str,
        address: &str,
        other: &Self,
        other_address: &str,
    ) -> io::Result<()> {
        self.ip(&format!(
            "link add {link} type veth peer name {link} netns {}",
            other.0
        ))?;
        for (end, address) in [(self, address), (other, other_address)] {
            end.ip(&format!("addr add {address} dev {link}"))?;
            end.ip(&format!("link set {link} up"))?;
        }
        Ok(())
    }

    /// Whether an address answers a ping from here.
    pub(crate) fn reaches(&self, address: &str) -> bool {
        self.run(&format!("busybox ping -c 1 -W 2 {address}")).is_ok()
    }

    /// Runs a program in it; what it said on both outputs.
    pub(crate) fn run(&self, command: &str) -> io::Result<String> {
        let words = format!("netns exec {} {command}", self.0);
        let output = Command::new("ip").args(words.split_whitespace()).output()?;
        let said = [output.stdout, output.stderr].concat();
        let said = String::from_utf8_lossy(&said).into_owned();
        if output.status.success() {
            Ok(said)
        } else {
            Err(io::Error::other(said))
        }
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        drop(ip(&format!("netns del {}", self.0)));
    }
}

fn ip(words: &str) -> io::Result<()> {
    let output = Command::new("ip").args(words.split_whitespace()).output()?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    Err(io::Error::other(format!("ip {words}: {said}")))
}

/// A network with so many ports that nothing may enter yet, with the first addresses of its pool.
pub(crate) fn network(mode: NetworkMode, cidr: &str, ports: u32) -> Done<DesiredNetwork> {
    let spec = NetworkSpec::new(mode, parse_cidr(cidr)?)?;
    let mut ipam = Ipam::v4(&spec)?;
    let mut made = Vec::new();
    for n in 0..ports {
        made.push(DesiredPort {
            id: PortId::from_uuid(uuid::Uuid::now_v7()),
            mac: Mac::local(10 + n),
            address: ipam.allocate(None, Default::default())?,
            address6: None,
            hostname: format!("guest-{n}").parse::<Name>()?,
            metadata_route: false,
            rules: Vec::new(),
            policy: Default::default(),
        });
    }
    Ok(DesiredNetwork {
        id: NetworkId::from_uuid(uuid::Uuid::now_v7()),
        name: "example".parse()?,
        spec,
        ports: made,
        forwards: Vec::new(),
        overlay: None,
        groups: Vec::new(),
    })
}
