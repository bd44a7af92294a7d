//! Who gets which address of a network, and how many are left.

use serde::{Deserialize, Serialize};
use std::net::Ipv6Addr;
use utoipa::ToSchema;
use vbm_core::{Generation, Ipv4Range, Ipv6Range, Reservation, Reservation6};

/// IPv6 beside IPv4 on a network that is to be made. What is left out is as usual.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CreateIpv6 {
    /// Its addresses, such as `fd00:1::/64`: 64 to 126 bits of prefix.
    pub cidr: String,
    /// The gateway's address; the first behind the subnet's own when absent.
    #[serde(default)]
    #[schema(value_type = Option<String>)]
    pub gateway: Option<Ipv6Addr>,
    /// Whether VMs make their addresses themselves, of a prefix of 64 bits and their MAC, instead of asking for them.
    #[serde(default)]
    pub stateless: bool,
    /// DNS servers that VMs are told of.
    #[serde(default)]
    #[schema(value_type = Vec<String>)]
    pub dns: Vec<Ipv6Addr>,
    /// What is given to ports nobody pinned; all that is usable when empty.
    #[serde(default)]
    pub pools: Vec<Ipv6Range>,
    /// What is never given.
    #[serde(default)]
    pub excluded: Vec<Ipv6Range>,
    /// What is kept for some.
    #[serde(default)]
    pub reservations: Vec<Reservation6>,
}

/// Changes who gets which address of a network from now on. What is absent stays; what is given replaces all that was.
/// Ports keep their addresses.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct UpdateNetwork {
    /// The IPv4 ranges that are given to ports nobody pinned; one at least.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pools: Option<Vec<Ipv4Range>>,
    /// What is never given. Refused when a port has one of them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub excluded: Option<Vec<Ipv4Range>>,
    /// What is kept for some.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reservations: Option<Vec<Reservation>>,
    /// How long addresses rest that are given back from now on, in seconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub quarantine_seconds: Option<u32>,
    /// The same for IPv6, on a network that was made with it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ipv6: Option<UpdateIpv6>,
    /// The generation that the network was read at; refused as stale when it has changed since.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub generation: Option<Generation>,
}

/// The IPv6 part of [`UpdateNetwork`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct UpdateIpv6 {
    /// The ranges that are given to ports nobody pinned; all that is usable when empty.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pools: Option<Vec<Ipv6Range>>,
    /// What is never given. Refused when a port has one of them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub excluded: Option<Vec<Ipv6Range>>,
    /// What is kept for some.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reservations: Option<Vec<Reservation6>>,
}

/// How much of a network's addresses is used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct NetworkUsage {
    /// Of IPv4.
    pub ipv4: AddressUsage,
    /// Of IPv6, where the network has it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ipv6: Option<AddressUsage>,
}

/// How much of one family's addresses is used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct AddressUsage {
    /// The addresses of the pools.
    pub pool: u64,
    /// Those of them that ports have.
    pub taken: u64,
    /// Those of them that rest after they were given back.
    pub resting: u64,
    /// Those of them that can be given now.
    pub free: u64,
    /// The addresses that ports have outside of the pools: pinned or reserved ones.
    pub outside: u64,
}

impl From<vbm_net::ipam::Utilisation> for AddressUsage {
    fn from(used: vbm_net::ipam::Utilisation) -> Self {
        // Subnets of 64 bits of prefix and more have fewer.
        let number = |n: u128| u64::try_from(n).unwrap_or(u64::MAX);
        Self {
            pool: number(used.pool),
            taken: number(used.taken),
            resting: number(used.resting),
            free: number(used.free),
            outside: number(used.outside),
        }
    }
}
