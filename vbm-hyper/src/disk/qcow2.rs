//! The qcow2 format, as far as images and linked clones need it: pure. After QEMU's `docs/interop/qcow2.txt`.
//!
//! ```text
//!   cluster 0: header, extensions, name of the backing file        a linked clone has these 64 KiB clusters,
//!   cluster 1: refcount table -> cluster 2: refcount block         all but a few bytes of them holes
//!   cluster 3...: L1 table (one entry per 512 MiB), empty: every read goes to the backing file
//! ```

use std::{collections::HashSet, io};
use vbm_core::{DiskFormat, limits::DISK_MAX_MIB};

/// The first four bytes.
pub const MAGIC: [u8; 4] = *b"QFI\xfb";
/// What [`Header::parse`] needs of a file's beginning, in bytes.
pub const HEADER_BYTES: usize = 104;
/// The largest disk, in bytes.
pub const VIRTUAL_MAX_BYTES: u64 = DISK_MAX_MIB * 1024 * 1024;
/// The longest name of a backing file that the format allows, in bytes.
pub const BACKING_MAX_BYTES: usize = 1023;

const INCOMPATIBLE_DIRTY: u64 = 1;
const INCOMPATIBLE_CORRUPT: u64 = 1 << 1;
const INCOMPATIBLE_DATA_FILE: u64 = 1 << 2;
const INCOMPATIBLE_EXTENDED_L2: u64 = 1 << 4;
/// The five above and bit 3, the type of compression.
const INCOMPATIBLE_KNOWN: u64 = (1 << 5) - 1;
const OFFSET_MASK: u64 = 0x00ff_ffff_ffff_fe00;
const COMPRESSED: u64 = 1 << 62;

/// What matters of a qcow2 header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Header {
    /// 2 or 3.
    pub version: u32,
    /// The size that a guest sees, in bytes.
    pub virtual_bytes: u64,
    /// The size of a cluster is two to the power of this.
    pub cluster_bits: u32,
    /// Where the name of the backing file stands and how long it is.
    pub backing: Option<(u64, u32)>,
    l1_entries: u32,
    l1_offset: u64,
    extended_l2: bool,
}

/// What an entry of a second table says of a cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Entry {
    /// Nothing: what is below speaks.
    Below,
    /// It reads as zeros.
    Zero,
    At(u64),
    /// Compressed: so many sectors beyond the one that it begins in.
    Packed {
        at: u64,
        sectors: u64,
    },
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    bytes
        .get(at..at + 4)
        .and_then(|b| b.try_into().ok())
        .map_or(0, u32::from_be_bytes)
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    bytes
        .get(at..at + 8)
        .and_then(|b| b.try_into().ok())
        .map_or(0, u64::from_be_bytes)
}

impl Header {
    /// Reads the beginning of a file of `file_bytes` and checks that all sizes and places in it are sane.
    ///
    /// # Errors
    /// Why it is not a qcow2 that QEMU could open, in words for people.
    pub fn parse(head: &[u8], file_bytes: u64) -> Result<Self, String> {
        if head.get(..4) != Some(&MAGIC) {
            return Err("it does not begin with the mark of a qcow2 file".into());
        }
        if head.len() < HEADER_BYTES {
            return Err("it ends within its header".into());
        }
        let version = u32_at(head, 4);
        if !matches!(version, 2 | 3) {
            return Err(format!("its version is {version}, known are 2 and 3"));
        }
        let incompatible = if version == 3 { u64_at(head, 72) } else { 0 };
        check_features(incompatible)?;
        let cluster_bits = u32_at(head, 20);
        if !(9..=21).contains(&cluster_bits) {
            return Err(format!(
                "its cluster size of 2^{cluster_bits} bytes is not allowed"
            ));
        }
        let virtual_bytes = u64_at(head, 24);
        if virtual_bytes == 0 || virtual_bytes > VIRTUAL_MAX_BYTES {
            return Err(format!(
                "its size of {virtual_bytes} bytes is not between 1 byte and 64 TiB"
            ));
        }
        match u32_at(head, 32) {
            0 => {}
            method => return Err(format!("it is encrypted (method {method})")),
        }
        let extended_l2 = incompatible & INCOMPATIBLE_EXTENDED_L2 != 0;
        let header = Self {
            version,
            virtual_bytes,
            cluster_bits,
            backing: match (u64_at(head, 8), u32_at(head, 16)) {
                (0, _) => None,
                found => Some(found),
            },
            l1_entries: u32_at(head, 36),
            l1_offset: u64_at(head, 40),
            extended_l2,
        };
        header.check_places(head, file_bytes)?;
        Ok(header)
    }

    fn check_places(&self, head: &[u8], file_bytes: u64) -> Result<(), String> {
        let cluster = 1_u64 << self.cluster_bits;
        let inside = |offset: u64, bytes: u64| {
            offset != 0
                && offset.is_multiple_of(cluster)
                && offset.checked_add(bytes).is_some_and(|end| end <= file_bytes)
        };
        let needed = self.virtual_bytes.div_ceil(cluster * self.l2_entries());
        if u64::from(self.l1_entries) < needed {
            return Err("its first table is too small for its size".into());
        }
        // QEMU's own limit (QCOW_MAX_L1_SIZE): 32 MiB.
        if self.l1_entries > 4 * 1024 * 1024 {
            return Err("its first table is larger than 32 MiB".into());
        }
        if !inside(self.l1_offset, u64::from(self.l1_entries) * 8) {
            return Err("its first table lies outside the file: it was cut short or damaged".into());
        }
        let refcounts = u64::from(u32_at(head, 56)) * cluster;
        if refcounts == 0 || !inside(u64_at(head, 48), refcounts) {
            return Err("its table of references lies outside the file: it was cut short or damaged".into());
        }
        Ok(())
    }

    /// Refuses what this crate cannot read the content of itself.
    ///
    /// # Errors
    /// Why not, in words for people.
    pub(super) fn check_is_plain(&self, head: &[u8]) -> Result<(), String> {
        const INCOMPATIBLE_COMPRESSION: u64 = 1 << 3;
        if self.extended_l2 {
            return Err("its tables are of the extended kind, which is not read here".into());
        }
        if self.version == 3 && u64_at(head, 72) & INCOMPATIBLE_COMPRESSION != 0 {
            return Err("it is compressed in another way than zlib's, which is not read here".into());
        }
        Ok(())
    }

    /// Where the first table stands and how long it is, in bytes.
    pub(super) const fn first_table(&self) -> (u64, usize) {
        (self.l1_offset, self.l1_entries as usize * 8)
    }

    /// Where the second table stands that an entry of the first one names; 0: there is none.
    pub(super) const fn table_at(&self, entry: u64) -> u64 {
        entry & OFFSET_MASK
    }

    /// What an entry of a second table says.
    pub(super) const fn place(&self, entry: u64) -> Entry {
        const ZERO: u64 = 1;
        if entry & COMPRESSED != 0 {
            let bits = 62 - (self.cluster_bits - 8);
            return Entry::Packed {
                at: self.data_offset(entry),
                sectors: (entry >> bits) & ((1 << (self.cluster_bits - 8)) - 1),
            };
        }
        match entry & OFFSET_MASK {
            _ if self.version >= 3 && entry & ZERO != 0 => Entry::Zero,
            0 => Entry::Below,
            at => Entry::At(at),
        }
    }

    /// How many entries its first table needs for a size.
    pub(super) fn entries_for(&self, virtual_bytes: u64) -> u64 {
        virtual_bytes.div_ceil((1 << self.cluster_bits) * self.l2_entries())
    }

    fn l2_entries(&self) -> u64 {
        (1 << self.cluster_bits) / self.l2_entry_bytes()
    }

    const fn l2_entry_bytes(&self) -> u64 {
        if self.extended_l2 { 16 } else { 8 }
    }

    /// Refuses what an image must not have: a backing file.
    ///
    /// # Errors
    /// Why not, in words for people.
    pub fn check_is_base(&self) -> Result<(), String> {
        match self.backing {
            None => Ok(()),
            Some(_) => Err(
                "it needs another file (a backing file), through which it could read any file of the host"
                    .into(),
            ),
        }
    }

    /// Follows all tables and checks that what they point at lies inside the file: finds files that were cut short.
    /// Reads the tables only, each once.
    ///
    /// # Errors
    /// Why it is damaged, in words for people; or what `read` failed with, as text.
    pub fn check_tables(
        &self,
        file_bytes: u64,
        mut read: impl FnMut(u64, &mut [u8]) -> io::Result<()>,
    ) -> Result<(), String> {
        let cluster = 1_usize << self.cluster_bits;
        let mut l1 = vec![0; self.l1_entries as usize * 8];
        let mut l2 = vec![0; cluster];
        let mut seen = HashSet::new();
        read(self.l1_offset, &mut l1).map_err(|e| e.to_string())?;
        for entry in l1.chunks_exact(8) {
            let offset = u64_at(entry, 0) & OFFSET_MASK;
            if offset == 0 {
                continue;
            }
            let end = offset.checked_add(cluster as u64);
            if !offset.is_multiple_of(cluster as u64) || end.is_none_or(|end| end > file_bytes) {
                return Err("a table of it lies outside the file: it was cut short or damaged".into());
            }
            if !seen.insert(offset) {
                return Err("two parts of it share one table: it is damaged".into());
            }
            read(offset, &mut l2).map_err(|e| e.to_string())?;
            let step = if self.extended_l2 { 16 } else { 8 };
            for entry in l2.chunks_exact(step) {
                if self.data_offset(u64_at(entry, 0)) >= file_bytes {
                    return Err("content of it lies outside the file: it was cut short or damaged".into());
                }
            }
        }
        Ok(())
    }

    /// Where the content of an L2 entry begins; 0 when it has none.
    const fn data_offset(&self, entry: u64) -> u64 {
        if entry & COMPRESSED != 0 {
            entry & ((1 << (62 - (self.cluster_bits - 8))) - 1)
        } else {
            entry & OFFSET_MASK
        }
    }
}

fn check_features(incompatible: u64) -> Result<(), String> {
    if incompatible & INCOMPATIBLE_DATA_FILE != 0 {
        return Err(
            "its content is in another file (an external data file), through which it could read any file of the host"
                .into(),
        );
    }
    if incompatible & INCOMPATIBLE_CORRUPT != 0 {
        return Err("it is marked as damaged".into());
    }
    if incompatible & INCOMPATIBLE_DIRTY != 0 {
        return Err("it was not closed properly; `qemu-img check -r all` repairs it".into());
    }
    match incompatible & !INCOMPATIBLE_KNOWN {
        0 => Ok(()),
        unknown => Err(format!("it uses features that are not known here ({unknown:#x})")),
    }
}

/// A linked clone that was not written yet: what to write where, and how long the file is. All else are holes.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Overlay {
    /// Offsets in bytes, and what stands there.
    pub parts: Vec<(u64, Vec<u8>)>,
    /// The length of the file in bytes.
    pub file_bytes: u64,
}

/// A qcow2 version 3 file whose every read goes to `backing`.
///
/// # Errors
/// A name of a backing file or a size that the format or VBM does not allow.
pub fn overlay(backing: &str, format: DiskFormat, virtual_bytes: u64) -> Result<Overlay, String> {
    unwritten(Some((backing, format)), virtual_bytes)
}

/// A qcow2 version 3 file that reads as zeros.
///
/// # Errors
/// A size that the format or VBM does not allow.
pub fn blank(virtual_bytes: u64) -> Result<Overlay, String> {
    unwritten(None, virtual_bytes)
}

fn unwritten(backing: Option<(&str, DiskFormat)>, virtual_bytes: u64) -> Result<Overlay, String> {
    check_size(virtual_bytes)?;
    let places = Places {
        l1_entries: l1_entries(virtual_bytes),
        l1_at: 3 * CLUSTER_BYTES,
        refcount_table_at: CLUSTER_BYTES,
        refcount_table_clusters: 1,
    };
    let head = head(backing, virtual_bytes, &places)?;
    let clusters = 3 + (u64::from(places.l1_entries) * 8).div_ceil(CLUSTER_BYTES);
    let refcounts = (0..clusters).flat_map(|_| 1_u16.to_be_bytes()).collect();
    Ok(Overlay {
        parts: vec![
            (0, head),
            (CLUSTER_BYTES, (2 * CLUSTER_BYTES).to_be_bytes().to_vec()),
            (2 * CLUSTER_BYTES, refcounts),
        ],
        file_bytes: clusters * CLUSTER_BYTES,
    })
}

const CLUSTER_BITS: u32 = 16;
/// The size of a cluster of what is written here.
pub(super) const CLUSTER_BYTES: u64 = 1 << CLUSTER_BITS;

/// Refuses a size that the format or VBM does not allow.
///
/// # Errors
/// Why not, in words for people.
pub(super) fn check_size(virtual_bytes: u64) -> Result<(), String> {
    if virtual_bytes == 0 || virtual_bytes > VIRTUAL_MAX_BYTES || !virtual_bytes.is_multiple_of(512) {
        return Err(format!(
            "a disk cannot have {virtual_bytes} bytes: whole sectors of 512, at most 64 TiB"
        ));
    }
    Ok(())
}

/// How many entries the first table of a disk needs: at most 131,072, for 64 TiB.
pub(super) fn l1_entries(virtual_bytes: u64) -> u32 {
    u32::try_from(virtual_bytes.div_ceil(CLUSTER_BYTES * (CLUSTER_BYTES / 8))).unwrap_or(u32::MAX)
}

/// Entry `number` of a table of entries of 8 bytes; 0 beyond its end.
pub(super) fn entry_at(table: &[u8], number: u64) -> u64 {
    usize::try_from(number.saturating_mul(8)).map_or(0, |at| u64_at(table, at))
}

/// Where the tables of a file stand.
pub(super) struct Places {
    pub(super) l1_entries: u32,
    pub(super) l1_at: u64,
    pub(super) refcount_table_at: u64,
    pub(super) refcount_table_clusters: u32,
}

/// The header of a version 3 file with clusters of 64 KiB, its extensions, and the name of the file below it.
pub(super) fn head(
    backing: Option<(&str, DiskFormat)>,
    virtual_bytes: u64,
    places: &Places,
) -> Result<Vec<u8>, String> {
    const REFCOUNT_ORDER_16_BITS: u32 = 4;
    const HEADER_LENGTH: u32 = 112;
    const EXTENSION_BACKING_FORMAT: u32 = 0xe279_2aca;
    let (name, format) = backing.unzip();
    if name.is_some_and(|name| name.is_empty() || name.len() > BACKING_MAX_BYTES) {
        return Err(format!(
            "the name of its base has {} bytes; 1 to 1,023 are allowed",
            name.unwrap_or_default().len()
        ));
    }
    let name = name.unwrap_or_default();
    let name_bytes = u32::try_from(name.len()).unwrap_or(u32::MAX);
    let mut extensions = Vec::new();
    if let Some(format) = format {
        let (format, format_bytes) = match format {
            DiskFormat::Raw => (&b"raw"[..], 3_u32),
            _ => (&b"qcow2"[..], 5),
        };
        extensions.extend(EXTENSION_BACKING_FORMAT.to_be_bytes());
        extensions.extend(format_bytes.to_be_bytes());
        extensions.extend(format);
        extensions.resize(extensions.len().next_multiple_of(8), 0);
    }
    extensions.extend([0; 8]);
    let name_offset = match name_bytes {
        0 => 0,
        _ => u64::from(HEADER_LENGTH) + extensions.len() as u64,
    };
    let mut head = Vec::with_capacity(2048);
    head.extend(MAGIC);
    head.extend(3_u32.to_be_bytes());
    head.extend(name_offset.to_be_bytes());
    head.extend(name_bytes.to_be_bytes());
    head.extend(CLUSTER_BITS.to_be_bytes());
    head.extend(virtual_bytes.to_be_bytes());
    head.extend(0_u32.to_be_bytes()); // not encrypted
    head.extend(places.l1_entries.to_be_bytes());
    head.extend(places.l1_at.to_be_bytes());
    head.extend(places.refcount_table_at.to_be_bytes());
    head.extend(places.refcount_table_clusters.to_be_bytes());
    head.extend([0; 4 + 8]); // no snapshots
    head.extend([0; 3 * 8]); // no features
    head.extend(REFCOUNT_ORDER_16_BITS.to_be_bytes());
    head.extend(HEADER_LENGTH.to_be_bytes());
    head.extend([0; 8]); // compression: zlib, and padding
    head.extend(extensions);
    head.extend(name.as_bytes());
    Ok(head)
}

#[cfg(test)]
#[expect(clippy::cast_possible_truncation, reason = "tests use small files")]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn file_of(overlay: &Overlay) -> Vec<u8> {
        let mut file = vec![0; overlay.file_bytes as usize];
        for (at, bytes) in &overlay.parts {
            file[*at as usize..*at as usize + bytes.len()].copy_from_slice(bytes);
        }
        file
    }

    fn good() -> Vec<u8> {
        file_of(&overlay("/base", DiskFormat::Qcow2, 1 << 30).unwrap())
    }

    fn parse(file: &[u8]) -> Result<Header, String> {
        let header = Header::parse(&file[..file.len().min(HEADER_BYTES)], file.len() as u64)?;
        header.check_tables(file.len() as u64, |at, buf| {
            buf.copy_from_slice(&file[at as usize..at as usize + buf.len()]);
            Ok(())
        })?;
        Ok(header)
    }

    #[test]
    fn what_is_written_is_read_back() {
        let header = parse(&good()).unwrap();
        assert_eq!((header.version, header.virtual_bytes), (3, 1 << 30));
        let (at, len) = header.backing.unwrap();
        assert_eq!(&good()[at as usize..][..len as usize], b"/base");
        assert!(header.check_is_base().unwrap_err().contains("backing file"));
    }

    #[test]
    fn the_largest_disk_has_a_table_that_covers_it() {
        let file = file_of(&overlay("/b", DiskFormat::Raw, VIRTUAL_MAX_BYTES).unwrap());
        assert_eq!(parse(&file).unwrap().l1_entries, 131_072);
    }

    #[test]
    fn each_thing_an_image_must_not_have_is_refused_by_name() {
        let with = |at: usize, bytes: &[u8]| {
            let mut file = good();
            file[at..at + bytes.len()].copy_from_slice(bytes);
            parse(&file).unwrap_err()
        };
        for (at, bytes, word) in [
            (0, &b"nope"[..], "mark"),
            (4, &9_u32.to_be_bytes()[..], "version"),
            (20, &40_u32.to_be_bytes(), "cluster size"),
            (24, &0_u64.to_be_bytes(), "bytes"),
            (24, &u64::MAX.to_be_bytes(), "64 TiB"),
            (32, &2_u32.to_be_bytes(), "encrypted"),
            (36, &0_u32.to_be_bytes(), "too small"),
            (36, &u32::MAX.to_be_bytes(), "32 MiB"),
            (40, &u64::MAX.to_be_bytes(), "outside"),
            (48, &0_u64.to_be_bytes(), "outside"),
            (72, &1_u64.to_be_bytes(), "check -r"),
            (72, &2_u64.to_be_bytes(), "damaged"),
            (72, &4_u64.to_be_bytes(), "external data file"),
            (72, &(1_u64 << 40).to_be_bytes(), "not known"),
            (3 * 65_536, &(1_u64 << 30).to_be_bytes(), "cut short"),
        ] {
            let why = with(at, bytes);
            assert!(why.contains(word), "{why} should name {word}");
        }
        assert!(parse(&good()[..60]).is_err());
        assert!(parse(&good()[..100_000]).unwrap_err().contains("cut short"));
    }

    #[test]
    fn content_beyond_the_end_of_the_file_is_found() {
        let mut file = good();
        let table = file.len() as u64;
        file.extend(vec![0; 65_536]);
        file[3 * 65_536..3 * 65_536 + 8].copy_from_slice(&table.to_be_bytes());
        assert!(parse(&file).is_ok());
        file[table as usize..table as usize + 8].copy_from_slice(&(1_u64 << 20).to_be_bytes());
        assert!(parse(&file).unwrap_err().contains("content"));
    }

    #[test]
    fn sizes_and_names_out_of_bounds_are_refused() {
        for (name, bytes) in [
            ("", 512),
            ("/b", 0),
            ("/b", 513),
            ("/b", VIRTUAL_MAX_BYTES + 512),
            (&*"x".repeat(1024), 512),
        ] {
            assert!(overlay(name, DiskFormat::Raw, bytes).is_err());
        }
    }

    proptest! {
        #[test]
        fn garbage_never_panics(mut head in proptest::collection::vec(any::<u8>(), 0..200), flip in any::<(u8, u8)>(), len in 0..1_u64 << 40) {
            drop(Header::parse(&head, len));
            if head.len() >= 4 { head[..4].copy_from_slice(&MAGIC); }
            drop(Header::parse(&head, len));
            let mut near = good();
            near[usize::from(flip.0 % 112)] ^= flip.1;
            if let Ok(header) = Header::parse(&near[..HEADER_BYTES], near.len() as u64) {
                let file_bytes = near.len() as u64;
                drop(header.check_tables(file_bytes, |at, buf| {
                    assert!(at + buf.len() as u64 <= file_bytes, "reads only inside the file");
                    buf.copy_from_slice(&near[at as usize..at as usize + buf.len()]);
                    Ok(())
                }));
            }
        }
    }
}
