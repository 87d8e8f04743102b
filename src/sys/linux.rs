//! Linux: system calls and the C library, none of which allocates through the global allocator.

use std::ffi::CStr;
use std::mem::MaybeUninit;
use std::ptr;

/// Whether the drainer can run here.
pub(crate) const CAN_DEFER: bool = true;

/// All signals of this thread blocked, and a thread started meanwhile inherits that; undone on drop.
///
/// A signal that is sent to the process must reach the program's threads, never the drainer.
pub(crate) struct SignalsBlocked {
    before: libc::sigset_t,
}

impl SignalsBlocked {
    pub(crate) fn new() -> Self {
        let mut all = MaybeUninit::<libc::sigset_t>::uninit();
        let mut before = MaybeUninit::<libc::sigset_t>::uninit();
        // SAFETY: `sigfillset` initialises `all`, `pthread_sigmask` with valid arguments cannot
        // fail and writes `before`.
        unsafe {
            libc::sigfillset(all.as_mut_ptr());
            libc::pthread_sigmask(libc::SIG_SETMASK, all.as_ptr(), before.as_mut_ptr());
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

/// Maps `len` zero bytes whose pages cost nothing until they are touched; null when refused.
pub(crate) fn map_zeroed(len: usize) -> *mut u8 {
    // SAFETY: an anonymous private mapping at an address of the kernel's choice.
    let ptr = unsafe {
        libc::mmap(
            ptr::null_mut(),
            len,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE,
            -1,
            0,
        )
    };
    if ptr == libc::MAP_FAILED {
        return ptr::null_mut();
    }
    ptr.cast()
}

/// # Safety
/// `ptr` must come from `map_zeroed(len)` and nothing may use the mapping any more.
pub(crate) unsafe fn unmap(ptr: *mut u8, len: usize) {
    // SAFETY: the caller gives up the whole mapping.
    unsafe { libc::munmap(ptr.cast(), len) };
}

/// Bytes released per call: short enough that nobody waits for one call, long enough that the calls
/// themselves do not count.
const PIECE_BYTES: usize = 4 << 20;

/// Gives the pages of a block back to the system without unmapping them.
///
/// `munmap` of a large touched range holds the lock of the address space for writing all the while,
/// and every other thread's `mmap` and page fault waits; `MADV_DONTNEED` takes it for reading. Once
/// the pages are gone, the `munmap` that follows has nothing left to do.
///
/// # Safety
/// `[ptr, ptr + len)` must be a block that nobody reads any more; its contents become zero.
pub(crate) unsafe fn release_in_pieces(ptr: *mut u8, len: usize) {
    // SAFETY: reads a constant of the system.
    let page = unsafe { libc::sysconf(libc::_SC_PAGESIZE) } as usize;
    // The allocator's own bookkeeping may share the first and the last page: only whole pages go.
    let start = ptr.addr().next_multiple_of(page);
    let end = (ptr.addr() + len) & !(page - 1);
    let mut at = start;
    while at < end {
        let piece = PIECE_BYTES.min(end - at);
        // SAFETY: whole pages inside the caller's block. A refusal (locked memory) changes nothing.
        unsafe { libc::madvise(ptr.with_addr(at).cast(), piece, libc::MADV_DONTNEED) };
        at += piece;
    }
}

/// Writes all of `bytes` to standard error, unbuffered and without allocating.
pub(crate) fn write_stderr(mut bytes: &[u8]) {
    while !bytes.is_empty() {
        // SAFETY: the pointer and the length are those of a slice.
        let written = unsafe { libc::write(2, bytes.as_ptr().cast(), bytes.len()) };
        // A closed or full standard error must not stop the program.
        let Ok(written @ 1..) = usize::try_from(written) else {
            return;
        };
        bytes = &bytes[written..];
    }
}

unsafe extern "C" {
    static environ: *const *const libc::c_char;
}

/// Calls `f` with name and value of each environment variable, without copying or locking.
///
/// The same caveat holds as for `getenv`: another thread that changes the environment meanwhile
/// races with this. It is read at the first allocation, which comes before `main`.
pub(crate) fn for_each_variable(mut f: impl FnMut(&[u8], &[u8])) {
    // SAFETY: `environ` is null or an array of C strings that ends with a null pointer.
    unsafe {
        let mut entry = environ;
        while !entry.is_null() && !(*entry).is_null() {
            let bytes = CStr::from_ptr(*entry).to_bytes();
            if let Some(equals) = bytes.iter().position(|&byte| byte == b'=') {
                f(&bytes[..equals], &bytes[equals + 1..]);
            }
            entry = entry.add(1);
        }
    }
}

/// Bytes of memory that this process may use: the machine's, or less if its control group says so.
pub(crate) fn memory_limit() -> Option<usize> {
    // SAFETY: reads constants of the system.
    let (pages, page) =
        unsafe { (libc::sysconf(libc::_SC_PHYS_PAGES), libc::sysconf(libc::_SC_PAGESIZE)) };
    let machine = usize::try_from(pages).ok()?.checked_mul(usize::try_from(page).ok()?)?;
    Some(cgroup_limit().map_or(machine, |limit| limit.min(machine)))
}

/// The least `memory.max` from this process's control group up to the root (version 2, or version
/// 1's `limit_in_bytes`), see `Documentation/admin-guide/cgroup-v2.rst` of the kernel.
fn cgroup_limit() -> Option<usize> {
    let mut file = [0u8; 4096];
    let groups = read_file(c"/proc/self/cgroup", &mut file)?;
    let mut least = None;
    for line in groups.split(|&byte| byte == b'\n') {
        // hierarchy-id : controllers : path
        let mut fields = line.splitn(3, |&byte| byte == b':');
        let (Some(_), Some(controllers), Some(path)) =
            (fields.next(), fields.next(), fields.next())
        else {
            continue;
        };
        let (root, name): (&[u8], &[u8]) = if controllers.is_empty() {
            (b"/sys/fs/cgroup", b"memory.max")
        } else if controllers.split(|&byte| byte == b',').any(|c| c == b"memory") {
            (b"/sys/fs/cgroup/memory", b"memory.limit_in_bytes")
        } else {
            continue;
        };
        let mut path = path;
        loop {
            let limit = group_file(root, path, name);
            least = match (least, limit) {
                (Some(a), Some(b)) => Some(std::cmp::min::<usize>(a, b)),
                (a, b) => a.or(b),
            };
            match path.iter().rposition(|&byte| byte == b'/') {
                Some(slash) => path = &path[..slash],
                None => break,
            }
        }
    }
    least
}

/// The number in `root/path/name`; `None` where there is no such file or it says `max`.
fn group_file(root: &[u8], path: &[u8], name: &[u8]) -> Option<usize> {
    let mut full = [0u8; 1024];
    let mut len = 0;
    for part in [root, path, b"/", name, b"\0"] {
        full.get_mut(len..len + part.len())?.copy_from_slice(part);
        len += part.len();
    }
    let mut content = [0u8; 32];
    let digits = read_file(CStr::from_bytes_with_nul(&full[..len]).ok()?, &mut content)?;
    std::str::from_utf8(digits).ok()?.trim_end().parse().ok()
}

/// As much of a file as `buffer` holds.
fn read_file<'a>(path: &CStr, buffer: &'a mut [u8]) -> Option<&'a [u8]> {
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
