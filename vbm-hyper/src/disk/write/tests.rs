//! What is written is read back, whatever it was before.

use super::*;
use crate::disk::{ImageFormat, read};
use proptest::prelude::*;

struct Memory(Vec<u8>);

impl Sink for Memory {
    fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.0.extend(bytes);
        Ok(())
    }

    fn zeros(&mut self, bytes: u64) -> Result<()> {
        in_pieces(bytes, |zeros| self.write(zeros))
    }
}

fn stack(files: Vec<(Vec<u8>, ImageFormat)>) -> Stack {
    let layers = files
        .into_iter()
        .map(|(bytes, format)| read::layer(Box::new(bytes), format).unwrap());
    Stack::new(layers.collect(), "test")
}

fn written(disk: &mut Stack, virtual_bytes: u64, shape: &Shape<'_>, upper: Option<usize>) -> Vec<u8> {
    let work = Work::of_a_test();
    let plan = Plan::of(disk, virtual_bytes, shape.unit_bytes(), upper, &work).unwrap();
    let mut sink = Memory(Vec::new());
    shape.write(&plan, disk, &mut sink, &work).unwrap();
    assert_eq!(
        sink.0.len() as u64,
        shape.file_bytes(&plan).unwrap(),
        "its length is known before"
    );
    sink.0
}

fn content(disk: &mut Stack) -> Vec<u8> {
    let mut bytes = vec![7; usize::try_from(disk.virtual_bytes()).unwrap()];
    disk.read(0, &mut bytes).unwrap();
    bytes
}

fn vdi() -> Shape<'static> {
    Shape::Vdi {
        volume: VolumeId::from_uuid(uuid::Uuid::from_u128(1)),
        image: None,
    }
}

/// 300 KiB and a little, in pieces of 32 KiB: 0 is a piece of zeros.
fn disk(pieces: &[u8]) -> Vec<u8> {
    let mut bytes: Vec<u8> = pieces.iter().flat_map(|piece| vec![*piece; 32 * 1024]).collect();
    bytes.extend([3; 512]);
    bytes
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn a_disk_is_the_same_in_every_format(pieces in proptest::collection::vec(0..3_u8, 1..10), more in 0..3_u64) {
        let bytes = disk(&pieces);
        let size = bytes.len() as u64 + more * 512;
        let mut expected = bytes.clone();
        expected.resize(usize::try_from(size).unwrap(), 0);
        for (shape, format) in [
            (Shape::Raw, ImageFormat::Raw),
            (Shape::Qcow2 { backing: None }, ImageFormat::Qcow2),
            (vdi(), ImageFormat::Vdi),
        ] {
            let file = written(&mut stack(vec![(bytes.clone(), ImageFormat::Raw)]), size, &shape, None);
            prop_assert_eq!(content(&mut stack(vec![(file, format)])), expected.clone());
        }
    }

    /// A clone of what stands above an image, put on the same image, is the same disk; also where zeros were written over content.
    #[test]
    fn what_stands_above_an_image_is_kept_with_its_zeros(
        below in proptest::collection::vec(0..3_u8, 4..10),
        above in proptest::collection::vec(0..3_u8, 4..10),
        taken in proptest::collection::vec(any::<bool>(), 5),
    ) {
        let base = disk(&below);
        // The upper layer says something about the units that are taken: data or zeros.
        let over = disk(&above);
        let mut plan = Plan { virtual_bytes: over.len() as u64, unit_bytes: crate::disk::qcow2::CLUSTER_BYTES, runs: vec![] };
        let units = plan.virtual_bytes.div_ceil(plan.unit_bytes);
        for unit in (0..units).filter(|unit| taken.get(usize::try_from(*unit).unwrap()) == Some(&true)) {
            let at = usize::try_from(unit * plan.unit_bytes).unwrap();
            let zeros = over[at..over.len().min(at + 65_536)].iter().all(|byte| *byte == 0);
            plan.push(unit, 1, !zeros);
        }
        let work = Work::of_a_test();
        let shape = Shape::Qcow2 { backing: Some(("/base", vbm_core::DiskFormat::Raw)) };
        let mut top = Memory(Vec::new());
        shape.write(&plan, &mut stack(vec![(over, ImageFormat::Raw)]), &mut top, &work).unwrap();
        let mut both = stack(vec![(top.0, ImageFormat::Qcow2), (base.clone(), ImageFormat::Raw)]);
        let (expected, size) = (content(&mut both), both.virtual_bytes());
        let clone = written(&mut both, size, &shape, Some(1));
        prop_assert_eq!(content(&mut stack(vec![(clone, ImageFormat::Qcow2), (base, ImageFormat::Raw)])), expected);
    }
}

#[test]
fn what_holds_nothing_takes_only_its_tables() {
    let zeros = vec![0; 4 << 20];
    let mut disk = stack(vec![(zeros, ImageFormat::Raw)]);
    let file = written(&mut disk, 4 << 20, &Shape::Qcow2 { backing: None }, None);
    assert_eq!(file.len(), 4 * 65_536, "header, counters and first table");
}
