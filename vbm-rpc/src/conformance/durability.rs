//! How safely a request is kept.

use super::*;
use crate::{Durability, Fate};

/// With [`Durability::Replicated`] a request is kept by a second server or ends with the reason why it is not: it is
/// never taken as a fast one in silence. Fast ones are not disturbed.
pub async fn a_replicated_request_is_kept_twice_or_says_why_not(transport: Arc<dyn Transport>) {
    let seen = Seen::default();
    let (n1, bus) = (
        serve(&transport, "eu/n1", &seen).await,
        client(&transport, "c1").await,
    );
    let route = Route::node(path("eu/n1"));
    let safe = || within(PATIENCE).durability(Durability::Replicated);
    let cast = soon(
        "a replicated cast",
        bus.cast::<Count>(&route, &"cast".into(), safe()),
    )
    .await;
    // A slow call, so that its fate is not overtaken by its answer.
    let call = soon(
        "a replicated call",
        bus.call::<Echo>(&route, &slow(Duration::from_secs(3)), safe()),
    )
    .await;
    for fate in [cast, call.map(drop)] {
        match fate {
            Ok(()) => {}
            Err(Fate::Lost { started, why, .. }) => {
                assert!(!started && why.contains("replica"), "{why}");
            }
            Err(Fate::Refused(error)) => {
                assert_eq!(error.kind(), ErrorKind::InvalidInput);
                assert!(error.why().contains("replicas"), "{error}");
            }
            Err(other) => panic!("{other:?}"),
        }
    }
    assert_eq!(echo(&bus, &route, "fast").await.1, "fast");
    end([bus, n1]).await;
}
