//! Memory of the system's, past the allocator.

use std::ptr;

use super::{page_bytes, system};
use crate::sys::Released;
use system::map_zeroed;

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

/// Whether parts of a mapping can be unmapped.
pub(crate) const SPLITS_MAPPINGS: bool = true;

/// # Safety
/// `ptr` must come from one of the functions that map, with this `len`, and nothing may use the mapping any more.
pub(crate) unsafe fn unmap(ptr: *mut u8, len: usize) {
    // SAFETY: the caller gives up the whole mapping.
    unsafe { libc::munmap(ptr.cast(), len) };
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
        if unsafe { system::release(ptr.with_addr(at), piece) } {
            released.bytes += piece;
            released.calls += 1;
        }
        at += piece;
    }
    released
}

#[cfg(test)]
mod tests {
    use super::*;
    use system::{MOVES_MAPPINGS, move_mapping, want_huge_pages};

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
                assert!(!place.is_null());
                if MOVES_MAPPINGS {
                    assert!(move_mapping(mapped, len, place, grown));
                } else {
                    place.copy_from(mapped, len);
                    unmap(mapped, len);
                }
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
