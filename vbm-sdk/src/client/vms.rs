//! Virtual machines.

use super::{
    Client,
    call::{Call, Listing, json, raw, spoken},
    console::{self, Console},
    nouns::readable,
    path::ApiPath,
    snapshots::Snapshots,
};
use crate::api::{
    Accepted, LaunchRequest, List, MigrateRequest, MoveCheckView, Placement, PowerAction, PowerRequest,
    SetGroups, SetPort, VmView,
};
use bytes::Bytes;
use futures::{FutureExt, future::BoxFuture};
use hyper::Method;
use std::{future::IntoFuture, time::Duration};
use vbm_core::{Error, ErrorKind};

/// Virtual machines. Where one is named, a name, an id or the beginning of an id serves.
#[derive(Clone, Debug)]
pub struct Vms(pub(super) Client);

readable!(Vms, "vms", "vm", VmView);

impl Vms {
    /// Makes a VM and, unless asked not to, starts it. The operation is over when it runs.
    pub fn launch(&self, request: LaunchRequest) -> Call<Accepted<VmView>> {
        Call::new(&self.0, Method::POST, Ok(ApiPath::of("vms")), json).with_json(&request)
    }

    /// Deletes a VM with its disk, ports and forwards. One that runs is [`ErrorKind::Conflict`], unless
    /// [`force`](Delete::force) is said.
    pub fn delete(&self, vm: impl AsRef<str>) -> Delete {
        Delete(Call::new(
            &self.0,
            Method::DELETE,
            ApiPath::one("vms", "vm", vm.as_ref()),
            json,
        ))
    }

    /// Whether it could be moved like that: what is looked at before, and what was found. Nothing is changed.
    pub fn check_migrate(&self, vm: impl AsRef<str>, request: &MigrateRequest) -> Call<List<MoveCheckView>> {
        Call::new(&self.0, Method::POST, below(vm, "migrate/check"), json).with_json(request)
    }

    /// Moves it to another node, or to the one that fits best. The operation is over when it is there.
    pub fn migrate(&self, vm: impl AsRef<str>, request: &MigrateRequest) -> Call<Accepted<VmView>> {
        Call::new(&self.0, Method::POST, below(vm, "migrate"), json).with_json(request)
    }

    /// What the scheduler thinks of each node for it, the best first.
    pub fn placement(&self, vm: impl AsRef<str>) -> Call<List<Placement>> {
        Call::new(&self.0, Method::GET, below(vm, "placement"), json)
    }

    /// Changes its power state. The operation is over when that state is seen.
    pub fn power(&self, vm: impl AsRef<str>, action: PowerAction) -> Call<Accepted<VmView>> {
        Call::new(&self.0, Method::POST, below(vm, "power"), json).with_json(&PowerRequest { action })
    }

    /// Its snapshots.
    pub fn snapshots(&self, vm: impl AsRef<str>) -> Snapshots {
        Snapshots::new(&self.0, vm.as_ref())
    }

    /// Replaces the security groups of its ports. The operation is over when the host enforces them.
    pub fn set_groups(&self, vm: impl AsRef<str>, request: SetGroups) -> Call<Accepted<VmView>> {
        Call::new(&self.0, Method::PUT, below(vm, "groups"), json).with_json(&request)
    }

    /// Changes the limits or the floating IP of one of its ports. The operation is over when the host enforces it.
    pub fn set_port(&self, vm: impl AsRef<str>, request: &SetPort) -> Call<Accepted<VmView>> {
        Call::new(&self.0, Method::PATCH, below(vm, "port"), json).with_json(request)
    }

    /// What its serial console said: the last `bytes` of what is kept, or all that is kept.
    pub fn console_log(&self, vm: impl AsRef<str>, bytes: Option<u64>) -> Call<Bytes> {
        Call::new(
            &self.0,
            Method::GET,
            below(vm, "console").map(|p| p.sub("log")),
            raw,
        )
        .with_query("bytes", bytes)
    }

    /// A picture of its screen, as PNG.
    pub fn screenshot(&self, vm: impl AsRef<str>) -> Call<Bytes> {
        Call::new(&self.0, Method::GET, below(vm, "screenshot"), raw)
    }

    /// Its serial console, both ways, from now on.
    ///
    /// # Errors
    /// Those of [`Call`]; [`ErrorKind::Conflict`] when the VM does not run.
    ///
    /// # Cancel safety
    /// Dropping the future closes the connection; the VM does not notice.
    pub async fn console(&self, vm: impl AsRef<str>) -> Result<Console, Error> {
        console::open(&self.0, below(vm, "console")?).await
    }

    /// Waits until the VM is as `condition` wants it. Looks at each event of the VM, and now and then without one.
    pub fn wait_for<F>(&self, vm: impl Into<String>, condition: F) -> WaitFor<F>
    where
        F: Fn(&VmView) -> bool + Send + Sync + 'static,
    {
        WaitFor {
            client: self.0.clone(),
            vm: vm.into(),
            condition,
            deadline: super::OPERATION_DEADLINE,
        }
    }
}

fn below(vm: impl AsRef<str>, word: &str) -> Result<ApiPath, Error> {
    ApiPath::one("vms", "vm", vm.as_ref()).map(|path| path.sub(word))
}

/// The deletion of a VM: a [`Call`] that may be [forced](Self::force).
#[must_use = "a call is sent when it is awaited"]
#[derive(Debug)]
pub struct Delete(Call<Accepted<VmView>>);

impl Delete {
    /// Also when it runs: it is ended first, without asking the guest.
    pub fn force(self, force: bool) -> Self {
        Self(self.0.with_query("force", force.then_some(true)))
    }

    /// How long it may take.
    pub fn deadline(self, deadline: Duration) -> Self {
        Self(self.0.deadline(deadline))
    }

    /// Its idempotency key.
    pub fn key(self, key: impl Into<String>) -> Self {
        Self(self.0.key(key))
    }
}

impl IntoFuture for Delete {
    type Output = Result<Accepted<VmView>, Error>;
    type IntoFuture = BoxFuture<'static, Self::Output>;

    fn into_future(self) -> Self::IntoFuture {
        self.0.into_future()
    }
}

/// How long to rely on events before looking without one.
const LOOK_AGAIN: Duration = Duration::from_secs(2);

/// A wait for a condition of a VM: `.await` begins it and gives the VM as it was then.
///
/// # Errors
/// Those of [`Call`]; [`ErrorKind::DeadlineExceeded`] when the condition was not met in time.
///
/// # Cancel safety
/// Only reads.
#[must_use = "a wait begins when it is awaited"]
#[derive(Debug)]
pub struct WaitFor<F> {
    client: Client,
    vm: String,
    condition: F,
    deadline: Duration,
}

impl<F> WaitFor<F>
where
    F: Fn(&VmView) -> bool + Send + Sync + 'static,
{
    /// How long to wait. [`OPERATION_DEADLINE`](super::OPERATION_DEADLINE) when not said.
    pub const fn deadline(mut self, deadline: Duration) -> Self {
        self.deadline = deadline;
        self
    }

    /// The revision comes first, then the look: what happens in between is an event after that revision.
    async fn watch(self) -> Result<VmView, Error> {
        let now = Listing::<VmView>::new(&self.client, "vms")
            .limit(1)
            .page()
            .await?
            .revision;
        let mut events = self.client.events().from(now).follow().open();
        loop {
            let vm = self.client.vms().get(&self.vm).await?;
            if (self.condition)(&vm) {
                return Ok(vm);
            }
            // Both arms may be dropped at any time: `next` keeps what it has read.
            match tokio::time::timeout(LOOK_AGAIN, events.next()).await {
                Ok(Some(Err(error))) if !error.is_retryable() => return Err(error),
                Ok(None | Some(Err(_))) => events = self.client.events().from(now).follow().open(),
                Ok(Some(Ok(_))) | Err(_) => {}
            }
        }
    }
}

impl<F> IntoFuture for WaitFor<F>
where
    F: Fn(&VmView) -> bool + Send + Sync + 'static,
{
    type Output = Result<VmView, Error>;
    type IntoFuture = BoxFuture<'static, Self::Output>;

    fn into_future(self) -> Self::IntoFuture {
        let (vm, deadline) = (self.vm.clone(), self.deadline);
        async move {
            tokio::time::timeout(deadline, self.watch())
                .await
                .unwrap_or_else(|_passed| {
                    Err(Error::new(
                        ErrorKind::DeadlineExceeded,
                        format!("vm '{vm}' is not as it was waited for"),
                        format!("it did not get there within {}", spoken(deadline)),
                        format!("look at it with `vbm info {vm}`, or wait longer with --timeout"),
                    ))
                })
        }
        .boxed()
    }
}
