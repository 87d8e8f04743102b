//! Writing to standard error and to files, without allocating.

use std::ffi::CStr;
use std::fmt::{self, Write};
use std::io;
use std::ptr;

use windows_sys::Win32::Foundation::{
    CloseHandle, ERROR_FILE_NOT_FOUND, ERROR_FILENAME_EXCED_RANGE, ERROR_WRITE_FAULT,
    GENERIC_WRITE, HANDLE, INVALID_HANDLE_VALUE,
};
use windows_sys::Win32::Globalization::{CP_UTF8, MultiByteToWideChar};
use windows_sys::Win32::Storage::FileSystem::{
    CREATE_NEW, CreateFileW, DeleteFileW, FILE_ATTRIBUTE_NORMAL, FILE_ATTRIBUTE_REPARSE_POINT,
    FILE_SHARE_READ, FILE_SHARE_WRITE, FILE_TYPE_DISK, GetFileAttributesW, GetFileType,
    INVALID_FILE_ATTRIBUTES, MOVEFILE_REPLACE_EXISTING, MoveFileExW, OPEN_EXISTING, SetEndOfFile,
    WriteFile,
};
use windows_sys::Win32::System::Console::{GetStdHandle, STD_ERROR_HANDLE};
use windows_sys::Win32::System::Diagnostics::Debug::{
    FORMAT_MESSAGE_FROM_SYSTEM, FORMAT_MESSAGE_IGNORE_INSERTS, FormatMessageW,
};

/// An error of the system, by its number. (`io::Error` allocates when it is shown.)
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Errno(u32);

impl Errno {
    fn last() -> Errno {
        Errno::from(&io::Error::last_os_error())
    }
}

impl From<&io::Error> for Errno {
    fn from(error: &io::Error) -> Errno {
        Errno(error.raw_os_error().unwrap_or(0) as u32)
    }
}

impl fmt::Display for Errno {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut text = [0u16; 256];
        let flags = FORMAT_MESSAGE_FROM_SYSTEM | FORMAT_MESSAGE_IGNORE_INSERTS;
        // SAFETY: a buffer of the given length.
        let n = unsafe {
            FormatMessageW(
                flags,
                ptr::null(),
                self.0,
                0,
                text.as_mut_ptr(),
                text.len() as u32,
                ptr::null(),
            )
        };
        let end = text[..n as usize].iter().rposition(|&unit| unit > 0x20).map_or(0, |i| i + 1);
        for char in char::decode_utf16(text[..end].iter().copied()) {
            f.write_char(char.unwrap_or(char::REPLACEMENT_CHARACTER))?;
        }
        write!(f, " (error {})", self.0)
    }
}

fn write_all(file: HANDLE, mut bytes: &[u8]) -> Result<(), Errno> {
    while !bytes.is_empty() {
        let len = bytes.len().min(1 << 30) as u32;
        let mut written = 0;
        // SAFETY: the pointer and the length are those of a slice; waits until it is done.
        if unsafe { WriteFile(file, bytes.as_ptr(), len, &mut written, ptr::null_mut()) } == 0 {
            return Err(Errno::last());
        }
        if written == 0 {
            return Err(Errno(ERROR_WRITE_FAULT));
        }
        bytes = &bytes[written as usize..];
    }
    Ok(())
}

pub(crate) fn write_stderr(bytes: &[u8]) -> bool {
    // SAFETY: returns a handle that stays the process's.
    let file = unsafe { GetStdHandle(STD_ERROR_HANDLE) };
    !file.is_null() && file != INVALID_HANDLE_VALUE && write_all(file, bytes).is_ok()
}

/// A handle, closed on drop.
struct File(HANDLE);

impl File {
    fn open(path: &Path, how: u32) -> Result<File, Errno> {
        // SAFETY: a text that ends with a zero.
        let file = unsafe {
            CreateFileW(
                path.0.as_ptr(),
                GENERIC_WRITE,
                FILE_SHARE_READ | FILE_SHARE_WRITE,
                ptr::null(),
                how,
                FILE_ATTRIBUTE_NORMAL,
                ptr::null_mut(),
            )
        };
        if file == INVALID_HANDLE_VALUE { Err(Errno::last()) } else { Ok(File(file)) }
    }
}

impl Drop for File {
    fn drop(&mut self) {
        // SAFETY: a handle of ours, closed once.
        unsafe { CloseHandle(self.0) };
    }
}

/// A path in UTF-16 that ends in a zero.
struct Path([u16; 1200]);

impl Path {
    fn new(parts: &[&[u8]]) -> Result<Path, Errno> {
        let mut path = Path([0; 1200]);
        let mut len = 0;
        for part in parts.iter().filter(|part| !part.is_empty()) {
            let room = path.0.len() - 1 - len;
            // SAFETY: buffers of the given lengths.
            let n = unsafe {
                MultiByteToWideChar(
                    CP_UTF8,
                    0,
                    part.as_ptr(),
                    part.len() as i32,
                    path.0[len..].as_mut_ptr(),
                    room as i32,
                )
            };
            // Without any room, the system says how much it would take.
            if n == 0 || n as usize > room {
                return Err(Errno(ERROR_FILENAME_EXCED_RANGE));
            }
            len += n as usize;
        }
        Ok(path)
    }
}

/// See `sys`. What is no ordinary file, such as a pipe, a device or a link, is written to as it is.
pub(crate) fn replace_file(
    path: &CStr,
    write: impl FnOnce(&mut dyn FnMut(&[u8]) -> bool) -> bool,
) -> Result<(), Errno> {
    let bytes = path.to_bytes();
    let path = Path::new(&[bytes])?;
    if let Some(file) = open_if_special(&path)? {
        return write_to(&file, write);
    }
    let directory =
        bytes.iter().rposition(|&byte| matches!(byte, b'/' | b'\\' | b':')).map_or(0, |i| i + 1);
    let mut name = Name { bytes: [0; 64], len: 0 };
    let now = super::monotonic_ns();
    write!(name, ".deferfree-{}-{now}.tmp", std::process::id())
        .map_err(|_| Errno(ERROR_FILENAME_EXCED_RANGE))?;
    let beside = Path::new(&[&bytes[..directory], &name.bytes[..name.len]])?;
    let file = File::open(&beside, CREATE_NEW)?;
    let written = write_to(&file, write);
    drop(file);
    let written = written.and_then(|()| {
        // SAFETY: texts that end with a zero.
        let moved =
            unsafe { MoveFileExW(beside.0.as_ptr(), path.0.as_ptr(), MOVEFILE_REPLACE_EXISTING) };
        if moved == 0 { Err(Errno::last()) } else { Ok(()) }
    });
    if written.is_err() {
        // SAFETY: a text that ends with a zero.
        unsafe { DeleteFileW(beside.0.as_ptr()) };
    }
    written
}

fn write_to(
    file: &File,
    write: impl FnOnce(&mut dyn FnMut(&[u8]) -> bool) -> bool,
) -> Result<(), Errno> {
    let mut result = Ok(());
    write(&mut |bytes| {
        result = write_all(file.0, bytes);
        result.is_ok()
    });
    result
}

/// What is there already, if it is not an ordinary file.
fn open_if_special(path: &Path) -> Result<Option<File>, Errno> {
    let file = match File::open(path, OPEN_EXISTING) {
        Ok(file) => file,
        Err(Errno(ERROR_FILE_NOT_FOUND)) => return Ok(None),
        Err(error) => return Err(error),
    };
    // SAFETY: a live handle; a text that ends with a zero.
    let (kind, attributes) = unsafe { (GetFileType(file.0), GetFileAttributesW(path.0.as_ptr())) };
    let is_link =
        attributes != INVALID_FILE_ATTRIBUTES && attributes & FILE_ATTRIBUTE_REPARSE_POINT != 0;
    if is_link {
        // Nothing of what was there may remain behind the report.
        // SAFETY: a live handle, at the beginning of the file.
        unsafe { SetEndOfFile(file.0) };
    }
    Ok((kind != FILE_TYPE_DISK || is_link).then_some(file))
}

struct Name {
    bytes: [u8; 64],
    len: usize,
}

impl Write for Name {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let room = self.bytes.get_mut(self.len..self.len + text.len()).ok_or(fmt::Error)?;
        room.copy_from_slice(text.as_bytes());
        self.len += text.len();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_is_whole_or_refused() {
        let text = [b'a'; 1199];
        let is_whole =
            |parts: &[&[u8]]| Path::new(parts).is_ok_and(|path| path.0[..1199] == [97; 1199]);
        assert!(is_whole(&[&text]));
        assert!(is_whole(&[&text[..1000], &text[1000..]]));
        let refused =
            |parts: &[&[u8]]| Path::new(parts).err() == Some(Errno(ERROR_FILENAME_EXCED_RANGE));
        assert!(refused(&[&[b'a'; 1200]]));
        assert!(refused(&[&text, b"a"]));
        assert!(refused(&[&text, b"a", b"a"]));
    }
}
