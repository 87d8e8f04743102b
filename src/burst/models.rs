//! Models of logs, their drainer, and the pool, see `sync`. A chunk has two slots here.

use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;
use std::ops::ControlFlow;
use std::ptr;
use std::rc::Rc;

use super::local::Local;
use super::log::Log;
use super::pool::{Cursor, Pool};
use super::{BURSTS, HowMuch, SLAB_BYTES, Written};
use crate::lifecycle::models::as_forked_child;
use crate::sync::atomic::{AtomicBool, Ordering};
use crate::sync::{Plain, check, thread};

static LOG: Log = Log::new();
static POOL: Pool = Pool::new();

const BASE: usize = 0x7f00_0000_0000;
const BLOCK_BYTES: usize = 5;

fn block(i: usize) -> *mut u8 {
    ptr::without_provenance_mut(BASE + 8 * i)
}

fn number(block: *mut u8) -> usize {
    (block.addr() - BASE) / 8
}

/// What the program and the allocator do to blocks.
#[derive(Clone)]
struct Blocks(Rc<Vec<Plain>>);

impl Blocks {
    fn new(n: usize) -> Blocks {
        Blocks(Rc::new((0..n).map(|_| Plain::new()).collect()))
    }

    fn touch(&self, block: *mut u8) {
        self.0[number(block)].write();
    }
}

/// A thread that writes to `LOG`, which it holds.
struct Writer {
    blocks: Blocks,
    cursor: Cursor,
}

impl Writer {
    fn new(blocks: &Blocks) -> Writer {
        Writer { blocks: blocks.clone(), cursor: Cursor::NOWHERE }
    }

    fn write(&mut self, i: usize) {
        self.blocks.touch(block(i));
        let entry = LOG.write(&POOL, self.cursor, block(i), BLOCK_BYTES, |_| true).unwrap();
        self.cursor = entry.cursor;
    }
}

/// Empties `LOG` if nobody else does; what there was.
fn empty(blocks: &Blocks, front: &Plain) -> Vec<usize> {
    let mut taken = Vec::new();
    if let Some(mut emptying) = LOG.try_empty() {
        front.write();
        while let Some(run) = emptying.next(&POOL) {
            let mut take = |block| {
                blocks.touch(block);
                taken.push(number(block));
            };
            run.chunk.each_block(run.slots, |_| (), &mut take);
        }
        front.write();
    }
    taken
}

/// A thread writes over several chunks while the drainer takes what there is, twice.
///
/// Seen to fail with Relaxed where a slot is stored and where it is read, and where `next` is looked at after the slots.
#[test]
fn blocks_come_out_once_and_in_order() {
    const N: usize = 5;
    check(Some(3), 64, || {
        let (blocks, front) = (Blocks::new(N), Rc::new(Plain::new()));
        assert!(LOG.try_hold());
        let drainer = thread::spawn({
            let (blocks, front) = (blocks.clone(), front.clone());
            move || [empty(&blocks, &front), empty(&blocks, &front)].concat()
        });
        let mut writer = Writer::new(&blocks);
        (0..N).for_each(|i| writer.write(i));
        let mut taken = drainer.join();
        assert_eq!(LOG.n_waiting(writer.cursor) as usize, N - taken.len());
        taken.extend(empty(&blocks, &front));
        assert_eq!(taken, (0..N).collect::<Vec<_>>());
        assert_eq!((LOG.written(&POOL), LOG.taken()), (LOG.taken(), LOG.written(&POOL)));
        LOG.let_go();
        assert!(empty(&blocks, &front).is_empty());
        assert!(POOL.n_used() == 0 && LOG.try_hold());
    });
}

/// The same where the thread takes its own back.
///
/// Seen to fail with Relaxed where a slot is stored and where it is read, and where `next` is looked at after the slots.
#[test]
fn one_at_a_time_empties_a_log() {
    const N: usize = 4;
    check(Some(3), 64, || {
        let (blocks, front) = (Blocks::new(N), Rc::new(Plain::new()));
        assert!(LOG.try_hold());
        let drainer = thread::spawn({
            let (blocks, front) = (blocks.clone(), front.clone());
            move || empty(&blocks, &front)
        });
        let mut writer = Writer::new(&blocks);
        let mut taken = Vec::new();
        for i in 0..N {
            writer.write(i);
            if i > 0 {
                taken.extend(empty(&blocks, &front));
            }
        }
        taken.extend(drainer.join());
        taken.extend(empty(&blocks, &front));
        taken.sort_unstable();
        assert_eq!(taken, (0..N).collect::<Vec<_>>());
        LOG.let_go();
        assert!(empty(&blocks, &front).is_empty());
        assert_eq!(POOL.n_used(), 0);
    });
}

/// A thread ends, another one wants its log, and the drainer takes what the first one left.
///
/// Seen to fail where `try_hold` does not look at `head`, and where `next` looks at `held` after the slots.
#[test]
fn one_at_a_time_holds_a_log() {
    check(Some(3), 64, || {
        let (blocks, front) = (Blocks::new(3), Rc::new(Plain::new()));
        let holder = Rc::new(Plain::new());
        let write = |numbers: &'static [usize], blocks: &Blocks, holder: &Plain| {
            let holds = LOG.try_hold();
            if holds {
                holder.write();
                let mut writer = Writer::new(blocks);
                numbers.iter().for_each(|&i| writer.write(i));
                holder.write();
                LOG.let_go();
            }
            holds
        };
        assert!(LOG.try_hold());
        holder.write();
        let next = thread::spawn({
            let (blocks, holder) = (blocks.clone(), holder.clone());
            move || write(&[2], &blocks, &holder)
        });
        let drainer = thread::spawn({
            let (blocks, front) = (blocks.clone(), front.clone());
            move || [empty(&blocks, &front), empty(&blocks, &front)].concat()
        });
        let mut writer = Writer::new(&blocks);
        (0..2).for_each(|i| writer.write(i));
        holder.write();
        LOG.let_go();
        let n_written = if next.join() { 3 } else { 2 };
        let mut taken = drainer.join();
        taken.extend(empty(&blocks, &front));
        assert_eq!(taken, (0..n_written).collect::<Vec<_>>());
        assert!(POOL.n_used() == 0 && LOG.try_hold());
        assert_eq!((LOG.written(&POOL), LOG.taken()), (LOG.taken(), LOG.written(&POOL)));
    });
}

/// What a thread knows of itself. Loom's threads are one to the thread-locals.
fn local() -> Box<Local> {
    // SAFETY: all zero bytes are a valid value.
    unsafe { Box::new(std::mem::MaybeUninit::<Local>::zeroed().assume_init()) }
}

fn write(local: &Local, i: usize) -> Written {
    BURSTS.write(local, block(i), BLOCK_BYTES, |_| true)
}

/// As the drainer, which asks whether to `go_on` with what it has freed so far; all that it has freed.
fn drain(blocks: &Blocks, go_on: &dyn Fn(&[usize]) -> ControlFlow<()>) -> Vec<usize> {
    let freed = RefCell::new(Vec::new());
    let mut free = |block: *mut u8| {
        blocks.touch(block);
        freed.borrow_mut().push(number(block));
    };
    let _ = BURSTS.drain(true, &mut free, &mut || go_on(&freed.borrow()));
    freed.into_inner()
}

fn go_on(_: &[usize]) -> ControlFlow<()> {
    ControlFlow::Continue(())
}

/// Writing down, taking back, and the drainer, by the whole process's logs: the counts and the bound add up too.
///
/// Seen to fail where a chunk that is taken back keeps its grant, where a chunk that is left behind is not counted, and
/// where `head_bytes` does not begin anew with a chunk.
#[test]
fn all_is_accounted_for() {
    const N: usize = 4;
    check(Some(2), 256, || {
        assert!(BURSTS.claim(64, 0));
        let blocks = Blocks::new(N);
        let drainer = thread::spawn({
            let blocks = blocks.clone();
            move || drain(&blocks, &go_on)
        });
        let (local, mut own) = (local(), Vec::new());
        for i in 0..N {
            blocks.touch(block(i));
            assert_ne!(write(&local, i), Written::No);
            if i == 2 {
                BURSTS.take_back(&local, HowMuch::Chunk, |block| {
                    blocks.touch(block);
                    own.push(number(block));
                });
            }
        }
        let n_own = own.len() as u64;
        let mut all = drainer.join();
        all.extend(own);
        all.extend(drain(&blocks, &go_on));
        all.sort_unstable();
        assert_eq!(all, (0..N).collect::<Vec<_>>());
        let stats = BURSTS.stats();
        assert_eq!((stats.deferred.blocks, stats.paid_back.blocks), (N as u64, n_own));
        assert_eq!(stats.drained.blocks, N as u64 - n_own);
        assert_eq!((stats.pending.bytes, BURSTS.bytes()), (0, 0));
        assert_eq!(stats.deferred.bytes, (N * BLOCK_BYTES) as u64);
    });
}

/// The process is forked while the drainer is at a log, between two of its chunks, or when it is done. The child
/// frees what the parent's drainer had not, and as much may wait as before.
///
/// Seen to fail where `emptying` or `held` stays as it was, where the bytes that wait are not told from the chunks that
/// there are, where the child's drainer does not look for what the parent's had sorted, and where any allocator may claim.
#[test]
fn a_forked_child_finds_what_was_not_freed() {
    const N: usize = 5;
    static IS_FORKING: AtomicBool = AtomicBool::new(false);
    fn be_the_child(blocks: &Blocks, freed: &[usize]) {
        as_forked_child();
        assert!(!BURSTS.can_be_claimed(0) && !BURSTS.claim(128, 0), "another allocator");
        assert!(BURSTS.can_be_claimed(64) && BURSTS.claim(192, 64));
        BURSTS.note_started(192);
        let mut all = [drain(blocks, &go_on), freed.to_vec()].concat();
        all.sort_unstable();
        assert_eq!(all, (0..N).collect::<Vec<_>>());
        assert_eq!((BURSTS.pool.n_used(), BURSTS.bytes()), (0, 0));
        assert!(BURSTS.logs.own[0].try_hold());
    }
    check(Some(2), 256, || {
        assert!(BURSTS.claim(64, 0));
        let (blocks, local) = (Blocks::new(N), local());
        for i in 0..N {
            blocks.touch(block(i));
            assert_ne!(write(&local, i), Written::No);
        }
        let drainer = thread::spawn({
            let blocks = blocks.clone();
            move || {
                let has_forked = Cell::new(false);
                // Where the drainer gives way the fork finds it, with all that it holds.
                let give_way = |freed: &[usize]| {
                    if !IS_FORKING.load(Ordering::Relaxed) {
                        return ControlFlow::Continue(());
                    }
                    has_forked.set(true);
                    be_the_child(&blocks, freed);
                    ControlFlow::Break(())
                };
                let freed = drain(&blocks, &give_way);
                if !has_forked.get() {
                    be_the_child(&blocks, &freed);
                }
            }
        });
        IS_FORKING.store(true, Ordering::Relaxed);
        drainer.join();
    });
}

/// The drainer falls asleep while a thread writes, as in `drainer`: `IS_ASLEEP` is D1 and F2, less ordered. If it
/// sleeps in the end, no write was to wake it, and the next one is. If not, it can sleep once the thread is quiet.
fn sleep_while(n_before: usize, write_on: fn(&Local) -> bool) {
    check(None, 128, move || {
        let local = local();
        // It has a log, with nothing in it.
        (0..n_before).for_each(|i| _ = write(&local, i));
        assert_eq!(BURSTS.take_back(&local, HowMuch::All, |_| ()), n_before);
        let drainer = thread::spawn(|| {
            if BURSTS.close() {
                IS_ASLEEP.store(true, Ordering::Relaxed);
                if !BURSTS.is_closed() {
                    IS_ASLEEP.store(false, Ordering::Relaxed);
                }
            }
        });
        let opened = write_on(&local);
        drainer.join();
        if IS_ASLEEP.load(Ordering::Relaxed) {
            assert!(!opened, "a wake-up was lost");
            // One that was just under way has been missed.
            BURSTS.take_back(&local, HowMuch::All, |_| ());
            assert!(BURSTS.logs.iter().all(|log| log.is_closed(&BURSTS.pool)));
            assert!(write_and_wake(&local, 4) && !IS_ASLEEP.load(Ordering::Relaxed));
        } else {
            BURSTS.take_back(&local, HowMuch::All, |_| ());
            assert!(
                BURSTS.close() && BURSTS.is_closed(),
                "nothing is to keep it from sleeping now"
            );
        }
    });
}

/// A fork finds a thread that takes its own back, from one chunk to the next: what it has taken is never found again.
///
/// Seen to fail where the slot goes to 0 before there is the next chunk, and with Relaxed there.
#[test]
fn what_was_taken_is_not_found_in_a_forked_child() {
    const N: usize = 4;
    check(Some(3), 64, || {
        let blocks = Blocks::new(N);
        assert!(LOG.try_hold());
        let mut writer = Writer::new(&blocks);
        (0..N).for_each(|i| writer.write(i));
        let mut emptying = LOG.try_empty().unwrap();
        let first = emptying.next(&POOL).unwrap();
        assert_eq!(first.n_blocks(), 2);
        let (slot, first) = LOG.slot_and_head();
        assert_eq!(slot, 2);
        let fork = thread::spawn(move || {
            let (slot, head) = LOG.slot_and_head();
            assert!(slot == 2 || head != first);
        });
        assert_eq!(emptying.next(&POOL).unwrap().n_blocks(), 2);
        fork.join();
    });
}

static IS_ASLEEP: AtomicBool = AtomicBool::new(false);

/// As a thread does; whether it opened the log.
fn write_and_wake(local: &Local, i: usize) -> bool {
    let opened = write(local, i) == Written::Opened;
    if opened {
        BURSTS.fence_before_wake();
        let relaxed = Ordering::Relaxed;
        _ = IS_ASLEEP.compare_exchange(true, false, relaxed, relaxed);
    }
    opened
}

/// Seen to fail without the one fence or the other, where a chunk that is opened or begun is not told of, where `close`
/// does nothing, and where `is_closed` does not look for blocks.
#[test]
fn a_write_that_opens_a_log_ends_the_sleep() {
    // There is a slot left in its chunk, or none.
    for n_before in [1, 2] {
        sleep_while(n_before, |local| write_and_wake(local, 3));
    }
}

/// What opened the log is gone again when the drainer looks.
///
/// Seen to fail where `is_closed` looks for blocks alone.
#[test]
fn so_it_does_if_it_is_taken_back() {
    sleep_while(2, |local| {
        write_and_wake(local, 3);
        BURSTS.take_back(local, HowMuch::All, |_| ());
        // The drainer may have closed the log only after that.
        false
    });
}

/// More threads than there are logs hold one each, while the drainer goes through all that there are.
///
/// Seen to fail where `grow` looks and stores instead of exchanging, and with Relaxed in it.
#[test]
fn each_thread_has_a_log() {
    check(Some(2), 1024, || {
        let hold = || ptr::from_ref(BURSTS.logs.hold().unwrap()).addr();
        let n_slab = SLAB_BYTES / size_of::<Log>();
        let mut held = vec![hold(), hold()];
        let n_own = held.len();
        assert_eq!(BURSTS.logs.iter().count(), n_own);
        let drainer = thread::spawn(move || {
            let n_more = BURSTS.logs.iter().count() - n_own;
            assert_eq!(n_more % n_slab, 0);
        });
        let other = thread::spawn(hold);
        held.extend([hold(), other.join()]);
        drainer.join();
        let is_held = |log: &&Log| log.is_held();
        let found = BURSTS.logs.iter().filter(is_held).map(|log| ptr::from_ref(log).addr());
        let found: BTreeSet<usize> = found.collect();
        assert_eq!(found.len(), held.len());
        assert_eq!(found, held.into_iter().collect());
    });
}

/// Seen to fail where `take` stores the bit instead of exchanging the word, and with Relaxed in `give_back`.
#[test]
fn a_chunk_has_one_owner() {
    check(Some(3), 32, || {
        let chunks = Rc::new([(); 4].map(|()| Plain::new()));
        let own = |chunks: Rc<[Plain; 4]>| {
            for _ in 0..2 {
                let index = POOL.take().unwrap();
                chunks[index as usize].write();
                POOL.give_back(index, 0);
            }
            POOL.take().unwrap()
        };
        let other = thread::spawn({
            let chunks = chunks.clone();
            move || own(chunks)
        });
        let mine = own(chunks);
        assert_ne!(mine, other.join());
        assert_eq!(POOL.n_used(), 2);
    });
}

/// The pool returns memory while chunks of it are taken and given back.
///
/// Seen to fail where `purge` looks whether all chunks are unused but does not claim them.
#[test]
fn no_chunk_is_purged_while_it_is_owned() {
    check(Some(3), 32, || {
        // The first 64 are never purged; one of the others was used.
        (0..65).for_each(|_| _ = POOL.take());
        POOL.give_back(64, 0);
        let purge = thread::spawn(|| POOL.purge());
        let other = thread::spawn(|| POOL.take());
        let mine = POOL.take();
        purge.join();
        let taken = [mine, other.join()];
        let mut found: Vec<u32> = taken.into_iter().flatten().collect();
        found.extend(std::iter::from_fn(|| POOL.take()).take(1));
        let n = found.len();
        found.sort_unstable();
        found.dedup();
        assert_eq!(found.len(), n);
        assert_eq!(POOL.n_used(), 64 + n);
    });
}
