//! macOS and FreeBSD, where they differ from Linux. For tests also Linux itself, with `--cfg deferfree_posix`.

mod memory;
#[cfg_attr(target_os = "freebsd", path = "freebsd.rs")]
#[cfg_attr(target_os = "linux", path = "linux.rs")]
#[cfg_attr(target_os = "macos", path = "macos.rs")]
mod special;

pub(crate) use super::unix::{
    Errno, SPLITS_MAPPINGS, SignalsBlocked, at_exit, at_fork, at_thread_exit, for_each_variable,
    map_aligned, monotonic_ns, page_bytes, page_faults, prepare_to_start_threads, process_cpu_ns,
    release_in_pieces, replace_file, start_thread, stay_loaded, thread_word, unmap, write_stderr,
};
pub(crate) use memory::*;
pub(crate) use special::{
    be_ordinary, futex_wait, futex_wake_one, is_privileged, memory_in_use, memory_limit,
    name_thread, thread_cpu_clock, thread_cpu_ns,
};
pub(super) use special::{environment, is_in_program, take_signal};

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

/// Whether the machine has one CPU.
pub(crate) fn has_one_cpu() -> bool {
    // SAFETY: reads a number of the system's.
    unsafe { libc::sysconf(libc::_SC_NPROCESSORS_ONLN) == 1 }
}
