//! UEFI: code that all VMs read, variables that each has of its own.
//!
//! The variables lie in the VM's state directory: what the guest writes there (its boot entries) stays through restarts, and goes
//! with the VM. They fit code of one size only, so code is chosen by what a VM has.

use super::record::VmDir;
use crate::{Error, Firmware, Result};
use std::{
    fs, io,
    path::{Path, PathBuf},
};

/// The Debian package that has the firmware.
const PACKAGE: &str = "ovmf";
/// Where distributions keep code and an empty store of variables; without Secure Boot, which wants other hardware.
const KNOWN: &[(&str, &str)] = &[
    (
        "/usr/share/OVMF/OVMF_CODE_4M.fd",
        "/usr/share/OVMF/OVMF_VARS_4M.fd",
    ),
    ("/usr/share/OVMF/OVMF_CODE.fd", "/usr/share/OVMF/OVMF_VARS.fd"),
    (
        "/usr/share/edk2/ovmf/OVMF_CODE.fd",
        "/usr/share/edk2/ovmf/OVMF_VARS.fd",
    ),
];
const VARIABLES: &str = "uefi-vars.fd";

/// The files of one VM's firmware.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Uefi {
    /// Read only.
    pub(super) code: PathBuf,
    pub(super) variables: PathBuf,
}

/// Where the firmware is looked for.
#[derive(Clone, Debug)]
pub(super) struct Places(Vec<(PathBuf, PathBuf)>);

impl Default for Places {
    fn default() -> Self {
        let known = KNOWN.iter().map(|(code, vars)| (code.into(), vars.into()));
        Self(known.collect())
    }
}

impl Places {
    /// In one folder only.
    pub(super) fn below(dir: &Path) -> Self {
        Self(vec![(dir.join("OVMF_CODE_4M.fd"), dir.join("OVMF_VARS_4M.fd"))])
    }

    /// Whether a VM with that firmware could be started here.
    pub(super) fn check(&self, firmware: Firmware) -> Result<()> {
        match firmware {
            Firmware::Uefi if self.there().next().is_none() => Err(missing()),
            _ => Ok(()),
        }
    }

    fn there(&self) -> impl Iterator<Item = &(PathBuf, PathBuf)> {
        self.0
            .iter()
            .filter(|(code, variables)| code.is_file() && variables.is_file())
    }

    /// The firmware of a VM, with a fresh store of variables if it has none yet.
    pub(super) fn of(&self, firmware: Firmware, keep: &VmDir) -> Result<Option<Uefi>> {
        if firmware != Firmware::Uefi {
            return Ok(None);
        }
        let variables = keep.file(VARIABLES);
        let has = match fs::metadata(&variables) {
            Ok(metadata) => Some(metadata.len()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => return Err(Error::io("read", &variables)(error)),
        };
        let fits = |empty: &Path| has.is_none() || fs::metadata(empty).is_ok_and(|m| Some(m.len()) == has);
        let Some((code, empty)) = self.there().find(|(_, empty)| fits(empty)) else {
            return Err(match has {
                Some(bytes) if self.there().next().is_some() => Error::Corrupt {
                    path: variables,
                    why: format!(
                        "it has {bytes} bytes, and no firmware of this host has variables of that size"
                    ),
                },
                _ => missing(),
            });
        };
        if has.is_none() {
            keep.create()?;
            let new = keep.file(".uefi-vars.fd.new");
            let made = fs::copy(empty, &new).and_then(|_| fs::rename(&new, &variables));
            made.map_err(Error::io("write", &variables))?;
        }
        Ok(Some(Uefi {
            code: code.clone(),
            variables,
        }))
    }
}

fn missing() -> Error {
    Error::MissingProgram {
        program: KNOWN[0].0.to_owned(),
        package: PACKAGE,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use uuid::Uuid;
    use vbm_core::{ErrorKind, VmId};

    #[test]
    fn variables_are_made_once_and_kept_and_fit_the_code() {
        let root = tempfile::tempdir().unwrap();
        let places = Places::below(root.path());
        let keep = VmDir::new(root.path(), VmId::from_uuid(Uuid::from_u128(1)));
        assert_eq!(places.of(Firmware::Bios, &keep).unwrap(), None);
        let error = places.of(Firmware::Uefi, &keep).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::MissingDependency);
        assert!(vbm_core::Error::from(error).fix().contains(" ovmf`"));

        fs::write(root.path().join("OVMF_CODE_4M.fd"), b"code").unwrap();
        fs::write(root.path().join("OVMF_VARS_4M.fd"), b"empty").unwrap();
        let uefi = places.of(Firmware::Uefi, &keep).unwrap().unwrap();
        assert_eq!(fs::read(&uefi.variables).unwrap(), b"empty");
        fs::write(&uefi.variables, b"boot1").unwrap();
        places.of(Firmware::Uefi, &keep).unwrap();
        assert_eq!(fs::read(&uefi.variables).unwrap(), b"boot1", "they are the VM's");
        fs::write(&uefi.variables, b"of another size").unwrap();
        let error = places.of(Firmware::Uefi, &keep).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Corrupt);
        keep.remove().unwrap();
        assert!(!uefi.variables.exists(), "they go with the VM");
    }
}
