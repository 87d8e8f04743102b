//! The real ones.

pub(crate) use std::sync::{Condvar, Mutex, atomic};
pub(crate) use std::thread;
pub(crate) use std::time::Instant;

pub(crate) use crossbeam_queue::ArrayQueue;

pub(crate) use crate::sys::membarrier as heavy_fence;
pub(crate) use crate::sys::{futex_wait, futex_wake_one};

/// The side of a pair of fences that costs nothing: `heavy_fence`, on the other side, is a full fence on
/// this thread too, and the compiler keeps the order.
#[inline(always)]
pub(crate) fn light_fence() {
    atomic::compiler_fence(atomic::Ordering::SeqCst);
}
