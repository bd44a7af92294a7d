//! VirtualBox's own disk format, VDI 1.1, as far as a new disk needs it. After what VBoxManage 7.2 writes.
//!
//! ```text
//!   0         header: signature, sizes, UUIDs
//!   1 MiB     map: one number per block of 1 MiB, all ones where the block is empty
//!   n MiB     the blocks that hold anything, in the order in which they were written
//! ```

use crate::{Error, Result};
use std::{fs::File, io, os::unix::fs::FileExt, path::Path};
use uuid::Uuid;
use vbm_core::{Digest, VolumeId};

/// The size of a block.
pub(super) const BLOCK_BYTES: u64 = 1024 * 1024;
const BLOCK_BYTES_U32: u32 = 1024 * 1024;
/// The largest disk: its map has 8 MiB then.
pub(crate) const VIRTUAL_MAX_BYTES: u64 = 2 * 1024 * 1024 * 1024 * 1024;

const HEADER_BYTES: usize = 512;
const TEXT: &[u8] = b"<<< Oracle VirtualBox Disk Image >>>\n";
const SIGNATURE: u32 = 0xbeda_107f;
const VERSION: u32 = 0x0001_0001;
const HEADER_LENGTH: u32 = 400;
const DYNAMIC: u32 = 1;
const SECTOR_BYTES: u32 = 512;
const EMPTY: u32 = u32::MAX;
const MAP_AT: u64 = BLOCK_BYTES;
/// Where things stand in the header.
const AT_SIGNATURE: usize = 0x40;
const AT_COMMENT: usize = 0x54;
const AT_DISK_BYTES: usize = 0x170;
const AT_UUID: usize = 0x188;
/// The image that a disk was made from is noted in its comment.
const COMMENT_PREFIX: &str = "vbm image ";

/// What matters of a disk of ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Header {
    pub(super) virtual_bytes: u64,
    pub(super) image: Option<Digest>,
    pub(super) volume: VolumeId,
}

/// Reads the beginning of a file.
pub(super) fn parse(head: &[u8]) -> Result<Header, String> {
    let u32_at = |at: usize| {
        head.get(at..at + 4)
            .and_then(|b| b.try_into().ok())
            .map(u32::from_le_bytes)
    };
    let u64_at = |at: usize| {
        head.get(at..at + 8)
            .and_then(|b| b.try_into().ok())
            .map(u64::from_le_bytes)
    };
    if u32_at(AT_SIGNATURE) != Some(SIGNATURE) {
        return Err("it does not bear the mark of a VDI file".into());
    }
    if u32_at(AT_SIGNATURE + 4) != Some(VERSION) {
        return Err("its version is not 1.1".into());
    }
    let (Some(virtual_bytes), Some(uuid)) = (u64_at(AT_DISK_BYTES), head.get(AT_UUID..AT_UUID + 16)) else {
        return Err("it ends within its header".into());
    };
    let comment = head[AT_COMMENT..AT_COMMENT + 256]
        .split(|b| *b == 0)
        .next()
        .unwrap_or_default();
    let comment = String::from_utf8_lossy(comment);
    Ok(Header {
        virtual_bytes,
        image: comment
            .strip_prefix(COMMENT_PREFIX)
            .and_then(|digest| digest.parse().ok()),
        volume: VolumeId::from_uuid(Uuid::from_bytes_le(uuid.try_into().unwrap_or_default())),
    })
}

pub(super) fn read_header(file: &File) -> Result<Header, String> {
    let mut head = vec![0; HEADER_BYTES];
    file.read_exact_at(&mut head, 0)
        .map_err(|error| match error.kind() {
            io::ErrorKind::UnexpectedEof => "it ends within its header".to_owned(),
            _ => error.to_string(),
        })?;
    parse(&head)
}

/// Checks that a file is a VDI, as far as its header tells.
///
/// # Errors
/// [`Error::Invalid`].
pub(crate) fn check(path: &Path) -> Result<()> {
    let refuse = |why: String, fix: &str| {
        Err(Error::invalid(
            format!("the VM cannot use {}", path.display()),
            why,
            fix,
        ))
    };
    match File::open(path) {
        Err(error) => refuse(error.to_string(), "give the path of a file that is there"),
        Ok(file) => match read_header(&file) {
            Ok(_) => Ok(()),
            Err(why) => refuse(
                why,
                "VirtualBox's disks are VDI files: make it with `Pool::clone_image_as`",
            ),
        },
    }
}

/// The header of a disk.
fn header(volume: VolumeId, image: Option<Digest>, virtual_bytes: u64, blocks: u32, used: u32) -> Vec<u8> {
    let mut head = Vec::with_capacity(HEADER_BYTES);
    let number = |head: &mut Vec<u8>, n: u32| head.extend(n.to_le_bytes());
    head.extend(TEXT);
    head.resize(AT_SIGNATURE, 0);
    for n in [SIGNATURE, VERSION, HEADER_LENGTH, DYNAMIC, 0] {
        number(&mut head, n);
    }
    if let Some(image) = image {
        head.extend(format!("{COMMENT_PREFIX}{image}").bytes());
    }
    head.resize(AT_COMMENT + 256, 0);
    number(&mut head, BLOCK_BYTES_U32);
    // At most 9 MiB, by the largest disk.
    number(&mut head, u32::try_from(data_at(blocks)).unwrap_or(u32::MAX));
    // The geometry is VirtualBox's to choose.
    for n in [0, 0, 0, SECTOR_BYTES, 0] {
        number(&mut head, n);
    }
    head.extend(virtual_bytes.to_le_bytes());
    for n in [BLOCK_BYTES_U32, 0, blocks, used] {
        number(&mut head, n);
    }
    head.extend(volume.uuid().to_bytes_le());
    // Of the last change; and of the disk it stands on, which there is none.
    head.extend(volume.uuid().to_bytes_le());
    head.extend([0; 32]);
    for n in [0, 0, 0, SECTOR_BYTES] {
        number(&mut head, n);
    }
    head.resize(HEADER_BYTES, 0);
    head
}

const fn data_at(blocks: u32) -> u64 {
    MAP_AT + (blocks as u64 * 4).next_multiple_of(BLOCK_BYTES)
}

/// Writes a disk of `virtual_bytes`; `read` gives its content from an offset on, zeros where there is none. Blocks of zeros
/// take no room.
///
/// # Errors
/// A size that is not allowed, or what `read` or the file failed with.
pub(super) fn write(
    file: &File,
    path: &Path,
    volume: VolumeId,
    image: Option<Digest>,
    virtual_bytes: u64,
    mut read: impl FnMut(u64, &mut [u8]) -> Result<()>,
) -> Result<()> {
    if virtual_bytes == 0 || virtual_bytes > VIRTUAL_MAX_BYTES || !virtual_bytes.is_multiple_of(512) {
        return Err(Error::invalid(
            format!("a VirtualBox disk cannot have {virtual_bytes} bytes"),
            "whole sectors of 512 are allowed, at most 2 TiB",
            "choose a size in that range",
        ));
    }
    let failed = |error| Error::io("write", path)(error);
    let blocks = u32::try_from(virtual_bytes.div_ceil(BLOCK_BYTES)).unwrap_or(u32::MAX);
    let (mut map, mut used) = (Vec::with_capacity(blocks as usize * 4), 0_u32);
    let mut block = vec![0_u8; BLOCK_BYTES_U32 as usize];
    for number in 0..blocks {
        let at = u64::from(number) * BLOCK_BYTES;
        let bytes = usize::try_from((virtual_bytes - at).min(BLOCK_BYTES)).unwrap_or(block.len());
        block.fill(0);
        read(at, &mut block[..bytes])?;
        if block.iter().all(|byte| *byte == 0) {
            map.extend(EMPTY.to_le_bytes());
        } else {
            file.write_all_at(&block, data_at(blocks) + u64::from(used) * BLOCK_BYTES)
                .map_err(failed)?;
            map.extend(used.to_le_bytes());
            used += 1;
        }
    }
    map.resize(
        usize::try_from(data_at(blocks) - MAP_AT).unwrap_or(map.len()),
        0xff,
    );
    file.write_all_at(&map, MAP_AT).map_err(failed)?;
    file.write_all_at(&header(volume, image, virtual_bytes, blocks, used), 0)
        .map_err(failed)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Reads as VirtualBox does: by the map.
    fn content(file: &File, virtual_bytes: u64) -> Vec<u8> {
        let mut map = vec![0; usize::try_from(virtual_bytes.div_ceil(BLOCK_BYTES)).unwrap() * 4];
        file.read_exact_at(&mut map, MAP_AT).unwrap();
        let blocks = u32::try_from(map.len() / 4).unwrap();
        let mut bytes = Vec::new();
        for entry in map.chunks_exact(4) {
            let entry = u32::from_le_bytes(entry.try_into().unwrap());
            let mut block = vec![0; usize::try_from(BLOCK_BYTES).unwrap()];
            if entry != EMPTY {
                file.read_exact_at(&mut block, data_at(blocks) + u64::from(entry) * BLOCK_BYTES)
                    .unwrap();
            }
            bytes.extend(block);
        }
        bytes.truncate(usize::try_from(virtual_bytes).unwrap());
        bytes
    }

    fn ids() -> (VolumeId, Digest) {
        (
            VolumeId::from_uuid(Uuid::from_u128(0x1122_3344_5566_7788_99aa_bbcc_ddee_ff00)),
            Digest::new([7; 32]),
        )
    }

    #[test]
    fn a_disk_is_empty_where_its_source_is() {
        let (file, (volume, image)) = (tempfile::tempfile().unwrap(), ids());
        let virtual_bytes = 5 * BLOCK_BYTES + 512;
        let source: Vec<u8> = (0..virtual_bytes)
            .map(|at| u8::from(at / BLOCK_BYTES == 3 || at == virtual_bytes - 1))
            .collect();
        let read = |at: u64, into: &mut [u8]| {
            let at = usize::try_from(at).unwrap();
            into.copy_from_slice(&source[at..at + into.len()]);
            Ok(())
        };
        write(&file, Path::new("x"), volume, Some(image), virtual_bytes, read).unwrap();
        assert_eq!(content(&file, virtual_bytes), source);
        assert_eq!(
            file.metadata().unwrap().len(),
            (1 + 1 + 2) * BLOCK_BYTES,
            "header, map and two blocks"
        );
        let header = read_header(&file).unwrap();
        assert_eq!(
            header,
            Header {
                virtual_bytes,
                image: Some(image),
                volume
            }
        );
    }

    #[test]
    fn a_size_that_makes_no_sense_is_refused() {
        let (file, (volume, image)) = (tempfile::tempfile().unwrap(), ids());
        for bytes in [0, 511, VIRTUAL_MAX_BYTES + 512] {
            assert!(write(&file, Path::new("x"), volume, Some(image), bytes, |_, _| Ok(())).is_err());
        }
    }

    #[test]
    fn what_is_no_vdi_is_told() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("disk");
        assert!(check(&path).is_err());
        for text in [&b"short"[..], &[0; 1024]] {
            std::fs::write(&path, text).unwrap();
            assert!(check(&path).is_err());
        }
    }

    proptest! {
        #[test]
        fn garbage_is_refused_or_read_without_a_panic(mut head in proptest::collection::vec(any::<u8>(), 0..600), marked: bool) {
            if marked && head.len() >= 72 {
                head[64..68].copy_from_slice(&SIGNATURE.to_le_bytes());
                head[68..72].copy_from_slice(&VERSION.to_le_bytes());
            }
            head.resize(head.len().max(HEADER_BYTES), 0);
            drop(parse(&head));
        }
    }
}
