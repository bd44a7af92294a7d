//! Progress, on the side of the handler: the newest counts.

use crate::{ProgressMethod, codec::Codec, limits};
use bytes::Bytes;
use tokio::sync::watch;

/// Where a handler's progress goes when its caller listens.
#[derive(Clone, Debug)]
pub(crate) struct ProgressOut {
    codec: Codec,
    newest: watch::Sender<Bytes>,
}

impl ProgressOut {
    pub(crate) fn new(codec: Codec) -> (Self, watch::Receiver<Bytes>) {
        let (newest, receiver) = watch::channel(Bytes::new());
        (Self { codec, newest }, receiver)
    }

    pub(crate) fn report<M: ProgressMethod>(&self, progress: &M::Progress) {
        match self.codec.encode(progress) {
            Ok(body) if body.len() <= limits::PAYLOAD_MAX_BYTES => drop(self.newest.send_replace(body)),
            Ok(body) => {
                let (method, bytes) = (M::NAME, body.len());
                tracing::warn!(
                    method,
                    bytes,
                    "progress is too large for the bus and was not sent"
                );
            }
            Err(why) => {
                tracing::warn!(
                    method = M::NAME,
                    why,
                    "progress cannot be written and was not sent"
                );
            }
        }
    }
}
