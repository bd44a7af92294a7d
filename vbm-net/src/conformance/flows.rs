//! What every backend must do with the flows of a port that comes from another host.

use super::{Fixture, expect};
use crate::{FlowProtocol, NetError, NetworkBackend, PortFlow};
use std::net::IpAddr;
use vbm_core::{NetworkMode, PortId};

fn flow(from: IpAddr, to: IpAddr, to_port: u16) -> PortFlow {
    PortFlow {
        protocol: FlowProtocol::Tcp,
        from,
        to,
        from_port: 40_000,
        to_port,
        seconds_left: 3_600,
        state: Some("ESTABLISHED".to_owned()),
        answered: true,
    }
}

/// See its name.
///
/// # Panics
/// When it is not so.
pub async fn flows_that_came_are_taken_in_once_and_only_those_that_could_begin(
    backend: &dyn NetworkBackend,
    fixture: &Fixture<'_>,
) {
    let mut net = fixture.network(NetworkMode::Isolated, 2);
    net.overlay = Some(fixture.overlay(1));
    net.ports[0].rules = vec![expect("tcp/80".parse(), "a rule")];
    let remote: IpAddr = expect(net.overlay.as_ref().ok_or(()), "an overlay").remotes[0]
        .address
        .into();
    let (id, port) = (net.id, net.ports[0].id);
    let (own, other): (IpAddr, IpAddr) = (net.ports[0].address.into(), net.ports[1].address.into());
    let early = backend.take_flows(id, port, vec![flow(remote, own, 80)]).await;
    assert!(
        matches!(early, Err(NetError::NotHere { .. })),
        "before it is here: {early:?}"
    );
    expect(backend.ensure(net.clone()).await, "ensure");
    assert_eq!(
        expect(backend.flows_of(id, port).await, "flows"),
        [],
        "a new port has none"
    );
    let (good, begun) = (flow(remote, own, 80), flow(own, remote, 443));
    let came = vec![
        flow(remote, own, 22),
        flow(remote, other, 80),
        flow(IpAddr::from([192, 0, 2, 1]), own, 22),
        good.clone(),
        begun.clone(),
    ];
    let taken = backend.take_flows(id, port, came.clone()).await;
    assert_eq!(
        expect(taken, "flows that came"),
        2,
        "one by a rule, one that the VM began"
    );
    assert_eq!(
        expect(backend.take_flows(id, port, came).await, "the same again"),
        0
    );
    let mut stand = expect(backend.flows_of(id, port).await, "flows");
    stand.sort();
    let ends = |flow: &PortFlow| (flow.from, flow.to, flow.to_port);
    let mut wanted = [good, begun];
    wanted.sort();
    assert_eq!(
        stand.iter().map(ends).collect::<Vec<_>>(),
        wanted.iter().map(ends).collect::<Vec<_>>()
    );
    let nobody = PortId::from_uuid(fixture.ids.next());
    let nowhere = backend.flows_of(id, nobody).await;
    assert!(matches!(nowhere, Err(NetError::NotHere { .. })), "{nowhere:?}");
    expect(backend.remove(id).await, "remove");
}
