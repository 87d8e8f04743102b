//! What a program costs that runs for a moment, from start to end: as a shell sees it.
//!
//! ```text
//! cargo bench --bench commands                 about a minute
//! cargo bench --bench commands -- --quick      the direction, in some seconds
//! cargo bench --bench commands -- /words       commands whose name contains `words`
//! ```
//!
//! Each contender is a program of its own with nothing in it but the commands, and they take turns,
//! start by start, each being first as often as last. A repetition's figures are of all its starts.
//! `BENCH_ALLOCATORS` and `BENCH_REPETITIONS` work as in `bursts`.

#[cfg_attr(target_os = "linux", path = "bench.rs")]
#[cfg_attr(not(target_os = "linux"), path = "../support/elsewhere.rs")]
mod bench;

fn main() -> std::process::ExitCode {
    bench::main()
}
