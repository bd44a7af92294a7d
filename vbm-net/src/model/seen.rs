//! What is seen of a network, its ports and its NICs, and what happens on it.

use ipnet::Ipv4Net;
use std::{
    net::{Ipv4Addr, Ipv6Addr},
    os::fd::OwnedFd,
};
use vbm_core::{Mac, NetworkId, PortId, Timestamp};

/// What is seen of a network on this host.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct NetworkSeen {
    /// Its id.
    pub id: NetworkId,
    /// The name of its namespace; `ip netns exec` takes it.
    pub namespace: String,
    /// The gateway's MAC.
    pub gateway_mac: Mac,
    /// The two addresses between host and namespace, host first; `None` when isolated.
    pub transit: Option<Ipv4Net>,
    /// Whether all that was wanted is in the kernel and was read back, and DHCP is served.
    pub ready: bool,
    /// The MTU that its VMs are told, in bytes: that of its spec, or what fits between the hosts if that is less. 0 before the first
    /// `ensure` of this process.
    pub mtu: u16,
    /// Its ports.
    pub ports: Vec<PortSeen>,
    /// What its services have done.
    pub services: ServicesSeen,
    /// What this call had to change, one line each; empty when all was as wanted. Empty from `inventory`.
    pub changed: Vec<String>,
}

/// What the services of a network have done since this process began to serve them; `None`: not served.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct ServicesSeen {
    /// DNS.
    pub dns: Option<crate::dns::DnsSeen>,
    /// Metadata.
    pub metadata: Option<crate::metadata::MetadataSeen>,
}

/// What is seen of a port on this host.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct PortSeen {
    /// Its id.
    pub id: PortId,
    /// The name of its tap, whether or not it is open.
    pub tap: String,
    /// Whether guard and rules were read back from the kernel.
    pub guarded: bool,
    /// Whether the NIC exists: it was opened and not closed.
    pub open: bool,
    /// Whether it was said what its VM is told ([`crate::NetworkBackend::describe`]) since this process made the network. Where it was
    /// not, the VM is told to ask again: say it.
    pub described: bool,
    /// What the guest holds by DHCP, as far as this process has seen it.
    pub lease: Option<LeaseSeen>,
    /// What the guest holds by DHCPv6, as far as this process has seen it.
    pub lease6: Option<LeaseSeen6>,
}

/// A lease that a guest took.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct LeaseSeen {
    /// The address.
    pub address: Ipv4Addr,
    /// When it was last taken or renewed.
    pub since: Timestamp,
    /// When it ends.
    pub until: Timestamp,
}

/// A lease of an IPv6 address that a guest took.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct LeaseSeen6 {
    /// The address.
    pub address: Ipv6Addr,
    /// When it was last taken or renewed.
    pub since: Timestamp,
    /// When it ends.
    pub until: Timestamp,
}

/// In which form a NIC is wanted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum NicKind {
    /// A descriptor of a tap, which a hypervisor inherits.
    #[default]
    Tap,
    /// An interface in the host's own namespace, to which a hypervisor binds by name.
    Interface,
}

/// The host's end of a NIC.
#[derive(Debug)]
#[non_exhaustive]
pub enum Nic {
    /// An open tap. Closing the last copy of the descriptor removes the interface.
    Tap {
        /// The descriptor: one frame a read or write.
        fd: OwnedFd,
        /// Whether each frame is preceded by a `virtio_net_hdr` of ten bytes (`IFF_VNET_HDR`).
        vnet_hdr: bool,
    },
    /// An interface in the host's own namespace; its other end is the port. It stays until the NIC is closed. Frames
    /// that leave it bear whole checksums: transmit offload is off at both ends.
    Interface {
        /// Its name.
        name: String,
    },
}

/// What happened on a network.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum NetEvent {
    /// A guest took or renewed its address.
    PortLeased {
        /// The network.
        network: NetworkId,
        /// The port.
        port: PortId,
        /// The address.
        address: Ipv4Addr,
        /// When it was taken.
        since: Timestamp,
        /// When the lease ends.
        until: Timestamp,
    },
    /// A guest gave its address back. The address stays the port's.
    PortReleased {
        /// The network.
        network: NetworkId,
        /// The port.
        port: PortId,
        /// The address.
        address: Ipv4Addr,
    },
    /// A guest says that its address is in use by another: something answers for it that should not.
    PortDeclined {
        /// The network.
        network: NetworkId,
        /// The port.
        port: PortId,
        /// The address.
        address: Ipv4Addr,
    },
    /// A guest took or renewed its IPv6 address by DHCPv6.
    PortLeased6 {
        /// The network.
        network: NetworkId,
        /// The port.
        port: PortId,
        /// The address.
        address: Ipv6Addr,
        /// When it was taken.
        since: Timestamp,
        /// When the lease ends.
        until: Timestamp,
    },
    /// A guest gave its IPv6 address back. The address stays the port's.
    PortReleased6 {
        /// The network.
        network: NetworkId,
        /// The port.
        port: PortId,
        /// The address.
        address: Ipv6Addr,
    },
    /// A guest says that its IPv6 address is in use by another: something answers for it that should not.
    PortDeclined6 {
        /// The network.
        network: NetworkId,
        /// The port.
        port: PortId,
        /// The address.
        address: Ipv6Addr,
    },
    /// A client that is no port took or renewed an address of the network's pool.
    ClientLeased {
        /// The network.
        network: NetworkId,
        /// The client's MAC.
        mac: Mac,
        /// The address.
        address: Ipv4Addr,
        /// When the lease ends.
        until: Timestamp,
    },
    /// A client gave an address of the pool back.
    ClientReleased {
        /// The network.
        network: NetworkId,
        /// The client's MAC.
        mac: Mac,
        /// The address.
        address: Ipv4Addr,
    },
    /// A client says that an address of the pool is in use by another. It rests.
    ClientDeclined {
        /// The network.
        network: NetworkId,
        /// The client's MAC.
        mac: Mac,
        /// The address.
        address: Ipv4Addr,
    },
}
