//! Who makes room where all places are taken: the one who has the most, so that a few cannot shut the others out.
//!
//! With `n` places and `m` who ask, each is left at least `n / m` of them, whoever came first: a newcomer takes a place of the
//! greediest as long as that one is left with no fewer than the newcomer then has.

use std::{collections::BTreeMap, net::Ipv4Addr};

/// Whose place goes to `me`, of those who hold one each; `None` when nobody has two more than `me`.
pub(crate) fn who_yields(holders: impl Iterator<Item = Ipv4Addr>, me: Ipv4Addr) -> Option<Ipv4Addr> {
    let mut counts = BTreeMap::new();
    for holder in holders {
        *counts.entry(holder).or_insert(0_usize) += 1;
    }
    let mine = counts.remove(&me).unwrap_or_default();
    let (who, most) = counts.into_iter().max_by_key(|(_, count)| *count)?;
    (most > mine + 1).then_some(who)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn ip(n: u8) -> Ipv4Addr {
        [10, 0, 0, n].into()
    }

    #[test]
    fn the_one_with_the_most_yields_and_nobody_who_has_as_little() {
        let held = |counts: &[(u8, usize)], me| {
            let all = counts.iter().flat_map(|(who, n)| vec![ip(*who); *n]);
            who_yields(all, ip(me))
        };
        assert_eq!(held(&[(1, 3), (2, 5)], 9), Some(ip(2)));
        assert_eq!(held(&[(1, 3), (2, 5)], 2), None, "not one's own");
        assert_eq!(held(&[(1, 1), (2, 1)], 9), None, "one each is the least");
        assert_eq!(held(&[(1, 4), (2, 3)], 2), None, "they would only change roles");
        assert_eq!(held(&[(1, 5), (2, 3)], 2), Some(ip(1)));
    }

    proptest! {
        /// Whatever came before, all who go on asking end with the same share, but for one place.
        #[test]
        fn all_who_ask_end_with_the_same_share(mut held in proptest::collection::vec(0u8..8, 24), n in 1u8..8) {
            for _ in 0..200 {
                for me in 0..n {
                    let holders = held.iter().map(|h| ip(*h));
                    if let Some(gone) = who_yields(holders, ip(me)) {
                        let at = held.iter().position(|h| ip(*h) == gone);
                        held[at.unwrap()] = me;
                    }
                }
            }
            for me in 0..n {
                let mine = held.iter().filter(|h| **h == me).count();
                prop_assert!(mine >= held.len() / 8, "{me} has {mine}");
            }
        }
    }
}
