//! The machine: QEMU without KVM, whose processor has AMD-V with nested paging, so that VirtualBox runs VMs in it.
//!
//! ```text
//!   vda  overlay over the kept image (gone at the end)      ttyS0 -> serial.log
//!   vdb  /lab: what this run brings: init, programs, guest  channel: one shell line, its exit status, its output
//!   eth0 10.0.2.15, no way out; 10.0.2.100:6379 is Redis on this host; named ports of 127.0.0.1 lead in
//! ```
//!
//! It ends with us: on a fault and on ^C we end it, and when we are killed the kernel kills it and the channel's end
//! makes its init switch it off.

use std::fs::File;
use std::io::Write as _;
use std::net::TcpListener;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::{Duration, Instant};

use super::image::Image;
use super::{inside, space};
use crate::demo::{Interrupts, typed};
use crate::fault::{Done, Fault};
use crate::run;

/// Where the machine finds Redis; see the module's header.
pub(super) const REDIS_URL: &str = "redis://10.0.2.100:6379";
/// Scripts of ours that every run brings, into `/lab`.
const SCRIPTS: [(&str, &str); 2] = [
    ("init", include_str!("files/init.sh")),
    ("suite", include_str!("files/suite.sh")),
];
const CPUS: &str = "2";
const MEMORY_MIB: &str = "4096";
/// Emulated, so there is nobody to protect from whom.
const CMDLINE: &str = "console=ttyS0 mitigations=off panic=-1 quiet";
const CONNECT_WITHIN: Duration = Duration::from_secs(20);
/// From power on to the channel: 15 s when the host is idle.
const READY_WITHIN: Duration = Duration::from_secs(240);
/// What the channel may take beyond the line's own limit.
const ANSWER_SLACK: Duration = Duration::from_secs(30);
const END_WITHIN: Duration = Duration::from_secs(20);
/// How long after its channel QEMU may end.
const END_SEEN_WITHIN: Duration = Duration::from_secs(2);
const LOOK_EVERY: Duration = Duration::from_millis(50);
const SERIAL_LINES: usize = 15;
const QEMU_LOG: &str = "qemu.log";
/// No answer of the channel is larger; logs are asked for by their end.
const ANSWER_BYTES_MAX: usize = 16 << 20;
const SPACE_BYTES: u64 = 2 * space::GIB;
/// Room on the run's disk besides the files.
const FILES_SLACK_BYTES: u64 = 64 << 20;

/// What a run brings along, and what it wants to reach.
#[derive(Default)]
pub(super) struct Plan {
    /// Path below `/lab`, and the file on this host.
    pub(super) files: Vec<(String, PathBuf)>,
    /// Ports of this host's 127.0.0.1 that lead to ports of the machine.
    pub(super) forwards: Vec<(u16, u16)>,
    /// The port on 127.0.0.1 where Redis is.
    pub(super) redis: Option<u16>,
}

/// What a line in the machine came to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Reply {
    pub(super) status: i32,
    pub(super) text: String,
}

/// A running machine; ended when dropped.
pub(super) struct Machine {
    child: Child,
    dir: PathBuf,
    socket_dir: PathBuf,
    serial: PathBuf,
    stream: Option<UnixStream>,
    tell: Sender<typed::Event>,
    events: Receiver<typed::Event>,
    heard: Vec<u8>,
    next_id: u32,
    interrupts: Interrupts,
}

impl Machine {
    /// Boots and waits until the machine does what it is told.
    pub(super) fn boot(dir: &Path, image: &Image, plan: &Plan, interrupts: &Interrupts) -> Done<Self> {
        sweep(dir);
        space::check(dir, SPACE_BYTES, "what the machine writes")?;
        let run_dir = dir.join(format!("run-{}", std::process::id()));
        let socket_dir = PathBuf::from(format!("/tmp/vbmlab-{}", std::process::id()));
        for path in [&run_dir, &socket_dir] {
            inside::remove(path)?;
            std::fs::create_dir_all(path).map_err(|error| Fault::file("create", path, &error))?;
        }
        prepare_disks(&run_dir, image, plan, interrupts)?;
        let socket = socket_dir.join("channel");
        let listener = UnixListener::bind(&socket)
            .and_then(|listener| listener.set_nonblocking(true).map(|()| listener))
            .map_err(|error| Fault::file("listen on", &socket, &error))?;
        let logs = dir.join("log");
        let serial = logs.join("serial.log");
        // That of the machine before this one, if there was one.
        drop(std::fs::rename(&serial, logs.join("serial.before.log")));
        std::fs::create_dir_all(&logs)
            .and_then(|()| File::create(&serial).map(drop))
            .map_err(|error| Fault::file("create", &serial, &error))?;
        let child = start(&run_dir, image, plan, &socket, &serial)?;
        let (tell, events) = channel();
        let mut machine = Self {
            child,
            dir: run_dir,
            socket_dir,
            serial,
            stream: None,
            tell,
            events,
            heard: Vec::new(),
            next_id: 0,
            interrupts: interrupts.clone(),
        };
        machine.connect(&listener, &logs.join(QEMU_LOG))?;
        machine.wait_ready()?;
        Ok(machine)
    }

    fn connect(&mut self, listener: &UnixListener, log: &Path) -> Done {
        let deadline = Instant::now() + CONNECT_WITHIN;
        let lost = |error: std::io::Error| Fault::new("the machine's channel broke", error, "run it again");
        while Instant::now() < deadline {
            match listener.accept() {
                Ok((stream, _)) => {
                    stream.set_nonblocking(false).map_err(lost)?;
                    let reader = stream.try_clone().map_err(lost)?;
                    typed::follow(reader, typed::Event::Out, self.tell.clone());
                    self.stream = Some(stream);
                    return Ok(());
                }
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(lost(error)),
            }
            if let Ok(Some(status)) = self.child.try_wait() {
                let said = std::fs::read_to_string(log).unwrap_or_default();
                return Err(Fault::new(
                    "QEMU did not start the machine",
                    format!("{status}: {}", said.trim()),
                    format!("its words are in {}", log.display()),
                ));
            }
            pause(&self.interrupts, LOOK_EVERY)?;
        }
        Err(Fault::new(
            "QEMU did not open the machine's channel",
            format!("it had {} s", CONNECT_WITHIN.as_secs()),
            "see whether the host is overloaded, and run it again",
        ))
    }

    fn wait_ready(&mut self) -> Done {
        let deadline = Instant::now() + READY_WITHIN;
        let line = self.hear(deadline, "the machine did not come up", take_line)?;
        if line == "ready" {
            return Ok(());
        }
        Err(self.fault(
            "the machine did not come up",
            &format!("it said {line:?} instead of ready"),
        ))
    }

    /// Runs one shell line in the machine, within a time; any exit status.
    pub(super) fn run(&mut self, line: &str, limit: Duration) -> Done<Reply> {
        self.next_id += 1;
        let id = self.next_id;
        if line.contains('\n') {
            return Err(Fault::new(
                "a line for the machine has two lines",
                line,
                "join them with `;`",
            ));
        }
        let request = format!("{id} {} {line}\n", limit.as_secs().max(1));
        let written = self
            .stream
            .as_mut()
            .map(|stream| stream.write_all(request.as_bytes()));
        if !matches!(written, Some(Ok(()))) {
            let why = format!("its channel is closed: {}", self.how_qemu_is());
            return Err(self.fault(&format!("`{line}` cannot be sent to the machine"), &why));
        }
        let what = format!("`{line}` in the machine has no end");
        let deadline = Instant::now() + limit + ANSWER_SLACK;
        self.hear(deadline, &what, |heard| take_answer(heard, id))
    }

    /// The same, which must succeed; gives its output.
    pub(super) fn must(&mut self, line: &str, limit: Duration) -> Done<String> {
        let reply = self.run(line, limit)?;
        if reply.status == 0 {
            return Ok(reply.text);
        }
        Err(self.fault(
            &format!("`{line}` in the machine ended with {}", reply.status),
            &typed::quoted(&reply.text),
        ))
    }

    /// Hears until `take` finds what it wants at the beginning of what was heard.
    fn hear<T>(
        &mut self,
        deadline: Instant,
        what: &str,
        take: impl Fn(&mut Vec<u8>) -> Option<T>,
    ) -> Done<T> {
        self.interrupts.subscribe(self.tell.clone());
        let found = loop {
            if let Some(found) = take(&mut self.heard) {
                break Ok(found);
            }
            if self.heard.len() > ANSWER_BYTES_MAX {
                break Err(self.fault(what, &format!("it says more than {ANSWER_BYTES_MAX} bytes")));
            }
            match self
                .events
                .recv_timeout(deadline.saturating_duration_since(Instant::now()))
            {
                Ok(typed::Event::Out(bytes) | typed::Event::Err(bytes)) => {
                    self.heard.extend_from_slice(&bytes)
                }
                Ok(typed::Event::Closed) | Err(RecvTimeoutError::Disconnected) => {
                    let why = format!("the machine has ended: {}", self.how_qemu_is());
                    break Err(self.fault(what, &why));
                }
                Ok(typed::Event::Interrupted) => break Err(typed::interrupted()),
                Err(RecvTimeoutError::Timeout) => break Err(self.fault(what, "its time is over")),
            }
        };
        self.interrupts.unsubscribe();
        found
    }

    /// Whether QEMU itself has ended.
    pub(super) fn has_ended(&mut self) -> bool {
        !matches!(self.child.try_wait(), Ok(None))
    }

    /// QEMU's end, for people: a crash of it leaves no other word.
    fn how_qemu_is(&mut self) -> String {
        let deadline = Instant::now() + END_SEEN_WITHIN;
        loop {
            match self.child.try_wait() {
                Ok(Some(status)) => return format!("QEMU ended ({status})"),
                Ok(None) if Instant::now() < deadline => drop(pause(&Interrupts::default(), LOOK_EVERY)),
                Ok(None) => return "QEMU runs".to_owned(),
                Err(error) => return format!("QEMU cannot be looked at: {error}"),
            }
        }
    }

    /// A fault with what QEMU said, and the end of the machine's serial line.
    fn fault(&self, what: &str, why: &str) -> Fault {
        let mut qemu = lines_of(&self.serial.with_file_name(QEMU_LOG));
        // What the emulated processor lacks is nobody's news.
        qemu.retain(|line| !line.contains(": warning: "));
        let serial = lines_of(&self.serial);
        let from = serial.len().saturating_sub(SERIAL_LINES);
        let mut why = why.to_owned();
        for line in qemu.iter().chain(serial.iter().skip(from)) {
            why.push_str(&format!("\n       | {line}"));
        }
        Fault::new(
            what,
            why,
            format!("its serial line is in {}", self.serial.display()),
        )
    }

    /// Switches it off and removes what it wrote.
    pub(super) fn end(mut self) -> Done {
        self.close()
    }

    fn close(&mut self) -> Done {
        if let Some(stream) = self.stream.take() {
            // Its init reads the end of the channel, and switches off.
            drop(stream.shutdown(std::net::Shutdown::Both));
        }
        let deadline = Instant::now() + END_WITHIN;
        let quiet = Interrupts::default();
        while Instant::now() < deadline && matches!(self.child.try_wait(), Ok(None)) {
            pause(&quiet, LOOK_EVERY)?;
        }
        // Both fail only when it has ended already.
        drop(self.child.kill());
        drop(self.child.wait());
        inside::remove(&self.dir)?;
        inside::remove(&self.socket_dir)
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        // After a fault there is nothing to wait for.
        drop(self.child.kill());
        if let Err(fault) = self.close() {
            crate::say::fault(&fault);
        }
    }
}

/// The lines of a log that say something.
pub(super) fn lines_of(log: &Path) -> Vec<String> {
    let bytes = std::fs::read(log).unwrap_or_default();
    let text = String::from_utf8_lossy(&bytes).replace('\r', "");
    let lines = text.lines().map(str::trim_end).filter(|line| !line.is_empty());
    lines.map(str::to_owned).collect()
}

/// Waits without being deaf to ^C.
pub(super) fn pause(interrupts: &Interrupts, time: Duration) -> Done {
    let (tell, events) = channel();
    interrupts.subscribe(tell);
    let came = events.recv_timeout(time).is_ok();
    interrupts.unsubscribe();
    if came { Err(typed::interrupted()) } else { Ok(()) }
}

/// `ID STATUS BYTES\n` and so many bytes.
fn take_answer(heard: &mut Vec<u8>, id: u32) -> Option<Reply> {
    let end = heard.iter().position(|byte| *byte == b'\n')?;
    let head = String::from_utf8_lossy(heard.get(..end)?).into_owned();
    let mut words = head.split(' ').map(str::parse::<i64>);
    let (Some(Ok(for_id)), Some(Ok(status)), Some(Ok(bytes))) = (words.next(), words.next(), words.next())
    else {
        // Not a head: nothing of ours. Dropping it finds the next.
        heard.drain(..=end);
        return take_answer(heard, id);
    };
    let body = end + 1;
    let until = body + usize::try_from(bytes).ok()?;
    let text = String::from_utf8_lossy(heard.get(body..until)?).into_owned();
    heard.drain(..until);
    if for_id != i64::from(id) {
        // The answer to a line that was given up.
        return take_answer(heard, id);
    }
    Some(Reply {
        status: i32::try_from(status).unwrap_or(-1),
        text,
    })
}

fn take_line(heard: &mut Vec<u8>) -> Option<String> {
    let end = heard.iter().position(|byte| *byte == b'\n')?;
    let line = String::from_utf8_lossy(heard.get(..end)?).trim().to_owned();
    heard.drain(..=end);
    Some(line)
}

/// The overlay, and the disk with the run's files.
fn prepare_disks(run_dir: &Path, image: &Image, plan: &Plan, interrupts: &Interrupts) -> Done {
    let mut overlay = run::command("qemu-img");
    overlay
        .args(["create", "-q", "-f", "qcow2", "-F", "raw", "-b"])
        .arg(&image.disk)
        .arg(run_dir.join("overlay.qcow2"));
    run::capture(&mut overlay)?;
    let files = run_dir.join("files");
    std::fs::create_dir_all(&files).map_err(|error| Fault::file("create", &files, &error))?;
    for (name, text) in SCRIPTS {
        let path = files.join(name);
        std::fs::write(&path, text).map_err(|error| Fault::file("write", &path, &error))?;
        executable(&path)?;
    }
    let mut bytes = FILES_SLACK_BYTES;
    for (name, from) in &plan.files {
        let to = files.join(name);
        let made = to.parent().map_or(Ok(()), std::fs::create_dir_all);
        bytes += made
            .and_then(|()| std::fs::hard_link(from, &to).or_else(|_| std::fs::copy(from, &to).map(drop)))
            .and_then(|()| to.metadata())
            .map_err(|error| Fault::file("copy", from, &error))?
            .len();
    }
    let mut mkfs = run::command("mkfs.ext4");
    mkfs.args(["-q", "-F", "-m", "0", "-O", "^has_journal", "-d"])
        .arg(&files)
        .arg(run_dir.join("files.ext4"))
        .arg(format!("{}K", bytes.div_ceil(1024)));
    inside::logged(&mut mkfs, &run_dir.join("mkfs.log"), READY_WITHIN, interrupts)?;
    inside::remove(&files)
}

fn executable(path: &Path) -> Done {
    use std::os::unix::fs::PermissionsExt as _;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o755))
        .map_err(|error| Fault::file("make executable", path, &error))
}

fn start(run_dir: &Path, image: &Image, plan: &Plan, socket: &Path, serial: &Path) -> Done<Child> {
    let log = serial.with_file_name(QEMU_LOG);
    let words = File::create(&log).map_err(|error| Fault::file("create", &log, &error))?;
    let mut command = run::command("qemu-system-x86_64");
    command.args(arguments(run_dir, image, plan, socket, serial));
    let mut bound = typed::bound(command);
    use std::os::unix::process::CommandExt as _;
    bound
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(words)
        .process_group(0);
    bound.spawn().map_err(|error| run::not_started(&bound, &error))
}

/// All of QEMU's command line.
fn arguments(run_dir: &Path, image: &Image, plan: &Plan, socket: &Path, serial: &Path) -> Vec<String> {
    let mut args: Vec<String> = Vec::new();
    let mut put = |words: &[&str]| args.extend(words.iter().map(|word| (*word).to_owned()));
    put(&["-machine", "q35", "-accel", "tcg,thread=multi"]);
    put(&["-cpu", "EPYC,+svm,+npt", "-smp", CPUS, "-m", MEMORY_MIB]);
    put(&["-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"]);
    put(&["-kernel", &image.kernel.display().to_string()]);
    put(&["-initrd", &image.initrd.display().to_string(), "-append", CMDLINE]);
    for (name, format) in [("overlay.qcow2", "qcow2"), ("files.ext4", "raw")] {
        let file = run_dir.join(name).display().to_string().replace(',', ",,");
        // Nobody reads it after a crash, so nothing needs to be flushed.
        put(&[
            "-drive",
            &format!("file={file},format={format},if=virtio,cache=unsafe"),
        ]);
    }
    put(&["-serial", &format!("file:{}", serial.display())]);
    put(&["-device", "virtio-serial-pci"]);
    put(&["-chardev", &format!("socket,id=lab,path={}", socket.display())]);
    put(&["-device", "virtserialport,chardev=lab,name=vbm.lab"]);
    put(&["-netdev", &network(plan)]);
    put(&["-device", "virtio-net-pci,netdev=net,romfile="]);
    args
}

/// The user network: nothing leaves this host, and only what is named comes in.
fn network(plan: &Plan) -> String {
    let mut text = "user,id=net,restrict=on,ipv6=off".to_owned();
    for (here, there) in &plan.forwards {
        text.push_str(&format!(",hostfwd=tcp:127.0.0.1:{here}-10.0.2.15:{there}"));
    }
    if let Some(port) = plan.redis {
        text.push_str(&format!(
            ",guestfwd=tcp:10.0.2.100:6379-cmd:busybox nc 127.0.0.1 {port}"
        ));
    }
    text
}

/// A port of 127.0.0.1 that is free now.
pub(super) fn free_port() -> Done<u16> {
    TcpListener::bind(("127.0.0.1", 0))
        .and_then(|listener| listener.local_addr())
        .map(|address| address.port())
        .map_err(|error| Fault::new("no port of 127.0.0.1 is free", error, "end what holds them"))
}

/// Removes what runs that were killed have left: disks, the channel, and the stage's scratch directory.
fn sweep(dir: &Path) {
    let places = [
        (dir, "run-"),
        (Path::new("/tmp"), "vbmlab-"),
        (Path::new("/tmp"), "vbmlabout-"),
    ];
    for (parent, prefix) in places {
        for entry in std::fs::read_dir(parent).into_iter().flatten().flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            let pid = name.strip_prefix(prefix).and_then(|pid| pid.parse::<u32>().ok());
            if pid.is_some_and(|pid| !Path::new(&format!("/proc/{pid}")).exists()) {
                // What cannot be removed is in nobody's way.
                drop(std::fs::remove_dir_all(entry.path()));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_taken_whole_and_in_their_order() {
        let mut heard = b"7 0 5\nhel".to_vec();
        assert_eq!(take_answer(&mut heard, 7), None);
        heard.extend_from_slice(b"lo8 3 0\n");
        let reply = take_answer(&mut heard, 7).unwrap();
        assert_eq!((reply.status, reply.text.as_str()), (0, "hello"));
        assert_eq!(take_answer(&mut heard, 8).unwrap().status, 3);
        assert!(heard.is_empty());
    }

    #[test]
    fn the_answer_to_a_line_that_was_given_up_is_passed_over() {
        let mut heard = b"noise\n1 124 3\nold2 0 3\nnew".to_vec();
        assert_eq!(take_answer(&mut heard, 2).unwrap().text, "new");
    }

    #[test]
    fn the_network_leads_nowhere_but_where_it_is_told() {
        let plan = Plan {
            forwards: vec![(40_001, 8080)],
            redis: Some(40_002),
            ..Plan::default()
        };
        assert_eq!(
            network(&plan),
            "user,id=net,restrict=on,ipv6=off,hostfwd=tcp:127.0.0.1:40001-10.0.2.15:8080,\
             guestfwd=tcp:10.0.2.100:6379-cmd:busybox nc 127.0.0.1 40002"
        );
    }

    #[test]
    fn a_pause_ends_with_an_interrupt() {
        let interrupts = Interrupts::default();
        assert_eq!(pause(&interrupts, Duration::from_millis(1)), Ok(()));
        interrupts.trip();
        assert_eq!(
            pause(&interrupts, Duration::from_secs(60)),
            Err(typed::interrupted())
        );
    }
}
