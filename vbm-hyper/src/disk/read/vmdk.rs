//! Reads the content of a VMDK that is one file: `monolithicSparse` and `streamOptimized`. After VMware's "Virtual Disk Format 5.0".
//!
//! ```text
//!   header ("KDMV"), descriptor (text)       the descriptor may name extents: the one that is allowed is the file itself
//!   grain directory --> grain tables --> grains: plain, or each with a marker (place, length) and packed with zlib
//!   streamOptimized: the directory is at the end, told by a copy of the header in the footer
//! ```

use super::{Layer, Place, Source, content, table, unpack};
use crate::limits::{DISK_TABLE_MAX_BYTES, VMDK_DESCRIPTOR_MAX_BYTES};
use miniz_oxide::inflate::core::inflate_flags::TINFL_FLAG_PARSE_ZLIB_HEADER;

const SECTOR_BYTES: u64 = 512;
const HEADER_BYTES: u64 = 512;
const FLAG_ZEROED_GRAINS: u32 = 1 << 2;
const FLAG_COMPRESSED: u32 = 1 << 16;
const FLAG_MARKERS: u32 = 1 << 17;
const DEFLATE: u16 = 1;
/// The place of a directory that the footer tells.
const AT_END: u64 = u64::MAX;
/// The footer is followed by one sector that says so.
const FOOTER_FROM_END_BYTES: u64 = 2 * SECTOR_BYTES;
/// Before packed content: its place in sectors (8 bytes) and its length (4 bytes).
const MARKER_BYTES: u64 = 12;
/// The largest grain: 2 MiB.
const GRAIN_MAX_SECTORS: u64 = 4_096;
const TABLE_MAX_ENTRIES: u64 = 512;

pub(super) struct Vmdk {
    source: Box<dyn Source>,
    virtual_bytes: u64,
    grain_bytes: u64,
    table_entries: u64,
    compressed: bool,
    zeroed_grains: bool,
    directory: Vec<u8>,
    /// The table that was read last, and its sector.
    grains: (u32, Vec<u8>),
    /// The grain that was unpacked last, by its sector.
    unpacked: (u32, Vec<u8>),
}

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    let piece = bytes.get(at..at + 2).and_then(|b| b.try_into().ok());
    piece.map_or(0, u16::from_le_bytes)
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    let piece = bytes.get(at..at + 4).and_then(|b| b.try_into().ok());
    piece.map_or(0, u32::from_le_bytes)
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    let piece = bytes.get(at..at + 8).and_then(|b| b.try_into().ok());
    piece.map_or(0, u64::from_le_bytes)
}

fn sectors(number: u64) -> Result<u64, String> {
    number
        .checked_mul(SECTOR_BYTES)
        .ok_or_else(|| "a place in it lies outside the file: it was damaged".to_owned())
}

/// An entry of a directory or a table; 0 where there is none.
fn entry(table: &[u8], number: u64) -> u32 {
    usize::try_from(number * 4).map_or(0, |at| u32_at(table, at))
}

impl Vmdk {
    pub(super) fn open(source: Box<dyn Source>) -> Result<Self, String> {
        let mut head = head(&*source, 0)?;
        check_descriptor(&*source, &head)?;
        if u64_at(&head, 56) == AT_END {
            let at = source.bytes().checked_sub(FOOTER_FROM_END_BYTES);
            head = self::head(&*source, at.ok_or("it ends within its footer")?)
                .map_err(|why| format!("of its footer: {why}"))?;
        }
        let flags = u32_at(&head, 8);
        let (capacity, grain) = (u64_at(&head, 12), u64_at(&head, 20));
        let table_entries = u64::from(u32_at(&head, 44));
        let virtual_bytes = sectors(capacity)?;
        if virtual_bytes == 0 || virtual_bytes > crate::limits::IMAGE_MAX_BYTES {
            return Err(format!(
                "its size of {capacity} sectors is not between 1 and 64 TiB"
            ));
        }
        if !grain.is_power_of_two() || grain > GRAIN_MAX_SECTORS {
            return Err(format!("its grains of {grain} sectors are not allowed"));
        }
        if !(1..=TABLE_MAX_ENTRIES).contains(&table_entries) {
            return Err(format!("its tables of {table_entries} entries are not allowed"));
        }
        let compressed = flags & FLAG_COMPRESSED != 0;
        if compressed && (u16_at(&head, 77) != DEFLATE || flags & FLAG_MARKERS == 0) {
            return Err("it is compressed in a way that is not known here".into());
        }
        let tables = capacity.div_ceil(grain * table_entries);
        let directory = table(
            &*source,
            sectors(u64_at(&head, 56))?,
            tables.saturating_mul(4),
            "its directory",
        )?;
        Ok(Self {
            source,
            virtual_bytes,
            grain_bytes: grain * SECTOR_BYTES,
            table_entries,
            compressed,
            zeroed_grains: flags & FLAG_ZEROED_GRAINS != 0,
            directory,
            grains: (0, Vec::new()),
            unpacked: (0, Vec::new()),
        })
    }

    /// The sector of a grain; `None` where it reads as zeros.
    fn grain(&mut self, number: u64) -> Result<Option<u32>, String> {
        let at = entry(&self.directory, number / self.table_entries);
        if at == 0 {
            return Ok(None);
        }
        if self.grains.0 != at {
            let place = u64::from(at) * SECTOR_BYTES;
            let found = table(&*self.source, place, self.table_entries * 4, "a table of it")?;
            self.grains = (at, found);
        }
        Ok(match entry(&self.grains.1, number % self.table_entries) {
            0 => None,
            1 if self.zeroed_grains => None,
            sector => Some(sector),
        })
    }

    fn read_grain(&mut self, number: u64, within: u64, into: &mut [u8]) -> Result<(), String> {
        let Some(sector) = self.grain(number)? else {
            into.fill(0);
            return Ok(());
        };
        let at = u64::from(sector) * SECTOR_BYTES;
        if !self.compressed {
            return content(&*self.source, at + within, into);
        }
        if self.unpacked.0 != sector {
            let unpacked = self.unpack(at, number)?;
            self.unpacked = (sector, unpacked);
        }
        let from = usize::try_from(within).unwrap_or(usize::MAX);
        into.copy_from_slice(&self.unpacked.1[from..from + into.len()]);
        Ok(())
    }

    fn unpack(&self, at: u64, number: u64) -> Result<Vec<u8>, String> {
        let marker = table(&*self.source, at, MARKER_BYTES, "a grain of it")?;
        let (place, bytes) = (u64_at(&marker, 0), u64::from(u32_at(&marker, 8)));
        // What does not shrink when it is packed grows by little.
        if sectors(place)? != number * self.grain_bytes || bytes > 2 * self.grain_bytes + SECTOR_BYTES {
            return Err("the mark of a grain of it is damaged".into());
        }
        let packed = table(&*self.source, at + MARKER_BYTES, bytes, "a grain of it")?;
        let mut out = vec![0; usize::try_from(self.grain_bytes).unwrap_or(0)];
        let have = unpack(&packed, &mut out, TINFL_FLAG_PARSE_ZLIB_HEADER)?;
        // The last grain may end where the disk does.
        let needed = (self.virtual_bytes - number * self.grain_bytes).min(self.grain_bytes);
        if (have as u64) < needed {
            return Err("compressed content of it is damaged".into());
        }
        Ok(out)
    }
}

impl Layer for Vmdk {
    fn virtual_bytes(&self) -> u64 {
        self.virtual_bytes
    }

    fn look(&mut self, at: u64) -> Result<(Place, u64), String> {
        let number = at / self.grain_bytes;
        let end = (number / self.table_entries + 1) * self.table_entries;
        let there = self.grain(number)?.is_some();
        let mut next = number + 1;
        while next < end && self.grain(next)?.is_some() == there {
            next += 1;
        }
        let place = if there { Place::Data } else { Place::Zero };
        Ok((place, next * self.grain_bytes - at))
    }

    fn read(&mut self, at: u64, into: &mut [u8]) -> Result<(), String> {
        let mut done = 0;
        while done < into.len() {
            let now = at + done as u64;
            let within = now % self.grain_bytes;
            let bytes = usize::try_from(self.grain_bytes - within)
                .unwrap_or(usize::MAX)
                .min(into.len() - done);
            self.read_grain(now / self.grain_bytes, within, &mut into[done..done + bytes])?;
            done += bytes;
        }
        Ok(())
    }
}

fn head(source: &dyn Source, at: u64) -> Result<Vec<u8>, String> {
    let bytes = HEADER_BYTES.min(source.bytes().saturating_sub(at));
    let head = table(source, at, bytes, "its header")?;
    if head.starts_with(b"# Disk DescriptorFile") {
        return Err(
            "it is a description only, which names other files that hold the disk: export it as one file"
                .into(),
        );
    }
    if head.starts_with(b"COWD") {
        return Err("it is a part of a disk of ESX: export it as one file".into());
    }
    if !head.starts_with(b"KDMV") {
        return Err("it does not bear the mark of a VMDK file".into());
    }
    if bytes < HEADER_BYTES {
        return Err("it ends within its header".into());
    }
    match u32_at(&head, 4) {
        1..=3 => Ok(head),
        version => Err(format!("its version is {version}, known are 1 to 3")),
    }
}

/// The text in the file must tell of one extent, which is the file itself, and of no parent.
fn check_descriptor(source: &dyn Source, head: &[u8]) -> Result<(), String> {
    let (at, bytes) = (sectors(u64_at(head, 28))?, sectors(u64_at(head, 36))?);
    if at == 0 || bytes == 0 {
        return Err("it has no description: it is a part of a disk in several files".into());
    }
    if bytes > VMDK_DESCRIPTOR_MAX_BYTES.min(DISK_TABLE_MAX_BYTES) {
        return Err("its description is larger than 1 MiB".into());
    }
    let text = table(source, at, bytes, "its description")?;
    let text = text.split(|byte| *byte == 0).next().unwrap_or_default();
    let text = String::from_utf8_lossy(text);
    let (mut extents, mut kind) = (0, String::new());
    for line in text.lines().map(str::trim) {
        let (key, value) = line.split_once('=').unwrap_or((line, ""));
        let (key, value) = (key.trim().to_ascii_lowercase(), value.trim().trim_matches('"'));
        let first = key.split_whitespace().next().unwrap_or_default();
        match key.as_str() {
            "createtype" => value.clone_into(&mut kind),
            "parentcid" if !value.eq_ignore_ascii_case("ffffffff") => {
                return Err("it needs another file (a parent)".into());
            }
            "parentfilenamehint" => return Err("it needs another file (a parent)".into()),
            _ if key.starts_with("encryption.") => return Err("it is encrypted".into()),
            _ if matches!(first, "rw" | "rdonly" | "noaccess") => extents += 1,
            _ => {}
        }
    }
    let alone = ["monolithicsparse", "streamoptimized"].contains(&kind.to_ascii_lowercase().as_str());
    match (alone, extents) {
        (true, 1) => Ok(()),
        (true, _) => Err(format!(
            "it is a disk of {extents} files; only one is allowed, the file itself"
        )),
        (false, 0) => Err("its description is empty: it is a part of a disk in several files".into()),
        (false, _) => Err(format!(
            "it is of the type '{kind}'; allowed are monolithicSparse and streamOptimized, which name no other file"
        )),
    }
}
