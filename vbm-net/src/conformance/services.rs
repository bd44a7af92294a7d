//! What every backend must do about DNS and metadata.

use super::{Fixture, expect};
use crate::{DesiredNetwork, NetError, NetworkBackend, metadata::Instance};
use vbm_core::{ErrorKind, MetadataMode, NetworkMode, limits};

fn instance() -> Instance {
    Instance {
        id: "i-1".into(),
        user_data: Some(b"#cloud-config\n".to_vec()),
        ..Instance::default()
    }
}

/// See its name.
///
/// # Panics
/// When it is not so.
pub async fn what_a_vm_is_told_may_be_said_again_and_changes_nothing_else(
    backend: &dyn NetworkBackend,
    fixture: &Fixture<'_>,
) {
    let wanted = fixture.network(NetworkMode::Nat, 2);
    expect(backend.ensure(wanted.clone()).await, "ensure");
    let port = wanted.ports[0].id;
    for told in [Some(instance()), Some(instance()), None] {
        expect(backend.describe(wanted.id, port, told).await, "describe");
        let seen = expect(backend.ensure(wanted.clone()).await, "ensure");
        assert_eq!(
            seen.changed,
            Vec::<String>::new(),
            "what a VM is told is no part of its network"
        );
    }
    expect(backend.remove(wanted.id).await, "remove");
}

/// See its name.
///
/// # Panics
/// When it is not so.
pub async fn a_network_that_is_made_again_asks_for_what_its_vms_are_told(
    backend: &dyn NetworkBackend,
    fixture: &Fixture<'_>,
) {
    let wanted = fixture.network(NetworkMode::Nat, 2);
    let described = async || {
        let seen = expect(backend.ensure(wanted.clone()).await, "ensure");
        seen.ports.iter().map(|p| p.described).collect::<Vec<_>>()
    };
    for _ in 0..2 {
        assert_eq!(described().await, [false, false], "nobody said it yet");
        let port = wanted.ports[0].id;
        expect(backend.describe(wanted.id, port, None).await, "describe");
        assert_eq!(described().await, [true, false]);
        expect(backend.remove(wanted.id).await, "remove");
    }
}

/// See its name.
///
/// # Panics
/// When it is not so.
pub async fn what_is_too_large_or_of_no_port_is_not_told(
    backend: &dyn NetworkBackend,
    fixture: &Fixture<'_>,
) {
    let wanted = fixture.network(NetworkMode::Isolated, 1);
    let (network, port) = (wanted.id, wanted.ports[0].id);
    let early = backend.describe(network, port, Some(instance())).await;
    assert!(
        matches!(early, Err(NetError::NotHere { .. })),
        "before it is there: {early:?}"
    );
    expect(backend.ensure(wanted).await, "ensure");
    let other = fixture.network(NetworkMode::Isolated, 1).ports[0].id;
    let stranger = backend.describe(network, other, Some(instance())).await;
    assert!(
        matches!(stranger, Err(NetError::NotHere { .. })),
        "another's port: {stranger:?}"
    );
    let large = Instance {
        user_data: Some(vec![0; limits::USER_DATA_MAX_BYTES + 1]),
        ..instance()
    };
    let refused = backend.describe(network, port, Some(large)).await;
    assert!(
        matches!(refused, Err(NetError::Invalid(_))),
        "too large: {refused:?}"
    );
    expect(backend.remove(network).await, "remove");
}

/// See its name.
///
/// # Panics
/// When it is not so.
pub async fn services_are_switched_live_and_nonsense_is_refused(
    backend: &dyn NetworkBackend,
    fixture: &Fixture<'_>,
) {
    let mut wanted = fixture.network(NetworkMode::Nat, 1);
    expect(backend.ensure(wanted.clone()).await, "ensure");
    let switches: [fn(&mut DesiredNetwork); 4] = [
        |n| n.spec.metadata = MetadataMode::Open,
        |n| n.spec.dns_upstreams = vec![[192, 0, 2, 53].into()],
        |n| (n.spec.serve_dns, n.spec.dns_upstreams) = (false, Vec::new()),
        |n| n.spec.metadata = MetadataMode::Off,
    ];
    for switch in switches {
        switch(&mut wanted);
        let seen = expect(backend.ensure(wanted.clone()).await, "ensure");
        assert!(!seen.changed.is_empty() && seen.ready);
        let again = expect(backend.ensure(wanted.clone()).await, "ensure");
        assert_eq!(again.changed, Vec::<String>::new());
    }
    wanted.spec.dns_upstreams = vec![[192, 0, 2, 53].into()];
    match backend.ensure(wanted.clone()).await {
        Err(NetError::Invalid(error)) => assert_eq!(error.kind(), ErrorKind::InvalidInput),
        other => panic!("upstreams that nobody asks: {other:?}"),
    }
    expect(backend.remove(wanted.id).await, "remove");
}
