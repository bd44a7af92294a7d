//! ^C, SIGTERM and SIGHUP while the demo holds things on the host: the step in hand ends, then everything is cleared.
//!
//! ```text
//!   signal --> thread --> State.came, and a word to the command that runs now --> its fault ends the story --> clear
//! ```
//!
//! A second signal leaves at once; what the demo made goes with it as far as the kernel can see to that.

use std::sync::mpsc::Sender;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::{Handle, Signals};

use super::typed::Event;
use crate::fault::{Done, Fault};
use crate::say;

/// Signals that come together (`timeout` sends two) are one wish.
const SAME_WISH: Duration = Duration::from_secs(1);
/// What a shell gives for a program that ^C ended.
const EXIT_INTERRUPTED: i32 = 130;

/// Whether somebody wants the demo to end. Cheap to clone.
#[derive(Clone, Default)]
pub(crate) struct Interrupts(Arc<Mutex<State>>);

#[derive(Default)]
struct State {
    came: bool,
    tell: Option<Sender<Event>>,
}

impl Interrupts {
    pub(crate) fn came(&self) -> bool {
        self.state().came
    }

    /// Sends [`Event::Interrupted`] when a signal comes; at once when one came before.
    pub(crate) fn subscribe(&self, tell: Sender<Event>) {
        let mut state = self.state();
        if state.came {
            // A receiver that is gone wants no news.
            drop(tell.send(Event::Interrupted));
        } else {
            state.tell = Some(tell);
        }
    }

    pub(crate) fn unsubscribe(&self) {
        self.state().tell = None;
    }

    pub(crate) fn trip(&self) {
        let mut state = self.state();
        state.came = true;
        if let Some(tell) = state.tell.take() {
            drop(tell.send(Event::Interrupted));
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Signals are ours while this lives; afterwards they do nothing, as the program is about to end.
pub(crate) struct Watch {
    handle: Handle,
    thread: Option<JoinHandle<()>>,
}

impl Watch {
    pub(crate) fn new(interrupts: &Interrupts) -> Done<Self> {
        let mut signals = Signals::new([SIGINT, SIGTERM, SIGHUP]).map_err(|error| {
            Fault::new(
                "cannot listen for signals",
                error,
                "run it outside of what limits it",
            )
        })?;
        let handle = signals.handle();
        let interrupts = interrupts.clone();
        let thread = std::thread::spawn(move || {
            let mut first: Option<Instant> = None;
            for _ in signals.forever() {
                match first {
                    None => {
                        first = Some(Instant::now());
                        say::note("interrupted: clearing up, a moment (once more leaves at once)");
                        interrupts.trip();
                    }
                    Some(at) if at.elapsed() < SAME_WISH => {}
                    Some(_) => {
                        say::note("left at once; `vbm doctor --fix` removes what may be left");
                        std::process::exit(EXIT_INTERRUPTED);
                    }
                }
            }
        });
        Ok(Self {
            handle,
            thread: Some(thread),
        })
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.handle.close();
        if let Some(thread) = self.thread.take() {
            // A panic of that thread was printed when it happened.
            drop(thread.join());
        }
    }
}
