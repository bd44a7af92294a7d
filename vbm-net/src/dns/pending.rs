//! Who waits for what others are being asked. Pure: it says who is to be answered, and the server answers.
//!
//! ```text
//!   question --> one is asked for all who wait for it      FORWARDS_MAX_PENDING of a network
//!     waiters    in the order in which they came           WAITERS_MAX of a question, PORT_FORWARDS_MAX_PENDING of a port
//! ```
//!
//! A question is the place of who has waited longest for it. Where all are taken, who has the most gives one up
//! ([`who_yields`]): the oldest, which is the likeliest to wait for a server that does not answer. If another port waits for it too, it is
//! that one's from then on.

use super::{FORWARDS_MAX_PENDING, PORT_FORWARDS_MAX_PENDING, WAITERS_MAX};
use crate::share::who_yields;
use std::{collections::HashMap, hash::Hash, net::Ipv4Addr};
use tokio_util::sync::CancellationToken;

/// What others are being asked, and for whom.
#[derive(Debug)]
pub(super) struct Pending<K, W> {
    next: u64,
    asked: HashMap<K, Question<W>>,
    /// How many wait of each port.
    waiting: HashMap<Ipv4Addr, usize>,
}

#[derive(Debug)]
struct Question<W> {
    number: u64,
    /// Never empty.
    waiters: Vec<(Ipv4Addr, W)>,
    gone: CancellationToken,
}

/// Which asking of a question it is: one that was given up may be asked again.
#[derive(Clone, Debug)]
pub(super) struct Ticket {
    pub(super) number: u64,
    /// Nobody waits for it any more.
    pub(super) gone: CancellationToken,
}

/// What became of one who wants to wait.
#[derive(Debug)]
pub(super) enum Joined<W> {
    /// It waits with others.
    Waits,
    /// It waits, and the question is to be asked.
    Begins(Ticket),
    /// There is no place for it.
    Full(W),
}

impl<K, W> Default for Pending<K, W> {
    fn default() -> Self {
        Self {
            next: 0,
            asked: HashMap::new(),
            waiting: HashMap::new(),
        }
    }
}

impl<K: Eq + Hash + Clone, W> Pending<K, W> {
    /// One more waits for an answer. Who had to make room for it, and is to be answered that nothing came, is added to `sent_away`.
    pub(super) fn join(&mut self, key: K, who: Ipv4Addr, waiter: W, sent_away: &mut Vec<W>) -> Joined<W> {
        let mine = self.waiting.get(&who).copied().unwrap_or_default();
        if mine >= PORT_FORWARDS_MAX_PENDING {
            return Joined::Full(waiter);
        }
        let joined = match self.asked.contains_key(&key) {
            true => self.seat(&key, who, sent_away).then_some(None),
            false => self.place(who, sent_away).then(|| Some(self.begin(key.clone()))),
        };
        let (Some(began), Some(question)) = (joined, self.asked.get_mut(&key)) else {
            return Joined::Full(waiter);
        };
        question.waiters.push((who, waiter));
        *self.waiting.entry(who).or_default() += 1;
        began.map_or(Joined::Waits, Joined::Begins)
    }

    /// What was asked has come to an end; who waited for it.
    pub(super) fn finish(&mut self, key: &K, number: u64) -> Vec<W> {
        if self.asked.get(key).is_none_or(|q| q.number != number) {
            return Vec::new();
        }
        let done = self.asked.remove(key).map(|q| q.waiters).unwrap_or_default();
        let left = |(who, waiter): (Ipv4Addr, W)| {
            self.leave(who, 1);
            waiter
        };
        done.into_iter().map(left).collect()
    }

    fn begin(&mut self, key: K) -> Ticket {
        let ticket = Ticket {
            number: self.next,
            gone: CancellationToken::new(),
        };
        self.next += 1;
        let question = Question {
            number: ticket.number,
            waiters: Vec::new(),
            gone: ticket.gone.clone(),
        };
        self.asked.insert(key, question);
        ticket
    }

    /// Whether there is room for `who` among those who wait for the same.
    fn seat(&mut self, key: &K, who: Ipv4Addr, sent_away: &mut Vec<W>) -> bool {
        let Some(question) = self.asked.get_mut(key) else {
            return false;
        };
        if question.waiters.len() < WAITERS_MAX {
            return true;
        }
        let Some(yields) = who_yields(question.waiters.iter().map(|(w, _)| *w), who) else {
            return false;
        };
        if let Some(at) = question.waiters.iter().position(|(w, _)| *w == yields) {
            sent_away.push(question.waiters.remove(at).1);
            self.leave(yields, 1);
        }
        true
    }

    /// Whether there is room for a question of `who`.
    fn place(&mut self, who: Ipv4Addr, sent_away: &mut Vec<W>) -> bool {
        while self.asked.len() >= FORWARDS_MAX_PENDING {
            let owners = self.asked.values().filter_map(|q| Some(q.waiters.first()?.0));
            let Some(yields) = who_yields(owners, who) else {
                return false;
            };
            let its = |(_, q): &(&K, &Question<W>)| q.waiters.first().is_some_and(|(w, _)| *w == yields);
            let oldest = self.asked.iter().filter(its).min_by_key(|(_, q)| q.number);
            let Some(key) = oldest.map(|(key, _)| key.clone()) else {
                return false;
            };
            self.give_up(&key, yields, sent_away);
        }
        true
    }

    /// One port waits for a question no more. Each time fewer wait, so this comes to an end.
    fn give_up(&mut self, key: &K, who: Ipv4Addr, sent_away: &mut Vec<W>) {
        let Some(question) = self.asked.get_mut(key) else {
            return;
        };
        let (its, others): (Vec<_>, Vec<_>) =
            question.waiters.drain(..).partition(|(waiter, _)| *waiter == who);
        question.waiters = others;
        if question.waiters.is_empty()
            && let Some(question) = self.asked.remove(key)
        {
            question.gone.cancel();
        }
        self.leave(who, its.len());
        sent_away.extend(its.into_iter().map(|(_, waiter)| waiter));
    }

    fn leave(&mut self, who: Ipv4Addr, count: usize) {
        if let Some(n) = self.waiting.get_mut(&who) {
            *n = n.saturating_sub(count);
            if *n == 0 {
                self.waiting.remove(&who);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    type Asked = Pending<u32, u32>;

    fn ip(n: u8) -> Ipv4Addr {
        [10, 0, 0, n].into()
    }

    /// Whether it found a place.
    fn join(pending: &mut Asked, key: u32, who: u8, away: &mut Vec<u32>) -> bool {
        !matches!(pending.join(key, ip(who), key, away), Joined::Full(_))
    }

    #[test]
    fn a_few_whose_questions_nobody_answers_do_not_shut_the_others_out() {
        let (mut pending, mut away) = (Asked::default(), Vec::new());
        let most = u32::try_from(PORT_FORWARDS_MAX_PENDING).unwrap();
        for who in 0..4 {
            for n in 0..most {
                assert!(join(&mut pending, u32::from(who) * most + n, who, &mut away));
            }
            assert!(!join(&mut pending, 9_999, who, &mut away), "a port's own limit");
        }
        assert!(away.is_empty() && pending.asked.len() == FORWARDS_MAX_PENDING);
        for n in 0..100 {
            assert!(join(
                &mut pending,
                10_000 + n,
                u8::try_from(n).unwrap() + 100,
                &mut away
            ));
        }
        assert_eq!(away.len(), 100);
        assert!(away.iter().all(|key| *key < 4 * most), "the greedy made room");
        assert!(away.contains(&0), "with what they asked first");
        assert_eq!(pending.asked.len(), FORWARDS_MAX_PENDING);
    }

    #[test]
    fn one_who_asks_the_same_over_and_over_leaves_seats_to_others() {
        let (mut pending, mut away) = (Asked::default(), Vec::new());
        for _ in 0..WAITERS_MAX {
            assert!(join(&mut pending, 1, 1, &mut away));
        }
        assert!(join(&mut pending, 1, 2, &mut away) && join(&mut pending, 1, 3, &mut away));
        assert_eq!(away, [1, 1]);
        assert_eq!(pending.finish(&1, 0).len(), WAITERS_MAX);
        assert!(pending.waiting.is_empty());
    }

    #[test]
    fn a_question_for_which_another_waits_too_is_that_ones_when_the_first_gives_it_up() {
        let (mut pending, mut away) = (Asked::default(), Vec::new());
        for n in 0..u32::try_from(FORWARDS_MAX_PENDING).unwrap() {
            // 64 of the first, 48 of each other.
            let who = n.saturating_sub(16) / 48;
            assert!(join(&mut pending, n, u8::try_from(who).unwrap(), &mut away));
        }
        assert!(
            join(&mut pending, 0, 50, &mut away),
            "the oldest of the greediest"
        );
        assert!(join(&mut pending, 1_000, 60, &mut away));
        assert_eq!(
            away,
            [0, 1],
            "its first place was kept for the other, so a second went"
        );
        assert_eq!(pending.finish(&0, 0), [0], "who came second is still answered");
    }

    #[test]
    fn an_answer_to_what_was_given_up_is_not_one_to_what_was_asked_again() {
        let (mut pending, mut away) = (Asked::default(), Vec::new());
        let Joined::Begins(first) = pending.join(7, ip(1), 7, &mut away) else {
            panic!("nobody asked before");
        };
        pending.give_up(&7, ip(1), &mut away);
        assert!(first.gone.is_cancelled());
        assert!(join(&mut pending, 7, 2, &mut away));
        assert!(pending.finish(&7, first.number).is_empty());
        assert_eq!(pending.finish(&7, 1), [7]);
    }

    proptest! {
        /// Whatever is asked and answered: what is counted is what waits, and no limit is passed.
        #[test]
        fn what_is_counted_is_what_waits(steps in proptest::collection::vec((0u32..400, 0u8..12, any::<bool>()), 0..1_500)) {
            let (mut pending, mut away) = (Asked::default(), Vec::new());
            let mut live = 0;
            for (key, who, finishes) in steps {
                if finishes && key % 8 == 0 {
                    let number = pending.asked.get(&key).map_or(0, |q| q.number);
                    live -= pending.finish(&key, number).len();
                } else if join(&mut pending, key, who, &mut away) {
                    live += 1;
                }
                live -= away.drain(..).count();
                let waiters: usize = pending.asked.values().map(|q| q.waiters.len()).sum();
                prop_assert_eq!(waiters, live);
                prop_assert_eq!(pending.waiting.values().sum::<usize>(), live);
                prop_assert!(pending.asked.len() <= FORWARDS_MAX_PENDING);
                prop_assert!(pending.asked.values().all(|q| !q.waiters.is_empty() && q.waiters.len() <= WAITERS_MAX));
            }
        }
    }
}
