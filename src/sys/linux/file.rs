//! The kernel's small files.

use std::ffi::CStr;

/// As much of a file as `buffer` holds.
pub(super) fn read<'a>(path: &CStr, buffer: &'a mut [u8]) -> Option<&'a [u8]> {
    // SAFETY: a C string and a buffer of the given length; the descriptor is closed once.
    unsafe {
        let file = libc::open(path.as_ptr(), libc::O_RDONLY | libc::O_CLOEXEC);
        if file < 0 {
            return None;
        }
        let n = libc::read(file, buffer.as_mut_ptr().cast(), buffer.len());
        libc::close(file);
        buffer.get(..usize::try_from(n).ok()?)
    }
}
