//! Linux: a thread, and what it sleeps on, without allocating through the global allocator.
//!
//! `std::thread` allocates a few small blocks for each thread that live as long as it does. The drainer is
//! started in the midst of what the program frees, and there they would stay: mimalloc fills the chunk of 32 MiB
//! around them first from then on, beside what the program has just left in another. A program that built and
//! dropped a list of 37 MiB came to 67 MiB.

use std::ffi::{CStr, c_int, c_void};
use std::io;
use std::mem::{self, MaybeUninit};
use std::ptr;
use std::sync::atomic::AtomicU32;
use std::time::Duration;

/// Starts a detached thread, which runs `main(argument)`.
///
/// # Safety
/// `main` may be called with `argument`, on another thread.
pub(crate) unsafe fn start_thread(
    stack_bytes: usize,
    main: extern "C" fn(*mut c_void) -> *mut c_void,
    argument: *mut c_void,
) -> io::Result<()> {
    let check = |error: c_int| match error {
        0 => Ok(()),
        error => Err(io::Error::from_raw_os_error(error)),
    };
    let mut attributes = MaybeUninit::uninit();
    let attributes: *mut libc::pthread_attr_t = attributes.as_mut_ptr();
    let mut thread = MaybeUninit::<libc::pthread_t>::uninit();
    // SAFETY: `pthread_attr_init` initialises the attributes; where it failed they are not used. `main` and
    // its argument are the caller's promise.
    unsafe {
        check(libc::pthread_attr_init(attributes))?;
        let stack_bytes = stack_bytes.saturating_add(stack_bytes_not_ours(attributes));
        let stack_bytes = stack_bytes.next_multiple_of(STACK_STEP_BYTES);
        let started = (|| {
            check(libc::pthread_attr_setstacksize(attributes, stack_bytes))?;
            check(libc::pthread_attr_setdetachstate(attributes, libc::PTHREAD_CREATE_DETACHED))?;
            check(libc::pthread_create(thread.as_mut_ptr(), attributes, main, argument))
        })();
        libc::pthread_attr_destroy(attributes);
        started
    }
}

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
    let ordinary = libc::sched_param { sched_priority: 0 };
    let mut cpus = MaybeUninit::<libc::cpu_set_t>::uninit();
    // By number, as musl has no such functions, and glibc's `getpriority` returns -1 for two reasons.
    // SAFETY: system calls on numbers and live variables; `cpus` is read where it has been written.
    unsafe {
        let first = libc::getpid();
        let policy = match libc::syscall(libc::SYS_sched_getscheduler, first) as c_int {
            policy @ (libc::SCHED_BATCH | libc::SCHED_IDLE) => policy,
            _ => libc::SCHED_OTHER,
        };
        libc::syscall(libc::SYS_sched_setscheduler, 0, policy, &raw const ordinary);
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

/// Any multiple of the size of a page, which some systems want of a stack.
const STACK_STEP_BYTES: usize = 64 << 10;

/// What glibc takes of a thread's stack for the program's thread-local variables and itself, by the function
/// that `std::thread` asks as well; musl adds it by itself.
///
/// # Safety
/// `attributes` have been initialised.
unsafe fn stack_bytes_not_ours(attributes: *const libc::pthread_attr_t) -> usize {
    type GetMinStack = unsafe extern "C" fn(*const libc::pthread_attr_t) -> usize;
    // SAFETY: a name that ends with a zero; under that name glibc has a function of that type.
    unsafe {
        let function = libc::dlsym(libc::RTLD_DEFAULT, c"__pthread_get_minstack".as_ptr());
        mem::transmute::<*mut c_void, Option<GetMinStack>>(function)
            .map_or(0, |get| get(attributes))
    }
}

/// Sleeps while `word` is `expected`, until it is woken, a signal comes, or the time is over.
pub(crate) fn futex_wait(word: &AtomicU32, expected: u32, timeout: Option<Duration>) {
    let timeout = timeout.map(|timeout| libc::timespec {
        tv_sec: timeout.as_secs().try_into().unwrap_or(libc::time_t::MAX),
        tv_nsec: timeout.subsec_nanos().into(),
    });
    let timeout: *const libc::timespec = timeout.as_ref().map_or(ptr::null(), ptr::from_ref);
    // SAFETY: a live word, and null or a live time.
    unsafe {
        libc::syscall(
            libc::SYS_futex,
            word.as_ptr(),
            libc::FUTEX_WAIT | libc::FUTEX_PRIVATE_FLAG,
            expected,
            timeout,
        );
    }
}

/// Wakes one of those who sleep there.
pub(crate) fn futex_wake_one(word: &AtomicU32) {
    // SAFETY: a live word.
    unsafe {
        libc::syscall(
            libc::SYS_futex,
            word.as_ptr(),
            libc::FUTEX_WAKE | libc::FUTEX_PRIVATE_FLAG,
            1,
        );
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    static WORD: AtomicU32 = AtomicU32::new(0);
    static GIVEN: AtomicUsize = AtomicUsize::new(0);

    extern "C" fn main(argument: *mut c_void) -> *mut c_void {
        GIVEN.store(argument.addr(), Ordering::Relaxed);
        WORD.store(1, Ordering::Release);
        futex_wake_one(&WORD);
        ptr::null_mut()
    }

    #[test]
    fn threads_start() {
        for argument in [1, 2] {
            WORD.store(0, Ordering::Relaxed);
            // SAFETY: `main` takes any argument.
            let started = unsafe { start_thread(1, main, ptr::without_provenance_mut(argument)) };
            started.unwrap();
            while WORD.load(Ordering::Acquire) == 0 {
                futex_wait(&WORD, 0, None);
            }
            assert_eq!(GIVEN.load(Ordering::Relaxed), argument);
        }
    }
}
