//! A person's terminal on a VM's serial line: each key goes to the guest as it is pressed.

use super::{
    super::session::Session,
    relay::{self, broken},
};
use nix::sys::termios::{self, SetArg, Termios};
use std::os::fd::AsFd;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    signal::unix::{SignalKind, signal},
};
use vbm_core::{Error, ErrorKind};

/// Ctrl-]: ends the connection, as in telnet and virsh.
const DETACH: u8 = 0x1d;
/// How much is read at once, in bytes.
const READ_BYTES: usize = 4 << 10;

pub(super) async fn attach(on: &Session<'_>, vm: &str) -> Result<(), Error> {
    let console = on.client.vms().console(vm).await?;
    on.out.hint(&format!(
        "connected to {vm}; Ctrl-] detaches; press Enter for a prompt"
    ));
    let raw = Raw::enter()?;
    let end = join(on, console).await;
    drop(raw);
    on.out.hint(match &end {
        Ok(End::Detached) => "\ndetached; the VM goes on",
        _ => "\nthe console ended",
    });
    end.map(|_| ())
}

#[derive(Debug, PartialEq, Eq)]
enum End {
    Detached,
    Closed,
}

async fn join(on: &Session<'_>, console: crate::client::Console) -> Result<End, Error> {
    let (mut from, mut to) = tokio::io::split(console);
    let mut ends = signal(SignalKind::terminate()).map_err(|e| broken(&e))?;
    let mut hangs_up = signal(SignalKind::hangup()).map_err(|e| broken(&e))?;
    let keys = async {
        let mut stdin = relay::stdin()?;
        let mut buffer = [0; READ_BYTES];
        loop {
            let count = stdin.read(&mut buffer).await.map_err(|e| broken(&e))?;
            let (send, detach) = until_detach(buffer.get(..count).unwrap_or_default());
            to.write_all(send).await.map_err(|e| broken(&e))?;
            to.flush().await.map_err(|e| broken(&e))?;
            if detach || count == 0 {
                return Ok(End::Detached);
            }
        }
    };
    let screen = async {
        let mut buffer = [0; READ_BYTES];
        loop {
            let count = from.read(&mut buffer).await.map_err(|e| broken(&e))?;
            if count == 0 || on.out.is_closed() {
                return Ok(End::Closed);
            }
            on.out.bytes(buffer.get(..count).unwrap_or_default())?;
        }
    };
    // The first to end ends the connection: no arm is begun again, so none can lose anything.
    tokio::select! {
        end = keys => end,
        end = screen => end,
        _ = ends.recv() => Ok(End::Detached),
        _ = hangs_up.recv() => Ok(End::Detached),
    }
}

/// What of these keys goes to the guest, and whether the connection ends after it.
fn until_detach(keys: &[u8]) -> (&[u8], bool) {
    match keys.iter().position(|key| *key == DETACH) {
        Some(at) => (keys.get(..at).unwrap_or_default(), true),
        None => (keys, false),
    }
}

/// The terminal in raw mode, until this is dropped.
struct Raw {
    before: Termios,
}

impl Raw {
    fn enter() -> Result<Self, Error> {
        let stdin = std::io::stdin();
        let refuse = |error: nix::Error| {
            Error::new(
                ErrorKind::Unsupported,
                "the terminal cannot be used for a console",
                error.to_string(),
                "use a terminal, or pipe the input in",
            )
        };
        let before = termios::tcgetattr(stdin.as_fd()).map_err(refuse)?;
        let mut raw = before.clone();
        termios::cfmakeraw(&mut raw);
        termios::tcsetattr(stdin.as_fd(), SetArg::TCSANOW, &raw).map_err(refuse)?;
        Ok(Self { before })
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        // A terminal that is gone needs no restoring.
        let _restored: nix::Result<()> =
            termios::tcsetattr(std::io::stdin().as_fd(), SetArg::TCSANOW, &self.before);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_detach_key_ends_the_connection_and_what_was_typed_before_it_arrives() {
        assert_eq!(until_detach(b"ls\r"), (&b"ls\r"[..], false));
        assert_eq!(until_detach(b"ls\x1dmore"), (&b"ls"[..], true));
        assert_eq!(until_detach(b"\x1d"), (&b""[..], true));
    }
}
