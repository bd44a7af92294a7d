//! Events: a stream that outlives its connections.
//!
//! ```text
//!   GET /v1/events?from=R&follow=true  ->  {"revision":R+1,...}\n {"revision":R+2,...}\n  ...cut
//!   GET /v1/events?from=R+1            ->  {"revision":R+2,...}   already seen: left out
//!                                          {"revision":R+3,...}
//! ```
//!
//! One revision may hold several events, so the stream reads on from *before* the last revision it saw and
//! leaves out the events of it that it gave already: none is lost, none comes twice.

use super::{
    Client,
    call::{bad_request, too_late},
    path::ApiPath,
    transport::{self, Answer},
};
use crate::{api::EventView, store::Revision};
use bytes::BytesMut;
use futures::stream::{self, BoxStream, StreamExt};
use http_body_util::BodyExt;
use hyper::{Method, Request, header};
use std::time::Duration;
use tokio::time::Instant;
use vbm_core::{Error, ErrorKind, EventId};

/// The longest line of an event, in bytes.
const LINE_MAX_BYTES: usize = 1 << 20;
/// How long a server that cannot be reached is asked again before the stream ends with the failure.
const UNREACHABLE_MAX: Duration = Duration::from_secs(60);
/// The pause before it is asked again.
const RETRY_PAUSE: Duration = Duration::from_millis(200);

/// Which events: all that are kept when nothing is said, and then the end.
#[must_use = "events are read by open or stream"]
#[derive(Clone, Debug)]
pub struct Events {
    client: Client,
    from: Option<Revision>,
    follow: bool,
}

impl Events {
    pub(super) const fn new(client: Client) -> Self {
        Self {
            client,
            from: None,
            follow: false,
        }
    }

    /// Only events after this revision.
    pub const fn from(mut self, revision: Revision) -> Self {
        self.from = Some(revision);
        self
    }

    /// Does not end: gives what happens as it happens.
    pub const fn follow(mut self) -> Self {
        self.follow = true;
        self
    }

    /// Begins to read. Connects when the first event is asked for.
    pub fn open(self) -> EventStream {
        EventStream {
            client: self.client,
            follow: self.follow,
            place: Place {
                revision: self.from,
                seen: Vec::new(),
            },
            open: None,
            was_open: false,
            silent_since: None,
            ended: false,
        }
    }

    /// The same as a stream.
    pub fn stream(self) -> BoxStream<'static, Result<EventView, Error>> {
        stream::unfold(self.open(), |mut events| async move {
            let event = events.next().await?;
            Some((event, events))
        })
        .boxed()
    }
}

/// Events, one after the other, across restarts of the server.
#[derive(Debug)]
pub struct EventStream {
    client: Client,
    follow: bool,
    place: Place,
    open: Option<Lines>,
    /// Whether the server was reached once: only then is a failure taken for a restart of it.
    was_open: bool,
    silent_since: Option<Instant>,
    ended: bool,
}

impl EventStream {
    /// The next event; `None` at the end, which a stream that [follows](Events::follow) has only after a failure.
    ///
    /// # Errors
    /// Those of [`Call`](super::Call): at once when the server cannot be reached from the beginning. A connection
    /// that breaks is opened again; the failure comes when that does not succeed for a minute, or when the server
    /// refuses: the events after that revision are no longer kept.
    ///
    /// # Cancel safety
    /// Cancel safe: no event is lost when the future is dropped.
    pub async fn next(&mut self) -> Option<Result<EventView, Error>> {
        while !self.ended {
            match self.step().await {
                Ok(Some(event)) => {
                    self.silent_since = None;
                    if self.place.admit(&event) {
                        return Some(Ok(event));
                    }
                }
                Ok(None) if self.follow => self.open = None,
                Ok(None) => self.ended = true,
                Err(error) => {
                    self.open = None;
                    let since = *self.silent_since.get_or_insert_with(Instant::now);
                    let may_return = self.follow && self.was_open && error.is_retryable();
                    if !may_return || since.elapsed() >= UNREACHABLE_MAX {
                        self.ended = true;
                        return Some(Err(error));
                    }
                    tokio::time::sleep(RETRY_PAUSE).await;
                }
            }
        }
        None
    }

    async fn step(&mut self) -> Result<Option<EventView>, Error> {
        let lines = match &mut self.open {
            Some(lines) => lines,
            empty => empty.insert(connect(&self.client, self.place.ask_from(), self.follow).await?),
        };
        self.was_open = true;
        let line = lines.next(&self.client).await?;
        line.map(|line| serde_json::from_slice(&line).map_err(|e| unreadable(&e)))
            .transpose()
    }
}

/// How far the stream has come.
#[derive(Debug)]
struct Place {
    revision: Option<Revision>,
    /// The events of that revision that were given.
    seen: Vec<EventId>,
}

impl Place {
    /// Where to read on: before the last revision when events of it were seen, as there may be more of it.
    fn ask_from(&self) -> Option<Revision> {
        match self.revision {
            Some(Revision(n)) if !self.seen.is_empty() => Some(Revision(n.saturating_sub(1))),
            other => other,
        }
    }

    /// Whether the event is a new one; moves the place on when it is.
    fn admit(&mut self, event: &EventView) -> bool {
        match self.revision {
            Some(at) if event.revision < at => return false,
            Some(at) if event.revision == at => {
                if self.seen.is_empty() || self.seen.contains(&event.event.id) {
                    return false;
                }
            }
            _ => {
                self.revision = Some(event.revision);
                self.seen.clear();
            }
        }
        self.seen.push(event.event.id);
        true
    }
}

async fn connect(client: &Client, from: Option<Revision>, follow: bool) -> Result<Lines, Error> {
    let path = ApiPath::of("events")
        .query("from", from)
        .query("follow", follow.then_some(true));
    let request = Request::builder()
        .method(Method::GET)
        .uri(path.into_text())
        .header(header::HOST, "vbmd")
        .body(transport::empty())
        .map_err(|e| bad_request(&e))?;
    let answer = tokio::time::timeout(client.deadline(), transport::send(client.endpoint(), request))
        .await
        .map_err(|_passed| too_late(true, client.deadline()))??;
    Ok(Lines {
        answer,
        read: BytesMut::new(),
    })
}

/// The body of an answer, line by line.
struct Lines {
    answer: Answer,
    read: BytesMut,
}

impl std::fmt::Debug for Lines {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Lines")
            .field("read", &self.read.len())
            .finish_non_exhaustive()
    }
}

impl Lines {
    /// The next line that is not blank. A rest without its newline was cut off and is thrown away.
    async fn next(&mut self, client: &Client) -> Result<Option<BytesMut>, Error> {
        loop {
            if let Some(end) = self.read.iter().position(|byte| *byte == b'\n') {
                let line = self.read.split_to(end + 1);
                if line.trim_ascii().is_empty() {
                    continue;
                }
                return Ok(Some(line));
            }
            if self.read.len() > LINE_MAX_BYTES {
                return Err(unreadable(&"a line is longer than 1 MiB"));
            }
            match self.answer.response.body_mut().frame().await {
                None => return Ok(None),
                Some(Err(error)) => return Err(transport::cut_off(&client.endpoint().place(), true, &error)),
                Some(Ok(frame)) => {
                    if let Some(data) = frame.data_ref() {
                        self.read.extend_from_slice(data);
                    }
                }
            }
        }
    }
}

fn unreadable(why: &dyn std::fmt::Display) -> Error {
    Error::new(
        ErrorKind::Corrupt,
        "an event of vbmd cannot be understood",
        why.to_string(),
        "use a `vbm` and a `vbmd` of the same version: compare with `vbm version`",
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use vbm_core::{Event, EventKind, Kind, ObjectRef, Timestamp};

    fn event(revision: u64, id: u128) -> EventView {
        EventView {
            revision: Revision(revision),
            event: Event {
                id: EventId::from_uuid(uuid::Uuid::from_u128(id)),
                at: Timestamp::default(),
                kind: EventKind::VmStarted,
                object: ObjectRef::new(Kind::Vm, "1", "web1"),
                message: String::new(),
            },
        }
    }

    #[test]
    fn several_events_of_one_revision_are_given_once_each_across_a_cut() {
        let mut place = Place {
            revision: None,
            seen: Vec::new(),
        };
        assert_eq!(place.ask_from(), None);
        assert!(place.admit(&event(5, 1)));
        assert_eq!(place.ask_from(), Some(Revision(4)));
        assert!(!place.admit(&event(5, 1)), "seen before the cut");
        assert!(place.admit(&event(5, 2)), "the same revision, another event");
        assert!(place.admit(&event(7, 3)));
        assert!(!place.admit(&event(5, 2)), "older than what was seen");
    }

    #[test]
    fn a_stream_from_a_revision_begins_after_it() {
        let mut place = Place {
            revision: Some(Revision(5)),
            seen: Vec::new(),
        };
        assert_eq!(place.ask_from(), Some(Revision(5)));
        assert!(!place.admit(&event(5, 1)));
        assert!(place.admit(&event(6, 2)));
    }
}
