//! Trouble by order: what a test does to a memory bus.
//!
//! | trouble | what others see | ends by |
//! |---|---|---|
//! | [`partition`](MemoryBus::partition) | what goes that way is held up, not lost; both count as present | [`heal`](MemoryBus::heal) |
//! | [`pause`](MemoryBus::pause) | as SIGSTOP: silent; absent when its presence has run out | [`resume`](MemoryBus::resume) |
//! | [`outage`](MemoryBus::outage) | sends wait, nothing is delivered | [`restore`](MemoryBus::restore), which raises the generation |
//! | [`lose_memory`](MemoryBus::lose_memory) | all that was kept is gone; the generation is raised | at once |
//! | [`crash`](MemoryBus::crash) | present until its presence has run out; its bus ends | another attachment |
//!
//! Dropping, repeating, delaying and reordering is diced: [`Faults`](super::Faults). Everything that was done stands in
//! [`MemoryBus::story`].

use super::MemoryBus;
use tokio::time::Instant;
use vbm_core::NodePath;

impl MemoryBus {
    /// What members below `from` send to members below `to` is held up until [`heal`](Self::heal). One direction;
    /// order the other one too for a full partition. What is held up still dies at its deadline.
    pub fn partition(&self, from: &NodePath, to: &NodePath) {
        self.hub.partition(from, to);
    }

    /// Ends all partitions. What was held up goes on.
    pub fn heal(&self) {
        self.hub.heal(Instant::now());
    }

    /// Everybody below `scope` stands still, as seen from outside: nothing is delivered to them, nothing that they
    /// say is heard, and their presence runs out after [`PRESENCE_TTL`](crate::limits::PRESENCE_TTL). (Handlers in this
    /// process run on; their answers are heard after the pause.)
    pub fn pause(&self, scope: &NodePath) {
        self.hub.pause(scope, Instant::now());
    }

    /// Ends the pause of that very scope.
    pub fn resume(&self, scope: &NodePath) {
        self.hub.resume(scope, Instant::now());
    }

    /// The bus does not answer: sends wait for it, nothing is delivered.
    pub fn outage(&self) {
        self.hub.outage();
    }

    /// Ends an outage. As after any reconnect the generation is raised: unanswered calls are sent again.
    pub fn restore(&self) {
        self.hub.restore(Instant::now());
    }

    /// Everything that is kept for anybody is forgotten and the generation is raised; members are present at once.
    pub fn lose_memory(&self) {
        self.hub.lose_memory();
    }

    /// The member at `path` is cut off for ever, and its bus is told. For others it is as if it had died.
    pub fn crash(&self, path: &NodePath) {
        self.hub.crash(path, Instant::now());
    }

    /// What was done to messages and members so far, oldest first, each line with the time since the bus was made. Of a
    /// long story the beginning is not kept.
    pub fn story(&self) -> Vec<String> {
        self.hub.story()
    }

    /// Adds a line of the test's own to the story.
    pub fn note(&self, what: &str) {
        self.hub.note(what);
    }
}
