//! Values without anything to drop start no thread. A process of its own: no other test may start it.
//!
//! Seen to fail without the `needs_drop` test in `later`.
#![cfg(all(target_os = "linux", not(deferfree_inline)))]

mod common;

use std::mem::ManuallyDrop;

use common::threads_named;
use deferfree::{Later, flush_values, later};

#[test]
fn no_thread() {
    later(1);
    later([0u64; 100]);
    later("static");
    later(ManuallyDrop::new(vec![1]));
    drop(Later::new(3));
    assert!(flush_values());
    assert!(!dropper_runs());
    later(vec![1]);
    assert!(flush_values());
    assert!(dropper_runs(), "or the test cannot tell");
}

fn dropper_runs() -> bool {
    !threads_named("deferfree-drop").is_empty()
}
