//! Options of DHCPv6 on the wire (RFC 8415 section 21.1): a code and a length of two bytes each, then as many bytes. Pure.

use super::Reason;
use std::net::Ipv6Addr;

/// Codes of options (the registry "DHCPv6 Option Codes" of IANA).
#[expect(missing_docs, reason = "each is the name of an option in its RFC")]
pub mod code {
    pub const CLIENT_ID: u16 = 1;
    pub const SERVER_ID: u16 = 2;
    pub const IA_NA: u16 = 3;
    pub const IA_TA: u16 = 4;
    pub const IA_ADDRESS: u16 = 5;
    pub const OPTION_REQUEST: u16 = 6;
    pub const PREFERENCE: u16 = 7;
    pub const ELAPSED: u16 = 8;
    pub const STATUS: u16 = 13;
    pub const RAPID_COMMIT: u16 = 14;
    pub const DNS: u16 = 23;
    pub const SEARCH: u16 = 24;
    pub const IA_PD: u16 = 25;
    pub const SNTP: u16 = 31;
    pub const REFRESH: u16 = 32;
    pub const NTP: u16 = 56;
}

/// The suboption of [`code::NTP`] that names a server by its address (RFC 5908 section 4.1).
pub const NTP_SERVER_ADDRESS: u16 = 1;

/// Goes through options; ends after the first that is not whole.
#[derive(Clone, Debug)]
pub struct Walk<'a> {
    rest: &'a [u8],
}

/// The options in these bytes.
pub const fn walk(bytes: &[u8]) -> Walk<'_> {
    Walk { rest: bytes }
}

impl<'a> Iterator for Walk<'a> {
    type Item = Result<(u16, &'a [u8]), Reason>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.rest.is_empty() {
            return None;
        }
        let read = || {
            let (head, behind) = self.rest.split_first_chunk::<4>()?;
            let [code_high, code_low, length_high, length_low] = *head;
            let length = usize::from(u16::from_be_bytes([length_high, length_low]));
            let (data, rest) = behind.split_at_checked(length)?;
            Some((u16::from_be_bytes([code_high, code_low]), data, rest))
        };
        match read() {
            Some((code, data, rest)) => {
                self.rest = rest;
                Some(Ok((code, data)))
            }
            None => {
                self.rest = &[];
                Some(Err(Reason::OptionTruncated))
            }
        }
    }
}

/// Writes an option whose data this writes. One that is too long for its length is left out.
pub fn put(out: &mut Vec<u8>, code: u16, data: impl FnOnce(&mut Vec<u8>)) {
    let at = out.len();
    out.extend(code.to_be_bytes());
    out.extend([0; 2]);
    data(out);
    let length = u16::try_from(out.len() - at - 4);
    match (length, out.get_mut(at + 2..at + 4)) {
        (Ok(length), Some(field)) => field.copy_from_slice(&length.to_be_bytes()),
        _ => out.truncate(at),
    }
}

/// Writes addresses one behind the other.
pub fn addresses(out: &mut Vec<u8>, all: &[Ipv6Addr]) {
    out.extend(all.iter().flat_map(Ipv6Addr::octets));
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn what_is_written_is_read(all in prop::collection::vec((any::<u16>(), prop::collection::vec(any::<u8>(), 0..40)), 0..8)) {
            let mut bytes = Vec::new();
            for (code, data) in &all {
                put(&mut bytes, *code, |out| out.extend(data));
            }
            let read: Vec<_> = walk(&bytes).map(|o| o.map(|(c, d)| (c, d.to_vec()))).collect::<Result<_, _>>().unwrap();
            prop_assert_eq!(&read, &all);
            bytes.extend([0, 1, 0]);
            prop_assert_eq!(walk(&bytes).last(), Some(Err(Reason::OptionTruncated)));
            prop_assert_eq!(walk(&bytes).count(), all.len() + 1);
        }

        #[test]
        fn garbage_ends(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
            prop_assert!(walk(&bytes).count() <= bytes.len());
        }
    }

    #[test]
    fn an_option_that_is_too_long_is_left_out_whole() {
        let mut bytes = vec![7];
        put(&mut bytes, 1, |out| out.extend(vec![0; 65_536]));
        assert_eq!(bytes, [7]);
        put(&mut bytes, 1, |out| out.extend(vec![0; 65_535]));
        assert_eq!(bytes.len(), 1 + 4 + 65_535);
    }
}
