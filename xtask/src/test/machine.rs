//! Can this machine run all tests? Asked before building, so that the answer comes at once and not as fifty failures.
//!
//! Nothing is skipped in silence: what cannot run must be named in `VBM_LEAVE_OUT`, which the tests read too.

use crate::fault::{Done, Fault};
use crate::run;
use crate::setup::{self, Need};

/// The variable that names what to leave out.
pub(super) const LEAVE_OUT: &str = "VBM_LEAVE_OUT";
const PARTS: [&str; 6] = ["root", "redis", "qemu", "namespaces", "virtualbox", "browser"];

/// What the caller wants left out.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct LeaveOut(Vec<String>);

impl LeaveOut {
    pub(super) fn from_environment() -> Done<Self> {
        Self::parse(&std::env::var(LEAVE_OUT).unwrap_or_default())
    }

    fn parse(text: &str) -> Done<Self> {
        let parts: Vec<String> = text
            .split(',')
            .map(|part| part.trim().to_owned())
            .filter(|part| !part.is_empty())
            .collect();
        match parts.iter().find(|part| !PARTS.contains(&part.as_str())) {
            None => Ok(Self(parts)),
            Some(part) => Err(Fault::new(
                format!("{LEAVE_OUT} names `{part}`"),
                format!("only {} can be left out", PARTS.join(", ")),
                format!("write for example {LEAVE_OUT}=root,namespaces"),
            )),
        }
    }

    pub(super) fn has(&self, part: &str) -> bool {
        self.0.iter().any(|other| other == part)
    }

    /// Whether tests with namespaces run; they need root too.
    fn namespaces(&self) -> bool {
        !self.has("root") && !self.has("namespaces")
    }

    /// Whether VirtualBox is tried, in its folder and in its lab; both need root, and the lab needs QEMU and Redis.
    pub(super) fn virtualbox(&self) -> bool {
        !["root", "redis", "qemu", "virtualbox"]
            .iter()
            .any(|part| self.has(part))
    }

    /// The same, and one part more that turned out to be impossible.
    pub(super) fn and(&self, part: &str) -> String {
        let mut parts = self.0.clone();
        parts.push(part.to_owned());
        parts.join(",")
    }

    /// Whether the page is tested in a browser, which shows real guests.
    pub(super) fn browser(&self) -> bool {
        self.namespaces() && !self.has("qemu") && !self.has("browser")
    }

    pub(super) fn list(&self) -> &[String] {
        &self.0
    }

    /// The programs that the remaining tests use.
    pub(super) fn needs(&self) -> Vec<Need> {
        let wanted = |need: &Need| match need {
            Need::Qemu | Need::QemuImg | Need::Ovmf => !self.has("qemu"),
            Need::Redis => !self.has("redis"),
            Need::Curl | Need::Node | Need::Npm => true,
            Need::Debootstrap | Need::Mkfs => self.virtualbox(),
            Need::Chromium => self.browser(),
            // Benches alone are beside them.
            Need::Kea | Need::Dnsmasq | Need::Iperf | Need::Ethtool => false,
            _ => self.namespaces(),
        };
        Need::ALL.into_iter().filter(wanted).collect()
    }
}

/// Checks root, `/dev/net/tun` and namespaces, as far as they are not left out. Call after the programs are there.
pub(super) fn check(leave_out: &LeaveOut) -> Done {
    if !leave_out.has("root") && !setup::is_root() {
        return Err(lacking(
            "root",
            "namespaces, firewall rules and taps need it",
            "run it as root",
            "root",
        ));
    }
    if !leave_out.namespaces() {
        return Ok(());
    }
    if let Err(error) = std::fs::File::options()
        .read(true)
        .write(true)
        .open("/dev/net/tun")
    {
        return Err(lacking(
            "/dev/net/tun",
            &error.to_string(),
            "load the module `tun`, or give the container this device",
            "namespaces",
        ));
    }
    let mut probe = run::command("unshare");
    probe.args(["--net", "ip", "link", "add", "vbmprobe", "type", "bridge"]);
    run::capture(&mut probe).map(drop).map_err(|fault| {
        lacking(
            "network namespaces with bridges",
            &fault.why,
            "give the container CAP_SYS_ADMIN and CAP_NET_ADMIN",
            "namespaces",
        )
    })
}

fn lacking(what: &str, why: &str, fix: &str, part: &str) -> Fault {
    Fault::new(
        format!("not all tests can run here: no {what}"),
        why,
        format!("{fix}; or leave those tests out knowingly: {LEAVE_OUT}={part} cargo xtask test"),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unknown_parts_are_refused() {
        assert!(
            LeaveOut::parse("root,namespace")
                .unwrap_err()
                .what
                .contains("namespace")
        );
        assert_eq!(LeaveOut::parse("").unwrap(), LeaveOut::default());
    }

    #[test]
    fn what_is_left_out_is_not_installed() {
        let mut all = Need::ALL.to_vec();
        all.retain(|need| !matches!(need, Need::Kea | Need::Dnsmasq | Need::Iperf | Need::Ethtool));
        assert_eq!(LeaveOut::default().needs(), all);
        let few = LeaveOut::parse("root, qemu").unwrap().needs();
        assert_eq!(few, [Need::Redis, Need::Curl, Need::Node, Need::Npm]);
        let mut rest = all;
        rest.retain(|need| !matches!(need, Need::Debootstrap | Need::Mkfs));
        assert_eq!(LeaveOut::parse("virtualbox").unwrap().needs(), rest);
    }

    #[test]
    fn what_is_impossible_joins_what_is_left_out() {
        assert_eq!(LeaveOut::default().and("virtualbox"), "virtualbox");
        assert_eq!(
            LeaveOut::parse("qemu").unwrap().and("virtualbox"),
            "qemu,virtualbox"
        );
    }
}
