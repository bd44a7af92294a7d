//! `cargo xtask tidy`: what compiler and clippy do not see.
//!
//! - dependencies run one way: `vbm-core <- {rpc, net, hyper} <- sdk <- {examples, benches}`;
//! - no source file outgrows its reader;
//! - no file names a directory of somebody's machine.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use crate::fault::{Done, Fault};
use crate::{place, run, say};

const LINES_NOTED: usize = 500;
const LINES_MAX: usize = 1000;
/// Built, fetched or not ours.
const NOT_READ: [&str; 3] = [".git", "node_modules", "dist"];
const TEXT_ENDS: [&str; 9] = ["rs", "toml", "md", "json", "yaml", "yml", "sh", "ts", "tsx"];
/// A line that must name such a path says so.
const ALLOWED_MARK: &str = "tidy:allow";

/// Which of our crates each crate may use. A crate that is not listed may use none.
const MAY_USE: [(&str, &[&str]); 8] = [
    ("vbm-core", &[]),
    ("vbm-rpc", &["vbm-core"]),
    ("vbm-net", &["vbm-core"]),
    ("vbm-hyper", &["vbm-core"]),
    ("vbm-sdk", &["vbm-core", "vbm-rpc", "vbm-net", "vbm-hyper"]),
    (
        "vbm-examples",
        &["vbm-core", "vbm-rpc", "vbm-net", "vbm-hyper", "vbm-sdk"],
    ),
    (
        "vbm-benches",
        &["vbm-core", "vbm-rpc", "vbm-net", "vbm-hyper", "vbm-sdk"],
    ),
    ("xtask", &[]),
];

#[derive(Deserialize)]
struct Metadata {
    packages: Vec<Package>,
}

#[derive(Deserialize)]
struct Package {
    name: String,
    dependencies: Vec<Dependency>,
}

#[derive(Deserialize)]
struct Dependency {
    name: String,
}

/// Checks everything; gives all complaints in one error.
pub(crate) fn command() -> Done {
    let mut complaints = dependency_complaints(&packages()?);
    let root = place::workspace();
    let mut files = Vec::new();
    collect(&root, &mut files)?;
    for path in &files {
        let text = std::fs::read(path).map_err(|error| Fault::file("read", path, &error))?;
        let name = path.strip_prefix(&root).unwrap_or(path).display().to_string();
        complaints.extend(text_complaints(&name, &String::from_utf8_lossy(&text)));
    }
    if complaints.is_empty() {
        say::line(&format!(
            "tidy: {} files and the dependency direction are in order",
            files.len()
        ));
        return Ok(());
    }
    Err(Fault::new(
        format!("tidy found {} things", complaints.len()),
        complaints.join("\n       "),
        "repair them; the rules are in xtask/src/tidy.rs",
    ))
}

fn packages() -> Done<Vec<Package>> {
    let text = run::capture(place::cargo().args(["metadata", "--no-deps", "--format-version", "1"]))?;
    let metadata: Metadata = serde_json::from_str(&text).map_err(|error| {
        Fault::new(
            "cannot read `cargo metadata`",
            error,
            "compare cargo's version with rust-version",
        )
    })?;
    Ok(metadata.packages)
}

fn dependency_complaints(packages: &[Package]) -> Vec<String> {
    let rules: BTreeMap<&str, &[&str]> = MAY_USE.into_iter().collect();
    let mut complaints = Vec::new();
    for package in packages {
        let Some(allowed) = rules.get(package.name.as_str()) else {
            complaints.push(format!(
                "{}: a crate without a rule in xtask/src/tidy.rs",
                package.name
            ));
            continue;
        };
        let ours = package
            .dependencies
            .iter()
            .map(|dependency| dependency.name.as_str());
        let ours = ours.filter(|name| rules.contains_key(name) && *name != package.name);
        for name in ours.filter(|name| !allowed.contains(name)) {
            complaints.push(format!(
                "{} depends on {name}: against the direction in DESIGN section 1",
                package.name
            ));
        }
    }
    complaints
}

fn text_complaints(name: &str, text: &str) -> Vec<String> {
    let mut complaints = Vec::new();
    let lines = text.lines().count();
    if name.ends_with(".rs") && lines > LINES_MAX {
        complaints.push(format!("{name}: {lines} lines, at most {LINES_MAX}"));
    } else if name.ends_with(".rs") && lines > LINES_NOTED {
        say::note(&format!("note: {name} has {lines} lines; aim for {LINES_NOTED}"));
    }
    for (number, line) in (1..).zip(text.lines()) {
        if names_a_home(line) && !line.contains(ALLOWED_MARK) {
            complaints.push(format!(
                "{name}:{number}: names a directory of one machine: {}",
                line.trim()
            ));
        }
    }
    complaints
}

/// Whether a line has an absolute path into somebody's home or working directory.
fn names_a_home(line: &str) -> bool {
    // Split so that this file is not its own finding.
    let homes = [
        concat!("/ho", "me/"),
        concat!("/Us", "ers/"),
        concat!("/ro", "ot/"),
        concat!("/wo", "rk/"),
    ];
    let starts_path = |at: usize| {
        let before = line.get(..at).and_then(|text| text.chars().next_back());
        before.is_none_or(|c| !(c.is_alphanumeric() || "./}_-~*>$".contains(c)))
    };
    homes
        .iter()
        .any(|home| line.match_indices(home).any(|(at, _)| starts_path(at)))
}

fn collect(dir: &Path, files: &mut Vec<PathBuf>) -> Done {
    let fail = |error: std::io::Error| Fault::file("list", dir, &error);
    for entry in std::fs::read_dir(dir).map_err(fail)? {
        let entry = entry.map_err(fail)?;
        let (path, name) = (entry.path(), entry.file_name().to_string_lossy().into_owned());
        let kind = entry.file_type().map_err(fail)?;
        if kind.is_dir() {
            if !NOT_READ.contains(&name.as_str()) && !name.starts_with("target") {
                collect(&path, files)?;
            }
        } else if kind.is_file()
            && path
                .extension()
                .is_some_and(|end| TEXT_ENDS.iter().any(|known| end == *known))
        {
            files.push(path);
        }
    }
    files.sort();
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn package(name: &str, uses: &[&str]) -> Package {
        let dependencies = uses
            .iter()
            .map(|name| Dependency {
                name: (*name).to_owned(),
            })
            .collect();
        Package {
            name: name.to_owned(),
            dependencies,
        }
    }

    #[test]
    fn the_drawn_direction_passes() {
        let packages = [
            package("vbm-sdk", &["vbm-rpc", "tokio"]),
            package("vbm-rpc", &["vbm-core"]),
            package("vbm-core", &["serde"]),
        ];
        assert!(dependency_complaints(&packages).is_empty());
    }

    #[test]
    fn siblings_and_upward_dependencies_are_found() {
        let packages = [
            package("vbm-net", &["vbm-rpc"]),
            package("vbm-core", &["vbm-sdk"]),
            package("vbm-new", &[]),
        ];
        let complaints = dependency_complaints(&packages);
        assert_eq!(complaints.len(), 3, "{complaints:?}");
    }

    #[test]
    fn paths_of_one_machine_are_found() {
        assert!(names_a_home(concat!("let x = \"/ho", "me/ann/vbm\";")));
        assert!(names_a_home(concat!("/wo", "rk/main")));
        assert!(!names_a_home(concat!("https://example.test/wo", "rk/x")));
        assert!(!names_a_home("\"/root\" is a directory of the guest"));
        assert!(!names_a_home(concat!("docs/wo", "rk/x and $HOME/x")));
    }

    #[test]
    fn long_files_are_refused() {
        assert_eq!(text_complaints("a.rs", &"x\n".repeat(LINES_MAX + 1)).len(), 1);
        assert!(text_complaints("a.rs", &"x\n".repeat(LINES_MAX)).is_empty());
        assert!(text_complaints("a.md", &"x\n".repeat(LINES_MAX + 1)).is_empty());
    }
}
