//! What comes in and cannot be used: counted by its kind where it is met, answered with a typed error where somebody waits,
//! and nobody else's call is disturbed.

use super::*;
use crate::{
    BadInput, Fate, MemoryEpochGate,
    codec::Codec,
    envelope::{Envelope, FRAME_MAX_BYTES, Kind},
    transport::{Destination, Inbound, Link},
};
use bytes::Bytes;
use tokio::sync::mpsc;
use uuid::Uuid;
use vbm_core::Epoch;

/// The method of [`Echo`], of somebody who thinks that its request is a number.
struct OtherRequest;
impl Method for OtherRequest {
    const NAME: &'static str = Echo::NAME;
    const FENCED: bool = false;
    type Request = u32;
    type Reply = (NodePath, String);
}

/// The method of [`Echo`], of somebody who thinks that its reply is a number.
struct OtherReply;
impl Method for OtherReply {
    const NAME: &'static str = Echo::NAME;
    const FENCED: bool = false;
    type Request = Ask;
    type Reply = u32;
}

/// Who writes what they like.
struct Scribbler(Arc<dyn Link>);

impl Scribbler {
    const PATH: &'static str = "eu/scribbler";

    async fn new(transport: &Arc<dyn Transport>) -> Self {
        let member = Member::new(path(Self::PATH), boot())
            .into_info(Vec::new())
            .expect("a member");
        let (requests, _ignored) = mpsc::channel(1);
        let inbound = Inbound::new(requests, Arc::new(|_frame| {}));
        let attached = transport.attach(member, inbound).await.expect("it attaches");
        Self(attached.link)
    }

    async fn write(&self, to: &Destination, frame: Bytes) {
        soon("a send", self.0.send(to, frame, PATIENCE))
            .await
            .expect("it is sent");
    }

    async fn end(self) {
        self.0.retire().await;
        self.0.close().await;
    }
}

fn frame(kind: Kind, method: &str, ttl_ms: u32, body: &'static [u8]) -> Envelope {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    Envelope {
        kind,
        codec: Codec::MessagePack,
        attempt: 1,
        id: Uuid::from_u128((0xbad << 64) | u128::from(NEXT.fetch_add(1, Ordering::Relaxed))),
        ttl_ms,
        epoch: Epoch::default(),
        method: method.to_owned(),
        caller: path(Scribbler::PATH),
        boot_id: "scribbler".into(),
        traceparent: None,
        idempotency_key: None,
        body: Bytes::from_static(body),
    }
}

/// Frames that nobody can use, and what each is. `kind` is one that has no business where they go.
fn damaged(kind: Kind) -> Vec<(BadInput, Bytes)> {
    let good = frame(kind, "", 60_000, b"body").encode();
    let changed = |at: usize, value: u8| {
        let mut bytes = good.to_vec();
        bytes[at] = value;
        Bytes::from(bytes)
    };
    vec![
        (BadInput::NoFrame, Bytes::from_static(b"this is no frame")),
        (BadInput::Version, changed(2, 99)),
        (BadInput::UnknownKind, changed(3, 77)),
        (BadInput::UnknownKind, changed(5, 99)),
        (BadInput::CutOff, good.slice(..30)),
        (BadInput::CutOff, good.slice(..good.len() - 1)),
        (BadInput::TooLarge, Bytes::from(vec![0; FRAME_MAX_BYTES + 1])),
        (BadInput::Damaged, [&good[..], b"more"].concat().into()),
        (BadInput::OutOfPlace, good),
    ]
}

/// Frames of another version, cut off, too large, damaged or out of place are counted by their kind, in a queue of requests
/// and in an inbox alike, and calls go on around them.
pub async fn frames_that_cannot_be_used_are_counted_by_their_kind(transport: Arc<dyn Transport>) {
    let (seen, n1) = (Seen::default(), Route::node(path("eu/n1")));
    let buses = [
        serve(&transport, "eu/n1", &seen).await,
        client(&transport, "eu/c1").await,
    ];
    let scribbler = Scribbler::new(&transport).await;
    let queue = Destination::Route(n1.clone());
    let inbox = Destination::Inbox {
        path: path("eu/c1"),
        boot_id: buses[1].member().boot_id.clone(),
    };
    for (bus, to, kind) in [
        (&buses[0], &queue, Kind::Reply),
        (&buses[1], &inbox, Kind::Request),
    ] {
        for (what, bytes) in damaged(kind) {
            let before = bus.stats().bad_input;
            scribbler.write(to, bytes).await;
            let counted = || bus.stats().bad_input.of(what) == before.of(what) + 1;
            until(what.name(), counted).await;
            echo(&buses[1], &n1, "others go on").await;
        }
        let stats = bus.stats();
        assert_eq!(
            (stats.frames_refused, stats.bad_input.total()),
            (9, 9),
            "{stats:?}"
        );
    }
    assert_eq!(seen.started(), 18, "nothing of it ran");
    scribbler.end().await;
    end(buses).await;
}

/// Requests that can be read and not be done are counted by their kind at their receiver: an unknown method, an epoch that is
/// over, a body that cannot be read, a deadline in the past.
pub async fn requests_that_cannot_be_done_are_counted_by_their_kind(transport: Arc<dyn Transport>) {
    let (seen, n1) = (Seen::default(), Route::node(path("eu/n1")));
    let gated = router(&path("eu/n1"), &seen).with_epoch_gate(Arc::new(MemoryEpochGate::default()));
    let member = Member::new(path("eu/n1"), boot()).service(worker());
    let agent = Bus::attach(transport.clone(), member, gated)
        .await
        .expect("an agent attaches");
    let bus = client(&transport, "eu/c1").await;
    let scribbler = Scribbler::new(&transport).await;
    for turn in 1..=2 {
        let fate = soon("a call", bus.call::<Unknown>(&n1, &(), within(PATIENCE))).await;
        assert!(matches!(&fate, Err(Fate::NoRoute { .. })), "{fate:?}");
        let command = |epoch| bus.call::<Count>(&n1, &"x".into(), within(PATIENCE).epoch(Epoch(epoch)));
        assert_eq!(soon("a command", command(5)).await, Ok(turn));
        for (what, kind) in [
            (
                soon("a stale command", command(4)).await.map(drop),
                ErrorKind::Stale,
            ),
            (
                soon(
                    "a misread call",
                    bus.call::<OtherRequest>(&n1, &7, within(PATIENCE)),
                )
                .await
                .map(drop),
                ErrorKind::InvalidInput,
            ),
        ] {
            assert!(
                matches!(&what, Err(Fate::Refused(e)) if e.kind() == kind),
                "{what:?}"
            );
        }
        let late = frame(Kind::Request, Echo::NAME, 0, b"");
        scribbler
            .write(&Destination::Route(n1.clone()), late.encode())
            .await;
        until("it is counted", || {
            agent.stats().bad_input.of(BadInput::Late) == turn
        })
        .await;
        let counts = agent.stats().bad_input;
        for what in [
            BadInput::UnknownMethod,
            BadInput::StaleEpoch,
            BadInput::Unreadable,
            BadInput::Late,
        ] {
            assert_eq!(counts.of(what), turn, "{what:?}");
        }
        assert_eq!(counts.total(), 4 * turn, "{counts:?}");
    }
    echo(&bus, &n1, "others go on").await;
    assert_eq!(seen.started(), 1, "nothing of it ran");
    scribbler.end().await;
    end([agent, bus]).await;
}

/// Answers that nobody waits for, or that cannot be read, are counted by who gets them.
pub async fn answers_that_cannot_be_used_are_counted_by_who_gets_them(transport: Arc<dyn Transport>) {
    let (seen, n1) = (Seen::default(), Route::node(path("eu/n1")));
    let buses = [
        serve(&transport, "eu/n1", &seen).await,
        client(&transport, "eu/c1").await,
    ];
    let scribbler = Scribbler::new(&transport).await;
    let inbox = Destination::Inbox {
        path: path("eu/c1"),
        boot_id: buses[1].member().boot_id.clone(),
    };
    let counts = || buses[1].stats().bad_input;
    for kind in [Kind::Reply, Kind::Refusal, Kind::End] {
        let before = counts().of(BadInput::NobodyWaits);
        // An error of no fields, and the end "expired".
        let body: &[u8] = if kind == Kind::Refusal { &[0x80] } else { &[3] };
        scribbler.write(&inbox, frame(kind, "", 0, body).encode()).await;
        until("it is counted", || {
            counts().of(BadInput::NobodyWaits) == before + 1
        })
        .await;
    }
    // A refusal without its error was counted for that too; an end of an unknown sort ends nothing.
    let before = counts().of(BadInput::Unreadable);
    scribbler
        .write(&inbox, frame(Kind::End, "", 0, &[99]).encode())
        .await;
    until("it is counted", || {
        counts().of(BadInput::Unreadable) == before + 1
    })
    .await;
    let call = buses[1].call::<OtherReply>(&n1, &ask("hello"), within(PATIENCE));
    let fate = soon("a misread reply", call).await;
    assert!(
        matches!(&fate, Err(Fate::Refused(e)) if e.kind() == ErrorKind::Internal),
        "{fate:?}"
    );
    assert_eq!(counts().of(BadInput::Unreadable), before + 2);
    assert_eq!(
        buses[0].stats().bad_input.total(),
        0,
        "its worker did nothing wrong"
    );
    echo(&buses[1], &n1, "others go on").await;
    scribbler.end().await;
    end(buses).await;
}
