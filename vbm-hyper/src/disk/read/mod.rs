//! The content of a disk, whatever its format, and of the chain of files that it may be.
//!
//! ```text
//!   Stack: top first      qcow2   [ data | . | zero | .    ]     . = nothing is said here: what is below speaks
//!                         qcow2   [ .    | . | data | data ]
//!                         raw     [ data | data | data     ]     beyond its end: zeros
//! ```
//!
//! What is read is hostile: every table lies inside its file and has at most [`TABLE_MAX_BYTES`] before room is made for it, and
//! nothing here opens a file by a name that it read.

mod qcow2;
mod vdi;
mod vmdk;

use super::format::ImageFormat;
use crate::{Error, Result, limits::DISK_TABLE_MAX_BYTES};
use miniz_oxide::inflate::{
    TINFLStatus,
    core::{DecompressorOxide, decompress, inflate_flags::TINFL_FLAG_USING_NON_WRAPPING_OUTPUT_BUF},
};
use std::{fs::File, io, os::unix::fs::FileExt};

/// Where the bytes of a file come from.
pub(crate) trait Source: Send {
    /// How many there are.
    fn bytes(&self) -> u64;
    /// Fills `into` with those from `at` on.
    fn fill(&self, at: u64, into: &mut [u8]) -> io::Result<()>;
    /// Whether anything is stored at `at`, which is not beyond the end, and for how many bytes that holds.
    fn run(&self, at: u64) -> (bool, u64) {
        (true, self.bytes().saturating_sub(at))
    }
}

/// An open file.
pub(crate) struct FileSource {
    file: File,
    bytes: u64,
}

impl FileSource {
    pub(crate) fn new(file: File) -> io::Result<Self> {
        let bytes = file.metadata()?.len();
        Ok(Self { file, bytes })
    }
}

impl Source for FileSource {
    fn bytes(&self) -> u64 {
        self.bytes
    }

    fn fill(&self, at: u64, into: &mut [u8]) -> io::Result<()> {
        self.file.read_exact_at(into, at)
    }

    fn run(&self, at: u64) -> (bool, u64) {
        use rustix::fs::{SeekFrom, seek};
        let rest = self.bytes.saturating_sub(at);
        // A file system that knows no holes says that all is data.
        match seek(&self.file, SeekFrom::Data(at)) {
            Ok(data) if data > at => (false, (data - at).min(rest)),
            Ok(_) => match seek(&self.file, SeekFrom::Hole(at)) {
                Ok(hole) if hole > at => (true, (hole - at).min(rest)),
                _ => (true, rest),
            },
            Err(rustix::io::Errno::NXIO) => (false, rest),
            Err(_) => (true, rest),
        }
    }
}

/// What a layer says about a place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    /// Nothing: what is below speaks.
    Below,
    /// It reads as zeros.
    Zero,
    /// It has content.
    Data,
}

/// One file of a disk.
pub(crate) trait Layer: Send {
    /// The size that a guest sees, in bytes.
    fn virtual_bytes(&self) -> u64;
    /// What is at `at`, and for how many bytes that holds: at least 1.
    fn look(&mut self, at: u64) -> Result<(Place, u64), String>;
    /// Fills `into` from `at` on; [`Layer::look`] said that all of it is data.
    fn read(&mut self, at: u64, into: &mut [u8]) -> Result<(), String>;
}

/// Understands a file that is a layer. A name of a file below it is not followed.
///
/// # Errors
/// Why it cannot be read here, in words for people.
pub(crate) fn layer(source: Box<dyn Source>, format: ImageFormat) -> Result<Box<dyn Layer>, String> {
    Ok(match format {
        ImageFormat::Raw => Box::new(Raw(source)),
        ImageFormat::Qcow2 => Box::new(qcow2::Qcow2::open(source)?),
        ImageFormat::Vdi => Box::new(vdi::Vdi::open(source)?),
        ImageFormat::Vmdk => Box::new(vmdk::Vmdk::open(source)?),
    })
}

/// Understands a file that is a whole disk: it rests on no other.
///
/// # Errors
/// As [`layer`].
pub(crate) fn whole(source: Box<dyn Source>, format: ImageFormat) -> Result<Box<dyn Layer>, String> {
    if format == ImageFormat::Qcow2 {
        return Ok(Box::new(qcow2::Qcow2::open_whole(source)?));
    }
    layer(source, format)
}

struct Raw(Box<dyn Source>);

impl Layer for Raw {
    fn virtual_bytes(&self) -> u64 {
        self.0.bytes()
    }

    fn look(&mut self, at: u64) -> Result<(Place, u64), String> {
        let (data, bytes) = self.0.run(at);
        let place = if data { Place::Data } else { Place::Zero };
        Ok((place, bytes.max(1)))
    }

    fn read(&mut self, at: u64, into: &mut [u8]) -> Result<(), String> {
        self.0.fill(at, into).map_err(|error| error.to_string())
    }
}

/// A disk: its layers, the top one first.
pub(crate) struct Stack {
    layers: Vec<Box<dyn Layer>>,
    name: &'static str,
}

impl Stack {
    /// `name` is that of the format, for errors. There is at least one layer.
    pub(crate) fn new(layers: Vec<Box<dyn Layer>>, name: &'static str) -> Self {
        Self { layers, name }
    }

    pub(crate) fn virtual_bytes(&self) -> u64 {
        self.layers.first().map_or(0, |top| top.virtual_bytes())
    }

    pub(crate) fn layers(&self) -> usize {
        self.layers.len()
    }

    /// What the upper layers say about a place, and for how many bytes that holds.
    pub(crate) fn look(&mut self, at: u64, upper: usize) -> Result<(Place, u64)> {
        self.find(at, upper).map(|(place, _, bytes)| (place, bytes))
    }

    fn find(&mut self, at: u64, upper: usize) -> Result<(Place, usize, u64)> {
        let mut run = match self.virtual_bytes().checked_sub(at) {
            None | Some(0) => return Ok((Place::Below, 0, u64::MAX - at)),
            Some(rest) => rest,
        };
        for (number, layer) in self.layers.iter_mut().enumerate().take(upper) {
            // A layer that is shorter than what stands on it reads as zeros beyond its end.
            let Some(rest) = layer.virtual_bytes().checked_sub(at).filter(|rest| *rest > 0) else {
                return Ok((Place::Zero, number, run));
            };
            let (place, bytes) = layer.look(at).map_err(|why| bad(self.name, why))?;
            run = run.min(bytes).min(rest).max(1);
            if place != Place::Below {
                return Ok((place, number, run));
            }
        }
        Ok((Place::Below, 0, run))
    }

    /// Fills `into` with what a guest sees from `at` on; zeros beyond the end.
    pub(crate) fn read(&mut self, at: u64, into: &mut [u8]) -> Result<()> {
        let mut done = 0;
        while done < into.len() {
            let now = at + done as u64;
            let (place, number, run) = self.find(now, usize::MAX)?;
            let bytes = usize::try_from(run).unwrap_or(usize::MAX).min(into.len() - done);
            let piece = &mut into[done..done + bytes];
            match place {
                Place::Data => self.layers[number]
                    .read(now, piece)
                    .map_err(|why| bad(self.name, why))?,
                Place::Below | Place::Zero => piece.fill(0),
            }
            done += bytes;
        }
        Ok(())
    }
}

pub(crate) fn bad(format: &'static str, why: String) -> Error {
    Error::BadDisk { format, why }
}

/// Reads a table, once it is known that it lies inside the file and is not too large to be kept.
fn table(source: &dyn Source, at: u64, bytes: u64, what: &str) -> Result<Vec<u8>, String> {
    if bytes > DISK_TABLE_MAX_BYTES {
        return Err(format!("{what} is larger than 32 MiB"));
    }
    if at.checked_add(bytes).is_none_or(|end| end > source.bytes()) {
        return Err(format!(
            "{what} lies outside the file: it was cut short or damaged"
        ));
    }
    let mut table = vec![0; usize::try_from(bytes).unwrap_or(0)];
    source.fill(at, &mut table).map_err(|error| error.to_string())?;
    Ok(table)
}

/// Reads content; the last piece of a file may be shorter than its cluster, and zeros follow it.
fn content(source: &dyn Source, at: u64, into: &mut [u8]) -> Result<(), String> {
    let there = source.bytes().saturating_sub(at);
    if there == 0 {
        return Err("content of it lies outside the file: it was cut short or damaged".into());
    }
    let there = usize::try_from(there).unwrap_or(usize::MAX).min(into.len());
    into[there..].fill(0);
    source
        .fill(at, &mut into[..there])
        .map_err(|error| error.to_string())
}

/// Unpacks deflated content into `out`. Returns how many bytes there are.
fn unpack(packed: &[u8], out: &mut [u8], flags: u32) -> Result<usize, String> {
    let flags = TINFL_FLAG_USING_NON_WRAPPING_OUTPUT_BUF | flags;
    let (status, _, bytes) = decompress(&mut DecompressorOxide::new(), packed, out, 0, flags);
    match status {
        TINFLStatus::Done | TINFLStatus::HasMoreOutput => Ok(bytes),
        _ => Err("compressed content of it is damaged".into()),
    }
}

/// For tests: a file in memory.
#[cfg(test)]
impl Source for Vec<u8> {
    fn bytes(&self) -> u64 {
        self.len() as u64
    }

    fn fill(&self, at: u64, into: &mut [u8]) -> io::Result<()> {
        let at = usize::try_from(at).unwrap_or(usize::MAX);
        let piece = at.checked_add(into.len()).and_then(|end| self.get(at..end));
        into.copy_from_slice(piece.ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }
}
