//! Consoles and screens, over the bus.
//!
//! A console is a session: opened, read by long polls, written, closed. Closing it lets go of the hypervisor's side at
//! once, also under a read that waits. Reads are numbered, so that one whose answer was lost is repeated without a
//! byte lost or doubled. A session that nobody reads any more is closed by itself.

use super::Agent;
use crate::{
    api::ConsoleKind,
    methods::{
        Bytes, CONSOLE_POLL, CONSOLE_READ_MAX_BYTES, ConsoleId, ConsoleInput, ConsoleLogRequest,
        ConsoleOpenRequest, ConsoleOutput, ConsoleReadRequest,
    },
};
use bytes::BufMut as _;
use futures::FutureExt as _;
use std::{
    collections::HashMap,
    io,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, ReadHalf, WriteHalf},
    time::Instant,
};
use tokio_util::sync::CancellationToken;
use vbm_core::{Error, ErrorKind, Result, VmId};
use vbm_hyper::{ByteStream, Consoles, Machines};

/// What a read makes room for at first; it grows with what is there.
const READ_FIRST_BYTES: usize = 16 * 1024;
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

struct Session {
    reader: tokio::sync::Mutex<Reader>,
    writer: tokio::sync::Mutex<WriteHalf<ByteStream>>,
    read_at: Mutex<Instant>,
    closed: CancellationToken,
}

struct Reader {
    stream: ReadHalf<ByteStream>,
    /// The number of the last read that was answered, and its answer.
    answered: u64,
    answer: ConsoleOutput,
}

/// The open sessions of a node.
#[derive(Default)]
pub(super) struct OpenConsoles {
    sessions: Mutex<HashMap<ConsoleId, Arc<Session>>>,
    next: AtomicU64,
}

impl OpenConsoles {
    fn with<T>(&self, f: impl FnOnce(&mut HashMap<ConsoleId, Arc<Session>>) -> T) -> T {
        f(&mut self.sessions.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn get(&self, id: ConsoleId) -> Result<Arc<Session>> {
        self.with(|s| s.get(&id).cloned()).ok_or_else(|| {
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
        self.with(|sessions| {
            sessions.retain(|_, session| {
                let idle = session.read_at.lock().map_or(true, |at| at.elapsed() >= IDLE_MAX);
                if idle {
                    session.closed.cancel();
                }
                !idle
            });
        });
    }

    async fn read(&self, request: &ConsoleReadRequest) -> Result<ConsoleOutput> {
        let session = self.get(request.console)?;
        if let Ok(mut at) = session.read_at.lock() {
            *at = Instant::now();
        }
        let read = async { session.reader.lock().await.answer(request.number).await };
        tokio::select! {
            answer = read => answer,
            () = session.closed.cancelled() => Ok(said(Vec::new(), true)),
        }
    }

    fn close(&self, id: ConsoleId) {
        if let Some(session) = self.with(|s| s.remove(&id)) {
            session.closed.cancel();
        }
    }

    fn insert(&self, stream: ByteStream) -> Result<ConsoleId> {
        let (stream, writer) = tokio::io::split(stream);
        let session = Session {
            reader: tokio::sync::Mutex::new(Reader {
                stream,
                answered: 0,
                answer: said(Vec::new(), false),
            }),
            writer: writer.into(),
            read_at: Mutex::new(Instant::now()),
            closed: CancellationToken::new(),
        };
        let id = ConsoleId(self.next.fetch_add(1, Ordering::Relaxed));
        self.sweep();
        self.with(|sessions| {
            if sessions.len() >= SESSIONS_MAX {
                return Err(Error::new(
                    ErrorKind::Exhausted,
                    "the console cannot be opened",
                    format!("{SESSIONS_MAX} are open on this node"),
                    "close some, and try again",
                ));
            }
            sessions.insert(id, Arc::new(session));
            Ok(id)
        })
    }
}

fn said(bytes: Vec<u8>, ended: bool) -> ConsoleOutput {
    ConsoleOutput {
        bytes: Bytes(bytes),
        ended,
    }
}

impl Reader {
    /// Answers the read of this number; the one before it once more as it was answered.
    async fn answer(&mut self, number: u64) -> Result<ConsoleOutput> {
        if number == self.answered {
            return Ok(self.answer.clone());
        }
        if number != self.answered + 1 {
            return Err(Error::new(
                ErrorKind::Conflict,
                "the console cannot be read on",
                format!("read {number} came after read {}", self.answered),
                "open it again",
            ));
        }
        // Cancel safe: between taking bytes and keeping the answer nothing waits.
        let answer = match tokio::time::timeout(CONSOLE_POLL, self.read()).await {
            Err(_passed) => said(Vec::new(), false),
            Ok(Ok(bytes)) => {
                let ended = bytes.is_empty();
                said(bytes, ended)
            }
            Ok(Err(e)) => {
                return Err(Error::new(
                    ErrorKind::Unavailable,
                    "the console broke off",
                    e.to_string(),
                    "open it again",
                ));
            }
        };
        self.answered = number;
        self.answer = answer.clone();
        Ok(answer)
    }

    /// Waits for output, then takes what is there. None is the end.
    ///
    /// # Cancel safety
    /// Waits only for the first bytes, and nothing was taken then.
    async fn read(&mut self) -> io::Result<Vec<u8>> {
        let mut bytes = Vec::with_capacity(READ_FIRST_BYTES);
        let mut count = self.stream.read_buf(&mut bytes).await?;
        while count > 0 && bytes.len() < CONSOLE_READ_MAX_BYTES {
            let room = CONSOLE_READ_MAX_BYTES - bytes.len();
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

    pub(super) async fn console_open(&self, request: ConsoleOpenRequest) -> Result<ConsoleId> {
        let (machines, _) = self.machine(request.vm)?;
        let consoles = consoles(machines)?;
        let stream = match request.kind {
            ConsoleKind::Serial => Box::new(consoles.serial(request.vm).await.map_err(told)?) as ByteStream,
            ConsoleKind::Vnc => consoles.vnc(request.vm).await.map_err(told)?,
        };
        self.inner.consoles.insert(stream)
    }

    pub(super) async fn console_read(&self, request: ConsoleReadRequest) -> Result<ConsoleOutput> {
        self.inner.consoles.read(&request).await
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
mod tests {
    use super::*;
    use tokio::io::DuplexStream;

    /// A session, and the hypervisor's side of it.
    fn open(buffer: usize) -> (OpenConsoles, ConsoleId, DuplexStream) {
        let (ours, theirs) = tokio::io::duplex(buffer);
        let consoles = OpenConsoles::default();
        let id = consoles.insert(Box::new(ours)).unwrap();
        (consoles, id, theirs)
    }

    async fn read(consoles: &OpenConsoles, id: ConsoleId, number: u64) -> Result<ConsoleOutput> {
        consoles.read(&ConsoleReadRequest { console: id, number }).await
    }

    #[tokio::test(start_paused = true)]
    async fn a_read_that_is_repeated_gives_the_same_bytes_and_none_is_lost() {
        let (consoles, id, mut vm) = open(1024);
        vm.write_all(b"one").await.unwrap();
        assert_eq!(read(&consoles, id, 1).await.unwrap().bytes.0, b"one");
        vm.write_all(b"two").await.unwrap();
        assert_eq!(read(&consoles, id, 1).await.unwrap().bytes.0, b"one");
        assert_eq!(read(&consoles, id, 2).await.unwrap().bytes.0, b"two");
        // Nothing comes: an empty answer has its number as well.
        assert_eq!(read(&consoles, id, 3).await.unwrap(), said(Vec::new(), false));
        let gap = read(&consoles, id, 5).await.unwrap_err();
        assert_eq!(gap.kind(), ErrorKind::Conflict, "{gap}");
        drop(vm);
        assert!(read(&consoles, id, 4).await.unwrap().ended);
        assert!(
            read(&consoles, id, 4).await.unwrap().ended,
            "also when asked again"
        );
    }

    #[tokio::test]
    async fn a_full_frame_comes_in_few_large_reads_that_the_bus_can_carry() {
        const FRAME_BYTES: usize = 1024 * 768 * 4;
        let (consoles, id, mut vm) = open(2 * FRAME_BYTES);
        vm.write_all(&vec![7; FRAME_BYTES]).await.unwrap();
        let (mut count, mut number) = (0, 0);
        while count < FRAME_BYTES {
            number += 1;
            let bytes = read(&consoles, id, number).await.unwrap().bytes.0;
            assert!(bytes.len() <= CONSOLE_READ_MAX_BYTES);
            count += bytes.len();
        }
        assert_eq!((count, number), (FRAME_BYTES, 6));
    }

    #[tokio::test(start_paused = true)]
    async fn closing_ends_a_read_that_waits_and_lets_go_of_the_hypervisor_at_once() {
        let (consoles, id, mut vm) = open(16);
        let began = Instant::now();
        let close = async {
            tokio::task::yield_now().await;
            consoles.close(id);
        };
        let (read_to_end, ()) = tokio::join!(read(&consoles, id, 1), close);
        assert!(read_to_end.unwrap().ended);
        assert_eq!(
            vm.read(&mut [0]).await.unwrap(),
            0,
            "the hypervisor's side is open"
        );
        assert_eq!(began.elapsed(), Duration::ZERO);
        let gone = read(&consoles, id, 2).await.unwrap_err();
        assert_eq!(gone.kind(), ErrorKind::NotFound);
    }

    #[tokio::test(start_paused = true)]
    async fn a_session_that_nobody_reads_is_closed_and_one_that_is_read_is_not() {
        let (consoles, id, mut vm) = open(16);
        for number in 1..=40 {
            read(&consoles, id, number).await.unwrap();
        }
        consoles.sweep();
        read(&consoles, id, 41).await.unwrap();
        tokio::time::advance(IDLE_MAX).await;
        consoles.sweep();
        assert_eq!(vm.read(&mut [0]).await.unwrap(), 0);
    }
}
