//! What it was measured on.

use serde::Serialize;
use std::{fs, process::Command, thread::available_parallelism};

/// The machine and the versions of what was measured against.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Machine {
    pub(crate) cpu: String,
    pub(crate) cores: usize,
    pub(crate) memory_mib: u64,
    pub(crate) kernel: String,
    pub(crate) load_1m: Option<f64>,
    pub(crate) versions: Versions,
}

/// First lines of what the programs say of themselves; `missing` when they are not there.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Versions {
    pub(crate) rust: String,
    pub(crate) qemu: String,
    pub(crate) redis: String,
    pub(crate) nats: String,
    pub(crate) ip: String,
}

impl Machine {
    pub(crate) fn look() -> Self {
        let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
        Self {
            cpu: value_of(&read("/proc/cpuinfo"), "model name")
                .unwrap_or("unknown")
                .to_owned(),
            cores: available_parallelism().map_or(0, usize::from),
            memory_mib: value_of(&read("/proc/meminfo"), "MemTotal")
                .and_then(first_number)
                .unwrap_or(0)
                / 1024,
            kernel: read("/proc/sys/kernel/osrelease").trim().to_owned(),
            load_1m: read("/proc/loadavg")
                .split(' ')
                .next()
                .and_then(|load| load.parse().ok()),
            versions: Versions {
                rust: says("rustc", "--version"),
                qemu: says("qemu-system-x86_64", "--version"),
                redis: says("redis-server", "--version"),
                nats: says("nats-server", "--version"),
                ip: says("ip", "-V"),
            },
        }
    }

    /// In one line.
    pub(crate) fn line(&self) -> String {
        format!(
            "{} x {}, {} MiB, Linux {}, load {}",
            self.cores,
            self.cpu,
            self.memory_mib,
            self.kernel,
            self.load_1m
                .map_or_else(|| "unknown".into(), |load| format!("{load:.1}"))
        )
    }
}

/// The value of `name : value` in a file of such lines.
pub(crate) fn value_of<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    text.lines().find_map(|line| {
        let (key, value) = line.split_once(':')?;
        (key.trim() == name).then(|| value.trim())
    })
}

/// The number that a text such as `24023 kB` begins with.
pub(crate) fn first_number(text: &str) -> Option<u64> {
    text.split_whitespace().next()?.parse().ok()
}

fn says(program: &str, option: &str) -> String {
    let Ok(output) = Command::new(program).arg(option).output() else {
        return "missing".into();
    };
    let text = String::from_utf8_lossy(&output.stdout);
    text.lines().next().unwrap_or("unknown").trim().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_found_by_name() {
        let text = "processor\t: 0\nmodel name\t: A CPU: fast\nMemTotal:       2048 kB\n";
        assert_eq!(value_of(text, "model name"), Some("A CPU: fast"));
        assert_eq!(value_of(text, "MemTotal").and_then(first_number), Some(2048));
        assert_eq!(value_of(text, "Mem"), None);
    }
}
