//! Lanes: what one thread has written down, and how the drainer gets at it.
//!
//! Writing must cost next to nothing, so the thread uses no read-modify-write and no fence there. The
//! drainer, which takes everything away from a thread that has gone quiet, pays for both:
//!
//! ```text
//! the thread                        the drainer
//! T1  inside = true                 D1  wanted = true
//!     (the compiler keeps order)    D2  membarrier: a full fence on every running thread
//! T2  reads wanted; true: leaves    D3  reads inside; true: gives up for now
//!     uses the lane                     takes everything
//! T3  inside = false                D4  wanted = false
//! ```
//!
//! The fence that D2 runs on the thread comes either after its T1, and D3 sees `inside`, or before
//! its T1, hence before its T2, which sees `wanted`. So never are both of them at the lane. Nobody
//! waits: a thread that finds `wanted` frees that one block at once. T3 is a Release that D3 acquires,
//! and D4 a Release that T2 acquires: what one did with the lane is done when the other begins. All
//! accesses to the fields below are by the one who is inside, hence Relaxed.
//!
//! # After a fork
//!
//! The child inherits each lane as it was between two instructions of a thread that no longer exists.
//! Whatever moves a block from one place to another takes it out of the first before it is in the second,
//! so that such a child may lose what the thread had in hand, but never has a block twice.

use std::mem::ManuallyDrop;
use std::ptr;

use super::chunk::{ADDRESSES, BUCKETS, List, Place, Pool, is_at_end};
use crate::sync::atomic::{
    AtomicBool, AtomicPtr, AtomicU32, AtomicU64, AtomicUsize, Ordering, compiler_fence,
};
use crate::sync::light_fence;

/// Bytes that a thread may write down before it asks for them.
pub(super) const UNASKED_BYTES: usize = 1 << 20;

/// Chunks of one bucket whose blocks are put into order for paying back, some 10 us.
const RUN_CHUNKS: usize = 8;
const RUN: usize = RUN_CHUNKS * ADDRESSES;

/// What one thread has written down.
#[repr(align(128))]
pub(crate) struct Lane {
    inside: AtomicBool,
    wanted: AtomicBool,
    /// Whether a thread holds this lane.
    held: AtomicBool,
    /// All addresses in the lane are told from here.
    base: AtomicUsize,
    /// What the blocks come to that were ever written down.
    written_bytes: AtomicUsize,
    /// `written_bytes` at which the thread has to ask again.
    asks_at_bytes: AtomicUsize,
    /// Where each bucket's next address goes, in its open chunk; null without one.
    cursors: [AtomicPtr<AtomicU32>; BUCKETS],
    full: [List; BUCKETS],
    n_full_blocks: AtomicUsize,
    run: Run,
    /// What is in the lane, `run` aside, as of `known_bytes`, and how much of it has been granted.
    bytes: AtomicUsize,
    granted_bytes: AtomicUsize,
    /// How much of `written_bytes` `bytes` knows of.
    known_bytes: AtomicUsize,
    pub(super) counts: LaneCounts,
    /// The drainer's alone: `activity` when it looked last.
    seen_activity: AtomicU64,
}

/// Blocks that their own thread is about to free, page by page.
struct Run {
    bucket: AtomicUsize,
    len: AtomicUsize,
    bytes: AtomicUsize,
    offsets: [AtomicU32; RUN],
    /// Room for sorting.
    by_step: [AtomicU32; RUN],
    /// Where the next run is looked for.
    next_bucket: AtomicUsize,
}

/// Of a radix sort: how many have each digit, and then where the next one with it goes.
struct Digits([u16; 256]);

impl Digits {
    fn new() -> Digits {
        Digits([0; 256])
    }

    fn count(&mut self, digit: usize) {
        self.0[digit] += 1;
    }

    /// From numbers to places; says how many there are.
    fn sum(&mut self) -> usize {
        let mut sum = 0;
        for n in &mut self.0 {
            sum += std::mem::replace(n, sum);
        }
        sum.into()
    }

    fn next(&mut self, digit: usize) -> usize {
        let place = self.0[digit];
        self.0[digit] += 1;
        place.into()
    }
}

/// Written by whoever is inside.
pub(super) struct LaneCounts {
    /// Those in chunks that have been closed.
    closed_blocks: AtomicU64,
    pub(super) paid_back_blocks: AtomicU64,
    pub(super) paid_back_bytes: AtomicU64,
}

/// Adds to a count that has one writer at a time.
fn add(count: &AtomicU64, n: usize) {
    count.store(count.load(Ordering::Relaxed) + n as u64, Ordering::Relaxed);
}

/// `n / of` of `whole`; all of it for the last ones.
pub(super) fn share(whole: usize, n: usize, of: usize) -> usize {
    if n >= of { whole } else { (whole as u128 * n as u128 / of as u128) as usize }
}

/// What became of a block that was to be written down.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Written {
    Yes,
    /// The open chunk of this bucket is full, there is none, or the thread has to ask.
    Full(usize),
    /// The address cannot be told from the lane's base.
    OutOfReach,
}

/// What the drainer took out of a lane.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Taken {
    /// In the lists.
    pub(super) blocks: usize,
    pub(super) bytes: usize,
    pub(super) granted_bytes: usize,
    /// Of the run.
    pub(super) run_blocks: usize,
    pub(super) run_bytes: usize,
}

impl Lane {
    pub(super) const fn new() -> Lane {
        Lane {
            inside: AtomicBool::new(false),
            wanted: AtomicBool::new(false),
            held: AtomicBool::new(false),
            base: AtomicUsize::new(0),
            written_bytes: AtomicUsize::new(0),
            asks_at_bytes: AtomicUsize::new(0),
            cursors: [const { AtomicPtr::new(ptr::null_mut()) }; BUCKETS],
            full: [const { List::new() }; BUCKETS],
            n_full_blocks: AtomicUsize::new(0),
            run: Run {
                bucket: AtomicUsize::new(0),
                len: AtomicUsize::new(0),
                bytes: AtomicUsize::new(0),
                offsets: [const { AtomicU32::new(0) }; RUN],
                by_step: [const { AtomicU32::new(0) }; RUN],
                next_bucket: AtomicUsize::new(0),
            },
            bytes: AtomicUsize::new(0),
            granted_bytes: AtomicUsize::new(0),
            known_bytes: AtomicUsize::new(0),
            counts: LaneCounts {
                closed_blocks: AtomicU64::new(0),
                paid_back_blocks: AtomicU64::new(0),
                paid_back_bytes: AtomicU64::new(0),
            },
            seen_activity: AtomicU64::new(0),
        }
    }

    /// Makes the lane the caller's, if it is nobody's.
    pub(super) fn try_hold(&self) -> bool {
        // Acquire pairs with the Release in `let_go`: the lane is as its last holder left it.
        !self.held.load(Ordering::Relaxed)
            && self.held.compare_exchange(false, true, Ordering::Acquire, Ordering::Relaxed).is_ok()
    }

    /// The holder is done with it. What is in it is for the drainer, or the next holder.
    pub(super) fn let_go(&self) {
        self.held.store(false, Ordering::Release);
    }

    /// T1 and T2. `None` when the drainer is at the lane. Only for the holder.
    #[inline(always)]
    pub(super) fn enter(&self) -> Option<Inside<'_>> {
        self.inside.store(true, Ordering::Relaxed);
        light_fence();
        let inside = Inside(self);
        if self.wanted.load(Ordering::Acquire) { None } else { Some(inside) }
    }

    /// D1 to D4: has `f` take everything away. `fence` is D2; false when it cannot be had. `None` when
    /// the thread is at the lane.
    pub(super) fn steal<T>(
        &self,
        fence: impl FnOnce() -> bool,
        f: impl FnOnce(&Inside<'_>) -> T,
    ) -> Option<T> {
        // A lane that nobody holds is held by the drainer meanwhile.
        if self.try_hold() {
            let result = self.enter().map(|inside| f(&inside));
            self.let_go();
            return result;
        }
        self.wanted.store(true, Ordering::Relaxed);
        // D2 is a fence on this thread too; this one says so to the compiler.
        compiler_fence(Ordering::SeqCst);
        // Acquire pairs with T3.
        let result = (fence() && !self.inside.load(Ordering::Acquire)).then(|| {
            // `inside` is the thread's: without T1 there is no T3, which could undo a T1 of the thread.
            f(&ManuallyDrop::new(Inside(self)))
        });
        self.wanted.store(false, Ordering::Release);
        result
    }

    /// Whether there is anything in it, seen from outside.
    pub(super) fn may_hold_blocks(&self, pool: &Pool) -> bool {
        self.n_full_blocks.load(Ordering::Relaxed) != 0 || self.has_run() || self.n_open(pool) != 0
    }

    pub(super) fn has_run(&self) -> bool {
        self.run.len.load(Ordering::Relaxed) != 0
    }

    /// For the drainer, once per round: `activity` now and at the last one.
    pub(super) fn note_activity(&self, pool: &Pool) -> (u64, u64) {
        let activity = self.activity(pool);
        (activity, self.seen_activity.swap(activity, Ordering::Relaxed))
    }

    /// Blocks written down and paid back so far.
    fn activity(&self, pool: &Pool) -> u64 {
        let paid_back = self.counts.paid_back_blocks.load(Ordering::Relaxed);
        self.deferred_blocks(pool).wrapping_add(paid_back)
    }

    pub(super) fn deferred_blocks(&self, pool: &Pool) -> u64 {
        self.counts.closed_blocks.load(Ordering::Relaxed) + self.n_open(pool) as u64
    }

    pub(super) fn deferred_bytes(&self) -> u64 {
        self.written_bytes.load(Ordering::Relaxed) as u64
    }

    /// Blocks in open chunks. From outside, about so many.
    fn n_open(&self, pool: &Pool) -> usize {
        self.cursors
            .iter()
            .map(|cursor| cursor.load(Ordering::Relaxed))
            .filter(|cursor| !cursor.is_null())
            .map(|cursor| pool.get(pool.index_of(cursor)).len_at(cursor))
            .sum()
    }

    /// In a forked child, on its only thread: nobody holds the lane or is inside, and nothing in it has
    /// been granted. Tells all chunks in the lane to `f`.
    pub(super) fn forget_threads(&self, pool: &Pool, mut f: impl FnMut(u32)) {
        self.inside.store(false, Ordering::Relaxed);
        self.wanted.store(false, Ordering::Relaxed);
        self.held.store(false, Ordering::Relaxed);
        self.granted_bytes.store(0, Ordering::Relaxed);
        let mut n_full = 0;
        for (cursor, full) in self.cursors.iter().zip(&self.full) {
            let cursor = cursor.load(Ordering::Relaxed);
            if !cursor.is_null() {
                f(pool.index_of(cursor));
            }
            for index in full.indices(pool) {
                n_full += pool.get(index).len();
                f(index);
            }
        }
        self.n_full_blocks.store(n_full, Ordering::Relaxed);
    }

    /// The counts start again. What is in the lane counts as deferred anew.
    pub(super) fn reset_counts(&self, pool: &Pool) {
        let in_lists = self.n_full_blocks.load(Ordering::Relaxed);
        let in_run = self.run.len.load(Ordering::Relaxed);
        self.counts.closed_blocks.store((in_lists + in_run) as u64, Ordering::Relaxed);
        self.counts.paid_back_blocks.store(0, Ordering::Relaxed);
        self.counts.paid_back_bytes.store(0, Ordering::Relaxed);
        self.seen_activity.store(self.activity(pool), Ordering::Relaxed);
        let written = self.written_bytes.load(Ordering::Relaxed);
        let unknown = written.wrapping_sub(self.known_bytes.load(Ordering::Relaxed));
        let bytes = self.bytes.load(Ordering::Relaxed) + unknown;
        self.bytes.store(bytes, Ordering::Relaxed);
        let written = bytes + self.run.bytes.load(Ordering::Relaxed);
        self.written_bytes.store(written, Ordering::Relaxed);
        self.known_bytes.store(written, Ordering::Relaxed);
        self.asks_at_bytes.store(written, Ordering::Relaxed);
    }
}

/// A stay at the lane, by its holder or the drainer.
pub(super) struct Inside<'a>(&'a Lane);

impl Inside<'_> {
    /// Writes down a block of `size` bytes.
    #[inline(always)]
    pub(super) fn write(&self, block: *mut u8, size: usize) -> Written {
        let lane = self.0;
        let Some(place) = Place::of(lane.base.load(Ordering::Relaxed), block) else {
            return Written::OutOfReach;
        };
        let cursor = &lane.cursors[place.bucket];
        let slot = cursor.load(Ordering::Relaxed);
        let written = lane.written_bytes.load(Ordering::Relaxed);
        if is_at_end(slot) || written >= lane.asks_at_bytes.load(Ordering::Relaxed) {
            return Written::Full(place.bucket);
        }
        block.expose_provenance();
        // SAFETY: not at the end, so one of an open chunk's slots; chunks are never unmapped.
        unsafe { &*slot }.store(place.offset, Ordering::Relaxed);
        // Release: a forked child that finds the cursor finds the address as well.
        cursor.store(slot.wrapping_add(1), Ordering::Release);
        lane.written_bytes.store(written.wrapping_add(size), Ordering::Relaxed);
        Written::Yes
    }

    /// Moves the base to where `block` is in reach; false unless the lane is empty.
    pub(super) fn rebase(&self, pool: &Pool, block: *mut u8) -> bool {
        let lane = self.0;
        let empty = !lane.may_hold_blocks(pool);
        if empty {
            for bucket in 0..BUCKETS {
                self.give_back_open(pool, bucket);
            }
            lane.base.store(Place::base_near(block), Ordering::Relaxed);
        }
        empty
    }

    fn give_back_open(&self, pool: &Pool, bucket: usize) {
        let slot = self.0.cursors[bucket].swap(ptr::null_mut(), Ordering::Relaxed);
        if !slot.is_null() {
            pool.give_back(pool.index_of(slot));
        }
    }

    /// Asks `grant` for what has been written down since it was asked last.
    pub(super) fn ask(&self, grant: impl FnOnce(usize) -> bool) -> bool {
        let lane = self.0;
        self.learn_bytes();
        let granted = lane.granted_bytes.load(Ordering::Relaxed);
        let bytes = lane.bytes.load(Ordering::Relaxed);
        let wanted = bytes.saturating_sub(granted);
        if wanted > 0 {
            if !grant(wanted) {
                return false;
            }
            lane.granted_bytes.store(bytes, Ordering::Relaxed);
        }
        self.ask_later();
        true
    }

    fn ask_later(&self) {
        let written = self.0.written_bytes.load(Ordering::Relaxed);
        self.0.asks_at_bytes.store(written + UNASKED_BYTES, Ordering::Relaxed);
    }

    fn learn_bytes(&self) {
        let lane = self.0;
        let written = lane.written_bytes.load(Ordering::Relaxed);
        let known = lane.known_bytes.load(Ordering::Relaxed);
        lane.known_bytes.store(written, Ordering::Relaxed);
        let bytes = lane.bytes.load(Ordering::Relaxed) + written.wrapping_sub(known);
        lane.bytes.store(bytes, Ordering::Relaxed);
    }

    /// Makes an empty chunk the bucket's open one; the last one is full from now on.
    pub(super) fn open(&self, pool: &Pool, bucket: usize, index: u32) {
        self.close(pool, bucket);
        // Release: see `write`.
        self.0.cursors[bucket].store(pool.get(index).first_slot(), Ordering::Release);
    }

    fn close(&self, pool: &Pool, bucket: usize) {
        let lane = self.0;
        let slot = lane.cursors[bucket].load(Ordering::Relaxed);
        if slot.is_null() {
            return;
        }
        let index = pool.index_of(slot);
        let chunk = pool.get(index);
        let len = chunk.len_at(slot);
        chunk.set(lane.base.load(Ordering::Relaxed), len);
        add(&lane.counts.closed_blocks, len);
        lane.n_full_blocks
            .store(lane.n_full_blocks.load(Ordering::Relaxed) + len, Ordering::Relaxed);
        lane.cursors[bucket].store(ptr::null_mut(), Ordering::Relaxed);
        // A fork between these two loses the chunk to the child.
        compiler_fence(Ordering::SeqCst);
        lane.full[bucket].push(pool, index);
    }

    /// Takes out up to `blocks.len()` blocks, to be freed by their own thread. Fewer than that: there are
    /// no more. `release` is told what is no longer needed of what was granted.
    pub(super) fn pay_back(
        &self,
        pool: &Pool,
        blocks: &mut [*mut u8],
        mut release: impl FnMut(usize),
    ) -> usize {
        let (lane, run) = (self.0, &self.0.run);
        let mut n = 0;
        while n < blocks.len() {
            if !lane.has_run() && !self.next_run(pool, &mut release) {
                break;
            }
            let len = run.len.load(Ordering::Relaxed);
            let n_now = len.min(blocks.len() - n);
            let (base, bucket) =
                (lane.base.load(Ordering::Relaxed), run.bucket.load(Ordering::Relaxed));
            for (block, offset) in blocks[n..].iter_mut().zip(&run.offsets[len - n_now..len]) {
                let place = Place { bucket, offset: offset.load(Ordering::Relaxed) };
                *block = ptr::with_exposed_provenance_mut(place.address(base));
            }
            let bytes = run.bytes.load(Ordering::Relaxed);
            let bytes_now = share(bytes, n_now, len);
            run.bytes.store(bytes - bytes_now, Ordering::Relaxed);
            // Release: a forked child has them no more when this thread may free them.
            run.len.store(len - n_now, Ordering::Release);
            add(&lane.counts.paid_back_blocks, n_now);
            add(&lane.counts.paid_back_bytes, bytes_now);
            n += n_now;
        }
        n
    }

    /// Fills the run, which is empty, from the next bucket that has blocks, grouped by page. False if
    /// there is none.
    fn next_run(&self, pool: &Pool, release: impl FnOnce(usize)) -> bool {
        let (lane, run) = (self.0, &self.0.run);
        let first = run.next_bucket.load(Ordering::Relaxed);
        let found = (first..first + BUCKETS).map(|bucket| bucket % BUCKETS).find(|&bucket| {
            !lane.cursors[bucket].load(Ordering::Relaxed).is_null() || !lane.full[bucket].is_empty()
        });
        let Some(bucket) = found else {
            return false;
        };
        run.next_bucket.store(bucket, Ordering::Relaxed);
        self.learn_bytes();
        let n_before = lane.n_full_blocks.load(Ordering::Relaxed) + lane.n_open(pool);
        self.close(pool, bucket);

        let mut taken = [0; RUN_CHUNKS];
        let mut n_taken = 0;
        for (slot, index) in
            taken.iter_mut().zip(std::iter::from_fn(|| lane.full[bucket].pop(pool)))
        {
            *slot = index;
            n_taken += 1;
        }
        let chunks = || taken[..n_taken].iter().map(|&index| pool.get(index));
        // A radix sort: where in the page, then which page. Those with the same number in 8 bits are 4 GiB
        // apart, and blocks of less than 256 bytes need not be told apart.
        let mut steps = Digits::new();
        let mut pages = Digits::new();
        for offset in chunks().flat_map(|chunk| chunk.offsets()) {
            steps.count(Place::step(offset));
            pages.count(Place::page(offset) % 256);
        }
        let len = steps.sum();
        pages.sum();
        for offset in chunks().flat_map(|chunk| chunk.offsets()) {
            run.by_step[steps.next(Place::step(offset))].store(offset, Ordering::Relaxed);
        }
        for offset in run.by_step[..len].iter().map(|offset| offset.load(Ordering::Relaxed)) {
            run.offsets[pages.next(Place::page(offset) % 256)].store(offset, Ordering::Relaxed);
        }
        lane.n_full_blocks.store(
            lane.n_full_blocks.load(Ordering::Relaxed).saturating_sub(len),
            Ordering::Relaxed,
        );
        let (bytes, granted) =
            (lane.bytes.load(Ordering::Relaxed), lane.granted_bytes.load(Ordering::Relaxed));
        let (bytes_now, granted_now) = (share(bytes, len, n_before), share(granted, len, n_before));
        lane.bytes.store(bytes - bytes_now, Ordering::Relaxed);
        lane.granted_bytes.store(granted - granted_now, Ordering::Relaxed);
        release(granted_now);
        run.bucket.store(bucket, Ordering::Relaxed);
        run.bytes.store(bytes_now, Ordering::Relaxed);
        // Release: see `pay_back`.
        run.len.store(len, Ordering::Release);
        // Last, so that there is no moment at which the lane looks empty from outside.
        for &index in &taken[..n_taken] {
            pool.give_back(index);
        }
        true
    }

    /// Takes everything out: chunks into `lists`, which must be empty, the addresses of the run to the
    /// start of `load`.
    pub(super) fn take_all(
        &self,
        pool: &Pool,
        lists: &[List; BUCKETS],
        load: &mut [usize],
    ) -> Taken {
        let (lane, run) = (self.0, &self.0.run);
        self.learn_bytes();
        for (bucket, list) in lists.iter().enumerate() {
            self.close(pool, bucket);
            lane.full[bucket].move_to(list);
        }
        let (base, bucket) =
            (lane.base.load(Ordering::Relaxed), run.bucket.load(Ordering::Relaxed));
        let run_blocks = run.len.swap(0, Ordering::Relaxed);
        for (address, offset) in load.iter_mut().zip(&run.offsets[..run_blocks]) {
            *address = Place { bucket, offset: offset.load(Ordering::Relaxed) }.address(base);
        }
        self.ask_later();
        Taken {
            blocks: lane.n_full_blocks.swap(0, Ordering::Relaxed),
            bytes: lane.bytes.swap(0, Ordering::Relaxed),
            granted_bytes: lane.granted_bytes.swap(0, Ordering::Relaxed),
            run_blocks,
            run_bytes: run.bytes.swap(0, Ordering::Relaxed),
        }
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
    use super::{Inside, Lane, RUN, UNASKED_BYTES, Written};
    use crate::batch::chunk::{ADDRESSES, BUCKETS, List, Pool};
    use crate::sys;
    use std::ptr;
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::thread;

    const BASE: usize = 0x7f00_0000_0000;

    fn block(i: usize) -> *mut u8 {
        ptr::without_provenance_mut(BASE + 8 * i)
    }

    fn number(address: usize) -> usize {
        (address - BASE) / 8
    }

    /// As `Batches::try_defer`, with everything granted.
    fn write(inside: &Inside<'_>, pool: &Pool, block: *mut u8, size: usize) {
        let mut written = inside.write(block, size);
        if written == Written::OutOfReach {
            assert!(inside.rebase(pool, block));
            written = inside.write(block, size);
        }
        if let Written::Full(_) = written {
            assert!(inside.ask(|_| true));
            written = inside.write(block, size);
        }
        if let Written::Full(bucket) = written {
            inside.open(pool, bucket, pool.take().unwrap());
            written = inside.write(block, size);
        }
        assert_eq!(written, Written::Yes);
    }

    /// Everything in the lane, as numbers.
    fn take_all(inside: &Inside<'_>, pool: &Pool) -> Vec<usize> {
        let lists = [const { List::new() }; BUCKETS];
        let mut load = vec![0; RUN];
        let taken = inside.take_all(pool, &lists, &mut load);
        load.truncate(taken.run_blocks);
        for (bucket, list) in lists.iter().enumerate() {
            while let Some(index) = list.pop(pool) {
                let chunk = pool.get(index);
                let place = |offset| super::Place { bucket, offset };
                load.extend(chunk.offsets().map(|offset| place(offset).address(chunk.base())));
                pool.give_back(index);
            }
        }
        assert_eq!(load.len(), taken.blocks + taken.run_blocks);
        load.into_iter().map(number).collect()
    }

    #[test]
    fn a_lane_refuses_what_it_cannot_hold() {
        let (pool, lane) = (Pool::new(), Lane::new());
        assert!(lane.try_hold() && !lane.try_hold());
        let inside = lane.enter().unwrap();
        assert_eq!(inside.write(block(0), 8), Written::OutOfReach, "there is no base");
        write(&inside, &pool, block(0), 8);
        for far in [BASE + 4, BASE + (5 << 40), BASE - (5 << 40)] {
            let far = ptr::without_provenance_mut(far);
            assert_eq!(inside.write(far, 8), Written::OutOfReach);
            assert!(!inside.rebase(&pool, far), "it is not empty");
        }
        for i in 1..ADDRESSES {
            assert_eq!(inside.write(block(i), 8), Written::Yes);
        }
        assert_eq!(inside.write(block(0), 8), Written::Full(0), "the chunk is full");
        assert_eq!(take_all(&inside, &pool), (0..ADDRESSES).collect::<Vec<_>>());
        assert_eq!(pool.n_used(), 0);
    }

    #[test]
    fn bytes_are_asked_for_and_released() {
        let (pool, lane) = (Pool::new(), Lane::new());
        let inside = lane.enter().unwrap();
        write(&inside, &pool, block(0), UNASKED_BYTES);
        assert_eq!(inside.write(block(1), 1), Written::Full(0), "it has to ask");
        assert!(!inside.ask(|_| false));
        assert_eq!(inside.write(block(1), 1), Written::Full(0), "it was not granted");
        assert!(inside.ask(|bytes| bytes == UNASKED_BYTES));
        for i in 1..4 {
            write(&inside, &pool, block(i), 7);
        }
        let (mut blocks, mut released) = ([ptr::null_mut(); 3], 0);
        assert_eq!(inside.pay_back(&pool, &mut blocks, |bytes| released += bytes), 3);
        assert_eq!(inside.pay_back(&pool, &mut blocks, |bytes| released += bytes), 1);
        assert_eq!(inside.pay_back(&pool, &mut blocks, |bytes| released += bytes), 0);
        assert_eq!(released, UNASKED_BYTES);
        let counts = &lane.counts;
        assert_eq!(lane.deferred_blocks(&pool), 4);
        assert_eq!(lane.deferred_bytes(), UNASKED_BYTES as u64 + 21);
        assert_eq!(counts.paid_back_blocks.load(Ordering::Relaxed), 4);
        assert_eq!(counts.paid_back_bytes.load(Ordering::Relaxed), UNASKED_BYTES as u64 + 21);
        assert_eq!(pool.n_used(), 0);
    }

    /// Blocks of 24 pages, written down in no order, of which every eighth comes to one bucket.
    #[test]
    fn blocks_are_paid_back_page_by_page() {
        let (pool, lane) = (Pool::new(), Lane::new());
        let inside = lane.enter().unwrap();
        const PAGE: usize = (64 << 10) / 8;
        let address = |i: usize| {
            let (page, step) = (i % 24, i / 24);
            block((page % 8 + page / 8 * BUCKETS) * PAGE + step * 32)
        };
        let n = 24 * 256;
        for i in 0..n {
            write(&inside, &pool, address(i * 7919 % n), 256);
        }
        let mut blocks = vec![ptr::null_mut(); n];
        assert_eq!(inside.pay_back(&pool, &mut blocks, |_| ()), n);
        let pages: Vec<usize> = blocks.iter().map(|block| number(block.addr()) / PAGE).collect();
        let changes = pages.windows(2).filter(|pair| pair[0] != pair[1]).count();
        assert_eq!(changes, 23);
        blocks.sort_unstable();
        let mut all: Vec<*mut u8> = (0..n).map(address).collect();
        all.sort_unstable();
        assert_eq!(blocks, all);
    }

    /// Seen to fail without `wanted` in `enter`, without the look at `inside` in `steal`, and where the end of
    /// the drainer's stay cleared `inside`.
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
                    let take = |inside: &Inside<'_>| take_all(inside, &pool);
                    seen.extend(lane.steal(sys::membarrier, take).unwrap_or_default());
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
                let mine = i * 7919 % BLOCKS;
                let Some(inside) = lane.enter() else {
                    own.push(mine);
                    continue;
                };
                write(&inside, &pool, block(mine), 8);
                if i % 5 == 0 {
                    let mut back = [ptr::null_mut(); 3];
                    let n = inside.pay_back(&pool, &mut back, |_| ());
                    own.extend(back[..n].iter().map(|block| number(block.addr())));
                }
            }
            lane.let_go();
            done.store(true, Ordering::Release);
            (own, drainer.join().unwrap())
        });
        let mut all: Vec<usize> = own.iter().chain(&theirs).copied().collect();
        all.sort_unstable();
        assert_eq!(all, (0..BLOCKS).collect::<Vec<_>>());
        assert!(!theirs.is_empty());
        assert_eq!(pool.n_used(), 0);
    }
}
