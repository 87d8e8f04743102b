//! What Linux and the other Unix systems have in common. None of it allocates through the global allocator.

mod memory;
mod thread;
mod write;

use std::ffi::CStr;
use std::mem::MaybeUninit;
use std::ptr;

use super::{PageFaults, system};

pub(crate) use {memory::*, thread::*, write::*};

/// The signals of this thread blocked that a program may mean for threads of its own, and a thread started meanwhile
/// inherits that; undone on drop.
///
/// A signal that is sent to the process must reach the program's threads, never the drainer.
pub(crate) struct SignalsBlocked {
    before: libc::sigset_t,
}

/// Not blocked: what a thread brings upon itself, which a crash handler is to see, and the profiler's, whose ticks would be
/// put down to another thread.
const OF_EACH_THREAD: [libc::c_int; 8] = [
    libc::SIGSEGV,
    libc::SIGBUS,
    libc::SIGFPE,
    libc::SIGILL,
    libc::SIGTRAP,
    libc::SIGSYS,
    libc::SIGABRT,
    libc::SIGPROF,
];

impl SignalsBlocked {
    pub(crate) fn new() -> Self {
        let mut blocked = MaybeUninit::<libc::sigset_t>::uninit();
        let mut before = MaybeUninit::<libc::sigset_t>::uninit();
        // SAFETY: `sigfillset` initialises `blocked`, `pthread_sigmask` with valid arguments cannot
        // fail and writes `before`.
        unsafe {
            libc::sigfillset(blocked.as_mut_ptr());
            for signal in OF_EACH_THREAD {
                libc::sigdelset(blocked.as_mut_ptr(), signal);
            }
            libc::pthread_sigmask(libc::SIG_BLOCK, blocked.as_ptr(), before.as_mut_ptr());
            SignalsBlocked { before: before.assume_init() }
        }
    }
}

impl Drop for SignalsBlocked {
    fn drop(&mut self) {
        // SAFETY: `before` is the mask that `new` was given.
        unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, &self.before, ptr::null_mut()) };
    }
}

/// The calling thread's `errno`, put back on drop.
#[derive(Debug)]
pub(crate) struct KeepsErrno(libc::c_int);

impl KeepsErrno {
    pub(crate) fn new() -> Self {
        // SAFETY: the calling thread's own.
        KeepsErrno(unsafe { *errno() })
    }
}

impl Drop for KeepsErrno {
    fn drop(&mut self) {
        // SAFETY: as above.
        unsafe { *errno() = self.0 };
    }
}

fn errno() -> *mut libc::c_int {
    // SAFETY: callable at any time.
    unsafe {
        #[cfg(target_os = "linux")]
        return libc::__errno_location();
        #[cfg(target_os = "android")]
        return libc::__errno();
        #[cfg(not(any(target_os = "linux", target_os = "android")))]
        return libc::__error();
    }
}

/// Calls `f` with name and value of each environment variable, without copying or locking.
///
/// The same caveat holds as for `getenv`: another thread that changes the environment meanwhile
/// races with this. It is read at the first allocation, which comes before `main`.
pub(crate) fn for_each_variable(mut f: impl FnMut(&[u8], &[u8])) {
    // SAFETY: null or an array of C strings that ends with a null pointer.
    unsafe {
        let mut entry = system::environment();
        while !entry.is_null() && !(*entry).is_null() {
            let bytes = CStr::from_ptr(*entry).to_bytes();
            if let Some(equals) = bytes.iter().position(|&byte| byte == b'=') {
                f(&bytes[..equals], &bytes[equals + 1..]);
            }
            entry = entry.add(1);
        }
    }
}

/// Nanoseconds on a clock; `None` when there is no such clock, or its thread has ended.
pub(super) fn clock_ns(clock: libc::clockid_t) -> Option<u64> {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: a live variable.
    if unsafe { libc::clock_gettime(clock, &mut time) } != 0 {
        return None;
    }
    #[allow(clippy::unnecessary_cast, reason = "the fields' types differ between systems")]
    Some(time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64)
}

/// Nanoseconds since some moment before.
pub(crate) fn monotonic_ns() -> u64 {
    clock_ns(libc::CLOCK_MONOTONIC).unwrap_or(0)
}

/// CPU time of all threads of the process.
pub(crate) fn process_cpu_ns() -> Option<u64> {
    clock_ns(libc::CLOCK_PROCESS_CPUTIME_ID)
}

/// Of all threads, those that have ended included. On macOS a fault that reads from a file counts as major.
pub(crate) fn page_faults() -> Option<PageFaults> {
    let mut usage = MaybeUninit::<libc::rusage>::uninit();
    // SAFETY: room for what is written on success.
    let usage = unsafe {
        if libc::getrusage(libc::RUSAGE_SELF, usage.as_mut_ptr()) != 0 {
            return None;
        }
        usage.assume_init()
    };
    let major = u64::try_from(usage.ru_majflt).ok()?;
    Some(PageFaults { all: major + u64::try_from(usage.ru_minflt).ok()?, major: Some(major) })
}

/// Registers handlers that run around every `fork`; false when the system has no memory for that.
pub(crate) fn at_fork(
    prepare: unsafe extern "C" fn(),
    parent: unsafe extern "C" fn(),
    child: unsafe extern "C" fn(),
) -> bool {
    // SAFETY: the handlers are functions of this crate, which stay for as long as it is loaded.
    unsafe { libc::pthread_atfork(Some(prepare), Some(parent), Some(child)) == 0 }
}

/// Registers a handler that runs when the process exits through `exit`.
pub(crate) fn at_exit(handler: extern "C" fn()) -> bool {
    // SAFETY: as for `at_fork`.
    unsafe { libc::atexit(handler) == 0 }
}

static HERE: u8 = 0;

/// Whether this code is part of the program itself, and not of a library.
fn is_part_of_program() -> bool {
    system::is_in_program((&raw const HERE).addr())
}

/// Sees to it that this code stays in memory until the process ends, also where it is part of a library
/// that the program unloads: threads and handlers that point into it would be left without code. False
/// when the system refuses.
pub(crate) fn stay_loaded() -> bool {
    // Looked at first, because the dynamic linker's functions wait for a `dlopen` that is under way, and
    // a program's threads must not. A library's do, as those of `std::thread` do that have anything to drop when they end
    // (`__cxa_thread_atexit_impl` of glibc takes the same lock).
    if is_part_of_program() {
        return true;
    }
    let mut found = MaybeUninit::<libc::Dl_info>::zeroed();
    // SAFETY: any address may be asked for; all zeros are a valid value, should it not be written.
    let found = unsafe {
        if libc::dladdr((&raw const HERE).cast(), found.as_mut_ptr()) == 0 {
            // Not known to the dynamic linker, so there is nothing that it could unload.
            return true;
        }
        found.assume_init()
    };
    // The name is that by which the dynamic linker knows it already: no file is looked for.
    let flags = libc::RTLD_LAZY | libc::RTLD_NOLOAD | libc::RTLD_NODELETE;
    // SAFETY: null or a C string of the dynamic linker's; no constructor runs.
    !found.dli_fname.is_null() && !unsafe { libc::dlopen(found.dli_fname, flags) }.is_null()
}

/// Bytes of memory that the machine has, or less if a resource limit says so: that of all mappings, or of those that can be
/// written to.
pub(super) fn machine_bytes() -> Option<usize> {
    // SAFETY: reads a constant of the system.
    let pages = unsafe { libc::sysconf(libc::_SC_PHYS_PAGES) };
    let machine = usize::try_from(pages).ok()?.checked_mul(page_bytes())?;
    let limits = [libc::RLIMIT_AS, libc::RLIMIT_DATA].map(|resource| {
        let none = libc::RLIM_INFINITY;
        let mut limit = libc::rlimit { rlim_cur: none, rlim_max: none };
        // SAFETY: a live variable.
        unsafe { libc::getrlimit(resource, &mut limit) };
        // Infinity is the largest number there is.
        usize::try_from(limit.rlim_cur).unwrap_or(usize::MAX)
    });
    limits.into_iter().chain([machine]).min()
}

/// The least that the system gives and takes.
pub(crate) fn page_bytes() -> usize {
    // SAFETY: reads a constant of the system.
    unsafe { libc::sysconf(libc::_SC_PAGESIZE) as usize }
}
