//! A pool: the volumes of one directory, each a linked clone of an image.

use super::{
    DiskKind, ImageStore, Owner, Sharing, Temp, blocking, hold,
    lock::{self, Hold},
    qcow2,
    room::{Promise, Promised, Room},
    sweep, sync_dir, vdi,
};
use crate::{Error, OpCx, Result};
use sha2::{Digest as _, Sha256};
use std::{
    collections::HashSet,
    fs::{self, File},
    os::unix::{
        ffi::OsStrExt,
        fs::{FileExt, MetadataExt, PermissionsExt},
    },
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};
use vbm_core::{Digest, VolumeId};

/// A volume in a pool.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct VolumeFile {
    /// Its id.
    pub id: VolumeId,
    /// Its file.
    pub path: PathBuf,
    /// The image it is a clone or a copy of; none of a disk that began empty.
    pub image: Option<Digest>,
    /// The size that the guest sees, in bytes.
    pub virtual_bytes: u64,
    /// What it occupies on the disk, in bytes.
    pub used_bytes: u64,
}

/// The volumes of one directory. Cheap to clone.
///
/// One process owns the directory at a time.
#[derive(Clone, Debug)]
pub struct Pool {
    pub(super) inner: Arc<Inner>,
}

#[derive(Debug)]
pub(super) struct Inner {
    pub(super) dir: PathBuf,
    /// Begins the notes of this pool in the image store; other pools have other ones.
    prefix: String,
    pub(super) images: ImageStore,
    room: Mutex<Room>,
    promised: Promised,
    owner: Owner,
}

impl Pool {
    /// Opens the pool in `dir`, makes it if it is not there, removes what was left half-made, and brings the
    /// references to images in line with the volumes that are there.
    ///
    /// # Errors
    /// [`Error::InUse`] when another process has it; [`Error::Io`].
    pub async fn open(dir: impl Into<PathBuf>, images: ImageStore) -> Result<Self> {
        Self::open_as(dir.into(), images, Sharing::Alone).await
    }

    /// Opens a pool that several processes work in, on any hosts that see the same directory at the same path, with
    /// a store of images that they share as well. Which of them uses a volume is their business.
    ///
    /// # Errors
    /// [`Error::InUse`] when a process has it that does not share; [`Error::Io`].
    pub async fn open_shared(dir: impl Into<PathBuf>, images: ImageStore) -> Result<Self> {
        Self::open_as(dir.into(), images, Sharing::Shared).await
    }

    async fn open_as(dir: PathBuf, images: ImageStore, sharing: Sharing) -> Result<Self> {
        let dir = std::path::absolute(&dir).map_err(Error::io("find", &dir))?;
        let (owner, alone) = hold(dir.clone(), sharing).await?;
        blocking(move || {
            let inner = Inner {
                prefix: format!(
                    "volume-{}-",
                    &hex::encode(Sha256::digest(dir.as_os_str().as_bytes()))[..8]
                ),
                dir,
                images,
                room: Mutex::default(),
                promised: Promised::default(),
                owner,
            };
            if alone {
                let swept = sweep(&inner.dir)?;
                let mended = inner.mend_references()?;
                if swept + mended > 0 {
                    tracing::info!(swept, mended, dir = %inner.dir.display(), "the pool was swept");
                }
            }
            if sharing == Sharing::Shared {
                inner.owner.share(&inner.dir)?;
            }
            Ok(Self {
                inner: Arc::new(inner),
            })
        })
        .await
    }

    /// Says how much the volumes may take from now on. A pool that has more already keeps it and takes no more.
    pub fn set_room(&self, room: Room) {
        *self.inner.room.lock().unwrap_or_else(PoisonError::into_inner) = room;
    }

    /// Makes a linked clone of an image: a volume of `virtual_bytes` whose content is the image's until it is written.
    ///
    /// # Errors
    /// [`Error::NoSuchImage`], [`Error::VolumeExists`], [`Error::OverQuota`], [`Error::NoRoom`], [`Error::DiskFull`],
    /// [`Error::Io`]; [`Error::Invalid`] when it would be smaller than the image or larger than 64 TiB. Nothing half-made is left.
    ///
    /// # Cancel safety
    /// Dropping the future does not end it: the volume is made or not, never half.
    pub async fn clone_image(&self, image: Digest, volume: VolumeId, virtual_bytes: u64) -> Result<PathBuf> {
        self.clone_image_as(image, volume, virtual_bytes, DiskKind::Qcow2)
            .await
    }

    /// The same as a disk of a kind: what cannot be a linked clone is a copy, which takes the time of one.
    ///
    /// # Errors
    /// Those of [`Pool::clone_image`]; [`Error::BadDisk`] when the image's content cannot be read here.
    ///
    /// # Cancel safety
    /// Dropping the future may end a copy and does not end a clone: the volume is made or not, never half.
    pub async fn clone_image_as(
        &self,
        image: Digest,
        volume: VolumeId,
        virtual_bytes: u64,
        kind: DiskKind,
    ) -> Result<PathBuf> {
        let inner = Arc::clone(&self.inner);
        match kind {
            DiskKind::Qcow2 => blocking(move || inner.clone_image(image, volume, virtual_bytes)).await,
            DiskKind::Vdi => {
                self.copy_image(&OpCx::new(), image, volume, virtual_bytes, kind)
                    .await
            }
        }
    }

    /// Makes an empty disk: a volume of `virtual_bytes` of zeros, which takes no room until it is written.
    ///
    /// # Errors
    /// [`Error::VolumeExists`], [`Error::DiskFull`], [`Error::Io`]; [`Error::Invalid`] for a size that the kind does not
    /// allow: whole sectors of 512 bytes, at most 64 TiB (of VDI, 2 TiB). Nothing half-made is left.
    ///
    /// # Cancel safety
    /// Dropping the future does not end it: the volume is made or not, never half.
    pub async fn create_blank(
        &self,
        volume: VolumeId,
        virtual_bytes: u64,
        kind: DiskKind,
    ) -> Result<PathBuf> {
        let inner = Arc::clone(&self.inner);
        blocking(move || inner.create_blank(volume, virtual_bytes, kind)).await
    }

    /// The directory that its disks are in.
    pub fn dir(&self) -> &Path {
        &self.inner.dir
    }

    /// The file of a volume, if it is there.
    pub fn path(&self, volume: VolumeId) -> Option<PathBuf> {
        self.inner.find(volume)
    }

    /// Removes a volume, with its snapshots and the memory kept beside it, and lets go of its image. Removing what is not there is no error.
    ///
    /// # Errors
    /// [`Error::DiskInUse`] with who has it; [`Error::Io`].
    pub async fn remove(&self, volume: VolumeId) -> Result<()> {
        let inner = Arc::clone(&self.inner);
        blocking(move || inner.remove(volume)).await
    }

    /// All volumes, by id. A file that is no volume of ours is left out.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub async fn list(&self) -> Result<Vec<VolumeFile>> {
        let inner = Arc::clone(&self.inner);
        blocking(move || inner.list()).await
    }
}

impl Inner {
    fn path(&self, volume: VolumeId) -> PathBuf {
        self.path_as(volume, DiskKind::Qcow2)
    }

    pub(super) fn path_as(&self, volume: VolumeId, kind: DiskKind) -> PathBuf {
        self.dir.join(format!("{volume}.{}", kind.extension()))
    }

    pub(super) fn find(&self, volume: VolumeId) -> Option<PathBuf> {
        let kinds = [DiskKind::Qcow2, DiskKind::Vdi];
        kinds
            .map(|kind| self.path_as(volume, kind))
            .into_iter()
            .find(|path| path.is_file())
    }

    /// Speaks for so many bytes more of the quota. Counting what is there costs a look at every volume, so it is done only
    /// where there is a quota.
    pub(super) fn promise(&self, virtual_bytes: u64) -> Result<Promise<'_>> {
        let room = *self.room.lock().unwrap_or_else(PoisonError::into_inner);
        self.promised.promise(virtual_bytes, |others| {
            let there = match room.quota_bytes {
                None => 0,
                Some(_) => self.list()?.iter().map(|volume| volume.virtual_bytes).sum(),
            };
            room.check_quota(&self.dir, others.saturating_add(there), virtual_bytes)
        })
    }

    /// Whether so many bytes may be written.
    pub(super) fn check_free(&self, needed_bytes: u64) -> Result<()> {
        let room = *self.room.lock().unwrap_or_else(PoisonError::into_inner);
        room.check_free(&self.dir, needed_bytes)
    }

    fn create_blank(&self, volume: VolumeId, virtual_bytes: u64, kind: DiskKind) -> Result<PathBuf> {
        if self.find(volume).is_some() {
            return Err(Error::VolumeExists(volume));
        }
        let path = self.path_as(volume, kind);
        let _promise = self.promise(virtual_bytes)?;
        match kind {
            DiskKind::Qcow2 => {
                let blank = qcow2::blank(virtual_bytes).map_err(|why| bad_size(volume, why))?;
                self.write(&path, volume, &blank)?;
            }
            DiskKind::Vdi => {
                let blank = vdi::blank(volume, virtual_bytes)?;
                self.write(&path, volume, &blank)?;
            }
        }
        Ok(path)
    }

    /// The word that notes in the image store that a volume of this pool needs an image.
    pub(super) fn holder(&self, volume: VolumeId) -> String {
        format!("{}{volume}", self.prefix)
    }

    fn clone_image(&self, image: Digest, volume: VolumeId, virtual_bytes: u64) -> Result<PathBuf> {
        let path = self.path(volume);
        if self.find(volume).is_some() {
            return Err(Error::VolumeExists(volume));
        }
        let invalid = |why: String| bad_size(volume, why);
        let _promise = self.promise(virtual_bytes)?;
        let holder = self.holder(volume);
        self.images.hold_now(image, &holder)?;
        let made = (|| {
            let (base, format, base_bytes) = self.images.disk(image)?;
            if virtual_bytes < base_bytes {
                return Err(too_small(volume, virtual_bytes, base_bytes));
            }
            let base = base
                .to_str()
                .ok_or_else(|| invalid("the path of its image is not UTF-8".into()))?;
            let overlay = qcow2::overlay(base, format, virtual_bytes).map_err(invalid)?;
            self.write(&path, volume, &overlay)
        })();
        match made {
            Ok(()) => Ok(path),
            Err(error) => {
                // Another clone of the same image under the same id keeps the note.
                if read_volume(&path)
                    .ok()
                    .is_none_or(|(found, _)| found != Some(image))
                {
                    self.images.release_now(image, &holder)?;
                }
                Err(error)
            }
        }
    }

    fn write(&self, path: &Path, volume: VolumeId, overlay: &qcow2::Overlay) -> Result<()> {
        self.check_free(overlay.parts.iter().map(|(_, bytes)| bytes.len() as u64).sum())?;
        self.place(path, volume, |file| {
            let failed = |source| Error::io("write", path)(source);
            file.set_len(overlay.file_bytes).map_err(failed)?;
            overlay
                .parts
                .iter()
                .try_for_each(|(at, bytes)| file.write_all_at(bytes, *at).map_err(failed))
        })
    }

    /// Writes a volume's file whole or not at all.
    pub(super) fn place(
        &self,
        path: &Path,
        volume: VolumeId,
        write: impl FnOnce(&File) -> Result<()>,
    ) -> Result<()> {
        let mut temp = Temp::create(&self.dir)?;
        let failed = |source| Error::io("write", path)(source);
        temp.file
            .set_permissions(fs::Permissions::from_mode(0o600))
            .map_err(failed)?;
        write(&temp.file)?;
        temp.file.sync_data().map_err(failed)?;
        let flags = rustix::fs::RenameFlags::NOREPLACE;
        match rustix::fs::renameat_with(rustix::fs::CWD, &temp.path, rustix::fs::CWD, path, flags) {
            Ok(()) => {
                temp.kept = true;
                sync_dir(&self.dir)
            }
            Err(rustix::io::Errno::EXIST) => Err(Error::VolumeExists(volume)),
            Err(errno) => Err(failed(errno.into())),
        }
    }

    fn remove(&self, volume: VolumeId) -> Result<()> {
        let path = self.find(volume).unwrap_or_else(|| self.path(volume));
        let _held = match path.symlink_metadata() {
            Ok(_) => Some(lock::take(&path, Hold::Alone)?),
            Err(_) => None,
        };
        let image = read_volume(&path).ok().and_then(|(image, _)| image);
        let memory = super::memory_dir(&path);
        match fs::remove_dir_all(&memory) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(Error::io("remove", memory)(error));
            }
            _ => {}
        }
        match fs::remove_file(&path) {
            Ok(()) => sync_dir(&self.dir)?,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => return Err(Error::io("remove", &path)(error)),
        }
        let holder = self.holder(volume);
        match image {
            Some(image) => self.images.release_now(image, &holder),
            None => self
                .images
                .all_holders()?
                .into_iter()
                .filter(|(_, found)| *found == holder)
                .try_for_each(|(image, _)| self.images.release_now(image, &holder)),
        }
    }

    fn list(&self) -> Result<Vec<VolumeFile>> {
        let mut list = Vec::new();
        for entry in fs::read_dir(&self.dir).map_err(Error::io("list", &self.dir))? {
            let path = entry.map_err(Error::io("list", &self.dir))?.path();
            let Some(id) = volume_of(&path) else {
                continue;
            };
            match (read_volume(&path), fs::metadata(&path)) {
                (Ok((image, virtual_bytes)), Ok(meta)) => list.push(VolumeFile {
                    id,
                    image,
                    virtual_bytes,
                    used_bytes: meta.blocks() * 512,
                    path,
                }),
                (Err(why), _) => {
                    tracing::warn!(path = %path.display(), why, "a volume cannot be understood; it is left alone");
                }
                (_, Err(error)) => {
                    tracing::warn!(path = %path.display(), %error, "a volume cannot be looked at")
                }
            }
        }
        list.sort_by_key(|volume| volume.id);
        Ok(list)
    }

    /// The volumes are the truth about which images are needed; the notes are brought in line with them.
    fn mend_references(&self) -> Result<usize> {
        let mut mended = 0;
        let mut stale: HashSet<_> = self
            .images
            .all_holders()?
            .into_iter()
            .filter(|(_, holder)| holder.starts_with(&self.prefix))
            .collect();
        let linked = |volume: &VolumeFile| volume.path.extension().is_some_and(|e| e == "qcow2");
        for volume in self.list()?.into_iter().filter(linked) {
            let Some(image) = volume.image else {
                continue;
            };
            let note = (image, self.holder(volume.id));
            if !stale.remove(&note) {
                match self.images.hold_now(image, &note.1) {
                    Ok(()) => mended += 1,
                    Err(error) => {
                        tracing::warn!(volume = %volume.id, %error, "the image of a volume is missing")
                    }
                }
            }
        }
        for (image, holder) in stale {
            let id = holder[self.prefix.len()..].parse::<VolumeId>();
            // A volume that is there but cannot be understood keeps its image.
            if id.is_ok_and(|id| self.path(id).exists() && read_volume(&self.path(id)).is_err()) {
                continue;
            }
            self.images.release_now(image, &holder)?;
            mended += 1;
        }
        Ok(mended)
    }
}

/// Which volume a file is, by its name.
fn volume_of(path: &Path) -> Option<VolumeId> {
    let (name, extension) = (path.file_stem()?.to_str()?, path.extension()?.to_str()?);
    let known = [DiskKind::Qcow2, DiskKind::Vdi].map(DiskKind::extension);
    known.contains(&extension).then(|| name.parse().ok()).flatten()
}

pub(super) fn bad_size(volume: VolumeId, why: String) -> Error {
    Error::invalid(
        format!("volume {volume} cannot be made"),
        why,
        "choose a size that fits the image and the format",
    )
}

pub(super) fn too_small(volume: VolumeId, virtual_bytes: u64, base_bytes: u64) -> Error {
    Error::invalid(
        format!("volume {volume} cannot be made"),
        format!("{virtual_bytes} bytes are less than the {base_bytes} of its image"),
        "choose a size that fits the image",
    )
}

/// The image, if it has one, and the virtual size of a volume's file.
pub(super) fn read_volume(path: &Path) -> Result<(Option<Digest>, u64), String> {
    let file = lock::open_plain(path, false).map_err(|e| e.to_string())?;
    if path.extension().is_some_and(|e| e == "vdi") {
        let header = vdi::read_header(&file)?;
        return Ok((header.image, header.virtual_bytes));
    }
    let file_bytes = file.metadata().map_err(|e| e.to_string())?.len();
    let mut head = [0; qcow2::HEADER_BYTES];
    file.read_exact_at(&mut head, 0).map_err(|e| e.to_string())?;
    let header = qcow2::Header::parse(&head, file_bytes)?;
    let Some((at, len)) = header.backing else {
        return Ok((None, header.virtual_bytes));
    };
    if len as usize > qcow2::BACKING_MAX_BYTES {
        return Err("the name of its base is too long".into());
    }
    let mut name = vec![0; len as usize];
    file.read_exact_at(&mut name, at).map_err(|e| e.to_string())?;
    let name = String::from_utf8(name).map_err(|e| e.to_string())?;
    let digest = Path::new(&name)
        .file_name()
        .and_then(|n| n.to_str())
        .and_then(|n| n.parse().ok());
    let digest: Digest = digest.ok_or("its base is no image of ours")?;
    Ok((Some(digest), header.virtual_bytes))
}
