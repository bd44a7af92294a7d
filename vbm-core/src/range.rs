//! Ranges of addresses, as people write them: `10.0.0.5-10.0.0.9`, `10.0.0.5`, `10.0.0.16/28`.

use crate::{Error, error::invalid};
use std::{
    fmt,
    net::{Ipv4Addr, Ipv6Addr},
    str::FromStr,
};

/// A range of one family; both ends belong to it.
macro_rules! range {
    ($(#[$doc:meta])* $name:ident, $address:ty, $net:ty, $family:literal, $example:literal, $expects:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name {
            first: $address,
            last: $address,
        }

        impl $name {
            /// From its ends.
            ///
            /// # Errors
            /// The first stands after the last.
            pub fn new(first: $address, last: $address) -> Result<Self, Error> {
                if first > last {
                    return Err(invalid(
                        format!("{first}-{last} is not a range of addresses"),
                        "its first address stands after its last",
                        format!("write {last}-{first}"),
                    ));
                }
                Ok(Self { first, last })
            }

            /// One address.
            pub const fn one(address: $address) -> Self {
                Self { first: address, last: address }
            }

            /// Its first address.
            pub const fn first(&self) -> $address {
                self.first
            }

            /// Its last address.
            pub const fn last(&self) -> $address {
                self.last
            }

            /// Whether an address is in it.
            pub fn contains(&self, address: $address) -> bool {
                self.first <= address && address <= self.last
            }

            /// Whether an address is in both.
            pub fn overlaps(&self, other: &Self) -> bool {
                self.first <= other.last && other.first <= self.last
            }
        }

        impl From<$net> for $name {
            fn from(net: $net) -> Self {
                Self { first: net.network(), last: net.broadcast() }
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                if self.first == self.last {
                    fmt::Display::fmt(&self.first, f)
                } else {
                    write!(f, "{}-{}", self.first, self.last)
                }
            }
        }
        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(self, f)
            }
        }

        impl FromStr for $name {
            type Err = Error;

            fn from_str(text: &str) -> Result<Self, Error> {
                let refuse = |why: String| {
                    invalid(
                        format!("'{text:.100}' is not a range of {} addresses", $family),
                        why,
                        format!("write it as {}", $example),
                    )
                };
                let address = |part: &str| {
                    part.parse::<$address>()
                        .map_err(|_| refuse(format!("'{part:.50}' is not an {} address", $family)))
                };
                if text.contains('/') {
                    let net = text
                        .parse::<$net>()
                        .map_err(|_| refuse(format!("it is not an {} network", $family)))?;
                    if net.addr() != net.network() {
                        return Err(refuse("bits are set behind the prefix".into()));
                    }
                    return Ok(net.into());
                }
                match text.split_once('-') {
                    Some((first, last)) => Self::new(address(first)?, address(last)?),
                    None => Ok(Self::one(address(text)?)),
                }
            }
        }
        crate::text::string_serde!($name, $expects);
    };
}

range!(
    /// A range of IPv4 addresses.
    Ipv4Range, Ipv4Addr, ipnet::Ipv4Net, "IPv4", "10.0.0.5-10.0.0.9, 10.0.0.5 or 10.0.0.16/28",
    "IPv4 addresses such as 10.0.0.5-10.0.0.9, 10.0.0.5 or 10.0.0.16/28"
);
range!(
    /// A range of IPv6 addresses.
    Ipv6Range, Ipv6Addr, ipnet::Ipv6Net, "IPv6", "fd00::10-fd00::ff, fd00::10 or fd00::100/120",
    "IPv6 addresses such as fd00::10-fd00::ff, fd00::10 or fd00::100/120"
);

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_range_is_two_addresses_one_address_or_a_prefix() {
        let range: Ipv4Range = "10.0.0.16/28".parse().unwrap();
        assert_eq!(range.to_string(), "10.0.0.16-10.0.0.31");
        assert_eq!("10.0.0.5".parse::<Ipv4Range>().unwrap().to_string(), "10.0.0.5");
        let range: Ipv6Range = "fd00::1-fd00::ff".parse().unwrap();
        assert!(range.contains("fd00::80".parse().unwrap()) && !range.contains("fd00::100".parse().unwrap()));
    }

    #[test]
    fn ranges_that_make_no_sense_are_refused_with_their_reason() {
        let long = "9".repeat(300);
        for (bad, why) in [
            ("", "not an IPv4 address"),
            ("-", "not an IPv4 address"),
            ("10.0.0.9-10.0.0.5", "stands after its last"),
            ("10.0.0.5-", "not an IPv4 address"),
            ("10.0.0.5-10.0.0.6-10.0.0.7", "not an IPv4 address"),
            ("10.0.0.1/24", "bits are set"),
            ("10.0.0.0/33", "not an IPv4 network"),
            ("fd00::1", "not an IPv4 address"),
            ("１0.0.0.1", "not an IPv4 address"),
            (&*long, "not an IPv4 address"),
        ] {
            let error = bad.parse::<Ipv4Range>().unwrap_err();
            assert!(error.why().contains(why), "{bad}: {error}");
            assert!(error.what().len() < 200, "the text of a stranger is cut");
        }
    }

    proptest! {
        #[test]
        fn every_range_survives_its_text(a: u32, b: u32, c: u128, d: u128) {
            let four = Ipv4Range::new(a.min(b).into(), a.max(b).into()).unwrap();
            prop_assert_eq!(four.to_string().parse::<Ipv4Range>().unwrap(), four);
            let six = Ipv6Range::new(c.min(d).into(), c.max(d).into()).unwrap();
            prop_assert_eq!(six.to_string().parse::<Ipv6Range>().unwrap(), six);
        }
        #[test]
        fn reading_never_panics(text in ".{0,60}") {
            drop((text.parse::<Ipv4Range>(), text.parse::<Ipv6Range>()));
        }
        #[test]
        fn ranges_overlap_when_they_share_an_address(a in 0u32..40, b in 0u32..40, c in 0u32..40, d in 0u32..40) {
            let range = |x: u32, y: u32| Ipv4Range::new(x.min(y).into(), x.max(y).into()).unwrap();
            let (one, other) = (range(a, b), range(c, d));
            let shared = (0..40u32).any(|n| one.contains(n.into()) && other.contains(n.into()));
            prop_assert_eq!(one.overlaps(&other), shared);
        }
    }
}
