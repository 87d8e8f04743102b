//! When threads and the process end, and each thread's one word.
//!
//! The system tells a program, and each library in it, by calling the functions in a table that the linker puts
//! together, in the order of the names of its parts: `.CRT$XLA` to `.CRT$XLZ`. Rust's and C++'s thread-local
//! destructors run from `XLB` to `XLD`: what is flushed in one of them as the process exits must not wait for threads that
//! are no more. mimalloc's part is `XLY`: there it gives up a thread, or collects what it can as the process exits. So the
//! process's exit is to be known before all of them, and a thread's after them.
//!
//! The process may exit by the C library, as it does when `main` returns: that is heard of first, while other threads go
//! on. When it exits by `ExitProcess`, as it does with `std::process::exit`, the system has stopped them where they were
//! by the time that it calls the table. (Wine 8 does not call a program's then.)

use std::ffi::{c_int, c_void};
use std::mem;
use std::ptr;
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicU32, Ordering};

use windows_sys::Win32::System::SystemServices::{DLL_PROCESS_DETACH, DLL_THREAD_DETACH};
use windows_sys::Win32::System::Threading::{TlsAlloc, TlsFree, TlsSetValue};

type Callback = unsafe extern "system" fn(*mut c_void, u32, *mut c_void);

#[used]
#[unsafe(link_section = ".CRT$XLAB")]
static ON_EXIT: Callback = on_exit;
#[used]
#[unsafe(link_section = ".CRT$XLYA")]
static ON_THREAD_EXIT: Callback = on_thread_exit;

#[cfg(target_env = "msvc")]
unsafe extern "C" {
    /// The linker makes the table where somebody refers to this.
    static _tls_used: u8;
}

/// Has the linker put both into the table.
fn be_called() {
    // SAFETY: statics.
    unsafe {
        (&raw const ON_EXIT).read_volatile();
        (&raw const ON_THREAD_EXIT).read_volatile();
        #[cfg(target_env = "msvc")]
        (&raw const _tls_used).read_volatile();
    }
}

unsafe extern "C" {
    /// The C library's.
    fn atexit(handler: extern "C" fn()) -> c_int;
}

/// In the order in which they were registered: one is the lifecycle's, one the report's.
static AT_EXIT: [AtomicPtr<()>; 4] = [const { AtomicPtr::new(ptr::null_mut()) }; 4];

/// False when there is no room for another one. What is registered by several threads at once runs once.
pub(crate) fn at_exit(handler: extern "C" fn()) -> bool {
    be_called();
    let new = (handler as *const ()).cast_mut();
    // Relaxed, here and below: functions are there from the start.
    let is_in = |place: &AtomicPtr<()>| {
        place
            .compare_exchange(ptr::null_mut(), new, Ordering::Relaxed, Ordering::Relaxed)
            .map_or_else(|theirs| theirs == new, |_| true)
    };
    // SAFETY: a function that stays for as long as this crate is loaded.
    AT_EXIT.iter().any(is_in) && unsafe { atexit(exit_once) == 0 }
}

extern "C" fn exit_once() {
    static DONE: AtomicBool = AtomicBool::new(false);
    if DONE.swap(true, Ordering::Relaxed) {
        return;
    }
    for place in AT_EXIT.iter().rev() {
        let handler = place.load(Ordering::Relaxed);
        if !handler.is_null() {
            // SAFETY: `at_exit` made it of such a function.
            let handler = unsafe { mem::transmute::<*mut (), extern "C" fn()>(handler) };
            handler();
        }
    }
}

unsafe extern "system" fn on_exit(_module: *mut c_void, reason: u32, _: *mut c_void) {
    if reason == DLL_PROCESS_DETACH {
        exit_once();
    }
}

/// The index of the words among the system's thread-local ones, plus 1; 0 until there is one, [`NONE_LEFT`] when there
/// is none that `thread_word` reaches.
static INDEX: AtomicU32 = AtomicU32::new(0);
const NONE_LEFT: u32 = u32::MAX;
/// So many of them are in the thread's own block, the others in a table of their own (`TLS_MINIMUM_AVAILABLE`).
const IN_BLOCK: u32 = 64;
/// Where they are in it, see `TlsSlots` in winternl.h's `TEB`. mimalloc relies on the same (prim.h).
const SLOTS_OFFSET: usize = 0x1480;

static HANDLER: AtomicPtr<()> = AtomicPtr::new(ptr::null_mut());

/// `TlsGetValue` would set the thread's last error, which a program may want to read after it has freed something.
#[inline(always)]
pub(crate) fn thread_word() -> *mut c_void {
    // Relaxed: a number that the system knows before it is stored.
    let index = INDEX.load(Ordering::Relaxed);
    if index.wrapping_sub(1) >= IN_BLOCK {
        return ptr::null_mut();
    }
    let word: *mut c_void;
    // SAFETY: reads from the thread's own block, which stays until the thread is gone.
    unsafe {
        #[cfg(target_arch = "x86_64")]
        std::arch::asm!(
            "mov {word}, qword ptr gs:[{index} * 8 + {offset}]",
            index = in(reg) u64::from(index),
            word = lateout(reg) word,
            offset = const SLOTS_OFFSET - 8,
            options(nostack, preserves_flags, readonly),
        );
        #[cfg(target_arch = "aarch64")]
        {
            let block: *const u8;
            std::arch::asm!(
                "mov {block}, x18",
                block = out(reg) block,
                options(nostack, preserves_flags, nomem),
            );
            word = block.add(SLOTS_OFFSET).cast::<*mut c_void>().add(index as usize - 1).read();
        }
    }
    word
}

pub(crate) fn at_thread_exit(
    handler: unsafe extern "C" fn(*mut c_void),
    word: *mut c_void,
) -> bool {
    // Relaxed: each thread that has a word has stored this itself.
    HANDLER.store((handler as *const ()).cast_mut(), Ordering::Relaxed);
    let mut index = INDEX.load(Ordering::Relaxed);
    if index == 0 {
        be_called();
        // SAFETY: may be called at any time.
        let made = unsafe { TlsAlloc() };
        // `TLS_OUT_OF_INDEXES` is the largest number.
        let new = if made < IN_BLOCK { made + 1 } else { NONE_LEFT };
        index = match INDEX.compare_exchange(0, new, Ordering::Relaxed, Ordering::Relaxed) {
            Ok(_) => new,
            Err(theirs) => theirs,
        };
        if index != made.wrapping_add(1) {
            // SAFETY: an index that nobody has used, or none at all, which is refused.
            unsafe { TlsFree(made) };
        }
    }
    // SAFETY: an index that is never given back.
    index != NONE_LEFT && unsafe { TlsSetValue(index - 1, word) != 0 }
}

unsafe extern "system" fn on_thread_exit(_module: *mut c_void, reason: u32, _: *mut c_void) {
    let word = thread_word();
    let handler = HANDLER.load(Ordering::Relaxed);
    if reason == DLL_THREAD_DETACH && !word.is_null() && !handler.is_null() {
        // SAFETY: `at_thread_exit` made it of such a function, and the word was set with it.
        unsafe {
            let handler = mem::transmute::<*mut (), unsafe extern "C" fn(*mut c_void)>(handler);
            handler(word);
        }
    }
}
