//! The story: a VirtualBox VM run by our agent in the machine, for a controller outside of it. Each claim is checked.

use std::path::Path;
use std::time::{Duration, Instant};

use super::image::Image;
use super::stage::{DOOR, NODE, Stage};
use super::{Times, picture};
use crate::demo::{Interrupts, build, facts};
use crate::fault::{Done, Fault};
use crate::{guest, say};

/// The driver that the agent drives.
const DRIVER: &str = "virtualbox";
const CIDR: &str = "10.77.0.0/24";
/// A guest boots in 50 s inside the emulated machine, on an idle host.
const LEASE_SECONDS: u32 = 180;
const ANSWER_WITHIN: Duration = Duration::from_secs(60);
const CONSOLE_SECONDS: u32 = 60;
/// How often the story may be begun: only again when VirtualBox itself gave up on the VM, or the machine hangs.
const TELLINGS: u32 = 4;
/// The chapter in which the guest boots.
const LEASE: &str = "lease from our DHCP";
/// The processes that run VMs. One that has ended is listed until VirtualBox looks after it: that one runs nothing.
const RUNNING: &str = "pgrep -a --runstates R,S,D,T VBoxHeadless";

/// One step of the story; gives what was seen to be true.
struct Chapter {
    title: &'static str,
    act: fn(&mut Stage) -> Done<String>,
}

const fn chapter(title: &'static str, act: fn(&mut Stage) -> Done<String>) -> Chapter {
    Chapter { title, act }
}

const STORY: [Chapter; 14] = [
    chapter("agent joins", join),
    chapter("import the guest's disk", import),
    chapter("network", network),
    chapter("launch", launch),
    chapter(LEASE, lease),
    chapter("HTTP through our forward", answers),
    chapter("screenshot", screenshot),
    chapter("live snapshot", snapshot),
    chapter("revert", revert),
    chapter("save", save),
    chapter("restore", restore),
    chapter("kill -9 the agent", crash),
    chapter("ACPI shutdown", stop),
    chapter("delete", delete),
];

/// Sets the stage, tells the story, clears up. Begins anew, and says so, when VirtualBox itself gave up on the VM, the
/// guest never said a word, or the emulated machine hangs.
pub(super) fn tell(dir: &Path, image: &Image, interrupts: &Interrupts, times: &mut Times) -> Done {
    say::title("story: a VirtualBox VM, run by our agent in the machine");
    let since = Instant::now();
    let programs = build::programs()?;
    let guest = guest::ensure(None)?;
    times.note("programs and guest", "built", since);
    let disk = guest.dir.join(&guest.manifest.disk);
    for telling in 1..=TELLINGS {
        let since = Instant::now();
        let mut stage = Stage::set(dir, image, &programs, disk.clone(), interrupts)?;
        times.note("machine, controller, Redis", "up", since);
        match act(&mut stage, times) {
            Ok(()) => {
                let since = Instant::now();
                stage.clear()?;
                times.note("everything ended", "agent, machine, controller, Redis", since);
                return Ok(());
            }
            Err((chapter, took, fault)) => {
                let last = telling == TELLINGS;
                let gave_up = stage.gave_up();
                if gave_up.as_deref() != Some(Stage::HUNG) {
                    stage.keep_logs();
                }
                if let Some(why) = gave_up.as_ref().filter(|_| last) {
                    times.not_run(&format!("  {chapter}"), &format!("{why}, {telling} times"), took);
                    return Ok(());
                }
                let silent = !last && gave_up.is_none() && chapter == LEASE && never_spoke(&mut stage);
                let silent = silent.then(|| "the guest never said a word".to_owned());
                let Some(gave_up) = gave_up.or(silent) else {
                    times.failed(&format!("  {chapter}"), &fault.what, took);
                    say::note("the end of the agent's log:");
                    say::note(&stage.agent_log());
                    return Err(Fault {
                        what: format!("{chapter}: {}", fault.what),
                        ..fault
                    });
                };
                say::note(&format!("{chapter}: {gave_up}: the story begins anew"));
            }
        }
    }
    Ok(())
}

/// Whether the guest's serial line never had a line of it: its kernel stood still before it could say why.
fn never_spoke(stage: &mut Stage) -> bool {
    stage
        .must("vbm console web --until vbm-guest --timeout 5")
        .is_err()
}

/// Plays all chapters, or up to the first that fails.
fn act(stage: &mut Stage, times: &mut Times) -> Result<(), (&'static str, Duration, Fault)> {
    for chapter in &STORY {
        say::title(chapter.title);
        let since = Instant::now();
        let proof = (chapter.act)(stage).map_err(|fault| (chapter.title, since.elapsed(), fault))?;
        times.note(&format!("  {}", chapter.title), proof, since);
    }
    Ok(())
}

fn join(stage: &mut Stage) -> Done<String> {
    stage.start_agent(DRIVER)?;
    let nodes = stage.must("vbm node list")?;
    claim(nodes.contains(NODE), "the controller lists the node", &nodes)?;
    Ok(format!("{NODE} is ready, over Redis"))
}

fn import(stage: &mut Stage) -> Done<String> {
    stage.must(&format!(
        "vbm image import tiny --disk {}",
        stage.guest_disk.display()
    ))?;
    Ok("tiny, a qcow2".to_owned())
}

fn network(stage: &mut Stage) -> Done<String> {
    stage.must(&format!("vbm network create lan {CIDR}"))?;
    stage.must("vbm group create web icmp tcp/80")?;
    let namespaces = stage.inside("ip netns list")?;
    claim(
        namespaces.contains("vbm-"),
        "the machine has the network's namespace",
        &namespaces,
    )?;
    Ok(format!("{CIDR}, a namespace in the machine"))
}

fn launch(stage: &mut Stage) -> Done<String> {
    stage.must(&format!(
        "vbm launch tiny web --driver {DRIVER} --memory 128 --network lan --group web"
    ))?;
    stage.must("vbm list")?;
    let running = stage.inside(RUNNING)?;
    let vm = stage.look()?;
    stage.learnt.vm_pid = vm.pid;
    claim(!running.is_empty(), "VirtualBox runs it", &running)?;
    Ok(format!("VBoxHeadless, pid {:?} in the machine", vm.pid))
}

fn lease(stage: &mut Stage) -> Done<String> {
    stage.must(&format!("vbm wait web --for lease --timeout {LEASE_SECONDS}"))?;
    stage.must("vbm network leases lan")?;
    let vm = stage.look()?;
    stage.must(&format!(
        "vbm console web --until 'ready hostname=web ip={}' --timeout {CONSOLE_SECONDS}",
        vm.address
    ))?;
    let namespace = format!("vbm-{}", facts::short(&vm.network));
    stage.inside(&format!(
        "ip netns exec {namespace} ping -c 3 -W 5 {}",
        vm.address
    ))?;
    Ok(format!("{}; it answers ping in its namespace", vm.address))
}

fn answers(stage: &mut Stage) -> Done<String> {
    stage.must(&format!("vbm forward create web {DOOR}:80"))?;
    let page = format!("vbm-guest web {}", stage.look()?.address);
    let seen = stage.ask_until("/", ANSWER_WITHIN, |answer| answer == page)?;
    stage.learnt.boot_id = stage.ask_until("/boot-id", ANSWER_WITHIN, |answer| !answer.is_empty())?;
    Ok(format!("`{seen}`"))
}

fn screenshot(stage: &mut Stage) -> Done<String> {
    let file = stage.keep.join("screen.png");
    stage.must(&format!("vbm screenshot web {}", file.display()))?;
    let bytes = std::fs::read(&file).map_err(|error| Fault::file("read", &file, &error))?;
    let seen = picture::look(&bytes)?;
    Ok(format!(
        "{}x{}, {} of 1000 pixels lit",
        seen.width, seen.height, seen.shown_per_mille
    ))
}

fn snapshot(stage: &mut Stage) -> Done<String> {
    stage.must("vbm snapshot create web before")?;
    still_the_same_boot(stage)?;
    mark(stage)?;
    Ok("taken while it runs; then a page was made in the guest".to_owned())
}

fn revert(stage: &mut Stage) -> Done<String> {
    stage.must("vbm snapshot revert web before")?;
    stage.must(&format!("vbm wait web --for running --timeout {LEASE_SECONDS}"))?;
    still_the_same_boot(stage)?;
    stage.absent("/mark", ANSWER_WITHIN)?;
    Ok("that page is gone, and it is still the same boot".to_owned())
}

fn save(stage: &mut Stage) -> Done<String> {
    mark(stage)?;
    stage.must("vbm save web")?;
    let power = stage.look()?.power;
    claim(
        power == "saved",
        "the VM is saved",
        &format!("its power is {power}"),
    )?;
    let left = stage.inside(&format!("{RUNNING} || true"))?;
    claim(left.trim().is_empty(), "no process runs it", &left)?;
    Ok("no process runs it".to_owned())
}

fn restore(stage: &mut Stage) -> Done<String> {
    stage.must("vbm start web")?;
    stage.must(&format!("vbm wait web --for running --timeout {LEASE_SECONDS}"))?;
    still_the_same_boot(stage)?;
    stage.ask_until("/mark", ANSWER_WITHIN, |answer| !answer.is_empty())?;
    stage.learnt.vm_pid = stage.look()?.pid;
    Ok("the same boot, and what was made before it was saved is there".to_owned())
}

fn crash(stage: &mut Stage) -> Done<String> {
    let before = stage.inside(RUNNING)?;
    stage.kill_agent()?;
    still_the_same_boot(stage)?;
    stage.start_agent(DRIVER)?;
    stage.must("vbm wait web --for running --timeout 60")?;
    // Told once the agent has found the VM as it is wanted; nothing else is asked for before that.
    stage.event("VmAdopted", ANSWER_WITHIN)?;
    let after = stage.inside(RUNNING)?;
    claim(
        before == after,
        "the same process runs the VM",
        &format!("{before} became {after}"),
    )?;
    let seen = stage.look()?.pid;
    claim(
        seen == stage.learnt.vm_pid,
        "the new agent has adopted it",
        &format!("pid {:?} became {seen:?}", stage.learnt.vm_pid),
    )?;
    still_the_same_boot(stage)?;
    stage.must(&format!(
        "echo 'echo still here, $((6 * 7))' | vbm console web --until 'here, 42' --timeout {CONSOLE_SECONDS}"
    ))?;
    Ok(format!(
        "the VM ran on; adopted with its process {}",
        seen.unwrap_or_default()
    ))
}

fn stop(stage: &mut Stage) -> Done<String> {
    stage.must("vbm stop web")?;
    let power = stage.look()?.power;
    claim(power == "off", "the VM is off", &format!("its power is {power}"))?;
    let said = stage.must("vbm console web --log")?;
    claim(
        said.contains("vbm-guest down"),
        "the guest shut down by itself",
        &said,
    )?;
    Ok("the guest heard its power button and went down".to_owned())
}

fn delete(stage: &mut Stage) -> Done<String> {
    let events = stage.must("vbm events")?;
    for kind in ["VmStarted", "PortLeased", "VmAdopted", "VmStopped"] {
        claim(
            events.contains(kind),
            &format!("the events tell of {kind}"),
            &events,
        )?;
    }
    for line in [
        "vbm delete web --force",
        "vbm network delete lan",
        "vbm group delete web",
        "vbm image delete tiny",
    ] {
        stage.must(line)?;
    }
    let left = stage.inside(&format!(
        "{RUNNING}; ip netns list; ip -o link | grep -E 'vb[a-z]+[0-9a-f]{{8}}'; \
         find /var/lib/vbm -name '*.vdi' -o -name '*.vbox'; true"
    ))?;
    claim(left.trim().is_empty(), "nothing is left in the machine", &left)?;
    Ok("no process, namespace, link or disk is left".to_owned())
}

/// A page that the guest did not have before.
fn mark(stage: &mut Stage) -> Done {
    stage.must(&format!(
        "echo 'echo marked >/www/mark; echo made=$?' | vbm console web --until made=0 --timeout {CONSOLE_SECONDS}"
    ))?;
    stage
        .ask_until("/mark", ANSWER_WITHIN, |answer| answer == "marked")
        .map(drop)
}

/// The guest's own word that it did not boot anew.
fn still_the_same_boot(stage: &Stage) -> Done {
    let before = stage.learnt.boot_id.clone();
    let now = stage.ask_until("/boot-id", ANSWER_WITHIN, |answer| !answer.is_empty())?;
    claim(
        now == before,
        "the guest did not boot anew",
        &format!("its boot id was {before} and is {now}"),
    )
}

/// Fails a chapter whose claim is not true.
fn claim(is_true: bool, what: &str, why: &str) -> Done {
    if is_true {
        return Ok(());
    }
    Err(Fault::new(
        format!("not true: {what}"),
        why,
        "this is a defect of VBM: see log/agent.log in target/lab/virtualbox",
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_chapter_has_a_title_of_its_own() {
        for (n, chapter) in STORY.iter().enumerate() {
            assert!(STORY.iter().skip(n + 1).all(|other| other.title != chapter.title));
        }
    }
}
