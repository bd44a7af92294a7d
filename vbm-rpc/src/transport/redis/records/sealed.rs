//! What one batch writes, sealed: for others with one signature, for this node's own next life with a tag.

use super::{BUCKET_MS, FIELD_BEGUN, FIELD_END, FIELD_OPENED, StoreOp, StorePlan, TicketOp};
use crate::{Route, auth::Place, transport::redis::Core};
use bytes::Bytes;

/// The values of a plan with their seals; empty with security off.
#[derive(Default)]
pub(super) struct Sealed {
    keeps: Vec<Bytes>,
    others: Vec<Option<Bytes>>,
}

impl Sealed {
    pub(super) fn of(core: &Core, plan: &StorePlan, now: u64) -> Self {
        let Some(guard) = &core.guard else {
            return Self::default();
        };
        let buckets: Vec<String> = plan
            .keeps
            .iter()
            .map(|(home, ..)| core.keys.answers(home, now / BUCKET_MS))
            .collect();
        // What this node leaves to itself needs no signature.
        let is_own = |home: &Route| matches!(home, Route::Node(path) if *path == core.me.path);
        let (mut own, mut theirs) = (Vec::new(), Vec::new());
        for ((home, field, value), key) in plan.keeps.iter().zip(&buckets) {
            let list = if is_own(home) { &mut own } else { &mut theirs };
            list.push((Place { key, field }, &value[..]));
        }
        let kept_for_others = theirs.len();
        theirs.extend(plan.others.iter().filter_map(ticket_value));
        let (own, theirs) = guard.keep(now, &own, &theirs);
        let (mut own, mut theirs) = (own.into_iter(), theirs.into_iter());
        let mut answers = theirs.by_ref().take(kept_for_others);
        let keeps = plan.keeps.iter().filter_map(|(home, ..)| match is_own(home) {
            true => own.next(),
            false => answers.next(),
        });
        let keeps = keeps.collect();
        let others = plan
            .others
            .iter()
            .map(|op| ticket_value(op).and_then(|_| theirs.next()));
        Self {
            keeps,
            others: others.collect(),
        }
    }

    pub(super) fn keep(&self, at: usize) -> Option<&[u8]> {
        self.keeps.get(at).map(|value| &value[..])
    }

    pub(super) fn other(&self, at: usize) -> Option<&Bytes> {
        self.others.get(at)?.as_ref()
    }
}

/// The value that an operation writes into a ticket, and where.
fn ticket_value(op: &StoreOp) -> Option<(Place<'_>, &[u8])> {
    let StoreOp::Ticket { key, what, .. } = op else {
        return None;
    };
    let (field, value) = match what {
        TicketOp::Open(value, _) => (FIELD_OPENED, value),
        TicketOp::Begun(value, _) => (FIELD_BEGUN, value),
        TicketOp::End(value, _) | TicketOp::Settle(value, ..) | TicketOp::Mend(_, value, ..) => {
            (FIELD_END, value)
        }
        TicketOp::Look(_) | TicketOp::Forget(_) => return None,
    };
    let field = field.as_bytes();
    Some((Place { key, field }, &value[..]))
}
