//! Consoles and screens: asked of the node that runs the VM.

use super::Controller;
use crate::methods::{
    Bytes, ConsoleClose, ConsoleId, ConsoleInput, ConsoleLog, ConsoleLogRequest, ConsoleOpen, ConsoleOutput,
    ConsoleRead, ConsoleWrite, VmScreenshot,
};
use vbm_core::{Name, NodePath, Result, Vm, VmId};

/// The most of a console's log that is given at once, in bytes.
pub const CONSOLE_LOG_MAX_BYTES: u32 = 512 * 1024;

/// An open serial console.
#[derive(Debug)]
pub(crate) struct ConsoleSession {
    controller: Controller,
    node: NodePath,
    id: ConsoleId,
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

    pub(crate) async fn open_console(&self, vm: &str) -> Result<ConsoleSession> {
        let (vm, node, name) = self.vm_and_node(vm).await?;
        let opened = self.ask_node::<ConsoleOpen>(&node, &vm).await;
        let id = opened.map_err(|e| e.context(format!("cannot open the console of {name}")))?;
        Ok(ConsoleSession {
            controller: self.clone(),
            node,
            id,
        })
    }
}

impl ConsoleSession {
    pub(crate) async fn read(&self) -> Result<ConsoleOutput> {
        self.controller
            .ask_node::<ConsoleRead>(&self.node, &self.id)
            .await
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
