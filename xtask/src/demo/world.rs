//! The outside world: a network namespace of its own, joined to the host by one link.
//!
//! ```text
//!   world (no name; lives as long as its holder)      host
//!   eth0  198.51.100.2/30 ======== veth ======== vbmdemo<pid>  198.51.100.1/30
//! ```
//!
//! The holder is a `cat` in that namespace which reads from us: when this program ends, however it ends, its pipe
//! closes, it ends too, and the kernel takes the namespace and the link away. The world knows no route to the VMs'
//! addresses: what a VM sends gets an answer only if it was translated.

use std::io::{BufRead as _, BufReader, Write as _};
use std::net::Ipv4Addr;
use std::os::unix::process::CommandExt as _;
use std::process::{Child, Command, Stdio};

use super::claim::Claim;
use crate::fault::{Done, Fault};
use crate::run;

const READY: &str = "here";
const PAIR_BITS: u8 = 30;
/// The name of the world's own end.
const INNER: &str = "eth0";

/// The namespace and its link; gone when this is dropped.
pub(super) struct World {
    holder: Child,
    link: String,
    pub(super) address: Ipv4Addr,
}

impl World {
    pub(super) fn make(claim: &Claim) -> Done<Self> {
        let world = Self {
            holder: hold_namespace()?,
            link: link_name(claim.pid),
            address: claim.world,
        };
        world.join(claim.host)?;
        Ok(world)
    }

    fn join(&self, host: Ipv4Addr) -> Done {
        let inside = self.holder.id().to_string();
        ip(&[
            "link", "add", &self.link, "type", "veth", "peer", "name", INNER, "netns", &inside,
        ])?;
        ip(&[
            "address",
            "add",
            &format!("{host}/{PAIR_BITS}"),
            "dev",
            &self.link,
        ])?;
        ip(&["link", "set", &self.link, "up"])?;
        let line = format!(
            "ip link set lo up && ip address add {}/{PAIR_BITS} dev {INNER} && ip link set {INNER} up",
            self.address
        );
        run::capture(&mut self.command(&line)).map(drop)
    }

    /// A shell line inside the world.
    pub(super) fn command(&self, line: &str) -> Command {
        let mut command = run::command("nsenter");
        command
            .args(["--target", &self.holder.id().to_string(), "--net", "--"])
            .args(["sh", "-c", &super::typed::direct(line)]);
        command
    }

    /// How one enters it by hand.
    pub(super) fn entrance(&self) -> String {
        format!("nsenter --target {} --net", self.holder.id())
    }

    pub(super) fn link(&self) -> &str {
        &self.link
    }
}

impl Drop for World {
    fn drop(&mut self) {
        // The link goes with the namespace, but a moment later; this way it is gone when we are.
        drop(ip(&["link", "delete", &self.link]));
        drop(self.holder.stdin.take());
        drop(self.holder.kill());
        drop(self.holder.wait());
    }
}

/// At most 15 bytes: a pid has seven digits.
fn link_name(pid: u32) -> String {
    format!("vbmdemo{pid}")
}

/// Starts the holder and waits until it is in its namespace: it says back what it is told.
fn hold_namespace() -> Done<Child> {
    let mut command = run::command("unshare");
    command
        .args(["--net", "cat"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .process_group(0);
    let mut holder = command
        .spawn()
        .map_err(|error| run::not_started(&command, &error))?;
    let mut heard = String::new();
    if let (Some(stdin), Some(stdout)) = (holder.stdin.as_mut(), holder.stdout.take())
        && writeln!(stdin, "{READY}").is_ok()
    {
        // What was not heard is judged below.
        drop(BufReader::new(stdout).read_line(&mut heard));
    }
    if heard.trim_end() == READY {
        return Ok(holder);
    }
    drop(holder.kill());
    drop(holder.wait());
    Err(Fault::new(
        "cannot make a network namespace for the outside world",
        "`unshare --net cat` did not run",
        "run as root, in a container with CAP_SYS_ADMIN",
    ))
}

fn ip(args: &[&str]) -> Done {
    run::capture(run::command("ip").args(args)).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_link_name_fits_whatever_the_pid() {
        assert!(link_name(4_194_304).len() <= 15);
    }
}
