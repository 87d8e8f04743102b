//! Linux as if it were one of the others: as little of what it has of its own as the crate can do with.

#[path = "../linux/futex.rs"]
mod futex;
#[path = "elf.rs"]
mod elf;

use std::ffi::CStr;

use crate::sys::MemoryInUse;
use crate::sys::unix::clock_ns;

pub(in crate::sys) use elf::is_in_program;
pub(crate) use futex::{futex_wait, futex_wake_one};

unsafe extern "C" {
    static environ: *const *const libc::c_char;
}

pub(in crate::sys) fn environment() -> *const *const libc::c_char {
    // SAFETY: a variable of the C library's.
    unsafe { environ }
}

pub(super) const RELEASE: libc::c_int = libc::MADV_DONTNEED;

pub(crate) fn memory_in_use() -> Option<MemoryInUse> {
    None
}

pub(crate) fn is_privileged() -> bool {
    // SAFETY: reads numbers of the process.
    unsafe { libc::geteuid() != libc::getuid() || libc::getegid() != libc::getgid() }
}

pub(crate) fn name_thread(name: &CStr) {
    // SAFETY: the calling thread, and a string that ends with a zero.
    unsafe { libc::pthread_setname_np(libc::pthread_self(), name.as_ptr()) };
}

pub(crate) fn be_ordinary() {
    // SAFETY: all zeros are a valid value, and that of the one policy that has no priorities.
    unsafe {
        let ordinary = std::mem::zeroed::<libc::sched_param>();
        libc::pthread_setschedparam(libc::pthread_self(), libc::SCHED_OTHER, &ordinary);
    }
}

pub(crate) fn thread_cpu_clock() -> Option<i32> {
    let mut clock = 0;
    // SAFETY: the calling thread, and a live variable.
    let error = unsafe { libc::pthread_getcpuclockid(libc::pthread_self(), &mut clock) };
    (error == 0).then_some(clock)
}

pub(crate) fn thread_cpu_ns(clock: i32) -> Option<u64> {
    clock_ns(clock)
}
