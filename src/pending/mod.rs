//! Freed large blocks that wait: to be taken back by an allocation of their class, or to be old
//! enough to go back to the allocator underneath.
//!
//! Each class has a slot for the thread, whose block is the first to be taken back: a program that frees one and allocates
//! one, over and over, has the same one each time, which is warm. What is freed while the slot is taken goes into a bounded
//! queue. Nothing here frees a block or wakes a thread: what leaves is handed to the caller. Nobody waits for anybody: see
//! `bag` for what becomes of a thread that is preempted in the midst of it.
//!
//! A block stays where it was put until somebody takes it out for good, but for a huge one that an allocation looks at and
//! puts back. So whoever looks through slot and queue finds each block whose free returned before: that is what a flush
//! relies on.
//!
//! # Age
//!
//! A program that frees a thousand blocks and goes on with eight of them, round and round, keeps
//! touching the queue: going by the time at which each block was put in, all thousand would stay
//! young for ever, because the eight go through the whole queue. So a class ages by its *low-water
//! mark*: as many blocks as the class held at its emptiest moment in a whole delay were of no use
//! during that time, and the oldest ones go. Where nothing is taken back this is the age of the
//! blocks. No clock is read and nothing is stamped on the threads that free.
//!
//! A program that needs the same blocks every 300 ms would have them given back and faulted in each time. So where a
//! class is wanted again within four delays of having given blocks back, it keeps them twice as long from then on, up
//! to those four; and half as long after each time that nobody missed them.

mod bag;
mod class;
mod queue;
mod set;
mod slot;
#[cfg(all(test, loom))]
mod models;

use std::ptr;

use crossbeam_utils::CachePadded;

use queue::{Ends, Queue};
use set::Set;
use slot::{Cleared, N_SLOTS, Slot};

use crate::burst::BURSTS;
use crate::huge::Coverage;
use crate::sync::atomic::{AtomicBool, AtomicPtr, AtomicU32, AtomicU64, AtomicUsize, Ordering};
use crate::sys::Released;

pub(crate) use class::{COUNT as CLASSES, Class, MIN_BYTES as MIN_CLASS_BYTES};

/// A freed block. Whoever holds one owns its memory, of at least its class's size.
#[derive(Debug)]
pub(crate) struct Block(*mut u8);

// SAFETY: a freed block belongs to no thread; it is nothing but memory.
unsafe impl Send for Block {}

impl Block {
    /// # Safety
    /// `ptr` is a block of at least the size of the class that it is put into, allocated by the
    /// allocator that it is going to be freed by, and its holder gives it up.
    #[inline]
    pub(crate) unsafe fn new(ptr: *mut u8) -> Block {
        Block(ptr)
    }

    #[inline]
    pub(crate) fn as_ptr(&self) -> *mut u8 {
        self.0
    }
}

/// Parts of a delay in which the low-water mark is taken: an unused block leaves after at least four
/// of them and at most five, unless its class is kept longer.
pub(crate) const MARKS_PER_DELAY: u32 = 4;
/// Parts for which a class is kept at most: with the default delay a second.
const KEPT_MAX: u32 = 4 * MARKS_PER_DELAY;

/// Bytes that were allocated anew, less those that were taken back, from which on the program's sizes count as
/// changed: the share of what waits, and at least.
const CHANGED_SHARE: usize = 32;
const CHANGED_MIN_BYTES: usize = 16 << 20;
/// How often it is taken for granted that zeroed blocks of a class are written all over. One that is cleared by hand, or
/// has huge pages, cannot tell. Where it has been right so far the next one costs four times as much, 3 % in all; where a
/// program that filled its tables has come to use them sparsely, clearing them is what mimalloc would have done each time.
const EXPECTED_WRITTEN: u32 = 128;
/// A block that is more than so many times as large as what is wanted does not make way for it. A worker that needed one
/// of 8 MiB for each fiftieth request, and others of less than one for each, had it given back each time: its peak was 94
/// MiB in place of 64, and it waited for what the system had to clear for that.
const NEAR: usize = 4;
/// The drainer is not woken to make room where less than that waits.
const WORTH_BYTES: usize = 1 << 20;

/// Why a block was not kept.
#[derive(Debug)]
pub(crate) enum Refused {
    /// Nothing has been allocated of the class: the block is from before the start. It is not counted.
    Unknown(Block),
    /// As many bytes wait as may.
    Bound(Block),
    /// There was no memory for the queue of the class, or it is full.
    Queue(Block),
    /// The same, and the drainer slept, as in [`Kept::WasAsleep`].
    WasAsleep(Block),
}

/// What a block that was kept means to the drainer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kept {
    Normal,
    /// It slept. It counts as awake from now on, and the caller has to wake it.
    WasAsleep,
    /// This block brought the bytes that wait over the high-water mark.
    OverHighWater,
}

/// What there was to be taken back.
#[derive(Debug)]
pub(crate) enum Taken {
    Fitting(Block),
    Misaligned(Block),
    Nothing,
}

/// The blocks of a class that wait at some moment.
#[derive(Debug)]
pub(crate) struct All {
    in_slots: [Option<Block>; N_SLOTS + 1],
    ends: Ends,
}

/// All blocks that wait. All zero bytes are a valid value: nothing waits and nothing may.
#[repr(C)]
pub(crate) struct Pending {
    backlog: CachePadded<Backlog>,
    /// Classes of which a block has been allocated.
    known: Set,
    /// Those among them of which a block may wait, for who looks for one and cannot look into hundreds of classes. A class
    /// may be missing where somebody puts a block into it just when somebody else finds it empty.
    filled: Set,
    classes: [CachePadded<Waiting>; CLASSES],
    /// What was given back to the system page by page.
    released_bytes: AtomicU64,
    release_calls: AtomicU64,
}

struct Backlog {
    /// Sum of the classes' sizes over the blocks that wait, and over the slots that one was taken back from in this part of a
    /// delay; never above `max_bytes`. Or, when it is 0, [`ASLEEP`].
    bytes: AtomicUsize,
    peak_bytes: AtomicUsize,
    max_bytes: AtomicUsize,
    /// Allocated anew since the sizes changed last, less what was taken back. A hint: threads may overwrite each
    /// other's.
    missed_bytes: AtomicUsize,
    /// Here because each free reads it, and the bytes beside it.
    generation: AtomicU32,
}

/// In place of the bytes: nothing waits and the drainer sleeps. No sum of sizes gets there.
const ASLEEP: usize = 1 << (usize::BITS - 1);

/// The blocks of one class that wait.
// In this order, so that a free and an allocation find what they look at in one cache line.
#[repr(C)]
struct Waiting {
    /// Those that were freed while the slot was taken.
    queue: Queue,
    /// Least number of blocks that waited since the drainer looked last; at most off by what is
    /// being put or taken this moment.
    low_water: AtomicUsize,
    /// Misses since a block was last taken back.
    misses_in_a_row: AtomicU32,
    counts: Counts,
    /// One that is all zero, or null, or [`BEING_CLEARED`].
    cleared: AtomicPtr<u8>,
    /// Whether zeroed blocks were asked for since one was cleared last.
    wants_zeroed: AtomicBool,
    /// Huge classes only: zeroed blocks that are going to be written all over as the last one was of which that is known,
    /// until that is found out once more.
    expected_written: AtomicU32,
    age: Age,
    /// Taken back until room was made last, and the time before. The drainer's alone.
    reused_then: [AtomicU64; 2],
    /// The first to be taken back.
    slots: [CachePadded<Slot>; N_SLOTS],
}

/// In the place of a block, something that no block has for an address; each place says what it stands for.
const NO_BLOCK: *mut u8 = ptr::without_provenance_mut(1);

/// The drainer has it in hand.
const BEING_CLEARED: *mut u8 = NO_BLOCK;

/// How long a class keeps what nobody needs. The drainer's alone.
struct Age {
    /// Low-water marks of the parts of a delay before this one, the latest first.
    marks: [AtomicUsize; KEPT_MAX as usize - 1],
    /// In parts; 0 stands for [`MARKS_PER_DELAY`].
    kept: AtomicU32,
    /// Parts since blocks were last given back for their age, and 1; 0 when that is known to have been right or wrong.
    given_back: AtomicU32,
    missed_then: AtomicU64,
}

/// Blocks of one class since the start. What reached `put` is what was taken back by an allocation, which the slots count,
/// and all of these but the last, and what waits.
#[derive(Default)]
pub(crate) struct Counts {
    /// Given back by the drainer, by `flush`, or because memory had run out.
    pub(crate) drained: AtomicU64,
    /// Given back by an allocation that found no block of its class.
    pub(crate) paid_back: AtomicU64,
    /// Freed by the caller because of the bound on bytes.
    pub(crate) over_bound: AtomicU64,
    /// Freed by the caller because of a full or missing queue.
    pub(crate) queue_full: AtomicU64,
    /// Allocations that found nothing waiting.
    pub(crate) missed: AtomicU64,
}

impl Pending {
    /// To be called once, before anybody else knows of `self`.
    pub(crate) fn set_up(&self, max_bytes: usize, generation: u32) {
        self.backlog.max_bytes.store(max_bytes, Ordering::Relaxed);
        self.backlog.generation.store(generation, Ordering::Relaxed);
    }

    /// The generation of the process that the blocks belong to, see `lifecycle`.
    #[inline]
    pub(crate) fn generation(&self) -> u32 {
        self.backlog.generation.load(Ordering::Relaxed)
    }

    #[inline]
    pub(crate) fn max_bytes(&self) -> usize {
        self.backlog.max_bytes.load(Ordering::Relaxed)
    }

    /// Whether so many bytes more may wait, elsewhere.
    pub(crate) fn has_room(&self, bytes: usize) -> bool {
        let all = self.bytes().saturating_add(BURSTS.bytes()).saturating_add(bytes);
        all <= self.max_bytes() && self.max_bytes() > 0
    }

    /// Bytes that wait, and some that are reserved for blocks which may come back.
    pub(crate) fn bytes(&self) -> usize {
        self.backlog.bytes.load(Ordering::Relaxed) & !ASLEEP
    }

    /// Bytes that wait, exact when nobody else is at it.
    pub(crate) fn waiting_bytes(&self) -> usize {
        self.known_classes().map(|class| self.len(class) * class.bytes()).sum()
    }

    /// The drainer falls asleep; false when something waits.
    pub(crate) fn fall_asleep(&self) -> bool {
        // SeqCst: see `drainer`.
        self.backlog.bytes.compare_exchange(0, ASLEEP, Ordering::SeqCst, Ordering::Relaxed).is_ok()
    }

    pub(crate) fn is_asleep(&self) -> bool {
        self.backlog.bytes.load(Ordering::Acquire) == ASLEEP
    }

    /// Ends the drainer's sleep; true for the one caller who has to wake it.
    pub(crate) fn end_sleep(&self) -> bool {
        // SeqCst also where it finds no sleep: see `drainer`.
        self.backlog.bytes.compare_exchange(ASLEEP, 0, Ordering::SeqCst, Ordering::SeqCst).is_ok()
    }

    pub(crate) fn peak_bytes(&self) -> usize {
        self.backlog.peak_bytes.load(Ordering::Relaxed)
    }

    /// Above this many waiting bytes the drainer does not wait for blocks to age.
    #[inline]
    pub(crate) fn high_water_bytes(&self) -> usize {
        self.max_bytes() / 4 * 3
    }

    pub(crate) fn note_released(&self, released: Released) {
        self.released_bytes.fetch_add(released.bytes as u64, Ordering::Relaxed);
        self.release_calls.fetch_add(released.calls as u64, Ordering::Relaxed);
    }

    /// Bytes and calls told to `note_released`.
    pub(crate) fn released(&self) -> (u64, u64) {
        (self.released_bytes.load(Ordering::Relaxed), self.release_calls.load(Ordering::Relaxed))
    }

    /// Notes how much of a block of a huge class has been written.
    pub(crate) fn note_written(&self, class: Class, coverage: Coverage) {
        let expected = match coverage {
            Coverage::Whole => EXPECTED_WRITTEN,
            Coverage::Part | Coverage::Sparse => 0,
            Coverage::Unknown => return,
        };
        self.classes[class.index()].expected_written.store(expected, Ordering::Relaxed);
    }

    /// Whether a zeroed block of a huge class, which is about to be allocated, is likely to be written all over.
    pub(crate) fn expects_written(&self, class: Class) -> bool {
        let expected = &self.classes[class.index()].expected_written;
        let left = expected.load(Ordering::Relaxed);
        // A hint: threads may overwrite each other's.
        expected.store(left.saturating_sub(1), Ordering::Relaxed);
        left > 0
    }

    pub(crate) fn counts(&self, class: Class) -> &Counts {
        &self.classes[class.index()].counts
    }

    /// Frees of blocks of `class` that reached `put`.
    pub(crate) fn handed_over(&self, class: Class) -> u64 {
        self.classes[class.index()].count_in_slots(|slot| &slot.handed_over)
    }

    /// Blocks of `class` that were taken back.
    pub(crate) fn reused(&self, class: Class) -> u64 {
        self.classes[class.index()].count_in_slots(|slot| &slot.reused)
    }

    /// Makes room for blocks of `class`.
    #[inline]
    pub(crate) fn prepare(&self, class: Class) {
        let waiting = &*self.classes[class.index()];
        if !waiting.queue.is_mapped() {
            // Known first: the drainer looks for blocks in the classes that are.
            self.known.insert(class);
            waiting.queue.map();
        }
    }

    /// Classes that are known, from the smallest.
    pub(crate) fn known_classes(&self) -> impl Iterator<Item = Class> + '_ {
        self.known_classes_from(0)
    }

    /// Classes of huge blocks that are known.
    pub(crate) fn known_huge_classes(&self) -> impl Iterator<Item = Class> + '_ {
        self.known_classes_from(class::COUNT / 2)
    }

    /// Classes that are known, below that with index `end`, from the largest.
    pub(crate) fn known_classes_below(&self, end: usize) -> impl Iterator<Item = Class> + '_ {
        self.known.below(end)
    }

    /// Classes that are known, from that with index `start` on, from the smallest.
    pub(crate) fn known_classes_from(&self, start: usize) -> impl Iterator<Item = Class> + '_ {
        self.known.from(start)
    }

    /// Classes below the huge ones of which blocks may wait: those above `wanted` that are not much larger, from the
    /// smallest, and then those below it, from the largest.
    pub(crate) fn classes_near(&self, wanted: Class) -> impl Iterator<Item = Class> + '_ {
        let is_near =
            move |class: &Class| !class.is_huge() && class.bytes() <= NEAR * wanted.bytes();
        let above = self.filled.from(wanted.index() + 1).take_while(is_near);
        above.chain(self.filled.below(wanted.index()))
    }

    /// Keeps `block` until it is taken or old.
    #[inline]
    pub(crate) fn put(&self, class: Class, block: Block) -> Result<Kept, Refused> {
        let waiting = &*self.classes[class.index()];
        let is_mapped = waiting.queue.is_mapped();
        if !is_mapped && !self.known.contains(class) {
            return Err(Refused::Unknown(block));
        }
        let slot = waiting.slot();
        slot.handed_over.fetch_add(1, Ordering::Relaxed);
        if !is_mapped {
            waiting.counts.queue_full.fetch_add(1, Ordering::Relaxed);
            return Err(Refused::Queue(block));
        }
        let block = match slot.refill(block) {
            Ok(()) => return Ok(Kept::Normal),
            Err(block) => block,
        };
        let Some(before) = self.backlog.reserve(class.bytes()) else {
            waiting.counts.over_bound.fetch_add(1, Ordering::Relaxed);
            return Err(Refused::Bound(block));
        };
        let kept = slot.fill(block).or_else(|block| waiting.queue.push(block));
        if let Err(block) = kept {
            self.backlog.release(class.bytes());
            waiting.counts.queue_full.fetch_add(1, Ordering::Relaxed);
            // What others have put in meanwhile they have not told.
            let refused = if before == ASLEEP { Refused::WasAsleep } else { Refused::Queue };
            return Err(refused(block));
        }
        self.filled.insert(class);
        let high = self.high_water_bytes();
        Ok(if before == ASLEEP {
            Kept::WasAsleep
        } else if before <= high && before + class.bytes() > high {
            Kept::OverHighWater
        } else {
            Kept::Normal
        })
    }

    /// As `put`, for a block that has just been taken and was of no use: as if nobody had.
    pub(crate) fn put_back(&self, class: Class, block: Block) -> Result<Kept, Refused> {
        let slot = self.classes[class.index()].slot();
        slot.reused.fetch_sub(1, Ordering::Relaxed);
        slot.handed_over.fetch_sub(1, Ordering::Relaxed);
        self.put(class, block)
    }

    /// Nothing waits and nothing may. In a model it stays so: what is stored is with the execution.
    #[cfg(test)]
    pub(crate) fn zeroed() -> &'static Self {
        use std::alloc::{Layout, alloc_zeroed};
        // SAFETY: not empty, and zeros are a valid value.
        unsafe { &*alloc_zeroed(Layout::new::<Self>()).cast() }
    }

    /// A free that has stopped in the middle; it goes on with the block when it is called.
    #[cfg(all(test, loom))]
    pub(crate) fn begin_to_put(&self, class: Class) -> impl FnOnce(Block) {
        assert!(self.backlog.reserve(class.bytes()).is_some());
        self.classes[class.index()].queue.begin_to_push()
    }

    /// Takes back a block of `class`, the one in the slot if possible.
    ///
    /// One that is not aligned to `align` is the caller's to free: a request with an uncommon
    /// alignment is better served by the allocator than by a search.
    #[inline]
    pub(crate) fn take(&self, class: Class, align: usize) -> Taken {
        let waiting = &*self.classes[class.index()];
        let slot = waiting.slot();
        // A huge block is too much to be reserved for nothing.
        let (in_slot, bytes) = if class.is_huge() {
            (self.pop_slot(class, slot), class.bytes())
        } else {
            (slot.take(), 0)
        };
        if let Some(block) = in_slot {
            return self.taken(class, block, align, bytes);
        }
        let others = || self.pop_slots(class).or_else(|| waiting.pop_cleared());
        match waiting.queue.pop_young().or_else(others) {
            Some(block) => self.taken(class, block, align, class.bytes()),
            None => Taken::Nothing,
        }
    }

    /// Takes the block out of one of the slots. What is reserved for others stays.
    fn pop_slots(&self, class: Class) -> Option<Block> {
        let slots = &self.classes[class.index()].slots;
        slots.iter().filter(|slot| slot.has_block()).find_map(|slot| self.pop_slot(class, slot))
    }

    /// Takes the block out of a slot, and what is reserved.
    fn pop_slot(&self, class: Class, slot: &Slot) -> Option<Block> {
        match slot.clear() {
            Cleared::Block(block) => Some(block),
            Cleared::Reserved => {
                self.backlog.release(class.bytes());
                None
            }
            Cleared::Nothing => None,
        }
    }

    /// Gives up what is reserved for blocks that were taken back.
    pub(crate) fn give_up_reserved(&self) {
        for class in self.known_classes() {
            for slot in &self.classes[class.index()].slots {
                if slot.give_up() {
                    self.backlog.release(class.bytes());
                }
            }
        }
    }

    /// Takes back a block of `class` that has been cleared. Where there is none, there may be one the next time.
    pub(crate) fn take_cleared(&self, class: Class, align: usize) -> Taken {
        let waiting = &*self.classes[class.index()];
        if !waiting.wants_zeroed.load(Ordering::Relaxed) {
            waiting.wants_zeroed.store(true, Ordering::Relaxed);
        }
        match waiting.pop_cleared() {
            Some(block) => self.taken(class, block, align, class.bytes()),
            None => Taken::Nothing,
        }
    }

    /// Has one block of `class` cleared if zeroed ones were wanted lately and one has waited since the last part of a
    /// delay. Only the drainer may call it.
    pub(crate) fn clear_one(&self, class: Class, clear: impl FnOnce(&Block)) {
        let waiting = &*self.classes[class.index()];
        let has_waited = waiting.age.marks[0].load(Ordering::Relaxed) > 0;
        if !has_waited
            || !waiting.cleared.load(Ordering::Relaxed).is_null()
            || !waiting.wants_zeroed.swap(false, Ordering::Relaxed)
        {
            return;
        }
        // Nobody else puts one there. It waits meanwhile, and whoever counts is to see it.
        waiting.cleared.store(BEING_CLEARED, Ordering::Relaxed);
        let block = waiting.queue.pop_old().or_else(|| self.pop_slots(class));
        let cleared = block.inspect(clear).map_or(ptr::null_mut(), |block| block.0);
        // Release pairs with the Acquire in `pop`: the zeros.
        waiting.cleared.store(cleared, Ordering::Release);
    }

    /// `bytes` are no longer reserved.
    #[inline]
    fn taken(&self, class: Class, block: Block, align: usize, bytes: usize) -> Taken {
        let waiting = &*self.classes[class.index()];
        if bytes > 0 {
            self.backlog.release(bytes);
        }
        waiting.note_low_water();
        if block.0.addr() & (align - 1) != 0 {
            waiting.counts.paid_back.fetch_add(1, Ordering::Relaxed);
            return Taken::Misaligned(block);
        }
        if waiting.misses_in_a_row.load(Ordering::Relaxed) != 0 {
            waiting.misses_in_a_row.store(0, Ordering::Relaxed);
        }
        let missed = self.backlog.missed_bytes.load(Ordering::Relaxed);
        // Huge ones are not among those that are missed either.
        if missed != 0 && !class.is_huge() {
            let missed = missed.saturating_sub(class.bytes());
            self.backlog.missed_bytes.store(missed, Ordering::Relaxed);
        }
        waiting.slot().reused.fetch_add(1, Ordering::Relaxed);
        Taken::Fitting(block)
    }

    /// Makes memory ready for as many blocks as there are: each was a miss once, and some have been freed for good since. Only
    /// the drainer may call it.
    pub(crate) fn make_ready(&self) {
        for class in self.known_classes() {
            let waiting = &*self.classes[class.index()];
            let Counts { drained, paid_back, over_bound, queue_full, missed, .. } = &waiting.counts;
            let n_gone = sum([drained, paid_back, over_bound, queue_full]);
            let n_blocks = missed.load(Ordering::Relaxed).saturating_sub(n_gone);
            waiting.queue.make_ready(n_blocks as usize);
        }
    }

    /// Notes that `bytes` are allocated anew; true where so much was that what waits is of sizes that the program has
    /// left behind.
    pub(crate) fn note_anew(&self, bytes: usize) -> bool {
        let waiting = self.bytes() + BURSTS.bytes();
        if waiting < WORTH_BYTES {
            return false;
        }
        let missed = self.backlog.missed_bytes.load(Ordering::Relaxed).saturating_add(bytes);
        let changed = missed >= (waiting / CHANGED_SHARE).max(CHANGED_MIN_BYTES);
        self.backlog.missed_bytes.store(if changed { 0 } else { missed }, Ordering::Relaxed);
        changed
    }

    /// Notes that an allocation of `class` found nothing, and says how often that has happened since
    /// the last one that found something, this time included.
    pub(crate) fn note_miss(&self, class: Class) -> u32 {
        let waiting = &*self.classes[class.index()];
        waiting.counts.missed.fetch_add(1, Ordering::Relaxed);
        let before = waiting.misses_in_a_row.load(Ordering::Relaxed);
        // Two threads may count one miss between them: it is a hint.
        waiting.misses_in_a_row.store(before.saturating_add(1), Ordering::Relaxed);
        before.saturating_add(1)
    }

    /// A number that changes whenever a large block is freed or taken back.
    pub(crate) fn activity(&self) -> u64 {
        let counts = |class| self.handed_over(class).wrapping_add(self.reused(class));
        self.known_classes().map(counts).fold(0, u64::wrapping_add)
    }

    /// Allocations that found nothing waiting.
    pub(crate) fn missed(&self) -> u64 {
        let missed = |class| self.counts(class).missed.load(Ordering::Relaxed);
        self.known_classes().map(missed).fold(0, u64::wrapping_add)
    }

    /// Takes the block of `class` that has waited longest and gives it back for good.
    #[inline]
    pub(crate) fn pay_back(&self, class: Class) -> Option<Block> {
        let oldest = self.remove_oldest(class, |counts| &counts.paid_back);
        if oldest.is_none() && !self.classes[class.index()].is_kept_for() {
            self.filled.remove(class);
            if self.classes[class.index()].is_kept_for() {
                self.filled.insert(class);
            }
        }
        oldest
    }

    /// As `pay_back`, for the drainer.
    pub(crate) fn drain(&self, class: Class) -> Option<Block> {
        self.remove_oldest(class, |counts| &counts.drained)
    }

    /// What `drain_of` takes out: all blocks of `class` that wait now.
    pub(crate) fn all(&self, class: Class) -> All {
        let waiting = &*self.classes[class.index()];
        let in_slots = std::array::from_fn(|i| match waiting.slots.get(i) {
            Some(slot) => self.pop_slot(class, slot),
            None => waiting.pop_cleared(),
        });
        All { in_slots, ends: waiting.queue.ends() }
    }

    /// As `drain`, for one of `all`.
    pub(crate) fn drain_of(&self, all: &mut All, class: Class) -> Option<Block> {
        let waiting = &*self.classes[class.index()];
        let in_slot = all.in_slots.iter_mut().find_map(Option::take);
        let block = in_slot.or_else(|| waiting.queue.pop_before(&all.ends))?;
        self.left(class, &waiting.counts.drained);
        waiting.note_low_water();
        Some(block)
    }

    fn remove_oldest(
        &self,
        class: Class,
        count: impl FnOnce(&Counts) -> &AtomicU64,
    ) -> Option<Block> {
        let waiting = &*self.classes[class.index()];
        let block = waiting.queue.pop_old().or_else(|| self.pop_slots(class));
        let block = block.or_else(|| waiting.pop_cleared())?;
        self.left(class, count(&waiting.counts));
        waiting.note_low_water();
        Some(block)
    }

    fn left(&self, class: Class, count: &AtomicU64) {
        self.backlog.release(class.bytes());
        count.fetch_add(1, Ordering::Relaxed);
    }

    /// Ends a part of the delay for `class` and says how many of its blocks nobody needed for as long as the class is
    /// kept. Only the drainer may call it.
    pub(crate) fn surplus(&self, class: Class) -> usize {
        let waiting = &*self.classes[class.index()];
        let now = waiting.len();
        // A block that is taken between the two lines makes the next mark one too high: a block may
        // go back one part early, which costs a page fault and nothing else.
        let mark = waiting.low_water.swap(now, Ordering::Relaxed).min(now);
        waiting.age.surplus(mark, waiting.counts.missed.load(Ordering::Relaxed))
    }

    /// Where room has to be made: how many of the blocks of `class` are not of a size that has been taken back since the
    /// time before last. Only the drainer may call it.
    pub(crate) fn left_behind(&self, class: Class) -> usize {
        let [last, before] = &self.classes[class.index()].reused_then;
        let now = self.reused(class);
        let then = before.load(Ordering::Relaxed);
        before.store(last.load(Ordering::Relaxed), Ordering::Relaxed);
        last.store(now, Ordering::Relaxed);
        self.len(class).saturating_sub(now.saturating_sub(then) as usize)
    }

    /// Number of blocks of `class` that wait or are just being put in, exact when nobody else is at it.
    pub(crate) fn len(&self, class: Class) -> usize {
        self.classes[class.index()].len()
    }

    /// Unmaps the queues themselves, whose blocks must have been taken out.
    ///
    /// # Safety
    /// Nobody else uses `self`, now or later.
    pub(crate) unsafe fn destroy(&self) {
        for class in self.known_classes() {
            // SAFETY: the caller is the only user.
            unsafe { self.classes[class.index()].queue.unmap() };
        }
    }
}

impl Waiting {
    /// That of the calling thread.
    #[inline]
    fn slot(&self) -> &Slot {
        &self.slots[slot::of_thread()]
    }

    fn count_in_slots(&self, count: impl Fn(&Slot) -> &AtomicU64) -> u64 {
        sum(self.slots.each_ref().map(|slot| count(slot)))
    }

    fn pop_cleared(&self) -> Option<Block> {
        pop(&self.cleared, ptr::null_mut())
    }

    fn len(&self) -> usize {
        let n_in_slots = self.slots.iter().filter(|slot| slot.has_block()).count();
        let n_cleared = usize::from(!self.cleared.load(Ordering::Relaxed).is_null());
        self.queue.len() + n_in_slots + n_cleared
    }

    /// Whether a block waits, or a place in a slot does, which a block may be put into without anything said.
    fn is_kept_for(&self) -> bool {
        self.len() > 0 || self.slots.iter().any(|slot| slot.is_reserved())
    }

    #[inline]
    fn note_low_water(&self) {
        // 0 is the lowest there is: a loop that uses up its class each time pays a load.
        let low = self.low_water.load(Ordering::Relaxed);
        if low > 0 {
            let now = self.len();
            if now < low {
                self.low_water.fetch_min(now, Ordering::Relaxed);
            }
        }
    }
}

fn sum<const N: usize>(counts: [&AtomicU64; N]) -> u64 {
    counts.map(|count| count.load(Ordering::Relaxed)).into_iter().fold(0, u64::wrapping_add)
}

#[inline]
fn is_block(content: *mut u8) -> bool {
    !content.is_null() && content != NO_BLOCK
}

/// Takes the block in a place, if there is one, and leaves `rest`.
#[inline]
fn pop(place: &AtomicPtr<u8>, rest: *mut u8) -> Option<Block> {
    // The cheap look first: a miss should not take the cache line away from those who put.
    let content = place.load(Ordering::Relaxed);
    if !is_block(content) {
        return None;
    }
    // Acquire pairs with the Release in `Slot::replace` and in `clear_one`. The same address is the same block, whoever has
    // had it since.
    place.compare_exchange(content, rest, Ordering::Acquire, Ordering::Relaxed).ok().map(Block)
}

impl Age {
    /// `mark` is the low-water mark of the part that ends, `missed` what the class's count of that name is.
    fn surplus(&self, mark: usize, missed: u64) -> usize {
        let kept = self.kept(missed);
        let mut surplus = mark;
        let mut newer = mark;
        for (i, slot) in self.marks.iter().enumerate() {
            newer = slot.swap(newer, Ordering::Relaxed);
            if i + 1 < kept as usize {
                surplus = surplus.min(newer);
            }
        }
        if surplus > 0 {
            // What goes now was not there in the parts to come.
            for slot in &self.marks {
                slot.store(slot.load(Ordering::Relaxed).saturating_sub(surplus), Ordering::Relaxed);
            }
            self.given_back.store(1, Ordering::Relaxed);
            self.missed_then.store(missed, Ordering::Relaxed);
        }
        surplus
    }

    /// For how many parts the class keeps its blocks from now on.
    fn kept(&self, missed: u64) -> u32 {
        let kept = self.kept.load(Ordering::Relaxed).max(MARKS_PER_DELAY);
        let parts = self.given_back.load(Ordering::Relaxed);
        if parts == 0 {
            return kept;
        }
        let (kept, parts) = if missed != self.missed_then.load(Ordering::Relaxed) {
            ((kept * 2).min(KEPT_MAX), 0)
        } else if parts > KEPT_MAX {
            ((kept / 2).max(MARKS_PER_DELAY), 0)
        } else {
            (kept, parts + 1)
        };
        self.given_back.store(parts, Ordering::Relaxed);
        self.kept.store(kept, Ordering::Relaxed);
        kept
    }
}

impl Backlog {
    /// Adds `bytes` unless that would go over the bound; returns what there was before, which may be
    /// [`ASLEEP`].
    #[inline]
    fn reserve(&self, bytes: usize) -> Option<usize> {
        let max = self.max_bytes.load(Ordering::Relaxed);
        let mut before = self.bytes.load(Ordering::Relaxed);
        loop {
            let after = (before & !ASLEEP).checked_add(bytes)?;
            // Small blocks count too.
            if after.saturating_add(BURSTS.bytes()) > max {
                return None;
            }
            match self.bytes.compare_exchange_weak(
                before,
                after,
                Ordering::Relaxed,
                Ordering::Relaxed,
            ) {
                Ok(_) => {
                    if after > self.peak_bytes.load(Ordering::Relaxed) {
                        self.peak_bytes.fetch_max(after, Ordering::Relaxed);
                    }
                    return Some(before);
                }
                Err(now) => before = now,
            }
        }
    }

    #[inline]
    fn release(&self, bytes: usize) {
        self.bytes.fetch_sub(bytes, Ordering::Relaxed);
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::{Block, Class, Pending, Refused, Taken, ptr};

    fn pending() -> (&'static Pending, Class) {
        let pending = Pending::zeroed();
        let class = Class::from_index(0);
        pending.set_up(usize::MAX / 4, 0);
        pending.prepare(class);
        (pending, class)
    }

    fn block(n: usize) -> Block {
        // SAFETY: nobody looks into it.
        unsafe { Block::new(ptr::without_provenance_mut((n + 1) << 12)) }
    }

    /// Seen to fail where `put` keeps the bytes of a block that the queue has refused, and where `give_up_reserved` keeps
    /// those of a slot.
    #[test]
    fn bytes_of_what_waits() {
        let (pending, class) = pending();
        let n_kept = (0..).take_while(|&n| pending.put(class, block(n)).is_ok()).count();
        assert!(matches!(pending.put(class, block(n_kept)), Err(Refused::Queue(_))));
        assert_eq!((pending.len(class), pending.bytes()), (n_kept, n_kept * class.bytes()));
        assert!(matches!(pending.take(class, 1), Taken::Fitting(_)));
        assert_eq!(pending.waiting_bytes(), (n_kept - 1) * class.bytes());
        pending.give_up_reserved();
        assert_eq!(pending.bytes(), pending.waiting_bytes());
        assert_eq!(std::iter::from_fn(|| pending.drain(class)).count(), n_kept - 1);
        assert_eq!(pending.bytes(), 0);
    }

    /// Who ends the drainer's sleep is told so in any case: others that put something in rely on it.
    #[test]
    fn a_sleep_that_a_refused_block_ends() {
        let (pending, class) = pending();
        let n_kept = (0..).take_while(|&n| pending.put(class, block(n)).is_ok()).count();
        pending.backlog.release(n_kept * class.bytes());
        assert!(pending.fall_asleep());
        assert!(matches!(pending.put(class, block(n_kept)), Err(Refused::WasAsleep(_))));
        assert!(!pending.is_asleep());
        assert!(matches!(pending.put(class, block(n_kept)), Err(Refused::Queue(_))));
    }

    /// Seen to fail where it was nowhere meanwhile.
    #[test]
    fn a_block_that_is_being_cleared_waits() {
        let (pending, class) = pending();
        assert!(pending.put(class, block(0)).is_ok());
        (0..2).for_each(|_| assert_eq!(pending.surplus(class), 0));
        assert!(matches!(pending.take_cleared(class, 1), Taken::Nothing));
        let mut was_cleared = false;
        pending.clear_one(class, |_| {
            was_cleared = true;
            assert_eq!(pending.len(class), 1);
            assert!(matches!(pending.take_cleared(class, 1), Taken::Nothing));
        });
        assert!(was_cleared);
        assert_eq!(pending.len(class), 1);
        assert!(matches!(pending.take_cleared(class, 1), Taken::Fitting(_)));
        assert_eq!((pending.len(class), pending.bytes()), (0, 0));
    }

    /// Seen to fail where a class with nothing but a place in a slot is taken out, and where `put` does not say that there
    /// is a block.
    #[test]
    fn classes_are_looked_into_where_blocks_may_wait() {
        let (pending, class) = pending();
        let looked_into = || pending.classes_near(Class::from_index(1)).count() == 1;
        assert!(!looked_into());
        for n in 0..2 {
            assert!(pending.put(class, block(n)).is_ok());
            assert!(looked_into() && pending.pay_back(class).is_some());
            assert!(looked_into() && pending.pay_back(class).is_none() && !looked_into());
        }
        // What is put where one was taken back says nothing.
        assert!(pending.put(class, block(2)).is_ok());
        assert!(matches!(pending.take(class, 1), Taken::Fitting(_)));
        assert!(pending.pay_back(class).is_none() && looked_into());
        assert!(pending.put(class, block(2)).is_ok());
        assert!(looked_into() && pending.pay_back(class).is_some());
        // Neither a huge one nor one that is much larger is for a small block.
        for index in [class.index() + 40, super::CLASSES - 1] {
            let class = Class::from_index(index);
            pending.prepare(class);
            assert!(pending.put(class, block(3)).is_ok());
        }
        pending.pay_back(class);
        assert!(!looked_into());
    }

    /// Seen to fail with one time in place of two, and with what is not taken back kept too.
    #[test]
    fn sizes_in_use_are_not_left_behind() {
        let (pending, class) = pending();
        (0..3).for_each(|n| assert!(pending.put(class, block(n)).is_ok()));
        assert_eq!(pending.left_behind(class), 3);
        let Taken::Fitting(taken) = pending.take(class, 1) else { panic!() };
        assert!(pending.put(class, taken).is_ok());
        assert_eq!([0; 3].map(|_| pending.left_behind(class)), [2, 2, 3]);
    }
}
