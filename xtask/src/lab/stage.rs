//! What the story is played on: the machine, and outside of it Redis, a controller, and somebody who types `vbm`.
//!
//! ```text
//!   this host                                            the machine
//!   vbm -> vbmd controller -> redis-server <- 10.0.2.100:6379 - vbmd agent --driver virtualbox -> VBoxManage
//!   curl 127.0.0.1:PORT ---------- slirp ------> 10.0.2.15:8080 -> our forward -> network's namespace -> guest
//! ```

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use super::image::Image;
use super::machine::{Machine, Plan, REDIS_URL, free_port, pause};
use super::servant::Servant;
use crate::demo::facts::{self, Keep, Vm};
use crate::demo::{Interrupts, typed};
use crate::fault::{Done, Fault};
use crate::{run, say};

/// The machine's port that our forward opens.
pub(super) const DOOR: u16 = 8080;
/// The node that the agent is.
pub(super) const NODE: &str = "lab/vbox";
/// What the directory of a run is called, before its pid.
const SCRATCH: &str = "/tmp/vbmlabout-";
const REDIS_WITHIN: Duration = Duration::from_secs(20);
const CONTROLLER_WITHIN: Duration = Duration::from_secs(60);
/// The agent probes VirtualBox on an emulated processor.
const AGENT_WITHIN: Duration = Duration::from_secs(120);
/// No command of the story takes longer, whatever it waits for.
const LINE_WITHIN: Duration = Duration::from_secs(240);
const INSIDE_WITHIN: Duration = Duration::from_secs(60);
const LOOK_EVERY: Duration = Duration::from_millis(300);
const SHOWN_LINES: usize = 10;
const LOG_LINES: usize = 40;
const AGENT_LOG: &str = "/var/log/vbmd.log";

/// See the module's header. Dropping it ends everything, the machine first.
pub(super) struct Stage {
    pub(super) machine: Machine,
    pub(super) keep: PathBuf,
    pub(super) guest_disk: PathBuf,
    /// The port of 127.0.0.1 that leads to the machine's [`DOOR`].
    pub(super) port: u16,
    pub(super) learnt: Learnt,
    controller: Servant,
    redis: Servant,
    programs: PathBuf,
    socket: PathBuf,
    scratch: Scratch,
    interrupts: Interrupts,
}

/// A short directory for what is outside of the machine; gone when dropped.
struct Scratch(PathBuf);

impl Scratch {
    fn make() -> Done<Self> {
        let scratch = Self(PathBuf::from(format!("{SCRATCH}{}", std::process::id())));
        std::fs::create_dir_all(&scratch.0).map_err(|error| Fault::file("create", &scratch.0, &error))?;
        Ok(scratch)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if let Err(fault) = super::inside::remove(&self.0) {
            say::fault(&fault);
        }
    }
}

/// What earlier chapters found.
#[derive(Debug, Default)]
pub(super) struct Learnt {
    pub(super) boot_id: String,
    /// The agent that was last seen as ready: each start has another name.
    agent: String,
    /// The process that runs the VM, in the machine.
    pub(super) vm_pid: Option<u32>,
}

impl Stage {
    /// Boots the machine and starts what is outside of it.
    pub(super) fn set(
        dir: &Path,
        image: &Image,
        programs: &Path,
        guest_disk: PathBuf,
        interrupts: &Interrupts,
    ) -> Done<Self> {
        let (redis_port, port) = (free_port()?, free_port()?);
        let scratch = Scratch::make()?;
        let logs = dir.join("log");
        std::fs::create_dir_all(&logs).map_err(|error| Fault::file("create", &logs, &error))?;
        let redis = start_redis(redis_port, &scratch.0, &logs, interrupts)?;
        let socket = scratch.0.join("sock");
        let controller = start_controller(programs, redis_port, &scratch.0, &socket, &logs, interrupts)?;
        let plan = Plan {
            files: vec![("bin/vbmd".to_owned(), programs.join("vbmd"))],
            forwards: vec![(port, DOOR)],
            redis: Some(redis_port),
        };
        let machine = Machine::boot(dir, image, &plan, interrupts)?;
        Ok(Self {
            machine,
            keep: dir.to_owned(),
            guest_disk,
            port,
            learnt: Learnt::default(),
            controller,
            redis,
            programs: programs.to_owned(),
            socket,
            scratch,
            interrupts: interrupts.clone(),
        })
    }

    /// A line on this host that must succeed; shown.
    pub(super) fn must(&self, line: &str) -> Done<String> {
        say::line(&format!("   $ {line}"));
        let answer = typed::run(
            &mut self.command(line),
            line,
            typed::Output::Both,
            LINE_WITHIN,
            Some(&self.interrupts),
        )?;
        for text in facts::trimmed(&answer.all, SHOWN_LINES, Keep::Last) {
            say::line(&format!("     {text}"));
        }
        if answer.code == Some(0) {
            return Ok(answer.text);
        }
        Err(Fault::new(
            format!("`{line}` ended with {:?}", answer.code),
            typed::quoted(&answer.all),
            "see log/ in target/lab/virtualbox",
        ))
    }

    /// Not shown; gives stdout of a line that succeeded.
    pub(super) fn silent(&self, line: &str) -> Done<Option<String>> {
        let answer = typed::run(
            &mut self.command(line),
            line,
            typed::Output::Stdout,
            LINE_WITHIN,
            Some(&self.interrupts),
        )?;
        Ok((answer.code == Some(0)).then_some(answer.text))
    }

    /// A line in the machine that must succeed; shown.
    pub(super) fn inside(&mut self, line: &str) -> Done<String> {
        say::line(&format!("   machine# {line}"));
        let text = self.machine.must(line, INSIDE_WITHIN)?;
        for shown in facts::trimmed(&text, SHOWN_LINES, Keep::Last) {
            say::line(&format!("     {shown}"));
        }
        Ok(text)
    }

    /// What `vbm` knows of the VM, now.
    pub(super) fn look(&self) -> Done<Vm> {
        let text = self.silent("vbm info web -o json")?;
        facts::vm(&text.unwrap_or_default())
    }

    /// Asks the guest through our forward until it answers as wanted, within a time.
    pub(super) fn ask_until(
        &self,
        path: &str,
        limit: Duration,
        wanted: impl Fn(&str) -> bool,
    ) -> Done<String> {
        let line = format!("curl -sSf --max-time 5 http://127.0.0.1:{}{path}", self.port);
        self.repeat(&line, path, limit, |answer| {
            answer.is_some_and(|text| wanted(text.trim()))
        })
    }

    fn repeat(
        &self,
        line: &str,
        path: &str,
        limit: Duration,
        wanted: impl Fn(Option<&str>) -> bool,
    ) -> Done<String> {
        say::line(&format!("   $ {line}"));
        let deadline = Instant::now() + limit;
        loop {
            let answer = self.silent(line)?;
            if wanted(answer.as_deref()) {
                let text = answer.unwrap_or_default().trim().to_owned();
                say::line(&format!("     {text}"));
                return Ok(text);
            }
            if Instant::now() > deadline {
                return Err(Fault::new(
                    format!("{path} of the guest does not answer as it should"),
                    format!("after {} s it gave {answer:?}", limit.as_secs()),
                    "see the guest's serial line in the agent's data, and the agent's log",
                ));
            }
            pause(&self.interrupts, LOOK_EVERY)?;
        }
    }

    /// Waits, within a time, until the events tell of something.
    pub(super) fn event(&self, kind: &str, limit: Duration) -> Done {
        let deadline = Instant::now() + limit;
        loop {
            let events = self.silent("vbm events")?.unwrap_or_default();
            if events.contains(kind) {
                return Ok(());
            }
            if Instant::now() > deadline {
                return Err(Fault::new(
                    format!("no event tells of {kind} within {} s", limit.as_secs()),
                    events,
                    "see log/agent.log and log/controller.log in target/lab/virtualbox",
                ));
            }
            pause(&self.interrupts, LOOK_EVERY)?;
        }
    }

    /// Asks until the guest's server itself says that it has no such page.
    pub(super) fn absent(&self, path: &str, limit: Duration) -> Done {
        const NOT_FOUND: &str = "404";
        let url = format!("http://127.0.0.1:{}{path}", self.port);
        let line = format!("curl -sS --max-time 5 -o /dev/null -w '%{{http_code}}' {url}");
        self.repeat(&line, path, limit, |answer| {
            answer.map(str::trim) == Some(NOT_FOUND)
        })
        .map(drop)
    }

    /// Starts the agent in the machine, as a daemon of its own, and waits until the controller sees it.
    pub(super) fn start_agent(&mut self, driver: &str) -> Done {
        let line = format!(
            "mkdir -p /var/log && (setsid vbmd agent --node {NODE} --driver {driver} --redis {REDIS_URL} \
             --data-dir /var/lib/vbm >>{AGENT_LOG} 2>&1 & echo $! >/run/vbmd.pid)"
        );
        self.inside(&line)?;
        let before = std::mem::take(&mut self.learnt.agent);
        let deadline = Instant::now() + AGENT_WITHIN;
        loop {
            let nodes = self.silent("vbm node list -o json")?.unwrap_or_default();
            if let Some(agent) = ready_agent(&nodes).filter(|agent| *agent != before) {
                self.learnt.agent = agent;
                return Ok(());
            }
            if !self.agent_lives()? {
                return Err(self.told("the agent has ended", &nodes));
            }
            if Instant::now() > deadline {
                return Err(self.told("the agent is not seen as ready", &nodes));
            }
            pause(&self.interrupts, LOOK_EVERY)?;
        }
    }

    fn agent_lives(&mut self) -> Done<bool> {
        let reply = self.machine.run(
            "kill -0 $(cat /run/vbmd.pid) && ! grep -q 'State:.Z' /proc/$(cat /run/vbmd.pid)/status",
            INSIDE_WITHIN,
        )?;
        Ok(reply.status == 0)
    }

    /// `kill -9` for the agent, and nothing else.
    pub(super) fn kill_agent(&mut self) -> Done {
        self.inside("kill -9 $(cat /run/vbmd.pid)").map(drop)
    }

    fn told(&mut self, what: &str, seen: &str) -> Fault {
        Fault::new(
            what,
            format!("{seen}\n{}", self.agent_log()),
            "see log/agent.log in target/lab/virtualbox",
        )
    }

    /// The end of the agent's log, as far as the machine still answers.
    pub(super) fn agent_log(&mut self) -> String {
        let line = format!("tail -n {LOG_LINES} {AGENT_LOG}");
        self.machine
            .run(&line, INSIDE_WITHIN)
            .map_or_else(|fault| fault.to_string(), |reply| reply.text)
    }

    /// What [`gave_up`](Self::gave_up) says of a machine that does not even run `true`.
    pub(super) const HUNG: &str = "the emulated machine itself answers nothing any more";

    /// What went wrong below our agent: the emulated machine hangs, or VirtualBox gave up on a VM by itself.
    pub(super) fn gave_up(&mut self) -> Option<String> {
        if self.machine.run("true", INSIDE_WITHIN).is_err() {
            return Some(Self::HUNG.to_owned());
        }
        let line =
            "grep -rhoE --include='VBox.log*' 'Guru Meditation [0-9]+ .[A-Z0-9_]+.' /var/lib/vbm | head -n 1";
        let reply = self.machine.run(line, INSIDE_WITHIN).ok()?;
        let said = reply.text.trim();
        (!said.is_empty()).then(|| format!("VirtualBox itself gave up on the VM ({said})"))
    }

    /// All logs that are in the machine, kept on this host for whoever looks for a cause.
    pub(super) fn keep_logs(&mut self) {
        let logs = self.keep.join("log");
        for (name, line) in [
            ("agent.log", format!("cat {AGENT_LOG}")),
            ("guest.log", "find /var/lib/vbm /run/vbm -name '*.log' -size -512k -not -name redb | while read -r file; do echo \"== $file\"; tail -c 20000 \"$file\"; done".to_owned()),
            ("dmesg.log", "dmesg".to_owned()),
        ] {
            if let Ok(reply) = self.machine.run(&line, INSIDE_WITHIN) {
                // A log that cannot be kept must not hide the fault that it would explain.
                drop(std::fs::write(logs.join(name), reply.text));
            }
        }
    }

    /// Ends everything in order: the agent, the machine, the controller, Redis.
    pub(super) fn clear(mut self) -> Done {
        self.inside("kill -TERM $(cat /run/vbmd.pid); for i in $(seq 100); do kill -0 $(cat /run/vbmd.pid) 2>/dev/null || break; sleep 0.1; done")?;
        self.keep_logs();
        let Self {
            machine,
            mut controller,
            mut redis,
            scratch,
            ..
        } = self;
        machine.end()?;
        controller.end()?;
        redis.end()?;
        drop(scratch);
        Ok(())
    }

    fn command(&self, line: &str) -> Command {
        let mut command = Command::new("sh");
        command.args(["-c", &typed::direct(line)]);
        let old = std::env::var_os("PATH").unwrap_or_default();
        let path =
            std::env::join_paths(std::iter::once(self.programs.clone()).chain(std::env::split_paths(&old)));
        let mut command = typed::bound(command);
        command
            .env("PATH", path.unwrap_or(old))
            .env("VBM_SOCKET", &self.socket);
        command
    }
}

fn start_redis(port: u16, scratch: &Path, logs: &Path, interrupts: &Interrupts) -> Done<Servant> {
    let mut command = run::command("redis-server");
    command
        .args(["--port", &port.to_string(), "--bind", "127.0.0.1"])
        .args(["--save", "", "--appendonly", "no"])
        .arg("--dir")
        .arg(scratch);
    Servant::start(
        command,
        &logs.join("redis.log"),
        "Ready to accept connections",
        REDIS_WITHIN,
        interrupts,
    )
}

fn start_controller(
    programs: &Path,
    redis: u16,
    scratch: &Path,
    socket: &Path,
    logs: &Path,
    interrupts: &Interrupts,
) -> Done<Servant> {
    let mut command = Command::new(programs.join("vbmd"));
    command
        .arg("controller")
        .args(["--redis", &format!("redis://127.0.0.1:{redis}")])
        .arg("--data-dir")
        .arg(scratch.join("data"))
        .arg("--socket")
        .arg(socket)
        .arg("--ephemeral");
    Servant::start(
        command,
        &logs.join("controller.log"),
        "vbmd ready",
        CONTROLLER_WITHIN,
        interrupts,
    )
}

/// What `vbm node list -o json` says which start of our agent is ready.
fn ready_agent(text: &str) -> Option<String> {
    let nodes: serde_json::Value = serde_json::from_str(text).ok()?;
    let text = |node: &serde_json::Value, pointer: &str| {
        node.pointer(pointer)
            .and_then(serde_json::Value::as_str)
            .map(str::to_owned)
    };
    nodes
        .as_array()?
        .iter()
        .find(|node| {
            text(node, "/path").as_deref() == Some(NODE)
                && text(node, "/status/state").as_deref() == Some("ready")
        })
        .and_then(|node| text(node, "/status/boot_id"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_agent_is_ready_when_its_node_is() {
        let node = |state| {
            format!(
                r#"[{{"path":"a/b","status":{{"state":"ready","boot_id":"x"}}}},
                {{"path":"{NODE}","status":{{"state":"{state}","boot_id":"b7"}}}}]"#
            )
        };
        assert_eq!(ready_agent(&node("ready")).as_deref(), Some("b7"));
        assert_eq!(ready_agent(&node("lost")), None);
        assert_eq!(ready_agent("[]"), None);
        assert_eq!(ready_agent(""), None);
    }
}
