//! Bandwidth of ports: what must stand for it in the kernel, compared with what stands. Pure.
//!
//! ```text
//!   to the VM     br0 --> tap<port> [root: token bucket] --> VM
//!   from the VM   VM --> tap<port> [ingress: all to lim<port>] --> lim<port> [root: token bucket] --> back to tap<port>, guard, br0
//! ```
//!
//! A queue can only be put before a link's way out. So what a VM sends is led through an intermediate device (`ifb`) of the port's own, and
//! comes back to where it was taken from, before the guard has seen it. If that device is gone or down, nothing passes: too closed, not too open.
//!
//! A bucket alone (`tbf`) does what one class of `htb` would do, is one object instead of two, and bounds its queue in bytes.
//! What does not fit the queue is dropped, and TCP slows down.
//!
//! The intermediate device stands while a limit is wanted, whether or not the NIC is open; what hangs on the tap comes and goes with it.

pub mod counters;
pub mod wire;

use crate::{DesiredNetwork, DesiredPort, names};
use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
};
use vbm_core::{PortId, bandwidth::rate_text};

/// How long a full bucket lets a VM send at any speed, in milliseconds at its rate.
const BURST_MILLIS: u64 = 20;
/// The least bucket, in bytes: more than a frame of the largest MTU, and some of the kernel's bundles.
const BURST_MIN_BYTES: u64 = 32 * 1024;
/// The largest bucket, in bytes.
const BURST_MAX_BYTES: u64 = 16 * 1024 * 1024;
/// How long a packet waits at most in a queue that is full, in milliseconds at its rate.
const QUEUE_MILLIS: u64 = 50;
/// Within this part the kernel's own rounding of a bucket is the same bucket.
const BURST_TOLERANCE_PARTS: u64 = 50;

/// A token bucket with its queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    /// What it lets through, in bytes of a second.
    pub bytes_per_second: u32,
    /// What it lets through at once after a pause, in bytes.
    pub burst_bytes: u32,
    /// What waits at most; the rest is dropped. In bytes.
    pub queue_bytes: u32,
}

impl Shape {
    /// That of a rate, in 1,000 bits of a second.
    pub fn of(kbit_per_second: u32) -> Self {
        let rate = u64::from(kbit_per_second) * 125;
        let burst = (rate * BURST_MILLIS / 1_000).clamp(BURST_MIN_BYTES, BURST_MAX_BYTES);
        let queue = burst + rate * QUEUE_MILLIS / 1_000;
        let fit = |n: u64| u32::try_from(n).unwrap_or(u32::MAX);
        Self {
            bytes_per_second: fit(rate),
            burst_bytes: fit(burst),
            queue_bytes: fit(queue),
        }
    }

    /// Whether what was read back is this one. The kernel keeps the bucket as a time, and rounds.
    pub fn is_held_by(&self, seen: &Self) -> bool {
        let near = |a: u32, b: u32| u64::from(a.abs_diff(b)) <= u64::from(a) / BURST_TOLERANCE_PARTS + 1;
        self.bytes_per_second == seen.bytes_per_second
            && self.queue_bytes == seen.queue_bytes
            && near(self.burst_bytes, seen.burst_bytes)
    }
}

impl fmt::Display for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kbit = self.bytes_per_second / 125;
        write!(f, "{} with {} bytes at once", rate_text(kbit), self.burst_bytes)
    }
}

/// The buckets that a port shall have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wanted {
    /// The port.
    pub port: PortId,
    /// For what reaches the VM.
    pub into: Option<Shape>,
    /// For what it sends.
    pub out: Option<Shape>,
}

impl Wanted {
    /// Those of one port.
    pub fn of(port: &DesiredPort) -> Self {
        Self {
            port: port.id,
            into: port.policy.limits.in_kbit_per_second.map(Shape::of),
            out: port.policy.limits.out_kbit_per_second.map(Shape::of),
        }
    }
}

/// Those of all ports of a network, also where nothing is limited: what stands there goes.
pub fn render(net: &DesiredNetwork) -> Vec<Wanted> {
    net.ports.iter().map(Wanted::of).collect()
}

/// What is before a link's way out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Root {
    /// Whatever the kernel put there, or somebody.
    #[default]
    Other,
    /// A bucket.
    Shaped(Shape),
}

/// What happens with what a link receives.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Entrance {
    /// Nothing special.
    #[default]
    Plain,
    /// Something was begun there and leads nowhere, or elsewhere too.
    Broken,
    /// All of it goes to the link with this index.
    LeadsTo(u32),
}

/// A tap, or an intermediate device, as it stands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Seen {
    /// Its index.
    pub index: u32,
    /// Whether it was told to be up.
    pub up: bool,
    /// Before its way out.
    pub root: Root,
    /// Behind its way in.
    pub entrance: Entrance,
}

/// Taps and intermediate devices by their names.
pub type AllSeen = BTreeMap<String, Seen>;

/// One thing to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Make an intermediate device, tagged and down.
    Make(String),
    /// Bring it up.
    Raise(String),
    /// Put a bucket before a link's way out, in place of what is there.
    Shape(String, Shape),
    /// Lead all that the first receives to the second, in place of what is there.
    Lead(String, String),
    /// Take the bucket away.
    Unshape(String),
    /// Lead nothing elsewhere any more.
    Unlead(String),
    /// Remove an intermediate device.
    Remove(String),
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Make(gate) => write!(f, "link {gate}"),
            Self::Raise(gate) => write!(f, "{gate} up"),
            Self::Shape(link, shape) => write!(f, "limit of {link}: {shape}"),
            Self::Lead(tap, gate) => write!(f, "{tap} sends through {gate}"),
            Self::Unshape(link) => write!(f, "no more limit of {link}"),
            Self::Unlead(tap) => write!(f, "{tap} sends straight"),
            Self::Remove(gate) => write!(f, "no more {gate}"),
        }
    }
}

/// Whether there is anything to look at more closely: a limit is wanted, or something stands that only a limit brings.
/// `links` are names with the kind of their queue.
pub fn concerned<'a>(wanted: &[Wanted], mut links: impl Iterator<Item = (&'a str, Option<&'a str>)>) -> bool {
    let limited = |w: &Wanted| w.into.is_some() || w.out.is_some();
    wanted.iter().any(limited)
        || links.any(|(name, queue)| {
            let ours = name.starts_with(names::LIMIT_PREFIX);
            ours || (name.starts_with(names::TAP_PREFIX) && queue == Some(wire::KIND))
        })
}

/// What is to be done so that each port has its buckets and no other has. Empty when all stands.
pub fn plan(wanted: &[Wanted], seen: &AllSeen) -> Vec<Step> {
    let mut steps = Vec::new();
    let mut gates = BTreeSet::new();
    for want in wanted {
        let (tap, gate) = (names::tap(want.port), names::limit(want.port));
        if let Some(shape) = want.out {
            make_gate(&gate, shape, seen.get(&gate), &mut steps);
            gates.insert(gate.clone());
        }
        // Without a NIC there is no tap: its limits come with it.
        let Some(tap_seen) = seen.get(&tap) else { continue };
        bucket(&tap, want.into, tap_seen, &mut steps);
        let leads = seen.get(&gate).map(|g| Entrance::LeadsTo(g.index));
        match want.out {
            Some(_) if leads == Some(tap_seen.entrance) => {}
            Some(_) => steps.push(Step::Lead(tap, gate)),
            None if tap_seen.entrance == Entrance::Plain => {}
            None => steps.push(Step::Unlead(tap)),
        }
    }
    // Behind the taps: a tap that led to one that is gone would lose what it receives.
    let stale = seen.keys().filter(|name| name.starts_with(names::LIMIT_PREFIX));
    steps.extend(
        stale
            .filter(|name| !gates.contains(*name))
            .map(|name| Step::Remove(name.clone())),
    );
    steps
}

fn make_gate(gate: &str, shape: Shape, seen: Option<&Seen>, steps: &mut Vec<Step>) {
    if seen.is_none() {
        steps.push(Step::Make(gate.to_owned()));
    }
    bucket(gate, Some(shape), &seen.copied().unwrap_or_default(), steps);
    if !seen.is_some_and(|s| s.up) {
        steps.push(Step::Raise(gate.to_owned()));
    }
}

fn bucket(link: &str, want: Option<Shape>, seen: &Seen, steps: &mut Vec<Step>) {
    match (want, seen.root) {
        (Some(want), Root::Shaped(has)) if want.is_held_by(&has) => {}
        (Some(want), _) => steps.push(Step::Shape(link.to_owned(), want)),
        (None, Root::Shaped(_)) => steps.push(Step::Unshape(link.to_owned())),
        (None, Root::Other) => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use uuid::Uuid;

    fn want(port: u128, into: Option<u32>, out: Option<u32>) -> Wanted {
        Wanted {
            port: PortId::from_uuid(Uuid::from_u128(port)),
            into: into.map(Shape::of),
            out: out.map(Shape::of),
        }
    }

    fn tap(index: u32) -> Seen {
        Seen {
            index,
            up: true,
            ..Seen::default()
        }
    }

    fn lines(wanted: &[Wanted], seen: &AllSeen) -> String {
        let all: Vec<_> = plan(wanted, seen).iter().map(ToString::to_string).collect();
        all.join("; ")
    }

    /// The kernel, as far as limits are concerned.
    fn take(seen: &mut AllSeen, step: &Step) {
        let fresh = 100 + u32::try_from(seen.len()).unwrap();
        match step {
            Step::Make(gate) => {
                let made = Seen {
                    index: fresh,
                    ..Seen::default()
                };
                assert!(seen.insert(gate.clone(), made).is_none(), "made twice");
            }
            Step::Raise(gate) => seen.get_mut(gate).unwrap().up = true,
            Step::Shape(link, shape) => seen.get_mut(link).unwrap().root = Root::Shaped(*shape),
            Step::Unshape(link) => seen.get_mut(link).unwrap().root = Root::Other,
            Step::Lead(tap, gate) => {
                let to = seen[gate].index;
                seen.get_mut(tap).unwrap().entrance = Entrance::LeadsTo(to);
            }
            Step::Unlead(tap) => seen.get_mut(tap).unwrap().entrance = Entrance::Plain,
            Step::Remove(gate) => {
                let index = seen.remove(gate).unwrap().index;
                let into = |s: &Seen| s.entrance == Entrance::LeadsTo(index);
                assert!(!seen.values().any(into), "a tap leads to what is removed");
            }
        }
    }

    #[test]
    fn limits_are_made_changed_and_taken_away() {
        let mut seen = AllSeen::from([("tap0000000a".into(), tap(7))]);
        let both = [want(10, Some(10_000), Some(1_000))];
        assert_eq!(
            lines(&both, &seen),
            "link lim0000000a; limit of lim0000000a: 1mbit with 32768 bytes at once; lim0000000a up; \
             limit of tap0000000a: 10mbit with 32768 bytes at once; tap0000000a sends through lim0000000a"
        );
        plan(&both, &seen).iter().for_each(|step| take(&mut seen, step));
        assert_eq!(lines(&both, &seen), "");
        assert_eq!(
            lines(&[want(10, Some(20_000), Some(1_000))], &seen),
            "limit of tap0000000a: 20mbit with 50000 bytes at once"
        );
        assert_eq!(
            lines(&[want(10, None, None)], &seen),
            "no more limit of tap0000000a; tap0000000a sends straight; no more lim0000000a"
        );
    }

    #[test]
    fn a_port_without_a_nic_has_its_device_ready_and_one_that_is_gone_loses_it() {
        let mut seen = AllSeen::new();
        let out = [want(10, Some(10_000), Some(1_000))];
        plan(&out, &seen).iter().for_each(|step| take(&mut seen, step));
        assert_eq!(seen.keys().collect::<Vec<_>>(), ["lim0000000a"]);
        assert_eq!(lines(&out, &seen), "");
        assert_eq!(lines(&[], &seen), "no more lim0000000a");
    }

    #[test]
    fn what_the_kernel_rounds_is_the_same_and_what_somebody_changed_is_not() {
        let shape = Shape::of(10_000);
        let rounded = Shape {
            burst_bytes: shape.burst_bytes - 1,
            ..shape
        };
        let changed = Shape {
            bytes_per_second: shape.bytes_per_second + 1,
            ..shape
        };
        assert!(shape.is_held_by(&rounded) && !shape.is_held_by(&changed));
    }

    #[test]
    fn nobody_looks_closer_where_nothing_was_ever_limited() {
        let taps = [("tap0000000a", Some("pfifo_fast")), ("br0", Some("noqueue"))];
        assert!(!concerned(&[want(10, None, None)], taps.into_iter()));
        assert!(concerned(&[want(10, Some(100), None)], taps.into_iter()));
        assert!(concerned(&[], [("lim0000000a", None)].into_iter()));
        assert!(concerned(&[], [("tap0000000a", Some("tbf"))].into_iter()));
    }

    fn any_seen() -> impl Strategy<Value = AllSeen> {
        let rate = prop_oneof![
            Just(Root::Other),
            (64u32..100_000).prop_map(|k| Root::Shaped(Shape::of(k)))
        ];
        let entrance = prop_oneof![
            Just(Entrance::Plain),
            Just(Entrance::Broken),
            (0u32..9).prop_map(Entrance::LeadsTo)
        ];
        let one = (0u32..3, proptest::bool::ANY, proptest::bool::ANY, rate, entrance);
        proptest::collection::vec(one, 0..6).prop_map(|all| {
            let mut seen = AllSeen::new();
            for (n, (port, is_tap, up, root, entrance)) in all.into_iter().enumerate() {
                let index = 10 + u32::try_from(n).unwrap();
                let (name, entrance) = if is_tap {
                    (format!("tap{port:08x}"), entrance)
                } else {
                    (format!("lim{port:08x}"), Entrance::Plain)
                };
                seen.insert(
                    name,
                    Seen {
                        index,
                        up,
                        root,
                        entrance,
                    },
                );
            }
            // A tap of a port that is not wanted has been removed before.
            seen
        })
    }

    proptest! {
        #[test]
        fn from_any_state_one_plan_is_enough(
            seen in any_seen(),
            rates in proptest::collection::vec((proptest::option::of(64u32..100_000), proptest::option::of(64u32..100_000)), 3),
        ) {
            let mut seen = seen;
            let wanted: Vec<_> = rates.iter().zip(0u128..).map(|((into, out), n)| want(n, *into, *out)).collect();
            for step in plan(&wanted, &seen) {
                take(&mut seen, &step);
            }
            prop_assert_eq!(plan(&wanted, &seen), Vec::new());
        }
    }
}
