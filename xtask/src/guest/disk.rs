//! The BIOS-bootable disk: an MBR, one FAT16 partition with syslinux, kernel and initramfs, stored as qcow2.
//!
//! ```text
//!  sector 0        1..2047      2048 ...
//!  MBR (syslinux)  free         FAT16: ldlinux.sys, vmlinuz, initrd.img, syslinux.cfg
//! ```
//!
//! Nothing is mounted: syslinux and mtools write into the FAT image as a file, so no root and no loop device is
//! needed. The date is fixed by `SOURCE_DATE_EPOCH`, the volume id by `--invariant`.

use std::path::Path;
use std::process::Command;
use std::time::{Duration, SystemTime};

use crate::fault::{Done, Fault};
use crate::run;

/// The first date FAT can hold: 1980-01-01 00:00 UTC.
const EPOCH_S: u64 = 315_532_800;
const SECTOR_BYTES: usize = 512;
const PARTITION_SECTOR: u32 = 2048;
/// FAT16 with 4 KiB clusters needs 4,085 of them.
const MIN_FAT_MIB: u64 = 18;
/// Room for syslinux, both FATs and the root directory.
const OVERHEAD_MIB: u64 = 2;
const MIB: u64 = 1 << 20;
const MBR_CODE_BYTES: usize = 440;
const FAT16_LBA: u8 = 0x0e;

/// Makes `guest.qcow2` in `dir` from `vmlinuz` and `initrd.cpio` there; `root` holds the unpacked tools.
pub(super) fn build(root: &Path, dir: &Path, cmdline: &str) -> Done {
    let fat = dir.join("fat.img");
    let raw = dir.join("disk.raw");
    make_fat(root, dir, &fat, cmdline)?;
    let code_path = root.join("usr/lib/syslinux/mbr/mbr.bin");
    let code = read(&code_path)?;
    let fat_bytes = read(&fat)?;
    let mut disk = mbr(&code, fat_bytes.len() / SECTOR_BYTES)?;
    disk.resize(PARTITION_SECTOR as usize * SECTOR_BYTES, 0);
    disk.extend_from_slice(&fat_bytes);
    std::fs::write(&raw, disk).map_err(|error| Fault::file("write", &raw, &error))?;
    let mut convert = run::command("qemu-img");
    convert.args([
        "convert",
        "-f",
        "raw",
        "-O",
        "qcow2",
        "-o",
        "compat=1.1,cluster_size=65536",
    ]);
    run::capture(convert.arg(&raw).arg(dir.join("guest.qcow2")))?;
    for scratch in [&fat, &raw] {
        std::fs::remove_file(scratch).map_err(|error| Fault::file("remove", scratch, &error))?;
    }
    Ok(())
}

fn make_fat(root: &Path, dir: &Path, fat: &Path, cmdline: &str) -> Done {
    let config = dir.join("syslinux.cfg");
    let text = format!(
        "DEFAULT vbm\nPROMPT 0\nTIMEOUT 1\nLABEL vbm\n  LINUX vmlinuz\n  INITRD initrd.img\n  APPEND {cmdline}\n"
    );
    std::fs::write(&config, text).map_err(|error| Fault::file("write", &config, &error))?;
    let files = [
        (dir.join("vmlinuz"), "::vmlinuz"),
        (dir.join("initrd.cpio"), "::initrd.img"),
        (config.clone(), "::syslinux.cfg"),
    ];
    let mut bytes = 0;
    for (path, _) in &files {
        bytes += date(path)?;
    }
    let size_mib = (bytes.div_ceil(MIB) + OVERHEAD_MIB).max(MIN_FAT_MIB);
    let image = std::fs::File::create(fat).map_err(|error| Fault::file("create", fat, &error))?;
    image
        .set_len(size_mib * MIB)
        .map_err(|error| Fault::file("size", fat, &error))?;

    let hidden = PARTITION_SECTOR.to_string();
    let mut mkfs = tool(root, "sbin/mkfs.fat");
    mkfs.args([
        "-F",
        "16",
        "-s",
        "8",
        "-r",
        "64",
        "-h",
        &hidden,
        "-n",
        "VBMGUEST",
        "--invariant",
    ]);
    run::capture(mkfs.arg(fat))?;
    run::capture(tool(root, "usr/bin/syslinux").arg("-i").arg(fat))?;
    for (path, name) in &files {
        run::capture(
            tool(root, "usr/bin/mcopy")
                .arg("-m")
                .arg("-i")
                .arg(fat)
                .arg(path)
                .arg(name),
        )?;
    }
    std::fs::remove_file(&config).map_err(|error| Fault::file("remove", &config, &error))
}

/// Gives the file the fixed date (`mcopy -m` keeps it) and returns its size.
fn date(path: &Path) -> Done<u64> {
    let set = || {
        let file = std::fs::File::options().write(true).open(path)?;
        file.set_modified(SystemTime::UNIX_EPOCH + Duration::from_secs(EPOCH_S))?;
        Ok(file.metadata()?.len())
    };
    set().map_err(|error: std::io::Error| Fault::file("date", path, &error))
}

/// A program of the unpacked packages; syslinux calls mtools by name, so they lead the path.
fn tool(root: &Path, program: &str) -> Command {
    let own = ["usr/bin", "sbin", "usr/sbin"].map(|dir| root.join(dir));
    let old = std::env::var_os("PATH").unwrap_or_default();
    let path = std::env::join_paths(own.into_iter().chain(std::env::split_paths(&old)));
    let mut command = Command::new(root.join(program));
    command.env("PATH", path.unwrap_or(old));
    command
        .env("SOURCE_DATE_EPOCH", EPOCH_S.to_string())
        .env("TZ", "UTC")
        .env("LC_ALL", "C");
    command.env("MTOOLSRC", "/dev/null").env("MTOOLS_SKIP_CHECK", "1");
    command
}

/// The first sector: syslinux's code, a fixed disk signature, one active partition.
fn mbr(code: &[u8], partition_sectors: usize) -> Done<Vec<u8>> {
    let too_large = |_| {
        Fault::new(
            "the guest's disk is too large",
            "its partition has over 2^32 sectors",
            "report this",
        )
    };
    let sectors = u32::try_from(partition_sectors).map_err(too_large)?;
    let mut sector = Vec::with_capacity(SECTOR_BYTES);
    sector.extend_from_slice(code.get(..MBR_CODE_BYTES).unwrap_or(code));
    sector.resize(MBR_CODE_BYTES, 0);
    sector.extend_from_slice(b"VBM1\0\0");
    sector.extend_from_slice(&[0x80, 0xfe, 0xff, 0xff, FAT16_LBA, 0xfe, 0xff, 0xff]);
    sector.extend_from_slice(&PARTITION_SECTOR.to_le_bytes());
    sector.extend_from_slice(&sectors.to_le_bytes());
    sector.resize(SECTOR_BYTES - 2, 0);
    sector.extend_from_slice(&[0x55, 0xaa]);
    Ok(sector)
}

fn read(path: &Path) -> Done<Vec<u8>> {
    std::fs::read(path).map_err(|error| Fault::file("read", path, &error))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_sector_is_bootable_and_names_one_active_partition() {
        let sector = mbr(&[0x90; MBR_CODE_BYTES], 40_960).unwrap();
        assert_eq!(sector.len(), SECTOR_BYTES);
        assert_eq!(&sector[510..], [0x55, 0xaa]);
        assert_eq!(sector[446], 0x80);
        assert_eq!(sector[450], FAT16_LBA);
        assert_eq!(
            u32::from_le_bytes(sector[454..458].try_into().unwrap()),
            PARTITION_SECTOR
        );
        assert_eq!(u32::from_le_bytes(sector[458..462].try_into().unwrap()), 40_960);
    }
}
