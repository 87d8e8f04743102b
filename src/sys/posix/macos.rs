//! macOS.

use std::ffi::{CStr, c_int, c_void};
use std::mem::MaybeUninit;
use std::sync::atomic::AtomicU32;
use std::time::Duration;

use crate::sys::MemoryInUse;

/// Pages leave the process's footprint at once; they are zero when they are next read, or as they were.
pub(super) const RELEASE: c_int = libc::MADV_FREE_REUSABLE;

pub(in crate::sys) fn environment() -> *const *const libc::c_char {
    // A library has no `environ` to link to.
    // SAFETY: a pointer to a variable of the C library's.
    unsafe { (*libc::_NSGetEnviron()).cast_const().cast() }
}

unsafe extern "C" {
    /// What the linker puts where the program or the library begins: a Mach-O header (mach-o/loader.h), the fourth number
    /// of which is its kind.
    static __dso_handle: [u32; 4];
}

/// Whether this code, at whatever address, is part of the program itself.
pub(in crate::sys) fn is_in_program(_here: usize) -> bool {
    const MH_EXECUTE: u32 = 2;
    // SAFETY: a constant.
    unsafe { __dso_handle[3] == MH_EXECUTE }
}

pub(crate) fn memory_in_use() -> Option<MemoryInUse> {
    const WORDS: u32 =
        (size_of::<libc::mach_task_basic_info>() / size_of::<libc::integer_t>()) as u32;
    let mut info = MaybeUninit::<libc::mach_task_basic_info>::uninit();
    let mut n_words = WORDS;
    // SAFETY: the process itself, and room for so many words, all of which are written on success.
    let info = unsafe {
        let error = libc::task_info(
            mach_task_self_,
            libc::MACH_TASK_BASIC_INFO,
            info.as_mut_ptr().cast(),
            &mut n_words,
        );
        if error != libc::KERN_SUCCESS || n_words != WORDS {
            return None;
        }
        info.assume_init()
    };
    Some(MemoryInUse {
        resident_bytes: info.resident_size as usize,
        mapped_bytes: info.virtual_size as usize,
    })
}

unsafe extern "C" {
    /// The process itself, as mach/mach_init.h has it. (In the `libc` crate it is on its way out.)
    static mach_task_self_: libc::mach_port_t;
}

pub(crate) fn is_privileged() -> bool {
    // SAFETY: reads what the kernel knows of the process.
    unsafe { libc::issetugid() != 0 }
}

pub(crate) fn name_thread(name: &CStr) {
    // SAFETY: a string that ends with a zero.
    unsafe { libc::pthread_setname_np(name.as_ptr()) };
}

/// A thread inherits nothing of the kind here.
pub(crate) fn be_ordinary() {}

/// The kernel's name of the thread stands for its clock.
pub(crate) fn thread_cpu_clock() -> Option<i32> {
    // SAFETY: the calling thread.
    let port = unsafe { libc::pthread_mach_thread_np(libc::pthread_self()) };
    Some(port as i32)
}

pub(crate) fn thread_cpu_ns(clock: i32) -> Option<u64> {
    const WORDS: u32 = (size_of::<libc::thread_basic_info>() / size_of::<libc::integer_t>()) as u32;
    let mut info = MaybeUninit::<libc::thread_basic_info>::uninit();
    let mut n_words = WORDS;
    // SAFETY: room for so many words, all of which are written on success.
    let info = unsafe {
        let error = libc::thread_info(
            clock as u32,
            libc::THREAD_BASIC_INFO as u32,
            info.as_mut_ptr().cast(),
            &mut n_words,
        );
        if error != libc::KERN_SUCCESS || n_words != WORDS {
            return None;
        }
        info.assume_init()
    };
    let us = |time: libc::time_value_t| time.seconds as u64 * 1_000_000 + time.microseconds as u64;
    Some((us(info.user_time) + us(info.system_time)) * 1000)
}

// What libc++'s `std::atomic::wait` and Apple's own locks sleep on since macOS 10.12: nothing that has to be set up, and no
// lock that a fork could leave locked (xnu, bsd/sys/ulock.h).
unsafe extern "C" {
    fn __ulock_wait(operation: u32, word: *mut c_void, expected: u64, timeout_us: u32) -> c_int;
    fn __ulock_wake(operation: u32, word: *mut c_void, _: u64) -> c_int;
}
const UL_COMPARE_AND_WAIT: u32 = 1;
const ULF_NO_ERRNO: u32 = 0x0100_0000;

/// As on Linux.
pub(crate) fn futex_wait(word: &AtomicU32, expected: u32, timeout: Option<Duration>) {
    // 0 is for ever. What is more than the number holds ends sooner, as the caller has to expect anyway.
    let timeout_us = timeout.map_or(0, |it| it.as_micros().clamp(1, u32::MAX.into()) as u32);
    let operation = UL_COMPARE_AND_WAIT | ULF_NO_ERRNO;
    // SAFETY: a live word.
    unsafe { __ulock_wait(operation, word.as_ptr().cast(), expected.into(), timeout_us) };
}

pub(crate) fn futex_wake_one(word: &AtomicU32) {
    // SAFETY: a live word.
    unsafe { __ulock_wake(UL_COMPARE_AND_WAIT | ULF_NO_ERRNO, word.as_ptr().cast(), 0) };
}
