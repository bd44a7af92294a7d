//! Goals: what a figure should be. Information, never a gate.

use std::{fmt, str::FromStr};

/// What a row aims at.
///
/// | written | means |
/// |---|---|
/// | `>= 12x` | ours is at least twelve times the peer's |
/// | `<= 0.6x` | ours is at most 0.6 of the peer's |
/// | `>= 5`, `<= 60` | ours alone, in the unit of the row |
/// | `<= peer + 1.5` | at most so much more than the peer's |
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Goal {
    RatioAtLeast(f64),
    RatioAtMost(f64),
    AtLeast(f64),
    AtMost(f64),
    PeerPlus(f64),
}

impl Goal {
    /// Whether it is met; `None` when that needs a peer and there is none.
    pub(crate) fn met(self, ours: f64, peer: Option<f64>) -> Option<bool> {
        let ratio = peer.and_then(|peer| ratio(ours, peer));
        match self {
            Self::RatioAtLeast(least) => ratio.map(|ratio| ratio >= least),
            Self::RatioAtMost(most) => ratio.map(|ratio| ratio <= most),
            Self::AtLeast(least) => Some(ours >= least),
            Self::AtMost(most) => Some(ours <= most),
            Self::PeerPlus(more) => peer.map(|peer| ours <= peer + more),
        }
    }
}

/// Ours by the peer's; `None` when the peer's is nothing.
pub(crate) fn ratio(ours: f64, peer: f64) -> Option<f64> {
    (peer > 0.0 && ours.is_finite()).then_some(ours / peer)
}

impl fmt::Display for Goal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::RatioAtLeast(x) => write!(f, ">= {x}x"),
            Self::RatioAtMost(x) => write!(f, "<= {x}x"),
            Self::AtLeast(x) => write!(f, ">= {x}"),
            Self::AtMost(x) => write!(f, "<= {x}"),
            Self::PeerPlus(x) => write!(f, "<= peer + {x}"),
        }
    }
}

impl FromStr for Goal {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let bad = || format!("'{text}' is no goal: write >= 12x, <= 0.6x, >= 5, <= 60 or <= peer + 1.5");
        let (sign, rest) = text.split_at_checked(2).ok_or_else(bad)?;
        let rest = rest.trim();
        let number = |text: &str| {
            text.trim()
                .parse::<f64>()
                .ok()
                .filter(|x| x.is_finite() && *x >= 0.0)
        };
        let goal = match (sign, rest.strip_suffix('x'), rest.strip_prefix("peer")) {
            (">=", Some(factor), None) => number(factor).map(Self::RatioAtLeast),
            ("<=", Some(factor), None) => number(factor).map(Self::RatioAtMost),
            ("<=", None, Some(more)) => more.trim().strip_prefix('+').and_then(number).map(Self::PeerPlus),
            (">=", None, None) => number(rest).map(Self::AtLeast),
            ("<=", None, None) => number(rest).map(Self::AtMost),
            _ => None,
        };
        goal.ok_or_else(bad)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_and_written_again() {
        for (text, goal) in [
            (">= 12x", Goal::RatioAtLeast(12.0)),
            ("<= 0.6x", Goal::RatioAtMost(0.6)),
            (">= 5", Goal::AtLeast(5.0)),
            ("<= 60", Goal::AtMost(60.0)),
            ("<= peer + 1.5", Goal::PeerPlus(1.5)),
        ] {
            assert_eq!(text.parse::<Goal>().unwrap(), goal);
            assert_eq!(goal.to_string(), text);
        }
    }

    #[test]
    fn what_is_no_goal_is_refused() {
        for bad in [
            "",
            "<",
            "<=",
            "12x",
            "= 3",
            "<= x",
            "<= -1",
            "<= NaN",
            "<= inf",
            ">= peer + 1",
            "<= peer",
            "<= peer 1",
            "<= é",
        ] {
            assert!(bad.parse::<Goal>().is_err(), "{bad}");
        }
    }

    #[test]
    fn a_goal_is_met_at_its_border() {
        assert_eq!(Goal::RatioAtLeast(12.0).met(24.0, Some(2.0)), Some(true));
        assert_eq!(Goal::RatioAtLeast(12.0).met(23.9, Some(2.0)), Some(false));
        assert_eq!(Goal::RatioAtMost(0.5).met(1.0, Some(2.0)), Some(true));
        assert_eq!(Goal::AtMost(60.0).met(60.0, None), Some(true));
        assert_eq!(Goal::AtLeast(60.0).met(59.0, Some(1.0)), Some(false));
        assert_eq!(Goal::PeerPlus(1.5).met(4.5, Some(3.0)), Some(true));
        assert_eq!(Goal::PeerPlus(1.5).met(4.6, Some(3.0)), Some(false));
    }

    #[test]
    fn without_a_peer_nobody_knows() {
        for goal in [
            Goal::RatioAtLeast(1.0),
            Goal::RatioAtMost(1.0),
            Goal::PeerPlus(1.0),
        ] {
            assert_eq!(goal.met(1.0, None), None);
        }
        assert_eq!(ratio(1.0, 0.0), None);
        assert_eq!(Goal::RatioAtMost(1.0).met(1.0, Some(0.0)), None);
    }
}
