//! Addresses that a VM may use beside its own are given to no other.

use crate::house::{House, name, through};
use vbm_core::{AddressPair, ErrorKind};
use vbm_sdk::{
    api::{CreateNetwork, LaunchRequest, NicRequest, SetPort},
    client::Client,
};

fn nic(address: Option<&str>) -> NicRequest {
    let nic = NicRequest::on("few");
    match address {
        Some(address) => nic.address(address.parse().unwrap()),
        None => nic,
    }
}

async fn launched(client: &Client, vm: &str, nic: NicRequest) -> Result<String, vbm_core::Error> {
    let request = LaunchRequest::new("tiny").name(name(vm)).nic(nic);
    let made = client.vms().launch(request).await?;
    Ok(made.item.nics[0].port.spec.address.to_string())
}

async fn allow(client: &Client, vm: &str, addresses: &[&str]) {
    let pair = |a: &&str| AddressPair {
        address: a.parse().unwrap(),
        mac: None,
    };
    let request = SetPort {
        pairs: Some(addresses.iter().map(pair).collect()),
        ..SetPort::default()
    };
    client.vms().set_port(vm, &request).await.unwrap();
}

#[tokio::test]
async fn an_address_that_a_vm_may_use_beside_its_own_is_no_others_until_it_may_no_more() {
    let house = House::new();
    let (server, client) = house.furnished().await;
    // 2 to 6 are the pool, 1 is the gateway.
    let few = CreateNetwork::new(name("few"), "10.7.0.0/29");
    through(&client, client.networks().create(few).await)
        .await
        .unwrap();
    assert_eq!(launched(&client, "a", nic(None)).await.unwrap(), "10.7.0.2");
    allow(&client, "a", &["10.7.0.3/32", "10.7.0.4/31", "fd00::9/128"]).await;
    let usage = client.networks().get("few").await.unwrap().usage.unwrap();
    assert_eq!((usage.ipv4.pool, usage.ipv4.free), (2, 1));
    let refused = launched(&client, "b", nic(Some("10.7.0.5"))).await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Conflict);
    assert!(refused.why().contains("a may use it"), "{refused}");
    assert_eq!(
        launched(&client, "b", nic(None)).await.unwrap(),
        "10.7.0.6",
        "not by chance"
    );
    let full = launched(&client, "c", nic(None)).await.unwrap_err();
    assert_eq!(full.kind(), ErrorKind::Exhausted);
    allow(&client, "a", &["10.7.0.3/32"]).await;
    assert_eq!(
        launched(&client, "c", nic(Some("10.7.0.5"))).await.unwrap(),
        "10.7.0.5"
    );
    assert_eq!(launched(&client, "d", nic(None)).await.unwrap(), "10.7.0.4");
    // Who goes takes what it was allowed along.
    through(&client, client.vms().delete("a").force(true).await)
        .await
        .unwrap();
    let both = [
        launched(&client, "e", nic(None)).await,
        launched(&client, "f", nic(None)).await,
    ];
    let mut both = both.map(Result::unwrap);
    both.sort();
    assert_eq!(both, ["10.7.0.2", "10.7.0.3"]);
    server.shutdown().await;
}

#[tokio::test]
async fn an_address_is_either_given_or_allowed_whoever_comes_first() {
    let house = House::new();
    let (server, client) = house.furnished().await;
    let few = CreateNetwork::new(name("few"), "10.7.0.0/28");
    through(&client, client.networks().create(few).await)
        .await
        .unwrap();
    launched(&client, "first", nic(None)).await.unwrap();
    let mut tasks = Vec::new();
    for n in 0..6 {
        let client = client.clone();
        tasks.push(tokio::spawn(async move {
            launched(&client, &format!("v{n}"), nic(None)).await.unwrap()
        }));
    }
    allow(&client, "first", &["10.7.0.8/30"]).await;
    let before: Vec<String> = client
        .vms()
        .list()
        .all()
        .await
        .unwrap()
        .iter()
        .map(|v| v.nics[0].port.spec.address.to_string())
        .collect();
    let shared = ["10.7.0.8", "10.7.0.9", "10.7.0.10", "10.7.0.11"];
    for task in tasks {
        let given = task.await.unwrap();
        let late = shared.contains(&given.as_str()) && !before.contains(&given);
        assert!(!late, "{given} was given after it was allowed to another");
    }
    server.shutdown().await;
}
