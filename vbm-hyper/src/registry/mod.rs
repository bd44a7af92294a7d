//! The drivers of one host: what each can do, how each fares, and who may use the processor.
//!
//! ```text
//!   Registry --report(kind)--> DriverReport { host's capability, missing facets, health, hints }   probed again by age, or
//!      |                                                                                         after starts that failed
//!      |--missing_for(kind, VM, facet)--> why this VM cannot
//!      `--Gate--> Machines: may this VM start? who has the processor's virtualisation? how did it go?
//! ```
//!
//! Two levels of capability: whether a hypervisor works here and what it offers ([`Registry::report`]), and what one VM can do on it
//! ([`Registry::missing_for`]). Each "no" has its reason. The registry starts nothing and wraps nothing: it is asked.

mod hardware;
mod matrix;
#[cfg(test)]
mod tests;

pub use hardware::{Holder, HostFacts, Technique, may_use};
pub use matrix::{CapabilityMatrix, capability_matrix};

use crate::{
    Driver, Error, Facet, Gate, Result, StartPass, VmDefinition,
    limits::{REGISTRY_FAILED_STARTS_MAX, REGISTRY_PROBE_TTL},
};
use async_trait::async_trait;
use std::{
    collections::BTreeMap,
    path::Path,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};
use tokio::time::Instant;
use vbm_core::{Capability, DriverKind, ErrorKind, VmId};

/// How a driver fares.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Health {
    /// Its probe was fine, and its starts succeed.
    Good,
    /// Its probe was fine, but so many of its last starts failed, one after the other.
    Failing(u32),
    /// Its probe has found a problem: nothing can be started.
    Broken,
}

/// What is known of a driver.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct DriverReport {
    /// What its probe found: version, accelerator and why that one; or what is wrong.
    pub capability: Capability,
    /// What it cannot do at all, and why.
    pub missing: Vec<(Facet, String)>,
    /// How it fares.
    pub health: Health,
    /// What to do about what is wrong or slow, for people.
    pub hints: Vec<String>,
}

/// A driver, and what is known of it.
struct Entry {
    driver: Arc<dyn Driver>,
    probed: Option<(Capability, Instant)>,
    /// Starts that failed one after the other, since the last that did not.
    failed: u32,
    last_failure: Option<String>,
}

/// The drivers of a host. Cheap to clone; all clones are the same one.
#[derive(Clone)]
pub struct Registry {
    inner: Arc<Inner>,
}

struct Inner {
    entries: Mutex<BTreeMap<DriverKind, Entry>>,
    /// VMs that are being started, which no inventory shows yet.
    starting: Mutex<Vec<Holder>>,
    host: HostFacts,
}

impl std::fmt::Debug for Registry {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Registry")
            .field("drivers", &self.kinds())
            .finish_non_exhaustive()
    }
}

impl Default for Registry {
    fn default() -> Self {
        Self::on(HostFacts::read(Path::new("/")))
    }
}

impl Registry {
    /// Of this host, without drivers.
    pub fn new() -> Self {
        Self::default()
    }

    /// Of a host of which these things are known.
    pub fn on(host: HostFacts) -> Self {
        let inner = Inner {
            entries: Mutex::default(),
            starting: Mutex::default(),
            host,
        };
        Self {
            inner: Arc::new(inner),
        }
    }

    /// Takes in a driver. It is not probed before somebody asks.
    ///
    /// # Errors
    /// [`Error::Invalid`]: there is one of its kind.
    pub fn add(&self, driver: Arc<dyn Driver>) -> Result<()> {
        let kind = driver.kind();
        let mut entries = self.entries();
        if entries.contains_key(&kind) {
            return Err(Error::invalid(
                format!("a second driver {kind} cannot be added"),
                "a host has one driver of a kind",
                "use the one that is there",
            ));
        }
        let entry = Entry {
            driver,
            probed: None,
            failed: 0,
            last_failure: None,
        };
        entries.insert(kind, entry);
        Ok(())
    }

    /// The kinds that are there.
    pub fn kinds(&self) -> Vec<DriverKind> {
        self.entries().keys().copied().collect()
    }

    /// The driver of a kind.
    ///
    /// # Errors
    /// Unsupported: it is not there; the error names those that are.
    pub fn driver(&self, kind: DriverKind) -> Result<Arc<dyn Driver>> {
        let entries = self.entries();
        if let Some(entry) = entries.get(&kind) {
            return Ok(Arc::clone(&entry.driver));
        }
        let there: Vec<_> = entries.keys().map(ToString::to_string).collect();
        Err(Error::Refused(vbm_core::Error::new(
            ErrorKind::Unsupported,
            format!("there is no driver {kind} here"),
            match there.is_empty() {
                true => "there is none at all".to_owned(),
                false => format!("there are: {}", there.join(", ")),
            },
            "use one of those, or start the agent with that driver",
        )))
    }

    /// What is known of a driver. It is probed when it never was, when that is [`REGISTRY_PROBE_TTL`] ago, and when
    /// [`REGISTRY_FAILED_STARTS_MAX`] starts have failed since.
    ///
    /// # Errors
    /// Unsupported: it is not there.
    pub async fn report(&self, kind: DriverKind) -> Result<DriverReport> {
        let driver = self.driver(kind)?;
        let (known, fresh, again) = match self.entries().get(&kind) {
            Some(entry) => {
                let failing = entry.failed >= REGISTRY_FAILED_STARTS_MAX && entry.last_failure.is_some();
                let young = |(_, at): &(Capability, Instant)| at.elapsed() < REGISTRY_PROBE_TTL;
                let known = entry.probed.clone();
                let fresh = known.as_ref().is_some_and(young) && !failing;
                (
                    known.map(|(capability, _)| capability),
                    fresh,
                    entry.probed.is_some(),
                )
            }
            None => (None, false, false),
        };
        let capability = match known {
            Some(capability) if fresh => capability,
            _ => {
                let found = match again {
                    true => driver.probe_again().await,
                    false => driver.probe().await,
                };
                if let Some(entry) = self.entries().get_mut(&kind) {
                    entry.probed = Some((found.clone(), Instant::now()));
                    if entry.failed >= REGISTRY_FAILED_STARTS_MAX {
                        // It was looked at for them; the count goes on, the next look comes by age or after as many again.
                        entry.last_failure = None;
                    }
                }
                found
            }
        };
        let failed = self.entries().get(&kind).map_or(0, |entry| entry.failed);
        Ok(judge(&*driver, capability, failed))
    }

    /// [`Registry::report`] of each driver.
    pub async fn reports(&self) -> Vec<DriverReport> {
        let mut reports = Vec::new();
        for kind in self.kinds() {
            // It may have gone in between; drivers do not.
            reports.extend(self.report(kind).await.ok());
        }
        reports
    }

    /// Why one VM, so defined, cannot do what its driver can; or why its driver cannot. `None` when it can.
    ///
    /// # Errors
    /// Unsupported: there is no such driver.
    pub fn missing_for(
        &self,
        kind: DriverKind,
        definition: &VmDefinition,
        facet: Facet,
    ) -> Result<Option<String>> {
        Ok(self.driver(kind)?.missing_for(definition, facet))
    }

    /// What all drivers can do.
    pub fn capability_matrix(&self) -> CapabilityMatrix {
        let drivers: Vec<_> = self
            .entries()
            .values()
            .map(|entry| Arc::clone(&entry.driver))
            .collect();
        let drivers: Vec<_> = drivers.iter().map(|driver| &**driver).collect();
        capability_matrix(&drivers)
    }

    fn entries(&self) -> MutexGuard<'_, BTreeMap<DriverKind, Entry>> {
        self.inner.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn starting(&self) -> MutexGuard<'_, Vec<Holder>> {
        self.inner.starting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Who uses the processor's virtualisation, by what the drivers see.
    async fn holders(&self) -> Vec<Holder> {
        let drivers: Vec<_> = self
            .entries()
            .values()
            .map(|entry| Arc::clone(&entry.driver))
            .collect();
        let mut holders = Vec::new();
        for driver in drivers {
            let Ok(inventory) = driver.inventory().await else {
                continue;
            };
            for (vm, seen) in inventory {
                let accelerator = seen
                    .accelerator
                    .as_ref()
                    .map_or("", |accelerator| &accelerator.name);
                if let Some(technique) = Technique::of(driver.kind(), accelerator)
                    && seen.power.is_live()
                {
                    holders.push(Holder {
                        vm,
                        driver: driver.kind(),
                        technique,
                    });
                }
            }
        }
        holders
    }
}

/// Takes a start that is over off the list.
struct Pass {
    registry: Registry,
    holder: Holder,
}

impl Drop for Pass {
    fn drop(&mut self) {
        let mut starting = self.registry.starting();
        if let Some(at) = starting.iter().position(|holder| *holder == self.holder) {
            starting.swap_remove(at);
        }
    }
}

#[async_trait]
impl Gate for Registry {
    /// Refuses a start by a hypervisor that cannot have the processor's virtualisation beside those who have it.
    async fn may_start(&self, kind: DriverKind, vm: VmId) -> Result<StartPass> {
        let capability = self.report(kind).await?.capability;
        let accelerator = capability.accelerator.as_ref().map_or("", |a| &a.name);
        let Some(technique) = Technique::of(kind, accelerator) else {
            return Ok(Box::new(()));
        };
        let holder = Holder {
            vm,
            driver: kind,
            technique,
        };
        let virtualbox = match kind {
            DriverKind::VirtualBox => capability.version,
            _ => self.known_version(DriverKind::VirtualBox),
        };
        // The place is taken before others are looked for: of two that start at once at least one sees the other.
        self.starting().push(holder);
        let pass = Pass {
            registry: self.clone(),
            holder,
        };
        let mut holders = self.holders().await;
        holders.extend(self.starting().iter().filter(|other| **other != holder));
        may_use(technique, &self.inner.host, &virtualbox, &holders).map_err(Error::Refused)?;
        Ok(Box::new(pass))
    }

    fn has_started(&self, kind: DriverKind, failed: Option<&Error>) {
        let mut entries = self.entries();
        let Some(entry) = entries.get_mut(&kind) else {
            return;
        };
        match failed {
            None => (entry.failed, entry.last_failure) = (0, None),
            // Only what speaks against the hypervisor counts; a definition that makes no sense does not.
            Some(
                error @ (Error::StartFailed { .. } | Error::MissingProgram { .. } | Error::Timeout { .. }),
            ) => {
                entry.failed = entry.failed.saturating_add(1);
                if entry.failed.is_multiple_of(REGISTRY_FAILED_STARTS_MAX) {
                    entry.last_failure = Some(error.to_string());
                }
            }
            Some(_) => {}
        }
    }
}

impl Registry {
    /// The version that the last probe found, or nothing.
    fn known_version(&self, kind: DriverKind) -> String {
        let entries = self.entries();
        let probed = entries.get(&kind).and_then(|entry| entry.probed.as_ref());
        probed.map_or_else(String::new, |(capability, _)| capability.version.clone())
    }
}

/// What a probe and the last starts mean: pure but for what the driver says of itself.
fn judge(driver: &dyn Driver, capability: Capability, failed: u32) -> DriverReport {
    let health = match (&capability.problem, failed) {
        (Some(_), _) => Health::Broken,
        (None, failed) if failed >= REGISTRY_FAILED_STARTS_MAX => Health::Failing(failed),
        (None, _) => Health::Good,
    };
    let mut hints = Vec::new();
    if let Some(problem) = &capability.problem {
        hints.push(problem.fix().to_owned());
    }
    if let Some(accelerator) = capability.accelerator.as_ref().filter(|a| a.name == "tcg") {
        hints.push(format!("guests are emulated, slowly: {}", accelerator.reason));
    }
    if let Health::Failing(times) = health {
        hints.push(format!(
            "the last {times} starts failed although the probe is fine: look at the log of one of those VMs"
        ));
    }
    DriverReport {
        missing: matrix::missing(driver),
        capability,
        health,
        hints,
    }
}
