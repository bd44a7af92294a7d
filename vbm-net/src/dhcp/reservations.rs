//! Who has a fixed address: by MAC for those who ask, by address so that no pool gives it to another.

use super::Reservation;
use std::{
    collections::{HashMap, HashSet},
    net::Ipv4Addr,
};
use vbm_core::Mac;

/// Ports by MAC, and their addresses.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Reservations {
    by_mac: HashMap<Mac, Reservation>,
    addresses: HashSet<Ipv4Addr>,
}

impl Reservations {
    /// The port with this MAC.
    pub fn get(&self, mac: Mac) -> Option<&Reservation> {
        self.by_mac.get(&mac)
    }

    /// Adds a port, or replaces the one with this MAC.
    pub fn insert(&mut self, mac: Mac, port: Reservation) {
        let address = port.address;
        if let Some(old) = self.by_mac.insert(mac, port) {
            self.addresses.remove(&old.address);
        }
        self.addresses.insert(address);
    }

    /// Whether it is a port's.
    pub fn has_address(&self, address: Ipv4Addr) -> bool {
        self.addresses.contains(&address)
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.by_mac.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.by_mac.is_empty()
    }

    /// All of them, in no order.
    pub fn iter(&self) -> impl Iterator<Item = (&Mac, &Reservation)> {
        self.by_mac.iter()
    }
}

impl FromIterator<(Mac, Reservation)> for Reservations {
    fn from_iter<T: IntoIterator<Item = (Mac, Reservation)>>(all: T) -> Self {
        let mut made = Self::default();
        for (mac, port) in all {
            made.insert(mac, port);
        }
        made
    }
}
