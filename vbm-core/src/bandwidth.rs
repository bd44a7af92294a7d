//! How much a port may carry: bandwidth each way, and connections.

use crate::{
    Error,
    error::invalid,
    limits::{PORT_MAX_CONNECTIONS, PORT_MAX_KBIT_PER_SECOND, PORT_MIN_KBIT_PER_SECOND},
};
use serde::{Deserialize, Serialize};

/// How much a port may carry. What is not said is not limited.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct PortLimits {
    /// The most that reaches the VM, in 1,000 bits per second of Ethernet frames.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub in_kbit_per_second: Option<u32>,
    /// The most that the VM sends, in 1,000 bits per second of Ethernet frames.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub out_kbit_per_second: Option<u32>,
    /// The most connections at one time, those that the VM begins and those that reach it together, of IPv4 and of IPv6 each.
    /// One is whatever the kernel tracks: TCP until it is closed, UDP and ICMP until they are quiet for a while.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub connections: Option<u32>,
}

impl PortLimits {
    /// Whether nothing is limited.
    pub fn is_none(&self) -> bool {
        *self == Self::default()
    }

    /// Checks the numbers.
    ///
    /// # Errors
    /// A rate or a count that is too small to work with, or larger than what can be kept.
    pub fn check(&self) -> Result<(), Error> {
        let rates = [("in", self.in_kbit_per_second), ("out", self.out_kbit_per_second)];
        for (way, kbit) in rates {
            let fits = |k: u32| (PORT_MIN_KBIT_PER_SECOND..=PORT_MAX_KBIT_PER_SECOND).contains(&k);
            if let Some(kbit) = kbit.filter(|k| !fits(*k)) {
                return Err(invalid(
                    format!("a port cannot be limited to {} {way}", rate_text(kbit)),
                    format!(
                        "a limit is {} to {}",
                        rate_text(PORT_MIN_KBIT_PER_SECOND),
                        rate_text(PORT_MAX_KBIT_PER_SECOND)
                    ),
                    "choose one between, or leave it out for no limit",
                ));
            }
        }
        if let Some(count) = self
            .connections
            .filter(|c| !(1..=PORT_MAX_CONNECTIONS).contains(c))
        {
            return Err(invalid(
                format!("a port cannot be limited to {count} connections"),
                format!("a limit is 1 to {PORT_MAX_CONNECTIONS}"),
                "choose one between, or leave it out for no limit; to cut a VM off, take its rules away",
            ));
        }
        Ok(())
    }
}

/// The units in which rates are written, largest first, each in 1,000 bits per second.
const UNITS: [(&str, u32); 3] = [("gbit", 1_000_000), ("mbit", 1_000), ("kbit", 1)];

/// Reads a rate such as `512kbit`, `10mbit` or `1gbit` into 1,000 bits per second.
///
/// # Errors
/// Text that is no such rate, or one that no port can have.
pub fn parse_rate(text: &str) -> Result<u32, Error> {
    let read = UNITS.iter().find_map(|(unit, kbit)| {
        let number: u32 = text.strip_suffix(unit)?.parse().ok()?;
        number.checked_mul(*kbit)
    });
    let kbit = read.ok_or_else(|| {
        invalid(
            format!("'{text}' is no rate"),
            "a rate is a whole number and its unit, kbit, mbit or gbit, all of a second",
            "write for example 512kbit, 10mbit or 1gbit",
        )
    })?;
    let limits = PortLimits {
        in_kbit_per_second: Some(kbit),
        ..PortLimits::default()
    };
    limits.check().map(|()| kbit)
}

/// A rate as [`parse_rate`] reads it.
pub fn rate_text(kbit_per_second: u32) -> String {
    let whole = |(_, kbit): &&(&str, u32)| kbit_per_second.is_multiple_of(*kbit) && kbit_per_second > 0;
    match UNITS.iter().find(whole) {
        Some((unit, kbit)) => format!("{}{unit}", kbit_per_second / kbit),
        None => format!("{kbit_per_second}kbit"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn rates_are_read_in_each_unit_and_nonsense_is_named() {
        for (text, kbit) in [("64kbit", 64), ("10mbit", 10_000), ("1gbit", 1_000_000)] {
            assert_eq!(parse_rate(text).unwrap(), kbit);
            assert_eq!(rate_text(kbit), text);
        }
        for bad in [
            "",
            "10",
            "mbit",
            "-1mbit",
            "1.5mbit",
            "10 mbit",
            "10MBIT",
            "0kbit",
            "63kbit",
            "33gbit",
            "4294967295gbit",
            "10mbit ",
            "٣mbit",
        ] {
            let error = parse_rate(bad).unwrap_err();
            assert!(
                error.to_string().contains("rate") || error.to_string().contains("limited"),
                "{bad}: {error}"
            );
        }
    }

    #[test]
    fn a_limit_that_cannot_be_kept_is_refused() {
        for (limits, says) in [
            (
                PortLimits {
                    in_kbit_per_second: Some(1),
                    ..Default::default()
                },
                "limited to 1kbit in",
            ),
            (
                PortLimits {
                    out_kbit_per_second: Some(u32::MAX),
                    ..Default::default()
                },
                "kbit out",
            ),
            (
                PortLimits {
                    connections: Some(0),
                    ..Default::default()
                },
                "limited to 0 connections",
            ),
            (
                PortLimits {
                    connections: Some(PORT_MAX_CONNECTIONS + 1),
                    ..Default::default()
                },
                "connections",
            ),
        ] {
            let error = limits.check().unwrap_err().to_string();
            assert!(error.contains(says), "{error}");
        }
        PortLimits::default().check().unwrap();
    }

    proptest! {
        #[test]
        fn a_rate_is_read_as_it_was_written(kbit in PORT_MIN_KBIT_PER_SECOND..=PORT_MAX_KBIT_PER_SECOND) {
            prop_assert_eq!(parse_rate(&rate_text(kbit)).unwrap(), kbit);
        }

        #[test]
        fn reading_garbage_never_panics(text in ".{0,20}") {
            drop(parse_rate(&text));
        }
    }
}
