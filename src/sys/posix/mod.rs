//! macOS and FreeBSD, where they differ from Linux. For tests also Linux itself, with `--cfg deferfree_posix`.

mod memory;
#[cfg_attr(target_os = "freebsd", path = "freebsd.rs")]
#[cfg_attr(target_os = "linux", path = "linux.rs")]
#[cfg_attr(target_os = "macos", path = "macos.rs")]
mod special;

use std::mem::MaybeUninit;
use std::ptr;

use super::unix::machine_bytes;

pub(crate) use super::unix::{
    Errno, KeepsErrno, SPLITS_MAPPINGS, SignalsBlocked, at_exit, at_fork, at_thread_exit,
    for_each_variable, map_aligned, monotonic_ns, page_bytes, page_faults,
    prepare_to_start_threads, process_cpu_ns, release_in_pieces, replace_file, start_thread,
    stay_loaded, thread_word, unmap, write_stderr,
};
pub(crate) use memory::*;
pub(crate) use special::{
    be_ordinary, futex_wait, futex_wake_one, is_privileged, memory_in_use, name_thread,
    thread_cpu_clock, thread_cpu_ns,
};
pub(super) use special::{environment, is_in_program};

/// Whether the drainer can run here.
pub(crate) const CAN_DEFER: bool = true;

/// Whether `is_resident` can be true.
pub(crate) const KNOWS_RESIDENT: bool = false;

/// Asked for the sake of huge pages and of pieces, of which the other systems have less.
///
/// # Safety
/// `page` is the first byte of a page of a mapping.
pub(crate) unsafe fn is_resident(_page: *mut u8) -> bool {
    false
}

/// It would be no cheaper than a fresh mapping.
///
/// # Safety
/// See `sys`.
pub(crate) unsafe fn make_zero(_ptr: *mut u8, _len: usize) -> bool {
    false
}

/// # Safety
/// See `sys`.
pub(crate) unsafe fn move_pages(_ptr: *mut u8, _len: usize, _hint: *mut u8) -> *mut u8 {
    ptr::null_mut()
}

/// Bytes of memory that this process may use.
pub(crate) fn memory_limit() -> Option<usize> {
    machine_bytes()
}

/// Takes back a signal, which is blocked, if one waits: what waits is forgotten as soon as it is to be ignored. (macOS has
/// no `sigtimedwait`; and it sends the process what Linux sends the thread, so that `sigwait` may wait for what another
/// thread has taken.)
pub(super) fn take_signal(signal: libc::c_int) {
    let mut before = MaybeUninit::<libc::sigaction>::uninit();
    // SAFETY: all zeros are a valid value, with an empty mask and no flags; `before` is written on success.
    unsafe {
        let mut ignored = MaybeUninit::<libc::sigaction>::zeroed().assume_init();
        ignored.sa_sigaction = libc::SIG_IGN;
        if libc::sigaction(signal, &ignored, before.as_mut_ptr()) == 0 {
            libc::sigaction(signal, before.as_ptr(), ptr::null_mut());
        }
    }
}

/// Whether the machine has one CPU.
pub(crate) fn has_one_cpu() -> bool {
    // SAFETY: reads a number of the system's.
    unsafe { libc::sysconf(libc::_SC_NPROCESSORS_ONLN) == 1 }
}
