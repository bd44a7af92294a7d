//! Reads the content of an image, whatever its format: for disks that are copies and not clones.

use super::qcow2;
use crate::{Error, Result};
use miniz_oxide::inflate::{
    TINFLStatus,
    core::{DecompressorOxide, decompress, inflate_flags::TINFL_FLAG_USING_NON_WRAPPING_OUTPUT_BUF},
};
use std::{fs::File, os::unix::fs::FileExt, path::Path};
use vbm_core::DiskFormat;

/// The unit that the length of compressed content is told in.
const SECTOR_BYTES: u64 = 512;

/// The content of an image.
pub(super) enum Content {
    Raw(File, u64),
    Qcow2(Box<Qcow2>),
}

impl Content {
    pub(super) fn open(path: &Path, format: DiskFormat) -> Result<Self> {
        let file = File::open(path).map_err(Error::io("open", path))?;
        let bytes = file.metadata().map_err(Error::io("look at", path))?.len();
        if format == DiskFormat::Raw {
            return Ok(Self::Raw(file, bytes));
        }
        Qcow2::open(file, bytes)
            .map(|disk| Self::Qcow2(Box::new(disk)))
            .map_err(bad)
    }

    /// Fills `into` with what stands at `at`; zeros beyond the end.
    pub(super) fn read(&mut self, at: u64, into: &mut [u8]) -> Result<()> {
        into.fill(0);
        match self {
            Self::Raw(file, bytes) => {
                let there = usize::try_from(bytes.saturating_sub(at))
                    .unwrap_or(usize::MAX)
                    .min(into.len());
                file.read_exact_at(&mut into[..there], at)
                    .map_err(|error| bad(error.to_string()))
            }
            Self::Qcow2(disk) => disk.read(at, into).map_err(bad),
        }
    }
}

fn bad(why: String) -> Error {
    Error::BadDisk { format: "base", why }
}

/// A qcow2 file without a backing file.
pub(super) struct Qcow2 {
    file: File,
    header: qcow2::Header,
    l1: Vec<u8>,
    /// The table that was read last, and where it stands.
    l2: (u64, Vec<u8>),
    /// The piece of compressed content that was unpacked last, by its entry.
    unpacked: (u64, Vec<u8>),
}

impl Qcow2 {
    fn open(file: File, bytes: u64) -> Result<Self, String> {
        let mut head = [0; qcow2::HEADER_BYTES];
        file.read_exact_at(&mut head, 0).map_err(|e| e.to_string())?;
        let header = qcow2::Header::parse(&head, bytes)?;
        header.check_is_base()?;
        header.check_is_plain(&head)?;
        let (at, len) = header.first_table();
        let mut l1 = vec![0; len];
        file.read_exact_at(&mut l1, at).map_err(|e| e.to_string())?;
        Ok(Self {
            file,
            header,
            l1,
            l2: (0, Vec::new()),
            unpacked: (0, Vec::new()),
        })
    }

    fn read(&mut self, at: u64, into: &mut [u8]) -> Result<(), String> {
        let cluster = 1_u64 << self.header.cluster_bits;
        let end = (at + into.len() as u64).min(self.header.virtual_bytes);
        let mut now = at;
        while now < end {
            let within = now % cluster;
            let bytes = (cluster - within).min(end - now);
            let from = usize::try_from(now - at).unwrap_or(usize::MAX);
            let piece = &mut into[from..from + usize::try_from(bytes).unwrap_or(usize::MAX)];
            self.read_cluster(now / cluster, within, piece)?;
            now += bytes;
        }
        Ok(())
    }

    fn read_cluster(&mut self, number: u64, within: u64, into: &mut [u8]) -> Result<(), String> {
        let entry = self.entry(number)?;
        match self.header.place(entry) {
            qcow2::Place::Nowhere => Ok(()),
            qcow2::Place::At(at) => self
                .file
                .read_exact_at(into, at + within)
                .map_err(|e| e.to_string()),
            qcow2::Place::Packed { at, sectors } => {
                if self.unpacked.0 != entry {
                    let unpacked = self.unpack(at, sectors)?;
                    self.unpacked = (entry, unpacked);
                }
                let from = usize::try_from(within).unwrap_or(usize::MAX);
                into.copy_from_slice(&self.unpacked.1[from..from + into.len()]);
                Ok(())
            }
        }
    }

    /// The entry of a cluster in its second table; 0 where there is none.
    fn entry(&mut self, number: u64) -> Result<u64, String> {
        let entries = (1_u64 << self.header.cluster_bits) / 8;
        let table = self.header.table_at(u64_at(&self.l1, number / entries));
        if table == 0 {
            return Ok(0);
        }
        if self.l2.0 != table {
            let mut l2 = vec![0; 1 << self.header.cluster_bits];
            self.file
                .read_exact_at(&mut l2, table)
                .map_err(|e| e.to_string())?;
            self.l2 = (table, l2);
        }
        Ok(u64_at(&self.l2.1, number % entries))
    }

    /// Raw deflate (docs/interop/qcow2.txt, "compressed cluster descriptor").
    fn unpack(&self, at: u64, sectors: u64) -> Result<Vec<u8>, String> {
        let packed_bytes = (sectors + 1) * SECTOR_BYTES - at % SECTOR_BYTES;
        let mut packed = vec![0; usize::try_from(packed_bytes).unwrap_or(0)];
        let mut have = 0;
        // The last sector may end beyond the file.
        while have < packed.len() {
            match self.file.read_at(&mut packed[have..], at + have as u64) {
                Ok(0) => break,
                Ok(read) => have += read,
                Err(error) => return Err(error.to_string()),
            }
        }
        let mut out = vec![0; 1 << self.header.cluster_bits];
        let flags = TINFL_FLAG_USING_NON_WRAPPING_OUTPUT_BUF;
        let (status, _, bytes) =
            decompress(&mut DecompressorOxide::new(), &packed[..have], &mut out, 0, flags);
        let whole = bytes == out.len() && matches!(status, TINFLStatus::Done | TINFLStatus::HasMoreOutput);
        if whole {
            Ok(out)
        } else {
            Err("compressed content of it is damaged".into())
        }
    }
}

fn u64_at(table: &[u8], entry: u64) -> u64 {
    let at = usize::try_from(entry * 8).unwrap_or(usize::MAX);
    table
        .get(at..at.saturating_add(8))
        .and_then(|b| b.try_into().ok())
        .map_or(0, u64::from_be_bytes)
}
