//! The ways in which a process and a thread end, with full queues: the status is kept and nothing
//! hangs. What could go wrong is a race with the drainer: so each way is tried many times, with busy
//! threads `EXIT_TIMES` times, which is 200 in `.ci/run`.
//!
//! Seen to fail: with an exit that waits for the drainer, `with_busy_threads`; where mimalloc is left
//! to unmap itself under the drainer, `where_mimalloc_unmaps_itself`; without the look at the exit in
//! `flush`, `frees_in_exit_handlers`.

use crate::common;

use std::cell::RefCell;
use std::hint::black_box;
use std::process::ExitCode;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use common::{
    KIB, MIB, at_exit, nearly_start, run_child, shuffle, sleep_ms, to_be_deferred, touched,
    wait_until,
};
use deferfree::DeferFree;

#[global_allocator]
static GLOBAL: DeferFree = DeferFree::new();

const TIMES: usize = 20;
/// For each way to end with busy threads, or full logs.
const BUSY_TIMES: usize = 30;
const WATCHDOG_SECS: u64 = 20;

pub(crate) fn main() -> ExitCode {
    let Some(case) = common::child_case() else {
        return common::run(&[
            ("with_busy_threads", with_busy_threads),
            ("with_full_logs", with_full_logs),
            ("where_mimalloc_unmaps_itself", where_mimalloc_unmaps_itself),
            ("frees_in_exit_handlers", frees_in_exit_handlers),
            ("first_block_in_an_exit_handler", first_block_in_an_exit_handler),
            ("frees_in_thread_local_destructors", frees_in_thread_local_destructors),
            ("first_block_in_a_thread_local_destructor", first_block_in_a_destructor),
            ("thread_exit", thread_exit),
        ]);
    };
    nearly_start(&GLOBAL);
    common::no_core();
    match case.split_once(' ') {
        Some(("busy", way)) => {
            make_busy();
            end(way)
        }
        Some(("full_logs", way)) => {
            fill_logs();
            end(way)
        }
        Some(("calm", way)) => {
            fill(200);
            // The drainer's next round comes at some point of the exit.
            sleep_ms(u64::from(std::process::id()) % 4);
            end(way)
        }
        Some(("purging", way)) => {
            drop((0..32).map(|_| touched(2 * MIB)).collect::<Vec<_>>());
            // The drainer has begun by now, and is busy for some milliseconds.
            sleep_ms(u64::from(std::process::id()) % 4);
            end(way)
        }
        Some(("handlers", way)) => {
            handlers_child();
            end(way)
        }
        Some(("first_in_handler", way)) => {
            at_exit(free_and_allocate);
            end(way)
        }
        Some(("locals", way)) => {
            locals_child();
            end(way)
        }
        Some(("first_in_local", way)) => {
            HELD.with(|held| held.0.borrow_mut().clear());
            thread::spawn(|| HELD.with(|held| held.0.borrow_mut().clear())).join().unwrap();
            end(way)
        }
        Some(("thread_exit", way)) => {
            thread_exit_child();
            end(way)
        }
        _ => panic!("{case}"),
    }
}

/// Ends the process in the way that is named. `return` does so by being returned from `main`.
fn end(way: &str) -> ExitCode {
    match way {
        "return" => return ExitCode::from(3),
        "exit" => std::process::exit(7),
        "_exit" => common::exit_now(9),
        "abort" => std::process::abort(),
        "killed" => {
            common::end_this_process();
            sleep_ms(60_000);
        }
        "panic" => panic!("on purpose"),
        "panic_abort" => {
            let _held = (touched(2 * MIB), vec![vec![1; 100]; 1000]);
            cannot_unwind()
        }
        "panic_elsewhere" => {
            let other = thread::spawn(|| {
                let _held = (touched(2 * MIB), vec![vec![1; 100]; 1000]);
                panic!("on purpose");
            });
            assert!(other.join().is_err());
            return ExitCode::from(5);
        }
        "exit_elsewhere" => {
            thread::spawn(|| std::process::exit(11)).join().unwrap();
        }
        _ => panic!("{way}"),
    }
    unreachable!()
}

/// A panic in here ends the process as one does where panics abort.
extern "C" fn cannot_unwind() {
    panic!("on purpose");
}

#[track_caller]
fn expect(case: &str, way: &str, env: &[(&str, &str)]) {
    let output = run_child(&format!("{case} {way}"), env, WATCHDOG_SECS);
    match way {
        "return" => output.expect_code(3),
        "exit" => output.expect_code(7),
        "_exit" => output.expect_code(9),
        "exit_elsewhere" => output.expect_code(11),
        "abort" | "panic_abort" => common::expect_aborted(output.status),
        "killed" => common::expect_killed(output.status),
        "panic" => output.expect_code(101),
        "panic_elsewhere" => output.expect_code(5),
        _ => panic!("{way}"),
    }
    if way.starts_with("panic") {
        assert!(output.stderr.contains("on purpose"), "{output:?}");
    } else {
        assert_eq!(output.stderr, "", "{case} {way}");
    }
}

fn fill(n_blocks: usize) {
    let blocks: Vec<_> = (0..n_blocks).map(|_| Vec::<u8>::with_capacity(256 * KIB)).collect();
    drop(black_box(blocks));
}

/// Three threads that allocate and free until the process ends, one that frees in bursts, and a queue
/// that is never empty.
fn make_busy() {
    static ROUNDS: AtomicUsize = AtomicUsize::new(0);
    fill(500);
    for n in 0..3 {
        thread::spawn(move || {
            loop {
                for size in [256 * KIB, 300 * KIB, 500 * KIB + n * 100 * KIB] {
                    let blocks: Vec<_> = (0..8).map(|_| Vec::<u8>::with_capacity(size)).collect();
                    drop(black_box(blocks));
                }
                ROUNDS.fetch_add(1, Ordering::Relaxed);
            }
        });
    }
    thread::spawn(|| {
        loop {
            drop_small(5000);
        }
    });
    wait_until("threads are busy", || {
        ROUNDS.load(Ordering::Relaxed) > 5 && GLOBAL.stats().bursts.deferred.blocks > 0
    });
}

/// Frees small blocks in no order.
fn drop_small(n: usize) {
    let mut blocks: Vec<_> = (0..n).map(|n| Box::new([n; 12])).collect();
    shuffle(&mut blocks);
    drop(black_box(blocks));
}

/// The logs of two threads, one of which goes on and one of which has just ended, and a drainer that has begun with
/// one of them.
fn fill_logs() {
    thread::spawn(|| drop_small(50_000)).join().unwrap();
    drop_small(100_000);
    assert!(to_be_deferred(&GLOBAL.stats().bursts) > 140_000);
    sleep_ms(u64::from(std::process::id()) % 8);
}

const WAYS: [&str; 9] = [
    "return",
    "exit",
    "_exit",
    "abort",
    "killed",
    "panic",
    "panic_abort",
    "panic_elsewhere",
    "exit_elsewhere",
];
/// All small blocks are deferred.
const BURST: (&str, &str) = ("DEFERFREE_BURST", "0");
/// Those that run exit handlers.
const ORDERLY: [&str; 4] = ["return", "exit", "panic", "exit_elsewhere"];

fn with_busy_threads() {
    each_way("busy", &WAYS);
}

fn with_full_logs() {
    each_way("full_logs", &ORDERLY);
}

fn each_way(case: &str, ways: &[&str]) {
    let times = std::env::var("EXIT_TIMES").map_or(BUSY_TIMES, |times| times.parse().unwrap());
    let next = AtomicUsize::new(0);
    // Two at a time: a child waits for most of its short life.
    thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                loop {
                    let n = next.fetch_add(1, Ordering::Relaxed);
                    let Some(way) = ways.get(n / times) else { break };
                    let delay = ["0ms", "4ms", "250ms"][n % 3];
                    expect(case, way, &[("DEFERFREE_DELAY", delay), BURST]);
                }
            });
        }
    });
}

/// `MIMALLOC_DESTROY_ON_EXIT` would take all memory away at the end, whoever uses it: the drainer, the
/// program's threads.
fn where_mimalloc_unmaps_itself() {
    for way in ORDERLY {
        for n in 0..TIMES {
            let delay = ["0ms", "1ms", "4ms", "250ms"][n % 4];
            let env = [("DEFERFREE_DELAY", delay), ("MIMALLOC_DESTROY_ON_EXIT", "1"), BURST];
            expect(["calm", "busy", "full_logs"][n / 4 % 3], way, &env);
        }
        for _ in 0..TIMES / 2 {
            let env = [("DEFERFREE_DELAY", "0ms"), ("MIMALLOC_DESTROY_ON_EXIT", "1")];
            expect("purging", way, &env);
        }
    }
}

static KEPT: Mutex<Vec<Vec<u8>>> = Mutex::new(Vec::new());

extern "C" fn free_and_allocate() {
    let mut kept = KEPT.lock().unwrap();
    kept.clear();
    for _ in 0..8 {
        let mut block = vec![0u8; 2 * MIB];
        assert!(block.iter().step_by(4096).all(|&byte| byte == 0));
        block.fill(1);
        kept.push(block);
    }
    GLOBAL.flush();
}

fn handlers_child() {
    // One that runs after the crate's own handler, and one that runs before it.
    at_exit(free_and_allocate);
    KEPT.lock().unwrap().extend((0..8).map(|_| touched(2 * MIB)));
    fill(100);
    at_exit(free_and_allocate);
}

fn frees_in_exit_handlers() {
    for way in ORDERLY {
        for n in 0..TIMES / 2 {
            let delay = ["0ms", "4ms", "250ms"][n % 3];
            expect("handlers", way, &[("DEFERFREE_DELAY", delay)]);
        }
        expect("handlers", way, &[("MIMALLOC_DESTROY_ON_EXIT", "1")]);
    }
}

fn first_block_in_an_exit_handler() {
    for way in ORDERLY {
        for _ in 0..5 {
            expect("first_in_handler", way, &[("DEFERFREE_DELAY", "4ms")]);
        }
        expect("first_in_handler", way, &[("MIMALLOC_DESTROY_ON_EXIT", "1")]);
    }
}

/// Frees what it holds, and more, when its thread ends.
struct Held(RefCell<Vec<Vec<u8>>>);

impl Drop for Held {
    fn drop(&mut self) {
        self.0.borrow_mut().clear();
        let mut grown = Vec::<u8>::new();
        for _ in 0..4 {
            grown.resize(grown.len() + MIB, 1);
        }
        drop(vec![0u8; 3 * MIB]);
    }
}

thread_local! {
    static HELD: Held = const { Held(RefCell::new(Vec::new())) };
}

fn locals_child() {
    let hold = || HELD.with(|held| held.0.borrow_mut().extend((0..2).map(|_| touched(MIB))));
    hold();
    let others: Vec<_> = (0..4).map(|_| thread::spawn(hold)).collect();
    for other in others {
        other.join().unwrap();
    }
}

fn frees_in_thread_local_destructors() {
    for way in ORDERLY {
        for n in 0..TIMES / 2 {
            let delay = ["0ms", "4ms", "250ms"][n % 3];
            expect("locals", way, &[("DEFERFREE_DELAY", delay)]);
        }
    }
    for way in ORDERLY {
        expect("locals", way, &[("MIMALLOC_DESTROY_ON_EXIT", "1")]);
    }
    for way in ["_exit", "abort", "killed"] {
        expect("locals", way, &[]);
    }
}

/// The drainer is started by a thread that is about to end, or by an exiting main thread.
fn first_block_in_a_destructor() {
    for way in ORDERLY {
        for _ in 0..5 {
            expect("first_in_local", way, &[("DEFERFREE_DELAY", "4ms")]);
        }
    }
}

fn thread_exit() {
    expect("thread_exit", "return", &[("DEFERFREE_DELAY", "3600s")]);
}

fn thread_exit_child() {
    // The main thread holds one, so that the drainer runs.
    let one = touched(MIB);
    let before = GLOBAL.stats().handed_over.blocks;
    for n in 1..=20 {
        thread::spawn(|| HELD.with(|held| held.0.borrow_mut().push(touched(MIB)))).join().unwrap();
        // The block held and that of 3 MiB; growing from 1 to 4 MiB frees some more.
        let freed = GLOBAL.stats().handed_over.blocks - before;
        assert!(freed >= 3 * n, "{freed} after {n} threads");
    }
    drop(one);
    GLOBAL.flush();
    assert_eq!(GLOBAL.stats().pending.blocks, 0);
}
