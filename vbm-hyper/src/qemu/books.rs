//! What is written down about a run while it goes on: its definition, and where its devices are, which hot-plug changes.
//!
//! ```text
//!   Machine --definition()--> Books --manifest--> run directory      until the run is over: then nothing is written any more
//!                               `-----machine.json--> state directory
//! ```

use super::slots::Slots;
use crate::VmDefinition;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// The books of one run.
#[derive(Debug)]
pub(super) struct Books {
    pages: Mutex<Pages>,
}

#[derive(Debug)]
struct Pages {
    definition: Arc<VmDefinition>,
    slots: Slots,
    closed: bool,
}

impl Books {
    pub(super) fn new(definition: VmDefinition, slots: Slots) -> Self {
        let pages = Pages {
            definition: Arc::new(definition),
            slots,
            closed: false,
        };
        Self {
            pages: Mutex::new(pages),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Pages> {
        self.pages.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn definition(&self) -> Arc<VmDefinition> {
        Arc::clone(&self.lock().definition)
    }

    pub(super) fn slots(&self) -> Slots {
        self.lock().slots.clone()
    }

    /// Nothing is written from now on: the run is over, and what says that it goes on is cleared away.
    pub(super) fn close(&self) {
        self.lock().closed = true;
    }
}
