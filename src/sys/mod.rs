//! What is asked of the operating system, one file per kind of system, the same names in each.
//!
//! A platform without its own file uses `inline`: there the drainer never starts and every free is
//! done at once, so that the crate is correct everywhere and deferring where it has been proved.

#[cfg(all(target_os = "linux", not(deferfree_inline)))]
mod linux;
#[cfg(all(target_os = "linux", not(deferfree_inline)))]
pub(crate) use linux::*;

#[cfg(any(not(target_os = "linux"), deferfree_inline))]
mod inline;
#[cfg(any(not(target_os = "linux"), deferfree_inline))]
pub(crate) use inline::*;

/// Begins to bring the memory at `ptr`, which may be anything, into the cache.
#[inline(always)]
pub(crate) fn prefetch(ptr: *const u8) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: a hint, which never faults; every x86-64 has it.
    unsafe {
        std::arch::x86_64::_mm_prefetch::<{ std::arch::x86_64::_MM_HINT_T0 }>(ptr.cast());
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = ptr;
}
