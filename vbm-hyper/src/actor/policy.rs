//! How often the shutdown button is pressed: pure.

use crate::limits::{BUTTON_RESEND_FIRST, BUTTON_RESEND_MAX};
use std::time::Duration;

/// How long to wait after press number `pressed` (1 is the first) before the next one.
pub(super) fn pause_after(pressed: u32) -> Duration {
    let doubled = BUTTON_RESEND_FIRST.saturating_mul(2_u32.saturating_pow(pressed.saturating_sub(1)));
    doubled.min(BUTTON_RESEND_MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_button_is_pressed_again_after_2_4_8_10_10_seconds() {
        let pauses: Vec<_> = (1..6).map(|n| pause_after(n).as_secs()).collect();
        assert_eq!(pauses, [2, 4, 8, 10, 10]);
        assert_eq!(pause_after(u32::MAX), BUTTON_RESEND_MAX);
    }
}
