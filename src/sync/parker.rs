//! Where the drainer waits: as `std::thread::park`, whose handle is a block on the heap.

use std::time::Duration;

use super::atomic::{AtomicU32, Ordering};
use super::{futex_wait, futex_wake_one};

/// Where one thread waits until another one lets it go on. Begins, as zeros, with nobody there.
///
/// An `unpark` that comes before the `park` is kept, and what came before it is seen after that.
#[derive(Debug, Default)]
pub(crate) struct Parker(AtomicU32);

const EMPTY: u32 = 0;
const UNPARKED: u32 = 1;
const PARKED: u32 = 2;

impl Parker {
    /// Waits for an `unpark`; for the one thread that waits here.
    pub(crate) fn park(&self) {
        self.wait(None);
    }

    /// As `park`, but no longer than that.
    pub(crate) fn park_timeout(&self, timeout: Duration) {
        self.wait(Some(timeout));
    }

    fn wait(&self, timeout: Option<Duration>) {
        // Either finds what an `unpark` left, or tells the next one that there is somebody to be woken.
        if self.0.swap(PARKED, Ordering::Relaxed) != UNPARKED {
            loop {
                futex_wait(&self.0, PARKED, timeout);
                // Waking up may have had other reasons, which are for whoever waits without an end to ignore.
                if timeout.is_some() || self.0.load(Ordering::Relaxed) == UNPARKED {
                    break;
                }
            }
        }
        // Acquire pairs with the Release in `unpark`, also of one that the first exchange found: this one
        // continues it. An `unpark` that comes just now is either taken here or kept.
        self.0.swap(EMPTY, Ordering::Acquire);
    }

    /// Has the `park` of now, or the next one, return.
    #[cold]
    pub(crate) fn unpark(&self) {
        if self.0.swap(UNPARKED, Ordering::Release) == PARKED {
            futex_wake_one(&self.0);
        }
    }
}

#[cfg(all(test, loom))]
mod models {
    use std::rc::Rc;

    use super::*;
    use crate::sync::atomic::AtomicBool;
    use crate::sync::{check, thread};

    /// Two threads that each have something to say to one that parks until both have, after so many naps.
    fn wait_for_both(n_naps: usize) {
        check(Some(3), 8, move || {
            let parker = Rc::new(Parker::default());
            let said = Rc::new([const { AtomicBool::new(false) }; 2]);
            for i in 0..said.len() {
                let (parker, said) = (Rc::clone(&parker), Rc::clone(&said));
                thread::spawn(move || {
                    // Relaxed, here and below: the parker is what orders them.
                    said[i].store(true, Ordering::Relaxed);
                    parker.unpark();
                });
            }
            for _ in 0..n_naps {
                parker.park_timeout(Duration::ZERO);
            }
            while !said.iter().all(|it| it.load(Ordering::Relaxed)) {
                parker.park();
            }
        });
    }

    /// Seen to fail with Relaxed in `unpark` or at the end of `wait`, where that is a store, and where it tells
    /// nobody that it waits.
    #[test]
    fn no_unpark_is_lost() {
        wait_for_both(0);
    }

    /// Seen to fail as the other.
    #[test]
    fn nor_around_a_time_out() {
        wait_for_both(1);
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::AtomicUsize;
    use std::thread;
    use std::time::Instant;

    use super::*;

    #[test]
    fn an_unpark_is_kept_once() {
        let parker = Parker::default();
        parker.unpark();
        parker.unpark();
        parker.park();
        let before = Instant::now();
        parker.park_timeout(Duration::from_millis(20));
        assert!(before.elapsed() >= Duration::from_millis(20));
    }

    #[test]
    fn no_unpark_is_lost() {
        const TURNS: usize = 20_000;
        struct Shared {
            parkers: [Parker; 2],
            turn: AtomicUsize,
        }
        let shared = Arc::new(Shared { parkers: Default::default(), turn: AtomicUsize::new(0) });
        let play = |shared: &Shared, me: usize| {
            for turn in (me..TURNS).step_by(2) {
                // Relaxed: the parkers are what is to order the turns.
                while shared.turn.load(Ordering::Relaxed) != turn {
                    if turn % 3 == 0 {
                        shared.parkers[me].park_timeout(Duration::from_secs(60));
                    } else {
                        shared.parkers[me].park();
                    }
                }
                shared.turn.store(turn + 1, Ordering::Relaxed);
                shared.parkers[1 - me].unpark();
            }
        };
        let other = thread::spawn({
            let shared = Arc::clone(&shared);
            move || play(&shared, 1)
        });
        play(&shared, 0);
        other.join().unwrap();
        assert_eq!(shared.turn.load(Ordering::Relaxed), TURNS);
    }
}
