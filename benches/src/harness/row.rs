//! A row: one figure, its peer, its goal.

use super::{
    fault::Fault,
    goal::{Goal, ratio},
    stats,
};
use serde::Serialize;

/// All samples behind a row, in the order in which they were taken.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub(crate) struct Samples {
    pub(crate) ours: Vec<f64>,
    pub(crate) peer: Vec<f64>,
}

/// One figure. `ours` and `peer` are medians.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct Row {
    pub(crate) area: String,
    pub(crate) name: String,
    pub(crate) unit: &'static str,
    pub(crate) ours: Option<f64>,
    pub(crate) peer: Option<f64>,
    /// How far the samples of ours agree: their range by their median.
    pub(crate) spread: Option<f64>,
    pub(crate) peer_name: Option<String>,
    pub(crate) ratio: Option<f64>,
    pub(crate) goal: Option<String>,
    /// Information: nothing gates by the clock.
    pub(crate) met: Option<bool>,
    /// It could not be run; the note says why.
    pub(crate) failed: bool,
    pub(crate) note: Option<String>,
    pub(crate) samples: Samples,
}

impl Row {
    /// A figure of ours: the median of the samples.
    pub(crate) fn new(name: impl Into<String>, unit: &'static str, ours: Vec<f64>) -> Self {
        let mut row = Self {
            area: String::new(),
            name: name.into(),
            unit,
            ours: stats::median(&ours),
            peer: None,
            spread: stats::spread(&ours),
            peer_name: None,
            ratio: None,
            goal: None,
            met: None,
            failed: false,
            note: None,
            samples: Samples {
                ours,
                peer: Vec::new(),
            },
        };
        if row.ours.is_none() {
            row.failed = true;
            row.note = Some("not run: it gave no samples".into());
        }
        row
    }

    /// One that could not be run.
    pub(crate) fn failed(name: impl Into<String>, unit: &'static str, why: &Fault) -> Self {
        let mut row = Self::new(name, unit, Vec::new());
        row.note = Some(format!("not run: {why}"));
        row
    }

    /// Beside whom it was measured.
    pub(crate) fn against(mut self, peer_name: impl Into<String>, peer: Vec<f64>) -> Self {
        self.peer_name = Some(peer_name.into());
        self.peer = stats::median(&peer);
        self.samples.peer = peer;
        self.judged()
    }

    /// A peer that is not on this machine. That is no failure: the row says it.
    pub(crate) fn without(mut self, peer_name: impl Into<String>, why: impl AsRef<str>) -> Self {
        self.peer_name = Some(peer_name.into());
        self.noted(format!("peer not run: {}", why.as_ref()))
    }

    /// What it should be; see [`Goal`] for how that is written.
    pub(crate) fn goal(mut self, goal: &str) -> Self {
        self.goal = Some(goal.to_owned());
        self.judged()
    }

    /// What one must know to read it.
    pub(crate) fn noted(mut self, note: impl AsRef<str>) -> Self {
        self.note = Some(match self.note.take() {
            None => note.as_ref().to_owned(),
            Some(before) => format!("{before}; {}", note.as_ref()),
        });
        self
    }

    fn judged(mut self) -> Self {
        let Some(ours) = self.ours else { return self };
        self.ratio = self.peer.and_then(|peer| ratio(ours, peer));
        match self.goal.as_deref().map(str::parse::<Goal>) {
            None => self.met = None,
            Some(Ok(goal)) => self.met = goal.met(ours, self.peer),
            Some(Err(why)) => {
                self.failed = true;
                return self.noted(why);
            }
        }
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_is_medians_a_ratio_and_whether_the_goal_is_met() {
        let row = Row::new("x", "ms", vec![3.0, 1.0, 2.0])
            .against("p", vec![4.0, 4.0, 5.0])
            .goal("<= 0.6x");
        assert_eq!(
            (row.ours, row.peer, row.ratio, row.met),
            (Some(2.0), Some(4.0), Some(0.5), Some(true))
        );
        assert!(!row.failed);
        let other_order = Row::new("x", "ms", vec![2.0])
            .goal("<= 0.6x")
            .against("p", vec![4.0]);
        assert_eq!(other_order.met, Some(true));
    }

    #[test]
    fn a_peer_that_is_missing_is_said_and_is_no_failure() {
        let row = Row::new("x", "ms", vec![1.0])
            .without("NATS", "nats-server is missing")
            .goal(">= 3x");
        assert_eq!((row.met, row.failed), (None, false));
        assert_eq!(row.note.as_deref(), Some("peer not run: nats-server is missing"));
    }

    #[test]
    fn what_could_not_be_run_says_why() {
        let row = Row::failed("x", "ms", &Fault::new("no root"));
        assert!(row.failed && row.ours.is_none());
        assert_eq!(row.note.as_deref(), Some("not run: no root"));
    }

    #[test]
    fn a_goal_that_cannot_be_read_is_a_failure_of_the_harness() {
        assert!(Row::new("x", "ms", vec![1.0]).goal("about 3").failed);
    }
}
