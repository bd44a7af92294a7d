//! Serial line, screen and VNC of a QEMU.

use super::{Entry, QemuDriver, keeper::Machine, record::VmDir, serial};
use crate::{
    ByteStream, Consoles, Error, Result, SerialStream,
    limits::{COMMAND_DEADLINE, SCREENSHOT_DEADLINE, SCREENSHOT_MAX_BYTES, SCROLLBACK_MAX_BYTES},
};
use async_trait::async_trait;
use serde_json::json;
use std::{
    os::fd::OwnedFd,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};
use tokio::io::AsyncReadExt;
use vbm_core::{DriverKind, ErrorKind, VmId};

/// Makes names of files and descriptors that are used once.
static COUNT: AtomicU64 = AtomicU64::new(0);

#[async_trait]
impl Consoles for QemuDriver {
    async fn serial(&self, id: VmId) -> Result<SerialStream> {
        let machine = self.running(id, "connect to the serial line of")?;
        machine.serial.join().await
    }

    async fn scrollback(&self, id: VmId, max_bytes: usize) -> Result<Vec<u8>> {
        let heard = match self.shared.entry(id)? {
            Entry::Live(machine) => machine.serial.past().await.unwrap_or_default(),
            Entry::Resting(_) | Entry::Reserved => bytes::Bytes::new(),
        };
        let line = VmDir::new(&self.shared.root, id).serial_line();
        let max_bytes = max_bytes.min(SCROLLBACK_MAX_BYTES);
        let read = tokio::task::spawn_blocking(move || serial::scrollback(&line, &heard, max_bytes));
        read.await.map_err(|_| Error::ShutDown("the runtime"))?
    }

    async fn screenshot(&self, id: VmId) -> Result<Vec<u8>> {
        let machine = self.running(id, "see the screen of")?;
        has_display(&machine)?;
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let file = RemovedAfterUse(VmDir::new(&self.shared.root, id).file(&format!("screen-{number}.png")));
        let arguments = json!({ "filename": file.0, "format": "png" });
        let qmp = machine.qmp("screendump")?;
        qmp.execute_within(SCREENSHOT_DEADLINE, "screendump", arguments, None)
            .await?;
        let image = tokio::fs::File::open(&file.0)
            .await
            .map_err(Error::io("open", &file.0))?;
        let mut png = Vec::new();
        image
            .take(SCREENSHOT_MAX_BYTES)
            .read_to_end(&mut png)
            .await
            .map_err(Error::io("read", &file.0))?;
        Ok(png)
    }

    async fn vnc(&self, id: VmId) -> Result<ByteStream> {
        let machine = self.running(id, "open the screen of")?;
        has_display(&machine)?;
        let (ours, theirs) = tokio::net::UnixStream::pair().map_err(Error::io("make", "a socket pair"))?;
        let theirs = theirs.into_std().map_err(Error::io("make", "a socket pair"))?;
        let name = format!("vnc{}", COUNT.fetch_add(1, Ordering::Relaxed));
        let qmp = machine.qmp("getfd")?;
        qmp.execute_within(
            COMMAND_DEADLINE,
            "getfd",
            json!({ "fdname": name }),
            Some(OwnedFd::from(theirs)),
        )
        .await?;
        let client = json!({ "protocol": "vnc", "fdname": name, "skipauth": true });
        if let Err(error) = qmp.execute("add_client", client).await {
            // QEMU took the descriptor with the command, or still has it; then it is closed.
            drop(qmp.execute("closefd", json!({ "fdname": name })).await);
            return Err(error);
        }
        Ok(Box::new(ours))
    }
}

impl QemuDriver {
    fn running(&self, id: VmId, verb: &str) -> Result<Arc<Machine>> {
        match self.shared.entry(id)? {
            Entry::Live(machine) => Ok(machine),
            other => Err(Error::Refused(vbm_core::Error::new(
                ErrorKind::Conflict,
                format!("cannot {verb} a VM that is {}", other.seen().power),
                "that is possible while it has a process",
                "start it with `vbm start`",
            ))),
        }
    }
}

fn has_display(machine: &Machine) -> Result<()> {
    if machine.has_display {
        return Ok(());
    }
    Err(Error::Unsupported {
        driver: DriverKind::Qemu,
        what: "show the screen of this VM".into(),
        why: "its display failed when it was started, and it was started without one".into(),
    })
}

/// QEMU writes a file; it goes whatever happens.
struct RemovedAfterUse(PathBuf);

impl Drop for RemovedAfterUse {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_file(&self.0)
            && error.kind() != std::io::ErrorKind::NotFound
        {
            tracing::warn!(path = %self.0.display(), %error, "a screenshot stays behind");
        }
    }
}
