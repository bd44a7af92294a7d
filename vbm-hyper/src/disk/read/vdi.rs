//! Reads the content of one VDI file, dynamic or fixed.

use super::{Layer, Place, Source, content, table};
use crate::disk::vdi::{self, Layout};

/// Entries from here on are no blocks: never written, and discarded.
const NO_BLOCK: u32 = 0xffff_fffe;

pub(super) struct Vdi {
    source: Box<dyn Source>,
    layout: Layout,
    map: Vec<u8>,
}

impl Vdi {
    pub(super) fn open(source: Box<dyn Source>) -> Result<Self, String> {
        let bytes = source.bytes().min(vdi::HEADER_BYTES as u64);
        let head = table(&*source, 0, bytes, "its header")?;
        let layout = vdi::layout(&head)?;
        let map = table(&*source, layout.map_at, u64::from(layout.blocks) * 4, "its map")?;
        Ok(Self { source, layout, map })
    }

    fn block(&self, number: u64) -> Option<u64> {
        let at = usize::try_from(number * 4).ok()?;
        let entry = self
            .map
            .get(at..at + 4)?
            .try_into()
            .ok()
            .map(u32::from_le_bytes)?;
        (entry < NO_BLOCK).then(|| self.layout.data_at + u64::from(entry) * self.layout.block_bytes)
    }
}

impl Layer for Vdi {
    fn virtual_bytes(&self) -> u64 {
        self.layout.virtual_bytes
    }

    fn look(&mut self, at: u64) -> Result<(Place, u64), String> {
        let block = self.layout.block_bytes;
        let (number, end) = (at / block, self.layout.virtual_bytes.div_ceil(block));
        let there = self.block(number).is_some();
        let mut next = number + 1;
        while next < end && self.block(next).is_some() == there {
            next += 1;
        }
        let place = if there { Place::Data } else { Place::Zero };
        Ok((place, next * block - at))
    }

    fn read(&mut self, at: u64, into: &mut [u8]) -> Result<(), String> {
        let block = self.layout.block_bytes;
        let mut done = 0;
        while done < into.len() {
            let now = at + done as u64;
            let bytes = usize::try_from(block - now % block)
                .unwrap_or(usize::MAX)
                .min(into.len() - done);
            let piece = &mut into[done..done + bytes];
            match self.block(now / block) {
                Some(place) => content(&*self.source, place + now % block, piece)?,
                None => piece.fill(0),
            }
            done += bytes;
        }
        Ok(())
    }
}
