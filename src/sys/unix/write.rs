//! Writing to standard error and to files, without allocating, and without any signal that a write
//! may raise ending the program.

use std::ffi::CStr;
use std::fmt::{self, Write};
use std::io;
use std::mem::MaybeUninit;
use std::ptr;

use super::system;

/// An error of the system, by its number. (`io::Error` allocates when it is shown.)
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Errno(libc::c_int);

impl Errno {
    fn last() -> Errno {
        Errno::from(&io::Error::last_os_error())
    }
}

impl From<&io::Error> for Errno {
    fn from(error: &io::Error) -> Errno {
        Errno(error.raw_os_error().unwrap_or(0))
    }
}

impl fmt::Display for Errno {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut text = [0u8; 128];
        // SAFETY: a buffer of the given length, the last byte of which is left alone.
        unsafe { libc::strerror_r(self.0, text.as_mut_ptr().cast(), text.len() - 1) };
        let text = CStr::from_bytes_until_nul(&text).ok().and_then(|text| text.to_str().ok());
        write!(f, "{} (error {})", text.unwrap_or("unknown"), self.0)
    }
}

/// The signals of a write that fails, blocked on this thread; undone on drop.
///
/// A write to a pipe that nobody reads raises SIGPIPE, which Rust programs ignore but others need not,
/// and one past the limit on the size of files raises SIGXFSZ. Both would end the program.
struct Quiet {
    before: libc::sigset_t,
    pending_before: [bool; 2],
}

const RAISED: [libc::c_int; 2] = [libc::SIGPIPE, libc::SIGXFSZ];

impl Quiet {
    fn new() -> Quiet {
        let mut set = MaybeUninit::<libc::sigset_t>::uninit();
        let mut before = MaybeUninit::<libc::sigset_t>::uninit();
        // SAFETY: `sigemptyset` initialises `set`, `pthread_sigmask` with valid arguments cannot fail and
        // writes `before`.
        unsafe {
            libc::sigemptyset(set.as_mut_ptr());
            for signal in RAISED {
                libc::sigaddset(set.as_mut_ptr(), signal);
            }
            libc::pthread_sigmask(libc::SIG_BLOCK, set.as_ptr(), before.as_mut_ptr());
            Quiet { before: before.assume_init(), pending_before: RAISED.map(is_pending) }
        }
    }
}

fn is_pending(signal: libc::c_int) -> bool {
    let mut pending = MaybeUninit::<libc::sigset_t>::uninit();
    // SAFETY: `sigpending` initialises the set when it succeeds.
    unsafe {
        libc::sigpending(pending.as_mut_ptr()) == 0
            && libc::sigismember(pending.as_ptr(), signal) == 1
    }
}

impl Drop for Quiet {
    fn drop(&mut self) {
        for (signal, was_pending) in RAISED.into_iter().zip(self.pending_before) {
            // Raised by our own write: it is taken back.
            if !was_pending && is_pending(signal) {
                system::take_signal(signal);
            }
        }
        // SAFETY: `before` is the mask that `new` was given.
        unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, &self.before, ptr::null_mut()) };
    }
}

/// Writes all of `bytes`.
fn write_all(file: libc::c_int, mut bytes: &[u8]) -> Result<(), Errno> {
    while !bytes.is_empty() {
        // SAFETY: the pointer and the length are those of a slice.
        let written = unsafe { libc::write(file, bytes.as_ptr().cast(), bytes.len()) };
        match usize::try_from(written) {
            Ok(0) => return Err(Errno(libc::EIO)),
            Ok(written) => bytes = &bytes[written..],
            Err(_) if Errno::last() == Errno(libc::EINTR) => {}
            Err(_) => return Err(Errno::last()),
        }
    }
    Ok(())
}

/// Writes all of `bytes` to standard error, unbuffered. False when it is closed or full, which must not
/// stop the program.
pub(crate) fn write_stderr(bytes: &[u8]) -> bool {
    let _quiet = Quiet::new();
    write_all(libc::STDERR_FILENO, bytes).is_ok()
}

/// A descriptor, closed on drop.
struct File(libc::c_int);

impl File {
    fn open(path: &CStr, flags: libc::c_int) -> Result<File, Errno> {
        let mode: libc::c_uint = 0o666;
        // SAFETY: a C string; the mode is used if the file is made.
        let file = unsafe { libc::open(path.as_ptr(), flags | libc::O_CLOEXEC, mode) };
        if file < 0 { Err(Errno::last()) } else { Ok(File(file)) }
    }

    /// Closes it; a file system may say only now that there is no room.
    fn close(self) -> Result<(), Errno> {
        let File(file) = self;
        std::mem::forget(self);
        // SAFETY: a descriptor of ours, closed once.
        if unsafe { libc::close(file) } != 0 { Err(Errno::last()) } else { Ok(()) }
    }
}

impl Drop for File {
    fn drop(&mut self) {
        // SAFETY: as in `close`.
        unsafe { libc::close(self.0) };
    }
}

/// Makes a file at `path` of what `write` hands to its argument: whole, or the path stays as it was.
///
/// What is no ordinary file, such as a pipe or a link, is written to as it is, without waiting for a
/// reader. Where it leads to the file that is standard output or error (`/dev/stderr`), this comes behind what is there.
pub(crate) fn replace_file(
    path: &CStr,
    write: impl FnOnce(&mut dyn FnMut(&[u8]) -> bool) -> bool,
) -> Result<(), Errno> {
    let _quiet = Quiet::new();
    if is_no_ordinary_file(path) {
        let flags = libc::O_WRONLY | libc::O_NONBLOCK | libc::O_NOCTTY;
        let file = File::open(path, flags)?;
        let standard = [libc::STDOUT_FILENO, libc::STDERR_FILENO];
        let opened = identity(file.0);
        if let Some(same) =
            standard.into_iter().find(|it| opened.is_some() && identity(*it) == opened)
        {
            return write_to(same, write);
        }
        // SAFETY: a descriptor of ours. Anything but a file refuses.
        let empty = || unsafe { libc::ftruncate(file.0, 0) };
        empty();
        let written = write_to(file.0, write);
        if written.is_err() {
            // A link to a file on a full disk: nothing rather than half of it.
            empty();
        }
        return written;
    }
    let mut beside = Name { bytes: [0; 1200], len: 0 };
    beside.set_beside(path).map_err(|_| Errno(libc::ENAMETOOLONG))?;
    let beside = beside.as_c_str();
    let flags = libc::O_WRONLY | libc::O_CREAT | libc::O_EXCL;
    let file = File::open(beside, flags)?;
    let written = write_to(file.0, write).and_then(|()| file.close()).and_then(|()| {
        // SAFETY: two C strings.
        if unsafe { libc::rename(beside.as_ptr(), path.as_ptr()) } != 0 {
            return Err(Errno::last());
        }
        Ok(())
    });
    if written.is_err() {
        // SAFETY: a C string.
        unsafe { libc::unlink(beside.as_ptr()) };
    }
    written
}

/// Writes to a descriptor.
fn write_to(
    file: libc::c_int,
    write: impl FnOnce(&mut dyn FnMut(&[u8]) -> bool) -> bool,
) -> Result<(), Errno> {
    let mut result = Ok(());
    write(&mut |bytes| {
        result = write_all(file, bytes);
        result.is_ok()
    });
    result
}

/// Which file a descriptor is; `None` for what is no ordinary one.
fn identity(file: libc::c_int) -> Option<(libc::dev_t, libc::ino_t)> {
    let mut status = MaybeUninit::<libc::stat>::uninit();
    // SAFETY: room for the structure, which is filled on success.
    unsafe {
        if libc::fstat(file, status.as_mut_ptr()) != 0 {
            return None;
        }
        let status = status.assume_init_ref();
        (status.st_mode & libc::S_IFMT == libc::S_IFREG).then_some((status.st_dev, status.st_ino))
    }
}

fn is_no_ordinary_file(path: &CStr) -> bool {
    let mut status = MaybeUninit::<libc::stat>::uninit();
    // SAFETY: a C string, and room for the structure, which is filled on success.
    unsafe {
        libc::lstat(path.as_ptr(), status.as_mut_ptr()) == 0
            && status.assume_init_ref().st_mode & libc::S_IFMT != libc::S_IFREG
    }
}

/// A path that ends in a zero.
struct Name {
    bytes: [u8; 1200],
    len: usize,
}

impl Name {
    /// A name in the directory of `path` that nobody else uses.
    fn set_beside(&mut self, path: &CStr) -> fmt::Result {
        let path = path.to_bytes();
        let directory = path.iter().rposition(|&byte| byte == b'/').map_or(0, |slash| slash + 1);
        self.push(&path[..directory])?;
        let now = super::clock_ns(libc::CLOCK_REALTIME).unwrap_or(0);
        write!(self, ".deferfree-{}-{now}.tmp", std::process::id())
    }

    fn push(&mut self, bytes: &[u8]) -> fmt::Result {
        // The last byte stays 0.
        let end = self.bytes.len() - 1;
        let room = self.bytes[..end].get_mut(self.len..self.len + bytes.len()).ok_or(fmt::Error)?;
        room.copy_from_slice(bytes);
        self.len += bytes.len();
        Ok(())
    }

    fn as_c_str(&self) -> &CStr {
        CStr::from_bytes_until_nul(&self.bytes).unwrap_or_default()
    }
}

impl Write for Name {
    fn write_str(&mut self, s: &str) -> fmt::Result {
        self.push(s.as_bytes())
    }
}
