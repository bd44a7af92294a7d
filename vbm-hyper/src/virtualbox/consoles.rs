//! Serial line, screen and VNC of a VirtualBox VM.

use super::{VirtualBoxDriver, machine::at_rest, runner::Call, vnc};
use crate::{
    ByteStream, Consoles, Error, Result, SerialStream,
    limits::{SCREENSHOT_DEADLINE, SCREENSHOT_MAX_BYTES, SCROLLBACK_MAX_BYTES},
    serial,
};
use async_trait::async_trait;
use std::{
    net::Ipv4Addr,
    path::PathBuf,
    sync::atomic::{AtomicU64, Ordering},
};
use tokio::{io::AsyncReadExt, net::TcpStream};
use vbm_core::{DriverKind, VmId};

/// Makes names of files that are used once.
static COUNT: AtomicU64 = AtomicU64::new(0);

#[async_trait]
impl Consoles for VirtualBoxDriver {
    async fn serial(&self, id: VmId) -> Result<SerialStream> {
        let hub = self.shared.machine(id)?.hub("connect to the serial line of")?;
        hub.join().await
    }

    async fn scrollback(&self, id: VmId, max_bytes: usize) -> Result<Vec<u8>> {
        let machine = self.shared.machine(id)?;
        let heard = match machine.hub("read") {
            Ok(hub) => hub.past().await.unwrap_or_default(),
            Err(_) => bytes::Bytes::new(),
        };
        let (line, max_bytes) = (machine.dir.line(), max_bytes.min(SCROLLBACK_MAX_BYTES));
        let read = tokio::task::spawn_blocking(move || serial::scrollback(&line, &heard, max_bytes));
        read.await.map_err(|_| Error::ShutDown("the runtime"))?
    }

    async fn screenshot(&self, id: VmId) -> Result<Vec<u8>> {
        let machine = self.shared.machine(id)?;
        machine.hub("see the screen of")?;
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let file = RemovedAfterUse(machine.dir.file(&format!("screen-{number}.png")));
        let path = file.0.display().to_string();
        let call = Call::new([
            "controlvm".to_owned(),
            id.to_string(),
            "screenshotpng".to_owned(),
            path,
        ]);
        self.shared.runner.run(&call.within(SCREENSHOT_DEADLINE)).await?;
        let image = tokio::fs::File::open(&file.0)
            .await
            .map_err(Error::io("open", &file.0))?;
        let mut png = Vec::new();
        let read = image.take(SCREENSHOT_MAX_BYTES).read_to_end(&mut png).await;
        read.map_err(Error::io("read", &file.0))?;
        Ok(png)
    }

    async fn vnc(&self, id: VmId) -> Result<ByteStream> {
        let shared = &self.shared;
        let machine = shared.machine(id)?;
        machine.hub("open the screen of")?;
        let end = match &machine.state().live {
            Some(live) => live.end.clone(),
            None => return Err(at_rest("open the screen of", machine.power())),
        };
        let info = shared.info(id).await?.ok_or(Error::NoSuchVm(id))?;
        // The port it is bound to; -1 when the display is off or failed.
        let port = info
            .get("vrdeport")
            .and_then(|port| port.parse::<u16>().ok())
            .filter(|port| *port > 0);
        let display = machine.dir.applied()?.display;
        let (Some(port), Some(display)) = (port, display) else {
            return Err(Error::Unsupported {
                driver: DriverKind::VirtualBox,
                what: "show the screen of this VM live".into(),
                why: "its display does not listen: the VNC extension pack is missing, or its port was taken; pictures of the screen still work".into(),
            });
        };
        let server = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await;
        let server = server.map_err(Error::io("connect to", format!("the display at port {port}")))?;
        vnc::open(server, &display.password, end, &shared.scope.tasks).await
    }
}

/// VBoxManage writes a file; it goes whatever happens.
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
