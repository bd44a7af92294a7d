//! The doctor: looks at this host, says what is wrong and what to do, and mends what it may.
//!
//! It works without a daemon. What it finds of an instance is judged by the instance:
//!
//! | instance | its VMs and networks |
//! |---|---|
//! | its daemon lives | are its daemon's business: left alone |
//! | its daemon is gone, VMs run | are left for the daemon's return; ended only with `--end-vms`, or when the instance is ephemeral |
//! | its daemon is gone, no VM runs | networks are removed; the daemon makes them again when it returns |
//! | nobody knows it | are removed |

use crate::server::instance::{ROOT_REGISTRY, Registered, registered};
use crate::source::SystemClock;
use serde::Serialize;
use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    sync::Arc,
};
use vbm_core::{Capability, Error, ErrorKind};
use vbm_hyper::{Driver, QemuConfig, QemuDriver};
use vbm_net::{HostConfig, HostNetwork, doctor as network_doctor};

/// How a check ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum State {
    /// As it should be.
    Ok,
    /// Works, but not as well as it could.
    Warning,
    /// Does not work, or something is left over.
    Problem,
    /// Was a problem, and was mended.
    Fixed,
}

/// One thing that was looked at.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// What was looked at.
    pub check: String,
    /// How it is.
    pub state: State,
    /// What was seen.
    pub detail: String,
    /// What to do.
    pub fix: Option<String>,
}

impl Finding {
    fn new(check: &str, state: State, detail: impl Into<String>) -> Self {
        Self {
            check: check.to_owned(),
            state,
            detail: detail.into(),
            fix: None,
        }
    }

    fn fix(mut self, fix: impl Into<String>) -> Self {
        self.fix = Some(fix.into());
        self
    }

    fn problem(check: &str, error: &Error) -> Self {
        Self::new(check, State::Problem, error.inline()).fix(error.fix())
    }
}

/// Looks at this host. With `fix`, mends what it may; with `end_vms` too, ends VMs whose daemon is gone.
///
/// # Cancel safety
/// May be dropped at any time; what was mended stays mended.
pub async fn examine(fix: bool, end_vms: bool) -> Vec<Finding> {
    let scratch = std::env::temp_dir().join(format!("vbm-doctor-{}", std::process::id()));
    let mut findings = vec![rights(), hypervisor(&scratch).await, networks(&scratch).await];
    // It holds nothing that anybody misses.
    drop(fs::remove_dir_all(&scratch));
    findings.extend(instances(fix, end_vms).await);
    findings
}

fn rights() -> Finding {
    if nix::unistd::geteuid().is_root() {
        return Finding::new("rights", State::Ok, "runs as root");
    }
    Finding::new(
        "rights",
        State::Warning,
        "does not run as root: networks cannot be made, and little can be seen",
    )
    .fix("run it with sudo")
}

async fn hypervisor(scratch: &Path) -> Finding {
    const CHECK: &str = "qemu";
    let driver = match QemuDriver::open(QemuConfig::new(scratch.join("vm"))).await {
        Ok(driver) => driver,
        Err(e) => return Finding::problem(CHECK, &Error::from(e)),
    };
    let Capability {
        version,
        accelerator,
        problem,
        ..
    } = driver.probe().await;
    driver.shutdown().await;
    match (problem, accelerator) {
        (Some(problem), _) => Finding::problem(CHECK, &problem),
        (None, Some(a)) if a.name == "kvm" => Finding::new(CHECK, State::Ok, format!("{version}, with KVM")),
        (None, Some(a)) => Finding::new(
            CHECK,
            State::Warning,
            format!("{version}, by emulation ({}): {}", a.name, a.reason),
        )
        .fix("guests run, some 10 times slower; use a host with working KVM"),
        (None, None) => Finding::new(CHECK, State::Ok, version),
    }
}

async fn networks(scratch: &Path) -> Finding {
    const CHECK: &str = "networks";
    match HostNetwork::open(HostConfig::new(
        "doctor",
        scratch.join("net"),
        Arc::new(SystemClock),
    ))
    .await
    {
        Ok(host) => {
            vbm_net::NetworkBackend::shutdown(&host).await;
            Finding::new(CHECK, State::Ok, "namespaces, bridges and rules can be made")
        }
        Err(e) => Finding::problem(CHECK, &Error::from(e)),
    }
}

/// Takes away all that ephemeral instances with these tags left on the host, VMs included. One whose daemon lives, or that is
/// meant to be kept, is left alone.
///
/// # Errors
/// The first thing that could not be removed; the others are.
pub(crate) async fn remove_instances(tags: &BTreeSet<String>) -> Result<(), Error> {
    let failed = |why: String| {
        Error::new(
            ErrorKind::Unavailable,
            "something was left on the host",
            why,
            "see `vbm doctor`",
        )
    };
    let known = registered(Path::new(ROOT_REGISTRY)).map_err(|e| failed(e.to_string()))?;
    let mut problem = None;
    let mut gone = BTreeSet::new();
    let theirs = |i: &&Registered| i.record.ephemeral && i.claimed.is_some() && tags.contains(&i.record.tag);
    for instance in known.iter().filter(theirs) {
        let (found, settled) = abandoned(instance, true, true).await;
        problem = problem.or(found.into_iter().find(|f| f.state == State::Problem));
        if settled {
            gone.insert(instance.record.tag.clone());
        }
    }
    network_doctor::remove_owners(&gone).await.map_err(Error::from)?;
    for instance in known.iter().filter(|i| gone.contains(&i.record.tag)) {
        forget(instance).map_err(|e| failed(e.to_string()))?;
    }
    problem.map_or(Ok(()), |f| Err(failed(f.detail)))
}

/// Where the VMs of the instances of this host have their run directories.
pub(crate) fn run_dirs_of_vms() -> Vec<PathBuf> {
    let known = registered(Path::new(ROOT_REGISTRY)).unwrap_or_default();
    known
        .iter()
        .map(|instance| instance.record.run_dir.join("vm"))
        .collect()
}

/// What instances left on the host.
async fn instances(fix: bool, end_vms: bool) -> Vec<Finding> {
    const CHECK: &str = "leftovers";
    let known = match registered(Path::new(ROOT_REGISTRY)) {
        Ok(known) => known,
        Err(e) => {
            return vec![
                Finding::new(CHECK, State::Problem, format!("{ROOT_REGISTRY}: {e}")).fix("run it with sudo"),
            ];
        }
    };
    let mut findings = Vec::new();
    let mut spared = BTreeSet::new();
    for instance in &known {
        let tag = &instance.record.tag;
        if instance.claimed.is_none() {
            spared.insert(tag.clone());
            let at = instance
                .record
                .socket
                .as_ref()
                .map(|s| format!(" at {}", s.display()))
                .unwrap_or_default();
            findings.push(Finding::new(
                "daemon",
                State::Ok,
                format!("instance {tag} is served{at}"),
            ));
            continue;
        }
        let (found, settled) = abandoned(instance, fix, end_vms).await;
        findings.extend(found);
        if !settled {
            spared.insert(tag.clone());
        }
    }
    findings.extend(leftover_networks(fix, &spared).await);
    if fix {
        for instance in known.iter().filter(|i| !spared.contains(&i.record.tag)) {
            findings.extend(
                forget(instance)
                    .err()
                    .map(|e| Finding::new(CHECK, State::Problem, e.to_string())),
            );
        }
    }
    if !findings.iter().any(|f| f.check == "daemon" || f.check == CHECK) {
        findings.push(Finding::new(CHECK, State::Ok, "nothing of VBM is on this host"));
    }
    findings
}

/// The VMs of an instance whose daemon is gone. The second value says whether none of them runs any more.
async fn abandoned(instance: &Registered, fix: bool, end_vms: bool) -> (Vec<Finding>, bool) {
    const CHECK: &str = "leftovers";
    let record = &instance.record;
    let place = format!("instance {} ({})", record.tag, record.data_dir.display());
    let config = QemuConfig::new(record.run_dir.join("vm")).with_state(record.data_dir.join("vm"));
    let driver = match QemuDriver::open(config).await {
        Ok(driver) => driver,
        Err(e) => return (vec![Finding::problem(CHECK, &Error::from(e))], false),
    };
    let adopted = match driver.adopt().await {
        Ok(adopted) => adopted,
        Err(e) => return (vec![Finding::problem(CHECK, &Error::from(e))], false),
    };
    let mut findings = Vec::new();
    let mut settled = true;
    for vm in adopted.iter().filter(|vm| vm.seen.pid.is_some()) {
        let what = format!("VM {} of {place} runs without its daemon", vm.definition.name);
        if !(fix && (end_vms || record.ephemeral)) {
            settled = false;
            let fix = if record.ephemeral {
                "end it with `vbm doctor --fix`"
            } else {
                "start its vbmd again, or end it with `vbm doctor --fix --end-vms`"
            };
            findings.push(Finding::new(CHECK, State::Problem, what).fix(fix));
            continue;
        }
        match driver.kill(vm.id).await {
            Ok(()) => findings.push(Finding::new(CHECK, State::Fixed, format!("{what}: ended"))),
            Err(e) => {
                settled = false;
                findings.push(Finding::problem(CHECK, &Error::from(e)));
            }
        }
    }
    driver.shutdown().await;
    (findings, settled)
}

/// What is on the host of instances that are not spared.
async fn leftover_networks(fix: bool, spared: &BTreeSet<String>) -> Vec<Finding> {
    const CHECK: &str = "leftovers";
    let found = match network_doctor::find_orphans().await {
        Ok(found) => found,
        Err(e) => return vec![Finding::problem(CHECK, &Error::from(e))],
    };
    let orphans: Vec<_> = found.into_iter().filter(|f| !spared.contains(&f.owner)).collect();
    if orphans.is_empty() {
        return Vec::new();
    }
    let listed =
        |what: &str| Finding::new(CHECK, State::Problem, what).fix("remove it with `vbm doctor --fix`");
    if !fix {
        return orphans
            .iter()
            .map(|f| listed(&format!("{} of instance {}", f.what, f.owner)))
            .collect();
    }
    let owners = orphans.iter().map(|f| f.owner.clone()).collect();
    match network_doctor::remove_owners(&owners).await {
        Ok(removed) => removed
            .into_iter()
            .map(|what| Finding::new(CHECK, State::Fixed, format!("removed {what}")))
            .collect(),
        Err(e) => vec![Finding::problem(CHECK, &Error::from(e))],
    }
}

/// Removes what only a living instance needs; of an ephemeral one, everything.
fn forget(instance: &Registered) -> std::io::Result<()> {
    let record = &instance.record;
    let remove = |path: &PathBuf| match fs::remove_dir_all(path) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(()),
        other => other,
    };
    remove(&record.run_dir)?;
    // Only a directory that bears this instance's tag is its own.
    let owned =
        fs::read_to_string(record.data_dir.join("instance")).is_ok_and(|tag| tag.trim() == record.tag);
    if record.ephemeral && owned {
        remove(&record.data_dir)?;
    }
    instance.remove()
}
