//! What handing a value over costs the thread that does it: `later` beside the other ways.
//!
//! ```text
//! cargo bench --bench later                          some ten minutes
//! cargo bench --bench later -- --quick               some seconds, for a look
//! cargo bench --bench later -- --rounds 1000 built   one part, with so many rounds
//! ```
//!
//! Every hand-off is timed by itself, the clock's own cost included (first line of the output). The
//! ways take turns within one process, A B C A B C, and each waits until its values have been dropped
//! before the next one starts. CPU is that of the whole process until then. "Cold" is the first
//! hand-off of a fresh process, and the resident sets are those of fresh processes. The global
//! allocator is the system's.

#[cfg_attr(target_os = "linux", path = "bench.rs")]
#[cfg_attr(not(target_os = "linux"), path = "../support/elsewhere.rs")]
mod bench;

fn main() -> std::process::ExitCode {
    bench::main()
}
