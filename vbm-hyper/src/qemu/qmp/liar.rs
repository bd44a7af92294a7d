//! A monitor that lies, stutters, floods, hangs and goes away: each is the right error or is borne, and nothing hangs or is left.

use super::{
    Connected, Qmp, QmpEvent,
    jobs::{self, Stage},
};
use crate::{
    Error, OpCx,
    limits::{QMP_EVENTS_MAX, QMP_LINE_MAX_BYTES, QMP_PENDING_MAX},
    scope::Scope,
};
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags};
use serde_json::{Value, json};
use std::{
    future::Future,
    io::{IoSliceMut, Read},
    mem::MaybeUninit,
    os::fd::OwnedFd,
    task::{Context, Poll, Waker},
    time::Duration,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::UnixStream,
    time::timeout,
};

const GREETING: &str = r#"{"QMP": {"version": {"qemu": {"micro": 2, "minor": 0, "major": 10}, "package": ""}, "capabilities": []}}"#;
/// How long anything here may take on a loaded machine.
const PATIENCE: Duration = Duration::from_secs(60);

/// The other end: says what the test wants, as bytes.
struct Liar {
    stream: UnixStream,
    heard: Vec<u8>,
}

impl Liar {
    async fn say(&mut self, text: &str) {
        self.stream.write_all(text.as_bytes()).await.unwrap();
        self.stream.write_all(b"\r\n").await.unwrap();
    }

    async fn hear(&mut self) -> Value {
        loop {
            if let Some(end) = self.heard.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.heard.drain(..=end).collect();
                return serde_json::from_slice(&line).unwrap();
            }
            assert_ne!(
                self.stream.read_buf(&mut self.heard).await.unwrap(),
                0,
                "it goes on"
            );
        }
    }

    async fn reply(&mut self, to: &Value, value: Value) {
        self.say(&json!({ "return": value, "id": to["id"] }).to_string())
            .await;
    }

    async fn answer(&mut self, command: &str, value: Value) {
        let heard = self.hear().await;
        assert_eq!(heard["execute"], command);
        self.reply(&heard, value).await;
    }
}

fn ends() -> (UnixStream, Liar) {
    let (ours, stream) = UnixStream::pair().unwrap();
    let heard = Vec::new();
    (ours, Liar { stream, heard })
}

async fn pair(scope: &Scope) -> (Connected, Liar) {
    let (ours, mut liar) = ends();
    let play = async {
        liar.say(GREETING).await;
        liar.answer("qmp_capabilities", json!({})).await;
    };
    let (connected, ()) = tokio::join!(Qmp::negotiate(ours, scope), play);
    (connected.unwrap(), liar)
}

/// All tasks end once nobody holds anything: nothing hangs and nothing leaks.
async fn nothing_is_left(scope: Scope) {
    scope.tasks.close();
    timeout(PATIENCE, scope.tasks.wait())
        .await
        .expect("all tasks end");
}

/// Once the client has written all that it may: its task runs on this thread, and a socket takes it at once.
async fn written() {
    for _ in 0..100 {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn a_conversation_may_be_split_at_every_byte() {
    let first = format!(
        "{GREETING}\r\n{}\ngarbage {{\r\n",
        json!({ "event": "STOP", "data": { "x": "a\nb" } })
    );
    let second = format!(
        "{}\r\n{}\r\n",
        json!({ "return": "è", "id": 1 }),
        json!({ "event": "RESUME" })
    );
    for cut in 0..=first.len().max(second.len()) {
        let scope = Scope::default();
        let (ours, mut liar) = ends();
        let play = async {
            for (part, said) in [&first, &second].into_iter().enumerate() {
                if part > 0 {
                    liar.hear().await;
                }
                let (early, late) = said.as_bytes().split_at(cut.min(said.len()));
                liar.stream.write_all(early).await.unwrap();
                written().await;
                liar.stream.write_all(late).await.unwrap();
            }
        };
        let (connected, ()) = tokio::join!(Qmp::negotiate(ours, &scope), play);
        let mut connected = connected.unwrap();
        assert_eq!(connected.greeting.version, "10.0.2", "cut at {cut}");
        for event in [QmpEvent::Stop, QmpEvent::Resume] {
            assert_eq!(connected.events.recv().await, Some(event), "cut at {cut}");
        }
        drop((connected, liar));
        nothing_is_left(scope).await;
    }
}

#[tokio::test]
async fn an_event_before_the_greeting_or_a_reply_is_heard_and_an_unknown_id_is_let_go() {
    let scope = Scope::default();
    let (ours, mut liar) = ends();
    let play = async {
        liar.say(r#"{"event": "RESUME"}"#).await;
        liar.say(GREETING).await;
        let asked = liar.hear().await;
        liar.say(r#"{"event": "STOP", "timestamp": {"seconds": 1}}"#)
            .await;
        liar.reply(&asked, json!({})).await;
        let asked = liar.hear().await;
        liar.say(r#"{"return": "of nobody", "id": 4711}"#).await;
        liar.say(r#"{"return": "of a string", "id": "2"}"#).await;
        liar.say(r#"{"return": "of none"}"#).await;
        liar.say(r#"{"error": {"desc": "of nobody"}, "id": 4711}"#).await;
        liar.say(r#"{"error": {"desc": "of none"}}"#).await;
        liar.say(GREETING).await;
        liar.reply(&asked, json!("mine")).await;
        liar.reply(&asked, json!("twice")).await;
    };
    let talk = async {
        let mut connected = Qmp::negotiate(ours, &scope).await.unwrap();
        let mine = connected.qmp.execute("x", Value::Null).await.unwrap();
        let events = [connected.events.recv().await, connected.events.recv().await];
        (mine, events)
    };
    let ((mine, events), ()) = tokio::join!(talk, play);
    assert_eq!(mine, "mine");
    assert_eq!(events, [Some(QmpEvent::Resume), Some(QmpEvent::Stop)]);
    nothing_is_left(scope).await;
}

#[tokio::test]
async fn the_end_within_a_reply_is_told_to_whoever_waited() {
    for said in [
        "",
        "{",
        r#"{"return": {"status": "run"#,
        r#"{"return": {}, "id": 2}"#,
    ] {
        let scope = Scope::default();
        let (connected, mut liar) = pair(&scope).await;
        let play = async {
            liar.hear().await;
            liar.stream.write_all(said.as_bytes()).await.unwrap();
            drop(liar);
        };
        let (result, ()) = tokio::join!(connected.qmp.execute("x", Value::Null), play);
        assert!(
            matches!(result.unwrap_err(), Error::Disconnected { .. }),
            "{said}"
        );
        let after = connected.qmp.execute("y", Value::Null).await.unwrap_err();
        assert!(matches!(after, Error::Disconnected { .. }));
        drop(connected);
        nothing_is_left(scope).await;
    }
}

#[tokio::test]
async fn a_reply_of_two_mebibytes_comes_whole_and_one_without_end_ends_the_connection() {
    let scope = Scope::default();
    let (connected, mut liar) = pair(&scope).await;
    let long = "x".repeat(2 << 20);
    let play = async {
        let asked = liar.hear().await;
        liar.reply(&asked, json!(long)).await;
        liar.hear().await;
        let endless = vec![b'['; QMP_LINE_MAX_BYTES + (1 << 20)];
        // It hangs up in the middle.
        drop(liar.stream.write_all(&endless).await);
    };
    let ask = async {
        let whole = connected.qmp.execute("x", Value::Null).await.unwrap();
        assert_eq!(whole.as_str().map(str::len), Some(2 << 20));
        connected.qmp.execute("y", Value::Null).await.unwrap_err()
    };
    let (error, ()) = tokio::join!(ask, play);
    assert!(matches!(error, Error::Disconnected { .. }), "{error}");
    nothing_is_left(scope).await;
}

#[tokio::test]
async fn nesting_without_end_and_bytes_that_are_no_text_are_passed_over() {
    let scope = Scope::default();
    let (connected, mut liar) = pair(&scope).await;
    let play = async {
        let asked = liar.hear().await;
        liar.say(&"[".repeat(100_000)).await;
        liar.say(&format!(r#"{{"return": {}, "id": 2}}"#, "{\"a\":".repeat(10_000)))
            .await;
        liar.stream.write_all(b"\xff\xfe\0\n\n\n").await.unwrap();
        liar.reply(&asked, json!("fine")).await;
    };
    let (result, ()) = tokio::join!(connected.qmp.execute("x", Value::Null), play);
    assert_eq!(result.unwrap(), "fine");
}

#[tokio::test(start_paused = true)]
async fn a_greeting_that_never_comes_or_comes_too_late_is_a_timeout_and_one_that_is_late_enough_is_fine() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("m");
    let listener = tokio::net::UnixListener::bind(&path).unwrap();
    let deadline = Duration::from_secs(3);
    for (says, after) in [
        (false, Duration::ZERO),
        (true, Duration::from_secs(4)),
        (true, Duration::from_secs(2)),
    ] {
        let scope = Scope::default();
        let serve = async {
            let (stream, _) = listener.accept().await.unwrap();
            let mut liar = Liar {
                stream,
                heard: vec![],
            };
            tokio::time::sleep(after).await;
            if says {
                // Nobody may be there any more.
                drop(liar.stream.write_all(format!("{GREETING}\n").as_bytes()).await);
            }
            if after < deadline && says {
                liar.answer("qmp_capabilities", json!({})).await;
            }
            liar
        };
        let (connected, _liar) = tokio::join!(Qmp::connect(&path, deadline, &scope), serve);
        match connected {
            Ok(connected) => {
                assert!(says && after < deadline);
                drop(connected);
            }
            Err(error) => {
                assert!(!says || after > deadline);
                assert!(matches!(error, Error::Timeout { ref command, .. } if command == "the greeting"));
            }
        }
        nothing_is_left(scope).await;
    }
}

#[tokio::test]
async fn a_monitor_that_refuses_to_negotiate_is_told_by_its_words() {
    let scope = Scope::default();
    let (ours, mut liar) = ends();
    let play = async {
        liar.say(GREETING).await;
        let asked = liar.hear().await;
        liar.say(
            &json!({ "error": { "class": "CommandNotFound", "desc": "not today" }, "id": asked["id"] })
                .to_string(),
        )
        .await;
    };
    let (connected, ()) = tokio::join!(Qmp::negotiate(ours, &scope), play);
    let error = connected.unwrap_err();
    assert!(matches!(error, Error::Hypervisor { ref why, .. } if why == "not today"));
    nothing_is_left(scope).await;
}

#[tokio::test]
async fn a_flood_of_events_ends_in_a_look_that_comes_after_them() {
    let scope = Scope::default();
    let (mut connected, mut liar) = pair(&scope).await;
    let flood = 3 * QMP_EVENTS_MAX;
    for _ in 0..flood {
        liar.say(r#"{"event": "STOP"}"#).await;
    }
    let play = async {
        // The look comes by itself once there is room; the reply to a command goes past the flood.
        for _ in 0..2 {
            let asked = liar.hear().await;
            match asked["execute"].as_str() {
                Some("query-status") => {
                    liar.reply(&asked, json!({ "status": "running" })).await;
                }
                _ => liar.reply(&asked, json!("past it")).await,
            }
        }
        liar
    };
    let hear = async {
        let past = connected.qmp.execute("x", Value::Null).await.unwrap();
        let mut stops = 0;
        loop {
            match connected.events.recv().await.unwrap() {
                QmpEvent::Stop => stops += 1,
                last => return (past, stops, last),
            }
        }
    };
    let (_liar, (past, stops, last)) = tokio::join!(play, hear);
    assert_eq!(past, "past it");
    assert!((QMP_EVENTS_MAX..flood).contains(&stops), "{stops} came");
    assert_eq!(last, QmpEvent::Looked("running".into()));
}

#[tokio::test]
async fn unknown_events_are_kept_as_they_are_for_who_listens() {
    let scope = Scope::default();
    let (connected, mut liar) = pair(&scope).await;
    let mut listener = connected.qmp.raw_events();
    liar.say(r#"{"event": "DEVICE_DELETED", "data": {"device": "nic1"}, "timestamp": {}}"#)
        .await;
    liar.say(r#"{"event": "NEVER_HEARD_OF"}"#).await;
    let first = listener.recv().await.unwrap();
    assert_eq!(
        (first.name.as_str(), &first.data["device"]),
        ("DEVICE_DELETED", &json!("nic1"))
    );
    assert_eq!(listener.recv().await.unwrap().data, Value::Null);
    drop(connected);
    nothing_is_left(scope).await;
    assert!(listener.recv().await.is_err(), "it ends with the connection");
}

#[tokio::test(start_paused = true)]
async fn commands_that_are_never_answered_have_an_end() {
    let scope = Scope::default();
    let (connected, _liar) = pair(&scope).await;
    for _ in 0..QMP_PENDING_MAX {
        let error = connected
            .qmp
            .execute_within(Duration::from_millis(1), "x", Value::Null, None)
            .await
            .unwrap_err();
        assert!(matches!(error, Error::Timeout { .. }), "{error}");
    }
    let error = connected.qmp.execute("x", Value::Null).await.unwrap_err();
    assert!(
        matches!(error, Error::Hypervisor { ref why, .. } if why.contains("256")),
        "{error}"
    );
}

/// What came with one read: its bytes and its descriptors.
fn receive(stream: &UnixStream) -> Option<(Vec<u8>, Vec<OwnedFd>)> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(4))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let mut bytes = vec![0; 64 * 1024];
    let got = rustix::net::recvmsg(
        stream,
        &mut [IoSliceMut::new(&mut bytes)],
        &mut ancillary,
        RecvFlags::DONTWAIT,
    );
    let got = got.ok()?.bytes;
    bytes.truncate(got);
    let fds = ancillary.drain().filter_map(|message| match message {
        RecvAncillaryMessage::ScmRights(fds) => Some(fds.collect::<Vec<_>>()),
        _ => None,
    });
    Some((bytes, fds.flatten().collect()))
}

/// Reads all that there is; checks that each `getfd` comes with its descriptor, before anything of the next.
fn commands_with_fds(stream: &UnixStream) -> Vec<(Value, OwnedFd)> {
    let (mut text, mut fds, mut found) = (Vec::new(), Vec::new(), Vec::new());
    while let Some((bytes, new)) = receive(stream) {
        assert!(new.len() <= 1, "each command carries its own");
        fds.extend(new);
        text.extend(bytes);
        while let Some(end) = text.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = text.drain(..=end).collect();
            found.push((
                serde_json::from_slice(&line).unwrap(),
                fds.pop().expect("it came with it"),
            ));
            assert!(fds.is_empty(), "that of the next comes with the next");
        }
    }
    found
}

fn pipe() -> (std::io::PipeReader, OwnedFd) {
    let (read, write) = std::io::pipe().unwrap();
    (read, write.into())
}

fn poll_once(future: std::pin::Pin<&mut impl Future>) -> bool {
    let mut cx = Context::from_waker(Waker::noop());
    matches!(future.poll(&mut cx), Poll::Ready(_))
}

#[tokio::test]
async fn two_descriptors_in_one_go_each_travel_with_their_command() {
    let scope = Scope::default();
    let (connected, mut liar) = pair(&scope).await;
    let (mut reads, mut asked) = (Vec::new(), Vec::new());
    for name in ["a", "b"] {
        let (read, write) = pipe();
        reads.push(read);
        let arguments = json!({ "fdname": name });
        asked.push(Box::pin(connected.qmp.execute_within(
            PATIENCE,
            "getfd",
            arguments,
            Some(write),
        )));
    }
    for ask in &mut asked {
        assert!(
            !poll_once(ask.as_mut()),
            "both are under way before either is answered"
        );
    }
    liar.stream.readable().await.unwrap();
    written().await;
    let came = commands_with_fds(&liar.stream);
    let names: Vec<_> = came
        .iter()
        .map(|(line, _)| line["arguments"]["fdname"].clone())
        .collect();
    assert_eq!(names, ["a", "b"]);
    for (line, fd) in came {
        use std::io::Write as _;
        let name = line["arguments"]["fdname"].as_str().unwrap().to_owned();
        std::fs::File::from(fd).write_all(name.as_bytes()).unwrap();
        liar.reply(&line, json!({})).await;
    }
    for ask in asked {
        ask.await.unwrap();
    }
    // Our copies were closed when they were sent, or this would wait for ever.
    for (read, name) in reads.into_iter().zip(["a", "b"]) {
        assert_eq!(std::io::read_to_string(read).unwrap(), name);
    }
}

#[tokio::test]
async fn a_command_given_up_before_its_first_byte_is_never_sent_and_its_descriptor_closed() {
    let scope = Scope::default();
    let (connected, mut liar) = pair(&scope).await;
    let (mut read, write) = pipe();
    {
        let mut given_up = Box::pin(connected.qmp.execute_within(
            PATIENCE,
            "getfd",
            json!({ "fdname": "x" }),
            Some(write),
        ));
        // Enqueued, but the task that writes did not run yet.
        assert!(!poll_once(given_up.as_mut()));
    }
    let next = async {
        let asked = liar.hear().await;
        assert_eq!(asked["execute"], "next", "nothing came before it");
        liar.reply(&asked, json!({})).await;
    };
    let (result, ()) = tokio::join!(connected.qmp.execute("next", Value::Null), next);
    result.unwrap();
    assert_eq!(read.read(&mut [0; 1]).unwrap(), 0, "it was closed");
}

#[tokio::test]
async fn a_command_given_up_in_the_middle_is_sent_whole_and_the_next_one_works() {
    let scope = Scope::default();
    let (connected, mut liar) = pair(&scope).await;
    let (mut read, write) = pipe();
    // More than a socket holds: a part of it is written, then it waits for the reader.
    let long = "x".repeat(4 << 20);
    {
        let arguments = json!({ "fdname": long });
        let mut given_up = Box::pin(
            connected
                .qmp
                .execute_within(PATIENCE, "getfd", arguments, Some(write)),
        );
        assert!(!poll_once(given_up.as_mut()));
        liar.stream.readable().await.unwrap();
        written().await;
    }
    let (mut bytes, fds) = receive(&liar.stream).unwrap();
    assert_eq!(fds.len(), 1, "the descriptor came with the first byte");
    drop(fds);
    liar.heard.append(&mut bytes);
    let play = async {
        let first = liar.hear().await;
        assert_eq!(first["arguments"]["fdname"].as_str().map(str::len), Some(4 << 20));
        liar.reply(&first, json!({})).await;
        liar.answer("next", json!("fine")).await;
    };
    let (result, ()) = tokio::join!(connected.qmp.execute("next", Value::Null), play);
    assert_eq!(result.unwrap(), "fine");
    assert_eq!(read.read(&mut [0; 1]).unwrap(), 0, "no copy of it is left");
}

#[test]
fn what_query_jobs_says_is_understood() {
    let jobs = json!([
        { "id": "a", "status": "running", "current-progress": 3, "total-progress": 8 },
        { "id": "b", "status": "concluded" },
        { "id": "c", "status": "concluded", "error": "No space left on device" },
        { "id": "d", "status": "ready" },
        7
    ]);
    assert_eq!(jobs::stage(&jobs, "a"), Some(Stage::Going(3, 8)));
    assert_eq!(jobs::stage(&jobs, "b"), Some(Stage::Concluded(None)));
    let failed = Some("No space left on device".to_owned());
    assert_eq!(jobs::stage(&jobs, "c"), Some(Stage::Concluded(failed)));
    assert_eq!(jobs::stage(&jobs, "d"), Some(Stage::Ready));
    assert_eq!(jobs::stage(&jobs, "e"), None);
    assert_eq!(jobs::stage(&Value::Null, "a"), None);
}

/// A monitor that says of its one job what it is told to, a word each time it is asked.
async fn with_job(liar: &mut Liar, stages: &[Value]) {
    for stage in stages {
        let mut asked = liar.hear().await;
        while asked["execute"] != "query-jobs" {
            liar.reply(&asked, json!({})).await;
            asked = liar.hear().await;
        }
        liar.reply(&asked, stage.clone()).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_job_is_waited_for_to_its_conclusion_its_error_told_and_it_is_dismissed() {
    let going = json!([{ "id": "j", "status": "running", "current-progress": 1, "total-progress": 2 }]);
    let over = json!([{ "id": "j", "status": "concluded" }]);
    let failed = json!([{ "id": "j", "status": "concluded", "error": "no room" }]);
    for (end, why) in [
        (over, None),
        (failed, Some("no room")),
        (json!([]), Some("is gone")),
    ] {
        let scope = Scope::default();
        let (connected, mut liar) = pair(&scope).await;
        let cx = OpCx::new();
        let gone = end == json!([]);
        let play = async {
            with_job(&mut liar, &[going.clone(), going.clone(), end]).await;
            if !gone {
                liar.answer("job-dismiss", json!({})).await;
            }
        };
        let (ended, ()) = tokio::join!(jobs::conclude(&connected.qmp, &cx, "j", "copy", PATIENCE), play);
        assert_eq!(
            (cx.progress().borrow().done, cx.progress().borrow().total),
            (1, 2)
        );
        match (ended, why) {
            (Ok(()), None) => {}
            (Err(Error::Hypervisor { why, .. }), Some(words)) => assert!(why.contains(words), "{why}"),
            other => panic!("{other:?}"),
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_job_that_is_called_off_or_late_is_cancelled_waited_for_and_dismissed() {
    for called_off in [true, false] {
        let scope = Scope::default();
        let (connected, mut liar) = pair(&scope).await;
        let cx = OpCx::new();
        let going = json!([{ "id": "j", "status": "running" }]);
        let play = async {
            loop {
                let asked = liar.hear().await;
                match asked["execute"].as_str() {
                    Some("query-jobs") => liar.reply(&asked, going.clone()).await,
                    Some("job-cancel") => break liar.reply(&asked, json!({})).await,
                    other => panic!("{other:?}"),
                }
                if called_off {
                    cx.cancel();
                }
            }
            let over = json!([{ "id": "j", "status": "concluded", "error": "cancelled" }]);
            with_job(&mut liar, &[going.clone(), over]).await;
            liar.answer("job-dismiss", json!({})).await;
        };
        let limit = Duration::from_secs(1);
        let (ended, ()) = tokio::join!(jobs::ready(&connected.qmp, &cx, "j", "copy", limit), play);
        match ended.unwrap_err() {
            Error::CalledOff { .. } => assert!(called_off),
            Error::Timeout { .. } => assert!(!called_off),
            other => panic!("{other}"),
        }
    }
}
