//! Which addresses of a network are taken. Pure: no clock, no store; the caller keeps the [`Ipam`] where it likes.
//!
//! ```text
//!   10.0.0.0/29   .0       .1        .2  .3  .4  .5  .6        .7
//!                 network  gateway   pool_first .. pool_last   broadcast
//!                 never    never     allocate() looks here     never
//!                                    reserve() takes any but the "never"
//! ```
//!
//! One bit an address for the whole CIDR: a /24 takes 32 bytes, a /8 two MiB. [`Ipam::allocate`] starts where the
//! last one ended and steps 64 addresses at a time, so an address that was given back is re-used as late
//! as the pool allows.

use serde::{Deserialize, Serialize};
use std::net::Ipv4Addr;
use vbm_core::{Error, ErrorKind, NetworkSpec};

const WORD_BITS: u32 = u64::BITS;

/// The taken addresses of one network.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Wire", into = "Wire")]
pub struct Ipam {
    base: u32,
    size: u32,
    pool_first: u32,
    pool_last: u32,
    gateway: u32,
    next: u32,
    free_in_pool: u32,
    words: Vec<u64>,
}

/// The form on disk. Counters are counted again when it is read.
#[derive(Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Wire {
    base: u32,
    prefix: u8,
    pool_first: u32,
    pool_last: u32,
    gateway: u32,
    next: u32,
    words: Vec<u64>,
}

impl Ipam {
    /// All free, but for the network's, the gateway's and the broadcast address. Offsets count from the network address.
    ///
    /// # Errors
    /// A spec that [`NetworkSpec::check`] refuses.
    pub fn new(spec: &NetworkSpec) -> Result<Self, Error> {
        spec.check()?;
        let base = u32::from(spec.cidr.network());
        let size = 1u32 << (u32::BITS - u32::from(spec.cidr.prefix_len()));
        let mut ipam = Self {
            base,
            size,
            pool_first: u32::from(spec.pool_first) - base,
            pool_last: u32::from(spec.pool_last) - base,
            gateway: u32::from(spec.gateway) - base,
            next: u32::from(spec.pool_first) - base,
            free_in_pool: 0,
            words: vec![0; (size.div_ceil(WORD_BITS)) as usize],
        };
        for service in ipam.services() {
            ipam.set(service, true);
        }
        ipam.free_in_pool = ipam.count_free();
        Ok(ipam)
    }

    /// Takes a free address of the pool: `hint`, if it is free and in the pool, else the next one after the last given.
    ///
    /// # Errors
    /// [`ErrorKind::Exhausted`] when none is free.
    pub fn allocate(&mut self, hint: Option<Ipv4Addr>) -> Result<Ipv4Addr, Error> {
        if let Some(offset) = hint.and_then(|a| self.offset(a))
            && (self.pool_first..=self.pool_last).contains(&offset)
            && !self.get(offset)
        {
            return Ok(self.take(offset));
        }
        let found = self
            .first_free(self.next, self.pool_last)
            .or_else(|| self.first_free(self.pool_first, self.next.saturating_sub(1)));
        match found {
            Some(offset) => {
                self.next = if offset == self.pool_last {
                    self.pool_first
                } else {
                    offset + 1
                };
                Ok(self.take(offset))
            }
            None => Err(Error::new(
                ErrorKind::Exhausted,
                "the network has no free address",
                format!(
                    "all {} of its pool are taken",
                    self.pool_last - self.pool_first + 1
                ),
                "delete ports, or make a network with a larger pool",
            )),
        }
    }

    /// Takes just this address, in the pool or not.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidInput`] outside the network or a service address, [`ErrorKind::AlreadyExists`] when taken.
    pub fn reserve(&mut self, address: Ipv4Addr) -> Result<(), Error> {
        match self.offset(address) {
            Some(offset) if !self.services().contains(&offset) => {
                if self.get(offset) {
                    return Err(Error::new(
                        ErrorKind::AlreadyExists,
                        format!("the address {address} is taken"),
                        "another port of the network has it",
                        "leave the address out, or choose another",
                    ));
                }
                self.take(offset);
                Ok(())
            }
            _ => Err(Error::new(
                ErrorKind::InvalidInput,
                format!("a port cannot have the address {address}"),
                "it is outside the network, or is the network's, the broadcast or the gateway's",
                "leave the address out, or choose one inside",
            )),
        }
    }

    /// Gives an address back. Returns whether it was taken; service addresses are never given back.
    pub fn release(&mut self, address: Ipv4Addr) -> bool {
        match self.offset(address) {
            Some(offset) if !self.services().contains(&offset) && self.get(offset) => {
                self.set(offset, false);
                self.free_in_pool += u32::from(self.in_pool(offset));
                true
            }
            _ => false,
        }
    }

    /// Whether an address is taken, or can never be given.
    pub fn is_taken(&self, address: Ipv4Addr) -> bool {
        self.offset(address).is_none_or(|offset| self.get(offset))
    }

    /// How many addresses of the pool are free.
    pub const fn free(&self) -> u32 {
        self.free_in_pool
    }

    fn services(&self) -> [u32; 3] {
        [0, self.gateway, self.size - 1]
    }
    fn in_pool(&self, offset: u32) -> bool {
        (self.pool_first..=self.pool_last).contains(&offset)
    }
    fn offset(&self, address: Ipv4Addr) -> Option<u32> {
        u32::from(address)
            .checked_sub(self.base)
            .filter(|o| *o < self.size)
    }
    fn get(&self, offset: u32) -> bool {
        self.words[(offset / WORD_BITS) as usize] >> (offset % WORD_BITS) & 1 == 1
    }
    fn set(&mut self, offset: u32, taken: bool) {
        let (word, bit) = (
            &mut self.words[(offset / WORD_BITS) as usize],
            1u64 << (offset % WORD_BITS),
        );
        if taken { *word |= bit } else { *word &= !bit }
    }
    fn take(&mut self, offset: u32) -> Ipv4Addr {
        self.set(offset, true);
        self.free_in_pool -= u32::from(self.in_pool(offset));
        (self.base + offset).into()
    }

    /// The first free offset in `first..=last`, a word at a time.
    fn first_free(&self, first: u32, last: u32) -> Option<u32> {
        let mut at = first;
        while at <= last {
            let free = !self.words[(at / WORD_BITS) as usize] >> (at % WORD_BITS);
            if free != 0 {
                let found = at + free.trailing_zeros();
                return (found <= last).then_some(found);
            }
            at = (at / WORD_BITS + 1) * WORD_BITS;
        }
        None
    }

    fn count_free(&self) -> u32 {
        let mut free = 0;
        let mut at = self.pool_first;
        while at <= self.pool_last {
            let end = (at | (WORD_BITS - 1)).min(self.pool_last);
            let span = end - at + 1;
            let mask = if span == WORD_BITS {
                u64::MAX
            } else {
                (1 << span) - 1
            };
            free += (!self.words[(at / WORD_BITS) as usize] >> (at % WORD_BITS) & mask).count_ones();
            at = end + 1;
        }
        free
    }
}

impl From<Ipam> for Wire {
    fn from(ipam: Ipam) -> Self {
        let prefix = u8::try_from(u32::BITS - ipam.size.trailing_zeros()).unwrap_or(u8::MAX);
        Self {
            base: ipam.base,
            prefix,
            pool_first: ipam.pool_first,
            pool_last: ipam.pool_last,
            gateway: ipam.gateway,
            next: ipam.next,
            words: ipam.words,
        }
    }
}

impl TryFrom<Wire> for Ipam {
    type Error = String;

    fn try_from(wire: Wire) -> Result<Self, String> {
        use vbm_core::limits::{NETWORK_MAX_PREFIX_BITS, NETWORK_MIN_PREFIX_BITS};
        if !(NETWORK_MIN_PREFIX_BITS..=NETWORK_MAX_PREFIX_BITS).contains(&wire.prefix) {
            return Err(format!("a prefix of {} bits cannot be", wire.prefix));
        }
        let size = 1u32 << (u32::BITS - u32::from(wire.prefix));
        let inside = |offset: u32| (1..size - 1).contains(&offset);
        let consistent = wire.base.checked_add(size - 1).is_some()
            && wire.words.len() == size.div_ceil(WORD_BITS) as usize
            && inside(wire.gateway)
            && inside(wire.pool_first)
            && inside(wire.pool_last)
            && (wire.pool_first..=wire.pool_last).contains(&wire.next);
        if !consistent {
            return Err("the record of taken addresses contradicts itself".into());
        }
        let mut ipam = Self {
            base: wire.base,
            size,
            pool_first: wire.pool_first,
            pool_last: wire.pool_last,
            gateway: wire.gateway,
            next: wire.next,
            free_in_pool: 0,
            words: wire.words,
        };
        for service in ipam.services() {
            ipam.set(service, true);
        }
        ipam.free_in_pool = ipam.count_free();
        Ok(ipam)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;
    use vbm_core::{NetworkMode, network::parse_cidr};

    fn spec(cidr: &str) -> NetworkSpec {
        NetworkSpec::new(NetworkMode::Nat, parse_cidr(cidr).unwrap()).unwrap()
    }

    #[test]
    fn every_address_of_the_pool_is_given_once_then_none() {
        for cidr in [
            "10.0.0.0/30",
            "10.0.0.0/29",
            "10.0.0.0/26",
            "10.0.0.0/24",
            "10.0.0.0/20",
            "255.255.0.0/16",
        ] {
            let Ok(spec) = parse_cidr(cidr).and_then(|c| NetworkSpec::new(NetworkMode::Nat, c)) else {
                continue;
            };
            let mut ipam = Ipam::new(&spec).unwrap();
            let all: BTreeSet<_> = (0..ipam.free()).map(|_| ipam.allocate(None).unwrap()).collect();
            assert_eq!(
                u32::try_from(all.len()).unwrap(),
                u32::from(spec.pool_last) - u32::from(spec.pool_first) + 1
            );
            assert!(
                all.contains(&spec.pool_first) && all.contains(&spec.pool_last),
                "{cidr}"
            );
            assert!(!all.contains(&spec.gateway));
            assert_eq!(ipam.allocate(None).unwrap_err().kind(), ErrorKind::Exhausted);
        }
    }

    #[test]
    fn an_address_given_back_is_used_again_as_late_as_possible() {
        let mut ipam = Ipam::new(&spec("10.0.0.0/29")).unwrap();
        let first = ipam.allocate(None).unwrap();
        assert!(ipam.release(first));
        let rest: Vec<_> = (0..5).map(|_| ipam.allocate(None).unwrap()).collect();
        assert_eq!(rest.last(), Some(&first));
    }

    #[test]
    fn a_pinned_address_is_not_given_by_the_pool() {
        let mut ipam = Ipam::new(&spec("10.0.0.0/30")).unwrap();
        ipam.reserve(Ipv4Addr::new(10, 0, 0, 2)).unwrap();
        assert_eq!(
            ipam.reserve(Ipv4Addr::new(10, 0, 0, 2)).unwrap_err().kind(),
            ErrorKind::AlreadyExists
        );
        assert_eq!(ipam.allocate(None).unwrap_err().kind(), ErrorKind::Exhausted);
    }

    #[test]
    fn service_addresses_and_those_outside_are_refused() {
        let mut ipam = Ipam::new(&spec("10.0.0.0/24")).unwrap();
        for bad in [
            [10, 0, 0, 0],
            [10, 0, 0, 1],
            [10, 0, 0, 255],
            [10, 0, 1, 0],
            [9, 255, 255, 255],
        ] {
            assert_eq!(
                ipam.reserve(bad.into()).unwrap_err().kind(),
                ErrorKind::InvalidInput
            );
            assert!(!ipam.release(bad.into()));
            assert!(ipam.is_taken(bad.into()));
        }
    }

    #[test]
    fn a_hint_is_taken_when_it_is_free_and_in_the_pool() {
        let mut ipam = Ipam::new(&spec("10.0.0.0/24")).unwrap();
        let hint = Ipv4Addr::new(10, 0, 0, 77);
        assert_eq!(ipam.allocate(Some(hint)).unwrap(), hint);
        assert_ne!(ipam.allocate(Some(hint)).unwrap(), hint);
        assert_eq!(
            ipam.allocate(Some(Ipv4Addr::new(10, 0, 0, 1))).unwrap(),
            Ipv4Addr::new(10, 0, 0, 3)
        );
    }

    #[test]
    fn a_full_slash_eight_is_scanned_in_words_not_bits() {
        let mut ipam = Ipam::new(&spec("10.0.0.0/8")).unwrap();
        ipam.words.fill(u64::MAX);
        ipam.free_in_pool = 0;
        ipam.release(Ipv4Addr::new(10, 0, 0, 2));
        ipam.next = 3;
        assert_eq!(ipam.allocate(None).unwrap(), Ipv4Addr::new(10, 0, 0, 2));
    }

    #[derive(Clone, Debug)]
    enum Op {
        Allocate(Option<u8>),
        Reserve(u8),
        Release(u8),
        Reload,
    }

    fn op() -> impl Strategy<Value = Op> {
        prop_oneof![
            proptest::option::of(any::<u8>()).prop_map(Op::Allocate),
            any::<u8>().prop_map(Op::Reserve),
            any::<u8>().prop_map(Op::Release),
            Just(Op::Reload),
        ]
    }

    proptest! {
        /// The model is a set; the bitmap must agree with it after every step.
        #[test]
        fn it_behaves_like_a_set(prefix in 24u8..=30, lo in 1u32..254, hi in 1u32..254, ops in prop::collection::vec(op(), 0..400)) {
            let mut spec = spec(&format!("192.168.7.0/{prefix}"));
            let base = u32::from(spec.cidr.network());
            let last = (1u32 << (32 - prefix)) - 2;
            let (lo, hi) = ((lo - 1) % last + 1, (hi - 1) % last + 1);
            spec.pool_first = (base + lo.min(hi)).into();
            spec.pool_last = (base + lo.max(hi)).into();
            let in_pool = |a: Ipv4Addr| spec.pool_first <= a && a <= spec.pool_last;
            let mut ipam = Ipam::new(&spec).unwrap();
            let mut model = BTreeSet::new();
            let pool: Vec<Ipv4Addr> = (u32::from(spec.pool_first)..=u32::from(spec.pool_last)).map(Into::into)
                .filter(|a| *a != spec.gateway).collect();
            let address = |n: u8| Ipv4Addr::from(base + u32::from(n));
            for op in ops {
                match op {
                    Op::Allocate(hint) => match ipam.allocate(hint.map(address)) {
                        Ok(got) => {
                            prop_assert!(in_pool(got) && spec.is_port_address(got));
                            prop_assert!(model.insert(got), "given twice");
                        }
                        Err(_) => prop_assert!(pool.iter().all(|a| model.contains(a))),
                    },
                    Op::Reserve(n) => {
                        let ok = ipam.reserve(address(n)).is_ok();
                        prop_assert_eq!(ok, spec.is_port_address(address(n)) && model.insert(address(n)));
                    }
                    Op::Release(n) => prop_assert_eq!(ipam.release(address(n)), model.remove(&address(n))),
                    Op::Reload => {
                        let text = serde_json::to_string(&ipam).unwrap();
                        let back: Ipam = serde_json::from_str(&text).unwrap();
                        prop_assert_eq!(&back, &ipam);
                        ipam = back;
                    }
                }
                let free = pool.iter().filter(|a| !model.contains(*a)).count();
                prop_assert_eq!(ipam.free() as usize, free);
            }
        }

        #[test]
        fn a_damaged_record_is_refused_or_sound(prefix in 0u8..=40, base: u32, first: u32, last: u32, gateway: u32, next: u32, words in prop::collection::vec(any::<u64>(), 0..6)) {
            let text = format!(r#"{{"base":{base},"prefix":{prefix},"pool_first":{first},"pool_last":{last},"gateway":{gateway},"next":{next},"words":{words:?}}}"#);
            if let Ok(mut ipam) = serde_json::from_str::<Ipam>(&text) {
                while ipam.allocate(None).is_ok() {}
            }
        }
    }
}
