//! What a thread is to the scheduler, and to those who look on.

use std::ffi::{CStr, c_int};
use std::mem::MaybeUninit;

/// Names the calling thread, with at most 15 bytes.
pub(crate) fn name_thread(name: &CStr) {
    // SAFETY: a string that ends with a zero.
    unsafe { libc::prctl(libc::PR_SET_NAME, name.as_ptr()) };
}

/// Gives the calling thread policy, niceness and CPUs of the process's first thread, but no real-time policy.
///
/// It has inherited those of the thread that happened to start it, which may be a real-time one pinned to a CPU that
/// nobody else is to use. What is refused stays as it is: without the right to, a thread does not become less nice.
pub(crate) fn be_ordinary() {
    // linux/sched.h; the `libc` crate does not have it for Android.
    const SCHED_OTHER: c_int = 0;
    // A priority of 0. musl's has more fields, which the kernel does not know.
    let ordinary = MaybeUninit::<libc::sched_param>::zeroed();
    let mut cpus = MaybeUninit::<libc::cpu_set_t>::uninit();
    // By number, as musl has no such functions, and glibc's `getpriority` returns -1 for two reasons.
    // SAFETY: system calls on numbers and live variables; `cpus` is read where it has been written.
    unsafe {
        let first = libc::getpid();
        let policy = match libc::syscall(libc::SYS_sched_getscheduler, first) as c_int {
            policy @ (libc::SCHED_BATCH | libc::SCHED_IDLE) => policy,
            _ => SCHED_OTHER,
        };
        libc::syscall(libc::SYS_sched_setscheduler, 0, policy, ordinary.as_ptr());
        // Counted from 1 for the least nice to 40, see getpriority(2).
        let priority = libc::syscall(libc::SYS_getpriority, libc::PRIO_PROCESS, first);
        if priority > 0 {
            libc::syscall(libc::SYS_setpriority, libc::PRIO_PROCESS, 0, 20 - priority);
        }
        let bytes = size_of::<libc::cpu_set_t>();
        if libc::sched_getaffinity(first, bytes, cpus.as_mut_ptr()) == 0 {
            libc::sched_setaffinity(0, bytes, cpus.as_ptr());
        }
    }
}
