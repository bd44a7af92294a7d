//! What the benches stand on: a network namespace of the harness's own, the guest, the programs.
//!
//! The whole harness moves into a network namespace that it makes, before its first thread: what the daemon and the peers
//! do to links, addresses and rules they do there, and it is gone when the last of them is.

use super::fault::{During, Fault, Outcome};
use nix::sched::{CloneFlags, unshare};
use serde::Deserialize;
use std::{
    env, fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

/// Where the guest is, when not in `target/guest`.
const GUEST_VARIABLE: &str = "VBM_GUEST_DIR";
/// Where `vbm` and `vbmd` are, when they are not to be built and not beside this program.
const PROGRAMS_VARIABLE: &str = "VBM_BIN_DIR";

/// What is there to work with. What is missing says why.
pub(crate) struct Ground {
    pub(crate) quick: bool,
    /// Names of rows contain one of these, when there are any.
    pub(crate) only: Vec<String>,
    pub(crate) namespace: Outcome<()>,
    pub(crate) guest: Outcome<Guest>,
    pub(crate) programs: Outcome<Programs>,
}

impl Ground {
    /// How many samples a row gets: at least three, more where one is cheap.
    pub(crate) const fn rounds(&self) -> usize {
        if self.quick { 3 } else { 5 }
    }

    /// One of two sizes of a load.
    pub(crate) const fn size(&self, full: usize, quick: usize) -> usize {
        if self.quick { quick } else { full }
    }

    /// Whether rows of that name are wanted.
    pub(crate) fn wants(&self, name: &str) -> bool {
        self.only.is_empty() || self.only.iter().any(|text| name.contains(text))
    }

    pub(crate) fn guest(&self) -> Outcome<&Guest> {
        self.guest.as_ref().map_err(Clone::clone)
    }

    pub(crate) fn programs(&self) -> Outcome<&Programs> {
        self.programs.as_ref().map_err(Clone::clone)
    }

    pub(crate) fn namespace(&self) -> Outcome<()> {
        self.namespace.clone()
    }
}

/// Moves this process into a new network namespace with only a loopback that is up. Call before the first thread: a
/// thread is moved, not a process.
pub(crate) fn enter_namespace() -> Outcome<()> {
    unshare(CloneFlags::CLONE_NEWNET).during("making a network namespace (run as root)")?;
    let done = Command::new("ip")
        .args(["link", "set", "lo", "up"])
        .stdin(Stdio::null())
        .output();
    let done = done.during("ip link set lo up")?;
    if done.status.success() {
        Ok(())
    } else {
        Err(Fault::new(String::from_utf8_lossy(&done.stderr).trim()))
    }
}

/// The tiny guest, as `cargo xtask guest` makes it.
#[derive(Clone, Debug)]
pub(crate) struct Guest {
    pub(crate) dir: PathBuf,
    pub(crate) kernel: PathBuf,
    pub(crate) initrd: PathBuf,
    pub(crate) disk: PathBuf,
    pub(crate) cmdline: String,
}

#[derive(Deserialize)]
struct Manifest {
    kernel: String,
    initrd: String,
    disk: String,
    cmdline: String,
}

impl Guest {
    /// That of `VBM_GUEST_DIR`, else that of the workspace's target directory.
    pub(crate) fn find() -> Outcome<Self> {
        let dir = env::var_os(GUEST_VARIABLE)
            .map_or_else(|| workspace().join("target").join("guest"), PathBuf::from);
        Self::read(&dir).during(format!(
            "the guest in {} (make it with `cargo xtask guest`)",
            dir.display()
        ))
    }

    fn read(dir: &Path) -> Outcome<Self> {
        let dir = fs::canonicalize(dir)?;
        let manifest: Manifest = serde_json::from_str(&fs::read_to_string(dir.join("guest.json"))?)?;
        let file = |name: &str| -> Outcome<PathBuf> {
            let path = dir.join(name);
            fs::metadata(&path).during(path.display())?;
            Ok(path)
        };
        Ok(Self {
            kernel: file(&manifest.kernel)?,
            initrd: file(&manifest.initrd)?,
            disk: file(&manifest.disk)?,
            cmdline: manifest.cmdline,
            dir: dir.clone(),
        })
    }
}

/// The daemon and the command.
#[derive(Clone, Debug)]
pub(crate) struct Programs {
    pub(crate) vbmd: PathBuf,
    pub(crate) vbm: PathBuf,
}

impl Programs {
    /// Those of `VBM_BIN_DIR`; else, when cargo runs us, built now and as we were; else those beside this program.
    pub(crate) fn find() -> Outcome<Self> {
        if let Some(dir) = env::var_os(PROGRAMS_VARIABLE) {
            return Self::of(Path::new(&dir));
        }
        let me = env::current_exe()?;
        let dir = me
            .parent()
            .ok_or_else(|| Fault::new("this program has no folder"))?;
        if let (Some(cargo), Some(target)) = (env::var_os("CARGO"), dir.parent()) {
            build(Path::new(&cargo), target)?;
        }
        Self::of(dir)
    }

    fn of(dir: &Path) -> Outcome<Self> {
        let program = |name: &str| -> Outcome<PathBuf> {
            let path = std::path::absolute(dir.join(name))?;
            fs::metadata(&path).during(format!(
                "{} (build it with `cargo build --release -p vbm-sdk --bins`)",
                path.display()
            ))?;
            Ok(path)
        };
        Ok(Self {
            vbmd: program("vbmd")?,
            vbm: program("vbm")?,
        })
    }
}

fn build(cargo: &Path, target: &Path) -> Outcome<()> {
    let mut command = Command::new(cargo);
    command
        .args([
            "build",
            "--quiet",
            "--package",
            "vbm-sdk",
            "--bins",
            "--target-dir",
        ])
        .arg(target);
    if !cfg!(debug_assertions) {
        command.arg("--release");
    }
    let status = command
        .current_dir(workspace())
        .stdin(Stdio::null())
        .status()
        .during("building vbm and vbmd")?;
    if status.success() {
        Ok(())
    } else {
        Err(Fault::new(format!("building vbm and vbmd: cargo: {status}")))
    }
}

/// The workspace that this program was built in, if it is still there; else where we are.
fn workspace() -> PathBuf {
    let built_in = Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .filter(|dir| dir.join("Cargo.toml").is_file());
    built_in.map_or_else(|| PathBuf::from("."), Path::to_owned)
}

/// Whether a program is on the search path.
pub(crate) fn which(name: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH")?;
    env::split_paths(&path)
        .map(|dir| dir.join(name))
        .find(|path| path.is_file())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_guest_is_read_from_its_manifest_and_must_be_whole() {
        let dir = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| fs::write(dir.path().join(name), text).unwrap();
        write(
            "guest.json",
            r#"{"kernel":"k","initrd":"i","disk":"d","cmdline":"quiet","more":1}"#,
        );
        write("k", "");
        write("i", "");
        assert!(Guest::read(dir.path()).is_err());
        write("d", "");
        let guest = Guest::read(dir.path()).unwrap();
        assert_eq!(
            (guest.cmdline.as_str(), guest.disk.file_name().unwrap().to_str()),
            ("quiet", Some("d"))
        );
    }

    #[test]
    fn programs_that_are_not_there_say_how_to_get_them() {
        let fault = Programs::of(Path::new("/nonexistent")).unwrap_err();
        assert!(fault.0.contains("cargo build"), "{fault}");
    }

    #[test]
    fn the_shell_is_on_the_search_path() {
        assert!(which("sh").is_some() && which("no-such-program").is_none());
    }
}
