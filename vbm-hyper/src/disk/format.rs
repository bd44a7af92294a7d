//! Which format a file is of, by its content.

use crate::Error;
use std::{fmt, str::FromStr};
use vbm_core::DiskFormat;

/// The format of a disk that comes in or goes out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ImageFormat {
    /// The bytes of the disk.
    Raw,
    /// QEMU's own.
    Qcow2,
    /// VirtualBox's own.
    Vdi,
    /// VMware's own, in one file: `monolithicSparse` or `streamOptimized`.
    Vmdk,
}

impl ImageFormat {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Raw, Self::Qcow2, Self::Vdi, Self::Vmdk];

    /// How much of a file's beginning [`ImageFormat::recognise`] looks at, in bytes.
    pub const HEAD_BYTES: usize = LOOK_BYTES;

    /// The format that the beginning of a file tells; raw where it tells none.
    ///
    /// # Errors
    /// [`Error::BadDisk`] when it is plainly something else than a disk: a packed file, a page of the web.
    pub fn recognise(head: &[u8]) -> crate::Result<Self> {
        recognise(head).map_err(|why| Error::BadDisk { format: "raw", why })
    }

    /// Its name.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Raw => "raw",
            Self::Qcow2 => "qcow2",
            Self::Vdi => "vdi",
            Self::Vmdk => "vmdk",
        }
    }
}

impl fmt::Display for ImageFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for ImageFormat {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Self, String> {
        Self::ALL
            .into_iter()
            .find(|format| format.name() == text)
            .ok_or_else(|| format!("'{text}' is none of raw, qcow2, vdi and vmdk"))
    }
}

impl From<DiskFormat> for ImageFormat {
    fn from(format: DiskFormat) -> Self {
        match format {
            DiskFormat::Raw => Self::Raw,
            _ => Self::Qcow2,
        }
    }
}

/// How much of a file's beginning [`recognise`] looks at, in bytes.
pub(crate) const LOOK_BYTES: usize = 512;

/// The format that the beginning of a file tells.
///
/// # Errors
/// What it is, in words for people, when it is plainly something else than a disk: a packed file, a page of the web.
pub(crate) fn recognise(head: &[u8]) -> Result<ImageFormat, String> {
    const DISKS: [(usize, &[u8], ImageFormat); 5] = [
        (0, b"QFI\xfb", ImageFormat::Qcow2),
        (0x40, b"\x7f\x10\xda\xbe", ImageFormat::Vdi),
        (0, b"KDMV", ImageFormat::Vmdk),
        (0, b"COWD", ImageFormat::Vmdk),
        (0, b"# Disk DescriptorFile", ImageFormat::Vmdk),
    ];
    const OTHERS: [(&[u8], &str); 10] = [
        (b"\x1f\x8b", "packed with gzip: unpack it with `gunzip` first"),
        (b"\xfd7zXZ\0", "packed with xz: unpack it with `unxz` first"),
        (b"BZh", "packed with bzip2: unpack it with `bunzip2` first"),
        (
            b"\x28\xb5\x2f\xfd",
            "packed with zstd: unpack it with `unzstd` first",
        ),
        (b"PK\x03\x04", "a zip archive: unpack it first"),
        (
            b"vhdxfile",
            "a VHDX disk: convert it with `qemu-img convert -O qcow2` first",
        ),
        (
            b"conectix",
            "a VHD disk: convert it with `qemu-img convert -f vpc -O qcow2` first",
        ),
        (
            b"QED\0",
            "a QED disk: convert it with `qemu-img convert -O qcow2` first",
        ),
        (
            b"<!DOCTYPE",
            "a page of the web: the address is of a page and not of a file",
        ),
        (
            b"<html",
            "a page of the web: the address is of a page and not of a file",
        ),
    ];
    let has = |at: usize, mark: &[u8]| head.get(at..at + mark.len()) == Some(mark);
    if let Some((.., format)) = DISKS.into_iter().find(|(at, mark, _)| has(*at, mark)) {
        return Ok(format);
    }
    match OTHERS.into_iter().find(|(mark, _)| has(0, mark)) {
        Some((_, what)) => Err(format!("it is {what}")),
        None => Ok(ImageFormat::Raw),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_disk_is_told_by_its_first_bytes_and_what_is_none_by_name() {
        let mut vdi = vec![0; LOOK_BYTES];
        vdi[0x40..0x44].copy_from_slice(&0xbeda_107f_u32.to_le_bytes());
        for (head, format) in [
            (&b"QFI\xfb\0\0\0\x03"[..], ImageFormat::Qcow2),
            (&vdi, ImageFormat::Vdi),
            (b"KDMV", ImageFormat::Vmdk),
            (b"# Disk DescriptorFile\n", ImageFormat::Vmdk),
            (b"\xeb\x63\x90", ImageFormat::Raw),
            (b"", ImageFormat::Raw),
        ] {
            assert_eq!(recognise(head).unwrap(), format);
        }
        for (head, word) in [
            (&b"\x1f\x8b\x08"[..], "gunzip"),
            (b"<!DOCTYPE html>", "page"),
            (b"vhdxfile", "VHDX"),
        ] {
            assert!(recognise(head).unwrap_err().contains(word));
        }
        for format in ImageFormat::ALL {
            assert_eq!(format.name().parse::<ImageFormat>().unwrap(), format);
        }
    }
}
