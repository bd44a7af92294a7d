//! Disks that come in: from a file or a stream at once, or from a source that can go on where it broke off.
//!
//! ```text
//!   stream ------------------> tmp/.tmp-*         goes away by itself
//!   source --open(from byte)-> tmp/partial-*      stays when the source breaks: the next import of the same source goes on
//!                                  |
//!             length, SHA-256 of what came in; then its format, by its content
//!                raw, qcow2: kept as it is           vdi, vmdk: written anew as qcow2
//!                                  |
//!                      sha256/<SHA-256 of what is kept>
//! ```
//!
//! The name of an image is the digest of the file that is *kept*: that is what hosts fetch from each other, and check by its name.
//! Of a raw or qcow2 disk it is the digest of what came in as well. The digest that a caller expects is always that of what comes in.

use super::{
    ImageFormat, ImageStore, Temp,
    export::write_hashed,
    format::{LOOK_BYTES, recognise},
    images::{ContentKind, ImportedFile},
    partial::Partial,
    read::{self, FileSource, Stack},
    work::{self, Work},
    write::{Plan, Shape},
};
use crate::{Error, OpCx, Result, limits};
use async_trait::async_trait;
use sha2::{Digest as _, Sha256};
use std::{fs::File, os::unix::fs::FileExt, time::Duration};
use tokio::{
    io::{AsyncRead, AsyncReadExt},
    time::{sleep, timeout},
};
use vbm_core::{Digest, DiskFormat};

/// What is known of a disk before it comes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Expected {
    /// Its format; recognised by its content when absent.
    pub format: Option<ImageFormat>,
    /// The SHA-256 of what comes in.
    pub sha256: Option<Digest>,
    /// The size of what comes in, in bytes.
    pub file_bytes: Option<u64>,
}

impl Expected {
    /// The same with a format.
    #[must_use]
    pub const fn of_format(mut self, format: Option<ImageFormat>) -> Self {
        self.format = format;
        self
    }

    /// The same with a digest.
    #[must_use]
    pub const fn of_digest(mut self, sha256: Option<Digest>) -> Self {
        self.sha256 = sha256;
        self
    }

    /// The same with a size.
    #[must_use]
    pub const fn of_bytes(mut self, file_bytes: Option<u64>) -> Self {
        self.file_bytes = file_bytes;
        self
    }
}

/// A disk that came in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct ImportedDisk {
    /// What is kept, under its name.
    pub kept: ImportedFile,
    /// The format in which it is kept.
    pub format: DiskFormat,
    /// The format in which it came.
    pub came_as: ImageFormat,
    /// The SHA-256 of what came in. That of what is kept, unless it was written anew.
    pub source_digest: Digest,
}

/// What a source gives from some byte on.
#[non_exhaustive]
pub struct SourceAnswer {
    /// The first byte that it gives: the one that was asked for, or 0 when it begins anew.
    pub from_byte: u64,
    /// How many bytes there are in all, if it knows.
    pub total_bytes: Option<u64>,
    /// A word that changes when the content does (HTTP: a strong ETag). Without one, what came is kept only where a digest
    /// is expected.
    pub validator: Option<String>,
    /// The bytes.
    pub body: Box<dyn AsyncRead + Send + Unpin>,
}

impl SourceAnswer {
    /// An answer.
    pub fn new(
        from_byte: u64,
        total_bytes: Option<u64>,
        validator: Option<String>,
        body: Box<dyn AsyncRead + Send + Unpin>,
    ) -> Self {
        Self {
            from_byte,
            total_bytes,
            validator,
            body,
        }
    }
}

/// Where a disk comes from that can go on where it broke off.
#[async_trait]
pub trait ImageSource: Send + Sync {
    /// Names it in errors; holds no secrets.
    fn name(&self) -> String;

    /// What it is known by: what came of it is kept under this, as a digest.
    fn key(&self) -> String {
        self.name()
    }

    /// Gives the content from a byte on, if it is still the one of `validator`; else all of it.
    ///
    /// # Errors
    /// [`Error::Source`] for what may go away; anything else ends the import.
    async fn open(&self, from_byte: u64, validator: Option<&str>) -> Result<SourceAnswer>;
}

const WHAT: &str = "an import";

impl ImageStore {
    /// Reads a disk to its end and keeps it. Tells its progress in bytes.
    ///
    /// # Errors
    /// [`Error::BadDisk`], [`Error::WrongDigest`], [`Error::WrongLength`], [`Error::OverQuota`], [`Error::NoRoom`],
    /// [`Error::DiskFull`], [`Error::Source`], [`Error::Stalled`] after [`limits::IMPORT_STALL_DEADLINE`], [`Error::Io`],
    /// [`Error::CalledOff`], [`Error::OutOfTime`]; nothing is kept then.
    ///
    /// # Cancel safety
    /// Dropping the future ends the import; nothing is kept.
    pub async fn import_disk(
        &self,
        cx: &OpCx,
        mut source: impl AsyncRead + Unpin + Send,
        expected: &Expected,
    ) -> Result<ImportedDisk> {
        let total = expected.file_bytes.unwrap_or(0);
        self.make_room(expected.file_bytes)?;
        let temp = Temp::create(self.tmp_dir())?;
        let mut into = Received::new(&temp.file, 0)?;
        cx.run(WHAT, async {
            self.copy(cx, &mut source, &mut into, total, "the stream").await
        })
        .await?;
        into.finish().await?;
        self.take_in(cx, temp, *expected).await
    }

    /// Brings a disk from a source and keeps it. When the source breaks, the import goes on by itself up to
    /// [`limits::IMPORT_RETRIES_MAX`] times; what came is kept for [`limits::PARTIAL_MAX_AGE`], and the next import of the same source
    /// goes on from there.
    ///
    /// # Errors
    /// Those of [`ImageStore::import_disk`], and those of the source; [`Error::Invalid`] when the same source is being
    /// imported at this moment. What came stays when the source broke, stalled or was called off; in all other cases nothing is
    /// kept.
    ///
    /// # Cancel safety
    /// Dropping the future ends the import; what came stays for the next one.
    pub async fn import_from(
        &self,
        cx: &OpCx,
        source: &dyn ImageSource,
        expected: &Expected,
    ) -> Result<ImportedDisk> {
        let mut partial = Partial::open(self.tmp_dir(), &source.key()).await?;
        let received = cx
            .run(WHAT, self.receive(cx, source, &mut partial, expected))
            .await;
        match received {
            Ok(()) => self.take_in(cx, partial.into_temp(), *expected).await,
            Err(error) => {
                let goes_on = matches!(
                    error,
                    Error::Source(_)
                        | Error::Stalled { .. }
                        | Error::CalledOff { .. }
                        | Error::OutOfTime { .. }
                );
                if !goes_on || !partial.may_go_on(expected.sha256) {
                    partial.forget();
                }
                Err(error)
            }
        }
    }

    /// Tries until all is here.
    async fn receive(
        &self,
        cx: &OpCx,
        source: &dyn ImageSource,
        partial: &mut Partial,
        expected: &Expected,
    ) -> Result<()> {
        let (mut tries, mut pause) = (0, limits::IMPORT_RETRY_FIRST);
        loop {
            let before = partial.bytes()?;
            let error = match self.receive_once(cx, source, partial, expected).await {
                Ok(()) => return Ok(()),
                Err(error @ (Error::Source(_) | Error::Stalled { .. })) => error,
                Err(other) => return Err(other),
            };
            tries += 1;
            if tries > limits::IMPORT_RETRIES_MAX {
                return Err(error);
            }
            if partial.bytes()? > before {
                pause = limits::IMPORT_RETRY_FIRST;
            }
            tracing::info!(source = source.name(), %error, tries, "an import goes on where it broke off");
            sleep(pause).await;
            pause *= 2;
        }
    }

    async fn receive_once(
        &self,
        cx: &OpCx,
        source: &dyn ImageSource,
        partial: &mut Partial,
        expected: &Expected,
    ) -> Result<()> {
        if !partial.may_go_on(expected.sha256) {
            partial.begin_anew()?;
        }
        let have = partial.bytes()?;
        let name = source.name();
        let opened = timeout(
            limits::IMPORT_STALL_DEADLINE,
            source.open(have, partial.validator()),
        );
        let mut answer = opened
            .await
            .unwrap_or_else(|_| Err(stalled(&name, limits::IMPORT_STALL_DEADLINE, have)))?;
        if answer.from_byte != have {
            partial.begin_anew()?;
            if answer.from_byte != 0 {
                return Err(Error::Source(std::io::Error::other(format!(
                    "{name} begins at byte {} instead of {have}",
                    answer.from_byte
                ))));
            }
        }
        let have = answer.from_byte;
        let total = answer.total_bytes.or(expected.file_bytes);
        if let Some((found_bytes, expected_bytes)) = answer.total_bytes.zip(expected.file_bytes)
            && found_bytes != expected_bytes
        {
            return Err(Error::WrongLength {
                expected_bytes,
                found_bytes,
            });
        }
        self.make_room(total.map(|total| total.saturating_sub(have)))?;
        partial.note(answer.validator.take())?;
        let mut into = Received::new(partial.file(), have)?;
        let copied = self
            .copy(cx, &mut answer.body, &mut into, total.unwrap_or(0), &name)
            .await;
        let bytes = into.finish().await?;
        copied?;
        match total {
            Some(total) if bytes < total => Err(Error::Source(std::io::Error::new(
                std::io::ErrorKind::UnexpectedEof,
                format!("{name} ended after {bytes} of {total} bytes"),
            ))),
            _ => Ok(()),
        }
    }

    /// Copies until the end of the source, or until it is silent for too long.
    async fn copy(
        &self,
        cx: &OpCx,
        source: &mut (impl AsyncRead + Unpin + Send + ?Sized),
        into: &mut Received,
        total: u64,
        name: &str,
    ) -> Result<()> {
        let mut asked_at = into.bytes;
        loop {
            let mut piece = bytes::BytesMut::with_capacity(limits::IMPORT_CHUNK_BYTES);
            cx.report("receiving", into.bytes, total);
            let read = timeout(limits::IMPORT_STALL_DEADLINE, source.read_buf(&mut piece));
            let read = read
                .await
                .map_err(|_| stalled(name, limits::IMPORT_STALL_DEADLINE, into.bytes))?;
            if read.map_err(Error::Source)? == 0 {
                return Ok(());
            }
            into.write(piece.freeze()).await?;
            if into.bytes > limits::IMAGE_MAX_BYTES {
                return Err(Error::invalid(
                    "the image is too large",
                    "it has more than 64 TiB",
                    "import a smaller one",
                ));
            }
            // Whoever did not say how much is coming is asked again and again.
            if into.bytes >= asked_at {
                self.make_room(Some(ROOM_EVERY_BYTES.min(total.saturating_sub(into.bytes))))?;
                asked_at = into.bytes + ROOM_EVERY_BYTES;
            }
        }
    }

    /// Checks what came, and keeps it.
    async fn take_in(&self, cx: &OpCx, temp: Temp, expected: Expected) -> Result<ImportedDisk> {
        let store = self.clone();
        work::long(cx, WHAT, move |work| store.take_in_now(temp, &expected, work)).await
    }

    fn take_in_now(&self, temp: Temp, expected: &Expected, work: &Work) -> Result<ImportedDisk> {
        let (source_digest, file_bytes) = digest_of(&temp, work)?;
        if let Some(expected_bytes) = expected.file_bytes.filter(|bytes| *bytes != file_bytes) {
            return Err(Error::WrongLength {
                expected_bytes,
                found_bytes: file_bytes,
            });
        }
        if let Some(wanted) = expected.sha256.filter(|wanted| *wanted != source_digest) {
            return Err(Error::WrongDigest {
                expected: wanted,
                found: source_digest,
            });
        }
        let came_as = format_of(&temp.file, file_bytes, expected.format)?;
        let as_it_is = match came_as {
            ImageFormat::Raw => Some(DiskFormat::Raw),
            ImageFormat::Qcow2 => Some(DiskFormat::Qcow2),
            ImageFormat::Vdi | ImageFormat::Vmdk => None,
        };
        let kept = match as_it_is {
            Some(format) => self.keep(temp, source_digest, file_bytes, ContentKind::Disk(format))?,
            None => self.write_anew(&temp, came_as, work)?,
        };
        Ok(ImportedDisk {
            kept,
            format: as_it_is.unwrap_or(DiskFormat::Qcow2),
            came_as,
            source_digest,
        })
    }

    fn write_anew(&self, came: &Temp, format: ImageFormat, work: &Work) -> Result<ImportedFile> {
        let file = came.file.try_clone().map_err(Error::io("read", &came.path))?;
        let source = FileSource::new(file).map_err(Error::io("read", &came.path))?;
        let layer = read::whole(Box::new(source), format).map_err(|why| read::bad(format.name(), why))?;
        let mut disk = Stack::new(vec![layer], format.name());
        let shape = Shape::Qcow2 { backing: None };
        let virtual_bytes = disk.virtual_bytes();
        if !virtual_bytes.is_multiple_of(512) {
            let why = format!("its {virtual_bytes} bytes are not whole sectors of 512");
            return Err(read::bad(format.name(), why));
        }
        let plan = Plan::of(&mut disk, virtual_bytes, shape.unit_bytes(), None, work)?;
        let file_bytes = shape.file_bytes(&plan)?;
        self.make_room(Some(file_bytes))?;
        let temp = Temp::create(self.tmp_dir())?;
        let digest = write_hashed(&plan, &mut disk, &shape, &temp.file, &temp.path, work)?;
        work.go_on()?;
        self.keep(temp, digest, file_bytes, ContentKind::Disk(DiskFormat::Qcow2))
    }
}

/// How often room is asked for when it is not known how much is coming.
const ROOM_EVERY_BYTES: u64 = 64 << 20;

fn stalled(name: &str, after: Duration, had_bytes: u64) -> Error {
    Error::Stalled {
        source_name: name.to_owned(),
        after,
        had_bytes,
    }
}

/// A file that what comes is written to.
struct Received {
    file: tokio::fs::File,
    bytes: u64,
}

impl Received {
    /// Writes from `at` on; what is there from there on goes.
    fn new(file: &File, at: u64) -> Result<Self> {
        use std::io::{Seek, SeekFrom};
        let mut file = file.try_clone().map_err(Error::io("write", "the import"))?;
        file.set_len(at)
            .and_then(|()| file.seek(SeekFrom::Start(at)))
            .map_err(Error::io("write", "the import"))?;
        Ok(Self {
            file: tokio::fs::File::from_std(file),
            bytes: at,
        })
    }

    async fn write(&mut self, piece: bytes::Bytes) -> Result<()> {
        use tokio::io::AsyncWriteExt;
        self.file
            .write_all(&piece)
            .await
            .map_err(Error::io("write", "the import"))?;
        self.bytes += piece.len() as u64;
        Ok(())
    }

    async fn finish(mut self) -> Result<u64> {
        use tokio::io::AsyncWriteExt;
        self.file
            .flush()
            .await
            .map_err(Error::io("write", "the import"))?;
        Ok(self.bytes)
    }
}

fn digest_of(temp: &Temp, work: &Work) -> Result<(Digest, u64)> {
    let failed = |error| Error::io("read", &temp.path)(error);
    let total = temp.file.metadata().map_err(failed)?.len();
    let (mut hash, mut at) = (Sha256::new(), 0);
    let mut piece = vec![0; limits::IMPORT_CHUNK_BYTES];
    while at < total {
        work.go_on()?;
        work.report("checking", at, total);
        match temp.file.read_at(&mut piece, at).map_err(failed)? {
            0 => break,
            read => {
                hash.update(&piece[..read]);
                at += read as u64;
            }
        }
    }
    Ok((Digest::new(hash.finalize().into()), at))
}

/// The format of what came: as its content says, which must be as was said.
fn format_of(file: &File, file_bytes: u64, said: Option<ImageFormat>) -> Result<ImageFormat> {
    let look = usize::try_from(file_bytes).unwrap_or(usize::MAX).min(LOOK_BYTES);
    let mut head = vec![0; look];
    file.read_exact_at(&mut head, 0)
        .map_err(Error::io("read", "the import"))?;
    let found = recognise(&head);
    match (said, found) {
        (None, found) => found.map_err(|why| read::bad("raw", why)),
        // Who says raw means it; what bears the mark of a format with tables is no raw disk all the same.
        (Some(ImageFormat::Raw), Err(_)) => Ok(ImageFormat::Raw),
        (Some(said), Ok(found)) if said == found => Ok(found),
        (Some(said), Ok(found)) => Err(read::bad(
            said.name(),
            format!("by its content it is {found}; leave the format out, or say that one"),
        )),
        (Some(said), Err(why)) => Err(read::bad(said.name(), why)),
    }
}
