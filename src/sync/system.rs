//! The real ones.

pub(crate) use std::sync::{Condvar, Mutex, atomic};
pub(crate) use std::thread;
pub(crate) use std::time::Instant;

pub(crate) use crate::sys::{futex_wait, futex_wake_one};

/// What lies in memory and is not atomic.
#[repr(transparent)]
pub(crate) struct Contents<T>(std::cell::UnsafeCell<T>);

impl<T> Contents<T> {
    pub(crate) const fn new(value: T) -> Self {
        Contents(std::cell::UnsafeCell::new(value))
    }

    pub(crate) fn get_mut(&mut self) -> &mut T {
        self.0.get_mut()
    }

    /// # Safety
    /// As for `ptr::read`, and no other thread is at it.
    #[inline]
    pub(crate) unsafe fn read(&self) -> T {
        // SAFETY: the caller's word.
        unsafe { self.0.get().read() }
    }

    /// # Safety
    /// No other thread is at it.
    #[inline]
    pub(crate) unsafe fn write(&self, value: T) {
        // SAFETY: the caller's word.
        unsafe { self.0.get().write(value) };
    }
}
