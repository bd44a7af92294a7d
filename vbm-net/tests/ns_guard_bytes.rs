//! The guard of a network is compared as bytes where nft has printed one of its form: whatever is otherwise, however little, is seen.

#![allow(clippy::unwrap_used, reason = "a helper of a test that cannot go on panics")]

mod common;

use common::{Lab, network};
use vbm_core::NetworkMode;
use vbm_net::{NetworkBackend, names};

/// What somebody does to a guard; each command alone, for the kernel gives the name of a nameless set anew when it is free.
const HARMS: [&[&str]; 9] = [
    &["nft flush chain bridge vbm TO"],
    &["nft add rule bridge vbm IN accept"],
    &["nft insert rule bridge vbm IN ether saddr 02:00:00:00:00:99 accept"],
    &["nft add chain bridge vbm another"],
    &["nft delete element bridge vbm in { TAP }"],
    &["nft add element bridge vbm to { another : jump TO }"],
    &[
        "nft delete element bridge vbm in { TAP }",
        "nft add element bridge vbm in { TAP : jump OTHER }",
    ],
    &["nft chain bridge vbm prerouting { policy accept ; }"],
    &[
        "nft flush chain bridge vbm prerouting",
        "nft add rule bridge vbm prerouting ether type != { 0x0800, 0x0806, 0x86dd, 0x8100 } drop",
        "nft add rule bridge vbm prerouting iifname vmap @in",
    ],
];

#[tokio::test(flavor = "multi_thread")]
async fn a_guard_of_a_known_form_that_somebody_changed_is_seen_and_put_right() {
    needs_namespaces!();
    let lab = Lab::new().await;
    let nothing = Vec::<String>::new();
    let (known, wanted) = (network(NetworkMode::Nat, 2), network(NetworkMode::Nat, 2));
    for one in [&known, &wanted] {
        lab.ensure(one).await;
        // All of it is read, and its form known from then on.
        assert_eq!(lab.net.plan(one.clone()).await.unwrap(), nothing);
    }
    let place = lab.inside(wanted.id);
    let [first, second] = [wanted.ports[0].id, wanted.ports[1].id];
    for harm in HARMS {
        for command in harm {
            let command = command
                .replace("OTHER", &names::guard_in(second))
                .replace("TAP", &names::tap(first))
                .replace("TO", &names::guard_to(first))
                .replace("IN", &names::guard_in(first));
            let done = common::in_netns(&place, &command);
            let said = String::from_utf8_lossy(&done.stderr);
            assert!(done.status.success(), "{command}: {said}");
        }
        assert_ne!(
            lab.net.plan(wanted.clone()).await.unwrap(),
            nothing,
            "{harm:?} was not foreseen"
        );
        let changed = lab.ensure(&wanted).await.changed;
        assert_ne!(changed, nothing, "{harm:?} was not seen");
        assert_eq!(lab.net.plan(wanted.clone()).await.unwrap(), nothing, "{harm:?}");
        assert_eq!(lab.ensure(&known).await.changed, nothing, "{harm:?}");
    }
}
