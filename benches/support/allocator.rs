//! A global allocator that is chosen when a process starts, for the benches whose contenders share
//! one program.
//!
//! The choice is a load and a branch before every call. Where single instructions count, each
//! contender has a program of its own, see `programs`.

use std::alloc::{GlobalAlloc, Layout, System};

use deferfree::DeferFree;
use mimalloc::MiMalloc;
use tikv_jemallocator::Jemalloc;

mod floor;

use super::support::contender::Contender;
use floor::Floor;

static DEFERFREE: DeferFree = DeferFree::new();

/// Every contender is reached through this switch: one relaxed load and a branch, the same for all.
#[derive(Debug)]
pub(crate) struct Switch;

impl Switch {
    /// The calling thread is about to rest.
    #[allow(dead_code, reason = "for the one bench that has resting threads")]
    pub(crate) fn thread_idle() {
        if Contender::of_this_process() == Contender::Deferfree {
            DEFERFREE.thread_idle();
        }
    }
}

macro_rules! with_chosen {
    ($method:ident($($argument:expr),*)) => {
        match Contender::of_this_process() {
            Contender::Mimalloc | Contender::MimallocAgain | Contender::MimallocPurge0 => {
                MiMalloc.$method($($argument),*)
            }
            Contender::Jemalloc | Contender::JemallocBackground => {
                Jemalloc.$method($($argument),*)
            }
            Contender::Deferfree | Contender::DeferfreeOff | Contender::BurstsOff => {
                DEFERFREE.$method($($argument),*)
            }
            Contender::Floor => Floor.$method($($argument),*),
            #[cfg(feature = "snmalloc")]
            Contender::Snmalloc => snmalloc_rs::SnMalloc.$method($($argument),*),
            // Those that hand values to other threads; and in the parent.
            _ => System.$method($($argument),*),
        }
    };
}

// SAFETY: the choice never changes once read, so each block goes back to the allocator it came
// from.
unsafe impl GlobalAlloc for Switch {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller's promises are passed on.
        unsafe { with_chosen!(alloc(layout)) }
    }

    unsafe fn dealloc(&self, ptr: *mut u8, layout: Layout) {
        // SAFETY: the caller's promises are passed on.
        unsafe { with_chosen!(dealloc(ptr, layout)) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller's promises are passed on.
        unsafe { with_chosen!(alloc_zeroed(layout)) }
    }

    unsafe fn realloc(&self, ptr: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        // SAFETY: the caller's promises are passed on.
        unsafe { with_chosen!(realloc(ptr, layout, new_size)) }
    }
}
