//! What the crate believes and does about mimalloc's options, whose numbers are in no binding.
//!
//! Seen to fail: with another number for `purge_delay`, `while_the_drainer_runs`;
//! without `restore_purge`, `while_it_sleeps` and `in_a_forked_child`; with `mi_option_set` instead of
//! `mi_option_set_default`, `what_the_user_set_stands`.

use crate::common;

use std::alloc::{GlobalAlloc, Layout};
use std::process::ExitCode;

use common::{MIB, fork, run_child, wait_ok};
use deferfree::DeferFree;
use libmimalloc_sys as ffi;

/// Not the global allocator: some children look at mimalloc as it is without this crate.
/// What it is given keeps its drainer awake until `flush`.
static LOCAL: DeferFree = DeferFree::new().delay_ms(600_000);

/// As in `src/backing/mimalloc.rs`.
const PURGE_DELAY: i32 = 15;
const DESTROY_ON_EXIT: i32 = 22;

pub(crate) fn main() -> ExitCode {
    match common::child_case().as_deref() {
        Some("print") => println!("{} {}", option(PURGE_DELAY), option(DESTROY_ON_EXIT)),
        Some("after start") => {
            use_it();
            println!("{} {}", option(PURGE_DELAY), option(DESTROY_ON_EXIT));
        }
        Some("exit") => exit_child(),
        Some("sleep") => while_it_sleeps_child(),
        Some("fork") => fork_child(),
        Some(case) => panic!("{case}"),
        None => {
            return common::run(&[
                ("version", version),
                ("numbers", numbers),
                ("while_the_drainer_runs", while_the_drainer_runs),
                ("while_it_sleeps", || run_child("sleep", &[], 20).expect_clean()),
                ("what_the_user_set_stands", what_the_user_set_stands),
                ("at_exit", at_exit),
                ("in_a_forked_child", || run_child("fork", &[], 20).expect_clean()),
            ]);
        }
    }
    ExitCode::SUCCESS
}

fn option(number: i32) -> i64 {
    // SAFETY: options are plain numbers.
    unsafe { ffi::mi_option_get(number) }
}

fn use_it() {
    let layout = Layout::from_size_align(16 * MIB, 8).unwrap();
    // SAFETY: a valid layout; freed as allocated.
    unsafe { LOCAL.dealloc(LOCAL.alloc(layout), layout) };
    assert!(LOCAL.stats().drainer_running);
    // If it was asleep, taking over is the first thing it does.
    let user_set = std::env::var_os("MIMALLOC_PURGE_DELAY").is_some();
    common::wait_until("the drainer owns the purge", || user_set || option(PURGE_DELAY) == 30_000);
}

#[track_caller]
fn options(case: &str, env: &[(&str, &str)]) -> (i64, i64) {
    let output = run_child(case, env, 20);
    output.expect_clean();
    let (purge_delay, destroy_on_exit) = output.stdout.trim().split_once(' ').unwrap();
    (purge_delay.parse().unwrap(), destroy_on_exit.parse().unwrap())
}

fn is_v2() -> bool {
    // SAFETY: a constant.
    unsafe { ffi::mi_version() == 20_302 }
}

/// One on which this test has not been run yet is not in the crate's list, and keeps its own settings.
fn version() {
    // SAFETY: a constant.
    let version = unsafe { ffi::mi_version() };
    assert!(
        version == 30_302 || is_v2(),
        "{version}: see `KNOWN_VERSIONS` in src/backing/mimalloc.rs"
    );
    assert_eq!(is_v2(), cfg!(feature = "_mimalloc_v2"));
}

/// The names are those of the environment; the numbers must come out as the same options.
fn numbers() {
    let (purge_delay, destroy_on_exit) = options("print", &[]);
    let default = if is_v2() { 10 } else { 1000 };
    assert_eq!((purge_delay, destroy_on_exit), (default, 0), "the defaults of 3.3.2 and 2.3.2");
    assert_eq!(options("print", &[("MIMALLOC_PURGE_DELAY", "1234")]), (1234, destroy_on_exit));
    assert_eq!(options("print", &[("MIMALLOC_DESTROY_ON_EXIT", "1")]), (purge_delay, 1));
}

fn while_the_drainer_runs() {
    assert_eq!(options("after start", &[]), (30_000, 0));
}

fn what_the_user_set_stands() {
    for value in ["1234", "0", "-1", "60000"] {
        let set = [("MIMALLOC_PURGE_DELAY", value)];
        assert_eq!(options("after start", &set).0, value.parse().unwrap());
    }
    assert_eq!(options("after start", &[("MIMALLOC_DESTROY_ON_EXIT", "1")]), (30_000, 1));
}

/// mimalloc has nothing to do, unless it is to print its numbers.
fn at_exit() {
    assert_eq!(options("exit", &[]), (-1, 2));
    assert_eq!(options("exit", &[("MIMALLOC_DESTROY_ON_EXIT", "1")]), (-1, 2));
    let output = run_child("exit", &[("MIMALLOC_SHOW_STATS", "1")], 20);
    assert_eq!(output.stdout.trim(), "-1 0");
    assert!(output.stderr.contains("committed"), "{}", output.stderr);
}

fn exit_child() {
    extern "C" fn print() {
        println!("{} {}", option(PURGE_DELAY), option(DESTROY_ON_EXIT));
    }
    // Before the crate's own, so that it is called after it.
    // SAFETY: a function that may be called at exit.
    assert_eq!(unsafe { libc::atexit(print) }, 0);
    use_it();
}

/// Nobody else purges while the drainer sleeps.
fn while_it_sleeps_child() {
    let default = option(PURGE_DELAY);
    for _ in 0..3 {
        use_it();
        LOCAL.flush();
        common::wait_until("mimalloc owns the purge", || option(PURGE_DELAY) == default);
    }
}

fn fork_child() {
    let default = option(PURGE_DELAY);
    use_it();
    assert_eq!(option(PURGE_DELAY), 30_000);
    wait_ok(fork(10, || {
        // Nobody else purges until there is a drainer.
        assert_eq!(option(PURGE_DELAY), default);
        wait_ok(fork(10, || assert_eq!(option(PURGE_DELAY), default)));
        use_it();
        assert_eq!(option(PURGE_DELAY), 30_000);
        wait_ok(fork(10, || assert_eq!(option(PURGE_DELAY), default)));
    }));
    assert_eq!(option(PURGE_DELAY), 30_000);
}
