//! What this run takes for itself on the host, so that runs at the same time, and the host's own things, do not meet.
//!
//! A claim is an abstract unix socket: the kernel gives a name once per network namespace, which is where addresses
//! and ports are unique too, and takes it back when the program ends, however it ends.

use std::net::{Ipv4Addr, TcpListener};
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::net::{SocketAddr, UnixListener};
use std::path::PathBuf;

use crate::fault::{Done, Fault};
use crate::run;

/// Addresses that documents use and the internet does not (RFC 5737).
const TEST_NETS: [[u8; 3]; 3] = [[198, 51, 100], [203, 0, 113], [192, 0, 2]];
/// Addresses in one pair's network: a /30.
const PAIR_STEP: usize = 4;
const FIRST_PORT: u16 = 8080;
const PORTS: u16 = 64;
/// What the directory of a run is called, before its pid.
pub(super) const DIR_PREFIX: &str = "vbmdemo-";
/// The longest path of a unix socket is 107 bytes; what is made below our directory needs the rest.
const DIR_BYTES_MAX: usize = 40;

/// What one run owns until it ends.
#[derive(Debug)]
pub(super) struct Claim {
    pub(super) pid: u32,
    /// The host's end of the link to the world; the world's is the next address.
    pub(super) host: Ipv4Addr,
    pub(super) world: Ipv4Addr,
    /// The port on the host that is forwarded.
    pub(super) port: u16,
    /// Data, sockets, links to programs; short, as unix sockets want it.
    pub(super) dir: PathBuf,
    _held: [UnixListener; 2],
}

impl Claim {
    /// Takes the first free pair of addresses and the first free port.
    pub(super) fn take() -> Done<Self> {
        let pid = std::process::id();
        let addresses = run::capture(run::command("ip").args(["-4", "-oneline", "address"]))?;
        let routes = run::capture(run::command("ip").args(["-4", "route", "show", "table", "all"]))?;
        let forwards = run::capture(run::command("iptables-save").args(["-t", "nat"]))?;
        let taken = nets(&addresses, &routes);
        let pair = pairs()
            .filter(|first| !taken.iter().any(|net| net.meets(*first)))
            .find_map(|first| Some((first, hold(&format!("vbm-demo-pair-{first}"))?)));
        let port = (FIRST_PORT..FIRST_PORT + PORTS)
            .filter(|port| !is_forwarded(&forwards, *port) && TcpListener::bind(("0.0.0.0", *port)).is_ok())
            .find_map(|port| Some((port, hold(&format!("vbm-demo-port-{port}"))?)));
        let full = |what: &str| {
            Fault::new(
                format!("no free {what} for the demo"),
                "all that it tries are taken on this host",
                "end other runs of the demo, then run it again",
            )
        };
        let (first, pair) = pair.ok_or_else(|| full("pair of addresses in 198.51.100.0/24 and its like"))?;
        let (port, held) = port.ok_or_else(|| full("port from 8080 to 8143"))?;
        Ok(Self {
            pid,
            host: nth(first, 1),
            world: nth(first, 2),
            port,
            dir: short_dir(&std::env::temp_dir(), pid),
            _held: [pair, held],
        })
    }
}

/// A name that one program at a time has.
fn hold(name: &str) -> Option<UnixListener> {
    let address = SocketAddr::from_abstract_name(name).ok()?;
    UnixListener::bind_addr(&address).ok()
}

/// The network addresses of all pairs, in the order of wish.
fn pairs() -> impl Iterator<Item = Ipv4Addr> {
    TEST_NETS.into_iter().flat_map(|[a, b, c]| {
        (0..=u8::MAX)
            .step_by(PAIR_STEP)
            .map(move |d| Ipv4Addr::new(a, b, c, d))
    })
}

fn nth(first: Ipv4Addr, n: u32) -> Ipv4Addr {
    (u32::from(first) + n).into()
}

/// A range of addresses that the host uses or routes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Net {
    address: u32,
    bits: u8,
}

impl Net {
    fn parse(text: &str) -> Option<Self> {
        let (address, bits) = text.split_once('/').unwrap_or((text, "32"));
        Some(Self {
            address: address.parse::<Ipv4Addr>().ok()?.into(),
            bits: bits.parse().ok().filter(|bits| *bits <= 32)?,
        })
    }

    /// Whether it shares an address with the /30 that begins here.
    fn meets(self, first: Ipv4Addr) -> bool {
        let shift = 32 - u32::from(self.bits.min(30));
        let cut = |address: u32| address.checked_shr(shift).unwrap_or(0);
        cut(self.address) == cut(first.into())
    }
}

/// What `ip address` and `ip route` name; a default route is no use of an address.
fn nets(addresses: &str, routes: &str) -> Vec<Net> {
    let used = addresses
        .lines()
        .filter_map(|line| line.split_whitespace().skip_while(|word| *word != "inet").nth(1));
    let routed = routes.lines().filter_map(|line| {
        line.split_whitespace()
            .find(|word| Net::parse(word).is_some() || *word == "default")
    });
    used.chain(routed)
        .filter_map(Net::parse)
        .filter(|net| net.bits > 0)
        .collect()
}

/// Whether a rule of the host sends this port elsewhere; nobody listens on such a port, and yet it is taken.
fn is_forwarded(rules: &str, port: u16) -> bool {
    let port = port.to_string();
    rules.lines().any(|rule| {
        let mut words = rule.split_whitespace().skip_while(|word| *word != "--dport");
        words.nth(1) == Some(port.as_str())
    })
}

/// A directory for this run, short enough for the sockets in it.
fn short_dir(temporary: &std::path::Path, pid: u32) -> PathBuf {
    let name = format!("{DIR_PREFIX}{pid}");
    let wished = temporary.join(&name);
    if wished.as_os_str().len() <= DIR_BYTES_MAX {
        wished
    } else {
        PathBuf::from("/tmp").join(name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_held_once_and_given_back() {
        let name = format!("vbm-demo-test-{}", std::process::id());
        let held = hold(&name).unwrap();
        assert!(hold(&name).is_none());
        drop(held);
        assert!(hold(&name).is_some());
    }

    #[test]
    fn what_the_host_uses_or_routes_is_not_taken() {
        let addresses =
            "1: lo    inet 127.0.0.1/8 scope host lo\n2: eth0    inet 198.51.100.6/29 scope global eth0\n";
        let routes = "default via 192.0.2.1 dev eth0\n203.0.113.0/24 dev x scope link\nlocal 192.0.2.9 dev eth0 table local\n";
        let taken = nets(addresses, routes);
        let free: Vec<Ipv4Addr> = pairs()
            .filter(|first| !taken.iter().any(|net| net.meets(*first)))
            .collect();
        assert_eq!(free.first(), Some(&Ipv4Addr::new(198, 51, 100, 8)));
        assert!(!free.contains(&Ipv4Addr::new(203, 0, 113, 64)));
        assert!(!free.contains(&Ipv4Addr::new(192, 0, 2, 8)));
        assert!(free.contains(&Ipv4Addr::new(192, 0, 2, 12)));
    }

    #[test]
    fn a_default_route_takes_nothing() {
        assert!(nets("", "default via 10.0.0.1 dev eth0\n0.0.0.0/0 dev tun0\n").is_empty());
    }

    #[test]
    fn a_forwarded_port_is_taken() {
        let rules = "-A VBM-0-PRE -p tcp -m tcp --dport 8080 -j DNAT --to-destination 169.254.64.3:8080\n";
        assert!(is_forwarded(rules, 8080));
        assert!(!is_forwarded(rules, 808));
        assert!(!is_forwarded(rules, 8081));
    }

    #[test]
    fn the_directory_is_short_whatever_the_temporary_one_is() {
        let long = format!("/{}", "long/".repeat(20));
        assert_eq!(short_dir(long.as_ref(), 7), PathBuf::from("/tmp/vbmdemo-7"));
        assert_eq!(
            short_dir("/run/tmp".as_ref(), 7),
            PathBuf::from("/run/tmp/vbmdemo-7")
        );
    }
}
