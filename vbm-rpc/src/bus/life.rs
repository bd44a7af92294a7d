//! What is known of a call before it ends: who works on it, when it was heard of last, how far it is.

use super::{
    flow::Arrival,
    pending::{Answer, Call, End, Pending, Waiter},
    pulse::Mail,
    signs::{self, Sign},
    silence::Silence,
    stream::Taken,
};
use crate::{Fate, Route, codec::Codec, envelope::Envelope, limits, transport::Destination};
use bytes::Bytes;
use std::{collections::BTreeSet, time::Duration};
use tokio::{sync::watch, time::Instant};
use uuid::Uuid;
use vbm_core::NodePath;

/// The newest progress of a call, as it came.
pub(crate) type Newest = Option<(Codec, Bytes)>;

/// The signs of life of one call, on this process' clock.
#[derive(Debug, Default)]
pub(crate) struct Life {
    /// The transport kept it.
    pub(crate) queued: Option<Instant>,
    /// Its worker was first heard of.
    pub(crate) accepted: Option<Instant>,
    /// Its worker was last heard of.
    pub(crate) heard: Option<Instant>,
    /// How long it had waited when its worker began, by Redis' clock.
    pub(crate) waited: Option<Duration>,
    /// How often it was sent again: the number of its last sending, 0 for the only one.
    pub(crate) attempts: u16,
    pub(super) silence: Silence,
    /// The run of its worker.
    boot_id: String,
    /// Of a broadcast: who have begun.
    begun: BTreeSet<NodePath>,
    progress: Option<Progressed>,
}

#[derive(Debug)]
struct Progressed {
    /// The number that the next one must have at least.
    next: u64,
    newest: watch::Sender<Newest>,
}

impl Life {
    fn hear(&mut self, now: Instant) {
        self.accepted.get_or_insert(now);
        self.heard = Some(now);
        self.silence.heard();
    }

    /// The same, of one who beats.
    fn hear_beating(&mut self, now: Instant) {
        self.hear(now);
        if !self.silence.is_watched() {
            self.silence.promised(limits::BEAT_EVERY);
        }
    }
}

impl Call {
    /// The end of a call that this side gives up.
    pub(super) fn lost(&self, why: String) -> Answer {
        let worker = self.worker.clone();
        Answer {
            from: worker.clone().unwrap_or_default(),
            end: End::Fate(Fate::Lost {
                started: worker.is_some(),
                to: self.to.to_string(),
                worker,
                why,
            }),
            life: None,
        }
    }

    pub(super) fn life_mut(&mut self) -> &mut Life {
        self.life.get_or_insert_default()
    }

    fn worker_inbox(&self) -> Option<Destination> {
        Some(Destination::Inbox {
            path: self.worker.clone()?,
            boot_id: self.life.as_ref()?.boot_id.clone(),
        })
    }

    fn began_at(&mut self, envelope: &Envelope) {
        self.worker = Some(envelope.caller.clone());
        self.life_mut().boot_id.clone_from(&envelope.boot_id);
    }

    /// Gives the caller its end. The call is off the table.
    fn give(self, mut answer: Answer) {
        match self.waiter {
            Waiter::One(sender) => {
                answer.life = self.life;
                // An error means that the caller has just given up.
                drop(sender.send(answer));
            }
            Waiter::Items(inlet) => inlet.end(answer, &self.to),
            Waiter::Many(_) => {}
        }
    }
}

impl Pending {
    /// The progress of a call goes there from now on.
    pub(super) fn listen(&self, id: Uuid, newest: watch::Sender<Newest>) {
        if let Some(call) = self.lock().get_mut(&id) {
            call.life_mut().progress = Some(Progressed { next: 0, newest });
        }
    }

    /// What is known of a call, which is over with it.
    pub(super) fn take_life(&self, id: Uuid) -> Option<Box<Life>> {
        self.lock().get_mut(&id)?.life.take()
    }

    /// Of a broadcast: who said that they had begun.
    pub(super) fn begun(&self, id: Uuid) -> BTreeSet<NodePath> {
        let calls = self.lock();
        let life = calls.get(&id).and_then(|call| call.life.as_ref());
        life.map_or_else(BTreeSet::new, |life| life.begun.clone())
    }

    /// Somebody has begun.
    pub(super) fn accepted(&self, envelope: Envelope, now: Instant) {
        let mut calls = self.lock();
        let Some(call) = calls.get_mut(&envelope.id) else {
            return;
        };
        match &call.waiter {
            Waiter::Many(_) => {
                call.life_mut().begun.insert(envelope.caller);
                return;
            }
            Waiter::Items(inlet) if !inlet.bind(&envelope.caller, &envelope.boot_id) => return,
            Waiter::Items(_) | Waiter::One(_) => {}
        }
        call.began_at(&envelope);
        let life = call.life_mut();
        life.hear(now);
        if let Some((every_ms, waited_ms)) = signs::read_accepted(envelope.body) {
            life.silence.promised(Duration::from_millis(every_ms.into()));
            life.waited = Some(Duration::from_millis(waited_ms.into()));
        }
    }

    /// Somebody works on it still; `false` when this side reads the stream from somebody else.
    pub(super) fn works(&self, id: Uuid, envelope: &Envelope, sent: u64) -> bool {
        let now = Instant::now();
        let mut calls = self.lock();
        // Nobody waits for it here: perhaps somebody does elsewhere.
        let Some(call) = calls.get_mut(&id) else {
            return true;
        };
        let missing = match &call.waiter {
            Waiter::Many(_) => {
                call.life_mut().begun.insert(envelope.caller.clone());
                return true;
            }
            Waiter::Items(inlet) if !inlet.bind(&envelope.caller, &envelope.boot_id) => return false,
            Waiter::Items(inlet) => inlet.missing(sent),
            Waiter::One(_) => 0,
        };
        call.began_at(envelope);
        call.life_mut().hear_beating(now);
        if missing == 0 {
            return true;
        }
        if let Some(call) = calls.remove(&id) {
            drop(calls);
            let lost = call.lost(format!("{missing} items of the stream were lost on the way"));
            call.give(lost);
        }
        false
    }

    /// How far it is.
    pub(super) fn progressed(&self, envelope: Envelope) {
        let mut calls = self.lock();
        let Some(call) = calls.get_mut(&envelope.id) else {
            return;
        };
        if matches!(call.waiter, Waiter::One(_)) {
            call.began_at(&envelope);
            call.life_mut().hear(Instant::now());
        }
        let (codec, Some((number, body))) = (envelope.codec, signs::split_number(envelope.body)) else {
            return;
        };
        if let Some(progress) = call.life.as_mut().and_then(|life| life.progress.as_mut())
            && number >= progress.next
        {
            progress.next = number.saturating_add(1);
            progress.newest.send_replace(Some((codec, body)));
        }
    }

    /// An item of a stream; `false` when nobody reads it, or no longer.
    pub(super) fn item(&self, envelope: Envelope) -> bool {
        let id = envelope.id;
        let mut calls = self.lock();
        let Some(call) = calls.get_mut(&id) else {
            return false;
        };
        let Waiter::Items(inlet) = &call.waiter else {
            return false;
        };
        if !inlet.bind(&envelope.caller, &envelope.boot_id) {
            return false;
        }
        let inlet = inlet.clone();
        call.began_at(&envelope);
        // Its first item may be here before it says that it has begun; who gives streams beats.
        call.life_mut().hear_beating(Instant::now());
        let why = match inlet.arrive(envelope) {
            Taken::Fine => return true,
            Taken::Unreadable => "an item of the stream cannot be read".into(),
            Taken::Broken(Arrival::Gap(missing)) => {
                format!("{missing} items of the stream were lost on the way")
            }
            Taken::Broken(_) => "more items of the stream came than were asked for".into(),
        };
        if let Some(call) = calls.remove(&id) {
            drop(calls);
            let lost = call.lost(why);
            call.give(lost);
        }
        false
    }

    /// What is told to those whose streams are read here; whether anybody must be watched.
    pub(super) fn signs(&self, mail: &mut Mail) -> bool {
        let mut watching = false;
        for (&id, call) in self.lock().iter() {
            watching |= call.life.as_ref().is_some_and(|life| life.silence.is_watched());
            if let Waiter::Items(inlet) = &call.waiter
                && let Some(inbox) = call.worker_inbox()
            {
                let until = inlet.granted();
                mail.entry(inbox).or_default().push(Sign::Reads { id, until });
            }
        }
        watching
    }

    /// A beat passed: calls whose worker is silent end; gives who is to be told, should they still be there.
    pub(super) fn missed(&self, now: Instant) -> Vec<(Uuid, Destination)> {
        let mut calls = self.lock();
        let mut silent: Vec<Uuid> = calls
            .iter_mut()
            .filter_map(|(id, call)| {
                let life = call.life.as_mut()?;
                let any = matches!(call.to, Destination::Route(Route::Any { .. }));
                // A stream that has begun to give cannot go on elsewhere.
                let takeover = any && !matches!(&call.waiter, Waiter::Items(inlet) if inlet.has_begun());
                life.silence.missed(takeover).then_some(*id)
            })
            .collect();
        // In an order that does not depend on the map's.
        silent.sort_unstable();
        let silent: Vec<(Uuid, Call)> = silent
            .into_iter()
            .filter_map(|id| Some((id, calls.remove(&id)?)))
            .collect();
        drop(calls);
        let mut tell = Vec::new();
        for (id, call) in silent {
            let ms = call
                .life
                .as_ref()
                .and_then(|life| life.heard)
                .map_or(0, |heard| now.saturating_duration_since(heard).as_millis());
            tell.extend(call.worker_inbox().map(|inbox| (id, inbox)));
            let lost = call.lost(format!("its worker has been silent for {ms} ms"));
            call.give(lost);
        }
        tell
    }

    /// The nodes whose requests, sent before that time, nobody has begun.
    pub(super) fn unbegun(&self, before: Instant) -> BTreeSet<NodePath> {
        self.lock()
            .values()
            .filter_map(|call| call.waits_for(before).cloned())
            .collect()
    }

    /// A node is gone: what was sent to it before that time and was not begun ends.
    pub(super) fn gone(&self, path: &NodePath, before: Instant) {
        let mut calls = self.lock();
        let mut gone: Vec<Uuid> = calls
            .iter()
            .filter(|(_, call)| call.waits_for(before) == Some(path))
            .map(|(id, _)| *id)
            .collect();
        gone.sort_unstable();
        let gone: Vec<Call> = gone.into_iter().filter_map(|id| calls.remove(&id)).collect();
        drop(calls);
        for call in gone {
            let lost = call.lost(format!(
                "{path} left the bus before it had begun and did not come back"
            ));
            call.give(lost);
        }
    }
}

impl Call {
    fn waits_for(&self, before: Instant) -> Option<&NodePath> {
        match &self.to {
            Destination::Route(Route::Node(path))
                if self.worker.is_none() && self.kept_at().is_some_and(|kept| kept <= before) =>
            {
                Some(path)
            }
            _ => None,
        }
    }
}
