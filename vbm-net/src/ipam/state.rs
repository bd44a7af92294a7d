//! The state of an [`Ipam`] as a value that a store keeps: JSON around two packed fields.
//!
//! ```text
//!   {"version":1,"subnet":"10.0.0.0/24","next":"3","taken":"AAABAQA=","resting":""}
//!
//!   taken    base64 of   page*      ascending
//!            page        number (distance to the page before), kind, content
//!            kind 0      number of runs, then of each: distance to the end of the run before, length - 1
//!            kind 1      4,096 bytes, a bit a place; whichever is shorter
//!   resting  base64 of   number, then of each: microseconds after the one before (the first: after 1970), offset
//! ```
//!
//! Numbers are LEB128. A record that is damaged, of another subnet, or of a version that is not known is refused, never
//! guessed at: an address that is given twice is worse than one that is not given.

use super::{
    Address, Ipam, Plan,
    pages::{PAGE_PLACES, PAGES_MAX, Pages},
    resting::{RESTING_MAX_ADDRESSES, Resting},
};
use base64::{Engine, engine::general_purpose::STANDARD};
use serde::{Deserialize, Serialize};
use vbm_core::{Error, ErrorKind, Timestamp};

/// The version of the record that this VBM writes, and the only one that it reads.
pub const STATE_VERSION: u32 = 1;
/// The most bytes that each packed field of a record may have, as base64: an IPv4 /8 in the worst order is 2.8 MB.
pub const STATE_MAX_BYTES: usize = 4 << 20;

const WORDS: usize = (PAGE_PLACES / u64::BITS) as usize;
const RAW_BYTES: usize = WORDS * size_of::<u64>();
const RUNS: u8 = 0;
const RAW: u8 = 1;

/// What a store keeps of an [`Ipam`]. Compare and swap it whole.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "serde_json::Value")]
pub struct State {
    version: u32,
    subnet: String,
    next: String,
    taken: String,
    resting: String,
}

/// A record of any version.
#[derive(Deserialize)]
struct AnyVersion {
    version: u32,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Version1 {
    version: u32,
    subnet: String,
    next: String,
    taken: String,
    resting: String,
}

impl TryFrom<serde_json::Value> for State {
    type Error = String;

    fn try_from(value: serde_json::Value) -> Result<Self, String> {
        let AnyVersion { version } = AnyVersion::deserialize(&value).map_err(|e| e.to_string())?;
        if version != STATE_VERSION {
            return Err(format!(
                "it has version {version}, this VBM knows version {STATE_VERSION} only"
            ));
        }
        let Version1 {
            version,
            subnet,
            next,
            taken,
            resting,
        } = serde_json::from_value(value).map_err(|e| e.to_string())?;
        Ok(Self {
            version,
            subnet,
            next,
            taken,
            resting,
        })
    }
}

impl State {
    /// Of which subnet it is, as text.
    pub fn subnet(&self) -> &str {
        &self.subnet
    }

    /// How many bytes its JSON has, about.
    pub const fn bytes(&self) -> usize {
        self.subnet.len() + self.next.len() + self.taken.len() + self.resting.len() + 64
    }
}

impl<A: Address> Ipam<A> {
    /// What a store keeps of it.
    pub fn state(&self) -> State {
        let (mut taken, mut resting) = (Vec::new(), Vec::new());
        write_pages(&self.taken, &mut taken);
        put(&mut resting, self.resting.len() as u128);
        let mut before = 0;
        for (until, offset) in self.resting.iter() {
            let at = u128::try_from(until.micros()).unwrap_or(0);
            put(&mut resting, at.saturating_sub(before));
            put(&mut resting, offset);
            before = at;
        }
        State {
            version: STATE_VERSION,
            subnet: self.plan.subnet(),
            next: self.next.to_string(),
            taken: STANDARD.encode(taken),
            resting: STANDARD.encode(resting),
        }
    }

    /// The IPAM that a record speaks of, under the plan as it is now.
    ///
    /// # Errors
    /// [`ErrorKind::Corrupt`]: the record is of another subnet or contradicts itself.
    pub fn restore(plan: Plan<A>, state: &State) -> Result<Self, Error> {
        if state.subnet != plan.subnet() {
            return Err(corrupt(&format!(
                "it is that of {}, not of {}",
                state.subnet,
                plan.subnet()
            )));
        }
        let last = plan.last_offset();
        let next: u128 = state
            .next
            .parse()
            .map_err(|_| corrupt("its place in the pool is no number"))?;
        let taken = read_pages(&unpack(&state.taken)?, last)?;
        let resting = read_resting(&unpack(&state.resting)?, &taken)?;
        let mut ipam = Self::new(plan);
        (ipam.taken, ipam.resting, ipam.next) = (taken, resting, next.min(last + 1));
        ipam.in_pool = ipam.count_in_pool();
        Ok(ipam)
    }
}

fn corrupt(why: &str) -> Error {
    Error::new(
        ErrorKind::Corrupt,
        "the record of taken addresses cannot be read",
        why,
        "it was written by another VBM, or the store was damaged: restore a backup",
    )
}

fn unpack(text: &str) -> Result<Vec<u8>, Error> {
    if text.len() > STATE_MAX_BYTES {
        return Err(corrupt(&format!(
            "a field has {} bytes, {STATE_MAX_BYTES} are the most",
            text.len()
        )));
    }
    STANDARD
        .decode(text)
        .map_err(|_| corrupt("a field is not base64"))
}

fn put(out: &mut Vec<u8>, mut number: u128) {
    while number >= 0x80 {
        out.push(number.to_le_bytes()[0] | 0x80);
        number >>= 7;
    }
    out.push(number.to_le_bytes()[0]);
}

/// Reads what [`put`] wrote, and nothing else: each number has one spelling.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn number(&mut self) -> Result<u128, Error> {
        let mut number = 0_u128;
        for shift in (0..128).step_by(7) {
            let [byte] = self.bytes(1)? else {
                return Err(corrupt("it ends in the middle"));
            };
            let bits = u128::from(byte & 0x7f);
            if shift == 126 && bits > 3 {
                break;
            }
            number |= bits << shift;
            if byte & 0x80 == 0 {
                return if *byte == 0 && shift > 0 {
                    Err(corrupt("a number is spelled oddly"))
                } else {
                    Ok(number)
                };
            }
        }
        Err(corrupt("a number is too large"))
    }

    fn bytes(&mut self, count: usize) -> Result<&'a [u8], Error> {
        let (head, tail) = self
            .0
            .split_at_checked(count)
            .ok_or_else(|| corrupt("it ends in the middle"))?;
        self.0 = tail;
        Ok(head)
    }

    fn end(&self) -> Result<(), Error> {
        if self.0.is_empty() {
            Ok(())
        } else {
            Err(corrupt("something stands behind its end"))
        }
    }
}

fn write_pages(pages: &Pages, out: &mut Vec<u8>) {
    let mut after = 0;
    for (number, words) in pages.by_page() {
        put(out, number - after);
        after = number + 1;
        let runs = runs(&words);
        if runs.len() < RAW_BYTES {
            out.push(RUNS);
            out.extend(runs);
        } else {
            out.push(RAW);
            out.extend(words.iter().flat_map(|w| w.to_le_bytes()));
        }
    }
}

fn runs(words: &[u64]) -> Vec<u8> {
    let bit = |place: u32| words[(place / u64::BITS) as usize] >> (place % u64::BITS) & 1 == 1;
    let (mut out, mut count, mut done, mut at) = (Vec::new(), 0_u128, 0_u32, 0_u32);
    while at < PAGE_PLACES {
        if at.is_multiple_of(u64::BITS) && words[(at / u64::BITS) as usize] == 0 {
            at += u64::BITS;
        } else if bit(at) {
            let first = at;
            while at < PAGE_PLACES && bit(at) {
                at += 1;
            }
            put(&mut out, u128::from(first - done));
            put(&mut out, u128::from(at - first - 1));
            (count, done) = (count + 1, at);
        } else {
            at += 1;
        }
    }
    let mut all = Vec::with_capacity(out.len() + 4);
    put(&mut all, count);
    all.extend(out);
    all
}

fn read_pages(bytes: &[u8], last: u128) -> Result<Pages, Error> {
    let mut reader = Reader(bytes);
    let (mut pages, mut after) = (Pages::default(), 0_u128);
    for _ in 0..=PAGES_MAX {
        if reader.0.is_empty() {
            return Ok(pages);
        }
        let number = reader
            .number()?
            .checked_add(after)
            .ok_or_else(|| corrupt("a page is outside"))?;
        let base = number
            .checked_mul(u128::from(PAGE_PLACES))
            .filter(|base| *base <= last);
        let base = base.ok_or_else(|| corrupt("a page is outside of the subnet"))?;
        let words = match reader.bytes(1)? {
            [RUNS] => read_runs(&mut reader)?,
            [RAW] => read_raw(&mut reader)?,
            _ => return Err(corrupt("a page is of an unknown kind")),
        };
        let highest = words
            .iter()
            .rposition(|w| *w != 0)
            .ok_or_else(|| corrupt("a page is empty"))?;
        let place = highest as u128 * 64 + u128::from(words[highest].ilog2());
        if base + place > last {
            return Err(corrupt("an address is outside of the subnet"));
        }
        pages
            .push_page(number, &words)
            .map_err(|_| corrupt("it holds more than fits"))?;
        after = number + 1;
    }
    Err(corrupt("it has too many pages"))
}

fn read_runs(reader: &mut Reader<'_>) -> Result<[u64; WORDS], Error> {
    let outside = || corrupt("a run leaves its page");
    let mut words = [0_u64; WORDS];
    let (count, mut done) = (reader.number()?, 0_u32);
    for run in 0..count {
        let gap = reader.number()?;
        // Two runs that touch are one, and have one spelling.
        if gap == 0 && run > 0 {
            return Err(corrupt("two runs touch"));
        }
        let first = u32::try_from(gap)
            .ok()
            .and_then(|gap| done.checked_add(gap))
            .ok_or_else(outside)?;
        let more = u32::try_from(reader.number()?).map_err(|_| outside())?;
        let end = first
            .checked_add(more)
            .filter(|end| *end < PAGE_PLACES)
            .ok_or_else(outside)?;
        (first..=end).for_each(|place| words[(place / 64) as usize] |= 1 << (place % 64));
        done = end + 1;
    }
    Ok(words)
}

fn read_raw(reader: &mut Reader<'_>) -> Result<[u64; WORDS], Error> {
    let mut words = [0_u64; WORDS];
    for (word, bytes) in words
        .iter_mut()
        .zip(reader.bytes(RAW_BYTES)?.chunks_exact(size_of::<u64>()))
    {
        *word = bytes
            .iter()
            .rev()
            .fold(0, |word, byte| word << 8 | u64::from(*byte));
    }
    Ok(words)
}

fn read_resting(bytes: &[u8], taken: &Pages) -> Result<Resting, Error> {
    let (mut reader, mut resting, mut at) = (Reader(bytes), Resting::default(), 0_i64);
    let count = reader.number()?;
    if count > RESTING_MAX_ADDRESSES as u128 {
        return Err(corrupt("too many addresses rest"));
    }
    for _ in 0..count {
        let more = i64::try_from(reader.number()?).ok();
        at = more
            .and_then(|more| at.checked_add(more))
            .ok_or_else(|| corrupt("a time is out of reach"))?;
        let offset = reader.number()?;
        if !taken.contains(offset) || resting.until(offset).is_some() {
            return Err(corrupt("an address rests that is free, or rests twice"));
        }
        resting.begin(offset, Timestamp::from_micros(at));
    }
    reader.end()?;
    Ok(resting)
}
