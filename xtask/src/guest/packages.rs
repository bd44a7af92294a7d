//! Debian packages as raw material: resolved, downloaded and unpacked by the machine's own apt, never installed.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use crate::fault::{Done, Fault};
use crate::{run, setup};

/// The empty package that depends on the current cloud kernel.
const KERNEL_META: &str = "linux-image-cloud-amd64";
/// What the guest and its disk are made of, besides the kernel. The last two only run here.
const PARTS: [&str; 5] = [
    "busybox-static",
    "syslinux",
    "syslinux-common",
    "dosfstools",
    "mtools",
];

/// Package names and the exact versions that the guest is made of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Packages {
    pub(super) versions: BTreeMap<String, String>,
    pub(super) kernel: String,
}

/// Asks apt which versions it would install today. One call, as each costs half a second.
pub(super) fn resolve() -> Done<Packages> {
    setup::apt_lists_present()?;
    let mut show = run::command("apt-cache");
    show.args(["show", "--no-all-versions", KERNEL_META]).args(PARTS);
    parse(&run::capture(&mut show)?)
}

/// Reads `apt-cache show`: the parts by version, and the kernel behind the empty package.
fn parse(text: &str) -> Done<Packages> {
    let mut versions = BTreeMap::new();
    let mut kernel = None;
    for record in text.split("\n\n") {
        let field = |name: &str| {
            record
                .lines()
                .find_map(|line| line.strip_prefix(name)?.strip_prefix(": "))
        };
        let (Some(package), Some(version)) = (field("Package"), field("Version")) else {
            continue;
        };
        if package == KERNEL_META {
            kernel = field("Depends").and_then(first_dependency);
        } else {
            versions.insert(package.to_owned(), version.to_owned());
        }
    }
    let missing = |name: &str| {
        Fault::new(
            format!("apt knows no package `{name}`"),
            "the package lists lack it, or this is not Debian on amd64",
            "run `apt-get update`, and see that the sources hold Debian's component `main`",
        )
    };
    if let Some(absent) = PARTS.iter().find(|part| !versions.contains_key(**part)) {
        return Err(missing(absent));
    }
    let (kernel, version) = kernel.ok_or_else(|| missing(KERNEL_META))?;
    versions.insert(kernel.clone(), version);
    Ok(Packages { versions, kernel })
}

/// `linux-image-6.1.0-56-cloud-amd64 (= 6.1.192-2), other` gives the first name with its version.
fn first_dependency(depends: &str) -> Option<(String, String)> {
    let (name, rest) = depends.split(',').next()?.trim().split_once(" (= ")?;
    Some((name.to_owned(), rest.strip_suffix(')')?.to_owned()))
}

impl Packages {
    /// Downloads what `debs` lacks, drops what it no longer needs, and unpacks everything into `root`.
    pub(super) fn unpack(&self, debs: &Path, root: &Path) -> Done {
        self.download(debs)?;
        for (name, version) in &self.versions {
            let deb = find(debs, name, version).ok_or_else(|| {
                Fault::new(
                    format!("apt downloaded no file for {name} {version}"),
                    format!("{} holds none of that name", debs.display()),
                    "run `apt-get update`, then this command again",
                )
            })?;
            run::capture(run::command("dpkg-deb").arg("-x").arg(&deb).arg(root))?;
        }
        Ok(())
    }

    fn download(&self, debs: &Path) -> Done {
        std::fs::create_dir_all(debs).map_err(|error| Fault::file("create", debs, &error))?;
        let wanted = |(name, version): &(&String, &String)| find(debs, name, version).is_none();
        let missing: Vec<String> = self
            .versions
            .iter()
            .filter(wanted)
            .map(|(name, version)| format!("{name}={version}"))
            .collect();
        if missing.is_empty() {
            return Ok(());
        }
        let download = || {
            let mut get = run::command("apt-get");
            // As root apt would drop to a user that cannot write here, and warn about it.
            if setup::is_root() {
                get.args(["-o", "APT::Sandbox::User=root"]);
            }
            run::capture(get.args(["-qq", "download"]).args(&missing).current_dir(debs))
        };
        // Lists older than the mirror name files that are gone: refresh once.
        download().or_else(|first| {
            if setup::is_root() {
                setup::apt_update().and_then(|()| download())
            } else {
                Err(first)
            }
        })?;
        self.drop_old(debs);
        Ok(())
    }

    /// Removes downloads of other versions. What cannot be removed only takes space.
    fn drop_old(&self, debs: &Path) {
        let keep: Vec<PathBuf> = self
            .versions
            .iter()
            .filter_map(|(name, version)| find(debs, name, version))
            .collect();
        for entry in std::fs::read_dir(debs).into_iter().flatten().flatten() {
            if !keep.contains(&entry.path()) {
                std::fs::remove_file(entry.path()).ok();
            }
        }
    }
}

/// apt writes the epoch's colon as `%3a`; the architecture may be `amd64` or `all`.
fn find(debs: &Path, name: &str, version: &str) -> Option<PathBuf> {
    let stem = format!("{name}_{}", version.replace(':', "%3a"));
    ["amd64", "all"]
        .iter()
        .map(|arch| debs.join(format!("{stem}_{arch}.deb")))
        .find(|file| file.is_file())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(parts: &[&str]) -> String {
        let mut text = String::from(
            "Package: linux-image-cloud-amd64\nVersion: 6.1.9-2\nDepends: linux-image-6.1.0-5-cloud-amd64 (= 6.1.9-2)\n\n",
        );
        for part in parts {
            text.push_str(&format!("Package: {part}\nSource: x\nVersion: 1:2.0\n\n"));
        }
        text
    }

    #[test]
    fn the_real_kernel_is_found_behind_the_empty_package() {
        let packages = parse(&shown(&PARTS)).unwrap();
        assert_eq!(packages.kernel, "linux-image-6.1.0-5-cloud-amd64");
        assert_eq!(packages.versions[&packages.kernel], "6.1.9-2");
        assert_eq!(packages.versions["busybox-static"], "1:2.0");
        assert_eq!(packages.versions.len(), PARTS.len() + 1);
    }

    #[test]
    fn a_missing_package_is_named() {
        let fault = parse(&shown(&PARTS[1..])).unwrap_err();
        assert!(fault.what.contains("busybox-static"), "{fault}");
        assert!(parse("").is_err());
    }
}
