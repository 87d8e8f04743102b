//! The global allocator of a bench: that of one of the contenders, chosen per process by an
//! environment variable.

use std::alloc::{GlobalAlloc, Layout, System};
use std::ffi::CStr;
use std::sync::atomic::{AtomicU8, Ordering::Relaxed};

use deferfree::DeferFree;
use mimalloc::MiMalloc;
use tikv_jemallocator::Jemalloc;

pub(crate) const VARIABLE: &str = "BENCH_ALLOCATOR";
const VARIABLE_C: &CStr = c"BENCH_ALLOCATOR";

/// A new contender needs a variant, a name in `NAMED` and an arm in `of_this_process` and in
/// `with_chosen!`.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[repr(u8)]
pub(crate) enum Contender {
    /// Rust's default: glibc's malloc on Linux.
    System = 1,
    /// The `mimalloc` crate, as a program would use it.
    Mimalloc,
    Deferfree,
    /// mimalloc whose `dealloc` does nothing: what a drop costs besides freeing. It leaks, so it is
    /// for one drop and no more.
    Floor,
    /// mimalloc that purges within the free.
    MimallocPurge0,
    /// jemalloc as the `tikv-jemallocator` crate has it.
    Jemalloc,
    JemallocBackground,
    /// The system's allocator in a program that drops values by `thread::spawn`.
    Spawn,
    /// The system's allocator in a program that drops values by the `defer-drop` crate.
    DeferDrop,
}

const NAMED: [(Contender, &str); 9] = [
    (Contender::System, "glibc"),
    (Contender::Mimalloc, "mimalloc"),
    (Contender::MimallocPurge0, "mimalloc purge 0"),
    (Contender::Jemalloc, "jemalloc"),
    (Contender::JemallocBackground, "jemalloc bg thread"),
    (Contender::Spawn, "thread::spawn"),
    (Contender::DeferDrop, "defer-drop"),
    (Contender::Deferfree, "deferfree"),
    (Contender::Floor, "floor"),
];

/// As [`MiMalloc`], but that nothing is freed.
#[derive(Debug)]
struct Leaking;

// SAFETY: mimalloc's own methods; a block that is never freed breaks no promise.
unsafe impl GlobalAlloc for Leaking {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller's promises are passed on.
        unsafe { MiMalloc.alloc(layout) }
    }

    unsafe fn dealloc(&self, _ptr: *mut u8, _layout: Layout) {}

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller's promises are passed on.
        unsafe { MiMalloc.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, ptr: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        // SAFETY: the caller's promises are passed on.
        unsafe { MiMalloc.realloc(ptr, layout, new_size) }
    }
}

impl Contender {
    pub(crate) fn name(self) -> &'static str {
        NAMED.iter().find(|(contender, _)| *contender == self).map_or("?", |(_, name)| name)
    }

    pub(crate) fn from_name(name: &[u8]) -> Option<Self> {
        NAMED.iter().find(|(_, known)| known.as_bytes() == name).map(|(contender, _)| *contender)
    }

    /// What the contender's processes find in their environment.
    pub(crate) fn environment(self) -> Option<(&'static str, &'static str)> {
        match self {
            Self::MimallocPurge0 => Some(("MIMALLOC_PURGE_DELAY", "0")),
            // `tikv-jemalloc-sys` gives jemalloc this prefix, and its variable too.
            Self::JemallocBackground => Some(("_RJEM_MALLOC_CONF", "background_thread:true")),
            _ => None,
        }
    }

    /// The contender of this process; the system's allocator in the parent, which is not told one.
    #[inline]
    pub(crate) fn of_this_process() -> Self {
        match CHOICE.load(Relaxed) {
            2 => Self::Mimalloc,
            3 => Self::Deferfree,
            4 => Self::Floor,
            1 => Self::System,
            5 => Self::MimallocPurge0,
            6 => Self::Jemalloc,
            7 => Self::JemallocBackground,
            8 => Self::Spawn,
            9 => Self::DeferDrop,
            _ => read_choice(),
        }
    }
}

/// 0 until the variable has been read.
static CHOICE: AtomicU8 = AtomicU8::new(0);
static DEFERFREE: DeferFree = DeferFree::new();

/// `std::env::var` allocates, so inside the allocator the variable is read with C's `getenv`.
/// Threads that get here together store the same value.
#[cold]
fn read_choice() -> Contender {
    // SAFETY: the name ends in NUL, and a bench never changes its own environment.
    let value = unsafe { libc::getenv(VARIABLE_C.as_ptr()) };
    let named = if value.is_null() {
        None
    } else {
        // SAFETY: `getenv` returned a string that ends in NUL and that nobody changes.
        Contender::from_name(unsafe { CStr::from_ptr(value) }.to_bytes())
    };
    let choice = named.unwrap_or(Contender::System);
    CHOICE.store(choice as u8, Relaxed);
    choice
}

/// Every contender is reached through this switch: one relaxed load and a branch, the same for all.
#[derive(Debug)]
pub(crate) struct Switch;

macro_rules! with_chosen {
    ($method:ident($($argument:expr),*)) => {
        match Contender::of_this_process() {
            Contender::System | Contender::Spawn | Contender::DeferDrop => {
                System.$method($($argument),*)
            }
            Contender::Mimalloc | Contender::MimallocPurge0 => MiMalloc.$method($($argument),*),
            Contender::Jemalloc | Contender::JemallocBackground => {
                Jemalloc.$method($($argument),*)
            }
            Contender::Deferfree => DEFERFREE.$method($($argument),*),
            Contender::Floor => Leaking.$method($($argument),*),
        }
    };
}

// SAFETY: the choice never changes once read, so each block goes back to the allocator it came
// from.
unsafe impl GlobalAlloc for Switch {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller's promises are passed on.
        unsafe { with_chosen!(alloc(layout)) }
    }

    unsafe fn dealloc(&self, ptr: *mut u8, layout: Layout) {
        // SAFETY: the caller's promises are passed on.
        unsafe { with_chosen!(dealloc(ptr, layout)) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller's promises are passed on.
        unsafe { with_chosen!(alloc_zeroed(layout)) }
    }

    unsafe fn realloc(&self, ptr: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        // SAFETY: the caller's promises are passed on.
        unsafe { with_chosen!(realloc(ptr, layout, new_size)) }
    }
}
