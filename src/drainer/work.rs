//! How the drainer hears of a program that allocates and frees small blocks and nothing else: it does not see them, but
//! what they leave is to go back to the system as well.
//!
//! The allocator underneath notes every now and then that it is in use, in the midst of an allocation. The next free
//! that looks around passes that on, where a thread may be started or woken.

use crate::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// About so much has been allocated from one note to the next: mimalloc's, which come with every thousandth
/// allocation that finds no block ready (`_mi_malloc_generic`, page.c), most often for want of a page of 64 KiB.
pub(crate) const NOTED_BYTES: usize = 1000 * (64 << 10);

/// A program of fewer resident bytes has no drainer for this alone: what it could give back is not worth a thread.
pub(crate) const WORTH_BYTES: usize = 64 << 20;

static N_NOTES: AtomicU64 = AtomicU64::new(0);
static IS_NEW: AtomicBool = AtomicBool::new(false);

/// Notes that the allocator is in use.
pub(crate) fn note() {
    // Relaxed, here and below: nothing is handed over with it.
    N_NOTES.fetch_add(1, Ordering::Relaxed);
    IS_NEW.store(true, Ordering::Relaxed);
}

/// Notes that blocks were freed that are neither large nor small.
pub(crate) fn note_frees() {
    N_NOTES.fetch_add(1, Ordering::Relaxed);
}

/// A number that changes with each note.
pub(super) fn n_notes() -> u64 {
    N_NOTES.load(Ordering::Relaxed)
}

/// Whether there was a note since the last time that this was true.
#[inline]
pub(crate) fn is_new() -> bool {
    IS_NEW.load(Ordering::Relaxed) && IS_NEW.swap(false, Ordering::Relaxed)
}
