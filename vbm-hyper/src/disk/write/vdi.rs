//! Writes a dynamic VDI from its first byte to its last.

use super::{Out, Plan};
use crate::{
    Result,
    disk::{
        read::Stack,
        vdi::{self, BLOCK_BYTES, EMPTY, MAP_AT},
        work::Work,
    },
};
use vbm_core::{Digest, VolumeId};

fn blocks(plan: &Plan) -> Result<u32> {
    vdi::check_size(plan.virtual_bytes)?;
    // At most 2 Mi, by the largest disk.
    Ok(u32::try_from(plan.virtual_bytes.div_ceil(BLOCK_BYTES)).unwrap_or(u32::MAX))
}

pub(in crate::disk) fn file_bytes(plan: &Plan) -> Result<u64> {
    Ok(vdi::data_at(blocks(plan)?) + plan.data_units() * BLOCK_BYTES)
}

pub(super) fn write(
    plan: &Plan,
    disk: &mut Stack,
    volume: VolumeId,
    image: Option<Digest>,
    out: &mut Out<'_>,
    work: &Work,
) -> Result<()> {
    let blocks = blocks(plan)?;
    let used = u32::try_from(plan.data_units()).unwrap_or(u32::MAX);
    out.write(&vdi::header(volume, image, plan.virtual_bytes, blocks, used))?;
    out.up_to(MAP_AT)?;
    let map_bytes = usize::try_from(vdi::data_at(blocks) - MAP_AT).unwrap_or(0);
    let mut map = Vec::with_capacity(map_bytes);
    let mut next = 0_u32;
    for run in plan.runs.iter().filter(|run| run.data) {
        map.resize(usize::try_from(run.unit * 4).unwrap_or(0), 0xff);
        for _ in 0..run.units {
            map.extend(next.to_le_bytes());
            next += 1;
        }
    }
    debug_assert_eq!(EMPTY, u32::MAX, "what is no block is all ones");
    map.resize(map_bytes, 0xff);
    out.write(&map)?;
    plan.each(disk, work, |_, bytes| out.write(bytes))
}
