//! Models of how the dropper sleeps and is flushed, see `sync`.

use std::cell::Cell;
use std::ptr;

use super::dropper::Dropper;
use super::value::Value;
use crate::lifecycle::models::as_forked_child;
use crate::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use crate::sync::check;
use crate::sync::thread::{self, Thread};

static N_DROPPED: AtomicUsize = AtomicUsize::new(0);

/// Tells a thread when it is dropped.
struct Noted(Thread);

impl Drop for Noted {
    fn drop(&mut self) {
        // Release pairs with the Acquire in `wait_for`.
        N_DROPPED.fetch_add(1, Ordering::Release);
        self.0.unpark();
    }
}

/// Ends the dropper's thread, as in the child of a `Drop` that forks.
struct Forks;

impl Drop for Forks {
    fn drop(&mut self) {
        as_forked_child();
    }
}

fn hand_over<T: Send + 'static>(dropper: &Dropper, value: T) {
    dropper.hand_over(Value::new(value), const { Value::weight_of::<T>() });
}

/// A dropper, which the next execution frees.
fn start() -> &'static Dropper {
    thread_local! {
        static LAST: Cell<*const Dropper> = const { Cell::new(ptr::null()) };
    }
    let dropper = Dropper::start().unwrap();
    let last = LAST.replace(dropper).cast_mut();
    if !last.is_null() {
        // SAFETY: `start` made it out of a box, and the threads of that execution have ended.
        drop(unsafe { Box::from_raw(last) });
    }
    dropper
}

/// Also until the caller sees their slots free: `Forks`, which comes next, must find room.
fn wait_for(n_dropped: usize) {
    while N_DROPPED.load(Ordering::Acquire) < n_dropped {
        thread::park();
    }
}

/// Values come one at a time, so that the dropper falls asleep before each or is about to.
///
/// Seen to fail where H3 wakes nobody, where H1 comes after H2, and where D2 does not look for 0.
#[test]
fn a_value_wakes_the_dropper() {
    check(Some(3), 40, || {
        let dropper = start();
        for n in 1..=2 {
            hand_over(dropper, Noted(thread::current()));
            wait_for(n);
        }
        hand_over(dropper, Forks);
    });
}

/// Two threads at once: one of them wakes it, maybe before the other's value is there.
///
/// Seen to fail as above.
#[test]
fn values_of_two_threads_wake_the_dropper() {
    check(Some(2), 40, || {
        let dropper = start();
        let this = thread::current();
        let other = thread::spawn({
            let this = this.clone();
            move || hand_over(dropper, Noted(this))
        });
        hand_over(dropper, Noted(this));
        wait_for(2);
        other.join();
        hand_over(dropper, Forks);
    });
}

/// Seen to fail where R1 comes after R2, with Relaxed in R3, without F3, and where the one who notifies does not
/// take the lock.
#[test]
fn a_flush_waits_for_what_came_before() {
    check(Some(2), 40, || {
        let dropper = start();
        let this = thread::current();
        let other = thread::spawn({
            let this = this.clone();
            move || {
                hand_over(dropper, Noted(this));
                assert!(dropper.flush(None));
                assert!(N_DROPPED.load(Ordering::Relaxed) >= 1);
            }
        });
        assert!(dropper.flush(None));
        other.join();
        assert_eq!(N_DROPPED.load(Ordering::Relaxed), 1);
        hand_over(dropper, Forks);
    });
}

/// Another thread may be in the midst of putting a value in, in front of that which is flushed.
///
/// Seen to fail where a round that did not get at all values counts as one that did.
#[test]
fn a_flush_waits_for_what_is_behind_another() {
    static IS_DROPPED: AtomicBool = AtomicBool::new(false);
    struct Mine;
    impl Drop for Mine {
        fn drop(&mut self) {
            IS_DROPPED.store(true, Ordering::Relaxed);
        }
    }
    check(Some(1), 40, || {
        let dropper = start();
        let this = thread::current();
        let other = thread::spawn(move || hand_over(dropper, Noted(this)));
        hand_over(dropper, Mine);
        assert!(dropper.flush(None));
        assert!(IS_DROPPED.load(Ordering::Relaxed));
        other.join();
        wait_for(1);
        hand_over(dropper, Forks);
    });
}
