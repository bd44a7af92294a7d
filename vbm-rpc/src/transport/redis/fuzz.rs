//! What comes from outside, fed to everything that reads it: a corpus that is checked in (`fuzz/corpus/<target>`), and
//! mutations of it by a seed. No input is a panic, and nothing that is read is larger than what was given.
//!
//! By hand: `VBM_FUZZ_ROUNDS=10000000 cargo test -p vbm-rpc --lib fuzz -- --nocapture`. An input that fails is printed in
//! hexadecimal; saved as a file of the corpus it is replayed for ever.

use super::{keys, pack};
use crate::{Codec, MemberInfo, envelope, envelope::Envelope};
use bytes::Bytes;
use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    path::Path,
};

/// Mutations of each target in CI.
const ROUNDS: u64 = 20_000;
/// The longest input that mutation makes.
const INPUT_MAX_BYTES: usize = 8_192;
/// Lengths of this many digits or more are left to the parser of redis-rs, which is not ours.
const REPLY_LENGTH_MAX_DIGITS: usize = 5;

type Target = (&'static str, fn(&[u8]));

const TARGETS: [Target; 7] = [
    ("envelope", read_envelope),
    ("pack", read_pack),
    ("consumer", read_consumer),
    ("presence", read_presence),
    ("replies", read_replies),
    ("codec", read_codec),
    ("id", read_id),
];

fn read_envelope(input: &[u8]) {
    let frame = Bytes::copy_from_slice(input);
    envelope::is_cancel(&frame);
    let capped = envelope::within(&frame, std::time::Duration::from_millis(7));
    assert_eq!(capped.len(), frame.len());
    envelope::next_attempt(&frame, 2, 9);
    let Ok(read) = Envelope::decode(&frame) else {
        assert!(
            Envelope::decode(&capped).is_err(),
            "a deadline decides whether it is a frame"
        );
        return;
    };
    let held = read.method.len()
        + read.boot_id.len()
        + read.body.len()
        + read.traceparent.as_ref().map_or(0, String::len)
        + read.idempotency_key.as_ref().map_or(0, String::len);
    assert!(
        held <= input.len(),
        "{held} bytes were read out of {}",
        input.len()
    );
    let again = Envelope::decode(&read.encode()).expect("what was read can be written");
    assert_eq!(again, read);
    let within = Envelope::decode(&capped).expect("the same frame");
    assert_eq!(within.ttl_ms, read.ttl_ms.min(7));
    assert_eq!(
        Envelope {
            ttl_ms: read.ttl_ms,
            ..within
        },
        read
    );
}

fn read_pack(input: &[u8]) {
    let Some(frames) = pack::unpack(Bytes::copy_from_slice(input)) else {
        return;
    };
    assert!(!frames.is_empty() && frames.len() <= pack::PACK_MAX_FRAMES);
    let held: usize = frames.iter().map(|frame| frame.len() + 4).sum();
    assert_eq!(held, input.len(), "every byte belongs to one frame");
    assert_eq!(pack::pack(frames.iter()), input);
}

fn read_consumer(input: &[u8]) {
    if let Ok(name) = std::str::from_utf8(input)
        && let Some((path, boot)) = keys::parse_consumer(name)
    {
        let again = keys::consumer(&path, boot);
        assert_eq!(keys::parse_consumer(&again), Some((path, boot)));
    }
}

fn read_presence(input: &[u8]) {
    if let Ok(member) = serde_json::from_slice::<MemberInfo>(input) {
        let text = serde_json::to_string(&member).expect("what was read can be written");
        assert_eq!(
            serde_json::from_str::<MemberInfo>(&text).expect("and read again"),
            member
        );
    }
}

fn read_replies(input: &[u8]) {
    let digits = input.split(|byte| !byte.is_ascii_digit()).map(<[u8]>::len);
    if digits.max().unwrap_or(0) >= REPLY_LENGTH_MAX_DIGITS {
        return;
    }
    let Ok(value) = redis::parse_redis_value(input) else {
        return;
    };
    pack::text(&value);
    pack::number(&value);
    pack::texts(&value);
    pack::field(&value, "last-generated-id");
    let mut entries = pack::entries(value.clone());
    entries.extend(pack::streams(value).into_iter().flat_map(|(_, entries)| entries));
    let held: usize = entries
        .iter()
        .flat_map(|entry| &entry.frames)
        .map(Bytes::len)
        .sum();
    // The answer is read in two ways here.
    assert!(held <= 2 * input.len());
}

fn read_codec(input: &[u8]) {
    for codec in [Codec::MessagePack, Codec::Json] {
        // Ignored: whether it is a value is not asked.
        drop(codec.decode::<serde_json::Value>(input));
        drop(codec.decode::<Vec<u64>>(input));
        drop(codec.decode::<Vec<String>>(input));
        if let Ok(error) = codec.decode::<vbm_core::Error>(input) {
            let text = codec.encode(&error).expect("what was read can be written");
            assert_eq!(
                codec
                    .decode::<vbm_core::Error>(&text)
                    .expect("and read again")
                    .to_string(),
                error.to_string()
            );
        }
    }
}

fn read_id(input: &[u8]) {
    if let Ok(text) = std::str::from_utf8(input)
        && let Some((ms, count)) = pack::parse_id(text)
    {
        assert_eq!(pack::parse_id(&format!("{ms}-{count}")), Some((ms, count)));
    }
}

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

fn feed((name, read): Target, input: &[u8]) {
    let outcome = catch_unwind(AssertUnwindSafe(|| read(input)));
    assert!(
        outcome.is_ok(),
        "the reader of {name} does not bear {}",
        hex(input)
    );
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

    fn mutate(&mut self, corpus: &[Vec<u8>]) -> Vec<u8> {
        let mut input = corpus[self.below(corpus.len())].clone();
        for _ in 0..=self.below(4) {
            let at = self.below(input.len() + 1);
            let byte = [0, 1, 0x7f, 0x80, 0xff, u8::try_from(self.below(256)).unwrap_or(0)][self.below(6)];
            match self.below(7) {
                0 => input.truncate(at),
                1 => input.insert(at, byte),
                2 if at < input.len() => {
                    input.remove(at);
                }
                3 if at < input.len() => input[at] ^= 1 << self.below(8),
                4 => {
                    let other = &corpus[self.below(corpus.len())];
                    let from = self.below(other.len() + 1);
                    input.truncate(at);
                    input.extend_from_slice(&other[from..]);
                }
                5 => {
                    let part = input[..at].to_vec();
                    input.extend(part);
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
fn every_input_of_the_corpus_is_borne() {
    for target in TARGETS {
        let corpus = corpus(target.0);
        assert!(corpus.len() >= 5, "{} has a corpus", target.0);
        for input in &corpus {
            feed(target, input);
        }
    }
}

#[test]
fn mutations_of_the_corpus_are_borne() {
    let rounds = std::env::var("VBM_FUZZ_ROUNDS").map_or(ROUNDS, |text| text.parse().expect("a number"));
    for (seed, target) in (1..).zip(TARGETS) {
        let (corpus, mut dice) = (corpus(target.0), Dice(seed));
        for _ in 0..rounds {
            feed(target, &dice.mutate(&corpus));
        }
        println!(
            "{}: {} inputs of the corpus, {rounds} mutations",
            target.0,
            corpus.len()
        );
    }
}

#[test]
fn the_corpus_holds_good_inputs_too() {
    let good = |target: &str, is_good: fn(&[u8]) -> bool| {
        let count = corpus(target).iter().filter(|input| is_good(input)).count();
        assert!(count > 0, "{target} holds nothing that can be read");
    };
    good("envelope", |input| {
        Envelope::decode(&Bytes::copy_from_slice(input)).is_ok()
    });
    good("pack", |input| {
        pack::unpack(Bytes::copy_from_slice(input)).is_some()
    });
    good("presence", |input| {
        serde_json::from_slice::<MemberInfo>(input).is_ok()
    });
    good("replies", |input| {
        redis::parse_redis_value(input).is_ok_and(|value| {
            pack::streams(value)
                .iter()
                .any(|(_, entries)| entries.iter().any(|entry| !entry.frames.is_empty()))
        })
    });
    good("consumer", |input| {
        std::str::from_utf8(input).is_ok_and(|name| keys::parse_consumer(name).is_some())
    });
    good("id", |input| {
        std::str::from_utf8(input).is_ok_and(|id| pack::parse_id(id).is_some())
    });
}
