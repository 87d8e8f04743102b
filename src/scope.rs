//! A stretch of a thread's life in which it frees nothing itself.

use std::marker::PhantomData;

use crate::burst::local;

/// Defers the frees of this thread, small ones too, until the returned value is dropped: all but those of blocks between
/// 16 KiB and the threshold, and of large ones as long as no drainer runs.
///
/// For a thread that must not pay for freeing at all: one that draws, plays sound or answers a request.
/// Without it small frees are deferred from a burst on only, because a block that is freed and allocated
/// again at once is best left to the allocator. In a scope each such block costs a cache miss at the
/// next allocation, and freed memory is used again later.
///
/// Scopes may be nested. Where nothing is deferred (`DEFERFREE=off`), or as many bytes wait as may, or
/// the thread is about to end, blocks are freed at once as elsewhere.
///
/// ```
/// let frame: Vec<String> = (0..100).map(|i| i.to_string()).collect();
/// let _scope = deferfree::defer_scope();
/// drop(frame);
/// ```
#[must_use = "frees are deferred until the scope is dropped"]
pub fn defer_scope() -> DeferScope {
    if let Some(local) = local::here() {
        local.enter_scope();
    }
    DeferScope { of_this_thread: PhantomData }
}

/// See [`defer_scope`].
#[derive(Debug)]
pub struct DeferScope {
    /// Neither `Send` nor `Sync`.
    of_this_thread: PhantomData<*const ()>,
}

impl Drop for DeferScope {
    fn drop(&mut self) {
        if let Some(local) = local::here() {
            local.leave_scope();
        }
    }
}
