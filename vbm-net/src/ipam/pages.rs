//! A set of offsets that costs what is in it: pages of 32,768 offsets, made when the first one is taken.
//!
//! ```text
//!   offset  = page number . place (15 bits)
//!   page    absent        nothing taken       0 bytes
//!           Few           up to 128 places    2 bytes each: a lone IPv6 address costs no bitmap
//!           Bits          one bit a place     4 KiB
//!           Full          all of it           0 bytes
//! ```
//!
//! Ten million offsets of an IPv4 /8, in any order, take at most its 512 bitmaps: 2.1 MB.

use std::{collections::BTreeMap, mem::size_of};

/// How many bits of an offset are the place in its page.
const PLACE_BITS: u32 = 15;
/// The places of a page.
pub(super) const PAGE_PLACES: u32 = 1 << PLACE_BITS;
const WORDS: usize = (PAGE_PLACES / u64::BITS) as usize;
/// The most places that are kept as a list; beyond it the page becomes a bitmap.
const FEW_MAX_PLACES: usize = 128;
/// A bitmap with fewer places than this becomes a list again: half of the above, so that it does not swing.
const BITS_MIN_PLACES: u32 = 64;
/// The most pages. An IPv4 /8 has 512; IPv6 addresses that stand far from each other take one each.
pub(super) const PAGES_MAX: usize = 16_384;
/// The most bitmaps: 4 MiB of them.
pub(super) const BITMAPS_MAX: usize = 1_024;

/// The set has as many pages or bitmaps as it may.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct TooScattered;

#[derive(Clone, Debug)]
struct Bitmap {
    count: u32,
    words: [u64; WORDS],
}

#[derive(Clone, Debug)]
enum Page {
    Few(Vec<u16>),
    Bits(Box<Bitmap>),
    Full,
}

/// The set.
#[derive(Clone, Debug, Default)]
pub(super) struct Pages {
    pages: BTreeMap<u128, Page>,
    bitmaps: usize,
    len: u128,
}

const fn split(offset: u128) -> (u128, u32) {
    let [low, high, ..] = offset.to_le_bytes();
    (
        offset >> PLACE_BITS,
        u16::from_le_bytes([low, high]) as u32 % PAGE_PLACES,
    )
}

const fn word_of(place: u32) -> (usize, u64) {
    ((place / u64::BITS) as usize, 1 << (place % u64::BITS))
}

impl Pages {
    /// How many offsets are in it.
    pub(super) const fn len(&self) -> u128 {
        self.len
    }

    pub(super) fn contains(&self, offset: u128) -> bool {
        let (number, place) = split(offset);
        self.pages.get(&number).is_some_and(|page| page.contains(place))
    }

    /// Puts an offset in; whether it is new.
    pub(super) fn insert(&mut self, offset: u128) -> Result<bool, TooScattered> {
        let (number, place) = split(offset);
        let pages = self.pages.len();
        let room = self.bitmaps < BITMAPS_MAX;
        let page = match self.pages.entry(number) {
            std::collections::btree_map::Entry::Occupied(entry) => entry.into_mut(),
            std::collections::btree_map::Entry::Vacant(_) if pages >= PAGES_MAX => return Err(TooScattered),
            std::collections::btree_map::Entry::Vacant(entry) => entry.insert(Page::Few(Vec::new())),
        };
        let was = page.is_bitmap();
        let new = page.insert(place, room)?;
        self.bitmaps = self.bitmaps + usize::from(page.is_bitmap()) - usize::from(was);
        self.len += u128::from(new);
        Ok(new)
    }

    /// Takes an offset out; whether it was in.
    pub(super) fn remove(&mut self, offset: u128) -> bool {
        let (number, place) = split(offset);
        let Some(page) = self.pages.get_mut(&number) else {
            return false;
        };
        let was = page.is_bitmap();
        let gone = page.remove(place);
        self.bitmaps = self.bitmaps + usize::from(page.is_bitmap()) - usize::from(was);
        self.len -= u128::from(gone);
        if page.len() == 0 {
            self.pages.remove(&number);
        }
        gone
    }

    /// The first offset of `first..=last` that is not in it: a page, then a word at a time.
    pub(super) fn first_absent(&self, first: u128, last: u128) -> Option<u128> {
        let mut at = first;
        while at <= last {
            let (number, from) = split(at);
            let end = last.min((number << PLACE_BITS) | u128::from(PAGE_PLACES - 1));
            let Some(page) = self.pages.get(&number) else {
                return Some(at);
            };
            if let Some(place) = page.first_absent(from, split(end).1) {
                return Some((number << PLACE_BITS) | u128::from(place));
            }
            at = end.checked_add(1)?;
        }
        None
    }

    /// How many offsets of `first..=last` are in it.
    pub(super) fn count(&self, first: u128, last: u128) -> u128 {
        if first > last {
            return 0;
        }
        let ((low, from), (high, to)) = (split(first), split(last));
        let of = |(number, page): (&u128, &Page)| {
            let from = if *number == low { from } else { 0 };
            let to = if *number == high { to } else { PAGE_PLACES - 1 };
            u128::from(page.count(from, to))
        };
        self.pages.range(low..=high).map(of).sum()
    }

    /// The first offset of `first..=last` that is in it.
    pub(super) fn first_present(&self, first: u128, last: u128) -> Option<u128> {
        let low = split(first).0;
        let inside = self.pages.range(low..).flat_map(|(number, page)| {
            let base = number << PLACE_BITS;
            page.places().map(move |place| base | u128::from(place))
        });
        inside
            .take_while(|offset| *offset <= last)
            .find(|offset| *offset >= first)
    }

    /// All offsets, ascending.
    pub(super) fn iter(&self) -> impl Iterator<Item = u128> + '_ {
        self.pages.iter().flat_map(|(number, page)| {
            let base = number << PLACE_BITS;
            page.places().map(move |place| base | u128::from(place))
        })
    }

    /// The numbers of the pages with their places, ascending.
    pub(super) fn by_page(&self) -> impl Iterator<Item = (u128, Vec<u64>)> + '_ {
        self.pages.iter().map(|(number, page)| (*number, page.words()))
    }

    /// Puts a page in whose words are these. Pages come in ascending order, each once.
    pub(super) fn push_page(&mut self, number: u128, words: &[u64; WORDS]) -> Result<(), TooScattered> {
        let page = Page::of(words);
        if self.pages.len() >= PAGES_MAX || self.bitmaps + usize::from(page.is_bitmap()) > BITMAPS_MAX {
            return Err(TooScattered);
        }
        self.bitmaps += usize::from(page.is_bitmap());
        self.len += u128::from(page.len());
        self.pages.insert(number, page);
        Ok(())
    }

    /// What it takes on the heap, in bytes: nodes of the tree as half full, which is their least.
    pub(super) fn heap_bytes(&self) -> usize {
        let slots = self.pages.len() * 2 * (size_of::<u128>() + size_of::<Page>());
        let inside = |page: &Page| match page {
            Page::Few(places) => places.capacity() * size_of::<u16>(),
            Page::Bits(_) => size_of::<Bitmap>(),
            Page::Full => 0,
        };
        slots + self.pages.values().map(inside).sum::<usize>()
    }
}

/// Two sets are the same when the same offsets are in them, however their pages came to be.
impl PartialEq for Pages {
    fn eq(&self, other: &Self) -> bool {
        self.len == other.len && self.iter().eq(other.iter())
    }
}
impl Eq for Pages {}

impl Page {
    const fn is_bitmap(&self) -> bool {
        matches!(self, Self::Bits(_))
    }

    fn len(&self) -> u32 {
        match self {
            Self::Few(places) => u32::try_from(places.len()).unwrap_or(u32::MAX),
            Self::Bits(bits) => bits.count,
            Self::Full => PAGE_PLACES,
        }
    }

    fn contains(&self, place: u32) -> bool {
        match self {
            Self::Few(places) => places.binary_search_by_key(&place, |p| u32::from(*p)).is_ok(),
            Self::Bits(bits) => {
                let (word, bit) = word_of(place);
                bits.words[word] & bit != 0
            }
            Self::Full => true,
        }
    }

    fn insert(&mut self, place: u32, room: bool) -> Result<bool, TooScattered> {
        match self {
            Self::Full => Ok(false),
            Self::Few(places) => match places.binary_search_by_key(&place, |p| u32::from(*p)) {
                Ok(_) => Ok(false),
                Err(at) if places.len() < FEW_MAX_PLACES => {
                    places.insert(at, u16::try_from(place).unwrap_or(u16::MAX));
                    Ok(true)
                }
                Err(_) if !room => Err(TooScattered),
                Err(_) => {
                    let mut bits = Bitmap {
                        count: 0,
                        words: [0; WORDS],
                    };
                    places.iter().for_each(|p| bits.set(u32::from(*p)));
                    bits.set(place);
                    *self = Self::Bits(Box::new(bits));
                    Ok(true)
                }
            },
            Self::Bits(bits) => {
                let (word, bit) = word_of(place);
                if bits.words[word] & bit != 0 {
                    return Ok(false);
                }
                bits.set(place);
                if bits.count == PAGE_PLACES {
                    *self = Self::Full;
                }
                Ok(true)
            }
        }
    }

    fn remove(&mut self, place: u32) -> bool {
        match self {
            Self::Few(places) => match places.binary_search_by_key(&place, |p| u32::from(*p)) {
                Ok(at) => {
                    places.remove(at);
                    true
                }
                Err(_) => false,
            },
            Self::Bits(bits) => {
                let (word, bit) = word_of(place);
                if bits.words[word] & bit == 0 {
                    return false;
                }
                bits.words[word] &= !bit;
                bits.count -= 1;
                if bits.count < BITS_MIN_PLACES {
                    *self = Self::few(&bits.words);
                }
                true
            }
            Self::Full => {
                let mut bits = Bitmap {
                    count: PAGE_PLACES - 1,
                    words: [u64::MAX; WORDS],
                };
                let (word, bit) = word_of(place);
                bits.words[word] &= !bit;
                *self = Self::Bits(Box::new(bits));
                true
            }
        }
    }

    fn first_absent(&self, from: u32, to: u32) -> Option<u32> {
        match self {
            Self::Full => None,
            Self::Few(places) => {
                let start = places.partition_point(|p| u32::from(*p) < from);
                let mut at = from;
                for place in &places[start..] {
                    if u32::from(*place) != at {
                        break;
                    }
                    at += 1;
                }
                (at <= to).then_some(at)
            }
            Self::Bits(bits) => {
                let mut at = from;
                while at <= to {
                    let free = !bits.words[word_of(at).0] >> (at % u64::BITS);
                    if free != 0 {
                        let found = at + free.trailing_zeros();
                        return (found <= to).then_some(found);
                    }
                    at = (at / u64::BITS + 1) * u64::BITS;
                }
                None
            }
        }
    }

    fn count(&self, from: u32, to: u32) -> u32 {
        match self {
            Self::Full => to - from + 1,
            Self::Few(places) => {
                let below = |limit: u32| places.partition_point(|p| u32::from(*p) < limit);
                u32::try_from(below(to + 1) - below(from)).unwrap_or(u32::MAX)
            }
            Self::Bits(bits) if from == 0 && to == PAGE_PLACES - 1 => bits.count,
            Self::Bits(bits) => {
                let mut count = 0;
                let mut at = from;
                while at <= to {
                    let end = (at | (u64::BITS - 1)).min(to);
                    let mask = u64::MAX >> (u64::BITS - (end - at + 1));
                    count += (bits.words[word_of(at).0] >> (at % u64::BITS) & mask).count_ones();
                    at = end + 1;
                }
                count
            }
        }
    }

    fn places(&self) -> impl Iterator<Item = u32> + '_ {
        (0..PAGE_PLACES / u64::BITS).flat_map(|word| {
            let mut bits = self.word(word);
            std::iter::from_fn(move || {
                let place = bits.trailing_zeros();
                bits &= bits.wrapping_sub(1);
                (place < u64::BITS).then_some(word * u64::BITS + place)
            })
        })
    }

    fn word(&self, word: u32) -> u64 {
        match self {
            Self::Full => u64::MAX,
            Self::Bits(bits) => bits.words[word as usize],
            Self::Few(places) => {
                let start = places.partition_point(|p| u32::from(*p) < word * u64::BITS);
                let inside = places[start..]
                    .iter()
                    .take_while(|p| u32::from(**p) / u64::BITS == word);
                inside.fold(0, |bits, p| bits | word_of(u32::from(*p)).1)
            }
        }
    }

    fn words(&self) -> Vec<u64> {
        (0..PAGE_PLACES / u64::BITS).map(|word| self.word(word)).collect()
    }

    fn few(words: &[u64; WORDS]) -> Self {
        let count: u32 = words.iter().map(|w| w.count_ones()).sum();
        let full = Self::Bits(Box::new(Bitmap { count, words: *words }));
        Self::Few(
            full.places()
                .map(|p| u16::try_from(p).unwrap_or(u16::MAX))
                .collect(),
        )
    }

    fn of(words: &[u64; WORDS]) -> Self {
        let count: u32 = words.iter().map(|w| w.count_ones()).sum();
        match count {
            PAGE_PLACES => Self::Full,
            _ if count as usize <= FEW_MAX_PLACES => Self::few(words),
            _ => Self::Bits(Box::new(Bitmap { count, words: *words })),
        }
    }
}

impl Bitmap {
    /// Sets a place that is not set.
    const fn set(&mut self, place: u32) {
        let (word, bit) = word_of(place);
        self.words[word] |= bit;
        self.count += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    #[derive(Clone, Debug)]
    enum Op {
        Insert(u128),
        Remove(u128),
        Fill(u128, u128),
        Clear(u128, u128),
    }

    /// Around the borders of words and pages, and far away.
    fn offset() -> impl Strategy<Value = u128> {
        prop_oneof![
            0u128..300,
            32_600u128..32_900,
            Just(1u128 << 90),
            Just((1u128 << 90) + 1)
        ]
    }

    fn op() -> impl Strategy<Value = Op> {
        prop_oneof![
            offset().prop_map(Op::Insert),
            offset().prop_map(Op::Remove),
            (offset(), 0u128..200).prop_map(|(at, n)| Op::Fill(at, n)),
            (offset(), 0u128..200).prop_map(|(at, n)| Op::Clear(at, n)),
        ]
    }

    proptest! {
        #[test]
        fn it_is_a_set(ops in prop::collection::vec(op(), 0..60), from in offset(), to in offset()) {
            let (mut pages, mut model) = (Pages::default(), BTreeSet::new());
            for op in ops {
                match op {
                    Op::Insert(n) => prop_assert_eq!(pages.insert(n), Ok(model.insert(n))),
                    Op::Remove(n) => prop_assert_eq!(pages.remove(n), model.remove(&n)),
                    Op::Fill(at, n) => for o in at..at + n { pages.insert(o).unwrap(); model.insert(o); },
                    Op::Clear(at, n) => for o in at..at + n { pages.remove(o); model.remove(&o); },
                }
                prop_assert_eq!(pages.len(), model.len() as u128);
            }
            let (from, to) = (from.min(to), from.max(to));
            prop_assert!(pages.iter().eq(model.iter().copied()));
            prop_assert_eq!(pages.count(from, to), model.range(from..=to).count() as u128);
            prop_assert_eq!(pages.first_present(from, to), model.range(from..=to).next().copied());
            let free = (from..=to).take(40_000).find(|o| !model.contains(o));
            prop_assert_eq!(pages.first_absent(from, to), free);
            let mut again = Pages::default();
            for (number, words) in pages.by_page() {
                again.push_page(number, &words.try_into().unwrap()).unwrap();
            }
            prop_assert!(again.bitmaps <= pages.bitmaps, "what was kept can be read again");
            prop_assert_eq!(again, pages);
        }
    }

    #[test]
    fn a_page_is_full_then_a_bitmap_then_a_list_then_gone() {
        let mut pages = Pages::default();
        for offset in 0..u128::from(PAGE_PLACES) {
            assert!(pages.insert(offset).unwrap());
        }
        assert_eq!((pages.bitmaps, pages.first_absent(0, 32_767)), (0, None));
        assert_eq!(pages.first_absent(0, 32_768), Some(32_768));
        for offset in 0..u128::from(PAGE_PLACES) {
            assert!(pages.remove(offset) && !pages.remove(offset));
        }
        assert_eq!((pages.bitmaps, pages.pages.len(), pages.len()), (0, 0, 0));
    }

    #[test]
    fn a_set_that_is_too_scattered_says_so_and_stays_as_it_was() {
        let mut pages = Pages::default();
        for n in 0..PAGES_MAX as u128 {
            pages.insert(n << 20).unwrap();
        }
        assert_eq!(pages.insert(5), Ok(true), "a page that is there takes more");
        assert_eq!(pages.insert(1 << 100), Err(TooScattered));
        assert_eq!(pages.len(), PAGES_MAX as u128 + 1);
        let mut dense = Pages::default();
        for page in 0..BITMAPS_MAX as u128 {
            for place in 0..=FEW_MAX_PLACES as u128 {
                dense.insert((page << PLACE_BITS) | (place * 2)).unwrap();
            }
        }
        let next = (BITMAPS_MAX as u128) << PLACE_BITS;
        for place in 0..FEW_MAX_PLACES as u128 {
            dense.insert(next | (place * 2)).unwrap();
        }
        assert_eq!(dense.insert(next | 9_999), Err(TooScattered));
    }
}
