//! Requests about security groups.

use super::{Controller, operations};
use crate::api::{Accepted, CreateGroup, SetRules};
use crate::records::{Edit, until_uncrossed};
use vbm_core::{Error, ErrorKind, EventKind, Group, GroupId, GroupSpec, Kind, Meta, ObjectRef, Port, Result};

impl Controller {
    /// Makes a group.
    ///
    /// # Errors
    /// A rule makes no sense, or the name is taken.
    pub async fn create_group(&self, request: &CreateGroup) -> Result<Group> {
        let spec = spec_of(request.rules.clone())?;
        let group = Group {
            meta: Meta::new(
                GroupId::from_uuid(self.inner.ids.next()),
                request.name.clone(),
                self.inner.clock.now(),
            ),
            spec,
        };
        let event = self.event(EventKind::GroupCreated, target(&group), describe(&group.spec));
        self.records()
            .commit(Edit::default().create(&group).event(&event))
            .await?;
        Ok(group)
    }

    /// Replaces the rules of a group, on every port that has it.
    ///
    /// # Errors
    /// A rule makes no sense, the group does not exist, or it changed since the caller read it.
    pub async fn set_rules(&self, group: &str, request: &SetRules) -> Result<Accepted<Group>> {
        let id = self.records().resolve::<Group>(group).await?.value.meta.id;
        let spec = spec_of(request.rules.clone())?;
        loop {
            let held = self.records().must::<Group>(id).await?;
            let mut group = held.value.clone();
            if request.generation.is_some_and(|g| g != group.meta.generation) {
                break;
            }
            group.spec = spec.clone();
            group.meta.generation = group.meta.generation.next();
            let event = self.event(EventKind::GroupChanged, target(&group), describe(&group.spec));
            let operation = self.operation(operations::APPLY, target(&group), group.meta.generation);
            match self
                .records()
                .commit(
                    Edit::default()
                        .update(&held, &group)
                        .event(&event)
                        .create(&operation),
                )
                .await
            {
                Err(e) if e.kind() == ErrorKind::Stale => {}
                done => {
                    return done.map(|_| Accepted {
                        item: group,
                        operation,
                    });
                }
            }
        }
        Err(Error::new(
            ErrorKind::Stale,
            format!("the rules of {group} were not changed"),
            "somebody else changed the group in between",
            "read the group again and repeat",
        ))
    }

    /// Deletes a group that no port has.
    ///
    /// # Errors
    /// It does not exist or is in use.
    pub async fn delete_group(&self, group: &str) -> Result<Group> {
        let id = self.records().resolve::<Group>(group).await?.value.meta.id;
        until_uncrossed(|| async {
            let held = self.records().must::<Group>(id).await?;
            let users = self
                .records()
                .all::<Port>()
                .await?
                .into_iter()
                .filter(|p| p.value.spec.groups.contains(&id))
                .count();
            if users > 0 {
                return Err(Error::new(
                    ErrorKind::Conflict,
                    format!("cannot delete group {}", held.value.meta.name),
                    format!("{users} ports have it"),
                    format!("take it off with `vbm group detach {} VM`", held.value.meta.name),
                ));
            }
            let event = self.event(EventKind::GroupDeleted, target(&held.value), "");
            self.records()
                .commit(Edit::default().delete(&held).event(&event))
                .await?;
            Ok(held.value)
        })
        .await
    }
}

fn spec_of(mut rules: Vec<vbm_core::Rule>) -> Result<GroupSpec> {
    rules.sort();
    rules.dedup();
    let spec = GroupSpec { rules };
    spec.check()?;
    Ok(spec)
}

fn target(group: &Group) -> ObjectRef {
    ObjectRef::new(Kind::Group, group.meta.id, &group.meta.name)
}

fn describe(spec: &GroupSpec) -> String {
    if spec.rules.is_empty() {
        return "no rules: nothing passes".to_owned();
    }
    spec.rules
        .iter()
        .map(ToString::to_string)
        .collect::<Vec<_>>()
        .join(", ")
}
