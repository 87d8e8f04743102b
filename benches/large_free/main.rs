//! What freeing large blocks costs, `deferfree` against plain mimalloc.
//!
//! `cargo bench --bench large_free` runs criterion's groups, which watch single operations for
//! regressions, and then the comparison: each contender in processes of its own, taking turns, with
//! latencies in histograms and CPU time and memory beside them.
//!
//! `-- recycle` runs the sections whose name contains `recycle`, `-- recycle/window` of those only
//! the cases with `window` in their name; `-- --quick` gives rough figures.
//! `BENCH_ALLOCATORS=glibc,mimalloc,deferfree` and `BENCH_REPETITIONS=9` change what is compared
//! and how often.

#[cfg(target_os = "linux")]
#[path = "../support/allocator.rs"]
mod allocator;
#[cfg(target_os = "linux")]
mod busy;
#[cfg(target_os = "linux")]
mod churn;
#[cfg(target_os = "linux")]
mod free;
#[cfg(target_os = "linux")]
mod growth;
#[cfg(target_os = "linux")]
mod idle;
#[cfg(target_os = "linux")]
mod mmap;
#[cfg(target_os = "linux")]
mod operations;
#[cfg(target_os = "linux")]
mod period;
#[cfg(target_os = "linux")]
mod parked;
#[cfg(target_os = "linux")]
mod phases;
#[cfg(target_os = "linux")]
mod preempted;
#[cfg(target_os = "linux")]
mod recycle;
#[cfg(target_os = "linux")]
mod section;
#[cfg(target_os = "linux")]
mod stalls;
#[cfg(target_os = "linux")]
mod sweep;
#[cfg(target_os = "linux")]
mod zeroed;
#[cfg(target_os = "linux")]
#[path = "../support/mod.rs"]
mod support;

#[cfg(target_os = "linux")]
#[global_allocator]
static GLOBAL: allocator::Switch = allocator::Switch;

#[cfg(target_os = "linux")]
fn main() -> std::process::ExitCode {
    section::BENCH.main()
}

#[cfg(not(target_os = "linux"))]
fn main() {
    eprintln!("large_free reads /proc and calls mmap: Linux only");
}
