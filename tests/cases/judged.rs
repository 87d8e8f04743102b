//! Which bursts are deferred: none where frees and allocations take turns, those of blocks that cost something to
//! touch, and, of these, not the ones after which the thread wanted the memory at once.
//!
//! The blocks are addresses of which the test says what it costs to touch them, and the drainer is held up where it
//! must not be faster than the thread. Each case in a child process under a watchdog.
//!
//! Seen to fail: where no burst is skipped, `skipped`, `forgiven` and `threads_that_end`; with all blocks taken for cold,
//! `hot` and `forgiven`; where that is not asked, `left_over`.

use crate::common;

use std::alloc::{GlobalAlloc, Layout};
use std::mem::take;
use std::process::ExitCode;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use common::addresses::Addresses;
use common::{TINY, drainers, rounds, run_child, wait_until};
use deferfree::{BurstStats, DeferFree};

type Heap = DeferFree<&'static Addresses>;

pub(crate) fn main() -> ExitCode {
    match common::child_case().as_deref() {
        None => {
            return common::run(&[
                ("pairs", || run("pairs", "128")),
                ("short", || run("short", "128")),
                ("cold", || run("cold", "128")),
                ("early", || run("early", "128")),
                ("hot", || run("hot", "128")),
                ("left_over", || run("left_over", "128")),
                ("turns_cold", || run("turns_cold", "128")),
                ("allocations_now_and_then", || run("allocations_now_and_then", "128")),
                ("pairs_inside_a_burst", || run("pairs_inside_a_burst", "128")),
                ("at_work_now_and_then", || run("at_work_now_and_then", "128")),
                ("taken_back", || run("taken_back", "128")),
                ("taken_back_in_parts", || run("taken_back_in_parts", "128")),
                ("wanted_in_part", || run("wanted_in_part", "128")),
                ("wanted_while_drained", || run("wanted_while_drained", "128")),
                ("skipped", || run("skipped", "128")),
                ("forgiven", || run("forgiven", "128")),
                ("forgiven_where_it_says_so", || run("forgiven_where_it_says_so", "128")),
                ("forgiven_without_allocations", || run("forgiven_without_allocations", "128")),
                ("goes_on_later", || run("goes_on_later", "128")),
                ("threads_that_end", || run("threads_that_end", "128")),
                ("many_threads", || run("many_threads", "128")),
                ("begins_late", || run("begins_late", "6400")),
                ("one_cpu", one_cpu),
            ]);
        }
        Some("pairs") => pairs(),
        Some("short") => short(),
        Some("cold") => cold(),
        Some("early") => early(),
        Some("hot") => hot(),
        Some("left_over") => left_over(),
        Some("turns_cold") => turns_cold(),
        Some("allocations_now_and_then") => allocations_now_and_then(),
        Some("pairs_inside_a_burst") => pairs_inside_a_burst(),
        Some("at_work_now_and_then") => at_work_now_and_then(),
        Some("taken_back") => taken_back(),
        Some("taken_back_in_parts") => taken_back_in_parts(),
        Some("wanted_in_part") => wanted_in_part(),
        Some("wanted_while_drained") => wanted_while_drained(),
        Some("skipped") => skipped(),
        Some("forgiven") => forgiven(),
        Some("forgiven_where_it_says_so") => forgiven_where_it_says_so(),
        Some("forgiven_without_allocations") => forgiven_without_allocations(),
        Some("goes_on_later") => goes_on_later(),
        Some("threads_that_end") => threads_that_end(),
        Some("many_threads") => many_threads(),
        Some("begins_late") => begins_late(),
        Some("one_cpu") => one_cpu_child(),
        Some(case) => panic!("{case}"),
    }
    ExitCode::SUCCESS
}

/// Bursts begin after about so many frees.
fn run(case: &str, burst: &str) {
    run_child(case, &[("DEFERFREE_BURST", burst)], 60).expect_clean();
}

const SMALL: Layout = Layout::new::<[u64; 6]>();

/// Frees in a row within which a burst has begun, and has been judged. It begins with the third one that looks,
/// which one in 64 does by chance: that it has not within so many happens once in ten million times.
const BEGUN: usize = 1500;
/// Blocks of a burst, most of which are deferred. All chunks have room for them, and for as many that the drainer sorts.
const MANY: usize = if TINY { 3000 } else { 50_000 };
/// Blocks that are judged.
const JUDGED: usize = 128;
/// A younger thread starts no drainer for a burst.
const OLD: Duration = Duration::from_millis(if TINY { 0 } else { 41 });

/// One that is new to the calling thread.
fn new_heap(cold: bool) -> (&'static Heap, &'static Addresses) {
    let book = Addresses::leak();
    book.are_cold(cold);
    (Box::leak(Box::new(DeferFree::with_backing(book))), book)
}

/// One that the calling thread has used for so long that a burst may start a drainer.
fn heap(cold: bool) -> (&'static Heap, &'static Addresses) {
    let (heap, book) = new_heap(cold);
    free(heap, alloc(heap));
    thread::sleep(OLD);
    (heap, book)
}

fn alloc(heap: &Heap) -> usize {
    // SAFETY: a valid layout.
    unsafe { heap.alloc(SMALL) }.addr()
}

fn allocs(heap: &Heap, n: usize) -> Vec<usize> {
    (0..n).map(|_| alloc(heap)).collect()
}

fn free(heap: &Heap, block: usize) {
    // SAFETY: from `alloc`, freed once.
    unsafe { heap.dealloc(std::ptr::with_exposed_provenance_mut(block), SMALL) };
}

fn frees(heap: &Heap, blocks: Vec<usize>) {
    blocks.into_iter().for_each(|block| free(heap, block));
}

fn bursts(heap: &Heap) -> BurstStats {
    heap.stats().bursts
}

/// Nothing is left, and all that was deferred has been freed once.
fn nothing_is_left(heap: &Heap, book: &Addresses) {
    heap.flush();
    let bursts = bursts(heap);
    assert_eq!((book.n_live(), bursts.pending.blocks), (0, 0), "{bursts:?}");
    assert_eq!(bursts.deferred.blocks, bursts.drained.blocks + bursts.paid_back.blocks);
    assert_eq!(bursts.deferred.bytes, bursts.drained.bytes + bursts.paid_back.bytes);
    assert_eq!(bursts.deferred.bytes, bursts.deferred.blocks * SMALL.size() as u64);
}

/// Frees and allocations that take turns, with up to two frees in a row, are no burst however many they are.
fn pairs() {
    let (heap, book) = heap(true);
    let mut kept = allocs(heap, 1000);
    for n in 0..300_000 {
        for _ in 0..n % 3 {
            free(heap, kept.swap_remove(n * 7919 % kept.len()));
        }
        kept.extend(allocs(heap, n % 3));
    }
    assert_eq!((bursts(heap).deferred.blocks, drainers()), (0, Vec::new()));
    assert_eq!((book.n_live(), book.n_touched()), (1000, 0));
}

/// Bursts that are too short to be judged: after three of them the next one has to be longer.
fn short() {
    let (heap, book) = heap(true);
    for _ in 0..2000 {
        frees(heap, allocs(heap, 100));
    }
    let n_deferred = bursts(heap).deferred.blocks;
    assert!(n_deferred > 0 && n_deferred <= 3 * 100, "{n_deferred}");
    assert_eq!((book.n_live(), book.n_touched()), (0, 0));
    let blocks = allocs(heap, MANY);
    frees(heap, blocks);
    assert_eq!(bursts(heap).deferred_bursts, 1);
    // Sixteen looks, each by one free in 64.
    let expected = MANY as u64 - 2 * 16 * 64;
    assert!(bursts(heap).deferred.blocks - n_deferred > expected, "{:?}", bursts(heap));
    // From one that was judged on it takes as many as before.
    heap.flush();
    frees(heap, allocs(heap, BEGUN + JUDGED));
    assert_eq!(bursts(heap).deferred_bursts, 2);
    nothing_is_left(heap, book);
}

/// All but the first blocks are left to the drainer, which frees them without being told.
fn cold() {
    let (heap, book) = heap(true);
    for round in 1..=5 {
        frees(heap, allocs(heap, MANY));
        wait_until("all are freed", || book.n_live() == 0);
        let bursts = bursts(heap);
        assert!(bursts.deferred.blocks > round * (MANY - BEGUN) as u64, "{bursts:?}");
        assert_eq!((bursts.deferred_bursts, bursts.hot_bursts), (round, 0), "{bursts:?}");
        assert_eq!(book.n_touched() as u64, round * JUDGED as u64);
    }
    let bursts = bursts(heap);
    assert_eq!((bursts.paid_back.blocks, bursts.wasted_bursts), (0, 0), "{bursts:?}");
    nothing_is_left(heap, book);
}

/// For what a process does in its first moments no drainer is started.
fn early() {
    let start = Instant::now();
    let (heap, book) = new_heap(true);
    frees(heap, allocs(heap, MANY));
    if start.elapsed() < OLD {
        assert_eq!((bursts(heap).deferred.blocks, drainers()), (0, Vec::new()));
    }
    thread::sleep(OLD);
    frees(heap, allocs(heap, MANY));
    assert_eq!(bursts(heap).deferred_bursts, 1, "{:?}", bursts(heap));
    nothing_is_left(heap, book);
}

/// They are freed at once, but for those that are judged just when the burst ends.
fn hot() {
    let (heap, book) = heap(false);
    {
        // The threads are too young to start the drainer.
        let _scope = deferfree::defer_scope();
        free(heap, alloc(heap));
    }
    let mut n_hot = 0;
    for _ in 0..10 {
        let blocks = allocs(heap, 50_000);
        let before = bursts(heap);
        // Each thread begins anew.
        thread::spawn(|| frees(heap, blocks)).join().unwrap();
        let now = bursts(heap);
        // Unless the thread was interrupted just when it judged, the first time or again.
        let hot = now.hot_bursts == before.hot_bursts + 1
            && now.deferred_bursts == before.deferred_bursts;
        n_hot += usize::from(hot);
        if hot {
            let deferred = now.deferred.blocks - before.deferred.blocks;
            assert!(deferred >= JUDGED as u64 && deferred <= 50 * JUDGED as u64, "{now:?}");
        }
        heap.flush();
    }
    assert!(n_hot >= 7, "{n_hot} of 10");
    assert!(bursts(heap).paid_back.blocks >= 7 * JUDGED as u64);
    nothing_is_left(heap, book);
}

/// Blocks of pages of which the greater part is gone: freed at once, cold or not, and that says nothing of the next burst.
fn left_over() {
    let (heap, book) = heap(true);
    book.are_left_over(true);
    frees(heap, allocs(heap, MANY));
    let now = bursts(heap);
    let (deferred, hot, skipped) = (now.deferred_bursts, now.hot_bursts, now.skipped_bursts);
    assert_eq!((deferred, hot, skipped), (0, 0, 1), "{now:?}");
    assert!(now.deferred.blocks < MANY as u64 / 2, "{now:?}");
    heap.flush();
    book.are_left_over(false);
    frees(heap, allocs(heap, MANY));
    assert_eq!(bursts(heap).deferred_bursts, 1);
    nothing_is_left(heap, book);
}

/// A long burst is judged again.
fn turns_cold() {
    let (heap, book) = heap(false);
    let blocks = allocs(heap, 200_000);
    let mut n_freed = 0;
    for block in blocks {
        free(heap, block);
        n_freed += 1;
        book.are_cold(book.n_touched() > 0);
        assert!(book.n_touched() > 0 || n_freed < BEGUN);
    }
    let bursts = bursts(heap);
    assert!(bursts.deferred.blocks > MANY as u64, "{bursts:?}");
    // With few chunks a burst may be cut short, and begin once more.
    assert!(bursts.deferred_bursts == 1 || TINY && bursts.deferred_bursts > 0, "{bursts:?}");
    nothing_is_left(heap, book);
}

/// Has the blocks wait, nearly all of them, with the drainer held up; how many do.
fn wait_in_a_burst(heap: &'static Heap, book: &'static Addresses, blocks: Vec<usize>) -> u64 {
    book.hold_drainer(heap, SMALL);
    let (n_live, n) = (book.n_live(), blocks.len());
    frees(heap, blocks);
    let n_waiting = book.n_live() - (n_live - n);
    assert!(n_waiting > n - BEGUN, "{n_waiting} of {n}");
    n_waiting as u64
}

/// They do not end it.
fn allocations_now_and_then() {
    let (heap, book) = heap(true);
    // Together they are no more than can be written down.
    let n_first = MANY - MANY / 5;
    let (mut blocks, mut kept) = (allocs(heap, MANY), Vec::new());
    let rest = blocks.split_off(n_first);
    let n_waiting = wait_in_a_burst(heap, book, blocks);
    for some in rest.chunks(MANY / 50) {
        kept.push(alloc(heap));
        frees(heap, some.to_vec());
    }
    let bursts = bursts(heap);
    // And the one that holds up the drainer.
    assert_eq!(bursts.deferred.blocks, 1 + n_waiting + (MANY - n_first) as u64, "{bursts:?}");
    assert_eq!((bursts.paid_back.blocks, bursts.wasted_bursts), (0, 0), "{bursts:?}");
    frees(heap, kept);
    book.let_go();
    nothing_is_left(heap, book);
}

/// While a burst's blocks wait, the thread's pairs go straight to the allocator after the first few.
fn pairs_inside_a_burst() {
    let (heap, book) = heap(true);
    // Not one for 256 blocks that wait.
    const PAIRS: usize = if TINY { 10 } else { 250 };
    let n_waiting = wait_in_a_burst(heap, book, allocs(heap, 300 * PAIRS));
    (0..PAIRS).for_each(|_| free(heap, alloc(heap)));
    let bursts = bursts(heap);
    assert!(bursts.deferred.blocks < 1 + n_waiting + 32, "{bursts:?}");
    assert_eq!(bursts.paid_back.blocks, 0, "{bursts:?}");
    book.let_go();
    nothing_is_left(heap, book);
}

/// Some pairs a millisecond, as a thread has that draws, do not keep the drainer from the log.
fn at_work_now_and_then() {
    let (heap, book) = heap(true);
    frees(heap, allocs(heap, 100_000));
    let mut n_rounds = 0;
    while book.n_live() > 0 {
        (0..10).for_each(|_| free(heap, alloc(heap)));
        thread::sleep(Duration::from_millis(1));
        n_rounds += 1;
        assert!(n_rounds < 500, "{:?}", bursts(heap));
    }
    assert_eq!(bursts(heap).paid_back.blocks, 0);
    nothing_is_left(heap, book);
}

/// A thread that allocates as if to build anew has its own back, one that allocates a little has not.
fn taken_back() {
    let (heap, book) = heap(true);
    let blocks = allocs(heap, MANY);
    let n_waiting = wait_in_a_burst(heap, book, blocks);
    let mut kept = allocs(heap, n_waiting as usize / 1000);
    assert_eq!(bursts(heap).paid_back.blocks, 0);
    kept.extend(allocs(heap, n_waiting as usize / 4));
    let bursts = bursts(heap);
    assert_eq!((bursts.paid_back.blocks, bursts.wasted_bursts), (n_waiting, 1), "{bursts:?}");
    // And the one that holds up the drainer.
    assert_eq!(book.n_live(), kept.len() + 1);
    frees(heap, kept);
    book.let_go();
    nothing_is_left(heap, book);
}

/// No allocation waits for more than a part of what is taken back.
fn taken_back_in_parts() {
    const PART: u64 = 1024;
    let (heap, book) = heap(true);
    let n_waiting = wait_in_a_burst(heap, book, allocs(heap, MANY));
    let (mut kept, mut before) = (Vec::new(), 0);
    let mut n_parts = 0;
    while before < n_waiting {
        kept.push(alloc(heap));
        assert!(kept.len() < MANY, "{:?}", bursts(heap));
        let now = bursts(heap).paid_back.blocks;
        assert!(now - before <= PART, "{now} {before}");
        n_parts += u64::from(now > before);
        before = now;
    }
    assert!(n_parts >= n_waiting / PART, "{n_parts}");
    assert_eq!(bursts(heap).wasted_bursts, 1);
    frees(heap, kept);
    book.let_go();
    nothing_is_left(heap, book);
}

/// A part was taken back, and the drainer has freed the rest: wasted all the same.
fn wanted_in_part() {
    let (heap, book) = heap(true);
    let n_waiting = wait_in_a_burst(heap, book, allocs(heap, MANY));
    let mut kept = Vec::new();
    while bursts(heap).paid_back.blocks == 0 {
        kept.push(alloc(heap));
    }
    book.let_go();
    wait_until("the rest is freed", || bursts(heap).pending.blocks == 0);
    kept.push(alloc(heap));
    let bursts = bursts(heap);
    assert!(bursts.paid_back.blocks < n_waiting, "{bursts:?}");
    assert_eq!(bursts.wasted_bursts, 1, "{bursts:?}");
    frees(heap, kept);
    nothing_is_left(heap, book);
}

/// The drainer has taken the log when the thread wants the memory: nothing to be had, but the burst was wasted.
fn wanted_while_drained() {
    let (heap, book) = heap(true);
    let blocks = allocs(heap, MANY);
    book.hold_next();
    frees(heap, blocks);
    book.wait_until_held();
    let kept = allocs(heap, 2000);
    let bursts = bursts(heap);
    assert_eq!((bursts.paid_back.blocks, bursts.wasted_bursts), (0, 1), "{bursts:?}");
    frees(heap, kept);
    book.let_go();
    nothing_is_left(heap, book);
}

/// As many as just begin to be a burst, and then their memory is wanted again; how many were deferred.
fn burst_in_a_row(heap: &Heap) -> u64 {
    let before = bursts(heap).deferred_bursts;
    frees(heap, allocs(heap, 2 * BEGUN));
    bursts(heap).deferred_bursts - before
}

/// After a burst that was wasted the next 64 are freed at once.
fn skipped() {
    let (heap, book) = heap(true);
    let in_a_row = |n: usize| (0..n).map(|_| burst_in_a_row(heap)).collect::<Vec<_>>();
    // A thread that is interrupted for a millisecond counts as one that rests, and is forgiven.
    let as_expected = || {
        let before = bursts(heap);
        let expected = in_a_row(1) == [1] && in_a_row(64) == [0; 64] && in_a_row(2) == [1, 0];
        let now = bursts(heap);
        expected
            && now.skipped_bursts - before.skipped_bursts == 64 + 1
            && now.wasted_bursts - before.wasted_bursts == 2
    };
    // On a busy machine that is so in most tries.
    assert!(rounds(400).any(|_| on_a_thread(heap, book, as_expected)), "{:?}", bursts(heap));
    nothing_is_left(heap, book);
}

/// What a thread of its own says, while the drainer is held up.
fn on_a_thread(
    heap: &'static Heap,
    book: &'static Addresses,
    f: impl FnOnce() -> bool + Send,
) -> bool {
    book.hold_drainer(heap, SMALL);
    let said = thread::scope(|scope| scope.spawn(f).join().unwrap());
    // What the thread has left is freed before the next one comes.
    book.let_go();
    heap.flush();
    said
}

/// A thread that rests after a burst that was skipped has the next one deferred, if the last one was wasted. One
/// whose blocks were hot has to wait for its turn.
fn forgiven() {
    let (heap, book) = heap(true);
    book.hold_drainer(heap, SMALL);
    assert_eq!([burst_in_a_row(heap), burst_in_a_row(heap)], [1, 0]);
    thread::sleep(Duration::from_millis(20));
    assert_eq!(burst_in_a_row(heap), 1);
    assert_eq!(bursts(heap).skipped_bursts, 1);
    book.let_go();
    heap.flush();
    book.are_cold(false);
    let hot = || {
        let before = bursts(heap);
        for _ in 0..9 {
            burst_in_a_row(heap);
            thread::sleep(Duration::from_millis(2));
        }
        let now = bursts(heap);
        now.hot_bursts - before.hot_bursts == 1 && now.skipped_bursts - before.skipped_bursts == 8
    };
    // Unless the thread was interrupted just when it judged.
    let mut tries = (0..5).map(|_| thread::scope(|scope| scope.spawn(hot).join().unwrap()));
    assert!(tries.any(|hot| hot), "{:?}", bursts(heap));
    nothing_is_left(heap, book);
}

/// So is one that says that it rests.
fn forgiven_where_it_says_so() {
    let (heap, book) = heap(true);
    book.hold_drainer(heap, SMALL);
    assert_eq!([burst_in_a_row(heap), burst_in_a_row(heap)], [1, 0]);
    heap.thread_idle();
    thread::sleep(Duration::from_millis(20));
    assert_eq!(burst_in_a_row(heap), 1);
    book.let_go();
    nothing_is_left(heap, book);
}

/// So is one that does nothing but free, in the midst of what it drops.
fn forgiven_without_allocations() {
    let (heap, book) = heap(true);
    let as_expected = || {
        let blocks = [(); 2].map(|()| allocs(heap, 40_000));
        let n_deferred = burst_in_a_row(heap);
        // Wasted.
        allocs(heap, 2 * BEGUN);
        let [first, second] = blocks;
        let before = bursts(heap).deferred_bursts;
        frees(heap, first);
        let skipped = bursts(heap).deferred_bursts - before;
        thread::sleep(Duration::from_millis(50));
        frees(heap, second);
        [n_deferred, skipped, bursts(heap).deferred_bursts - before] == [1, 0, 1]
    };
    // As in `skipped`.
    assert!(rounds(100).any(|_| on_a_thread(heap, book, as_expected)), "{:?}", bursts(heap));
}

/// A thread that does nothing but free: what could not be written down for once does not keep it from writing down more.
fn goes_on_later() {
    let book = Addresses::leak();
    book.are_cold(true);
    let heap: &Heap =
        Box::leak(Box::new(DeferFree::with_backing(book).max_pending(3000 * SMALL.size())));
    let mut rest = allocs(heap, 80_000);
    book.hold_drainer(heap, SMALL);
    let mut full = bursts(heap);
    while full.over_bound_blocks + full.no_chunk_blocks == 0 {
        frees(heap, rest.split_off(rest.len() - 16));
        full = bursts(heap);
    }
    // It looks again after some 4096.
    assert!(full.deferred_bursts == 1 && rest.len() > 60_000, "{full:?}");
    book.let_go();
    heap.flush();
    frees(heap, rest);
    let now = bursts(heap);
    assert!(now.deferred.blocks > full.deferred.blocks, "{now:?}");
    nothing_is_left(heap, book);
}

/// A thread that builds, drops and ends frees what it wrote down itself: the next 64 that build free theirs at once.
/// What others have built is deferred all the same, and a thread that rests is forgiven.
fn threads_that_end() {
    // As in `skipped`. What is asked for is kept by the allocator: each try has one of its own.
    assert!(rounds(100).any(|_| threads_that_end_as_expected()));
}

fn threads_that_end_as_expected() -> bool {
    let (heap, book) = heap(true);
    book.tells_of_ends();
    book.hold_drainer(heap, SMALL);
    let n_deferred = |thread: &(dyn Fn() + Sync)| {
        let before = bursts(heap);
        thread::scope(|scope| {
            scope.spawn(|| {
                thread();
                book.end_thread();
            });
        });
        bursts(heap).deferred_bursts - before.deferred_bursts
    };
    let builds = || _ = burst_in_a_row(heap);
    let builders = |n: usize| (0..n).map(|_| n_deferred(&builds)).collect::<Vec<_>>();
    let is_wasted = builders(1) == [1] && bursts(heap).wasted_bursts == 1;
    for _ in 0..3 {
        let blocks = Mutex::new(allocs(heap, 2 * BEGUN));
        assert_eq!(n_deferred(&|| frees(heap, take(&mut blocks.lock().unwrap()))), 1);
    }
    let is_forgiven = AtomicBool::new(false);
    let rests = || {
        let is_skipped = burst_in_a_row(heap) == 0;
        thread::sleep(Duration::from_millis(20));
        is_forgiven.store(is_skipped && burst_in_a_row(heap) == 1, Ordering::Relaxed);
        // The memory is wanted: of the thread's end nothing is to be learnt.
        allocs(heap, 2 * BEGUN);
    };
    let is_one = n_deferred(&rests) == 1 && is_forgiven.into_inner();
    let are_skipped = builders(63) == [0; 63] && builders(2) == [1, 0];
    let now = bursts(heap);
    book.let_go();
    is_wasted && is_one && are_skipped && (now.wasted_bursts, now.skipped_bursts) == (3, 64 + 1)
}

/// While blocks of two threads wait those of a third are freed at once, and not when they do not any more.
fn many_threads() {
    let (heap, book) = heap(true);
    let burst_of_another = || thread::spawn(|| burst_in_a_row(heap)).join().unwrap();
    book.hold_drainer(heap, SMALL);
    let blocks = allocs(heap, MANY);
    frees(heap, blocks);
    // The one that holds up the drainer, and this thread's.
    let before = bursts(heap);
    assert_eq!(burst_of_another(), 0);
    let now = bursts(heap);
    assert_eq!(now.skipped_bursts - before.skipped_bursts, 1, "{now:?}");
    assert_eq!(now.deferred.blocks, before.deferred.blocks, "{now:?}");
    book.let_go();
    heap.flush();
    assert_eq!(burst_of_another(), 1);
    nothing_is_left(heap, book);
}

/// 3000 frees in a row are none where it takes 6400, by and large.
fn begins_late() {
    let (heap, book) = heap(true);
    for _ in 0..5 {
        frees(heap, allocs(heap, 3000));
    }
    assert_eq!((bursts(heap).deferred.blocks, book.n_live()), (0, 0));
    frees(heap, allocs(heap, 20_000));
    assert!(bursts(heap).deferred.blocks > 7000, "{:?}", bursts(heap));
    nothing_is_left(heap, book);
}

/// Where the program's threads and the drainer have one CPU between them a burst is deferred only if it is said.
fn one_cpu() {
    run_child("one_cpu", &[], 60).expect_clean();
    run("one_cpu", "128");
}

fn one_cpu_child() {
    common::use_one_cpu();
    let (heap, book) = heap(true);
    frees(heap, allocs(heap, MANY));
    let deferred = bursts(heap).deferred.blocks;
    if heap.config().burst.is_some() {
        assert!(deferred > (MANY - BEGUN) as u64, "{deferred}");
    } else {
        assert_eq!((deferred, drainers()), (0, Vec::new()));
        let blocks = allocs(heap, 100);
        let _scope = deferfree::defer_scope();
        frees(heap, blocks);
        assert_eq!(bursts(heap).deferred.blocks, 100);
    }
    nothing_is_left(heap, book);
}
