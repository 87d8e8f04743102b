//! An allocation underneath that is about to fail, and what waits.
//!
//! Large allocations are looked at, and where one fails, all that waits is given back and it is tried again. To look at
//! each small one as well takes twelve instructions more, of some eighty that a pair of allocation and free has. So an
//! allocator that can is to call by itself, in the middle of an allocation that is about to fail
//! ([`Backing::SETTLES_WHEN_SHORT`]). It calls one runtime of the process, the owner of the bursts.

use std::ffi::c_void;
use std::ptr;

use super::Runtime;
use crate::backing::Backing;
use crate::burst;
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

/// The one that is called. Null, or part of a runtime that stays until it has been withdrawn.
static GIVER: AtomicPtr<Giver> = AtomicPtr::new(ptr::null_mut());

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

    /// To be called in place of the one before.
    pub(super) fn come(&self) {
        // Release pairs with the Acquire in `settle`.
        GIVER.store(ptr::from_ref(self).cast_mut(), Ordering::Release);
    }

    /// On the drainer, outside the gate, before its runtime goes away.
    pub(super) fn withdraw(&self) {
        let this = ptr::from_ref(self).cast_mut();
        // SeqCst, with the fence in `settle`: whoever goes in from now on finds it gone, or is seen inside.
        let is_it = GIVER
            .compare_exchange(this, ptr::null_mut(), Ordering::SeqCst, Ordering::Relaxed)
            .is_ok();
        if is_it {
            fence(Ordering::SeqCst);
            lifecycle::wait_until_nobody_is_inside();
        }
    }
}

/// What a backing calls where a thread ends, or an allocation is about to fail.
pub(super) fn settle(free: &mut dyn FnMut(*mut u8)) {
    burst::settle(free);
    // A fork or the exit does not wait for this.
    let Ok(_inside) = Inside::try_enter() else {
        return;
    };
    fence(Ordering::SeqCst);
    // SAFETY: null, or a giver that stays as long as anybody is inside.
    if let Some(giver) = unsafe { GIVER.load(Ordering::Acquire).as_ref() } {
        // SAFETY: of the runtime that the giver is part of.
        unsafe { (giver.give_back)(giver.runtime) };
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
