//! Whether others surely see this member, and what it must not take while they may not.
//!
//! Who asks somebody that is not in presence is told "no route", and the request is taken back. A member that could not
//! renew its presence (its process or its connection stood still, Redis refused it) may find such a request in its queue
//! before it is gone. So it *withholds* what was written after its presence may have run out, until it is seen again. What
//! was written before is taken as ever: it was told as kept, and Redis may need the room.

use super::{attachment::Core, pack::Entry};
use crate::limits::PRESENCE_TTL;
use std::time::Duration;
use tokio::time::{Instant, timeout};

/// What the clocks of two members may differ by, and what lies between asking who is there and writing.
const MARGIN: Duration = Duration::from_millis(500);
/// How often it is looked for other things while something is withheld.
const LOOK_EVERY: Duration = Duration::from_millis(100);

impl Core {
    /// Presence was renewed by a batch that was begun then.
    pub(super) fn renewed(&self, asked: Instant) {
        let until = asked + PRESENCE_TTL - MARGIN;
        self.present_until.send_modify(|known| *known = until.max(*known));
    }

    /// Whether others surely see this member; also of one that retires: its queues are read no more.
    fn is_present(&self) -> bool {
        self.retired.is_cancelled() || *self.present_until.borrow() > Instant::now()
    }

    /// Takes away what must not be begun now, which is the newest; whether there is any.
    pub(super) fn withhold(&self, entries: &mut Vec<Entry>) -> bool {
        if self.is_present() {
            return false;
        }
        let until = *self.present_until.borrow();
        let known = entries
            .iter()
            .take_while(|entry| self.written_at(&entry.id) < until);
        let known = known.count();
        let withheld = known < entries.len();
        if withheld {
            tracing::debug!(
                entries = entries.len() - known,
                "requests wait until this member is seen again"
            );
            entries.truncate(known);
        }
        withheld
    }

    /// Waits until others see this member again, but not for long; whether they do.
    pub(super) async fn present(&self) -> bool {
        let mut until = self.present_until.subscribe();
        let seen = until.wait_for(|until| *until > Instant::now());
        // Cancel safe: it only looks.
        let _late = timeout(LOOK_EVERY, seen).await.is_err();
        self.is_present()
    }
}
