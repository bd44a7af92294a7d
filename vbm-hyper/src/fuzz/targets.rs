//! What reads, one line each.

use super::Target;

/// By the name of its corpus.
pub(super) const TARGETS: &[Target] = &[("qmp", crate::qemu::qmp_makes_sense)];
