//! mimalloc that frees nothing: the least that a drop can cost.

use std::alloc::{GlobalAlloc, Layout};
use std::arch::asm;

use mimalloc::MiMalloc;

/// As [`MiMalloc`], but that `dealloc` does nothing.
#[derive(Debug)]
pub(crate) struct Floor;

// SAFETY: mimalloc's own methods; a block that is never freed breaks no promise.
unsafe impl GlobalAlloc for Floor {
    #[inline]
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller's promises are passed on.
        unsafe { MiMalloc.alloc(layout) }
    }

    /// A call that the optimiser knows nothing about. It removes one that it knows to do nothing, and
    /// with it the walk over the structure that is to be measured.
    #[inline(never)]
    unsafe fn dealloc(&self, ptr: *mut u8, _layout: Layout) {
        // SAFETY: no instruction at all.
        unsafe { asm!("/* {0} */", in(reg) ptr, options(nostack, preserves_flags)) };
    }

    #[inline]
    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller's promises are passed on.
        unsafe { MiMalloc.alloc_zeroed(layout) }
    }

    #[inline]
    unsafe fn realloc(&self, ptr: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        // SAFETY: the caller's promises are passed on.
        unsafe { MiMalloc.realloc(ptr, layout, new_size) }
    }
}
