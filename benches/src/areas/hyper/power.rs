//! Starting, ending and finding again.

use super::{lab::Lab, libvirt::Libvirt};
use crate::harness::{
    child::signal,
    duel::duel,
    fault::{During, Fault, Outcome},
    ground::Ground,
    row::Row,
};
use nix::sys::signal::Signal;
use std::{process::Stdio, time::Duration};
use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader},
    process::Child,
    time::{Instant, timeout},
};
use vbm_core::PowerState;
use vbm_hyper::{Adopted, Driver, OpCx, VmDefinition};

/// The longest that a QEMU by hand may take to greet.
const GREET_WITHIN: Duration = Duration::from_secs(30);
/// And to be gone when it was killed.
const GONE_WITHIN: Duration = Duration::from_secs(10);

/// The names of rows.
pub(super) const BESIDE_LIBVIRT: &str = "start() to Running, beside libvirt";
pub(super) const ADOPT: &str = "re-adopt, per VM";
pub(super) const MEMORY: &str = "memory of the driver, per VM";

fn millis(since: Instant) -> f64 {
    since.elapsed().as_secs_f64() * 1e3
}

/// `start()` until the VM runs, beside exec of the same QEMU until its monitor greets.
pub(super) async fn start(ground: &Ground) -> Outcome<Row> {
    let lab = Lab::make(ground).await?;
    let driver = lab.driver().await?;
    // One that stays halted: whose command line the peer has. It also warms the host's cache for both.
    let model = running(&lab, &driver).await?;
    driver.pause(model.id).await?;
    let samples = duel(
        ground.rounds() * 2,
        async |_| {
            let vm = lab.vm().await?;
            let begin = Instant::now();
            let seen = driver.start(&OpCx::new(), &vm, Vec::new()).await?;
            let took = millis(begin);
            if seen.power != PowerState::Running {
                return Err(Fault::new(format!("it is {}", seen.power)));
            }
            end(&driver, &vm).await?;
            Ok(took)
        },
        async |_| {
            let mut typed = lab.typed(model.id).await?;
            let begin = Instant::now();
            let mut child = typed
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .stderr(Stdio::null())
                .spawn()?;
            greeting(&mut child).await?;
            let took = millis(begin);
            child.kill().await?;
            Ok(took)
        },
    )
    .await?;
    end(&driver, &model).await?;
    driver.shutdown().await;
    Ok(Row::new("start() to Running", "ms", samples.ours)
        .against("exec of the same QEMU to its QMP greeting", samples.peer)
        .goal("<= 1.25x")
        .noted("ours also negotiates QMP, writes and syncs the manifest and sends `cont`; the probe was done before"))
}

/// `start()` until the VM runs, beside `virsh start` of a domain with the same devices.
pub(super) async fn start_beside_libvirt(ground: &Ground) -> Outcome<Row> {
    let lab = Lab::make(ground).await?;
    let driver = lab.driver().await?;
    let libvirt = Libvirt::start().await?;
    let samples = duel(
        ground.rounds() * 2,
        async |_| {
            let vm = lab.vm().await?;
            let begin = Instant::now();
            driver.start(&OpCx::new(), &vm, Vec::new()).await?;
            let took = millis(begin);
            end(&driver, &vm).await?;
            Ok(took)
        },
        async |_| {
            let domain = libvirt.define(&lab).await?;
            let took = libvirt.timed(&["start", &domain]).await?;
            libvirt.virsh(&["destroy", &domain]).await?;
            libvirt.virsh(&["undefine", &domain]).await?;
            Ok(took)
        },
    )
    .await?;
    driver.shutdown().await;
    Ok(Row::new(BESIDE_LIBVIRT, "ms", samples.ours)
        .against("virsh start", samples.peer)
        .goal("<= 0.35x")
        .noted("the peer's figure holds the start of `virsh`, some 15 ms"))
}

/// `kill()` until the VM is off, beside SIGKILL until the process is reaped.
pub(super) async fn kill(ground: &Ground) -> Outcome<Row> {
    let lab = Lab::make(ground).await?;
    let driver = lab.driver().await?;
    let model = running(&lab, &driver).await?;
    let samples = duel(
        ground.rounds() * 2,
        async |_| {
            let vm = running(&lab, &driver).await?;
            let begin = Instant::now();
            driver.kill(vm.id).await?;
            let took = millis(begin);
            let power = driver.inspect(vm.id).await?.power;
            driver.undefine(vm.id).await?;
            if power == PowerState::Off {
                Ok(took)
            } else {
                Err(Fault::new(format!("it is {power}")))
            }
        },
        async |_| {
            let mut typed = lab.typed(model.id).await?;
            let mut child = typed
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .stderr(Stdio::null())
                .spawn()?;
            greeting(&mut child).await?;
            cont(&mut child).await?;
            let pid = child.id().ok_or_else(|| Fault::new("it has ended"))?;
            let begin = Instant::now();
            signal(pid, Signal::SIGKILL);
            timeout(GONE_WITHIN, child.wait()).await??;
            Ok(millis(begin))
        },
    )
    .await?;
    end(&driver, &model).await?;
    driver.shutdown().await;
    Ok(Row::new("force-off to Off", "ms", samples.ours)
        .against("SIGKILL of the same QEMU until it is reaped", samples.peer)
        .goal("<= 30"))
}

/// A new driver finds what another one left running.
pub(super) async fn adopt(ground: &Ground) -> Outcome<Vec<Row>> {
    let vms = ground.size(40, 8);
    let before = resident_kib()?;
    let lab = Lab::make(ground).await?;
    let mut driver = lab.driver().await?;
    let mut made = Vec::new();
    for _ in 0..vms {
        let vm = running(&lab, &driver).await?;
        // Halted guests leave the processors to what is measured.
        driver.pause(vm.id).await?;
        made.push(vm);
    }
    let each_kib = resident_kib()?.saturating_sub(before) as f64 / vms as f64;
    let mut libvirt = Libvirt::start().await?;
    for _ in 0..vms {
        let domain = libvirt.define(&lab).await?;
        libvirt.virsh(&["start", "--paused", &domain]).await?;
    }
    let samples = duel(
        ground.rounds(),
        async |_| {
            driver.shutdown().await;
            driver = lab.driver().await?;
            let begin = Instant::now();
            let adopted = driver.adopt().await?;
            let took = millis(begin);
            let as_left = |a: &Adopted| matches!(a.seen.power, PowerState::Paused(_));
            if adopted.len() == vms && adopted.iter().all(as_left) {
                return Ok(took / vms as f64);
            }
            let found = adopted.len();
            Err(Fault::new(format!(
                "{found} of {vms} were found again as they were left"
            )))
        },
        async |_| Ok(libvirt.restart(vms).await? / vms as f64),
    )
    .await?;
    for vm in &made {
        end(&driver, vm).await?;
    }
    driver.shutdown().await;
    Ok(vec![
        Row::new(ADOPT, "ms", samples.ours)
            .against("libvirtd, from its start until it lists them", samples.peer)
            .goal("<= 0.05x")
            .noted(format!("{vms} paused VMs each; ours is one call of adopt() on a new driver, without a process to start")),
        Row::new(MEMORY, "KiB", vec![each_kib])
            .goal("<= 256")
            .noted(format!("what this process grew by with {vms} VMs, the bench's own part included")),
    ])
}

/// What this process has in memory.
fn resident_kib() -> Outcome<u64> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let number = line.and_then(|line| line.split_whitespace().next()?.parse().ok());
    number.ok_or_else(|| Fault::new("/proc/self/status tells no VmRSS"))
}

async fn running(lab: &Lab, driver: &dyn Driver) -> Outcome<VmDefinition> {
    let vm = lab.vm().await?;
    driver
        .start(&OpCx::new(), &vm, Vec::new())
        .await
        .during("start")?;
    Ok(vm)
}

async fn end(driver: &dyn Driver, vm: &VmDefinition) -> Outcome<()> {
    driver.kill(vm.id).await.during("kill")?;
    driver.undefine(vm.id).await.during("undefine")
}

/// Lets it run, as ours does when it is killed: a process that never ran has less to give back.
async fn cont(child: &mut Child) -> Outcome<()> {
    let input = child
        .stdin
        .as_mut()
        .ok_or_else(|| Fault::new("QEMU has no input"))?;
    input
        .write_all(b"{\"execute\":\"qmp_capabilities\"}\n{\"execute\":\"cont\"}\n")
        .await?;
    let output = child
        .stdout
        .as_mut()
        .ok_or_else(|| Fault::new("QEMU has no output"))?;
    let mut lines = BufReader::new(output).lines();
    let resumed = async {
        while let Some(line) = lines.next_line().await? {
            if line.contains("\"RESUME\"") {
                return Ok(());
            }
        }
        Err(Fault::new("QEMU by hand ended"))
    };
    timeout(GREET_WITHIN, resumed).await?
}

/// Waits for the monitor's first line.
async fn greeting(child: &mut Child) -> Outcome<()> {
    let output = child
        .stdout
        .as_mut()
        .ok_or_else(|| Fault::new("QEMU has no output"))?;
    let mut line = String::new();
    timeout(GREET_WITHIN, BufReader::new(output).read_line(&mut line)).await??;
    if line.contains("\"QMP\"") {
        Ok(())
    } else {
        Err(Fault::new(format!("QEMU by hand said: {}", line.trim())))
    }
}
