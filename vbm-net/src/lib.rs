//! A network on a host is one namespace: bridge, NICs, DHCP, NAT, port forwards, security groups, anti-spoofing, and a way to
//! the same network on other hosts.
//!
//! ```text
//!   host namespace                      namespace vbm-<net>
//!   --------------                      -------------------
//!   eth0                                  guard (nft bridge): MAC, ARP, ND, IP source; no foreign DHCP, no router
//!    |  MASQUERADE, chains VBM-<owner>    |
//!   vbu<net> ==== veth, a /31 ==== up0 --- SNAT/DNAT --- br0 (gateway)
//!                                                         |        |
//!   vbp<port> ==== veth, for some VMs ============= tap<port>   DHCP servers, router's voice
//!                                                    fd -> VM    (whole frames)
//!   underlay address, UDP 4789 ............ vx0 --- br0
//! ```
//!
//! What is wanted of a network is one value, [`DesiredNetwork`], given complete to [`NetworkBackend::ensure`], which
//! makes the kernel hold it, reads it back, and may be called at any time over any half-made state. The CIDRs of two networks may be the
//! same: nothing is shared but the transit, from which neither the host nor another network can be reached.
//!
//! | module | holds |
//! |---|---|
//! | [`model`] | what is wanted, what is seen, [`Validated`] |
//! | [`ipam`] | which addresses are taken: pure |
//! | [`plan`] | rules as text, compared with what stands: pure |
//! | [`dhcp`] | the server; its decisions are pure |
//! | [`dhcp6`], [`ra`] | the same for IPv6: DHCPv6, router advertisements |
//! | [`check`] | which paths are tried, and may be there: pure |
//! | [`limits`] | bandwidth of ports, counters: pure |
//! | [`dns`] | the names of the VMs, and the way to the world's; what is answered is pure |
//! | [`metadata`] | what a VM is told of itself over HTTP; what is answered is pure |
//! | [`names`] | every name that is given to something on a host |
//! | [`doctor`] | what of ours is on this host, whoever made it |
//! | [`conformance`] | what every backend must do |
//!
//! # What a host sees changed
//!
//! `net.ipv4.ip_forward` is switched on in the host's namespace by the first NAT network, and stays on: others may rely on it. Each
//! transit link gets `route_localnet`, so that a forward is reached from the host's loopback. Rules stand in chains of our
//! own, hooked in first. A VM reaches the world by NAT, but none of the host's own addresses and no other network, unless
//! a forward leads there.
//!
//! # Networks that span hosts
//!
//! The same network, with the same gateway address and MAC, is on each host, and a VXLAN joins them. Nothing is learned from the
//! wire: [`DesiredOverlay`] names every port of the other hosts, and frames go to the right host or nowhere. ARP is answered
//! where it is asked, DHCP where the VM is; the world is reached through the VM's own host. Groups are applied where the
//! packet arrives. VXLAN neither encrypts nor proves who speaks: the network among the hosts must be trusted, and their
//! firewalls must let UDP 4789 through. IPv6 crosses to the ports that are named, as IPv4 does; into the world it goes from routed
//! networks alone. A host lets go on
//! only flows that it saw begin; those of a VM that moves are told to its new host ([`NetworkBackend::flows_of`], [`NetworkBackend::take_flows`]).
//!
//! # Alone
//!
//! A network with DHCP, and the NIC of a VM, without anything else of VBM. It needs root; the twin [`SimNetwork`] does not.
//!
//! ```no_run
//! use std::sync::Arc;
//! use vbm_core::{Clock, NetworkMode, NetworkSpec, Timestamp, network::parse_cidr};
//! use vbm_net::{DesiredNetwork, DesiredPort, HostConfig, HostNetwork, NetworkBackend, Nic, NicKind};
//!
//! struct SystemClock;
//! impl Clock for SystemClock {
//!     fn now(&self) -> Timestamp {
//!         let since = std::time::SystemTime::UNIX_EPOCH.elapsed().unwrap_or_default();
//!         Timestamp::from_micros(i64::try_from(since.as_micros()).unwrap_or(i64::MAX))
//!     }
//! }
//!
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! let net = HostNetwork::open(HostConfig::new("example", "/var/lib/example", Arc::new(SystemClock))).await?;
//! let wanted = DesiredNetwork {
//!     id: "0190b6f2-4c1e-7cc3-a7a4-0d1f6c2b9e11".parse()?,
//!     name: "lab".parse()?,
//!     spec: NetworkSpec::new(NetworkMode::Nat, parse_cidr("10.0.0.0/24")?)?,
//!     ports: vec![DesiredPort {
//!         id: "0190b6f2-4c1e-7cc3-a7a4-0d1f6c2b9e12".parse()?,
//!         mac: "52:54:00:00:00:01".parse()?,
//!         address: "10.0.0.2".parse()?,
//!         address6: None,
//!         hostname: "web1".parse()?,
//!         metadata_route: true,
//!         rules: vec!["tcp/80".parse()?],
//!         policy: Default::default(),
//!     }],
//!     forwards: vec![],
//!     overlay: None,
//!     groups: vec![],
//! };
//! let mut events = net.events();
//! net.ensure(wanted.clone()).await?;
//! if let Nic::Tap { fd, vnet_hdr } = net.open_nic(wanted.id, wanted.ports[0].id, NicKind::Tap).await? {
//!     // Hand `fd` to a VM, then wait until it has its address.
//!     println!("{fd:?} {vnet_hdr} {:?}", events.recv().await?);
//! }
//! net.remove(wanted.id).await?;
//! net.shutdown().await;
//! # Ok(())
//! # }
//! ```

pub mod backend;
pub mod check;
pub mod conformance;
pub mod dhcp;
pub mod dhcp6;
pub mod dns;
pub mod doctor;
mod door;
mod error;
#[cfg(test)]
mod fuzz;
mod host;
pub mod ipam;
pub mod limits;
pub mod metadata;
pub mod model;
pub mod names;
pub mod plan;
pub mod ra;
mod rate;
mod service;
mod share;
mod sim;
mod station;

pub use backend::NetworkBackend;
pub use check::PathSeen;
pub use error::{NetError, Result};
#[doc(hidden)]
pub use host::StepHook;
pub use host::{HostConfig, HostNamespace, HostNetwork};
pub use limits::counters::{NetworkCounters, PortCounters, RuleCounters, Traffic};
pub use model::{
    DesiredForward, DesiredGroup, DesiredNetwork, DesiredOverlay, DesiredPort, LeaseSeen, LeaseSeen6,
    NetEvent, NetworkSeen, Nic, NicKind, PortPolicy, PortSeen, RemotePort, ServicesSeen, Validated,
    check_pairs, gateway_mac,
};
pub use plan::carry::{FlowProtocol, PortFlow};
pub use plan::dispatch::Dispatch;
pub use sim::SimNetwork;
