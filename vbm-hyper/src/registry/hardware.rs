//! Who may use the processor's virtualisation: pure.
//!
//! KVM and VirtualBox cannot use it at the same time, but where KVM lends it (Linux 6.16 and VirtualBox 7.2 on). From Linux 6.12 on KVM
//! even holds it while its module is loaded, unless the kernel was booted with `kvm.enable_virt_at_load=0`. Guests that are
//! emulated do not matter.

use std::path::Path;
use vbm_core::{DriverKind, Error, ErrorKind, VmId};

/// From this kernel on KVM holds the processor's virtualisation while it is loaded.
const HOLDING_KERNEL: (u32, u32) = (6, 12);
/// From this kernel on KVM lends it, to a VirtualBox of this version or newer.
const LENDING: ((u32, u32), (u32, u32)) = ((6, 16), (7, 2));

/// What runs guests by the processor's virtualisation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Technique {
    /// The kernel's own.
    Kvm,
    /// VirtualBox's kernel driver.
    VirtualBox,
}

impl Technique {
    /// What a driver uses whose guests are run by `accelerator`.
    pub fn of(driver: DriverKind, accelerator: &str) -> Option<Self> {
        match (driver, accelerator) {
            (_, "kvm") => Some(Self::Kvm),
            (DriverKind::VirtualBox, _) => Some(Self::VirtualBox),
            _ => None,
        }
    }

    const fn name(self) -> &'static str {
        match self {
            Self::Kvm => "KVM",
            Self::VirtualBox => "VirtualBox",
        }
    }
}

/// What was seen of the host.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct HostFacts {
    /// The first two numbers of the kernel's version.
    pub kernel: (u32, u32),
    /// The module of KVM that is loaded.
    pub kvm_module: Option<String>,
    /// KVM holds the processor's virtualisation as long as it is loaded.
    pub kvm_holds: bool,
}

impl HostFacts {
    /// Reads what the host says. `root` is `/` but in tests.
    pub fn read(root: &Path) -> Self {
        let text = |path: &str| std::fs::read_to_string(root.join(path)).unwrap_or_default();
        let kernel = numbers(&text("proc/sys/kernel/osrelease"));
        let kvm_module = ["kvm_intel", "kvm_amd"]
            .into_iter()
            .find(|module| root.join("sys/module").join(module).exists())
            .map(str::to_owned);
        let at_load = text("sys/module/kvm/parameters/enable_virt_at_load");
        Self {
            kernel,
            kvm_holds: kvm_module.is_some() && kernel >= HOLDING_KERNEL && at_load.trim() == "Y",
            kvm_module,
        }
    }
}

fn numbers(version: &str) -> (u32, u32) {
    let mut parts = version
        .split(|c: char| !c.is_ascii_digit())
        .map(|part| part.parse().unwrap_or(0));
    (parts.next().unwrap_or(0), parts.next().unwrap_or(0))
}

/// A VM that uses the processor's virtualisation now, or is about to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Holder {
    /// The VM.
    pub vm: VmId,
    /// The driver that runs it.
    pub driver: DriverKind,
    /// By what.
    pub technique: Technique,
}

/// Whether `asked` may be used beside those who hold the processor's virtualisation. `virtualbox`: the version of VirtualBox.
///
/// # Errors
/// Conflict: who holds it, and how to get it.
pub fn may_use(
    asked: Technique,
    host: &HostFacts,
    virtualbox: &str,
    holders: &[Holder],
) -> Result<(), Error> {
    if host.kernel >= LENDING.0 && numbers(virtualbox) >= LENDING.1 {
        return Ok(());
    }
    let refuse = |why: String, fix: String| {
        Err(Error::new(
            ErrorKind::Conflict,
            format!("{} cannot have the processor's virtualisation now", asked.name()),
            why,
            fix,
        ))
    };
    if let Some(holder) = holders.iter().find(|holder| holder.technique != asked) {
        return refuse(
            format!(
                "VM {} of the driver {} has it, and one of the two hypervisors can have it at a time",
                holder.vm, holder.driver
            ),
            format!(
                "stop that VM with `vbm stop {}`, or run this one by the driver {}",
                holder.vm, holder.driver
            ),
        );
    }
    if asked == Technique::VirtualBox && host.kvm_holds {
        let module = host.kvm_module.as_deref().unwrap_or("kvm");
        return refuse(
            format!("the module {module} is loaded, and from Linux 6.12 on it has it as long as it is"),
            format!(
                "unload it with `modprobe -r {module}`, or boot the kernel with kvm.enable_virt_at_load=0"
            ),
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host(kernel: (u32, u32), kvm_holds: bool) -> HostFacts {
        HostFacts {
            kernel,
            kvm_module: Some("kvm_amd".into()),
            kvm_holds,
        }
    }

    fn holder(technique: Technique) -> Holder {
        Holder {
            vm: VmId::from_uuid(uuid::Uuid::from_u128(7)),
            driver: match technique {
                Technique::Kvm => DriverKind::Qemu,
                Technique::VirtualBox => DriverKind::VirtualBox,
            },
            technique,
        }
    }

    #[test]
    fn the_two_exclude_each_other_and_the_refusal_names_the_vm_and_the_way_out() {
        let old = host((6, 1), false);
        for (asked, other) in [
            (Technique::Kvm, Technique::VirtualBox),
            (Technique::VirtualBox, Technique::Kvm),
        ] {
            assert!(may_use(asked, &old, "7.0.1", &[]).is_ok());
            assert!(may_use(asked, &old, "7.0.1", &[holder(asked)]).is_ok());
            let error = may_use(asked, &old, "7.0.1", &[holder(asked), holder(other)]).unwrap_err();
            let vm = holder(other).vm.to_string();
            assert!(error.why().contains(&vm) && error.fix().contains(&vm), "{error}");
            assert_eq!(error.kind(), ErrorKind::Conflict);
        }
    }

    #[test]
    fn a_loaded_kvm_is_in_the_way_of_virtualbox_only_and_only_until_it_lends() {
        let holds = host((6, 12), true);
        let error = may_use(Technique::VirtualBox, &holds, "7.1.4", &[]).unwrap_err();
        assert!(error.fix().contains("kvm.enable_virt_at_load=0") && error.fix().contains("kvm_amd"));
        assert!(may_use(Technique::Kvm, &holds, "7.1.4", &[]).is_ok());
        assert!(may_use(Technique::VirtualBox, &host((6, 12), false), "7.1.4", &[]).is_ok());
        let lends = host((6, 16), true);
        assert!(may_use(Technique::VirtualBox, &lends, "7.2.22", &[holder(Technique::Kvm)]).is_ok());
        assert!(may_use(Technique::VirtualBox, &lends, "7.1.4", &[]).is_err());
    }

    #[test]
    fn what_the_host_says_is_read() {
        let root = tempfile::tempdir().unwrap();
        let put = |path: &str, text: &str| {
            let path = root.path().join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        };
        assert_eq!(HostFacts::read(root.path()), HostFacts::default());
        put("proc/sys/kernel/osrelease", "6.12.9-amd64\n");
        put("sys/module/kvm_amd/x", "");
        put("sys/module/kvm/parameters/enable_virt_at_load", "Y\n");
        assert_eq!(HostFacts::read(root.path()), host((6, 12), true));
        put("sys/module/kvm/parameters/enable_virt_at_load", "N\n");
        assert_eq!(HostFacts::read(root.path()), host((6, 12), false));
        put("proc/sys/kernel/osrelease", "6.1.0-44-amd64\n");
        put("sys/module/kvm/parameters/enable_virt_at_load", "Y\n");
        assert!(
            !HostFacts::read(root.path()).kvm_holds,
            "an old kernel holds nothing at load"
        );
    }

    #[test]
    fn emulated_guests_use_nothing() {
        assert_eq!(Technique::of(DriverKind::Qemu, "tcg"), None);
        assert_eq!(Technique::of(DriverKind::Sim, "sim"), None);
        assert_eq!(Technique::of(DriverKind::Qemu, "kvm"), Some(Technique::Kvm));
        assert_eq!(
            Technique::of(DriverKind::VirtualBox, "vt-x"),
            Some(Technique::VirtualBox)
        );
    }
}
