//! Writes the bytes of a disk.

use super::{Out, Plan};
use crate::{
    Result,
    disk::{read::Stack, work::Work},
};

pub(super) const UNIT_BYTES: u64 = 64 * 1024;

pub(super) fn write(plan: &Plan, disk: &mut Stack, out: &mut Out<'_>, work: &Work) -> Result<()> {
    plan.each(disk, work, |unit, bytes| {
        let at = unit * plan.unit_bytes;
        out.up_to(at)?;
        // The last unit may end beyond the disk.
        let there = usize::try_from(plan.virtual_bytes - at).unwrap_or(usize::MAX);
        out.write(&bytes[..there.min(bytes.len())])
    })?;
    out.up_to(plan.virtual_bytes)
}
