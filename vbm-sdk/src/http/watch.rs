//! Live state as Server-Sent Events (WHATWG HTML, section 9.2).
//!
//! ```text
//!   event: ready    id: 41   data: {"revision":41}                 list now: nothing is missed
//!   event: change            data: {"kind":"vm","id":...,"revision":42,"deleted":false,"view":{...}}
//!   event: change   id: 42   data: {"kind":"operation",...}        everything up to 42 was told
//!   event: reset    id: 99   data: {"revision":99,"why":...}       changes were missed: list again
//!   : a sign of life
//! ```
//!
//! An id stands only where everything up to it was told, so that a browser that comes back with it as
//! `Last-Event-ID` misses nothing; it may be told a few changes twice. Nothing is queued for a browser that does not
//! read: its connection is cut when it takes nothing for a while, and then it comes back from where it was.

use super::{ApiState, problem::Query};
use crate::{
    api::{Problem, WatchMessage, WatchQuery, WatchReady, WatchReset},
    controller::Watched,
    store::Revision,
};
use axum::{
    extract::State,
    http::{HeaderMap, header},
    response::{
        IntoResponse, Response,
        sse::{Event, KeepAlive, Sse},
    },
};
use futures::{StreamExt, stream};
use std::time::Duration;

/// The header with which a browser resumes.
const LAST_EVENT_ID: &str = "last-event-id";
/// A sign of life, so that nothing on the way drops a quiet stream.
const KEEP_ALIVE_EVERY: Duration = Duration::from_secs(15);
/// How long a browser waits before it comes back.
const COME_BACK_AFTER: Duration = Duration::from_secs(1);

/// Tells each change of a record as it happens, as Server-Sent Events: `ready` first, then `change`, and `reset` when
/// changes were missed. Resumes after `Last-Event-ID`.
#[utoipa::path(get, path = "/watch", tag = "events", params(WatchQuery,
        ("Last-Event-ID" = Option<String>, Header, description = "The id of the last message seen: a revision")),
    responses((status = 200, description = "The data of each message", body = WatchMessage, content_type = "text/event-stream"),
        (status = "default", body = Problem)))]
pub(super) async fn watch(
    State(api): State<ApiState>,
    Query(query): Query<WatchQuery>,
    headers: HeaderMap,
) -> Response {
    let watching = api.controller.watch(from(&headers, &query));
    let messages = watching.flat_map(|told| match told {
        Ok(told) => stream::iter(messages(told)),
        // The stream ends; the browser comes back and is told what is wrong with the store, if it still is.
        Err(e) => {
            tracing::debug!(error = %e.inline(), "a watch ended");
            stream::iter(Vec::new())
        }
    });
    let events = Sse::new(messages).keep_alive(KeepAlive::new().interval(KEEP_ALIVE_EVERY));
    ([(header::CACHE_CONTROL, "no-store")], events).into_response()
}

/// Where to begin. An id that is none of ours asks for what nobody has, and so gets a reset.
fn from(headers: &HeaderMap, query: &WatchQuery) -> Option<Revision> {
    match headers.get(LAST_EVENT_ID) {
        Some(id) => Some(Revision(
            id.to_str()
                .ok()
                .and_then(|id| id.trim().parse().ok())
                .unwrap_or(u64::MAX),
        )),
        None => query.from.map(Revision),
    }
}

fn messages(told: Watched) -> Vec<Result<Event, axum::Error>> {
    match told {
        Watched::Ready(revision) => {
            let event = at(revision).retry(COME_BACK_AFTER);
            vec![message(event, WatchMessage::Ready(WatchReady { revision }))]
        }
        Watched::Reset(revision, why) => {
            vec![message(
                at(revision),
                WatchMessage::Reset(WatchReset { revision, why }),
            )]
        }
        Watched::Changes(changes, upto) => {
            let last = changes.len().saturating_sub(1);
            let event = |n| if n == last { at(upto) } else { Event::default() };
            changes
                .into_iter()
                .enumerate()
                .map(|(n, change)| message(event(n), WatchMessage::Change(change)))
                .collect()
        }
    }
}

/// A message up to which everything was told.
fn at(revision: Revision) -> Event {
    Event::default().id(revision.to_string())
}

fn message(event: Event, data: WatchMessage) -> Result<Event, axum::Error> {
    let name = match data {
        WatchMessage::Ready(_) => "ready",
        WatchMessage::Change(_) => "change",
        WatchMessage::Reset(_) => "reset",
    };
    event.event(name).json_data(data)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::{RecordChange, WatchedKind};

    #[test]
    fn only_the_last_message_of_a_batch_carries_an_id_so_that_a_cut_loses_nothing() {
        let change = |id: &str| RecordChange {
            kind: WatchedKind::Vm,
            id: id.to_owned(),
            revision: Revision(7),
            deleted: true,
            view: None,
        };
        let texts: Vec<String> = messages(Watched::Changes(vec![change("a"), change("b")], Revision(7)))
            .into_iter()
            .map(|event| format!("{:?}", event.unwrap()))
            .collect();
        assert!(
            !texts[0].contains("id: 7") && texts[1].contains("id: 7"),
            "{texts:?}"
        );
    }

    #[test]
    fn the_header_of_a_browser_counts_for_more_than_the_query_and_nonsense_is_a_reset() {
        let query = WatchQuery { from: Some(3) };
        let mut headers = HeaderMap::new();
        assert_eq!(from(&headers, &WatchQuery::default()), None);
        assert_eq!(from(&headers, &query), Some(Revision(3)));
        headers.insert(LAST_EVENT_ID, "9".parse().unwrap());
        assert_eq!(from(&headers, &query), Some(Revision(9)));
        headers.insert(LAST_EVENT_ID, "<script>".parse().unwrap());
        assert_eq!(from(&headers, &query), Some(Revision(u64::MAX)));
    }
}
