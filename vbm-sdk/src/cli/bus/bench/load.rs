//! So many loops that call, for so long, after a time to warm up; and what came of it.

use serde::Serialize;
use std::{
    sync::{
        Arc,
        atomic::{AtomicU8, Ordering},
    },
    time::Duration,
};
use tokio::{
    task::JoinSet,
    time::{Instant, sleep},
};
use vbm_core::{Error, ErrorKind};
use vbm_rpc::admin::Admin;

/// How long calls are made before they count.
const WARM_UP: Duration = Duration::from_millis(500);

const WARMING: u8 = 0;
const COUNTING: u8 = 1;
const OVER: u8 = 2;

/// What a number in flight gave.
#[derive(Debug, Serialize)]
pub(super) struct Measured {
    pub(super) in_flight: usize,
    pub(super) calls: usize,
    pub(super) calls_per_second: f64,
    pub(super) p50_micros: u32,
    pub(super) p99_micros: u32,
    pub(super) p999_micros: u32,
    pub(super) max_micros: u32,
    /// Of the server, all that it did in that time less what others did before; `None` when it does not tell.
    pub(super) commands_per_call: Option<f64>,
}

/// Runs `call` in `flights` loops. The first call that fails ends it.
///
/// Cancel safety: dropping it ends all loops.
pub(super) async fn measure<F, Fut>(
    admin: &dyn Admin,
    flights: usize,
    time: Duration,
    others: Option<f64>,
    call: F,
) -> Result<Measured, Error>
where
    F: Fn() -> Fut + Clone + Send + 'static,
    Fut: Future<Output = Result<(), Error>> + Send + 'static,
{
    let phase = Arc::new(AtomicU8::new(WARMING));
    let mut loops = JoinSet::new();
    for _ in 0..flights {
        loops.spawn(one_loop(phase.clone(), call.clone()));
    }
    let gathering = async {
        let mut micros = Vec::new();
        while let Some(ended) = loops.join_next().await {
            match ended {
                Ok(some) => micros.extend(some?),
                Err(error) => {
                    let what = "a loop of the measurement broke off";
                    return Err(Error::internal(what, error.to_string()));
                }
            }
        }
        Ok(micros)
    };
    // A call that fails ends the counting.
    let ((commands, seconds), micros) = tokio::try_join!(count(admin, &phase, time), gathering)?;
    // Those of others, as far as they go on as before.
    let own = commands.map(|all| (all - others.unwrap_or(0.0) * seconds).max(0.0));
    measured(flights, micros, seconds, own)
}

async fn one_loop<F, Fut>(phase: Arc<AtomicU8>, call: F) -> Result<Vec<u32>, Error>
where
    F: Fn() -> Fut,
    Fut: Future<Output = Result<(), Error>>,
{
    let mut micros = Vec::new();
    loop {
        let begun = Instant::now();
        call().await?;
        match phase.load(Ordering::Relaxed) {
            WARMING => {}
            COUNTING => micros.push(u32::try_from(begun.elapsed().as_micros()).unwrap_or(u32::MAX)),
            _ => return Ok(micros),
        }
    }
}

/// Commands of the server, and seconds, of the time that counts.
async fn count(admin: &dyn Admin, phase: &AtomicU8, time: Duration) -> Result<(Option<f64>, f64), Error> {
    sleep(WARM_UP).await;
    let before = admin.commands_processed().await?;
    let begun = Instant::now();
    phase.store(COUNTING, Ordering::Relaxed);
    sleep(time).await;
    phase.store(OVER, Ordering::Relaxed);
    let seconds = begun.elapsed().as_secs_f64();
    let after = admin.commands_processed().await?;
    let commands = before
        .zip(after)
        .map(|(before, after)| f64::from(u32::try_from(after.saturating_sub(before)).unwrap_or(u32::MAX)));
    Ok((commands, seconds))
}

fn measured(
    flights: usize,
    mut micros: Vec<u32>,
    seconds: f64,
    commands: Option<f64>,
) -> Result<Measured, Error> {
    micros.sort_unstable();
    let Some(&max_micros) = micros.last() else {
        return Err(Error::new(
            ErrorKind::DeadlineExceeded,
            "nothing was measured",
            "no call was answered in that time",
            "measure for a longer time, or with fewer calls in flight",
        ));
    };
    let calls = f64::from(u32::try_from(micros.len()).unwrap_or(u32::MAX));
    Ok(Measured {
        in_flight: flights,
        calls: micros.len(),
        calls_per_second: calls / seconds,
        p50_micros: at(&micros, 500),
        p99_micros: at(&micros, 990),
        p999_micros: at(&micros, 999),
        max_micros,
        commands_per_call: commands.map(|commands| commands / calls),
    })
}

/// The value that so many of a thousand of the sorted values are not above (nearest rank).
fn at(sorted: &[u32], of_thousand: usize) -> u32 {
    let rank = (sorted.len() * of_thousand).div_ceil(1_000).max(1);
    sorted.get(rank - 1).copied().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_values_that_were_measured() {
        let hundred: Vec<u32> = (1..=100).collect();
        assert_eq!(
            (at(&hundred, 500), at(&hundred, 990), at(&hundred, 999)),
            (50, 99, 100)
        );
        assert_eq!((at(&[7], 500), at(&[7], 999), at(&[], 500)), (7, 7, 0));
    }

    #[test]
    fn rates_are_of_the_time_that_counted_whatever_the_order_of_calls() {
        let row = measured(2, vec![30, 10, 20, 40], 2.0, Some(8.0)).unwrap();
        assert_eq!((row.calls, row.p50_micros, row.max_micros), (4, 20, 40));
        assert!((row.calls_per_second - 2.0).abs() < f64::EPSILON);
        assert_eq!(row.commands_per_call, Some(2.0));
        let none = measured(2, Vec::new(), 2.0, None).unwrap_err();
        assert_eq!(none.kind(), ErrorKind::DeadlineExceeded);
    }
}
