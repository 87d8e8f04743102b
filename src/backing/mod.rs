//! The allocator underneath: everything that the rest of the crate knows about it.

mod mimalloc;
#[cfg(unix)]
mod system;

use std::alloc::{GlobalAlloc, Layout};
use std::mem::MaybeUninit;
use std::ptr;

pub use self::mimalloc::Mimalloc;
pub(crate) use self::mimalloc::{
    exiting as mimalloc_exiting, forked_child as mimalloc_forked_child,
};

/// What has become of a block, see [`Backing::dealloc_own`].
#[doc(hidden)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OwnFree {
    Done,
    /// Not freed: it takes more than that.
    Not,
    /// Not freed: it may be the first one in memory that is full of blocks.
    First,
    /// Not freed: it is the last block of memory that had been full of blocks.
    Last {
        /// So many.
        blocks: u16,
    },
}

/// An allocator that [`DeferFree`](crate::DeferFree) can stand on.
///
/// The blocks themselves come from its [`GlobalAlloc`] methods; the methods here tell what a
/// deferred free has to know besides. The defaults are right for any allocator.
///
/// It is `Copy` because the program's threads and the drainer each hold one: make it a unit type,
/// or a `&'static` to its state.
///
/// # Safety
///
/// In addition to the contract of [`GlobalAlloc`], which includes that no method unwinds:
/// - a block may be freed by another thread than the one that allocated it, and through a copy;
/// - a block's size and alignment are found by the allocator itself, as `free` and `realloc` of C do: `dealloc`,
///   `realloc` and [`usable_size`](Backing::usable_size) may be called with any other size that the block has
///   room for, and `dealloc` with an alignment of 1;
/// - [`usable_size`](Backing::usable_size) is a size that the holder of the block may really use.
pub unsafe trait Backing: GlobalAlloc + Copy + Send + Sync + 'static {
    /// Whether an allocation that is about to fail calls what [`at_thread_end`](Backing::at_thread_end) was given, and then
    /// tries once more. Otherwise each small allocation's result is looked at.
    const SETTLES_WHEN_SHORT: bool = false;

    /// Bytes that the block at `ptr` really has; `None` if that is not known. Asked when a large block is reallocated,
    /// to leave it where it is.
    ///
    /// # Safety
    ///
    /// `ptr` is a live block of this allocator with the alignment of `layout` and room for its size.
    unsafe fn usable_size(&self, ptr: *mut u8, layout: Layout) -> Option<usize> {
        let _ = (ptr, layout);
        None
    }

    /// Whether freeing such a block unmaps its pages there and then. From 8 MiB on, or with an alignment above 64 KiB, such
    /// blocks are this crate's own mappings, as long as it can have more of these. Of others the drainer gives the memory
    /// back piece by piece first, because an unmapping thread holds up all others.
    fn unmaps_on_free(&self, layout: Layout) -> bool {
        let _ = layout;
        false
    }

    /// Whether the pages of a block of 8 MiB or more may be moved away by the system (`mremap` of Linux), which leaves zero
    /// ones, before it is freed: its memory is private and anonymous, and the allocator relies on nothing in it. Asked
    /// when such a block grows; one that does not begin at a page is copied.
    fn pages_may_move(&self) -> bool {
        false
    }

    /// Called with `true` before the drainer starts, and by the drainer whenever it falls asleep or
    /// wakes up. While it is awake it calls [`purge`](Backing::purge), so the program's threads need
    /// not return memory to the system themselves.
    fn drainer_awake(&self, awake: bool) {
        let _ = awake;
    }

    /// Called once, with the allocator's first operation, unless nothing will ever be deferred. What the
    /// drainer's thread is going to need for as long as it lives is best taken now, while the heap is
    /// small: in the midst of what the program frees later it would keep its surroundings in use.
    fn reserve(&self) {}

    /// Called on the drainer when it starts, before it frees anything.
    fn drainer_init(&self) {}

    /// Called on the drainer when it is about to end, which it does where its [`DeferFree`](crate::DeferFree) has been
    /// dropped. No fork is under way then: an allocator that takes locks when a thread ends had better do it here.
    fn drainer_done(&self) {}

    /// Called on the thread that starts the drainer. `settle` frees the small blocks that the calling thread has
    /// deferred, whichever allocator they are of. An allocator that gives up a thread's memory when the thread ends, so that
    /// others free its blocks at a higher price from then on, should have it called on each thread just before that, and
    /// return true. It may be called at any time, on any thread, any number of times, as long as that thread may free
    /// blocks. Where it is not called, the drainer frees what threads leave.
    fn at_thread_end(&self, settle: fn()) -> bool {
        let _ = settle;
        false
    }

    /// Called on a thread that is about to rest, see [`DeferFree::thread_idle`](crate::DeferFree::thread_idle): gives up what
    /// the allocator holds for that thread alone, so that what others free of its blocks does not stay with it. The
    /// thread goes on as usual when it is back.
    fn thread_idle(&self) {}

    /// Called on a thread that has written down so many frees in a row that it seems to be dropping much of what it has:
    /// the drainer is going to free these blocks. An allocator in which others free at a higher price, or in which what
    /// they free is dearer to allocate again, as long as a thread allocates from the same pages, gives up the calling
    /// thread's pages here. The thread goes on as usual.
    fn before_drain(&self) {}

    /// Called once, with the allocator's first operation, unless nothing will ever be deferred. `note` is to be called
    /// every now and then by threads that allocate, about once for each 64 MiB; it may be called anywhere. From that the
    /// drainer knows that a program is at work of which it sees nothing else. Where it is not called, memory that such
    /// a program frees goes back to the system by the allocator's own rules.
    fn on_allocations(&self, note: fn()) {
        let _ = note;
    }

    /// Reads what freeing the block reads first. From the time that this takes it is told whether the block is in the
    /// processor's cache.
    ///
    /// # Safety
    ///
    /// `ptr` is a block of this allocator that has not been freed.
    unsafe fn touch(&self, ptr: *mut u8) {
        // SAFETY: every block has a byte. What is in it does not matter.
        unsafe { ptr.cast::<MaybeUninit<u8>>().read_volatile() };
    }

    /// Frees a block whose layout is not known any more, by the contract that any will do.
    ///
    /// # Safety
    ///
    /// As for [`GlobalAlloc::dealloc`].
    #[doc(hidden)]
    unsafe fn dealloc_any(&self, ptr: *mut u8) {
        // SAFETY: the caller's block; `dealloc` finds size and alignment by itself.
        unsafe { self.dealloc(ptr, Layout::new::<u8>()) };
    }

    /// What [`dealloc_own`](Backing::dealloc_own) needs; null where there is nothing of the kind.
    #[doc(hidden)]
    fn own_pages(&self) -> *const () {
        ptr::null()
    }

    /// Frees a block, where that takes no more than to put it on a list of the calling thread's own.
    ///
    /// # Safety
    ///
    /// As for [`GlobalAlloc::dealloc`]; the block is still there unless the answer is [`OwnFree::Done`]. `own_pages` is what
    /// [`own_pages`](Backing::own_pages) has given, of any backing: [`Mimalloc`]'s own and no other one's may do more than
    /// these defaults.
    #[doc(hidden)]
    #[inline(always)]
    unsafe fn dealloc_own(&self, ptr: *mut u8, own_pages: *const ()) -> OwnFree {
        let _ = (ptr, own_pages);
        OwnFree::Not
    }

    /// Whether the block is in memory of the calling thread's own, where [`dealloc_own`](Backing::dealloc_own) frees it;
    /// `None` if it is nobody's.
    ///
    /// # Safety
    ///
    /// As for `dealloc_own`.
    #[doc(hidden)]
    unsafe fn is_own(&self, ptr: *mut u8, own_pages: *const ()) -> Option<bool> {
        let _ = (ptr, own_pages);
        None
    }

    /// Whether the block is in memory of the calling thread's own of which the greater part has been freed. There the
    /// drainer's frees are of no use: the thread has to look for them, one by one, before it can allocate.
    ///
    /// # Safety
    ///
    /// As for `dealloc_own`, where `own_pages` may be null.
    #[doc(hidden)]
    unsafe fn is_left_over(&self, ptr: *mut u8, own_pages: *const ()) -> bool {
        let _ = (ptr, own_pages);
        false
    }

    /// Returns unused memory to the operating system, as much as can be had. Called on the drainer,
    /// and on a program thread in [`flush`](crate::DeferFree::flush) without a drainer and when
    /// memory has run out.
    fn purge(&self) {}
}
