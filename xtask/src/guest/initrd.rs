//! The guest's root: busybox, a handful of modules and the scripts in `files/`, packed as an initramfs.
//!
//! It is left uncompressed: QEMU copies it by DMA, and an emulated CPU pays for every byte it has to inflate.

use std::path::Path;

use super::cpio::Archive;
use super::modules::{EARLY, LATE, Modules};
use crate::fault::{Done, Fault};
use crate::run;

/// The scripts: name in `/etc`, mode, text. Part of the cache key.
pub(super) const SCRIPTS: [(&str, u32, &str); 6] = [
    ("inittab", 0o644, include_str!("files/inittab")),
    ("rc.start", 0o755, include_str!("files/rc.start")),
    ("rc.stop", 0o755, include_str!("files/rc.stop")),
    ("rc.off", 0o755, include_str!("files/rc.off")),
    ("rc.button", 0o755, include_str!("files/rc.button")),
    ("udhcpc.script", 0o755, include_str!("files/udhcpc.script")),
];

/// Applets that are called by a path in `/sbin`.
const SBIN: [&str; 4] = ["init", "poweroff", "reboot", "halt"];
const DIRECTORIES: [&str; 7] = ["dev", "proc", "sys", "run", "tmp", "root", "www"];

/// Packs the initramfs from the unpacked packages in `root` for the kernel `release`.
pub(super) fn build(root: &Path, release: &str) -> Done<Vec<u8>> {
    let mut archive = Archive::default();
    for path in DIRECTORIES {
        archive.directory(path);
    }
    archive.character("dev/console", 5, 1);
    archive.character("dev/null", 1, 3);
    archive.file("etc/hostname", 0o644, *b"vbm-guest\n");
    for (name, mode, text) in SCRIPTS {
        archive.file(&format!("etc/{name}"), mode, text);
    }
    add_busybox(&mut archive, root)?;
    add_modules(
        &mut archive,
        &Modules::open(&root.join("lib/modules").join(release))?,
    )?;
    Ok(archive.bytes())
}

fn add_busybox(archive: &mut Archive, root: &Path) -> Done {
    // Before the merge of /usr the package used /bin, after it /usr/bin.
    let places = ["bin/busybox", "usr/bin/busybox"].map(|place| root.join(place));
    let path = places.iter().find(|path| path.is_file()).unwrap_or(&places[0]);
    let binary = std::fs::read(path).map_err(|error| Fault::file("read", path, &error))?;
    for applet in run::capture(std::process::Command::new(path).arg("--list"))?.lines() {
        archive.symlink(&format!("bin/{applet}"), "busybox");
    }
    for applet in SBIN {
        archive.symlink(&format!("sbin/{applet}"), "../bin/busybox");
    }
    archive.symlink("init", "bin/busybox");
    archive.file("bin/busybox", 0o755, binary);
    Ok(())
}

fn add_modules(archive: &mut Archive, modules: &Modules) -> Done {
    let early = modules.load_order(&EARLY, &[])?;
    let late = modules.load_order(&LATE, &early)?;
    for name in early.iter().chain(&late) {
        archive.file(&format!("lib/modules/{name}.ko"), 0o644, modules.read(name)?);
    }
    let list = |names: &[String]| {
        names
            .iter()
            .map(|name| format!("{name}.ko\n"))
            .collect::<String>()
    };
    archive.file("lib/modules/early", 0o644, list(&early));
    archive.file("lib/modules/late", 0o644, list(&late));
    Ok(())
}
