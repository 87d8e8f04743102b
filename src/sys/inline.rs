//! Systems on which nothing is deferred: no drainer, no fork or exit handlers, no environment.

/// Whether the drainer can run here.
pub(crate) const CAN_DEFER: bool = false;

#[derive(Debug)]
pub(crate) struct SignalsBlocked;

impl SignalsBlocked {
    pub(crate) fn new() -> Self {
        SignalsBlocked
    }
}

impl Drop for SignalsBlocked {
    fn drop(&mut self) {}
}

pub(crate) fn map_zeroed(_len: usize) -> *mut u8 {
    std::ptr::null_mut()
}

pub(crate) fn map_aligned(_len: usize, _align: usize) -> *mut u8 {
    std::ptr::null_mut()
}

/// # Safety
/// None is needed: nothing is ever mapped here.
pub(crate) unsafe fn grow_in_place(_ptr: *mut u8, _old_len: usize, _new_len: usize) -> bool {
    false
}

/// # Safety
/// None is needed: nothing is ever mapped here.
pub(crate) unsafe fn move_mapping(
    _ptr: *mut u8,
    _old_len: usize,
    _to: *mut u8,
    _new_len: usize,
) -> bool {
    false
}

/// # Safety
/// None is needed: nothing is ever mapped here.
pub(crate) unsafe fn want_huge_pages(_ptr: *mut u8, _len: usize) {}

/// # Safety
/// None is needed: nothing is ever mapped here.
pub(crate) unsafe fn unmap(_ptr: *mut u8, _len: usize) {}

/// # Safety
/// The bytes must be a block that nobody reads any more.
pub(crate) unsafe fn release_in_pieces(_ptr: *mut u8, _len: usize) -> Released {
    Released::default()
}

#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Released {
    pub(crate) bytes: usize,
    pub(crate) calls: usize,
}

pub(crate) fn write_stderr(_bytes: &[u8]) -> bool {
    false
}

/// Nothing is ever written here.
#[derive(Debug)]
pub(crate) enum Errno {}

impl std::fmt::Display for Errno {
    fn fmt(&self, _f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match *self {}
    }
}

pub(crate) fn replace_file(
    _path: &std::ffi::CStr,
    _write: impl FnOnce(&mut dyn FnMut(&[u8]) -> bool) -> bool,
) -> Result<(), Errno> {
    Ok(())
}

pub(crate) fn is_privileged() -> bool {
    false
}

pub(crate) fn thread_cpu_clock() -> Option<i32> {
    None
}

pub(crate) fn clock_ns(_clock: i32) -> Option<u64> {
    None
}

pub(crate) fn process_cpu_ns() -> Option<u64> {
    None
}

pub(crate) fn for_each_variable(_f: impl FnMut(&[u8], &[u8])) {}

pub(crate) fn memory_limit() -> Option<usize> {
    None
}

pub(crate) fn at_fork(
    _prepare: unsafe extern "C" fn(),
    _parent: unsafe extern "C" fn(),
    _child: unsafe extern "C" fn(),
) -> bool {
    false
}

pub(crate) fn at_exit(_handler: extern "C" fn()) -> bool {
    false
}

pub(crate) fn stay_loaded() -> bool {
    true
}

/// # Safety
/// None is needed.
pub(crate) unsafe fn make_ready(_ptr: *mut u8, _len: usize) {}

pub(crate) fn monotonic_ns() -> u64 {
    0
}

pub(crate) fn at_thread_exit(_handler: unsafe extern "C" fn(*mut std::ffi::c_void)) -> bool {
    false
}

pub(crate) fn has_one_cpu() -> bool {
    true
}

/// # Safety
/// None is needed: nothing is ever started here.
pub(crate) unsafe fn start_thread(
    _stack_bytes: usize,
    _main: extern "C" fn(*mut std::ffi::c_void) -> *mut std::ffi::c_void,
    _argument: *mut std::ffi::c_void,
) -> std::io::Result<()> {
    Err(std::io::ErrorKind::Unsupported.into())
}

pub(crate) fn be_ordinary() {}

pub(crate) fn name_thread(_name: &std::ffi::CStr) {}

pub(crate) fn futex_wait(
    _word: &std::sync::atomic::AtomicU32,
    _expected: u32,
    _timeout: Option<std::time::Duration>,
) {
}

pub(crate) fn futex_wake_one(_word: &std::sync::atomic::AtomicU32) {}
