//! Consoles of simulated VMs: they work, and say what they are.

use super::{SimDriver, guest, picture, world::SimVm};
use crate::{
    ByteStream, Consoles, Error, Result, SerialStream,
    limits::{SERIAL_INPUT_MAX_CHUNKS, SERIAL_READER_MAX_CHUNKS},
};
use async_trait::async_trait;
use bytes::Bytes;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, DuplexStream},
    sync::mpsc,
};
use vbm_core::{ErrorKind, VmId};

/// What a VNC session holds back in each direction, in bytes.
const VNC_BUFFER_BYTES: usize = 4096;

#[async_trait]
impl Consoles for SimDriver {
    async fn serial(&self, id: VmId) -> Result<SerialStream> {
        self.running(id, |vm| {
            let input = match &vm.input {
                Some(input) => input.clone(),
                None => {
                    let (input, typed) = mpsc::channel(SERIAL_INPUT_MAX_CHUNKS);
                    // Ends with the run, which drops the last sender but those of readers; they go with them.
                    tokio::spawn(guest::shell(self.world().clone(), id, typed));
                    vm.input = Some(input.clone());
                    input
                }
            };
            let past = Bytes::copy_from_slice(&vm.said);
            let (stream, reader) = SerialStream::pair(past, input, SERIAL_READER_MAX_CHUNKS);
            vm.readers.push(reader);
            stream
        })
    }

    async fn scrollback(&self, id: VmId, max_bytes: usize) -> Result<Vec<u8>> {
        self.is_open()?;
        let vms = self.world().vms();
        let said = &vms.get(&id).ok_or(Error::NoSuchVm(id))?.said;
        Ok(said[said.len().saturating_sub(max_bytes)..].to_vec())
    }

    async fn screenshot(&self, id: VmId) -> Result<Vec<u8>> {
        self.running(id, |_| picture::png(320, 200))
    }

    async fn vnc(&self, id: VmId) -> Result<ByteStream> {
        self.running(id, |vm| {
            let (ours, theirs) = tokio::io::duplex(VNC_BUFFER_BYTES);
            let over = vm.screens.over.clone();
            // Ends when the other end is read or dropped, and with the run.
            vm.screens.sessions.spawn(async move {
                over.run_until_cancelled(refuse_vnc(theirs)).await;
            });
            Box::new(ours) as ByteStream
        })
    }
}

impl SimDriver {
    fn running<T>(&self, id: VmId, act: impl FnOnce(&mut SimVm) -> T) -> Result<T> {
        self.is_open()?;
        let mut vms = self.world().vms();
        let vm = vms.get_mut(&id).ok_or(Error::NoSuchVm(id))?;
        if vm.seen.pid.is_none() {
            return Err(Error::Refused(vbm_core::Error::new(
                ErrorKind::Conflict,
                format!("cannot use a console of a VM that is {}", vm.seen.power),
                "that is possible while it runs",
                "start it with `vbm start`",
            )));
        }
        Ok(act(vm))
    }
}

/// RFC 6143 section 7.1: the version, then no security type and the reason.
async fn refuse_vnc(mut stream: DuplexStream) {
    const REASON: &[u8] = b"this VM is simulated: it has no screen";
    let talk = async {
        stream.write_all(b"RFB 003.008\n").await?;
        let mut version = [0; 12];
        stream.read_exact(&mut version).await?;
        stream.write_u8(0).await?;
        stream
            .write_u32(u32::try_from(REASON.len()).unwrap_or_default())
            .await?;
        stream.write_all(REASON).await
    };
    if talk.await.is_err() {
        tracing::trace!("a simulated screen was left early");
    }
}
