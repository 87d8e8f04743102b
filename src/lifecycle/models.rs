//! Models of the start and of the gate, see `sync`.

use std::ptr::NonNull;
use std::rc::Rc;

use super::{
    Failure, GATE, Inside, OfGeneration, Phase, PhaseCell, child, generation, parent, prepare,
};
use crate::sync::atomic::Ordering;
use crate::sync::thread;
use crate::sync::{Plain, check};

/// What a `Drop` that forks finds in the child.
pub(crate) fn as_forked_child() {
    // SAFETY: takes nothing.
    unsafe { child() };
}

/// What runs, with something in it that is not atomic.
struct Running {
    generation: u32,
    content: Plain,
}

impl Running {
    fn new() -> NonNull<Running> {
        let running = Running { generation: generation(), content: Plain::new() };
        running.content.write();
        NonNull::from(Box::leak(Box::new(running)))
    }
}

impl OfGeneration for Running {
    fn generation(&self) -> u32 {
        self.generation
    }
}

static CELL: PhaseCell<Running> = PhaseCell::new();

/// Starts it or finds it started, looks at it, and says whether it was the one.
fn come(value: impl FnOnce() -> Result<NonNull<Running>, Failure>) -> bool {
    let start = CELL.start();
    let started = start.is_some();
    if let Some(start) = start {
        assert!(matches!(CELL.get(), Phase::Starting));
        start.finish(value());
    }
    if let Phase::Running(running) = CELL.get() {
        assert_eq!(running.generation, generation());
        running.content.read();
    }
    started
}

/// Seen to fail where OFF => STARTING is a store, and with Relaxed in `finish` and in `get`.
#[test]
fn one_of_those_who_come_first_starts() {
    check(Some(3), 12, || {
        let others = [0; 2].map(|_| thread::spawn(|| come(|| Ok(Running::new()))));
        let mine = come(|| Ok(Running::new()));
        let started = others.map(|other| other.join());
        assert_eq!([mine, started[0], started[1]].iter().filter(|&&started| started).count(), 1);
        assert!(matches!(CELL.get(), Phase::Running(_)));
    });
}

/// Seen to fail where the start leaves OFF behind instead of FAILED.
#[test]
fn a_failed_start_is_not_tried_again() {
    check(None, 12, || {
        let other = thread::spawn(|| come(|| Err(Failure::ForGood)));
        let mine = come(|| Err(Failure::ForGood));
        assert!(mine != other.join());
        assert!(matches!(CELL.get(), Phase::Failed));
    });
}

/// Seen to fail where FAILED => STARTING is a store, and with Relaxed in `finish`.
#[test]
fn a_start_that_failed_for_now_is_tried_again_by_one() {
    check(Some(3), 12, || {
        assert!(come(|| Err(Failure::ForNow)));
        let others = [0; 2].map(|_| thread::spawn(|| come(|| Ok(Running::new()))));
        let started = others.map(|other| other.join());
        assert!(started[0] != started[1]);
        assert!(matches!(CELL.get(), Phase::Running(_)));
    });
}

/// Seen to fail where a value counts as running whatever its generation.
#[test]
fn what_was_inherited_counts_as_off() {
    check(None, 12, || {
        assert!(come(|| Ok(Running::new())));
        as_forked_child();
        assert!(matches!(CELL.get(), Phase::Off));
        let other = thread::spawn(|| come(|| Ok(Running::new())));
        let mine = come(|| Ok(Running::new()));
        assert!(mine != other.join());
        assert!(matches!(CELL.get(), Phase::Running(_)));
    });
}

/// A drainer goes in, gives way and comes back, while two threads fork.
///
/// Seen to fail where `prepare` does not wait, where `try_enter` does not look at the forks, and with Relaxed in
/// the drop of `Inside`, `prepare`, `parent` and `try_enter`.
#[test]
fn nobody_is_inside_while_the_process_forks() {
    check(Some(2), 8, || {
        let backing = Rc::new(Plain::new());
        let drainer = thread::spawn({
            let backing = backing.clone();
            move || {
                let inside = Inside::enter().unwrap();
                backing.write();
                let inside = inside.give_way().unwrap();
                backing.write();
                drop(inside);
            }
        });
        let fork = |backing: Rc<Plain>| {
            // SAFETY: these take nothing.
            unsafe { prepare() };
            // The child gets it as it is.
            backing.read();
            // SAFETY: as above.
            unsafe { parent() };
        };
        let other = thread::spawn({
            let backing = backing.clone();
            move || fork(backing)
        });
        fork(backing);
        other.join();
        drainer.join();
        assert_eq!(GATE.load(Ordering::Relaxed), 0);
    });
}
