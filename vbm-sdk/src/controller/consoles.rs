//! Consoles and screens: asked of the node that runs the VM.

use super::Controller;
use crate::api::ConsoleKind;
use crate::methods::{
    Bytes, ConsoleClose, ConsoleId, ConsoleInput, ConsoleItem, ConsoleLog, ConsoleLogRequest, ConsoleOpen,
    ConsoleOpenRequest, ConsoleResume, ConsoleWrite, VmScreenshot,
};
use std::time::Duration;
use tokio::time::{Instant, sleep, timeout};
use vbm_core::{Error, ErrorKind, Name, NodePath, Result, Vm, VmId};
use vbm_rpc::{Fate, ItemStream, Route, StreamOptions, layers::Ambient, limits::STREAM_DEADLINE_MAX};

/// The most of a console's log that is given at once, in bytes.
pub const CONSOLE_LOG_MAX_BYTES: u32 = 512 * 1024;
/// How long a node may take to open a console.
const OPEN_MAX: Duration = Duration::from_secs(20);
/// How long it is tried to go on with a console whose stream broke; its node keeps it for longer.
const RESUME_MAX: Duration = Duration::from_secs(20);
/// Between two of those tries.
const RESUME_PAUSE: Duration = Duration::from_millis(250);

/// An open console. Its stream may break (Redis forgot what was on the way, one side was cut off for a while): then it is
/// opened again from the byte that was read last, and nobody notices but by the time it takes.
#[derive(Debug)]
pub(crate) struct ConsoleSession {
    controller: Controller,
    node: NodePath,
    vm: VmId,
    id: ConsoleId,
    kind: ConsoleKind,
    output: tokio::sync::Mutex<Output>,
}

#[derive(Debug)]
struct Output {
    /// None when it broke.
    stream: Option<ItemStream<ConsoleOpen>>,
    /// How many bytes were read.
    read: u64,
}

/// Whether a stream that ended so may be opened again where it was: the session is its node's, and may be well.
fn may_resume(fate: &Fate) -> bool {
    match fate {
        // Its node thought that nobody reads any more.
        Fate::Refused(error) => error.kind() == ErrorKind::Cancelled,
        Fate::Cancelled => false,
        _ => true,
    }
}

impl Controller {
    async fn vm_and_node(&self, vm: &str) -> Result<(VmId, NodePath, Name)> {
        let vm = self.records().resolve::<Vm>(vm).await?.value;
        let node = vm
            .spec
            .node
            .clone()
            .ok_or_else(|| super::vms::not_placed(&vm.meta.name))?;
        Ok((vm.meta.id, node, vm.meta.name))
    }

    /// A picture of the VM's screen, as PNG.
    ///
    /// # Errors
    /// The VM does not exist, does not run, or its driver has no screen.
    pub async fn screenshot(&self, vm: &str) -> Result<Vec<u8>> {
        let (id, node, name) = self.vm_and_node(vm).await?;
        let png = self.ask_node::<VmScreenshot>(&node, &id).await;
        Ok(png
            .map_err(|e| e.context(format!("cannot take a picture of {name}")))?
            .0)
    }

    /// The newest part of the serial console's log.
    ///
    /// # Errors
    /// The VM does not exist or never ran.
    pub async fn console_log(&self, vm: &str, max_bytes: Option<u32>) -> Result<Vec<u8>> {
        let (id, node, name) = self.vm_and_node(vm).await?;
        let max_bytes = max_bytes
            .unwrap_or(CONSOLE_LOG_MAX_BYTES)
            .min(CONSOLE_LOG_MAX_BYTES);
        let log = self
            .ask_node::<ConsoleLog>(&node, &ConsoleLogRequest { vm: id, max_bytes })
            .await;
        Ok(log
            .map_err(|e| e.context(format!("cannot read the console of {name}")))?
            .0)
    }

    /// The id of a VM that has a node, and so may have a console.
    pub(crate) async fn console_of(&self, vm: &str) -> Result<VmId> {
        Ok(self.vm_and_node(vm).await?.0)
    }

    pub(crate) async fn open_console(&self, vm: &str, kind: ConsoleKind) -> Result<ConsoleSession> {
        let (vm, node, name) = self.vm_and_node(vm).await?;
        let request = ConsoleOpenRequest {
            vm,
            kind,
            resume: None,
        };
        let opened = self.console_stream(&node, &request).await;
        let (id, stream) = opened
            .map_err(|fate| Error::from(fate).context(format!("cannot open the {kind} console of {name}")))?;
        Ok(ConsoleSession {
            controller: self.clone(),
            node,
            vm,
            id,
            kind,
            output: tokio::sync::Mutex::new(Output {
                stream: Some(stream),
                read: 0,
            }),
        })
    }

    /// A console's stream that has begun, in the name of the present leadership.
    async fn console_stream(
        &self,
        node: &NodePath,
        request: &ConsoleOpenRequest,
    ) -> Result<(ConsoleId, ItemStream<ConsoleOpen>), Fate> {
        self.in_its_epoch(|epoch| async move {
            let bus = self.bus().map_err(Fate::Refused)?;
            // A guest may say nothing for days; that its node is there is told by the bus.
            let mut options = StreamOptions::new().idle(STREAM_DEADLINE_MAX).epoch(epoch);
            // Streams go past the layers of calls.
            if let Some(trace) = Ambient::current().trace {
                options = options.traceparent(trace.to_string());
            }
            let opening = async {
                let route = Route::node(node.clone());
                let mut stream = bus.stream::<ConsoleOpen>(&route, request, options).await?;
                match stream.next().await {
                    Some(Ok(ConsoleItem::Open(id))) => Ok((id, stream)),
                    Some(Err(fate)) => Err(fate),
                    Some(Ok(ConsoleItem::Said(_))) | None => Err(Fate::Refused(Error::internal(
                        "a console began without its name",
                        format!("node {node} speaks another protocol"),
                    ))),
                }
            };
            match timeout(OPEN_MAX, opening).await {
                Ok(opened) => opened,
                Err(_late) => Err(Fate::Refused(Error::new(
                    ErrorKind::DeadlineExceeded,
                    format!("node {node} did not open the console"),
                    format!("it did not answer within {} s", OPEN_MAX.as_secs()),
                    "see `vbm node list`, and try again",
                ))),
            }
        })
        .await
    }
}

impl ConsoleSession {
    pub(crate) fn kind(&self) -> ConsoleKind {
        self.kind
    }

    /// What it says next; none when it has ended.
    ///
    /// # Errors
    /// It broke off, and could not be read on.
    ///
    /// # Cancel safety
    /// Safe: nothing is lost. Reads of one session follow each other.
    pub(crate) async fn read(&self) -> Result<Option<Vec<u8>>> {
        let mut output = self.output.lock().await;
        loop {
            let broke = match &mut output.stream {
                None => None,
                Some(stream) => match stream.next().await {
                    Some(Ok(ConsoleItem::Open(_))) => continue,
                    Some(Ok(ConsoleItem::Said(bytes))) => {
                        output.read += u64::try_from(bytes.0.len()).unwrap_or_default();
                        return Ok(Some(bytes.0));
                    }
                    None => return Ok(None),
                    Some(Err(fate)) if may_resume(&fate) => Some(fate),
                    Some(Err(fate)) => return Err(fate.into()),
                },
            };
            output.stream = None;
            if let Some(fate) = broke {
                tracing::info!(node = %self.node, vm = %self.vm, %fate, read = output.read, "a console broke off; it is read on");
            }
            output.stream = Some(self.resume(output.read).await?);
        }
    }

    async fn resume(&self, from: u64) -> Result<ItemStream<ConsoleOpen>> {
        let until = Instant::now() + RESUME_MAX;
        let request = ConsoleOpenRequest {
            vm: self.vm,
            kind: self.kind,
            resume: Some(ConsoleResume {
                console: self.id,
                from,
            }),
        };
        loop {
            match self.controller.console_stream(&self.node, &request).await {
                Ok((_, stream)) => return Ok(stream),
                Err(fate) if may_resume(&fate) && Instant::now() < until => sleep(RESUME_PAUSE).await,
                Err(fate) => return Err(fate.into()),
            }
        }
    }

    /// Types, points and clicks. What is written one after the other arrives so.
    pub(crate) async fn write(&self, bytes: Vec<u8>) -> Result<()> {
        let input = ConsoleInput {
            console: self.id,
            bytes: Bytes(bytes),
        };
        self.controller.ask_node::<ConsoleWrite>(&self.node, &input).await
    }

    pub(crate) async fn close(&self) -> Result<()> {
        self.controller
            .ask_node::<ConsoleClose>(&self.node, &self.id)
            .await
    }
}
