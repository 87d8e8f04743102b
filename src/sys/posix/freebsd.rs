//! FreeBSD.

#[path = "elf.rs"]
mod elf;

use std::ffi::{CStr, c_int, c_void};
use std::mem::MaybeUninit;
use std::ptr;
use std::sync::atomic::AtomicU32;
use std::time::Duration;

use crate::sys::MemoryInUse;
use crate::sys::unix::{clock_ns, page_bytes};

pub(in crate::sys) use elf::is_in_program;

/// Pages are zero when they are next read, or as they were.
pub(super) const RELEASE: c_int = libc::MADV_FREE;

unsafe extern "C" {
    static environ: *const *const libc::c_char;
    // pthread_np.h; not in the `libc` crate.
    fn pthread_getcpuclockid(thread: libc::pthread_t, clock: *mut libc::clockid_t) -> c_int;
}

pub(in crate::sys) fn environment() -> *const *const libc::c_char {
    // SAFETY: a variable of the C library's.
    unsafe { environ }
}

/// What `ps` shows, see sysctl(3). What has been given back by `MADV_FREE` is resident until the system wants it.
pub(crate) fn memory_in_use() -> Option<MemoryInUse> {
    let mut process = MaybeUninit::<libc::kinfo_proc>::zeroed();
    let mut size = size_of::<libc::kinfo_proc>();
    // SAFETY: a query of four numbers, and room for what is written, all zeros of which are valid.
    let process = unsafe {
        let query = [libc::CTL_KERN, libc::KERN_PROC, libc::KERN_PROC_PID, libc::getpid()];
        let into = process.as_mut_ptr().cast();
        let n_numbers = query.len() as libc::c_uint;
        if libc::sysctl(query.as_ptr(), n_numbers, into, &mut size, ptr::null(), 0) != 0 {
            return None;
        }
        process.assume_init()
    };
    // The kernel's own structure has the size that it says.
    if process.ki_structsize as usize != size_of::<libc::kinfo_proc>() {
        return None;
    }
    let resident_pages = usize::try_from(process.ki_rssize).ok()?;
    Some(MemoryInUse {
        resident_bytes: resident_pages.checked_mul(page_bytes())?,
        mapped_bytes: process.ki_size as usize,
    })
}

pub(crate) fn is_privileged() -> bool {
    // SAFETY: reads what the kernel knows of the process.
    unsafe { libc::issetugid() != 0 }
}

pub(crate) fn name_thread(name: &CStr) {
    // SAFETY: the calling thread, and a string that ends with a zero.
    unsafe { libc::pthread_set_name_np(libc::pthread_self(), name.as_ptr()) };
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
    let error = unsafe { pthread_getcpuclockid(libc::pthread_self(), &mut clock) };
    (error == 0).then_some(clock)
}

pub(crate) fn thread_cpu_ns(clock: i32) -> Option<u64> {
    clock_ns(clock)
}

/// As on Linux, see `_umtx_op(2)`.
pub(crate) fn futex_wait(word: &AtomicU32, expected: u32, timeout: Option<Duration>) {
    let timeout = timeout.map(|timeout| libc::_umtx_time {
        _timeout: libc::timespec {
            tv_sec: timeout.as_secs().try_into().unwrap_or(libc::time_t::MAX),
            tv_nsec: timeout.subsec_nanos().into(),
        },
        _flags: 0,
        _clockid: libc::CLOCK_MONOTONIC as u32,
    });
    let size = timeout.as_ref().map_or(0, size_of_val);
    // SAFETY: a live word, and null or a live time of the size that goes with it.
    unsafe {
        libc::_umtx_op(
            word.as_ptr().cast(),
            libc::UMTX_OP_WAIT_UINT_PRIVATE,
            expected.into(),
            ptr::without_provenance_mut(size),
            timeout
                .as_ref()
                .map_or(ptr::null_mut(), |it| ptr::from_ref(it).cast_mut().cast::<c_void>()),
        );
    }
}

pub(crate) fn futex_wake_one(word: &AtomicU32) {
    // SAFETY: a live word.
    unsafe {
        libc::_umtx_op(
            word.as_ptr().cast(),
            libc::UMTX_OP_WAKE_PRIVATE,
            1,
            ptr::null_mut(),
            ptr::null_mut(),
        );
    }
}
