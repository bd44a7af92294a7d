//! What every backend must do about groups, members and allowed addresses.

use super::{Fixture, NetworkMode, expect, lists};
use crate::{DesiredGroup, NetworkBackend};
use vbm_core::{AddressPair, ErrorKind, GroupId, GroupSpec};

fn group(fixture: &Fixture<'_>, rules: &[&str]) -> DesiredGroup {
    DesiredGroup {
        id: GroupId::from_uuid(fixture.ids.next()),
        name: expect("web".parse(), "a name"),
        spec: GroupSpec {
            rules: rules.iter().map(|r| expect(r.parse(), "a rule")).collect(),
            egress_closed: false,
        },
        members: Vec::new(),
    }
}

/// See its name.
///
/// # Panics
/// When it is not so.
pub async fn groups_change_live_and_a_second_ensure_changes_nothing(
    backend: &dyn NetworkBackend,
    fixture: &Fixture<'_>,
) {
    let mut wanted = fixture.network(NetworkMode::Nat, 2);
    wanted.groups = vec![group(fixture, &["any@self", "egress:any"]), group(fixture, &[])];
    let gone = GroupId::from_uuid(fixture.ids.next());
    let (own, other) = (wanted.groups[0].id, wanted.groups[1].id);
    let of_another = format!("icmp@group:{other}");
    let of_nobody = format!("tcp/22@group:{gone}");
    for rules in [
        &["any@self"][..],
        &[
            "tcp/80",
            "egress:udp/53@192.0.2.0/24",
            "icmp/type=8",
            "icmpv6/type=1,code=4",
        ],
        &[&of_another, &of_nobody, "tcp@fd00::/8"],
        &[],
    ] {
        wanted.groups[0].spec.rules = rules.iter().map(|r| expect(r.parse(), "a rule")).collect();
        wanted.groups[0].spec.egress_closed = rules.is_empty();
        wanted.ports[0].policy.groups = vec![own];
        wanted.ports[1].policy.groups = vec![own, other, gone];
        wanted.ports[1].policy.pairs = if rules.len() == 3 {
            let address = expect("fd00::5".parse(), "an address");
            vec![AddressPair::of(address)]
        } else {
            Vec::new()
        };
        let seen = expect(backend.ensure(wanted.clone()).await, "ensure");
        assert!(seen.ready && !seen.changed.is_empty(), "{rules:?}");
        let again = expect(backend.ensure(wanted.clone()).await, "ensure");
        assert_eq!(again.changed, Vec::<String>::new(), "{rules:?} again");
    }
    wanted.groups.clear();
    wanted.ports.iter_mut().for_each(|p| p.policy.groups.clear());
    expect(backend.ensure(wanted.clone()).await, "ensure without groups");
    expect(backend.remove(wanted.id).await, "remove");
}

/// See its name.
///
/// # Panics
/// When it is not so.
pub async fn a_group_that_makes_no_sense_is_refused_whole(
    backend: &dyn NetworkBackend,
    fixture: &Fixture<'_>,
) {
    let mut wanted = fixture.network(NetworkMode::Nat, 1);
    let many: Vec<String> = (1..=10_000).map(|p| format!("tcp/{p}")).collect();
    let many: Vec<&str> = many.iter().map(String::as_str).collect();
    let mut everybody = group(fixture, &["any@self"]);
    everybody.members = vec![expect("0.0.0.0/0".parse(), "a network")];
    for bad in [group(fixture, &many), everybody] {
        wanted.groups = vec![bad];
        match backend.ensure(wanted.clone()).await {
            Err(error) => assert_eq!(error.kind(), ErrorKind::InvalidInput, "{error:?}"),
            Ok(seen) => panic!("it was accepted: {seen:?}"),
        }
        assert!(!lists(backend, wanted.id).await, "it left something behind");
    }
}
