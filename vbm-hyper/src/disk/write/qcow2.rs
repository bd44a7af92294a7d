//! Writes a qcow2 file from its first byte to its last: all tables before all content.
//!
//! ```text
//!   header | refcount table | refcount blocks | L1 | L2 tables | content, in the order of the disk
//! ```

use super::{Out, Plan, Run};
use crate::{
    Error, Result,
    disk::{
        qcow2::{self, CLUSTER_BYTES, Places},
        read::Stack,
        work::Work,
    },
};
use vbm_core::DiskFormat;

const ENTRIES: u64 = CLUSTER_BYTES / 8;
const REFCOUNTS: u64 = CLUSTER_BYTES / 2;
/// The cluster belongs to nobody else (bit 63).
const COPIED: u64 = 1 << 63;
const ZERO: u64 = 1;

/// How many clusters each part has.
#[derive(Clone, Debug)]
pub(in crate::disk) struct Layout {
    refcount_table: u64,
    refcount_blocks: u64,
    l1_entries: u64,
    /// The entries of the first table that have a second one.
    tables: Vec<u64>,
    data: u64,
}

impl Layout {
    /// # Errors
    /// A size that the format or VBM does not allow.
    pub(in crate::disk) fn of(plan: &Plan) -> Result<Self> {
        qcow2::check_size(plan.virtual_bytes).map_err(|why| {
            Error::invalid(
                "the disk cannot be written as qcow2",
                why,
                "choose a size in that range",
            )
        })?;
        let l1_entries = plan.virtual_bytes.div_ceil(CLUSTER_BYTES * ENTRIES);
        let mut tables: Vec<u64> = Vec::new();
        for run in &plan.runs {
            for table in run.unit / ENTRIES..=(run.unit + run.units - 1) / ENTRIES {
                if tables.last() != Some(&table) {
                    tables.push(table);
                }
            }
        }
        let mut layout = Self {
            refcount_table: 1,
            refcount_blocks: 1,
            l1_entries,
            tables,
            data: plan.data_units(),
        };
        // Counting the counters needs counters: grows until it is enough.
        loop {
            let blocks = layout.clusters().div_ceil(REFCOUNTS);
            let table = (blocks * 8).div_ceil(CLUSTER_BYTES);
            if (blocks, table) == (layout.refcount_blocks, layout.refcount_table) {
                return Ok(layout);
            }
            (layout.refcount_blocks, layout.refcount_table) = (blocks, table);
        }
    }

    fn l1_clusters(&self) -> u64 {
        (self.l1_entries * 8).div_ceil(CLUSTER_BYTES)
    }

    fn l1_at(&self) -> u64 {
        (1 + self.refcount_table + self.refcount_blocks) * CLUSTER_BYTES
    }

    fn tables_at(&self) -> u64 {
        self.l1_at() + self.l1_clusters() * CLUSTER_BYTES
    }

    fn data_at(&self) -> u64 {
        self.tables_at() + self.tables.len() as u64 * CLUSTER_BYTES
    }

    fn clusters(&self) -> u64 {
        self.data_at() / CLUSTER_BYTES + self.data
    }

    pub(in crate::disk) fn file_bytes(&self) -> u64 {
        self.clusters() * CLUSTER_BYTES
    }
}

pub(super) fn write(
    plan: &Plan,
    disk: &mut Stack,
    backing: Option<(&str, DiskFormat)>,
    out: &mut Out<'_>,
    work: &Work,
) -> Result<()> {
    let layout = Layout::of(plan)?;
    let places = Places {
        l1_entries: u32::try_from(layout.l1_entries).unwrap_or(u32::MAX),
        l1_at: layout.l1_at(),
        refcount_table_at: CLUSTER_BYTES,
        refcount_table_clusters: u32::try_from(layout.refcount_table).unwrap_or(u32::MAX),
    };
    let head = qcow2::head(backing, plan.virtual_bytes, &places)
        .map_err(|why| Error::invalid("the disk cannot be written as qcow2", why, "choose other values"))?;
    out.write(&head)?;
    out.up_to(CLUSTER_BYTES)?;
    write_refcounts(&layout, out)?;
    for (number, table) in layout.tables.iter().enumerate() {
        out.up_to(layout.l1_at() + table * 8)?;
        let at = layout.tables_at() + number as u64 * CLUSTER_BYTES;
        out.write(&(at | COPIED).to_be_bytes())?;
    }
    out.up_to(layout.tables_at())?;
    write_tables(&layout, &plan.runs, out, work)?;
    plan.each(disk, work, |_, bytes| out.write(bytes))?;
    out.up_to(layout.file_bytes())
}

fn write_refcounts(layout: &Layout, out: &mut Out<'_>) -> Result<()> {
    let blocks_at = (1 + layout.refcount_table) * CLUSTER_BYTES;
    for block in 0..layout.refcount_blocks {
        out.write(&(blocks_at + block * CLUSTER_BYTES).to_be_bytes())?;
    }
    out.up_to(blocks_at)?;
    let one = [1_u16.to_be_bytes(); 512].concat();
    let mut left = layout.clusters() * 2;
    while left > 0 {
        let piece = usize::try_from(left).unwrap_or(usize::MAX).min(one.len());
        out.write(&one[..piece])?;
        left -= piece as u64;
    }
    out.up_to(layout.l1_at())
}

fn write_tables(layout: &Layout, runs: &[Run], out: &mut Out<'_>, work: &Work) -> Result<()> {
    let mut data_at = layout.data_at();
    let mut runs = runs.iter().copied().peekable();
    for table in &layout.tables {
        work.go_on()?;
        let mut entries = vec![0_u8; usize::try_from(CLUSTER_BYTES).unwrap_or(0)];
        let (first, end) = (table * ENTRIES, (table + 1) * ENTRIES);
        while let Some(run) = runs.peek().copied().filter(|run| run.unit < end) {
            let until = (run.unit + run.units).min(end);
            for unit in run.unit.max(first)..until {
                let at = usize::try_from((unit - first) * 8).unwrap_or(0);
                let entry = if run.data {
                    data_at += CLUSTER_BYTES;
                    (data_at - CLUSTER_BYTES) | COPIED
                } else {
                    ZERO
                };
                entries[at..at + 8].copy_from_slice(&entry.to_be_bytes());
            }
            if until < run.unit + run.units {
                break;
            }
            runs.next();
        }
        out.write(&entries)?;
    }
    Ok(())
}
