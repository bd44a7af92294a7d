//! Files of images, brought to the node: in parts over the bus, checked against their name.

use super::Agent;
use crate::methods::{CONTROLLER_SERVICE, IMAGE_CHUNK_BYTES, ImageRead, ImageReadRequest};
use bytes::Bytes;
use futures::TryStreamExt;
use std::{
    collections::HashMap,
    io,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};
use tokio_util::io::StreamReader;
use vbm_core::{Digest, Error, NodePath, Result};
use vbm_hyper::ContentKind;
use vbm_rpc::{CallOptions, Route, Service};

/// The longest that one part may take.
const CHUNK_DEADLINE: Duration = Duration::from_secs(30);

/// Files that are being fetched: two VMs of one image fetch it once.
#[derive(Default)]
pub(super) struct Fetching {
    locks: Mutex<HashMap<Digest, Arc<tokio::sync::Mutex<()>>>>,
}

impl Agent {
    /// Makes sure that a file is on this node.
    pub(super) async fn bring(&self, digest: Digest, kind: ContentKind) -> Result<()> {
        if self.inner.images.has(digest) {
            return Ok(());
        }
        let lock = Arc::clone(
            self.inner
                .fetching
                .locks
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .entry(digest)
                .or_default(),
        );
        let _alone = lock.lock().await;
        if self.inner.images.has(digest) {
            return Ok(());
        }
        let parts = futures::stream::try_unfold(0_u64, move |offset| async move {
            let part = self
                .part(digest, offset)
                .await
                .map_err(|e| io::Error::other(e.inline()))?;
            let next = offset + part.len() as u64;
            Ok::<_, io::Error>((!part.is_empty()).then_some((part, next)))
        });
        let reader = StreamReader::new(Box::pin(parts.into_stream()));
        let done = self.inner.images.import(reader, Some(digest), kind).await;
        self.inner
            .fetching
            .locks
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .remove(&digest);
        done.map_err(|e| Error::from(e).context("an image could not be brought to the node"))?;
        Ok(())
    }

    async fn part(&self, digest: Digest, offset: u64) -> Result<Bytes> {
        let route = Route::any(NodePath::root(), Service::new(CONTROLLER_SERVICE)?);
        let request = ImageReadRequest {
            digest,
            offset,
            max_bytes: IMAGE_CHUNK_BYTES,
        };
        let options = CallOptions::default().deadline(CHUNK_DEADLINE);
        let part = self
            .bus()?
            .call::<ImageRead>(&route, &request, options)
            .await
            .map_err(Error::from)?;
        Ok(Bytes::from(part.0))
    }
}
