//! The handle's methods for moves between hosts, which only some drivers can make.

use super::{Job, VmHandle, facets::missing};
use crate::{
    Driver, Facet, Landing, MachineFacts, Migrated, Migration, MoveCheck, MoveOptions, NicBackend, Result,
    Seen, VmDefinition,
};
use std::net::Ipv4Addr;

fn migration(driver: &dyn Driver) -> Result<&dyn Migration> {
    driver
        .migration()
        .ok_or_else(|| missing(driver, Facet::Migration, "move a running VM"))
}

impl VmHandle {
    /// Looks whether it can leave, past any job, and says what it is. See [`Migration::check_source`].
    ///
    /// # Errors
    /// Those of [`Migration::check_source`]; [`crate::Error::Unsupported`].
    pub async fn check_migrate_out(&self, options: &MoveOptions) -> Result<(MachineFacts, Vec<MoveCheck>)> {
        migration(&*self.driver)?
            .check_source(&self.cx, self.id, options)
            .await
    }

    /// Looks whether it could be taken in, past any job. See [`Migration::check_destination`].
    ///
    /// # Errors
    /// Those of [`Migration::check_destination`]; [`crate::Error::Unsupported`].
    pub async fn check_migrate_in(
        &self,
        definition: &VmDefinition,
        machine: &MachineFacts,
        options: &MoveOptions,
    ) -> Result<Vec<MoveCheck>> {
        self.is_mine(definition)?;
        migration(&*self.driver)?
            .check_destination(&self.cx, definition, machine, options)
            .await
    }

    /// Sends it to another host, which waits for it at `to`. See [`Migration::send`]. A force-off calls it off.
    ///
    /// # Errors
    /// Those of [`Migration::send`]; [`crate::Error::Unsupported`]; [`crate::Error::Busy`]; [`crate::Error::Preempted`].
    pub async fn migrate_out(&self, to: impl Into<Landing>, options: MoveOptions) -> Result<Migrated> {
        let (id, to) = (self.id, to.into());
        self.job(Job::MigrateOut, move |driver, cx| {
            Box::pin(async move { migration(driver)?.send(cx, id, &to, &options).await })
        })
        .await
    }

    /// Makes a place for it to arrive, and says where it is to be sent. See [`Migration::receive`]. It is `MigratingIn`
    /// from then on; [`VmHandle::watch`] tells when it runs, or is off because it did not come.
    ///
    /// # Errors
    /// Those of [`Migration::receive`]; [`crate::Error::Unsupported`]; [`crate::Error::Busy`]; [`crate::Error::Preempted`].
    pub async fn migrate_in(
        &self,
        definition: VmDefinition,
        nics: Vec<NicBackend>,
        listen: Ipv4Addr,
        options: MoveOptions,
    ) -> Result<Landing> {
        self.is_mine(&definition)?;
        self.job(Job::MigrateIn, move |driver, cx| {
            Box::pin(async move {
                let migration = migration(driver)?;
                migration.receive(cx, &definition, nics, listen, &options).await
            })
        })
        .await
    }

    /// Lets it go on here, once it has come whole and its source has let go of it. See [`Migration::finish`].
    ///
    /// # Errors
    /// Those of [`Migration::finish`]; [`crate::Error::Unsupported`]; [`crate::Error::Busy`]; [`crate::Error::Preempted`].
    pub async fn finish_arrival(&self) -> Result<Seen> {
        let id = self.id;
        self.job(Job::FinishArrival, move |driver, cx| {
            Box::pin(async move { migration(driver)?.finish(cx, id).await })
        })
        .await
    }

    /// Says that it is still to be waited for, past any job. See [`Migration::renew`].
    ///
    /// # Errors
    /// Those of [`Migration::renew`]; [`crate::Error::Unsupported`].
    pub async fn renew_arrival(&self) -> Result<()> {
        migration(&*self.driver)?.renew(self.id).await
    }

    /// Gives up waiting for it. See [`Migration::abandon`]. It ends the preparation of its arrival, too.
    ///
    /// # Errors
    /// Those of [`Migration::abandon`]; [`crate::Error::Unsupported`]; [`crate::Error::Busy`]; [`crate::Error::Preempted`].
    pub async fn abandon(&self) -> Result<()> {
        let id = self.id;
        self.job(Job::Abandon, move |driver, _| {
            Box::pin(async move { migration(driver)?.abandon(id).await })
        })
        .await
    }
}
