//! The same QEMU by hand: the command line of a VM that our driver started, with what was inherited from the driver
//! replaced by what one would type. So the peer stays the same QEMU whatever the driver learns.

use crate::harness::fault::{Fault, Outcome};
use std::{
    fs,
    path::{Path, PathBuf},
};

/// What is different from ours.
#[derive(Clone, Debug)]
pub(crate) struct ByHand {
    /// Sockets and logs go here.
    pub(crate) dir: PathBuf,
    /// Its disk.
    pub(crate) disk: PathBuf,
    /// Its name for itself.
    pub(crate) uuid: uuid::Uuid,
    /// The tap of its NIC, which it opens itself.
    pub(crate) tap: Option<String>,
    /// Whether it waits for `cont`, as ours does.
    pub(crate) halted: bool,
}

/// The command line of the process that runs the VM with this id.
pub(crate) fn command_line(vm: &str) -> Outcome<(u32, Vec<String>)> {
    for entry in fs::read_dir("/proc")? {
        let entry = entry?;
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else {
            continue;
        };
        // A process may end while we look.
        let Ok(bytes) = fs::read(entry.path().join("cmdline")) else {
            continue;
        };
        let words: Vec<String> = bytes
            .split(|byte| *byte == 0)
            .map(|word| String::from_utf8_lossy(word).into_owned())
            .collect();
        if words.windows(2).any(|pair| pair[0] == "-uuid" && pair[1] == vm) {
            return Ok((pid, words.into_iter().filter(|word| !word.is_empty()).collect()));
        }
    }
    Err(Fault::new(format!("no process runs the VM {vm}")))
}

/// What one would type: program first. The monitor speaks on standard input and output.
///
/// # Errors
/// When the command line has not the parts that are replaced: then the driver has changed, and this must follow.
pub(crate) fn by_hand(ours: &[String], with: &ByHand) -> Outcome<Vec<String>> {
    let monitor = option(ours, "-mon")
        .and_then(|value| field(value, "chardev"))
        .ok_or_else(|| Fault::new("our QEMU has no monitor"))?
        .to_owned();
    let mut typed = Vec::with_capacity(ours.len());
    let mut words = ours.iter();
    let mut replaced_disk = false;
    while let Some(word) = words.next() {
        if word == "-S" && !with.halted {
            continue;
        }
        typed.push(word.clone());
        if !["-chardev", "-netdev", "-uuid", "-blockdev"].contains(&word.as_str()) {
            continue;
        }
        let value = words
            .next()
            .ok_or_else(|| Fault::new(format!("{word} of our QEMU has no value")))?;
        typed.push(match word.as_str() {
            "-chardev" => chardev(value, &monitor, &with.dir)?,
            "-netdev" => netdev(value, with.tap.as_deref())?,
            "-blockdev" => {
                replaced_disk = true;
                blockdev(value, &with.disk)?
            }
            _ => with.uuid.to_string(),
        });
    }
    match typed
        .iter()
        .find(|word| word.contains(",fd=") || word.contains("fdset"))
    {
        Some(word) => Err(Fault::new(format!(
            "our QEMU inherits something that is not known here: {word}"
        ))),
        None if !replaced_disk => Err(Fault::new("our QEMU has no disk")),
        None => Ok(typed),
    }
}

fn option<'a>(words: &'a [String], name: &str) -> Option<&'a str> {
    words
        .windows(2)
        .find(|pair| pair[0] == name)
        .map(|pair| pair[1].as_str())
}

/// The value of `name=value` among fields with commas between them.
fn field<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    text.split(',')
        .find_map(|part| part.strip_prefix(name)?.strip_prefix('='))
}

fn chardev(value: &str, monitor: &str, dir: &Path) -> Outcome<String> {
    let id = field(value, "id").ok_or_else(|| Fault::new(format!("-chardev {value} has no id")))?;
    if id == monitor {
        return Ok(format!("stdio,id={id},signal=off"));
    }
    let parts = value.split(',').map(|part| match part.split_once('=') {
        Some(("fd", _)) => format!("path={}", dir.join(id).display()),
        Some(("logfile", _)) => format!("logfile={}", dir.join(format!("{id}.log")).display()),
        _ => part.to_owned(),
    });
    Ok(parts.collect::<Vec<_>>().join(","))
}

fn netdev(value: &str, tap: Option<&str>) -> Outcome<String> {
    let tap = tap.ok_or_else(|| Fault::new("our QEMU has a NIC, and there is no tap for the one by hand"))?;
    let parts = value.split(',').map(|part| match part.split_once('=') {
        Some(("fd", _)) => format!("ifname={tap},script=no,downscript=no"),
        _ => part.to_owned(),
    });
    Ok(parts.collect::<Vec<_>>().join(","))
}

fn blockdev(value: &str, disk: &Path) -> Outcome<String> {
    let mut json: serde_json::Value = serde_json::from_str(value)?;
    let name = json
        .pointer_mut("/file/filename")
        .ok_or_else(|| Fault::new("our QEMU's disk is no file"))?;
    *name = disk
        .to_str()
        .ok_or_else(|| Fault::new("a path that is not UTF-8"))?
        .into();
    Ok(json.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    const OURS: &[&str] = &[
        "/usr/bin/qemu",
        "-S",
        "-uuid",
        "1",
        "-chardev",
        "socket,id=q0,fd=21,server=on,wait=off",
        "-mon",
        "chardev=q0,mode=control",
        "-chardev",
        "socket,id=tty,fd=23,server=on,wait=off,logfile=/r/serial.log,logappend=on",
        "-blockdev",
        r#"{"driver":"qcow2","file":{"driver":"file","filename":"/p/a.qcow2"}}"#,
        "-netdev",
        "tap,id=tap0,fd=24",
        "-display",
        "none",
    ];

    fn words(of: &[&str]) -> Vec<String> {
        of.iter().map(|word| (*word).to_owned()).collect()
    }

    fn with(halted: bool, tap: Option<&str>) -> ByHand {
        ByHand {
            dir: "/d".into(),
            disk: "/d/disk".into(),
            uuid: uuid::Uuid::from_u128(2),
            tap: tap.map(str::to_owned),
            halted,
        }
    }

    #[test]
    fn what_was_inherited_is_replaced_and_the_rest_stays() {
        let typed = by_hand(&words(OURS), &with(true, Some("t0"))).unwrap();
        assert_eq!(
            typed,
            words(&[
                "/usr/bin/qemu",
                "-S",
                "-uuid",
                "00000000-0000-0000-0000-000000000002",
                "-chardev",
                "stdio,id=q0,signal=off",
                "-mon",
                "chardev=q0,mode=control",
                "-chardev",
                "socket,id=tty,path=/d/tty,server=on,wait=off,logfile=/d/tty.log,logappend=on",
                "-blockdev",
                r#"{"driver":"qcow2","file":{"driver":"file","filename":"/d/disk"}}"#,
                "-netdev",
                "tap,id=tap0,ifname=t0,script=no,downscript=no",
                "-display",
                "none",
            ])
        );
    }

    #[test]
    fn one_that_shall_run_is_not_halted() {
        assert!(
            !by_hand(&words(OURS), &with(false, Some("t0")))
                .unwrap()
                .contains(&"-S".to_owned())
        );
    }

    #[test]
    fn what_is_not_known_is_a_failure_and_not_another_qemu() {
        assert!(by_hand(&words(OURS), &with(true, None)).is_err());
        assert!(by_hand(&words(&["/usr/bin/qemu"]), &with(true, None)).is_err());
        let mut odd = words(OURS);
        odd.extend(words(&["-device", "vhost,fd=9"]));
        assert!(by_hand(&odd, &with(true, Some("t0"))).is_err());
    }
}
