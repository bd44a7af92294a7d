//! The snapshots inside a qcow2 file: read, never written. After QEMU's `docs/interop/qcow2.txt`, "Snapshots".

use super::qcow2::{HEADER_BYTES, Header, MAGIC};
use crate::{
    Error, Result,
    limits::{DISK_SNAPSHOTS_MAX, SNAPSHOT_ENTRY_MAX_BYTES},
};
use std::{fs::File, os::unix::fs::FileExt, path::Path};

const ENTRY_FIXED_BYTES: usize = 40;

/// The names of the snapshots in a disk, oldest first. The disk may be in use.
///
/// # Errors
/// [`Error::Io`]; [`Error::BadDisk`] when it is no qcow2 file; [`Error::Corrupt`] when its table makes no sense.
pub(crate) fn names(disk: &Path) -> Result<Vec<String>> {
    let file = File::open(disk).map_err(Error::io("open", disk))?;
    let file_bytes = file.metadata().map_err(Error::io("read", disk))?.len();
    let mut head = [0; HEADER_BYTES];
    match file.read_exact_at(&mut head, 0) {
        Ok(()) if head.starts_with(&MAGIC) => {}
        Err(error) if error.kind() != std::io::ErrorKind::UnexpectedEof => {
            return Err(Error::io("read", disk)(error));
        }
        _ => {
            return Err(Error::BadDisk {
                format: "qcow2",
                why: format!(
                    "{} is no qcow2 file, and only those hold snapshots",
                    disk.display()
                ),
            });
        }
    }
    let corrupt = |why: String| Error::Corrupt {
        path: disk.to_owned(),
        why,
    };
    Header::parse(&head, file_bytes).map_err(corrupt)?;
    let read = |at: u64, bytes: usize| {
        let mut piece = vec![0; bytes];
        file.read_exact_at(&mut piece, at)
            .map_err(|error| corrupt(format!("its table of snapshots cannot be read: {error}")))?;
        Ok(piece)
    };
    table(&head, read).map_err(|error| match error {
        Fault::Read(error) => error,
        Fault::Table(why) => corrupt(why),
    })
}

enum Fault {
    Read(Error),
    Table(String),
}

/// Walks the table with a reader of `(place, bytes)`.
fn table(head: &[u8], read: impl Fn(u64, usize) -> Result<Vec<u8>>) -> Result<Vec<String>, Fault> {
    let (count, mut at) = (number(head, 60, 4), number(head, 64, 8));
    if count > DISK_SNAPSHOTS_MAX {
        return Err(Fault::Table(format!("it says that it has {count} snapshots")));
    }
    let mut names = Vec::new();
    for _ in 0..count {
        let fixed = read(at, ENTRY_FIXED_BYTES).map_err(Fault::Read)?;
        let (id_bytes, name_bytes) = (number(&fixed, 12, 2), number(&fixed, 14, 2));
        let extra_bytes = number(&fixed, 36, 4);
        let rest_bytes = extra_bytes + id_bytes + name_bytes;
        if rest_bytes > SNAPSHOT_ENTRY_MAX_BYTES {
            return Err(Fault::Table(
                "an entry of its table of snapshots is too large".into(),
            ));
        }
        let fixed_bytes = ENTRY_FIXED_BYTES as u64;
        let name_at = at + fixed_bytes + extra_bytes + id_bytes;
        let name = read(name_at, usize::try_from(name_bytes).unwrap_or_default()).map_err(Fault::Read)?;
        names.push(String::from_utf8_lossy(&name).into_owned());
        at = (at + fixed_bytes + rest_bytes).next_multiple_of(8);
    }
    Ok(names)
}

/// A big-endian number of up to 8 bytes; 0 beyond the end.
fn number(bytes: &[u8], at: usize, len: usize) -> u64 {
    let piece = bytes.get(at..at + len).unwrap_or_default();
    piece
        .iter()
        .fold(0, |number, byte| (number << 8) | u64::from(*byte))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn entry(id: &str, name: &str, extra: usize) -> Vec<u8> {
        let mut entry = vec![0; ENTRY_FIXED_BYTES];
        entry[12..14].copy_from_slice(&u16::try_from(id.len()).unwrap().to_be_bytes());
        entry[14..16].copy_from_slice(&u16::try_from(name.len()).unwrap().to_be_bytes());
        entry[36..40].copy_from_slice(&u32::try_from(extra).unwrap().to_be_bytes());
        entry.extend(vec![7; extra]);
        entry.extend([id.as_bytes(), name.as_bytes()].concat());
        entry.resize(entry.len().next_multiple_of(8), 0);
        entry
    }

    fn walk(count: u32, entries: &[u8]) -> Option<Vec<String>> {
        let mut head = vec![0; HEADER_BYTES];
        head[60..64].copy_from_slice(&count.to_be_bytes());
        let read = |at: u64, len: usize| {
            let at = usize::try_from(at).unwrap_or(usize::MAX);
            let piece = at.checked_add(len).and_then(|end| entries.get(at..end));
            piece
                .map(<[u8]>::to_vec)
                .ok_or(Error::ShutDown("the end of the table"))
        };
        table(&head, read).ok()
    }

    #[test]
    fn names_are_found_whatever_stands_between_them() {
        let entries = [
            entry("1", "first", 16),
            entry("22", "", 0),
            entry("3", "third one", 24),
        ]
        .concat();
        assert_eq!(walk(3, &entries).unwrap(), ["first", "", "third one"]);
        assert_eq!(walk(0, &entries).unwrap(), [""; 0]);
        assert!(walk(4, &entries).is_none(), "an entry beyond the end");
        assert!(walk(u32::MAX, &entries).is_none(), "too many");
    }

    proptest! {
        #[test]
        fn garbage_never_panics(count: u32, entries in proptest::collection::vec(any::<u8>(), 0..300)) {
            walk(count % 8, &entries);
        }
    }
}
