//! How each contender gets rid of a value.

use std::thread;

use defer_drop::DeferDrop;

use super::contender::Contender;

/// What stands in this contender's program where a value is no longer needed.
#[inline]
pub(crate) fn discard<T: Send + 'static>(value: T) {
    match Contender::of_this_process() {
        // Where no thread can be started, the closure is dropped here and now, the value with it.
        Contender::Spawn => drop(thread::Builder::new().spawn(move || drop(value))),
        Contender::DeferDrop => drop(DeferDrop::new(value)),
        _ => drop(value),
    }
}
