//! Blocks that are mappings of their own: what is not copied, not cleared and not resident, and that what is in them
//! stays as it is wherever they go.
//!
//! Each case in a child process under a watchdog.
//!
//! Seen to fail: see tests/README.md

use crate::common;

use std::alloc::{GlobalAlloc, Layout, System};
use std::process::ExitCode;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::channel;
use std::thread;

use common::{
    GIB, KIB, MIB, ROOM, fork, mapped, refuse_call_with, refuse_calls, rss, run_child, wait_ok,
    wait_until,
};
use deferfree::{Backing, DeferFree};

#[global_allocator]
static GLOBAL: DeferFree = DeferFree::new().max_pending(ROOM);

pub(crate) fn main() -> ExitCode {
    /// Each case runs the function of its name in a child.
    macro_rules! cases {
        ($($case:ident)*) => {
            match common::child_case().as_deref() {
                None => return common::run(&[$((stringify!($case), || run(stringify!($case)))),*]),
                $(Some(stringify!($case)) => $case(),)*
                Some(case) => panic!("{case}"),
            }
        };
    }
    cases! {
        grows_without_copying moves_in grows_on_what_waits grows_on_little_more to_and_fro zeroed_is_not_cleared zeroed_after_dirty zeroed_and_written written_again sparse_again half_written shrinks becomes_ordinary
        alignments aligned_alone more_than_there_may_be more_than_there_is in_a_forked_child passed_between_threads where_nothing_runs
        where_calls_are_refused pages_may_not_move lost_while_pages_move on_the_systems_allocator on_mimalloc
    }
    ExitCode::SUCCESS
}

fn run(case: &str) {
    // What waits there must not be given back first, however slow the machine is.
    let delay = match case {
        "grows_on_what_waits"
        | "grows_on_little_more"
        | "moves_in"
        | "to_and_fro"
        | "written_again"
        | "sparse_again"
        | "more_than_there_is" => "3600s",
        _ => "250ms",
    };
    let output = run_child(case, &[("DEFERFREE_DELAY", delay)], 120);
    print!("{}", output.stdout);
    if case == "where_nothing_runs" {
        output.expect_code(0);
    } else {
        output.expect_clean();
    }
}

/// Whether the system moves mappings (`mremap`); the others are tried with `--cfg deferfree_posix`.
const MOVES: bool = cfg!(not(deferfree_posix));

/// What is no larger than its alignment has a mapping of its own, and no more of the system's memory than it uses.
fn aligned_alone() {
    if std::fs::read_to_string(HUGE_PAGES).is_ok_and(|it| it.contains("[always]")) {
        return println!("!! huge pages for all: SKIPPED");
    }
    const N: usize = 100;
    let layout = Layout::from_size_align(256 * KIB, 128 * KIB).unwrap();
    let before = rss();
    // SAFETY: a valid layout, freed as allocated.
    unsafe {
        let blocks: Vec<_> = (0..N).map(|_| GLOBAL.alloc(layout)).collect();
        for &block in &blocks {
            block.write_bytes(1, layout.size());
        }
        let grown = rss() - before;
        assert!(grown < 2 * N * layout.size(), "{} MiB", grown / MIB);
        blocks.into_iter().for_each(|block| GLOBAL.dealloc(block, layout));
    }
}

/// Who is given huge pages.
const HUGE_PAGES: &str = "/sys/kernel/mm/transparent_hugepage/enabled";

/// Page faults of this process so far.
fn faults() -> i64 {
    // SAFETY: zeros are a valid value, which the call fills in.
    unsafe {
        let mut usage: libc::rusage = std::mem::zeroed();
        assert_eq!(libc::getrusage(libc::RUSAGE_SELF, &mut usage), 0);
        usage.ru_minflt
    }
}

fn n_mappings() -> usize {
    std::fs::read_to_string("/proc/self/maps").unwrap().lines().count()
}

/// Writes its own position to each page, or checks that it is there.
fn mark(bytes: &mut [u8]) {
    bytes.chunks_mut(4 * KIB).enumerate().for_each(|(i, page)| page[0] = i as u8 | 1);
}
fn check(bytes: &[u8]) {
    for (i, page) in bytes.chunks(4 * KIB).enumerate() {
        assert_eq!(page[0], i as u8 | 1, "page {i}");
    }
}

fn marked(bytes: usize) -> Vec<u8> {
    let mut block = vec![0; bytes];
    mark(&mut block);
    block
}

/// Where a copy would touch each page of the new block, growth touches none.
fn grows_without_copying() {
    let before = rss();
    let mut block = marked(40 * MIB);
    for bytes in [80 * MIB, 160 * MIB, 168 * MIB, 640 * MIB] {
        let n_faults = faults();
        block.reserve_exact(bytes - block.len());
        let n_faults = faults() - n_faults;
        assert!(n_faults < 32, "{n_faults} page faults to grow to {bytes} bytes");
        assert!(rss() < before + block.len() + 8 * MIB);
        check(&block);
        block.resize(bytes, 0);
        mark(&mut block);
    }
    check(&block);

    let mut numbers = Vec::new();
    (0..20 * MIB).for_each(|i| numbers.push(i));
    assert!(numbers.iter().enumerate().all(|(i, number)| i == *number));
}

/// A block of the allocator underneath that grows moves its pages, all but the last one, into a mapping of its own.
fn moves_in() {
    const LEN: usize = 100 * MIB + 123;
    let before = rss();
    let mut block: Vec<u8> = Vec::with_capacity(LEN);
    (0..LEN).for_each(|i| block.push((i / 4093) as u8));
    let is_whole = |block: &[u8]| {
        block.iter().take(LEN).enumerate().all(|(i, byte)| *byte == (i / 4093) as u8)
    };
    let (at, n_faults) = (block.as_ptr(), faults());
    block.reserve_exact(100 * MIB);
    let n_faults = faults() - n_faults;
    assert_ne!(at, block.as_ptr());
    // To copy takes 25 600.
    if MOVES {
        assert!(n_faults < 2000, "{n_faults} page faults");
        assert!(rss() < before + LEN + 8 * MIB);
    }
    assert!(is_whole(&block));
    // One mapping, which grows on.
    let n_faults = faults();
    block.reserve_exact(400 * MIB);
    let n_faults = faults() - n_faults;
    assert!(n_faults < 2000 || !MOVES, "{n_faults} page faults");
    assert!(is_whole(&block));
    // Where it was is memory as any other.
    let mut other: Vec<u8> = Vec::with_capacity(LEN);
    assert_eq!(other.as_ptr(), at);
    other.resize(LEN, 7);
    assert!(other.iter().all(|byte| *byte == 7) && is_whole(&block));
    block.resize(300 * MIB, 0);
    mark(&mut block);
    check(&block);
}

/// A block that grows takes a mapping that waits, and need not grow again as long as there is room.
fn grows_on_what_waits() {
    drop(marked(64 * MIB));
    let reused = GLOBAL.stats().reused.blocks;
    let mut block: Vec<u8> = Vec::with_capacity(14 * MIB);
    block.resize(14 * MIB, 7);
    block.reserve_exact(20 * MIB);
    assert_eq!(GLOBAL.stats().reused.blocks, reused + 1);
    let (at, n_faults) = (block.as_ptr(), faults());
    block.reserve_exact(46 * MIB);
    assert_eq!(block.as_ptr(), at);
    assert!(faults() - n_faults < 8);
    assert!(block.iter().all(|byte| *byte == 7));
}

/// A block that has grown keeps no more than twice what it asked for, whatever was waiting.
fn grows_on_little_more() {
    let before = rss();
    let mut kept = Vec::new();
    for _ in 0..10 {
        drop(marked(38 * MIB));
        let mut block: Vec<u8> = Vec::with_capacity(5 * MIB);
        block.resize(5 * MIB, 7);
        block.resize(10 * MIB, 7);
        kept.push(block);
    }
    GLOBAL.flush();
    assert!(rss() < before + 10 * 20 * MIB + 40 * MIB, "{before}, then {}", rss());
    assert!(kept.iter().all(|block| block.iter().all(|byte| *byte == 7)));
}

/// What waits would not make room for it.
fn more_than_there_is() {
    let warm_up = marked(64 * MIB);
    drop((0..20).map(|_| marked(MIB)).collect::<Vec<_>>());
    let before = GLOBAL.stats().pending;
    assert!(before.blocks >= 10, "{before:?}");
    // Addresses for one of them there may be.
    let mut blocks = [const { Vec::<u8>::new() }; 3];
    let reserved = blocks.each_mut().map(|block| block.try_reserve_exact(1 << 46).is_ok());
    assert!(reserved.contains(&false));
    assert_eq!(GLOBAL.stats().pending, before);
    drop(warm_up);
}

/// Two sizes in turn are one mapping from the second on: it is lengthened once, and long enough from then on.
fn to_and_fro() {
    let dirty = |bytes: usize| drop(std::hint::black_box(vec![7u8; bytes]));
    dirty(256 * MIB);
    let n_faults = faults();
    for _ in 0..4 {
        dirty(384 * MIB);
        dirty(256 * MIB);
    }
    let n_faults = faults() - n_faults;
    let stats = GLOBAL.stats();
    assert_eq!(stats.reused.blocks, if MOVES { 8 } else { 7 }, "{stats:?}");
    // In pages of 4 KiB: without huge pages.
    let once = (if MOVES { 128 } else { 384 }) * MIB / (4 * KIB);
    assert!(n_faults < once as i64 + 1000, "{n_faults} page faults");
}

/// Of a zeroed block that is resident which is used.
fn zeroed_is_not_cleared() {
    let before = rss();
    for round in 0..20 {
        let mut table = vec![0u8; GIB];
        for i in 0..200 {
            let at = i * (GIB / 200) + round * 4099;
            assert_eq!(table[at], 0);
            table[at] = 1;
        }
        assert!(rss() < before + 40 * MIB, "{} MiB in round {round}", (rss() - before) / MIB);
    }
}

/// The block that waits is dirty to the last page, and the next one all zero.
fn zeroed_after_dirty() {
    let before = rss();
    for _ in 0..4 {
        let mut table = vec![0u8; 96 * MIB];
        assert!(table.chunks(4 * KIB).all(|page| page[0] == 0 && page[4 * KIB - 1] == 0));
        table.fill(0xff);
    }
    wait_until("what waited is given back", || rss() < before + 16 * MIB);
}

/// Where the last one was written all over, the system's huge pages are behind the next one; where it was not they are
/// not, see `zeroed_is_not_cleared`.
fn zeroed_and_written() {
    if std::fs::read_to_string(HUGE_PAGES).is_ok_and(|it| !it.contains("[madvise]")) {
        println!("!! no huge pages for those who ask: SKIPPED");
        return;
    }
    let n_faults = |bytes| {
        let before = faults();
        drop(marked(bytes));
        GLOBAL.flush();
        faults() - before
    };
    let first = n_faults(64 * MIB);
    assert!(first > 16_000);
    let second = n_faults(64 * MIB);
    assert!(second < first / 2, "{first} page faults, then {second}");
}

/// Tables that are filled one after the other are one mapping, whose pages are there and zero.
fn written_again() {
    if cfg!(deferfree_posix) {
        return println!("!! nobody tells what is resident: SKIPPED");
    }
    let table = || {
        let mut table = vec![0u8; 64 * MIB];
        assert!(table.iter().all(|byte| *byte == 0));
        table.fill(0xff);
    };
    (0..2).for_each(|_| table());
    let (n_faults, reused) = (faults(), GLOBAL.stats().reused.blocks);
    (0..20).for_each(|_| table());
    let n_faults = faults() - n_faults;
    assert!(n_faults < 1000, "{n_faults} page faults");
    assert_eq!(GLOBAL.stats().reused.blocks, reused + 20);
}

/// Tables that are hardly used, after filled ones of the same size: it is found out, and from then on they are one
/// mapping of which nothing stays resident.
fn sparse_again() {
    if cfg!(deferfree_posix) {
        return println!("!! nobody tells what is resident: SKIPPED");
    }
    let before = rss();
    for _ in 0..3 {
        vec![0u8; 32 * MIB].fill(0xff);
    }
    let table = |round: usize| {
        let mut table = vec![0u8; 32 * MIB];
        for i in 0..100 {
            let at = i * (32 * MIB / 100) + round * 4099;
            assert_eq!(table[at], 0);
            table[at] = 1;
        }
        rss().saturating_sub(before)
    };
    let n_rounds = (0..200).take_while(|&round| table(round % 70) > 8 * MIB).count();
    assert!((100..150).contains(&n_rounds), "found out after {n_rounds} rounds");
    GLOBAL.flush();
    table(0);
    let reused = GLOBAL.stats().reused.blocks;
    let most = (0..50).map(table).max().unwrap();
    assert!(most < 8 * MIB, "{} MiB", most / MIB);
    assert_eq!(GLOBAL.stats().reused.blocks, reused + 50);
}

/// Tables of which half is written are made anew, and what waits of them counts as given back and not as taken.
fn half_written() {
    for _ in 0..10 {
        let mut table = vec![0u8; 64 * MIB];
        // To read the other half would put a page behind each of its pages as well.
        assert!(table[..32 * MIB].iter().all(|byte| *byte == 0));
        table[..32 * MIB].fill(1);
    }
    GLOBAL.flush();
    let stats = GLOBAL.stats();
    let counted = (stats.handed_over.blocks, stats.reused.blocks, stats.drained.blocks);
    assert_eq!(counted, (10, 0, 10), "{stats:?}");
}

/// Nothing moves, nothing is told of pages, nothing is given back: copied, cleared or made anew all the same.
fn where_calls_are_refused() {
    refuse_calls(&[libc::SYS_mremap, libc::SYS_mincore, libc::SYS_madvise], libc::EPERM);
    let mut before = 0;
    for round in 0..12 {
        if round == 2 {
            before = mapped();
        }
        let mut block: Vec<u8> = Vec::with_capacity(64 * MIB);
        block.resize(64 * MIB, 7);
        for bytes in [100 * MIB, 300 * MIB] {
            block.reserve_exact(bytes - block.len());
            assert!(block.iter().all(|byte| *byte == 7));
        }
        let mut table = vec![0u8; 64 * MIB];
        assert!(table.iter().all(|byte| *byte == 0));
        // Now a page of it, now all.
        let written = if round % 2 == 0 { 1 } else { table.len() };
        table[..written].fill(1);
        drop((block, table));
        GLOBAL.flush();
    }
    assert!(mapped() < before + GIB, "{before}, then {}", mapped());
}

/// Linux before 5.7 cannot move pages out of a mapping that stays: what was mapped for them goes, each time.
fn pages_may_not_move() {
    const MREMAP_DONTUNMAP: libc::c_int = 4;
    let flags = libc::MREMAP_MAYMOVE | MREMAP_DONTUNMAP;
    refuse_call_with(libc::SYS_mremap, 3, flags as u32, libc::EINVAL);
    let move_some = || {
        let mut block: Vec<u8> = Vec::with_capacity(9 * MIB);
        block.resize(9 * MIB, 7);
        block.reserve_exact(9 * MIB);
        assert!(block.iter().all(|byte| *byte == 7));
        drop(block);
        GLOBAL.flush();
    };
    (0..3).for_each(|_| move_some());
    let before = n_mappings();
    (0..50).for_each(|_| move_some());
    assert!(n_mappings() < before + 10, "{before}, then {}", n_mappings());
}

/// Pages are moved out of their place, and not into the new one, which is lost: another one is made, and they are copied.
fn lost_while_pages_move() {
    let flags = libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED;
    refuse_call_with(libc::SYS_mremap, 3, flags as u32, libc::ENOMEM);
    for _ in 0..3 {
        let mut block: Vec<u8> = Vec::with_capacity(40 * MIB);
        (0..40 * MIB).for_each(|i| block.push((i / 4093) as u8));
        let is_whole =
            |block: &[u8]| block.iter().enumerate().all(|(i, byte)| *byte == (i / 4093) as u8);
        for more in [30, 100] {
            block.reserve_exact(more * MIB);
            assert!(is_whole(&block));
        }
    }
    GLOBAL.flush();
    let mut others: Vec<_> = (0..20).map(|_| marked(70 * MIB)).collect();
    others.iter().for_each(|other| check(other));
    others.clear();
}

/// What is cut off is given back, and what is left stays where it is.
fn shrinks() {
    let before = rss();
    let mut block = marked(256 * MIB);
    let at = block.as_ptr();
    block.truncate(64 * MIB);
    block.shrink_to_fit();
    assert_eq!((block.as_ptr(), block.capacity()), (at, 64 * MIB));
    assert_eq!(GLOBAL.stats().handed_over.blocks, 1);
    wait_until("the rest is given back", || rss() < before + 80 * MIB);
    check(&block);
    block.resize(300 * MIB, 0);
    mark(&mut block);
    check(&block);
    drop(block);
    wait_until("all is given back", || rss() < before + 16 * MIB);
}

/// Too small to be known for a huge block when it is freed: it is copied.
fn becomes_ordinary() {
    let before = rss();
    for bytes in [4 * MIB, 300 * KIB, 100 * KIB, 100, 1] {
        let mut block = marked(48 * MIB);
        block.truncate(bytes);
        block.shrink_to_fit();
        check(&block);
        block.resize(40 * MIB, 0);
        mark(&mut block);
        check(&block);
    }
    wait_until("all is given back", || rss() < before + 16 * MIB);
}

fn alignments() {
    for size in [256 * KIB, 9 * MIB, 40 * MIB, 300 * MIB] {
        for align in [64 * KIB, 128 * KIB, 2 * MIB, 8 * MIB, GIB] {
            for _ in 0..2 {
                let layout = Layout::from_size_align(size, align).unwrap();
                let larger = size * 2 + 5 * MIB;
                // SAFETY: valid layouts; written and read within the block, freed as it was reallocated last.
                unsafe {
                    let block = GLOBAL.alloc(layout);
                    assert!(!block.is_null() && block.addr() % align == 0);
                    mark(std::slice::from_raw_parts_mut(block, size));
                    let block = GLOBAL.realloc(block, layout, larger);
                    assert!(!block.is_null() && block.addr() % align == 0);
                    check(std::slice::from_raw_parts(block, size));
                    let layout = Layout::from_size_align(larger, align).unwrap();
                    let block = GLOBAL.realloc(block, layout, size);
                    assert!(!block.is_null() && block.addr() % align == 0);
                    check(std::slice::from_raw_parts(block, size));
                    GLOBAL.dealloc(block, Layout::from_size_align(size, align).unwrap());
                }
            }
        }
    }
}

/// The system's bound on mappings is for the program: beyond a number of huge blocks the allocator underneath serves.
fn more_than_there_may_be() {
    const N: usize = 5000;
    let before = n_mappings();
    let layout = Layout::from_size_align(32 * MIB, 8).unwrap();
    // SAFETY: valid layouts; a byte of each is written and read; each is freed as it was allocated.
    unsafe {
        let blocks: Vec<*mut u8> = (0..N).map(|_| GLOBAL.alloc_zeroed(layout)).collect();
        for (i, block) in blocks.iter().enumerate() {
            assert!(!block.is_null() && block.add(4 * KIB).read() == 0);
            block.add(4 * KIB).write(i as u8);
        }
        assert!(n_mappings() - before < 5000, "{}", n_mappings());
        for (i, block) in blocks.iter().enumerate() {
            assert_eq!(block.add(4 * KIB).read(), i as u8);
            GLOBAL.dealloc(*block, layout);
        }
    }
    GLOBAL.flush();
    assert_eq!(GLOBAL.stats().pending.blocks, 0);
    assert!(n_mappings() < before + 100, "{}", n_mappings());
    // The number is of those that there are.
    let reserved = vec![0u8; 40 * MIB];
    let own = GLOBAL.stats_by_size().find(|size| size.own_mapping && size.block_bytes == 40 << 20);
    assert_eq!(own.unwrap().missed, 1);
    drop(reserved);
}

/// The child has the parent's huge blocks, and does with them what it likes.
fn in_a_forked_child() {
    let (mut grown, freed, shrunk) = (marked(40 * MIB), marked(64 * MIB), marked(96 * MIB));
    let mut waits = vec![marked(64 * MIB), marked(300 * MIB)];
    waits.clear();
    wait_ok(fork(60, move || {
        let mut shrunk = shrunk;
        check(&freed);
        drop(freed);
        grown.resize(200 * MIB, 0);
        mark(&mut grown);
        check(&grown);
        shrunk.truncate(33 * MIB);
        shrunk.shrink_to_fit();
        check(&shrunk);
        let fresh = marked(64 * MIB);
        check(&fresh);
        drop((grown, shrunk, fresh));
        GLOBAL.flush();
        assert_eq!(GLOBAL.stats().pending.blocks, 0);
    }));
}

/// Grown by one thread, checked and freed by others.
fn passed_between_threads() {
    static N_CHECKED: AtomicUsize = AtomicUsize::new(0);
    thread::scope(|scope| {
        for seed in 1..4usize {
            let (to_checker, blocks) = channel::<Vec<u8>>();
            scope.spawn(move || {
                for i in 0..40 {
                    let mut block = marked((1 + (i * seed) % 7) * 3 * MIB);
                    block.resize(block.len() * 2 + 7 * MIB, 0);
                    mark(&mut block);
                    if i % 3 == 0 {
                        block.truncate(block.len() / 2);
                        block.shrink_to_fit();
                    }
                    to_checker.send(block).unwrap();
                }
            });
            scope.spawn(move || {
                for block in blocks {
                    check(&block);
                    N_CHECKED.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
    });
    assert_eq!(N_CHECKED.load(Ordering::Relaxed), 3 * 40);
    GLOBAL.flush();
    assert_eq!(GLOBAL.stats().pending.blocks, 0);
}

/// Where no drainer can be started huge blocks are unmapped by those who free them.
fn where_nothing_runs() {
    common::refuse_calls(&[libc::SYS_clone, libc::SYS_clone3], libc::EPERM);
    let (before, n_before) = (rss(), n_mappings());
    for _ in 0..3 {
        let mut block = marked(64 * MIB);
        block.resize(128 * MIB, 0);
        mark(&mut block);
        block.truncate(40 * MIB);
        block.shrink_to_fit();
        check(&block);
    }
    assert!(rss() < before + 16 * MIB && n_mappings() < n_before + 16);
}

fn on_the_systems_allocator() {
    changes_of_size(&DeferFree::with_backing(System));
}

fn on_mimalloc() {
    changes_of_size(&GLOBAL);
}

/// From one size to any other, what is in the block stays.
fn changes_of_size<B: Backing>(heap: &DeferFree<B>) {
    let sizes = [100, 20 * KIB, MIB, 7 * MIB, 9 * MIB, 31 * MIB, 33 * MIB, 100 * MIB, 280 * MIB];
    for from in sizes {
        for to in sizes {
            for zeroed in [false, true] {
                let layout = Layout::from_size_align(from, 16).unwrap();
                // SAFETY: valid layouts; written and read within the block, freed as it was reallocated.
                unsafe {
                    let block = if zeroed { heap.alloc_zeroed(layout) } else { heap.alloc(layout) };
                    if zeroed {
                        let bytes = std::slice::from_raw_parts(block, from);
                        assert!(bytes.iter().step_by(1000).all(|byte| *byte == 0));
                    }
                    mark(std::slice::from_raw_parts_mut(block, from));
                    let block = heap.realloc(block, layout, to);
                    check(std::slice::from_raw_parts(block, from.min(to)));
                    mark(std::slice::from_raw_parts_mut(block, to));
                    heap.dealloc(block, Layout::from_size_align(to, 16).unwrap());
                }
            }
        }
    }
    heap.flush();
    assert_eq!(heap.stats().pending.blocks, 0);
}
