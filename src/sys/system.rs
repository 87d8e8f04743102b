//! A system on which nothing is deferred: no drainer, no fork or exit handlers, no environment. See `sys`.

use std::alloc::{GlobalAlloc, Layout, System};
use std::ffi::{CStr, c_void};
use std::ptr;
use std::sync::atomic::AtomicU32;
use std::thread;
use std::time::Duration;
use std::{fmt, io};

use super::{MemoryInUse, PageFaults, Released};

/// Of a system that is not asked for anything.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Errno;

impl From<&io::Error> for Errno {
    fn from(_error: &io::Error) -> Errno {
        Errno
    }
}

impl fmt::Display for Errno {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("not on this platform")
    }
}

pub(crate) const CAN_DEFER: bool = false;

#[derive(Debug)]
pub(crate) struct KeepsErrno(());

impl KeepsErrno {
    pub(crate) fn new() -> Self {
        KeepsErrno(())
    }
}

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

pub(crate) fn page_bytes() -> usize {
    4096
}

fn whole_pages(len: usize) -> Layout {
    Layout::from_size_align(len, page_bytes()).unwrap_or(Layout::new::<u8>())
}

/// Memory of the system's own allocator: nobody gets here but the tests of the structures in it.
pub(crate) fn map_zeroed(len: usize) -> *mut u8 {
    // SAFETY: the size is not 0.
    unsafe { System.alloc_zeroed(whole_pages(len.max(1))) }
}

pub(crate) fn map_aligned(_len: usize, _align: usize) -> *mut u8 {
    ptr::null_mut()
}

/// # Safety
/// See `sys`.
pub(crate) unsafe fn unmap(ptr: *mut u8, len: usize) {
    // SAFETY: from `map_zeroed` with this length.
    unsafe { System.dealloc(ptr, whole_pages(len.max(1))) };
}

/// Whether `move_mapping` can succeed.
pub(crate) const MOVES_MAPPINGS: bool = false;

/// Whether parts of a mapping can be unmapped.
pub(crate) const SPLITS_MAPPINGS: bool = false;

/// # Safety
/// See `sys`.
pub(crate) unsafe fn grow_in_place(_ptr: *mut u8, _old_len: usize, _new_len: usize) -> bool {
    false
}

/// # Safety
/// See `sys`.
pub(crate) unsafe fn move_mapping(
    _ptr: *mut u8,
    _old_len: usize,
    _to: *mut u8,
    _new_len: usize,
) -> bool {
    false
}

/// # Safety
/// See `sys`.
pub(crate) unsafe fn release_in_pieces(_ptr: *mut u8, _len: usize) -> Released {
    Released::default()
}

/// # Safety
/// See `sys`.
pub(crate) unsafe fn want_huge_pages(_ptr: *mut u8, _len: usize) {}

/// # Safety
/// See `sys`.
pub(crate) unsafe fn make_ready(_ptr: *mut u8, _len: usize) {}

/// Whether `is_resident` can be true.
pub(crate) const KNOWS_RESIDENT: bool = false;

/// # Safety
/// None is needed: nothing is ever mapped here.
pub(crate) unsafe fn is_resident(_page: *mut u8) -> bool {
    false
}

/// # Safety
/// None is needed: nothing is ever mapped here.
pub(crate) unsafe fn make_zero(_ptr: *mut u8, _len: usize) -> bool {
    false
}

/// # Safety
/// None is needed: nothing is ever mapped here.
pub(crate) unsafe fn move_pages(_ptr: *mut u8, _len: usize, _hint: *mut u8) -> *mut u8 {
    ptr::null_mut()
}

pub(crate) fn memory_in_use() -> Option<MemoryInUse> {
    None
}

pub(crate) fn page_faults() -> Option<PageFaults> {
    None
}

pub(crate) fn memory_limit() -> Option<usize> {
    None
}

/// # Safety
/// See `sys`.
pub(crate) unsafe fn start_thread(
    _stack_bytes: usize,
    _main: extern "C" fn(*mut c_void) -> *mut c_void,
    _argument: *mut c_void,
) -> io::Result<()> {
    Err(io::ErrorKind::Unsupported.into())
}

pub(crate) fn be_ordinary() {}

pub(crate) fn prepare_to_start_threads() {}

pub(crate) fn name_thread(_name: &CStr) {}

/// Returns soon, for no reason.
pub(crate) fn futex_wait(_word: &AtomicU32, _expected: u32, timeout: Option<Duration>) {
    match timeout {
        Some(timeout) => thread::sleep(timeout),
        None => thread::yield_now(),
    }
}

pub(crate) fn futex_wake_one(_word: &AtomicU32) {}

pub(crate) fn thread_word() -> *mut c_void {
    ptr::null_mut()
}

pub(crate) fn at_thread_exit(
    _handler: unsafe extern "C" fn(*mut c_void),
    _word: *mut c_void,
) -> bool {
    false
}

pub(crate) fn thread_cpu_clock() -> Option<i32> {
    None
}

pub(crate) fn thread_cpu_ns(_clock: i32) -> Option<u64> {
    None
}

pub(crate) fn process_cpu_ns() -> Option<u64> {
    None
}

pub(crate) fn monotonic_ns() -> u64 {
    0
}

pub(crate) fn has_one_cpu() -> bool {
    true
}

/// Where there is `fork`, nobody is told of it.
pub(crate) fn at_fork(
    _prepare: unsafe extern "C" fn(),
    _parent: unsafe extern "C" fn(),
    _child: unsafe extern "C" fn(),
) -> bool {
    cfg!(not(unix))
}

/// Nobody is told, and nobody waits for anything that an exit would have to end.
pub(crate) fn at_exit(_handler: extern "C" fn()) -> bool {
    true
}

pub(crate) fn stay_loaded() -> bool {
    true
}

pub(crate) fn for_each_variable(_f: impl FnMut(&[u8], &[u8])) {}

pub(crate) fn is_privileged() -> bool {
    false
}

pub(crate) fn write_stderr(_bytes: &[u8]) -> bool {
    false
}

pub(crate) fn replace_file(
    _path: &CStr,
    _write: impl FnOnce(&mut dyn FnMut(&[u8]) -> bool) -> bool,
) -> Result<(), Errno> {
    Ok(())
}
