//! What most tests say.
#![allow(
    clippy::unwrap_used,
    reason = "helpers of tests, which clippy does not see as tests"
)]

use std::{sync::Arc, time::Duration};
use tokio::time::{sleep, timeout};
use vbm_core::NodePath;
use vbm_rpc::{Bus, CallOptions, Member, Router, Service, Transport};

/// No sentence takes longer than this to be true or false.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

pub(crate) fn path(text: &str) -> NodePath {
    text.parse().unwrap()
}
pub(crate) fn worker() -> Service {
    Service::new("worker").unwrap()
}
pub(crate) fn within(deadline: Duration) -> CallOptions {
    CallOptions::default().deadline(deadline)
}

/// Waits until something is true; it is looked at again after a short pause, at most for [`PATIENCE`].
pub(crate) async fn until(what: &str, mut is_true: impl AsyncFnMut() -> bool) {
    let watch = async {
        while !is_true().await {
            sleep(Duration::from_millis(10)).await;
        }
    };
    assert!(timeout(PATIENCE, watch).await.is_ok(), "{what}");
}

/// Somebody who only asks.
pub(crate) async fn client(transport: &(impl Into<Arc<dyn Transport>> + Clone), at: &str) -> Bus {
    let member = Member::new(path(at), "boot-c");
    Bus::attach(transport.clone(), member, Router::new())
        .await
        .unwrap()
}

/// A run of somebody who offers the service of [`worker`] too.
pub(crate) async fn offer(
    transport: &(impl Into<Arc<dyn Transport>> + Clone),
    (at, boot): (&str, &str),
    router: Router,
) -> Bus {
    let member = Member::new(path(at), boot).service(worker());
    Bus::attach(transport.clone(), member, router).await.unwrap()
}
