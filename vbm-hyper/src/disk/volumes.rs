//! What is done with volumes that nobody writes to: larger, copied, flattened.
//!
//! Each of it takes hold of the disk first ([`super::lock`]), asks for room second, writes into a file that goes away by itself
//! third, and renames that last. Whatever goes wrong, what was there is there.

use super::{
    ChainLink, DiskKind, ImageFormat, Pool, Temp,
    lock::{self, Held, Hold},
    pool::Inner,
    qcow2,
    read::{self, FileSource, Stack},
    snapshots, sync_dir, vdi,
    work::{self, Work},
    write::{FileSink, Plan, Shape},
};
use crate::{Error, OpCx, Result, qemu::img};
use std::{
    fs::{self, File},
    os::unix::fs::{FileExt, PermissionsExt},
    path::{Path, PathBuf},
    sync::Arc,
};
use vbm_core::{Digest, VolumeId};

impl Pool {
    /// Makes a full copy of an image: a volume that does not need the image any more.
    ///
    /// # Errors
    /// [`Error::NoSuchImage`], [`Error::VolumeExists`], [`Error::OverQuota`], [`Error::NoRoom`], [`Error::DiskFull`],
    /// [`Error::BadDisk`] when the image cannot be read here, [`Error::Invalid`] for a size that does not fit;
    /// [`Error::CalledOff`], [`Error::OutOfTime`]. Nothing half-made is left.
    ///
    /// # Cancel safety
    /// Dropping the future ends the work soon after; nothing half-made is left.
    pub async fn copy_image(
        &self,
        cx: &OpCx,
        image: Digest,
        volume: VolumeId,
        virtual_bytes: u64,
        kind: DiskKind,
    ) -> Result<PathBuf> {
        let inner = Arc::clone(&self.inner);
        work::long(cx, "a copy of an image", move |work| {
            inner.copy_image(image, volume, virtual_bytes, kind, work)
        })
        .await
    }

    /// Makes a full copy of a volume at rest, as it is now; its snapshots are not copied.
    ///
    /// # Errors
    /// [`Error::NoSuchVolume`], [`Error::DiskInUse`], and those of [`Pool::copy_image`].
    ///
    /// # Cancel safety
    /// As [`Pool::copy_image`].
    pub async fn copy_volume(
        &self,
        cx: &OpCx,
        from: VolumeId,
        to: VolumeId,
        kind: DiskKind,
    ) -> Result<PathBuf> {
        let inner = Arc::clone(&self.inner);
        work::long(cx, "a copy of a volume", move |work| {
            inner.copy_volume(from, to, kind, work)
        })
        .await
    }

    /// Makes a linked clone of a volume at rest: a volume that stands on the same image and holds a copy of what was written
    /// above it. Of a volume that stands on none it is a full copy.
    ///
    /// # Errors
    /// Those of [`Pool::copy_volume`].
    ///
    /// # Cancel safety
    /// As [`Pool::copy_image`].
    pub async fn clone_volume(&self, cx: &OpCx, from: VolumeId, to: VolumeId) -> Result<PathBuf> {
        let inner = Arc::clone(&self.inner);
        work::long(cx, "a clone of a volume", move |work| {
            inner.clone_volume(from, to, work)
        })
        .await
    }

    /// Makes a volume at rest larger; the new part reads as zeros. The same size again does nothing.
    ///
    /// # Errors
    /// [`Error::Invalid`] for a smaller size, or one that the format does not allow; [`Error::NoSuchVolume`],
    /// [`Error::DiskInUse`], [`Error::OverQuota`], [`Error::Io`]; those of `qemu-img` where the disk crosses a border at which
    /// its tables have to be moved (4 TiB of a qcow2).
    ///
    /// # Cancel safety
    /// Dropping the future does not end it, but where a VDI has to be written anew; then the old one stays.
    pub async fn resize(&self, cx: &OpCx, volume: VolumeId, virtual_bytes: u64) -> Result<()> {
        let inner = Arc::clone(&self.inner);
        let moved = work::long(cx, "the resize of a volume", move |work| {
            inner.resize(volume, virtual_bytes, work)
        })
        .await?;
        match moved {
            None => Ok(()),
            Some(path) => img::resize(&path, virtual_bytes).await,
        }
    }

    /// The files that a volume consists of, its own first. The volume may be in use.
    ///
    /// # Errors
    /// [`Error::NoSuchVolume`]; [`Error::Invalid`] when there are more than [`crate::limits::CHAIN_MAX_LAYERS`];
    /// [`Error::BadDisk`] when one of them is a link or lies elsewhere than in the pool and the store of images.
    pub async fn chain(&self, volume: VolumeId) -> Result<Vec<ChainLink>> {
        let inner = Arc::clone(&self.inner);
        super::blocking(move || inner.chain(volume)).await
    }

    /// Makes a volume at rest one file that needs no other, and lets go of its image. A volume that is one already stays as it is.
    ///
    /// # Errors
    /// [`Error::Invalid`] when it has snapshots, which would be lost; [`Error::NoSuchVolume`], [`Error::DiskInUse`],
    /// [`Error::NoRoom`], [`Error::DiskFull`], [`Error::BadDisk`], [`Error::CalledOff`], [`Error::OutOfTime`]. The volume is as
    /// it was then.
    ///
    /// # Cancel safety
    /// Dropping the future ends the work soon after; the volume is as it was, or flat.
    pub async fn flatten(&self, cx: &OpCx, volume: VolumeId) -> Result<()> {
        let inner = Arc::clone(&self.inner);
        work::long(cx, "the flattening of a volume", move |work| {
            inner.flatten(volume, work)
        })
        .await
    }
}

/// A volume that is held, and its content.
pub(super) struct Opened {
    pub(super) stack: Stack,
    pub(super) chain: Vec<ChainLink>,
    pub(super) held: Vec<Held>,
}

impl Inner {
    /// Takes hold of a volume and opens all its files. Those below its own are never written.
    pub(super) fn open_held(&self, volume: VolumeId, hold: Hold) -> Result<Opened> {
        let path = self.must_find(volume)?;
        let mut held = vec![lock::take(&path, hold)?];
        let chain = self.chain(volume)?;
        let mut layers = Vec::new();
        for (depth, link) in chain.iter().enumerate() {
            let file = match depth {
                0 => held[0].file.try_clone().map_err(Error::io("open", &link.path))?,
                _ if link.image.is_none() => {
                    held.push(lock::take(&link.path, Hold::Still)?);
                    lock::open_plain(&link.path, false)?
                }
                _ => File::open(&link.path).map_err(Error::io("open", &link.path))?,
            };
            let source = FileSource::new(file).map_err(Error::io("look at", &link.path))?;
            let layer = read::layer(Box::new(source), link.format)
                .map_err(|why| read::bad(link.format.name(), format!("{}: {why}", link.path.display())))?;
            layers.push(layer);
        }
        let stack = Stack::new(layers, "volume");
        Ok(Opened { stack, chain, held })
    }

    pub(super) fn must_find(&self, volume: VolumeId) -> Result<PathBuf> {
        self.find(volume).ok_or(Error::NoSuchVolume(volume))
    }

    /// Asks for room and writes a volume's file whole or not at all.
    fn write_disk(
        &self,
        volume: VolumeId,
        shape: &Shape<'_>,
        plan: &Plan,
        disk: &mut Stack,
        work: &Work,
    ) -> Result<PathBuf> {
        let kind = match shape {
            Shape::Vdi { .. } => DiskKind::Vdi,
            _ => DiskKind::Qcow2,
        };
        let path = self.path_as(volume, kind);
        self.check_free(shape.room_bytes(plan)?)?;
        self.place(&path, volume, |file| {
            let mut sink = FileSink::new(file, &path);
            shape.write(plan, disk, &mut sink, work)?;
            sink.finish().map(drop)
        })?;
        Ok(path)
    }

    pub(super) fn copy_image(
        &self,
        image: Digest,
        volume: VolumeId,
        virtual_bytes: u64,
        kind: DiskKind,
        work: &Work,
    ) -> Result<PathBuf> {
        self.must_be_new(volume)?;
        let mut disk = self.images.open_disk(image)?;
        let base_bytes = disk.virtual_bytes();
        if virtual_bytes < base_bytes {
            return Err(super::pool::too_small(volume, virtual_bytes, base_bytes));
        }
        let _promise = self.promise(virtual_bytes)?;
        let shape = shape(kind, volume, Some(image));
        let plan = Plan::of(&mut disk, virtual_bytes, shape.unit_bytes(), None, work)?;
        self.write_disk(volume, &shape, &plan, &mut disk, work)
    }

    fn copy_volume(&self, from: VolumeId, to: VolumeId, kind: DiskKind, work: &Work) -> Result<PathBuf> {
        self.must_be_new(to)?;
        let mut opened = self.open_held(from, Hold::Still)?;
        let bytes = opened.stack.virtual_bytes();
        let _promise = self.promise(bytes)?;
        let shape = shape(kind, to, None);
        let plan = Plan::of(&mut opened.stack, bytes, shape.unit_bytes(), None, work)?;
        self.write_disk(to, &shape, &plan, &mut opened.stack, work)
    }

    fn clone_volume(&self, from: VolumeId, to: VolumeId, work: &Work) -> Result<PathBuf> {
        self.must_be_new(to)?;
        let mut opened = self.open_held(from, Hold::Still)?;
        let Some((image, base)) = opened.chain.last().and_then(|last| last.image.zip(Some(last))) else {
            let kind = match opened.chain.first().map(|link| link.format) {
                Some(ImageFormat::Vdi) => DiskKind::Vdi,
                _ => DiskKind::Qcow2,
            };
            drop(opened);
            return self.copy_volume(from, to, kind, work);
        };
        let bytes = opened.stack.virtual_bytes();
        let _promise = self.promise(bytes)?;
        let name = base
            .path
            .to_str()
            .ok_or_else(|| super::pool::bad_size(to, "the path of its image is not UTF-8".into()))?;
        let format = match base.format {
            ImageFormat::Raw => vbm_core::DiskFormat::Raw,
            _ => vbm_core::DiskFormat::Qcow2,
        };
        let upper = Some(opened.chain.len() - 1);
        let shape = Shape::Qcow2 {
            backing: Some((name, format)),
        };
        let plan = Plan::of(&mut opened.stack, bytes, shape.unit_bytes(), upper, work)?;
        let holder = self.holder(to);
        self.images.hold_now(image, &holder)?;
        self.write_disk(to, &shape, &plan, &mut opened.stack, work)
            .or_else(|error| {
                self.images.release_now(image, &holder)?;
                Err(error)
            })
    }

    /// Returns the path when the tables have to be moved, which `qemu-img` does.
    fn resize(&self, volume: VolumeId, virtual_bytes: u64, work: &Work) -> Result<Option<PathBuf>> {
        let path = self.must_find(volume)?;
        let held = lock::take(&path, Hold::Alone)?;
        let (_, now_bytes) = super::pool::read_volume(&path).map_err(|why| corrupt(&path, why))?;
        if virtual_bytes == now_bytes {
            return Ok(None);
        }
        if virtual_bytes < now_bytes {
            return Err(Error::invalid(
                format!("volume {volume} cannot be made smaller"),
                format!("it has {now_bytes} bytes, and what lies beyond {virtual_bytes} would be lost"),
                "make a smaller volume and copy what is needed inside a guest",
            ));
        }
        let _promise = self.promise(virtual_bytes - now_bytes)?;
        let done = match path.extension().is_some_and(|e| e == "vdi") {
            true => grow_vdi(&held.file, &path, virtual_bytes)?,
            false => {
                qcow2::check_size(virtual_bytes).map_err(|why| super::pool::bad_size(volume, why))?;
                match grow_qcow2(&held.file, &path, virtual_bytes)? {
                    true => true,
                    false => return Ok(Some(path)),
                }
            }
        };
        if !done {
            drop(held);
            let mut opened = self.open_held(volume, Hold::Alone)?;
            let image = super::pool::read_volume(&path).ok().and_then(|(image, _)| image);
            let shape = Shape::Vdi { volume, image };
            let plan = Plan::of(&mut opened.stack, virtual_bytes, shape.unit_bytes(), None, work)?;
            self.replace(&path, &shape, &plan, &mut opened.stack, work)?;
        }
        Ok(None)
    }

    fn flatten(&self, volume: VolumeId, work: &Work) -> Result<()> {
        let mut opened = self.open_held(volume, Hold::Alone)?;
        if opened.chain.len() == 1 {
            return Ok(());
        }
        let path = opened.held[0].path.clone();
        let names = snapshots::names(&path)?;
        if !names.is_empty() {
            return Err(Error::invalid(
                format!("volume {volume} cannot be flattened"),
                format!("its {} snapshots would be lost", names.len()),
                "delete its snapshots first",
            ));
        }
        let shape = Shape::Qcow2 { backing: None };
        let bytes = opened.stack.virtual_bytes();
        let plan = Plan::of(&mut opened.stack, bytes, shape.unit_bytes(), None, work)?;
        self.replace(&path, &shape, &plan, &mut opened.stack, work)?;
        let holder = self.holder(volume);
        opened
            .chain
            .iter()
            .filter_map(|link| link.image)
            .try_for_each(|image| self.images.release_now(image, &holder))
    }

    /// Puts another file in the place of a volume's, all at once.
    fn replace(
        &self,
        path: &Path,
        shape: &Shape<'_>,
        plan: &Plan,
        disk: &mut Stack,
        work: &Work,
    ) -> Result<()> {
        self.check_free(shape.room_bytes(plan)?)?;
        let mut temp = Temp::create(&self.dir)?;
        temp.file
            .set_permissions(fs::Permissions::from_mode(0o600))
            .map_err(Error::io("protect", &temp.path))?;
        let mut sink = FileSink::new(&temp.file, path);
        shape.write(plan, disk, &mut sink, work)?;
        sink.finish()?;
        work.go_on()?;
        fs::rename(&temp.path, path).map_err(Error::io("write", path))?;
        temp.kept = true;
        sync_dir(&self.dir)
    }

    fn must_be_new(&self, volume: VolumeId) -> Result<()> {
        match self.find(volume) {
            Some(_) => Err(Error::VolumeExists(volume)),
            None => Ok(()),
        }
    }
}

const fn shape(kind: DiskKind, volume: VolumeId, image: Option<Digest>) -> Shape<'static> {
    match kind {
        DiskKind::Qcow2 => Shape::Qcow2 { backing: None },
        DiskKind::Vdi => Shape::Vdi { volume, image },
    }
}

fn corrupt(path: &Path, why: String) -> Error {
    Error::Corrupt {
        path: path.to_owned(),
        why,
    }
}

/// Makes a qcow2 larger where its first table has room in its clusters: size and length of the table stand in the same 16 bytes
/// of the header, so it is larger or not. Returns whether it was done.
fn grow_qcow2(file: &File, path: &Path, virtual_bytes: u64) -> Result<bool> {
    /// Where size (8 bytes), encryption (4, none) and length of the first table (4) stand.
    const AT_SIZE: u64 = 24;
    let read = |at: u64, into: &mut [u8]| file.read_exact_at(into, at).map_err(Error::io("read", path));
    let file_bytes = file.metadata().map_err(Error::io("look at", path))?.len();
    let mut head = [0; qcow2::HEADER_BYTES];
    read(0, &mut head)?;
    let header = qcow2::Header::parse(&head, file_bytes).map_err(|why| corrupt(path, why))?;
    let cluster = 1_u64 << header.cluster_bits;
    let (at, bytes) = header.first_table();
    let (needed, room) = (
        header.entries_for(virtual_bytes) * 8,
        (bytes as u64).next_multiple_of(cluster),
    );
    if header.version < 3 || needed > room {
        return Ok(false);
    }
    let mut new_part = vec![0; usize::try_from(needed.saturating_sub(bytes as u64)).unwrap_or(0)];
    if at + needed <= file_bytes {
        read(at + bytes as u64, &mut new_part)?;
    } else {
        return Ok(false);
    }
    if new_part.iter().any(|byte| *byte != 0) {
        return Ok(false);
    }
    let entries = u32::try_from(needed.max(bytes as u64) / 8).unwrap_or(u32::MAX);
    let mut size = Vec::with_capacity(16);
    size.extend(virtual_bytes.to_be_bytes());
    size.extend(0_u32.to_be_bytes());
    size.extend(entries.to_be_bytes());
    file.write_all_at(&size, AT_SIZE)
        .and_then(|()| file.sync_all())
        .map_err(Error::io("write", path))?;
    Ok(true)
}

/// The same of a VDI, where its map has room.
fn grow_vdi(file: &File, path: &Path, virtual_bytes: u64) -> Result<bool> {
    /// Where size (8 bytes), size of a block (4), of what belongs to it (4) and number of blocks (4) stand.
    const AT_SIZE: u64 = 0x170;
    vdi::check_size(virtual_bytes)?;
    let mut head = [0; vdi::HEADER_BYTES];
    file.read_exact_at(&mut head, 0)
        .map_err(Error::io("read", path))?;
    let layout = vdi::layout(&head).map_err(|why| corrupt(path, why))?;
    let blocks = virtual_bytes.div_ceil(layout.block_bytes);
    if layout.map_at + blocks * 4 > layout.data_at {
        return Ok(false);
    }
    let new = blocks.saturating_sub(u64::from(layout.blocks));
    let empty = vec![0xff; usize::try_from(new * 4).unwrap_or(0)];
    let mut size = Vec::with_capacity(20);
    size.extend(virtual_bytes.to_le_bytes());
    size.extend(
        u32::try_from(layout.block_bytes)
            .unwrap_or(u32::MAX)
            .to_le_bytes(),
    );
    size.extend([0; 4]);
    size.extend(u32::try_from(blocks).unwrap_or(u32::MAX).to_le_bytes());
    file.write_all_at(&empty, layout.map_at + u64::from(layout.blocks) * 4)
        .and_then(|()| file.sync_all())
        .and_then(|()| file.write_all_at(&size, AT_SIZE))
        .and_then(|()| file.sync_all())
        .map_err(Error::io("write", path))?;
    Ok(true)
}
