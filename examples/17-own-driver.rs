//! A driver of one's own: its machine is a shell that waits, its power button SIGTERM. Small, and yet it keeps every promise of a
//! driver: machines outlive it and are found again, an accident is no shutdown, a start that nobody waits for leaves nothing.
//! `cargo run -p vbm-examples --bin 17-own-driver`; its tests are the conformance suite, at the end.
//!
//! ```text
//!   <dir>/<id>/definition   what it was started with     ready    its shell obeys the button
//!             /run          pid, start time, since when  off      it shut itself down
//!             /guest.sh     the machine                  crashed  it ended otherwise
//! ```
#![allow(clippy::print_stdout, reason = "an example speaks to people")]

use async_trait::async_trait;
use std::{
    collections::HashMap,
    fs, io,
    os::unix::process::CommandExt,
    path::PathBuf,
    process::{Command, Stdio},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};
use tokio::{
    io::unix::AsyncFd,
    sync::{broadcast, watch},
    task::JoinSet,
    time::sleep,
};
use vbm_core::{
    Accelerator, Capability, Clock, CrashCause, DriverKind, ErrorKind, PauseReason, PowerEvent, PowerState,
    Timestamp, VmId,
};
use vbm_hyper::{
    Adopted, BootSource, Consoles, Driver, DriverEvent, Error, Facet, Hardware, NicBackend, OpCx, Result,
    Seen, SystemClock, VmDefinition,
};

/// The machine: on its button it says so and ends; on SIGHUP it begins anew in the same process.
const GUEST: &str = r#"trap ': > off; exit 0' TERM
trap 'exec sh guest.sh' HUP
: > ready
while :; do sleep 0.2 & wait $!; done
"#;
/// Events that a subscriber may lag behind.
const EVENTS_MAX: usize = 256;
/// How long a shell may take until it obeys.
const START_DEADLINE: Duration = Duration::from_secs(20);
/// The pause between two looks at that.
const LOOK_AGAIN: Duration = Duration::from_millis(5);

struct Machine {
    definition: VmDefinition,
    seen: Seen,
    /// Somebody ended it.
    killed: bool,
}

#[derive(Default)]
struct State {
    machines: HashMap<VmId, Machine>,
    watchers: JoinSet<()>,
    closed: bool,
}

struct Inner {
    dir: PathBuf,
    state: Mutex<State>,
    events: broadcast::Sender<DriverEvent>,
    /// Moves with every change, for who waits for one.
    changed: watch::Sender<u64>,
}

#[derive(Clone)]
struct ShellDriver(Arc<Inner>);

fn io_error(what: &'static str, path: PathBuf) -> impl FnOnce(io::Error) -> Error {
    move |source| Error::Io { what, path, source }
}

/// The start time of a process that lives, and whether it is stopped (proc(5): fields 22 and 3 of stat).
fn lives(pid: u32) -> Option<(u64, bool)> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace();
    let state = fields.next()?;
    let ticks = fields.nth(18)?.parse().ok()?;
    (state != "Z").then_some((ticks, state == "T"))
}

/// How its instructions are run.
fn by_the_kernel() -> Accelerator {
    Accelerator {
        name: "none".into(),
        reason: "a shell needs no hypervisor".into(),
    }
}

fn signal(pid: i32, signal: nix::sys::signal::Signal) {
    // One that is gone already is fine.
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), signal).unwrap_or_default();
}

impl ShellDriver {
    /// A driver on a directory. What ran there is `Unknown` until it is adopted.
    fn open(dir: PathBuf) -> Result<Self> {
        fs::create_dir_all(&dir).map_err(io_error("create", dir.clone()))?;
        let mut state = State::default();
        for entry in fs::read_dir(&dir)
            .map_err(io_error("list", dir.clone()))?
            .flatten()
        {
            let file = |name: &str| entry.path().join(name);
            let Ok(text) = fs::read(file("definition")) else {
                continue;
            };
            let Ok(definition) = serde_json::from_slice::<VmDefinition>(&text) else {
                continue;
            };
            let power = match () {
                () if file("run").exists() => PowerState::Unknown,
                () if file("crashed").exists() => PowerState::Crashed(CrashCause::Hypervisor),
                () => PowerState::Off,
            };
            let seen = Seen::resting(power);
            state.machines.insert(
                definition.id,
                Machine {
                    definition,
                    seen,
                    killed: false,
                },
            );
        }
        let inner = Inner {
            dir,
            state: Mutex::new(state),
            events: broadcast::channel(EVENTS_MAX).0,
            changed: watch::Sender::new(0),
        };
        Ok(Self(Arc::new(inner)))
    }

    fn state(&self) -> Result<MutexGuard<'_, State>> {
        let state = self.0.state.lock().unwrap_or_else(PoisonError::into_inner);
        if state.closed {
            Err(Error::ShutDown("the driver of shells"))
        } else {
            Ok(state)
        }
    }

    fn file(&self, id: VmId, name: &str) -> PathBuf {
        self.0.dir.join(id.to_string()).join(name)
    }

    fn remove(&self, id: VmId, name: &str) {
        // What is not there need not go.
        drop(fs::remove_file(self.file(id, name)));
    }

    /// Lets something happen to a machine, if the power table allows it, and tells it.
    fn happens(&self, id: VmId, event: PowerEvent, live: Option<&Seen>) -> Result<Seen> {
        let mut state = self.state()?;
        let machine = state.machines.get_mut(&id).ok_or(Error::NoSuchVm(id))?;
        let power = machine.seen.power.after(event)?;
        let live = live.unwrap_or(&machine.seen);
        machine.seen = match (live.pid, live.started_at) {
            (Some(pid), Some(since)) if power.is_live() => {
                Seen::live(power, pid, Some(by_the_kernel()), since)
            }
            _ => Seen::resting(power),
        };
        let seen = machine.seen.clone();
        // Nobody may be listening.
        drop(self.0.events.send(DriverEvent::new(id, event, seen.clone())));
        self.0.changed.send_modify(|count| *count += 1);
        Ok(seen)
    }

    fn pid(&self, id: VmId) -> Result<i32> {
        let seen = &self
            .state()?
            .machines
            .get(&id)
            .ok_or(Error::NoSuchVm(id))?
            .seen
            .clone();
        Ok(seen.pid.map_or(0, u32::cast_signed))
    }

    /// Tells the group of a machine something, after the power table was asked.
    fn tell(&self, id: VmId, event: PowerEvent, word: nix::sys::signal::Signal, all: bool) -> Result<()> {
        let pid = self.pid(id)?;
        self.happens(id, event, None)?;
        signal(if all { -pid } else { pid }, word);
        Ok(())
    }

    /// Watches a process until it ends.
    #[expect(unsafe_code, reason = "tokio asks who registers a descriptor to keep it open")]
    fn watch(&self, id: VmId, pid: u32) -> Result<()> {
        let raw = rustix::process::Pid::from_raw(pid.cast_signed());
        let fd =
            raw.and_then(|raw| rustix::process::pidfd_open(raw, rustix::process::PidfdFlags::NONBLOCK).ok());
        // SAFETY: the descriptor is owned by what it is registered in, and nothing else closes it.
        let fd = fd.and_then(|fd| unsafe { AsyncFd::register(fd) }.ok());
        let driver = self.clone();
        self.state()?.watchers.spawn(async move {
            if let Some(fd) = fd {
                // Readable once it has ended (pidfd_open(2)).
                drop(fd.readable().await);
            }
            driver.ended(id, pid);
        });
        Ok(())
    }

    fn ended(&self, id: VmId, pid: u32) {
        // It is our child, unless an earlier daemon started it.
        let raw = nix::unistd::Pid::from_raw(pid.cast_signed());
        nix::sys::wait::waitpid(raw, Some(nix::sys::wait::WaitPidFlag::WNOHANG))
            .map(drop)
            .unwrap_or_default();
        let off = self.file(id, "off").exists();
        let Ok(state) = self.state() else { return };
        let Some(machine) = state.machines.get(&id) else {
            return;
        };
        let event = match machine.seen.power {
            PowerState::Starting => PowerEvent::StartFailed,
            _ if machine.killed => PowerEvent::ForceOff,
            _ if off => PowerEvent::ShutDown,
            _ => PowerEvent::Crash(CrashCause::Hypervisor),
        };
        drop(state);
        if matches!(event, PowerEvent::Crash(_)) {
            drop(fs::write(self.file(id, "crashed"), ""));
        }
        self.remove(id, "run");
        drop(self.happens(id, event, None));
    }

    /// Finds out what became of one that an earlier driver left.
    fn find(&self, id: VmId) -> Result<()> {
        let run = fs::read_to_string(self.file(id, "run")).unwrap_or_default();
        let mut words = run.split_whitespace().map(str::parse::<u64>);
        let (Some(Ok(pid)), Some(Ok(ticks)), Some(Ok(since))) = (words.next(), words.next(), words.next())
        else {
            return Ok(());
        };
        let pid = u32::try_from(pid).unwrap_or_default();
        let seen = match lives(pid) {
            Some((began, stopped)) if began == ticks => {
                let paused = PowerState::Paused(PauseReason::Requested);
                let power = if stopped { paused } else { PowerState::Running };
                Seen::live(
                    power,
                    pid,
                    Some(by_the_kernel()),
                    Timestamp::from_micros(since.cast_signed()),
                )
            }
            _ if self.file(id, "off").exists() => Seen::resting(PowerState::Off),
            _ => Seen::resting(PowerState::Crashed(CrashCause::Hypervisor)),
        };
        if let Some(machine) = self.state()?.machines.get_mut(&id) {
            machine.seen = seen.clone();
        }
        self.watch(id, pid).map(|()| {
            if seen.pid.is_none() {
                self.ended(id, pid)
            }
        })
    }

    fn launch(&self, id: VmId) -> Result<Seen> {
        let dir = self.0.dir.join(id.to_string());
        let mut shell = Command::new("sh");
        shell
            .arg("guest.sh")
            .current_dir(&dir)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        let child = shell.process_group(0).spawn();
        let pid = child
            .map_err(|error| Error::StartFailed {
                why: error.to_string(),
            })?
            .id();
        let since = SystemClock.now();
        let ticks = lives(pid).map_or(0, |(ticks, _)| ticks);
        let run = format!("{pid} {ticks} {}", since.micros());
        fs::write(dir.join("run"), run).map_err(io_error("write", dir.join("run")))?;
        let seen = Seen::live(PowerState::Starting, pid, Some(by_the_kernel()), since);
        if let Some(machine) = self.state()?.machines.get_mut(&id) {
            machine.seen = seen.clone();
        }
        self.watch(id, pid)?;
        Ok(seen)
    }

    async fn until(&self, id: VmId, wanted: impl Fn(PowerState) -> bool) -> Result<()> {
        let mut changed = self.0.changed.subscribe();
        while !wanted(self.inspect(id).await?.power) {
            changed
                .changed()
                .await
                .map_err(|_| Error::ShutDown("the driver of shells"))?;
        }
        Ok(())
    }
}

/// Ends a start that is not waited for any more.
struct Guard<'a>(&'a ShellDriver, VmId, bool);

impl Drop for Guard<'_> {
    fn drop(&mut self) {
        if self.2 {
            match self.0.pid(self.1) {
                Ok(pid) if pid > 0 => signal(-pid, nix::sys::signal::Signal::SIGKILL),
                _ => drop(self.0.happens(self.1, PowerEvent::StartFailed, None)),
            }
        }
    }
}

#[async_trait]
impl Driver for ShellDriver {
    fn kind(&self) -> DriverKind {
        // Where one of its own goes in the platform.
        DriverKind::Sim
    }

    async fn probe(&self) -> Capability {
        Capability {
            driver: self.kind(),
            version: "1".into(),
            accelerator: Some(by_the_kernel()),
            problem: None,
        }
    }

    async fn start(&self, cx: &OpCx, definition: &VmDefinition, nics: Vec<NicBackend>) -> Result<Seen> {
        cx.go_on("a start")?;
        definition.check(nics.len())?;
        let id = definition.id;
        let dir = self.0.dir.join(id.to_string());
        let fresh = Machine {
            definition: definition.clone(),
            seen: Seen::resting(PowerState::Off),
            killed: false,
        };
        let (power, was) = {
            let state = self.state()?;
            let before = state.machines.get(&id).map(|machine| machine.seen.power);
            (before.unwrap_or(PowerState::Off), before.is_some())
        };
        power.after(PowerEvent::Start)?;
        fs::create_dir_all(&dir).map_err(io_error("create", dir.clone()))?;
        for (name, text) in [
            ("guest.sh", GUEST.into()),
            (
                "definition",
                serde_json::to_string(definition).unwrap_or_default(),
            ),
        ] {
            fs::write(dir.join(name), text).map_err(io_error("write", dir.join(name)))?;
        }
        for name in ["ready", "off", "crashed"] {
            self.remove(id, name);
        }
        match self.state()?.machines.entry(id) {
            std::collections::hash_map::Entry::Occupied(mut there) if was => {
                there.get_mut().definition = fresh.definition;
                there.get_mut().killed = false;
            }
            entry => drop(entry.insert_entry(fresh)),
        }
        self.happens(id, PowerEvent::Start, None)?;
        let mut guard = Guard(self, id, true);
        let seen = self.launch(id)?;
        let ready = async {
            while !self.file(id, "ready").exists() {
                if self.inspect(id).await?.power != PowerState::Starting {
                    return Err(Error::StartFailed {
                        why: "its shell ended".into(),
                    });
                }
                sleep(LOOK_AGAIN).await;
            }
            Ok(())
        };
        cx.clone().within(START_DEADLINE).run("a start", ready).await?;
        guard.2 = false;
        self.happens(id, PowerEvent::Started, Some(&seen))
    }

    async fn stop(&self, id: VmId) -> Result<()> {
        self.tell(id, PowerEvent::Stop, nix::sys::signal::Signal::SIGTERM, false)
    }

    async fn kill(&self, id: VmId) -> Result<()> {
        if self.inspect(id).await?.power == PowerState::Unknown {
            self.find(id)?;
        }
        if !self.inspect(id).await?.power.is_live() {
            self.remove(id, "crashed");
            if self.inspect(id).await?.power != PowerState::Off {
                self.happens(id, PowerEvent::ForceOff, None)?;
            }
            return Ok(());
        }
        if let Some(machine) = self.state()?.machines.get_mut(&id) {
            machine.killed = true;
        }
        signal(-self.pid(id)?, nix::sys::signal::Signal::SIGKILL);
        self.until(id, |power| !power.is_live()).await
    }

    async fn reset(&self, id: VmId) -> Result<()> {
        self.tell(id, PowerEvent::Reset, nix::sys::signal::Signal::SIGHUP, false)
    }

    async fn pause(&self, id: VmId) -> Result<()> {
        let pid = self.pid(id)?;
        self.tell(
            id,
            PowerEvent::Pause(PauseReason::Requested),
            nix::sys::signal::Signal::SIGSTOP,
            true,
        )?;
        // The kernel halts it soon, not at once.
        while lives(pid.cast_unsigned()).is_some_and(|(_, stopped)| !stopped) {
            sleep(LOOK_AGAIN).await;
        }
        Ok(())
    }

    async fn resume(&self, id: VmId) -> Result<()> {
        self.tell(id, PowerEvent::Resume, nix::sys::signal::Signal::SIGCONT, true)
    }

    async fn inspect(&self, id: VmId) -> Result<Seen> {
        let state = self.state()?;
        state
            .machines
            .get(&id)
            .map(|machine| machine.seen.clone())
            .ok_or(Error::NoSuchVm(id))
    }

    async fn inventory(&self) -> Result<Vec<(VmId, Seen)>> {
        Ok(self
            .state()?
            .machines
            .iter()
            .map(|(id, machine)| (*id, machine.seen.clone()))
            .collect())
    }

    async fn adopt(&self) -> Result<Vec<Adopted>> {
        for (id, seen) in self.inventory().await? {
            if seen.power == PowerState::Unknown {
                self.find(id)?;
            }
        }
        let state = self.state()?;
        let told = state
            .machines
            .values()
            .filter(|machine| machine.seen.power != PowerState::Off);
        Ok(told
            .map(|machine| Adopted::new(machine.definition.clone(), machine.seen.clone()))
            .collect())
    }

    fn events(&self) -> broadcast::Receiver<DriverEvent> {
        self.0.events.subscribe()
    }

    fn consoles(&self) -> Option<&dyn Consoles> {
        None
    }

    fn missing(&self, _: Facet) -> Option<String> {
        Some("a shell is no machine".into())
    }

    async fn undefine(&self, id: VmId) -> Result<()> {
        match self.state()?.machines.get(&id).map(|machine| machine.seen.power) {
            None => return Ok(()),
            Some(PowerState::Off | PowerState::Crashed(_)) => {}
            Some(power) => {
                return Err(Error::Refused(vbm_core::Error::new(
                    ErrorKind::Conflict,
                    format!("cannot forget a VM that is {power}"),
                    "that is possible when it is off",
                    "end it first",
                )));
            }
        }
        let dir = self.0.dir.join(id.to_string());
        fs::remove_dir_all(&dir).map_err(io_error("remove", dir))?;
        self.state()?.machines.remove(&id);
        Ok(())
    }

    async fn shutdown(&self) {
        let mut watchers = match self.state() {
            Ok(mut state) => {
                state.closed = true;
                std::mem::take(&mut state.watchers)
            }
            Err(_) => return,
        };
        watchers.shutdown().await;
    }
}

fn definition() -> VmDefinition {
    VmDefinition {
        id: VmId::from_uuid(uuid::Uuid::now_v7()),
        name: "shell-1".parse().unwrap_or_else(|_| unreachable!("it is a name")),
        vcpus: 1,
        memory_mib: 64,
        root_disk: "/nonexistent".into(),
        boot: BootSource::Disk,
        disks: vec![],
        hardware: Hardware::default(),
        nics: vec![],
    }
}

#[tokio::main]
async fn main() -> std::result::Result<(), Box<dyn std::error::Error>> {
    let dir = tempfile::tempdir()?;
    let machines = vbm_hyper::Machines::open(Arc::new(ShellDriver::open(dir.path().into())?)).await?;
    let definition = definition();
    let vm = machines.vm(definition.id);
    let seen = vm.start(definition, vec![]).await?;
    println!(
        "a machine of its own kind: {}, process {:?}",
        seen.power,
        seen.pid.is_some()
    );
    println!(
        "asked to shut down: {:?}",
        vm.stop(Duration::from_secs(20)).await?.is_off()
    );
    vm.remove().await?;
    machines.shutdown().await;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use vbm_hyper::conformance::Bench;

    struct Ground(tempfile::TempDir);

    impl Ground {
        async fn boxed() -> std::result::Result<Box<dyn Bench>, String> {
            Ok(Box::new(Self(
                tempfile::tempdir().map_err(|error| error.to_string())?,
            )))
        }
    }

    #[async_trait]
    impl Bench for Ground {
        async fn open(&self) -> Arc<dyn Driver> {
            Arc::new(ShellDriver::open(self.0.path().into()).expect("the directory is ours"))
        }
        fn definition(&self) -> VmDefinition {
            definition()
        }
        async fn booted(&self, _: &dyn Driver, _: VmId) {}
        fn dialogue(&self) -> (&'static str, &'static str) {
            ("", "")
        }
        async fn accident(&self, _: VmId, seen: &Seen) {
            let pid = seen.pid.expect("it runs");
            signal(-pid.cast_signed(), nix::sys::signal::Signal::SIGKILL);
            while lives(pid).is_some() {
                sleep(LOOK_AGAIN).await;
            }
        }
    }

    impl Drop for Ground {
        /// Ends what a failed test has left.
        fn drop(&mut self) {
            for entry in fs::read_dir(self.0.path()).into_iter().flatten().flatten() {
                let run = fs::read_to_string(entry.path().join("run")).unwrap_or_default();
                let mut words = run.split_whitespace().map(str::parse::<u64>);
                if let (Some(Ok(pid)), Some(Ok(ticks))) = (words.next(), words.next())
                    && let Ok(pid) = u32::try_from(pid)
                    && lives(pid).is_some_and(|(began, _)| began == ticks)
                {
                    signal(-pid.cast_signed(), nix::sys::signal::Signal::SIGKILL);
                }
            }
        }
    }

    vbm_hyper::conformance_suite!(Ground::boxed());
}
