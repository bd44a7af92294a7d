//! Files that strangers made, fed to all that reads them: a corpus that is checked in (`fuzz/corpus/<format>`: made by `qemu-img`,
//! and damaged), and mutations of it by a seed. No input is a panic, none makes us keep a table that is larger than the file, and
//! none makes us open another file: what is read is in memory, and the readers know no paths.
//!
//! By hand: `VBM_FUZZ_ROUNDS=10000000 cargo test --release -p vbm-hyper --lib disk::fuzz -- --nocapture`. An input that fails is
//! kept in the file that the panic names; saved in the corpus it is replayed for ever.

use super::{
    ImageFormat, format,
    read::{self, Place, Source, Stack},
    work::Work,
    write::{Plan, Shape},
};
use std::{
    io,
    panic::{AssertUnwindSafe, catch_unwind},
    path::Path,
};

/// Mutations of each format in CI.
const ROUNDS: u64 = 5_000;
/// The longest input that mutation makes.
const INPUT_MAX_BYTES: usize = 160 << 10;
/// The most changes of one input.
const CHANGES_MAX: usize = 4;
/// How many places of a disk are looked at, and how much is read of each, in bytes.
const LOOKS_MAX: usize = 64;
const READ_BYTES: usize = 8 << 10;
/// A disk that says it is not larger is also read as a whole.
const WHOLE_MAX_BYTES: u64 = 1 << 20;

const FORMATS: [ImageFormat; 3] = [ImageFormat::Qcow2, ImageFormat::Vdi, ImageFormat::Vmdk];

/// A file in memory, whose reader must know how long it is.
struct Watched(Vec<u8>);

impl Source for Watched {
    fn bytes(&self) -> u64 {
        self.0.bytes()
    }

    fn fill(&self, at: u64, into: &mut [u8]) -> io::Result<()> {
        let end = at.checked_add(into.len() as u64);
        assert!(
            end.is_some_and(|end| end <= self.bytes()),
            "{} bytes at {at} are asked of a file of {}",
            into.len(),
            self.bytes()
        );
        self.0.fill(at, into)
    }
}

/// Reads an input in all ways. Answers whether it made sense.
fn read(format: ImageFormat, input: &[u8]) -> bool {
    let look = &input[..input.len().min(format::LOOK_BYTES)];
    drop(format::recognise(look));
    // As a layer, whose base is not opened, and as a disk that stands alone.
    drop(read::layer(Box::new(Watched(input.to_vec())), format));
    let Ok(layer) = read::whole(Box::new(Watched(input.to_vec())), format) else {
        return false;
    };
    let mut disk = Stack::new(vec![layer], format.name());
    let (mut at, mut piece) = (0, vec![0; READ_BYTES]);
    for _ in 0..LOOKS_MAX {
        if at >= disk.virtual_bytes() {
            break;
        }
        let Ok((place, bytes)) = disk.look(at, 1) else {
            return false;
        };
        assert!(bytes > 0, "it goes on");
        if place == Place::Data && disk.read(at, &mut piece).is_err() {
            return false;
        }
        at = at.saturating_add(bytes);
    }
    if disk.virtual_bytes() > WHOLE_MAX_BYTES {
        return true;
    }
    let shape = Shape::Qcow2 { backing: None };
    let bytes = disk.virtual_bytes();
    Plan::of(&mut disk, bytes, shape.unit_bytes(), None, &Work::of_a_test()).is_ok()
}

fn corpus(format: ImageFormat) -> Vec<Vec<u8>> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("fuzz/corpus")
        .join(format.name());
    let files = std::fs::read_dir(&dir).unwrap_or_else(|error| panic!("{}: {error}", dir.display()));
    let mut files: Vec<_> = files.map(|file| file.unwrap().path()).collect();
    files.sort();
    files.iter().map(|file| std::fs::read(file).unwrap()).collect()
}

fn feed(format: ImageFormat, input: &[u8]) -> bool {
    let outcome = catch_unwind(AssertUnwindSafe(|| read(format, input)));
    outcome.unwrap_or_else(|_| {
        let kept = tempfile::Builder::new()
            .prefix("fuzz-")
            .disable_cleanup(true)
            .tempfile()
            .unwrap();
        std::fs::write(kept.path(), input).unwrap();
        panic!("what reads {format} does not bear {}", kept.path().display())
    })
}

/// SplitMix64 (Steele, Lea, Flood 2014).
struct Dice(u64);

impl Dice {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, end: usize) -> usize {
        usize::try_from(self.next() >> 1).unwrap_or(0) % end.max(1)
    }

    /// A number as a header would have it, or would rather not.
    fn number(&mut self, len: usize) -> u64 {
        let near = len as u64;
        match self.below(8) {
            0 => 0,
            1 => u64::MAX,
            2 => u64::from(u32::MAX),
            3 => near.wrapping_sub(self.next() % 1024),
            4 => near / 512,
            5 => 1 << self.below(64),
            6 => (self.next() % near.max(1)) & !511,
            _ => self.next(),
        }
    }

    /// Mostly in the header, where it hurts.
    fn place(&mut self, len: usize) -> usize {
        match self.below(3) {
            0 => self.below(len),
            1 => self.below(len.min(4096)),
            _ => self.below(len.min(512)),
        }
    }

    fn mutate(&mut self, corpus: &[Vec<u8>]) -> Vec<u8> {
        let mut input = corpus[self.below(corpus.len())].clone();
        for _ in 0..=self.below(CHANGES_MAX) {
            let at = self.place(input.len());
            let number = self.number(input.len());
            let bytes = if self.below(2) == 0 {
                number.to_be_bytes()
            } else {
                number.to_le_bytes()
            };
            let width = [1, 2, 4, 8][self.below(4)];
            let from = if self.below(2) == 0 { 0 } else { 8 - width };
            match self.below(8) {
                0 => input.truncate(at),
                1 => input.resize((input.len() + self.below(4096)).min(INPUT_MAX_BYTES), 0),
                2 if at < input.len() => input[at] ^= 1 << self.below(8),
                // Aligned, as fields are.
                _ => {
                    let at = at / width * width;
                    if at + width <= input.len() {
                        input[at..at + width].copy_from_slice(&bytes[from..from + width]);
                    }
                }
            }
        }
        input
    }
}

#[test]
fn every_file_of_the_corpus_is_borne_and_some_of_it_makes_sense() {
    for format in FORMATS {
        let corpus = corpus(format);
        assert!(corpus.len() >= 8, "{format} has a corpus");
        let good = corpus.iter().filter(|input| feed(format, input)).count();
        assert!(
            (1..corpus.len()).contains(&good),
            "{good} of the corpus of {format} make sense"
        );
    }
}

#[test]
fn mutations_of_the_corpus_are_borne() {
    let rounds = std::env::var("VBM_FUZZ_ROUNDS").map_or(ROUNDS, |text| text.parse().expect("a number"));
    let first = std::env::var("VBM_FUZZ_SEED").map_or(1, |text| text.parse().expect("a number"));
    for (seed, format) in (first..).zip(FORMATS) {
        let (corpus, mut dice) = (corpus(format), Dice(seed));
        let mut good = 0_u64;
        for _ in 0..rounds {
            good += u64::from(feed(format, &dice.mutate(&corpus)));
        }
        println!(
            "{format}: {} files of the corpus, {rounds} mutations, {good} made sense",
            corpus.len()
        );
        assert!(
            good > 0,
            "mutations of {format} get no further than its first look"
        );
    }
}
