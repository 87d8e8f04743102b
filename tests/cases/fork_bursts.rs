//! Forks with small blocks written down: the child finds those that were, of all threads, and its own drainer of
//! the same allocator frees them, once. Until there is one they wait, and no other allocator touches them.
//!
//! All frees are deferred. The backing keeps books, which the child inherits as well.
//!
//! Seen to fail: see `README.md`.

use crate::common;

use std::alloc::{GlobalAlloc, Layout};
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use common::addresses::Addresses;
use common::{
    MIB, ROOM, TINY, command, drainers, finish, fork, run_child, sleep_ms, thread_refuser,
    voluntary_switches, wait_ok, wait_until,
};
use deferfree::{DeferFree, defer_scope};

const ALWAYS: (&str, &str) = ("DEFERFREE_BURST", "0");
/// What one forked child may take.
const CHILD_SECS: u32 = 10;

pub(crate) fn main() -> ExitCode {
    match common::child_case().as_deref() {
        None => {
            return common::run(&[
                ("inherited", || run("inherited")),
                ("nested", || run("nested")),
                ("in_a_scope", || run_child("in_a_scope", &[], 60).expect_clean()),
                ("while_another_writes", || run("while_another_writes")),
                ("the_child_falls_asleep", || run("the_child_falls_asleep")),
                ("while_the_drainer_sorts", || run("while_the_drainer_sorts")),
                ("another_allocator_comes_first", || run("another_allocator_comes_first")),
                ("no_drainer_in_the_child", no_drainer_in_the_child),
            ]);
        }
        Some("inherited") => inherited(),
        Some("nested") => nested(),
        Some("in_a_scope") => in_a_scope(),
        Some("while_another_writes") => while_another_writes(),
        Some("the_child_falls_asleep") => the_child_falls_asleep(),
        Some("while_the_drainer_sorts") => while_the_drainer_sorts(),
        Some("another_allocator_comes_first") => another_allocator_comes_first(),
        Some("no_drainer_in_the_child") => no_drainer_in_the_child_child(),
        Some(case) => panic!("{case}"),
    }
    ExitCode::SUCCESS
}

fn run(case: &str) {
    run_child(case, &[ALWAYS], 60).expect_clean();
}

type Heap = DeferFree<&'static Addresses>;

const SMALL: Layout = Layout::new::<[u64; 6]>();
/// Starts the drainer.
const LARGE: Layout = match Layout::from_size_align(16 * MIB, 8) {
    Ok(layout) => layout,
    Err(_) => panic!(),
};

fn heap() -> (&'static Heap, &'static Addresses) {
    let book = Addresses::leak();
    (Box::leak(Box::new(DeferFree::with_backing(book).max_pending(ROOM))), book)
}

fn allocs(heap: &Heap, n: usize) -> Vec<usize> {
    // SAFETY: a valid layout.
    (0..n).map(|_| unsafe { heap.alloc(SMALL) }.expose_provenance()).collect()
}

fn free(heap: &Heap, block: usize) {
    // SAFETY: from `allocs`, freed once.
    unsafe { heap.dealloc(std::ptr::with_exposed_provenance_mut(block), SMALL) };
}

/// Frees a number of blocks.
fn work(heap: &Heap, n: usize) {
    allocs(heap, n).into_iter().for_each(|block| free(heap, block));
}

/// Status of a child that inherited blocks which waited. It depends on the parent's drainer, which looks around once
/// a millisecond or seldom.
const SOME_WAITED: i32 = 7;

/// Waits for a child that must have ended with status 0 or that one; says which.
#[track_caller]
fn waited(pid: i32) -> bool {
    let status = common::wait(pid);
    assert!(matches!(status.code(), Some(0 | SOME_WAITED)), "forked child: {status}");
    status.code() == Some(SOME_WAITED)
}

/// Forked off in the midst of other threads' bursts, at any moment: the child's drainer frees what there is and does not
/// look around for the rest of its life. All at the same time, as each takes five seconds.
fn the_child_falls_asleep() {
    let (heap, _) = heap();
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        for n in 0..2 {
            let done = &done;
            scope.spawn(move || {
                while !done.load(Ordering::Relaxed) {
                    work(heap, 500 + 1000 * n);
                    // What thirty children inherit is to be little.
                    sleep_ms(1);
                }
            });
        }
        let children: Vec<_> = (0..30)
            .map(|n| {
                sleep_ms(n % 4);
                fork(30, || {
                    // Half of them find the logs only when they have a drainer for something else.
                    if n % 2 == 0 {
                        work(heap, 100);
                    }
                    // SAFETY: a valid layout, freed as allocated.
                    unsafe { heap.dealloc(heap.alloc(LARGE), LARGE) };
                    wait_until("nothing waits", || heap.stats().bursts.pending.blocks == 0);
                    // It lingers for a second.
                    sleep_ms(2000);
                    let drainer = drainers()[0];
                    let before = voluntary_switches(drainer);
                    sleep_ms(2000);
                    let n_looks = voluntary_switches(drainer) - before;
                    assert!(n_looks < 20, "{n_looks} times in two seconds");
                })
            })
            .collect();
        done.store(true, Ordering::Relaxed);
        children.into_iter().for_each(wait_ok);
    });
}

/// The child frees what it inherited and its own, and counts its own; the parent goes on.
fn inherited() {
    let (heap, book) = heap();
    let mut some_waited = false;
    for round in 0..20 {
        work(heap, 10_000 + round);
        let pid = fork(CHILD_SECS, || {
            let n_inherited = book.n_live();
            assert_eq!((drainers(), heap.stats().bursts.deferred.blocks), (Vec::new(), 0));
            work(heap, 2000);
            heap.flush();
            let bursts = heap.stats().bursts;
            assert_eq!((book.n_live(), bursts.pending.blocks), (0, 0), "{bursts:?}");
            assert!(bursts.deferred.blocks >= 1999, "{bursts:?}");
            // And as usual from here on, by a drainer of its own.
            work(heap, 2000);
            wait_until("all blocks are freed", || book.n_live() == 0);
            assert_eq!(drainers().len(), 1);
            common::exit_now(if n_inherited > 5000 { SOME_WAITED } else { 0 });
        });
        some_waited |= waited(pid);
        work(heap, 100);
    }
    assert!(some_waited, "the test missed the moment");
    heap.flush();
    assert_eq!(book.n_live(), 0);
}

/// A child that has written down nothing, a child of which that has, and one that frees it all.
fn nested() {
    let (heap, book) = heap();
    for _ in 0..20 {
        work(heap, 5000);
        wait_ok(fork(CHILD_SECS, || {
            wait_ok(fork(CHILD_SECS, || {
                work(heap, 5000);
                wait_ok(fork(CHILD_SECS, || {
                    work(heap, 10);
                    heap.flush();
                    assert_eq!(book.n_live(), 0);
                }));
                heap.flush();
                assert_eq!(book.n_live(), 0);
            }));
            work(heap, 10);
            heap.flush();
            assert_eq!(book.n_live(), 0);
        }));
    }
    heap.flush();
    assert_eq!(book.n_live(), 0);
}

/// The thread that forks goes on to defer in the child, from the first block that finds a drainer.
fn in_a_scope() {
    let (heap, book) = heap();
    let _scope = defer_scope();
    for _ in 0..20 {
        work(heap, 5000);
        wait_ok(fork(CHILD_SECS, || {
            work(heap, 1000);
            assert!(heap.stats().bursts.deferred.blocks >= 1000);
            heap.flush();
            assert_eq!(book.n_live(), 0);
        }));
    }
    heap.flush();
    assert_eq!(book.n_live(), 0);
}

/// Another thread is just writing. At most the one block that it had in hand is lost to the child.
fn while_another_writes() {
    let (heap, book) = heap();
    work(heap, 1);
    let (done, n_freed, n_allocated) =
        (AtomicBool::new(false), AtomicUsize::new(0), AtomicUsize::new(1));
    n_freed.store(1, Ordering::SeqCst);
    thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Ordering::SeqCst) {
                let blocks = allocs(heap, 3000);
                n_allocated.fetch_add(3000, Ordering::SeqCst);
                for block in blocks {
                    free(heap, block);
                    n_freed.fetch_add(1, Ordering::SeqCst);
                }
                thread::sleep(Duration::from_millis(1));
            }
        });
        for round in 0..100u64 {
            thread::sleep(Duration::from_micros(round * 37 % 1000));
            wait_ok(fork(CHILD_SECS, || {
                let (n_allocated, n_freed) =
                    (n_allocated.load(Ordering::SeqCst), n_freed.load(Ordering::SeqCst));
                // Up to 3000 that it was just allocating are not counted.
                let n_uncounted = book.n_allocs() - n_allocated;
                work(heap, 5);
                heap.flush();
                let n_not_freed = n_allocated + n_uncounted - n_freed;
                let n_live = book.n_live();
                assert!(
                    n_live == n_not_freed || n_live + 1 == n_not_freed,
                    "{n_live} {n_not_freed}"
                );
            }));
        }
        done.store(true, Ordering::SeqCst);
    });
    heap.flush();
    assert_eq!(book.n_live(), 0);
}

/// The parent's drainer is somewhere between taking a log and freeing the last of it. The child has what it had not
/// freed, and as many bytes may wait as before.
fn while_the_drainer_sorts() {
    const N: usize = if TINY { 5000 } else { 100_000 };
    let book = Addresses::leak();
    // Just more than the blocks come to.
    let bound = N * SMALL.size() * 11 / 10;
    let heap: &Heap = Box::leak(Box::new(DeferFree::with_backing(book).max_pending(bound)));
    let mut some_waited = false;
    for round in 0..60u64 {
        // The drainer does not look before all is written.
        work(heap, N);
        let over_bound = heap.stats().bursts.over_bound_blocks;
        let flushing = thread::spawn(|| heap.flush());
        let start = Instant::now();
        if round % 2 == 0 {
            while start.elapsed() < Duration::from_micros(round * 100) {}
        } else {
            // However late the threads come to it, it has begun to free and goes on.
            while book.n_live() > N - N / 50 && !flushing.is_finished() {}
        }
        let pid = fork(CHILD_SECS, || {
            let n_live = book.n_live();
            work(heap, 1);
            heap.flush();
            assert_eq!((book.n_live(), heap.stats().bursts.over_bound_blocks), (0, 0));
            let blocks = allocs(heap, N);
            // In one go, as far as the drainer can see.
            blocks.into_iter().for_each(|block| free(heap, block));
            heap.flush();
            assert_eq!((book.n_live(), heap.stats().bursts.over_bound_blocks), (0, 0));
            common::exit_now(if (N / 100..N - N / 100).contains(&n_live) {
                SOME_WAITED
            } else {
                0
            });
        });
        some_waited |= waited(pid);
        flushing.join().unwrap();
        assert_eq!((book.n_live(), over_bound), (0, 0));
    }
    assert!(some_waited, "the test missed the moment");
}

/// In the child another allocator has a drainer first. It must not take what is not its own.
fn another_allocator_comes_first() {
    const N: usize = if TINY { 5000 } else { 10_000 };
    let ((first, first_book), (second, second_book)) = (heap(), heap());
    let mut some_waited = false;
    for _ in 0..20 {
        work(first, N);
        let pid = fork(CHILD_SECS, || {
            let n_live = first_book.n_live();
            // SAFETY: a valid layout, freed once.
            unsafe { second.dealloc(second.alloc(LARGE), LARGE) };
            work(second, N);
            // It frees small blocks at once, and its drainer looks around.
            assert_eq!((second_book.n_live(), second.stats().bursts.deferred.blocks), (1, 0));
            second.flush();
            sleep_ms(5);
            assert_eq!((second_book.n_live(), first_book.n_live()), (0, n_live));
            assert_eq!(drainers().len(), 1);
            work(first, 1);
            wait_until("all blocks are freed", || first_book.n_live() == 0);
            assert_eq!(drainers().len(), 2);
            // Those that it inherited in a log, and one.
            assert!(first.stats().bursts.deferred.blocks <= n_live as u64 + 1);
            common::exit_now(if n_live > N / 2 { SOME_WAITED } else { 0 });
        });
        some_waited |= waited(pid);
    }
    assert!(some_waited, "the test missed the moment");
    first.flush();
    assert_eq!(first_book.n_live(), 0);
}

/// The child's own drainer is refused, another allocator's is not: what was inherited stays where it is.
fn no_drainer_in_the_child() {
    let Some(library) = thread_refuser() else { return };
    let mut command = command("no_drainer_in_the_child");
    command.env("LD_PRELOAD", &library).env(ALWAYS.0, ALWAYS.1);
    let output = finish(command, 60);
    output.expect_code(0);
    assert!(output.stderr.lines().all(|line| line.contains("cannot start the drainer")));
    assert_eq!(output.stderr.lines().count(), 20, "{output:?}");
}

fn no_drainer_in_the_child_child() {
    let ((first, first_book), (second, second_book)) = (heap(), heap());
    for _ in 0..20 {
        work(first, 10_000);
        wait_ok(fork(CHILD_SECS, || {
            let n_live = first_book.n_live();
            // SAFETY: there is no other thread.
            unsafe { std::env::set_var("REFUSE_THREADS", "1") };
            work(first, 1000);
            assert!(!first.stats().drainer_running);
            // SAFETY: a valid layout, freed once.
            unsafe { second.dealloc(second.alloc(LARGE), LARGE) };
            work(second, 1000);
            second.flush();
            assert!(second.stats().drainer_running);
            sleep_ms(5);
            assert_eq!((second_book.n_live(), first_book.n_live()), (0, n_live));
            work(first, 1000);
            assert_eq!(first_book.n_live(), n_live);
        }));
    }
    first.flush();
    assert_eq!(first_book.n_live(), 0);
}
