//! The directory that `cargo xtask guest` makes: `guest.json` and the files that it names.

use super::image::{Parts, Source};
use crate::client::cannot_read;
use serde::Deserialize;
use std::{collections::BTreeMap, path::Path};
use vbm_core::{Digest, Error, ErrorKind};
use vbm_hyper::ImageFormat;

const MANIFEST: &str = "guest.json";
/// The form of the manifest that is understood.
const FORMAT: u32 = 1;

/// What is needed of the manifest.
#[derive(Debug, Deserialize)]
struct Manifest {
    format: u32,
    kernel: String,
    initrd: String,
    disk: String,
    cmdline: String,
    #[serde(default)]
    sha256: BTreeMap<String, Digest>,
}

/// Reads what an image is made of.
pub(super) async fn read(dir: &Path) -> Result<Parts, Error> {
    let path = dir.join(MANIFEST);
    let text = tokio::fs::read_to_string(&path)
        .await
        .map_err(|e| cannot_read(&path, &e))?;
    parse(dir, &text).map_err(|why| {
        Error::new(
            ErrorKind::InvalidInput,
            format!("{} is not the manifest of a guest", path.display()),
            why,
            "make the guest with `cargo xtask guest`, and name its directory",
        )
    })
}

fn parse(dir: &Path, text: &str) -> Result<Parts, String> {
    let manifest: Manifest = serde_json::from_str(text).map_err(|e| e.to_string())?;
    if manifest.format != FORMAT {
        return Err(format!("its format is {}, and not {FORMAT}", manifest.format));
    }
    let source = |name: &str| {
        // Names of the manifest stay in its directory.
        if name.is_empty() || name.contains('/') || name == ".." {
            return Err(format!("'{name}' is not the name of a file"));
        }
        Ok(Source {
            path: dir.join(name),
            sha256: manifest.sha256.get(name).copied(),
        })
    };
    Ok(Parts {
        disk: source(&manifest.disk)?,
        format: Some(ImageFormat::Qcow2),
        kernel: Some((
            source(&manifest.kernel)?,
            source(&manifest.initrd)?,
            manifest.cmdline.clone(),
        )),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = r#"{"format":1,"key":"k","kernel":"vmlinuz","initrd":"initrd.cpio.gz","disk":"guest.qcow2",
        "cmdline":"console=ttyS0","memory_mib_min":64,"ready":"vbm-guest ready",
        "sha256":{"vmlinuz":"0707070707070707070707070707070707070707070707070707070707070707"},"packages":{}}"#;

    #[test]
    fn a_guest_names_its_files_and_their_content() {
        let parts = parse(Path::new("/g"), GOOD).unwrap();
        let (kernel, initrd, cmdline) = parts.kernel.unwrap();
        assert_eq!(kernel.path, Path::new("/g/vmlinuz"));
        assert_eq!(kernel.sha256, Some(Digest::new([7; 32])));
        assert_eq!((initrd.sha256, cmdline.as_str()), (None, "console=ttyS0"));
        assert_eq!(parts.disk.path, Path::new("/g/guest.qcow2"));
    }

    #[test]
    fn a_manifest_that_leads_elsewhere_or_is_of_another_form_is_refused() {
        for (from, to) in [
            ("vmlinuz\",", "../vmlinuz\","),
            ("\"format\":1", "\"format\":2"),
            ("{\"format\"", "{{\"format\""),
        ] {
            assert!(parse(Path::new("/g"), &GOOD.replace(from, to)).is_err(), "{to}");
        }
    }

    #[tokio::test]
    async fn a_directory_without_a_manifest_is_not_found() {
        let place = tempfile::tempdir().unwrap();
        assert_eq!(read(place.path()).await.unwrap_err().kind(), ErrorKind::NotFound);
    }
}
