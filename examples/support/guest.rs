//! A guest for an example that has no hypervisor: a namespace whose `eth0` is carried to the tap of a port.
//!
//! ```text
//!   network's bridge --tap-- fd <== two threads copy frames ==> fd --eth0-- namespace with busybox udhcpc
//! ```

use nix::{libc, sched::CloneFlags};
use std::{
    fs::{File, OpenOptions},
    io::{self, Read, Write},
    os::fd::{AsRawFd, OwnedFd},
    process::Command,
};
use vbm_core::Mac;

/// The largest frame with its virtio header, in bytes.
const FRAME_MAX_BYTES: usize = 65_600;

/// A guest; gone when dropped.
pub(crate) struct Guest {
    name: String,
}

impl Guest {
    /// Makes the namespace and connects its `eth0` with the tap behind `fd`.
    pub(crate) fn new(name: &str, mac: Mac, fd: OwnedFd, vnet_hdr: bool) -> io::Result<Self> {
        ip(&["netns", "add", name])?;
        let guest = Self {
            name: name.to_owned(),
        };
        let path = format!("/run/netns/{name}");
        // A thread of its own enters the namespace and ends: no other code ever runs in it.
        let opened = std::thread::spawn(move || open_tap_in(&path, vnet_hdr)).join();
        let theirs = opened.map_err(|_| io::Error::other("the thread that opens the tap failed"))??;
        ip(&[
            "-n",
            name,
            "link",
            "set",
            "eth0",
            "address",
            &mac.to_string(),
            "up",
        ])?;
        let ours = File::from(fd);
        copy(ours.try_clone()?, theirs.try_clone()?);
        copy(theirs, ours);
        Ok(guest)
    }

    /// Runs a program in the guest and gives what it said on both outputs.
    pub(crate) fn run(&self, program: &[&str]) -> io::Result<String> {
        let output = Command::new("ip")
            .args(["netns", "exec", &self.name])
            .args(program)
            .output()?;
        let mut said = String::from_utf8_lossy(&output.stdout).into_owned();
        said.push_str(&String::from_utf8_lossy(&output.stderr));
        if output.status.success() {
            Ok(said)
        } else {
            Err(io::Error::other(said))
        }
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        drop(ip(&["netns", "del", &self.name]));
    }
}

fn ip(args: &[&str]) -> io::Result<()> {
    let output = Command::new("ip").args(args).output()?;
    if output.status.success() {
        Ok(())
    } else {
        Err(io::Error::other(
            String::from_utf8_lossy(&output.stderr).into_owned(),
        ))
    }
}

/// Copies frames, one read or write each, until one side is gone.
fn copy(mut from: File, mut to: File) {
    std::thread::spawn(move || {
        let mut frame = vec![0; FRAME_MAX_BYTES];
        while let Ok(length) = from.read(&mut frame) {
            // A frame that does not fit is lost, as on a wire; a device that is gone ends the next read.
            drop(to.write(&frame[..length]));
        }
    });
}

#[expect(unsafe_code, reason = "TUNSETIFF is an ioctl that nix does not wrap")]
fn open_tap_in(namespace: &str, vnet_hdr: bool) -> io::Result<File> {
    nix::sched::setns(File::open(namespace)?, CloneFlags::CLONE_NEWNET)?;
    let tap = OpenOptions::new().read(true).write(true).open("/dev/net/tun")?;
    let flags = libc::IFF_TAP | libc::IFF_NO_PI | if vnet_hdr { libc::IFF_VNET_HDR } else { 0 };
    // SAFETY: all zeroes is a valid ifreq, a C struct of plain integers.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(b"eth0") {
        *to = *from as libc::c_char;
    }
    request.ifr_ifru.ifru_flags = i16::try_from(flags).map_err(io::Error::other)?;
    // SAFETY: the descriptor is open, and the kernel reads and writes one ifreq at the address given.
    let done = unsafe { libc::ioctl(tap.as_raw_fd(), libc::TUNSETIFF, &raw mut request) };
    if done < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(tap)
    }
}
