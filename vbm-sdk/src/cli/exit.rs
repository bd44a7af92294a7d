//! Exit codes: one for each sort of failure, so that scripts need not read text.

use vbm_core::ErrorKind;

/// A command line that does not parse.
pub(super) const USAGE: u8 = 2;
/// `vbm doctor` found a problem.
pub(super) const PROBLEM_FOUND: u8 = 1;

/// The table that `vbm --help` ends with.
pub(super) const TABLE: &str = "\
Exit codes:
  0  done                        6  exhausted: a pool or limit is used up
  1  internal, doctor's problem  7  unsupported, missing dependency
  2  invalid input, usage        8  unavailable: vbmd or a part does not answer
  3  not found                   9  not done in time
  4  exists, conflict, stale    10  stored data cannot be read
  5  permission denied          11  cancelled";

/// The exit code of a failure: the table of [`crate::cli`]. `vbmd` has the same.
pub const fn exit_code(kind: ErrorKind) -> u8 {
    match kind {
        ErrorKind::InvalidInput => USAGE,
        ErrorKind::NotFound => 3,
        ErrorKind::AlreadyExists | ErrorKind::Conflict | ErrorKind::Stale => 4,
        ErrorKind::PermissionDenied => 5,
        ErrorKind::Exhausted => 6,
        ErrorKind::Unsupported | ErrorKind::MissingDependency => 7,
        ErrorKind::Unavailable => 8,
        ErrorKind::DeadlineExceeded => 9,
        ErrorKind::Corrupt => 10,
        ErrorKind::Cancelled => 11,
        _ => 1,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_kind_of_failure_has_its_documented_exit_code() {
        for (kind, expected) in [
            (ErrorKind::Internal, 1),
            (ErrorKind::InvalidInput, 2),
            (ErrorKind::NotFound, 3),
            (ErrorKind::AlreadyExists, 4),
            (ErrorKind::Conflict, 4),
            (ErrorKind::Stale, 4),
            (ErrorKind::PermissionDenied, 5),
            (ErrorKind::Exhausted, 6),
            (ErrorKind::Unsupported, 7),
            (ErrorKind::MissingDependency, 7),
            (ErrorKind::Unavailable, 8),
            (ErrorKind::DeadlineExceeded, 9),
            (ErrorKind::Corrupt, 10),
            (ErrorKind::Cancelled, 11),
        ] {
            assert_eq!(exit_code(kind), expected, "{kind}");
        }
    }
}
