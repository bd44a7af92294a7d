//! W3C Trace Context, version 00: `00-<trace id>-<parent id>-<flags>` (www.w3.org/TR/trace-context, section 3.2).

use crate::service::mix;
use std::{fmt, str::FromStr};
use uuid::Uuid;

const SAMPLED: u8 = 1;
/// The length of version 00. Later versions may be longer.
const LENGTH: usize = 55;

/// One span of one trace.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct TraceContext {
    /// The trace; never 0.
    pub trace_id: u128,
    /// The span within it; never 0.
    pub span_id: u64,
    /// Whether it is recorded.
    pub sampled: bool,
}

/// The text is no `traceparent`: the trace begins anew, as the recommendation asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a traceparent of W3C Trace Context")]
pub struct InvalidTraceparent;

impl TraceContext {
    /// A new trace for a request: its id is the trace's, so no dice are needed.
    pub fn root(request: Uuid) -> Self {
        Self {
            trace_id: request.as_u128().max(1),
            span_id: span_id(request, 0),
            sampled: true,
        }
    }

    /// A span below this one, for one sending of a request (or, with `salt`, for another use of it).
    #[must_use]
    pub fn child(self, request: Uuid, salt: u64) -> Self {
        Self {
            span_id: span_id(request, salt),
            ..self
        }
    }
}

fn span_id(request: Uuid, salt: u64) -> u64 {
    let (high, low) = request.as_u64_pair();
    mix(high ^ low, salt).max(1)
}

impl fmt::Display for TraceContext {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let flags = if self.sampled { SAMPLED } else { 0 };
        write!(f, "00-{:032x}-{:016x}-{flags:02x}", self.trace_id, self.span_id)
    }
}

impl FromStr for TraceContext {
    type Err = InvalidTraceparent;

    fn from_str(text: &str) -> Result<Self, InvalidTraceparent> {
        let bytes = text.as_bytes();
        let dashes = |at: &[usize]| at.iter().all(|&at| bytes.get(at) == Some(&b'-'));
        if bytes.len() < LENGTH || !dashes(&[2, 35, 52]) {
            return Err(InvalidTraceparent);
        }
        let version = hex(&bytes[..2])?;
        let fits = match version {
            0 => bytes.len() == LENGTH,
            0xff => false,
            _ => bytes.len() == LENGTH || bytes[LENGTH] == b'-',
        };
        let (trace_id, span_id) = (hex(&bytes[3..35])?, hex(&bytes[36..52])?);
        let flags = hex(&bytes[53..55])?;
        if !fits || trace_id == 0 || span_id == 0 {
            return Err(InvalidTraceparent);
        }
        Ok(Self {
            trace_id,
            span_id: u64::try_from(span_id).map_err(|_| InvalidTraceparent)?,
            sampled: flags & u128::from(SAMPLED) != 0,
        })
    }
}

/// Lower-case hexadecimal digits, at most 32 of them.
fn hex(digits: &[u8]) -> Result<u128, InvalidTraceparent> {
    digits.iter().try_fold(0_u128, |value, &digit| {
        let digit = match digit {
            b'0'..=b'9' => digit - b'0',
            b'a'..=b'f' => digit - b'a' + 10,
            _ => return Err(InvalidTraceparent),
        };
        Ok((value << 4) | u128::from(digit))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const EXAMPLE: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

    #[test]
    fn the_example_of_the_recommendation_is_read_and_written() {
        let context: TraceContext = EXAMPLE.parse().unwrap();
        assert_eq!(context.trace_id, 0x0af7_6519_16cd_43dd_8448_eb21_1c80_319c);
        assert_eq!(context.span_id, 0xb7ad_6b71_6920_3331);
        assert!(context.sampled);
        assert_eq!(context.to_string(), EXAMPLE);
        let unsampled: TraceContext = EXAMPLE.replace("-01", "-00").parse().unwrap();
        assert!(!unsampled.sampled);
    }

    #[test]
    fn a_later_version_is_read_as_far_as_it_is_known() {
        let later = EXAMPLE.replace("00-", "01-");
        assert!(later.parse::<TraceContext>().is_ok());
        assert!(format!("{later}-more").parse::<TraceContext>().is_ok());
        assert!(format!("{later}more").parse::<TraceContext>().is_err());
    }

    #[test]
    fn what_the_recommendation_forbids_is_refused() {
        for bad in [
            "",
            "00-aa-bb-01",
            &EXAMPLE.to_uppercase(),
            &EXAMPLE.replace("00-0a", "ff-0a"),
            &EXAMPLE.replace("0af7651916cd43dd8448eb211c80319c", &"0".repeat(32)),
            &EXAMPLE.replace("b7ad6b7169203331", &"0".repeat(16)),
            &format!("{EXAMPLE}-more"),
            &EXAMPLE.replace('-', "_"),
        ] {
            assert!(bad.parse::<TraceContext>().is_err(), "{bad}");
        }
    }

    #[test]
    fn children_stay_in_the_trace_and_differ() {
        let id = Uuid::from_u128(7);
        let parent: TraceContext = EXAMPLE.parse().unwrap();
        let (one, two) = (parent.child(id, 1), parent.child(id, 2));
        assert_eq!((one.trace_id, two.trace_id), (parent.trace_id, parent.trace_id));
        assert_ne!(one.span_id, two.span_id);
        assert_ne!(TraceContext::root(id).span_id, 0);
    }

    proptest! {
        #[test]
        fn every_context_survives_its_text(trace_id in 1u128.., span_id in 1u64.., sampled in any::<bool>()) {
            let context = TraceContext { trace_id, span_id, sampled };
            prop_assert_eq!(context.to_string().parse(), Ok(context));
        }
        #[test]
        fn garbage_is_never_a_panic(text in ".{0,80}") {
            let _ignored = text.parse::<TraceContext>();
        }
    }
}
