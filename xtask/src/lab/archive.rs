//! Debian's archive as this machine knows it: mirror, key and download settings come from its own apt, at run time.

use std::path::{Path, PathBuf};

use super::{Provided, Unable};
use crate::fault::{Done, Fault};
use crate::{run, setup};

/// The suite that has VirtualBox in contrib; Debian's releases have none.
pub(super) const SUITE: &str = "sid";
/// Debian's own key ring, where apt's sources name no other.
const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";
/// Which of apt's settings the folder's apt needs too: how to reach the mirror, and how much to trust clocks.
const PASSED_ON: [&str; 5] = [
    "Acquire::http::",
    "Acquire::https::",
    "Acquire::Retries",
    "Acquire::Check-Valid-Until",
    "Acquire::Check-Date",
];
/// Settings whose values are files or programs of this machine.
const NOT_PASSED_ON: [&str; 2] = ["::Proxy-Auto-Detect", "::ProxyAutoDetect"];

/// Where packages come from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Archive {
    pub(super) mirror: String,
    pub(super) keyring: PathBuf,
    /// Lines for an apt.conf.
    pub(super) settings: String,
}

impl Archive {
    /// Reads this machine's apt.
    pub(super) fn of_this_machine() -> Provided<Self> {
        let source = setup::mirror().ok_or_else(|| {
            Unable::NotProvided(Fault::new(
                "no mirror of Debian is known here",
                "apt's sources name none for this release's component main",
                "use Debian 12, with its own sources in /etc/apt",
            ))
        })?;
        let keyring = source.keyring.unwrap_or_else(|| PathBuf::from(KEYRING));
        if !keyring.is_file() {
            return Err(Unable::NotProvided(Fault::new(
                format!("the archive's key ring {} is not there", keyring.display()),
                "what is downloaded could not be checked",
                "install the package debian-archive-keyring",
            )));
        }
        let dump = run::capture(run::command("apt-config").arg("dump"))?;
        Ok(Self {
            mirror: source.uri,
            keyring,
            settings: settings(&dump),
        })
    }

    /// A deb822 source for the folder's apt; `keyring` is the path inside.
    pub(super) fn sources(&self, keyring: &Path) -> String {
        format!(
            "Types: deb\nURIs: {}\nSuites: {SUITE}\nComponents: main contrib\nSigned-By: {}\n",
            self.mirror,
            keyring.display()
        )
    }

    /// The proxy for what is no apt (debootstrap downloads by wget).
    pub(super) fn proxy(&self) -> Done<Option<String>> {
        let mut shell = run::command("apt-config");
        let text = run::capture(shell.args(["shell", "PROXY", "Acquire::http::Proxy"]))?;
        let value = text
            .trim()
            .strip_prefix("PROXY='")
            .and_then(|rest| rest.strip_suffix('\''));
        Ok(value.filter(|value| !value.is_empty()).map(str::to_owned))
    }
}

/// The lines of `apt-config dump` that are worth passing on. An archive that is a frozen copy is older than the
/// clock, so its dates are not checked; its signature is.
fn settings(dump: &str) -> String {
    let wanted = |line: &&str| {
        PASSED_ON.iter().any(|name| line.starts_with(name))
            && !NOT_PASSED_ON.iter().any(|part| line.contains(part))
    };
    let mut text: String = dump
        .lines()
        .filter(wanted)
        .map(|line| format!("{line}\n"))
        .collect();
    text.push_str("Acquire::Check-Valid-Until \"false\";\nAPT::Install-Recommends \"false\";\n");
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_reaches_the_mirror_is_passed_on() {
        let dump = "APT::Architecture \"amd64\";\nAcquire::http::Proxy \"http://p.test:1\";\n\
                    Acquire::http::Proxy-Auto-Detect \"/usr/bin/x\";\nAcquire::cdrom::mount \"/m\";\nDPkg::Pre-Invoke:: \"x\";\n";
        assert_eq!(
            settings(dump),
            "Acquire::http::Proxy \"http://p.test:1\";\nAcquire::Check-Valid-Until \"false\";\nAPT::Install-Recommends \"false\";\n"
        );
    }

    #[test]
    fn the_folder_has_contrib_where_virtualbox_is() {
        let archive = Archive {
            mirror: "http://m.test/debian".into(),
            keyring: KEYRING.into(),
            settings: String::new(),
        };
        let text = archive.sources(Path::new("/k.gpg"));
        assert!(
            text.contains("URIs: http://m.test/debian\nSuites: sid\nComponents: main contrib\n"),
            "{text}"
        );
        assert!(text.ends_with("Signed-By: /k.gpg\n"));
    }
}
