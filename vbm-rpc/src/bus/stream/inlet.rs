//! Where the items of one stream arrive, and its end behind them.

use crate::{
    Fate,
    bus::{
        flow::{Arrival, Intake, Total},
        pending::{Answer, End},
        signs,
    },
    codec::Codec,
    envelope::Envelope,
    transport::Destination,
};
use bytes::Bytes;
use futures::task::AtomicWaker;
use std::{
    collections::VecDeque,
    sync::{Mutex, MutexGuard, PoisonError},
};
use vbm_core::NodePath;

/// What became of an arriving item.
pub(in super::super) enum Taken {
    Fine,
    Unreadable,
    Broken(Arrival),
}

/// Where the items of one stream arrive.
#[derive(Default)]
pub(crate) struct Inlet {
    state: Mutex<State>,
    pub(super) waker: AtomicWaker,
}

#[derive(Default)]
struct State {
    intake: Intake,
    queue: VecDeque<(Codec, Bytes)>,
    /// The run of a process that the stream comes from.
    sender: Option<(NodePath, String)>,
    end: Option<Answer>,
}

impl Inlet {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Somebody says that they give the stream: whether they do, as far as is known here.
    pub(in super::super) fn bind(&self, path: &NodePath, boot_id: &str) -> bool {
        let mut state = self.lock();
        match &state.sender {
            Some((known, run)) if known == path && run == boot_id => true,
            Some(_) if state.intake.arrived() > 0 => false,
            _ => {
                state.sender = Some((path.clone(), boot_id.to_owned()));
                true
            }
        }
    }

    /// Whether an end from there is the end of this stream.
    pub(in super::super) fn is_from(&self, path: &NodePath, boot_id: &str) -> bool {
        let state = self.lock();
        state.intake.arrived() == 0
            || matches!(&state.sender, Some((known, run)) if known == path && run == boot_id)
    }

    pub(in super::super) fn has_begun(&self) -> bool {
        self.lock().intake.arrived() > 0
    }

    pub(in super::super) fn missing(&self, sent: u64) -> u64 {
        self.lock().intake.missing(sent)
    }

    pub(in super::super) fn granted(&self) -> Total {
        self.lock().intake.granted()
    }

    pub(in super::super) fn arrive(&self, envelope: Envelope) -> Taken {
        let codec = envelope.codec;
        let Some((seq, body)) = signs::split_number(envelope.body) else {
            return Taken::Unreadable;
        };
        let mut state = self.lock();
        let bytes = u64::try_from(body.len()).unwrap_or(u64::MAX);
        match state.intake.arrive(seq, bytes) {
            Arrival::New => state.queue.push_back((codec, body)),
            Arrival::Repeat => return Taken::Fine,
            broken => return Taken::Broken(broken),
        }
        drop(state);
        self.waker.wake();
        Taken::Fine
    }

    /// The stream ends, behind what has arrived. The first end counts.
    pub(in super::super) fn end(&self, mut answer: Answer, to: &Destination) {
        let mut state = self.lock();
        if let End::Finished(_, count, _) = &answer.end {
            let missing = state.intake.missing(*count);
            if missing > 0 {
                answer.end = End::Fate(Fate::Lost {
                    started: true,
                    to: to.to_string(),
                    worker: Some(answer.from.clone()),
                    why: format!("the last {missing} items of the stream were lost on the way"),
                });
            }
        }
        state.end.get_or_insert(answer);
        drop(state);
        self.waker.wake();
    }

    pub(super) fn next(&self) -> Next {
        let mut state = self.lock();
        if let Some((codec, body)) = state.queue.pop_front() {
            let grant = state.intake.take(u64::try_from(body.len()).unwrap_or(u64::MAX));
            return Next::Item(codec, body, grant);
        }
        match state.end.take() {
            Some(answer) => Next::End(answer),
            None => Next::Nothing,
        }
    }

    /// The inbox of who gives the stream.
    pub(super) fn sender(&self) -> Option<Destination> {
        let (path, boot_id) = self.lock().sender.clone()?;
        Some(Destination::Inbox { path, boot_id })
    }
}

/// What its reader gets next.
pub(super) enum Next {
    Item(Codec, Bytes, Option<Total>),
    End(Answer),
    Nothing,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Route, bus::pending::Pending, envelope::Kind, limits};
    use std::sync::Arc;
    use tokio::time::Instant;
    use uuid::Uuid;
    use vbm_core::Epoch;

    const ID: Uuid = Uuid::from_u128(7);

    fn frame(kind: Kind, from: &str, boot_id: &str, number: u64) -> Envelope {
        Envelope {
            kind,
            codec: Codec::Json,
            attempt: 1,
            id: ID,
            ttl_ms: 0,
            epoch: Epoch::default(),
            method: String::new(),
            caller: from.parse().unwrap(),
            boot_id: boot_id.into(),
            traceparent: None,
            idempotency_key: None,
            body: signs::numbered(number, b"null"),
        }
    }
    fn item(from: &str, boot_id: &str, seq: u64) -> Envelope {
        frame(Kind::Item, from, boot_id, seq)
    }
    fn opened() -> (Arc<Pending>, Arc<Inlet>) {
        let pending = Arc::new(Pending::default());
        let to = Destination::Route(Route::node("n1".parse().unwrap()));
        let (inlet, _sending) = pending.items(ID, to, Bytes::new(), Instant::now());
        (pending, inlet)
    }
    /// How many items are read, and how it ends then.
    fn read(inlet: &Inlet) -> (usize, Option<End>) {
        let mut items = 0;
        loop {
            match inlet.next() {
                Next::Item(..) => items += 1,
                Next::End(answer) => return (items, Some(answer.end)),
                Next::Nothing => return (items, None),
            }
        }
    }
    fn lost(end: Option<&End>, why: &str) -> bool {
        matches!(end, Some(End::Fate(Fate::Lost { started: true, why: told, .. })) if told.contains(why))
    }

    #[test]
    fn a_gap_ends_the_stream_and_tells_its_sender() {
        let (pending, inlet) = opened();
        assert!(pending.item(item("n1", "b", 0)));
        assert!(!pending.item(item("n1", "b", 3)), "its sender is told");
        let (items, end) = read(&inlet);
        assert!(
            items == 1 && lost(end.as_ref(), "2 items of the stream were lost"),
            "{end:?}"
        );
        assert!(!pending.item(item("n1", "b", 1)), "nobody reads it any more");
    }

    #[test]
    fn a_repeat_is_dropped_and_a_lost_tail_is_noticed_at_the_end_and_at_a_beat() {
        let (pending, inlet) = opened();
        for seq in [0, 1, 0, 1, 1] {
            assert!(pending.item(item("n1", "b", seq)));
        }
        pending.incoming(frame(Kind::Finish, "n1", "b", 3));
        let (items, end) = read(&inlet);
        assert!(items == 2 && lost(end.as_ref(), "the last 1 items"), "{end:?}");
        let (pending, inlet) = opened();
        assert!(pending.item(item("n1", "b", 0)));
        let beat = frame(Kind::Beat, "n1", "b", 0);
        assert!(pending.works(ID, &beat, 1));
        assert!(!pending.works(ID, &beat, 2));
        let (items, end) = read(&inlet);
        assert!(items == 1 && lost(end.as_ref(), "1 items"), "{end:?}");
    }

    #[test]
    fn a_good_end_stands_behind_the_last_item() {
        let (pending, inlet) = opened();
        assert!(pending.item(item("n1", "b", 0)));
        pending.incoming(frame(Kind::Finish, "n1", "b", 1));
        let (items, end) = read(&inlet);
        assert!(
            items == 1 && matches!(end, Some(End::Finished(_, 1, _))),
            "{end:?}"
        );
    }

    #[test]
    fn another_run_may_begin_the_stream_but_not_go_on_with_it() {
        let (pending, inlet) = opened();
        pending.incoming(frame(Kind::Accepted, "n1", "b", 0));
        assert!(
            pending.item(item("n2", "c", 0)),
            "n1 had given nothing: it was taken over"
        );
        assert!(!pending.item(item("n1", "b", 0)), "n1 is told to stop");
        assert!(!pending.works(ID, &frame(Kind::Beat, "n1", "b", 0), 1));
        pending.incoming(frame(Kind::Finish, "n2", "other-boot", 1));
        assert!(
            matches!(read(&inlet), (1, None)),
            "the end of another run is not its end"
        );
        assert!(pending.item(item("n2", "c", 1)));
    }

    #[test]
    fn what_was_never_asked_for_ends_the_stream() {
        let (pending, inlet) = opened();
        for seq in 0..limits::STREAM_WINDOW_ITEMS {
            assert!(pending.item(item("n1", "b", seq)));
        }
        assert!(!pending.item(item("n1", "b", limits::STREAM_WINDOW_ITEMS)));
        assert!(lost(read(&inlet).1.as_ref(), "more items"));
        let (pending, inlet) = opened();
        let short = Envelope {
            body: Bytes::from_static(b"abc"),
            ..item("n1", "b", 0)
        };
        assert!(!pending.item(short));
        assert!(lost(read(&inlet).1.as_ref(), "cannot be read"));
    }

    #[test]
    fn a_shutdown_of_this_side_ends_the_stream() {
        let (pending, inlet) = opened();
        pending.clear();
        let end = read(&inlet).1;
        assert!(
            matches!(&end, Some(End::Fate(Fate::Lost { started: false, .. }))),
            "{end:?}"
        );
    }
}
