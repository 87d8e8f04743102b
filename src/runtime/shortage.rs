//! An allocation underneath that is about to fail, and what waits.
//!
//! Large allocations are looked at, and where one fails, all that waits is given back and it is tried again. To look at
//! each small one as well takes twelve instructions more, of some eighty that a pair of allocation and free has. So an
//! allocator that can is to call by itself, in the middle of an allocation that is about to fail
//! ([`Backing::SETTLES_WHEN_SHORT`]). What it calls asks each runtime on such an allocator: a program may have several, and
//! it is all one memory.

use std::ffi::c_void;
use std::ptr;

use super::Runtime;
use crate::backing::Backing;
use crate::burst;
use crate::burst::local::{self, Local};
use crate::lifecycle::{self, Inside, OfGeneration};
use crate::sync::atomic::{AtomicPtr, Ordering, fence};
use crate::sys;

/// A runtime that gives back, its type forgotten.
pub(super) struct Giver {
    runtime: *const c_void,
    give_back: unsafe fn(*const c_void),
}

// SAFETY: the runtime may be used by any thread.
unsafe impl Send for Giver {}
// SAFETY: as above.
unsafe impl Sync for Giver {}

/// Those that are called: null, or part of a runtime that stays until it has been withdrawn. A runtime that finds no place
/// gives back when its own large allocations fail.
static GIVERS: [AtomicPtr<Giver>; 8] = [const { AtomicPtr::new(ptr::null_mut()) }; 8];

/// The allocators call for other reasons as well, and do not say which: memory is short when so much cannot be mapped. A
/// mapping of mimalloc's for small blocks is 4 MiB at most, and as much again to align it.
const PROBE_BYTES: usize = 16 << 20;

impl Giver {
    pub(super) fn new<B: Backing>(runtime: *const Runtime<B>) -> Giver {
        /// # Safety
        /// A runtime of that type, which stays meanwhile.
        unsafe fn give_back<B: Backing>(runtime: *const c_void) {
            // SAFETY: the caller's.
            let runtime = unsafe { &*runtime.cast::<Runtime<B>>() };
            // Of what was inherited in a fork, nothing is touched.
            if runtime.is_current() && runtime.anything_waits() && is_short() {
                runtime.give_back_everything();
            }
        }
        Giver { runtime: runtime.cast(), give_back: give_back::<B> }
    }

    /// To be called from now on, in place of the one `inherited` in a fork, if that has one.
    pub(super) fn come(&self, inherited: Option<&Giver>) {
        let this = ptr::from_ref(self).cast_mut();
        let before = inherited.map_or(ptr::null_mut(), |giver| ptr::from_ref(giver).cast_mut());
        let comes = |place: &AtomicPtr<Giver>, before| {
            // Release pairs with the Acquire in `settle`.
            place.compare_exchange(before, this, Ordering::Release, Ordering::Relaxed).is_ok()
        };
        let _ = GIVERS.iter().any(|place| comes(place, before))
            || GIVERS.iter().any(|place| comes(place, ptr::null_mut()));
    }

    /// On the drainer, outside the gate, before its runtime goes away.
    pub(super) fn withdraw(&self) {
        let this = ptr::from_ref(self).cast_mut();
        // SeqCst, with the fence in `settle`: whoever goes in from now on finds it gone, or is seen inside.
        let withdraw = |place: &AtomicPtr<Giver>| {
            place
                .compare_exchange(this, ptr::null_mut(), Ordering::SeqCst, Ordering::Relaxed)
                .is_ok()
        };
        if GIVERS.iter().any(withdraw) {
            fence(Ordering::SeqCst);
            lifecycle::wait_until_nobody_else_is_inside();
        }
    }
}

/// What a backing calls where a thread ends, or an allocation is about to fail, or for other reasons: not where the thread
/// rests, gives up its pages or is a drainer, which is no shortage, and what was written down is for the drainer.
pub(super) fn settle() {
    if local::here().is_some_and(Local::rests) {
        return;
    }
    burst::settle();
    // A fork or the exit does not wait for this.
    let Ok(_inside) = Inside::try_enter() else {
        return;
    };
    fence(Ordering::SeqCst);
    for place in &GIVERS {
        // SAFETY: null, or a giver that stays as long as anybody is inside.
        let giver = unsafe { place.load(Ordering::Acquire).as_ref() };
        if let Some(giver) = giver {
            // SAFETY: of the runtime that the giver is part of.
            unsafe { (giver.give_back)(giver.runtime) };
        }
    }
}

fn is_short() -> bool {
    let probe = sys::map_zeroed(PROBE_BYTES);
    if probe.is_null() {
        return true;
    }
    // SAFETY: mapped above.
    unsafe { sys::unmap(probe, PROBE_BYTES) };
    false
}
