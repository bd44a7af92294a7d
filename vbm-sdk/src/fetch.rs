//! Files of images, brought here in parts and checked against their name. One fetch of a file at a time.

use bytes::Bytes;
use futures::{TryStreamExt, stream};
use std::{
    collections::HashMap,
    io,
    sync::{Arc, Mutex, OnceLock, PoisonError},
};
use tokio_util::io::StreamReader;
use vbm_core::{Digest, Result};
use vbm_hyper::{ContentKind, ImageStore};

/// Files that are being fetched: whoever needs one that is on its way waits for it.
#[derive(Default)]
pub(crate) struct Fetching {
    locks: Mutex<HashMap<Digest, Arc<tokio::sync::Mutex<()>>>>,
}

impl Fetching {
    /// Makes sure that a file is in `images`. `part` gives what follows an offset; nothing at the end.
    pub(crate) async fn bring<F: Future<Output = Result<Bytes>> + Send>(
        &self,
        images: &ImageStore,
        digest: Digest,
        kind: ContentKind,
        part: impl Fn(u64) -> F + Send + Sync,
    ) -> Result<()> {
        if images.has(digest) {
            return Ok(());
        }
        let lock = Arc::clone(self.locks().entry(digest).or_default());
        let _alone = lock.lock().await;
        if images.has(digest) {
            return Ok(());
        }
        let (part, failure) = (&part, &OnceLock::new());
        let parts = stream::try_unfold(0_u64, move |offset| async move {
            let part = part(offset).await.map_err(|e| {
                let inline = e.inline();
                failure.get_or_init(|| e);
                io::Error::other(inline)
            })?;
            let next = offset + part.len() as u64;
            Ok::<_, io::Error>((!part.is_empty()).then_some((part, next)))
        });
        let reader = StreamReader::new(Box::pin(parts.into_stream()));
        let done = images.import(reader, Some(digest), kind).await;
        self.locks().remove(&digest);
        match done {
            Ok(_) => Ok(()),
            Err(e) => Err(failure.get().cloned().unwrap_or_else(|| e.into())),
        }
    }

    fn locks(&self) -> std::sync::MutexGuard<'_, HashMap<Digest, Arc<tokio::sync::Mutex<()>>>> {
        self.locks.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
