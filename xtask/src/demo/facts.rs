//! What outputs say. Pure.

use std::net::Ipv4Addr;

use serde_json::Value;

use crate::fault::{Done, Fault};

const PNG_SIGNATURE: &[u8; 8] = b"\x89PNG\r\n\x1a\n";
const COLUMNS_MAX: usize = 108;

/// What the demo compares about its VM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Vm {
    pub(crate) address: Ipv4Addr,
    /// The network that its NIC is on; the namespace bears its last eight digits.
    pub(crate) network: String,
    pub(crate) power: String,
    pub(crate) pid: Option<u32>,
    pub(crate) accelerator: Option<String>,
}

/// Reads `vbm info VM -o json`.
pub(crate) fn vm(text: &str) -> Done<Vm> {
    let json = json(text)?;
    let string = |pointer: &str| json.pointer(pointer).and_then(Value::as_str);
    let missing = |what: &str| {
        Fault::new(
            format!("`vbm info web -o json` has no {what}"),
            cut(text, 400),
            "compare xtask/src/demo/facts.rs with the API document",
        )
    };
    Ok(Vm {
        address: string("/nics/0/spec/address")
            .and_then(|text| text.parse().ok())
            .ok_or_else(|| missing("/nics/0/spec/address"))?,
        network: string("/nics/0/spec/network")
            .ok_or_else(|| missing("/nics/0/spec/network"))?
            .to_owned(),
        power: string("/status/power/state")
            .ok_or_else(|| missing("/status/power/state"))?
            .to_owned(),
        pid: json
            .pointer("/status/pid")
            .and_then(Value::as_u64)
            .and_then(|pid| u32::try_from(pid).ok()),
        accelerator: string("/status/accelerator/name").map(str::to_owned),
    })
}

/// Reads any JSON that `vbm` printed.
pub(super) fn json(text: &str) -> Done<Value> {
    serde_json::from_str(text).map_err(|error| {
        Fault::new(
            "`vbm ... -o json` printed no JSON",
            error,
            "run it by hand and look",
        )
    })
}

/// The findings of `vbm doctor -o json` that are problems, as text that can be compared.
pub(super) fn problems(text: &str) -> Done<Vec<String>> {
    let findings = json(text)?;
    let is_problem = |finding: &&Value| {
        let state = finding.get("state").and_then(Value::as_str).unwrap_or_default();
        state.eq_ignore_ascii_case("problem")
    };
    let word = |finding: &Value, key: &str| {
        finding
            .get(key)
            .and_then(Value::as_str)
            .unwrap_or_default()
            .to_owned()
    };
    let findings = findings.as_array().into_iter().flatten().filter(is_problem);
    Ok(findings
        .map(|finding| format!("{}: {}", word(finding, "check"), word(finding, "detail")))
        .collect())
}

/// The last eight digits of an id: what names on the host are made of.
pub(crate) fn short(id: &str) -> String {
    let digits: Vec<char> = id.chars().filter(char::is_ascii_hexdigit).collect();
    digits
        .get(digits.len().saturating_sub(8)..)
        .unwrap_or_default()
        .iter()
        .collect()
}

/// Width and height of a PNG, when it is one.
pub(super) fn png_size(bytes: &[u8]) -> Option<(u32, u32)> {
    let rest = bytes.strip_prefix(PNG_SIGNATURE)?;
    let header = rest.get(4..16)?.strip_prefix(b"IHDR")?;
    let number = |at: usize| Some(u32::from_be_bytes(header.get(at..at + 4)?.try_into().ok()?));
    Some((number(0)?, number(4)?))
}

/// Which end of a long output says more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Keep {
    First,
    Last,
}

/// At most `max` lines that fit a screen, with a word about the others.
pub(crate) fn trimmed(text: &str, max: usize, keep: Keep) -> Vec<String> {
    let text = plain(text);
    let lines: Vec<&str> = text
        .lines()
        .map(str::trim_end)
        .filter(|line| !line.is_empty())
        .collect();
    let over = lines.len().saturating_sub(max);
    let more = format!("... {over} more lines");
    let fitting = |lines: &[&str]| {
        lines
            .iter()
            .map(|line| cut(line, COLUMNS_MAX))
            .collect::<Vec<_>>()
    };
    match keep {
        _ if over == 0 => fitting(&lines),
        Keep::First => {
            let mut shown = fitting(lines.get(..max).unwrap_or_default());
            shown.push(more);
            shown
        }
        Keep::Last => {
            let mut shown = vec![more];
            shown.extend(fitting(lines.get(over..).unwrap_or_default()));
            shown
        }
    }
}

/// Text without what only a terminal understands: escape sequences, carriage returns, other control characters.
pub(super) fn plain(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut chars = text.chars().peekable();
    while let Some(c) = chars.next() {
        match c {
            '\u{1b}' if chars.peek() == Some(&'[') => {
                chars.next();
                // A control sequence ends with its first byte from `@` to `~`.
                chars.find(|c| ('@'..='~').contains(c));
            }
            '\n' | '\t' => out.push(c),
            c if c.is_control() => {}
            c => out.push(c),
        }
    }
    out
}

fn cut(text: &str, columns: usize) -> String {
    match text.char_indices().nth(columns) {
        None => text.to_owned(),
        Some((at, _)) => format!("{}...", text.get(..at).unwrap_or_default()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_vm_is_read_from_what_vbm_prints() {
        let text = r#"{"id":"0190","name":"web","nics":[{"spec":{"address":"10.77.0.10",
            "network":"0190a7d2-0000-7000-8000-0123456789ab"}}],"status":{"power":{"state":"running"},"pid":4242,
            "accelerator":{"name":"tcg","reason":"no kvm"}}}"#;
        let vm = vm(text).unwrap();
        assert_eq!(vm.address, Ipv4Addr::new(10, 77, 0, 10));
        assert_eq!((vm.power.as_str(), vm.pid), ("running", Some(4242)));
        assert_eq!(short(&vm.network), "456789ab");
    }

    #[test]
    fn what_is_missing_is_named() {
        assert!(vm("{}").unwrap_err().what.contains("/nics/0/spec/address"));
        assert!(vm("no json").unwrap_err().what.contains("no JSON"));
    }

    #[test]
    fn only_problems_of_the_doctor_count() {
        let text = r#"[{"check":"qemu","state":"ok","detail":"there"},{"check":"left","state":"problem","detail":"vbm-1"}]"#;
        assert_eq!(problems(text).unwrap(), ["left: vbm-1"]);
        assert!(problems("[]").unwrap().is_empty());
    }

    #[test]
    fn only_a_png_has_a_size() {
        let mut bytes = PNG_SIGNATURE.to_vec();
        bytes.extend_from_slice(&[0, 0, 0, 13]);
        bytes.extend_from_slice(b"IHDR");
        bytes.extend_from_slice(&[0, 0, 2, 208, 0, 0, 1, 144, 8, 2]);
        assert_eq!(png_size(&bytes), Some((720, 400)));
        assert_eq!(png_size(b"P6 720 400"), None);
        assert_eq!(png_size(&PNG_SIGNATURE[..]), None);
    }

    #[test]
    fn long_outputs_keep_the_end_that_says_more() {
        let text = "a\n\nb\nc\nd\n";
        assert_eq!(trimmed(text, 2, Keep::First), ["a", "b", "... 2 more lines"]);
        assert_eq!(trimmed(text, 2, Keep::Last), ["... 2 more lines", "c", "d"]);
        assert_eq!(trimmed(text, 4, Keep::Last), ["a", "b", "c", "d"]);
        assert_eq!(
            trimmed(&"x".repeat(200), 1, Keep::First)[0].len(),
            COLUMNS_MAX + 3
        );
    }

    #[test]
    fn what_only_a_terminal_understands_is_left_out() {
        assert_eq!(plain("\u{1b}[6n/ # \u{1b}[1;32mok\u{1b}[0m\r\n\u{7}"), "/ # ok\n");
        assert_eq!(plain("\u{1b}["), "");
    }
}
