//! The connections of a VM go with it when it moves live.

use crate::{
    house::{done, group, through},
    moves::Pair,
    site::on,
};
use vbm_net::{FlowProtocol, NetworkBackend, PortFlow};
use vbm_sdk::api::SetGroups;

#[tokio::test]
async fn the_flows_of_a_vm_that_moves_live_are_told_to_the_node_that_it_goes_to() {
    let pair = Pair::new().await;
    let client = &pair.client;
    group(client, "open", &["any"]).await;
    through(client, client.vms().launch(on("a", "db")).await)
        .await
        .unwrap();
    let groups = SetGroups {
        groups: vec!["open".into()],
        network: None,
        pairs: None,
    };
    for vm in ["web", "db"] {
        through(client, client.vms().set_groups(vm, groups.clone()).await)
            .await
            .unwrap();
    }
    let db = client.vms().get("db").await.unwrap();
    let (web, db) = (&pair.web.nics[0].port, &db.nics[0].port);
    let flow = |from, to, to_port| PortFlow {
        protocol: FlowProtocol::Tcp,
        from,
        to,
        from_port: 40_000,
        to_port,
        seconds_left: 3_600,
        state: Some("ESTABLISHED".to_owned()),
        answered: true,
    };
    let (own, other) = (web.spec.address.into(), db.spec.address.into());
    let flows = vec![flow(own, other, 80), flow(other, own, 443)];
    let network = web.spec.network;
    let here = pair
        .a
        .networks()
        .take_flows(network, web.meta.id, flows.clone())
        .await;
    assert_eq!(here.unwrap(), 2, "what its node would have seen");

    done(client, &pair.begin(Some("b")).await).await.unwrap();
    let mut there = pair.b.networks().flows_of(network, web.meta.id).await.unwrap();
    there.sort();
    let mut wanted = flows;
    wanted.sort();
    assert_eq!(there, wanted);
    pair.shutdown().await;
}
