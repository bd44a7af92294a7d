//! Tokens of IMDSv2: a time and a keyed hash over that time and the port. Nothing is stored, so nobody can fill a table.

use crate::NetError;
use std::fmt;
use vbm_core::PortId;

const KEY_BYTES: usize = 32;
/// The bytes of the hash that are shown: 128 bits, which nobody guesses.
const MAC_BYTES: usize = 16;
const TIME_BYTES: usize = 8;
const TOKEN_BYTES: usize = TIME_BYTES + MAC_BYTES;

/// The key under which a process makes tokens.
#[derive(Clone, PartialEq, Eq)]
pub struct TokenKey([u8; KEY_BYTES]);

impl fmt::Debug for TokenKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("TokenKey(…)")
    }
}

impl TokenKey {
    /// A new one, from the kernel.
    ///
    /// # Errors
    /// The kernel gave no random bytes.
    pub fn random() -> Result<Self, NetError> {
        let mut key = [0; KEY_BYTES];
        getrandom::fill(&mut key)
            .map_err(|e| NetError::kernel("taking random bytes", std::io::Error::other(e)))?;
        Ok(Self(key))
    }

    /// A token for this port until this time, in seconds since the epoch.
    pub fn token(&self, port: PortId, until_seconds: u64) -> String {
        let mut bytes = until_seconds.to_be_bytes().to_vec();
        bytes.extend(self.mac(port, until_seconds));
        hex(&bytes)
    }

    /// Whether a token is this port's, and holds at this time.
    pub fn is_good(&self, token: &[u8], port: PortId, now_seconds: u64) -> bool {
        let Some(bytes) = unhex(token) else { return false };
        let (time, mac) = bytes.split_at(TIME_BYTES);
        let Ok(time) = time.try_into() else { return false };
        let until = u64::from_be_bytes(time);
        // In constant time: each byte is looked at, whichever differs first.
        let differs = mac
            .iter()
            .zip(self.mac(port, until))
            .fold(0, |all, (a, b)| all | (a ^ b));
        differs == 0 && now_seconds < until
    }

    fn mac(&self, port: PortId, until_seconds: u64) -> [u8; MAC_BYTES] {
        let mut hasher = blake3::Hasher::new_keyed(&self.0);
        hasher.update(&until_seconds.to_be_bytes());
        hasher.update(port.uuid().as_bytes());
        let mut mac = [0; MAC_BYTES];
        hasher.finalize_xof().fill(&mut mac);
        mac
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

fn unhex(text: &[u8]) -> Option<[u8; TOKEN_BYTES]> {
    let mut bytes = [0; TOKEN_BYTES];
    if text.len() != 2 * TOKEN_BYTES {
        return None;
    }
    let digit = |c: u8| char::from(c).to_digit(16).and_then(|d| u8::try_from(d).ok());
    for (to, pair) in bytes.iter_mut().zip(text.chunks_exact(2)) {
        *to = digit(pair[0])? << 4 | digit(pair[1])?;
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use uuid::Uuid;

    fn port(n: u128) -> PortId {
        PortId::from_uuid(Uuid::from_u128(n))
    }

    #[test]
    fn a_token_is_its_ports_alone_and_ends() {
        let key = TokenKey::random().unwrap();
        let token = key.token(port(1), 1_000);
        assert!(key.is_good(token.as_bytes(), port(1), 999));
        assert!(!key.is_good(token.as_bytes(), port(1), 1_000), "it ended");
        assert!(!key.is_good(token.as_bytes(), port(2), 999), "another's");
        assert!(
            !TokenKey::random()
                .unwrap()
                .is_good(token.as_bytes(), port(1), 999),
            "another process's"
        );
    }

    proptest! {
        #[test]
        fn no_other_text_is_a_token(text in prop::collection::vec(any::<u8>(), 0..100), at in 0usize..48, flip in 1u8..16) {
            let key = TokenKey([7; KEY_BYTES]);
            prop_assert!(!key.is_good(&text, port(1), 0));
            let mut token = key.token(port(1), 9).into_bytes();
            let digit = char::from(token[at]).to_digit(16).unwrap() ^ u32::from(flip);
            token[at] = u8::try_from(char::from_digit(digit, 16).unwrap()).unwrap();
            prop_assert!(!key.is_good(&token, port(1), 0));
        }
    }
}
