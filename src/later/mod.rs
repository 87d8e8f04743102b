//! Whole values handed to a thread that drops them.
//!
//! ```text
//! later(value) ─ needs no drop ──────────────▶ nothing
//!       ├─ on the dropper, or no room ───────▶ dropped here
//!       └─ Value: a few words, or a block ──▶ Backlog ──▶ the thread "deferfree-drop"
//! ```
//!
//! `value` forgets the type, `backlog` holds what waits and does not know what becomes of it,
//! `dropper` is the thread: when it runs and sleeps, and what fork and exit do to it; `phase` tells
//! whether there is one.
//!
//! What a hand-off does not do: lock, wait, read the clock, or call the system, but for starting the
//! thread once and for waking it after ten seconds without a value, or when much waits. (Where there is no thread
//! it reads the clock, to try again some time.) It allocates for a value of more than six words.

mod backlog;
mod dropper;
mod phase;
mod ring;
mod smart;
mod value;
#[cfg(all(test, loom))]
mod models;

use std::mem;
use std::time::Duration;

pub use self::smart::Later;
use self::value::Value;

/// Drops `value` on another thread, some time soon.
///
/// For values that take long to drop because they consist of many parts: walking through them is
/// what costs, and no allocator can take that off the caller. Handing one over takes some tens of
/// nanoseconds, whatever the value owns; about a microsecond where the caller's caches hold other
/// things. It has nothing to do with [`DeferFree`](crate::DeferFree): it works with any global
/// allocator.
///
/// ```
/// use std::collections::HashMap;
///
/// let map: HashMap<usize, Vec<usize>> = (0..100_000).map(|n| (n, vec![n])).collect();
/// deferfree::later(map);
/// ```
///
/// # Which thread, and when
///
/// The first value starts a thread named `deferfree-drop`, with no signals but those of a crash or a profiler, and a stack of
/// 8 MiB; a program that hands nothing over never has it. It drops one value after the other, in
/// no particular order. A value waits for some milliseconds, for 50 ms at most when nothing had come
/// for a while, and for as long as those before it take.
///
/// The value is dropped on the calling thread, before this returns,
/// - when too much waits: more than 16 Ki values (64 until that thread has come up), or 32 MiB counting
///   the values' own size (that of a `HashMap` is 48 bytes, whatever it owns: what it owns cannot be
///   told, so this does not bound the memory behind the values);
/// - when called by a `Drop` that runs on that thread;
/// - while another thread is just starting that thread, and while it cannot be started, which one line on standard
///   error says; it is tried again as long as the system is but short of memory or threads;
/// - on systems with `fork` other than Linux, Android, macOS and FreeBSD, always;
/// - from this crate's exit handler on, where that thread has not been started before. The handler of a program that has
///   [`DeferFree`](crate::DeferFree) for its global allocator runs after those of the program: what is handed over in those may
///   go with the process, so flush there, or drop it.
///
/// A value without anything to drop is not handed over.
///
/// # Panics
///
/// A `Drop` that panics on that thread is reported by the panic hook, as anywhere, and goes no
/// further. (With `panic = "abort"` it ends the process, as anywhere.) One that panics on the calling
/// thread unwinds through this.
///
/// # Exit
///
/// Values that still wait when the process exits are not dropped, and `main`'s return is an exit.
/// Where a drop must happen, because it writes a file or sends a message, call [`flush_values`]
/// before. An exit never waits for that thread.
///
/// # Fork
///
/// `fork` does not wait for that thread. The child does not have it: the values that waited in the
/// parent are dropped there and only there, and the first value handed over in the child starts a
/// thread of its own. As in any process with more than one thread, the child may rely on nothing that
/// another thread was about to change, and that includes the state of an allocator which does not
/// guard itself against forks.
///
/// # When not to use it
///
/// - For values that are cheap to drop: below a microsecond there is nothing to win.
/// - For one large block: a `Vec<u8>` has nothing to walk through, and `DeferFree` makes its free
///   cheap without changing a line.
/// - Where the drop itself is the point: guards, files that are to be closed now, channels whose end
///   is a signal.
/// - To be faster overall: the same work is done, elsewhere, with colder caches and blocks that cross
///   from one thread to another. On a machine with one processor it is only put off.
/// - Where drops may block: one that does holds up all others.
/// - Where drops start threads or programs past Rust's `Command`: these begin with that thread's signals blocked.
#[inline]
pub fn later<T: Send + 'static>(value: T) {
    if !mem::needs_drop::<T>() {
        return;
    }
    if const { Value::in_place::<T>() } {
        offer(Value::new(value), const { Value::weight_of::<T>() });
    } else {
        later_boxed(value);
    }
}

/// As `later`, for values that need a block. First asks, so as not to allocate for nothing.
#[inline(never)]
fn later_boxed<T: Send + 'static>(value: T) {
    let weight = const { Value::weight_of::<T>() };
    // For values in place the number of slots is the bound.
    if phase::running().is_some_and(|dropper| dropper.has_room(weight)) {
        if let Ok(value) = Value::boxed(value) {
            offer(value, weight);
        }
    }
    // What was not moved is dropped here.
}

/// Hands the value, which has this weight, to the dropper; or drops it here.
///
/// Inlined into the caller's own code, which is in the caches: after a program has worked on other
/// things, fetching this from elsewhere costs several times what running it does.
#[inline]
fn offer(value: Value, weight: usize) {
    match phase::running() {
        Some(dropper) => dropper.hand_over(value, weight),
        None => drop_here(value),
    }
}

#[cold]
#[inline(never)]
fn drop_here(value: Value) {
    drop(value);
}

/// Waits until all values handed over so far, by whichever thread, have been dropped.
///
/// Returns `false` without having waited for them when called by a `Drop` on the thread that drops
/// them, and when the process is exiting. In the child of a fork it does not wait for the parent's.
///
/// ```
/// struct Report;
///
/// impl Drop for Report {
///     fn drop(&mut self) {
///         // to be written before the program ends
///     }
/// }
///
/// deferfree::later(Report);
/// assert!(deferfree::flush_values());
/// ```
pub fn flush_values() -> bool {
    flush(None)
}

/// As [`flush_values`], but gives up after `timeout`: returns `false` if values were still waiting,
/// or being dropped, at that time. They go on to be dropped. With a `timeout` of zero it does not wait for that thread to say
/// so: false once that has been started.
pub fn flush_values_timeout(timeout: Duration) -> bool {
    flush(Some(timeout))
}

fn flush(timeout: Option<Duration>) -> bool {
    !dropper::is_dropper() && phase::if_started().is_none_or(|dropper| dropper.flush(timeout))
}
