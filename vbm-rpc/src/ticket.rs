//! Tickets: what stands for a submitted call.
//!
//! ```text
//!   submit --> Pending --> Running --> Ended(reply or fate)      kept until its deadline and `keep` have passed
//!                 |           |             ^                    then: Expired
//!                 +-----------+-------------+
//!                   deadline and TICKET_GRACE passed without a word: Ended(Lost), by who looks first
//! ```
//!
//! A ticket is a line of text: `vt1;<id>;<submitted>;<deadline>;<keep>;node;<path>;;<method>` or
//! `...;any;<scope>;<service>;<method>`, spans and times in milliseconds of the transport's clock. It holds no secret
//! and no content. [`judge`] decides purely what a reader sees.

use crate::{
    Fate, Method, Route, Service, limits,
    transport::{TicketPlace, TicketRecord},
};
use bytes::Bytes;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use std::{fmt, marker::PhantomData, str::FromStr, time::Duration};
use uuid::Uuid;
use vbm_core::{Error, ErrorKind, NodePath};

/// The first word of a ticket.
const WORD: &str = "vt1";
/// How many parts a ticket has.
const PARTS: usize = 9;

/// What stands for a submitted call of the method `M`: a line of text (`Display`, `FromStr`, serde) that any process
/// may give to [`Bus::ticket`](crate::Bus::ticket).
pub struct Ticket<M> {
    pub(crate) name: TicketName,
    method: PhantomData<fn() -> M>,
}

impl<M> Ticket<M> {
    pub(crate) const fn new(name: TicketName) -> Self {
        Self {
            name,
            method: PhantomData,
        }
    }

    /// The id of the request, as its handler sees it.
    pub const fn id(&self) -> Uuid {
        self.name.place.id
    }

    /// Where the request went.
    pub const fn route(&self) -> &Route {
        &self.name.place.home
    }

    /// The deadline that was given, counted from the submission.
    pub const fn deadline(&self) -> Duration {
        Duration::from_millis(self.name.deadline_ms)
    }

    /// How long after its deadline it is kept.
    pub const fn keep(&self) -> Duration {
        Duration::from_millis(self.name.keep_ms)
    }
}

impl<M> Clone for Ticket<M> {
    fn clone(&self) -> Self {
        Self::new(self.name.clone())
    }
}

impl<M> PartialEq for Ticket<M> {
    fn eq(&self, other: &Self) -> bool {
        self.name == other.name
    }
}

impl<M> Eq for Ticket<M> {}

impl<M> fmt::Display for Ticket<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.name.fmt(f)
    }
}

impl<M> fmt::Debug for Ticket<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Ticket({self})")
    }
}

impl<M: Method> FromStr for Ticket<M> {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let name: TicketName = text.parse()?;
        if name.method != M::NAME {
            return Err(bad(
                text,
                format!("it is of the method '{}', not of '{}'", name.method, M::NAME),
            ));
        }
        Ok(Self::new(name))
    }
}

impl<M> Serialize for Ticket<M> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de, M: Method> Deserialize<'de> for Ticket<M> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse()
            .map_err(|error: Error| de::Error::custom(error.inline()))
    }
}

/// A ticket without the type of its method.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct TicketName {
    pub(crate) place: TicketPlace,
    pub(crate) method: String,
    pub(crate) submitted_ms: u64,
    pub(crate) deadline_ms: u64,
    pub(crate) keep_ms: u64,
}

impl TicketName {
    /// When nothing may begin any more.
    pub(crate) const fn due_ms(&self) -> u64 {
        self.submitted_ms.saturating_add(self.deadline_ms)
    }

    /// From when on a reader may end it.
    pub(crate) fn overdue_ms(&self) -> u64 {
        self.due_ms().saturating_add(millis(limits::TICKET_GRACE))
    }

    /// When it is kept no longer.
    pub(crate) const fn gone_ms(&self) -> u64 {
        self.due_ms().saturating_add(self.keep_ms)
    }

    /// What is left of its life; at least a moment, so that nothing is written without an end.
    pub(crate) fn life(&self, now_ms: u64) -> Duration {
        Duration::from_millis(self.gone_ms().saturating_sub(now_ms).max(1))
    }

    /// The end that a reader gives it when nobody else did.
    pub(crate) fn lost(&self, begun: Option<&Begun>) -> Lost {
        Lost {
            started: begun.is_some(),
            to: self.place.home.to_string(),
            worker: begun.map(|begun| begun.by.clone()),
            why: format!("no end was recorded within {} ms", self.deadline_ms),
        }
    }
}

impl fmt::Display for TicketName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{WORD};{};{};{};{};{};{}",
            self.place.id.simple(),
            self.submitted_ms,
            self.deadline_ms,
            self.keep_ms,
            route_text(&self.place.home),
            self.method
        )
    }
}

impl FromStr for TicketName {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let parts: Vec<&str> = text.splitn(PARTS, ';').collect();
        let &[word, id, submitted, deadline, keep, kind, path, service, method] = &parts[..] else {
            return Err(bad(text, "it has too few parts".into()));
        };
        if word != WORD {
            return Err(bad(text, format!("it does not begin with '{WORD}'")));
        }
        let number = |text: &str| text.parse::<u64>().ok();
        let (Ok(id), Some(submitted_ms), Some(deadline_ms), Some(keep_ms)) = (
            Uuid::try_parse(id),
            number(submitted),
            number(deadline),
            number(keep),
        ) else {
            return Err(bad(text, "its id, time, deadline or span is no number".into()));
        };
        let home = parse_route(kind, path, service).map_err(|why| bad(text, why))?;
        if let Route::All { .. } = home {
            return Err(bad(text, "no ticket is for all".into()));
        }
        let bounds = [
            (deadline_ms, limits::DEADLINE_MAX),
            (keep_ms, limits::TICKET_KEEP_MAX),
        ];
        if bounds.iter().any(|(given, max)| *given > millis(*max)) {
            return Err(bad(text, "its deadline or its keeping is over the limit".into()));
        }
        if method.is_empty() || method.len() > limits::METHOD_MAX_BYTES {
            return Err(bad(text, "its method has no name, or one over the limit".into()));
        }
        Ok(Self {
            place: TicketPlace { home, id },
            method: method.to_owned(),
            submitted_ms,
            deadline_ms,
            keep_ms,
        })
    }
}

/// A destination as three parts.
pub(crate) fn route_text(route: &Route) -> String {
    match route {
        Route::Node(path) => format!("node;{path};"),
        Route::Any { scope, service } => format!("any;{scope};{service}"),
        Route::All { scope, service } => format!("all;{scope};{service}"),
    }
}

pub(crate) fn parse_route(kind: &str, path: &str, service: &str) -> Result<Route, String> {
    let path: NodePath = path.parse().map_err(|error: Error| error.inline())?;
    let service = || Service::new(service).map_err(|error| error.inline());
    match kind {
        "node" => Ok(Route::Node(path)),
        "any" => Ok(Route::any(path, service()?)),
        "all" => Ok(Route::all(path, service()?)),
        _ => Err(format!("'{kind}' is no sort of destination")),
    }
}

fn bad(text: &str, why: String) -> Error {
    let shown: String = text.chars().take(80).collect();
    Error::new(
        ErrorKind::InvalidInput,
        format!("'{shown}' is not a ticket for this"),
        why,
        "give the text of a ticket as `submit` returned it",
    )
}

pub(crate) fn millis(span: Duration) -> u64 {
    u64::try_from(span.as_millis()).unwrap_or(u64::MAX)
}

/// How a submitted call is doing. Spans are by the transport's clock.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum TicketState<R> {
    /// Nobody has said that they have begun. (A handler that takes less than
    /// [`ACCEPT_AFTER`](limits::ACCEPT_AFTER) never says so.)
    Pending {
        /// How long ago it was submitted.
        since: Duration,
    },
    /// Somebody is at it; if they died, somebody else will be, until the deadline.
    Running {
        /// Who began last.
        by: NodePath,
        /// How long ago.
        since: Duration,
    },
    /// It has its one end, as a call has: the reply, or its fate.
    Ended(Result<R, Fate>),
    /// It was kept as long as was asked, and that has passed.
    Expired,
    /// There is no record where one should be: it was forgotten, never submitted, or the transport lost its memory.
    Unknown,
}

impl<R> TicketState<R> {
    /// Whether nothing will change any more, but for expiry.
    pub const fn is_final(&self) -> bool {
        !matches!(self, Self::Pending { .. } | Self::Running { .. })
    }
}

/// What a worker notes when it has begun.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Begun {
    pub(crate) by: NodePath,
    pub(crate) at_ms: u64,
}

/// The end that a reader gives to a ticket which nobody ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Lost {
    pub(crate) started: bool,
    pub(crate) to: String,
    #[serde(default)]
    pub(crate) worker: Option<NodePath>,
    #[serde(default)]
    pub(crate) why: String,
}

/// What a reader sees.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Judged {
    Pending(Duration),
    Running(NodePath, Duration),
    Ended(Bytes),
    /// The reader is to end it so.
    Overdue(Lost),
    Expired,
    Unknown,
}

/// Decides from the record and the transport's time what a reader sees.
pub(crate) fn judge(name: &TicketName, record: Option<&TicketRecord>, now_ms: u64) -> Judged {
    let Some(record) = record else {
        return match now_ms >= name.gone_ms() {
            true => Judged::Expired,
            false => Judged::Unknown,
        };
    };
    if let Some(end) = &record.end {
        return Judged::Ended(end.clone());
    }
    let begun = read_begun(record);
    if now_ms >= name.overdue_ms() {
        return Judged::Overdue(name.lost(begun.as_ref()));
    }
    let ago = |at: u64| Duration::from_millis(now_ms.saturating_sub(at));
    match begun {
        Some(begun) => Judged::Running(begun.by, ago(begun.at_ms)),
        None => Judged::Pending(ago(name.submitted_ms)),
    }
}

pub(crate) fn read_begun(record: &TicketRecord) -> Option<Begun> {
    serde_json::from_slice(record.begun.as_ref()?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    struct Work;
    impl Method for Work {
        const NAME: &'static str = "test.work";
        type Request = ();
        type Reply = ();
    }
    struct Other;
    impl Method for Other {
        const NAME: &'static str = "test.other";
        type Request = ();
        type Reply = ();
    }

    fn name() -> TicketName {
        TicketName {
            place: TicketPlace {
                home: Route::any("eu/r1".parse().unwrap(), Service::new("agent").unwrap()),
                id: Uuid::from_u128(5),
            },
            method: "test.work".into(),
            submitted_ms: 1_000,
            deadline_ms: 500,
            keep_ms: 9_000,
        }
    }
    fn record() -> TicketRecord {
        TicketRecord {
            opened: Some(Bytes::from_static(b"{}")),
            ..TicketRecord::default()
        }
    }

    #[test]
    fn a_ticket_is_read_back_from_its_text() {
        let any = name();
        let node = TicketName {
            place: TicketPlace {
                home: Route::node("n1".parse().unwrap()),
                ..any.place.clone()
            },
            ..name()
        };
        for name in [any, node] {
            assert_eq!(name.to_string().parse::<TicketName>().unwrap(), name);
            let ticket: Ticket<Work> = name.to_string().parse().unwrap();
            let json = serde_json::to_string(&ticket).unwrap();
            assert_eq!(serde_json::from_str::<Ticket<Work>>(&json).unwrap(), ticket);
            assert!(serde_json::from_str::<Ticket<Other>>(&json).is_err());
        }
        assert_eq!(
            name().to_string(),
            "vt1;00000000000000000000000000000005;1000;500;9000;any;eu/r1;agent;test.work"
        );
    }

    #[test]
    fn what_is_no_ticket_is_refused() {
        let good = name().to_string();
        for bad in [
            String::new(),
            good.replace("vt1", "vt2"),
            good.replace(";500;", ";x;"),
            good.replace(";500;", ";99999999999;"),
            good.replace(";9000;", ";18446744073709551615;"),
            good.replace(";any;", ";all;"),
            good.replace("test.work", ""),
            good.replace("agent", "no service"),
        ] {
            let error = bad.parse::<TicketName>().unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidInput, "{bad}");
        }
        let other = good.parse::<Ticket<Other>>().unwrap_err();
        assert!(other.why().contains("test.work") && other.why().contains("test.other"));
    }

    #[test]
    fn a_reader_sees_what_the_record_and_the_time_say() {
        let (name, ms) = (name(), Duration::from_millis);
        assert_eq!(judge(&name, Some(&record()), 1_200), Judged::Pending(ms(200)));
        let begun = Begun {
            by: "eu/r1/n1".parse().unwrap(),
            at_ms: 1_100,
        };
        let running = TicketRecord {
            begun: Some(serde_json::to_vec(&begun).unwrap().into()),
            ..record()
        };
        assert_eq!(
            judge(&name, Some(&running), 1_200),
            Judged::Running(begun.by.clone(), ms(100))
        );
        // The last word of a worker may be on its way for a while after the deadline.
        assert!(matches!(judge(&name, Some(&running), 1_500), Judged::Running(..)));
        let (after, gone) = (name.overdue_ms(), name.gone_ms());
        for (record, started) in [(record(), false), (running, true)] {
            let Judged::Overdue(lost) = judge(&name, Some(&record), after) else {
                panic!("it is overdue")
            };
            assert_eq!((lost.started, lost.worker.is_some()), (started, started));
        }
        let ended = TicketRecord {
            end: Some(Bytes::from_static(b"x")),
            ..record()
        };
        for now in [1_000, after, gone] {
            assert_eq!(
                judge(&name, Some(&ended), now),
                Judged::Ended(Bytes::from_static(b"x"))
            );
        }
        assert_eq!(judge(&name, None, 1_200), Judged::Unknown);
        assert_eq!(judge(&name, None, gone), Judged::Expired);
    }

    proptest! {
        #[test]
        fn garbage_is_never_a_panic(text in ".{0,200}") {
            let _ignored = text.parse::<TicketName>();
        }

        #[test]
        fn no_record_is_ever_judged_twice_differently_once_ended(now in 0u64..20_000, later in 0u64..20_000) {
            let ended = TicketRecord { end: Some(Bytes::from_static(b"e")), ..record() };
            prop_assert_eq!(judge(&name(), Some(&ended), now), judge(&name(), Some(&ended), now + later));
        }
    }
}
