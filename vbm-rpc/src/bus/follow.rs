//! Tasks of an attachment that follow its link.

use super::{Signals, pending::Pending};
use crate::transport::Link;
use bytes::Bytes;
use std::sync::Arc;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// Replies go to who waits; cancels to what runs.
pub(super) fn control(signals: Arc<Signals>) -> Arc<dyn Fn(Bytes) + Send + Sync> {
    Arc::new(move |frame: Bytes| signals.incoming(&frame))
}

/// Sends unanswered requests again whenever the transport may have forgotten them.
pub(super) async fn resend(link: Arc<dyn Link>, pending: Arc<Pending>, ended: CancellationToken) {
    let mut generations = link.generations();
    generations.mark_unchanged();
    loop {
        tokio::select! {
            () = ended.cancelled() => return,
            // Cancel safe: a change is seen by the next turn.
            changed = generations.changed() => if changed.is_err() { return },
        }
        let now = Instant::now();
        let again = pending.again(now);
        if !again.is_empty() {
            tracing::info!(
                calls = again.len(),
                "the transport came back: unanswered calls are sent again"
            );
        }
        for call in again {
            let ttl = call.deadline.saturating_duration_since(now);
            if !link.try_resend(call.to, call.frame, ttl) {
                tracing::warn!("no room to send a call again; it ends at its deadline");
            }
        }
    }
}

/// Ends the bus when its link has ended, and the link when the bus has.
pub(super) async fn watch_end(
    link: Arc<dyn Link>,
    pending: Arc<Pending>,
    closing: CancellationToken,
    ended: CancellationToken,
) {
    let mut failure = link.ended();
    let failed = async { failure.wait_for(Option::is_some).await.is_ok() };
    // Cancel safe: only looks.
    if ended.run_until_cancelled(failed).await.is_some() {
        closing.cancel();
        pending.clear();
        ended.cancelled().await;
    }
    closing.cancel();
    link.sever();
    pending.clear();
}
