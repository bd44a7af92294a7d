//! The story: one chapter a claim, each shown with the commands that anyone can type, each checked.
//!
//! An act shows and runs what it is about, and gives the proof: what was seen to be true. An act whose claim is not
//! true fails.

use std::path::Path;

use super::facts;
use super::stage::{Stage, claim};
use super::world::World;
use crate::fault::{Done, Fault};
use crate::{run, web};

/// One step of the story.
pub(super) struct Chapter<S> {
    /// What is done, as the table names it.
    pub(super) title: &'static str,
    /// What to look for.
    pub(super) about: &'static str,
    pub(super) act: fn(&mut S) -> Done<String>,
}

const fn chapter(
    title: &'static str,
    about: &'static str,
    act: fn(&mut Stage) -> Done<String>,
) -> Chapter<Stage> {
    Chapter { title, about, act }
}

const CIDR: &str = "10.77.0.0/24";
/// The first three numbers of every address in it.
const CIDR_BEGINS: [u8; 3] = [10, 77, 0];
/// How long a door that is shut is knocked at: no answer at all may come, so this is time that passes.
const KNOCK_SECONDS: u8 = 2;
/// curl's exit code for "no answer in time".
const CURL_TIMED_OUT: i32 = 28;
const LEASE_SECONDS: u8 = 60;
const CONSOLE_SECONDS: u8 = 30;
const PICTURE_MIN: (u32, u32) = (320, 200);
/// The page in a browser, beside the picture of the screen.
pub(super) const PAGE: &str = "page.png";
/// What the events must tell at the end of the story.
const EVENTS: [&str; 5] = [
    "VmStarted",
    "PortLeased",
    "GroupChanged",
    "VmStopped",
    "VmAdopted",
];

/// All of it, in order.
pub(super) const STORY: [Chapter<Stage>; 19] = [
    chapter(
        "start vbmd",
        "one process: API, store, controller and agent",
        start,
    ),
    chapter(
        "import an image",
        "the guest that was made from Debian packages",
        import,
    ),
    chapter(
        "create a network",
        "a namespace of its own with bridge, DHCP and NAT",
        network,
    ),
    chapter(
        "create a security group",
        "what may reach a VM: ping, nothing else",
        group,
    ),
    chapter(
        "make an outside world",
        "one more namespace; it knows no way to the VM's addresses",
        world,
    ),
    chapter("launch a VM", "a real QEMU guest", launch),
    chapter("wait for its lease", "the guest asks our DHCP server", lease),
    chapter("ping the VM", "from its network", ping),
    chapter(
        "reach the world from the VM",
        "typed into its serial console; NAT brings the answer back",
        nat,
    ),
    chapter(
        "forward a port",
        "made, but the group does not allow it: no answer at all",
        forward,
    ),
    chapter("open it live", "a rule is added while the VM runs", open),
    chapter("close it live", "and taken away again", close),
    chapter(
        "stop and start",
        "the guest shuts down by itself, boots again, keeps its address",
        stop_start,
    ),
    chapter("read its console", "what it said so far", console),
    chapter("take a picture", "of its screen", screenshot),
    chapter(
        "see it in a browser",
        "its desktop, on the page of the web console",
        page,
    ),
    chapter(
        "kill -9 vbmd",
        "the VM does not notice; the next vbmd finds it again",
        crash,
    ),
    chapter(
        "delete everything",
        "what happened, and then nothing is left on the host",
        delete,
    ),
    chapter("stop vbmd", "with a last look by the doctor", stop),
];

fn start(stage: &mut Stage) -> Done<String> {
    stage.show_line(&format!("export VBM_SOCKET={}", stage.recipe.socket.display()));
    stage.start_daemon()?;
    stage.must("vbm node list")?;
    let pid = stage.daemon.as_ref().map_or(0, |daemon| daemon.pid);
    let instance = &stage.learnt.instance;
    claim(
        !instance.is_empty(),
        "vbmd tells its instance",
        "its ready line has none",
    )?;
    Ok(format!("pid {pid}, instance {instance}"))
}

fn import(stage: &mut Stage) -> Done<String> {
    stage.must(&format!(
        "vbm image import tiny --guest {}",
        stage.guest.display()
    ))?;
    let list = stage.must("vbm image list")?;
    claim(list.text.contains("tiny"), "the list names the image", &list.all)?;
    Ok("tiny".to_owned())
}

fn network(stage: &mut Stage) -> Done<String> {
    stage.must(&format!("vbm network create lan {CIDR}"))?;
    let id = network_id(stage)?;
    let namespace = namespace(&id);
    claim(
        Path::new("/run/netns").join(&namespace).exists(),
        "the network has a namespace",
        &format!("/run/netns/{namespace} does not exist"),
    )?;
    stage.must(&format!("ip -brief -netns {namespace} address"))?;
    Ok(format!("{CIDR} in namespace {namespace}"))
}

fn group(stage: &mut Stage) -> Done<String> {
    stage.must("vbm group create web icmp")?;
    Ok("icmp allowed, all else denied".to_owned())
}

fn world(stage: &mut Stage) -> Done<String> {
    let world = World::make(&stage.claim)?;
    stage.show_line(&format!("{}       # from here on: world$", world.entrance()));
    let seen = format!("{} behind {}", world.address, world.link());
    stage.world = Some(world);
    let routes = stage.world("ip route")?;
    claim(
        routes.text.lines().count() == 1 && !routes.text.contains("default"),
        "the world knows its own link only",
        &routes.all,
    )?;
    Ok(seen)
}

fn launch(stage: &mut Stage) -> Done<String> {
    stage.must("vbm launch tiny web --memory 128 --network lan --group web")?;
    stage.must("vbm list")?;
    let vm = stage.look()?;
    let pid = vm.pid.unwrap_or_default();
    claim(
        program_of(pid).starts_with("qemu"),
        "a QEMU process runs the VM",
        &format!("the VM's pid is {pid}: `{}`", program_of(pid)),
    )?;
    let how = vm.accelerator.clone().unwrap_or_default();
    stage.learnt.vm = Some(vm);
    Ok(format!("qemu pid {pid}, {how}"))
}

fn lease(stage: &mut Stage) -> Done<String> {
    wait_lease(stage)?;
    let address = stage.vm()?.address;
    claim(
        address.octets().starts_with(&CIDR_BEGINS),
        "the address is of our network",
        &format!("it is {address}"),
    )?;
    stage.must("vbm network leases lan")?;
    // The guest's own word for it.
    stage.must_tail(&format!(
        "vbm console web --until 'ready hostname=web ip={address}' --timeout {CONSOLE_SECONDS}"
    ))?;
    Ok(format!("{address}, and the guest says so too"))
}

fn ping(stage: &mut Stage) -> Done<String> {
    let vm = stage.vm()?;
    let line = format!(
        "ip netns exec {} ping -c 3 -W 2 {}",
        namespace(&vm.network),
        vm.address
    );
    stage.must(&line)?;
    Ok("3 of 3 answered".to_owned())
}

fn nat(stage: &mut Stage) -> Done<String> {
    let (inner, outer) = (stage.vm()?.address, stage.claim.world);
    let direct = stage.world(&format!("ping -c 1 -W 1 {inner}"))?;
    claim(
        direct.code != Some(0),
        "the world cannot reach the VM's address",
        &direct.all,
    )?;
    let typed = format!("ping -c 3 -W 2 {outer}; echo result=$?");
    stage.must_tail(&format!(
        "printf '{typed}\\n' | vbm console web --until result=0 --timeout {CONSOLE_SECONDS}"
    ))?;
    Ok(format!("{inner} got answers from {outer}"))
}

fn forward(stage: &mut Stage) -> Done<String> {
    stage.must(&format!("vbm forward create web {}:80", stage.claim.port))?;
    shut(stage)?;
    Ok("no answer, neither to the world nor to the host".to_owned())
}

fn open(stage: &mut Stage) -> Done<String> {
    stage.must("vbm group allow web tcp/80")?;
    answers(stage)?;
    stage.learnt.boot_id = Some(boot_id(stage)?);
    let (before, now) = (stage.vm()?.pid, stage.look()?.pid);
    claim(
        before == now,
        "the VM was not restarted",
        &format!("pid {before:?} became {now:?}"),
    )?;
    Ok("the world and the host get its page, without a restart".to_owned())
}

fn close(stage: &mut Stage) -> Done<String> {
    stage.must("vbm group deny web tcp/80")?;
    shut(stage)?;
    Ok("no answer again".to_owned())
}

fn stop_start(stage: &mut Stage) -> Done<String> {
    let before = stage.vm()?.clone();
    let boot = stage.learnt.boot_id.take();
    let pid = before.pid.unwrap_or_default();
    stage.must("vbm stop web")?;
    stage.must("vbm list")?;
    let seen = stage.look()?.power;
    claim(seen == "off", "the VM is off", &format!("its power is `{seen}`"))?;
    claim(
        !is_alive(pid),
        "its process is gone",
        &format!("pid {pid} is still there"),
    )?;
    stage.must("vbm start web")?;
    wait_lease(stage)?;
    stage.must("vbm group allow web tcp/80")?;
    answers(stage)?;
    let now = boot_id(stage)?;
    claim(
        boot.as_ref() != Some(&now),
        "the guest booted anew",
        &format!("the boot id is still {now}"),
    )?;
    stage.learnt.boot_id = Some(now);
    let address = stage.vm()?.address;
    claim(
        address == before.address,
        "it kept its address",
        &format!("it has {address} now"),
    )?;
    Ok(format!("same address {address}, new boot id"))
}

fn console(stage: &mut Stage) -> Done<String> {
    let said = stage.must_tail("vbm console web --log")?;
    let ready = said.text.matches("vbm-guest ready hostname=web").count();
    claim(ready > 0, "the console has the guest's ready line", &said.all)?;
    Ok(format!(
        "{} bytes, the guest was ready {ready} times",
        said.text.len()
    ))
}

fn screenshot(stage: &mut Stage) -> Done<String> {
    let file = stage.keep.join("web.png");
    stage.must(&format!("vbm screenshot web {}", file.display()))?;
    let bytes = std::fs::read(&file).map_err(|error| Fault::file("read", &file, &error))?;
    let size = facts::png_size(&bytes);
    claim(
        size.is_some_and(|(width, height)| width >= PICTURE_MIN.0 && height >= PICTURE_MIN.1),
        "the picture is a PNG of a screen",
        &format!("{} bytes, size {size:?}", bytes.len()),
    )?;
    let (width, height) = size.unwrap_or_default();
    Ok(format!("{width}x{height}, {} KiB", bytes.len().div_ceil(1024)))
}

/// The page in Chromium: logs in by a link, opens the desktop, waits for the guest's pixels.
fn page(stage: &mut Stage) -> Done<String> {
    let said = stage.silent("vbm web login")?;
    let link = said.split_whitespace().find(|word| word.starts_with("http://"));
    claim(link.is_some(), "vbmd gives a login link", &said)?;
    let file = stage.keep.join(PAGE);
    web::picture(link.unwrap_or_default(), "web", &file)?;
    let bytes = std::fs::read(&file).map_err(|error| Fault::file("read", &file, &error))?;
    let size = facts::png_size(&bytes);
    claim(
        size.is_some_and(|(width, height)| width >= PICTURE_MIN.0 && height >= PICTURE_MIN.1),
        "the picture is a PNG of a page",
        &format!("{} bytes, size {size:?}", bytes.len()),
    )?;
    Ok(file.display().to_string())
}

fn crash(stage: &mut Stage) -> Done<String> {
    let before = stage.vm()?.clone();
    let boot = stage.learnt.boot_id.clone();
    let Some(mut daemon) = stage.daemon.take() else {
        return claim(false, "vbmd runs", "it was not started").map(|()| String::new());
    };
    stage.show_line(&format!("kill -9 {}", daemon.pid));
    daemon.kill()?;
    let alone = boot_id(stage)?;
    claim(
        boot.as_ref() == Some(&alone),
        "the VM answers without vbmd",
        &format!("boot id {alone}"),
    )?;
    stage.start_daemon()?;
    stage.must("vbm wait web --for running --timeout 30")?;
    stage.must("vbm list")?;
    let now = stage.look()?;
    claim(
        now.pid == before.pid,
        "the VM has the same process",
        &format!("pid {:?} became {:?}", before.pid, now.pid),
    )?;
    let after = boot_id(stage)?;
    claim(
        boot.as_ref() == Some(&after),
        "the guest did not boot anew",
        &format!("boot id {after}"),
    )?;
    stage.must_tail(&format!(
        "echo 'echo still here, $((6 * 7))' | vbm console web --until 'here, 42' --timeout {CONSOLE_SECONDS}"
    ))?;
    Ok(format!(
        "same qemu pid {}, same boot id",
        now.pid.unwrap_or_default()
    ))
}

fn delete(stage: &mut Stage) -> Done<String> {
    let events = stage.must_tail("vbm events")?.text;
    for kind in EVENTS {
        claim(
            events.contains(kind),
            &format!("the events tell of {kind}"),
            "they do not",
        )?;
    }
    let vm = stage.vm()?.clone();
    stage.must("vbm delete web --force")?;
    stage.must("vbm network delete lan")?;
    stage.must("vbm group delete web")?;
    stage.must("vbm image delete tiny")?;
    let left = left_over(stage, &vm)?;
    claim(left.is_empty(), "nothing is left on the host", &left.join(", "))?;
    stage.learnt.vm = None;
    Ok("no namespace, link, rule or process is left".to_owned())
}

fn stop(stage: &mut Stage) -> Done<String> {
    stage.host("vbm doctor")?;
    claim_healthy(stage)?;
    let Some(mut daemon) = stage.daemon.take() else {
        return claim(false, "vbmd runs", "it was not started").map(|()| String::new());
    };
    stage.show_line(&format!("kill {}", daemon.pid));
    let status = daemon.stop()?;
    claim(status.success(), "vbmd ends in good order", &status.to_string())?;
    stage.daemon_ended();
    claim_healthy(stage)?;
    Ok("nothing found, ended in good order".to_owned())
}

fn wait_lease(stage: &mut Stage) -> Done {
    stage.must(&format!("vbm wait web --for lease --timeout {LEASE_SECONDS}"))?;
    stage.learnt.vm = Some(stage.look()?);
    Ok(())
}

/// The two ways to the forward: from the world by the host's address, from the host by its loopback.
fn doors(stage: &Stage) -> [String; 2] {
    let port = stage.claim.port;
    [
        format!("http://{}:{port}", stage.claim.host),
        format!("http://127.0.0.1:{port}"),
    ]
}

/// No answer may come by either door: not even "refused".
fn shut(stage: &Stage) -> Done {
    let [outer, inner] = doors(stage);
    let knock = |url: &str| format!("curl -sS --max-time {KNOCK_SECONDS} {url}/");
    for answer in [stage.world(&knock(&outer))?, stage.host(&knock(&inner))?] {
        claim(
            answer.code == Some(CURL_TIMED_OUT),
            "the port is shut",
            &answer.all,
        )?;
    }
    Ok(())
}

/// The guest's page comes by both doors.
fn answers(stage: &Stage) -> Done {
    let [outer, inner] = doors(stage);
    let page = format!("vbm-guest web {}", stage.vm()?.address);
    let get = |url: &str| format!("curl -sS --max-time 10 {url}/");
    for answer in [stage.world(&get(&outer))?, stage.host(&get(&inner))?] {
        claim(answer.code == Some(0), "the port is open", &answer.all)?;
        claim(
            answer.text.trim() == page,
            "the VM's page comes",
            &format!("`{}` came", answer.text.trim()),
        )?;
    }
    Ok(())
}

/// The guest kernel's own word on whether it is the same boot; by way of the forward.
fn boot_id(stage: &Stage) -> Done<String> {
    let [_, inner] = doors(stage);
    let line = format!("curl -sS --max-time 10 {inner}/boot-id");
    let answer = stage.must(&line)?;
    let id = answer.text.trim().to_owned();
    claim(!id.is_empty(), "the guest gives its boot id", "it gave nothing")?;
    Ok(id)
}

fn network_id(stage: &Stage) -> Done<String> {
    let json = facts::json(&stage.silent("vbm network info lan -o json")?)?;
    let id = json.pointer("/id").and_then(serde_json::Value::as_str);
    id.map(str::to_owned).ok_or_else(|| {
        Fault::new(
            "`vbm network info lan -o json` has no id",
            json,
            "compare with the API document",
        )
    })
}

fn namespace(network: &str) -> String {
    format!("vbm-{}", facts::short(network))
}

/// What is still on the host of a VM and its network that are gone.
fn left_over(stage: &Stage, vm: &facts::Vm) -> Done<Vec<String>> {
    let short = facts::short(&vm.network);
    let namespace = namespace(&vm.network);
    let mut left = Vec::new();
    if Path::new("/run/netns").join(&namespace).exists() {
        left.push(format!("namespace {namespace}"));
    }
    if let Some(pid) = vm.pid.filter(|pid| program_of(*pid).starts_with("qemu")) {
        left.push(format!("process {pid}"));
    }
    let links = stage.silent("ip -brief link")?;
    let rules = run::capture(&mut run::command("iptables-save"))?;
    let lines = links.lines().chain(rules.lines());
    let tag = &stage.learnt.instance;
    left.extend(
        lines
            .filter(|line| line.contains(&short) || line.contains(tag))
            .map(str::to_owned),
    );
    Ok(left)
}

/// The doctor finds nothing that is ours; other instances on this host are their owners' business.
fn claim_healthy(stage: &Stage) -> Done {
    // It ends with 1 when it found something.
    let problems = facts::problems(&stage.silent("vbm doctor -o json || test $? = 1")?)?;
    let ours: Vec<String> = problems
        .into_iter()
        .filter(|problem| problem.contains(&stage.learnt.instance))
        .collect();
    claim(
        ours.is_empty(),
        "the doctor finds nothing of ours",
        &ours.join("\n       "),
    )
}

/// The name of the program that a process runs; empty when there is no such process, or only its exit code.
fn program_of(pid: u32) -> String {
    let name = std::fs::read_link(format!("/proc/{pid}/exe")).unwrap_or_default();
    name.file_name()
        .unwrap_or_default()
        .to_string_lossy()
        .into_owned()
}

fn is_alive(pid: u32) -> bool {
    !program_of(pid).is_empty()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_chapter_has_a_title_of_its_own_that_fits_the_table() {
        for (n, chapter) in STORY.iter().enumerate() {
            assert!(
                !chapter.about.is_empty() && chapter.title.len() <= 30,
                "{}",
                chapter.title
            );
            assert!(STORY.iter().skip(n + 1).all(|other| other.title != chapter.title));
        }
    }

    #[test]
    fn a_process_is_known_by_its_program() {
        assert!(program_of(std::process::id()).starts_with("xtask"));
        assert_eq!(program_of(0), "");
        assert!(is_alive(std::process::id()) && !is_alive(0));
    }
}
