//! The peer of a launch: the same QEMU, started by hand on a tap and a bridge in a namespace, with busybox's DHCP server.
//!
//! ```text
//!   namespace (no name; lives as long as its holder)
//!     br0 10.78.0.1/24  <-- udhcpd
//!      |
//!     tap0 <-- QEMU, the command line of ours
//! ```
//!
//! All that can be made ready before is: bridge, tap, DHCP server and disk. The clock runs from exec to DHCPACK.

use crate::{
    areas::by_hand::{ByHand, by_hand},
    harness::{
        child::{Talker, command, run},
        fault::{During, Fault, Outcome},
    },
};
use std::{fs, path::Path, process::Stdio, time::Duration};
use tempfile::TempDir;
use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader},
    process::{Child, Command},
    time::{Instant, timeout},
};
use uuid::Uuid;

const STEP_WITHIN: Duration = Duration::from_secs(20);
/// The longest that a guest may take to its lease.
const LEASE_WITHIN: Duration = Duration::from_secs(120);
const TAP: &str = "tap0";

/// Namespace, bridge, tap and DHCP server.
pub(super) struct Peer {
    dhcp: Talker,
    holder: Child,
    dir: TempDir,
}

impl Peer {
    pub(super) async fn make() -> Outcome<Self> {
        let holder = hold_namespace().await?;
        let dir = tempfile::Builder::new().prefix("vbm-bench-").tempdir()?;
        let line = format!(
            "ip link add br0 type bridge forward_delay 0 && ip address add 10.78.0.1/24 dev br0 && ip link set br0 up \
             && ip tuntap add dev {TAP} mode tap && ip link set {TAP} master br0 up"
        );
        run(inside(&holder, "sh")?.args(["-c", &line]), STEP_WITHIN).await?;
        let leases = dir.path().join("leases");
        fs::write(&leases, "")?;
        let config = format!(
            "start 10.78.0.10\nend 10.78.0.200\ninterface br0\nlease_file {}\npidfile {}\noption subnet 255.255.255.0\n\
             option router 10.78.0.1\noption lease 3600\n",
            leases.display(),
            dir.path().join("pid").display()
        );
        let file = dir.path().join("udhcpd.conf");
        fs::write(&file, config)?;
        // -a 1: by itself it would wait two seconds for somebody who has the address already.
        let mut dhcp = Talker::start(
            inside(&holder, "busybox")?
                .args(["udhcpd", "-f", "-a", "1"])
                .arg(&file),
        )?;
        dhcp.hear("started", STEP_WITHIN).await.during("udhcpd")?;
        Ok(Self { dhcp, holder, dir })
    }

    /// Seconds from exec of QEMU to the lease.
    pub(super) async fn launch(&mut self, ours: &[String], base: &Path) -> Outcome<f64> {
        let uuid = Uuid::now_v7();
        let dir = self.dir.path().join(uuid.simple().to_string());
        fs::create_dir(&dir)?;
        let disk = dir.join("disk.qcow2");
        let mut clone = command("qemu-img");
        clone
            .args(["create", "-q", "-f", "qcow2", "-F", "qcow2", "-b"])
            .arg(base)
            .arg(&disk);
        run(&mut clone, STEP_WITHIN).await?;
        let typed = by_hand(
            ours,
            &ByHand {
                dir,
                disk,
                uuid,
                tap: Some(TAP.into()),
                halted: false,
            },
        )?;
        let (program, args) = typed
            .split_first()
            .ok_or_else(|| Fault::new("an empty command line"))?;
        let mut qemu = inside(&self.holder, program)?;
        // The monitor's input stays open; what it says goes nowhere.
        qemu.args(args)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        let begin = Instant::now();
        let mut child = qemu.spawn()?;
        let leased = tokio::select! {
            leased = self.dhcp.hear("sending ACK", LEASE_WITHIN) => leased.map(drop),
            ended = child.wait() => Err(Fault::new(format!("QEMU by hand ended: {ended:?}"))),
        };
        let took = begin.elapsed().as_secs_f64();
        child.kill().await?;
        leased.map(|()| took)
    }
}

/// A program in the namespace that this process holds.
fn inside(holder: &Child, program: &str) -> Outcome<Command> {
    let pid = holder
        .id()
        .ok_or_else(|| Fault::new("the holder of the namespace has ended"))?;
    let mut nsenter = command("nsenter");
    nsenter.args(["--target", &pid.to_string(), "--net", "--", program]);
    Ok(nsenter)
}

/// Starts the holder and waits until it is in its namespace: it says back what it is told.
async fn hold_namespace() -> Outcome<Child> {
    let mut unshare = command("unshare");
    unshare
        .args(["--net", "cat"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null());
    let mut holder = unshare.spawn().during("unshare")?;
    let (Some(stdin), Some(stdout)) = (holder.stdin.as_mut(), holder.stdout.as_mut()) else {
        return Err(Fault::new("the holder of the namespace has no pipes"));
    };
    stdin.write_all(b"here\n").await?;
    let mut heard = String::new();
    timeout(STEP_WITHIN, BufReader::new(stdout).read_line(&mut heard)).await??;
    if heard.trim() == "here" {
        Ok(holder)
    } else {
        Err(Fault::new("`unshare --net cat` did not run: is this root?"))
    }
}
