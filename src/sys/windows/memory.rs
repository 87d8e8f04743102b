//! Memory of the system's, past the allocator.

use std::ptr;

use windows_sys::Win32::System::Memory::{
    MEM_COMMIT, MEM_RELEASE, MEM_RESERVE, MEM_RESET, PAGE_READWRITE, VirtualAlloc, VirtualFree,
    VirtualUnlock,
};

use crate::sys::Released;

/// `wanted` is null or an address.
fn map_at(wanted: *mut u8, len: usize) -> *mut u8 {
    // SAFETY: new memory, at a place that is free.
    unsafe { VirtualAlloc(wanted.cast(), len, MEM_RESERVE | MEM_COMMIT, PAGE_READWRITE).cast() }
}

/// The system promises the memory, and gives it when it is touched.
pub(crate) fn map_zeroed(len: usize) -> *mut u8 {
    map_at(ptr::null_mut(), len)
}

/// How often a place is looked for that another thread may take before this one does.
const TRIES: u32 = 8;

pub(crate) fn map_aligned(len: usize, align: usize) -> *mut u8 {
    let Some(with_room) = len.checked_add(align) else {
        return ptr::null_mut();
    };
    for _ in 0..TRIES {
        // A part of a mapping cannot be given up, so that a larger one only shows where there is room.
        // SAFETY: a reservation that nobody knows of.
        let place = unsafe {
            let room =
                VirtualAlloc(ptr::null(), with_room, MEM_RESERVE, PAGE_READWRITE).cast::<u8>();
            if room.is_null() {
                return room;
            }
            VirtualFree(room.cast(), 0, MEM_RELEASE);
            room.map_addr(|address| address.next_multiple_of(align))
        };
        let mapped = map_at(place, len);
        if !mapped.is_null() {
            return mapped;
        }
    }
    ptr::null_mut()
}

/// Whether parts of a mapping can be unmapped.
pub(crate) const SPLITS_MAPPINGS: bool = false;

/// # Safety
/// See `sys`.
pub(crate) unsafe fn unmap(ptr: *mut u8, _len: usize) {
    // SAFETY: the caller gives up the whole mapping.
    unsafe { VirtualFree(ptr.cast(), 0, MEM_RELEASE) };
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

/// They need a right that programs do not have.
///
/// # Safety
/// See `sys`.
pub(crate) unsafe fn want_huge_pages(_ptr: *mut u8, _len: usize) {}

/// # Safety
/// See `sys`.
pub(crate) unsafe fn make_ready(_ptr: *mut u8, _len: usize) {}

/// As on Linux: nobody has to wait for long for the lock of the address space.
const PIECE_BYTES: usize = 4 << 20;

/// # Safety
/// See `sys`.
pub(crate) unsafe fn release_in_pieces(ptr: *mut u8, len: usize) -> Released {
    let mut released = Released::default();
    let page = super::page_bytes();
    // Only whole pages: the rest of the first and of the last may be others'.
    let end = (ptr.addr() + len) & !(page - 1);
    let mut at = ptr.addr().next_multiple_of(page);
    while at < end {
        let piece = PIECE_BYTES.min(end - at);
        let piece_ptr = ptr.with_addr(at).cast();
        // What is in them need not be written anywhere. Unlocking what is not locked takes it out of the working set.
        // SAFETY: whole pages inside the caller's block.
        let done = unsafe {
            let reset = VirtualAlloc(piece_ptr, piece, MEM_RESET, PAGE_READWRITE);
            VirtualUnlock(piece_ptr, piece);
            !reset.is_null()
        };
        if done {
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

    #[test]
    fn a_mapping_is_where_it_must_be() {
        for align in [4096, 1 << 20, 64 << 20] {
            let len = 3 << 20;
            let mapped = map_aligned(len, align);
            assert!(!mapped.is_null() && mapped.addr() % align == 0, "{mapped:p}");
            // SAFETY: bytes of the mapping.
            unsafe {
                mapped.add(len - 1).write(7);
                assert_eq!(release_in_pieces(mapped, len).bytes, len);
                mapped.add(len - 1).write(8);
                assert_eq!(mapped.add(len - 1).read(), 8);
                unmap(mapped, len);
            }
        }
    }
}
