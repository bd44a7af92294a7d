//! What others send, fed to all that reads it: a corpus that is checked in (`fuzz/corpus/<target>`), and mutations of it by a
//! seed. No input is a panic.
//!
//! By hand: `VBM_FUZZ_ROUNDS=10000000 cargo test --release -p vbm-hyper --lib fuzz -- --nocapture`. An input that fails is printed in
//! hexadecimal; saved as a file of the corpus it is replayed for ever.

mod targets;

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    path::Path,
};
use targets::TARGETS;

/// Mutations of each target in CI.
const ROUNDS: u64 = 10_000;
/// The longest input that mutation makes.
const INPUT_MAX_BYTES: usize = 4_096;
/// The most changes of one input.
const CHANGES_MAX: usize = 4;

/// What reads an input, and answers whether it made sense of it.
type Target = (&'static str, fn(&[u8]) -> bool);

fn corpus(target: &str) -> Vec<Vec<u8>> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("fuzz/corpus")
        .join(target);
    let files = std::fs::read_dir(&dir).unwrap_or_else(|error| panic!("{}: {error}", dir.display()));
    let mut files: Vec<_> = files.map(|file| file.unwrap().path()).collect();
    files.sort();
    files.iter().map(|file| std::fs::read(file).unwrap()).collect()
}

fn hex(input: &[u8]) -> String {
    input.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn feed((name, read): Target, input: &[u8]) -> bool {
    let outcome = catch_unwind(AssertUnwindSafe(|| read(input)));
    outcome.unwrap_or_else(|_| panic!("what reads {name} does not bear {}", hex(input)))
}

/// SplitMix64 (Steele, Lea, Flood 2014).
struct Dice(u64);

impl Dice {
    fn below(&mut self, end: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        usize::try_from((z ^ (z >> 31)) >> 1).unwrap_or(0) % end.max(1)
    }

    fn byte(&mut self) -> u8 {
        [
            0,
            1,
            0x3f,
            0x7f,
            0xc0,
            0xff,
            u8::try_from(self.below(256)).unwrap_or(0),
        ][self.below(7)]
    }

    fn mutate(&mut self, corpus: &[Vec<u8>]) -> Vec<u8> {
        let mut input = corpus[self.below(corpus.len())].clone();
        for _ in 0..=self.below(CHANGES_MAX) {
            let at = self.below(input.len() + 1);
            let byte = self.byte();
            match self.below(9) {
                0 => input.truncate(at),
                1 => input.insert(at, byte),
                2 if at < input.len() => drop(input.remove(at)),
                3 if at < input.len() => input[at] ^= 1 << self.below(8),
                4 => {
                    let other = &corpus[self.below(corpus.len())];
                    let from = self.below(other.len() + 1);
                    input.truncate(at);
                    input.extend_from_slice(&other[from..]);
                }
                5 => {
                    // The same once more, as options that repeat themselves.
                    let from = self.below(at + 1);
                    let part = input[from..at].to_vec();
                    input.splice(at..at, part);
                }
                6 if at + 1 < input.len() => {
                    // A length or a count that is a little wrong, or very.
                    let told = u16::from_be_bytes([input[at], input[at + 1]]);
                    let other = [told.wrapping_add(1), told.wrapping_sub(1), 0, u16::MAX][self.below(4)];
                    input[at..at + 2].copy_from_slice(&other.to_be_bytes());
                }
                7 => {
                    let many = self.below(300);
                    input.splice(at..at, std::iter::repeat_n(byte, many));
                }
                _ if at < input.len() => input[at] = byte,
                _ => input.push(byte),
            }
            input.truncate(INPUT_MAX_BYTES);
        }
        input
    }
}

#[test]
fn every_input_of_the_corpus_is_borne_and_some_of_it_makes_sense() {
    for target in TARGETS.iter().copied() {
        let corpus = corpus(target.0);
        assert!(corpus.len() >= 8, "{} has a corpus", target.0);
        let good = corpus.iter().filter(|input| feed(target, input)).count();
        assert!(good > 0, "nothing in the corpus of {} makes sense", target.0);
        assert!(
            good < corpus.len(),
            "everything in the corpus of {} makes sense",
            target.0
        );
    }
}

#[test]
fn mutations_of_the_corpus_are_borne() {
    let rounds = std::env::var("VBM_FUZZ_ROUNDS").map_or(ROUNDS, |text| text.parse().expect("a number"));
    let first = std::env::var("VBM_FUZZ_SEED").map_or(1, |text| text.parse().expect("a number"));
    for (seed, target) in (first..).zip(TARGETS.iter().copied()) {
        let (corpus, mut dice) = (corpus(target.0), Dice(seed));
        let mut good = 0_u64;
        for _ in 0..rounds {
            good += u64::from(feed(target, &dice.mutate(&corpus)));
        }
        println!(
            "{}: {} inputs of the corpus, {rounds} mutations, {good} made sense",
            target.0,
            corpus.len()
        );
        assert!(
            good > 0,
            "mutations of {} get no further than its first look",
            target.0
        );
    }
}
