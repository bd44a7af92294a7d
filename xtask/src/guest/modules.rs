//! Which kernel modules the guest carries, and in which order they load.
//!
//! The package ships no `modules.dep` (its post-install script would make it), but every module names what it
//! depends on in its `.modinfo` section as `depends=a,b`. That is read here and sorted, dependencies first.
//!
//! Debian's cloud kernel has no `e1000`, no SATA and no DRM driver: network cards are virtio (which VirtualBox has
//! too), the screen is VGA text, and the root is the initramfs, so a boot disk needs no driver at all.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use crate::fault::{Done, Fault};

/// Needed before the network comes up.
pub(super) const EARLY: [&str; 2] = ["virtio_pci", "virtio_net"];
/// Loaded after the DHCP client started: power button, its input device, data disks of QEMU and of VirtualBox.
pub(super) const LATE: [&str; 5] = ["button", "evdev", "virtio_blk", "virtio_scsi", "sd_mod"];

/// The modules of one kernel package.
pub(super) struct Modules {
    files: BTreeMap<String, PathBuf>,
    builtin: Vec<String>,
}

impl Modules {
    /// Lists the modules below `lib/modules/<version>`.
    pub(super) fn open(dir: &Path) -> Done<Self> {
        let list = dir.join("modules.builtin");
        let text = std::fs::read_to_string(&list).map_err(|error| Fault::file("read", &list, &error))?;
        let mut files = BTreeMap::new();
        collect(dir, &mut files)?;
        Ok(Self {
            files,
            builtin: text.lines().map(|line| module_name(Path::new(line))).collect(),
        })
    }

    /// `wanted` with everything it needs, in load order, without what `loaded` holds or the kernel has built in.
    pub(super) fn load_order(&self, wanted: &[&str], loaded: &[String]) -> Done<Vec<String>> {
        let mut order = Vec::new();
        for name in wanted {
            self.visit(name, loaded, &mut order)?;
        }
        Ok(order)
    }

    fn visit(&self, name: &str, loaded: &[String], order: &mut Vec<String>) -> Done {
        let known = |list: &[String]| list.iter().any(|other| other == name);
        if known(loaded) || known(order) || known(&self.builtin) {
            return Ok(());
        }
        for needed in depends(&self.read(name)?) {
            self.visit(&needed, loaded, order)?;
        }
        order.push(name.to_owned());
        Ok(())
    }

    /// The module's bytes.
    pub(super) fn read(&self, name: &str) -> Done<Vec<u8>> {
        let path = self.files.get(name).ok_or_else(|| {
            Fault::new(
                format!("the kernel package has no module `{name}`"),
                "it is neither a file below lib/modules nor built in",
                "compare xtask/src/guest/modules.rs with the kernel's package; a module may have been renamed",
            )
        })?;
        std::fs::read(path).map_err(|error| Fault::file("read", path, &error))
    }
}

fn collect(dir: &Path, files: &mut BTreeMap<String, PathBuf>) -> Done {
    let fail = |error: std::io::Error| Fault::file("list", dir, &error);
    for entry in std::fs::read_dir(dir).map_err(fail)? {
        let path = entry.map_err(fail)?.path();
        if path.is_dir() {
            collect(&path, files)?;
        } else if path.extension().is_some_and(|end| end == "ko") {
            files.insert(module_name(&path), path);
        }
    }
    Ok(())
}

/// `kernel/drivers/char/hw_random/virtio-rng.ko` is the module `virtio_rng`.
fn module_name(path: &Path) -> String {
    path.file_stem()
        .map(|stem| stem.to_string_lossy().replace('-', "_"))
        .unwrap_or_default()
}

/// The names in the NUL-terminated `depends=` entry of `.modinfo`.
fn depends(module: &[u8]) -> Vec<String> {
    const KEY: &[u8] = b"\0depends=";
    let Some(at) = module.windows(KEY.len()).position(|window| window == KEY) else {
        return Vec::new();
    };
    let value = module.get(at + KEY.len()..).unwrap_or_default();
    let value = value.split(|byte| *byte == 0).next().unwrap_or_default();
    let names = String::from_utf8_lossy(value).replace('-', "_");
    names
        .split(',')
        .filter(|name| !name.is_empty())
        .map(str::to_owned)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dependencies_are_read_from_modinfo() {
        assert_eq!(
            depends(b"\x7fELF..\0license=GPL\0depends=virtio,virtio-ring\0retpoline=Y\0"),
            ["virtio", "virtio_ring"]
        );
        assert!(depends(b"\0depends=\0").is_empty());
        assert!(depends(b"no such thing").is_empty());
    }

    #[test]
    fn file_names_become_module_names() {
        assert_eq!(
            module_name(Path::new("kernel/drivers/char/hw_random/virtio-rng.ko")),
            "virtio_rng"
        );
    }

    #[test]
    fn load_order_puts_dependencies_first_and_leaves_out_what_is_there() {
        let dir = std::env::temp_dir().join(format!("vbm-xtask-modules-{}", std::process::id()));
        std::fs::create_dir_all(dir.join("kernel")).unwrap();
        std::fs::write(dir.join("modules.builtin"), "kernel/lib/crc.ko\n").unwrap();
        for (name, needs) in [("net", "bus,crc"), ("bus", "ring"), ("ring", ""), ("disk", "bus")] {
            std::fs::write(
                dir.join(format!("kernel/{name}.ko")),
                format!("\0depends={needs}\0"),
            )
            .unwrap();
        }
        let modules = Modules::open(&dir).unwrap();
        let early = modules.load_order(&["net"], &[]).unwrap();
        assert_eq!(early, ["ring", "bus", "net"]);
        assert_eq!(modules.load_order(&["disk"], &early).unwrap(), ["disk"]);
        assert!(modules.load_order(&["absent"], &[]).is_err());
        std::fs::remove_dir_all(&dir).unwrap();
    }
}
