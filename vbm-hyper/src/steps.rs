//! Points at which a test may let the process die: before a command goes to a hypervisor, before a file is replaced, before and after a
//! process is made or ended. In a daemon nobody listens, and a step costs one look at a cell.

use std::sync::OnceLock;

type Listener = Box<dyn Fn(&str) + Send + Sync>;

static LISTENER: OnceLock<Listener> = OnceLock::new();

/// From now on `listener` is told of each step, by name. For a process of a test that is going to die; once in its life.
pub fn listen(listener: impl Fn(&str) + Send + Sync + 'static) {
    LISTENER.get_or_init(|| Box::new(listener));
}

pub(crate) fn step(what: &str) {
    if let Some(listener) = LISTENER.get() {
        listener(what);
    }
}
