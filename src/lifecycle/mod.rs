//! What a process goes through while drainers run in it: fork and exit.
//!
//! # Fork
//!
//! A fork copies the calling thread only. A drainer that was inside mimalloc at that moment leaves
//! behind, in the child, whatever it had half done there, for ever. So every visit of a drainer to
//! the backing goes through one gate for the whole process:
//!
//! ```text
//! drainer   enter:   0 forks -> one more inside            (else it waits outside)
//!           leave:   one less inside
//! its start enter:   the same for the thread that starts it, which does not wait. The drainer leaves once
//!                    it is set up, the thread once others can see that it runs: the child knows whose
//!                    logs it has.
//! fork      prepare: one more fork; waits until nobody else is inside
//!           parent:  one less fork
//!           child:   gate open, with nobody else in it; next generation
//! ```
//!
//! A thread that is inside forks in a signal handler: one that reports a crash in the midst of a free, say. It goes on in
//! the child where it was, and has not to be waited for. So each thread knows how often it is inside.
//!
//! The queues are not protected like that, because the program's threads never wait: one may be lost
//! in the middle of a push, and what lies behind it would never be found. So the child never touches
//! what it inherited. Whatever belongs to an earlier *generation* counts as not started.
//!
//! A child made by the raw `clone` system call runs no handlers, and its generation is the parent's: it
//! must not use large blocks. To look for it would cost each free a system call, or keep the generation
//! in a page of its own; and what other threads had half done in the allocator underneath would remain.
//!
//! # Exit
//!
//! Nothing is drained and nobody is joined or waited for: the memory goes with the process. From the
//! moment on at which this crate's exit handler runs, after those that were registered after it, the drainers no longer
//! enter the backing.
//!
//! # Unloading
//!
//! A library that has this crate in it is kept in memory from the moment at which the first thread is to
//! be started. Until then it can be unloaded.

mod phase;
#[cfg(all(test, loom))]
pub(crate) mod models;

use std::cell::Cell;
use std::mem;
use std::time::Duration;

use crate::burst::BURSTS;
use crate::burst::local::{self, Local};
use crate::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use crate::sync::{IN_MODEL, thread};
use crate::{backing, sys};

pub(crate) use phase::{Failure, OfGeneration, Phase, PhaseCell};

/// Low half: stays inside the backing. High half: forks being prepared or under way.
static GATE: AtomicU32 = AtomicU32::new(0);
const ONE_INSIDE: u32 = 1;
const ONE_FORK: u32 = 1 << 16;
const INSIDE: u32 = ONE_FORK - 1;

static EXITING: AtomicBool = AtomicBool::new(false);
static GENERATION: AtomicU32 = AtomicU32::new(0);

/// How often this process, or one that it was forked from, was forked off since the handlers were registered.
#[inline]
pub(crate) fn generation() -> u32 {
    // Only the forked child's single thread ever changes it: there is nothing to be ordered with.
    GENERATION.load(Ordering::Relaxed)
}

/// Whether the exit handlers have begun to run.
pub(crate) fn exiting() -> bool {
    // Relaxed: nothing is handed over with it; those who miss it once see it the next time.
    EXITING.load(Ordering::Relaxed)
}

/// Why the gate is closed.
#[derive(Debug)]
pub(crate) enum Closed {
    Forking,
    Exiting,
}

/// A drainer's stay inside the backing, or that of a thread that gives back what a drainer would have.
#[derive(Debug)]
pub(crate) struct Inside(());

impl Inside {
    /// Waits until no fork is under way; `None` once the process exits.
    pub(crate) fn enter() -> Option<Inside> {
        loop {
            match Inside::try_enter() {
                Ok(inside) => return Some(inside),
                Err(Closed::Exiting) => return None,
                Err(Closed::Forking) => thread::sleep(Duration::from_micros(100)),
            }
        }
    }

    /// As `enter`, without waiting.
    pub(crate) fn try_enter() -> Result<Inside, Closed> {
        if exiting() {
            return Err(Closed::Exiting);
        }
        let mut gate = GATE.load(Ordering::Relaxed);
        while gate < ONE_FORK {
            // Acquire pairs with the Release in `parent`: the fork is over.
            match GATE.compare_exchange_weak(
                gate,
                gate + ONE_INSIDE,
                Ordering::Acquire,
                Ordering::Relaxed,
            ) {
                Ok(_) => return Ok(Inside::of_this_thread()),
                Err(now) => gate = now,
            }
        }
        Err(Closed::Forking)
    }

    /// Another stay, which a fork that is waiting for this one waits for as well.
    pub(crate) fn another(&self) -> Inside {
        GATE.fetch_add(ONE_INSIDE, Ordering::Relaxed);
        Inside::of_this_thread()
    }

    /// A stay that has been counted in the gate.
    fn of_this_thread() -> Inside {
        // Only now, and in `drop` before the gate: a handler that forks between the two waits, but lets nobody be missed.
        if let Some(own) = own_stays() {
            own.set(own.get() + 1);
        }
        Inside(())
    }

    fn not_of_this_thread_any_more(&self) {
        if let Some(own) = own_stays() {
            own.set(own.get().saturating_sub(1));
        }
    }

    /// Leaves the stay to another thread, which is to call `taken_over` once.
    pub(crate) fn hand_over(self) {
        self.not_of_this_thread_any_more();
        mem::forget(self);
    }

    /// The stay that another thread hands over, no matter whether it has got round to that.
    pub(crate) fn taken_over() -> Inside {
        Inside::of_this_thread()
    }

    /// Lets a waiting fork, or the exit, go first: to be called between short pieces of work.
    pub(crate) fn give_way(self) -> Option<Inside> {
        if GATE.load(Ordering::Relaxed) < ONE_FORK && !exiting() {
            return Some(self);
        }
        drop(self);
        Inside::enter()
    }
}

impl Drop for Inside {
    fn drop(&mut self) {
        self.not_of_this_thread_any_more();
        // Release: what was done inside is finished for the fork, which acquires in `prepare`.
        GATE.fetch_sub(ONE_INSIDE, Ordering::Release);
    }
}

/// How often the calling thread is inside; `None` where it has no place to count.
fn own_stays() -> Option<&'static Cell<u32>> {
    // The models have no handlers, and one place for all threads.
    if IN_MODEL { None } else { local::already_here().map(Local::stays) }
}

pub(crate) fn wait_until_nobody_else_is_inside() {
    let own = own_stays().map_or(0, Cell::get);
    // Acquire pairs with the Release of the last one to leave.
    while GATE.load(Ordering::Acquire) & INSIDE > own {
        thread::sleep(Duration::from_micros(20));
    }
}

/// Registers the handlers; false when the system refuses. To be called once nothing is started yet, as early as that costs
/// nobody anything: in a handler of the program's, or in an allocation while a fork is under way, it may be too late (before
/// glibc 2.36, and with musl, it would wait for itself).
///
/// Two threads may both get here first. Handlers that are registered twice do no harm: they count
/// up and down twice.
pub(crate) fn register() -> bool {
    static REGISTERED: AtomicBool = AtomicBool::new(false);
    if !REGISTERED.load(Ordering::Acquire) {
        sys::prepare_to_start_threads();
        // Of a library that is unloaded, the C library takes the handlers away with it.
        if !sys::at_fork(prepare, parent, child) || !sys::at_exit(exit) {
            return false;
        }
        REGISTERED.store(true, Ordering::Release);
    }
    true
}

/// To be called before a thread is started that runs until the end; false when the system refuses.
pub(crate) fn stay() -> bool {
    register() && sys::stay_loaded()
}

unsafe extern "C" fn prepare() {
    GATE.fetch_add(ONE_FORK, Ordering::Relaxed);
    wait_until_nobody_else_is_inside();
}

unsafe extern "C" fn parent() {
    GATE.fetch_sub(ONE_FORK, Ordering::Release);
}

unsafe extern "C" fn child() {
    // Forks that other threads of the parent had begun do not exist here.
    GATE.store(own_stays().map_or(0, Cell::get), Ordering::Relaxed);
    GENERATION.fetch_add(1, Ordering::Relaxed);
    BURSTS.forked_child();
    backing::mimalloc_forked_child();
}

extern "C" fn exit() {
    EXITING.store(true, Ordering::Relaxed);
    backing::mimalloc_exiting();
}
