//! The report of allocators that are not the global one, and may be moved or dropped before the exit.
//!
//! Seen to fail: without `withdraw`, `dropped`; with each allocator claiming the report, `first_of_two`.

use crate::common;

use std::alloc::{GlobalAlloc, Layout};
use std::process::ExitCode;
use std::thread;

use common::{MIB, drainers, run_child, wait_until};
use deferfree::DeferFree;

const SECS: u64 = 30;

pub(crate) fn main() -> ExitCode {
    match common::child_case().as_deref() {
        None => {
            return common::run(&[
                ("moved", moved),
                ("dropped", dropped),
                ("dropped_at_exit", dropped_at_exit),
                ("first_of_two", first_of_two),
            ]);
        }
        Some("moved") => {
            let first = DeferFree::new();
            use_it(&first, 1);
            let moved = Box::new(first);
            use_it(&moved, 2);
            Box::leak(moved);
        }
        Some("dropped") => {
            let heap = DeferFree::new();
            use_it(&heap, 1);
            drop(heap);
            wait_until("the drainer has ended", || drainers().is_empty());
        }
        Some("dropped_at_exit") => dropped_at_exit_child(),
        Some("first_of_two") => {
            let first = Box::leak(Box::new(DeferFree::new()));
            let second = Box::leak(Box::new(DeferFree::new()));
            use_it(first, 3);
            use_it(second, 5);
            assert_eq!(first.stats().handed_over.blocks, 3);
            assert_eq!(second.stats().handed_over.blocks, 5);
        }
        Some(case) => panic!("{case}"),
    }
    ExitCode::SUCCESS
}

fn use_it(heap: &DeferFree, n_blocks: usize) {
    let layout = Layout::from_size_align(16 * MIB, 16).unwrap();
    for _ in 0..n_blocks {
        // SAFETY: a valid layout, and a block that is freed once.
        unsafe {
            let block = heap.alloc(layout);
            assert!(!block.is_null());
            heap.dealloc(block, layout);
        }
    }
}

/// Blocks that the report says were freed.
fn reported(case: &str) -> Option<u64> {
    let output = run_child(case, &[("DEFERFREE_STATS", "1")], SECS);
    output.expect_code(0);
    assert!(output.stderr.matches(", at exit\n").count() <= 1, "{output:?}");
    let mut lines = output.stderr.lines();
    let line = lines.find_map(|line| line.trim_start().strip_prefix("all, blocks"))?;
    line.split_whitespace().next()?.parse().ok()
}

fn moved() {
    assert_eq!(reported("moved"), Some(3));
}

fn dropped() {
    assert_eq!(reported("dropped"), None);
}

fn first_of_two() {
    assert_eq!(reported("first_of_two"), Some(3));
}

/// The report is written, or not, while its allocator is dropped on another thread.
fn dropped_at_exit() {
    for _ in 0..50 {
        reported("dropped_at_exit");
    }
}

fn dropped_at_exit_child() {
    let heap = DeferFree::new();
    use_it(&heap, 3);
    let pause = std::process::id() % 64;
    thread::spawn(move || {
        (0..pause * 100).for_each(|_| std::hint::spin_loop());
        drop(heap);
    });
    std::process::exit(0);
}
