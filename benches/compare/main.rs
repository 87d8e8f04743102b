//! Every peer on the same work, in numbers and pictures.
//!
//! ```text
//! cargo bench --bench compare                        all of it, some twenty minutes
//! cargo bench --bench compare -- --quick             the direction, in some minutes
//! cargo bench --bench compare -- request             sections whose name contains `request`
//! cargo bench --bench compare -- shapes/BTreeMap     some cases of one section
//! cargo bench --bench compare -- --save docs         writes below docs/ instead of target/compare/
//! cargo bench --bench compare -- --render            measures nothing, draws what is there again
//! ```
//!
//! The contenders: glibc, mimalloc (the crate, and with `MIMALLOC_PURGE_DELAY=0`), `mimalloc-pprof` (whose own thread
//! purges, as it does where nothing is said), jemalloc (`tikv-jemallocator`, and with `background_thread:true`),
//! `thread::spawn(drop)` and the `defer-drop` crate, and `deferfree`. The two that hand a value to another thread run on
//! glibc: they are what a program reaches for that leaves its allocator alone, and what the blog post that made them known
//! was measured on. With `--features snmalloc`, which takes a C++ compiler, also `snmalloc-rs`. No thread says that it
//! rests, to whom it might: `large_free -- parked` is about that.
//!
//! Nearly all are in this one binary, behind a global allocator that is chosen when a process starts. One
//! binary for each would differ in more than the allocator, in what the linker places where and in
//! what is inlined into the workload. Here the workload's machine code is the same for all, and each
//! call pays the same load and jump. The price is that nothing of an allocator is inlined, and that
//! mimalloc and jemalloc set themselves up in each process, which costs some hundred KiB.
//! `mimalloc-pprof` has the same workloads in a program of its own (`pprof`), for cargo allows one mimalloc in a graph;
//! whole commands are programs of their own too.
//!
//! Each cell is measured in processes of its own, and the contenders take turns. Sections whose
//! processes measure many times over run once for each contender, so that all of them take some
//! twenty minutes: `BENCH_REPETITIONS=3` takes the median of three. `BENCH_ALLOCATORS` works as in
//! `large_free`. Tables go to `compare.md`, all figures to `compare.json`, pictures to `figures/`. A
//! run of a part replaces that part of what is there.

#[cfg_attr(target_os = "linux", path = "bench.rs")]
#[cfg_attr(not(target_os = "linux"), path = "../support/elsewhere.rs")]
mod bench;

fn main() -> std::process::ExitCode {
    bench::main()
}
