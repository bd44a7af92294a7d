//! Which addresses of a subnet are taken. Pure: no clock, no store. Time is given by the caller, and what has to be kept is a
//! value ([`State`]) that a store compares and swaps.
//!
//! ```text
//!   NetworkSpec -> Plan      which addresses are for whom; worked out each time, never stored
//!                    |
//!   State <-----> Ipam       which are taken, which rest, where the next pick begins
//!                    |
//!        allocate    the next free address of the pool, as late as the pool allows
//!        pin         just this address
//!        release     it rests for the plan's quarantine, then the pool gives it again
//!
//!   an address     Free --allocate, pin--> Taken --release--> Resting --time, or somebody pins it--> Free, Taken
//! ```
//!
//! | promise | by |
//! |---|---|
//! | no address twice | one set of taken addresses, of one writer at a time: the store's compare-and-swap |
//! | never the network's own: its first and last, gateway, services, what is excluded | [`Plan`]: the pool does not have them, `pin` refuses them |
//! | an operation on one address changes no other | property test against a model of ports |
//! | a pick costs the same in an empty and in a full network | next-fit with a place to begin; a word of 64 at a time; full pages are passed |
//! | 10 million addresses in at most 4 MB | pages of bits, made when they are needed; IPv6 alike |
//!
//! Who has an address is not known here: the port's record says it. The caller releases what its own port has.

mod address;
mod pages;
mod plan;
mod resting;
mod state;

pub use address::Address;
pub use plan::{Never, Plan, PlanSpec};
pub use resting::RESTING_MAX_ADDRESSES;
pub use state::{STATE_MAX_BYTES, STATE_VERSION, State};

use self::{pages::Pages, resting::Resting};
use std::net::{Ipv4Addr, Ipv6Addr};
use vbm_core::{Error, ErrorKind, Mac, NetworkSpec, Timestamp};

/// The addresses of one subnet.
#[derive(Clone, Debug)]
pub struct Ipam<A> {
    plan: Plan<A>,
    taken: Pages,
    resting: Resting,
    /// Where the next pick begins.
    next: u128,
    /// How many addresses of the pool are taken, those that rest included.
    in_pool: u128,
}

/// What is known of an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Standing {
    /// It is not in the subnet.
    Outside,
    /// No port may have it.
    Never(Never),
    /// A port has it.
    Taken,
    /// It was given back, and the pool gives it again then.
    Resting {
        /// When it is free.
        until: Timestamp,
    },
    /// It is free for the NIC with this MAC or, without one, for who asks for it.
    Reserved(Option<Mac>),
    /// It is free, and the pool gives it.
    Free,
    /// It is free, but only for who asks for just it: it is in no pool.
    OutsidePool,
}

/// How much of a subnet is used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Utilisation {
    /// The addresses of the pool.
    pub pool: u128,
    /// Those of them that ports have.
    pub taken: u128,
    /// Those of them that rest.
    pub resting: u128,
    /// Those of them that can be given now.
    pub free: u128,
    /// The addresses that ports have outside of the pool: pinned or reserved ones.
    pub outside: u128,
}

impl Ipam<Ipv4Addr> {
    /// The IPv4 addresses of a network, all free.
    ///
    /// # Errors
    /// Those of [`Plan::v4`].
    pub fn v4(spec: &NetworkSpec) -> Result<Self, Error> {
        Plan::v4(spec).map(Self::new)
    }
}

impl Ipam<Ipv6Addr> {
    /// The IPv6 addresses of a network, all free; `None` where it has none.
    ///
    /// # Errors
    /// Those of [`Plan::v6`].
    pub fn v6(spec: &NetworkSpec) -> Result<Option<Self>, Error> {
        Ok(Plan::v6(spec)?.map(Self::new))
    }
}

impl<A: Address> Ipam<A> {
    /// All free.
    pub fn new(plan: Plan<A>) -> Self {
        Self {
            plan,
            taken: Pages::default(),
            resting: Resting::default(),
            next: 0,
            in_pool: 0,
        }
    }

    /// The plan that it follows.
    pub const fn plan(&self) -> &Plan<A> {
        &self.plan
    }

    /// Takes a free address of the pool: `hint`, if the pool gives it and it is free, else the next one after the last given.
    ///
    /// # Errors
    /// [`ErrorKind::Exhausted`] when none is free; nothing was changed.
    pub fn allocate(&mut self, hint: Option<A>, now: Timestamp) -> Result<A, Error> {
        self.wake(now);
        let hinted = hint
            .and_then(|a| self.plan.offset(a))
            .filter(|o| self.plan.in_pool(*o) && !self.taken.contains(*o));
        let found = match hinted {
            Some(offset) => offset,
            None => self.next_free().ok_or_else(|| self.exhausted(now))?,
        };
        self.take(found)?;
        if hinted.is_none() {
            self.next = found + 1;
        }
        Ok(self.plan.address(found))
    }

    /// Takes just this address, in the pool or not, for the NIC with this MAC. One that rests may be taken: who asks for just it
    /// knows why.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidInput`] when no port may have it, [`ErrorKind::Conflict`] when it is reserved for another MAC or
    /// withheld, [`ErrorKind::AlreadyExists`] when it is taken; nothing was changed.
    pub fn pin(&mut self, address: A, mac: Option<Mac>, now: Timestamp) -> Result<(), Error> {
        self.wake(now);
        let offset = self.pinnable(address, mac)?;
        let rests = self.resting.until(offset).is_some();
        if self.taken.contains(offset) && !rests {
            return Err(Error::new(
                ErrorKind::AlreadyExists,
                format!("the address {address} is taken"),
                "another port of the network has it",
                "leave the address out, or choose another",
            ));
        }
        if self.plan.is_withheld(offset) {
            return Err(Error::new(
                ErrorKind::Conflict,
                format!("the address {address} is withheld"),
                "other ports may use it beside their own: it is among their allowed addresses",
                "choose another, or take it out of theirs",
            ));
        }
        if self.resting.end(offset) {
            return Ok(());
        }
        self.take(offset)
    }

    /// Takes an address that is known to be a port's already, whoever it is reserved for or withheld from. Whether it is one that a
    /// port can have and that was not taken before.
    pub fn adopt(&mut self, address: A, now: Timestamp) -> bool {
        self.wake(now);
        let free = |o: &u128| self.plan.never_at(*o).is_none();
        match self.plan.offset(address).filter(free) {
            Some(offset) => {
                self.resting.end(offset) || (!self.taken.contains(offset) && self.take(offset).is_ok())
            }
            None => false,
        }
    }

    fn pinnable(&self, address: A, mac: Option<Mac>) -> Result<u128, Error> {
        let subnet = self.plan.subnet();
        let why = match self.plan.offset(address).map(|o| (o, self.plan.never_at(o))) {
            Some((offset, None)) => match self.plan.reservation_at(offset) {
                Some(Some(owner)) if mac != Some(owner) => {
                    return Err(Error::new(
                        ErrorKind::Conflict,
                        format!("the address {address} is reserved"),
                        format!("it is for the NIC with the MAC {owner}"),
                        "choose another, or give the NIC that MAC",
                    ));
                }
                _ => return Ok(offset),
            },
            None => format!("it is outside {subnet}"),
            Some((_, Some(Never::Own))) => "it is the network's own or the broadcast address".to_owned(),
            Some((_, Some(Never::Service))) => "it is the gateway's".to_owned(),
            Some((_, Some(Never::Excluded))) => "the network excludes it".to_owned(),
        };
        Err(Error::new(
            ErrorKind::InvalidInput,
            format!("a port cannot have the address {address}"),
            why,
            format!("choose another of {subnet}, or leave the address out"),
        ))
    }

    /// Gives an address back; it rests as long as the plan says. Whether a port had it.
    pub fn release(&mut self, address: A, now: Timestamp) -> bool {
        self.wake(now);
        let Some(offset) = self.plan.offset(address) else {
            return false;
        };
        if !self.taken.contains(offset) || self.resting.until(offset).is_some() {
            return false;
        }
        let rest = self.plan.quarantine();
        if rest.is_zero() {
            self.free_up(offset);
        } else if let Some(early) = self.resting.begin(offset, now.plus(rest)) {
            self.free_up(early);
        }
        true
    }

    /// What is known of an address at a time.
    pub fn standing(&self, address: A, now: Timestamp) -> Standing {
        let Some(offset) = self.plan.offset(address) else {
            return Standing::Outside;
        };
        let rest = self.resting.until(offset);
        if let Some(why) = self.plan.never_at(offset) {
            return Standing::Never(why);
        }
        match rest.filter(|until| *until > now) {
            Some(until) => Standing::Resting { until },
            None if rest.is_none() && self.taken.contains(offset) => Standing::Taken,
            None => match self.plan.reservation_at(offset) {
                Some(mac) => Standing::Reserved(mac),
                None if self.plan.in_pool(offset) => Standing::Free,
                None => Standing::OutsidePool,
            },
        }
    }

    /// How much is used at a time.
    pub fn utilisation(&self, now: Timestamp) -> Utilisation {
        let (mut awake, mut resting, mut resting_outside) = (0, 0, 0);
        for (until, offset) in self.resting.iter() {
            match (self.plan.in_pool(offset), until > now) {
                (true, true) => resting += 1,
                (true, false) => awake += 1,
                (false, _) => resting_outside += 1,
            }
        }
        let pool = self.plan.capacity();
        Utilisation {
            pool,
            taken: self.in_pool - resting - awake,
            resting,
            free: pool - self.in_pool + awake,
            outside: self.taken.len() - self.in_pool - resting_outside,
        }
    }

    /// The addresses that are taken or rest, ascending.
    pub fn taken(&self) -> impl Iterator<Item = A> + '_ {
        self.taken.iter().map(|offset| self.plan.address(offset))
    }

    /// Follows another plan of the same subnet from now on. What is taken stays taken, in the new pool or not.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidInput`] for another subnet; [`ErrorKind::Conflict`] when a port has an address that the new plan never gives.
    /// Nothing was changed.
    pub fn follow(&mut self, plan: Plan<A>) -> Result<(), Error> {
        if plan.subnet() != self.plan.subnet() {
            return Err(Error::new(
                ErrorKind::InvalidInput,
                format!(
                    "the subnet {} cannot become {}",
                    self.plan.subnet(),
                    plan.subnet()
                ),
                "its ports have addresses of it",
                "make another network",
            ));
        }
        for (first, last, why) in plan.never_ranges() {
            let held = |offset: &u128| self.resting.until(*offset).is_none();
            let mut from = *first;
            while let Some(offset) = self.taken.first_present(from, *last) {
                if held(&offset) {
                    let noun = if *why == Never::Excluded {
                        "excluded"
                    } else {
                        "the network's own"
                    };
                    return Err(Error::new(
                        ErrorKind::Conflict,
                        format!("the address {} cannot be {noun}", plan.address(offset)),
                        "a port has it",
                        "delete the VM of that port first, or leave the address out; `vbm port list` shows whose it is",
                    ));
                }
                from = offset + 1;
            }
        }
        self.plan = plan;
        self.in_pool = self.count_in_pool();
        Ok(())
    }

    /// What it takes on the heap beside its plan, in bytes; not less than it really is.
    pub fn heap_bytes(&self) -> usize {
        self.taken.heap_bytes() + self.resting.heap_bytes()
    }

    /// Those that have rested enough are free.
    fn wake(&mut self, now: Timestamp) {
        while let Some(offset) = self.resting.pop_rested(now) {
            self.free_up(offset);
        }
    }

    fn take(&mut self, offset: u128) -> Result<(), Error> {
        let new = self.taken.insert(offset).map_err(|_| {
            Error::new(
                ErrorKind::Exhausted,
                format!("no more addresses of {} can be taken", self.plan.subnet()),
                format!(
                    "they stand too far from each other: {} blocks of {} addresses are the most, {} of them with more than a few",
                    pages::PAGES_MAX,
                    pages::PAGE_PLACES,
                    pages::BITMAPS_MAX
                ),
                "leave addresses to the pool, or use a smaller subnet",
            )
        })?;
        self.in_pool += u128::from(new && self.plan.in_pool(offset));
        Ok(())
    }

    fn free_up(&mut self, offset: u128) {
        let was = self.taken.remove(offset);
        self.in_pool -= u128::from(was && self.plan.in_pool(offset));
    }

    fn next_free(&self) -> Option<u128> {
        if self.in_pool >= self.plan.capacity() {
            return None;
        }
        let stretches = self.plan.stretches();
        let begin = stretches.partition_point(|(_, last)| *last < self.next);
        let ahead = stretches[begin..]
            .iter()
            .find_map(|(first, last)| self.taken.first_absent((*first).max(self.next), *last));
        // The stretch in which it began is looked at whole: what is behind the beginning is taken, as was just seen.
        ahead.or_else(|| {
            let behind = &stretches[..stretches.len().min(begin + 1)];
            behind
                .iter()
                .find_map(|(first, last)| self.taken.first_absent(*first, *last))
        })
    }

    fn exhausted(&self, now: Timestamp) -> Error {
        let used = self.utilisation(now);
        let (why, fix) = match self.resting.next() {
            Some(until) if used.resting > 0 => (
                format!(
                    "all {} of its pool are taken, {} of them rest after they were given back; the next one is free in {} s",
                    used.pool,
                    used.resting,
                    until.since(now).as_secs() + 1
                ),
                "wait, make the quarantine shorter, or the pool larger",
            ),
            _ => (
                format!("all {} of its pool are taken", used.pool),
                "delete ports, or make a network with a larger pool",
            ),
        };
        Error::new(ErrorKind::Exhausted, "the network has no free address", why, fix)
    }

    fn count_in_pool(&self) -> u128 {
        let stretches = self.plan.stretches().iter();
        stretches
            .map(|(first, last)| self.taken.count(*first, *last))
            .sum()
    }
}

#[cfg(test)]
mod tests;
