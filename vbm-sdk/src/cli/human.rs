//! Times and sizes as people read and write them.

use std::time::Duration;
use vbm_core::{Error, ErrorKind, Timestamp};

const MINUTE: u64 = 60;
const HOUR: u64 = 60 * MINUTE;
const DAY: u64 = 24 * HOUR;
const YEAR: u64 = 365 * DAY;

/// How long ago: one unit, the largest that fits.
pub(super) fn age(now: Timestamp, then: Timestamp) -> String {
    span(now.since(then))
}

/// A span: one unit, the largest that fits.
pub(super) fn span(span: Duration) -> String {
    match span.as_secs() {
        s if s < 2 * MINUTE => format!("{s}s"),
        s if s < 2 * HOUR => format!("{}m", s / MINUTE),
        s if s < 2 * DAY => format!("{}h", s / HOUR),
        s if s < 2 * YEAR => format!("{}d", s / DAY),
        s => format!("{}y", s / YEAR),
    }
}

/// `512M`, `1G`, `1.5G`.
pub(super) fn mib(mib: u64) -> String {
    bytes(mib.saturating_mul(1 << 20))
}

/// Bytes with the largest unit that leaves at least one, and one decimal where it says something.
pub(super) fn bytes(bytes: u64) -> String {
    const UNITS: [(u64, &str); 4] = [(1 << 40, "T"), (1 << 30, "G"), (1 << 20, "M"), (1 << 10, "K")];
    let Some((size, unit)) = UNITS.into_iter().find(|(size, _)| bytes >= *size) else {
        return format!("{bytes}B");
    };
    let tenths = u128::from(bytes) * 10 / u128::from(size);
    match tenths % 10 {
        0 => format!("{}{unit}", tenths / 10),
        tenth => format!("{}.{tenth}{unit}", tenths / 10),
    }
}

/// Reads `512`, `512M`, `2G`, `1T` (and `MiB` and so on) as MiB; a number alone is MiB.
///
/// # Errors
/// Anything else, zero, and what no number can hold.
pub(super) fn parse_mib(text: &str) -> Result<u64, Error> {
    let refuse = |why: &str| {
        Error::new(
            ErrorKind::InvalidInput,
            format!("'{text}' is not a size"),
            why,
            "write MiB such as 512, or a number with M, G or T such as 2G",
        )
    };
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let number: u64 = number
        .parse()
        .map_err(|_| refuse("it does not begin with a whole number"))?;
    let factor = match unit.to_ascii_lowercase().as_str() {
        "" | "m" | "mi" | "mib" | "mb" => 1,
        "g" | "gi" | "gib" | "gb" => 1 << 10,
        "t" | "ti" | "tib" | "tb" => 1 << 20,
        _ => return Err(refuse("its unit is not one of M, G and T")),
    };
    match number.checked_mul(factor) {
        Some(0) => Err(refuse("it is nothing")),
        Some(mib) => Ok(mib),
        None => Err(refuse("it is too large")),
    }
}

/// Reads `30`, `30s`, `5m`, `2h`; a number alone is seconds.
///
/// # Errors
/// Anything else, and zero.
pub(super) fn parse_span(text: &str) -> Result<Duration, Error> {
    let refuse = |why: &str| {
        Error::new(
            ErrorKind::InvalidInput,
            format!("'{text}' is not a time span"),
            why,
            "write seconds such as 30, or a number with s, m or h such as 5m",
        )
    };
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let number: u64 = number
        .parse()
        .map_err(|_| refuse("it does not begin with a whole number"))?;
    let factor = match unit {
        "" | "s" => 1,
        "m" => MINUTE,
        "h" => HOUR,
        _ => return Err(refuse("its unit is not one of s, m and h")),
    };
    match number.checked_mul(factor) {
        Some(0) => Err(refuse("it is nothing")),
        Some(seconds) if seconds <= YEAR => Ok(Duration::from_secs(seconds)),
        _ => Err(refuse("it is longer than a year")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn ages_have_one_unit() {
        for (seconds, text) in [
            (0, "0s"),
            (119, "119s"),
            (120, "2m"),
            (7_199, "119m"),
            (7_200, "2h"),
            (47 * 3_600, "47h"),
            (48 * 3_600, "2d"),
            (700 * 86_400, "700d"),
            (730 * 86_400, "2y"),
        ] {
            assert_eq!(span(Duration::from_secs(seconds)), text);
        }
        let now = Timestamp::from_micros(10_000_000);
        assert_eq!(age(now, Timestamp::from_micros(4_000_000)), "6s");
        assert_eq!(
            age(now, Timestamp::from_micros(40_000_000)),
            "0s",
            "clocks may differ"
        );
    }

    #[test]
    fn sizes_have_the_largest_unit_that_fits() {
        for (mebi, text) in [
            (64, "64M"),
            (256, "256M"),
            (1_024, "1G"),
            (1_536, "1.5G"),
            (1 << 20, "1T"),
        ] {
            assert_eq!(mib(mebi), text);
        }
        assert_eq!((bytes(0), bytes(1_500)), ("0B".into(), "1.4K".into()));
    }

    #[test]
    fn sizes_are_read_as_people_write_them() {
        for (text, mib) in [
            ("256", 256),
            ("512M", 512),
            ("512MiB", 512),
            ("2g", 2_048),
            ("1T", 1 << 20),
        ] {
            assert_eq!(parse_mib(text).unwrap(), mib, "{text}");
        }
        for bad in [
            "",
            "0",
            "G",
            "-1",
            "1.5G",
            "10X",
            "10 G",
            "99999999999999999999",
            "18446744073709551615T",
        ] {
            assert_eq!(
                parse_mib(bad).unwrap_err().kind(),
                ErrorKind::InvalidInput,
                "{bad}"
            );
        }
    }

    #[test]
    fn spans_are_read_as_people_write_them() {
        for (text, seconds) in [("30", 30), ("30s", 30), ("5m", 300), ("2h", 7_200)] {
            assert_eq!(parse_span(text).unwrap(), Duration::from_secs(seconds));
        }
        for bad in ["", "0", "m", "-1", "1d", "9999999h", "1.5"] {
            assert!(parse_span(bad).is_err(), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn reading_never_panics(text in ".{0,30}") {
            drop((parse_mib(&text), parse_span(&text)));
        }
        #[test]
        fn every_size_has_a_text(n: u64) { prop_assert!(!bytes(n).is_empty() && !mib(n).is_empty()); }
    }
}
