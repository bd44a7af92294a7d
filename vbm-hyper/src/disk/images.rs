//! Images and other content that is never changed, named by its SHA-256.

use super::{
    ImageFormat, Owner, Sharing, Temp, blocking, hold, partial, qcow2,
    read::{self, FileSource, Stack},
    room::Room,
    sweep, sync_dir,
};
use crate::{Error, Result, limits};
use bytes::Bytes;
use rustix::fs::FlockOperation;
use sha2::{Digest as _, Sha256};
use std::{
    fs::{self, File},
    io::Write,
    os::unix::fs::{FileExt, PermissionsExt},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};
use tokio::{
    io::{AsyncRead, AsyncReadExt},
    sync::mpsc,
};
use vbm_core::{Digest, DiskFormat};

/// What a content is for; decides what is checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ContentKind {
    /// A disk that is going to be the base of linked clones.
    Disk(DiskFormat),
    /// Anything else: a kernel, an initial RAM disk.
    Blob,
}

/// What an import found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ImportedFile {
    /// The name of the content.
    pub digest: Digest,
    /// The size of the file in bytes.
    pub file_bytes: u64,
    /// The size that a guest sees in bytes; of a blob, that of the file.
    pub virtual_bytes: u64,
}

/// A content in the store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct StoredFile {
    /// The name of the content.
    pub digest: Digest,
    /// The size of the file in bytes.
    pub file_bytes: u64,
    /// How many hold it.
    pub users: usize,
}

/// The images of one host. Cheap to clone.
///
/// Methods may be called from many tasks. One process owns the directory at a time.
#[derive(Clone, Debug)]
pub struct ImageStore {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    dir: PathBuf,
    content: PathBuf,
    refs: PathBuf,
    tmp: PathBuf,
    sharing: Sharing,
    room: Mutex<Room>,
    /// Held while references and content are compared or changed.
    guard: Mutex<()>,
    _owner: Owner,
}

impl ImageStore {
    /// Opens the store in `dir`, makes it if it is not there, and removes what was left half-made.
    ///
    /// # Errors
    /// [`Error::InUse`] when another process has it; [`Error::Io`].
    pub async fn open(dir: impl Into<PathBuf>) -> Result<Self> {
        Self::open_dir(dir.into(), Sharing::Alone).await
    }

    /// Opens a store that several processes work in, on any hosts that see the same directory.
    ///
    /// # Errors
    /// [`Error::InUse`] when a process has it that does not share; [`Error::Io`].
    pub async fn open_shared(dir: impl Into<PathBuf>) -> Result<Self> {
        Self::open_dir(dir.into(), Sharing::Shared).await
    }

    async fn open_dir(dir: PathBuf, sharing: Sharing) -> Result<Self> {
        let dir = std::path::absolute(&dir).map_err(Error::io("find", &dir))?;
        let (owner, alone) = hold(dir.clone(), sharing).await?;
        blocking(move || {
            let [content, refs, tmp] = ["sha256", "refs", "tmp"].map(|sub| dir.join(sub));
            for sub in [&content, &refs, &tmp] {
                fs::create_dir_all(sub).map_err(Error::io("create", sub))?;
            }
            let swept = if alone { sweep(&tmp)? } else { 0 };
            partial::sweep(&tmp, std::time::SystemTime::now())?;
            if swept > 0 {
                tracing::info!(swept, dir = %tmp.display(), "half-made imports were removed");
            }
            if sharing == Sharing::Shared {
                owner.share(&dir)?;
            }
            let inner = Inner {
                dir,
                content,
                refs,
                tmp,
                sharing,
                room: Mutex::default(),
                guard: Mutex::new(()),
                _owner: owner,
            };
            Ok(Self {
                inner: Arc::new(inner),
            })
        })
        .await
    }

    /// Reads a content to its end and keeps it. A content that is there already is kept once.
    ///
    /// # Errors
    /// [`Error::BadDisk`], [`Error::WrongDigest`], [`Error::DiskFull`], [`Error::Source`], [`Error::Io`]; nothing is kept then.
    ///
    /// # Cancel safety
    /// Dropping the future ends the import; nothing is kept.
    pub async fn import(
        &self,
        mut source: impl AsyncRead + Unpin + Send,
        expected: Option<Digest>,
        kind: ContentKind,
    ) -> Result<ImportedFile> {
        let (pieces, queue) = mpsc::channel::<Bytes>(limits::IMPORT_CHUNKS_MAX);
        let (complete, completed) = std::sync::mpsc::channel::<()>();
        let inner = Arc::clone(&self.inner);
        let keep = tokio::task::spawn_blocking(move || {
            let (temp, digest, file_bytes) = receive(&inner, queue)?;
            // Without this word the reader failed or was dropped, and the content is not whole.
            completed.recv().map_err(|_| Error::ShutDown("the import"))?;
            inner.keep(temp, digest, file_bytes, expected, kind)
        });
        let mut read = Ok(());
        loop {
            let mut piece = bytes::BytesMut::with_capacity(limits::IMPORT_CHUNK_BYTES);
            match source.read_buf(&mut piece).await {
                Ok(0) => break,
                Ok(_) => {
                    if pieces.send(piece.freeze()).await.is_err() {
                        break; // The writer failed and will say why.
                    }
                }
                Err(error) => {
                    read = Err(Error::Source(error));
                    break;
                }
            }
        }
        drop(pieces);
        if read.is_ok() && complete.send(()).is_err() {
            tracing::debug!("the writer of an import ended before its reader");
        }
        drop(complete);
        let kept = match keep.await {
            Ok(kept) => kept,
            Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
            Err(_) => Err(Error::ShutDown("the runtime")),
        };
        read.and(kept)
    }

    /// Where a content is.
    ///
    /// # Errors
    /// [`Error::NoSuchImage`].
    pub fn path(&self, digest: Digest) -> Result<PathBuf> {
        let path = self.inner.path(digest);
        if path.is_file() {
            Ok(path)
        } else {
            Err(Error::NoSuchImage(digest))
        }
    }

    /// Whether a content is here.
    pub fn has(&self, digest: Digest) -> bool {
        self.path(digest).is_ok()
    }

    /// Notes that `holder` needs a content. Noting it twice is noting it once.
    ///
    /// # Errors
    /// [`Error::NoSuchImage`]; [`Error::Invalid`] for a holder that is not a plain word; [`Error::Io`].
    pub async fn hold(&self, digest: Digest, holder: &str) -> Result<()> {
        let (inner, holder) = (Arc::clone(&self.inner), plain(holder)?);
        blocking(move || inner.hold(digest, &holder)).await
    }

    /// Notes that `holder` needs a content no more. Noting it twice is no error.
    ///
    /// # Errors
    /// [`Error::Invalid`] for a holder that is not a plain word; [`Error::Io`].
    pub async fn release(&self, digest: Digest, holder: &str) -> Result<()> {
        let (inner, holder) = (Arc::clone(&self.inner), plain(holder)?);
        blocking(move || inner.release(digest, &holder)).await
    }

    /// Removes a content that nobody needs.
    ///
    /// # Errors
    /// [`Error::ImageInUse`], [`Error::NoSuchImage`], [`Error::Io`].
    pub async fn remove(&self, digest: Digest) -> Result<()> {
        let inner = Arc::clone(&self.inner);
        blocking(move || {
            let _guard = inner.lock()?;
            let users = inner.holders(digest)?.len();
            if users > 0 {
                return Err(Error::ImageInUse { digest, users });
            }
            let path = inner.path(digest);
            match fs::remove_file(&path) {
                Ok(()) => sync_dir(&inner.content),
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => Err(Error::NoSuchImage(digest)),
                Err(error) => Err(Error::io("remove", &path)(error)),
            }
        })
        .await
    }

    /// All contents, by name.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub async fn list(&self) -> Result<Vec<StoredFile>> {
        let inner = Arc::clone(&self.inner);
        blocking(move || {
            let mut list = Vec::new();
            for entry in fs::read_dir(&inner.content).map_err(Error::io("list", &inner.content))? {
                let entry = entry.map_err(Error::io("list", &inner.content))?;
                let Some(digest) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else {
                    continue;
                };
                let file_bytes = entry
                    .metadata()
                    .map_err(Error::io("look at", entry.path()))?
                    .len();
                list.push(StoredFile {
                    digest,
                    file_bytes,
                    users: inner.holders(digest)?.len(),
                });
            }
            list.sort_by_key(|file| file.digest);
            Ok(list)
        })
        .await
    }

    /// The path, the format and the virtual size of a disk, by its header: its tables were checked when it was imported.
    pub(super) fn disk(&self, digest: Digest) -> Result<(PathBuf, DiskFormat, u64)> {
        let path = self.path(digest)?;
        let file = File::open(&path).map_err(Error::io("open", &path))?;
        let file_bytes = file.metadata().map_err(Error::io("look at", &path))?.len();
        let (format, header) = read_head(&file, file_bytes)?;
        let virtual_bytes = header.map_or(file_bytes, |header| header.virtual_bytes);
        Ok((path, format, virtual_bytes))
    }

    /// Says how much the store may take from now on. A store that has more already keeps it and takes no more.
    pub fn set_room(&self, room: Room) {
        *self.inner.room.lock().unwrap_or_else(PoisonError::into_inner) = room;
    }

    /// Removes what came of imports that broke and that nobody went on with ([`limits::PARTIAL_MAX_AGE`]). The store does so when it is
    /// opened; who runs for long calls it now and then. Returns how many imports.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub async fn sweep_partial_imports(&self) -> Result<usize> {
        let inner = Arc::clone(&self.inner);
        blocking(move || partial::sweep(&inner.tmp, std::time::SystemTime::now())).await
    }

    pub(super) fn tmp_dir(&self) -> &Path {
        &self.inner.tmp
    }

    /// Whether so many bytes may come.
    pub(super) fn make_room(&self, wanted_bytes: Option<u64>) -> Result<()> {
        self.inner.make_room(wanted_bytes.unwrap_or(0))
    }

    /// Keeps a file whose digest was taken.
    pub(super) fn keep(
        &self,
        temp: Temp,
        digest: Digest,
        file_bytes: u64,
        kind: ContentKind,
    ) -> Result<ImportedFile> {
        self.inner.keep(temp, digest, file_bytes, None, kind)
    }

    /// Where contents are.
    pub(super) fn content_dir(&self) -> &Path {
        &self.inner.content
    }

    /// The content of a disk.
    pub(super) fn open_disk(&self, digest: Digest) -> Result<Stack> {
        let (_, format, _) = self.disk(digest)?;
        self.open_as(digest, format.into())
    }

    pub(super) fn open_as(&self, digest: Digest, format: ImageFormat) -> Result<Stack> {
        let path = self.path(digest)?;
        let file = File::open(&path).map_err(Error::io("open", &path))?;
        let source = FileSource::new(file).map_err(Error::io("look at", &path))?;
        let layer = read::whole(Box::new(source), format).map_err(|why| read::bad(format.name(), why))?;
        Ok(Stack::new(vec![layer], format.name()))
    }

    pub(super) fn hold_now(&self, digest: Digest, holder: &str) -> Result<()> {
        self.inner.hold(digest, holder)
    }

    pub(super) fn release_now(&self, digest: Digest, holder: &str) -> Result<()> {
        self.inner.release(digest, holder)
    }

    pub(super) fn all_holders(&self) -> Result<Vec<(Digest, String)>> {
        let _guard = self.inner.lock()?;
        let mut all = Vec::new();
        for entry in fs::read_dir(&self.inner.refs).map_err(Error::io("list", &self.inner.refs))? {
            let entry = entry.map_err(Error::io("list", &self.inner.refs))?;
            let Some(digest) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else {
                continue;
            };
            all.extend(
                self.inner
                    .holders(digest)?
                    .into_iter()
                    .map(|holder| (digest, holder)),
            );
        }
        Ok(all)
    }
}

impl Inner {
    /// Keeps others from comparing or changing references and content; those of other processes too when the
    /// directory is shared.
    fn lock(&self) -> Result<(std::sync::MutexGuard<'_, ()>, Option<Owner>)> {
        let ours = self.guard.lock().unwrap_or_else(PoisonError::into_inner);
        let all = match self.sharing {
            Sharing::Alone => None,
            Sharing::Shared => Some(super::lock(
                &self.dir,
                "references",
                FlockOperation::LockExclusive,
            )?),
        };
        Ok((ours, all))
    }

    /// What is there is counted only where there is a quota.
    fn make_room(&self, wanted_bytes: u64) -> Result<()> {
        let room = *self.room.lock().unwrap_or_else(PoisonError::into_inner);
        if room.quota_bytes.is_some() {
            let mut used_bytes = 0;
            for entry in fs::read_dir(&self.content).map_err(Error::io("list", &self.content))? {
                let about = entry.and_then(|entry| entry.metadata());
                used_bytes += about.map_err(Error::io("look at", &self.content))?.len();
            }
            room.check_quota(&self.dir, used_bytes, wanted_bytes)?;
        }
        room.check_free(&self.dir, wanted_bytes)
    }

    fn path(&self, digest: Digest) -> PathBuf {
        self.content.join(digest.to_string())
    }

    fn keep(
        &self,
        mut temp: Temp,
        digest: Digest,
        file_bytes: u64,
        expected: Option<Digest>,
        kind: ContentKind,
    ) -> Result<ImportedFile> {
        if let Some(expected) = expected.filter(|expected| *expected != digest) {
            return Err(Error::WrongDigest {
                expected,
                found: digest,
            });
        }
        let virtual_bytes = match kind {
            ContentKind::Disk(format) => check_disk(&temp.file, file_bytes, format)?,
            ContentKind::Blob if file_bytes == 0 => {
                return Err(Error::invalid(
                    "the content is empty",
                    "not one byte was read",
                    "give a file that is not empty",
                ));
            }
            ContentKind::Blob => file_bytes,
        };
        temp.file
            .set_permissions(fs::Permissions::from_mode(0o444))
            .map_err(Error::io("protect", &temp.path))?;
        temp.file.sync_all().map_err(Error::io("write", &temp.path))?;
        let path = self.path(digest);
        {
            let _guard = self.lock()?;
            fs::rename(&temp.path, &path).map_err(Error::io("write", &path))?;
            temp.kept = true;
            sync_dir(&self.content)?;
        }
        Ok(ImportedFile {
            digest,
            file_bytes,
            virtual_bytes,
        })
    }

    fn hold(&self, digest: Digest, holder: &str) -> Result<()> {
        let _guard = self.lock()?;
        if !self.path(digest).is_file() {
            return Err(Error::NoSuchImage(digest));
        }
        let dir = self.refs.join(digest.to_string());
        fs::create_dir_all(&dir).map_err(Error::io("create", &dir))?;
        let path = dir.join(holder);
        fs::write(&path, b"").map_err(Error::io("write", &path))
    }

    fn release(&self, digest: Digest, holder: &str) -> Result<()> {
        let _guard = self.lock()?;
        let dir = self.refs.join(digest.to_string());
        let path = dir.join(holder);
        match fs::remove_file(&path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(Error::io("remove", &path)(error));
            }
            _ => {}
        }
        // Goes when it is empty; that it is not is no failure.
        drop(fs::remove_dir(&dir));
        Ok(())
    }

    fn holders(&self, digest: Digest) -> Result<Vec<String>> {
        let dir = self.refs.join(digest.to_string());
        let entries = match fs::read_dir(&dir) {
            Ok(entries) => entries,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(Error::io("list", &dir)(error)),
        };
        entries
            .map(|entry| entry.map(|entry| entry.file_name().to_string_lossy().into_owned()))
            .collect::<std::io::Result<_>>()
            .map_err(Error::io("list", &dir))
    }
}

/// A holder becomes a file name.
fn plain(holder: &str) -> Result<String> {
    let fine = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    if (1..=200).contains(&holder.len()) && !holder.starts_with('.') && holder.chars().all(fine) {
        Ok(holder.to_owned())
    } else {
        Err(Error::invalid(
            format!("'{holder}' cannot be noted as the holder of an image"),
            "it is not a plain word",
            "use 1 to 200 of a-z, A-Z, 0-9, '-', '_' and '.'",
        ))
    }
}

/// How often room is asked for while content comes whose length is not known.
const ROOM_EVERY_BYTES: u64 = 64 << 20;

/// Writes what comes to a temporary file and hashes it on the way.
fn receive(inner: &Inner, mut queue: mpsc::Receiver<Bytes>) -> Result<(Temp, Digest, u64)> {
    let mut temp = Temp::create(&inner.tmp)?;
    let mut asked_at = 0;
    let mut hash = Sha256::new();
    let mut file_bytes = 0_u64;
    while let Some(piece) = queue.blocking_recv() {
        file_bytes += piece.len() as u64;
        if file_bytes > limits::IMAGE_MAX_BYTES {
            return Err(Error::invalid(
                "the image is too large",
                "it has more than 64 TiB",
                "import a smaller one",
            ));
        }
        if file_bytes > asked_at {
            inner.make_room(piece.len() as u64)?;
            asked_at = file_bytes + ROOM_EVERY_BYTES;
        }
        hash.update(&piece);
        temp.file
            .write_all(&piece)
            .map_err(Error::io("write", &temp.path))?;
    }
    Ok((temp, Digest::new(hash.finalize().into()), file_bytes))
}

fn bad(format: DiskFormat, why: impl Into<String>) -> Error {
    let format = if format == DiskFormat::Raw { "raw" } else { "qcow2" };
    let why = why.into();
    Error::BadDisk { format, why }
}

/// The format of a disk that may be a base, and its header if it has one.
fn read_head(file: &File, file_bytes: u64) -> Result<(DiskFormat, Option<qcow2::Header>)> {
    let mut head = vec![0; qcow2::HEADER_BYTES.min(usize::try_from(file_bytes).unwrap_or(usize::MAX))];
    file.read_exact_at(&mut head, 0)
        .map_err(|error| bad(DiskFormat::Raw, error.to_string()))?;
    if !head.starts_with(&qcow2::MAGIC) {
        return Ok((DiskFormat::Raw, None));
    }
    let header = qcow2::Header::parse(&head, file_bytes).map_err(|why| bad(DiskFormat::Qcow2, why))?;
    header
        .check_is_base()
        .map_err(|why| bad(DiskFormat::Qcow2, why))?;
    Ok((DiskFormat::Qcow2, Some(header)))
}

/// Checks that a file is a disk that may be a base. Returns its virtual size in bytes.
fn check_disk(file: &File, file_bytes: u64, wanted: DiskFormat) -> Result<u64> {
    let (found, header) = read_head(file, file_bytes)?;
    match header {
        Some(header) if wanted == found => {
            header
                .check_tables(file_bytes, |at, buf| file.read_exact_at(buf, at))
                .map_err(|why| bad(found, why))?;
            Ok(header.virtual_bytes)
        }
        Some(_) => Err(bad(wanted, "it is a qcow2 file; import it as such")),
        None if wanted != found => Err(bad(wanted, "it does not begin with the mark of a qcow2 file")),
        None => match file_bytes {
            0 => Err(bad(wanted, "it is empty")),
            n if n % 512 != 0 => Err(bad(wanted, format!("its {n} bytes are not whole sectors of 512"))),
            n if n > qcow2::VIRTUAL_MAX_BYTES => Err(bad(wanted, "it has more than 64 TiB")),
            n => Ok(n),
        },
    }
}
