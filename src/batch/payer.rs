//! How a thread that ends gets at the owner of the batches, to free what it has deferred.
//!
//! The end of a thread is no use of the allocator that whoever drops one could know of. So the owner may be
//! about to go:
//!
//! ```text
//! the thread                             the owner's drainer, once it is to end
//! P1  n_paying += 1                      W1  pay = null
//! P2  reads pay; null: leaves            W2  waits until n_paying is 0
//!     frees by the owner                     the owner goes
//! P3  n_paying -= 1
//! ```
//!
//! P1, P2, W1 and W2 are sequentially consistent, so either P2 comes after W1, or W2 after P1. P3 is a Release
//! that W2 acquires.

use std::mem;
use std::ptr::{self, NonNull};
use std::time::Duration;

use crate::sync::atomic::{AtomicPtr, AtomicUsize, Ordering};
use crate::sync::thread;

/// Frees all that the calling thread has deferred. Its argument is what `announce` was given with it.
pub(crate) type Pay = unsafe fn(NonNull<()>);

pub(super) struct Payer {
    /// A `Pay`, or null.
    pay: AtomicPtr<()>,
    owner: AtomicPtr<()>,
    n_paying: AtomicUsize,
}

impl Payer {
    pub(super) const fn new() -> Payer {
        Payer {
            pay: AtomicPtr::new(ptr::null_mut()),
            owner: AtomicPtr::new(ptr::null_mut()),
            n_paying: AtomicUsize::new(0),
        }
    }

    /// For the one owner.
    ///
    /// # Safety
    /// `pay` may be called with `owner` on any thread until `withdraw` has returned.
    pub(super) unsafe fn announce(&self, owner: NonNull<()>, pay: Pay) {
        self.owner.store(owner.as_ptr(), Ordering::Relaxed);
        // Release, which this is too: the owner belongs to it.
        self.pay.store(pay as *mut (), Ordering::SeqCst);
    }

    /// Waits until no thread pays.
    pub(super) fn withdraw(&self) {
        self.pay.store(ptr::null_mut(), Ordering::SeqCst);
        while self.n_paying.load(Ordering::SeqCst) != 0 {
            thread::sleep(Duration::from_micros(50));
        }
    }

    /// Frees all that the calling thread has deferred, if there is an owner.
    pub(super) fn call(&self) {
        self.n_paying.fetch_add(1, Ordering::SeqCst);
        let pay = self.pay.load(Ordering::SeqCst);
        if !pay.is_null() {
            // SAFETY: `announce` stored both, and the next owner announces itself only after this one has
            // withdrawn, which waits.
            unsafe {
                let owner = NonNull::new_unchecked(self.owner.load(Ordering::Relaxed));
                mem::transmute::<*mut (), Pay>(pay)(owner);
            }
        }
        self.n_paying.fetch_sub(1, Ordering::Release);
    }

    /// In a forked child, on its only thread.
    pub(super) fn forked_child(&self) {
        self.pay.store(ptr::null_mut(), Ordering::Relaxed);
        self.n_paying.store(0, Ordering::Relaxed);
    }
}
