//! Copies of image files: each controller keeps one of every file that an image is made of, so that a controller that dies
//! takes no image with it.
//!
//! A file is uploaded to one controller. The others see the image's record, and read the file from whoever has it, in
//! parts over the bus, checked against its digest. Until it is here, a part that somebody asks for is passed on.

use super::Controller;
use crate::methods::{Bytes, CONTROLLER_SERVICE, IMAGE_CHUNK_BYTES, ImageRead, ImageReadRequest};
use crate::records::Record;
use crate::store::Revision;
use futures::StreamExt;
use std::{collections::BTreeMap, time::Duration};
use vbm_core::{Boot, Digest, Error, ErrorKind, Image, NodePath, Result};
use vbm_hyper::ContentKind;
use vbm_rpc::{CallOptions, Route, Service};

/// The longest that another controller may take for one part. One that has just died is still listed for a while.
const PART_DEADLINE: Duration = Duration::from_secs(5);
/// After a copy that could not be made; doubled with each further time.
const RETRY_AFTER: Duration = Duration::from_secs(1);
/// How often copies are looked at although no image changed.
const LOOK_EVERY: Duration = Duration::from_secs(60);

/// The files that an image is made of, and what each is.
pub(super) fn files(image: &Image) -> Vec<(Digest, ContentKind)> {
    let mut files = vec![(image.spec.disk, ContentKind::Disk(image.spec.format))];
    if let Boot::Kernel { kernel, initrd, .. } = &image.spec.boot {
        files.extend([(*kernel, ContentKind::Blob), (*initrd, ContentKind::Blob)]);
    }
    files
}

impl Controller {
    /// Keeps a copy of every file, until shutdown.
    pub(super) async fn keep_copies(&self) {
        let mut kept = BTreeMap::new();
        let keeping = async {
            let mut failures = 0_u32;
            loop {
                let seen = match self.copy_all(&mut kept).await {
                    Ok(revision) => {
                        failures = 0;
                        Some(revision)
                    }
                    Err(e) => {
                        tracing::warn!(error = %e.inline(), "not every image has a copy here");
                        failures += 1;
                        None
                    }
                };
                let wait = match failures {
                    0 => LOOK_EVERY,
                    n => RETRY_AFTER.saturating_mul(1 << n.min(8)).min(LOOK_EVERY),
                };
                // Cancel safe: what was missed is found by the next look.
                tokio::select! {
                    () = self.until_an_image_changes(seen) => {}
                    () = tokio::time::sleep(wait) => {}
                }
            }
        };
        // An import that is dropped keeps nothing.
        self.inner.stop.run_until_cancelled(keeping).await;
    }

    /// Brings what is missing, and drops the copies of what is no more. Goes past failures and gives the first.
    async fn copy_all(&self, kept: &mut BTreeMap<Digest, ContentKind>) -> Result<Revision> {
        let revision = self.records().store().revision().await?;
        let images = self.records().all::<Image>().await?;
        let wanted: BTreeMap<Digest, ContentKind> = images.iter().flat_map(|i| files(&i.value)).collect();
        for digest in kept.keys().filter(|digest| !wanted.contains_key(digest)) {
            if self.inner.images.has(*digest)
                && let Err(e) = self.inner.images.remove(*digest).await
            {
                tracing::warn!(%digest, error = %Error::from(e).inline(), "the copy of a deleted image stays");
            }
        }
        let mut first = Ok(revision);
        for (digest, kind) in &wanted {
            if let Err(e) = self.obtain(*digest, *kind).await {
                first = first.and(Err(e));
            }
        }
        *kept = wanted;
        first
    }

    async fn until_an_image_changes(&self, since: Option<Revision>) {
        let changed = async {
            let store = self.records().store();
            let since = match since {
                Some(revision) => revision,
                None => store.revision().await?,
            };
            let mut changes = store.watch(Image::PREFIX, since).await?;
            changes.next().await.transpose().map(drop)
        };
        if changed.await.is_err() {
            // The caller's look every now and then is what is left.
            std::future::pending::<()>().await;
        }
    }

    /// Makes sure that a file is here, if any controller has it.
    pub(super) async fn obtain(&self, digest: Digest, kind: ContentKind) -> Result<()> {
        self.inner
            .fetching
            .bring(&self.inner.images, digest, kind, |offset| {
                let request = ImageReadRequest {
                    digest,
                    offset,
                    max_bytes: IMAGE_CHUNK_BYTES,
                    here_only: true,
                };
                async move { self.part_of_others(&request).await.map(|part| part.0.into()) }
            })
            .await
    }

    /// A part of a file that another controller has.
    pub(super) async fn part_of_others(&self, request: &ImageReadRequest) -> Result<Bytes> {
        let (bus, service) = (self.bus()?, Service::new(CONTROLLER_SERVICE)?);
        let request = ImageReadRequest {
            here_only: true,
            ..request.clone()
        };
        let (root, me) = (NodePath::root(), &bus.member().path);
        let mut failure = None;
        for member in bus.members(&root).await? {
            if !member.serves(&root, &service) || member.path == *me {
                continue;
            }
            let options = CallOptions::default().deadline(PART_DEADLINE);
            match bus
                .call::<ImageRead>(&Route::node(member.path), &request, options)
                .await
            {
                Ok(part) => return Ok(part),
                Err(fate) => {
                    let e = Error::from(fate);
                    if !e.is_not_found() {
                        failure = Some(e);
                    }
                }
            }
        }
        Err(failure.unwrap_or_else(|| missing(request.digest)))
    }
}

/// No controller has it.
pub(super) fn missing(digest: Digest) -> Error {
    Error::new(
        ErrorKind::NotFound,
        "a file of the image is missing",
        format!("no file with SHA-256 {digest} was uploaded"),
        "upload it first; `vbm image import` does both",
    )
}
