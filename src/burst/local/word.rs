//! The thread's state in a mapping of its own, which the thread's one word of the system leads to: where there is no
//! shorter way. Reaching it takes a call, or three instructions on Windows. It never allocates, on any target, as a
//! `thread_local!` does on those without native thread-locals.

use std::ffi::c_void;
use std::ptr;

use super::{ALL, Local};
use crate::{burst, sys};

/// The word of a thread that has no state: it has ended, or there was no memory for it.
const NO_STATE: *mut c_void = ptr::without_provenance_mut(1);

/// See `Local`.
#[inline(always)]
pub(crate) fn short_below() -> u32 {
    here().map_or(ALL, |local| local.short_below.get())
}

/// Reaching the thread's state costs more than what would be saved.
pub(crate) const HAS_OWN_PAGES: bool = false;

/// See `Local`.
#[inline(always)]
pub(crate) fn own_pages() -> *const () {
    ptr::null()
}

/// Of no use here.
#[inline(always)]
pub(crate) fn at_cache_line() {}

/// See `Local`.
#[inline(always)]
pub(crate) fn is_fresh() -> bool {
    here().is_none_or(|local| local.fresh.get())
}

/// This thread's state, for as long as it does nothing else; `None` where it has none, and frees are done at once.
#[inline(always)]
pub(crate) fn here() -> Option<&'static Local> {
    let word = sys::thread_word();
    if word.is_null() {
        return set_up();
    }
    if word == NO_STATE {
        return None;
    }
    // SAFETY: what `set_up` made, which stays until `thread_exits` changes the word; only this thread gets at it.
    Some(unsafe { &*word.cast::<Local>() })
}

/// As `here`, but the thread is not given a state.
pub(crate) fn already_here() -> Option<&'static Local> {
    let word = sys::thread_word();
    // SAFETY: as in `here`.
    (!word.is_null() && word != NO_STATE).then(|| unsafe { &*word.cast::<Local>() })
}

/// An address on the thread's stack, which may be another one further down in it.
#[inline(always)]
pub(crate) fn near_stack() -> usize {
    let on_stack = 0u8;
    (&raw const on_stack).addr()
}

#[cold]
#[inline(never)]
fn set_up() -> Option<&'static Local> {
    let _errno = sys::KeepsErrno::new();
    // First, so that nothing is mapped over and over where this is refused.
    if !sys::at_thread_exit(thread_exits, NO_STATE) {
        return None;
    }
    let local = sys::map_zeroed(size_of::<Local>());
    if local.is_null() || !sys::at_thread_exit(thread_exits, local.cast()) {
        return None;
    }
    // SAFETY: all zero bytes are a `Local`.
    Some(unsafe { &*local.cast::<Local>() })
}

/// Whether the thread gives up its log when it exits.
pub(crate) fn hears_of_its_exit() -> bool {
    // It would have no state otherwise.
    true
}

unsafe extern "C" fn thread_exits(word: *mut c_void) {
    // From here on the thread has no state. A system that takes the word away before it calls this has to be told each
    // time that it does; it does so a few times at most (`PTHREAD_DESTRUCTOR_ITERATIONS`).
    sys::at_thread_exit(thread_exits, NO_STATE);
    if word == NO_STATE {
        return;
    }
    // SAFETY: what `set_up` made. The word was all that led to it.
    unsafe {
        burst::give_up_log(&*word.cast::<Local>());
        sys::unmap(word.cast(), size_of::<Local>());
    }
}
