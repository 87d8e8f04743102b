//! Linux: system calls and the C library, none of which allocates through the global allocator.

mod file;
mod futex;
mod groups;
mod memory;
mod program;
mod thread;

use std::mem::MaybeUninit;
use std::ptr;

use super::MemoryInUse;
use super::unix::{clock_ns, machine_bytes};

pub(crate) use super::unix::{
    Errno, KeepsErrno, SPLITS_MAPPINGS, SignalsBlocked, at_exit, at_fork, at_thread_exit,
    for_each_variable, map_aligned, monotonic_ns, page_bytes, page_faults,
    prepare_to_start_threads, process_cpu_ns, release_in_pieces, replace_file, start_thread,
    stay_loaded, thread_word, unmap, write_stderr,
};
pub(crate) use futex::{futex_wait, futex_wake_one};
pub(crate) use memory::*;
pub(super) use program::{environment, is_in_program};
pub(crate) use thread::{be_ordinary, name_thread};

/// Whether the drainer can run here.
pub(crate) const CAN_DEFER: bool = true;

/// The first two numbers of `/proc/self/statm`, in pages.
pub(crate) fn memory_in_use() -> Option<MemoryInUse> {
    let mut content = [0; 128];
    let statm = file::read(c"/proc/self/statm", &mut content)?;
    let mut numbers = statm.split(|&byte| byte == b' ').map(|pages| {
        std::str::from_utf8(pages).ok()?.parse::<usize>().ok()?.checked_mul(page_bytes())
    });
    let (mapped_bytes, resident_bytes) = (numbers.next()??, numbers.next()??);
    Some(MemoryInUse { resident_bytes, mapped_bytes })
}

/// Bytes of memory that this process may use: the machine's, or less if its control group says so.
pub(crate) fn memory_limit() -> Option<usize> {
    let machine = machine_bytes()?;
    Some(groups::memory_limit().map_or(machine, |limit| limit.min(machine)))
}

/// Whether this program has rights that whoever started it may not have (setuid and the like): it must
/// not do what the environment says where that could be put to use.
pub(crate) fn is_privileged() -> bool {
    // SAFETY: reads what the kernel told the program at its start.
    unsafe { libc::getauxval(libc::AT_SECURE) != 0 }
}

/// Whether the threads of this process have one CPU between them, by the set of CPUs that the first of them may
/// run on (others may be pinned to one) or by the quota of the control group.
pub(crate) fn has_one_cpu() -> bool {
    let mut cpus = MaybeUninit::<libc::cpu_set_t>::zeroed();
    // SAFETY: a buffer of the given size, all zeros of which are a valid set.
    let has_one = unsafe {
        // It fails where there are more CPUs than the set has room for.
        libc::sched_getaffinity(libc::getpid(), size_of::<libc::cpu_set_t>(), cpus.as_mut_ptr())
            == 0
            && libc::CPU_COUNT(cpus.assume_init_ref()) == 1
    };
    has_one || groups::n_cpus().is_some_and(|n_cpus| n_cpus < 2)
}

/// The clock that runs with the calling thread's CPU time.
pub(crate) fn thread_cpu_clock() -> Option<i32> {
    let mut clock = 0;
    // SAFETY: the calling thread, and a live variable.
    let error = unsafe { libc::pthread_getcpuclockid(libc::pthread_self(), &mut clock) };
    (error == 0).then_some(clock)
}

/// What such a clock shows; `None` when its thread has ended.
pub(crate) fn thread_cpu_ns(clock: i32) -> Option<u64> {
    clock_ns(clock)
}

/// Takes back a signal, which is blocked, if one waits for this thread.
pub(super) fn take_signal(signal: libc::c_int) {
    let mut set = MaybeUninit::<libc::sigset_t>::uninit();
    let at_once = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `sigemptyset` initialises the set; live variables.
    unsafe {
        libc::sigemptyset(set.as_mut_ptr());
        libc::sigaddset(set.as_mut_ptr(), signal);
        libc::sigtimedwait(set.as_ptr(), ptr::null_mut(), &at_once);
    }
}
