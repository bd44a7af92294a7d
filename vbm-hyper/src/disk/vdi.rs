//! VirtualBox's own disk format, VDI 1.1, as far as a new disk needs it. After what VBoxManage 7.2 writes.
//!
//! ```text
//!   0         header: signature, sizes, UUIDs
//!   1 MiB     map: one number per block of 1 MiB, all ones where the block is empty
//!   n MiB     the blocks that hold anything, in the order in which they were written
//! ```

use super::qcow2::Overlay;
use crate::{Error, Result};
use std::{fs::File, io, os::unix::fs::FileExt, path::Path};
use uuid::Uuid;
use vbm_core::{Digest, VolumeId};

/// The size of a block.
pub(super) const BLOCK_BYTES: u64 = 1024 * 1024;
const BLOCK_BYTES_U32: u32 = 1024 * 1024;
/// The largest disk: its map has 8 MiB then.
pub(crate) const VIRTUAL_MAX_BYTES: u64 = 2 * 1024 * 1024 * 1024 * 1024;

/// How much of a file its header takes, in bytes.
pub(super) const HEADER_BYTES: usize = 512;
const TEXT: &[u8] = b"<<< Oracle VirtualBox Disk Image >>>\n";
const SIGNATURE: u32 = 0xbeda_107f;
const VERSION: u32 = 0x0001_0001;
const HEADER_LENGTH: u32 = 400;
const DYNAMIC: u32 = 1;
const SECTOR_BYTES: u32 = 512;
/// The entry of a block that has no content.
pub(super) const EMPTY: u32 = u32::MAX;
/// Where the map stands.
pub(super) const MAP_AT: u64 = BLOCK_BYTES;
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
pub(super) fn header(
    volume: VolumeId,
    image: Option<Digest>,
    virtual_bytes: u64,
    blocks: u32,
    used: u32,
) -> Vec<u8> {
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

/// Where the blocks begin.
pub(super) const fn data_at(blocks: u32) -> u64 {
    MAP_AT + (blocks as u64 * 4).next_multiple_of(BLOCK_BYTES)
}

/// Refuses a size that the format does not allow.
///
/// # Errors
/// [`Error::Invalid`].
pub(super) fn check_size(virtual_bytes: u64) -> Result<()> {
    if virtual_bytes == 0 || virtual_bytes > VIRTUAL_MAX_BYTES || !virtual_bytes.is_multiple_of(512) {
        return Err(Error::invalid(
            format!("a VirtualBox disk cannot have {virtual_bytes} bytes"),
            "whole sectors of 512 are allowed, at most 2 TiB",
            "choose a size in that range",
        ));
    }
    Ok(())
}

/// A disk without content: what to write where, and how long the file is.
///
/// # Errors
/// [`Error::Invalid`] for a size that the format does not allow.
pub(super) fn blank(volume: VolumeId, virtual_bytes: u64) -> Result<Overlay> {
    check_size(virtual_bytes)?;
    let blocks = u32::try_from(virtual_bytes.div_ceil(BLOCK_BYTES)).unwrap_or(u32::MAX);
    let map = vec![0xff; usize::try_from(data_at(blocks) - MAP_AT).unwrap_or(0)];
    Ok(Overlay {
        parts: vec![(0, header(volume, None, virtual_bytes, blocks, 0)), (MAP_AT, map)],
        file_bytes: data_at(blocks),
    })
}

/// Where things are in a disk of any maker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Layout {
    pub(super) virtual_bytes: u64,
    pub(super) block_bytes: u64,
    pub(super) blocks: u32,
    pub(super) map_at: u64,
    pub(super) data_at: u64,
}

/// The largest block that is read.
const BLOCK_MAX_BYTES: u32 = 64 * 1024 * 1024;

/// Reads the header of a disk that stands alone.
///
/// # Errors
/// Why its content cannot be read here, in words for people.
pub(super) fn layout(head: &[u8]) -> Result<Layout, String> {
    parse(head)?;
    let number = |at: usize| {
        let piece = head.get(at..at + 4).and_then(|b| b.try_into().ok());
        piece.map(u32::from_le_bytes).ok_or("it ends within its header")
    };
    let virtual_bytes = u64::from(number(AT_DISK_BYTES)?) | u64::from(number(AT_DISK_BYTES + 4)?) << 32;
    let (block, extra, blocks) = (number(0x178)?, number(0x17c)?, number(0x180)?);
    match number(0x4c)? {
        1 | 2 => {}
        3 | 4 => return Err("it holds differences only and needs another file (a parent)".into()),
        kind => return Err(format!("its type is {kind}, known are 1 (dynamic) and 2 (fixed)")),
    }
    if (0x1a8..0x1c8).any(|at| head.get(at) != Some(&0)) {
        return Err("it needs another file (a parent)".into());
    }
    if number(0x168)? != SECTOR_BYTES {
        return Err("its sectors are not of 512 bytes".into());
    }
    if !block.is_power_of_two() || !(SECTOR_BYTES..=BLOCK_MAX_BYTES).contains(&block) || extra != 0 {
        return Err(format!("its blocks of {block} and {extra} bytes are not allowed"));
    }
    if virtual_bytes == 0 || virtual_bytes > super::qcow2::VIRTUAL_MAX_BYTES {
        return Err(format!(
            "its size of {virtual_bytes} bytes is not between 1 byte and 64 TiB"
        ));
    }
    if u64::from(blocks) < virtual_bytes.div_ceil(u64::from(block)) {
        return Err("its map is too small for its size".into());
    }
    Ok(Layout {
        virtual_bytes,
        block_bytes: u64::from(block),
        blocks,
        map_at: u64::from(number(0x154)?),
        data_at: u64::from(number(0x158)?),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn what_is_written_is_read_back_and_a_parent_is_refused() {
        let volume = VolumeId::from_uuid(Uuid::from_u128(0x1122_3344_5566_7788_99aa_bbcc_ddee_ff00));
        let image = Some(Digest::new([7; 32]));
        let head = header(volume, image, 5 * BLOCK_BYTES + 512, 6, 2);
        let expected = Header {
            virtual_bytes: 5 * BLOCK_BYTES + 512,
            image,
            volume,
        };
        assert_eq!(parse(&head).unwrap(), expected);
        let found = layout(&head).unwrap();
        assert_eq!(
            (found.blocks, found.map_at, found.data_at),
            (6, MAP_AT, 2 * BLOCK_BYTES)
        );
        for (at, byte, word) in [
            (0x4c, 4, "parent"),
            (0x1b8, 1, "parent"),
            (0x17c, 1, "blocks"),
            (0x180, 1, "map"),
            (0x169, 9, "sectors"),
        ] {
            let mut head = head.clone();
            head[at] = byte;
            assert!(layout(&head).unwrap_err().contains(word));
        }
    }

    #[test]
    fn a_size_that_makes_no_sense_is_refused() {
        for bytes in [0, 511, VIRTUAL_MAX_BYTES + 512] {
            assert!(check_size(bytes).is_err());
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
            drop(layout(&head));
        }
    }
}
