//! Threads, and what they sleep on.

use std::ffi::{CStr, c_void};
use std::io;
use std::mem;
use std::ptr;
use std::sync::atomic::AtomicU32;
use std::time::Duration;

use windows_sys::Win32::Foundation::{CloseHandle, FILETIME, GetLastError, HANDLE, SetLastError};
use windows_sys::Win32::System::LibraryLoader::{GetModuleHandleA, GetProcAddress};
use windows_sys::Win32::System::Threading::{
    CreateThread, GetCurrentThread, GetCurrentThreadId, GetThreadTimes, INFINITE,
    LPTHREAD_START_ROUTINE, OpenThread, STACK_SIZE_PARAM_IS_A_RESERVATION,
    THREAD_QUERY_LIMITED_INFORMATION, WaitOnAddress, WakeByAddressSingle,
};

/// There are no signals.
#[derive(Debug)]
pub(crate) struct SignalsBlocked(());

impl SignalsBlocked {
    pub(crate) fn new() -> Self {
        SignalsBlocked(())
    }
}

impl Drop for SignalsBlocked {
    fn drop(&mut self) {}
}

/// The calling thread's last error, put back on drop.
#[derive(Debug)]
pub(crate) struct KeepsErrno(u32);

impl KeepsErrno {
    pub(crate) fn new() -> Self {
        // SAFETY: callable at any time.
        KeepsErrno(unsafe { GetLastError() })
    }
}

impl Drop for KeepsErrno {
    fn drop(&mut self) {
        // SAFETY: as above.
        unsafe { SetLastError(self.0) };
    }
}

/// # Safety
/// See `sys`.
pub(crate) unsafe fn start_thread(
    stack_bytes: usize,
    main: extern "C" fn(*mut c_void) -> *mut c_void,
    argument: *mut c_void,
) -> io::Result<()> {
    // SAFETY: with 64 bits there is one calling convention. What is returned, in the same register, is the thread's exit
    // code, which nobody asks for.
    unsafe {
        let main = mem::transmute::<
            extern "C" fn(*mut c_void) -> *mut c_void,
            LPTHREAD_START_ROUTINE,
        >(main);
        let thread = CreateThread(
            ptr::null(),
            stack_bytes,
            main,
            argument,
            STACK_SIZE_PARAM_IS_A_RESERVATION,
            ptr::null_mut(),
        );
        if thread.is_null() {
            return Err(io::Error::last_os_error());
        }
        CloseHandle(thread);
    }
    Ok(())
}

/// A thread inherits neither priority nor processors from the one that starts it.
pub(crate) fn be_ordinary() {}

pub(crate) fn prepare_to_start_threads() {}

/// Looked for, not linked to: the first versions of Windows 10 do not have it, and Server 2016 has it in this library alone,
/// so that a program would not start there.
pub(crate) fn name_thread(name: &CStr) {
    type SetThreadDescription = unsafe extern "system" fn(HANDLE, *const u16) -> i32;
    let mut wide = [0u16; 16];
    let ascii = name.to_bytes().iter().map(|&byte| u16::from(byte));
    // The last one stays 0.
    wide[..15].iter_mut().zip(ascii).for_each(|(unit, byte)| *unit = byte);
    // SAFETY: strings that end with a zero; a library that every process has from start to end, with a function of that
    // type under that name; the calling thread.
    unsafe {
        let library = GetModuleHandleA(c"kernelbase.dll".as_ptr().cast());
        let function = GetProcAddress(library, c"SetThreadDescription".as_ptr().cast());
        if let Some(function) = function {
            let set_description = mem::transmute::<
                unsafe extern "system" fn() -> isize,
                SetThreadDescription,
            >(function);
            set_description(GetCurrentThread(), wide.as_ptr());
        }
    }
}

/// The thread's number stands for its clock.
pub(crate) fn thread_cpu_clock() -> Option<i32> {
    // SAFETY: returns a number.
    Some(unsafe { GetCurrentThreadId() } as i32)
}

pub(crate) fn thread_cpu_ns(clock: i32) -> Option<u64> {
    let [mut created, mut exited, mut kernel, mut user] = [FILETIME::default(); 4];
    // SAFETY: a handle that is closed once, and live variables.
    let known = unsafe {
        let thread = OpenThread(THREAD_QUERY_LIMITED_INFORMATION, 0, clock as u32);
        if thread.is_null() {
            return None;
        }
        let known = GetThreadTimes(thread, &mut created, &mut exited, &mut kernel, &mut user);
        CloseHandle(thread);
        known
    };
    (known != 0).then(|| super::ns(kernel) + super::ns(user))
}

/// The system's clock ticks every 15 ms, unless a program has asked for more; a sleep ends at a tick.
pub(crate) fn futex_wait(word: &AtomicU32, expected: u32, timeout: Option<Duration>) {
    let ms = timeout.map_or(INFINITE, |timeout| {
        timeout.as_nanos().div_ceil(1_000_000).min(u128::from(INFINITE - 1)) as u32
    });
    // SAFETY: a live word, and one to compare it with.
    unsafe {
        WaitOnAddress(word.as_ptr().cast(), (&raw const expected).cast(), size_of::<u32>(), ms)
    };
}

pub(crate) fn futex_wake_one(word: &AtomicU32) {
    // SAFETY: an address, which is not read.
    unsafe { WakeByAddressSingle(word.as_ptr().cast()) };
}
