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

#[cfg_attr(target_os = "linux", path = "bench.rs")]
#[cfg_attr(not(target_os = "linux"), path = "../support/elsewhere.rs")]
mod bench;

fn main() -> std::process::ExitCode {
    bench::main()
}
