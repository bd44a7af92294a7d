//! Options as they stand on the wire: read and joined, split and written.
//!
//! dhcproto knows the meaning of options, but joins only parts that are neighbours and reads only the field behind the cookie. RFC 3396
//! joins parts wherever they stand, and RFC 2132 section 9.3 lets them go on in `file` and `sname`, in this order.

use super::{Reason, Route};
use std::{borrow::Cow, net::Ipv4Addr};

/// The fixed part and the magic cookie.
pub const FIXED_BYTES: usize = 240;
/// Where `sname` stands.
pub const SNAME: std::ops::Range<usize> = 44..108;
/// Where `file` stands.
pub const FILE: std::ops::Range<usize> = 108..236;
/// The most data of one option (RFC 2132 section 2); more is split (RFC 3396).
pub const OPTION_MAX_BYTES: usize = 255;
/// The longest domain name on the wire (RFC 1035 section 3.1), and the longest label.
const NAME_MAX_BYTES: usize = 255;
const LABEL_MAX_BYTES: usize = 63;

/// Codes of options that the server knows.
pub mod code {
    #![expect(missing_docs, reason = "each is the name that its RFC gives it")]
    pub const PAD: u8 = 0;
    pub const SUBNET_MASK: u8 = 1;
    pub const ROUTER: u8 = 3;
    pub const DNS: u8 = 6;
    pub const HOST_NAME: u8 = 12;
    pub const DOMAIN: u8 = 15;
    pub const MTU: u8 = 26;
    pub const BROADCAST: u8 = 28;
    pub const NTP: u8 = 42;
    pub const VENDOR_SPECIFIC: u8 = 43;
    pub const REQUESTED_ADDRESS: u8 = 50;
    pub const LEASE_TIME: u8 = 51;
    pub const OVERLOAD: u8 = 52;
    pub const MESSAGE_TYPE: u8 = 53;
    pub const SERVER_ID: u8 = 54;
    pub const PARAMETERS: u8 = 55;
    pub const MAX_SIZE: u8 = 57;
    pub const RENEWAL: u8 = 58;
    pub const REBINDING: u8 = 59;
    pub const VENDOR_CLASS: u8 = 60;
    pub const CLIENT_ID: u8 = 61;
    pub const BOOT_SERVER: u8 = 66;
    pub const BOOT_FILE: u8 = 67;
    pub const USER_CLASS: u8 = 77;
    pub const RAPID_COMMIT: u8 = 80;
    pub const FQDN: u8 = 81;
    pub const RELAY_AGENT: u8 = 82;
    pub const ARCHITECTURE: u8 = 93;
    pub const MACHINE_ID: u8 = 97;
    pub const V6_ONLY: u8 = 108;
    pub const SUBNET_SELECTION: u8 = 118;
    pub const SEARCH: u8 = 119;
    pub const CLASSLESS_ROUTES: u8 = 121;
    pub const END: u8 = 255;
}

/// The options of a message, each once, joined.
#[derive(Debug)]
pub struct Options<'a> {
    items: Vec<(u8, Cow<'a, [u8]>)>,
    /// Where each code is in `items`, plus one.
    places: [u16; 256],
}

impl<'a> Options<'a> {
    /// Reads those of a message with its fixed part.
    ///
    /// # Errors
    /// [`Reason::TooShort`]; [`Reason::OptionTruncated`] for one that runs past the end of its field; [`Reason::OptionLength`] for an
    /// overload that says nothing.
    pub fn read(message: &'a [u8]) -> Result<Self, Reason> {
        let behind = message.get(FIXED_BYTES..).ok_or(Reason::TooShort)?;
        let mut options = Self {
            items: Vec::with_capacity(16),
            places: [0; 256],
        };
        options.read_field(behind)?;
        // Said once: what the two fields say about it is not heard, so nothing goes in circles.
        let (file, sname) = match options.get(code::OVERLOAD) {
            None => (false, false),
            Some([1]) => (true, false),
            Some([2]) => (false, true),
            Some([3]) => (true, true),
            Some(_) => return Err(Reason::OptionLength),
        };
        for (used, field) in [(file, FILE), (sname, SNAME)] {
            if used {
                options.read_field(message.get(field).ok_or(Reason::TooShort)?)?;
            }
        }
        Ok(options)
    }

    fn read_field(&mut self, mut field: &'a [u8]) -> Result<(), Reason> {
        loop {
            match field {
                // Some clients leave the end out.
                [] | [code::END, ..] => return Ok(()),
                [code::PAD, rest @ ..] => field = rest,
                [code, length, rest @ ..] => {
                    let (data, rest) = rest
                        .split_at_checked(usize::from(*length))
                        .ok_or(Reason::OptionTruncated)?;
                    self.join(*code, data);
                    field = rest;
                }
                [_] => return Err(Reason::OptionTruncated),
            }
        }
    }

    fn join(&mut self, code: u8, data: &'a [u8]) {
        let Some(place) = self.places.get_mut(usize::from(code)) else {
            return;
        };
        match usize::from(*place)
            .checked_sub(1)
            .and_then(|at| self.items.get_mut(at))
        {
            Some((_, joined)) => joined.to_mut().extend_from_slice(data),
            None => {
                self.items.push((code, Cow::Borrowed(data)));
                *place = u16::try_from(self.items.len()).unwrap_or(u16::MAX);
            }
        }
    }

    /// The data of an option.
    pub fn get(&self, code: u8) -> Option<&[u8]> {
        let at = usize::from(*self.places.get(usize::from(code))?).checked_sub(1)?;
        self.items.get(at).map(|(_, data)| data.as_ref())
    }

    /// The codes, in the order in which they first stand.
    pub fn codes(&self) -> impl Iterator<Item = u8> {
        self.items.iter().map(|(code, _)| *code)
    }

    /// An option of just so many bytes.
    ///
    /// # Errors
    /// [`Reason::OptionLength`].
    pub fn exact<const N: usize>(&self, code: u8) -> Result<Option<[u8; N]>, Reason> {
        self.get(code)
            .map(|data| data.try_into().map_err(|_| Reason::OptionLength))
            .transpose()
    }

    /// An address.
    ///
    /// # Errors
    /// [`Reason::OptionLength`].
    pub fn address(&self, code: u8) -> Result<Option<Ipv4Addr>, Reason> {
        Ok(self.exact::<4>(code)?.map(Ipv4Addr::from))
    }
}

/// A sub-option of option 82 (RFC 3046 section 2.0). Garbage behind it is none of our business.
pub fn relay_part(relay_agent: &[u8], wanted: u8) -> Option<&[u8]> {
    let mut rest = relay_agent;
    while let [code, length, behind @ ..] = rest {
        let (data, behind) = behind.split_at_checked(usize::from(*length))?;
        if *code == wanted {
            return Some(data);
        }
        rest = behind;
    }
    None
}

/// Appends an option, in parts of at most 255 bytes (RFC 3396).
pub fn put(bytes: &mut Vec<u8>, code: u8, data: &[u8]) {
    if data.is_empty() {
        bytes.extend([code, 0]);
    }
    for part in data.chunks(OPTION_MAX_BYTES) {
        bytes.push(code);
        bytes.push(u8::try_from(part.len()).unwrap_or(u8::MAX));
        bytes.extend(part);
    }
}

/// How many bytes [`put`] appends.
pub const fn put_bytes(data: &[u8]) -> usize {
    let parts = data.len().div_ceil(OPTION_MAX_BYTES);
    data.len() + 2 * if parts == 0 { 1 } else { parts }
}

/// Addresses, one behind the other.
pub fn addresses(all: &[Ipv4Addr]) -> Vec<u8> {
    all.iter().flat_map(Ipv4Addr::octets).collect()
}

/// The data of option 121 (RFC 3442): of each destination only the octets that matter.
pub fn routes<'a>(all: impl IntoIterator<Item = &'a Route>) -> Vec<u8> {
    let mut data = Vec::new();
    for route in all {
        let bits = route.to.prefix_len();
        let octets = route.to.network().octets();
        data.push(bits);
        data.extend(octets.iter().take(usize::from(bits.div_ceil(8))));
        data.extend(route.via.octets());
    }
    data
}

/// The data of option 119 (RFC 3397): names as in DNS, where a tail that was there before is pointed to. A name that is none
/// is left out.
pub fn search_list<'a>(names: impl IntoIterator<Item = &'a str>) -> Vec<u8> {
    let mut data = Vec::new();
    let mut tails: Vec<(String, u16)> = Vec::new();
    for name in names {
        if wire_name(name).is_none() {
            continue;
        }
        let mut rest = name.trim_end_matches('.').to_ascii_lowercase();
        loop {
            if let Some((_, at)) = tails.iter().find(|(tail, _)| *tail == rest) {
                data.extend((0xc000 | at).to_be_bytes());
                break;
            }
            // A pointer has 14 bits.
            if let Some(at) = u16::try_from(data.len()).ok().filter(|at| *at < 0x4000) {
                tails.push((rest.clone(), at));
            }
            let (label, behind) = match rest.split_once('.') {
                Some((label, behind)) => (label.to_owned(), Some(behind.to_owned())),
                None => (rest.clone(), None),
            };
            data.push(u8::try_from(label.len()).unwrap_or(0));
            data.extend(label.bytes());
            match behind {
                Some(behind) => rest = behind,
                None => {
                    data.push(0);
                    break;
                }
            }
        }
    }
    data
}

/// A name as labels with their lengths and the root at the end (RFC 1035 section 3.1).
pub fn wire_name(name: &str) -> Option<Vec<u8>> {
    let mut wire = Vec::with_capacity(name.len() + 2);
    for label in name.trim_end_matches('.').split('.') {
        if label.is_empty() || label.len() > LABEL_MAX_BYTES {
            return None;
        }
        wire.push(u8::try_from(label.len()).ok()?);
        wire.extend(label.bytes());
    }
    wire.push(0);
    (wire.len() <= NAME_MAX_BYTES).then_some(wire)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn message(behind: &[u8]) -> Vec<u8> {
        let mut bytes = vec![0; FIXED_BYTES];
        bytes.extend(behind);
        bytes
    }

    #[test]
    fn parts_are_joined_wherever_they_stand() {
        let mut bytes = message(&[61, 2, 1, 2, 0, 0, 12, 1, b'a', 61, 1, 3, 52, 1, 3, 255, 9, 9]);
        bytes[FILE][..4].copy_from_slice(&[61, 1, 4, 255]);
        bytes[SNAME][..7].copy_from_slice(&[61, 1, 5, 52, 1, 1, 255]);
        let options = Options::read(&bytes).unwrap();
        assert_eq!(options.get(61), Some(&[1, 2, 3, 4, 5][..]));
        assert_eq!(options.codes().collect::<Vec<_>>(), [61, 12, 52]);
        assert_eq!(options.get(200), None);
    }

    #[test]
    fn file_and_sname_are_read_only_where_overload_says_so() {
        for (overload, seen) in [(1, [true, false]), (2, [false, true]), (3, [true, true])] {
            let mut bytes = message(&[52, 1, overload, 255]);
            bytes[FILE][..4].copy_from_slice(&[100, 1, 4, 255]);
            bytes[SNAME][..4].copy_from_slice(&[101, 1, 5, 255]);
            let options = Options::read(&bytes).unwrap();
            assert_eq!([100, 101].map(|c| options.get(c).is_some()), seen, "{overload}");
        }
    }

    #[test]
    fn what_runs_past_its_field_is_refused() {
        for behind in [&[53][..], &[53, 1], &[61, 9, 1], &[53, 1, 1, 12, 255, 0]] {
            assert_eq!(
                Options::read(&message(behind)).unwrap_err(),
                Reason::OptionTruncated
            );
        }
        for overload in [&[52, 1, 0][..], &[52, 1, 4], &[52, 2, 1, 1], &[52, 0]] {
            assert_eq!(
                Options::read(&message(overload)).unwrap_err(),
                Reason::OptionLength,
                "{overload:?}"
            );
        }
        let mut bytes = message(&[52, 1, 1, 255]);
        bytes[FILE.end - 1] = 12;
        assert_eq!(Options::read(&bytes).unwrap_err(), Reason::OptionTruncated);
    }

    #[test]
    fn routes_are_told_as_rfc_3442_writes_them() {
        let all = [
            ("0.0.0.0/0", "10.0.0.1"),
            ("10.17.0.0/16", "10.0.0.2"),
            ("10.229.0.128/25", "10.0.0.3"),
            ("169.254.169.254/32", "0.0.0.0"),
        ]
        .map(|(to, via)| Route {
            to: to.parse().unwrap(),
            via: via.parse().unwrap(),
        });
        let expected: [u8; 31] = [
            0, 10, 0, 0, 1, 16, 10, 17, 10, 0, 0, 2, 25, 10, 229, 0, 128, 10, 0, 0, 3, 32, 169, 254, 169,
            254, 0, 0, 0, 0, 0,
        ];
        assert_eq!(routes(&all), expected[..30]);
    }

    #[test]
    fn a_search_list_points_to_the_tails_it_had_before() {
        let data = search_list(["eng.apple.com", "marketing.apple.com.", "..", "apple.com"]);
        let mut expected = b"\x03eng\x05apple\x03com\x00\x09marketing\xc0\x04".to_vec();
        expected.extend(b"\xc0\x04");
        assert_eq!(data, expected, "the example of RFC 3397 section 3, and one more");
    }

    #[test]
    fn a_relays_parts_are_found_and_its_garbage_is_not() {
        let relay = [1, 2, 9, 9, 5, 4, 10, 0, 0, 0, 11, 200, 1];
        assert_eq!(relay_part(&relay, 5), Some(&[10, 0, 0, 0][..]));
        assert_eq!(relay_part(&relay, 11), None);
        assert_eq!(relay_part(&relay, 2), None);
    }

    proptest! {
        #[test]
        fn what_is_split_is_joined_again(code in 1u8..255, data in prop::collection::vec(any::<u8>(), 0..1200)) {
            prop_assume!(code != code::OVERLOAD);
            let mut bytes = message(&[]);
            put(&mut bytes, code, &data);
            prop_assert_eq!(bytes.len(), FIXED_BYTES + put_bytes(&data));
            let options = Options::read(&bytes).unwrap();
            prop_assert_eq!(options.get(code), Some(&data[..]));
        }

        #[test]
        fn garbage_never_panics(bytes in prop::collection::vec(any::<u8>(), 0..900)) {
            if let Ok(options) = Options::read(&bytes) {
                for code in options.codes() {
                    prop_assert!(options.get(code).is_some());
                }
            }
            relay_part(&bytes, 5);
        }
    }
}
