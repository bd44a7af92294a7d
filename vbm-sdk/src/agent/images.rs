//! Files of images, brought to the node from the controllers.

use super::Agent;
use crate::methods::{CONTROLLER_SERVICE, IMAGE_CHUNK_BYTES, ImageRead, ImageReadRequest};
use bytes::Bytes;
use std::time::Duration;
use vbm_core::{Digest, NodePath, Result};
use vbm_hyper::ContentKind;
use vbm_rpc::{CallOptions, Route, Service};

/// The longest that one part may take.
const CHUNK_DEADLINE: Duration = Duration::from_secs(30);

impl Agent {
    /// Makes sure that a file is on this node.
    pub(super) async fn bring(&self, digest: Digest, kind: ContentKind) -> Result<()> {
        self.inner
            .fetching
            .bring(&self.inner.images, digest, kind, |offset| {
                self.part(digest, offset)
            })
            .await
            .map_err(|e| e.context("an image could not be brought to the node"))
    }

    async fn part(&self, digest: Digest, offset: u64) -> Result<Bytes> {
        let route = Route::any(NodePath::root(), Service::new(CONTROLLER_SERVICE)?);
        let request = ImageReadRequest {
            digest,
            offset,
            max_bytes: IMAGE_CHUNK_BYTES,
            here_only: false,
        };
        let options = CallOptions::default().deadline(CHUNK_DEADLINE);
        let part = self.calls()?.call::<ImageRead>(&route, &request, options).await?;
        Ok(Bytes::from(part.0))
    }
}
