//! Trouble that is ordered, not diced: who cannot reach whom, who is paused, whether the bus answers; and the story of
//! all that was done to messages, so that a seed that fails can be read.

use bytes::Bytes;
use std::{collections::VecDeque, fmt};
use tokio::time::Instant;
use vbm_core::NodePath;

use crate::transport::Destination;

/// The most lines of a story; the oldest go first.
const STORY_MAX_LINES: usize = 4_096;

/// What is wrong at the moment.
pub(super) struct Trouble {
    /// From whom, to whom nothing gets through.
    cuts: Vec<(NodePath, NodePath)>,
    /// Who stands still: everybody below these.
    paused: Vec<NodePath>,
    /// The bus itself does not answer.
    down: bool,
    story: VecDeque<String>,
    forgotten: usize,
    begin: Instant,
}

impl Default for Trouble {
    fn default() -> Self {
        Self {
            cuts: Vec::new(),
            paused: Vec::new(),
            down: false,
            story: VecDeque::new(),
            forgotten: 0,
            begin: Instant::now(),
        }
    }
}

impl Trouble {
    pub(super) fn cut(&mut self, from: NodePath, to: NodePath) {
        self.cuts.push((from, to));
    }

    pub(super) fn mend_cuts(&mut self) {
        self.cuts.clear();
    }

    /// Whether what goes from here to there is held up.
    pub(super) fn is_cut(&self, from: &NodePath, to: &NodePath) -> bool {
        self.cuts.iter().any(|(a, b)| a.contains(from) && b.contains(to))
    }

    pub(super) fn pause(&mut self, scope: NodePath) {
        self.paused.push(scope);
    }

    /// Resumes what this very scope paused.
    pub(super) fn resume(&mut self, scope: &NodePath) {
        self.paused.retain(|paused| paused != scope);
    }

    pub(super) fn is_paused(&self, path: &NodePath) -> bool {
        self.paused.iter().any(|scope| scope.contains(path))
    }

    pub(super) const fn set_down(&mut self, down: bool) {
        self.down = down;
    }

    /// Whether nothing goes from or to this member now.
    pub(super) fn is_mute(&self, path: &NodePath) -> bool {
        self.down || self.is_paused(path)
    }

    /// One line of the story.
    pub(super) fn tell(&mut self, what: fmt::Arguments<'_>) {
        if self.story.len() >= STORY_MAX_LINES {
            self.story.pop_front();
            self.forgotten += 1;
        }
        let at = self.begin.elapsed();
        self.story
            .push_back(format!("{:>4}.{:03} s  {what}", at.as_secs(), at.subsec_millis()));
    }

    pub(super) fn story(&self) -> Vec<String> {
        let forgotten =
            (self.forgotten > 0).then(|| format!("({} earlier lines are not kept)", self.forgotten));
        forgotten.into_iter().chain(self.story.iter().cloned()).collect()
    }
}

/// What a muted member has said and is not heard saying yet.
pub(super) enum Said {
    Post {
        to: Destination,
        frame: Bytes,
        until: Instant,
    },
    Completed {
        serial: u64,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    fn path(text: &str) -> NodePath {
        text.parse().unwrap()
    }

    #[test]
    fn a_cut_has_a_direction_and_holds_for_everybody_below() {
        let mut trouble = Trouble::default();
        trouble.cut(path("eu"), path("us/n1"));
        assert!(trouble.is_cut(&path("eu/r1/n7"), &path("us/n1")));
        assert!(!trouble.is_cut(&path("us/n1"), &path("eu/r1/n7")));
        assert!(!trouble.is_cut(&path("eu/r1/n7"), &path("us/n2")));
        trouble.mend_cuts();
        assert!(!trouble.is_cut(&path("eu/r1/n7"), &path("us/n1")));
    }

    #[test]
    fn a_pause_ends_with_its_own_scope_only() {
        let mut trouble = Trouble::default();
        trouble.pause(path("eu"));
        trouble.pause(path("eu/n1"));
        trouble.resume(&path("eu"));
        assert!(trouble.is_mute(&path("eu/n1")) && !trouble.is_mute(&path("eu/n2")));
        trouble.set_down(true);
        assert!(trouble.is_mute(&path("eu/n2")) && !trouble.is_paused(&path("eu/n2")));
    }

    #[test]
    fn a_story_keeps_its_end() {
        let mut trouble = Trouble::default();
        for n in 0..STORY_MAX_LINES + 5 {
            trouble.tell(format_args!("line {n}"));
        }
        let story = trouble.story();
        assert_eq!(story.len(), STORY_MAX_LINES + 1);
        assert!(story[0].contains("5 earlier") && story[STORY_MAX_LINES].ends_with("line 4100"));
    }
}
