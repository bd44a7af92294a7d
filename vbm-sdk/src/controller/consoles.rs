//! Consoles and screens: asked of the node that runs the VM.

use super::Controller;
use crate::api::ConsoleKind;
use crate::methods::{
    Bytes, ConsoleClose, ConsoleId, ConsoleInput, ConsoleLog, ConsoleLogRequest, ConsoleOpen,
    ConsoleOpenRequest, ConsoleOutput, ConsoleRead, ConsoleReadRequest, ConsoleWrite, VmScreenshot,
};
use std::sync::atomic::{AtomicU64, Ordering};
use vbm_core::{Name, NodePath, Result, Vm, VmId};

/// The most of a console's log that is given at once, in bytes.
pub const CONSOLE_LOG_MAX_BYTES: u32 = 512 * 1024;

/// An open console.
#[derive(Debug)]
pub(crate) struct ConsoleSession {
    controller: Controller,
    node: NodePath,
    id: ConsoleId,
    kind: ConsoleKind,
    /// How many reads were answered.
    answered: AtomicU64,
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
        let opened = self
            .ask_node::<ConsoleOpen>(&node, &ConsoleOpenRequest { vm, kind })
            .await;
        let id = opened.map_err(|e| e.context(format!("cannot open the {kind} console of {name}")))?;
        Ok(ConsoleSession {
            controller: self.clone(),
            node,
            id,
            kind,
            answered: AtomicU64::new(0),
        })
    }
}

impl ConsoleSession {
    pub(crate) fn kind(&self) -> ConsoleKind {
        self.kind
    }

    /// What came since the last read. A read that failed or was dropped is asked again under its number and loses
    /// nothing. Reads of one session follow each other.
    pub(crate) async fn read(&self) -> Result<ConsoleOutput> {
        let number = self.answered.load(Ordering::Relaxed) + 1;
        let request = ConsoleReadRequest {
            console: self.id,
            number,
        };
        let output = self
            .controller
            .ask_node::<ConsoleRead>(&self.node, &request)
            .await?;
        self.answered.store(number, Ordering::Relaxed);
        Ok(output)
    }

    pub(crate) async fn write(&self, bytes: Vec<u8>) -> Result<()> {
        self.controller
            .ask_node::<ConsoleWrite>(
                &self.node,
                &ConsoleInput {
                    console: self.id,
                    bytes: Bytes(bytes),
                },
            )
            .await
    }

    pub(crate) async fn close(&self) -> Result<()> {
        self.controller
            .ask_node::<ConsoleClose>(&self.node, &self.id)
            .await
    }
}
