//! Requests, written as sentences: what is required stands in front, the rest follows.

use crate::api::{
    CreateForward, CreateNetwork, LaunchRequest, NicRequest, default_memory_mib, default_vcpus,
};
use std::{
    collections::BTreeMap,
    net::{Ipv4Addr, Ipv6Addr},
};
use vbm_core::{DriverKind, Mac, Name, NetworkMode, Protocol};

impl LaunchRequest {
    /// A VM of this image (a name or an id) with the usual CPUs and memory, without network.
    #[must_use]
    pub fn new(image: impl Into<String>) -> Self {
        Self {
            image: image.into(),
            name: None,
            vcpus: default_vcpus(),
            memory_mib: default_memory_mib(),
            disk_mib: None,
            nics: Vec::new(),
            driver: None,
            node: None,
            stopped: false,
            labels: BTreeMap::new(),
            guest: vbm_core::GuestData::default(),
        }
    }

    /// Its name.
    #[must_use]
    pub fn name(mut self, name: Name) -> Self {
        self.name = Some(name);
        self
    }

    /// What the guest is given to read.
    #[must_use]
    pub fn guest(mut self, guest: vbm_core::GuestData) -> Self {
        self.guest = guest;
        self
    }

    /// Its virtual CPUs.
    #[must_use]
    pub const fn vcpus(mut self, vcpus: u16) -> Self {
        self.vcpus = vcpus;
        self
    }

    /// Its memory in MiB.
    #[must_use]
    pub const fn memory_mib(mut self, mib: u32) -> Self {
        self.memory_mib = mib;
        self
    }

    /// One more NIC.
    #[must_use]
    pub fn nic(mut self, nic: NicRequest) -> Self {
        self.nics.push(nic);
        self
    }

    /// The hypervisor that runs it.
    #[must_use]
    pub const fn driver(mut self, driver: DriverKind) -> Self {
        self.driver = Some(driver);
        self
    }
}

impl NicRequest {
    /// A NIC on this network (a name or an id), its address and MAC left to VBM, closed on its way in.
    #[must_use]
    pub fn on(network: impl Into<String>) -> Self {
        Self {
            network: network.into(),
            address: None,
            address6: None,
            mac: None,
            groups: Vec::new(),
        }
    }

    /// Its address.
    #[must_use]
    pub const fn address(mut self, address: Ipv4Addr) -> Self {
        self.address = Some(address);
        self
    }

    /// Its IPv6 address.
    #[must_use]
    pub const fn address6(mut self, address: Ipv6Addr) -> Self {
        self.address6 = Some(address);
        self
    }

    /// Its MAC.
    #[must_use]
    pub const fn mac(mut self, mac: Mac) -> Self {
        self.mac = Some(mac);
        self
    }

    /// One more security group: a name or an id.
    #[must_use]
    pub fn group(mut self, group: impl Into<String>) -> Self {
        self.groups.push(group.into());
        self
    }
}

impl CreateNetwork {
    /// A NAT network with these addresses, such as `10.0.0.0/24`.
    #[must_use]
    pub fn new(name: Name, cidr: impl Into<String>) -> Self {
        Self {
            name,
            cidr: cidr.into(),
            mode: NetworkMode::default(),
            uplink: None,
            gateway: None,
            pool_first: None,
            pool_last: None,
            pools: Vec::new(),
            excluded: Vec::new(),
            reservations: Vec::new(),
            quarantine_seconds: None,
            ipv6: None,
            dns: Vec::new(),
            domain: None,
            mtu: None,
            lease_seconds: None,
            dhcp: vbm_core::DhcpSpec::default(),
            serve_dns: None,
            dns_upstreams: Vec::new(),
            metadata: None,
            serve_dhcp: None,
        }
    }
}

impl CreateForward {
    /// TCP from a port of the host, on each of its addresses, to a port of a VM (a name or an id).
    #[must_use]
    pub fn new(vm: impl Into<String>, listen_port: u16, target_port: u16) -> Self {
        Self {
            name: None,
            protocol: Protocol::Tcp,
            listen_address: None,
            listen_port,
            count: 1,
            vm: vm.into(),
            network: None,
            target_port,
        }
    }
}
