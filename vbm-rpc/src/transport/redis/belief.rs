//! Whom the writer believes to be there without asking again. Pure.
//!
//! The question whether a node is there costs as much as the frame that it goes with. Presence itself changes slowly (who
//! dies is present until it runs out), so that a yes is believed for [`BELIEVED_FOR`]; a no never is. Who leaves in
//! peace takes its empty queue away with its presence: what is sent there on an old yes is refused by Redis, is asked about
//! again at once, and fails in the second round trip.

use super::op::Target;
use std::{collections::HashMap, time::Duration};
use tokio::time::Instant;

/// How long it is believed that a node is there.
pub(super) const BELIEVED_FOR: Duration = Duration::from_millis(25);
/// With more frames than this it is asked each time.
const FRAMES_MAX_BELIEVED: usize = 8;
/// The most destinations that are remembered.
const BELIEFS_MAX: usize = 4_096;

#[derive(Default)]
pub(super) struct Beliefs(HashMap<Target, Instant>);

impl Beliefs {
    /// Whether it must be asked with so many frames that are written there now. Among many the question costs nothing.
    pub(super) fn asks(&self, target: &Target, frames: usize, now: Instant) -> bool {
        match target {
            Target::Node(_) | Target::Control(_) if frames > FRAMES_MAX_BELIEVED => true,
            Target::Node(_) | Target::Control(_) => self
                .0
                .get(target)
                .is_none_or(|asked| now.saturating_duration_since(*asked) >= BELIEVED_FOR),
            // That many are there decides how much each is given.
            Target::Any { .. } | Target::AnyControl { .. } => true,
            Target::Shard { .. } | Target::Inbox { .. } => false,
        }
    }

    /// Asked at that time, the node was there, and its queue took what was written.
    pub(super) fn there(&mut self, target: &Target, asked: Instant) {
        if let Target::Node(_) | Target::Control(_) = target {
            if self.0.len() >= BELIEFS_MAX {
                self.0.clear();
            }
            self.0.insert(target.clone(), asked);
        }
    }

    /// It is not as it was.
    pub(super) fn doubt(&mut self, target: &Target) {
        self.0.remove(target);
    }

    /// Another server, or another time.
    pub(super) fn clear(&mut self) {
        self.0.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_yes_is_believed_for_a_while_and_not_after_a_doubt() {
        let (mut beliefs, now) = (Beliefs::default(), Instant::now());
        let node = Target::Node("n1".parse().unwrap());
        assert!(beliefs.asks(&node, 1, now));
        beliefs.there(&node, now);
        assert!(!beliefs.asks(&node, FRAMES_MAX_BELIEVED, now));
        assert!(beliefs.asks(&node, FRAMES_MAX_BELIEVED + 1, now));
        assert!(beliefs.asks(&node, 1, now + BELIEVED_FOR));
        let control = Target::Control("n1".parse().unwrap());
        assert!(beliefs.asks(&control, 1, now), "it is another queue");
        beliefs.doubt(&node);
        assert!(beliefs.asks(&node, 1, now));
        beliefs.there(&node, now);
        beliefs.clear();
        assert!(beliefs.asks(&node, 1, now));
    }

    #[test]
    fn the_number_of_workers_is_asked_each_time_and_no_more_is_remembered_than_allowed() {
        let (mut beliefs, now) = (Beliefs::default(), Instant::now());
        let any = Target::Any {
            scope: "a".parse().unwrap(),
            service: crate::Service::new("w").unwrap(),
        };
        beliefs.there(&any, now);
        assert!(beliefs.asks(&any, 1, now));
        for n in 0..=BELIEFS_MAX {
            beliefs.there(&Target::Node(format!("n{n}").parse().unwrap()), now);
        }
        assert!(beliefs.0.len() <= BELIEFS_MAX);
    }
}
