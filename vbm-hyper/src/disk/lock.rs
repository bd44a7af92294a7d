//! Who has a disk, asked and told in QEMU's own way, so that QEMU, `qemu-img` and we keep out of each other's way.
//!
//! QEMU (`block/file-posix.c`) takes shared locks on single bytes of an image: byte 100 + n says "I use permission n", byte
//! 200 + n says "nobody else may have permission n". The locks belong to open files and not to processes (fcntl(2), "open file
//! description locks"), so two works of this process keep out of each other's way as well.
//!
//! ```text
//!   Still: 100+read used; 200+write, 200+resize refused to others      an export, a copy: many at a time
//!   Alone: all of 100.. and 200.. taken for ourselves                  resize, flatten, remove
//! ```
//!
//! The kernel does not tell whose such a lock is; `/proc/*/fdinfo` does, of the processes that may be looked at.

use crate::{Error, Result};
use nix::{
    fcntl::{FcntlArg, OFlag, fcntl},
    libc,
};
use std::{
    fs::{self, File, OpenOptions},
    io,
    os::unix::fs::{MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

const USED_AT: i64 = 100;
const REFUSED_AT: i64 = 200;
/// QEMU has four to six permissions, by version.
const PERMISSIONS: i64 = 8;
const READ: i64 = 0;
const WRITE: i64 = 1;
const RESIZE: i64 = 3;

/// How a disk is held.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Hold {
    /// Others may read it too.
    Still,
    /// Nobody else has it.
    Alone,
}

/// A disk that is held. Dropping it lets go.
#[derive(Debug)]
pub(crate) struct Held {
    pub(crate) file: File,
    pub(crate) path: PathBuf,
}

impl Drop for Held {
    fn drop(&mut self) {
        // A child between fork and exec may hold a copy of the file for a moment.
        if let Err(errno) = set(&self.file, libc::F_UNLCK, 0, 0) {
            tracing::debug!(%errno, "a lock is left to the end of its descriptor");
        }
    }
}

/// Opens a file that must not be a symbolic link.
///
/// # Errors
/// [`Error::Io`]; [`Error::BadDisk`] when it is no plain file.
pub(crate) fn open_plain(path: &Path, write: bool) -> Result<File> {
    let opened = OpenOptions::new()
        .read(true)
        .write(write)
        .custom_flags((OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK).bits())
        .open(path);
    let refuse = |why: &str| Error::BadDisk {
        format: "volume",
        why: format!("{} {why}", path.display()),
    };
    let file = opened.map_err(|error| match error.raw_os_error() {
        Some(libc::ELOOP) => refuse("is a symbolic link, which could lead out of its directory"),
        _ => Error::io("open", path)(error),
    })?;
    match file.metadata().map_err(Error::io("look at", path))?.is_file() {
        true => Ok(file),
        false => Err(refuse("is no plain file")),
    }
}

/// Takes hold of a disk.
///
/// # Errors
/// [`Error::DiskInUse`] with who has it; [`Error::Io`]; [`Error::BadDisk`].
pub(crate) fn take(path: &Path, hold: Hold) -> Result<Held> {
    let held = Held {
        file: open_plain(path, hold == Hold::Alone)?,
        path: path.to_owned(),
    };
    let taken = match hold {
        Hold::Alone => set(&held.file, libc::F_WRLCK, USED_AT, PERMISSIONS)
            .and_then(|()| set(&held.file, libc::F_WRLCK, REFUSED_AT, PERMISSIONS)),
        Hold::Still => set(&held.file, libc::F_RDLCK, USED_AT + READ, 1)
            .and_then(|()| set(&held.file, libc::F_RDLCK, REFUSED_AT + WRITE, 1))
            .and_then(|()| set(&held.file, libc::F_RDLCK, REFUSED_AT + RESIZE, 1))
            .and_then(|()| ask(&held.file, USED_AT + WRITE))
            .and_then(|()| ask(&held.file, USED_AT + RESIZE)),
    };
    match taken {
        Ok(()) => {}
        Err(error) if in_use(&error) => return Err(disk_in_use(&held)),
        Err(error) => return Err(Error::io("lock", path)(error)),
    }
    // VirtualBox takes no locks; it has its disks open while it uses them.
    let foreign = path.extension().is_some_and(|e| e == "vdi");
    match foreign.then(|| holder(&held.file, false)).flatten() {
        Some(holder) => Err(Error::DiskInUse {
            path: path.to_owned(),
            holder,
        }),
        None => Ok(held),
    }
}

fn disk_in_use(held: &Held) -> Error {
    Error::DiskInUse {
        path: held.path.clone(),
        holder: holder(&held.file, true).unwrap_or_else(|| {
            "another work of this process, or a process that cannot be looked at from here".into()
        }),
    }
}

fn in_use(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EAGAIN | libc::EACCES))
}

fn range(kind: i32, at: i64, bytes: i64) -> libc::flock {
    // A C structure has no other beginning than zeros; pid must be 0 for such locks.
    libc::flock {
        l_type: i16::try_from(kind).unwrap_or(0),
        l_whence: i16::try_from(libc::SEEK_SET).unwrap_or(0),
        l_start: at,
        l_len: bytes,
        l_pid: 0,
    }
}

/// Takes or lets go of bytes; a length of 0 reaches to the end.
fn set(file: &File, kind: i32, at: i64, bytes: i64) -> io::Result<()> {
    fcntl(file, FcntlArg::F_OFD_SETLK(&range(kind, at, bytes)))?;
    Ok(())
}

/// Whether nobody else has taken a byte, in whatever way.
fn ask(file: &File, at: i64) -> io::Result<()> {
    let mut found = range(libc::F_WRLCK, at, 1);
    fcntl(file, FcntlArg::F_OFD_GETLK(&mut found))?;
    match i32::from(found.l_type) {
        libc::F_UNLCK => Ok(()),
        _ => Err(io::Error::from_raw_os_error(libc::EAGAIN)),
    }
}

/// Which other process has a file open; `locked`: and has taken a lock on it.
fn holder(file: &File, locked: bool) -> Option<String> {
    let wanted = file.metadata().ok()?;
    let own = std::process::id();
    let number = |entry: fs::DirEntry| entry.file_name().to_str()?.parse::<u32>().ok();
    fs::read_dir("/proc")
        .ok()?
        .filter_map(|entry| number(entry.ok()?))
        .filter(|pid| *pid != own)
        .find(|pid| has_open(*pid, &wanted, locked))
        .map(name_of)
}

fn has_open(pid: u32, wanted: &fs::Metadata, locked: bool) -> bool {
    let Ok(open) = fs::read_dir(format!("/proc/{pid}/fd")) else {
        return false;
    };
    open.flatten().any(|entry| {
        let same = fs::metadata(entry.path())
            .is_ok_and(|found| (found.dev(), found.ino()) == (wanted.dev(), wanted.ino()));
        same && (!locked || {
            let about = Path::new("/proc").join(pid.to_string()).join("fdinfo");
            fs::read_to_string(about.join(entry.file_name())).is_ok_and(|text| text.contains("lock:"))
        })
    })
}

/// A process, and the VM that it runs where its command line says so.
fn name_of(pid: u32) -> String {
    let read = |what: &str| fs::read(format!("/proc/{pid}/{what}")).unwrap_or_default();
    let program = String::from_utf8_lossy(&read("comm")).trim().to_owned();
    let command = read("cmdline");
    let mut words = command.split(|byte| *byte == 0);
    let vm = words
        .find(|word| *word == b"-uuid")
        .and_then(|_| words.next())
        .map(|id| String::from_utf8_lossy(id).into_owned());
    match vm {
        Some(vm) => format!("VM {vm} (process {pid}, {program})"),
        None => format!("process {pid} ({program})"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn many_may_look_at_a_disk_that_is_still_and_one_may_change_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("disk.qcow2");
        fs::write(&path, b"x").unwrap();
        let (one, two) = (
            take(&path, Hold::Still).unwrap(),
            take(&path, Hold::Still).unwrap(),
        );
        assert!(matches!(take(&path, Hold::Alone), Err(Error::DiskInUse { .. })));
        drop((one, two));
        let alone = take(&path, Hold::Alone).unwrap();
        assert!(matches!(take(&path, Hold::Alone), Err(Error::DiskInUse { .. })));
        assert!(matches!(take(&path, Hold::Still), Err(Error::DiskInUse { .. })));
        drop(alone);
        take(&path, Hold::Alone).unwrap();
    }

    #[test]
    fn a_link_and_what_is_no_file_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("link.qcow2");
        std::os::unix::fs::symlink("/etc/hostname", &path).unwrap();
        let error = take(&path, Hold::Still).unwrap_err();
        assert!(matches!(error, Error::BadDisk { .. }), "{error}");
        let error = take(dir.path(), Hold::Still).unwrap_err();
        assert!(matches!(error, Error::BadDisk { .. }), "{error}");
    }
}
