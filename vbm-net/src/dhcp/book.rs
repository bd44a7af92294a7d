//! Who has which address of a pool: a value. Deciding reads it, [`Book::apply`] alone changes it.
//!
//! ```text
//!            offer                 bind                     its end passes
//!   free ------------> offered -----------> bound ----------------------------> ended
//!    ^                   |  its end passes     | release                          |
//!    |                   v                     v                                  |
//!    |                 ended <-----------------+        decline: quarantined ---->+
//!    +---- never of anybody                    given to its old client, or, when no other is left, the longest ended first
//! ```
//!
//! A client that comes back gets its old address for as long as nobody else needed it. Picking is O(1) while there are addresses that
//! were never given, and O(log n) behind that.

use super::{KeyBy, ServerConfig, Subnet, request::Request};
use std::{
    collections::{BTreeSet, HashMap},
    net::Ipv4Addr,
};
use vbm_core::{Mac, Timestamp};

/// How a client of a pool is known.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ClientKey {
    /// By its MAC.
    Mac(Mac),
    /// By its client id.
    Id(Box<[u8]>),
}

impl ClientKey {
    /// That of a request.
    pub fn of(request: &Request, by: KeyBy) -> Self {
        match (by, &request.client_id) {
            (KeyBy::ClientId, Some(id)) if !id.is_empty() => Self::Id(id.as_slice().into()),
            _ => Self::Mac(request.mac),
        }
    }
}

/// What is known of an address of a pool, as it is kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LeaseRecord {
    /// The address.
    pub address: Ipv4Addr,
    /// Whose it is; `None`: nobody's, it rests.
    pub client: Option<ClientKey>,
    /// Until when.
    pub until: Timestamp,
}

/// A change of the book.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// Kept for a client. Not durable: after a restart the client is offered an address again.
    Offer(LeaseRecord),
    /// Leased. Durable before it is acknowledged.
    Bind(LeaseRecord),
    /// Given back at `until`.
    Release(LeaseRecord),
    /// Rests until `until`.
    Decline(LeaseRecord),
}

impl Change {
    /// What it makes of the address.
    pub const fn record(&self) -> &LeaseRecord {
        match self {
            Self::Offer(record) | Self::Bind(record) | Self::Release(record) | Self::Decline(record) => {
                record
            }
        }
    }

    /// Whether it must outlive a restart.
    pub const fn is_durable(&self) -> bool {
        !matches!(self, Self::Offer(_))
    }
}

#[derive(Clone, Debug)]
struct Slot {
    client: Option<ClientKey>,
    until: Timestamp,
    /// Offered, and not yet taken.
    offered: bool,
}

/// The places of one network.
#[derive(Clone, Debug, Default)]
struct Shelf {
    /// No address before this one was never given.
    fresh: u32,
    /// Every slot, by its end.
    ends: BTreeSet<(Timestamp, u32)>,
    clients: HashMap<ClientKey, u32>,
}

/// All leases of the pools of a server.
#[derive(Clone, Debug, Default)]
pub struct Book {
    slots: HashMap<u32, Slot>,
    /// By the first address of the network.
    shelves: HashMap<Ipv4Addr, Shelf>,
}

impl Book {
    /// What was kept, as far as the configuration still has room for it.
    pub fn load(config: &ServerConfig, records: impl IntoIterator<Item = LeaseRecord>) -> Self {
        let records = records.into_iter().map(|record| (record, false));
        Self::made_of(config, records.collect())
    }

    /// The same under another configuration: what no pool has any more is forgotten.
    #[must_use]
    pub fn under(&self, config: &ServerConfig) -> Self {
        let record = |(address, slot): (&u32, &Slot)| LeaseRecord {
            address: (*address).into(),
            client: slot.client.clone(),
            until: slot.until,
        };
        let records = self.slots.iter().map(|s| (record(s), s.1.offered));
        Self::made_of(config, records.collect())
    }

    /// Of two addresses of one client it holds the one that ends later.
    fn made_of(config: &ServerConfig, mut records: Vec<(LeaseRecord, bool)>) -> Self {
        records.sort_by_key(|(record, _)| (record.until, record.address));
        let mut book = Self::default();
        for (record, offered) in &records {
            book.set(config, record, *offered);
        }
        book
    }

    /// What this client holds or held there, as long as it is nobody else's.
    pub fn held(&self, subnet: &Subnet, client: &ClientKey) -> Option<Ipv4Addr> {
        let shelf = self.shelves.get(&subnet.net.network())?;
        shelf.clients.get(client).map(|a| (*a).into())
    }

    /// Whether a client may have this address now: it is of the pool and nobody else's.
    pub fn may_have(
        &self,
        config: &ServerConfig,
        subnet: &Subnet,
        client: &ClientKey,
        address: Ipv4Addr,
        now: Timestamp,
    ) -> bool {
        config.is_free_for_clients(subnet, address)
            && self
                .slots
                .get(&address.into())
                .is_none_or(|slot| slot.client.as_ref() == Some(client) || slot.until <= now)
    }

    /// Whether this client has a lease of this address that has not ended.
    pub fn is_bound(&self, client: &ClientKey, address: Ipv4Addr, now: Timestamp) -> bool {
        self.slots
            .get(&address.into())
            .is_some_and(|s| !s.offered && s.client.as_ref() == Some(client) && s.until > now)
    }

    /// The address to offer: the client's own, else the one it wishes, else one that was never given, else the one that
    /// ended first.
    pub fn pick(
        &self,
        config: &ServerConfig,
        subnet: &Subnet,
        client: &ClientKey,
        wish: Option<Ipv4Addr>,
        now: Timestamp,
    ) -> Option<Ipv4Addr> {
        let pool = subnet.pool.as_ref()?;
        let may = |a: &Ipv4Addr| self.may_have(config, subnet, client, *a, now);
        let own = self.held(subnet, client).filter(may);
        if let Some(address) = own.or_else(|| wish.filter(may)) {
            return Some(address);
        }
        let shelf = self.shelves.get(&subnet.net.network());
        let first = u32::from(*pool.start()).max(shelf.map_or(0, |s| s.fresh));
        let fresh = (first..=u32::from(*pool.end()))
            .find(|a| !self.slots.contains_key(a) && config.is_free_for_clients(subnet, (*a).into()));
        fresh.map(Ipv4Addr::from).or_else(|| {
            let ended = shelf?.ends.iter().take_while(|(until, _)| *until <= now);
            ended.map(|(_, a)| Ipv4Addr::from(*a)).find(|a| may(a))
        })
    }

    /// Makes it so.
    pub fn apply(&mut self, config: &ServerConfig, change: &Change) {
        self.set(config, change.record(), matches!(change, Change::Offer(_)));
    }

    fn set(&mut self, config: &ServerConfig, record: &LeaseRecord, offered: bool) {
        let Some(subnet) = config
            .subnet_of(record.address)
            .filter(|s| config.is_free_for_clients(s, record.address))
        else {
            return;
        };
        let address = u32::from(record.address);
        let shelf = self.shelves.entry(subnet.net.network()).or_default();
        let slot = Slot {
            client: record.client.clone(),
            until: record.until,
            offered,
        };
        if let Some(old) = self.slots.insert(address, slot) {
            shelf.ends.remove(&(old.until, address));
            if let Some(client) = old.client.filter(|c| Some(c) != record.client.as_ref())
                && shelf.clients.get(&client) == Some(&address)
            {
                shelf.clients.remove(&client);
            }
        }
        shelf.ends.insert((record.until, address));
        if let Some(client) = &record.client {
            shelf.clients.insert(client.clone(), address);
        }
        let Some(pool) = &subnet.pool else { return };
        shelf.fresh = shelf.fresh.max((*pool.start()).into());
        // Each address is passed once, so this costs nothing in the long run.
        while shelf.fresh <= u32::from(*pool.end())
            && (self.slots.contains_key(&shelf.fresh)
                || !config.is_free_for_clients(subnet, shelf.fresh.into()))
        {
            shelf.fresh += 1;
        }
    }

    /// What is leased at this time, and what rests.
    pub fn leased(&self, now: Timestamp) -> impl Iterator<Item = LeaseRecord> {
        self.slots
            .iter()
            .filter(move |(_, s)| !s.offered && s.until > now)
            .map(|(address, slot)| LeaseRecord {
                address: (*address).into(),
                client: slot.client.clone(),
                until: slot.until,
            })
    }

    /// How many addresses were ever given and are remembered.
    pub fn len(&self) -> usize {
        self.slots.len()
    }

    /// Whether none was.
    pub fn is_empty(&self) -> bool {
        self.slots.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dhcp::Reservation;
    use proptest::prelude::*;
    use std::{collections::BTreeMap, time::Duration};
    use vbm_core::PortId;

    const T0: Timestamp = Timestamp::from_micros(1_000_000_000);

    fn at(second: u64) -> Timestamp {
        T0.plus(Duration::from_secs(second))
    }

    fn address(last: u8) -> Ipv4Addr {
        Ipv4Addr::new(10, 0, 0, last)
    }

    /// A pool of 10 to 19, of which 12 is a port's.
    fn config() -> ServerConfig {
        let mut link = Subnet::new("10.0.0.0/24".parse().unwrap(), Duration::from_secs(100));
        link.pool = Some(address(10)..=address(19));
        let mut config = ServerConfig::new(address(1), Mac::local(0), link);
        config.ports.insert(
            Mac::local(99),
            Reservation {
                port: PortId::from_uuid(uuid::Uuid::from_u128(9)),
                address: address(12),
                hostname: "p".into(),
                metadata: false,
                boot: None,
            },
        );
        config
    }

    fn client(n: u32) -> ClientKey {
        ClientKey::Mac(Mac::local(n))
    }

    fn bind(n: u32, last: u8, until: u64) -> Change {
        Change::Bind(LeaseRecord {
            address: address(last),
            client: Some(client(n)),
            until: at(until),
        })
    }

    #[test]
    fn addresses_are_given_in_order_and_never_a_ports_or_the_servers() {
        let config = config();
        let mut book = Book::default();
        let mut given = Vec::new();
        for n in 0..12 {
            let Some(a) = book.pick(&config, &config.link, &client(n), None, T0) else {
                break;
            };
            book.apply(&config, &bind(n, a.octets()[3], 100));
            given.push(a.octets()[3]);
        }
        assert_eq!(given, [10, 11, 13, 14, 15, 16, 17, 18, 19]);
    }

    #[test]
    fn a_client_keeps_its_address_until_another_needs_it() {
        let config = config();
        let mut book = Book::default();
        for n in 0..9u8 {
            let last = [10, 11, 13, 14, 15, 16, 17, 18, 19][usize::from(n)];
            book.apply(&config, &bind(n.into(), last, 100 + u64::from(n)));
        }
        let pick =
            |book: &Book, n, wish, second| book.pick(&config, &config.link, &client(n), wish, at(second));
        assert_eq!(pick(&book, 50, None, 99), None, "all are taken");
        assert_eq!(
            pick(&book, 3, None, 500),
            Some(address(14)),
            "its own, long after its end"
        );
        assert_eq!(
            pick(&book, 50, None, 500),
            Some(address(10)),
            "the one that ended first"
        );
        assert_eq!(
            pick(&book, 50, Some(address(15)), 500),
            Some(address(15)),
            "its wish"
        );
        book.apply(&config, &bind(50, 10, 900));
        assert_eq!(pick(&book, 0, None, 500), Some(address(11)), "its own is gone");
        assert_eq!(book.held(&config.link, &client(0)), None);
    }

    #[test]
    fn an_offer_is_kept_for_its_client_and_ends() {
        let config = config();
        let mut book = Book::default();
        book.apply(
            &config,
            &Change::Offer(LeaseRecord {
                address: address(10),
                client: Some(client(1)),
                until: at(60),
            }),
        );
        let may = |n, second| book.may_have(&config, &config.link, &client(n), address(10), at(second));
        assert!(may(1, 0) && !may(2, 59) && may(2, 60));
        assert!(!book.is_bound(&client(1), address(10), at(0)));
    }

    #[test]
    fn another_configuration_takes_what_is_no_longer_the_pools() {
        let mut config = config();
        let mut book = Book::default();
        book.apply(&config, &bind(1, 10, 100));
        book.apply(&config, &bind(2, 19, 100));
        config.link.pool = Some(address(15)..=address(30));
        let book = book.under(&config);
        assert_eq!(book.len(), 1);
        assert_eq!(book.held(&config.link, &client(2)), Some(address(19)));
        let next = book.pick(&config, &config.link, &client(3), None, T0);
        assert_eq!(next, Some(address(15)));
    }

    proptest! {
        /// Whatever clients do, nobody gets what another holds, and an operation of one changes nothing of another.
        #[test]
        fn no_two_clients_hold_the_same_address(steps in prop::collection::vec((0u32..14, 0u8..4, prop::option::of(8u8..22), 0u64..40), 1..200)) {
            let config = config();
            let mut book = Book::default();
            let mut holds: BTreeMap<u32, (Ipv4Addr, u64)> = BTreeMap::new();
            let mut now = 0;
            for (n, what, wish, later) in steps {
                now += later;
                holds.retain(|_, (_, until)| *until > now);
                match what {
                    0..=1 => {
                        if let Some(a) = book.pick(&config, &config.link, &client(n), wish.map(address), at(now)) {
                            prop_assert!(config.is_free_for_clients(&config.link, a));
                            prop_assert!(holds.iter().all(|(m, (b, _))| *m == n || *b != a), "{a} is another's");
                            book.apply(&config, &bind(n, a.octets()[3], now + 100));
                            holds.insert(n, (a, now + 100));
                        } else {
                            prop_assert!(!holds.contains_key(&n), "who holds one is offered it");
                        }
                    }
                    2 => if let Some((a, _)) = holds.remove(&n) {
                        book.apply(&config, &Change::Release(LeaseRecord { address: a, client: Some(client(n)), until: at(now) }));
                    },
                    _ => if let Some((a, _)) = holds.remove(&n) {
                        book.apply(&config, &Change::Decline(LeaseRecord { address: a, client: None, until: at(now + 300) }));
                        prop_assert!(!book.may_have(&config, &config.link, &client(n), a, at(now + 299)));
                    },
                }
                for (m, (a, _)) in &holds {
                    prop_assert!(book.is_bound(&client(*m), *a, at(now)));
                }
                let again = Book::load(&config, book.leased(at(now)));
                for (m, (a, _)) in &holds {
                    prop_assert!(again.is_bound(&client(*m), *a, at(now)), "a restart forgets nothing");
                }
            }
        }
    }
}
