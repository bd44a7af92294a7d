//! The snapshots of a VM.

use super::{
    Client,
    call::{Call, Listing, json},
    path::ApiPath,
};
use crate::api::{Accepted, CreateSnapshot, SnapshotView};
use hyper::Method;
use vbm_core::{Error, Name};

/// The snapshots of one VM. Where one is named, a name, an id or the beginning of an id serves.
#[derive(Clone, Debug)]
pub struct Snapshots {
    client: Client,
    vm: String,
}

impl Snapshots {
    pub(super) fn new(client: &Client, vm: &str) -> Self {
        Self {
            client: client.clone(),
            vm: vm.to_owned(),
        }
    }

    fn all(&self) -> Result<ApiPath, Error> {
        ApiPath::one("vms", "vm", &self.vm).map(|path| path.sub("snapshots"))
    }

    fn one(&self, snapshot: impl AsRef<str>) -> Result<ApiPath, Error> {
        self.all()?.item("snapshot", snapshot.as_ref())
    }

    /// All of them, the oldest first.
    pub fn list(&self) -> Listing<SnapshotView> {
        Listing::at(&self.client, "snapshots", self.all())
    }

    /// The one of this name or id. Absent is [`vbm_core::ErrorKind::NotFound`].
    pub fn get(&self, snapshot: impl AsRef<str>) -> Call<SnapshotView> {
        Call::new(&self.client, Method::GET, self.one(snapshot), json)
    }

    /// The one of this name or id; `None` when there is none.
    ///
    /// # Errors
    /// Those of [`Call`], but not that it is absent. That the VM is absent counts as well as absent.
    ///
    /// # Cancel safety
    /// Only reads.
    pub async fn get_opt(&self, snapshot: impl AsRef<str>) -> Result<Option<SnapshotView>, Error> {
        match self.get(snapshot).await {
            Err(error) if error.is_not_found() => Ok(None),
            found => found.map(Some),
        }
    }

    /// Takes one: of the disk when the VM is off, of disk and memory when it runs. The operation is over when the VM
    /// can go back to it.
    pub fn create(&self, request: CreateSnapshot) -> Call<Accepted<SnapshotView>> {
        Call::new(&self.client, Method::POST, self.all(), json).with_json(&request)
    }

    /// Goes back to one: what the VM had since then is lost. The operation is over when the VM is as it was: it runs
    /// when the snapshot holds its memory, else it is off.
    pub fn revert(&self, snapshot: impl AsRef<str>) -> Call<Accepted<SnapshotView>> {
        let path = self.one(snapshot).map(|path| path.sub("revert"));
        Call::new(&self.client, Method::POST, path, json)
    }

    /// Deletes one; the VM stays as it is, and may run.
    pub fn delete(&self, snapshot: impl AsRef<str>) -> Call<Accepted<SnapshotView>> {
        Call::new(&self.client, Method::DELETE, self.one(snapshot), json)
    }
}

impl CreateSnapshot {
    /// A snapshot of this name.
    #[must_use]
    pub fn named(name: Name) -> Self {
        Self {
            name: Some(name),
            ..Self::default()
        }
    }
}
