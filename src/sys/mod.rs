//! What is asked of the operating system: one contract, one folder for each kind of system, the same names in each.
//!
//! Callers carry no `cfg`. What a system lacks is a function that says no, as described for each name below; where
//! there is no folder for a system, `system.rs` says no to all, and the drainer never starts.
//!
//! | folder | systems |
//! |---|---|
//! | `linux` | Linux and Android |
//! | `posix` | macOS, FreeBSD; Linux with `--cfg deferfree_posix`, for tests |
//! | `windows` | Windows on x86-64 and aarch64 |
//! | `system.rs` | all others; any with `--cfg deferfree_inline`, for tests |
//!
//! `unix` is what the first two have in common.
//!
//! Nothing here allocates through the global allocator, panics, or waits for another thread but where it says so.
//!
//! # Memory
//!
//! - `page_bytes()`: the least that the system gives and takes.
//! - `map_zeroed(len)`: zero bytes whose pages cost nothing until they are touched; null when refused.
//! - `map_aligned(len, align)`: the same, at a multiple of a power of two.
//! - `unmap(ptr, len)`: gives up a mapping, or a part of one if `SPLITS_MAPPINGS`.
//! - `grow_in_place(ptr, old_len, new_len)`: makes a mapping longer where it is, by zero bytes; false when refused.
//! - `move_mapping(ptr, old_len, to, new_len)`: moves its pages, not what is in them, to where another mapping is, which goes;
//!   false when refused, as it always is but if `MOVES_MAPPINGS`.
//! - `move_pages(ptr, len, hint)`: moves some pages to a mapping of their own, and leaves zero ones; null when refused, as always
//!   but if `MOVES_MAPPINGS`.
//! - `release_in_pieces(ptr, len)`: gives pages back to the system without unmapping them. Each is zero afterwards or,
//!   where the system has not got round to it, as it was; on Linux it is zero.
//! - `make_zero(ptr, len)`: makes pages zero by giving them back to the system; false when refused, as where that cannot be
//!   done and known.
//! - `want_huge_pages(ptr, len)`, `make_ready(ptr, len)`: wishes, which are granted or not. Huge pages behind a mapping;
//!   memory behind pages before they are touched.
//! - `is_resident(page)`: whether a page of a mapping has memory behind it; false where the system does not say, which is
//!   so but if `KNOWS_RESIDENT`.
//! - `memory_in_use()`: what the process has, see [`MemoryInUse`]; `None` where the system does not say. A few
//!   microseconds, where it is a file or a call of the kernel's.
//! - `page_faults()`: those of the process so far, see [`PageFaults`]; likewise.
//! - `memory_limit()`: bytes that the process may use: the machine's, or its container's if that has fewer. `None`
//!   where nobody says.
//!
//! # Threads
//!
//! - `CAN_DEFER`: whether a drainer can run.
//! - `start_thread(stack_bytes, main, argument)`: a detached thread. `name_thread(name)` names the calling one,
//!   `be_ordinary()` takes from it what it inherited of priority and CPUs.
//! - `prepare_to_start_threads()`: to be called once before, as early as may be: it may wait for another thread that loads a
//!   library.
//! - `SignalsBlocked`: while it lives, no signal that may be meant for another thread is handled on this one, nor on one that it starts.
//! - `futex_wait(word, expected, timeout)` sleeps while the word has that value; it may return for no reason.
//!   `futex_wake_one(word)` ends one such sleep, without waiting for anybody.
//! - `thread_word()`: the calling thread's word, null until it is set. `at_thread_exit(handler, word)` sets it and has
//!   `handler(word)` run when the thread exits, as late as the system can; false when it refuses. One handler for
//!   the whole process.
//! - `thread_cpu_clock()`: a number, not 0, by which any thread can ask `thread_cpu_ns` what CPU time the calling one
//!   has had. `process_cpu_ns()`: that of all. `monotonic_ns()`: since some moment before.
//! - `has_one_cpu()`: whether the threads of the process have one CPU between them.
//!
//! # The process
//!
//! - `at_fork(prepare, parent, child)`: run around every fork; true where there are none.
//! - `at_exit(handler)`: run when the process exits, but not when it is killed; the last one registered runs first.
//! - `KeepsErrno`: the system's last error of the calling thread, which a free must not change (POSIX.1-2024), put back on drop.
//! - `stay_loaded()`: keeps this code in memory until the process ends, also where it is part of a library that is
//!   unloaded. False when the system refuses.
//! - `for_each_variable(f)`: name and value of each environment variable, without a copy that has to be freed.
//! - `is_privileged()`: whether it has rights that who started it may lack.
//! - `write_stderr(bytes)`: all of them, at once; false when that cannot be, which must not stop the program.
//! - `replace_file(path, write)`: the file is whole or the path stays as it was. [`Errno`] says why without allocating.

// Without a `path`: `system.rs`, which says no to all.
#[cfg_attr(
    not(deferfree_inline),
    cfg_attr(
        all(any(target_os = "linux", target_os = "android"), not(deferfree_posix)),
        path = "linux/mod.rs"
    ),
    cfg_attr(
        any(target_os = "macos", target_os = "freebsd", all(target_os = "linux", deferfree_posix)),
        path = "posix/mod.rs"
    ),
    cfg_attr(windows, path = "windows/mod.rs")
)]
mod system;

#[cfg(all(unix, not(deferfree_inline)))]
mod unix;

#[allow(
    unused_imports,
    reason = "the whole contract, whether a target makes use of it all or not"
)]
pub(crate) use system::{
    CAN_DEFER, Errno, KNOWS_RESIDENT, KeepsErrno, MOVES_MAPPINGS, SPLITS_MAPPINGS, SignalsBlocked,
    at_exit, at_fork, at_thread_exit, be_ordinary, for_each_variable, futex_wait, futex_wake_one,
    grow_in_place, has_one_cpu, is_privileged, is_resident, make_ready, make_zero, map_aligned,
    map_zeroed, memory_in_use, memory_limit, monotonic_ns, move_mapping, move_pages, name_thread,
    page_bytes, page_faults, prepare_to_start_threads, process_cpu_ns, release_in_pieces,
    replace_file, start_thread, stay_loaded, thread_cpu_clock, thread_cpu_ns, thread_word, unmap,
    want_huge_pages, write_stderr,
};

/// The process's memory, as the system counts it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct MemoryInUse {
    /// What is in the machine's memory.
    pub(crate) resident_bytes: usize,
    /// Addresses with a mapping behind them; on Windows what the system has promised, no matter whether it was touched.
    pub(crate) mapped_bytes: usize,
}

/// See [`MemoryInUse`].
pub(crate) fn resident_bytes() -> Option<usize> {
    memory_in_use().map(|memory| memory.resident_bytes)
}

/// Accesses that found no memory behind a page.
#[derive(Clone, Copy, Debug)]
pub(crate) struct PageFaults {
    pub(crate) all: u64,
    /// Those that waited for a disk; `None` where the system does not tell them from the others.
    pub(crate) major: Option<u64>,
}

/// What was asked of the system to give pages back.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Released {
    pub(crate) bytes: usize,
    pub(crate) calls: usize,
}

/// Begins to bring the memory at `ptr`, which may be anything, into the cache.
#[inline(always)]
pub(crate) fn prefetch(ptr: *const u8) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: a hint, which never faults; every x86-64 has it.
    unsafe {
        std::arch::x86_64::_mm_prefetch::<{ std::arch::x86_64::_MM_HINT_T0 }>(ptr.cast());
    }
    #[cfg(target_arch = "aarch64")]
    // SAFETY: as above.
    unsafe {
        std::arch::asm!(
            "prfm pldl1keep, [{ptr}]",
            ptr = in(reg) ptr,
            options(nostack, preserves_flags, readonly),
        );
    }
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    let _ = ptr;
}
