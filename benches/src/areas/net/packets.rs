//! What it costs a packet that there are many ports: the first packet of a flow, from the tap of one VM to that of another.
//!
//! A frame is written into one tap and read from the other, one at a time, each of a new flow: what is counted is the whole way through
//! guard, bridge, connection tracking and rules, with two calls into the kernel. The peer with a linear dispatch is the same network with
//! its tree replaced by one rule a tap, as it is common; the packet's port is in the middle.

use super::lab::{Lab, OPEN_PORT, network, space_of};
use crate::harness::{
    duel::duel,
    fault::{During, Fault, Outcome},
    ground::Ground,
    row::Row,
    rows::Rows,
    space::inside,
};
use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
    unistd::{read, write},
};
use std::{
    net::Ipv4Addr,
    os::fd::{AsFd, OwnedFd},
};
use tokio::time::Instant;
use vbm_core::Mac;
use vbm_net::{DesiredNetwork, Dispatch, NetworkBackend, Nic, NicKind, names};

const MANY: usize = 1_000;
const MOST: usize = 4_000;
const FEW: usize = 10;
/// The packets behind one sample.
const PACKETS: u16 = 8_000;
const PACKETS_QUICK: u16 = 3_000;
/// The first source port of flows.
const FIRST_PORT: u16 = 20_000;
/// The header before each frame of a tap, all zero: nothing left to offload.
const VNET_HDR: usize = 10;
/// How long a packet is waited for, in ms.
const ARRIVES_WITHIN: u16 = 2_000;

pub(super) async fn run(ground: &Ground, rows: &mut Rows) {
    let sizes: &[usize] = if ground.quick { &[MANY] } else { &[MANY, MOST] };
    for ports in sizes {
        let name = |what: &str| format!("first packet of a flow among {ports} ports, {what}");
        let linear = name("beside a rule a tap");
        rows.measure(&linear, "us", beside_linear(ground, *ports, &linear))
            .await;
        for dispatch in Dispatch::ALL {
            let few = name(&format!("beside {FEW} (dispatch {dispatch})"));
            rows.measure(&few, "us", beside_few(ground, *ports, dispatch, &few))
                .await;
        }
        let both = name("dispatch nft beside iptables");
        rows.measure(&both, "us", beside_each_other(ground, *ports, &both))
            .await;
    }
}

/// Two ports of a network that are open.
struct Way {
    lab: Lab,
    wanted: DesiredNetwork,
    taps: [OwnedFd; 2],
    packets: u16,
}

impl Way {
    async fn make(ground: &Ground, ports: usize, dispatch: Dispatch) -> Outcome<Self> {
        let lab = Lab::dispatched(ground, dispatch).await?;
        let wanted = network(ports)?;
        lab.ensure(&wanted).await.during("making it")?;
        let open = async |at: usize| -> Outcome<OwnedFd> {
            match lab
                .net
                .open_nic(wanted.id, wanted.ports[at].id, NicKind::Tap)
                .await?
            {
                Nic::Tap { fd, .. } => Ok(fd),
                _ => Err(Fault::new("it is no tap")),
            }
        };
        let taps = [open(0).await?, open(ports / 2).await?];
        let packets = if ground.quick { PACKETS_QUICK } else { PACKETS };
        Ok(Self {
            lab,
            wanted,
            taps,
            packets,
        })
    }

    /// Microseconds a packet.
    fn sample(&self) -> Outcome<f64> {
        let (from, to) = (
            &self.wanted.ports[0],
            &self.wanted.ports[self.wanted.ports.len() / 2],
        );
        let space = space_of(&self.wanted);
        // Each begins a flow: none of the round before may be left.
        inside(&space, "conntrack", &["-F"], "")?;
        let begin = Instant::now();
        for n in 0..self.packets {
            let frame = frame((from.mac, from.address), (to.mac, to.address), FIRST_PORT + n);
            write(&self.taps[0], &frame).during("sending")?;
            self.arrives(FIRST_PORT + n)?;
        }
        Ok(begin.elapsed().as_secs_f64() * 1e6 / f64::from(self.packets))
    }

    /// Waits for the packet of a flow; others are passed over.
    fn arrives(&self, source: u16) -> Outcome<()> {
        let mut buffer = [0; 2_048];
        loop {
            let length = match read(&self.taps[1], &mut buffer) {
                Ok(length) => length,
                Err(Errno::EAGAIN) => {
                    let mut fds = [PollFd::new(self.taps[1].as_fd(), PollFlags::POLLIN)];
                    if poll(&mut fds, PollTimeout::from(ARRIVES_WITHIN)).during("waiting")? == 0 {
                        return Err(Fault::new("a packet did not arrive"));
                    }
                    continue;
                }
                Err(errno) => return Err(Fault::new(format!("receiving: {errno}"))),
            };
            let ports = VNET_HDR + 14 + 20;
            let is = |at: usize, port: u16| buffer[at..at + 2] == port.to_be_bytes();
            if length > ports + 4 && is(ports, source) && is(ports + 2, OPEN_PORT) {
                return Ok(());
            }
        }
    }

    /// The tree by one rule a tap, in the order of the ports.
    fn make_linear(&self) -> Outcome<()> {
        let space = space_of(&self.wanted);
        let saved = inside(&space, "iptables-save", &["-t", "filter"], "")?;
        let policy = saved
            .lines()
            .find_map(|line| {
                line.strip_prefix(':')?
                    .split(' ')
                    .next()
                    .filter(|c| c.starts_with("VBM-P-"))
            })
            .ok_or_else(|| Fault::new("no chain of a policy"))?;
        let root = names::DISPATCH_CHAIN;
        let rules: String = self
            .wanted
            .ports
            .iter()
            .map(|p| {
                format!(
                    "-A {root} -m physdev --physdev-out {} -g {policy}\n",
                    names::tap(p.id)
                )
            })
            .collect();
        let script = format!("*filter\n:{root} - [0:0]\n{rules}COMMIT\n");
        inside(&space, "iptables-restore", &["-n"], &script).map(drop)
    }
}

impl Drop for Way {
    fn drop(&mut self) {
        // The backend is asked to forget it by its own guard; the taps go with their descriptors.
        let _owner = &self.lab;
    }
}

async fn beside_linear(ground: &Ground, ports: usize, name: &str) -> Outcome<Row> {
    let ours = Way::make(ground, ports, Dispatch::Iptables).await?;
    let linear = Way::make(ground, ports, Dispatch::Iptables).await?;
    linear.make_linear().during("a rule a tap")?;
    let samples = duel(
        ground.rounds(),
        async |_| ours.sample(),
        async |_| linear.sample(),
    )
    .await?;
    Ok(Row::new(name, "us", samples.ours).against("one jump a tap", samples.peer))
}

async fn beside_few(ground: &Ground, ports: usize, dispatch: Dispatch, name: &str) -> Outcome<Row> {
    let many = Way::make(ground, ports, dispatch).await?;
    let few = Way::make(ground, FEW, dispatch).await?;
    let samples = duel(ground.rounds(), async |_| many.sample(), async |_| few.sample()).await?;
    Ok(Row::new(name, "us", samples.ours)
        .against(format!("the same with {FEW} ports"), samples.peer)
        .goal("<= 1.2x"))
}

async fn beside_each_other(ground: &Ground, ports: usize, name: &str) -> Outcome<Row> {
    let nft = Way::make(ground, ports, Dispatch::Nft).await?;
    let tree = Way::make(ground, ports, Dispatch::Iptables).await?;
    let samples = duel(ground.rounds(), async |_| nft.sample(), async |_| tree.sample()).await?;
    Ok(Row::new(name, "us", samples.ours).against("the tree of iptables", samples.peer))
}

/// A small UDP datagram in its frame.
fn frame(from: (Mac, Ipv4Addr), to: (Mac, Ipv4Addr), source: u16) -> Vec<u8> {
    const BODY: u16 = 18;
    let mut frame = vec![0; VNET_HDR];
    frame.extend(to.0.octets());
    frame.extend(from.0.octets());
    frame.extend([8, 0]);
    let at = frame.len();
    frame.extend([0x45, 0]);
    frame.extend((28 + BODY).to_be_bytes());
    frame.extend([0, 1, 0x40, 0, 64, 17, 0, 0]);
    frame.extend(from.1.octets());
    frame.extend(to.1.octets());
    let sum = checksum(&frame[at..]);
    frame[at + 10..at + 12].copy_from_slice(&sum.to_be_bytes());
    frame.extend(source.to_be_bytes());
    frame.extend(OPEN_PORT.to_be_bytes());
    frame.extend((8 + BODY).to_be_bytes());
    // No checksum, which IPv4 allows.
    frame.extend([0, 0]);
    frame.extend([0; BODY as usize]);
    frame
}

/// That of the header of IPv4 (RFC 1071).
fn checksum(header: &[u8]) -> u16 {
    let mut sum: u32 = header
        .chunks(2)
        .map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]])))
        .sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !u16::try_from(sum).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_header_with_its_checksum_sums_up_to_nothing() {
        let address = Ipv4Addr::new(10, 9, 1, 1);
        let frame = frame((Mac::local(1), address), (Mac::local(2), address), 20_000);
        let header = &frame[VNET_HDR + 14..VNET_HDR + 34];
        assert_eq!(checksum(header), 0);
        assert_eq!(frame.len(), VNET_HDR + 14 + 46);
    }
}
