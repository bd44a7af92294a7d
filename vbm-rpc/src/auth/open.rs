//! Opening: from an entry with its seal to whose it is. Nothing of the frames is looked at before the seal fits.

use super::{
    Refusal, Ring,
    keys::{Keys, PairKey},
    seal::{Bound, Header, Speaker, digest, tag},
    trust::Trusted,
};
use crate::envelope::{self, Kind};
use bytes::Bytes;
use vbm_core::NodePath;

/// An entry whose seal fits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Opened {
    /// Who sealed it.
    pub speaker: Speaker,
}

/// Checks a seal: the key may speak for the path it names, and made this seal of this content for this stream.
///
/// `for_one` says what sort of seal the stream must have. `pair` gives the key of a pair: from the sender's public key,
/// my key that it was sealed for, and the sender's path; it may be one that was derived before.
///
/// # Errors
/// Why not.
pub fn open(
    seal: &[u8],
    bound: &Bound<'_>,
    for_one: bool,
    keys: &Keys,
    ring: &Ring,
    pair: impl FnOnce(&Trusted, &super::KeyPair, &NodePath) -> Option<PairKey>,
) -> Result<(Opened, Trusted), Refusal> {
    let (header, head, given) = Header::decode(seal)?;
    if header.for_one != for_one {
        return Err(Refusal::WrongSort);
    }
    let unknown = || Refusal::UnknownKey {
        key: header.sender.to_string(),
        path: header.speaker.path.clone(),
    };
    let trusted = ring
        .find(&header.speaker.path, header.sender)
        .ok_or_else(unknown)?;
    if for_one {
        let mine = keys.find(header.receiver).ok_or_else(|| Refusal::NotForMe {
            key: header.receiver.to_string(),
        })?;
        let key = pair(trusted, mine, &header.speaker.path).ok_or_else(unknown)?;
        let given: [u8; 32] = given.try_into().map_err(|_| Refusal::Malformed)?;
        // `Hash` compares in constant time.
        if tag(&key, head, bound) != blake3::Hash::from_bytes(given) {
            return Err(Refusal::WrongSeal);
        }
    } else {
        let given: [u8; 64] = given.try_into().map_err(|_| Refusal::Malformed)?;
        if !trusted.key.verify(&digest(head, bound), &given) {
            return Err(Refusal::WrongSeal);
        }
    }
    let opened = Opened {
        speaker: header.speaker,
    };
    Ok((opened, trusted.clone()))
}

/// Checks that every frame speaks in the name of who sealed the entry, and commands only where its key may. A frame
/// that is none is left to the bus, which skips it.
pub(crate) fn check_frames(speaker: &Speaker, trusted: &Trusted, frames: &[Bytes]) -> Result<(), Refusal> {
    let sender = speaker.path.to_string();
    for frame in frames.iter().filter_map(|frame| envelope::peek(frame)) {
        if frame.caller != sender && !trusted.relays {
            return Err(Refusal::WrongCaller {
                sender: speaker.path.clone(),
                caller: frame.caller.to_owned(),
            });
        }
        let commands = matches!(frame.kind, Kind::Request | Kind::Cast);
        if commands && !trusted.epochs.allow(frame.epoch) {
            return Err(Refusal::WrongEpoch {
                sender: speaker.path.clone(),
                epoch: frame.epoch.0,
            });
        }
    }
    Ok(())
}
