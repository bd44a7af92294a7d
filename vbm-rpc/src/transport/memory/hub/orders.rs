//! Trouble by order, and what comes of it: silence, words heard late, what is taken from the silent.

use super::{Direct, Hub, Origin, Silence, State, hand_over};
use crate::{BusError, limits, transport::memory::trouble::Said};
use tokio::time::Instant;
use vbm_core::NodePath;

/// What a test orders; see [`MemoryBus`](crate::memory::MemoryBus).
impl Hub {
    pub(in crate::transport::memory) fn partition(&self, from: &NodePath, to: &NodePath) {
        let mut state = self.lock();
        state.trouble.cut(from.clone(), to.clone());
        state
            .trouble
            .tell(format_args!("PARTITION: nothing gets from {from} to {to}"));
    }

    pub(in crate::transport::memory) fn heal(&self, now: Instant) {
        let mut state = self.lock();
        let state = &mut *state;
        state.trouble.mend_cuts();
        state.trouble.tell(format_args!("HEALED: all partitions"));
        for node in state.nodes.values_mut() {
            for serial in std::mem::take(&mut node.held_up) {
                node.ready(now, serial);
            }
            for frame in std::mem::take(&mut node.cut_off) {
                state.next += 1;
                node.replies.insert((now, state.next), frame);
            }
        }
        state.wake_all();
    }

    pub(in crate::transport::memory) fn pause(&self, scope: &NodePath, now: Instant) {
        let mut state = self.lock();
        state.trouble.pause(scope.clone());
        state.trouble.tell(format_args!("PAUSED: {scope}"));
        state.silence(now);
        state.wake_all();
    }

    pub(in crate::transport::memory) fn resume(&self, scope: &NodePath, now: Instant) {
        let mut state = self.lock();
        state.trouble.resume(scope);
        state.trouble.tell(format_args!("RESUMED: {scope}"));
        let direct = state.unmute(now);
        drop(state);
        hand_over(direct);
    }

    pub(in crate::transport::memory) fn outage(&self) {
        let mut state = self.lock();
        state.trouble.set_down(true);
        state.trouble.tell(format_args!("OUTAGE of the bus"));
    }

    pub(in crate::transport::memory) fn restore(&self, now: Instant) {
        let mut state = self.lock();
        state.trouble.set_down(false);
        state.trouble.tell(format_args!("RESTORED: the bus"));
        let direct = state.unmute(now);
        state.raise_generations();
        drop(state);
        hand_over(direct);
    }

    pub(in crate::transport::memory) fn lose_memory(&self) {
        let mut state = self.lock();
        let kept: usize = state.nodes.values().map(|node| node.kept.len()).sum();
        state
            .trouble
            .tell(format_args!("MEMORY LOST: {kept} kept requests"));
        state.orphans.clear();
        for node in state.nodes.values_mut() {
            node.kept.clear();
            node.forget_ready();
            node.held_up.clear();
            node.replies.clear();
            node.cut_off.clear();
        }
        state.nodes.retain(|_, node| node.present.is_some());
        state.raise_generations();
    }

    pub(in crate::transport::memory) fn crash(&self, path: &NodePath, now: Instant) {
        let mut state = self.lock();
        state.trouble.tell(format_args!("CRASHED: {path}"));
        let seat = state
            .nodes
            .get(path)
            .and_then(|node| Some(node.present.as_ref()?.seat.clone()));
        drop(state);
        let Some(seat) = seat else { return };
        self.sever(&seat, now);
        seat.ended.send_replace(Some(BusError::Unreachable {
            server: "the memory bus".into(),
            why: "a test has cut this member off".into(),
        }));
    }

    pub(in crate::transport::memory) fn story(&self) -> Vec<String> {
        self.lock().trouble.story()
    }

    pub(in crate::transport::memory) fn note(&self, what: &str) {
        self.lock().trouble.tell(format_args!("{what}"));
    }
}

impl State {
    /// Notes since when paused members are silent.
    pub(super) fn silence(&mut self, now: Instant) {
        for (path, node) in &mut self.nodes {
            if let Some(present) = &mut node.present {
                match (self.trouble.is_paused(path), &present.silent) {
                    (true, None) => {
                        present.silent = Some(Silence {
                            until: now + limits::PRESENCE_TTL,
                            given: false,
                        });
                    }
                    (false, Some(_)) => present.silent = None,
                    _ => {}
                }
            }
        }
    }

    /// Members that are heard again say what they had to say.
    pub(super) fn unmute(&mut self, now: Instant) -> Direct {
        self.silence(now);
        let mut said = Vec::new();
        for (path, node) in &mut self.nodes {
            if let (Some(present), false) = (&mut node.present, self.trouble.is_mute(path)) {
                said.push((path.clone(), std::mem::take(&mut present.said)));
                present.seat.voice.notify_waiters();
            }
        }
        let mut direct = Direct::new();
        for (path, said) in said {
            for word in said {
                match word {
                    Said::Completed { serial } => {
                        if let Some(node) = self.nodes.get_mut(&path) {
                            let _next = node.over(serial, now);
                        }
                    }
                    Said::Post { until, .. } if until <= now => {}
                    Said::Post { to, frame, until } => match self.send(&path, &to, &frame, until, now) {
                        Ok((_sent, replies)) => direct.extend(replies),
                        Err(error) => tracing::debug!(?error, %to, "a late message was not delivered"),
                    },
                }
            }
        }
        // Who is heard again serves what nobody was there for.
        for entry in std::mem::take(&mut self.orphans) {
            self.give(entry, now);
        }
        self.wake_all();
        direct
    }

    pub(super) fn raise_generations(&self) {
        for present in self.nodes.values().filter_map(|node| node.present.as_ref()) {
            present
                .seat
                .generations
                .send_modify(|generation| *generation += 1);
        }
    }

    /// Who was silent for too long keeps its path; what it had taken for a service goes to others.
    pub(super) fn take_from_silent(&mut self, now: Instant) {
        let mut given = Vec::new();
        for (path, node) in &mut self.nodes {
            let silent = node.present.as_mut().and_then(|present| present.silent.as_mut());
            if let Some(silence) = silent.filter(|silence| !silence.given && silence.until <= now) {
                silence.given = true;
                let any = node
                    .kept
                    .extract_if(.., |_, entry| matches!(entry.origin, Origin::Any(..)));
                given.extend(any.map(|(_, entry)| entry));
                self.trouble
                    .tell(format_args!("the presence of silent {path} has run out"));
            }
        }
        for entry in given {
            self.give(entry, now);
        }
    }
}
