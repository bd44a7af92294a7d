//! The task that owns a monitor's socket, and the handle that others use it by.

use super::codec::{self, Greeting, Incoming, Lines, QmpEvent, RawEvent};
use crate::{
    Error, Result,
    limits::{COMMAND_DEADLINE, QMP_EVENTS_MAX, QMP_PENDING_MAX, QMP_RAW_EVENTS_MAX, QMP_REQUESTS_MAX},
    scope::Scope,
};
use bytes::{Buf, Bytes};
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags};
use serde_json::{Value, json};
use std::{
    collections::{HashMap, VecDeque},
    io::{self, IoSlice},
    mem::MaybeUninit,
    os::fd::{AsFd, OwnedFd},
    path::Path,
    time::Duration,
};
use tokio::{
    io::Interest,
    net::UnixStream,
    sync::{broadcast, mpsc, oneshot},
    time::{Instant, timeout, timeout_at},
};
use tokio_util::sync::CancellationToken;

/// What one read takes at least room for.
const READ_CHUNK_BYTES: usize = 16 * 1024;

/// The handle of one monitor. Cheap to clone; the connection ends with the last one.
#[derive(Clone, Debug)]
pub(crate) struct Qmp {
    requests: mpsc::Sender<Request>,
    raw: broadcast::Sender<RawEvent>,
}

#[derive(Debug)]
struct Request {
    command: String,
    arguments: Value,
    fd: Option<OwnedFd>,
    reply: oneshot::Sender<Result<Value>>,
}

/// A connected monitor: its handle, its events, what it said first.
pub(crate) struct Connected {
    pub(crate) qmp: Qmp,
    pub(crate) events: mpsc::Receiver<QmpEvent>,
    pub(crate) greeting: Greeting,
}

impl std::fmt::Debug for Connected {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Connected")
            .field("greeting", &self.greeting)
            .finish_non_exhaustive()
    }
}

impl Qmp {
    /// Connects to a monitor's socket and negotiates. A monitor that somebody else uses never greets.
    pub(crate) async fn connect(path: &Path, deadline: Duration, scope: &Scope) -> Result<Connected> {
        let until = Instant::now() + deadline;
        let stream = timeout_at(until, UnixStream::connect(path))
            .await
            .map_err(|_| late("the connection", deadline))?
            .map_err(Error::io("connect to", path))?;
        timeout_at(until, Self::negotiate(stream, scope))
            .await
            .map_err(|_| late("the greeting", deadline))?
    }

    /// Waits for the greeting and negotiates. The caller sets the deadline.
    pub(crate) async fn negotiate(stream: UnixStream, scope: &Scope) -> Result<Connected> {
        let (requests, queue) = mpsc::channel(QMP_REQUESTS_MAX);
        let (event_sender, events) = mpsc::channel(QMP_EVENTS_MAX);
        let (greet, greeted) = oneshot::channel();
        let raw = broadcast::channel(QMP_RAW_EVENTS_MAX).0;
        let monitor = Monitor {
            stream,
            queue,
            events: event_sender,
            greet: Some(greet),
            lines: Lines::default(),
            outbox: VecDeque::new(),
            pending: HashMap::new(),
            next_id: 1,
            raw: raw.downgrade(),
            missed: false,
            resyncs: false,
        };
        scope.tasks.spawn(monitor.run(scope.end.clone()));
        let greeting = greeted.await.map_err(|_| gone("the greeting"))?;
        let qmp = Self { requests, raw };
        // A monitor that cannot do anything past its main loop does not offer it.
        let enable = match greeting.out_of_band {
            true => json!({ "enable": ["oob"] }),
            false => Value::Null,
        };
        qmp.send("qmp_capabilities", enable, None).await?;
        Ok(Connected {
            qmp,
            events,
            greeting,
        })
    }

    /// Every event from now on, as QEMU says it, those included that nobody here knows. Who lags is told so.
    #[cfg_attr(
        not(test),
        expect(
            dead_code,
            reason = "what waits for an event of a device or of a job listens here"
        )
    )]
    pub(crate) fn raw_events(&self) -> broadcast::Receiver<RawEvent> {
        self.raw.subscribe()
    }

    /// Runs a command with the usual deadline.
    pub(crate) async fn execute(&self, command: &str, arguments: Value) -> Result<Value> {
        self.execute_within(COMMAND_DEADLINE, command, arguments, None)
            .await
    }

    /// Runs a command that may carry a file descriptor.
    ///
    /// # Cancel safety
    /// A command of which no byte was sent when it was dropped or late is not sent any more, and its descriptor is closed. Any
    /// other is sent whole and may take effect; its reply is let go.
    pub(crate) async fn execute_within(
        &self,
        deadline: Duration,
        command: &str,
        arguments: Value,
        fd: Option<OwnedFd>,
    ) -> Result<Value> {
        timeout(deadline, self.send(command, arguments, fd))
            .await
            .map_err(|_| late(command, deadline))?
    }

    /// Runs a command and waits for its reply as long as the connection lives.
    pub(crate) async fn send(&self, command: &str, arguments: Value, fd: Option<OwnedFd>) -> Result<Value> {
        let (reply, answer) = oneshot::channel();
        let request = Request {
            command: command.to_owned(),
            arguments,
            fd,
            reply,
        };
        self.requests.send(request).await.map_err(|_| gone(command))?;
        answer.await.map_err(|_| gone(command))?
    }
}

fn late(command: &str, after: Duration) -> Error {
    Error::Timeout {
        command: command.to_owned(),
        after,
    }
}

fn gone(command: &str) -> Error {
    Error::Disconnected {
        command: command.to_owned(),
    }
}

/// Who waits for a reply.
enum Waits {
    Caller(oneshot::Sender<Result<Value>>),
    /// The keeper, to whom events were lost: it is told among the events, in QEMU's own order.
    Keeper,
}

impl Waits {
    fn has_gone(&self) -> bool {
        matches!(self, Self::Caller(reply) if reply.is_closed())
    }
}

struct Pending {
    command: String,
    waits: Waits,
}

/// A command on its way.
struct Outgoing {
    id: u64,
    line: Bytes,
    fd: Option<OwnedFd>,
    begun: bool,
}

struct Monitor {
    stream: UnixStream,
    queue: mpsc::Receiver<Request>,
    events: mpsc::Sender<QmpEvent>,
    raw: broadcast::WeakSender<RawEvent>,
    greet: Option<oneshot::Sender<Greeting>>,
    lines: Lines,
    outbox: VecDeque<Outgoing>,
    pending: HashMap<u64, Pending>,
    next_id: u64,
    /// Events were lost since the keeper was last told how things are.
    missed: bool,
    /// A look for the keeper is under way.
    resyncs: bool,
}

impl Monitor {
    /// Ends when the last handle is gone, the stream ends or the driver does; then all that is pending fails.
    async fn run(mut self, end: CancellationToken) {
        loop {
            let interest = if self.outbox.is_empty() {
                Interest::READABLE
            } else {
                Interest::READABLE | Interest::WRITABLE
            };
            let (events, lost) = (&self.events, self.missed && !self.resyncs);
            let room = async { events.reserve().await.is_ok() };
            // Cancel safe: `recv`, `reserve` and `ready` take nothing until they return.
            let alive = tokio::select! {
                () = end.cancelled() => false,
                request = self.queue.recv() => match request {
                    Some(request) => { self.take(request); true }
                    None => false,
                },
                listens = room, if lost => {
                    self.missed = false;
                    if listens {
                        self.look_for_keeper();
                    }
                    true
                }
                ready = self.stream.ready(interest) => match ready {
                    Ok(ready) => (!ready.is_readable() || self.read()) && (!ready.is_writable() || self.write()),
                    Err(_) => false,
                },
            };
            if !alive {
                break;
            }
        }
        for (_, pending) in self.pending.drain() {
            if let Waits::Caller(reply) = pending.waits {
                drop(reply.send(Err(gone(&pending.command))));
            }
        }
    }

    fn take(&mut self, request: Request) {
        let Request {
            command,
            arguments,
            fd,
            reply,
        } = request;
        if self.pending.len() >= QMP_PENDING_MAX {
            let error = Error::Hypervisor {
                command,
                why: format!("{QMP_PENDING_MAX} commands before it were not answered yet"),
            };
            drop(reply.send(Err(error)));
            return;
        }
        self.enqueue(command, &arguments, fd, Waits::Caller(reply));
    }

    /// Asks how things are, for a keeper that events were lost to.
    fn look_for_keeper(&mut self) {
        self.resyncs = true;
        self.enqueue("query-status".into(), &Value::Null, None, Waits::Keeper);
    }

    fn enqueue(&mut self, command: String, arguments: &Value, fd: Option<OwnedFd>, waits: Waits) {
        crate::steps::step(&command);
        let id = self.next_id;
        self.next_id += 1;
        let line = codec::encode(id, &command, arguments);
        self.outbox.push_back(Outgoing {
            id,
            line,
            fd,
            begun: false,
        });
        self.pending.insert(id, Pending { command, waits });
    }

    /// Writes what the socket takes. `false`: the connection is over.
    fn write(&mut self) -> bool {
        while let Some(next) = self.outbox.front_mut() {
            if !next.begun && self.pending.get(&next.id).is_some_and(|p| p.waits.has_gone()) {
                self.pending.remove(&next.id);
                self.outbox.pop_front();
                continue;
            }
            let (line, fd) = (&mut next.line, &mut next.fd);
            let sent = self
                .stream
                .try_io(Interest::WRITABLE, || send(&self.stream, line, fd.as_ref()));
            match sent {
                Ok(n) => {
                    // The descriptor has travelled with the first byte.
                    *fd = None;
                    next.begun = true;
                    line.advance(n);
                    if line.is_empty() {
                        self.outbox.pop_front();
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return true,
                Err(_) => return false,
            }
        }
        true
    }

    /// Reads and handles what has come. `false`: the connection is over.
    fn read(&mut self) -> bool {
        loop {
            self.lines.buffer.reserve(READ_CHUNK_BYTES);
            match self.stream.try_read_buf(&mut self.lines.buffer) {
                Ok(0) => return false,
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.lines.shrink(READ_CHUNK_BYTES);
                    return true;
                }
                Err(_) => return false,
            }
            loop {
                match self.lines.next() {
                    Ok(Some(line)) => self.handle(codec::parse(&line)),
                    Ok(None) => break,
                    Err(codec::LineTooLong) => {
                        tracing::warn!("a monitor sent a line without end; it is given up");
                        return false;
                    }
                }
            }
        }
    }

    fn handle(&mut self, incoming: Incoming) {
        match incoming {
            Incoming::Greeting(greeting) => {
                if let Some(greet) = self.greet.take() {
                    drop(greet.send(greeting));
                }
            }
            Incoming::Return { id, value } => self.answer(id, |_| Ok(value)),
            Incoming::Failure { id: Some(id), why } => {
                self.answer(id, |command| Err(Error::Hypervisor { command, why }));
            }
            Incoming::Failure { id: None, why } => tracing::warn!(why, "a monitor complains"),
            Incoming::Event(raw) => {
                if let Some(event) = codec::event(&raw.name, &raw.data) {
                    self.tell(event);
                }
                if let Some(listeners) = self.raw.upgrade().filter(|raw| raw.receiver_count() > 0) {
                    // Who stopped listening in between needs nothing.
                    drop(listeners.send(raw));
                }
            }
            Incoming::Other => {}
        }
    }

    /// Tells the keeper. One that is too slow is told how things are once it has room.
    fn tell(&mut self, event: QmpEvent) {
        if let Err(mpsc::error::TrySendError::Full(event)) = self.events.try_send(event) {
            tracing::debug!(?event, "an event was dropped: its keeper is too slow");
            self.missed = true;
        }
    }

    fn answer(&mut self, id: u64, result: impl FnOnce(String) -> Result<Value>) {
        match self.pending.remove(&id) {
            Some(Pending {
                command,
                waits: Waits::Caller(reply),
            }) => {
                if reply.send(result(command.clone())).is_err() {
                    tracing::debug!(command, "a late reply is let go");
                }
            }
            Some(Pending { command, .. }) => {
                self.resyncs = false;
                match result(command) {
                    Ok(status) => self.tell(QmpEvent::Looked(codec::status_of(&status))),
                    Err(error) => tracing::warn!(%error, "a monitor does not say how things are"),
                }
            }
            None => tracing::debug!(id, "a reply that nobody asked for"),
        }
    }
}

/// One `sendmsg`, with the descriptor if there is one.
fn send(stream: &UnixStream, line: &Bytes, fd: Option<&OwnedFd>) -> io::Result<usize> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    let borrowed = fd.map(|fd| [fd.as_fd()]);
    if let Some(fds) = &borrowed {
        let fits = ancillary.push(SendAncillaryMessage::ScmRights(fds));
        debug_assert!(fits, "the space is for one descriptor");
    }
    let sent = rustix::net::sendmsg(stream, &[IoSlice::new(line)], &mut ancillary, SendFlags::NOSIGNAL)?;
    Ok(sent)
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags};
    use std::io::{IoSliceMut, Read, Write};
    use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines};

    const GREETING: &str = r#"{"QMP": {"version": {"qemu": {"micro": 0, "minor": 2, "major": 7}, "package": ""}, "capabilities": []}}"#;

    struct Fake {
        lines: Lines<BufReader<tokio::net::unix::OwnedReadHalf>>,
        out: tokio::net::unix::OwnedWriteHalf,
    }

    impl Fake {
        async fn next(&mut self) -> Value {
            serde_json::from_str(&self.lines.next_line().await.unwrap().unwrap()).unwrap()
        }
        async fn say(&mut self, text: &str) {
            self.out.write_all(text.as_bytes()).await.unwrap();
            self.out.write_all(b"\r\n").await.unwrap();
        }
        async fn reply(&mut self, to: &Value, value: Value) {
            self.say(&json!({ "return": value, "id": to["id"] }).to_string())
                .await;
        }
    }

    /// A client that has negotiated with a monitor that the test plays.
    async fn pair(scope: &Scope) -> (Connected, Fake) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let (read, out) = theirs.into_split();
        let mut fake = Fake {
            lines: BufReader::new(read).lines(),
            out,
        };
        let play = async {
            fake.say(GREETING).await;
            let negotiation = fake.next().await;
            assert_eq!(negotiation["execute"], "qmp_capabilities");
            fake.reply(&negotiation, json!({})).await;
        };
        let (connected, ()) = tokio::join!(Qmp::negotiate(ours, scope), play);
        (connected.unwrap(), fake)
    }

    #[tokio::test]
    async fn replies_find_their_commands_in_any_order() {
        let scope = Scope::default();
        let (client, mut fake) = pair(&scope).await;
        assert_eq!(client.greeting.version, "7.2.0");
        let play = async {
            let (first, second) = (fake.next().await, fake.next().await);
            fake.say("garbage").await;
            fake.reply(&second, json!("second")).await;
            fake.say(&json!({ "error": { "desc": "no" }, "id": first["id"] }).to_string())
                .await;
        };
        let (a, b, ()) = tokio::join!(
            client.qmp.execute("first", Value::Null),
            client.qmp.execute("second", json!({ "x": 1 })),
            play
        );
        assert!(
            matches!(a.unwrap_err(), Error::Hypervisor { command, why } if command == "first" && why == "no")
        );
        assert_eq!(b.unwrap(), "second");
    }

    #[tokio::test(start_paused = true)]
    async fn a_late_reply_is_let_go_and_the_connection_lives_on() {
        let scope = Scope::default();
        let (client, mut fake) = pair(&scope).await;
        let error = client.qmp.execute("slow", Value::Null).await.unwrap_err();
        assert!(matches!(error, Error::Timeout { .. }));
        let slow = fake.next().await;
        fake.reply(&slow, json!("late")).await;
        let play = async {
            let next = fake.next().await;
            fake.reply(&next, json!("fine")).await;
        };
        let (next, ()) = tokio::join!(client.qmp.execute("next", Value::Null), play);
        assert_eq!(next.unwrap(), "fine");
    }

    #[tokio::test]
    async fn the_end_of_the_stream_ends_all_that_is_pending() {
        let scope = Scope::default();
        let (mut client, mut fake) = pair(&scope).await;
        let play = async {
            fake.next().await;
            drop(fake);
        };
        let (result, ()) = tokio::join!(client.qmp.execute("x", Value::Null), play);
        assert!(matches!(result.unwrap_err(), Error::Disconnected { .. }));
        assert!(client.events.recv().await.is_none());
        assert!(client.qmp.execute("y", Value::Null).await.is_err());
        scope.tasks.close();
        scope.tasks.wait().await;
    }

    #[tokio::test]
    async fn events_come_typed_and_unknown_ones_do_not_matter() {
        let scope = Scope::default();
        let (mut client, mut fake) = pair(&scope).await;
        fake.say(r#"{"event": "NEVER_HEARD_OF", "data": {}}"#).await;
        fake.say(r#"{"event": "STOP", "timestamp": {}}"#).await;
        assert_eq!(client.events.recv().await, Some(QmpEvent::Stop));
    }

    #[tokio::test]
    async fn the_task_ends_with_the_driver_though_there_are_handles() {
        let scope = Scope::default();
        let (client, _fake) = pair(&scope).await;
        scope.finish();
        scope.tasks.wait().await;
        assert!(client.qmp.execute("x", Value::Null).await.is_err());
    }

    #[tokio::test]
    async fn the_task_ends_with_the_last_handle() {
        let scope = Scope::default();
        let (client, mut fake) = pair(&scope).await;
        drop(client);
        assert!(fake.lines.next_line().await.unwrap().is_none());
        scope.tasks.close();
        scope.tasks.wait().await;
    }

    #[tokio::test]
    async fn a_monitor_that_never_greets_is_given_up() {
        let scope = Scope::default();
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("m");
        let _listener = tokio::net::UnixListener::bind(&path).unwrap();
        let error = Qmp::connect(&path, Duration::from_millis(20), &scope)
            .await
            .unwrap_err();
        assert!(matches!(error, Error::Timeout { .. }), "{error}");
        scope.tasks.close();
        scope.tasks.wait().await;
    }

    #[tokio::test]
    async fn a_descriptor_travels_with_its_command() {
        let scope = Scope::default();
        let (client, fake) = pair(&scope).await;
        let (mut here, there) = std::os::unix::net::UnixStream::pair().unwrap();
        let socket = fake.lines.into_inner().into_inner().reunite(fake.out).unwrap();
        let play = async {
            socket.readable().await.unwrap();
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
            let mut ancillary = RecvAncillaryBuffer::new(&mut space);
            let mut bytes = [0; 512];
            let got = rustix::net::recvmsg(
                &socket,
                &mut [IoSliceMut::new(&mut bytes)],
                &mut ancillary,
                RecvFlags::empty(),
            )
            .unwrap();
            let fd = ancillary
                .drain()
                .find_map(|message| match message {
                    RecvAncillaryMessage::ScmRights(mut fds) => fds.next(),
                    _ => None,
                })
                .unwrap();
            std::fs::File::from(fd).write_all(b"through").unwrap();
            let request: Value = serde_json::from_slice(&bytes[..got.bytes]).unwrap();
            let reply = json!({ "return": {}, "id": request["id"] }).to_string() + "\n";
            socket.try_write(reply.as_bytes()).unwrap();
        };
        let sent = client.qmp.execute_within(
            COMMAND_DEADLINE,
            "getfd",
            json!({ "fdname": "x" }),
            Some(there.into()),
        );
        let (result, ()) = tokio::join!(sent, play);
        result.unwrap();
        let mut text = String::new();
        here.read_to_string(&mut text).unwrap();
        assert_eq!(text, "through");
    }
}
