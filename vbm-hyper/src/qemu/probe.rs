//! What this host's QEMU can do: asked of a throw-away QEMU, never assumed.
//!
//! `/dev/kvm` may open, tell its version and make a VM, and QEMU still aborts with the first processor. So a halted QEMU is
//! started with `-accel kvm` and a processor, let go, asked whether it runs, and ended. What fails becomes the reason
//! that people are shown for the slower emulation.

use super::{
    process::{self, Proc},
    qmp::{Connected, Qmp},
    record,
    scope::Scope,
};
use crate::{Error, Result, limits::PROBE_DEADLINE};
use serde_json::{Value, json};
use std::{
    fs::File,
    io::{Read, Seek},
    os::fd::{AsRawFd, OwnedFd},
    path::{Path, PathBuf},
};
use tokio::{net::UnixStream, time::timeout};
use vbm_core::Accelerator;

/// The program, as Debian names it.
pub(super) const PROGRAM: &str = "qemu-system-x86_64";
/// The Debian package that has it.
pub(crate) const DEBIAN_PACKAGE: &str = "qemu-system-x86";

/// CPU models by preference: the newest that the accelerator offers whole. Named and versioned, so that a guest keeps its CPU.
const CPU_PREFERENCE: &[&str] = &[
    "EPYC-Milan-v1",
    "EPYC-Rome-v1",
    "EPYC-v1",
    "Icelake-Server-v2",
    "Cascadelake-Server-v3",
    "Skylake-Server-v3",
    "Broadwell-v2",
    "Haswell-v2",
    "IvyBridge-v1",
    "SandyBridge-v1",
    "Westmere-v1",
    "Nehalem-v1",
    "qemu64-v1",
];

/// How guests are to be run, where somebody insists.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum AcceleratorChoice {
    /// By the processor. A host that cannot is an error.
    Kvm,
    /// By emulation, without looking for anything faster.
    Tcg,
}

/// What was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Found {
    pub(super) program: PathBuf,
    /// `10.0.2 (Debian 1:10.0.2+ds-2)`.
    pub(super) version: String,
    pub(super) accelerator: Accelerator,
    /// The versioned machine types, the current q35 first.
    pub(super) machines: Vec<String>,
    /// The CPU model for new VMs.
    pub(super) cpu: String,
    /// All CPU models that the accelerator offers whole.
    pub(super) cpus: Vec<String>,
}

/// Finds out. The result holds as long as the host is up and QEMU is not replaced.
pub(super) async fn probe(
    program: Option<&Path>,
    choice: Option<AcceleratorChoice>,
    kvm: &Path,
    scope: &Scope,
) -> Result<Found> {
    let program = find(program)?;
    let why_not = match choice {
        Some(AcceleratorChoice::Tcg) => "emulation was chosen".to_owned(),
        _ => match try_kvm(&program, kvm, scope).await {
            Ok(found) => return Ok(found),
            Err(why) => why,
        },
    };
    if choice == Some(AcceleratorChoice::Kvm) {
        return Err(Error::Unsupported {
            driver: vbm_core::DriverKind::Qemu,
            what: "run guests by KVM".into(),
            why: why_not,
        });
    }
    let reason = format!("{why_not}; guests are emulated, about ten times slower");
    try_out(&program, "tcg", "max", reason, scope).await
}

fn find(program: Option<&Path>) -> Result<PathBuf> {
    let missing = |program: &Path| Error::MissingProgram {
        program: program.display().to_string(),
        package: DEBIAN_PACKAGE,
    };
    if let Some(program) = program {
        return if program.is_file() {
            Ok(program.to_owned())
        } else {
            Err(missing(program))
        };
    }
    find_program(PROGRAM, DEBIAN_PACKAGE)
}

/// A program of the search path.
pub(super) fn find_program(name: &str, package: &'static str) -> Result<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .map(|dir| dir.join(name))
        .find(|file| file.is_file())
        .ok_or_else(|| Error::MissingProgram {
            program: name.to_owned(),
            package,
        })
}

/// Why KVM cannot be used, for people.
async fn try_kvm(program: &Path, kvm: &Path, scope: &Scope) -> Result<Found, String> {
    let device = kvm.display();
    File::options().read(true).write(true).open(kvm).map_err(|error| match error.kind() {
        std::io::ErrorKind::NotFound => {
            format!("there is no {device}: switch on virtualisation in the firmware and load kvm_intel or kvm_amd")
        }
        std::io::ErrorKind::PermissionDenied => format!("{device} may not be opened: join the group kvm"),
        _ => format!("{device} cannot be opened: {error}"),
    })?;
    let reason = "the processor's virtualisation works".to_owned();
    try_out(program, "kvm", "host", reason, scope)
        .await
        .map_err(|error| {
            let why = match error {
                Error::StartFailed { why } => why,
                other => vbm_core::Error::from(other).inline(),
            };
            format!("{device} opens, but QEMU fails on it ({why})")
        })
}

/// A process that never outlives its holder.
struct ThrowAway(Proc);

impl Drop for ThrowAway {
    fn drop(&mut self) {
        self.0.kill();
    }
}

async fn try_out(
    program: &Path,
    accelerator: &str,
    cpu: &str,
    reason: String,
    scope: &Scope,
) -> Result<Found> {
    let mut words =
        File::from(rustix::fs::memfd_create("vbm-probe", rustix::fs::MemfdFlags::CLOEXEC).map_err(no_start)?);
    let (ours, theirs) = std::os::unix::net::UnixStream::pair().map_err(no_start)?;
    let theirs = OwnedFd::from(theirs);
    let args: Vec<String> = [
        "-S",
        "-nodefaults",
        "-no-user-config",
        "-display",
        "none",
        "-machine",
        "q35",
        "-m",
        "32M",
        "-accel",
        accelerator,
        "-cpu",
        cpu,
        "-chardev",
        &format!("socket,id=q,fd={}", theirs.as_raw_fd()),
        "-mon",
        "chardev=q,mode=control",
    ]
    .map(str::to_owned)
    .into();
    let log = words.try_clone().map_err(no_start)?;
    let qemu = ThrowAway(process::spawn(
        program,
        &args,
        std::slice::from_ref(&theirs),
        log,
        process::Bond::DiesWithUs,
    )?);
    drop(theirs);
    let asked = timeout(PROBE_DEADLINE, ask(ours, scope)).await;
    if let Ok(Ok((version, machines, cpus))) = asked {
        // It was asked to quit; the guard ends it should it not.
        drop(timeout(PROBE_DEADLINE, qemu.0.exited()).await);
        let choice = choose_cpu(&cpus).unwrap_or(cpu).to_owned();
        return Ok(Found {
            program: program.to_owned(),
            version,
            accelerator: Accelerator {
                name: accelerator.to_owned(),
                reason,
            },
            machines,
            cpu: choice,
            cpus,
        });
    }
    qemu.0.kill();
    let exit = timeout(PROBE_DEADLINE, qemu.0.exited()).await.unwrap_or_default();
    let mut text = String::new();
    let read = words.rewind().and_then(|()| words.read_to_string(&mut text));
    let why = match (read, record::one_line(&text), asked) {
        (Ok(_), said, _) if !said.is_empty() => short(&said),
        (_, _, Err(_)) => format!("it did not answer within {PROBE_DEADLINE:?}"),
        _ => format!("it ended early: {exit:?}"),
    };
    Err(Error::StartFailed { why })
}

fn no_start(error: impl Into<std::io::Error>) -> Error {
    Error::StartFailed {
        why: error.into().to_string(),
    }
}

/// QEMU's message without its own name, short enough for a table.
fn short(said: &str) -> String {
    let first = said.split("; ").next().unwrap_or(said);
    let plain = first.split_once(": ").map_or(first, |(_, rest)| rest);
    plain
        .strip_prefix("error: ")
        .unwrap_or(plain)
        .chars()
        .take(160)
        .collect()
}

/// Lets it go, asks what it can do, ends it.
async fn ask(
    stream: std::os::unix::net::UnixStream,
    scope: &Scope,
) -> Result<(String, Vec<String>, Vec<String>)> {
    stream.set_nonblocking(true).map_err(no_start)?;
    let stream = UnixStream::from_std(stream).map_err(no_start)?;
    let Connected { qmp, greeting, .. } = Qmp::negotiate(stream, scope).await?;
    qmp.execute("cont", Value::Null).await?;
    let status = qmp.execute("query-status", Value::Null).await?;
    if status["running"] != json!(true) {
        return Err(Error::StartFailed {
            why: format!("its processor does not run ({})", status["status"]),
        });
    }
    let machines = machines_of(&qmp.execute("query-machines", Value::Null).await?);
    let cpus = cpus_of(&qmp.execute("query-cpu-definitions", Value::Null).await?);
    // It may be gone before it answers.
    drop(qmp.execute("quit", Value::Null).await);
    let package = match greeting.package.as_str() {
        "" => String::new(),
        package => format!(" ({package})"),
    };
    Ok((format!("{}{package}", greeting.version), machines, cpus))
}

/// The names of the q35 machine types; the one that `q35` stands for first.
fn machines_of(reply: &Value) -> Vec<String> {
    let mut list: Vec<(bool, String)> = reply
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|machine| {
            let name = machine["name"].as_str()?;
            name.starts_with("pc-q35-")
                .then(|| (machine["alias"] != json!("q35"), name.to_owned()))
        })
        .collect();
    list.sort();
    list.into_iter().map(|(_, name)| name).collect()
}

/// The names of the CPU models that lack nothing here.
fn cpus_of(reply: &Value) -> Vec<String> {
    let whole = |cpu: &&Value| {
        cpu["unavailable-features"]
            .as_array()
            .is_none_or(|missing| missing.is_empty())
    };
    let names = reply
        .as_array()
        .into_iter()
        .flatten()
        .filter(whole)
        .filter_map(|cpu| cpu["name"].as_str());
    names.map(str::to_owned).collect()
}

fn choose_cpu(whole: &[String]) -> Option<&'static str> {
    CPU_PREFERENCE
        .iter()
        .find(|name| whole.iter().any(|cpu| cpu == *name))
        .copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_current_machine_type_comes_first() {
        let reply = json!([
            { "name": "pc-q35-9.2" }, { "name": "pc-i440fx-10.0", "alias": "pc" }, { "name": "pc-q35-10.0", "alias": "q35" }, 7
        ]);
        assert_eq!(machines_of(&reply), ["pc-q35-10.0", "pc-q35-9.2"]);
        assert!(machines_of(&json!({ "not": "a list" })).is_empty());
    }

    #[test]
    fn a_cpu_is_chosen_only_if_nothing_of_it_is_missing() {
        let reply = json!([
            { "name": "Haswell-v2", "unavailable-features": ["pcid"] },
            { "name": "Nehalem-v1", "unavailable-features": [] }, { "name": "Westmere-v1", "unavailable-features": [] },
        ]);
        assert_eq!(choose_cpu(&cpus_of(&reply)), Some("Westmere-v1"));
        assert_eq!(choose_cpu(&[]), None);
    }

    #[test]
    fn the_reason_is_the_first_thing_qemu_said() {
        let said = "qemu-system-x86_64: error: failed to set MSR 0x10a to 0xc000069; qemu-system-x86_64: target/i386/kvm: Assertion";
        assert_eq!(short(said), "failed to set MSR 0x10a to 0xc000069");
    }

    #[tokio::test]
    async fn a_program_that_is_not_there_is_named_with_its_package() {
        let error = probe(
            Some(Path::new("/nonexistent/qemu")),
            None,
            Path::new("/dev/kvm"),
            &Scope::default(),
        )
        .await
        .unwrap_err();
        let error = vbm_core::Error::from(error);
        assert_eq!(error.kind(), vbm_core::ErrorKind::MissingDependency);
        assert!(error.fix().contains("qemu-system-x86"));
    }

    #[tokio::test]
    async fn a_program_that_is_no_qemu_is_told_by_its_own_words() {
        let error = probe(
            Some(Path::new("/bin/false")),
            None,
            Path::new("/dev/kvm"),
            &Scope::default(),
        )
        .await
        .unwrap_err();
        assert!(matches!(error, Error::StartFailed { .. }), "{error}");
    }
}
