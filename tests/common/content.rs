//! Random sequences of everything that an allocator can be asked for, checked against a shadow map of the
//! live blocks. Shared by `content.rs`, which goes by a seed, and `fuzz/`, which goes by a fuzzer's bytes.

use std::alloc::{GlobalAlloc, Layout};
use std::collections::BTreeMap;

use deferfree::{Backing, DeferFree};

use super::{Mutex, shuffle};

const MIB: usize = 1 << 20;

/// Threads of a run.
pub(crate) const THREADS: u64 = 4;

/// What decides the next operation.
pub(crate) enum Choices<'a> {
    /// SplitMix64 from a seed.
    Seeded(u64),
    /// What a fuzzer came up with; zeros once it is used up.
    Bytes(&'a [u8]),
}

impl Choices<'_> {
    pub(crate) fn next(&mut self) -> u64 {
        match self {
            Choices::Seeded(state) => {
                *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
                let mut z = *state;
                z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
                z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
                z ^ (z >> 31)
            }
            Choices::Bytes(bytes) => {
                let Some((first, rest)) = bytes.split_at_checked(3) else { return 0 };
                *bytes = rest;
                first.iter().fold(0, |number, &byte| number << 8 | u64::from(byte))
            }
        }
    }

    /// Whether there is nothing left to decide by.
    pub(crate) fn is_used_up(&self) -> bool {
        matches!(self, Choices::Bytes(bytes) if bytes.len() < 3)
    }

    pub(crate) fn below(&mut self, n: usize) -> usize {
        (self.next() % n as u64) as usize
    }

    /// 1 byte to 8 MiB, mostly next to a boundary, and large ones seldom.
    fn size(&mut self, threshold: usize) -> usize {
        let size = match self.below(20) {
            0..4 => 1 + self.below(threshold),
            4..9 => threshold - 2 + self.below(5),
            9..15 => {
                let doubling = threshold << self.below(5);
                // The edge of a class, or one off.
                doubling + doubling / 16 * self.below(17) + self.below(3) - 1
            }
            15..19 => threshold * (1 + self.below(16)) + self.below(4096),
            _ => 1 + self.below(8 * MIB),
        };
        size.clamp(1, 8 * MIB)
    }

    fn align(&mut self) -> usize {
        match self.below(10) {
            0..6 => 1 << self.below(5),
            6..9 => 1 << self.below(13),
            _ => 1 << self.below(22),
        }
    }
}

pub(crate) struct Block {
    address: usize,
    layout: Layout,
    cookie: u8,
}

impl Block {
    fn ptr(&self) -> *mut u8 {
        std::ptr::with_exposed_provenance_mut(self.address)
    }

    /// The bytes that are looked at: all of a small block, the ends, the middle and one of each page
    /// of a large one.
    fn places(size: usize) -> impl Iterator<Item = usize> {
        let step = if size <= 256 { 1 } else { 4096 };
        let ends = [0, 1, 7, 8, size / 2, size.saturating_sub(9), size.saturating_sub(2), size - 1];
        ends.into_iter().filter(move |&at| at < size).chain((0..size).step_by(step))
    }

    fn expected(&self, at: usize) -> u8 {
        self.cookie ^ (at as u8) ^ ((at >> 12) as u8)
    }

    fn write(&self) {
        for at in Self::places(self.layout.size()) {
            // SAFETY: within the live block.
            unsafe { self.ptr().add(at).write(self.expected(at)) };
        }
    }

    fn check(&self, len: usize, what: &str) {
        for at in Self::places(self.layout.size()).filter(|&at| at < len) {
            // SAFETY: within the live block, written by `write`.
            let found = unsafe { self.ptr().add(at).read() };
            assert_eq!(found, self.expected(at), "{what}: byte {at} of {:?}", self.layout);
        }
    }
}

/// Start and end of every live block of all threads.
#[derive(Default)]
pub(crate) struct Shadow(Mutex<BTreeMap<usize, usize>>);

impl Shadow {
    fn insert(&self, block: &Block) {
        let (start, end) = (block.address, block.address + block.layout.size());
        let mut live = self.0.lock();
        if let Some((&other, &other_end)) = live.range(..end).next_back() {
            assert!(other_end <= start, "{:?} overlaps {other:x}..{other_end:x}", block.layout);
        }
        live.insert(start, end);
    }

    fn remove(&self, block: &Block) {
        let end = self.0.lock().remove(&block.address);
        assert_eq!(end, Some(block.address + block.layout.size()));
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.lock().is_empty()
    }
}

/// One thread's part.
pub(crate) struct Worker<'a, B: Backing> {
    heap: &'a DeferFree<B>,
    threshold: usize,
    choices: Choices<'a>,
    shadow: &'a Shadow,
    /// Blocks on their way to another thread.
    passed: &'a Mutex<Vec<Block>>,
    held: Vec<Block>,
}

impl<'a, B: Backing> Worker<'a, B> {
    pub(crate) fn new(
        heap: &'a DeferFree<B>,
        choices: Choices<'a>,
        shadow: &'a Shadow,
        passed: &'a Mutex<Vec<Block>>,
    ) -> Self {
        let threshold = heap.config().threshold_bytes;
        Worker { heap, threshold, choices, shadow, passed, held: Vec::new() }
    }

    /// What becomes of this one in a forked child: it goes on with its own blocks, and has seen no others. What the
    /// parent's threads share may be locked for ever.
    pub(crate) fn forked<'b>(
        &mut self,
        shadow: &'b Shadow,
        passed: &'b Mutex<Vec<Block>>,
    ) -> Worker<'b, B>
    where
        'a: 'b,
    {
        let held = std::mem::take(&mut self.held);
        held.iter().for_each(|block| shadow.insert(block));
        let choices = Choices::Seeded(self.choices.next());
        Worker { heap: self.heap, threshold: self.threshold, choices, shadow, passed, held }
    }

    /// Whether there is nothing left to decide by.
    pub(crate) fn is_done(&self) -> bool {
        self.choices.is_used_up()
    }

    /// One operation.
    pub(crate) fn step(&mut self) {
        match self.choices.below(16) {
            0..6 => self.alloc(),
            6..9 => self.realloc(),
            9..13 => self.free(),
            13 => {
                if let Some(block) = self.pick() {
                    self.passed.lock().push(block);
                }
            }
            14 => self.held.extend(self.passed.lock().pop()),
            15 if self.choices.below(16) == 0 => self.burst(),
            _ => {
                // Some frees in a row, or now and then a flush in the midst of it.
                while self.held.len() > 4 {
                    self.free();
                }
                if self.choices.below(8) == 0 {
                    self.heap.flush();
                }
            }
        }
        if self.held.len() > 40 {
            self.free();
        }
    }

    fn pick(&mut self) -> Option<Block> {
        if self.held.is_empty() {
            return None;
        }
        let at = self.choices.below(self.held.len());
        Some(self.held.swap_remove(at))
    }

    fn keep(&mut self, ptr: *mut u8, layout: Layout) {
        assert!(!ptr.is_null(), "{layout:?}");
        assert_eq!(ptr.addr() % layout.align(), 0, "{layout:?}");
        let cookie = self.choices.next() as u8;
        let block = Block { address: ptr.expose_provenance(), layout, cookie };
        self.shadow.insert(&block);
        block.write();
        self.held.push(block);
    }

    fn alloc(&mut self) {
        let size = self.choices.size(self.threshold);
        let layout = Layout::from_size_align(size, self.choices.align()).unwrap();
        let zeroed = self.choices.below(3) == 0;
        // SAFETY: a valid layout that is not empty.
        let ptr = unsafe {
            if zeroed { self.heap.alloc_zeroed(layout) } else { self.heap.alloc(layout) }
        };
        if zeroed {
            for at in Block::places(size) {
                // SAFETY: within the block, which is initialised.
                assert_eq!(unsafe { ptr.add(at).read() }, 0, "zeroed: byte {at} of {layout:?}");
            }
        }
        self.keep(ptr, layout);
    }

    fn realloc(&mut self) {
        let Some(block) = self.pick() else { return };
        block.check(usize::MAX, "before realloc");
        let size = match self.choices.below(3) {
            0 => self.choices.size(self.threshold),
            1 => (block.layout.size() * 2).min(8 * MIB),
            _ => (block.layout.size() / 2 + self.choices.below(3)).max(1),
        };
        self.shadow.remove(&block);
        // SAFETY: a live block, its layout, and a size that is not 0.
        let ptr = unsafe { self.heap.realloc(block.ptr(), block.layout, size) };
        assert!(!ptr.is_null(), "{:?} to {size}", block.layout);
        let common = block.layout.size().min(size);
        Block { address: ptr.expose_provenance(), ..block }.check(common, "after realloc");
        self.keep(ptr, Layout::from_size_align(size, block.layout.align()).unwrap());
    }

    fn free(&mut self) {
        if let Some(block) = self.pick() {
            self.free_block(block);
        }
    }

    /// Blocks of one small size, freed in a row and in no order: all of them are deferred, or some.
    fn burst(&mut self) {
        let first = self.held.len();
        let layout = Layout::from_size_align(8 << self.choices.below(8), 8).unwrap();
        let n = 100 + self.choices.below(400);
        for _ in 0..n {
            // SAFETY: a valid layout that is not empty.
            let ptr = unsafe { self.heap.alloc(layout) };
            self.keep(ptr, layout);
        }
        let mut blocks = self.held.split_off(first);
        shuffle(&mut blocks);
        let _scope = (self.choices.below(2) == 0).then(deferfree::defer_scope);
        blocks.into_iter().for_each(|block| self.free_block(block));
    }

    /// Frees what this thread holds, and what was passed on and nobody took.
    pub(crate) fn finish(mut self) {
        while let Some(block) = self.held.pop().or_else(|| self.passed.lock().pop()) {
            self.free_block(block);
        }
    }

    fn free_block(&self, block: Block) {
        block.check(usize::MAX, "before free");
        self.shadow.remove(&block);
        // SAFETY: a live block and its layout.
        unsafe { self.heap.dealloc(block.ptr(), block.layout) };
    }
}
