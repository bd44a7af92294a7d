//! The machine's disk, kernel and initramfs, made from the folder. Nothing is mounted and nothing needs a loop device.
//!
//! Debian's own initramfs looks for more than this machine has; ours loads the modules of its two disks and enters.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::root::Root;
use super::stamp::{self, Stamp};
use super::{Provided, Times, inside, space};
use crate::demo::Interrupts;
use crate::fault::{Done, Fault};
use crate::guest::Archive;
use crate::{run, say};

pub(super) const STAMP: &str = "image.json";
/// Raised when the recipe changes in a way that its texts do not show.
const RECIPE: &str = "1";
const FIRST: &str = include_str!("files/first.sh");
/// What the root's disk and the run's disk need.
const MODULES: [&str; 2] = ["ext4", "virtio_blk"];
const DISK_SIZE: &str = "8G";
const SPACE_BYTES: u64 = 4 * space::GIB;
const MKFS_WITHIN: Duration = Duration::from_secs(600);
const DIRECTORIES: [&str; 4] = ["dev", "new", "proc", "modules"];

/// What the machine boots from; read only.
pub(super) struct Image {
    pub(super) disk: PathBuf,
    pub(super) kernel: PathBuf,
    pub(super) initrd: PathBuf,
}

impl Image {
    fn below(dir: &Path) -> Self {
        let at = |name: &str| dir.join(name);
        Self {
            disk: at("image/disk.ext4"),
            kernel: at("image/vmlinuz"),
            initrd: at("image/initrd.cpio"),
        }
    }
}

/// Gives the image; makes it where it is absent, damaged, or older than its root.
pub(super) fn ensure(dir: &Path, root: &Root, interrupts: &Interrupts, times: &mut Times) -> Provided<Image> {
    say::title("image: the machine's disk, kernel and initramfs");
    let since = Instant::now();
    // Another root, another image: the stamp of the root tells when it was made.
    let made_from = serde_json::to_string(&root.stamp.files).unwrap_or_default();
    let key = stamp::key(
        [RECIPE, FIRST, DISK_SIZE, &root.stamp.key, &made_from]
            .into_iter()
            .chain(MODULES),
    );
    let how = match Stamp::valid(dir, STAMP, &key) {
        Ok(_) => "was there",
        Err(why) => {
            say::line(&format!("   made anew: {why}"));
            space::check(dir, SPACE_BYTES, "the machine's disk")?;
            stamp::remove(&dir.join(STAMP))?;
            make(dir, root, &key, interrupts)?;
            "made"
        }
    };
    let image = Image::below(dir);
    let bytes = std::fs::metadata(&image.disk).map_or(0, |meta| {
        use std::os::unix::fs::MetadataExt as _;
        const BLOCK_BYTES: u64 = 512;
        meta.blocks() * BLOCK_BYTES
    });
    times.note("image", format!("{how}: {} MiB on disk", bytes >> 20), since);
    Ok(image)
}

fn make(dir: &Path, root: &Root, key: &str, interrupts: &Interrupts) -> Done {
    let image = Image::below(dir);
    let place = dir.join("image");
    inside::remove(&place)?;
    std::fs::create_dir_all(&place).map_err(|error| Fault::file("create", &place, &error))?;
    let release = root.stamp.fact("kernel");
    let kernel = root.dir.join(format!("boot/vmlinuz-{release}"));
    std::fs::copy(&kernel, &image.kernel).map_err(|error| Fault::file("copy", &kernel, &error))?;
    std::fs::write(&image.initrd, initramfs(&root.dir, release)?)
        .map_err(|error| Fault::file("write", &image.initrd, &error))?;
    let mut mkfs = run::command("mkfs.ext4");
    // No journal: what the machine writes goes to an overlay that nobody reads again.
    mkfs.args(["-q", "-F", "-m", "0", "-O", "^has_journal", "-d"])
        .arg(&root.dir)
        .arg(&image.disk)
        .arg(DISK_SIZE);
    inside::logged(&mut mkfs, &dir.join("log/mkfs.log"), MKFS_WITHIN, interrupts)?;
    let mut stamp = Stamp::new(key);
    for file in ["image/disk.ext4", "image/vmlinuz", "image/initrd.cpio"] {
        stamp.remember(dir, file)?;
    }
    stamp.write(dir, STAMP)
}

/// busybox, the modules in load order, and the first script.
fn initramfs(root: &Path, release: &str) -> Done<Vec<u8>> {
    let mut archive = Archive::default();
    for path in DIRECTORIES {
        archive.directory(path);
    }
    archive.character("dev/console", 5, 1);
    archive.character("dev/null", 1, 3);
    let read = |path: &Path| std::fs::read(path).map_err(|error| Fault::file("read", path, &error));
    archive.file("bin/busybox", 0o755, read(&root.join("usr/bin/busybox"))?);
    archive.file("init", 0o755, FIRST);
    let mut order = String::new();
    for module in modules(root, release)? {
        let mut unpack = inside::program(root, "sh");
        unpack.args(["-ec", UNPACK, "unpack", &module]);
        let output = unpack
            .output()
            .map_err(|error| run::not_started(&unpack, &error))?;
        if !output.status.success() || output.stdout.is_empty() {
            return Err(Fault::new(
                format!("the module {module} cannot be unpacked"),
                String::from_utf8_lossy(&output.stderr).into_owned(),
                "see which compression the kernel's package uses now, and teach image.rs",
            ));
        }
        let name = module_name(&module);
        archive.file(&format!("modules/{name}.ko"), 0o644, output.stdout);
        order.push_str(&format!("{name}.ko\n"));
    }
    archive.file("modules/order", 0o644, order);
    Ok(archive.bytes())
}

const UNPACK: &str = r#"case "$1" in *.xz) xz -dc "$1" ;; *.zst) zstd -dcq "$1" ;; *) cat "$1" ;; esac"#;

/// Paths inside the folder of all that must be loaded, each before what needs it.
fn modules(root: &Path, release: &str) -> Done<Vec<String>> {
    let mut modprobe = inside::program(root, "modprobe");
    modprobe
        .args(["--set-version", release, "--show-depends", "--all"])
        .args(MODULES);
    Ok(load_order(&run::capture(&mut modprobe)?))
}

/// Reads `modprobe --show-depends`: `insmod PATH OPTIONS`, or `builtin NAME`.
fn load_order(text: &str) -> Vec<String> {
    let mut order: Vec<String> = Vec::new();
    for path in text.lines().filter_map(|line| line.strip_prefix("insmod ")) {
        let path = path.split_whitespace().next().unwrap_or_default().to_owned();
        if !order.contains(&path) {
            order.push(path);
        }
    }
    order
}

fn module_name(path: &str) -> &str {
    let file = path.rsplit('/').next().unwrap_or(path);
    file.split(".ko").next().unwrap_or(file)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modules_load_in_the_order_of_modprobe_and_once() {
        let text = "insmod /lib/modules/7/a/crc16.ko.xz \nbuiltin virtio_pci\ninsmod /lib/modules/7/b/ext4.ko.xz x=1\n\
                    insmod /lib/modules/7/a/crc16.ko.xz \n";
        assert_eq!(
            load_order(text),
            ["/lib/modules/7/a/crc16.ko.xz", "/lib/modules/7/b/ext4.ko.xz"]
        );
        assert_eq!(module_name("/lib/modules/7/a/crc16.ko.xz"), "crc16");
    }
}
