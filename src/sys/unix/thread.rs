//! A thread, and its one word.
//!
//! `std::thread` allocates a few small blocks for each thread that live as long as it does. The drainer is
//! started in the midst of what the program frees, and there they would stay: mimalloc fills the chunk of 32 MiB
//! around them first from then on, beside what the program has just left in another. A program that built and
//! dropped a list of 37 MiB came to 67 MiB.

use std::ffi::{c_int, c_void};
use std::io;
use std::mem::{self, MaybeUninit};
use std::ptr;
use std::sync::atomic::{AtomicPtr, AtomicUsize, Ordering};

use super::{is_part_of_program, stay_loaded};

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

/// Any multiple of the size of a page, which some systems want of a stack.
const STACK_STEP_BYTES: usize = 64 << 10;

/// glibc's `__pthread_get_minstack`, [`NO_FUNCTION`], or null as long as nobody has asked.
static GET_MIN_STACK: AtomicPtr<c_void> = AtomicPtr::new(ptr::null_mut());
const NO_FUNCTION: *mut c_void = ptr::without_provenance_mut(1);

/// Asks the dynamic linker, which has whoever asks wait while another thread loads a library; and that thread may wait for
/// the first one, in a constructor.
fn get_min_stack() -> *mut c_void {
    // Relaxed: the function has been there since before the program began.
    let mut known = GET_MIN_STACK.load(Ordering::Relaxed);
    if known.is_null() {
        // SAFETY: a name that ends with a zero.
        known = unsafe { libc::dlsym(libc::RTLD_DEFAULT, c"__pthread_get_minstack".as_ptr()) };
        known = if known.is_null() { NO_FUNCTION } else { known };
        GET_MIN_STACK.store(known, Ordering::Relaxed);
    }
    known
}

/// Finds out what `start_thread` has to know of the C library. In a library that is done by the start itself, which waits
/// for the dynamic linker anyway, see `stay_loaded`.
pub(crate) fn prepare_to_start_threads() {
    if is_part_of_program() {
        get_min_stack();
    }
}

/// What glibc takes of a thread's stack for the program's thread-local variables and itself, by the function
/// that `std::thread` asks as well; musl adds it by itself.
///
/// # Safety
/// `attributes` have been initialised.
unsafe fn stack_bytes_not_ours(attributes: *const libc::pthread_attr_t) -> usize {
    type GetMinStack = unsafe extern "C" fn(*const libc::pthread_attr_t) -> usize;
    let function = get_min_stack();
    if function == NO_FUNCTION {
        return 0;
    }
    // SAFETY: under that name glibc has a function of that type. The attributes are the caller's.
    unsafe { mem::transmute::<*mut c_void, GetMinStack>(function)(attributes) }
}

/// The C library's key for the word, plus 1; 0 until there is one, [`REFUSED`] if it was refused once: who asks may ask at
/// every free, and the dynamic linker looks at files.
static KEY: AtomicUsize = AtomicUsize::new(0);
const REFUSED: usize = usize::MAX;

/// The calling thread's word; null where none has been set, or its handler has begun to run.
#[allow(dead_code, reason = "`burst::local` has a shorter way on some targets")]
#[inline(always)]
pub(crate) fn thread_word() -> *mut c_void {
    // Relaxed: a key is a number, which the C library knows before it is stored.
    match KEY.load(Ordering::Relaxed) {
        0 | REFUSED => ptr::null_mut(),
        // SAFETY: a key that was created and is never deleted.
        known => unsafe { libc::pthread_getspecific((known - 1) as libc::pthread_key_t) },
    }
}

/// Sets the calling thread's word, which is not null, and has `handler` run with it when the thread exits, after its
/// C++ and Rust thread-local destructors; false when the system refuses. One handler for the whole process.
pub(crate) fn at_thread_exit(
    handler: unsafe extern "C" fn(*mut c_void),
    word: *mut c_void,
) -> bool {
    // Relaxed, here and below: see `thread_word`.
    let mut known = KEY.load(Ordering::Relaxed);
    if known == 0 {
        let mut key = 0;
        // A thread that exits calls the handler also where this is part of a library that has been unloaded.
        // SAFETY: a live variable, and a function that stays for as long as this crate is loaded.
        let made =
            stay_loaded() && unsafe { libc::pthread_key_create(&mut key, Some(handler)) == 0 };
        let new = if made { key as usize + 1 } else { REFUSED };
        known = match KEY.compare_exchange(0, new, Ordering::Relaxed, Ordering::Relaxed) {
            Ok(_) => new,
            Err(theirs) => {
                if made {
                    // SAFETY: nobody has used this key.
                    unsafe { libc::pthread_key_delete(key) };
                }
                theirs
            }
        };
    }
    // SAFETY: a key that was created and is never deleted.
    known != REFUSED
        && unsafe { libc::pthread_setspecific((known - 1) as libc::pthread_key_t, word) == 0 }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicU32;

    use super::*;
    use crate::sys::{futex_wait, futex_wake_one};

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
