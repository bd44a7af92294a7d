//! Consoles and screens, over the bus.
//!
//! ```text
//!   hypervisor --read--> Output: tail, until --items, credits--> the controller that reads it
//!   hypervisor <-write-- console.write, one call after the other -----------'
//! ```
//!
//! A console is a session with one reader: a stream. The tail holds what was given to the stream and is perhaps not read
//! yet, which the stream's window bounds. So a reader whose stream broke opens another one from the byte that it has
//! come to, and loses none and gets none twice. Closing a session lets go of the hypervisor's side at once, also under a
//! reader that waits; one that nobody reads any more is closed by itself.

use super::Agent;
use crate::{
    api::ConsoleKind,
    methods::{
        Bytes, CONSOLE_ITEM_MAX_BYTES, ConsoleId, ConsoleInput, ConsoleItem, ConsoleLogRequest, ConsoleOpen,
        ConsoleOpenRequest, ConsoleResume,
    },
};
use bytes::BufMut as _;
use futures::FutureExt as _;
use std::{
    collections::{HashMap, VecDeque},
    io,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, ReadHalf, WriteHalf},
    time::Instant,
};
use tokio_util::sync::CancellationToken;
use vbm_core::{Error, ErrorKind, Result, VmId};
use vbm_hyper::{ByteStream, Consoles, Machines};
use vbm_rpc::{ItemSink, limits::STREAM_WINDOW_BYTES};

/// What a read makes room for at first; it grows with what is there.
const READ_FIRST_BYTES: usize = 4 * 1024;
/// A session that was not read for so long is closed.
const IDLE_MAX: Duration = Duration::from_secs(60);
/// How often sessions are looked at for that.
const SWEEP_EVERY: Duration = Duration::from_secs(10);
/// The most open sessions of a node.
const SESSIONS_MAX: usize = 256;
/// The most of a console's log that one answer carries.
const LOG_MAX_BYTES: u32 = 512 * 1024;
/// The largest picture of a screen; the bus carries 1 MiB.
const SCREENSHOT_MAX_BYTES: usize = 1_000_000;
/// What a reader may not have read of what its stream was given: its window, and the item that crosses it.
#[expect(clippy::cast_possible_truncation, reason = "half a MiB")]
const TAIL_MAX_BYTES: usize = STREAM_WINDOW_BYTES as usize + CONSOLE_ITEM_MAX_BYTES;

struct Session {
    /// Held by whoever reads.
    output: tokio::sync::Mutex<Output>,
    writer: tokio::sync::Mutex<WriteHalf<ByteStream>>,
    reader: Mutex<Reader>,
    closed: CancellationToken,
}

/// Who reads.
struct Reader {
    /// Sends the present one away.
    turn: CancellationToken,
    /// When the last one left.
    left: Instant,
}

/// What the hypervisor says.
struct Output {
    stream: ReadHalf<ByteStream>,
    /// The newest bytes that were given to a reader.
    tail: VecDeque<u8>,
    /// How many were ever given.
    until: u64,
    ended: bool,
}

/// The open sessions of a node.
#[derive(Default)]
pub(super) struct OpenConsoles {
    sessions: Mutex<HashMap<ConsoleId, Arc<Session>>>,
}

fn lock<T>(of: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    of.lock().unwrap_or_else(PoisonError::into_inner)
}

impl OpenConsoles {
    fn get(&self, id: ConsoleId) -> Result<Arc<Session>> {
        lock(&self.sessions).get(&id).cloned().ok_or_else(|| {
            Error::new(
                ErrorKind::NotFound,
                "the console is not open",
                "it was closed, or nobody read it for a minute",
                "open it again",
            )
        })
    }

    /// Closes what nobody reads.
    fn sweep(&self) {
        lock(&self.sessions).retain(|_, session| {
            let is_read = session.output.try_lock().is_err();
            let stays = is_read || lock(&session.reader).left.elapsed() < IDLE_MAX;
            if !stays {
                session.closed.cancel();
            }
            stays
        });
    }

    fn close(&self, id: ConsoleId) {
        let session = lock(&self.sessions).remove(&id);
        if let Some(session) = session {
            session.closed.cancel();
        }
    }

    fn insert(&self, stream: ByteStream) -> Result<ConsoleId> {
        let (stream, writer) = tokio::io::split(stream);
        let closed = CancellationToken::new();
        let session = Session {
            output: tokio::sync::Mutex::new(Output {
                stream,
                tail: VecDeque::new(),
                until: 0,
                ended: false,
            }),
            writer: writer.into(),
            reader: Mutex::new(Reader {
                turn: closed.child_token(),
                left: Instant::now(),
            }),
            closed,
        };
        self.sweep();
        let mut sessions = lock(&self.sessions);
        if sessions.len() >= SESSIONS_MAX {
            return Err(Error::new(
                ErrorKind::Exhausted,
                "the console cannot be opened",
                format!("{SESSIONS_MAX} are open on this node"),
                "close some, and try again",
            ));
        }
        // By chance, so that what was said to a session of the agent before this one never reaches another's.
        let id = ConsoleId(uuid::Uuid::now_v7().as_u64_pair().1);
        sessions.insert(id, Arc::new(session));
        Ok(id)
    }

    /// Gives what a session says, from there on, until it ends. Sends away who reads it now.
    async fn read(&self, at: ConsoleResume, items: &mut ItemSink<ConsoleOpen>) -> Result<()> {
        let session = self.get(at.console)?;
        let turn = session.closed.child_token();
        let before = std::mem::replace(&mut lock(&session.reader).turn, turn.clone());
        before.cancel();
        let _left = Left(&session);
        let given_up = items.cancelled().clone();
        tokio::select! {
            // Dropping it loses nothing: what was taken from the hypervisor is in the tail.
            ended = session.give(at, items) => ended,
            () = turn.cancelled() => match session.closed.is_cancelled() {
                true => Ok(()),
                false => Err(displaced()),
            },
            () = given_up.cancelled() => Err(nobody_reads()),
        }
    }
}

/// Notes that a reader left, however it did.
struct Left<'a>(&'a Session);

impl Drop for Left<'_> {
    fn drop(&mut self) {
        lock(&self.0.reader).left = Instant::now();
    }
}

fn displaced() -> Error {
    Error::new(
        ErrorKind::Conflict,
        "the console is read elsewhere",
        "its stream was opened again from another place",
        "read it there, or open another one",
    )
}

fn nobody_reads() -> Error {
    Error::new(
        ErrorKind::Cancelled,
        "the console is not read any more",
        "its reader is gone",
        "open it again",
    )
}

impl Session {
    /// The name first, then what the reader has not got, then what comes.
    async fn give(&self, at: ConsoleResume, items: &mut ItemSink<ConsoleOpen>) -> Result<()> {
        let mut output = self.output.lock().await;
        items.send(&ConsoleItem::Open(at.console)).await?;
        for part in output.since(at.from)?.chunks(CONSOLE_ITEM_MAX_BYTES) {
            items.send(&ConsoleItem::Said(Bytes(part.to_vec()))).await?;
        }
        while !output.ended {
            let bytes = output.next().await?;
            if !bytes.is_empty() {
                items.send(&ConsoleItem::Said(Bytes(bytes))).await?;
            }
        }
        Ok(())
    }
}

impl Output {
    /// What was given after the first `from` bytes.
    fn since(&self, from: u64) -> Result<Vec<u8>> {
        let missing = self.until.checked_sub(from).and_then(|n| usize::try_from(n).ok());
        match missing.and_then(|missing| self.tail.len().checked_sub(missing)) {
            Some(begin) => Ok(self.tail.range(begin..).copied().collect()),
            None => Err(Error::new(
                ErrorKind::Conflict,
                "the console cannot be read on",
                format!(
                    "byte {from} was asked for; {} were given, of which the last {} are kept",
                    self.until,
                    self.tail.len()
                ),
                "open it again",
            )),
        }
    }

    /// The next bytes, which are in the tail from then on. None is the end.
    ///
    /// # Cancel safety
    /// Safe: between taking bytes and keeping them nothing waits.
    async fn next(&mut self) -> Result<Vec<u8>> {
        let bytes = self.read().await.map_err(|e| {
            Error::new(
                ErrorKind::Unavailable,
                "the console broke off",
                e.to_string(),
                "open it again",
            )
        })?;
        self.ended = bytes.is_empty();
        self.until += u64::try_from(bytes.len()).unwrap_or_default();
        self.tail.extend(&bytes);
        let surplus = self.tail.len().saturating_sub(TAIL_MAX_BYTES);
        self.tail.drain(..surplus);
        Ok(bytes)
    }

    /// Waits for output, then takes what is there.
    ///
    /// # Cancel safety
    /// Waits only for the first bytes, and nothing was taken then.
    async fn read(&mut self) -> io::Result<Vec<u8>> {
        let mut bytes = Vec::with_capacity(READ_FIRST_BYTES);
        let mut first = (&mut bytes).limit(CONSOLE_ITEM_MAX_BYTES);
        let mut count = self.stream.read_buf(&mut first).await?;
        while count > 0 && bytes.len() < CONSOLE_ITEM_MAX_BYTES {
            let room = CONSOLE_ITEM_MAX_BYTES - bytes.len();
            let more = self.stream.read_buf(&mut (&mut bytes).limit(room)).now_or_never();
            // The end, or a failure, is told by the next read.
            count = match more {
                Some(Ok(count)) => count,
                Some(Err(_)) | None => 0,
            };
        }
        Ok(bytes)
    }
}

fn consoles(machines: &Machines) -> Result<&dyn Consoles> {
    machines.driver().consoles().ok_or_else(|| {
        let why = machines
            .driver()
            .missing(vbm_hyper::Facet::Consoles)
            .unwrap_or_default();
        Error::new(
            ErrorKind::Unsupported,
            "the VM has no console",
            why,
            "use a driver that has consoles",
        )
    })
}

/// A VM that its driver does not know was never started here.
fn told(error: vbm_hyper::Error) -> Error {
    match error {
        vbm_hyper::Error::NoSuchVm(_) => Error::new(
            ErrorKind::Conflict,
            "the VM has no console yet",
            "it was never started",
            "start it with `vbm start`",
        ),
        other => other.into(),
    }
}

impl Agent {
    pub(super) async fn vm_screenshot(&self, id: VmId) -> Result<Bytes> {
        let (machines, _) = self.machine(id)?;
        let png = consoles(machines)?.screenshot(id).await.map_err(told)?;
        if png.len() > SCREENSHOT_MAX_BYTES {
            return Err(Error::new(
                ErrorKind::Exhausted,
                "the picture is too large to be sent",
                format!("it has {} bytes, {SCREENSHOT_MAX_BYTES} are allowed", png.len()),
                "set a smaller screen in the guest",
            ));
        }
        Ok(Bytes(png))
    }

    pub(super) async fn console_log(&self, request: ConsoleLogRequest) -> Result<Bytes> {
        let (machines, _) = self.machine(request.vm)?;
        let bytes = request.max_bytes.min(LOG_MAX_BYTES) as usize;
        let log = consoles(machines)?
            .scrollback(request.vm, bytes)
            .await
            .map_err(told)?;
        Ok(Bytes(log))
    }

    pub(super) async fn console_open(
        &self,
        request: ConsoleOpenRequest,
        mut items: ItemSink<ConsoleOpen>,
    ) -> Result<()> {
        let consoles = &self.inner.consoles;
        let at = match request.resume {
            Some(at) => at,
            None => ConsoleResume {
                console: consoles.insert(self.hypervisors_side(&request).await?)?,
                from: 0,
            },
        };
        consoles.read(at, &mut items).await
    }

    async fn hypervisors_side(&self, request: &ConsoleOpenRequest) -> Result<ByteStream> {
        let (machines, _) = self.machine(request.vm)?;
        let consoles = consoles(machines)?;
        Ok(match request.kind {
            ConsoleKind::Serial => Box::new(consoles.serial(request.vm).await.map_err(told)?),
            ConsoleKind::Vnc => consoles.vnc(request.vm).await.map_err(told)?,
        })
    }

    pub(super) async fn console_write(&self, input: ConsoleInput) -> Result<()> {
        let session = self.inner.consoles.get(input.console)?;
        let write = async {
            let mut writer = session.writer.lock().await;
            writer.write_all(&input.bytes.0).await?;
            writer.flush().await
        };
        let written = tokio::select! {
            written = write => written,
            () = session.closed.cancelled() => Err(io::Error::other("it was closed")),
        };
        written.map_err(|e| {
            Error::new(
                ErrorKind::Unavailable,
                "the console does not take input",
                e.to_string(),
                "open it again",
            )
        })
    }

    pub(super) async fn console_close(&self, id: ConsoleId) -> Result<()> {
        self.inner.consoles.close(id);
        Ok(())
    }

    /// Closes consoles that nobody reads, until the agent ends.
    pub(super) async fn sweep_consoles(&self) {
        let mut sweep = tokio::time::interval(SWEEP_EVERY);
        loop {
            tokio::select! {
                _ = sweep.tick() => self.inner.consoles.sweep(),
                () = self.inner.stop.cancelled() => return,
            }
        }
    }
}

#[cfg(test)]
mod tests;
