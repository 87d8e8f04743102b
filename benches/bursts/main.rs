//! What small blocks cost: `deferfree` against plain mimalloc, glibc, and a drop that frees nothing at
//! all (`floor`).
//!
//! ```text
//! cargo bench --bench bursts                          all of it, about three quarters of an hour
//! cargo bench --bench bursts -- --quick               the direction, in some minutes
//! cargo bench --bench bursts -- rest                  sections whose name contains `rest`
//! cargo bench --bench bursts -- rest/BTreeMap         some cases of one section
//! ```
//!
//! `BENCH_ALLOCATORS=glibc,mimalloc,deferfree` and `BENCH_REPETITIONS=9` change what is compared and how
//! often. A section says what of it is measured by default.
//!
//! Each contender is a program with a global allocator of its own, as a user would install it: this one
//! with `deferfree`, which also starts the others (`bursts_mimalloc`, `bursts_glibc`, `bursts_floor`). An
//! allocator that is chosen at run time would put a load, a branch and a call before each free, and it
//! is instructions that are counted here. The price is that the programs may differ in where the
//! compiler and the linker put things.

#[cfg_attr(target_os = "linux", path = "bench.rs")]
#[cfg_attr(not(target_os = "linux"), path = "../support/elsewhere.rs")]
mod bench;

#[global_allocator]
static GLOBAL: deferfree::DeferFree = deferfree::DeferFree::new();

fn main() -> std::process::ExitCode {
    bench::main_with(|| GLOBAL.stats().bursts.deferred.blocks)
}
