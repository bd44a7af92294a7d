//! The files that a volume consists of, one upon the other.

use super::{ImageFormat, lock, pool::Inner, qcow2, vdi};
use crate::{Error, Result, limits::CHAIN_MAX_LAYERS};
use std::{
    os::unix::fs::{FileExt, MetadataExt},
    path::{Component, Path, PathBuf},
};
use vbm_core::{Digest, VolumeId};

/// One file of a volume.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct ChainLink {
    /// The file.
    pub path: PathBuf,
    /// The image that it is, where it is one; else it is a file of the pool.
    pub image: Option<Digest>,
    /// Its format.
    pub format: ImageFormat,
    /// The size that a guest would see of it, in bytes.
    pub virtual_bytes: u64,
    /// What it occupies on the disk, in bytes.
    pub used_bytes: u64,
}

/// What a name in a header leads to.
enum Below {
    Image(Digest),
    File(PathBuf),
}

impl Inner {
    /// The files of a volume, its own first. Reads headers only, so the volume may be in use.
    pub(super) fn chain(&self, volume: VolumeId) -> Result<Vec<ChainLink>> {
        let mut path = self.must_find(volume)?;
        let mut links = Vec::new();
        loop {
            if links.len() == CHAIN_MAX_LAYERS {
                return Err(too_long(volume));
            }
            let (link, below) = self.link(&path)?;
            links.push(link);
            match below {
                None => return Ok(links),
                Some(Below::File(next)) => path = next,
                Some(Below::Image(_)) if links.len() == CHAIN_MAX_LAYERS => return Err(too_long(volume)),
                Some(Below::Image(digest)) => {
                    links.push(self.image_link(digest)?);
                    return Ok(links);
                }
            }
        }
    }

    fn image_link(&self, digest: Digest) -> Result<ChainLink> {
        let (path, format, virtual_bytes) = self.images.disk(digest)?;
        let about = path.metadata().map_err(Error::io("look at", &path))?;
        Ok(ChainLink {
            path,
            image: Some(digest),
            format: format.into(),
            virtual_bytes,
            used_bytes: about.blocks() * 512,
        })
    }

    fn link(&self, path: &Path) -> Result<(ChainLink, Option<Below>)> {
        let file = lock::open_plain(path, false)?;
        let about = file.metadata().map_err(Error::io("look at", path))?;
        let bad = |why: String| Error::BadDisk {
            format: "volume",
            why: format!("{}: {why}", path.display()),
        };
        let link = |format, virtual_bytes| ChainLink {
            path: path.to_owned(),
            image: None,
            format,
            virtual_bytes,
            used_bytes: about.blocks() * 512,
        };
        if path.extension().is_some_and(|e| e == "vdi") {
            let header = vdi::read_header(&file).map_err(bad)?;
            return Ok((link(ImageFormat::Vdi, header.virtual_bytes), None));
        }
        let mut head = [0; qcow2::HEADER_BYTES];
        file.read_exact_at(&mut head, 0).map_err(|e| bad(e.to_string()))?;
        let header = qcow2::Header::parse(&head, about.len()).map_err(bad)?;
        let below = match header.backing {
            None => None,
            Some((at, bytes)) => {
                let bytes = usize::try_from(bytes).unwrap_or(usize::MAX);
                if bytes > qcow2::BACKING_MAX_BYTES {
                    return Err(bad("the name of its base is too long".into()));
                }
                let mut name = vec![0; bytes];
                file.read_exact_at(&mut name, at)
                    .map_err(|e| bad(e.to_string()))?;
                let name = String::from_utf8(name).map_err(|e| bad(e.to_string()))?;
                Some(self.below(&name).map_err(bad)?)
            }
        };
        Ok((link(ImageFormat::Qcow2, header.virtual_bytes), below))
    }

    /// Only an image of the store and a disk right in the pool may be below; no file is touched to find out.
    fn below(&self, name: &str) -> Result<Below, String> {
        let path = self.dir.join(name);
        let outside = || format!("its base '{name}' is neither an image of this host nor a file of the pool");
        let plain = |part: Component<'_>| matches!(part, Component::RootDir | Component::Normal(_));
        if !path.components().all(plain) {
            return Err(outside());
        }
        let (dir, file) = (path.parent(), path.file_name().and_then(|name| name.to_str()));
        let (Some(dir), Some(file)) = (dir, file) else {
            return Err(outside());
        };
        if dir == self.images.content_dir() {
            return file.parse().map(Below::Image).map_err(|_| outside());
        }
        let disk = path.extension().is_some_and(|e| e == "qcow2") && !file.starts_with('.');
        match dir == self.dir && disk {
            true => Ok(Below::File(path)),
            false => Err(outside()),
        }
    }
}

fn too_long(volume: VolumeId) -> Error {
    Error::invalid(
        format!("volume {volume} has too many layers"),
        format!("at most {CHAIN_MAX_LAYERS} files may stand one upon the other"),
        "flatten it with `Pool::flatten`, or delete snapshots",
    )
}
