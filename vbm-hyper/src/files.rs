//! Small files that are replaced whole.

use crate::{Error, Result, limits::MANIFEST_MAX_BYTES};
use serde::{Serialize, de::DeserializeOwned};
use std::{
    fs::{self, File},
    io::{self, Read, Write},
    path::Path,
};

/// Replaces a file by rename: a reader sees the old or the new one.
pub(crate) fn write<T: Serialize>(dir: &Path, name: &str, value: &T) -> Result<()> {
    crate::steps::step(name);
    let (path, temp) = (dir.join(name), dir.join(format!(".{name}.new")));
    let write = || {
        let mut file = File::create(&temp)?;
        file.write_all(&serde_json::to_vec_pretty(value)?)?;
        fs::rename(&temp, &path)
    };
    write().map_err(|error| {
        drop(fs::remove_file(&temp));
        Error::io("write", &path)(error)
    })
}

/// Reads a file; `None` when it is not there.
pub(crate) fn read<T: DeserializeOwned>(dir: &Path, name: &str) -> Result<Option<T>> {
    let path = dir.join(name);
    let file = match File::open(&path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(Error::io("open", &path)(error)),
    };
    let mut text = Vec::new();
    file.take(MANIFEST_MAX_BYTES)
        .read_to_end(&mut text)
        .map_err(Error::io("read", &path))?;
    serde_json::from_slice(&text)
        .map(Some)
        .map_err(|error| Error::Corrupt {
            path,
            why: error.to_string(),
        })
}

pub(crate) fn remove_if_there(path: &Path) -> Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(Error::io("remove", path)(error)),
        _ => Ok(()),
    }
}

/// The id of this boot of the host.
pub(crate) fn boot_id() -> Result<String> {
    let path = "/proc/sys/kernel/random/boot_id";
    let text = fs::read_to_string(path).map_err(Error::io("read", path))?;
    Ok(text.trim().to_owned())
}
