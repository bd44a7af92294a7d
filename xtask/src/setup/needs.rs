//! The programs that demo, tests and guest use, where Debian keeps them, and which packages follow. Pure.

/// Something that must be on the machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Need {
    Qemu,
    QemuImg,
    Ovmf,
    Redis,
    Iptables,
    Nft,
    Ipset,
    Conntrack,
    Udhcpc,
    Busybox,
    Dig,
    Yaml,
    Ip,
    Ping,
    Curl,
    Debootstrap,
    Mkfs,
    Node,
    Npm,
    Chromium,
    Dhclient,
    Dhcpcd,
    Networkd,
    Tshark,
    Perfdhcp,
    Kea,
    Dnsmasq,
    Iperf,
    Ethtool,
    Libvirtd,
    LibvirtQemu,
    Virsh,
}

/// Where a need is met: `program` (or `busybox_applet` of a busybox that is there), else by installing `package`.
pub(super) struct Entry {
    pub(super) programs: &'static [&'static str],
    pub(super) busybox_applet: Option<&'static str>,
    pub(super) package: &'static str,
    pub(super) why: &'static str,
}

impl Need {
    /// Everything the demo and the tests use.
    pub(crate) const ALL: [Self; 29] = [
        Self::Qemu,
        Self::QemuImg,
        Self::Ovmf,
        Self::Redis,
        Self::Iptables,
        Self::Nft,
        Self::Ipset,
        Self::Conntrack,
        Self::Udhcpc,
        Self::Busybox,
        Self::Dig,
        Self::Yaml,
        Self::Ip,
        Self::Ping,
        Self::Curl,
        Self::Debootstrap,
        Self::Mkfs,
        Self::Node,
        Self::Npm,
        Self::Chromium,
        Self::Dhclient,
        Self::Dhcpcd,
        Self::Networkd,
        Self::Tshark,
        Self::Perfdhcp,
        Self::Kea,
        Self::Dnsmasq,
        Self::Iperf,
        Self::Ethtool,
    ];

    /// What the benches measure beside, and nothing else needs.
    pub(crate) const PEERS: [Self; 3] = [Self::Libvirtd, Self::LibvirtQemu, Self::Virsh];

    pub(super) fn entry(self) -> Entry {
        let plain = |programs, package, why| Entry {
            programs,
            busybox_applet: None,
            package,
            why,
        };
        match self {
            Self::Qemu => plain(
                &["qemu-system-x86_64"],
                "qemu-system-x86",
                "runs the virtual machines",
            ),
            Self::QemuImg => plain(&["qemu-img"], "qemu-utils", "makes and inspects disks"),
            // A file, not a program.
            Self::Ovmf => plain(
                &["/usr/share/OVMF/OVMF_CODE_4M.fd"],
                "ovmf",
                "the UEFI firmware of virtual machines",
            ),
            Self::Redis => plain(
                &["redis-server"],
                "redis-server",
                "the bus between controller and agents",
            ),
            Self::Iptables => plain(
                &["iptables", "iptables-restore"],
                "iptables",
                "NAT, forwards, security groups",
            ),
            Self::Nft => plain(&["nft"], "nftables", "the anti-spoofing guard on bridge ports"),
            Self::Ipset => plain(&["ipset"], "ipset", "security groups that refer to groups"),
            Self::Conntrack => plain(&["conntrack"], "conntrack", "cuts flows when a rule is removed"),
            Self::Udhcpc => Entry {
                programs: &["udhcpc"],
                busybox_applet: Some("udhcpc"),
                package: "udhcpc",
                why: "a DHCP client in a namespace, to test our server",
            },
            Self::Busybox => plain(
                &["busybox"],
                "busybox-static",
                "small servers and clients in test namespaces",
            ),
            Self::Dig => plain(
                &["dig"],
                "bind9-dnsutils",
                "asks our DNS server, in test namespaces",
            ),
            Self::Yaml => plain(
                &["python3"],
                "python3-yaml",
                "reads what our metadata service says, as cloud-init does",
            ),
            Self::Ip => plain(
                &["ip"],
                "iproute2",
                "namespaces and links of the tests' outside world",
            ),
            Self::Ping => Entry {
                programs: &["ping"],
                busybox_applet: Some("ping"),
                package: "iputils-ping",
                why: "shows that the guest answers",
            },
            Self::Curl => plain(
                &["curl"],
                "curl",
                "shows the guest's web page through the forward",
            ),
            Self::Debootstrap => plain(
                &["debootstrap"],
                "debootstrap",
                "unpacks the Debian that VirtualBox runs in, in a folder",
            ),
            Self::Mkfs => plain(
                &["mkfs.ext4"],
                "e2fsprogs",
                "makes the disk of the VirtualBox lab's machine",
            ),
            Self::Node => plain(&["node"], "nodejs", "builds the page of the web console"),
            Self::Npm => plain(&["npm", "npx"], "npm", "installs what that page is made of"),
            Self::Chromium => plain(
                &["chromium"],
                "chromium",
                "the browser that the page is tested in",
            ),
            Self::Dhclient => plain(
                &["dhclient"],
                "isc-dhcp-client",
                "a DHCP client in a namespace, to test our server",
            ),
            // Without the service that `dhcpcd` would start.
            Self::Dhcpcd => plain(
                &["dhcpcd"],
                "dhcpcd-base",
                "a DHCP client in a namespace, to test our server",
            ),
            // systemd-networkd itself is not on the search path.
            Self::Networkd => plain(
                &["networkctl"],
                "systemd",
                "a DHCP client in a namespace, to test our server",
            ),
            Self::Tshark => plain(
                &["tshark"],
                "tshark",
                "reads the frames of our DHCP server: another decoder than ours",
            ),
            Self::Perfdhcp => plain(
                &["perfdhcp"],
                "kea-admin",
                "thousands of DHCP clients, to test and measure servers",
            ),
            Self::Kea => plain(
                &["kea-dhcp4"],
                "kea-dhcp4-server",
                "the DHCP server that ours is measured beside",
            ),
            Self::Dnsmasq => plain(
                &["dnsmasq"],
                "dnsmasq-base",
                "the DHCP server that ours is measured beside",
            ),
            Self::Iperf => plain(&["iperf3"], "iperf3", "measures how much passes between two VMs"),
            Self::Ethtool => plain(
                &["ethtool"],
                "ethtool",
                "gives the links that are measured the same offloads",
            ),
            Self::Libvirtd => plain(
                &["libvirtd"],
                "libvirt-daemon",
                "the manager of VMs that ours is measured beside",
            ),
            // Its driver of QEMU is a library; this program comes with it.
            Self::LibvirtQemu => plain(
                &["virt-qemu-run"],
                "libvirt-daemon-driver-qemu",
                "that manager's driver of QEMU",
            ),
            Self::Virsh => plain(&["virsh"], "libvirt-clients", "speaks to that manager"),
        }
    }
}

/// What is installed now, as far as the choice of packages depends on it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Installed {
    /// Versions of QEMU packages that are there.
    pub(super) qemu_versions: Vec<String>,
}

/// Packages by where they must come from.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Purchase {
    pub(super) main: Vec<&'static str>,
    pub(super) backports: Vec<&'static str>,
}

/// Which packages meet the missing needs. QEMU's packages depend on each other by exact version, so where one of
/// them is from backports, the others must be too.
pub(super) fn decide(missing: &[Need], installed: &Installed) -> Purchase {
    let qemu_backports = installed
        .qemu_versions
        .iter()
        .any(|version| version.contains("bpo"));
    let mut purchase = Purchase::default();
    for need in missing {
        let package = need.entry().package;
        let qemu = matches!(need, Need::Qemu | Need::QemuImg);
        let list = if qemu && qemu_backports {
            &mut purchase.backports
        } else {
            &mut purchase.main
        };
        if !list.contains(&package) {
            list.push(package);
        }
    }
    purchase
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn qemu_follows_the_packages_that_are_there() {
        let plain = decide(
            &[Need::Qemu, Need::Redis],
            &Installed {
                qemu_versions: vec!["1:7.2+dfsg-7".into()],
            },
        );
        assert_eq!(
            plain,
            Purchase {
                main: vec!["qemu-system-x86", "redis-server"],
                backports: vec![]
            }
        );
        let backports = Installed {
            qemu_versions: vec!["1:10.0.2+ds-2~bpo12+1".into()],
        };
        let mixed = decide(&[Need::Qemu, Need::Redis], &backports);
        assert_eq!(
            mixed,
            Purchase {
                main: vec!["redis-server"],
                backports: vec!["qemu-system-x86"]
            }
        );
    }

    #[test]
    fn nothing_missing_buys_nothing() {
        assert_eq!(decide(&[], &Installed::default()), Purchase::default());
    }

    #[test]
    fn every_need_says_why() {
        for need in Need::ALL.into_iter().chain(Need::PEERS) {
            let entry = need.entry();
            assert!(!entry.why.is_empty() && !entry.programs.is_empty() && !entry.package.is_empty());
        }
    }
}
