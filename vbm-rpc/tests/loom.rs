//! The hand-made concurrency of the Redis transport, under every interleaving that the memory model allows.
//!
//! The pieces are included from the source with loom's atomics in place of the standard ones; no build with a special
//! configuration is needed. What else is shared stands behind one lock or belongs to one task.

mod atomic {
    pub(crate) use loom::sync::atomic::{AtomicU8, AtomicUsize, Ordering};
}

#[path = "../src/transport/redis"]
mod pieces {
    use super::atomic;
    #[path = "countdown.rs"]
    mod countdown;
    #[path = "last_word.rs"]
    mod last_word;

    use countdown::Countdown;
    use last_word::LastWord;
    use loom::{
        sync::{
            Arc,
            atomic::{AtomicUsize, Ordering},
        },
        thread,
    };

    #[test]
    fn a_frame_is_written_or_given_up_and_never_both() {
        loom::model(|| {
            let word = Arc::new(LastWord::new());
            let caller = {
                let word = word.clone();
                thread::spawn(move || word.give_up())
            };
            // The writer tries again when its connection broke.
            let (first, second) = (word.take(), word.take());
            let given_up = caller.join().unwrap();
            assert_eq!(
                second, first,
                "what was taken stays taken, what was given up stays given up"
            );
            assert_ne!(given_up, first, "exactly one of them has the word");
        });
    }

    #[test]
    fn the_last_of_an_entrys_requests_completes_it_once_and_sees_what_the_other_did() {
        loom::model(|| {
            let shared = Arc::new((Countdown::new(2), AtomicUsize::new(0)));
            let work = |(count, work): &(Countdown, AtomicUsize)| {
                // Relaxed: what orders it is the countdown.
                work.fetch_add(1, Ordering::Relaxed);
                let last = count.done();
                assert!(!last || work.load(Ordering::Relaxed) == 2);
                last
            };
            let other = {
                let shared = shared.clone();
                thread::spawn(move || work(&shared))
            };
            let here = work(&shared);
            assert_ne!(here, other.join().unwrap(), "one of them is the last");
        });
    }
}
