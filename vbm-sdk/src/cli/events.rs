//! `vbm events`.

use super::{args::Events, session::Session};
use crate::{api::EventView, store::Revision};
use vbm_core::Error;

pub(super) async fn run(on: &Session<'_>, args: &Events) -> Result<(), Error> {
    let mut events = on.client.events();
    if let Some(revision) = args.from {
        events = events.from(Revision(revision));
    }
    if args.follow {
        events = events.follow();
    }
    let mut events = events.open();
    let mut none = true;
    // `--timeout` says how long to listen; without it nothing but Ctrl-C ends `--follow`.
    let end = on.timeout.map(|_| tokio::time::Instant::now() + on.left());
    loop {
        let next = match end {
            None => events.next().await,
            Some(end) => tokio::time::timeout_at(end, events.next())
                .await
                .unwrap_or_default(),
        };
        let Some(event) = next else { break };
        let event = event?;
        none = false;
        on.out.streamed(&event, &event.event.object.name, &line(&event))?;
        if on.out.is_closed() {
            break;
        }
    }
    if none {
        on.out
            .hint("no events: show what happens as it happens with `vbm events --follow`");
    }
    Ok(())
}

/// `7  2026-01-31T12:00:00Z  VmStarted  vm web1  by kvm`.
fn line(event: &EventView) -> String {
    let EventView { revision, event } = event;
    let text = format!(
        "{revision:>6}  {}  {:16}  {}  {}",
        event.at, event.kind, event.object, event.message
    );
    text.trim_end().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use vbm_core::{Event, EventId, EventKind, Kind, ObjectRef, Timestamp};

    #[test]
    fn an_event_is_a_line_that_begins_with_its_revision() {
        let event = EventView {
            revision: Revision(7),
            event: Event {
                id: EventId::from_uuid(uuid::Uuid::from_u128(7)),
                at: Timestamp::from_micros(0),
                kind: EventKind::VmStarted,
                object: ObjectRef::new(Kind::Vm, 1, "web1"),
                message: String::new(),
            },
        };
        assert_eq!(
            line(&event),
            "     7  1970-01-01T00:00:00.000000Z  VmStarted         vm web1"
        );
    }
}
