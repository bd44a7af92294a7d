//! Ours and the peer's in turn: A B A B ..., so that what else the machine does falls on both.

use super::{fault::Outcome, row::Samples};

/// Takes `rounds` samples of each, in turn. The closures are told the number of the round.
pub(crate) async fn duel(
    rounds: usize,
    mut ours: impl AsyncFnMut(usize) -> Outcome<f64>,
    mut peer: impl AsyncFnMut(usize) -> Outcome<f64>,
) -> Outcome<Samples> {
    let mut samples = Samples::default();
    for round in 0..rounds {
        samples
            .ours
            .push(ours(round).await.map_err(|fault| fault.during("ours"))?);
        samples
            .peer
            .push(peer(round).await.map_err(|fault| fault.during("the peer"))?);
    }
    Ok(samples)
}

/// Takes `rounds` samples of ours alone.
pub(crate) async fn solo(
    rounds: usize,
    mut ours: impl AsyncFnMut(usize) -> Outcome<f64>,
) -> Outcome<Vec<f64>> {
    let mut samples = Vec::with_capacity(rounds);
    for round in 0..rounds {
        samples.push(ours(round).await?);
    }
    Ok(samples)
}

#[cfg(test)]
mod tests {
    use super::super::fault::Fault;
    use super::*;
    use std::cell::RefCell;

    #[tokio::test]
    async fn they_take_turns() {
        let order = RefCell::new(String::new());
        let samples = duel(
            3,
            async |round| {
                order.borrow_mut().push('A');
                Ok(round as f64)
            },
            async |_| {
                order.borrow_mut().push('B');
                Ok(1.0)
            },
        )
        .await
        .unwrap();
        assert_eq!(order.into_inner(), "ABABAB");
        assert_eq!(samples.ours, [0.0, 1.0, 2.0]);
    }

    #[tokio::test]
    async fn a_failure_says_whose_it_is() {
        let fault = duel(3, async |_| Ok(1.0), async |_| Err(Fault::new("gone")))
            .await
            .unwrap_err();
        assert_eq!(fault.to_string(), "the peer: gone");
    }
}
