//! Every peer on the same work, in numbers and pictures.
//!
//! ```text
//! cargo bench --bench compare                        all of it, about a quarter of an hour
//! cargo bench --bench compare -- --quick             the direction, in less than two minutes
//! cargo bench --bench compare -- request             sections whose name contains `request`
//! cargo bench --bench compare -- shapes/BTreeMap     some cases of one section
//! cargo bench --bench compare -- --save docs         writes below docs/ instead of target/compare/
//! cargo bench --bench compare -- --render            measures nothing, draws what is there again
//! ```
//!
//! The contenders: glibc, mimalloc (the crate, and with `MIMALLOC_PURGE_DELAY=0`), jemalloc
//! (`tikv-jemallocator`, and with `background_thread:true`), `thread::spawn(drop)` and the
//! `defer-drop` crate, and `deferfree`. The two that hand a value to another thread run on glibc: they
//! are what a program reaches for that leaves its allocator alone, and what the blog post that made
//! them known was measured on.
//!
//! All are in this one binary, behind a global allocator that is chosen when a process starts. One
//! binary for each would differ in more than the allocator, in what the linker places where and in
//! what is inlined into the workload. Here the workload's machine code is the same for all, and each
//! call pays the same load and jump. The price is that nothing of an allocator is inlined, and that
//! mimalloc and jemalloc set themselves up in each process, which costs some hundred KiB.
//!
//! Each cell is measured in processes of its own, and the contenders take turns. Sections whose
//! processes measure many times over run once for each contender, so that all of them fit into a
//! quarter of an hour: `BENCH_REPETITIONS=3` takes the median of three. `BENCH_ALLOCATORS` works as in
//! `large_free`. Tables go to `compare.md`, all figures to `compare.json`, pictures to `figures/`. A
//! run of a part replaces that part of what is there.

#[cfg(target_os = "linux")]
#[path = "../support/allocator.rs"]
mod allocator;
#[cfg(target_os = "linux")]
mod bars;
#[cfg(target_os = "linux")]
mod churn;
#[cfg(target_os = "linux")]
mod contenders;
#[cfg(target_os = "linux")]
mod driver;
#[cfg(target_os = "linux")]
mod figures;
#[cfg(target_os = "linux")]
mod growth;
#[cfg(target_os = "linux")]
mod idle;
#[cfg(target_os = "linux")]
mod pictures;
#[cfg(target_os = "linux")]
mod pipe;
#[cfg(target_os = "linux")]
mod record;
#[cfg(target_os = "linux")]
mod recycle;
#[cfg(target_os = "linux")]
mod report;
#[cfg(target_os = "linux")]
mod request;
#[cfg(target_os = "linux")]
mod scaling;
#[cfg(target_os = "linux")]
#[path = "../support/mod.rs"]
mod support;
#[cfg(target_os = "linux")]
mod values;

#[cfg(target_os = "linux")]
#[global_allocator]
static GLOBAL: allocator::Switch = allocator::Switch;

#[cfg(target_os = "linux")]
fn main() -> std::process::ExitCode {
    driver::BENCH.main_with(driver::run)
}

#[cfg(not(target_os = "linux"))]
fn main() {
    eprintln!("compare reads /proc: Linux only");
}
