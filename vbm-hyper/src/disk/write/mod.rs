//! Writes disks: what is where is planned first, then all is written from the first byte to the last.
//!
//! ```text
//!   Stack --plan--> runs of units: zero or data ----> raw | qcow2 | vdi --write, zeros--> Sink: a file, a stream, a digest
//!           reads all that is stored once,            knows its length before the
//!           to find what is only zeros                first byte is written
//! ```
//!
//! Because the length is known beforehand, room is asked for before and not after; because nothing is written backwards, a
//! stream is as good as a file, and the digest of what is written needs no second look.

pub(super) mod qcow2;
mod raw;
pub(super) mod vdi;

use super::{
    read::{Place, Stack},
    work::Work,
};
use crate::{Error, Result, limits::COPY_CHUNK_BYTES};
use sha2::{Digest as _, Sha256};
use std::{fs::File, os::unix::fs::FileExt, path::Path};
use vbm_core::{Digest, VolumeId};

/// What some units hold, one after the other. What is in no run says nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Run {
    pub(super) unit: u64,
    pub(super) units: u64,
    /// Else zeros.
    pub(super) data: bool,
}

/// What is where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Plan {
    pub(super) virtual_bytes: u64,
    pub(super) unit_bytes: u64,
    pub(super) runs: Vec<Run>,
}

impl Plan {
    /// Looks at a disk that is to have `virtual_bytes`. With `upper`, only the content of so many layers is taken, and that some
    /// of it is zeros is kept, because something else shows through where nothing is said.
    pub(super) fn of(
        disk: &mut Stack,
        virtual_bytes: u64,
        unit_bytes: u64,
        upper: Option<usize>,
        work: &Work,
    ) -> Result<Self> {
        let mut plan = Self {
            virtual_bytes,
            unit_bytes,
            runs: Vec::new(),
        };
        let mut unit_of = vec![0; usize::try_from(unit_bytes).unwrap_or(COPY_CHUNK_BYTES)];
        let end = disk.virtual_bytes().min(virtual_bytes);
        let layers = upper.unwrap_or_else(|| disk.layers());
        let (mut at, mut asked_at) = (0, 0);
        while at < end {
            if at >= asked_at {
                work.go_on()?;
                work.report("looking for content", at, end);
                asked_at = at + LOOK_EVERY_BYTES;
            }
            let (place, bytes) = disk.look(at, layers)?;
            let units = bytes / unit_bytes;
            if place != Place::Data && (units > 0 || at + bytes >= end) {
                let units = units.max(1);
                if place == Place::Zero && upper.is_some() {
                    plan.push(at / unit_bytes, units.min((end - at).div_ceil(unit_bytes)), false);
                }
                at = at.saturating_add(units * unit_bytes);
                continue;
            }
            disk.read(at, &mut unit_of)?;
            let data = unit_of.iter().any(|byte| *byte != 0);
            if data || upper.is_some() {
                plan.push(at / unit_bytes, 1, data);
            }
            at += unit_bytes;
        }
        Ok(plan)
    }

    fn push(&mut self, unit: u64, units: u64, data: bool) {
        match self.runs.last_mut() {
            Some(last) if last.data == data && last.unit + last.units == unit => last.units += units,
            _ => self.runs.push(Run { unit, units, data }),
        }
    }

    pub(super) fn data_units(&self) -> u64 {
        self.runs.iter().filter(|run| run.data).map(|run| run.units).sum()
    }

    /// The content of each unit that has any, in the order in which they stand in the disk.
    fn each(
        &self,
        disk: &mut Stack,
        work: &Work,
        mut take: impl FnMut(u64, &[u8]) -> Result<()>,
    ) -> Result<()> {
        let mut unit_of = vec![0; usize::try_from(self.unit_bytes).unwrap_or(COPY_CHUNK_BYTES)];
        let (mut done, total) = (0, self.data_units() * self.unit_bytes);
        for run in self.runs.iter().filter(|run| run.data) {
            for unit in run.unit..run.unit + run.units {
                work.go_on()?;
                work.report("writing", done, total);
                disk.read(unit * self.unit_bytes, &mut unit_of)?;
                take(unit, &unit_of)?;
                done += self.unit_bytes;
            }
        }
        work.report("writing", total, total);
        Ok(())
    }
}

/// How much of a disk without content is looked at between two questions.
const LOOK_EVERY_BYTES: u64 = 64 << 20;

/// What a disk is written as.
pub(super) enum Shape<'a> {
    Raw,
    Qcow2 {
        /// The file that shows through, and its format.
        backing: Option<(&'a str, vbm_core::DiskFormat)>,
    },
    Vdi {
        volume: VolumeId,
        /// The image that it was made from.
        image: Option<Digest>,
    },
}

impl Shape<'_> {
    pub(super) const fn unit_bytes(&self) -> u64 {
        match self {
            Self::Raw => raw::UNIT_BYTES,
            Self::Qcow2 { .. } => super::qcow2::CLUSTER_BYTES,
            Self::Vdi { .. } => super::vdi::BLOCK_BYTES,
        }
    }

    /// How long the file is, and how much of it takes room.
    pub(super) fn file_bytes(&self, plan: &Plan) -> Result<u64> {
        match self {
            Self::Raw => Ok(plan.virtual_bytes),
            Self::Qcow2 { .. } => qcow2::Layout::of(plan).map(|layout| layout.file_bytes()),
            Self::Vdi { .. } => vdi::file_bytes(plan),
        }
    }

    /// How much of the file takes room.
    pub(super) fn room_bytes(&self, plan: &Plan) -> Result<u64> {
        match self {
            Self::Raw => Ok(plan.data_units() * plan.unit_bytes),
            other => other.file_bytes(plan),
        }
    }

    pub(super) fn write(
        &self,
        plan: &Plan,
        disk: &mut Stack,
        sink: &mut dyn Sink,
        work: &Work,
    ) -> Result<()> {
        let mut out = Out { sink, at: 0 };
        match self {
            Self::Raw => raw::write(plan, disk, &mut out, work),
            Self::Qcow2 { backing } => qcow2::write(plan, disk, *backing, &mut out, work),
            Self::Vdi { volume, image } => vdi::write(plan, disk, *volume, *image, &mut out, work),
        }
    }
}

/// Where bytes go, one after the other.
pub(super) trait Sink {
    fn write(&mut self, bytes: &[u8]) -> Result<()>;
    /// So many zeros; a file has a hole there.
    fn zeros(&mut self, bytes: u64) -> Result<()>;
}

impl Sink for &mut dyn Sink {
    fn write(&mut self, bytes: &[u8]) -> Result<()> {
        (**self).write(bytes)
    }

    fn zeros(&mut self, bytes: u64) -> Result<()> {
        (**self).zeros(bytes)
    }
}

/// A sink, and how far it is.
pub(super) struct Out<'a> {
    sink: &'a mut dyn Sink,
    at: u64,
}

impl Out<'_> {
    fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.at += bytes.len() as u64;
        self.sink.write(bytes)
    }

    /// Zeros up to a place; none when it is behind.
    fn up_to(&mut self, place: u64) -> Result<()> {
        match place.checked_sub(self.at) {
            None | Some(0) => Ok(()),
            Some(bytes) => {
                self.at = place;
                self.sink.zeros(bytes)
            }
        }
    }
}

/// An empty file.
pub(super) struct FileSink<'a> {
    file: &'a File,
    path: &'a Path,
    at: u64,
}

impl<'a> FileSink<'a> {
    pub(super) fn new(file: &'a File, path: &'a Path) -> Self {
        Self { file, path, at: 0 }
    }

    /// The file is as long as what was written, also where that ends in zeros.
    pub(super) fn finish(self) -> Result<u64> {
        let failed = |error| Error::io("write", self.path)(error);
        self.file.set_len(self.at).map_err(failed)?;
        self.file.sync_all().map_err(failed)?;
        Ok(self.at)
    }
}

impl Sink for FileSink<'_> {
    fn write(&mut self, bytes: &[u8]) -> Result<()> {
        let failed = |error| Error::io("write", self.path)(error);
        self.file.write_all_at(bytes, self.at).map_err(failed)?;
        self.at += bytes.len() as u64;
        Ok(())
    }

    fn zeros(&mut self, bytes: u64) -> Result<()> {
        self.at += bytes;
        Ok(())
    }
}

/// Takes the digest of what goes through.
pub(super) struct Hashed<S> {
    pub(super) sink: S,
    hash: Sha256,
}

impl<S> Hashed<S> {
    pub(super) fn new(sink: S) -> Self {
        let hash = Sha256::new();
        Self { sink, hash }
    }

    pub(super) fn finish(self) -> (S, Digest) {
        (self.sink, Digest::new(self.hash.finalize().into()))
    }
}

impl<S: Sink> Sink for Hashed<S> {
    fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.hash.update(bytes);
        self.sink.write(bytes)
    }

    fn zeros(&mut self, bytes: u64) -> Result<()> {
        in_pieces(bytes, |zeros| {
            self.hash.update(zeros);
            Ok(())
        })?;
        self.sink.zeros(bytes)
    }
}

/// So many zeros, in pieces that are not too large.
pub(super) fn in_pieces(bytes: u64, mut take: impl FnMut(&[u8]) -> Result<()>) -> Result<()> {
    const ZEROS: [u8; 4096] = [0; 4096];
    let mut left = bytes;
    while left > 0 {
        let piece = usize::try_from(left).unwrap_or(usize::MAX).min(ZEROS.len());
        take(&ZEROS[..piece])?;
        left -= piece as u64;
    }
    Ok(())
}

#[cfg(test)]
mod tests;
