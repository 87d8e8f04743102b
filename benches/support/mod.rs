//! What the benches share: the contenders and their programs, child processes that take turns, and
//! the measuring of time and memory.
//!
//! `allocator.rs`, the allocator that is chosen when a process starts, is not among the modules: the
//! benches that have it name it themselves. A program that as much as names `deferfree` links some of
//! it, and mimalloc with it, because generic functions are shared between crates.
//!
//! Nothing here allocates while a measurement runs: figures go into histograms and ledgers that
//! were made before.

#![allow(dead_code, reason = "each bench uses a part of it")]

pub(crate) mod block;
pub(crate) mod children;
pub(crate) mod contender;
pub(crate) mod discard;
pub(crate) mod machine;
pub(crate) mod memory;
pub(crate) mod programs;
pub(crate) mod random;
pub(crate) mod section;
pub(crate) mod starts;
pub(crate) mod structures;
pub(crate) mod table;
pub(crate) mod timing;

/// How much a run does.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Scale {
    /// Figures to publish.
    Full,
    /// Figures that show the direction, in a few minutes.
    Quick,
    /// Every line of code runs once; the figures mean nothing.
    Test,
}

impl Scale {
    /// Reads the arguments as criterion does: `cargo bench` passes `--bench`, `cargo test` does
    /// not.
    pub(crate) fn from_arguments() -> Self {
        let given = |flag: &str| std::env::args().any(|argument| argument == flag);
        if given("--test") || !given("--bench") && !given("--quick") {
            Self::Test
        } else if given("--quick") {
            Self::Quick
        } else {
            Self::Full
        }
    }

    pub(crate) fn pick<T>(self, full: T, quick: T, test: T) -> T {
        match self {
            Self::Full => full,
            Self::Quick => quick,
            Self::Test => test,
        }
    }

    pub(crate) fn name(self) -> &'static str {
        self.pick("full", "quick", "test")
    }

    pub(crate) fn from_name(name: &str) -> Option<Self> {
        [Self::Full, Self::Quick, Self::Test].into_iter().find(|scale| scale.name() == name)
    }
}

pub(crate) const KIB: usize = 1 << 10;
pub(crate) const MIB: usize = 1 << 20;
pub(crate) const GIB: usize = 1 << 30;

/// `65536` as `64 KiB`.
pub(crate) fn size_name(bytes: usize) -> String {
    match bytes {
        GIB.. if bytes % GIB == 0 => format!("{} GiB", bytes / GIB),
        MIB.. if bytes % MIB == 0 => format!("{} MiB", bytes / MIB),
        MIB.. => format!("{:.1} MiB", bytes as f64 / MIB as f64),
        _ => format!("{} KiB", bytes / KIB),
    }
}
