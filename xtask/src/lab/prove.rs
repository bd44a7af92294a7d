//! That the machine is what it is made for: VirtualBox's modules are loaded, and a VM runs.

use std::path::Path;
use std::time::{Duration, Instant};

use super::Times;
use super::image::Image;
use super::machine::{Machine, Plan};
use crate::demo::Interrupts;
use crate::fault::{Done, Fault};
use crate::say;

const QUICK: Duration = Duration::from_secs(60);
const START: Duration = Duration::from_secs(180);
/// An empty VM: its BIOS finds nothing to boot, which is enough to run.
const DEFINE: &str = "VBoxManage createvm --name empty --ostype Linux_64 --register && VBoxManage modifyvm empty --memory 64 \
                      --nic1 none --audio-enabled off --graphicscontroller vboxvga";
const STATE: &str = "VBoxManage showvminfo empty --machinereadable | grep ^VMState=";

/// Boots the machine, runs an empty VM in it, ends it.
pub(super) fn prove(dir: &Path, image: &Image, interrupts: &Interrupts, times: &mut Times) -> Done {
    say::title("machine: VirtualBox in an emulated machine");
    let since = Instant::now();
    let mut machine = Machine::boot(dir, image, &Plan::default(), interrupts)?;
    let kernel = machine.must("uname -r", QUICK)?;
    times.note("machine", format!("up: kernel {}", kernel.trim()), since);

    let since = Instant::now();
    machine.must(
        "grep -q ^vboxdrv /proc/modules && grep -q ^vboxnetflt /proc/modules",
        QUICK,
    )?;
    let version = machine.must("VBoxManage --version", QUICK)?;
    if version.contains("WARNING") {
        return Err(Fault::new(
            "VirtualBox in the machine has no kernel driver",
            version,
            "see log/serial.log beside the image",
        ));
    }
    machine.must(DEFINE, QUICK)?;
    machine.must("VBoxManage startvm empty --type headless", START)?;
    let state = machine.must(STATE, QUICK)?;
    if state.trim() != "VMState=\"running\"" {
        return Err(Fault::new(
            "a VM does not run in the machine",
            state,
            "see log/serial.log",
        ));
    }
    machine.must("VBoxManage controlvm empty poweroff", QUICK)?;
    times.note(
        "  a VM in it",
        format!("VirtualBox {} runs one", version.trim()),
        since,
    );

    let since = Instant::now();
    machine.end()?;
    times.note("  switched off", "nothing of it is left", since);
    Ok(())
}
