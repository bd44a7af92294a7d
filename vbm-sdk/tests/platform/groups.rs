//! Groups that make no sense, over the API.

use crate::house::{House, group, launch, name, through};
use vbm_core::{ErrorKind, Rule, limits::GROUP_MAX_RULES};
use vbm_sdk::{
    api::{CreateGroup, SetGroups, SetRules},
    client::Client,
};

fn request(group: &str, rules: Vec<Rule>) -> CreateGroup {
    CreateGroup {
        name: name(group),
        rules,
        egress_closed: false,
    }
}

fn rules(texts: &[&str]) -> Vec<Rule> {
    texts.iter().map(|r| r.parse().unwrap()).collect()
}

async fn stands(client: &Client, group: &str) -> Vec<String> {
    let group = client.groups().get(group).await.unwrap();
    group.spec.rules.iter().map(ToString::to_string).collect()
}

#[tokio::test]
async fn ten_thousand_rules_are_refused_with_the_limit_and_as_many_as_are_allowed_are_kept() {
    let house = House::new();
    let (server, client) = house.furnished().await;
    let many = |count: usize| {
        (1..=count)
            .map(|port| format!("tcp/{port}").parse().unwrap())
            .collect::<Vec<Rule>>()
    };
    for count in [10_000, GROUP_MAX_RULES + 1] {
        let error = client
            .groups()
            .create(request("many", many(count)))
            .await
            .unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidInput, "{error}");
        assert!(
            error.to_string().contains(&GROUP_MAX_RULES.to_string()),
            "{error}"
        );
        assert!(
            client.groups().get_opt("many").await.unwrap().is_none(),
            "nothing of it is kept"
        );
    }
    client
        .groups()
        .create(request("many", many(GROUP_MAX_RULES)))
        .await
        .unwrap();
    let set = SetRules {
        rules: many(10_000),
        egress_closed: None,
        generation: None,
    };
    let error = client.groups().set_rules("many", set).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidInput, "{error}");
    assert_eq!(
        stands(&client, "many").await.len(),
        GROUP_MAX_RULES,
        "those of before stand"
    );
    // The same rule so often is one.
    let same = std::iter::repeat_n(many(1), 10_000).flatten().collect();
    client.groups().create(request("same", same)).await.unwrap();
    assert_eq!(stands(&client, "same").await, ["tcp/1"]);
    server.shutdown().await;
}

#[tokio::test]
async fn a_group_may_speak_of_itself_and_not_of_one_that_is_gone_or_never_was() {
    let house = House::new();
    let (server, client) = house.furnished().await;
    client
        .groups()
        .create(request("own", rules(&["tcp/22@self", "tcp/23@group:own"])))
        .await
        .unwrap();
    assert_eq!(
        stands(&client, "own").await,
        ["tcp/22@self", "tcp/23@self"],
        "by either word"
    );
    for gone in ["never", "0190b6f2-4c1e-7cc3-a7a4-0d1f000000ff"] {
        let error = client
            .groups()
            .create(request("bad", rules(&[&format!("any@group:{gone}")])))
            .await
            .unwrap_err();
        assert_eq!(error.kind(), ErrorKind::NotFound, "{error}");
        assert!(client.groups().get_opt("bad").await.unwrap().is_none());
    }
    group(&client, "peer", &[]).await;
    client
        .groups()
        .create(request("speaks", rules(&["tcp/80@group:peer"])))
        .await
        .unwrap();
    let error = client.groups().delete("peer").await.map(drop).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Conflict, "rules speak of it: {error}");
    client.groups().delete("own").await.unwrap();
    server.shutdown().await;
}

#[tokio::test]
async fn a_port_in_more_groups_than_it_may_keeps_those_that_it_has() {
    let house = House::new();
    let (server, client) = house.furnished().await;
    launch(&client, "web").await;
    let most = vbm_core::limits::PORT_MAX_GROUPS;
    let names: Vec<String> = (0..=most).map(|n| format!("g{n}")).collect();
    for name in &names {
        group(&client, name, &[]).await;
    }
    let set = |groups: &[String]| SetGroups {
        groups: groups.to_vec(),
        network: None,
        pairs: None,
    };
    through(&client, client.vms().set_groups("web", set(&names[..most])).await)
        .await
        .unwrap();
    let error = client
        .vms()
        .set_groups("web", set(&names))
        .await
        .map(drop)
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidInput, "{error}");
    let held = client.vms().get("web").await.unwrap();
    assert_eq!(held.nics[0].port.spec.groups.len(), most);
    server.shutdown().await;
}
