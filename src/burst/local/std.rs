//! The thread's state in a `thread_local!`, for targets where `elf` does not work.
//!
//! To reach one takes a call, which is too much on the way of each free. So frees look at a number that is for the whole
//! process, and short as long as no thread is in a burst or in a scope; allocations make the call.

use super::{LOOK_EVERY, Local, NONE, all_but_one_in};
use crate::sync::atomic::{AtomicU32, Ordering};

thread_local! {
    // Constant and without `Drop`: reading it neither allocates nor registers anything where the target has native
    // thread-locals, and it works until the thread is gone.
    static LOCAL: Local = const { Local::new() };
}

/// Threads whose own `short_below` is 0.
static N_LONG: AtomicU32 = AtomicU32::new(0);

/// See `Local`.
#[inline(always)]
pub(crate) fn short_below() -> u32 {
    // Relaxed: a thread finds its own change, and what others change does not matter to it.
    if N_LONG.load(Ordering::Relaxed) == 0 { all_but_one_in(LOOK_EVERY) } else { NONE }
}

/// See `Local`.
#[inline(always)]
pub(crate) fn is_fresh() -> bool {
    here().fresh.get()
}

/// This thread's state. There until the thread is gone.
#[inline(always)]
pub(crate) fn here() -> &'static Local {
    // SAFETY: it has no destructor, so it stays until the thread is gone; only this thread gets at it.
    LOCAL.with(|local| unsafe { &*std::ptr::from_ref(local) })
}

/// The thread's `short_below` has become 0, or is not any more.
pub(super) fn note_change(was_long: bool, is_long: bool) {
    match (was_long, is_long) {
        (false, true) => N_LONG.fetch_add(1, Ordering::Relaxed),
        (true, false) => N_LONG.fetch_sub(1, Ordering::Relaxed),
        _ => return,
    };
}
