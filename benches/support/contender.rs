//! Who is measured, and how a process knows which contender it is.

use std::ffi::CStr;
use std::sync::atomic::{AtomicU8, Ordering::Relaxed};

pub(crate) const VARIABLE: &str = "BENCH_ALLOCATOR";
const VARIABLE_C: &CStr = c"BENCH_ALLOCATOR";

/// A new contender needs a variant, a name in `NAMED`, and an arm in `of_this_process` and in the
/// `Switch` of `allocator.rs`.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[repr(u8)]
pub(crate) enum Contender {
    /// Rust's default: glibc's malloc on Linux.
    System = 1,
    /// The `mimalloc` crate, as a program would use it.
    Mimalloc,
    Deferfree,
    /// mimalloc whose `dealloc` does nothing: what a drop costs besides freeing. It leaks, so it is
    /// for a few drops and no more.
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
    /// `Mimalloc` once more, in processes of its own: how far apart two figures of the same thing lie.
    MimallocAgain,
    /// Nothing is deferred.
    DeferfreeOff,
    /// Large blocks are deferred, small ones are not.
    BurstsOff,
    /// The `mimalloc-pprof` crate as it comes: a mimalloc with a thread that purges.
    MimallocPprof,
    /// As the `snmalloc-rs` crate has it.
    Snmalloc,
}

const NAMED: [(Contender, &str); 14] = [
    (Contender::System, "glibc"),
    (Contender::Mimalloc, "mimalloc"),
    (Contender::MimallocAgain, "mimalloc again"),
    (Contender::MimallocPurge0, "mimalloc purge 0"),
    (Contender::MimallocPprof, "mimalloc-pprof"),
    (Contender::Snmalloc, "snmalloc"),
    (Contender::Jemalloc, "jemalloc"),
    (Contender::JemallocBackground, "jemalloc bg thread"),
    (Contender::Spawn, "thread::spawn"),
    (Contender::DeferDrop, "defer-drop"),
    (Contender::Deferfree, "deferfree"),
    (Contender::DeferfreeOff, "deferfree off"),
    (Contender::BurstsOff, "bursts off"),
    (Contender::Floor, "floor"),
];

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
            Self::DeferfreeOff => Some(("DEFERFREE", "off")),
            Self::BurstsOff => Some(("DEFERFREE_BURST", "off")),
            _ => None,
        }
    }

    /// Whether the program has it.
    pub(crate) fn is_built(self) -> bool {
        self != Self::Snmalloc || cfg!(feature = "snmalloc")
    }

    /// This crate, under whatever settings.
    pub(crate) fn is_ours(self) -> bool {
        matches!(self, Self::Deferfree | Self::DeferfreeOff | Self::BurstsOff)
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
            10 => Self::MimallocAgain,
            11 => Self::DeferfreeOff,
            12 => Self::BurstsOff,
            13 => Self::MimallocPprof,
            14 => Self::Snmalloc,
            _ => read_choice(),
        }
    }
}

/// 0 until the variable has been read.
static CHOICE: AtomicU8 = AtomicU8::new(0);

/// `std::env::var` allocates, and an allocator may ask: the variable is read with C's `getenv`.
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
