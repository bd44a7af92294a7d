//! Debian sid with VirtualBox and a kernel that fits its modules, in a folder.
//!
//! ```text
//!  debootstrap --variant=minbase -> root.new -> sources + apt settings -> apt-get install (DKMS builds vboxdrv)
//!      -> what takes room and is not needed goes -> checked -> renamed to `root` -> root.json
//! ```

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::archive::{Archive, SUITE};
use super::stamp::{self, Stamp};
use super::{Provided, Times, Unable, inside, manage, space};
use crate::demo::Interrupts;
use crate::fault::{Done, Fault};
use crate::say;

pub(super) const STAMP: &str = "root.json";
/// Raised when the recipe changes in a way that its texts do not show.
const RECIPE: &str = "1";
/// What VirtualBox, its modules and our agent need. Recommended packages are left out: they bring a desktop.
const PACKAGES: [&str; 19] = [
    "virtualbox",
    "linux-image-amd64",
    "linux-headers-amd64",
    "dkms",
    "gcc",
    "make",
    "kmod",
    "busybox-static",
    "xz-utils",
    "iproute2",
    "iputils-ping",
    "nftables",
    "iptables",
    "ipset",
    "conntrack",
    "ethtool",
    "procps",
    "qemu-utils",
    "curl",
];
/// The files that tell whether the folder is whole.
const TELLING: [&str; 2] = ["root/usr/bin/VBoxManage", "root/var/lib/dpkg/status"];
const KEYRING_INSIDE: &str = "/etc/apt/keyrings/vbm-lab.gpg";
const NO_DAEMONS: &str = "#!/bin/sh\nexit 101\n";
const SPACE_BYTES: u64 = 4 * space::GIB;
const DEBOOTSTRAP_WITHIN: Duration = Duration::from_secs(600);
const UPDATE_WITHIN: Duration = Duration::from_secs(180);
const INSTALL_WITHIN: Duration = Duration::from_secs(1200);
/// What nobody reads in there.
const NOT_NEEDED: &str = "apt-get clean && rm -rf /var/lib/apt/lists /usr/share/doc /usr/share/man /usr/share/info \
                          /usr/share/locale /boot/initrd.img-* && mkdir -p /lab";

/// A folder that is there and whole.
pub(super) struct Root {
    pub(super) dir: PathBuf,
    pub(super) stamp: Stamp,
}

/// Gives the folder and the wrapper beside it; makes them where they are absent, damaged or out of date.
pub(super) fn ensure(dir: &Path, interrupts: &Interrupts, times: &mut Times) -> Provided<Root> {
    let key = key();
    let root = dir.join("root");
    let since = Instant::now();
    say::title("root: Debian with VirtualBox in a folder");
    let (stamp, how) = match Stamp::valid(dir, STAMP, &key) {
        Ok(stamp) => (stamp, "was there"),
        Err(why) => {
            say::line(&format!("   made anew: {why}"));
            space::check(dir, SPACE_BYTES, "Debian with VirtualBox")?;
            stamp::remove(&dir.join(STAMP))?;
            (make(dir, &key, interrupts, times)?, "made")
        }
    };
    manage::write(dir, &root)?;
    let version = manage::version(dir)?;
    times.note(
        "root",
        format!("{how}: VirtualBox {version}, kernel {}", stamp.fact("kernel")),
        since,
    );
    Ok(Root { dir: root, stamp })
}

fn key() -> String {
    stamp::key([RECIPE, SUITE, NOT_NEEDED].into_iter().chain(PACKAGES))
}

fn make(dir: &Path, key: &str, interrupts: &Interrupts, times: &mut Times) -> Provided<Stamp> {
    let archive = Archive::of_this_machine()?;
    let (new, root, logs) = (dir.join("root.new"), dir.join("root"), dir.join("log"));
    std::fs::create_dir_all(&logs).map_err(|error| Fault::file("create", &logs, &error))?;
    for old in [&new, &root] {
        inside::remove(old)?;
    }
    // What a signal ended says nothing about the archive.
    let not_provided = |fault: Fault| {
        if interrupts.came() {
            Unable::Failed(fault)
        } else {
            Unable::NotProvided(fault)
        }
    };
    let since = Instant::now();
    debootstrap(&archive, &new, &logs.join("debootstrap.log"), interrupts).map_err(not_provided)?;
    times.note("  debootstrap", format!("{SUITE}, minbase"), since);

    let since = Instant::now();
    configure(&archive, &new)?;
    let mut update = inside::program(&new, "apt-get");
    update.args(["-q", "update"]);
    inside::logged(&mut update, &logs.join("update.log"), UPDATE_WITHIN, interrupts).map_err(not_provided)?;
    let mut install = inside::program(&new, "apt-get");
    install
        .args(["-q", "-y", "--no-install-recommends", "install"])
        .args(PACKAGES);
    inside::logged(
        &mut install,
        &logs.join("install.log"),
        INSTALL_WITHIN,
        interrupts,
    )
    .map_err(not_provided)?;
    let mut drop = inside::program(&new, "sh");
    drop.args(["-ec", NOT_NEEDED]);
    inside::logged(&mut drop, &logs.join("drop.log"), UPDATE_WITHIN, interrupts)?;
    times.note(
        "  install",
        format!("{} packages and what they need", PACKAGES.len()),
        since,
    );

    let mut stamp = Stamp::new(key);
    let kernel = kernel_with_modules(&new).map_err(not_provided)?;
    stamp.facts.insert("kernel".to_owned(), kernel);
    std::fs::rename(&new, &root).map_err(|error| Fault::file("rename", &new, &error))?;
    for file in TELLING {
        stamp.remember(dir, file)?;
    }
    stamp.write(dir, STAMP)?;
    Ok(stamp)
}

fn debootstrap(archive: &Archive, new: &Path, log: &Path, interrupts: &Interrupts) -> Done {
    let mut command = inside::apart("debootstrap");
    command
        .arg("--variant=minbase")
        .arg(format!("--keyring={}", archive.keyring.display()));
    if archive.mirror.starts_with("https:") {
        command.arg("--include=ca-certificates");
    }
    command.arg(SUITE).arg(new).arg(&archive.mirror);
    command.envs(archive.proxy()?.map(|proxy| ("http_proxy", proxy)));
    inside::logged(&mut command, log, DEBOOTSTRAP_WITHIN, interrupts)
}

fn configure(archive: &Archive, new: &Path) -> Done {
    let write = |path: &str, text: &[u8]| {
        let path = new.join(path.trim_start_matches('/'));
        let made = path.parent().map_or(Ok(()), std::fs::create_dir_all);
        made.and_then(|()| std::fs::write(&path, text))
            .map_err(|error| Fault::file("write", &path, &error))
    };
    let key =
        std::fs::read(&archive.keyring).map_err(|error| Fault::file("read", &archive.keyring, &error))?;
    write(KEYRING_INSIDE, &key)?;
    write(
        "/etc/apt/sources.list.d/lab.sources",
        archive.sources(Path::new(KEYRING_INSIDE)).as_bytes(),
    )?;
    write("/etc/apt/sources.list", b"")?;
    write("/etc/apt/apt.conf.d/90lab", archive.settings.as_bytes())?;
    // Packages configure themselves in there; none may start a daemon on this machine.
    write("/usr/sbin/policy-rc.d", NO_DAEMONS.as_bytes())?;
    let policy = new.join("usr/sbin/policy-rc.d");
    use std::os::unix::fs::PermissionsExt as _;
    std::fs::set_permissions(&policy, std::fs::Permissions::from_mode(0o755))
        .map_err(|error| Fault::file("make executable", &policy, &error))
}

/// The kernel's release, provided that DKMS has built VirtualBox's modules for it.
fn kernel_with_modules(root: &Path) -> Done<String> {
    let modules = root.join("lib/modules");
    let entries = std::fs::read_dir(&modules).map_err(|error| Fault::file("list", &modules, &error))?;
    let mut kernels: Vec<String> = entries
        .flatten()
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .collect();
    kernels.sort();
    let has_driver = |kernel: &&String| {
        ["ko", "ko.xz", "ko.zst"].iter().any(|end| {
            modules
                .join(kernel)
                .join(format!("updates/dkms/vboxdrv.{end}"))
                .is_file()
        })
    };
    kernels.iter().rev().find(has_driver).cloned().ok_or_else(|| {
        Fault::new(
            "VirtualBox's kernel modules were not built",
            format!("DKMS made no vboxdrv for any of the kernels {}", kernels.join(", ")),
            "see log/install.log beside the folder; sid's VirtualBox may lag behind sid's kernel for some days",
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kernel_counts_only_with_virtualbox_modules() {
        let root = std::env::temp_dir().join(format!("vbm-xtask-root-{}", std::process::id()));
        std::fs::create_dir_all(root.join("lib/modules/7.2/updates/dkms")).unwrap();
        std::fs::create_dir_all(root.join("lib/modules/7.3")).unwrap();
        assert!(kernel_with_modules(&root).unwrap_err().why.contains("7.2, 7.3"));
        std::fs::write(root.join("lib/modules/7.2/updates/dkms/vboxdrv.ko.xz"), "x").unwrap();
        assert_eq!(kernel_with_modules(&root).unwrap(), "7.2");
        std::fs::remove_dir_all(&root).unwrap();
    }
}
