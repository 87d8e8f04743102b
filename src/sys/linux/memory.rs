//! Memory of the kernel's, past the allocator.

use std::ptr;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::sys::unix::page_bytes;

/// Maps `len` zero bytes whose pages cost nothing until they are touched; null when refused.
pub(crate) fn map_zeroed(len: usize) -> *mut u8 {
    // SAFETY: an anonymous private mapping at an address of the kernel's choice.
    let ptr = unsafe {
        libc::mmap(
            ptr::null_mut(),
            len,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE,
            -1,
            0,
        )
    };
    if ptr == libc::MAP_FAILED {
        return ptr::null_mut();
    }
    ptr.cast()
}

// linux/mman.h
const MREMAP_MAYMOVE: libc::c_long = 1;
const MREMAP_FIXED: libc::c_long = 2;

/// Whether `move_mapping` can succeed.
pub(crate) const MOVES_MAPPINGS: bool = true;

/// Makes a mapping longer where it is, by zero bytes; false when refused, and then it is as it was.
///
/// # Safety
/// `ptr` must come from one of the functions that map, with the length `old_len`.
pub(crate) unsafe fn grow_in_place(ptr: *mut u8, old_len: usize, new_len: usize) -> bool {
    // SAFETY: the caller's. Without a flag the mapping stays where it is.
    unsafe { !remap(ptr, old_len, new_len, 0, ptr::null_mut()).is_null() }
}

/// The system call `mremap`, by its number: the `libc` crate does not have it for Android. Null when refused.
///
/// # Safety
/// Whoever uses the mapping, or the one at `to` with MREMAP_FIXED, may lose it.
unsafe fn remap(
    ptr: *mut u8,
    old_len: usize,
    new_len: usize,
    flags: libc::c_long,
    to: *mut u8,
) -> *mut u8 {
    // SAFETY: the caller's.
    match unsafe { libc::syscall(libc::SYS_mremap, ptr, old_len, new_len, flags, to) } {
        -1 => ptr::null_mut(),
        place => ptr::with_exposed_provenance_mut(place as usize),
    }
}

/// Moves a mapping, its pages and not what is in them, to where another one is, which goes, and makes it as long as that
/// one was, by zero bytes. False when refused: then the mapping is as it was, and whether the other one is still there
/// nobody knows. Neither may be touched there any more.
///
/// # Safety
/// Both must come from the functions that map, with these lengths; nobody uses the second one, and nobody the first one
/// under its old address when this has succeeded.
pub(crate) unsafe fn move_mapping(
    ptr: *mut u8,
    old_len: usize,
    to: *mut u8,
    new_len: usize,
) -> bool {
    // SAFETY: the caller's. What is replaced is the second mapping.
    unsafe { !remap(ptr, old_len, new_len, MREMAP_MAYMOVE | MREMAP_FIXED, to).is_null() }
}

/// Moves pages out of a mapping, which stays and is zero there, to a new one: at `hint` where that is free. Null when refused:
/// then the pages are as they were. That is so where they are of several mappings, which Linux from 6.17 on would move one
/// by one if the place were fixed: it may be refused after the first.
///
/// # Safety
/// `[ptr, ptr + len)` must be whole pages of private anonymous memory.
pub(crate) unsafe fn move_pages(ptr: *mut u8, len: usize, hint: *mut u8) -> *mut u8 {
    // linux/mman.h; since Linux 5.7.
    const MREMAP_DONTUNMAP: libc::c_long = 4;
    // SAFETY: the caller's. Nothing is replaced.
    unsafe { remap(ptr, len, len, MREMAP_MAYMOVE | MREMAP_DONTUNMAP, hint) }
}

/// Asks for huge pages behind a mapping.
///
/// # Safety
/// `[ptr, ptr + len)` must be whole pages of a mapping.
pub(crate) unsafe fn want_huge_pages(ptr: *mut u8, len: usize) {
    // SAFETY: the contents stay as they are. A kernel without huge pages refuses, which changes nothing.
    unsafe { libc::madvise(ptr.cast(), len, libc::MADV_HUGEPAGE) };
}

/// Has the system put memory behind some pages of a mapping, so that nobody has to wait for that when they are first
/// touched. A system that cannot (Linux before 5.14) refuses.
///
/// # Safety
/// `[ptr, ptr + len)` must be whole pages of a mapping.
pub(crate) unsafe fn make_ready(ptr: *mut u8, len: usize) {
    // linux/mman.h; the `libc` crate has it for glibc alone.
    const MADV_POPULATE_WRITE: libc::c_int = 23;
    // SAFETY: the contents stay as they are.
    unsafe { libc::madvise(ptr.cast(), len, MADV_POPULATE_WRITE) };
}

/// Whether `is_resident` can be true.
pub(crate) const KNOWS_RESIDENT: bool = true;

/// # Safety
/// `page` is the first byte of a page of a mapping.
pub(crate) unsafe fn is_resident(page: *mut u8) -> bool {
    let mut state = 0u8;
    // SAFETY: a page of the caller's, and room for its state.
    let error = unsafe { libc::mincore(page.cast(), page_bytes(), &mut state) };
    error == 0 && state & 1 != 0
}

/// Makes pages zero by having the system take their memory back; false when refused, as where memory is locked.
///
/// # Safety
/// `[ptr, ptr + len)` must be whole pages of a mapping of this module's, and nobody wants what is in them.
pub(crate) unsafe fn make_zero(ptr: *mut u8, len: usize) -> bool {
    static IS_TRUE: AtomicBool = AtomicBool::new(false);
    // SAFETY: the caller's. Of a private anonymous mapping each page is zero when it is touched next, but where an emulator
    // does nothing and says that it has (QEMU's user mode before 7.1).
    unsafe {
        if IS_TRUE.load(Ordering::Relaxed) {
            return release(ptr, len);
        }
        ptr.write_volatile(1);
        let is_zero = release(ptr, len) && ptr.read_volatile() == 0;
        IS_TRUE.store(is_zero, Ordering::Relaxed);
        is_zero
    }
}

/// Has the system take the memory of some pages back.
///
/// # Safety
/// `[ptr, ptr + len)` must be whole pages of a mapping that nobody reads any more.
pub(in crate::sys) unsafe fn release(ptr: *mut u8, len: usize) -> bool {
    // SAFETY: the caller's.
    unsafe { libc::madvise(ptr.cast(), len, libc::MADV_DONTNEED) == 0 }
}
