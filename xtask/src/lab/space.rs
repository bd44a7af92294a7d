//! Free space, asked before gigabytes are written.

use std::path::Path;

use crate::fault::{Done, Fault};
use crate::run;

/// One GiB in bytes.
pub(super) const GIB: u64 = 1 << 30;

/// Fails when the file system of `dir` has less than `bytes` free.
pub(super) fn check(dir: &Path, bytes: u64, what_for: &str) -> Done {
    let text = run::capture(run::command("df").args(["--output=avail", "-B1"]).arg(dir))?;
    let free =
        parse(&text).ok_or_else(|| Fault::new("cannot tell how much space is free", text, "look at `df`"))?;
    judge(free, bytes, &format!("{}", dir.display()), what_for)
}

fn parse(text: &str) -> Option<u64> {
    text.lines().nth(1)?.trim().parse().ok()
}

fn judge(free: u64, bytes: u64, place: &str, what_for: &str) -> Done {
    if free >= bytes {
        return Ok(());
    }
    let gib = |bytes: u64| {
        let tenths = bytes / (GIB / 10);
        format!("{}.{} GiB", tenths / 10, tenths % 10)
    };
    Err(Fault::new(
        format!("{place} has not enough space for {what_for}"),
        format!("{} are needed, {} are free", gib(bytes), gib(free)),
        "make room, or set CARGO_TARGET_DIR to a directory on a larger disk",
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn too_little_space_is_told_in_figures() {
        let fault = judge(3 * GIB + GIB / 2, 8 * GIB, "here", "a root").unwrap_err();
        assert!(
            fault.why.contains("8.0 GiB are needed, 3.5 GiB are free"),
            "{fault}"
        );
        assert_eq!(judge(8 * GIB, 8 * GIB, "here", "a root"), Ok(()));
    }

    #[test]
    fn df_is_read() {
        assert_eq!(parse("     Avail\n68719476736\n"), Some(68_719_476_736));
        assert_eq!(parse(""), None);
    }
}
