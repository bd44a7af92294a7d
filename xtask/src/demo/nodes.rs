//! `cargo xtask demo --nodes N`: a cluster on this machine, and what it outlives.
//!
//! ```text
//!   vbm dev up: Redis, two controllers, N nodes as namespaces
//!      |
//!   chapters: launch on two nodes, ping across, migrate live, kill the leader, kill an agent, cut a cable
//!      |
//!   vbm dev down: at the end, on a fault, on ^C
//! ```

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use indicatif::ProgressBar;

use super::facts::{self, Keep};
use super::interrupt::{Interrupts, Watch};
use super::stage::{claim, search_path, successful};
use super::story::Chapter;
use super::typed::{self, Answer, Output};
use super::{Row, play, show};
use crate::fault::{Done, Fault};
use crate::{place, say};

/// No command takes longer.
const LINE_WITHIN: Duration = Duration::from_secs(120);
/// How long something that must come may take.
const COMES_WITHIN: Duration = Duration::from_secs(45);
/// How often it is looked.
const LOOK_EVERY: Duration = Duration::from_millis(200);
const SHOWN_LINES: usize = 14;
/// A ping each so many milliseconds goes on while the VM moves.
const PING_EVERY_MS: u32 = 200;
/// What a live migration may cost a guest that is asked all the time, in milliseconds.
const SILENCE_MAX_MS: u32 = 3_000;

const fn chapter(
    title: &'static str,
    about: &'static str,
    act: fn(&mut Cluster) -> Done<String>,
) -> Chapter<Cluster> {
    Chapter { title, about, act }
}

const STORY: [Chapter<Cluster>; 8] = [
    chapter(
        "make a cluster",
        "Redis, two controllers, and nodes that are namespaces",
        up,
    ),
    chapter(
        "image, network, group",
        "the network spans the nodes by VXLAN",
        furnish,
    ),
    chapter(
        "launch on two nodes",
        "each takes its address from its own node",
        launch,
    ),
    chapter(
        "ping across",
        "from a guest on one node to a guest on the other",
        ping,
    ),
    chapter(
        "migrate live",
        "to the other node, while it answers pings; it keeps its address",
        migrate,
    ),
    chapter(
        "kill the leader",
        "the other controller takes over and finishes what was begun",
        takeover,
    ),
    chapter(
        "kill an agent",
        "its VM runs on, is shown as such, and is adopted when the agent returns",
        adoption,
    ),
    chapter(
        "cut a node off",
        "it is lost, with the reason; nothing is started twice",
        cut,
    ),
];

/// The cluster of this run; it ends with this value.
struct Cluster {
    dir: PathBuf,
    guest: PathBuf,
    nodes: u8,
    path: OsString,
    interrupts: Interrupts,
    bar: ProgressBar,
    made: bool,
}

/// Tells the story; gives how long it took.
pub(super) fn tell(programs: &Path, guest: PathBuf, nodes: u8, rows: &mut Vec<Row>) -> Done<Duration> {
    let interrupts = Interrupts::default();
    let _watch = Watch::new(&interrupts)?;
    let bar = say::bar(STORY.len() as u64, "");
    let since = Instant::now();
    let dir = std::env::temp_dir().join(format!("vbm-demo-nodes-{}", std::process::id()));
    let mut cluster = Cluster {
        path: search_path(programs, &place::target())?,
        dir,
        guest,
        nodes,
        interrupts,
        bar: bar.clone(),
        made: false,
    };
    let played = play(&STORY, &mut cluster, |news| show(news, &bar, STORY.len(), rows));
    bar.finish_and_clear();
    if played.is_err() {
        cluster.blame();
    }
    let cleared = cluster.clear();
    played?;
    cleared?;
    Ok(since.elapsed())
}

impl Cluster {
    fn must(&self, line: &str) -> Done<Answer> {
        let answer = self.perform(line, Keep::First)?;
        successful(line, answer)
    }

    fn perform(&self, line: &str, keep: Keep) -> Done<Answer> {
        self.bar.suspend(|| say::line(&format!("   $ {line}")));
        let answer = typed::run(
            &mut self.command(line),
            line,
            Output::Both,
            LINE_WITHIN,
            Some(&self.interrupts),
        )?;
        for text in facts::trimmed(&answer.all, SHOWN_LINES, keep) {
            self.bar.suspend(|| say::line(&format!("     {text}")));
        }
        Ok(answer)
    }

    /// Not shown; gives stdout.
    fn silent(&self, line: &str) -> Done<String> {
        let answer = typed::run(
            &mut self.command(line),
            line,
            Output::Stdout,
            LINE_WITHIN,
            Some(&self.interrupts),
        )?;
        successful(line, answer).map(|a| a.text)
    }

    fn command(&self, line: &str) -> Command {
        let mut command = Command::new("sh");
        command.args(["-c", &typed::direct(line)]);
        let sockets = ["c1", "c2"].map(|c| self.dir.join(format!("{c}.sock")).display().to_string());
        command
            .env("PATH", &self.path)
            .env("VBM_DEV_DIR", &self.dir)
            .env("VBM_SOCKET", sockets.join(","));
        command
    }

    /// Waits until the answer to a line holds this; gives how long that took.
    fn until(&self, line: &str, holds: impl Fn(&str) -> bool) -> Done<Duration> {
        let since = Instant::now();
        loop {
            let said = self.silent(line).unwrap_or_default();
            if holds(&said) {
                return Ok(since.elapsed());
            }
            if self.interrupts.came() {
                return Err(typed::interrupted());
            }
            claim(
                since.elapsed() < COMES_WITHIN,
                &format!("`{line}` says what it should within {} s", COMES_WITHIN.as_secs()),
                &said,
            )?;
            std::thread::park_timeout(LOOK_EVERY);
        }
    }

    fn field(&self, line: &str, pointer: &str) -> Done<String> {
        let text = self.silent(&format!("{line} -o json"))?;
        let value: serde_json::Value = serde_json::from_str(&text)
            .map_err(|e| Fault::new(format!("`{line}` is not JSON"), e, "see the daemon's log"))?;
        let found = value.pointer(pointer).and_then(|v| v.as_str());
        Ok(found.unwrap_or_default().to_owned())
    }

    /// The end of each member's log, for whoever looks for the cause.
    fn blame(&self) {
        for member in ["c1", "c2", "n1", "n2"] {
            let log = self.dir.join(format!("{member}.log"));
            say::note(&format!("the end of {}:", log.display()));
            for line in super::daemon::log_tail(&log, 6) {
                say::note(&format!("| {line}"));
            }
        }
    }

    fn clear(&mut self) -> Done {
        if !std::mem::take(&mut self.made) {
            return Ok(());
        }
        let line = "vbm dev down";
        let answer = typed::run(&mut self.command(line), line, Output::Both, LINE_WITHIN, None)?;
        successful(line, answer).map(drop).map_err(|fault| Fault {
            fix: format!("run `vbm dev down --dir {}`", self.dir.display()),
            ..fault
        })
    }
}

impl Drop for Cluster {
    /// A panic must not leave a cluster behind either.
    fn drop(&mut self) {
        if let Err(fault) = self.clear() {
            say::fault(&fault);
        }
    }
}

fn up(on: &mut Cluster) -> Done<String> {
    on.made = true;
    on.must(&format!("vbm dev up --nodes {} --controllers 2", on.nodes))?;
    on.must("vbm node list")?;
    Ok(format!("{} nodes, 2 controllers", on.nodes))
}

fn furnish(on: &mut Cluster) -> Done<String> {
    on.must(&format!("vbm image import tiny --guest {}", on.guest.display()))?;
    on.must("vbm network create lan 10.5.0.0/24")?;
    on.must("vbm group create ping icmp")?;
    Ok("ready on each node".to_owned())
}

fn launch(on: &mut Cluster) -> Done<String> {
    for (name, node) in [("a", "dev/n1"), ("b", "dev/n2")] {
        on.must(&format!(
            "vbm launch tiny {name} --network lan --group ping --memory 96M --node {node}"
        ))?;
    }
    for name in ["a", "b"] {
        on.must(&format!("vbm wait {name} --for lease --timeout 100"))?;
    }
    on.must("vbm list")?;
    on.must("vbm placement a")?;
    Ok("both have their address".to_owned())
}

fn ping(on: &mut Cluster) -> Done<String> {
    let said =
        on.must("echo 'ping -c 3 10.5.0.2' | vbm console b --until 'packets received' --timeout 30")?;
    let (back, sent) = pings(&said.text)?;
    claim(back > 0, "pings come back from the other node", &said.text)?;
    Ok(format!("{back} of {sent} came back"))
}

fn migrate(on: &mut Cluster) -> Done<String> {
    let said = on.must(
        "echo 'ping -c 75 -i 0.2 -W 1 10.5.0.2' | vbm console b --until 'packets received' --timeout 60 >$VBM_DEV_DIR/pings & \
         sleep 2; vbm migrate a --live --to dev/n2; wait; tail -n 3 $VBM_DEV_DIR/pings",
    )?;
    let (back, sent) = pings(&said.text)?;
    let lost_ms = (sent - back) * PING_EVERY_MS;
    claim(
        lost_ms <= SILENCE_MAX_MS,
        "at most 3 s of pings are lost",
        &said.text,
    )?;
    let node = on.field("vbm info a", "/spec/node")?;
    claim(node == "dev/n2", "it is on the other node", &node)?;
    let address = on.field("vbm info a", "/nics/0/spec/address")?;
    claim(address == "10.5.0.2", "it kept its address", &address)?;
    Ok(format!("{} of {sent} pings lost: {lost_ms} ms", sent - back))
}

fn takeover(on: &mut Cluster) -> Done<String> {
    let leader = on.field("vbm version", "/vbmd/leader/name")?;
    let first = on.field("vbm --socket $VBM_DEV_DIR/c1.sock version", "/vbmd/controller")?;
    let (dies, lives) = if leader == first {
        ("c1", "c2")
    } else {
        ("c2", "c1")
    };
    on.must("vbm launch tiny c --memory 96M --async")?;
    on.must(&format!("vbm dev kill {dies}"))?;
    let took = on.until(
        &format!("vbm --socket $VBM_DEV_DIR/{lives}.sock version"),
        |said| said.contains("this one"),
    )?;
    on.must("vbm wait c --for running --timeout 60")?;
    on.must(&format!("vbm dev start {dies}"))?;
    Ok(format!(
        "{lives} leads after {:.1} s; the launch was finished",
        took.as_secs_f64()
    ))
}

fn adoption(on: &mut Cluster) -> Done<String> {
    let pid = on.silent("vbm info a -o json")?;
    on.must("vbm dev kill n2")?;
    on.until("vbm node list", |said| said.contains("lost"))?;
    on.must("vbm list")?;
    on.must("vbm dev start n2")?;
    on.until("vbm info a", |said| said.contains("running"))?;
    let facts = |text: &str| {
        serde_json::from_str::<serde_json::Value>(text)
            .ok()
            .and_then(|v| v.pointer("/status/pid").and_then(serde_json::Value::as_u64))
    };
    let (before, after) = (facts(&pid), facts(&on.silent("vbm info a -o json")?));
    claim(
        before.is_some() && before == after,
        "the same process runs on",
        &format!("{before:?} before, {after:?} after"),
    )?;
    Ok("the same process runs on".to_owned())
}

fn cut(on: &mut Cluster) -> Done<String> {
    on.must("vbm dev cut n2")?;
    on.until("vbm node list", |said| said.contains("lost"))?;
    on.must("vbm node info dev/n2")?;
    let refused = on.perform("vbm migrate a --to dev/n1", Keep::First)?;
    claim(
        refused.code != Some(0) && refused.all.contains("could run twice"),
        "it is not started elsewhere",
        &refused.all,
    )?;
    on.must("vbm dev mend n2")?;
    let took = on.until("vbm info a", |said| said.contains("running"))?;
    Ok(format!(
        "known again {:.1} s after it was joined",
        took.as_secs_f64()
    ))
}

/// How many pings came back, of how many.
fn pings(said: &str) -> Done<(u32, u32)> {
    let line = said.lines().find(|l| l.contains("packets transmitted"));
    let number = |before: &str| {
        let line = line?;
        line[..line.find(before)?]
            .split_whitespace()
            .next_back()?
            .parse()
            .ok()
    };
    match (number("packets received"), number("packets transmitted")) {
        (Some(back), Some(sent)) => Ok((back, sent)),
        _ => Err(Fault::new(
            "ping did not say how it went",
            said,
            "see the guest's console",
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_words_of_ping_are_understood() {
        let said = "\n--- 10.5.0.2 ping statistics ---\n75 packets transmitted, 74 packets received, 1% packet loss\n";
        assert_eq!(pings(said).unwrap(), (74, 75));
        assert!(pings("ping: bad address").is_err());
    }
}
