//! The peer: libvirt of Debian, in namespaces of the bench, spoken to by `virsh` as one would type it.
//!
//! ```text
//!   bench --virsh--> socket below the bench's folder --> libvirtd --> QEMU     in a process namespace that ends with us
//! ```

use super::lab::{DISK_BYTES, Lab, MEMORY_MIB};
use crate::harness::{
    child::{command, run},
    fault::{During, Fault, Outcome},
    ground::which,
};
use std::{
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};
use tempfile::TempDir;
use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines},
    process::{Child, ChildStdin, ChildStdout},
    time::{Instant, sleep, timeout},
};
use uuid::Uuid;
use vbm_core::VolumeId;
use vbm_hyper::BootSource;

/// The longest that one `virsh` may take.
const VIRSH_WITHIN: Duration = Duration::from_secs(60);
/// The longest that the daemon may take to come up or to go.
const DAEMON_WITHIN: Duration = Duration::from_secs(60);
/// The pause between two looks at a daemon that comes up.
const LOOK_AGAIN: Duration = Duration::from_millis(2);
/// Domains that one `virsh` is told to define: its command line has an end.
const DEFINED_AT_ONCE: usize = 200;

/// A libvirt that runs. It ends with this, and its guests with it.
pub(super) struct Libvirt {
    _script: Child,
    tell: ChildStdin,
    said: Lines<BufReader<ChildStdout>>,
    dir: TempDir,
}

impl Libvirt {
    pub(super) async fn start() -> Outcome<Self> {
        for (program, package) in [("virsh", "libvirt-clients"), ("unshare", "util-linux")] {
            which(program).ok_or_else(|| Fault::new(format!("{program} is missing (Debian: {package})")))?;
        }
        let dir = tempfile::Builder::new().prefix("vbm-bench-lv-").tempdir()?;
        let script = dir.path().join("libvirt.sh");
        std::fs::write(&script, include_str!("libvirt.sh"))?;
        let mut child = command("unshare")
            .args([
                "--mount",
                "--pid",
                "--fork",
                "--kill-child=SIGKILL",
                "--mount-proc",
                "bash",
            ])
            .arg(&script)
            .arg(dir.path())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .during("starting libvirt")?;
        let (Some(tell), Some(said)) = (child.stdin.take(), child.stdout.take()) else {
            return Err(Fault::new("the script has no input or no output"));
        };
        let mut libvirt = Self {
            _script: child,
            tell,
            said: BufReader::new(said).lines(),
            dir,
        };
        libvirt.up(0).await?;
        Ok(libvirt)
    }

    async fn tell(&mut self, word: &str, answer: &str) -> Outcome<()> {
        self.tell.write_all(format!("{word}\n").as_bytes()).await?;
        let said = timeout(DAEMON_WITHIN, self.said.next_line()).await;
        match said.during("libvirt's daemon")?? {
            Some(line) if line == answer => Ok(()),
            other => Err(Fault::new(format!("libvirt's script said {other:?}"))),
        }
    }

    /// Starts the daemon; returns once it lists so many domains that are there.
    async fn up(&mut self, domains: usize) -> Outcome<()> {
        self.tell("start", "started").await?;
        let until = Instant::now() + DAEMON_WITHIN;
        loop {
            match self.virsh(&["list", "--name"]).await {
                Ok(names) if names.split_whitespace().count() >= domains => return Ok(()),
                _ if Instant::now() < until => sleep(LOOK_AGAIN).await,
                Ok(names) => return Err(Fault::new(format!("it lists: {names}"))),
                Err(fault) => return Err(fault),
            }
        }
    }

    /// Stops the daemon, and gives how long it takes, in milliseconds, until it is up again and lists all that runs.
    pub(super) async fn restart(&mut self, domains: usize) -> Outcome<f64> {
        self.tell("stop", "stopped").await?;
        let begin = Instant::now();
        self.up(domains).await?;
        Ok(begin.elapsed().as_secs_f64() * 1e3)
    }

    /// What `virsh` prints.
    pub(super) async fn virsh(&self, words: &[&str]) -> Outcome<String> {
        let socket = self.dir.path().join("socket/libvirt-sock");
        let mut virsh = command("virsh");
        virsh
            .arg("-q")
            .arg("-c")
            .arg(format!("qemu+unix:///system?socket={}", socket.display()));
        run(virsh.args(words), VIRSH_WITHIN).await
    }

    /// The same, and how long it took in milliseconds.
    pub(super) async fn timed(&self, words: &[&str]) -> Outcome<f64> {
        let begin = Instant::now();
        self.virsh(words).await?;
        Ok(begin.elapsed().as_secs_f64() * 1e3)
    }

    /// A domain like a VM of the lab: the same guest, on a clone of its own.
    pub(super) async fn define(&self, lab: &Lab) -> Outcome<String> {
        let volume = Uuid::now_v7();
        let disk = lab
            .pool
            .clone_image(lab.image, VolumeId::from_uuid(volume), DISK_BYTES)
            .await?;
        let name = format!("d-{}", volume.simple());
        self.define_all(&[(name.clone(), domain(&name, &lab.boot, &disk)?)])
            .await?;
        Ok(name)
    }

    /// So many domains that are never started.
    pub(super) async fn define_many(&self, lab: &Lab, count: usize) -> Outcome<()> {
        let domains = (0..count).map(|at| {
            let name = format!("off-{at}");
            Ok((
                name.clone(),
                domain(&name, &lab.boot, Path::new("/nonexistent/disk.qcow2"))?,
            ))
        });
        self.define_all(&domains.collect::<Outcome<Vec<_>>>()?).await
    }

    async fn define_all(&self, domains: &[(String, String)]) -> Outcome<()> {
        for some in domains.chunks(DEFINED_AT_ONCE) {
            let mut lines = Vec::new();
            for (name, xml) in some {
                let file = self.dir.path().join(format!("{name}.xml"));
                std::fs::write(&file, xml)?;
                lines.push(format!("define {}", file.display()));
            }
            self.virsh(&[&lines.join("; ")]).await?;
        }
        Ok(())
    }
}

/// As `virt-install` would write it, for the devices that a VM of ours has.
fn domain(name: &str, boot: &BootSource, disk: &Path) -> Outcome<String> {
    let BootSource::Kernel {
        kernel,
        initrd,
        cmdline,
    } = boot
    else {
        return Err(Fault::new("the guest is not booted directly"));
    };
    let show = |path: &PathBuf| path.display().to_string();
    Ok(format!(
        "<domain type='qemu'><name>{name}</name><memory unit='MiB'>{MEMORY_MIB}</memory><vcpu>1</vcpu>\
<os><type arch='x86_64' machine='q35'>hvm</type><kernel>{}</kernel><initrd>{}</initrd><cmdline>{cmdline}</cmdline></os>\
<features><acpi/><apic/></features><devices><emulator>/usr/bin/qemu-system-x86_64</emulator>\
<disk type='file' device='disk'><driver name='qemu' type='qcow2'/><source file='{}'/><target dev='vda' bus='virtio'/></disk>\
<rng model='virtio'><backend model='random'>/dev/urandom</backend></rng><panic model='isa'/>\
<video><model type='vga'/></video><serial type='pty'/></devices></domain>",
        show(kernel),
        show(initrd),
        disk.display()
    ))
}
