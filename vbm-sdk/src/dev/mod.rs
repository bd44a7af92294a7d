//! A cluster on one machine, for those who develop or try VBM: `vbm dev`.
//!
//! ```text
//!   namespace hub                               namespace n1                 namespace n2
//!   -------------                               ------------                 ------------
//!   redis, controllers c1 c2   br0 10.77.0.1    agent n1                     agent n2
//!                               |-- n1 ======== eth0 10.77.0.11              |
//!                               `-- n2 ===================================== eth0 10.77.0.12
//! ```
//!
//! Each node is a namespace with an address of its own: to VBM they are machines apart. Nothing of it touches the host's
//! own network. What is needed to end it stands in `cluster.json` before anything is made, so `down` clears up after
//! any accident; it ends only processes that this cluster started, by pid and start time.

mod ground;
mod plan;
mod process;

pub use plan::{Kind, Member, Options};

use crate::doctor;
use plan::{Plan, member_not_found};
use process::Started;
use serde::{Deserialize, Serialize};
use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    path::{Path, PathBuf},
    time::Duration,
};
use vbm_core::{Error, ErrorKind, Result};

/// How long a member may take until it answers.
const READY_MAX: Duration = Duration::from_secs(60);
/// How long a member may take to end when it is asked to.
const END_MAX: Duration = Duration::from_secs(15);
/// The file that the cluster is known by.
const FILE: &str = "cluster.json";

/// A cluster: its plan, and the processes that carry it.
#[derive(Debug, Serialize, Deserialize)]
pub struct Cluster {
    plan: Plan,
    started: BTreeMap<String, Started>,
    cut: BTreeSet<String>,
}

/// How a member is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct MemberStatus {
    /// Its name: `redis`, `c1`, `n1`, ...
    pub name: String,
    /// What it is.
    pub kind: Kind,
    /// Its address in the cluster.
    pub address: String,
    /// The process, while it lives.
    pub pid: Option<u32>,
    /// Whether it is cut off from the others.
    pub cut: bool,
    /// Its socket, where it has one.
    pub socket: Option<PathBuf>,
    /// What it says.
    pub log: PathBuf,
}

impl Cluster {
    /// Makes a cluster and starts its members, one after the other, each when the one before answers.
    ///
    /// # Errors
    /// A program is missing, the directory holds a cluster, or a member does not come up; what was made is taken away again.
    pub async fn up(options: &Options) -> Result<Self> {
        fs::create_dir_all(&options.dir).map_err(|e| unusable(&options.dir, &e))?;
        let dir = fs::canonicalize(&options.dir).map_err(|e| unusable(&options.dir, &e))?;
        if dir.join(FILE).exists() {
            return Err(Error::new(
                ErrorKind::AlreadyExists,
                format!("{} holds a cluster", dir.display()),
                "it was made by `vbm dev up`",
                "use it, end it with `vbm dev down`, or give this one another --dir",
            ));
        }
        let plan = Plan::new(dir, options)?;
        let mut cluster = Self {
            plan,
            started: BTreeMap::new(),
            cut: BTreeSet::new(),
        };
        cluster.save()?;
        match cluster.raise().await {
            Ok(()) => Ok(cluster),
            Err(e) => {
                if let Err(left) = cluster.down(false).await {
                    tracing::warn!(error = %left.inline(), "the cluster was not cleared away");
                }
                Err(e)
            }
        }
    }

    async fn raise(&mut self) -> Result<()> {
        ground::make(&self.plan).await?;
        let names: Vec<String> = self.plan.members().map(|m| m.name.clone()).collect();
        for name in names {
            self.start(&name).await?;
        }
        Ok(())
    }

    /// The cluster that a directory holds.
    ///
    /// # Errors
    /// It holds none, or it cannot be read.
    pub fn open(dir: &Path) -> Result<Self> {
        let path = dir.join(FILE);
        let bytes = fs::read(&path).map_err(|e| {
            Error::new(
                ErrorKind::NotFound,
                format!("{} holds no cluster", dir.display()),
                e.to_string(),
                "make one with `vbm dev up`, or name its --dir",
            )
        })?;
        serde_json::from_slice(&bytes).map_err(|e| {
            Error::new(
                ErrorKind::Corrupt,
                format!("{} cannot be read", path.display()),
                e.to_string(),
                "it was written by another version: end what runs by hand, and remove the directory",
            )
        })
    }

    fn save(&self) -> Result<()> {
        let dir = self.plan.dir();
        let text = serde_json::to_vec_pretty(self)
            .map_err(|e| Error::internal("the cluster cannot be written down", e.to_string()))?;
        let fresh = dir.join(format!("{FILE}.new"));
        fs::write(&fresh, text)
            .and_then(|()| fs::rename(&fresh, dir.join(FILE)))
            .map_err(|e| unusable(dir, &e))
    }

    /// Starts a member that does not run, and waits until it answers. One that runs is left alone.
    ///
    /// # Errors
    /// There is no such member, or it does not come up; the end of its log says why.
    pub async fn start(&mut self, name: &str) -> Result<()> {
        let member = self.member(name)?.clone();
        if self.alive(name).is_some() {
            return Ok(());
        }
        let from = process::log_length(&member.log);
        let mut started = process::start(&member)?;
        self.started.insert(name.to_owned(), started.record());
        self.save()?;
        started.ready(&member, from, READY_MAX).await
    }

    /// Ends a member: politely, or at once as a crash does.
    ///
    /// # Errors
    /// There is no such member, or it does not end.
    pub async fn stop(&mut self, name: &str, at_once: bool) -> Result<()> {
        self.member(name)?;
        if let Some(started) = self.alive(name) {
            process::end(started, at_once, END_MAX).await?;
        }
        self.started.remove(name);
        self.save()
    }

    /// Takes a node's cable out, or puts it in again.
    ///
    /// # Errors
    /// It is no node, or the kernel refuses.
    pub async fn cut(&mut self, name: &str, cut: bool) -> Result<()> {
        let member = self.member(name)?;
        if member.kind != Kind::Agent {
            return Err(Error::new(
                ErrorKind::InvalidInput,
                format!("{name} cannot be cut off"),
                "Redis and the controllers share one place",
                "cut a node, or end a member with `vbm dev kill`",
            ));
        }
        ground::set_cable(&self.plan, name, !cut).await?;
        if cut {
            self.cut.insert(name.to_owned());
        } else {
            self.cut.remove(name);
        }
        self.save()
    }

    /// How its members are.
    pub fn status(&self) -> Vec<MemberStatus> {
        self.plan
            .members()
            .map(|m| MemberStatus {
                name: m.name.clone(),
                kind: m.kind,
                address: m.address.to_string(),
                pid: self.alive(&m.name).map(|s| s.pid()),
                cut: self.cut.contains(&m.name),
                socket: m.socket.clone(),
                log: m.log.clone(),
            })
            .collect()
    }

    /// The sockets of its controllers, as `vbm --socket` takes them.
    pub fn sockets(&self) -> String {
        let sockets = self.plan.members().filter_map(|m| m.socket.as_ref());
        sockets
            .map(|s| s.display().to_string())
            .collect::<Vec<_>>()
            .join(",")
    }

    /// The namespace of a member, as `ip netns exec` takes it.
    ///
    /// # Errors
    /// There is no such member.
    pub fn namespace(&self, name: &str) -> Result<&str> {
        Ok(&self.member(name)?.namespace)
    }

    /// Ends everything and takes it away: processes, VMs, namespaces, and the directory unless `keep`. Goes past failures, and
    /// gives the first one back.
    ///
    /// # Errors
    /// Something could not be ended or removed; call it again.
    pub async fn down(&mut self, keep: bool) -> Result<()> {
        let mut first = None;
        let mut note = |done: Result<()>| {
            if let Err(e) = done {
                first.get_or_insert(e);
            }
        };
        // Those that were started last end first: agents before controllers before Redis.
        let names: Vec<String> = self.plan.members().map(|m| m.name.clone()).collect();
        for name in names.iter().rev() {
            if let Some(started) = self.alive(name) {
                note(process::end(started, false, END_MAX).await);
            }
        }
        let tags: BTreeSet<String> = self.plan.members().filter_map(Member::instance).collect();
        note(doctor::remove_instances(&tags).await);
        note(ground::remove(&self.plan).await);
        match first {
            Some(e) => Err(e),
            None if keep => self.forget(),
            None => fs::remove_dir_all(self.plan.dir()).map_err(|e| unusable(self.plan.dir(), &e)),
        }
    }

    fn forget(&self) -> Result<()> {
        match fs::remove_file(self.plan.dir().join(FILE)) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => Err(unusable(self.plan.dir(), &e)),
            _ => Ok(()),
        }
    }

    fn member(&self, name: &str) -> Result<&Member> {
        self.plan
            .members()
            .find(|m| m.name == name)
            .ok_or_else(|| member_not_found(name, self.plan.members()))
    }

    fn alive(&self, name: &str) -> Option<&Started> {
        self.started.get(name).filter(|s| s.is_alive())
    }
}

fn unusable(dir: &Path, e: &io::Error) -> Error {
    Error::new(
        ErrorKind::Unavailable,
        format!("the directory {} cannot be used", dir.display()),
        e.to_string(),
        "choose a --dir that you may write",
    )
}
