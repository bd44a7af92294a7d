//! Disks that leave: to a file that is there whole or not at all, or to a stream.

use super::{
    ImageFormat, ImageStore, Pool, Temp,
    lock::Hold,
    read::Stack,
    room::Room,
    sync_dir,
    work::{self, Work},
    write::{FileSink, Hashed, Plan, Shape, Sink, in_pieces},
};
use crate::{Error, OpCx, Result, limits::EXPORT_CHUNKS_MAX};
use bytes::Bytes;
use sha2::{Digest as _, Sha256};
use std::{
    fs::File,
    path::{Path, PathBuf},
    sync::Arc,
};
use tokio::{
    io::{AsyncWrite, AsyncWriteExt},
    sync::mpsc,
};
use uuid::Uuid;
use vbm_core::{Digest, VolumeId};

/// What left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Exported {
    /// The SHA-256 of the file.
    pub digest: Digest,
    /// The size of the file in bytes.
    pub file_bytes: u64,
    /// The size that a guest sees, in bytes.
    pub virtual_bytes: u64,
}

/// What is called off, late or dropped.
const WHAT: &str = "an export";

impl Pool {
    /// Writes a volume at rest, as it is now and without its snapshots, into a new file.
    ///
    /// # Errors
    /// [`Error::NoSuchVolume`], [`Error::DiskInUse`], [`Error::NoRoom`], [`Error::DiskFull`], [`Error::Io`] (also when the file
    /// is there already); [`Error::Invalid`] for VMDK, which is only read here; [`Error::BadDisk`]; [`Error::CalledOff`],
    /// [`Error::OutOfTime`]. Nothing is left of the file then.
    ///
    /// # Cancel safety
    /// Dropping the future ends the work soon after; nothing is left of the file.
    pub async fn export_file(
        &self,
        cx: &OpCx,
        volume: VolumeId,
        format: ImageFormat,
        to: impl Into<PathBuf>,
    ) -> Result<Exported> {
        let (inner, to) = (Arc::clone(&self.inner), to.into());
        work::long(cx, WHAT, move |work| {
            let mut opened = inner.open_held(volume, Hold::Still)?;
            let shape = shape(format, volume.uuid().as_bytes())?;
            into_file(&mut opened.stack, &shape, &to, work)
        })
        .await
    }

    /// The same into a stream; what does not work out may have begun to be written.
    ///
    /// # Errors
    /// Those of [`Pool::export_file`]; [`Error::Io`] when the stream takes no more.
    ///
    /// # Cancel safety
    /// As [`Pool::export_file`].
    pub async fn export(
        &self,
        cx: &OpCx,
        volume: VolumeId,
        format: ImageFormat,
        to: impl AsyncWrite + Unpin + Send,
    ) -> Result<Exported> {
        let inner = Arc::clone(&self.inner);
        into_stream(cx, to, move |sink, work| {
            let mut opened = inner.open_held(volume, Hold::Still)?;
            let shape = shape(format, volume.uuid().as_bytes())?;
            into_sink(&mut opened.stack, &shape, sink, work)
        })
        .await
    }
}

impl ImageStore {
    /// Writes an image into a new file. In the format in which it is stored, it is the same file again.
    ///
    /// # Errors
    /// [`Error::NoSuchImage`] and those of [`Pool::export_file`].
    ///
    /// # Cancel safety
    /// As [`Pool::export_file`].
    pub async fn export_file(
        &self,
        cx: &OpCx,
        image: Digest,
        format: ImageFormat,
        to: impl Into<PathBuf>,
    ) -> Result<Exported> {
        let (store, to) = (self.clone(), to.into());
        work::long(cx, WHAT, move |work| {
            let (mut disk, shape) = store.open_export(image, format)?;
            let exported = into_file(&mut disk, &shape, &to, work)?;
            store.with_virtual(image, exported)
        })
        .await
    }

    /// The same into a stream; what does not work out may have begun to be written.
    ///
    /// # Errors
    /// Those of [`ImageStore::export_file`]; [`Error::Io`] when the stream takes no more.
    ///
    /// # Cancel safety
    /// As [`Pool::export_file`].
    pub async fn export(
        &self,
        cx: &OpCx,
        image: Digest,
        format: ImageFormat,
        to: impl AsyncWrite + Unpin + Send,
    ) -> Result<Exported> {
        let store = self.clone();
        into_stream(cx, to, move |sink, work| {
            let (mut disk, shape) = store.open_export(image, format)?;
            let exported = into_sink(&mut disk, &shape, sink, work)?;
            store.with_virtual(image, exported)
        })
        .await
    }

    fn open_export(&self, image: Digest, format: ImageFormat) -> Result<(Stack, Shape<'static>)> {
        let (_, stored, _) = self.disk(image)?;
        if ImageFormat::from(stored) == format {
            return Ok((self.open_as(image, ImageFormat::Raw)?, Shape::Raw));
        }
        let shape = shape(format, image.to_string().as_bytes())?;
        Ok((self.open_disk(image)?, shape))
    }

    fn with_virtual(&self, image: Digest, exported: Exported) -> Result<Exported> {
        let (.., virtual_bytes) = self.disk(image)?;
        Ok(Exported {
            virtual_bytes,
            ..exported
        })
    }
}

/// The shape of what leaves. A VDI gets an id of its own, the same each time: VirtualBox takes no two with the same.
fn shape(format: ImageFormat, of: &[u8]) -> Result<Shape<'static>> {
    match format {
        ImageFormat::Raw => Ok(Shape::Raw),
        ImageFormat::Qcow2 => Ok(Shape::Qcow2 { backing: None }),
        ImageFormat::Vdi => {
            let digest = Sha256::new()
                .chain_update(b"export of ")
                .chain_update(of)
                .finalize();
            let id = <[u8; 16]>::try_from(&digest[..16]).unwrap_or_default();
            Ok(Shape::Vdi {
                volume: VolumeId::from_uuid(Uuid::from_bytes(id)),
                image: None,
            })
        }
        ImageFormat::Vmdk => Err(Error::invalid(
            "a disk cannot be exported as vmdk",
            "that format is only read",
            "export it as raw, qcow2 or vdi",
        )),
    }
}

fn into_sink(disk: &mut Stack, shape: &Shape<'_>, sink: &mut dyn Sink, work: &Work) -> Result<Exported> {
    let virtual_bytes = disk.virtual_bytes();
    let plan = Plan::of(disk, virtual_bytes, shape.unit_bytes(), None, work)?;
    let file_bytes = shape.file_bytes(&plan)?;
    let mut hashed = Hashed::new(sink);
    shape.write(&plan, disk, &mut hashed, work)?;
    let (_, digest) = hashed.finish();
    Ok(Exported {
        digest,
        file_bytes,
        virtual_bytes,
    })
}

fn into_file(disk: &mut Stack, shape: &Shape<'_>, to: &Path, work: &Work) -> Result<Exported> {
    let to = std::path::absolute(to).map_err(Error::io("find", to))?;
    let dir = to.parent().unwrap_or(Path::new("/")).to_owned();
    let exists = || Error::io("create", &to)(std::io::ErrorKind::AlreadyExists.into());
    if to.symlink_metadata().is_ok() {
        return Err(exists());
    }
    let virtual_bytes = disk.virtual_bytes();
    let plan = Plan::of(disk, virtual_bytes, shape.unit_bytes(), None, work)?;
    Room::default().check_free(&dir, shape.room_bytes(&plan)?)?;
    let mut temp = Temp::create(&dir)?;
    let digest = write_hashed(&plan, disk, shape, &temp.file, &to, work)?;
    work.go_on()?;
    let flags = rustix::fs::RenameFlags::NOREPLACE;
    match rustix::fs::renameat_with(rustix::fs::CWD, &temp.path, rustix::fs::CWD, &to, flags) {
        Ok(()) => temp.kept = true,
        Err(rustix::io::Errno::EXIST) => return Err(exists()),
        Err(errno) => return Err(Error::io("write", &to)(errno.into())),
    }
    sync_dir(&dir)?;
    Ok(Exported {
        digest,
        file_bytes: shape.file_bytes(&plan)?,
        virtual_bytes,
    })
}

/// Writes a planned disk into an empty file, to the platter. Returns the digest of the file.
pub(super) fn write_hashed(
    plan: &Plan,
    disk: &mut Stack,
    shape: &Shape<'_>,
    file: &File,
    path: &Path,
    work: &Work,
) -> Result<Digest> {
    let mut hashed = Hashed::new(FileSink::new(file, path));
    shape.write(plan, disk, &mut hashed, work)?;
    let (sink, digest) = hashed.finish();
    sink.finish()?;
    Ok(digest)
}

/// Hands pieces to who writes them into the stream.
struct Pieces(mpsc::Sender<Bytes>);

impl Sink for Pieces {
    fn write(&mut self, bytes: &[u8]) -> Result<()> {
        let piece = Bytes::copy_from_slice(bytes);
        self.0
            .blocking_send(piece)
            .map_err(|_| Error::CalledOff { what: WHAT })
    }

    fn zeros(&mut self, bytes: u64) -> Result<()> {
        in_pieces(bytes, |zeros| self.write(zeros))
    }
}

async fn into_stream(
    cx: &OpCx,
    mut to: impl AsyncWrite + Unpin + Send,
    read: impl FnOnce(&mut dyn Sink, &Work) -> Result<Exported> + Send + 'static,
) -> Result<Exported> {
    let (pieces, mut queue) = mpsc::channel::<Bytes>(EXPORT_CHUNKS_MAX);
    let reader = work::long(cx, WHAT, move |work| read(&mut Pieces(pieces), work));
    let writer = cx.run(WHAT, async move {
        while let Some(piece) = queue.recv().await {
            to.write_all(&piece)
                .await
                .map_err(Error::io("write", "the stream"))?;
        }
        to.flush().await.map_err(Error::io("write", "the stream"))
    });
    // The writer ends when the reader does; the reader ends when the writer is gone.
    let (read, written) = tokio::join!(reader, writer);
    written?;
    read
}
