//! Versions next to each other understand each other.
//!
//! The files in `fixtures/v1` are frames that the first version of the bus wrote. They are never written again: when a
//! test here fails, an old node in the field would too. [`old`] reads frames by the rules that the first version
//! had, frozen, to see that it understands what is sent today.
#![allow(clippy::unwrap_used, reason = "a helper of tests fails as a test does")]

mod common;

use async_trait::async_trait;
use bytes::Bytes;
use common::{RedisServer, left_out};
use serde::{Deserialize, Serialize};
use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};
use tokio::{
    sync::watch,
    time::{Instant, sleep, timeout},
};
use vbm_core::{Epoch, Error, ErrorKind, NodePath};
use vbm_rpc::{
    Bus, BusError, CallOptions, Context, Fate, Member, MemberInfo, Method, Route, Router,
    codec::Codec,
    envelope::{EndCode, Envelope, Kind},
    transport::{Attached, Completion, Delivery, Destination, Inbound, Link, SendError, Sent, Transport},
};

const PATIENCE: Duration = Duration::from_secs(30);

fn fixture(name: &str) -> Bytes {
    let path = format!("{}/tests/fixtures/v1/{name}.hex", env!("CARGO_MANIFEST_DIR"));
    let text = std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{path}: {error}"));
    let digits: Vec<u8> = text.bytes().filter(u8::is_ascii_hexdigit).collect();
    let byte = |pair: &[u8]| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap();
    digits.chunks(2).map(byte).collect()
}

/// The request as it has grown since: a field more.
#[derive(Serialize, Deserialize)]
struct Greet {
    name: String,
    #[serde(default)]
    loud: bool,
}

struct OldGreet;
impl Method for OldGreet {
    const NAME: &'static str = "old.greet";
    const FENCED: bool = false;
    type Request = Greet;
    type Reply = String;
}
struct OldNote;
impl Method for OldNote {
    const NAME: &'static str = "old.note";
    const FENCED: bool = false;
    type Request = Greet;
    type Reply = ();
}

fn router(notes: &Arc<AtomicUsize>) -> Router {
    let notes = notes.clone();
    Router::new()
        .method::<OldGreet, _, _>(|_: Context, greet: Greet| async move {
            match greet.name.as_str() {
                "nobody" => Err(Error::new(ErrorKind::Conflict, "no", "because", "do this")),
                name => Ok(format!("hello {name}{}", if greet.loud { "!" } else { "" })),
            }
        })
        .method::<OldNote, _, _>(move |_, _| {
            notes.fetch_add(1, Ordering::SeqCst);
            async move { Ok(()) }
        })
}

/// A transport that is a tape: what the bus says is on it, what the bus is to hear is given by hand.
#[derive(Clone, Default)]
struct Tape {
    said: Arc<Mutex<Vec<(Destination, Bytes)>>>,
    inbound: Arc<Mutex<Option<Inbound>>>,
    generation: Arc<watch::Sender<u64>>,
    failure: Arc<watch::Sender<Option<BusError>>>,
}

impl Tape {
    async fn hear(&self, frame: Bytes) {
        let inbound = self.inbound.lock().unwrap().clone().expect("attached");
        let delivery = Delivery {
            frame,
            since: Instant::now(),
            done: Completion::nothing(),
        };
        assert!(inbound.request(delivery).await, "the bus takes requests");
    }
    fn hear_reply(&self, frame: Bytes) {
        self.inbound
            .lock()
            .unwrap()
            .as_ref()
            .expect("attached")
            .control(frame);
    }
    async fn said(&self, count: usize) -> Vec<(Destination, Bytes)> {
        let enough = async {
            while self.said.lock().unwrap().len() < count {
                sleep(Duration::from_millis(1)).await;
            }
        };
        timeout(PATIENCE, enough).await.expect("the bus says something");
        self.said.lock().unwrap().clone()
    }
}

#[async_trait]
impl Transport for Tape {
    async fn attach(&self, _member: MemberInfo, inbound: Inbound) -> Result<Attached, BusError> {
        *self.inbound.lock().unwrap() = Some(inbound);
        Ok(Attached::new(Arc::new(self.clone()), 1))
    }
}

#[async_trait]
impl Link for Tape {
    async fn send(&self, to: &Destination, frame: Bytes, _ttl: Duration) -> Result<Sent, SendError> {
        self.said.lock().unwrap().push((to.clone(), frame));
        Ok(Sent::default())
    }
    async fn post(&self, to: Destination, frame: Bytes, ttl: Duration) {
        self.try_post(to, frame, ttl);
    }
    fn try_post(&self, to: Destination, frame: Bytes, _ttl: Duration) -> bool {
        self.said.lock().unwrap().push((to, frame));
        true
    }
    async fn members(&self, _scope: &NodePath) -> Result<Vec<MemberInfo>, BusError> {
        Ok(Vec::new())
    }
    fn generations(&self) -> watch::Receiver<u64> {
        self.generation.subscribe()
    }
    fn ended(&self) -> watch::Receiver<Option<BusError>> {
        self.failure.subscribe()
    }
    async fn retire(&self) {}
    async fn close(&self) {}
    fn sever(&self) {}
}

async fn today(tape: &Tape, path: &str, router: Router) -> Bus {
    let member = Member::new(path.parse().unwrap(), "boot-2");
    Bus::attach(Arc::new(tape.clone()) as Arc<dyn Transport>, member, router)
        .await
        .unwrap()
}

/// Reads frames as the first version did, by its documented layout alone.
mod old {
    pub(super) struct Frame {
        pub(super) kind: u8,
        pub(super) codec: u8,
        pub(super) id: [u8; 16],
        pub(super) ttl_ms: u32,
        pub(super) epoch: u64,
        pub(super) method: String,
        pub(super) caller: String,
        pub(super) boot_id: String,
        pub(super) body: Vec<u8>,
    }

    pub(super) fn read(frame: &[u8]) -> Frame {
        let be = |from: usize, to: usize| {
            frame[from..to]
                .iter()
                .fold(0_u64, |n, &byte| (n << 8) | u64::from(byte))
        };
        let size = |from, to| usize::try_from(be(from, to)).unwrap();
        assert_eq!(&frame[..3], b"VB\x01", "magic and version");
        let (method_len, caller_len, tlv_len) = (size(36, 37), size(37, 39), size(39, 41));
        let body_len = size(41, 45);
        let (method, caller) = (45 + method_len, 45 + method_len + caller_len);
        let mut boot_id = String::new();
        let mut tlvs = &frame[caller..caller + tlv_len];
        while !tlvs.is_empty() {
            let length = usize::from(u16::from_be_bytes([tlvs[1], tlvs[2]]));
            if tlvs[0] == 3 {
                boot_id = text(&tlvs[3..3 + length]);
            }
            // Every other tag is skipped.
            tlvs = &tlvs[3 + length..];
        }
        let body = frame[caller + tlv_len..].to_vec();
        assert_eq!(body.len(), body_len);
        Frame {
            kind: frame[3],
            codec: frame[5],
            id: frame[8..24].try_into().unwrap(),
            ttl_ms: u32::try_from(be(24, 28)).unwrap(),
            epoch: be(28, 36),
            method: text(&frame[45..method]),
            caller: text(&frame[method..caller]),
            boot_id,
            body,
        }
    }

    fn text(bytes: &[u8]) -> String {
        String::from_utf8(bytes.to_vec()).unwrap()
    }
}

#[test]
fn every_frame_of_the_first_version_is_read() {
    let caller: NodePath = "eu/r1/old".parse().unwrap();
    for (name, kind) in [
        ("request", Kind::Request),
        ("request-json", Kind::Request),
        ("request-of-an-unknown-method", Kind::Request),
        ("broadcast", Kind::Request),
        ("cast", Kind::Cast),
        ("reply", Kind::Reply),
        ("refusal", Kind::Refusal),
        ("accepted", Kind::Accepted),
        ("end-no-route", Kind::End),
        ("cancel", Kind::Cancel),
    ] {
        let frame = Envelope::decode(&fixture(name)).unwrap_or_else(|error| panic!("{name}: {error}"));
        assert_eq!(frame.kind, kind, "{name}");
    }
    let request = Envelope::decode(&fixture("request")).unwrap();
    assert_eq!((&request.caller, request.boot_id.as_str()), (&caller, "boot-1"));
    assert_eq!((request.method.as_str(), request.attempt), ("old.greet", 1));
    assert_eq!((request.ttl_ms, request.epoch), (30_000, Epoch(7)));
    assert_eq!(request.codec, Codec::MessagePack);
    assert_eq!(request.idempotency_key.as_deref(), Some("greet-1"));
    let trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
    assert_eq!(request.traceparent.as_deref(), Some(trace));
    assert_eq!(request.body.as_ref(), b"\x81\xa4name\xa3ada");
    let end = Envelope::decode(&fixture("end-no-route")).unwrap();
    assert_eq!(end.body[0], EndCode::NoRoute as u8);
}

#[tokio::test(start_paused = true)]
async fn requests_of_the_first_version_are_answered_so_that_it_understands() {
    let (tape, notes) = (Tape::default(), Arc::default());
    let bus = today(&tape, "eu/r1/worker", router(&notes)).await;
    for name in [
        "request",
        "request-json",
        "request-of-an-unknown-method",
        "broadcast",
    ] {
        tape.hear(fixture(name)).await;
    }
    tape.hear(fixture("cast")).await;
    let answers = tape.said(4).await;
    let inbox = Destination::Inbox {
        path: "eu/r1/old".parse().unwrap(),
        boot_id: "boot-1".into(),
    };
    let answer_to = |name: &str| {
        let id: [u8; 16] = fixture(name)[8..24].try_into().unwrap();
        let mut found = answers
            .iter()
            .filter(|(_, frame)| old::read(frame).id == id)
            .collect::<Vec<_>>();
        assert_eq!(found.len(), 1, "one answer to {name}");
        let (to, frame) = found.remove(0);
        assert_eq!(*to, inbox);
        old::read(frame)
    };
    let (golden, reply) = (old::read(&fixture("reply")), answer_to("request"));
    assert_eq!(
        (reply.kind, reply.codec, &reply.body),
        (golden.kind, golden.codec, &golden.body)
    );
    assert_eq!((&reply.caller, &reply.boot_id), (&golden.caller, &golden.boot_id));
    assert_eq!((reply.method.as_str(), reply.ttl_ms, reply.epoch), ("", 0, 0));
    assert_eq!(answer_to("request-json").body, b"\"hello bob\"");
    assert_eq!(answer_to("broadcast").body, golden.body);
    let (golden, end) = (
        old::read(&fixture("end-no-route")),
        answer_to("request-of-an-unknown-method"),
    );
    assert_eq!((end.kind, &end.body), (golden.kind, &golden.body));
    let noted = async {
        while notes.load(Ordering::SeqCst) == 0 {
            sleep(Duration::from_millis(1)).await;
        }
    };
    timeout(PATIENCE, noted).await.expect("the cast was done");
    bus.shutdown().await;
}

/// A frame of the first version as the answer to a call of today: with that call's id.
fn as_answer_to(call: &[u8], name: &str) -> Bytes {
    let mut frame = fixture(name).to_vec();
    frame[8..24].copy_from_slice(&call[8..24]);
    frame.into()
}

#[tokio::test(start_paused = true)]
async fn the_first_version_understands_a_call_of_today_and_its_answers_are_understood() {
    let tape = Tape::default();
    let bus = today(&tape, "eu/r1/new", Router::new()).await;
    let request = Greet {
        name: "ada".into(),
        loud: true,
    };
    let route = Route::node("eu/r1/worker".parse().unwrap());
    let mut said = 0;
    let mut ask = async |answers: &[&str]| {
        let options = CallOptions::default().epoch(Epoch(9)).idempotency_key("k");
        let call = tokio::spawn(bus.call::<OldGreet>(&route, &request, options));
        said += 1;
        let (_, frame) = tape.said(said).await.remove(said - 1);
        let read = old::read(&frame);
        assert_eq!((read.kind, read.method.as_str(), read.epoch), (1, "old.greet", 9));
        assert_eq!(
            (read.caller.as_str(), read.boot_id.as_str()),
            ("eu/r1/new", "boot-2")
        );
        assert_eq!((read.codec, read.ttl_ms), (1, 30_000));
        assert!(
            read.body.windows(9).any(|part| part == b"\xa4name\xa3ada"),
            "fields have their names, so the new one can be skipped"
        );
        for name in answers {
            tape.hear_reply(as_answer_to(&frame, name));
        }
        timeout(PATIENCE, call).await.expect("it ends").unwrap()
    };
    assert_eq!(ask(&["accepted", "reply"]).await, Ok("hello ada".to_owned()));
    let Err(Fate::Refused(error)) = ask(&["refusal"]).await else {
        panic!("a refusal is a refusal");
    };
    assert_eq!(
        (error.kind(), error.what(), error.fix()),
        (ErrorKind::Conflict, "no", "do this")
    );
    assert!(matches!(ask(&["end-no-route"]).await, Err(Fate::NoRoute { .. })));
    bus.shutdown().await;
}

#[tokio::test(start_paused = true)]
async fn what_a_later_version_adds_is_skipped_and_nobody_is_disturbed() {
    let (tape, notes) = (Tape::default(), Arc::default());
    let bus = today(&tape, "eu/r1/worker", router(&notes)).await;
    // A TLV that nobody knows yet, flags that nobody knows yet.
    let mut later = fixture("request").to_vec();
    later[4] = 0b1010_0000;
    let tlvs_at = 45 + usize::from(later[36]) + usize::from(u16::from_be_bytes([later[37], later[38]]));
    later.splice(tlvs_at..tlvs_at, [201, 0, 2, 7, 7]);
    let length = u16::from_be_bytes([later[39], later[40]]) + 5;
    later[39..41].copy_from_slice(&length.to_be_bytes());
    // A kind, a version, a codec that nobody knows yet: skipped, each counted.
    let broken = |at: usize, value: u8| {
        let mut frame = fixture("request-json").to_vec();
        frame[at] = value;
        Bytes::from(frame)
    };
    for frame in [broken(3, 77), broken(2, 2), broken(5, 9)] {
        tape.hear(frame.clone()).await;
        tape.hear_reply(frame);
    }
    tape.hear(later.into()).await;
    let answers = tape.said(1).await;
    assert_eq!(old::read(&answers[0].1).body, old::read(&fixture("reply")).body);
    assert_eq!(answers.len(), 1, "what is not understood is not answered");
    assert_eq!(bus.stats().frames_refused, 6);
    bus.shutdown().await;
}

/// The packed entry of the first version, put into the queue by a plain Redis client.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_packed_entry_of_the_first_version_is_taken_from_redis_and_answered() {
    if left_out() {
        return;
    }
    let server = RedisServer::start().await;
    let transport = server.transport().await;
    let worker = Member::new("eu/r1/worker".parse().unwrap(), "boot-2");
    let bus = Bus::attach(transport, worker, router(&Arc::default()))
        .await
        .unwrap();
    let mut redis = server.raw().await;
    let inbox = "vbm:v1:{eu/r1}:r:eu/r1/old:boot-1";
    let mut make = redis::cmd("XGROUP");
    make.arg("CREATE")
        .arg(inbox)
        .arg("making")
        .arg("$")
        .arg("MKSTREAM");
    make.query_async::<()>(&mut redis).await.unwrap();
    let mut add = redis::cmd("XADD");
    add.arg("vbm:v1:{eu/r1}:n:eu/r1/worker").arg("*").arg("f");
    add.arg(fixture("packed-entry").as_ref());
    add.query_async::<()>(&mut redis).await.unwrap();
    let answers = async {
        let mut frames = Vec::new();
        while frames.len() < 3 {
            let mut read = redis::cmd("XRANGE");
            read.arg(inbox).arg("-").arg("+");
            let entries: Vec<(String, Vec<Vec<u8>>)> = read.query_async(&mut redis).await.unwrap();
            frames = entries.iter().flat_map(|(_, fields)| unpack(fields)).collect();
            sleep(Duration::from_millis(10)).await;
        }
        frames
    };
    let frames = timeout(PATIENCE, answers).await.expect("three answers");
    let mut bodies: Vec<_> = frames.iter().map(|frame| old::read(frame).body).collect();
    bodies.sort();
    let mut expected = vec![
        b"\"hello bob\"".to_vec(),
        old::read(&fixture("reply")).body,
        old::read(&fixture("end-no-route")).body,
    ];
    expected.sort();
    assert_eq!(bodies, expected);
    bus.shutdown().await;
}

/// The frames of an entry, as the first version cut them: a length of four bytes before each.
fn unpack(fields: &[Vec<u8>]) -> Vec<Vec<u8>> {
    let at = fields.iter().step_by(2).position(|name| name == b"f");
    let mut content: &[u8] = &fields[2 * at.expect("the field f") + 1];
    let mut frames = Vec::new();
    while let Some((length, rest)) = content.split_first_chunk::<4>() {
        let (frame, rest) = rest.split_at(usize::try_from(u32::from_be_bytes(*length)).unwrap());
        frames.push(frame.to_vec());
        content = rest;
    }
    frames
}
