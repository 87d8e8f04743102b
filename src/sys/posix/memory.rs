//! Memory of the system's, past the allocator.

use std::ptr;

use super::special;

/// Maps `len` zero bytes whose pages cost nothing until they are touched; null when refused.
pub(crate) fn map_zeroed(len: usize) -> *mut u8 {
    let access = libc::PROT_READ | libc::PROT_WRITE;
    // SAFETY: an anonymous private mapping at an address of the system's choice.
    let ptr = unsafe {
        libc::mmap(ptr::null_mut(), len, access, libc::MAP_PRIVATE | libc::MAP_ANON, -1, 0)
    };
    if ptr == libc::MAP_FAILED { ptr::null_mut() } else { ptr.cast() }
}

/// Whether `move_mapping` can succeed.
pub(crate) const MOVES_MAPPINGS: bool = false;

/// # Safety
/// See `sys`.
pub(crate) unsafe fn grow_in_place(_ptr: *mut u8, _old_len: usize, _new_len: usize) -> bool {
    false
}

/// # Safety
/// See `sys`.
pub(crate) unsafe fn move_mapping(
    _ptr: *mut u8,
    _old_len: usize,
    _to: *mut u8,
    _new_len: usize,
) -> bool {
    false
}

/// Huge pages are the system's business here.
///
/// # Safety
/// See `sys`.
pub(crate) unsafe fn want_huge_pages(_ptr: *mut u8, _len: usize) {}

/// Nobody can be asked here to touch pages.
///
/// # Safety
/// See `sys`.
pub(crate) unsafe fn make_ready(_ptr: *mut u8, _len: usize) {}

/// Has the system take the memory of some pages back.
///
/// # Safety
/// `[ptr, ptr + len)` must be whole pages of a mapping that nobody reads any more.
pub(in crate::sys) unsafe fn release(ptr: *mut u8, len: usize) -> bool {
    // SAFETY: the caller's. The pages are zero when they are next read, or as they were.
    unsafe { libc::madvise(ptr.cast(), len, special::RELEASE) == 0 }
}
