//! Floating IPs: addresses of the world that are kept for VMs, whether or not one has them just now.
//!
//! ```text
//!   pool: 192.0.2.32-192.0.2.63     which ones may be picked
//!     |  create                     one is kept, under a name
//!     v
//!   Free <--detach, VM deleted-- Attached to a port      a port's own property says so: PortSpec::floating_ip
//!     |          --attach-->
//!     v  delete                     refused while it is attached
//! ```

use crate::{Error, FloatingIpId, Ipv4Range, Meta, error::invalid, limits};
use serde::{Deserialize, Serialize};
use std::net::Ipv4Addr;

/// A floating IP that is kept: its record in the store. Which port has it, if one has, is said by the port.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct FloatingIp {
    /// Id, name, generation.
    #[serde(flatten)]
    pub meta: Meta<FloatingIpId>,
    /// What is kept.
    pub spec: FloatingIpSpec,
}

/// What is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct FloatingIpSpec {
    /// The address. It does not change.
    #[cfg_attr(feature = "schema", schema(value_type = String))]
    pub address: Ipv4Addr,
}

/// The addresses from which a floating IP is picked where none is named.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct FloatingPool {
    /// In the order in which they are looked at; none, and each floating IP must be named.
    #[cfg_attr(feature = "schema", schema(value_type = Vec<String>, example = json!(["192.0.2.32-192.0.2.63"])))]
    pub ranges: Vec<Ipv4Range>,
}

impl FloatingPool {
    /// How many addresses it has; those of two ranges count twice.
    pub fn size(&self) -> u64 {
        let size = |r: &Ipv4Range| u64::from(u32::from(r.last()) - u32::from(r.first())) + 1;
        self.ranges.iter().map(size).sum()
    }

    /// Checks it alone: how many ranges it has, and addresses. `address` is asked about the ends of each range.
    ///
    /// # Errors
    /// Too many ranges or addresses, or an end that `address` refuses.
    pub fn check(&self, address: impl Fn(Ipv4Addr) -> Result<(), Error>) -> Result<(), Error> {
        let (ranges, size) = (self.ranges.len(), self.size());
        if ranges > limits::FLOATING_POOL_MAX_RANGES || size > limits::FLOATING_POOL_MAX_ADDRESSES {
            return Err(invalid(
                "the pool of floating IPs is too large",
                format!(
                    "it has {size} addresses in {ranges} ranges; {} in {} are the most",
                    limits::FLOATING_POOL_MAX_ADDRESSES,
                    limits::FLOATING_POOL_MAX_RANGES
                ),
                "name fewer: those that lead to your hosts",
            ));
        }
        for (nth, range) in self.ranges.iter().enumerate() {
            for end in [range.first(), range.last()] {
                address(end)
                    .map_err(|e| e.context(format!("ranges[{nth}]: {range} cannot be of the pool")))?;
            }
        }
        Ok(())
    }

    /// The first address that is not taken.
    pub fn pick(&self, taken: impl Fn(Ipv4Addr) -> bool) -> Option<Ipv4Addr> {
        let all = |r: &Ipv4Range| (u32::from(r.first())..=u32::from(r.last())).map(Ipv4Addr::from);
        self.ranges.iter().flat_map(all).find(|a| !taken(*a))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pool(ranges: &[&str]) -> FloatingPool {
        let ranges = ranges.iter().map(|r| r.parse().unwrap()).collect();
        FloatingPool { ranges }
    }

    #[test]
    fn the_first_that_is_free_is_picked_and_none_of_a_full_pool() {
        let pool = pool(&["192.0.2.32-192.0.2.33", "198.51.100.7"]);
        assert_eq!(pool.size(), 3);
        let mut taken = Vec::new();
        while let Some(address) = pool.pick(|a| taken.contains(&a)) {
            taken.push(address);
        }
        let texts: Vec<String> = taken.iter().map(ToString::to_string).collect();
        assert_eq!(texts, ["192.0.2.32", "192.0.2.33", "198.51.100.7"]);
        assert_eq!(FloatingPool::default().pick(|_| false), None);
    }

    #[test]
    fn a_pool_that_is_too_large_or_has_an_end_that_nobody_can_have_is_refused() {
        let fine = |_| Ok(());
        assert!(pool(&["10.0.0.0-10.0.255.255"]).check(fine).is_ok());
        for bad in [&["10.0.0.0-10.1.0.0"][..], &["192.0.2.1"; 17][..]] {
            assert!(pool(bad).check(fine).unwrap_err().what().contains("too large"));
        }
        let refused = pool(&["192.0.2.1", "192.0.2.9-192.0.2.10"])
            .check(|a| match a.octets()[3] {
                10 => Err(invalid("no", "it is ten", "")),
                _ => Ok(()),
            })
            .unwrap_err();
        assert!(refused.to_string().contains("ranges[1]"), "{refused}");
    }
}
