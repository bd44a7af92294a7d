//! Kernel settings of a namespace. `/proc/sys/net` shows those of the namespace of the thread that looks.

use super::netns::NetNs;
use crate::NetError;
use std::{fs, io, path::Path};

/// One setting.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Setting {
    /// Below `/proc/sys/net`.
    pub(crate) path: String,
    pub(crate) value: &'static str,
    /// Whether its absence is fine: the kernel lacks what it switches off.
    pub(crate) optional: bool,
}

fn must(path: impl Into<String>, value: &'static str) -> Setting {
    Setting {
        path: path.into(),
        value,
        optional: false,
    }
}
fn may(path: impl Into<String>, value: &'static str) -> Setting {
    Setting {
        path: path.into(),
        value,
        optional: true,
    }
}

/// What a network's namespace is set to, before it has a link.
pub(crate) fn inside() -> Vec<Setting> {
    vec![
        must("ipv4/ip_forward", "1"),
        // No link has IPv6 but the bridge of a network that has it: see [`bridge`].
        may("ipv6/conf/all/disable_ipv6", "1"),
        may("ipv6/conf/default/disable_ipv6", "1"),
        must("ipv4/conf/all/send_redirects", "0"),
        must("ipv4/conf/default/send_redirects", "0"),
        must("ipv4/conf/all/accept_redirects", "0"),
    ]
}

/// Whether a link has IPv6: the bridge, an end of the transit. If so it has the addresses that it is given and no other, without asking whether they are taken (every
/// host's gateway has them), and believes no router.
pub(crate) fn bridge(link: &str, six: bool) -> Vec<Setting> {
    let of = |name: &str| format!("ipv6/conf/{link}/{name}");
    if !six {
        return vec![may(of("disable_ipv6"), "1")];
    }
    vec![
        must(of("addr_gen_mode"), "1"),
        must(of("accept_dad"), "0"),
        must(of("accept_ra"), "0"),
        must(of("autoconf"), "0"),
        must(of("disable_ipv6"), "0"),
    ]
}

/// What the security groups rest on: bridged packets pass iptables, and a cut TCP flow cannot begin in its middle.
pub(crate) fn groups() -> Vec<Setting> {
    vec![
        must("bridge/bridge-nf-call-iptables", "1"),
        must("bridge/bridge-nf-call-ip6tables", "1"),
        may("bridge/bridge-nf-call-arptables", "0"),
        must("netfilter/nf_conntrack_tcp_loose", "0"),
    ]
}

/// The host's own: it forwards, and where it translates, answers from its loopback may come by this link.
pub(crate) fn host(link: &str, translates: bool, six: bool) -> Vec<Setting> {
    let mut all = vec![
        must("ipv4/ip_forward", "1"),
        must(
            format!("ipv4/conf/{link}/route_localnet"),
            if translates { "1" } else { "0" },
        ),
    ];
    all.extend(bridge(link, six));
    all.extend(six.then(|| must("ipv6/conf/all/forwarding", "1")));
    all
}

/// The inner end of the transit: where IPv6 leaves, the namespace forwards it.
pub(crate) fn uplink(link: &str, six: bool) -> Vec<Setting> {
    let mut all = bridge(link, six);
    all.extend(six.then(|| must("ipv6/conf/all/forwarding", "1")));
    all
}

/// The first of these interfaces on which a host would no longer listen to routers if it began to forward IPv6; `None` too where it does
/// already.
pub(crate) async fn forgets_routers(
    host: &NetNs,
    links: std::collections::BTreeSet<String>,
) -> Result<Option<String>, NetError> {
    host.run(move || {
        let is = |path: String, value: &str| {
            fs::read_to_string(Path::new("/proc/sys/net/ipv6/conf").join(path))
                .is_ok_and(|now| now.trim() == value)
        };
        if is("all/forwarding".into(), "1") {
            return None;
        }
        links
            .into_iter()
            .find(|link| is(format!("{link}/accept_ra"), "1"))
    })
    .await
}

/// The host's end of a NIC that is an interface: the host neither speaks nor answers there.
pub(crate) fn interface(link: &str) -> Vec<Setting> {
    vec![
        // 8: no answer to ARP, whatever address is asked for.
        must(format!("ipv4/conf/{link}/arp_ignore"), "8"),
        may(format!("ipv6/conf/{link}/disable_ipv6"), "1"),
    ]
}

/// Makes settings hold. Returns those that did not before.
pub(crate) async fn apply(ns: &NetNs, settings: Vec<Setting>) -> Result<Vec<String>, NetError> {
    ns.run(move || {
        let mut changed = Vec::new();
        for setting in &settings {
            match set(setting) {
                Ok(true) => changed.push(format!("net/{} = {}", setting.path, setting.value)),
                Ok(false) => {}
                Err(e) if setting.optional && e.kind() == io::ErrorKind::NotFound => {}
                Err(e) if e.kind() == io::ErrorKind::NotFound => return Err(missing(setting)),
                Err(e) => return Err(NetError::kernel(format!("setting net/{}", setting.path), e)),
            }
        }
        Ok(changed)
    })
    .await?
}

/// Whether settings hold now; the first that does not, else.
pub(crate) async fn check(ns: &NetNs, settings: Vec<Setting>) -> Result<Option<String>, NetError> {
    ns.run(move || {
        let holds = |s: &Setting| match fs::read_to_string(file(s)) {
            Ok(now) => now.trim() == s.value,
            Err(e) => s.optional && e.kind() == io::ErrorKind::NotFound,
        };
        settings
            .iter()
            .find(|s| !holds(s))
            .map(|s| format!("net/{} is not {}", s.path, s.value))
    })
    .await
}

/// The error of a setting that this kernel does not have.
pub(super) fn missing(setting: &Setting) -> NetError {
    let facility = match setting.path.split('/').next() {
        Some("bridge") => "br_netfilter (bridged packets through iptables)",
        Some("netfilter") => "nf_conntrack (stateful rules)",
        Some("ipv6") => "IPv6",
        _ => "IPv4 forwarding",
    };
    NetError::MissingFacility {
        facility,
        why: format!("/proc/sys/net/{} does not exist", setting.path),
    }
}

fn file(setting: &Setting) -> impl AsRef<Path> + use<> {
    Path::new("/proc/sys/net").join(&setting.path)
}

fn set(setting: &Setting) -> io::Result<bool> {
    if fs::read_to_string(file(setting))?.trim() == setting.value {
        return Ok(false);
    }
    fs::write(file(setting), setting.value)?;
    Ok(true)
}
