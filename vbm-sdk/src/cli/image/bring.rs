//! The disk of an image, wherever it lies and whatever its format: what comes from the web or has a foreign format is brought into a
//! directory of this user first, where what broke is gone on with.

use super::super::{progress::Progress, session::Session};
use super::Source;
use crate::{client::cannot_read, url_source::UrlSource};
use std::{
    io,
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
};
use tokio::{fs::File, io::AsyncReadExt};
use vbm_core::{Digest, DiskFormat, Error, ErrorKind};
use vbm_hyper::{Expected, ImageFormat, ImageSource, ImageStore, ImportedDisk, OpCx};

/// A disk that can be sent.
pub(super) struct Disk {
    pub(super) source: Source,
    pub(super) format: DiskFormat,
    /// Where it lies for as long as it is sent.
    store: Option<(ImageStore, Digest)>,
}

impl Disk {
    /// It was sent, or is not needed any more.
    pub(super) async fn clear(self) {
        if let Some((store, digest)) = self.store
            && let Err(error) = store.remove(digest).await
        {
            tracing::warn!(%digest, %error, "a fetched disk stays behind");
        }
    }
}

/// Makes a disk ready to be sent.
pub(super) async fn bring(
    on: &Session<'_>,
    disk: &Source,
    format: Option<ImageFormat>,
) -> Result<Disk, Error> {
    let expected = Expected::default().of_format(format).of_digest(disk.sha256);
    let text = disk.path.to_string_lossy();
    if UrlSource::is_one(&text) {
        let (source, store) = (UrlSource::new(&text)?, cache().await?);
        let cx = context(on);
        let import = store.import_from(&cx, &source, &expected);
        let address = source.name();
        let name = address.rsplit('/').next().unwrap_or_default().to_owned();
        let found = shown(on, &cx, &name, import).await?;
        return kept(store, &found);
    }
    let found = match format {
        Some(format) => format,
        None => recognise(&disk.path).await?,
    };
    let as_it_is = match found {
        ImageFormat::Raw => Some(DiskFormat::Raw),
        ImageFormat::Qcow2 => Some(DiskFormat::Qcow2),
        _ => None,
    };
    if let Some(format) = as_it_is {
        let source = disk.clone();
        return Ok(Disk {
            source,
            format,
            store: None,
        });
    }
    let store = cache().await?;
    let file = File::open(&disk.path)
        .await
        .map_err(|e| cannot_read(&disk.path, &e))?;
    let bytes = file
        .metadata()
        .await
        .map_err(|e| cannot_read(&disk.path, &e))?
        .len();
    let cx = context(on);
    let expected = expected.of_bytes(Some(bytes));
    let import = store.import_disk(&cx, file, &expected);
    let name = disk
        .path
        .file_name()
        .unwrap_or_default()
        .to_string_lossy()
        .into_owned();
    let found = shown(on, &cx, &name, import).await?;
    kept(store, &found)
}

fn kept(store: ImageStore, found: &ImportedDisk) -> Result<Disk, Error> {
    let digest = found.kept.digest;
    Ok(Disk {
        source: Source {
            path: store.path(digest)?,
            sha256: Some(digest),
        },
        format: found.format,
        store: Some((store, digest)),
    })
}

fn context(on: &Session<'_>) -> OpCx {
    match on.timeout {
        Some(_) => OpCx::new().within(on.left()),
        None => OpCx::new(),
    }
}

/// Shows how far it is while it is done.
async fn shown<T>(
    on: &Session<'_>,
    cx: &OpCx,
    name: &str,
    work: impl Future<Output = vbm_hyper::Result<T>>,
) -> Result<T, Error> {
    let (mut progress, mut seen) = (Progress::new(on.out), cx.progress());
    let mut work = std::pin::pin!(work);
    loop {
        // The work is pinned outside and goes on; how far it is, is only a look.
        tokio::select! {
            done = &mut work => return done.map_err(Error::from),
            Ok(()) = seen.changed() => {
                let now = *seen.borrow_and_update();
                progress.moved(done_word(now.phase), name, now.done, now.total);
            }
        }
    }
}

/// What is said when a phase of an import is over.
fn done_word(phase: &str) -> &'static str {
    match phase {
        "receiving" => "received",
        "checking" => "checked",
        "looking for content" => "read",
        _ => "wrote",
    }
}

/// The directory of this user for disks on their way. Several commands may use it at once.
async fn cache() -> Result<ImageStore, Error> {
    let cache = std::env::var_os("XDG_CACHE_HOME").filter(|dir| Path::new(dir).is_absolute());
    let home = std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".cache"));
    let dir = cache.map(PathBuf::from).or(home).ok_or_else(|| {
        Error::new(
            ErrorKind::InvalidInput,
            "there is no place for disks on their way",
            "neither XDG_CACHE_HOME nor HOME is set",
            "set one of them to a directory that you may write",
        )
    })?;
    let dir = dir.join("vbm/imports");
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(&dir)
        .map_err(|error| {
            Error::new(
                ErrorKind::InvalidInput,
                format!("cannot use {} for disks on their way", dir.display()),
                error.to_string(),
                "set XDG_CACHE_HOME to a directory that you may write",
            )
        })?;
    Ok(ImageStore::open_shared(dir).await?)
}

/// The format of a disk by its first bytes; by its name where they do not say: vbmd checks the rest.
async fn recognise(disk: &Path) -> Result<ImageFormat, Error> {
    let mut head = Vec::new();
    let read = async {
        let file = File::open(disk).await?;
        file.take(ImageFormat::HEAD_BYTES as u64)
            .read_to_end(&mut head)
            .await?;
        Ok::<_, io::Error>(())
    };
    read.await.map_err(|e| cannot_read(disk, &e))?;
    let found = ImageFormat::recognise(&head)?;
    let named = disk.extension().is_some_and(|e| e == "qcow2");
    Ok(if found == ImageFormat::Raw && named {
        ImageFormat::Qcow2
    } else {
        found
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_disk_is_recognised_by_its_first_bytes_then_by_its_name() {
        let place = tempfile::tempdir().unwrap();
        for (name, bytes, format) in [
            ("a.img", &b"QFI\xfb\0\0\0\x03"[..], ImageFormat::Qcow2),
            ("b.img", b"\x55\xaa", ImageFormat::Raw),
            ("c.qcow2", b"not one", ImageFormat::Qcow2),
            ("d.img", b"KDMV\x01\0\0\0", ImageFormat::Vmdk),
            ("empty", b"", ImageFormat::Raw),
        ] {
            let path = place.path().join(name);
            std::fs::write(&path, bytes).unwrap();
            assert_eq!(recognise(&path).await.unwrap(), format, "{name}");
        }
        std::fs::write(place.path().join("e.xz"), b"\xfd7zXZ\0").unwrap();
        let packed = recognise(&place.path().join("e.xz")).await.unwrap_err();
        assert!(packed.why().contains("unxz"), "{packed}");
        let none = recognise(&place.path().join("none")).await.unwrap_err();
        assert_eq!(none.kind(), ErrorKind::NotFound);
    }
}
