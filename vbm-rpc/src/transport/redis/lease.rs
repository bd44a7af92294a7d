//! Leases in Redis: one key that runs out says who holds, one that stays says the last epoch. Both are changed by one
//! script, a few times a lease; no call pays for it.

use super::{Core, pack, scripts};
use crate::{
    BusError,
    election::{LeaseAnswer, LeaseOp},
};
use redis::Value;
use std::time::Duration;
use vbm_core::{Epoch, Name};

pub(super) async fn ask(core: &Core, name: &Name, op: &LeaseOp) -> Result<LeaseAnswer, BusError> {
    let keys = [core.keys.lease(name), core.keys.lease_epoch(name)];
    let ms = |ttl: &Duration| u64::try_from(ttl.as_millis()).unwrap_or(u64::MAX).max(1);
    // The word, the holder, ms, and the epoch that counts for the word.
    let (word, holder, ttl, epoch, blank) = match op {
        LeaseOp::Take {
            holder,
            ttl,
            floor,
            blank,
        } => ("take", holder.as_str(), ms(ttl), floor.0, *blank),
        LeaseOp::Renew { holder, epoch, ttl } => ("renew", holder.as_str(), ms(ttl), epoch.0, false),
        LeaseOp::Raise { holder, ttl, floor } => ("raise", holder.as_str(), ms(ttl), floor.0, false),
        LeaseOp::Release { holder } => ("release", holder.as_str(), 0, 0, false),
        LeaseOp::Look => ("look", "", 0, 0, false),
    };
    let question = || {
        let mut command = redis::cmd("EVAL");
        command.arg(scripts::LEASE).arg(2).arg(&keys);
        command
            .arg(word)
            .arg(holder)
            .arg(ttl)
            .arg(epoch)
            .arg(u8::from(blank));
        command
    };
    let value = core.ask(question).await?;
    read(&value).ok_or_else(|| BusError::Unsuitable {
        server: core.server.clone(),
        why: format!("what it keeps about the lease {name} is none: {value:?}"),
        fix: format!("remove the key {}", keys[0]),
    })
}

/// `mine epoch`, `held epoch holder ms`, `free epoch`, `blank`.
fn read(value: &Value) -> Option<LeaseAnswer> {
    let words = pack::texts(value);
    let number = |at: usize| words.get(at)?.parse::<u64>().ok();
    Some(match *words.first()? {
        "mine" => LeaseAnswer::Mine(Epoch(number(1)?)),
        "held" => LeaseAnswer::Held {
            epoch: Epoch(number(1)?),
            holder: (*words.get(2)?).to_owned(),
            left: Duration::from_millis(number(3)?),
        },
        "free" => LeaseAnswer::Free(Epoch(number(1)?)),
        "blank" => LeaseAnswer::Blank,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(words: &[&str]) -> Value {
        let bulk = |word: &&str| Value::BulkString(word.as_bytes().to_vec());
        Value::Array(words.iter().map(bulk).collect())
    }

    #[test]
    fn answers_are_read_and_garbage_is_not_taken_for_one() {
        assert_eq!(read(&answer(&["mine", "7"])), Some(LeaseAnswer::Mine(Epoch(7))));
        assert_eq!(
            read(&answer(&["held", "7", "a|b|c", "250"])),
            Some(LeaseAnswer::Held {
                holder: "a|b|c".into(),
                epoch: Epoch(7),
                left: Duration::from_millis(250)
            })
        );
        assert_eq!(read(&answer(&["free", "0"])), Some(LeaseAnswer::Free(Epoch(0))));
        assert_eq!(read(&answer(&["blank"])), Some(LeaseAnswer::Blank));
        for bad in [&["mine"][..], &["mine", "x"], &["held", "1"], &["other"], &[]] {
            assert_eq!(read(&answer(bad)), None, "{bad:?}");
        }
        assert_eq!(read(&Value::Nil), None);
    }
}
