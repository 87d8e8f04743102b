//! Memory of the kernel's, past the allocator.

use std::ptr;

/// The least that the system gives and takes.
pub(crate) fn page_bytes() -> usize {
    // SAFETY: reads a constant of the system.
    unsafe { libc::sysconf(libc::_SC_PAGESIZE) as usize }
}

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

/// As `map_zeroed`, at a multiple of `align`, which is a power of two. `len` must be whole pages.
pub(crate) fn map_aligned(len: usize, align: usize) -> *mut u8 {
    if align <= page_bytes() {
        return map_zeroed(len);
    }
    let Some(with_room) = len.checked_add(align) else {
        return ptr::null_mut();
    };
    let mapped = map_zeroed(with_room);
    if mapped.is_null() {
        return mapped;
    }
    let before = mapped.addr().next_multiple_of(align) - mapped.addr();
    let after = with_room - before - len;
    // SAFETY: whole pages of the new mapping before and after what is kept, which nobody knows of.
    unsafe {
        let kept = mapped.add(before);
        if before != 0 {
            unmap(mapped, before);
        }
        if after != 0 {
            unmap(kept.add(len), after);
        }
        kept
    }
}

/// # Safety
/// `ptr` must come from one of the functions that map, with this `len`, and nothing may use the mapping any more.
pub(crate) unsafe fn unmap(ptr: *mut u8, len: usize) {
    // SAFETY: the caller gives up the whole mapping.
    unsafe { libc::munmap(ptr.cast(), len) };
}

/// Makes a mapping longer where it is, by zero bytes; false when refused, and then it is as it was.
///
/// # Safety
/// `ptr` must come from one of the functions that map, with the length `old_len`.
pub(crate) unsafe fn grow_in_place(ptr: *mut u8, old_len: usize, new_len: usize) -> bool {
    // SAFETY: the caller's. Without a flag the mapping stays where it is.
    unsafe { libc::mremap(ptr.cast(), old_len, new_len, 0) != libc::MAP_FAILED }
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
    let flags = libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED;
    // SAFETY: the caller's. What is replaced is the second mapping.
    unsafe {
        libc::mremap(ptr.cast(), old_len, new_len, flags, to.cast::<libc::c_void>())
            != libc::MAP_FAILED
    }
}

/// Asks for huge pages behind a mapping.
///
/// # Safety
/// `[ptr, ptr + len)` must be whole pages of a mapping.
pub(crate) unsafe fn want_huge_pages(ptr: *mut u8, len: usize) {
    // SAFETY: the contents stay as they are. A kernel without huge pages refuses, which changes nothing.
    unsafe { libc::madvise(ptr.cast(), len, libc::MADV_HUGEPAGE) };
}

/// What was asked of the system to give pages back.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Released {
    pub(crate) bytes: usize,
    pub(crate) calls: usize,
}

/// Bytes released per call: short enough that nobody waits for one call, long enough that the calls
/// themselves do not count.
const PIECE_BYTES: usize = 4 << 20;

/// Gives the pages of a block back to the system without unmapping them.
///
/// `munmap` of a large touched range holds the lock of the address space for writing all the while,
/// and every other thread's `mmap` and page fault waits; `MADV_DONTNEED` takes it for reading. Once
/// the pages are gone, the `munmap` that follows has nothing left to do.
///
/// # Safety
/// `[ptr, ptr + len)` must be a block that nobody reads any more; its contents become zero.
pub(crate) unsafe fn release_in_pieces(ptr: *mut u8, len: usize) -> Released {
    let mut released = Released::default();
    let page = page_bytes();
    // The allocator's own bookkeeping may share the first and the last page: only whole pages go.
    let start = ptr.addr().next_multiple_of(page);
    let end = (ptr.addr() + len) & !(page - 1);
    let mut at = start;
    while at < end {
        let piece = PIECE_BYTES.min(end - at);
        // SAFETY: whole pages inside the caller's block. A refusal (locked memory) changes nothing.
        let refused =
            unsafe { libc::madvise(ptr.with_addr(at).cast(), piece, libc::MADV_DONTNEED) } != 0;
        if !refused {
            released.bytes += piece;
            released.calls += 1;
        }
        at += piece;
    }
    released
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mapping_keeps_what_it_must() {
        let page = page_bytes();
        for align in [page, 64 * page, 8 << 20] {
            let (len, grown) = (3 * page, 64 << 20);
            let mapped = map_aligned(len, align);
            assert!(!mapped.is_null() && mapped.addr() % align == 0, "{mapped:p}");
            // SAFETY: bytes of the mapping, by its latest address and length.
            unsafe {
                want_huge_pages(mapped, len);
                mapped.add(len - 1).write(7);
                let place = map_aligned(grown, align);
                assert!(!place.is_null() && move_mapping(mapped, len, place, grown));
                let mapped = place;
                assert_eq!(mapped.add(3 * page - 1).read(), 7);
                assert_eq!(mapped.add(grown - page).read(), 0);
                assert!(release_in_pieces(mapped, grown).bytes >= grown);
                assert_eq!(mapped.add(3 * page - 1).read(), 0);
                unmap(mapped, grown);
            }
        }
    }
}
