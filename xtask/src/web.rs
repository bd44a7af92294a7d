//! `cargo xtask web`: the page of the web console, built into `vbm-sdk/web/dist`, and its tests in a browser.
//!
//! ```text
//!  package-lock.json --changed?--> npm ci ---> node_modules
//!  sources, openapi.json --changed?--> npm run build ---> dist ---> `vbmd` with the feature `web`
//!                                                                     |
//!                                      vitest, Chromium, QEMU <-------+   browser_tests
//! ```
//!
//! What was last built is remembered by hashes beside the packages; a page that is up to date costs a look at its files.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde::Deserialize;
use sha2::{Digest as _, Sha256};

use crate::demo::build;
use crate::fault::{Done, Fault};
use crate::setup::{self, Need};
use crate::test::Counts;
use crate::{guest, place, run, say};

/// What the page is built with.
const BUILD_NEEDS: [Need; 2] = [Need::Node, Need::Npm];

/// What is made, not written: no part of what a build depends on.
const MADE: [&str; 3] = ["node_modules", "dist", "schema.d.ts"];
/// The deepest folder that holds sources.
const DEPTH_MAX: usize = 8;
/// Of which content the packages were installed, and the page was built; in `node_modules`, and gone with it.
const INSTALLED: &str = ".vbm-installed";
const BUILT: &str = ".vbm-built";
/// The levels in the table of tests.
const UNIT: &str = "web";
const BROWSER: &str = "browser";

/// Builds the page; with `test`, runs its tests too.
pub(crate) fn command(test: bool) -> Done {
    let how = if ensure_built()? { "built" } else { "up to date" };
    say::line(&format!("page {how}: {}", dir().join("dist").display()));
    if !test {
        return Ok(());
    }
    setup::ensure(&Need::ALL)?;
    let programs = build::programs()?;
    let guest = guest::ensure(None)?;
    let mut counts = unit_tests()?;
    counts.merge(&browser_tests(&programs, &guest.dir)?);
    crate::test::summary(&counts);
    if counts.failed() == 0 {
        return Ok(());
    }
    Err(Fault::new(
        format!("{} tests of the page failed", counts.failed()),
        "their output is above",
        format!("look at the pictures in {}", shots().display()),
    ))
}

fn dir() -> PathBuf {
    place::workspace().join("vbm-sdk/web")
}

/// Where the browser tests leave pictures of every place of the page.
pub(crate) fn shots() -> PathBuf {
    place::target().join("web-screenshots")
}

/// Sees to it that `vbm-sdk/web/dist` is of the present sources; says whether it had to be built.
pub(crate) fn ensure_built() -> Done<bool> {
    setup::ensure(&BUILD_NEEDS)?;
    let dir = dir();
    let _lock = lock()?;
    let node = run::capture(run::command("node").arg("--version"))?;
    let packages = hash(
        [node.trim()],
        &[dir.join("package.json"), dir.join("package-lock.json")],
    )?;
    let modules = dir.join("node_modules");
    if !is_of(&modules.join(INSTALLED), &packages) {
        npm("installing the page's packages", &["ci"])?;
        remember(&modules.join(INSTALLED), &packages)?;
    }
    let mut sources = vec![place::workspace().join("vbm-sdk/openapi.json")];
    list(&dir, DEPTH_MAX, &mut sources)?;
    sources.sort();
    let content = hash([packages.as_str()], &sources)?;
    if dir.join("dist/index.html").is_file() && is_of(&modules.join(BUILT), &content) {
        return Ok(false);
    }
    npm("building the page", &["run", "build"])?;
    remember(&modules.join(BUILT), &content)?;
    Ok(true)
}

/// One build at a time: the second caller waits and then finds the first one's page.
fn lock() -> Done<File> {
    let path = place::target().join("web.lock");
    let locked = std::fs::create_dir_all(place::target())
        .and_then(|()| File::create(&path))
        .and_then(|file| file.lock().map(|()| file));
    locked.map_err(|error| Fault::file("lock", &path, &error))
}

fn npm(doing: &str, args: &[&str]) -> Done {
    let spinner = say::spinner(doing);
    let done = run::capture(run::command("npm").args(args).current_dir(dir()));
    spinner.finish_and_clear();
    done.map(drop)
}

fn is_of(stamp: &Path, content: &str) -> bool {
    std::fs::read_to_string(stamp).is_ok_and(|text| text == content)
}

fn remember(stamp: &Path, content: &str) -> Done {
    std::fs::write(stamp, content).map_err(|error| Fault::file("write", stamp, &error))
}

/// The files below a folder that somebody wrote.
fn list(dir: &Path, depth: usize, files: &mut Vec<PathBuf>) -> Done {
    let broken = |error| Fault::file("read", dir, &error);
    for entry in std::fs::read_dir(dir).map_err(broken)? {
        let path = entry.map_err(broken)?.path();
        if path
            .file_name()
            .is_some_and(|name| MADE.iter().any(|made| name == *made))
        {
            continue;
        }
        if !path.is_dir() {
            files.push(path);
        } else if depth > 0 {
            list(&path, depth - 1, files)?;
        }
    }
    Ok(())
}

/// A hash over words, and files by name and content. Lengths keep neighbours from trading bytes.
fn hash<'a>(words: impl IntoIterator<Item = &'a str>, files: &[PathBuf]) -> Done<String> {
    let mut hash = Sha256::new();
    let mut add = |bytes: &[u8]| {
        hash.update((bytes.len() as u64).to_le_bytes());
        hash.update(bytes);
    };
    words.into_iter().for_each(|word| add(word.as_bytes()));
    for file in files {
        add(file.to_string_lossy().as_bytes());
        add(&std::fs::read(file).map_err(|error| Fault::file("read", file, &error))?);
    }
    Ok(hex::encode(hash.finalize()))
}

/// The tests of the page's own functions: they need nothing but node.
pub(crate) fn unit_tests() -> Done<Counts> {
    vitest(UNIT, &[], &mut run::command("npx"))
}

/// The page in Chromium, against the `vbmd` in `programs` with the page inside, and a real guest.
pub(crate) fn browser_tests(programs: &Path, guest: &Path) -> Done<Counts> {
    let shots = shots();
    let mut npx = run::command("npx");
    npx.env("VBM_PROGRAMS", programs)
        .env("VBM_GUEST_DIR", guest)
        .env("VBM_WEB_SHOTS", &shots);
    if let Some(chromium) = run::which("chromium") {
        npx.env("VBM_CHROMIUM", chromium);
    }
    let counts = vitest(BROWSER, &["--config", "e2e/vitest.config.ts"], &mut npx)?;
    say::line(&format!("pictures of every place: {}", shots.display()));
    Ok(counts)
}

/// A picture of a VM's desktop as the page shows it, in a browser that logs in by `link`.
pub(crate) fn picture(link: &str, vm: &str, file: &Path) -> Done {
    let mut node = run::command("node");
    node.arg(dir().join("e2e/picture.mjs")).args([link, vm]).arg(file);
    if let Some(chromium) = run::which("chromium") {
        node.env("VBM_CHROMIUM", chromium);
    }
    run::capture(&mut node).map(drop)
}

/// What vitest writes about a run.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Report {
    num_passed_tests: u64,
    num_failed_tests: u64,
    /// Of files that could not be run at all.
    num_failed_test_suites: u64,
}

/// Runs vitest with its output shown; a test that fails is a count, not an error.
fn vitest(level: &str, args: &[&str], npx: &mut Command) -> Done<Counts> {
    let report = place::target().join(format!("vitest-{level}.json"));
    if let Err(error) = std::fs::remove_file(&report)
        && error.kind() != std::io::ErrorKind::NotFound
    {
        return Err(Fault::file("remove", &report, &error));
    }
    npx.args([
        "--no-install",
        "vitest",
        "run",
        "--reporter",
        "default",
        "--reporter",
        "json",
    ])
    .arg("--outputFile")
    .arg(&report)
    .args(args)
    .current_dir(dir());
    let ran = run::stream(npx);
    let Ok(text) = std::fs::read(&report) else {
        // Without a report the runner itself failed, and says why.
        return ran.and_then(|()| {
            Err(Fault::new(
                "vitest wrote no report",
                report.display(),
                "run it by hand",
            ))
        });
    };
    let report: Report = serde_json::from_slice(&text).map_err(|error| {
        Fault::new(
            "vitest's report cannot be read",
            error,
            "run `npx vitest run` in vbm-sdk/web",
        )
    })?;
    let mut counts = Counts::default();
    let failed = match (report.num_failed_tests, ran) {
        (0, Err(_)) => report.num_failed_test_suites.max(1),
        (failed, _) => failed,
    };
    counts.add(level, report.num_passed_tests, failed);
    Ok(counts)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_build_depends_on_what_is_written_and_not_on_what_is_made() {
        let root = std::env::temp_dir().join(format!("vbm-xtask-web-{}", std::process::id()));
        for folder in ["src/api", "node_modules/x", "dist"] {
            std::fs::create_dir_all(root.join(folder)).unwrap();
        }
        for file in [
            "src/a.ts",
            "src/api/schema.d.ts",
            "node_modules/x/b.js",
            "dist/index.html",
        ] {
            std::fs::write(root.join(file), file).unwrap();
        }
        let mut files = Vec::new();
        list(&root, DEPTH_MAX, &mut files).unwrap();
        assert_eq!(files, [root.join("src/a.ts")]);
        let before = hash(["v1"], &files).unwrap();
        assert_eq!(hash(["v1"], &files).unwrap(), before);
        assert_ne!(hash(["v2"], &files).unwrap(), before);
        std::fs::write(root.join("src/a.ts"), "changed").unwrap();
        assert_ne!(hash(["v1"], &files).unwrap(), before);
        std::fs::remove_dir_all(&root).unwrap();
    }

    #[test]
    fn a_report_of_vitest_is_read() {
        let text = r#"{"numTotalTests":3,"numPassedTests":2,"numFailedTests":1,"numFailedTestSuites":1,"success":false}"#;
        let report: Report = serde_json::from_str(text).unwrap();
        assert_eq!((report.num_passed_tests, report.num_failed_tests), (2, 1));
    }
}
