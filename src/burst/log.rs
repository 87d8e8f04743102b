//! A thread's log: the addresses of blocks that it has freed in bursts, in the order in which it did.
//!
//! ```text
//!          head                                            tail
//!           │ head_slot                                     │
//!           ▼                                               ▼
//!      ┌───────────┐ next ┌───────────┐ next       next ┌───────────┐
//!      │ ··xxxxxxx ├─────▶│ xxxxxxxxx ├─────▶ ... ─────▶│ xxxx00000 │
//!      └───────────┘      └───────────┘                 └───────────┘
//!          emptied up to here          x written            ▲ the thread's cursor
//! ```
//!
//! The thread writes behind the last address, and nobody else writes. Whoever holds `emptying`, the drainer or the
//! thread itself, takes addresses from the front, up to the first slot that is still zero. So nobody has to
//! stop, or to get at, a thread that is just writing: what it has published is all that counts.
//!
//! # Orderings
//!
//! - A slot is stored with Release and read with Acquire. Who finds one written finds the base of its chunk, and
//!   what the program did to the block is done.
//! - `next` is stored with Release when all slots of its chunk have been written, and read with Acquire: who
//!   finds a next chunk finds this one full, and gives it back.
//! - `head` goes from 0 to the first chunk by the thread, which writes into it afterwards; from chunk to chunk by
//!   whoever empties; and back to 0 by whoever empties a log that no thread holds. The last two are ordered by
//!   `emptying`, the first and the last by `held`.
//! - `emptying` and `held` are taken with Acquire and given up with Release.
//!
//! # Fork
//!
//! Addresses count as taken (`head`, `head_slot`) before the first of them is freed. So the child finds each of
//! them at most once: those that a thread of the parent had just taken are lost to the child.

use std::ptr;

use super::pool::{Chunk, Cursor, Place, Pool, SLOTS};
use crate::stats::Tally;
use crate::sync::IN_MODEL;
use crate::sync::atomic::{AtomicBool, AtomicPtr, AtomicU32, AtomicU64, AtomicUsize, Ordering};

/// A thread that builds something allocates a hundred times as often between two looks of the drainer, a millisecond, or takes
/// back what it wrote.
const QUIET_ALLOCS: u32 = 128;
/// A page fault may take one of them, another program on the same CPU several.
const QUIET_ROUNDS: u32 = 4;
/// Blocks for which no other chunk is begun before this one is full.
const FEW_SLOTS: usize = if IN_MODEL { 1 } else { 64 };

/// All zero bytes are a valid value: a log that no thread holds, with nothing in it.
// As far apart as the processor fetches at once: threads write to theirs all the time.
#[repr(C, align(128))]
pub(super) struct Log {
    /// Another log, see `Logs`.
    pub(super) next: AtomicPtr<Log>,
    /// By a thread that writes.
    held: AtomicBool,
    /// By somebody who takes addresses out.
    emptying: AtomicBool,
    /// The chunk with the oldest addresses, as its index + 1.
    head: AtomicU32,
    /// The slots of that chunk which have been taken.
    head_slot: AtomicU32,
    /// The bytes of those.
    head_bytes: AtomicUsize,
    /// The chunk that is being written, as its index + 1.
    tail: AtomicU32,
    /// What was written into chunks that have been left behind. The writer's.
    left: Count,
    /// What has been taken out. Whoever empties.
    taken: Count,
    /// What of that the thread took itself.
    taken_back: Count,
    /// Blocks that the drainer has taken out together, and how many of them it has not freed yet.
    drained: AtomicU64,
    in_hand: AtomicU64,
    /// Allocations of the thread while anything waits, for the drainer to see that it is at work.
    n_allocs: AtomicU32,
    /// What had been written and taken back, and allocated, when the drainer looked last. The drainer's.
    seen_changes: AtomicU64,
    seen_allocs: AtomicU32,
    quiet_rounds: AtomicU32,
}

/// Blocks and bytes, counted by one thread at a time.
pub(super) struct Count {
    blocks: AtomicU64,
    bytes: AtomicU64,
}

impl Count {
    pub(super) const fn new() -> Count {
        Count { blocks: AtomicU64::new(0), bytes: AtomicU64::new(0) }
    }

    pub(super) fn set(&self, tally: Tally) {
        self.blocks.store(tally.blocks, Ordering::Relaxed);
        self.bytes.store(tally.bytes, Ordering::Relaxed);
    }

    fn add(&self, blocks: usize, bytes: usize) {
        for (count, n) in [(&self.blocks, blocks), (&self.bytes, bytes)] {
            count.store(count.load(Ordering::Relaxed).wrapping_add(n as u64), Ordering::Relaxed);
        }
    }

    pub(super) fn tally(&self) -> Tally {
        let load = |count: &AtomicU64| count.load(Ordering::Relaxed);
        Tally { blocks: load(&self.blocks), bytes: load(&self.bytes) }
    }
}

/// Why a block could not be written down.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum NotWritten {
    /// All chunks are in use, or there is no memory for them.
    NoChunk,
    /// As many bytes wait as may.
    OverBound,
    /// Its address is not aligned as blocks are.
    OutOfReach,
}

/// A block has been written down.
#[derive(Clone, Copy, Debug)]
pub(super) struct Entry {
    /// Behind it.
    pub(super) cursor: Cursor,
    /// It could not be written where the cursor was: whoever empties the log may sleep.
    pub(super) opened: bool,
}

impl Log {
    pub(super) const fn new() -> Log {
        Log {
            next: AtomicPtr::new(ptr::null_mut()),
            held: AtomicBool::new(false),
            emptying: AtomicBool::new(false),
            head: AtomicU32::new(0),
            head_slot: AtomicU32::new(0),
            head_bytes: AtomicUsize::new(0),
            tail: AtomicU32::new(0),
            left: Count::new(),
            taken: Count::new(),
            taken_back: Count::new(),
            drained: AtomicU64::new(0),
            in_hand: AtomicU64::new(0),
            n_allocs: AtomicU32::new(0),
            seen_changes: AtomicU64::new(0),
            seen_allocs: AtomicU32::new(0),
            quiet_rounds: AtomicU32::new(0),
        }
    }

    /// Makes the calling thread the one that writes; false if it cannot be.
    pub(super) fn try_hold(&self) -> bool {
        // Acquire pairs with the Release in `let_go`, and through `head` with that in `Emptying::next`.
        let free = !self.held.load(Ordering::Relaxed)
            // What its last thread left has all been freed.
            && self.in_hand.load(Ordering::Relaxed) == 0
            && self
                .held
                .compare_exchange(false, true, Ordering::Acquire, Ordering::Relaxed)
                .is_ok();
        if free && self.head.load(Ordering::Acquire) != 0 {
            // What the last one left is still there.
            self.let_go();
            return false;
        }
        free
    }

    /// The thread writes no more.
    pub(super) fn let_go(&self) {
        self.held.store(false, Ordering::Release);
    }

    /// Slots of the head that have been taken, and then the head: as a fork copies them.
    #[cfg(all(test, loom))]
    pub(super) fn slot_and_head(&self) -> (u32, u32) {
        (self.head_slot.load(Ordering::Acquire), self.head.load(Ordering::Relaxed))
    }

    pub(super) fn is_held(&self) -> bool {
        self.held.load(Ordering::Acquire)
    }

    /// Writes a block behind the cursor, which is where the calling thread, who holds the log, wrote last. `grant`
    /// is asked for the bytes of each chunk that has been filled.
    pub(super) fn write(
        &self,
        pool: &Pool,
        cursor: Cursor,
        block: *mut u8,
        size: usize,
        grant: impl FnOnce(usize) -> bool,
    ) -> Result<Entry, NotWritten> {
        if !cursor.is_at_end() {
            // SAFETY: a slot in the tail of a log that the calling thread holds.
            if let Some(cursor) = unsafe { cursor.write(block, size) } {
                return Ok(Entry { cursor, opened: false });
            }
        }
        let base = Place::base_near(block);
        let Some(place) = Place::of(base, block) else {
            return Err(NotWritten::OutOfReach);
        };
        let full = self.tail.load(Ordering::Relaxed).checked_sub(1).map(|index| pool.get(index));
        if let Some(tail) = full.filter(|tail| tail.is_closed() && !cursor.is_at_end()) {
            tail.open();
            // SAFETY: as above.
            if let Some(cursor) = unsafe { cursor.write(block, size) } {
                return Ok(Entry { cursor, opened: true });
            }
            // Whoever empties has not heard of it.
            tail.close();
        }
        // A chunk is too much for the few blocks of one place in memory that come between those of another.
        let is_waste = full.is_some() && (1..FEW_SLOTS).contains(&cursor.n_before());
        if is_waste && !self.is_empty(pool) {
            return Err(NotWritten::OutOfReach);
        }
        let Some(index) = pool.take() else {
            return Err(NotWritten::NoChunk);
        };
        if !grant(full.map_or(0, Chunk::bytes)) {
            pool.give_back(index, 0);
            return Err(NotWritten::OverBound);
        }
        // The block is there before the chunk is: who finds the chunk does not close it as an empty one, and
        // writing it cannot fail.
        let cursor_in_next = pool.get(index).begin_with(base, place, size);
        match full {
            Some(full) => {
                self.left.add(cursor.n_before(), full.bytes());
                full.link(index);
            }
            None => {
                self.head_slot.store(0, Ordering::Relaxed);
                self.head_bytes.store(0, Ordering::Relaxed);
                // Release pairs with the Acquire in `Emptying::next`.
                self.head.store(index + 1, Ordering::Release);
            }
        }
        self.tail.store(index + 1, Ordering::Release);
        Ok(Entry { cursor: cursor_in_next, opened: true })
    }

    /// The right to take addresses out, unless somebody has it.
    pub(super) fn try_empty(&self) -> Option<Emptying<'_>> {
        // Acquire pairs with the Release when it is given up.
        let taken =
            self.emptying.compare_exchange(false, true, Ordering::Acquire, Ordering::Relaxed);
        taken.is_ok().then(|| Emptying { log: self, grant_given_up: 0 })
    }

    /// What has been written so far.
    pub(super) fn written(&self, pool: &Pool) -> Tally {
        let mut written = self.left.tally();
        if let Some(index) = self.tail.load(Ordering::Acquire).checked_sub(1) {
            let tail = pool.get(index);
            let (blocks, bytes) = (tail.n_written(0), tail.bytes());
            written += Tally { blocks: blocks as u64, bytes: bytes as u64 };
        }
        written
    }

    /// Blocks that wait, where `cursor` is that of the calling thread, who holds the log.
    pub(super) fn n_waiting(&self, cursor: Cursor) -> u64 {
        let written = self.n_left() + cursor.n_before() as u64;
        written.wrapping_sub(self.taken.blocks.load(Ordering::Relaxed))
    }

    /// As `n_waiting`, for others, by chunks.
    pub(super) fn n_waiting_about(&self) -> u64 {
        self.n_left().saturating_sub(self.taken.blocks.load(Ordering::Relaxed))
    }

    /// Blocks in all chunks that the thread has left behind so far.
    pub(super) fn n_left(&self) -> u64 {
        self.left.blocks.load(Ordering::Relaxed)
    }

    /// What has been taken out so far.
    pub(super) fn taken(&self) -> Tally {
        self.taken.tally()
    }

    /// What has been taken out by the thread itself.
    pub(super) fn taken_back(&self) -> Tally {
        self.taken_back.tally()
    }

    pub(super) fn note_taken_back(&self, blocks: usize, bytes: usize) {
        self.taken_back.add(blocks, bytes);
    }

    /// Whether it is of no more use: a thread that has ended left it.
    pub(super) fn is_to_be_given_up(&self) -> bool {
        !self.is_held() && self.head.load(Ordering::Relaxed) != 0
    }

    /// Whether anything has been written and not taken. False is certain only for who empties or writes.
    pub(super) fn is_empty(&self, pool: &Pool) -> bool {
        let Some(index) = self.head.load(Ordering::Acquire).checked_sub(1) else {
            return true;
        };
        let chunk: &Chunk = pool.get(index);
        let from = (self.head_slot.load(Ordering::Acquire) as usize).min(SLOTS);
        chunk.next().is_none() && chunk.n_written(from) == from
    }

    /// Whether nothing waits, and nobody is freeing what was taken out.
    pub(super) fn are_all_freed(&self, pool: &Pool) -> bool {
        // In this order: who finds the last ones taken out finds who has taken them, or what that one has done. Acquire
        // pairs with the Release when it is given up.
        self.is_empty(pool) && !self.emptying.load(Ordering::Acquire)
    }

    /// Whether nothing waits and nothing is in hand.
    pub(super) fn is_done(&self, pool: &Pool) -> bool {
        self.in_hand.load(Ordering::Relaxed) == 0 && self.is_empty(pool)
    }

    /// For whoever empties and is going to sleep: the thread's next write has to wake him. False if anything
    /// waits, or a thread may write without that.
    pub(super) fn close(&self, pool: &Pool) -> bool {
        let Some(_emptying) = self.try_empty() else {
            return false;
        };
        if !self.is_empty(pool) {
            return false;
        }
        if let Some(index) = self.tail.load(Ordering::Acquire).checked_sub(1) {
            pool.get(index).close();
        }
        true
    }

    /// Whether nothing waits and the thread's next write is going to wake whoever empties.
    pub(super) fn is_closed(&self, pool: &Pool) -> bool {
        let tail = self.tail.load(Ordering::Acquire).checked_sub(1);
        self.is_empty(pool) && tail.is_none_or(|index| pool.get(index).is_closed())
    }

    /// Blocks that the drainer has taken out together, and how many of them it has not freed yet.
    pub(super) fn in_hand(&self) -> (u64, u64) {
        (self.drained.load(Ordering::Relaxed), self.in_hand.load(Ordering::Acquire))
    }

    /// The drainer is about to take so many.
    pub(super) fn begin_drain(&self, n_blocks: u64) {
        self.drained.store(n_blocks, Ordering::Relaxed);
        self.in_hand.store(n_blocks, Ordering::Release);
    }

    /// It has not freed so many of them yet.
    pub(super) fn set_in_hand(&self, n_blocks: u64) {
        self.in_hand.store(n_blocks, Ordering::Release);
    }

    /// The thread has allocated.
    pub(super) fn note_alloc(&self) {
        let n = self.n_allocs.load(Ordering::Relaxed).wrapping_add(1);
        self.n_allocs.store(n, Ordering::Relaxed);
    }

    /// For the drainer, once a round: whether the thread has written nothing in the last rounds, taken nothing back, and
    /// allocated little.
    pub(super) fn is_quiet(&self, pool: &Pool) -> bool {
        // Both only grow.
        let changes = self.written(pool).blocks.wrapping_add(self.taken_back().blocks);
        let n_allocs = self.n_allocs.load(Ordering::Relaxed);
        let before = self.seen_changes.swap(changes, Ordering::Relaxed);
        let n_since = n_allocs.wrapping_sub(self.seen_allocs.swap(n_allocs, Ordering::Relaxed));
        let is_quiet = changes == before && n_since < QUIET_ALLOCS;
        let n_rounds = if is_quiet { self.quiet_rounds.load(Ordering::Relaxed) + 1 } else { 0 };
        self.quiet_rounds.store(n_rounds, Ordering::Relaxed);
        n_rounds >= QUIET_ROUNDS
    }

    /// In a forked child, on its only thread: no thread holds it, and nobody empties it. Where a thread of the parent was
    /// just going from one chunk to the next, tail and counts may not belong together: they are told from the chunks
    /// that there are. The bytes that are granted for them are returned.
    pub(super) fn forget_threads(&self, pool: &Pool) -> usize {
        self.held.store(false, Ordering::Relaxed);
        self.emptying.store(false, Ordering::Relaxed);
        self.in_hand.store(0, Ordering::Relaxed);
        let mut granted_bytes = 0;
        let mut n_blocks = 0;
        let mut tail = self.head.load(Ordering::Relaxed);
        self.tail.store(tail, Ordering::Relaxed);
        while let Some(next) = tail.checked_sub(1).and_then(|index| pool.get(index).next()) {
            let chunk = pool.get(tail - 1);
            granted_bytes += chunk.bytes();
            n_blocks += chunk.n_written(0);
            tail = next + 1;
            self.tail.store(tail, Ordering::Relaxed);
        }
        // What has been taken of the head counts as taken.
        let n_before = self.taken.tally().blocks.wrapping_sub(self.head_slot().into());
        let bytes_before = self.taken.tally().bytes.wrapping_sub(self.head_bytes() as u64);
        self.left.set(Tally {
            blocks: n_before.wrapping_add(n_blocks as u64),
            bytes: bytes_before.wrapping_add(granted_bytes as u64),
        });
        granted_bytes
    }

    /// Slots of the head that have been taken; 0 if there is no head.
    fn head_slot(&self) -> u32 {
        let has_head = self.head.load(Ordering::Relaxed) != 0;
        if has_head { self.head_slot.load(Ordering::Relaxed) } else { 0 }
    }

    fn head_bytes(&self) -> usize {
        let has_head = self.head.load(Ordering::Relaxed) != 0;
        if has_head { self.head_bytes.load(Ordering::Relaxed) } else { 0 }
    }
}

/// The right to take addresses out of a log.
pub(super) struct Emptying<'a> {
    log: &'a Log,
    grant_given_up: usize,
}

/// Addresses that have been taken out, and where they are to be read before the next call.
pub(super) struct Run<'a> {
    pub(super) chunk: &'a Chunk,
    /// The first slot and the one after the last.
    pub(super) slots: (usize, usize),
    pub(super) bytes: usize,
}

impl Run<'_> {
    pub(super) fn n_blocks(&self) -> usize {
        self.slots.1 - self.slots.0
    }
}

impl Emptying<'_> {
    /// The oldest addresses. Those that the last call returned must have been read: their chunk may be gone.
    pub(super) fn next<'p>(&mut self, pool: &'p Pool) -> Option<Run<'p>> {
        let log = self.log;
        loop {
            // Acquire pairs with the Release where the first chunk is put there.
            let index = log.head.load(Ordering::Acquire).checked_sub(1)?;
            // Before the slots are looked at: whoever let go wrote nothing afterwards.
            let is_held = log.is_held();
            let chunk = pool.get(index);
            let from = log.head_slot.load(Ordering::Relaxed) as usize;
            let next = chunk.next();
            let to = chunk.n_written(from);
            if from < to {
                let before = log.head_bytes.load(Ordering::Relaxed);
                let bytes = chunk.bytes();
                log.head_bytes.store(bytes, Ordering::Relaxed);
                log.taken.add(to - from, bytes.wrapping_sub(before));
                // Release: a forked child that finds the addresses taken finds the rest.
                log.head_slot.store(to as u32, Ordering::Release);
                return Some(Run { chunk, slots: (from, to), bytes: bytes.wrapping_sub(before) });
            }
            if let Some(next) = next {
                self.grant_given_up += chunk.bytes();
                log.head.store(next + 1, Ordering::Release);
                log.head_bytes.store(0, Ordering::Relaxed);
                // Release, and after `head`: a forked child that finds the new one with the old slot loses what is in
                // it; the other way round it would find the old one full.
                log.head_slot.store(0, Ordering::Release);
                pool.give_back(index, to);
                continue;
            }
            if !is_held {
                log.left.add(to, chunk.bytes());
                log.tail.store(0, Ordering::Relaxed);
                // Release pairs with the Acquire in `try_hold`.
                log.head.store(0, Ordering::Release);
                pool.give_back(index, to);
            }
            return None;
        }
    }

    /// Shows the last `n` blocks that the calling thread, whose cursor that is, has written into its chunk, as far as
    /// they wait.
    pub(super) fn last_written(
        &self,
        pool: &Pool,
        cursor: Cursor,
        n: usize,
        f: impl FnMut(*mut u8),
    ) {
        let tail = self.log.tail.load(Ordering::Relaxed);
        let Some(index) = tail.checked_sub(1) else {
            return;
        };
        let n_taken = match self.log.head.load(Ordering::Relaxed) == tail {
            true => self.log.head_slot.load(Ordering::Relaxed) as usize,
            false => 0,
        };
        let to = cursor.n_before();
        let from = to.saturating_sub(n).max(n_taken);
        let chunk = pool.get(index);
        let base = chunk.base();
        chunk.places((from.min(to), to)).map(|place| place.block(base)).for_each(f);
    }

    /// Bytes that had been granted for chunks that are no longer there, since this was asked last.
    pub(super) fn give_up_grant(&mut self) -> usize {
        std::mem::take(&mut self.grant_given_up)
    }
}

impl Drop for Emptying<'_> {
    fn drop(&mut self) {
        self.log.emptying.store(false, Ordering::Release);
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::super::pool::{CHUNKS, Cursor, Pool, SLOTS};
    use super::{FEW_SLOTS, Log, NotWritten};
    use std::ptr;

    const BASE: usize = 0x7f00_0000_0000;

    fn block(i: usize) -> *mut u8 {
        ptr::without_provenance_mut(BASE + 8 * i)
    }

    /// A thread that writes, and what it was asked to grant.
    struct Writer<'a> {
        log: &'a Log,
        pool: &'a Pool,
        cursor: Cursor,
        asked: Vec<usize>,
        grants: bool,
    }

    impl Writer<'_> {
        fn new<'a>(log: &'a Log, pool: &'a Pool) -> Writer<'a> {
            assert!(log.try_hold());
            Writer { log, pool, cursor: Cursor::NOWHERE, asked: Vec::new(), grants: true }
        }

        /// Whether it had to be opened.
        fn write(&mut self, block: *mut u8, size: usize) -> Result<bool, NotWritten> {
            let grant = |bytes| {
                self.asked.push(bytes);
                self.grants
            };
            let entry = self.log.write(self.pool, self.cursor, block, size, grant)?;
            self.cursor = entry.cursor;
            Ok(entry.opened)
        }
    }

    /// Blocks and bytes of all that waits, and the grant that was given up.
    fn empty(log: &Log, pool: &Pool) -> (Vec<usize>, usize, usize) {
        let mut emptying = log.try_empty().unwrap();
        let (mut blocks, mut bytes) = (Vec::new(), 0);
        while let Some(run) = emptying.next(pool) {
            bytes += run.bytes;
            let n_before = blocks.len();
            run.chunk.each_block(run.slots, |_| (), |block| blocks.push(block.addr()));
            assert_eq!(blocks.len() - n_before, run.n_blocks());
        }
        (blocks, bytes, emptying.give_up_grant())
    }

    fn addresses(numbers: std::ops::Range<usize>) -> Vec<usize> {
        numbers.map(|i| block(i).addr()).collect()
    }

    #[test]
    fn what_is_written_comes_out_in_order() {
        let (pool, log) = (Pool::new(), Log::new());
        let mut writer = Writer::new(&log, &pool);
        assert_eq!(empty(&log, &pool), (vec![], 0, 0));
        for i in 0..3 * SLOTS {
            assert_eq!(writer.write(block(i), 5), Ok(i % SLOTS == 0));
            assert_eq!(log.n_waiting(writer.cursor), i as u64 + 1);
        }
        assert_eq!(log.written(&pool).blocks, 3 * SLOTS as u64);
        let chunk_bytes = 5 * SLOTS;
        assert_eq!(writer.asked, [0, chunk_bytes, chunk_bytes]);
        assert_eq!(empty(&log, &pool), (addresses(0..3 * SLOTS), 3 * chunk_bytes, 2 * chunk_bytes));
        assert!(log.is_empty(&pool) && log.n_waiting(writer.cursor) == 0);
        // Where it has been taken from, the thread goes on.
        assert_eq!(writer.write(block(7), 1), Ok(true));
        assert_eq!(writer.write(block(8), 2), Ok(false));
        assert_eq!(empty(&log, &pool), (addresses(7..9), 3, chunk_bytes));
        assert_eq!((log.written(&pool), log.taken()), (log.taken(), log.written(&pool)));
        assert_eq!(log.taken().bytes, 3 * chunk_bytes as u64 + 3);
        assert_eq!(pool.n_used(), 1);
    }

    #[test]
    fn what_cannot_be_written_changes_nothing() {
        let (pool, log) = (Pool::new(), Log::new());
        let mut writer = Writer::new(&log, &pool);
        let misaligned = ptr::without_provenance_mut(BASE + 4);
        assert_eq!(writer.write(misaligned, 1), Err(NotWritten::OutOfReach));
        (0..SLOTS).for_each(|i| _ = writer.write(block(i), 1).unwrap());
        writer.grants = false;
        for _ in 0..3 {
            assert_eq!(writer.write(block(SLOTS), 1), Err(NotWritten::OverBound));
            assert_eq!((pool.n_used(), log.n_waiting(writer.cursor)), (1, SLOTS as u64));
        }
        writer.grants = true;
        writer.asked.clear();
        let others: Vec<u32> = std::iter::from_fn(|| pool.take()).collect();
        assert_eq!(writer.write(block(SLOTS), 1), Err(NotWritten::NoChunk));
        assert_eq!((writer.asked.len(), pool.n_used()), (0, CHUNKS));
        others.into_iter().for_each(|index| pool.give_back(index, 0));
        assert_eq!(writer.write(block(SLOTS), 1), Ok(true));
        assert_eq!(empty(&log, &pool), (addresses(0..SLOTS + 1), SLOTS + 1, SLOTS));
    }

    /// A few blocks of another place are not worth a chunk, many are.
    #[test]
    fn blocks_of_two_places() {
        const FAR: usize = 64 << 30;
        let (pool, log) = (Pool::new(), Log::new());
        let mut writer = Writer::new(&log, &pool);
        let far = |i| ptr::without_provenance_mut::<u8>(BASE + FAR + 8 * i);
        for i in 0..FEW_SLOTS {
            assert_eq!(writer.write(block(i), 1), Ok(i == 0));
            if i + 1 < FEW_SLOTS {
                assert_eq!(writer.write(far(i), 1), Err(NotWritten::OutOfReach));
            }
        }
        assert_eq!(writer.write(far(0), 1), Ok(true));
        assert_eq!(writer.write(block(9), 1), Err(NotWritten::OutOfReach));
        assert_eq!(writer.write(far(1), 1), Ok(false));
        let expected = [addresses(0..FEW_SLOTS), vec![far(0).addr(), far(1).addr()]].concat();
        assert_eq!(empty(&log, &pool), (expected, FEW_SLOTS + 2, FEW_SLOTS));
        // Nothing waits: the place may change.
        assert_eq!(writer.write(block(9), 1), Ok(true));
        assert_eq!(empty(&log, &pool).0, addresses(9..10));
    }

    #[test]
    fn one_thread_holds_a_log_and_one_empties_it() {
        let (pool, log) = (Pool::new(), Log::new());
        let mut writer = Writer::new(&log, &pool);
        assert!(!log.try_hold());
        writer.write(block(0), 1).unwrap();
        {
            let _emptying = log.try_empty();
            assert!(log.try_empty().is_none());
        }
        log.let_go();
        assert!(!log.try_hold(), "what the last one left is still there");
        assert!(log.is_to_be_given_up() && !log.is_held());
        assert_eq!(empty(&log, &pool).0.len(), 1);
        assert!(!log.is_to_be_given_up() && log.try_hold());
        assert_eq!(pool.n_used(), 0);
    }

    /// Its thread has rested before it ends: all has been taken, but the chunk is the thread's still.
    #[test]
    fn an_empty_log_is_given_up() {
        let (pool, log) = (Pool::new(), Log::new());
        let mut writer = Writer::new(&log, &pool);
        writer.write(block(0), 3).unwrap();
        assert_eq!(empty(&log, &pool).0.len(), 1);
        log.let_go();
        assert!(log.is_empty(&pool) && log.is_to_be_given_up() && !log.try_hold());
        assert_eq!(empty(&log, &pool), (vec![], 0, 0));
        assert_eq!((log.is_to_be_given_up(), pool.n_used()), (false, 0));
        assert_eq!(log.written(&pool), log.taken());
        let mut next = Writer::new(&log, &pool);
        assert_eq!(next.write(block(1), 4), Ok(true));
        assert_eq!(empty(&log, &pool), (addresses(1..2), 4, 0));
        assert_eq!((log.taken().blocks, log.taken().bytes), (2, 7));
    }

    /// While the drainer frees what a thread left, nobody else writes there: it counts as that thread's.
    #[test]
    fn a_log_in_hand_is_nobodys() {
        let log = Log::new();
        log.begin_drain(5);
        assert_eq!((log.in_hand(), log.try_hold()), ((5, 5), false));
        log.set_in_hand(0);
        assert_eq!((log.in_hand(), log.try_hold()), ((5, 0), true));
    }

    #[test]
    fn a_write_opens_a_closed_log() {
        let (pool, log) = (Pool::new(), Log::new());
        assert!(log.close(&pool) && log.is_closed(&pool), "nobody writes");
        let mut writer = Writer::new(&log, &pool);
        assert_eq!(writer.write(block(0), 1), Ok(true));
        assert!(!log.close(&pool) && !log.is_closed(&pool), "something waits");
        empty(&log, &pool);
        assert!(!log.is_closed(&pool), "the thread may write without telling anybody");
        {
            let _emptying = log.try_empty();
            assert!(!log.close(&pool));
        }
        assert!(log.close(&pool) && log.is_closed(&pool));
        assert_eq!(writer.write(block(1), 1), Ok(true));
        assert_eq!(writer.write(block(2), 1), Ok(false));
        assert!(!log.is_closed(&pool));
        assert_eq!(empty(&log, &pool).0, addresses(1..3));
        // At the end of a chunk as well.
        (3..SLOTS).for_each(|i| _ = writer.write(block(i), 1));
        empty(&log, &pool);
        assert!(log.close(&pool) && writer.cursor.is_at_end());
        assert_eq!(writer.write(block(SLOTS), 1), Ok(true));
        assert_eq!(empty(&log, &pool).0, addresses(SLOTS..SLOTS + 1));
    }

    #[test]
    fn a_block_that_is_not_written_opens_nothing() {
        let (pool, log) = (Pool::new(), Log::new());
        let mut writer = Writer::new(&log, &pool);
        (0..FEW_SLOTS).for_each(|i| _ = writer.write(block(i), 1));
        empty(&log, &pool);
        assert!(log.close(&pool));
        writer.grants = false;
        let far = ptr::without_provenance_mut::<u8>(BASE + (64 << 30));
        assert_eq!(writer.write(far, 1), Err(NotWritten::OverBound));
        assert!(log.is_closed(&pool), "nobody has been told");
        assert_eq!(writer.write(block(FEW_SLOTS), 1), Ok(true));
    }

    /// What is judged is what was written last and waits.
    #[test]
    fn the_last_written_are_shown() {
        let (pool, log) = (Pool::new(), Log::new());
        let mut writer = Writer::new(&log, &pool);
        let last = |writer: &Writer<'_>, n| {
            let mut shown = Vec::new();
            let emptying = log.try_empty().unwrap();
            emptying.last_written(&pool, writer.cursor, n, |block| shown.push(block.addr()));
            shown
        };
        assert_eq!(last(&writer, 3), [0usize; 0]);
        (0..5).for_each(|i| _ = writer.write(block(i), 1));
        assert_eq!(last(&writer, 3), addresses(2..5));
        assert_eq!(last(&writer, 10), addresses(0..5));
        empty(&log, &pool);
        assert_eq!(last(&writer, 10), [0usize; 0]);
        (5..8).for_each(|i| _ = writer.write(block(i), 1));
        assert_eq!(last(&writer, 10), addresses(5..8));
    }

    /// In a forked child the thread that wrote is gone, and so is who emptied.
    #[test]
    fn a_forked_child_empties_what_it_finds() {
        let (pool, log) = (Pool::new(), Log::new());
        let mut writer = Writer::new(&log, &pool);
        (0..SLOTS + 3).for_each(|i| _ = writer.write(block(i), 1));
        let mut emptying = log.try_empty().unwrap();
        let run = emptying.next(&pool).unwrap();
        assert_eq!(run.n_blocks(), SLOTS);
        std::mem::forget(emptying);
        log.begin_drain(3);
        log.forget_threads(&pool);
        // Those that had just been taken were the other process's.
        assert_eq!(empty(&log, &pool).0, addresses(SLOTS..SLOTS + 3));
        assert_eq!(pool.n_used(), 0);
        assert!(log.try_hold());
    }
}
