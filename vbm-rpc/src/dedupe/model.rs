//! The table against a model so simple that it can be seen to be right: a list that is searched from its beginning.

use super::{tests::told, *};
use crate::{codec::Codec, envelope::Kind};
use proptest::prelude::*;

const TTL: Duration = Duration::from_secs(10);
/// More than any story here needs: eviction by number and by bytes has tests of its own.
const PLENTY: usize = 1_000_000;

struct Known {
    key: u8,
    id: u8,
    digest: u8,
    /// Who waits, while it runs.
    waiters: Vec<u32>,
    /// The ids that were seen while it runs.
    ids: Vec<u8>,
    done: Option<(Answer, Instant)>,
}

#[derive(Default)]
struct Model(Vec<Known>);

impl Model {
    fn begin(&mut self, key: u8, id: u8, digest: u8, asker: u32, now: Instant) -> Begun {
        self.0.retain(|known| {
            known
                .done
                .as_ref()
                .is_none_or(|(_, at)| now.duration_since(*at) < TTL)
        });
        if let Some(at) = self.0.iter().position(|known| known.key == key) {
            let known = &mut self.0[at];
            match &known.done {
                _ if known.digest != digest => return Begun::Conflict,
                None if !known.ids.contains(&id) && known.ids.len() >= limits::DEDUPE_MAX_WAITERS => {
                    return Begun::Full;
                }
                None => {
                    if !known.ids.contains(&id) {
                        known.ids.push(id);
                    }
                    known.waiters.push(asker);
                    return Begun::Joined;
                }
                Some((answer, _)) if known.id == id || !answer.repeatable => {
                    return Begun::Recorded(answer.clone());
                }
                Some(_) => drop(self.0.remove(at)),
            }
        }
        self.0.push(Known {
            key,
            id,
            digest,
            waiters: vec![asker],
            ids: vec![id],
            done: None,
        });
        Begun::New
    }

    fn running(&mut self, key: u8) -> Option<&mut Known> {
        self.0
            .iter_mut()
            .find(|known| known.key == key && known.done.is_none())
    }

    fn finish(&mut self, key: u8, answer: Answer, now: Instant) -> Vec<u32> {
        let Some(known) = self.running(key) else {
            return Vec::new();
        };
        known.done = Some((answer, now));
        std::mem::take(&mut known.waiters)
    }

    fn abandon(&mut self, key: u8) -> Vec<u32> {
        let waiters = self.running(key).map(|known| std::mem::take(&mut known.waiters));
        self.0.retain(|known| known.key != key || known.done.is_some());
        waiters.unwrap_or_default()
    }
}

#[derive(Clone, Debug)]
enum Step {
    Begin { key: u8, id: u8, digest: u8 },
    Finish { key: u8, repeatable: bool },
    Abandon { key: u8 },
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => (0u8..5, 0u8..100, 0u8..8).prop_map(|(key, id, digest)| Step::Begin { key, id, digest: digest / 7 }),
        3 => (0u8..5, any::<bool>()).prop_map(|(key, repeatable)| Step::Finish { key, repeatable }),
        1 => (0u8..5).prop_map(|key| Step::Abandon { key }),
    ]
}

proptest! {
    #[test]
    fn the_table_does_what_the_model_does(steps in proptest::collection::vec((step(), 0u64..3_000), 1..300)) {
        let (mut table, mut model) = (Dedupe::<u32>::with_limits(TTL, PLENTY, PLENTY), Model::default());
        let mut now = Instant::now();
        for (asker, (step, forward_ms)) in (0u32..).zip(steps) {
            now += Duration::from_millis(forward_ms);
            let name = |key: u8| Key::Chosen { method: "m".into(), key: key.to_string() };
            match step {
                Step::Begin { key, id, digest } => {
                    let mut given = Some(asker);
                    let begun = table.begin(&name(key), Uuid::from_u128(id.into()), digest.into(), &mut given, now);
                    let taken = matches!(begun, Begun::New | Begun::Joined);
                    prop_assert_eq!(given.is_none(), taken, "an asker is taken when it is answered later");
                    prop_assert_eq!(begun, model.begin(key, id, digest, asker, now));
                }
                // Only what runs is finished or abandoned: the bus holds each once.
                Step::Finish { key, repeatable } if model.running(key).is_some() => {
                    let answer = Answer {
                        kind: Kind::Reply,
                        codec: Codec::Json,
                        body: Bytes::from(asker.to_string()),
                        repeatable,
                    };
                    prop_assert_eq!(told(table.finish(&name(key), answer.clone(), now)), model.finish(key, answer, now));
                }
                Step::Abandon { key } if model.running(key).is_some() => {
                    prop_assert_eq!(told(table.abandon(&name(key))), model.abandon(key));
                }
                Step::Finish { .. } | Step::Abandon { .. } => {}
            }
        }
    }
}
