//! Models of the drainer: how it sleeps, is woken, flushed and stopped; see `sync`.

use std::alloc::{GlobalAlloc, Layout};
use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;
use std::ptr::{self, NonNull};

use super::Runtime;
use crate::backing::Backing;
use crate::burst::{BURSTS, Written, local};
use crate::config::Config;
use crate::drainer;
use crate::huge::Use;
use crate::pending::{Block, Class};
use crate::sync::check;
use crate::sync::thread::{self, JoinHandle, Thread};

thread_local! {
    /// Addresses of blocks that have been allocated and not been freed.
    static LIVE: RefCell<BTreeSet<usize>> = const { RefCell::new(BTreeSet::new()) };
    static N_PURGES: Cell<usize> = const { Cell::new(0) };
    /// To be told of purges.
    static WATCHER: RefCell<Option<Thread>> = const { RefCell::new(None) };
}

/// Gives out addresses.
#[derive(Clone, Copy)]
struct Addresses;

const STEP: usize = 1 << 20;

// SAFETY: the addresses are not used.
unsafe impl GlobalAlloc for Addresses {
    unsafe fn alloc(&self, _: Layout) -> *mut u8 {
        LIVE.with_borrow_mut(|live| {
            let address = live.last().map_or(STEP, |last| last + STEP);
            live.insert(address);
            ptr::without_provenance_mut(address)
        })
    }

    unsafe fn dealloc(&self, ptr: *mut u8, _: Layout) {
        assert!(LIVE.with_borrow_mut(|live| live.remove(&ptr.addr())), "freed twice");
    }
}

// SAFETY: as above.
unsafe impl Backing for Addresses {
    fn purge(&self) {
        N_PURGES.set(N_PURGES.get() + 1);
        if let Some(watcher) = WATCHER.with_borrow(Option::clone) {
            watcher.unpark();
        }
    }
}

fn is_live(block: *mut u8) -> bool {
    LIVE.with_borrow(|live| live.contains(&block.addr()))
}

fn class() -> Class {
    Class::from_index(0)
}

type ModelRuntime = Runtime<Addresses>;

/// A runtime and its drainer, as `Runtime::start` makes them but for the thread, which can be joined.
struct Running {
    runtime: NonNull<ModelRuntime>,
    drainer: JoinHandle<()>,
}

impl Running {
    fn start() -> Running {
        Running::with_room_for(2)
    }

    fn with_room_for(n_blocks: usize) -> Running {
        LIVE.with_borrow_mut(BTreeSet::clear);
        N_PURGES.set(0);
        WATCHER.set(Some(thread::current()));
        let config = Config {
            enabled: true,
            threshold_bytes: class().bytes(),
            burst: Some(0),
            // Everything that waits is freed in each round.
            delay_ms: 0,
            max_pending_bytes: n_blocks * class().bytes(),
        };
        let runtime = ModelRuntime::build(Addresses, config, 0).unwrap();
        let owner = runtime.addr().get();
        assert!(BURSTS.claim(owner, 0));
        let drainer = thread::spawn(move || {
            // SAFETY: it is there until this thread destroys it.
            let this = unsafe { runtime.as_ref() };
            let delay = std::time::Duration::ZERO;
            drainer::run(Addresses, &this.pending, &this.control, delay, owner);
            // SAFETY: the drainer has ended and nothing waits.
            unsafe { ModelRuntime::destroy(runtime) };
        });
        Running { runtime, drainer }
    }

    fn get(&self) -> &'static ModelRuntime {
        // SAFETY: it is there until the drainer has been stopped, by which the models' other threads have ended.
        unsafe { &*self.runtime.as_ptr() }
    }

    fn end(self) {
        self.get().stop();
        self.drainer.join();
        assert_eq!(LIVE.with_borrow(BTreeSet::len), 0, "not all blocks were freed");
    }
}

fn alloc(runtime: &ModelRuntime) -> *mut u8 {
    let block =
        runtime.alloc(class(), Layout::from_size_align(class().bytes(), 8).unwrap(), Use::Plain);
    assert!(is_live(block));
    block
}

fn free(runtime: &ModelRuntime, block: *mut u8) {
    // SAFETY: `alloc` made it.
    unsafe { runtime.dealloc(class(), block) };
}

/// Waits until `condition` holds; looks again after each purge.
fn wait_until(condition: impl Fn() -> bool) {
    while !condition() {
        thread::park();
    }
}

/// Blocks that are freed as the drainer falls asleep, or sleeps, or works.
///
/// Seen to fail where the free that ends its sleep does not wake it, and where D1 does not look for 0.
#[test]
fn a_free_wakes_the_drainer() {
    check(Some(1), 96, || {
        let running = Running::start();
        let runtime = running.get();
        let (first, second) = (alloc(runtime), alloc(runtime));
        let other = thread::spawn(move || free(runtime, first));
        free(runtime, second);
        wait_until(|| !is_live(first) && !is_live(second));
        other.join();
        running.end();
    });
}

/// Memory that a thread gave back itself is purged.
///
/// Seen to fail without F2, where D2 does not look at `dirty`, and where F1 to D2 are Acquire and Release.
#[test]
fn memory_given_back_is_purged() {
    check(Some(3), 96, || {
        let running = Running::start();
        let runtime = running.get();
        runtime.control.note_given_back(&runtime.pending);
        wait_until(|| N_PURGES.get() >= 1);
        running.end();
    });
}

fn free_and_flush(runtime: &ModelRuntime, block: *mut u8) {
    free(runtime, block);
    runtime.flush();
    assert!(!is_live(block));
}

/// Seen to fail without `hurry`, without its wake-up, and where the one who notifies does not take the lock.
#[test]
fn a_flush_frees_what_came_before() {
    check(Some(3), 96, || {
        let running = Running::start();
        let runtime = running.get();
        free_and_flush(runtime, alloc(runtime));
        running.end();
    });
}

/// Seen to fail where the drainer reads the ticket after it has drained, where D2 does not look at `hurry`, and
/// without the wake-up or the lock.
#[test]
fn each_flush_is_heard() {
    check(Some(2), 96, || {
        let running = Running::start();
        let runtime = running.get();
        let block = alloc(runtime);
        let other = thread::spawn(move || free_and_flush(runtime, block));
        runtime.flush();
        other.join();
        running.end();
    });
}

/// A thread that is in the midst of putting a block in is in nobody's way, be it ahead of what a flush is to find.
#[test]
fn a_flush_frees_what_is_behind_another() {
    check(Some(1), 96, || {
        let running = Running::with_room_for(3);
        let runtime = running.get();
        let [another, mine, last] = [(); 3].map(|()| alloc(runtime));
        let put = runtime.pending.begin_to_put(class());
        // SAFETY: `alloc` made it.
        let other = thread::spawn(move || put(unsafe { Block::new(another) }));
        free(runtime, mine);
        free_and_flush(runtime, last);
        assert!(!is_live(mine));
        other.join();
        running.end();
    });
}

/// Nor is one whose whole free is under way meanwhile.
#[test]
fn a_flush_frees_what_came_before_beside_others() {
    check(Some(1), 96, || {
        let running = Running::with_room_for(3);
        let runtime = running.get();
        let (mine, another) = (alloc(runtime), alloc(runtime));
        let other = thread::spawn(move || free(runtime, another));
        free_and_flush(runtime, mine);
        other.join();
        running.end();
    });
}

/// Seen to fail where `stop` wakes nobody, where the drainer parks without looking at it, and where it is gone,
/// with what it parks on, before the one who stops it.
#[test]
fn a_stop_leaves_nothing() {
    check(Some(3), 96, || {
        let running = Running::start();
        let runtime = running.get();
        free(runtime, alloc(runtime));
        running.end();
    });
}

/// What is in a log keeps the drainer awake; once the log is closed, who opens it wakes the drainer.
///
/// Seen to fail where the first block of a chunk is written when the chunk can be found already: the drainer closed it.
#[test]
fn a_small_block_wakes_the_drainer() {
    check(Some(2), 160, || {
        let running = Running::start();
        let runtime = running.get();
        // Loom's threads are one to the thread-locals, as are its executions.
        let local = local::here().unwrap();
        local.forked_child();
        // The first one in a new chunk, the second one where the drainer has been.
        for _ in 0..2 {
            let block = alloc(runtime);
            match runtime.defer_small(local, block, 8) {
                Written::Opened => {
                    runtime.note_opened();
                    wait_until(|| !is_live(block));
                }
                // The drainer may just have closed the log, and finds the block the next time.
                Written::Yes => {}
                Written::No => panic!("nothing keeps it from being written"),
            }
        }
        running.end();
    });
}
