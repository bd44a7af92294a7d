//! Opening: from an entry with its seal to whose it is. Nothing of the frames is looked at before the seal fits.

use super::{
    Keys, Refusal, Ring,
    keys::PairKey,
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

/// The same for a signature, whoever it was made for.
///
/// # Errors
/// Why not.
pub fn open_for_any(seal: &[u8], bound: &Bound<'_>, ring: &Ring) -> Result<(Speaker, Trusted), Refusal> {
    let (header, head, given) = Header::decode(seal)?;
    if header.for_one {
        return Err(Refusal::WrongSort);
    }
    let trusted = ring
        .find(&header.speaker.path, header.sender)
        .ok_or_else(|| Refusal::UnknownKey {
            key: header.sender.to_string(),
            path: header.speaker.path.clone(),
        })?;
    let given: [u8; 64] = given.try_into().map_err(|_| Refusal::Malformed)?;
    match trusted.key.verify(&digest(head, bound), &given) {
        true => Ok((header.speaker, trusted.clone())),
        false => Err(Refusal::WrongSeal),
    }
}

/// Checks that every frame speaks in the name of who sealed the entry, and commands only where its key may. A frame
/// that is none is left to the bus, which skips it.
///
/// A key that relays may put back the requests of others, and nothing else of theirs: those whose path is still trusted,
/// in the epochs in which they may command themselves.
pub(crate) fn check_frames(
    speaker: &Speaker,
    trusted: &Trusted,
    ring: &Ring,
    frames: &[Bytes],
) -> Result<(), Refusal> {
    let sender = speaker.path.as_str();
    for frame in frames.iter().filter_map(|frame| envelope::peek(frame)) {
        let commands = matches!(frame.kind, Kind::Request | Kind::Cast | Kind::Submit);
        let may = if frame.caller == sender {
            !commands || trusted.epochs.allow(frame.epoch)
        } else {
            let caller = frame.caller.parse::<NodePath>().ok();
            let caller = caller.filter(|path| trusted.relays && commands && ring.first(path).is_some());
            let Some(caller) = caller else {
                return Err(Refusal::WrongCaller {
                    sender: speaker.path.clone(),
                    caller: frame.caller.to_owned(),
                });
            };
            ring.keys(&caller).iter().any(|key| key.epochs.allow(frame.epoch))
        };
        if !may {
            return Err(Refusal::WrongEpoch {
                sender: speaker.path.clone(),
                epoch: frame.epoch.0,
            });
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        auth::{Epochs, KeyPair},
        codec::Codec,
        envelope::Envelope,
    };
    use vbm_core::Epoch;

    fn frame(kind: Kind, caller: &str, epoch: u64) -> Bytes {
        Envelope {
            kind,
            codec: Codec::MessagePack,
            attempt: 1,
            id: uuid::Uuid::from_u128(9),
            ttl_ms: 60_000,
            epoch: Epoch(epoch),
            method: "m".into(),
            caller: caller.parse().unwrap(),
            boot_id: "b".into(),
            traceparent: None,
            idempotency_key: None,
            body: Bytes::new(),
        }
        .encode()
    }

    #[test]
    fn who_relays_puts_back_requests_of_the_trusted_and_nothing_else() {
        let key = || Trusted::new(*KeyPair::generate().unwrap().public());
        let (relay, plain) = (key().relays(), key());
        let mut ring = Ring::new();
        let upto = Epochs::Between(Epoch(1), Epoch(6));
        ring.add("c1".parse().unwrap(), key().commands(upto)).unwrap();
        ring.add("n1".parse().unwrap(), key()).unwrap();
        let speaker = Speaker {
            path: "op".parse().unwrap(),
            boot_id: "b".into(),
            session: 1,
            seq: 1,
            time_ms: 1,
        };
        let check = |by: &Trusted, kind, caller, epoch| {
            check_frames(&speaker, by, &ring, &[frame(kind, caller, epoch)])
        };
        for kind in [Kind::Request, Kind::Cast, Kind::Submit, Kind::Open, Kind::Watched] {
            assert_eq!(check(&relay, kind, "c1", 6), Ok(()), "{kind:?}");
            assert_eq!(check(&relay, kind, "n1", 0), Ok(()));
            let stale = check(&relay, kind, "c1", 7);
            assert!(
                matches!(stale, Err(Refusal::WrongEpoch { epoch: 7, .. })),
                "{stale:?}"
            );
            assert!(matches!(
                check(&relay, kind, "n1", 1),
                Err(Refusal::WrongEpoch { .. })
            ));
            assert!(matches!(
                check(&plain, kind, "c1", 6),
                Err(Refusal::WrongCaller { .. })
            ));
            assert!(matches!(
                check(&relay, kind, "gone", 0),
                Err(Refusal::WrongCaller { .. })
            ));
            // In its own name it commands in no epoch.
            assert!(matches!(
                check(&relay, kind, "op", 1),
                Err(Refusal::WrongEpoch { .. })
            ));
        }
        for kind in [Kind::Reply, Kind::End, Kind::Cancel, Kind::Accepted, Kind::Item] {
            assert!(matches!(
                check(&relay, kind, "c1", 0),
                Err(Refusal::WrongCaller { .. })
            ));
        }
    }
}
