//! Whether VirtualBox can run VMs here, and if not, what to do about it. What is decided is decided purely.

use super::{parse, runner};
use crate::Error;
use std::path::Path;
use vbm_core::{Accelerator, ErrorKind};

/// The oldest version whose options this driver speaks.
const OLDEST: (u32, u32) = (7, 0);
/// The device of VirtualBox's kernel driver.
const DEVICE: &str = "dev/vboxdrv";

/// From this kernel on KVM lends the processor's extensions to others; from this version on VirtualBox asks it for them. Seen
/// working with kvm_amd loaded: Linux 7.2 and VirtualBox 7.2.22.
const SHARING_KERNEL: (u32, u32) = (6, 16);
const SHARING_VERSION: (u32, u32) = (7, 2);

fn numbers(version: &str) -> Option<(u32, u32)> {
    parse::version(version).map(|(_, numbers)| numbers)
}

/// What was seen of the host.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Facts {
    /// `/dev/vboxdrv` is there.
    pub(super) driver: bool,
    /// The flags of the first processor.
    pub(super) cpu_flags: String,
    /// A KVM module is loaded, and the kernel switches virtualisation on as soon as it is.
    pub(super) kvm_holds: Option<String>,
    /// The first two numbers of the kernel's version.
    pub(super) kernel: (u32, u32),
    /// The VNC extension pack can be used.
    pub(super) vnc: bool,
}

impl Facts {
    /// Reads what the host says. `root` is `/` but in tests.
    pub(super) fn read(root: &Path, vnc: bool) -> Self {
        let text = |path: &str| std::fs::read_to_string(root.join(path)).unwrap_or_default();
        let module = ["kvm_intel", "kvm_amd"]
            .into_iter()
            .find(|module| root.join("sys/module").join(module).exists());
        // Linux 6.12 brought `enable_virt_at_load`, switched on: KVM then holds the processor's extensions while it is loaded.
        let at_load = text("sys/module/kvm/parameters/enable_virt_at_load");
        Self {
            driver: root.join(DEVICE).exists(),
            cpu_flags: text("proc/cpuinfo")
                .lines()
                .find_map(|line| line.strip_prefix("flags"))
                .unwrap_or_default()
                .to_owned(),
            kernel: numbers(&text("proc/sys/kernel/osrelease")).unwrap_or_default(),
            kvm_holds: module.filter(|_| at_load.trim() == "Y").map(str::to_owned),
            vnc,
        }
    }

    fn has(&self, flag: &str) -> bool {
        self.cpu_flags.split_ascii_whitespace().any(|word| word == flag)
    }

    /// How guests are run.
    pub(super) fn accelerator(&self) -> Option<Accelerator> {
        let name = match (self.has("vmx"), self.has("svm")) {
            (true, _) => "vt-x",
            (_, true) => "amd-v",
            _ => return None,
        };
        let screens = if self.vnc {
            ""
        } else {
            "; screens cannot be shown live, for its VNC extension pack is missing"
        };
        Some(Accelerator {
            name: name.into(),
            reason: format!("VirtualBox runs guests by the processor's own means{screens}"),
        })
    }

    /// Why no VM can be started here by this version of VirtualBox.
    pub(super) fn problem(&self, version: &str) -> Option<vbm_core::Error> {
        let no = |kind, why: String, fix: String| {
            Some(vbm_core::Error::new(
                kind,
                "VirtualBox cannot start VMs on this host",
                why,
                fix,
            ))
        };
        if !self.driver {
            return no(
                ErrorKind::MissingDependency,
                "its kernel driver is not loaded: there is no /dev/vboxdrv".into(),
                "install it with `apt-get install --no-install-recommends virtualbox-dkms linux-headers-$(uname -r)`, then `modprobe vboxdrv`".into(),
            );
        }
        if self.accelerator().is_none() {
            return no(
                ErrorKind::Unsupported,
                "the processor offers neither VT-x nor AMD-V, without which VirtualBox runs nothing".into(),
                "switch virtualisation on in the firmware, or in the hypervisor that this host runs in; or use the QEMU driver".into(),
            );
        }
        let module = self.kvm_holds.as_deref()?;
        let version = numbers(version).unwrap_or_default();
        if self.kernel >= SHARING_KERNEL && version >= SHARING_VERSION {
            return None;
        }
        no(
            ErrorKind::Conflict,
            format!(
                "the module {module} is loaded and holds the processor's virtualisation, which only one hypervisor can have"
            ),
            format!(
                "unload it with `modprobe -r {module}`, or boot the kernel with kvm.enable_virt_at_load=0"
            ),
        )
    }
}

/// The version of VBoxManage, if it is one that can be used.
pub(super) fn version(said: &str) -> Result<String, Error> {
    let unsupported = |what: String| {
        Error::Refused(vbm_core::Error::new(
            ErrorKind::Unsupported,
            "this VirtualBox cannot be used",
            what,
            format!(
                "install version {}.{} or newer: Debian's package is {}",
                OLDEST.0,
                OLDEST.1,
                runner::DEBIAN_PACKAGE
            ),
        ))
    };
    match parse::version(said) {
        Some((text, numbers)) if numbers >= OLDEST => Ok(text),
        Some((text, _)) => Err(unsupported(format!("its version is {text}"))),
        None => Err(unsupported("it does not tell its version".into())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    fn able() -> Facts {
        Facts {
            driver: true,
            cpu_flags: ": fpu svm npt".into(),
            kvm_holds: None,
            kernel: (6, 12),
            vnc: true,
        }
    }

    #[test]
    fn each_no_has_its_reason_and_what_to_do() {
        assert_eq!(able().problem("7.2.22"), None);
        for (facts, why, fix) in [
            (
                Facts {
                    driver: false,
                    ..able()
                },
                "vboxdrv",
                "modprobe vboxdrv",
            ),
            (
                Facts {
                    cpu_flags: ": fpu svm_lock".into(),
                    ..able()
                },
                "VT-x",
                "firmware",
            ),
            (
                Facts {
                    kvm_holds: Some("kvm_amd".into()),
                    ..able()
                },
                "kvm_amd",
                "modprobe -r kvm_amd",
            ),
        ] {
            let problem = facts.problem("7.2.22").unwrap();
            assert!(
                problem.why().contains(why) && problem.fix().contains(fix),
                "{problem}"
            );
        }
    }

    #[test]
    fn a_missing_extension_pack_is_no_problem_but_is_told() {
        let facts = Facts { vnc: false, ..able() };
        assert_eq!(facts.problem("7.2.22"), None);
        assert!(facts.accelerator().unwrap().reason.contains("VNC extension pack"));
    }

    #[test]
    fn the_host_is_read_as_it_says() {
        let root = tempfile::tempdir().unwrap();
        let put = |path: &str, text: &str| {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        assert_eq!(Facts::read(root.path(), false), Facts::default());
        put("dev/vboxdrv", "");
        put("proc/cpuinfo", "processor : 0\nflags\t\t: fpu vmx ept\n");
        put("sys/module/kvm_intel/refcnt", "0\n");
        let problem = |version| Facts::read(root.path(), true).problem(version);
        assert_eq!(problem("7.2.22"), None, "a kernel before 6.12 shares");
        put("sys/module/kvm/parameters/enable_virt_at_load", "Y\n");
        put("proc/sys/kernel/osrelease", "6.12.9-amd64\n");
        assert!(problem("7.2.22").is_some(), "KVM holds it and does not lend it");
        put("proc/sys/kernel/osrelease", "7.2.13+deb14-amd64\n");
        assert_eq!(problem("7.2.22"), None, "KVM lends it");
        assert!(problem("7.0.26").is_some(), "this VirtualBox does not ask for it");
        assert_eq!(Facts::read(root.path(), true).accelerator().unwrap().name, "vt-x");
    }

    #[test]
    fn an_old_version_is_refused_with_the_one_that_works() {
        assert_eq!(version("7.2.22_Debianr175245\n").unwrap(), "7.2.22_Debianr175245");
        for said in ["6.1.50r161033\n", "\n"] {
            assert!(
                vbm_core::Error::from(version(said).unwrap_err())
                    .fix()
                    .contains("7.0")
            );
        }
    }
}
