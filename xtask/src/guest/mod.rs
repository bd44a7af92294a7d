//! The tiny guest: a real operating system of a few MB for tests, demo and benches, made from Debian packages only.
//!
//! ```text
//!  apt-cache show ----> versions + scripts + RECIPE ----> key ---- same as guest.json? ----> done
//!                                                          |
//!  apt-get download, dpkg-deb -x   (nothing is installed)  v
//!       cloud kernel  ------------------------------->  vmlinuz
//!       busybox, modules, files/*  --- cpio.rs ------>  initrd.cpio      direct boot: -kernel, -initrd
//!       syslinux, FAT16, MBR       --- disk.rs ------>  guest.qcow2      BIOS boot
//!                                                       guest.json       manifest, written last
//! ```
//!
//! The guest asks DHCP on every `eth*` (address, MTU, routes, host name, resolver), serves a page on port 80, has a
//! root shell on the serial line and on the screen, and goes down cleanly on the ACPI power button.

mod cpio;
mod disk;
mod initrd;
mod manifest;
mod modules;
mod packages;

use std::collections::BTreeMap;
use std::fs::{File, create_dir_all, remove_dir_all, rename};
use std::path::{Path, PathBuf};

pub(crate) use cpio::Archive;
pub(crate) use manifest::Manifest;
use packages::Packages;

use crate::fault::{Done, Fault};
use crate::setup::{self, Need};
use crate::{place, say};

/// Raised when the recipe changes in a way that scripts and package versions do not show.
const RECIPE: &str = "2";
/// Tuned for an emulated CPU: no calibration loops, no mitigations, no self tests, no relocation, little console.
const CMDLINE: &str = "console=tty0 console=ttyS0 quiet loglevel=3 edd=off no_timer_check tsc=reliable \
                       random.trust_cpu=on mitigations=off nokaslr cryptomgr.notests";
const MEMORY_MIB_MIN: u32 = 96;
const READY: &str = "vbm-guest ready hostname={hostname} ip={ip}";
const FILES: [&str; 3] = ["vmlinuz", "initrd.cpio", "guest.qcow2"];

/// A guest that is there and whole.
#[derive(Debug, Clone)]
pub(crate) struct Guest {
    pub(crate) dir: PathBuf,
    pub(crate) manifest: Manifest,
    /// Whether this call had to make it.
    pub(crate) made: bool,
}

/// Gives the guest in `out` (default `target/guest`); makes it when it is absent, damaged or out of date.
pub(crate) fn ensure(out: Option<&Path>) -> Done<Guest> {
    let dir = out.map_or_else(place::guest, Path::to_path_buf);
    setup::ensure(&[Need::QemuImg])?;
    create_dir_all(&dir).map_err(|error| Fault::file("create", &dir, &error))?;
    let dir = dir
        .canonicalize()
        .map_err(|error| Fault::file("open", &dir, &error))?;
    let work = place::target().join("guest-work");
    let _lock = lock(&work)?;
    let packages = match packages::resolve() {
        Ok(packages) => packages,
        Err(fault) => return offline(dir).ok_or(fault),
    };
    let key = cache_key(&packages.versions);
    if let Some(manifest) = Manifest::cached(&dir, &key) {
        return Ok(Guest {
            dir,
            manifest,
            made: false,
        });
    }
    let spinner = say::spinner("making the guest from Debian packages");
    let made = build(&packages, &key, &work, &dir);
    spinner.finish_and_clear();
    Ok(Guest {
        dir,
        manifest: made?,
        made: true,
    })
}

/// One build at a time: the second caller waits and then finds the first one's guest.
fn lock(work: &Path) -> Done<File> {
    create_dir_all(work).map_err(|error| Fault::file("create", work, &error))?;
    let path = work.join("lock");
    let locked = File::create(&path).and_then(|file| file.lock().map(|()| file));
    locked.map_err(|error| Fault::file("lock", &path, &error))
}

/// Without package lists: a whole guest made by this recipe, from whatever versions it names, is good enough.
fn offline(dir: PathBuf) -> Option<Guest> {
    let manifest = Manifest::read(&dir)?;
    let manifest = Manifest::cached(&dir, &cache_key(&manifest.packages))?;
    say::note("apt cannot say which packages are current; using the guest that is there");
    Some(Guest {
        dir,
        manifest,
        made: false,
    })
}

fn cache_key(versions: &BTreeMap<String, String>) -> String {
    let versions = versions
        .iter()
        .flat_map(|(name, version)| [name.as_str(), version.as_str()]);
    let scripts = initrd::SCRIPTS.iter().flat_map(|(name, _, text)| [*name, *text]);
    manifest::key([RECIPE, CMDLINE].into_iter().chain(versions).chain(scripts))
}

/// Makes all files in a scratch directory, then moves them over; the manifest comes last.
fn build(packages: &Packages, key: &str, work: &Path, dir: &Path) -> Done<Manifest> {
    let root = work.join("root");
    let scratch = work.join("new");
    for path in [&root, &scratch] {
        remove_dir_all(path)
            .or_else(absent_is_fine)
            .map_err(|error| Fault::file("remove", path, &error))?;
        create_dir_all(path).map_err(|error| Fault::file("create", path, &error))?;
    }
    packages.unpack(&work.join("debs"), &root)?;
    let manifest = make_files(packages, key, &root, &scratch)?;
    remove_dir_all(&root).map_err(|error| Fault::file("remove", &root, &error))?;
    install(&scratch, dir)?;
    manifest.write(dir)?;
    Ok(manifest)
}

fn make_files(packages: &Packages, key: &str, root: &Path, scratch: &Path) -> Done<Manifest> {
    let release = packages
        .kernel
        .strip_prefix("linux-image-")
        .unwrap_or(&packages.kernel);
    let kernel = root.join(format!("boot/vmlinuz-{release}"));
    std::fs::copy(&kernel, scratch.join(FILES[0])).map_err(|error| Fault::file("copy", &kernel, &error))?;
    let image = scratch.join(FILES[1]);
    std::fs::write(&image, initrd::build(root, release)?)
        .map_err(|error| Fault::file("write", &image, &error))?;
    disk::build(root, scratch, CMDLINE)?;
    let mut sha256 = BTreeMap::new();
    for name in FILES {
        sha256.insert(name.to_owned(), manifest::hash_file(&scratch.join(name))?);
    }
    Ok(Manifest {
        format: manifest::FORMAT,
        key: key.to_owned(),
        kernel: FILES[0].to_owned(),
        initrd: FILES[1].to_owned(),
        disk: FILES[2].to_owned(),
        cmdline: CMDLINE.to_owned(),
        memory_mib_min: MEMORY_MIB_MIN,
        ready: READY.to_owned(),
        sha256,
        packages: packages.versions.clone(),
    })
}

/// Moves the files over; `--out` may be on another file system, so a copy beside the goal comes first.
fn install(scratch: &Path, dir: &Path) -> Done {
    for name in FILES {
        let (from, beside, to) = (
            scratch.join(name),
            dir.join(format!(".{name}.new")),
            dir.join(name),
        );
        let moved = std::fs::copy(&from, &beside).and_then(|_| rename(&beside, &to));
        moved.map_err(|error| Fault::file("write", &to, &error))?;
    }
    remove_dir_all(scratch).map_err(|error| Fault::file("remove", scratch, &error))
}

fn absent_is_fine(error: std::io::Error) -> std::io::Result<()> {
    if error.kind() == std::io::ErrorKind::NotFound {
        Ok(())
    } else {
        Err(error)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Needs Debian's packages: from the work directory where the guest was made before, from the mirror otherwise.
    #[test]
    fn two_builds_give_the_same_bytes() {
        if std::env::var("VBM_LEAVE_OUT")
            .is_ok_and(|parts| parts.split(',').any(|part| part.trim() == "qemu"))
        {
            return;
        }
        let work = place::target().join("guest-work");
        let _lock = lock(&work).unwrap();
        let packages = packages::resolve().unwrap();
        let base = std::env::temp_dir().join(format!("vbm-xtask-guest-{}", std::process::id()));
        let sums = ["one", "two"].map(|name| {
            let (root, scratch) = (base.join(name).join("root"), base.join(name).join("new"));
            create_dir_all(&root).unwrap();
            create_dir_all(&scratch).unwrap();
            packages.unpack(&work.join("debs"), &root).unwrap();
            make_files(&packages, "key", &root, &scratch).unwrap().sha256
        });
        remove_dir_all(&base).unwrap();
        assert_eq!(sums[0], sums[1]);
    }
}
