//! The thread that drops what others hand over, and how it sleeps.
//!
//! # Sleeping
//!
//! Waking a thread costs the one who wakes it microseconds, hundreds of times what the rest of a
//! hand-off costs. So the dropper wakes by itself for a while: when the backlog is empty it naps, a
//! sixteenth of the time for which nothing has come, between [`MIN_NAP`] and [`MAX_NAP`]. A program
//! that hands something over every now and then never wakes it, and its values wait for a
//! millisecond or a few. Only after [`LINGER`] without a value does it sleep until it is woken, which
//! the next value does.
//!
//! One atomic holds both sides of that: `waiting`, the weight of the values that wait, and in its
//! lowest bit [`ASLEEP`].
//!
//! ```text
//! a thread that hands over                      the dropper, after LINGER
//! H1  waiting += weight; was ASLEEP set?        D1  has dropped what it found
//! H2  puts the value into the backlog           D2  waiting: 0 => ASLEEP, else naps
//! H3  if it was: takes ASLEEP out, and the      D3  parks
//!     one who took it unparks                   D4  takes ASLEEP out, if it is still in
//! ```
//!
//! H1 and D2 change the same atomic, so one comes first. If H1 does, D2 finds other than 0 and fails:
//! a weight is only taken off again when its value has been dropped. If D2 does, H1 sees ASLEEP, and
//! H3 wakes the dropper, which then sees the value: `unpark` and the `park` that it ends order H2
//! before what comes after D3, and an `unpark` that comes before D3 is kept. Of several threads whose
//! H1 sees ASLEEP one unparks, maybe before another's H2; that one's weight keeps the dropper to naps.
//! Nothing else is ordered by `waiting`, hence Relaxed: the queues order the values' contents.
//!
//! A burst that passes [`HIGH_WATER_BYTES`] wakes the dropper out of a nap, once.
//!
//! # Flush
//!
//! ```text
//! a thread that flushes                         the dropper, each round
//! F1  its values are in the backlog             R1  reads flush.wanted
//! F2  ticket = ++flush.wanted                   R2  counts the backlog, drops as many
//! F3  unparks                                   R3  flush.done = what it read
//! F4  waits for flush.done >= ticket
//! ```
//!
//! F2 (Release) and R1 (Acquire): a dropper that reads the ticket counts the values of F1. It may not get at them, if a
//! thread is in the midst of putting in another in front of them; then R3 is left to a later round. R3
//! (Release) and F4 (Acquire): the values' drops have ended for the one who waited for them. A dropper
//! about to park at F3 finds the unpark and looks at R1 once more.
//!
//! # Fork
//!
//! `fork` does not wait for the dropper, which may be anywhere in the program's own code. In the child
//! nobody looks at what it inherited (`phase`). Where a `Drop` forks, the child's one thread is the
//! dropper itself; it ends when that `Drop` returns.
//!
//! # Exit
//!
//! From this crate's exit handler on, which runs after those that were registered after it, nothing more is dropped. A value that is being dropped at that time
//! goes on as any other thread does.

use std::alloc::{Layout, alloc, dealloc};
use std::cell::Cell;
use std::fmt;
use std::io;
use std::mem;
use std::panic::{self, AssertUnwindSafe};
use std::ptr;
use std::sync::{OnceLock, PoisonError};
use std::time::Duration;

use crossbeam_utils::CachePadded;

use super::backlog::{Backlog, Drained, LARGE_SLOTS, Next};
use super::value::{SLOT_BYTES, Value};
use crate::lifecycle::{self, Failure, OfGeneration};
use crate::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use crate::sync::thread::{self, Thread};
use crate::sync::{Condvar, Instant, Mutex};
use crate::sys;

/// As `ps -L` and debuggers show it.
const THREAD_NAME: &str = "deferfree-drop";
/// The main thread's usual size: values that recurse when they are dropped may do so here as well.
/// Pages that are never touched cost nothing.
const STACK_BYTES: usize = 8 << 20;

const MIN_NAP: Duration = Duration::from_millis(1);
const MAX_NAP: Duration = Duration::from_millis(50);
const LINGER: Duration = Duration::from_secs(10);

/// What the waiting values may weigh, see [`Value::weight_of`]. As each thread looks before it puts a
/// value in, it is exceeded by one value per thread at most.
const MAX_WAITING_BYTES: usize = 32 << 20;
/// A quarter of the slots.
const HIGH_WATER_BYTES: usize = LARGE_SLOTS * SLOT_BYTES / 4;

/// The weight of dropped values is taken off in portions: each time costs the callers a cache miss.
const PORTION_VALUES: u32 = 32;
const PORTION_BYTES: usize = MAX_WAITING_BYTES / 32;

/// Bit of `waiting`; weights are even.
const ASLEEP: usize = 1;

/// How long a flush goes without looking whether the process exits, which notifies nobody.
const EXIT_CHECK: Duration = Duration::from_millis(50);

thread_local! {
    static IS_DROPPER: Cell<bool> = const { Cell::new(false) };
}

/// What callers and the dropper share. Once it runs it is never freed: any thread may hold on to it.
///
/// A caller waits for little else than for cache lines and address translations. So this lies within
/// one page, but for most of the slots at its end, and what both sides change apart from what they only read.
#[derive(Debug)]
#[repr(C, align(2048))]
pub(super) struct Dropper {
    /// Of the process that started it.
    generation: u32,
    thread: OnceLock<Thread>,
    /// Weight of the values that wait, and [`ASLEEP`].
    waiting: CachePadded<AtomicUsize>,
    flush: CachePadded<Flush>,
    backlog: Backlog,
}

/// Why there is none.
#[derive(Debug)]
pub(super) enum StartError {
    Memory,
    Register,
    Thread(io::Error),
}

impl From<&StartError> for Failure {
    fn from(error: &StartError) -> Failure {
        match error {
            StartError::Memory | StartError::Register => Failure::ForNow,
            StartError::Thread(error) => error.into(),
        }
    }
}

impl fmt::Display for StartError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            StartError::Memory => f.write_str("no memory for handing values over"),
            StartError::Register => f.write_str("cannot register for fork and exit"),
            StartError::Thread(error) => {
                write!(f, "cannot start the dropper ({})", sys::Errno::from(error))
            }
        }
    }
}

#[derive(Debug, Default)]
struct Flush {
    wanted: AtomicU64,
    done: AtomicU64,
    changed: (Mutex<()>, Condvar),
}

/// Whether this thread is the dropper.
#[inline]
pub(super) fn is_dropper() -> bool {
    // The flag has no destructor. Should a platform destroy it none the less, the dropper is over.
    IS_DROPPER.try_with(Cell::get).unwrap_or(false)
}

impl OfGeneration for Dropper {
    #[inline]
    fn generation(&self) -> u32 {
        self.generation
    }
}

impl Dropper {
    pub(super) fn start() -> Result<&'static Dropper, StartError> {
        // A box that does not abort where there is no memory for it.
        let mut block = Vec::new();
        block.try_reserve_exact(1).map_err(|_| StartError::Memory)?;
        block.push(Dropper {
            generation: lifecycle::generation(),
            thread: OnceLock::new(),
            waiting: CachePadded::default(),
            flush: CachePadded::default(),
            backlog: Backlog::new(),
        });
        let dropper = Box::into_raw(block.into_boxed_slice()).cast::<Dropper>();
        // SAFETY: not freed any more, but below if there is no thread that could use it.
        let this: &'static Dropper = unsafe { &*dropper };
        let give_up = |error| {
            // SAFETY: there is no dropper, and nobody else knows of it.
            drop(unsafe { Box::from_raw(dropper) });
            Err(error)
        };
        if !has_memory_for_a_thread() {
            return give_up(StartError::Memory);
        }
        let signals = sys::SignalsBlocked::new();
        let start = || {
            thread::Builder::new()
                .name(THREAD_NAME.to_owned())
                // With a size given, no environment variable is read for it.
                .stack_size(STACK_BYTES)
                .spawn(move || this.run())
        };
        // Rust 1.85 panics when a thread is started in an exit handler: a thread-local variable of its own is gone.
        let started = panic::catch_unwind(AssertUnwindSafe(start))
            .unwrap_or_else(|_| Err(io::ErrorKind::Unsupported.into()));
        drop(signals);
        match started {
            Ok(thread) => {
                let set = this.thread.set(thread.thread().clone());
                debug_assert!(set.is_ok());
                Ok(this)
            }
            Err(error) => give_up(StartError::Thread(error)),
        }
    }

    /// Has the processor fetch what `hand_over` is going to need of a dropper at this address, if there
    /// is one: all at the same time, instead of one when the one before has come.
    #[inline]
    pub(super) fn prefetch(address: usize) {
        const LINE: usize = align_of::<CachePadded<u8>>();
        for offset in (0..size_of::<Dropper>().min(6 * LINE)).step_by(LINE) {
            sys::prefetch(ptr::without_provenance(address.wrapping_add(offset)));
        }
    }

    pub(super) fn has_room(&self, weight: usize) -> bool {
        let waiting = self.waiting.load(Ordering::Relaxed) & !ASLEEP;
        waiting.saturating_add(weight) <= MAX_WAITING_BYTES
    }

    /// H1 to H3. Drops the value at once when the queues are full.
    #[inline]
    pub(super) fn hand_over(&self, value: Value, weight: usize) {
        // H1
        let before = self.waiting.fetch_add(weight, Ordering::Relaxed);
        // H2
        if let Err(refused) = self.backlog.put(value) {
            self.waiting.fetch_sub(weight, Ordering::Relaxed);
            return super::drop_here(refused);
        }
        let passes = before < HIGH_WATER_BYTES && before + weight >= HIGH_WATER_BYTES;
        if before & ASLEEP != 0 || passes {
            self.wake(before);
        }
    }

    /// H3, or the high-water mark is passed.
    #[cold]
    fn wake(&self, before: usize) {
        if before & ASLEEP == 0 || self.waiting.fetch_and(!ASLEEP, Ordering::Relaxed) & ASLEEP != 0
        {
            self.unpark();
        }
    }

    fn unpark(&self) {
        // Set before anybody but the dropper itself learned of `self`.
        if let Some(thread) = self.thread.get() {
            thread.unpark();
        }
    }

    /// F2 to F4.
    pub(super) fn flush(&self, timeout: Option<Duration>) -> bool {
        // On Windows a thread that the exit has ended may hold the lock.
        if lifecycle::exiting() {
            return false;
        }
        // A deadline beyond the clock's end is none.
        let deadline = timeout.and_then(|timeout| Instant::now().checked_add(timeout));
        let ticket = self.flush.wanted.fetch_add(1, Ordering::Release) + 1;
        self.unpark();
        let (lock, changed) = &self.flush.changed;
        let mut guard = lock.lock().unwrap_or_else(PoisonError::into_inner);
        while self.flush.done.load(Ordering::Acquire) < ticket {
            if lifecycle::exiting() {
                return false;
            }
            let mut wait = EXIT_CHECK;
            if let Some(deadline) = deadline {
                wait = wait.min(deadline.saturating_duration_since(Instant::now()));
                if wait.is_zero() {
                    return false;
                }
            }
            guard = changed.wait_timeout(guard, wait).unwrap_or_else(PoisonError::into_inner).0;
        }
        true
    }

    /// The thread. Returns only in the child of a fork that a `Drop` made.
    fn run(&self) {
        sys::be_ordinary();
        IS_DROPPER.set(true);
        self.backlog.widen();
        let mut idle_since = Instant::now();
        loop {
            // R1
            let flush = self.flush.wanted.load(Ordering::Acquire);
            // R2. Looking at the queues takes their cache lines from the callers: not each time.
            let any = self.waiting.load(Ordering::Relaxed) != 0
                || flush != self.flush.done.load(Ordering::Relaxed);
            let Drained { n_taken, is_all } =
                if any { self.drop_round() } else { Drained { n_taken: 0, is_all: true } };
            if !self.is_current() {
                return;
            }
            if lifecycle::exiting() {
                park_for_ever();
            }
            // R3. Not where values of before may be left: they weigh, so that another round comes.
            if is_all {
                self.publish_flushed(flush);
            }
            if n_taken > 0 {
                idle_since = Instant::now();
                continue;
            }
            // D1
            let idle = idle_since.elapsed();
            if idle >= LINGER && self.fall_asleep() {
                // D3. A wake-up for a flush, or for nothing, leads back here.
                thread::park();
                // D4
                self.waiting.fetch_and(!ASLEEP, Ordering::Relaxed);
            } else {
                thread::park_timeout((idle / 16).clamp(MIN_NAP, MAX_NAP));
            }
        }
    }

    /// D2
    fn fall_asleep(&self) -> bool {
        self.waiting.compare_exchange(0, ASLEEP, Ordering::Relaxed, Ordering::Relaxed).is_ok()
    }

    /// Drops what waits now.
    fn drop_round(&self) -> Drained {
        let mut n_portion = 0;
        let mut portion_bytes = 0;
        let drained = self.backlog.drain(|value| {
            portion_bytes += value.weight();
            n_portion += 1;
            drop_caught(value);
            if n_portion == PORTION_VALUES || portion_bytes >= PORTION_BYTES {
                self.waiting.fetch_sub(portion_bytes, Ordering::Relaxed);
                (n_portion, portion_bytes) = (0, 0);
            }
            if self.is_current() && !lifecycle::exiting() { Next::Continue } else { Next::Stop }
        });
        self.waiting.fetch_sub(portion_bytes, Ordering::Relaxed);
        drained
    }

    fn publish_flushed(&self, flush: u64) {
        if self.flush.done.load(Ordering::Relaxed) == flush {
            return;
        }
        self.flush.done.store(flush, Ordering::Release);
        let (lock, changed) = &self.flush.changed;
        // Taking the lock makes sure that the waiter either sees the new value or waits already.
        drop(lock.lock().unwrap_or_else(PoisonError::into_inner));
        changed.notify_all();
    }
}

/// Whether there is memory for what `std::thread` allocates for a thread, which ends the process where there is none: a
/// handful of blocks of up to some 100 bytes. So many of each size are allocated and freed, for it to find them.
fn has_memory_for_a_thread() -> bool {
    const EACH: usize = 4;
    const STEP: usize = 16;
    const MAX: usize = 512;
    let mut blocks = [ptr::null_mut(); MAX / STEP * EACH];
    let layout =
        |i| Layout::from_size_align((i / EACH + 1) * STEP, 8).unwrap_or(Layout::new::<u8>());
    let mut has_memory = true;
    for (i, block) in blocks.iter_mut().enumerate() {
        // SAFETY: the layout is not empty.
        *block = unsafe { alloc(layout(i)) };
        has_memory &= !block.is_null();
    }
    for (i, block) in blocks.into_iter().enumerate().filter(|(_, block)| !block.is_null()) {
        // SAFETY: allocated above, with this layout.
        unsafe { dealloc(block, layout(i)) };
    }
    has_memory
}

/// Drops the value. Should it panic, the panic hook has reported that by the time it ends here.
fn drop_caught(value: Value) {
    let caught = panic::catch_unwind(AssertUnwindSafe(|| drop(value)));
    if let Err(payload) = caught {
        // What was thrown may throw in turn when it is dropped; what that throws is left alone.
        let again = panic::catch_unwind(AssertUnwindSafe(|| drop(payload)));
        mem::forget(again);
    }
}

/// The process exits with this thread in it.
fn park_for_ever() -> ! {
    loop {
        thread::park();
    }
}
