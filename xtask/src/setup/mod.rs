//! What is missing on this machine, why it is needed, and its installation by `apt-get`.
//!
//! Deciding is pure (`needs.rs`, `sources.rs`); this module looks at the machine and acts. Nothing that a package
//! brings is started: a `policy-rc.d` forbids it for as long as apt runs, where the machine has none of its own.

mod needs;
mod sources;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, SystemTime};

pub(crate) use needs::Need;
use needs::{Installed, Purchase};

use crate::fault::{Done, Fault};
use crate::{run, say};

/// Package lists older than this are fetched anew before something is installed.
const LISTS_FRESH: Duration = Duration::from_secs(7 * 24 * 3600);
const LISTS_DIR: &str = "/var/lib/apt/lists";
const SOURCES_DIR: &str = "/etc/apt/sources.list.d";
const BACKPORTS_FILE: &str = "/etc/apt/sources.list.d/vbm-backports.sources";
const POLICY_FILE: &str = "/usr/sbin/policy-rc.d";
const POLICY_TEXT: &str = "#!/bin/sh\n# Made by `cargo xtask setup`, gone when it ends: packages must not start daemons.\nexit 101\n";
const QEMU_PACKAGES: [&str; 4] = [
    "qemu-utils",
    "qemu-system-common",
    "qemu-system-data",
    "qemu-system-x86",
];

/// Sees to it that everything named is there: says what is missing and why, then installs it.
pub(crate) fn ensure(needs: &[Need]) -> Done {
    let missing: Vec<Need> = needs.iter().copied().filter(|need| !is_met(*need)).collect();
    if missing.is_empty() {
        return Ok(());
    }
    let purchase = needs::decide(&missing, &installed());
    say::title("missing on this machine");
    for need in &missing {
        let entry = need.entry();
        say::line(&format!(
            "   {:<20} {} (Debian package {})",
            entry.programs.join(", "),
            entry.why,
            entry.package
        ));
    }
    if !is_root() {
        return Err(not_root(&missing, &purchase));
    }
    install(&purchase)?;
    match missing.iter().find(|need| !is_met(**need)) {
        None => Ok(()),
        Some(need) => Err(Fault::new(
            format!("`{}` is still missing", need.entry().programs.join("`, `")),
            format!(
                "package {} was installed and does not bring it",
                need.entry().package
            ),
            "install the program by other means, then run the command again",
        )),
    }
}

/// Sees to a program that not every archive of Debian has: gives why it is not there.
pub(crate) fn offer(program: &str, package: &str, why: &str) -> Done {
    if run::which(program).is_some() {
        return Ok(());
    }
    say::title("missing on this machine");
    say::line(&format!("   {program:<20} {why} (Debian package {package})"));
    if !is_root() {
        return Err(Fault::new(
            format!("cannot install {program}"),
            "installing packages needs root",
            format!("run as root: apt-get install -y --no-install-recommends {package}"),
        ));
    }
    if lists_age().is_none_or(|age| age > LISTS_FRESH) {
        apt_update()?;
    }
    let _quiet = NoDaemons::arrange()?;
    install_from(None, &[package]).or_else(|_| {
        add_backports()?;
        install_from(Some(&format!("{}-backports", codename())), &[package])
    })
}

/// Whether the effective user is root.
pub(crate) fn is_root() -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let ids = status
        .lines()
        .find_map(|line| line.strip_prefix("Uid:"))
        .unwrap_or_default();
    ids.split_whitespace().nth(1) == Some("0")
}

/// Fetches the package lists when there are none; downloads need them.
pub(crate) fn apt_lists_present() -> Done {
    if run::which("apt-get").is_none() || run::which("dpkg-deb").is_none() {
        return Err(Fault::new(
            "this machine has no apt-get or dpkg-deb",
            "packages come from Debian's archive",
            "use Debian 12 or a system made from it",
        ));
    }
    if lists_age().is_some() {
        Ok(())
    } else {
        apt_update()
    }
}

/// `apt-get update`.
pub(crate) fn apt_update() -> Done {
    if !is_root() {
        return Err(Fault::new(
            "the package lists are missing or old",
            "fetching them needs root",
            "run `sudo apt-get update`",
        ));
    }
    let spinner = say::spinner("apt-get update");
    let done = run::capture(apt_get().args(["-qq", "update"]));
    spinner.finish_and_clear();
    done.map(drop)
}

fn is_met(need: Need) -> bool {
    let entry = need.entry();
    if need == Need::Yaml {
        // A module, not a program: python itself says whether it has it.
        let mut python = run::command("python3");
        return run::which("python3").is_some() && run::capture(python.args(["-c", "import yaml"])).is_ok();
    }
    if need == Need::Ovmf {
        return entry.programs.iter().all(|file| Path::new(file).is_file());
    }
    entry.programs.iter().all(|program| run::which(program).is_some())
        || entry.busybox_applet.is_some_and(|applet| {
            run::which("busybox").is_some_and(|busybox| {
                run::capture(Command::new(busybox).arg("--list"))
                    .is_ok_and(|list| list.lines().any(|name| name == applet))
            })
        })
}

fn installed() -> Installed {
    let version = |package: &&str| {
        let mut query = run::command("dpkg-query");
        let status =
            run::capture(query.args(["-W", "-f", "${db:Status-Status} ${Version}", package])).ok()?;
        status.strip_prefix("installed ").map(str::to_owned)
    };
    Installed {
        qemu_versions: QEMU_PACKAGES.iter().filter_map(version).collect(),
    }
}

fn not_root(missing: &[Need], purchase: &Purchase) -> Fault {
    let names: Vec<&str> = missing
        .iter()
        .flat_map(|need| need.entry().programs)
        .copied()
        .collect();
    let mut commands = vec!["apt-get update".to_owned()];
    if !purchase.main.is_empty() {
        commands.push(format!(
            "apt-get install -y --no-install-recommends {}",
            purchase.main.join(" ")
        ));
    }
    if !purchase.backports.is_empty() {
        let suite = format!("{}-backports", codename());
        commands.push(format!(
            "apt-get install -y --no-install-recommends -t {suite} {}",
            purchase.backports.join(" ")
        ));
    }
    let text = commands.join(" && ");
    Fault::new(
        format!("cannot install {}", names.join(", ")),
        "installing packages needs root",
        format!("run as root: {text}"),
    )
}

fn install(purchase: &Purchase) -> Done {
    let added = !purchase.backports.is_empty() && add_backports()?;
    if added || lists_age().is_none_or(|age| age > LISTS_FRESH) {
        apt_update()?;
    }
    let _quiet = NoDaemons::arrange()?;
    if !purchase.main.is_empty() {
        install_from(None, &purchase.main)?;
    }
    if !purchase.backports.is_empty() {
        install_from(Some(&format!("{}-backports", codename())), &purchase.backports)?;
    }
    Ok(())
}

fn install_from(suite: Option<&str>, packages: &[&str]) -> Done {
    let run = || {
        let mut command = apt_get();
        command.args(["-q", "install", "-y", "--no-install-recommends"]);
        if let Some(suite) = suite {
            command.args(["-t", suite]);
        }
        let command = command.args(packages);
        let spinner = say::spinner(&run::shown(command));
        let done = run::capture(command);
        spinner.finish_and_clear();
        done.map(|_| say::line(&format!("   installed {}", packages.join(", "))))
    };
    // A list that is older than the mirror names files that are gone: refresh once and try again.
    run().or_else(|_| apt_update().and_then(|()| run()))
}

fn apt_get() -> Command {
    let mut command = run::command("apt-get");
    command
        .env("DEBIAN_FRONTEND", "noninteractive")
        .env("LC_ALL", "C.UTF-8");
    command
}

/// Age of the newest package list; `None` when there is none.
fn lists_age() -> Option<Duration> {
    let is_list = |path: &Path| {
        path.file_name()
            .is_some_and(|name| name.to_string_lossy().contains("_Packages"))
    };
    let newest = files(Path::new(LISTS_DIR))
        .into_iter()
        .filter(|path| is_list(path));
    let newest = newest
        .filter_map(|path| path.metadata().ok()?.modified().ok())
        .max()?;
    // apt keeps the archive's own date on a list, so the directory's date says when apt last looked.
    let looked = Path::new(LISTS_DIR)
        .join("partial")
        .metadata()
        .and_then(|meta| meta.modified())
        .unwrap_or(newest);
    Some(
        SystemTime::now()
            .duration_since(looked.max(newest))
            .unwrap_or_default(),
    )
}

/// Adds a backports entry made from the machine's own mirror, unless one is there. Says whether it did.
fn add_backports() -> Done<bool> {
    let codename = codename();
    let sources = all_sources();
    if sources::has_backports(&sources, &codename) {
        return Ok(false);
    }
    let text = sources::backports_file(&sources, &codename).ok_or_else(|| {
        Fault::new(
            "no mirror for backports",
            format!("apt's sources have no entry for suite {codename}, component main"),
            format!("add {codename}-backports to apt's sources, or remove the QEMU packages that came from backports"),
        )
    })?;
    let path = Path::new(BACKPORTS_FILE);
    std::fs::write(path, text).map_err(|error| Fault::file("write", path, &error))?;
    say::line(&format!(
        "   added {BACKPORTS_FILE}: some packages come from backports"
    ));
    Ok(true)
}

/// Debian's archive as this machine's apt names it.
pub(crate) struct Mirror {
    pub(crate) uri: String,
    /// The key ring, where the sources name one as a file.
    pub(crate) keyring: Option<PathBuf>,
}

/// The mirror of this release's component main; `None` when apt's sources name none.
pub(crate) fn mirror() -> Option<Mirror> {
    let sources = all_sources();
    let source = sources::main_of(&sources, &codename())?;
    Some(Mirror {
        uri: source.uris.first()?.clone(),
        keyring: source
            .signed_by
            .as_deref()
            .filter(|key| key.starts_with('/'))
            .map(PathBuf::from),
    })
}

fn all_sources() -> Vec<sources::Source> {
    let mut sources = parse(Path::new("/etc/apt/sources.list"));
    for path in files(Path::new(SOURCES_DIR)) {
        sources.extend(parse(&path));
    }
    sources
}

fn parse(path: &Path) -> Vec<sources::Source> {
    let text = std::fs::read_to_string(path).unwrap_or_default();
    match path.extension().and_then(|end| end.to_str()) {
        Some("sources") => sources::parse_deb822(&text),
        Some("list") => sources::parse_list(&text),
        _ => Vec::new(),
    }
}

fn files(dir: &Path) -> Vec<PathBuf> {
    let mut paths: Vec<PathBuf> = std::fs::read_dir(dir)
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.path())
        .collect();
    paths.sort();
    paths
}

/// The release's name, such as `bookworm`.
fn codename() -> String {
    let text = std::fs::read_to_string("/etc/os-release").unwrap_or_default();
    let value = text
        .lines()
        .find_map(|line| line.strip_prefix("VERSION_CODENAME="));
    value.unwrap_or("stable").trim_matches('"').to_owned()
}

/// Keeps packages from starting their daemons while it lives.
struct NoDaemons {
    ours: bool,
}

impl NoDaemons {
    fn arrange() -> Done<Self> {
        let path = Path::new(POLICY_FILE);
        // One that an interrupted run left behind is ours too.
        let ours = std::fs::read(path).map_or(true, |text| text == POLICY_TEXT.as_bytes());
        if ours {
            use std::os::unix::fs::PermissionsExt as _;
            let made = std::fs::write(path, POLICY_TEXT)
                .and_then(|()| std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o755)));
            made.map_err(|error| Fault::file("write", path, &error))?;
        }
        Ok(Self { ours })
    }
}

impl Drop for NoDaemons {
    fn drop(&mut self) {
        if self.ours && std::fs::remove_file(POLICY_FILE).is_err() {
            say::note(&format!("could not remove {POLICY_FILE}; please remove it"));
        }
    }
}
