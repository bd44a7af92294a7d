//! One record of the log as bytes.

use super::super::book::{ClientKey, LeaseRecord};
use std::io;
use vbm_core::{Mac, Timestamp};

/// Length and checksum.
pub(super) const HEAD_BYTES: usize = 6;
/// The most bytes of a body: address, end, kind, and the longest client id (several options joined, of one datagram).
const BODY_MAX_BYTES: usize = 4_096;

/// Adds a record.
pub(super) fn put(bytes: &mut Vec<u8>, record: &LeaseRecord) -> io::Result<()> {
    let mut body = record.address.octets().to_vec();
    body.extend(record.until.micros().to_be_bytes());
    match &record.client {
        None => body.push(0),
        Some(ClientKey::Mac(mac)) => {
            body.push(1);
            body.extend(mac.octets());
        }
        Some(ClientKey::Id(id)) => {
            body.push(2);
            body.extend(id);
        }
    }
    if body.len() > BODY_MAX_BYTES {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            "a client id is too long to be kept",
        ));
    }
    let length = u16::try_from(body.len()).map_err(io::Error::other)?;
    bytes.extend(length.to_be_bytes());
    bytes.extend(crc32(&body).to_be_bytes());
    bytes.append(&mut body);
    Ok(())
}

/// The next record, if it is whole.
pub(super) fn take(bytes: &[u8]) -> Option<(LeaseRecord, &[u8])> {
    let (head, rest) = bytes.split_at_checked(HEAD_BYTES)?;
    let (length, sum) = head.split_at_checked(2)?;
    let length = usize::from(u16::from_be_bytes(length.try_into().ok()?));
    let (body, rest) = rest.split_at_checked(length)?;
    if crc32(body) != u32::from_be_bytes(sum.try_into().ok()?) {
        return None;
    }
    let (address, body) = body.split_first_chunk::<4>()?;
    let (until, body) = body.split_first_chunk::<8>()?;
    let client = match body {
        [0] => None,
        [1, mac @ ..] => Some(ClientKey::Mac(Mac::new(mac.try_into().ok()?))),
        [2, id @ ..] => Some(ClientKey::Id(id.into())),
        _ => return None,
    };
    let record = LeaseRecord {
        address: (*address).into(),
        client,
        until: Timestamp::from_micros(i64::from_be_bytes(*until)),
    };
    Some((record, rest))
}

/// The CRC of IEEE 802.3, by a table of bytes.
fn crc32(bytes: &[u8]) -> u32 {
    const TABLE: [u32; 256] = table();
    let step = |sum: u32, byte: &u8| {
        let at = usize::from(sum.to_le_bytes()[0] ^ byte);
        (sum >> 8) ^ TABLE.get(at).copied().unwrap_or(0)
    };
    !bytes.iter().fold(u32::MAX, step)
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::indexing_slicing,
    reason = "a table of 256, made when this is compiled"
)]
const fn table() -> [u32; 256] {
    let mut table = [0; 256];
    let mut n = 0;
    while n < 256 {
        let (mut sum, mut bit) = (n as u32, 0);
        while bit < 8 {
            sum = (sum >> 1) ^ if sum & 1 == 1 { 0xedb8_8320 } else { 0 };
            bit += 1;
        }
        table[n] = sum;
        n += 1;
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sum_is_the_one_that_everybody_knows() {
        assert_eq!(crc32(b"123456789"), 0xcbf4_3926);
    }
}
