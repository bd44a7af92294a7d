//! Requests about security groups.

use super::{Controller, operations};
use crate::api::{Accepted, CreateGroup, SetRules};
use crate::records::Held;
use crate::records::{Edit, until_uncrossed};
use vbm_core::{
    Error, ErrorKind, EventKind, Group, GroupId, GroupSpec, Kind, Meta, Name, ObjectRef, Peer, Port, Result,
};

/// The group that is made when it is first named: as users of OpenStack know it.
const DEFAULT_GROUP: &str = "default";

impl Controller {
    /// Makes a group.
    ///
    /// # Errors
    /// A rule makes no sense, or the name is taken.
    pub async fn create_group(&self, request: &CreateGroup) -> Result<Group> {
        let rules = self.peers_by_id(&request.name, request.rules.clone()).await?;
        let spec = spec_of(rules, request.egress_closed)?;
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
        loop {
            let held = self.records().must::<Group>(id).await?;
            let closed = request.egress_closed.unwrap_or(held.value.spec.egress_closed);
            let rules = self
                .peers_by_id(&held.value.meta.name, request.rules.clone())
                .await?;
            let spec = spec_of(rules, closed)?;
            let mut group = held.value.clone();
            if request.generation.is_some_and(|g| g != group.meta.generation) {
                break;
            }
            group.spec = spec;
            self.room_for_groups(&[], Some(&group)).await?;
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
            self.refuse_spoken_of(&held.value).await?;
            let event = self.event(EventKind::GroupDeleted, target(&held.value), "");
            self.records()
                .commit(Edit::default().delete(&held).event(&event))
                .await?;
            Ok(held.value)
        })
        .await
    }
}

impl Controller {
    /// The group that people call so; `default` is made when it is first named.
    pub(super) async fn group_of(&self, name: &str) -> Result<Held<Group>> {
        match self.records().resolve::<Group>(name).await {
            Err(e) if e.kind() == ErrorKind::NotFound && name == DEFAULT_GROUP => {}
            other => return other,
        }
        let GroupSpec { rules, egress_closed } = GroupSpec::default_group();
        let request = CreateGroup {
            name: name.parse()?,
            rules,
            egress_closed,
        };
        match self.create_group(&request).await {
            // Somebody else made it meanwhile.
            Err(e) if e.kind() != ErrorKind::Conflict => Err(e),
            _ => self.records().resolve::<Group>(name).await,
        }
    }

    /// Rules as they are kept: a peer that was told by name is kept by its id, so that it stays the same group.
    async fn peers_by_id(&self, own: &Name, mut rules: Vec<vbm_core::Rule>) -> Result<Vec<vbm_core::Rule>> {
        for rule in &mut rules {
            let Some(peer) = &rule.peer else { continue };
            let text = match peer {
                Peer::Named(name) if name == own => {
                    rule.peer = Some(Peer::Itself);
                    continue;
                }
                Peer::Itself => continue,
                other => other.to_string(),
            };
            let group = self
                .records()
                .resolve::<Group>(&text)
                .await
                .map_err(|e| e.context(format!("the rule {rule} cannot be kept")))?;
            rule.peer = Some(Peer::Group(group.value.meta.id));
        }
        Ok(rules)
    }

    /// A group that rules of others speak of stays: without it they would admit nobody, and nobody would see why.
    async fn refuse_spoken_of(&self, group: &Group) -> Result<()> {
        let by_id = Some(Peer::Group(group.meta.id));
        let all = self.records().all::<Group>().await?;
        let mut others = all.iter().filter(|g| g.value.meta.id != group.meta.id);
        match others.find(|g| g.value.spec.rules.iter().any(|r| r.peer == by_id)) {
            None => Ok(()),
            Some(other) => Err(Error::new(
                ErrorKind::Conflict,
                format!("cannot delete group {}", group.meta.name),
                format!("rules of group {} speak of it", other.value.meta.name),
                format!(
                    "take them away first: see `vbm group info {}`",
                    other.value.meta.name
                ),
            )),
        }
    }
}

fn spec_of(mut rules: Vec<vbm_core::Rule>, egress_closed: bool) -> Result<GroupSpec> {
    rules.sort();
    rules.dedup();
    let spec = GroupSpec { rules, egress_closed };
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
