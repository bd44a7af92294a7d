//! Serial consoles and screens, over the bus.
//!
//! A console is a session: opened, read by long polls, written, closed. A session that nobody reads any
//! more is closed by itself.

use super::Agent;
use crate::methods::{Bytes, CONSOLE_POLL, ConsoleId, ConsoleInput, ConsoleLogRequest, ConsoleOutput};
use std::{
    collections::HashMap,
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
use vbm_core::{Error, ErrorKind, Result, VmId};
use vbm_hyper::{Consoles, Machines, SerialStream};

/// The most that one read gives.
const READ_MAX_BYTES: usize = 64 * 1024;
/// A session that was not read for so long is closed.
const IDLE_MAX: Duration = Duration::from_secs(60);
/// The most open sessions of a node.
const SESSIONS_MAX: usize = 256;
/// The most of a console's log that one answer carries.
const LOG_MAX_BYTES: u32 = 512 * 1024;
/// The largest picture of a screen; the bus carries 1 MiB.
const SCREENSHOT_MAX_BYTES: usize = 1_000_000;

struct Session {
    reader: tokio::sync::Mutex<ReadHalf<SerialStream>>,
    writer: tokio::sync::Mutex<WriteHalf<SerialStream>>,
    read_at: Mutex<Instant>,
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

    fn insert(&self, stream: SerialStream) -> Result<ConsoleId> {
        let (reader, writer) = tokio::io::split(stream);
        let session = Session {
            reader: reader.into(),
            writer: writer.into(),
            read_at: Mutex::new(Instant::now()),
        };
        let id = ConsoleId(self.next.fetch_add(1, Ordering::Relaxed));
        self.with(|sessions| {
            sessions.retain(|_, s| s.read_at.lock().is_ok_and(|at| at.elapsed() < IDLE_MAX));
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

    pub(super) async fn console_open(&self, id: VmId) -> Result<ConsoleId> {
        let (machines, _) = self.machine(id)?;
        let stream = consoles(machines)?.serial(id).await.map_err(told)?;
        self.inner.consoles.insert(stream)
    }

    pub(super) async fn console_read(&self, id: ConsoleId) -> Result<ConsoleOutput> {
        let session = self.inner.consoles.get(id)?;
        let mut reader = session.reader.lock().await;
        if let Ok(mut at) = session.read_at.lock() {
            *at = Instant::now();
        }
        let mut bytes = Vec::with_capacity(READ_MAX_BYTES);
        let read = tokio::time::timeout(CONSOLE_POLL, reader.read_buf(&mut bytes)).await;
        Ok(match read {
            Err(_) => ConsoleOutput {
                bytes: Bytes::default(),
                ended: false,
            },
            Ok(Ok(count)) if count > 0 => ConsoleOutput {
                bytes: Bytes(bytes),
                ended: false,
            },
            Ok(_) => {
                self.inner.consoles.with(|s| s.remove(&id));
                ConsoleOutput {
                    bytes: Bytes::default(),
                    ended: true,
                }
            }
        })
    }

    pub(super) async fn console_write(&self, input: ConsoleInput) -> Result<()> {
        let session = self.inner.consoles.get(input.console)?;
        let mut writer = session.writer.lock().await;
        let write = async {
            writer.write_all(&input.bytes.0).await?;
            writer.flush().await
        };
        write.await.map_err(|e| {
            Error::new(
                ErrorKind::Unavailable,
                "the console does not take input",
                e.to_string(),
                "open it again",
            )
        })
    }

    pub(super) async fn console_close(&self, id: ConsoleId) -> Result<()> {
        self.inner.consoles.with(|s| s.remove(&id));
        Ok(())
    }
}
