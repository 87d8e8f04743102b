//! Lanes: where one thread's chunks are, and how another thread gets at them.
//!
//! A lane holds one *open* chunk, which its thread fills and empties, and a stack of *full* ones,
//! from which its thread and the drainer take.
//!
//! # The open chunk
//!
//! Filling it must cost next to nothing, so the thread uses no read-modify-write and no fence there.
//! The drainer, which takes the open chunk away from a thread that has gone quiet, pays for both:
//!
//! ```text
//! the thread                        the drainer
//! T1  inside = true                 D1  wanted = true
//!     (the compiler keeps order)    D2  membarrier: a full fence on every running thread
//! T2  reads wanted; true: leaves    D3  reads inside; true: gives up for now
//!     uses the open chunk               takes the open chunk away
//! T3  inside = false                D4  wanted = false
//! ```
//!
//! The fence that D2 runs on the thread comes either after its T1, and D3 sees `inside`, or before
//! its T1, hence before its T2, which sees `wanted`. So never are both of them at the chunk. Nobody
//! waits: a thread that finds `wanted` frees that one block at once. T3 is a Release that D3 acquires,
//! and D4 a Release that T2 acquires: what one did with the chunk is done when the other begins.
//!
//! # The full chunks
//!
//! A stack linked through the chunks, whose memory is never unmapped, so that a chunk may be looked
//! at even if another thread has just taken it. The head carries a count of all changes: a chunk that
//! comes back to the top meanwhile is not taken for the one that was seen there.
//!
//! # After a fork
//!
//! The child inherits each lane as it was between two instructions of a thread that no longer exists.
//! The stack is whole at any such point. The open chunk is too: an address is written before the
//! cursor that counts it, and where there is no cursor the length in the chunk counts.

use std::ptr;
use std::sync::atomic::{
    AtomicBool, AtomicIsize, AtomicPtr, AtomicU32, AtomicU64, AtomicUsize, Ordering, compiler_fence,
};

use super::chunk::{ADDRESSES, Chunk, Pool, distance};

/// Index + 1 of a chunk, 0 for none.
type Link = u32;

/// A chunk is full at this many bytes, however few blocks these are.
pub(super) const HAND_OVER_BYTES: usize = 1 << 20;

#[repr(align(128))]
pub(crate) struct Lane {
    inside: AtomicBool,
    wanted: AtomicBool,
    /// Whether a thread holds this lane.
    held: AtomicBool,
    /// The open chunk.
    open: AtomicU32,
    /// Where its next address goes; null when no chunk is open.
    cursor: AtomicPtr<AtomicU32>,
    end: AtomicPtr<AtomicU32>,
    base: AtomicUsize,
    /// Bytes until the open chunk counts as full; below zero once they are used up.
    room_bytes: AtomicIsize,
    /// Blocks of the open chunk that `counts` knows of.
    n_counted: AtomicUsize,
    bytes_counted: AtomicUsize,
    /// The full chunks: changes in the high half, the top one's link in the low half.
    full: AtomicU64,
    /// Where the cursor was when the drainer looked last. The drainer's alone.
    seen: AtomicPtr<AtomicU32>,
    pub(super) counts: LaneCounts,
    /// The thread pays back: the drainer leaves its chunks to it.
    owing: AtomicBool,
    /// It has paid nothing back in the drainer's last round.
    stalled: AtomicBool,
    paid_seen: AtomicU64,
}

/// Blocks and bytes, written by whoever is inside.
#[derive(Default)]
pub(super) struct LaneCounts {
    pub(super) deferred_blocks: AtomicU64,
    pub(super) deferred_bytes: AtomicU64,
    pub(super) paid_back_blocks: AtomicU64,
    pub(super) paid_back_bytes: AtomicU64,
}

/// Adds to a count that has one writer at a time.
fn add(count: &AtomicU64, n: usize) {
    count.store(count.load(Ordering::Relaxed) + n as u64, Ordering::Relaxed);
}

/// What became of a block that was to be written down.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Written {
    Yes,
    /// The chunk is full, or none is open.
    Full,
    /// The address cannot be written in this chunk.
    OutOfReach,
}

impl Lane {
    pub(super) const fn new() -> Lane {
        Lane {
            inside: AtomicBool::new(false),
            wanted: AtomicBool::new(false),
            held: AtomicBool::new(false),
            open: AtomicU32::new(0),
            cursor: AtomicPtr::new(ptr::null_mut()),
            end: AtomicPtr::new(ptr::null_mut()),
            base: AtomicUsize::new(0),
            room_bytes: AtomicIsize::new(0),
            n_counted: AtomicUsize::new(0),
            bytes_counted: AtomicUsize::new(0),
            full: AtomicU64::new(0),
            seen: AtomicPtr::new(ptr::null_mut()),
            owing: AtomicBool::new(false),
            stalled: AtomicBool::new(false),
            paid_seen: AtomicU64::new(0),
            counts: LaneCounts {
                deferred_blocks: AtomicU64::new(0),
                deferred_bytes: AtomicU64::new(0),
                paid_back_blocks: AtomicU64::new(0),
                paid_back_bytes: AtomicU64::new(0),
            },
        }
    }

    /// Makes the lane the caller's, if it is nobody's.
    pub(super) fn try_hold(&self) -> bool {
        // Acquire pairs with the Release in `let_go`: the open chunk is as its last holder left it.
        !self.held.load(Ordering::Relaxed) && !self.held.swap(true, Ordering::Acquire)
    }

    /// The holder is done with it. What is in it is for the drainer.
    pub(super) fn let_go(&self) {
        self.held.store(false, Ordering::Release);
    }

    /// T1 and T2. `None` when the drainer is taking the open chunk away. Only for the holder.
    #[inline(always)]
    pub(super) fn enter(&self) -> Option<Inside<'_>> {
        self.inside.store(true, Ordering::Relaxed);
        compiler_fence(Ordering::SeqCst);
        let inside = Inside(self);
        if self.wanted.load(Ordering::Acquire) { None } else { Some(inside) }
    }

    /// D1 to D4: takes the open chunk away from a thread that has left it alone since the last call,
    /// or from any with `even_if_busy`. `fence` is D2; false when it cannot be had.
    pub(super) fn steal_open(
        &self,
        pool: &Pool,
        even_if_busy: bool,
        fence: impl FnOnce() -> bool,
    ) -> Option<u32> {
        if self.open.load(Ordering::Relaxed) == 0 {
            return None;
        }
        // A lane that nobody holds is held by the drainer meanwhile.
        if self.try_hold() {
            let taken = self.enter().and_then(|inside| inside.close(pool));
            self.let_go();
            return taken;
        }
        // A first look, which need not be exact: a cursor that came back to its place is as quiet.
        let cursor = self.cursor.load(Ordering::Relaxed);
        if self.seen.swap(cursor, Ordering::Relaxed) != cursor && !even_if_busy {
            return None;
        }
        self.wanted.store(true, Ordering::Relaxed);
        // D2 is a fence on this thread too; this one says so to the compiler.
        compiler_fence(Ordering::SeqCst);
        let mut taken = None;
        // Acquire pairs with T3.
        if fence() && !self.inside.load(Ordering::Acquire) {
            taken = self.close(pool);
        }
        self.wanted.store(false, Ordering::Release);
        taken
    }

    /// Whether the thread has an open chunk, or had a moment ago.
    pub(super) fn has_open(&self) -> bool {
        self.open.load(Ordering::Relaxed) != 0
    }

    /// Whether there is a full chunk.
    pub(super) fn has_full(&self) -> bool {
        link_of(self.full.load(Ordering::Relaxed)) != 0
    }

    pub(super) fn set_owing(&self, owing: bool) {
        if self.owing.load(Ordering::Relaxed) != owing {
            self.owing.store(owing, Ordering::Relaxed);
        }
    }

    /// Once per round, by the drainer: has a thread that owes paid anything back since the last one?
    pub(super) fn note_round(&self, all: bool) {
        let paid = self.counts.paid_back_blocks.load(Ordering::Relaxed);
        let before = self.paid_seen.swap(paid, Ordering::Relaxed);
        self.stalled.store(paid == before || all, Ordering::Relaxed);
    }

    /// Whether the drainer may take full chunks: it and a thread that pays back would keep taking the
    /// same pages from each other, which costs more than either alone.
    pub(super) fn may_drain(&self) -> bool {
        !self.owing.load(Ordering::Relaxed)
            || self.stalled.load(Ordering::Relaxed)
            || !self.held.load(Ordering::Relaxed)
    }

    /// Puts a chunk on the stack of full ones.
    pub(super) fn push_full(&self, pool: &Pool, index: u32) {
        let chunk = pool.get(index);
        let mut head = self.full.load(Ordering::Relaxed);
        loop {
            chunk.below.store(link_of(head), Ordering::Relaxed);
            // Release pairs with the Acquire in `pop_full`: the chunk's contents, and what was done
            // with its blocks before they were freed.
            match self.full.compare_exchange_weak(
                head,
                changed(head, index + 1),
                Ordering::Release,
                Ordering::Relaxed,
            ) {
                Ok(_) => return,
                Err(now) => head = now,
            }
        }
    }

    /// Takes the chunk that was pushed last.
    pub(super) fn pop_full(&self, pool: &Pool) -> Option<u32> {
        let mut head = self.full.load(Ordering::Acquire);
        loop {
            let index = link_of(head).checked_sub(1)?;
            // May be stale if the chunk has been taken; then the head has changed too.
            let below = pool.get(index).below.load(Ordering::Relaxed);
            match self.full.compare_exchange_weak(
                head,
                changed(head, below),
                Ordering::Acquire,
                Ordering::Acquire,
            ) {
                Ok(_) => return Some(index),
                Err(now) => head = now,
            }
        }
    }

    /// In a forked child, on its only thread: nobody holds the lane or is inside, and what the
    /// parent counted is the parent's. Tells all chunks in the lane to `f`.
    pub(super) fn forget_threads(&self, pool: &Pool, mut f: impl FnMut(u32)) {
        self.inside.store(false, Ordering::Relaxed);
        self.wanted.store(false, Ordering::Relaxed);
        self.held.store(false, Ordering::Relaxed);
        let mut link = self.open.load(Ordering::Relaxed);
        if link != 0 {
            f(link - 1);
        }
        link = link_of(self.full.load(Ordering::Relaxed));
        while let Some(index) = link.checked_sub(1) {
            f(index);
            link = pool.get(index).below.load(Ordering::Relaxed);
        }
    }

    pub(super) fn reset_counts(&self) {
        let LaneCounts { deferred_blocks, deferred_bytes, paid_back_blocks, paid_back_bytes } =
            &self.counts;
        for count in [deferred_blocks, deferred_bytes, paid_back_blocks, paid_back_bytes] {
            count.store(0, Ordering::Relaxed);
        }
    }

    /// Adds to the open chunk, whose length the cursor says.
    #[inline(always)]
    fn write(&self, block: *mut u8, size: usize) -> Written {
        let cursor = self.cursor.load(Ordering::Relaxed);
        let room = self.room_bytes.load(Ordering::Relaxed);
        // Both are null when no chunk is open.
        if cursor == self.end.load(Ordering::Relaxed) || room < 0 {
            return Written::Full;
        }
        let offset = distance(self.base.load(Ordering::Relaxed), block);
        let Ok(offset) = u32::try_from(offset) else {
            return Written::OutOfReach;
        };
        block.expose_provenance();
        // SAFETY: below `end`, so one of the open chunk's slots; chunks are never unmapped.
        unsafe { &*cursor }.store(offset, Ordering::Relaxed);
        // Release: a forked child that finds the cursor finds the address as well.
        self.cursor.store(cursor.wrapping_add(1), Ordering::Release);
        self.room_bytes.store(room.wrapping_sub_unsigned(size), Ordering::Relaxed);
        Written::Yes
    }

    fn open_chunk<'p>(&self, pool: &'p Pool) -> Option<&'p Chunk> {
        Some(pool.get(self.open.load(Ordering::Relaxed).checked_sub(1)?))
    }

    /// How many blocks are in the open chunk, and what they come to.
    fn open_len_bytes(&self, chunk: &Chunk) -> (usize, usize) {
        let cursor = self.cursor.load(Ordering::Relaxed);
        if cursor.is_null() {
            return (chunk.len(), chunk.bytes());
        }
        let len = (cursor.addr() - chunk.first_slot().addr()) / size_of::<AtomicU32>();
        let room = self.room_bytes.load(Ordering::Relaxed);
        (len, (HAND_OVER_BYTES as isize).wrapping_sub(room).max(0) as usize)
    }

    /// Brings the counts up to date with the open chunk.
    fn count(&self, len: usize, bytes: usize) {
        add(&self.counts.deferred_blocks, len - self.n_counted.load(Ordering::Relaxed));
        let new = bytes.saturating_sub(self.bytes_counted.load(Ordering::Relaxed));
        add(&self.counts.deferred_bytes, new);
        self.n_counted.store(len, Ordering::Relaxed);
        self.bytes_counted.store(bytes, Ordering::Relaxed);
    }

    /// Takes the open chunk out of the lane, with its length in it.
    fn close(&self, pool: &Pool) -> Option<u32> {
        let chunk = self.open_chunk(pool)?;
        let (len, bytes) = self.open_len_bytes(chunk);
        self.count(len, bytes);
        chunk.set(self.base.load(Ordering::Relaxed), len, bytes);
        // From here on the length in the chunk counts.
        self.cursor.store(ptr::null_mut(), Ordering::Release);
        self.end.store(ptr::null_mut(), Ordering::Relaxed);
        self.open.swap(0, Ordering::Relaxed).checked_sub(1)
    }
}

fn link_of(head: u64) -> Link {
    head as u32
}

fn changed(head: u64, top: Link) -> u64 {
    ((head >> 32).wrapping_add(1) << 32) | u64::from(top)
}

/// The holder's stay at its open chunk.
pub(super) struct Inside<'a>(&'a Lane);

impl Inside<'_> {
    /// Adds a block of `size` bytes.
    #[inline(always)]
    pub(super) fn write(&self, block: *mut u8, size: usize) -> Written {
        self.0.write(block, size)
    }

    /// Makes a chunk the open one; there must be none. An empty one takes blocks around `near`.
    pub(super) fn set_open(&self, pool: &Pool, index: u32, near: *mut u8) {
        let (lane, chunk) = (self.0, pool.get(index));
        let (len, bytes) = (chunk.len(), chunk.bytes());
        let base = if len == 0 { Chunk::base_near(near) } else { chunk.base() };
        lane.base.store(base, Ordering::Relaxed);
        let room = (HAND_OVER_BYTES as isize).saturating_sub_unsigned(bytes);
        lane.room_bytes.store(room, Ordering::Relaxed);
        lane.n_counted.store(len, Ordering::Relaxed);
        lane.bytes_counted.store(bytes, Ordering::Relaxed);
        let first = chunk.first_slot();
        lane.end.store(first.wrapping_add(ADDRESSES), Ordering::Relaxed);
        // Release, here and below: a forked child finds a lane in which the fields that were
        // written first are complete.
        lane.open.store(index + 1, Ordering::Release);
        lane.cursor.store(first.wrapping_add(len), Ordering::Release);
    }

    /// Takes the open chunk out of the lane.
    pub(super) fn close(&self, pool: &Pool) -> Option<u32> {
        self.0.close(pool)
    }

    /// What the blocks in the open chunk come to; `None` without one.
    pub(super) fn open_bytes(&self, pool: &Pool) -> Option<usize> {
        let chunk = self.0.open_chunk(pool)?;
        Some(self.0.open_len_bytes(chunk).1)
    }

    /// Whether most of the last `n` blocks are at most `bytes` away from the one before.
    pub(super) fn is_near(&self, pool: &Pool, n: usize, bytes: usize) -> bool {
        let Some(chunk) = self.0.open_chunk(pool) else {
            return false;
        };
        let len = self.0.open_len_bytes(chunk).0;
        chunk.n_near(len.saturating_sub(n)..len, bytes) > n / 2
    }

    /// Counts what has been written so far.
    pub(super) fn count(&self, pool: &Pool) {
        if let Some(chunk) = self.0.open_chunk(pool) {
            let (len, bytes) = self.0.open_len_bytes(chunk);
            self.0.count(len, bytes);
        }
    }

    /// Takes out the block that was written last, to be freed by its own thread. All that was
    /// written must have been counted.
    pub(super) fn pay_back(&self) -> Option<*mut u8> {
        let lane = self.0;
        let len = lane.n_counted.load(Ordering::Relaxed);
        let cursor = lane.cursor.load(Ordering::Relaxed);
        if len == 0 || cursor.is_null() {
            return None;
        }
        let cursor = cursor.wrapping_sub(1);
        // SAFETY: one of the open chunk's slots, since its length was not 0.
        let offset = unsafe { &*cursor }.load(Ordering::Relaxed);
        lane.cursor.store(cursor, Ordering::Release);
        // Nobody knows what each block comes to: it is given its share of the whole.
        let bytes = lane.bytes_counted.load(Ordering::Relaxed);
        let share = bytes / len;
        lane.n_counted.store(len - 1, Ordering::Relaxed);
        lane.bytes_counted.store(bytes - share, Ordering::Relaxed);
        let room = (HAND_OVER_BYTES as isize).saturating_sub_unsigned(bytes - share);
        lane.room_bytes.store(room, Ordering::Relaxed);
        add(&lane.counts.paid_back_blocks, 1);
        add(&lane.counts.paid_back_bytes, share);
        Some(Chunk::address(lane.base.load(Ordering::Relaxed), offset))
    }
}

impl Drop for Inside<'_> {
    #[inline(always)]
    fn drop(&mut self) {
        // T3
        self.0.inside.store(false, Ordering::Release);
    }
}

#[cfg(test)]
mod tests {
    use super::{HAND_OVER_BYTES, Lane, Written};
    use crate::batch::chunk::{ADDRESSES, Pool};
    use crate::sys;
    use std::ptr;
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::thread;

    const BASE: usize = 0x7f00_0000_0000;

    fn block(i: usize) -> *mut u8 {
        ptr::without_provenance_mut(BASE + 8 * i)
    }

    fn empty(pool: &Pool, index: u32) -> Vec<usize> {
        let mut addresses = vec![0; ADDRESSES];
        let n = pool.get(index).empty_into(&mut addresses);
        pool.give_back(index);
        addresses.truncate(n);
        addresses.iter().map(|address| (address - BASE) / 8).collect()
    }

    #[test]
    fn an_open_chunk_refuses_what_it_cannot_hold() {
        let (pool, lane) = (Pool::new(), Lane::new());
        assert!(lane.try_hold() && !lane.try_hold());
        let inside = lane.enter().unwrap();
        assert_eq!(inside.write(block(0), 8), Written::Full, "there is no chunk");
        inside.set_open(&pool, pool.take().unwrap(), block(0));
        assert_eq!(inside.write(block(0), 8), Written::Yes);
        for far in [BASE + 4, BASE + (17 << 30), BASE - (17 << 30)] {
            let far = ptr::without_provenance_mut(far);
            assert_eq!(inside.write(far, 8), Written::OutOfReach);
        }
        for i in 1..ADDRESSES {
            assert_eq!(inside.write(block(i), 8), Written::Yes);
        }
        assert_eq!(inside.write(block(0), 8), Written::Full);
        assert_eq!(inside.open_bytes(&pool), Some(8 * ADDRESSES));
        let index = inside.close(&pool).unwrap();
        assert_eq!(empty(&pool, index), (0..ADDRESSES).collect::<Vec<_>>());
        inside.set_open(&pool, pool.take().unwrap(), block(0));
        assert_eq!(inside.write(block(0), HAND_OVER_BYTES + 1), Written::Yes);
        assert_eq!(inside.write(block(1), 8), Written::Full, "by its bytes");
    }

    #[test]
    fn the_last_one_written_is_paid_back_first() {
        let (pool, lane) = (Pool::new(), Lane::new());
        let inside = lane.enter().unwrap();
        inside.set_open(&pool, pool.take().unwrap(), block(0));
        for i in 0..3 {
            assert_eq!(inside.write(block(i), 10), Written::Yes);
        }
        inside.count(&pool);
        for i in [2, 1, 0] {
            assert_eq!(inside.pay_back(), Some(block(i)));
        }
        assert_eq!(inside.pay_back(), None);
        let counts = [
            &lane.counts.deferred_blocks,
            &lane.counts.deferred_bytes,
            &lane.counts.paid_back_blocks,
            &lane.counts.paid_back_bytes,
        ];
        assert_eq!(counts.map(|count| count.load(Ordering::Relaxed)), [3, 30, 3, 30]);
    }

    /// Seen to fail without `wanted` in `enter`, and without the look at `inside` in `steal_open`.
    #[test]
    fn a_thread_and_the_drainer_see_each_block_once() {
        const BLOCKS: usize = 400_000;
        let (pool, lane) = (Pool::new(), Lane::new());
        let done = AtomicBool::new(false);
        sys::membarrier_register();
        assert!(lane.try_hold());
        let (own, theirs) = thread::scope(|scope| {
            let drainer = scope.spawn(|| {
                let mut seen = Vec::new();
                loop {
                    let last = done.load(Ordering::Acquire);
                    if let Some(index) = lane.steal_open(&pool, true, sys::membarrier) {
                        seen.extend(empty(&pool, index));
                    }
                    while let Some(index) = lane.pop_full(&pool) {
                        seen.extend(empty(&pool, index));
                    }
                    if last {
                        return seen;
                    }
                }
            });
            let mut own = Vec::new();
            for i in 0..BLOCKS {
                // Outside most of the time, as a program is.
                for _ in 0..i % 64 {
                    std::hint::spin_loop();
                }
                let Some(inside) = lane.enter() else {
                    own.push(i);
                    continue;
                };
                while inside.write(block(i), 8) != Written::Yes {
                    if let Some(full) = inside.close(&pool) {
                        lane.push_full(&pool, full);
                    }
                    inside.set_open(&pool, pool.take().unwrap(), block(BLOCKS / 2));
                }
                if i % 5 == 0 {
                    inside.count(&pool);
                    let back = (0..3).map_while(|_| inside.pay_back());
                    own.extend(back.map(|block| (block.addr() - BASE) / 8));
                }
                if i % 700 == 0 {
                    if let (Some(open), full) = (inside.close(&pool), lane.pop_full(&pool)) {
                        own.extend(empty(&pool, open));
                        own.extend(full.into_iter().flat_map(|full| empty(&pool, full)));
                    }
                }
            }
            lane.let_go();
            done.store(true, Ordering::Release);
            (own, drainer.join().unwrap())
        });
        let mut all: Vec<usize> = own.iter().chain(&theirs).copied().collect();
        all.sort_unstable();
        assert_eq!(all, (0..BLOCKS).collect::<Vec<_>>());
        assert_eq!(pool.n_used(), 0);
        assert!(!theirs.is_empty());
    }
}
