//! Processor time: what is left of a measurement where other things run beside it.

use super::fault::{During, Outcome};
use nix::sys::resource::{UsageWho, getrusage};

/// Milliseconds of the processor, user and system, that this process took so far, and the children that it has waited for.
pub(crate) fn spent_ms() -> Outcome<f64> {
    let mut micros = 0.0;
    for who in [UsageWho::RUSAGE_SELF, UsageWho::RUSAGE_CHILDREN] {
        let usage = getrusage(who).during("asking for processor time")?;
        for time in [usage.user_time(), usage.system_time()] {
            #[expect(clippy::cast_precision_loss, reason = "of a program that runs for minutes")]
            let time = time.tv_sec() as f64 * 1e6 + time.tv_usec() as f64;
            micros += time;
        }
    }
    Ok(micros / 1e3)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn work_is_counted_and_never_less_than_before() {
        let before = spent_ms().unwrap();
        let mut sum = 0_u64;
        while spent_ms().unwrap() < before + 1.0 {
            sum = std::hint::black_box((0..100_000).fold(sum, u64::wrapping_add));
        }
        assert!(spent_ms().unwrap() >= before + 1.0);
    }
}
