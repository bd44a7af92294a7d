//! Ethernet addresses.

use crate::{Error, error::invalid};
use std::{fmt, str::FromStr};

/// A 48-bit Ethernet address. Written and read as `52:54:00:ab:cd:ef`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Mac([u8; 6]);

impl Mac {
    /// From its six octets, in the order of the wire.
    pub const fn new(octets: [u8; 6]) -> Self {
        Self(octets)
    }

    /// A locally administered unicast address under QEMU's well-known prefix `52:54:00`, with 24 given bits.
    pub const fn local(bits: u32) -> Self {
        let [_, a, b, c] = bits.to_be_bytes();
        Self([0x52, 0x54, 0x00, a, b, c])
    }

    /// The six octets.
    pub const fn octets(self) -> [u8; 6] {
        self.0
    }

    /// Whether a NIC may carry it: not multicast, not broadcast, not all zero.
    pub const fn is_unicast(self) -> bool {
        self.0[0] & 1 == 0 && !matches!(self.0, [0, 0, 0, 0, 0, 0])
    }
}

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}
impl fmt::Debug for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Mac {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let refuse = || {
            invalid(
                format!("'{text}' is not a MAC address"),
                "it is not six pairs of hex digits separated by ':'",
                "write it as 52:54:00:ab:cd:ef",
            )
        };
        let mut octets = [0; 6];
        let mut parts = text.split(':');
        for octet in &mut octets {
            let part = parts.next().filter(|p| p.len() == 2).ok_or_else(refuse)?;
            if !part.bytes().all(|b| b.is_ascii_hexdigit()) {
                return Err(refuse());
            }
            *octet = u8::from_str_radix(part, 16).map_err(|_| refuse())?;
        }
        if parts.next().is_some() {
            Err(refuse())
        } else {
            Ok(Self(octets))
        }
    }
}
crate::text::string_serde!(Mac, "a MAC address such as 52:54:00:ab:cd:ef");

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn every_mac_survives_its_text(octets: [u8; 6]) {
            let mac = Mac::new(octets);
            prop_assert_eq!(mac.to_string().parse::<Mac>().unwrap(), mac);
        }
        #[test]
        fn local_macs_are_unicast(bits: u32) { prop_assert!(Mac::local(bits).is_unicast()); }
    }

    #[test]
    fn near_misses_are_refused() {
        for bad in [
            "",
            "52:54:00:ab:cd",
            "52:54:00:ab:cd:ef:00",
            "52-54-00-ab-cd-ef",
            "+2:54:00:ab:cd:ef",
            "5:2:5:4:0:0",
        ] {
            assert!(bad.parse::<Mac>().is_err(), "{bad}");
        }
        assert!(!Mac::new([0xff; 6]).is_unicast());
        assert!(!Mac::new([0; 6]).is_unicast());
    }
}
