//! Values of all kinds arrive at the dropper.
//!
//! Seen to fail: `sizes_and_alignments` with `IN_PLACE` looking at the size alone, and with values of
//! size 0 dropped where the words are, and with those written there where the standard library has its debug
//! assertions; `nested_hand_offs_stay_on_the_dropper` without the flag that
//! says which thread that is; `a_smart_pointer_hands_over` when it drops its value itself.
// Where there is no dropper, every value is dropped inline.
#![cfg(not(deferfree_inline))]

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, ThreadId};
use std::time::Duration;

use deferfree::{Later, flush_values, flush_values_timeout, later};

/// Says where it was dropped.
struct Trace(Arc<Mutex<Vec<ThreadId>>>);

impl Drop for Trace {
    fn drop(&mut self) {
        self.0.lock().unwrap().push(thread::current().id());
    }
}

/// Where the values made by `f` were dropped.
fn traced(f: impl FnOnce(&dyn Fn() -> Trace)) -> Vec<ThreadId> {
    let log = Arc::new(Mutex::new(Vec::new()));
    f(&|| Trace(Arc::clone(&log)));
    assert!(flush_values());
    let log = log.lock().unwrap();
    log.clone()
}

/// Until the dropper runs, which another test may be starting.
fn warm_up() {
    while traced(|trace| later(trace())) == [thread::current().id()] {
        thread::yield_now();
    }
}

#[test]
fn all_on_one_other_thread() {
    warm_up();
    let threads = traced(|trace| (0..100).for_each(|_| later(trace())));
    assert_eq!(threads.len(), 100);
    assert_eq!(HashSet::<_>::from_iter(&threads).len(), 1);
    assert_ne!(threads[0], thread::current().id());
}

#[test]
fn sizes_and_alignments() {
    static DROPS: AtomicUsize = AtomicUsize::new(0);

    macro_rules! aligned {
        ($name:ident, $align:literal) => {
            #[repr(align($align))]
            struct $name<const N: usize>([u8; N]);
            impl<const N: usize> Drop for $name<N> {
                fn drop(&mut self) {
                    // Hidden from the compiler, which would otherwise know.
                    let address = std::hint::black_box(self as *const Self).addr();
                    assert_eq!(address % $align, 0, "{N} bytes aligned to {}", $align);
                    assert!(self.0.iter().all(|&byte| byte == (N % 251) as u8));
                    DROPS.fetch_add(1, Ordering::Relaxed);
                }
            }
        };
    }
    aligned!(A2, 2);
    aligned!(A8, 8);
    aligned!(A16, 16);
    aligned!(A64, 64);
    aligned!(A4096, 4096);

    let mut n = 0;
    macro_rules! hand_over {
        ($($size:literal)*) => {$(
            later(A2([($size as usize % 251) as u8; $size]));
            later(A8([($size as usize % 251) as u8; $size]));
            later(A16([($size as usize % 251) as u8; $size]));
            later(A64([($size as usize % 251) as u8; $size]));
            later(A4096([($size as usize % 251) as u8; $size]));
            n += 5;
        )*};
    }
    hand_over!(0 1 7 8 40 47 48 49 64 100 5000 100_000);
    assert!(flush_values());
    assert_eq!(DROPS.load(Ordering::Relaxed), n);
}

#[test]
fn nested_hand_offs_stay_on_the_dropper() {
    struct Outer(Option<Trace>);
    impl Drop for Outer {
        fn drop(&mut self) {
            later(self.0.take());
            // Done already: it was dropped inline.
        }
    }
    warm_up();
    let threads = traced(|trace| {
        later(Outer(Some(trace())));
        later(trace());
    });
    assert_eq!(threads.len(), 2);
    assert_eq!(threads[0], threads[1]);
}

#[test]
fn flush_without_values() {
    assert!(flush_values());
    assert!(flush_values_timeout(Duration::from_secs(60)));
    assert!(flush_values_timeout(Duration::MAX));
}

#[test]
fn a_smart_pointer_hands_over() {
    warm_up();
    let threads = traced(|trace| drop(Later::new(trace())));
    assert_eq!(threads.len(), 1);
    assert_ne!(threads[0], thread::current().id());
}

#[test]
fn a_smart_pointer_gives_its_value_back() {
    let threads = traced(|trace| {
        let value = Later::into_inner(Later::from(trace()));
        assert!(value.0.lock().unwrap().is_empty());
        drop(value);
    });
    assert_eq!(threads, [thread::current().id()]);
}

#[test]
fn a_smart_pointer_is_like_its_value() {
    let mut list = Later::new(vec![1, 2]);
    list.push(3);
    list.as_mut().push(4);
    assert_eq!(list.len(), 4);
    assert_eq!(list.as_ref().as_slice(), [1, 2, 3, 4]);
    assert_eq!(format!("{list:?}"), "[1, 2, 3, 4]");
    assert_eq!(format!("{}", Later::new("text".to_owned())), "text");
    let copy = list.clone();
    assert_eq!(copy, list);
    list[0] = 9;
    assert!(copy < list);
    assert_eq!(copy[0], 1);
    assert!(Later::<Vec<u8>>::default().is_empty());
    assert_eq!(BTreeSet::from([copy.clone(), list.clone()]).len(), 2);
    assert_eq!(HashMap::from([(copy, 1)]).len(), 1);
    assert_eq!(size_of::<Later<Vec<u8>>>(), size_of::<Vec<u8>>());
}
