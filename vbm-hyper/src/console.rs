//! What a person sees of a VM: its serial line, its screen.
//!
//! ```text
//!    guest --ttyS0--> hypervisor --one connection--> driver's hub --bounded queue--> SerialStream 1
//!                         |                            |   ^ `----bounded queue--> SerialStream 2
//!                         v                            v   `------ input of all, in the order it comes
//!                     serial log                   last 64 KiB, sent first to each new reader
//! ```
//!
//! A reader that is too slow is cut off with an error instead of slowing the guest or losing bytes in silence.

use crate::{Result, limits::SERIAL_CHUNK_BYTES};
use async_trait::async_trait;
use bytes::{Buf, Bytes};
use std::{
    io,
    pin::Pin,
    sync::{Arc, OnceLock},
    task::{Context, Poll, ready},
};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    sync::mpsc,
};
use tokio_util::sync::PollSender;
use vbm_core::VmId;

/// What reads and writes, and may move between tasks.
pub trait ByteIo: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> ByteIo for T {}

/// A two-way stream of bytes.
pub type ByteStream = Box<dyn ByteIo>;

/// The consoles of the VMs of one driver.
#[async_trait]
pub trait Consoles: Send + Sync {
    /// Connects to the serial line: first what it said lately, then what it says, without a gap. Any number may
    /// read and write at the same time, up to [`crate::limits::SERIAL_READERS_MAX`]. It ends with the run of the VM.
    ///
    /// # Errors
    /// [`crate::Error::NoSuchVm`], [`crate::Error::Refused`] when the VM does not run.
    async fn serial(&self, id: VmId) -> Result<SerialStream>;

    /// The last bytes that the serial line said in this run, or in the last one when the VM is off.
    ///
    /// # Errors
    /// [`crate::Error::NoSuchVm`], [`crate::Error::Io`].
    async fn scrollback(&self, id: VmId, max_bytes: usize) -> Result<Vec<u8>>;

    /// The screen as a PNG.
    ///
    /// # Errors
    /// [`crate::Error::NoSuchVm`], [`crate::Error::Refused`] when the VM does not run.
    async fn screenshot(&self, id: VmId) -> Result<Vec<u8>>;

    /// A new VNC session (RFB 3.8, RFC 6143) without a password: who gets the stream has been let in by the caller.
    ///
    /// # Errors
    /// [`crate::Error::NoSuchVm`], [`crate::Error::Refused`] when the VM does not run.
    async fn vnc(&self, id: VmId) -> Result<ByteStream>;
}

/// One reader and writer of a serial line.
#[derive(Debug)]
pub struct SerialStream {
    rest: Bytes,
    output: mpsc::Receiver<Bytes>,
    input: PollSender<Bytes>,
    cut: Arc<OnceLock<&'static str>>,
}

/// The hub's end of a [`SerialStream`].
#[derive(Debug)]
pub(crate) struct SerialReader {
    output: mpsc::Sender<Bytes>,
    cut: Arc<OnceLock<&'static str>>,
}

impl SerialStream {
    /// A stream that begins with `scrollback`; what is written to it goes to `input`.
    pub(crate) fn pair(
        scrollback: Bytes,
        input: mpsc::Sender<Bytes>,
        max_chunks: usize,
    ) -> (Self, SerialReader) {
        let (sender, output) = mpsc::channel(max_chunks);
        let cut = Arc::new(OnceLock::new());
        let reader = SerialReader {
            output: sender,
            cut: Arc::clone(&cut),
        };
        (
            Self {
                rest: scrollback,
                output,
                input: PollSender::new(input),
                cut,
            },
            reader,
        )
    }
}

impl SerialReader {
    /// Hands on a piece of output; `false` when the reader is gone or was cut off.
    pub(crate) fn send(&self, chunk: &Bytes) -> bool {
        match self.output.try_send(chunk.clone()) {
            Ok(()) => true,
            Err(mpsc::error::TrySendError::Closed(_)) => false,
            Err(mpsc::error::TrySendError::Full(_)) => {
                self.cut
                    .get_or_init(|| "cut off: this reader was too slow for the serial line");
                false
            }
        }
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.output.is_closed()
    }
}

impl AsyncRead for SerialStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        while self.rest.is_empty() {
            match ready!(self.output.poll_recv(cx)) {
                Some(chunk) => self.rest = chunk,
                None => {
                    return Poll::Ready(match self.cut.get() {
                        Some(why) => Err(io::Error::new(io::ErrorKind::ConnectionAborted, *why)),
                        None => Ok(()),
                    });
                }
            }
        }
        let n = self.rest.len().min(buf.remaining());
        buf.put_slice(&self.rest[..n]);
        self.rest.advance(n);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for SerialStream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        if data.is_empty() {
            return Poll::Ready(Ok(0));
        }
        let gone = || io::Error::new(io::ErrorKind::BrokenPipe, "the VM is off");
        ready!(self.input.poll_reserve(cx)).map_err(|_| gone())?;
        let n = data.len().min(SERIAL_CHUNK_BYTES);
        self.input
            .send_item(Bytes::copy_from_slice(&data[..n]))
            .map_err(|_| gone())?;
        Poll::Ready(Ok(n))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.input.close();
        Poll::Ready(Ok(()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    #[tokio::test]
    async fn a_reader_sees_the_past_then_the_present_then_the_end() {
        let (input, mut typed) = mpsc::channel(4);
        let (mut stream, hub) = SerialStream::pair(Bytes::from_static(b"past "), input, 4);
        assert!(hub.send(&Bytes::from_static(b"present")));
        drop(hub);
        let mut text = String::new();
        stream.read_to_string(&mut text).await.unwrap();
        assert_eq!(text, "past present");
        stream.write_all(b"ls\n").await.unwrap();
        assert_eq!(typed.recv().await.unwrap(), "ls\n");
        drop(typed);
        assert_eq!(
            stream.write_all(b"x").await.unwrap_err().kind(),
            io::ErrorKind::BrokenPipe
        );
    }

    #[tokio::test]
    async fn a_slow_reader_is_cut_off_and_told_so() {
        let (input, _typed) = mpsc::channel(1);
        let (mut stream, hub) = SerialStream::pair(Bytes::new(), input, 1);
        let chunk = Bytes::from_static(b"x");
        assert!(hub.send(&chunk));
        assert!(!hub.send(&chunk));
        drop(hub);
        let error = stream.read_to_end(&mut Vec::new()).await.unwrap_err();
        assert!(error.to_string().contains("too slow"));
    }
}
