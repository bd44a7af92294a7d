//! The hub of one serial line: the one connection to the hypervisor's end, shared by any number of readers.
//!
//! The hub always reads, so the guest never waits for a reader. Who writes the serial log depends on the hypervisor:
//!
//! - QEMU does, also while no daemon runs; the hub keeps that log within its cap by making it the old one. Two gaps are known:
//!   between the copy and the truncation a burst of output may be missed in the log (not by readers), and QEMU loses the
//!   few bytes that it says in the moment in which the daemon is killed. While no daemon runs nothing caps the log.
//! - VirtualBox writes none, so the hub does; what the guest says while no daemon runs is lost.

use crate::{
    Error, Result, SerialStream,
    console::SerialReader,
    limits::{
        MONITOR_RETRY, SERIAL_CHUNK_BYTES, SERIAL_INPUT_MAX_CHUNKS, SERIAL_LOG_MAX_BYTES,
        SERIAL_READER_MAX_CHUNKS, SERIAL_READERS_MAX, SERIAL_SCROLLBACK_BYTES,
    },
};
use bytes::{Bytes, BytesMut};
use std::{
    fs::{self, File},
    io::{self, Read, Seek, SeekFrom},
    path::{Path, PathBuf},
    time::Duration,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{
        UnixStream,
        unix::{OwnedReadHalf, OwnedWriteHalf},
    },
    sync::{mpsc, oneshot},
    time::{Instant, sleep_until, timeout_at},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

/// How many bytes come between two looks at the size of the log.
const LOG_CHECK_BYTES: u64 = 256 * 1024;
/// Readers that wait to be let in.
const ASKS_MAX: usize = 16;

/// The pause between two attempts to reach a line whose output is lost while nobody is connected.
const RECONNECT_SOON: Duration = Duration::from_millis(50);

/// Who writes down what a serial line says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum LogWriter {
    Hypervisor,
    Hub,
}

/// Where a serial line is, and where it is written down.
#[derive(Clone, Debug)]
pub(crate) struct Line {
    socket: PathBuf,
    dir: PathBuf,
    writer: LogWriter,
}

impl Line {
    pub(crate) const fn new(socket: PathBuf, dir: PathBuf, writer: LogWriter) -> Self {
        Self { socket, dir, writer }
    }

    pub(crate) fn log(&self) -> PathBuf {
        self.dir.join("serial.log")
    }

    pub(crate) fn log_before(&self) -> PathBuf {
        self.dir.join("serial.log.1")
    }

    const fn reconnect_pause(&self) -> Duration {
        match self.writer {
            LogWriter::Hypervisor => MONITOR_RETRY,
            LogWriter::Hub => RECONNECT_SOON,
        }
    }
}

/// What a hub is asked for.
#[derive(Debug)]
enum Ask {
    /// A place as a reader.
    Join(oneshot::Sender<Result<SerialStream>>),
    /// What was said lately.
    Past(oneshot::Sender<Bytes>),
}

/// The handle of a hub.
#[derive(Clone, Debug)]
pub(crate) struct Hub {
    asks: mpsc::Sender<Ask>,
}

impl Hub {
    /// Starts a hub. It ends when `end` is cancelled: with the run of the VM, or with the daemon.
    pub(crate) fn start(line: Line, end: CancellationToken, tasks: &TaskTracker) -> Self {
        let (asks, queue) = mpsc::channel(ASKS_MAX);
        let (input, typed) = mpsc::channel(SERIAL_INPUT_MAX_CHUNKS);
        let task = Task {
            past: past(&line),
            line,
            asks: queue,
            input,
            typed,
            readers: Vec::new(),
            unchecked_bytes: LOG_CHECK_BYTES,
        };
        tasks.spawn(async move {
            // Cancel safe: what is dropped here is over anyway.
            tokio::select! {
                () = end.cancelled() => {}
                () = task.run() => {}
            }
        });
        Self { asks }
    }

    /// A new reader: what was said lately, then what is said.
    pub(crate) async fn join(&self) -> Result<SerialStream> {
        const GONE: Error = Error::ShutDown("the serial line");
        let (reply, answer) = oneshot::channel();
        self.asks.send(Ask::Join(reply)).await.map_err(|_| GONE)?;
        answer.await.map_err(|_| GONE)?
    }

    /// What was said lately; `None` when the line has ended.
    pub(crate) async fn past(&self) -> Option<Bytes> {
        let (reply, answer) = oneshot::channel();
        self.asks.send(Ask::Past(reply)).await.ok()?;
        answer.await.ok()
    }
}

/// What the log remembers of this run: of a VM that was found again.
fn past(line: &Line) -> BytesMut {
    let log = tail(&line.log(), SERIAL_SCROLLBACK_BYTES as u64).unwrap_or_default();
    BytesMut::from(log.as_slice())
}

struct Task {
    line: Line,
    asks: mpsc::Receiver<Ask>,
    input: mpsc::Sender<Bytes>,
    typed: mpsc::Receiver<Bytes>,
    readers: Vec<SerialReader>,
    past: BytesMut,
    unchecked_bytes: u64,
}

impl Task {
    async fn run(mut self) {
        loop {
            match UnixStream::connect(&self.line.socket).await {
                Ok(stream) => {
                    let (from_guest, to_guest) = stream.into_split();
                    self.serve(from_guest, to_guest).await;
                }
                Err(error) => tracing::debug!(%error, "a serial line cannot be reached yet"),
            }
            self.idle().await;
        }
    }

    /// A pause without a connection, in which the past can still be asked for.
    async fn idle(&mut self) {
        let until = Instant::now() + self.line.reconnect_pause();
        // Cancel safe: `recv` takes nothing until it returns.
        while let Ok(Some(ask)) = timeout_at(until, self.asks.recv()).await {
            self.answer(ask);
        }
        sleep_until(until).await;
    }

    fn answer(&mut self, ask: Ask) {
        match ask {
            Ask::Join(reply) => self.let_in(reply),
            Ask::Past(reply) => drop(reply.send(Bytes::copy_from_slice(&self.past))),
        }
    }

    /// Until the connection ends.
    async fn serve(&mut self, mut from_guest: OwnedReadHalf, mut to_guest: OwnedWriteHalf) {
        let mut writing = Bytes::new();
        loop {
            let mut chunk = BytesMut::with_capacity(SERIAL_CHUNK_BYTES);
            // Cancel safe: `recv`, `read_buf` and `write_buf` have no effect until they return.
            tokio::select! {
                read = from_guest.read_buf(&mut chunk) => match read {
                    Ok(0) | Err(_) => return,
                    Ok(_) => self.said(chunk.freeze()).await,
                },
                written = to_guest.write_buf(&mut writing), if !writing.is_empty() => {
                    if written.is_err() {
                        return;
                    }
                }
                typed = self.typed.recv(), if writing.is_empty() => {
                    writing = typed.unwrap_or_default();
                }
                ask = self.asks.recv() => match ask {
                    Some(ask) => {
                        // What has come already belongs to the past that is asked for.
                        loop {
                            let mut chunk = BytesMut::with_capacity(SERIAL_CHUNK_BYTES);
                            match from_guest.try_read_buf(&mut chunk) {
                                Ok(n) if n > 0 => self.said(chunk.freeze()).await,
                                _ => break,
                            }
                        }
                        self.answer(ask);
                    }
                    // The VM's keeper is gone.
                    None => return,
                },
            }
        }
    }

    fn let_in(&mut self, reply: oneshot::Sender<Result<SerialStream>>) {
        self.readers.retain(|reader| !reader.is_closed());
        let answer = if self.readers.len() >= SERIAL_READERS_MAX {
            Err(Error::invalid(
                "the serial line has no place for one more reader",
                format!("{SERIAL_READERS_MAX} read it already"),
                "close one of them",
            ))
        } else {
            let past = Bytes::copy_from_slice(&self.past);
            let (stream, reader) = SerialStream::pair(past, self.input.clone(), SERIAL_READER_MAX_CHUNKS);
            self.readers.push(reader);
            Ok(stream)
        };
        drop(reply.send(answer));
    }

    async fn said(&mut self, chunk: Bytes) {
        self.past.extend_from_slice(&chunk);
        if self.past.len() > 2 * SERIAL_SCROLLBACK_BYTES {
            self.past = self.past.split_off(self.past.len() - SERIAL_SCROLLBACK_BYTES);
        }
        self.readers.retain(|reader| reader.send(&chunk));
        self.unchecked_bytes += chunk.len() as u64;
        let check = self.unchecked_bytes >= LOG_CHECK_BYTES;
        if check {
            self.unchecked_bytes = 0;
        }
        if !check && self.line.writer == LogWriter::Hypervisor {
            return;
        }
        let line = self.line.clone();
        let keep = move || {
            if line.writer == LogWriter::Hub {
                append(&line, &chunk)?;
            }
            if check { cap_log(&line) } else { Ok(()) }
        };
        if let Ok(Err(error)) = tokio::task::spawn_blocking(keep).await {
            tracing::warn!(%error, "a serial log cannot be kept");
        }
    }
}

fn append(line: &Line, chunk: &[u8]) -> io::Result<()> {
    let mut log = fs::OpenOptions::new()
        .create(true)
        .append(true)
        .open(line.log())?;
    io::Write::write_all(&mut log, chunk)
}

/// The last `max` bytes of a file.
pub(crate) fn tail(path: &Path, max: u64) -> io::Result<Vec<u8>> {
    let mut file = File::open(path)?;
    let len = file.metadata()?.len();
    file.seek(SeekFrom::Start(len.saturating_sub(max)))?;
    let mut bytes = Vec::new();
    file.take(max).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// QEMU holds the log open and appends, so it is copied and cut rather than renamed.
fn cap_log(line: &Line) -> io::Result<()> {
    let log = line.log();
    if fs::metadata(&log)?.len() < SERIAL_LOG_MAX_BYTES {
        return Ok(());
    }
    let kept = tail(&log, SERIAL_LOG_MAX_BYTES)?;
    let temp = line.dir.join(".serial.log.new");
    fs::write(&temp, kept)?;
    fs::rename(&temp, line.log_before())?;
    fs::OpenOptions::new().write(true).open(&log)?.set_len(0)
}

/// The last bytes of this run from the logs, and what the hub has heard beyond them: QEMU writes the log a moment
/// after the line. Blocks on the disk.
pub(crate) fn scrollback(line: &Line, heard: &[u8], max_bytes: usize) -> Result<Vec<u8>> {
    let read = |path: std::path::PathBuf, max: usize| match tail(&path, max as u64) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(Error::io("read", path)(error)),
        other => Ok(other.unwrap_or_default()),
    };
    let now = read(line.log(), max_bytes)?;
    let mut bytes = read(line.log_before(), max_bytes - now.len().min(max_bytes))?;
    bytes.extend(now);
    let missing = beyond(&bytes, heard);
    bytes.extend(missing);
    bytes.drain(..bytes.len().saturating_sub(max_bytes));
    Ok(bytes)
}

/// The end of what was heard that is not at the end of the log.
fn beyond<'a>(log: &[u8], heard: &'a [u8]) -> &'a [u8] {
    let in_log = (0..=heard.len()).rev().find(|n| log.ends_with(&heard[..*n]));
    &heard[in_log.unwrap_or(0)..]
}

/// Completes the log of a run that has ended: a killed QEMU may have said a byte that it did not write down.
pub(crate) fn complete_log(line: &Line, heard: &[u8]) -> io::Result<()> {
    let log = tail(&line.log(), 2 * SERIAL_SCROLLBACK_BYTES as u64)?;
    let missing = beyond(&log, heard);
    if missing.is_empty() {
        return Ok(());
    }
    let mut file = fs::OpenOptions::new().append(true).open(line.log())?;
    io::Write::write_all(&mut file, missing)
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::net::UnixListener;

    fn line(writer: LogWriter) -> (tempfile::TempDir, Line) {
        let root = tempfile::tempdir().unwrap();
        let line = Line::new(root.path().join("tty"), root.path().to_owned(), writer);
        (root, line)
    }

    #[tokio::test]
    async fn all_readers_see_the_same_and_what_they_type_reaches_the_guest() {
        let (_root, line) = line(LogWriter::Hypervisor);
        fs::write(line.log(), b"before ").unwrap();
        let listener = UnixListener::bind(&line.socket).unwrap();
        let (end, tasks) = (CancellationToken::new(), TaskTracker::new());
        let hub = Hub::start(line.clone(), end.clone(), &tasks);
        let (mut guest, _) = listener.accept().await.unwrap();
        let mut first = hub.join().await.unwrap();
        guest.write_all(b"hello").await.unwrap();
        let mut text = [0; 12];
        first.read_exact(&mut text).await.unwrap();
        assert_eq!(&text, b"before hello");
        let mut second = hub.join().await.unwrap();
        second.read_exact(&mut text).await.unwrap();
        assert_eq!(
            &text, b"before hello",
            "a late reader sees the past without a gap"
        );
        second.write_all(b"ls\n").await.unwrap();
        let mut typed = [0; 3];
        guest.read_exact(&mut typed).await.unwrap();
        assert_eq!(&typed, b"ls\n");
        end.cancel();
        let mut rest = Vec::new();
        first.read_to_end(&mut rest).await.unwrap();
        assert!(rest.is_empty());
        assert!(hub.join().await.is_err());
        tasks.close();
        tasks.wait().await;
    }

    #[tokio::test]
    async fn a_reader_that_does_not_read_is_cut_off_and_the_guest_never_waits() {
        let (_root, line) = line(LogWriter::Hypervisor);
        let listener = UnixListener::bind(&line.socket).unwrap();
        fs::write(line.log(), b"").unwrap();
        let (end, tasks) = (CancellationToken::new(), TaskTracker::new());
        let hub = Hub::start(line.clone(), end.clone(), &tasks);
        let (mut guest, _) = listener.accept().await.unwrap();
        let mut lazy = hub.join().await.unwrap();
        let flood = vec![b'x'; 2 * SERIAL_READER_MAX_CHUNKS * SERIAL_CHUNK_BYTES];
        guest.write_all(&flood).await.unwrap();
        guest.write_all(b"the end").await.unwrap();
        // The hub takes all of it; then the lazy reader finds out.
        let mut late = hub.join().await.unwrap();
        let mut seen = Vec::new();
        while !seen.ends_with(b"the end") {
            late.read_buf(&mut seen).await.unwrap();
        }
        let error = lazy.read_to_end(&mut Vec::new()).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionAborted);
        end.cancel();
        tasks.close();
        tasks.wait().await;
    }

    #[test]
    fn what_was_heard_and_is_not_yet_in_the_log_is_in_the_scrollback_once() {
        let (_root, line) = line(LogWriter::Hypervisor);
        fs::write(line.log(), b"one two ").unwrap();
        for (heard, all) in [
            (&b"two three"[..], &b"one two three"[..]),
            (b"one two ", b"one two "),
            (b"two ", b"one two "),
            (b"", b"one two "),
            (b"other", b"one two other"),
        ] {
            assert_eq!(scrollback(&line, heard, 100).unwrap(), all);
        }
        assert_eq!(scrollback(&line, b"two three", 5).unwrap(), b"three");
    }

    #[test]
    fn a_full_log_becomes_the_old_one_and_scrollback_reads_across() {
        let (_root, line) = line(LogWriter::Hypervisor);
        let len = usize::try_from(SERIAL_LOG_MAX_BYTES).unwrap();
        fs::write(line.log(), vec![b'a'; len]).unwrap();
        cap_log(&line).unwrap();
        assert_eq!(fs::metadata(line.log()).unwrap().len(), 0);
        fs::write(line.log(), b"bb").unwrap();
        assert_eq!(scrollback(&line, b"", 4).unwrap(), b"aabb");
        assert_eq!(scrollback(&line, b"", 1).unwrap(), b"b");
        assert_eq!(scrollback(&line, b"", usize::MAX / 2).unwrap().len(), len + 2);
    }

    #[tokio::test]
    async fn a_hub_that_writes_the_log_itself_keeps_all_that_was_said() {
        let (_root, line) = line(LogWriter::Hub);
        let (end, tasks) = (CancellationToken::new(), TaskTracker::new());
        let hub = Hub::start(line.clone(), end.clone(), &tasks);
        // The hypervisor binds the socket later than the hub looks for it.
        let listener = UnixListener::bind(&line.socket).unwrap();
        let (mut guest, _) = listener.accept().await.unwrap();
        let mut reader = hub.join().await.unwrap();
        guest.write_all(b"one ").await.unwrap();
        let mut said = [0; 4];
        reader.read_exact(&mut said).await.unwrap();
        drop(guest);
        let (mut guest, _) = listener.accept().await.unwrap();
        guest.write_all(b"two").await.unwrap();
        let mut said = [0; 3];
        reader.read_exact(&mut said).await.unwrap();
        // Answered after the piece before it was written down.
        assert_eq!(hub.past().await.unwrap(), "one two");
        assert_eq!(fs::read(line.log()).unwrap(), b"one two");
        end.cancel();
        tasks.close();
        tasks.wait().await;
    }
}
