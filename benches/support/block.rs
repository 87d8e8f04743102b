//! Blocks of memory from the contender, and ledgers to remember them in that are not from the
//! contender.

use std::alloc::{self, GlobalAlloc, Layout, System};
use std::hint::black_box;
use std::mem::ManuallyDrop;
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;

pub(crate) const PAGE_BYTES: usize = 4 << 10;

/// A block from the global allocator, freed on drop.
///
/// Its alignment is 1, as a `Vec<u8>`'s: the case in which the `mimalloc` crate wastes nothing.
#[derive(Debug)]
pub(crate) struct Block {
    ptr: NonNull<u8>,
    len: usize,
}

// SAFETY: a block is plain memory with one owner.
unsafe impl Send for Block {}

impl Block {
    #[inline]
    pub(crate) fn new(len: usize) -> Self {
        let layout = layout(len);
        // SAFETY: `layout` has a size above zero.
        let ptr = unsafe { alloc::alloc(layout) };
        Self { ptr: non_null(ptr, layout), len }
    }

    #[inline]
    pub(crate) fn zeroed(len: usize) -> Self {
        let layout = layout(len);
        // SAFETY: `layout` has a size above zero.
        let ptr = unsafe { alloc::alloc_zeroed(layout) };
        Self { ptr: non_null(ptr, layout), len }
    }

    pub(crate) fn touched(len: usize) -> Self {
        let mut block = Self::new(len);
        block.touch();
        block
    }

    /// Writes one byte in each page.
    #[inline]
    pub(crate) fn touch(&mut self) {
        for offset in (0..self.len).step_by(PAGE_BYTES) {
            // SAFETY: `offset` is below the block's length.
            unsafe { self.ptr.add(offset).write_volatile(1) };
        }
    }

    #[inline]
    pub(crate) fn touch_first_page(&mut self) {
        // SAFETY: a block has at least one byte.
        unsafe { self.ptr.write_volatile(1) };
    }

    /// Reads the byte that `touch` wrote in each page.
    #[inline]
    pub(crate) fn sum(&self) -> usize {
        let byte = |offset| {
            // SAFETY: `offset` is below the block's length, and `touch` has written the byte there.
            usize::from(unsafe { self.ptr.add(offset).read_volatile() })
        };
        (0..self.len).step_by(PAGE_BYTES).map(byte).sum()
    }

    pub(crate) fn into_raw(self) -> *mut u8 {
        ManuallyDrop::new(self).as_ptr()
    }

    /// # Safety
    /// From `into_raw` of a block of `len` bytes, once.
    pub(crate) unsafe fn from_raw(ptr: *mut u8, len: usize) -> Self {
        // SAFETY: a block's address is not null.
        Self { ptr: unsafe { NonNull::new_unchecked(ptr) }, len }
    }

    pub(crate) fn as_ptr(&self) -> *mut u8 {
        self.ptr.as_ptr()
    }

    pub(crate) fn len(&self) -> usize {
        self.len
    }
}

impl Drop for Block {
    #[inline]
    fn drop(&mut self) {
        // SAFETY: the block came from the global allocator with this layout and is dropped once.
        unsafe { alloc::dealloc(black_box(self.ptr.as_ptr()), layout(self.len)) };
    }
}

#[inline]
fn layout(len: usize) -> Layout {
    debug_assert!(len > 0);
    Layout::from_size_align(len, 1).expect("a block is smaller than the address space")
}

#[inline]
fn non_null(ptr: *mut u8, layout: Layout) -> NonNull<u8> {
    // Opaque, so that a block which is freed unread is allocated all the same.
    NonNull::new(black_box(ptr)).unwrap_or_else(|| alloc::handle_alloc_error(layout))
}

/// A list of fixed capacity in the system allocator's memory: growing and freeing it is nothing
/// that the contender sees.
#[derive(Debug)]
pub(crate) struct Ledger<T> {
    items: NonNull<T>,
    capacity: usize,
    len: usize,
}

// SAFETY: a ledger owns its items and its memory, and `System` may be called from any thread.
unsafe impl<T: Send> Send for Ledger<T> {}

impl<T> Ledger<T> {
    pub(crate) fn with_capacity(capacity: usize) -> Self {
        let layout = Self::layout(capacity);
        // SAFETY: `layout` asks for at least one item, and no item is zero-sized (checked there).
        let ptr = unsafe { System.alloc_zeroed(layout) }.cast::<T>();
        let items = NonNull::new(ptr).unwrap_or_else(|| alloc::handle_alloc_error(layout));
        let mut ledger = Self { items, capacity: capacity.max(1), len: 0 };
        ledger.fault_in();
        ledger
    }

    fn layout(capacity: usize) -> Layout {
        const { assert!(size_of::<T>() > 0) };
        Layout::array::<T>(capacity.max(1)).expect("a ledger is smaller than the address space")
    }

    /// The pages are there before the measurement starts: a page fault in `push` would count.
    fn fault_in(&mut self) {
        for offset in (0..self.capacity * size_of::<T>()).step_by(PAGE_BYTES) {
            // SAFETY: the offset is inside the allocation, which holds no item yet.
            unsafe { self.items.cast::<u8>().add(offset).write_volatile(0) };
        }
    }

    #[inline]
    pub(crate) fn push(&mut self, item: T) {
        assert!(self.len < self.capacity, "a ledger of {} items is full", self.capacity);
        // SAFETY: `len` is below the capacity.
        unsafe { self.items.add(self.len).write(item) };
        self.len += 1;
    }

    #[inline]
    pub(crate) fn pop(&mut self) -> Option<T> {
        self.len = self.len.checked_sub(1)?;
        // SAFETY: the slot at `len` was written by `push` and is no longer counted.
        Some(unsafe { self.items.add(self.len).read() })
    }

    /// Takes an item out; the last one takes its place.
    #[inline]
    pub(crate) fn swap_remove(&mut self, index: usize) -> Option<T> {
        let last = self.len.checked_sub(1)?;
        self.swap(index, last);
        self.pop()
    }

    pub(crate) fn is_full(&self) -> bool {
        self.len == self.capacity
    }

    /// Takes the items out from first to last.
    #[inline]
    pub(crate) fn empty_into(&mut self, mut consume: impl FnMut(T)) {
        let n_items = std::mem::take(&mut self.len);
        for index in 0..n_items {
            // SAFETY: the slots below the old `len` were written by `push`, and each is read once.
            consume(unsafe { self.items.add(index).read() });
        }
    }

    /// Drops the items from first to last.
    #[inline]
    pub(crate) fn clear(&mut self) {
        self.empty_into(drop);
    }
}

impl<T> Deref for Ledger<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        // SAFETY: the slots below `len` are items.
        unsafe { std::slice::from_raw_parts(self.items.as_ptr(), self.len) }
    }
}

impl<T> DerefMut for Ledger<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        // SAFETY: the slots below `len` are items.
        unsafe { std::slice::from_raw_parts_mut(self.items.as_ptr(), self.len) }
    }
}

impl<T> Drop for Ledger<T> {
    fn drop(&mut self) {
        self.clear();
        // SAFETY: the memory came from `System` with this layout and holds no items any more.
        unsafe { System.dealloc(self.items.as_ptr().cast(), Self::layout(self.capacity)) };
    }
}
