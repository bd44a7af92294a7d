//! Sealing presence: a member's entry is JSON, and its seal stands in it as the last field, so that who knows nothing of
//! seals reads it as before.
//!
//! `{"path":...,"token":"..."}` becomes `{"path":...,"token":"...","seal":"<hex>"}`. The seal is a signature as that of a
//! broadcast (see [`seal`](super::seal)), with the key of Redis for the stream and the JSON without its seal for the frames.
//! It is made anew from time to time; what is older than [`PRESENT_MAX_AGE`] is not believed, so that nobody puts back what
//! a member said in an earlier life.

use super::{
    KeyPair, Refusal, Ring, open_for_any,
    seal::{Bound, Speaker, seal_for_any},
};
use std::time::Duration;

/// How often a member makes the seal of its presence anew.
pub const PRESENT_RENEW: Duration = Duration::from_secs(20);
/// How old the seal of a presence may be: as often as it is made, and as long as an entry may be on its way.
pub const PRESENT_MAX_AGE: Duration = Duration::from_secs(60);

/// What stands before the seal.
const BEFORE: &str = ",\"seal\":\"";
/// What stands behind it.
const BEHIND: &str = "\"}";

const fn bound<'a>(key: &'a str, json: &'a str) -> Bound<'a> {
    Bound {
        stream: key,
        scope: "",
        service: "",
        frames: json.as_bytes(),
    }
}

/// The presence `json`, an object, with its seal in it.
pub fn seal_presence(pair: &KeyPair, speaker: Speaker, key: &str, json: &str) -> String {
    let seal = hex::encode(seal_for_any(pair, speaker, &bound(key, json)));
    match json.strip_suffix('}') {
        Some(open) => format!("{open}{BEFORE}{seal}{BEHIND}"),
        None => json.to_owned(),
    }
}

/// Who wrote a presence, and the presence without its seal.
///
/// # Errors
/// Why it is not believed.
pub fn open_presence(ring: &Ring, key: &str, text: &str, now_ms: u64) -> Result<(Speaker, String), Refusal> {
    let (open, seal) = text
        .strip_suffix(BEHIND)
        .and_then(|text| text.rsplit_once(BEFORE))
        .ok_or(Refusal::Missing)?;
    let seal = hex::decode(seal).map_err(|_| Refusal::Malformed)?;
    let json = format!("{open}}}");
    let (speaker, _) = open_for_any(&seal, &bound(key, &json), ring)?;
    let off_ms = speaker.time_ms.abs_diff(now_ms);
    if u128::from(off_ms) > PRESENT_MAX_AGE.as_millis() {
        return Err(Refusal::WrongTime { off_ms });
    }
    Ok((speaker, json))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::auth::Trusted;

    const JSON: &str = r#"{"path":"eu/n1","boot_id":"b","token":"1"}"#;
    const AT: u64 = 1_000_000;

    fn speaker() -> Speaker {
        Speaker {
            path: "eu/n1".parse().unwrap(),
            boot_id: "b".into(),
            session: 1,
            seq: 1,
            time_ms: AT,
        }
    }

    #[test]
    fn a_presence_is_json_with_its_seal_and_opens_for_a_while() {
        let pair = KeyPair::generate().unwrap();
        let mut ring = Ring::new();
        ring.add(speaker().path, Trusted::new(*pair.public())).unwrap();
        let sealed = seal_presence(&pair, speaker(), "k", JSON);
        let value: serde_json::Value = serde_json::from_str(&sealed).unwrap();
        assert_eq!(value["boot_id"], "b");
        let open = |key: &str, text: &str, now| open_presence(&ring, key, text, now);
        assert_eq!(open("k", &sealed, AT + 1_000), Ok((speaker(), JSON.to_owned())));
        let late = u64::try_from(PRESENT_MAX_AGE.as_millis()).unwrap() + 1;
        assert_eq!(
            open("k", &sealed, AT + late),
            Err(Refusal::WrongTime { off_ms: late })
        );
        assert_eq!(open("other", &sealed, AT), Err(Refusal::WrongSeal));
        let lie = sealed.replace("\"boot_id\":\"b\"", "\"boot_id\":\"c\"");
        assert_eq!(open("k", &lie, AT), Err(Refusal::WrongSeal));
        assert_eq!(open("k", JSON, AT), Err(Refusal::Missing));
        for garbage in [
            "",
            "}",
            ",\"seal\":\"\"}",
            "{,\"seal\":\"zz\"}",
            "{,\"seal\":\"0102\"}",
        ] {
            assert!(open("k", garbage, AT).is_err(), "{garbage}");
        }
        let stranger = seal_presence(&KeyPair::generate().unwrap(), speaker(), "k", JSON);
        assert!(matches!(
            open("k", &stranger, AT),
            Err(Refusal::UnknownKey { .. })
        ));
    }
}
