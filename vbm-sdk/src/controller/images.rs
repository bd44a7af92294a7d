//! Requests about images and the files that they are made of.

use super::{
    Controller,
    copies::{files, missing},
};
use crate::api::{Blob, CreateImage};
use crate::methods::{Bytes, IMAGE_CHUNK_BYTES, ImageReadRequest};
use crate::records::{Edit, until_uncrossed};
use futures::{Stream, StreamExt, stream};
use std::{collections::BTreeSet, io};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncSeekExt, DuplexStream};
use tokio_util::io::ReaderStream;
use vbm_core::{
    Boot, Digest, Error, ErrorKind, EventKind, Image, ImageId, ImageSpec, Kind, Meta, ObjectRef, Result, Vm,
};
use vbm_hyper::{ContentKind, ImageFormat, ImportedFile, OpCx};

impl Controller {
    /// Takes a file in, under the name of its content.
    ///
    /// # Errors
    /// It cannot be read or kept.
    pub async fn upload(&self, file: impl AsyncRead + Send + Unpin) -> Result<Blob> {
        let imported = self.inner.images.import(file, None, ContentKind::Blob).await?;
        Ok(Blob {
            digest: imported.digest,
            bytes: imported.file_bytes,
        })
    }

    /// Makes an image of files that were uploaded.
    ///
    /// # Errors
    /// A file is missing or is not what it is said to be, or the name is taken.
    pub async fn create_image(&self, request: &CreateImage) -> Result<Image> {
        request.boot.check()?;
        let headline = format!("cannot make image {}", request.name);
        let disk = self
            .check_disk(request)
            .await
            .map_err(|e| e.context(headline.clone()))?;
        if let Boot::Kernel { kernel, initrd, .. } = &request.boot {
            for digest in [kernel, initrd] {
                self.uploaded(*digest)
                    .await
                    .map_err(|e| e.context(headline.clone()))?;
            }
        }
        let spec = ImageSpec {
            disk: request.disk,
            format: request.format,
            file_bytes: disk.file_bytes,
            virtual_bytes: disk.virtual_bytes,
            boot: request.boot.clone(),
        };
        let id = ImageId::from_uuid(self.inner.ids.next());
        let image = Image {
            meta: Meta::new(id, request.name.clone(), self.inner.clock.now()),
            spec,
        };
        let event = self.event(
            EventKind::ImageImported,
            target(&image),
            format!("{:?}", image.spec.disk),
        );
        self.records()
            .commit(Edit::default().create(&image).event(&event))
            .await?;
        Ok(image)
    }

    /// Reads the disk once more, now as a disk: whether it is one, and how large a guest sees it.
    async fn check_disk(&self, request: &CreateImage) -> Result<ImportedFile> {
        self.uploaded(request.disk).await?;
        let path = self.inner.images.path(request.disk)?;
        let file = tokio::fs::File::open(&path).await.map_err(|e| {
            Error::new(
                ErrorKind::Unavailable,
                "the uploaded disk cannot be read",
                e.to_string(),
                "look at the disk of the control node",
            )
        })?;
        Ok(self
            .inner
            .images
            .import(file, Some(request.disk), ContentKind::Disk(request.format))
            .await?)
    }

    /// Whether a file was uploaded, to this controller or another.
    async fn uploaded(&self, digest: Digest) -> Result<()> {
        self.obtain(digest, ContentKind::Blob).await
    }

    /// Gives the disk of an image as a file of a format: the one it is kept in, when none is named. The stream ends with an error
    /// when it is not whole; dropping it ends the work.
    ///
    /// # Errors
    /// It does not exist, no controller has its disk, or it cannot be written in that format.
    pub async fn export_image(
        &self,
        image: &str,
        format: Option<ImageFormat>,
    ) -> Result<impl Stream<Item = io::Result<bytes::Bytes>> + Send + use<>> {
        let image = self.records().resolve::<Image>(image).await?.value;
        let (digest, kept) = (image.spec.disk, image.spec.format);
        let headline = format!("cannot export image {}", image.meta.name);
        self.obtain(digest, ContentKind::Disk(kept))
            .await
            .map_err(|e| e.context(headline.clone()))?;
        let format = format.unwrap_or(kept.into());
        if format == ImageFormat::Vmdk {
            return Err(Error::new(
                ErrorKind::InvalidInput,
                headline,
                "vmdk is only read, and not written",
                "export it as qcow2, raw or vdi",
            ));
        }
        let (writer, reader) = tokio::io::duplex(EXPORT_BUFFER_BYTES);
        let images = self.inner.images.clone();
        let work = async move { images.export(&OpCx::new(), digest, format, writer).await };
        Ok(pieces_of(
            ReaderStream::with_capacity(reader, EXPORT_BUFFER_BYTES),
            work,
        ))
    }

    /// Deletes an image that no VM rests on, and those of its files that no other image has.
    ///
    /// # Errors
    /// It does not exist or is in use.
    pub async fn delete_image(&self, image: &str) -> Result<Image> {
        let id = self.records().resolve::<Image>(image).await?.value.meta.id;
        let deleted = until_uncrossed(|| async {
            let held = self.records().must::<Image>(id).await?;
            let users: Vec<String> = self
                .records()
                .all::<Vm>()
                .await?
                .into_iter()
                .filter(|v| v.value.spec.image == id)
                .map(|v| v.value.meta.name.to_string())
                .collect();
            if !users.is_empty() {
                return Err(Error::new(
                    ErrorKind::Conflict,
                    format!("cannot delete image {}", held.value.meta.name),
                    format!("the disks of {} rest on it", users.join(", ")),
                    "delete those VMs first",
                ));
            }
            let event = self.event(EventKind::ImageDeleted, target(&held.value), "");
            self.records()
                .commit(Edit::default().delete(&held).event(&event))
                .await?;
            Ok(held.value)
        })
        .await?;
        self.drop_files(&deleted).await?;
        Ok(deleted)
    }

    async fn drop_files(&self, image: &Image) -> Result<()> {
        let kept: BTreeSet<Digest> = self
            .records()
            .all::<Image>()
            .await?
            .iter()
            .flat_map(|i| files(&i.value))
            .map(|(digest, _)| digest)
            .collect();
        for (digest, _) in files(image) {
            if !kept.contains(&digest)
                && let Err(e) = self.inner.images.remove(digest).await
            {
                tracing::warn!(%digest, error = %Error::from(e).inline(), "a file of a deleted image stays");
            }
        }
        Ok(())
    }

    /// A part of a file, for an agent or a controller that fetches an image.
    pub(super) async fn read_image(&self, request: &ImageReadRequest) -> Result<Bytes> {
        if !self.inner.images.has(request.digest) {
            return match request.here_only {
                true => Err(missing(request.digest)),
                false => self.part_of_others(request).await,
            };
        }
        let path = self.inner.images.path(request.digest)?;
        let limit = u64::from(request.max_bytes.min(IMAGE_CHUNK_BYTES));
        let read = async {
            let mut file = tokio::fs::File::open(&path).await?;
            file.seek(std::io::SeekFrom::Start(request.offset)).await?;
            let mut bytes = Vec::new();
            file.take(limit).read_to_end(&mut bytes).await?;
            Ok::<_, std::io::Error>(bytes)
        };
        read.await.map(Bytes).map_err(|e| {
            Error::new(
                ErrorKind::Unavailable,
                "a file of an image cannot be read",
                e.to_string(),
                "look at the disk of the control node",
            )
        })
    }
}

/// What an export may be ahead of its reader.
const EXPORT_BUFFER_BYTES: usize = 256 << 10;

/// The pieces that `work` writes. When it fails, so does the stream: a file that was cut short must not look whole.
fn pieces_of<T: Send + 'static>(
    pieces: ReaderStream<DuplexStream>,
    work: impl Future<Output = vbm_hyper::Result<T>> + Send + 'static,
) -> impl Stream<Item = io::Result<bytes::Bytes>> + Send {
    stream::try_unfold(
        (pieces, Some(Box::pin(work))),
        |(mut pieces, mut work)| async move {
            while let Some(working) = &mut work {
                // Both are kept over the turns: nothing is lost.
                tokio::select! {
                    piece = pieces.next() => {
                        if let Some(piece) = piece.transpose()? {
                            return Ok(Some((piece, (pieces, work))));
                        }
                        working.await.map_err(io::Error::other)?;
                        return Ok(None);
                    }
                    done = &mut *working => {
                        done.map_err(io::Error::other)?;
                        work = None;
                    }
                }
            }
            Ok(pieces
                .next()
                .await
                .transpose()?
                .map(|piece| (piece, (pieces, work))))
        },
    )
}

fn target(image: &Image) -> ObjectRef {
    ObjectRef::new(Kind::Image, image.meta.id, &image.meta.name)
}
