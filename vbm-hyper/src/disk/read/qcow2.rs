//! Reads the content of one qcow2 file. After QEMU's `docs/interop/qcow2.txt`.

use super::{Layer, Place, Source, content, table, unpack};
use crate::disk::qcow2::{self, Entry, HEADER_BYTES, Header};

/// The unit that the length of compressed content is told in.
const SECTOR_BYTES: u64 = 512;

/// A qcow2 file.
pub(super) struct Qcow2 {
    source: Box<dyn Source>,
    header: Header,
    l1: Vec<u8>,
    /// The table that was read last, and where it stands.
    l2: (u64, Vec<u8>),
    /// The piece of compressed content that was unpacked last, by its entry.
    unpacked: (u64, Vec<u8>),
}

impl Qcow2 {
    pub(super) fn open(source: Box<dyn Source>) -> Result<Self, String> {
        let head = table(&*source, 0, HEADER_BYTES as u64, "its header")?;
        let header = Header::parse(&head, source.bytes())?;
        header.check_is_plain(&head)?;
        let (at, bytes) = header.first_table();
        let l1 = table(&*source, at, bytes as u64, "its first table")?;
        Ok(Self {
            source,
            header,
            l1,
            l2: (0, Vec::new()),
            unpacked: (0, Vec::new()),
        })
    }

    pub(super) fn open_whole(source: Box<dyn Source>) -> Result<Self, String> {
        let disk = Self::open(source)?;
        disk.header.check_is_base()?;
        Ok(disk)
    }

    const fn cluster(&self) -> u64 {
        1 << self.header.cluster_bits
    }

    /// The entry of a cluster in its second table; `None` where there is no table.
    fn entry(&mut self, number: u64) -> Result<Option<u64>, String> {
        let entries = self.cluster() / 8;
        let at = self.header.table_at(qcow2::entry_at(&self.l1, number / entries));
        if at == 0 {
            return Ok(None);
        }
        if self.l2.0 != at {
            self.l2 = (at, table(&*self.source, at, self.cluster(), "a table of it")?);
        }
        Ok(Some(qcow2::entry_at(&self.l2.1, number % entries)))
    }

    fn place(&mut self, number: u64) -> Result<Option<Place>, String> {
        Ok(self.entry(number)?.map(|entry| match self.header.place(entry) {
            Entry::Below => Place::Below,
            Entry::Zero => Place::Zero,
            Entry::At(_) | Entry::Packed { .. } => Place::Data,
        }))
    }

    fn read_cluster(&mut self, number: u64, within: u64, into: &mut [u8]) -> Result<(), String> {
        let entry = self.entry(number)?.unwrap_or(0);
        match self.header.place(entry) {
            Entry::Below | Entry::Zero => into.fill(0),
            Entry::At(at) => content(&*self.source, at + within, into)?,
            Entry::Packed { at, sectors } => {
                if self.unpacked.0 != entry {
                    let unpacked = self.unpack(at, sectors)?;
                    self.unpacked = (entry, unpacked);
                }
                let from = usize::try_from(within).unwrap_or(usize::MAX);
                into.copy_from_slice(&self.unpacked.1[from..from + into.len()]);
            }
        }
        Ok(())
    }

    /// Raw deflate ("compressed cluster descriptor"). The last sector may end beyond the file.
    fn unpack(&self, at: u64, sectors: u64) -> Result<Vec<u8>, String> {
        let packed_bytes = (sectors + 1) * SECTOR_BYTES - at % SECTOR_BYTES;
        let bytes = packed_bytes.min(self.source.bytes().saturating_sub(at));
        let packed = table(&*self.source, at, bytes, "compressed content of it")?;
        let mut out = vec![0; 1 << self.header.cluster_bits];
        match unpack(&packed, &mut out, 0)? {
            bytes if bytes == out.len() => Ok(out),
            _ => Err("compressed content of it is damaged".into()),
        }
    }
}

impl Layer for Qcow2 {
    fn virtual_bytes(&self) -> u64 {
        self.header.virtual_bytes
    }

    fn look(&mut self, at: u64) -> Result<(Place, u64), String> {
        let (cluster, entries) = (self.cluster(), self.cluster() / 8);
        let number = at / cluster;
        // As far as the second table goes that tells it.
        let end = (number / entries + 1) * entries;
        let Some(place) = self.place(number)? else {
            return Ok((Place::Below, end * cluster - at));
        };
        let mut next = number + 1;
        while next < end && self.place(next)? == Some(place) {
            next += 1;
        }
        Ok((place, next * cluster - at))
    }

    fn read(&mut self, at: u64, into: &mut [u8]) -> Result<(), String> {
        let cluster = self.cluster();
        let mut done = 0;
        while done < into.len() {
            let now = at + done as u64;
            let within = now % cluster;
            let bytes = usize::try_from(cluster - within)
                .unwrap_or(usize::MAX)
                .min(into.len() - done);
            self.read_cluster(now / cluster, within, &mut into[done..done + bytes])?;
            done += bytes;
        }
        Ok(())
    }
}
