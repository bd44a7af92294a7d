//! The plan of a subnet: which addresses the pool gives, which are reserved, which are never given. It is worked out from
//! the network's spec each time and never stored, so it cannot disagree with it.
//!
//! ```text
//!   pools                 ------------------        ----------
//!   minus  never given          ##                       #        the subnet's own, services, excluded
//!   minus  reserved                   r     r
//!   minus  withheld                               ###           what other ports may use beside their own
//!   =  stretches          ------  --- ------        ----- ----    what `allocate` looks at, in order
//! ```

use super::Address;
use std::{marker::PhantomData, net::Ipv4Addr, net::Ipv6Addr, time::Duration};
use vbm_core::{Error, ErrorKind, Mac, NetworkSpec, addressing::own_addresses6};

/// What a [`Plan`] is made of.
#[derive(Clone, Debug)]
pub struct PlanSpec<A> {
    /// The subnet's first address.
    pub network: A,
    /// The length of its prefix in bits.
    pub prefix: u8,
    /// Addresses of the network itself: its gateway, its DHCP server, its other services.
    pub services: Vec<A>,
    /// First and last address of each range that is given to who asks for none; all that is usable when empty.
    pub pools: Vec<(A, A)>,
    /// Ranges that are never given.
    pub excluded: Vec<(A, A)>,
    /// Addresses that the pool does not give, and whose they are.
    pub reserved: Vec<(A, Option<Mac>)>,
    /// How long an address rests after it was given back.
    pub quarantine: Duration,
}

/// Why an address is never given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Never {
    /// It is the subnet's own: its first address, its broadcast, its anycast addresses.
    Own,
    /// The network's gateway or another of its services has it.
    Service,
    /// It is excluded.
    Excluded,
}

/// Which addresses of a subnet are given to whom.
#[derive(Clone, Debug)]
pub struct Plan<A> {
    base: u128,
    /// The offset of the subnet's last address.
    last: u128,
    prefix: u8,
    never: Vec<(u128, u128, Never)>,
    reserved: Vec<(u128, Option<Mac>)>,
    withheld: Vec<(u128, u128)>,
    /// Ascending, disjoint: the pools without what is never given and what is reserved.
    stretches: Vec<(u128, u128)>,
    capacity: u128,
    quarantine: Duration,
    family: PhantomData<A>,
}

impl Plan<Ipv4Addr> {
    /// The IPv4 plan of a network. DNS servers inside it that are not its gateway count as reserved: somebody may pin them.
    ///
    /// # Errors
    /// A spec that [`NetworkSpec::check`] refuses, or a pool of which nothing is left.
    pub fn v4(spec: &NetworkSpec) -> Result<Self, Error> {
        spec.check()?;
        let servers = spec.dns.iter().filter(|a| spec.is_port_address(**a));
        let reserved = spec.reservations.iter().map(|r| (r.address, r.mac));
        Self::new(PlanSpec {
            network: spec.cidr.network(),
            prefix: spec.cidr.prefix_len(),
            services: vec![spec.gateway],
            pools: spec.pools().map(|r| (r.first(), r.last())).collect(),
            excluded: spec.excluded.iter().map(|r| (r.first(), r.last())).collect(),
            reserved: reserved.chain(servers.map(|a| (*a, None))).collect(),
            quarantine: Duration::from_secs(spec.quarantine_seconds.into()),
        })
    }
}

impl Plan<Ipv6Addr> {
    /// The IPv6 plan of a network; `None` where it has no IPv6.
    ///
    /// # Errors
    /// A spec that [`NetworkSpec::check`] refuses, or a pool of which nothing is left.
    pub fn v6(spec: &NetworkSpec) -> Result<Option<Self>, Error> {
        spec.check()?;
        let Some(ipv6) = &spec.ipv6 else { return Ok(None) };
        Self::new(PlanSpec {
            network: ipv6.cidr.network(),
            prefix: ipv6.cidr.prefix_len(),
            services: vec![ipv6.gateway],
            pools: ipv6.pools.iter().map(|r| (r.first(), r.last())).collect(),
            excluded: ipv6.excluded.iter().map(|r| (r.first(), r.last())).collect(),
            reserved: ipv6.reservations.iter().map(|r| (r.address, r.mac)).collect(),
            quarantine: Duration::from_secs(spec.quarantine_seconds.into()),
        })
        .map(Some)
    }
}

impl<A: Address> Plan<A> {
    /// Works a plan out. An IPv4 subnet of up to 30 bits keeps its first and last address for itself; in a /31 (RFC 3021) and a /32 all
    /// are usable. An IPv6 subnet of up to 126 bits keeps its first address and its anycast addresses; a /127 (RFC 6164) and a /128 none.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidInput`]: the prefix does not fit the address, a range stands outside or the wrong way round, or
    /// nothing is left of the pools.
    pub fn new(spec: PlanSpec<A>) -> Result<Self, Error> {
        let base = spec.network.to_number();
        let host_bits = A::BITS.checked_sub(spec.prefix).filter(|bits| *bits < 128);
        let last = host_bits.map(|bits| (1_u128 << bits) - 1);
        let Some(last) = last.filter(|last| base & last == 0) else {
            return Err(invalid(
                format!("{}/{} is no subnet", spec.network, spec.prefix),
                "its prefix does not fit, or bits are set behind it",
                "write it as 10.0.0.0/24 or fd00:1::/64",
            ));
        };
        let offset = |a: A| a.to_number().checked_sub(base).filter(|o| *o <= last);
        let range = |field: &str, (first, end): (A, A)| match (offset(first), offset(end)) {
            (Some(a), Some(b)) if a <= b => Ok((a, b)),
            _ => Err(invalid(
                format!("{field}: {first}-{end} does not fit"),
                format!(
                    "it is not inside {}/{}, or its first address stands after its last",
                    spec.network, spec.prefix
                ),
                "choose a range inside",
            )),
        };
        let mut never = own::<A>(base, last, spec.prefix);
        never.extend(
            spec.services
                .iter()
                .filter_map(|a| offset(*a))
                .map(|o| (o, o, Never::Service)),
        );
        for excluded in &spec.excluded {
            let (a, b) = range("excluded", *excluded)?;
            never.push((a, b, Never::Excluded));
        }
        let mut reserved: Vec<_> = spec
            .reserved
            .iter()
            .filter_map(|(a, mac)| Some((offset(*a)?, *mac)))
            .collect();
        // One with a MAC goes before one without.
        reserved.sort_by_key(|(o, mac)| (*o, mac.is_none()));
        reserved.dedup_by_key(|(o, _)| *o);
        let mut pools = match &spec.pools[..] {
            [] => vec![(0, last)],
            pools => pools
                .iter()
                .map(|p| range("pools", *p))
                .collect::<Result<Vec<_>, _>>()?,
        };
        pools.sort_unstable();
        let holes = never
            .iter()
            .map(|(a, b, _)| (*a, *b))
            .chain(reserved.iter().map(|(o, _)| (*o, *o)));
        let stretches = without(&pools, holes.collect());
        if stretches.is_empty() {
            return Err(invalid(
                "pools: no address is left in them",
                "all of them are excluded, reserved, or the network's own",
                "make the pools larger, or exclude and reserve less",
            ));
        }
        Ok(Self {
            base,
            last,
            prefix: spec.prefix,
            never,
            reserved,
            withheld: Vec::new(),
            capacity: stretches.iter().map(|(a, b)| b - a + 1).sum(),
            stretches,
            quarantine: spec.quarantine,
            family: PhantomData,
        })
    }

    /// The same plan, but nobody is given these ranges, by chance or by name: first and last address of each. For what changes with
    /// the ports, such as the addresses that some of them may use beside their own. What of them is outside of the subnet is
    /// passed over; an empty pool is no fault.
    #[must_use]
    pub fn withholding(mut self, ranges: &[(A, A)]) -> Self {
        let end = self.base + self.last;
        let clipped = |(first, last): &(A, A)| {
            let (first, last) = (first.to_number().max(self.base), last.to_number().min(end));
            (first <= last).then(|| (first - self.base, last - self.base))
        };
        self.withheld = ranges.iter().filter_map(clipped).collect();
        self.stretches = without(&self.stretches, self.withheld.clone());
        self.capacity = self.stretches.iter().map(|(a, b)| b - a + 1).sum();
        self
    }

    /// The subnet, as text.
    pub fn subnet(&self) -> String {
        format!("{}/{}", A::from_number(self.base), self.prefix)
    }

    /// How many addresses the pool has, taken or not.
    pub const fn capacity(&self) -> u128 {
        self.capacity
    }

    /// The address that is reserved for a MAC.
    pub fn reserved_for(&self, mac: Mac) -> Option<A> {
        let found = self.reserved.iter().find(|(_, m)| *m == Some(mac));
        found.map(|(offset, _)| self.address(*offset))
    }

    /// Whether an address is reserved, and for which MAC.
    pub fn reservation(&self, address: A) -> Option<Option<Mac>> {
        self.reservation_at(self.offset(address)?)
    }

    /// Why an address is never given; `None` when it may be. An address outside is never given either: see [`Self::contains`].
    pub fn never(&self, address: A) -> Option<Never> {
        self.never_at(self.offset(address)?)
    }

    /// Whether an address is one of the subnet's.
    pub fn contains(&self, address: A) -> bool {
        self.offset(address).is_some()
    }

    pub(super) fn offset(&self, address: A) -> Option<u128> {
        address
            .to_number()
            .checked_sub(self.base)
            .filter(|o| *o <= self.last)
    }
    pub(super) fn address(&self, offset: u128) -> A {
        A::from_number(self.base + offset)
    }
    pub(super) const fn last_offset(&self) -> u128 {
        self.last
    }
    pub(super) const fn quarantine(&self) -> Duration {
        self.quarantine
    }
    pub(super) fn stretches(&self) -> &[(u128, u128)] {
        &self.stretches
    }
    pub(super) fn never_ranges(&self) -> &[(u128, u128, Never)] {
        &self.never
    }
    pub(super) fn never_at(&self, offset: u128) -> Option<Never> {
        let mut reasons = self.never.iter();
        reasons
            .find(|(a, b, _)| (a..=b).contains(&&offset))
            .map(|(_, _, why)| *why)
    }
    pub(super) fn is_withheld(&self, offset: u128) -> bool {
        self.withheld.iter().any(|(a, b)| (a..=b).contains(&&offset))
    }
    pub(super) fn reservation_at(&self, offset: u128) -> Option<Option<Mac>> {
        let at = self.reserved.binary_search_by_key(&offset, |(o, _)| *o).ok()?;
        Some(self.reserved[at].1)
    }
    /// Whether the pool gives an address.
    pub(super) fn in_pool(&self, offset: u128) -> bool {
        let at = self.stretches.partition_point(|(_, end)| *end < offset);
        self.stretches.get(at).is_some_and(|(first, _)| *first <= offset)
    }
}

/// What a subnet keeps for itself.
fn own<A: Address>(base: u128, last: u128, prefix: u8) -> Vec<(u128, u128, Never)> {
    if last <= 1 {
        return Vec::new();
    }
    if A::BITS == <Ipv4Addr as Address>::BITS {
        return vec![(0, 0, Never::Own), (last, last, Never::Own)];
    }
    let cidr = ipnet::Ipv6Net::new(base.into(), prefix).ok();
    let ranges = cidr.map(own_addresses6).unwrap_or_default();
    let offsets = |r: vbm_core::Ipv6Range| {
        (
            u128::from(r.first()) - base,
            u128::from(r.last()) - base,
            Never::Own,
        )
    };
    ranges.into_iter().map(offsets).collect()
}

/// The pools, in ascending order, without the holes.
fn without(pools: &[(u128, u128)], mut holes: Vec<(u128, u128)>) -> Vec<(u128, u128)> {
    holes.sort_unstable();
    let mut left: Vec<(u128, u128)> = Vec::new();
    // What is behind this was given to a stretch: pools that overlap count once.
    let mut done: Option<u128> = None;
    for (first, end) in pools {
        let mut at = done.map_or(*first, |d| (*first).max(d + 1));
        for (a, b) in &holes {
            if *b < at {
                continue;
            }
            if *a > *end {
                break;
            }
            if *a > at {
                left.push((at, a - 1));
            }
            at = b + 1;
        }
        if at <= *end {
            left.push((at, *end));
        }
        done = Some(done.map_or(*end, |d| d.max(*end)));
    }
    left
}

fn invalid(what: impl Into<String>, why: impl Into<String>, fix: &str) -> Error {
    Error::new(ErrorKind::InvalidInput, what, why, fix)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn plain<A: Address>(network: A, prefix: u8) -> PlanSpec<A> {
        PlanSpec {
            network,
            prefix,
            services: Vec::new(),
            pools: Vec::new(),
            excluded: Vec::new(),
            reserved: Vec::new(),
            quarantine: Duration::ZERO,
        }
    }

    fn ends<A: Address>(network: A, prefix: u8) -> (String, String, u128) {
        let plan = Plan::new(plain(network, prefix)).unwrap();
        let (first, last) = (plan.stretches[0].0, plan.stretches.last().unwrap().1);
        (
            plan.address(first).to_string(),
            plan.address(last).to_string(),
            plan.capacity(),
        )
    }

    #[test]
    fn every_size_of_subnet_has_a_first_and_a_last_usable_address() {
        let four = |prefix| ends(Ipv4Addr::new(10, 0, 0, 0), prefix);
        assert_eq!(
            four(8),
            ("10.0.0.1".into(), "10.255.255.254".into(), (1 << 24) - 2)
        );
        assert_eq!(four(24), ("10.0.0.1".into(), "10.0.0.254".into(), 254));
        assert_eq!(four(30), ("10.0.0.1".into(), "10.0.0.2".into(), 2));
        assert_eq!(four(31), ("10.0.0.0".into(), "10.0.0.1".into(), 2), "RFC 3021");
        assert_eq!(four(32), ("10.0.0.0".into(), "10.0.0.0".into(), 1));
        let six = |prefix| ends("fd00::".parse::<Ipv6Addr>().unwrap(), prefix);
        assert_eq!(six(64).2, (1 << 64) - 1 - 128);
        assert_eq!(six(64).1, "fd00::ffff:ffff:ffff:ffff");
        assert_eq!(six(112), ("fd00::1".into(), "fd00::ff7f".into(), 65_536 - 129));
        assert_eq!(six(126), ("fd00::1".into(), "fd00::3".into(), 3));
        assert_eq!(six(127), ("fd00::".into(), "fd00::1".into(), 2), "RFC 6164");
        assert_eq!(six(128).2, 1);
        assert_eq!(ends(Ipv4Addr::new(0, 0, 0, 0), 0).2, (1 << 32) - 2);
        assert_eq!(ends(Ipv4Addr::new(255, 255, 255, 255), 32).2, 1);
    }

    #[test]
    fn a_slash_31_gives_one_to_the_gateway_and_one_to_a_port() {
        let mut spec = plain(Ipv4Addr::new(10, 0, 0, 0), 31);
        spec.services = vec![Ipv4Addr::new(10, 0, 0, 0)];
        let plan = Plan::new(spec).unwrap();
        assert_eq!(
            (plan.capacity(), plan.in_pool(1), plan.in_pool(0)),
            (1, true, false)
        );
        let mut spec = plain(Ipv4Addr::new(10, 0, 0, 0), 32);
        spec.services = vec![Ipv4Addr::new(10, 0, 0, 0)];
        assert!(Plan::new(spec).unwrap_err().what().contains("no address is left"));
    }

    #[test]
    fn what_is_withheld_may_stand_across_the_ends_of_the_subnet_or_take_all_of_it() {
        let plan = Plan::new(plain(Ipv4Addr::new(10, 0, 0, 0), 24)).unwrap();
        let range = |a: [u8; 4], b: [u8; 4]| (Ipv4Addr::from(a), Ipv4Addr::from(b));
        let across = plan.clone().withholding(&[
            range([9, 0, 0, 0], [10, 0, 0, 9]),
            range([10, 0, 0, 250], [11, 0, 0, 0]),
        ]);
        assert_eq!((across.capacity(), across.stretches()), (240, &[(10, 249)][..]));
        let outside = plan.clone().withholding(&[range([10, 0, 1, 0], [10, 0, 1, 9])]);
        assert_eq!(outside.capacity(), plan.capacity());
        let all = plan.withholding(&[range([0, 0, 0, 0], [255, 255, 255, 255])]);
        assert_eq!((all.capacity(), all.in_pool(7)), (0, false));
    }

    #[test]
    fn what_is_no_subnet_is_refused() {
        for (network, prefix) in [([10, 0, 0, 1], 24), ([10, 0, 0, 0], 33), ([10, 0, 0, 0], 255)] {
            assert!(
                Plan::new(plain(Ipv4Addr::from(network), prefix)).is_err(),
                "{prefix}"
            );
        }
        assert!(Plan::new(plain("fd00::".parse::<Ipv6Addr>().unwrap(), 129)).is_err());
        assert!(
            Plan::new(plain(Ipv6Addr::UNSPECIFIED, 0)).is_err(),
            "all of IPv6 is no subnet"
        );
    }

    proptest! {
        /// Each address, counted one by one, against the stretches.
        #[test]
        fn the_pool_is_what_is_left(
            prefix in 24u8..=32, services: Vec<u8>, pools: Vec<(u8, u8)>, excluded: Vec<(u8, u8)>, reserved: Vec<u8>, withheld: Vec<(u8, u8)>
        ) {
            let size = 1u32 << (32 - prefix);
            let at = |n: u8| Ipv4Addr::from(u32::from(Ipv4Addr::new(10, 0, 0, 0)) + u32::from(n) % size);
            let pair = |(a, b): &(u8, u8)| (at(*a).min(at(*b)), at(*a).max(at(*b)));
            let spec = PlanSpec {
                services: services.iter().map(|n| at(*n)).collect(),
                pools: pools.iter().map(pair).collect(),
                excluded: excluded.iter().map(pair).collect(),
                reserved: reserved.iter().map(|n| (at(*n), None)).collect(),
                ..plain(Ipv4Addr::new(10, 0, 0, 0), prefix)
            };
            let usable = |a: &Ipv4Addr| {
                let o = u32::from(*a) - u32::from(spec.network);
                (prefix > 30 || (o != 0 && o != size - 1))
                    && (spec.pools.is_empty() || spec.pools.iter().any(|(f, l)| f <= a && a <= l))
                    && !spec.services.contains(a)
                    && !spec.excluded.iter().any(|(f, l)| f <= a && a <= l)
                    && !spec.reserved.iter().any(|(r, _)| r == a)
            };
            let all: Vec<Ipv4Addr> = (0..size).map(|o| (u32::from(spec.network) + o).into()).filter(usable).collect();
            match Plan::new(spec.clone()) {
                Err(_) => prop_assert!(all.is_empty()),
                Ok(plan) => {
                    prop_assert_eq!(plan.capacity(), all.len() as u128);
                    let withheld: Vec<_> = withheld.iter().map(pair).collect();
                    let given = |a: &Ipv4Addr| !withheld.iter().any(|(f, l)| f <= a && a <= l);
                    let all: Vec<Ipv4Addr> = all.into_iter().filter(given).collect();
                    let plan = plan.withholding(&withheld);
                    prop_assert_eq!(plan.capacity(), all.len() as u128);
                    for offset in 0..u128::from(size) {
                        prop_assert_eq!(plan.in_pool(offset), all.contains(&plan.address(offset)));
                    }
                }
            }
        }
    }
}
