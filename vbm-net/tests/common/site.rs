//! Hosts that reach each other: labs, each with a link to one bridge, on which one can listen.
//!
//! ```text
//!   lab 0: host 198.18.0.1 --und0--+
//!   lab 1: host 198.18.0.2 --und0--+-- bridge in a namespace of its own <-- Tap: what goes over the wire
//!   lab 2: host 198.18.0.3 --und0--+
//! ```

use super::{Guest, Lab, Ns, fresh, ip, packet};
use nix::{
    libc,
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::socket::{MsgFlags, recv},
};
use std::{
    net::Ipv4Addr,
    os::fd::{AsFd, AsRawFd, OwnedFd},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
};
use vbm_core::NetworkMode;
use vbm_net::{DesiredNetwork, DesiredOverlay, NetworkBackend, NetworkSeen, NicKind, RemotePort};

pub(crate) const VXLAN_PORT: u16 = 4_789;

pub(crate) struct Site {
    pub(crate) labs: Vec<Lab>,
    pub(crate) underlay: Ns,
}

/// The address of a host among the hosts.
pub(crate) fn at(host: usize) -> Ipv4Addr {
    Ipv4Addr::new(198, 18, 0, 1 + host as u8)
}

impl Site {
    pub(crate) async fn new(hosts: usize) -> Self {
        Self::dispatched(hosts, super::dispatch()).await
    }

    /// One whose packets find their port's policy so.
    pub(crate) async fn dispatched(hosts: usize, dispatch: vbm_net::Dispatch) -> Self {
        let underlay = Ns::new("vbmt-u-");
        underlay.ip("link add lan type bridge forward_delay 0");
        underlay.ip("link set lan up");
        let mut labs = Vec::new();
        for host in 0..hosts {
            let lab = Lab::dispatched(dispatch).await;
            ip(&format!(
                "-n {} link add und0 type veth peer name h{host} netns {}",
                lab.host.0, underlay.0
            ));
            underlay.ip(&format!("link set h{host} master lan up"));
            lab.host.ip(&format!("addr add {}/24 dev und0", at(host)));
            lab.host.ip("link set und0 up");
            labs.push(lab);
        }
        Self { labs, underlay }
    }

    /// Makes a network what it shall be on each host.
    pub(crate) async fn ensure(&self, span: &Span) -> Vec<NetworkSeen> {
        let mut seen = Vec::new();
        for (host, lab) in self.labs.iter().enumerate() {
            seen.push(lab.ensure(&span.on(host)).await);
        }
        seen
    }

    /// A guest at a port, on the host where the port is.
    pub(crate) async fn guest(&self, span: &Span, port: usize) -> Guest {
        let id = span.base.ports[port].id;
        let net = &self.labs[span.place[port]].net;
        let nic = net.open_nic(span.base.id, id, NicKind::Tap).await.unwrap();
        Guest::new(nic, span.base.ports[port].mac)
    }

    /// A guest with its address.
    pub(crate) async fn up(&self, span: &Span, port: usize) -> Guest {
        let guest = self.guest(span, port).await;
        guest.address(&span.base, port);
        guest
    }

    /// A wire at a port.
    pub(crate) async fn raw(&self, span: &Span, port: usize) -> packet::Wire {
        let host = span.place[port];
        let here = span.on(host);
        let id = span.base.ports[port].id;
        let local = here.ports.iter().position(|p| p.id == id).unwrap();
        self.labs[host].raw(&here, local).await
    }

    /// Waits until all is heard that was sent so far: frames are heard in the order in which they pass.
    pub(crate) async fn settled(&self, tap: &Tap) {
        let word = fresh("settled-");
        let said = word.clone();
        self.labs[0].host.run(move || {
            let socket = std::net::UdpSocket::bind((at(0), 0)).unwrap();
            // Nobody needs to be there: a datagram to the host itself would not pass.
            socket.set_broadcast(true).unwrap();
            let all = Ipv4Addr::new(198, 18, 0, 255);
            socket.send_to(said.as_bytes(), (all, 9)).unwrap();
        });
        let heard = |f: &Vec<u8>| f.windows(word.len()).any(|w| w == word.as_bytes());
        super::eventually("the end of what was sent", || tap.frames().iter().any(heard)).await;
    }

    pub(crate) fn listen(&self) -> Tap {
        Tap::on(&self.underlay)
    }
}

/// A network whose ports are on several hosts.
#[derive(Clone)]
pub(crate) struct Span {
    /// With all its ports, and without an overlay.
    pub(crate) base: DesiredNetwork,
    pub(crate) vni: u32,
    /// On which host each port is.
    pub(crate) place: Vec<usize>,
}

impl Span {
    pub(crate) fn new(mode: NetworkMode, place: &[usize]) -> Self {
        let mut base = super::network(mode, place.len() as u8);
        base.spec.mtu = 1_500;
        let number = u32::from_str_radix(&fresh("")[..5], 16).unwrap();
        Self {
            base,
            vni: vbm_core::network::VNI_FIRST + number,
            place: place.to_vec(),
        }
    }

    /// Another network with the same addresses and MACs.
    pub(crate) fn twin(&self) -> Self {
        let mut twin = Self::new(self.base.spec.mode, &self.place);
        twin.base.spec = self.base.spec.clone();
        for (port, like) in twin.base.ports.iter_mut().zip(&self.base.ports) {
            (port.mac, port.address) = (like.mac, like.address);
            port.rules.clone_from(&like.rules);
        }
        twin
    }

    pub(crate) fn open(mut self, port: usize, rules: &[&str]) -> Self {
        super::open_port(&mut self.base, port, rules);
        self
    }

    /// As one host shall have it.
    pub(crate) fn on(&self, host: usize) -> DesiredNetwork {
        let mut here = self.base.clone();
        let places = || self.base.ports.iter().zip(&self.place);
        here.ports = places()
            .filter(|(_, h)| **h == host)
            .map(|(p, _)| p.clone())
            .collect();
        here.forwards
            .retain(|f| here.ports.iter().any(|p| p.id == f.target));
        let remotes = places().filter(|(_, h)| **h != host).map(|(p, h)| RemotePort {
            mac: p.mac,
            address: p.address,
            address6: p.address6,
            host: at(*h),
        });
        here.overlay = Some(DesiredOverlay {
            vni: self.vni,
            local: at(host),
            names: Default::default(),
            remotes: remotes.collect(),
        });
        here
    }

    pub(crate) fn address(&self, port: usize) -> Ipv4Addr {
        self.base.ports[port].address
    }

    pub(crate) fn end(&self, port: usize) -> (vbm_core::Mac, Ipv4Addr) {
        (self.base.ports[port].mac, self.base.ports[port].address)
    }
}

/// A frame that one host sent to another.
#[derive(Clone, Debug)]
pub(crate) struct Wrapped {
    pub(crate) vni: u32,
    /// What is inside.
    pub(crate) frame: Vec<u8>,
    /// The outer packet in bytes.
    pub(crate) outer_bytes: usize,
}

impl Wrapped {
    pub(crate) fn ethertype(&self) -> u16 {
        u16::from_be_bytes([self.frame[12], self.frame[13]])
    }
    pub(crate) fn is_dhcp(&self) -> bool {
        let udp = self.ethertype() == 0x0800 && self.frame.get(23) == Some(&17);
        let port = |at: usize| {
            self.frame
                .get(at..at + 2)
                .map(|b| u16::from_be_bytes([b[0], b[1]]))
        };
        udp && [port(34), port(36)]
            .iter()
            .flatten()
            .any(|p| (67..=68).contains(p))
    }
}

/// Listens to all that passes a namespace.
pub(crate) struct Tap {
    frames: Arc<Mutex<Vec<Vec<u8>>>>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Tap {
    pub(crate) fn on(ns: &Ns) -> Self {
        Self::of(ns.run(|| packet::open_raw(None)))
    }

    fn of(socket: OwnedFd) -> Self {
        let (frames, stop) = (
            Arc::<Mutex<Vec<Vec<u8>>>>::default(),
            Arc::<AtomicBool>::default(),
        );
        let (kept, stopped) = (Arc::clone(&frames), Arc::clone(&stop));
        let thread = std::thread::spawn(move || {
            let mut buffer = vec![0; 70_000];
            while !stopped.load(Ordering::Relaxed) {
                let mut fds = [PollFd::new(socket.as_fd(), PollFlags::POLLIN)];
                if poll(&mut fds, PollTimeout::from(20u8)).unwrap() == 0 {
                    continue;
                }
                let n = recv(socket.as_raw_fd(), &mut buffer, MsgFlags::empty()).unwrap();
                kept.lock().unwrap().push(buffer[..n].to_vec());
            }
        });
        Self {
            frames,
            stop,
            thread: Some(thread),
        }
    }

    /// To one link.
    pub(crate) fn only(ns: &Ns, link: &str) -> Self {
        let link = link.to_owned();
        Self::of(ns.run(move || packet::open_raw(Some(&link))))
    }

    pub(crate) fn frames(&self) -> Vec<Vec<u8>> {
        self.frames.lock().unwrap().clone()
    }

    /// What was heard of one network, each frame once for each link that it passed.
    pub(crate) fn wrapped(&self, vni: u32) -> Vec<Wrapped> {
        let all = self.frames();
        all.iter()
            .filter_map(|f| unwrap(f))
            .filter(|w| w.vni == vni)
            .collect()
    }

    /// Whether any IPv4 packet came in pieces.
    pub(crate) fn heard_a_fragment(&self) -> bool {
        self.frames()
            .iter()
            .any(|f| f.len() > 34 && f[12..14] == [8, 0] && u16::from_be_bytes([f[20], f[21]]) & 0x3fff != 0)
    }
}

impl Drop for Tap {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ended = thread.join();
        }
    }
}

fn unwrap(frame: &[u8]) -> Option<Wrapped> {
    const HEADERS: usize = 14 + 20 + 8 + 8;
    let vxlan = frame.len() >= HEADERS + 14
        && frame[12..14] == [8, 0]
        && frame[14] == 0x45
        && i32::from(frame[23]) == libc::IPPROTO_UDP
        && frame[36..38] == VXLAN_PORT.to_be_bytes();
    vxlan.then(|| Wrapped {
        vni: u32::from_be_bytes([0, frame[46], frame[47], frame[48]]),
        frame: frame[HEADERS..].to_vec(),
        outer_bytes: frame.len() - 14,
    })
}

/// Wraps a frame as a host does.
pub(crate) fn wrap(vni: u32, frame: &[u8]) -> Vec<u8> {
    let mut datagram = vec![8, 0, 0, 0];
    datagram.extend((vni << 8).to_be_bytes());
    datagram.extend(frame);
    datagram
}
