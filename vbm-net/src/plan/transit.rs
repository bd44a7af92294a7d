//! Which /31 joins a network's namespace to the host.
//!
//! The choice is a hash of the network's id, so it is the same after a restart; where the pair is taken, the next free one.
//! The default pool is link-local: [`vbm_core::NetworkSpec`] refuses link-local networks, so the transit never overlaps
//! the addresses of VMs, and the pool leaves out 169.254.169.254, the metadata address of clouds.

use super::Transit;
use ipnet::Ipv4Net;
use std::net::Ipv4Addr;
use vbm_core::NetworkId;

/// The default pool: 8192 pairs.
pub const DEFAULT_POOL: Ipv4Net = Ipv4Net::new_assert(Ipv4Addr::new(169, 254, 64, 0), 18);

/// Chooses a pair that overlaps none of these; `None` when all do.
pub fn choose(pool: Ipv4Net, network: NetworkId, taken: &[Ipv4Net]) -> Option<Transit> {
    let pairs = 1u32.checked_shl(31u32.checked_sub(u32::from(pool.prefix_len()))?)?;
    let start = crate::names::fnv1a(&network.to_string()) % pairs;
    let base = u32::from(pool.network());
    (0..pairs)
        .map(|step| (start + step) % pairs)
        .filter_map(|pair| Ipv4Net::new((base + 2 * pair).into(), 31).ok())
        .find(|net| !taken.iter().any(|t| overlaps(*t, *net)))
        .and_then(Transit::new)
}

/// Whether two networks share an address.
pub fn overlaps(a: Ipv4Net, b: Ipv4Net) -> bool {
    a.contains(&b.network()) || b.contains(&a.network())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use uuid::Uuid;

    proptest! {
        #[test]
        fn networks_that_choose_in_turn_never_share_a_pair(ids in prop::collection::btree_set(any::<u128>(), 1..16)) {
            let pool: Ipv4Net = "10.9.0.0/27".parse().unwrap();
            let mut taken = vec![];
            for id in &ids {
                let transit = choose(pool, NetworkId::from_uuid(Uuid::from_u128(*id)), &taken).unwrap();
                prop_assert!(pool.contains(&transit.net()));
                prop_assert!(taken.iter().all(|t| !overlaps(*t, transit.net())));
                prop_assert_eq!(u32::from(transit.host()) + 1, u32::from(transit.inner()));
                taken.push(transit.net());
            }
        }
    }

    #[test]
    fn a_full_pool_gives_none_and_the_choice_is_stable() {
        let id = NetworkId::from_uuid(Uuid::from_u128(5));
        assert_eq!(choose(DEFAULT_POOL, id, &[]), choose(DEFAULT_POOL, id, &[]));
        assert_eq!(choose(DEFAULT_POOL, id, &[DEFAULT_POOL]), None);
        assert!(choose("10.0.0.0/31".parse().unwrap(), id, &[]).is_some());
        assert_eq!(choose("10.0.0.0/32".parse().unwrap(), id, &[]), None);
    }
}
