//! Linux: system calls and the C library, none of which allocates through the global allocator.

mod memory;
mod thread;
mod write;

use std::ffi::CStr;
use std::mem::MaybeUninit;
use std::ptr;
use std::sync::atomic::{AtomicU32, Ordering};

pub(crate) use {memory::*, thread::*, write::*};

/// Whether the drainer can run here.
pub(crate) const CAN_DEFER: bool = true;

/// The signals of this thread blocked that a program may mean for threads of its own, and a thread started meanwhile
/// inherits that; undone on drop.
///
/// A signal that is sent to the process must reach the program's threads, never the drainer.
pub(crate) struct SignalsBlocked {
    before: libc::sigset_t,
}

/// Not blocked: what a thread brings upon itself, which a crash handler is to see, and the profiler's, whose ticks would be
/// put down to another thread.
const OF_EACH_THREAD: [libc::c_int; 8] = [
    libc::SIGSEGV,
    libc::SIGBUS,
    libc::SIGFPE,
    libc::SIGILL,
    libc::SIGTRAP,
    libc::SIGSYS,
    libc::SIGABRT,
    libc::SIGPROF,
];

impl SignalsBlocked {
    pub(crate) fn new() -> Self {
        let mut blocked = MaybeUninit::<libc::sigset_t>::uninit();
        let mut before = MaybeUninit::<libc::sigset_t>::uninit();
        // SAFETY: `sigfillset` initialises `blocked`, `pthread_sigmask` with valid arguments cannot
        // fail and writes `before`.
        unsafe {
            libc::sigfillset(blocked.as_mut_ptr());
            for signal in OF_EACH_THREAD {
                libc::sigdelset(blocked.as_mut_ptr(), signal);
            }
            libc::pthread_sigmask(libc::SIG_BLOCK, blocked.as_ptr(), before.as_mut_ptr());
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
    let mut least = None;
    for_each_group(b"memory", |root, path, version| {
        let name: &[u8] = if version == 2 { b"memory.max" } else { b"memory.limit_in_bytes" };
        let mut content = [0; FILE_BYTES];
        least = min_known(least, group_file(root, path, name, &mut content).and_then(number));
    });
    least
}

/// Whole CPUs by the least `cpu.max` (version 1: `cpu.cfs_quota_us` and `cpu.cfs_period_us`).
fn cgroup_cpus() -> Option<usize> {
    let mut least = None;
    for_each_group(b"cpu", |root, path, version| {
        let (mut first, mut second) = ([0; FILE_BYTES], [0; FILE_BYTES]);
        let (quota, period) = if version == 2 {
            let max = group_file(root, path, b"cpu.max", &mut first);
            let mut fields = max.unwrap_or_default().splitn(2, |&byte| byte == b' ');
            (fields.next().and_then(number), fields.next().and_then(number))
        } else {
            (
                group_file(root, path, b"cpu.cfs_quota_us", &mut first).and_then(number),
                group_file(root, path, b"cpu.cfs_period_us", &mut second).and_then(number),
            )
        };
        if let (Some(quota), Some(period @ 1..)) = (quota, period) {
            least = min_known(least, Some(quota / period));
        }
    });
    least
}

fn min_known(a: Option<usize>, b: Option<usize>) -> Option<usize> {
    match (a, b) {
        (Some(a), Some(b)) => Some(a.min(b)),
        (a, b) => a.or(b),
    }
}

/// A number with nothing but blanks around it; `None` for `max` and `-1`.
fn number(text: &[u8]) -> Option<usize> {
    std::str::from_utf8(text).ok()?.trim().parse().ok()
}

/// Calls `f` with root, path and version for each control group with `controller` that this process
/// is in, and for those above it.
fn for_each_group(controller: &[u8], mut f: impl FnMut(&[u8], &[u8], u32)) {
    let mut file = [0u8; 4096];
    let Some(groups) = read_file(c"/proc/self/cgroup", &mut file) else {
        return;
    };
    for line in groups.split(|&byte| byte == b'\n') {
        // hierarchy-id : controllers : path
        let mut fields = line.splitn(3, |&byte| byte == b':');
        let (Some(_), Some(controllers), Some(mut path)) =
            (fields.next(), fields.next(), fields.next())
        else {
            continue;
        };
        let (root, version): (&[&[u8]], u32) = if controllers.is_empty() {
            (&[b"/sys/fs/cgroup"], 2)
        } else if controllers.split(|&byte| byte == b',').any(|c| c == controller) {
            (&[b"/sys/fs/cgroup/", controller], 1)
        } else {
            continue;
        };
        let mut full_root = [0u8; 64];
        let Some(len) = concatenate(&mut full_root, root) else {
            continue;
        };
        loop {
            f(&full_root[..len], path, version);
            match path.iter().rposition(|&byte| byte == b'/') {
                Some(slash) => path = &path[..slash],
                None => break,
            }
        }
    }
}

fn concatenate(buffer: &mut [u8], parts: &[&[u8]]) -> Option<usize> {
    let mut len = 0;
    for part in parts {
        buffer.get_mut(len..len + part.len())?.copy_from_slice(part);
        len += part.len();
    }
    Some(len)
}

/// More than the few numbers in a control group's file take.
const FILE_BYTES: usize = 64;

/// The contents of `root/path/name`.
fn group_file<'a>(
    root: &[u8],
    path: &[u8],
    name: &[u8],
    content: &'a mut [u8; FILE_BYTES],
) -> Option<&'a [u8]> {
    let mut full = [0u8; 1024];
    let len = concatenate(&mut full, &[root, path, b"/", name, b"\0"])?;
    read_file(CStr::from_bytes_with_nul(&full[..len]).ok()?, content)
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

/// Whether this program has rights that whoever started it may not have (setuid and the like): it must
/// not do what the environment says where that could be put to use.
pub(crate) fn is_privileged() -> bool {
    // SAFETY: reads what the kernel told the program at its start.
    unsafe { libc::getauxval(libc::AT_SECURE) != 0 }
}

/// The clock that runs with the calling thread's CPU time, to be read by any thread with `clock_ns`.
pub(crate) fn thread_cpu_clock() -> Option<libc::clockid_t> {
    let mut clock = 0;
    // SAFETY: the calling thread, and a live variable.
    let error = unsafe { libc::pthread_getcpuclockid(libc::pthread_self(), &mut clock) };
    (error == 0).then_some(clock)
}

/// Nanoseconds on a clock; `None` when there is no such clock, or its thread has ended.
pub(crate) fn clock_ns(clock: libc::clockid_t) -> Option<u64> {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: a live variable.
    if unsafe { libc::clock_gettime(clock, &mut time) } != 0 {
        return None;
    }
    #[allow(clippy::unnecessary_cast, reason = "the fields' types differ between systems")]
    Some(time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64)
}

/// Nanoseconds since some moment before.
pub(crate) fn monotonic_ns() -> u64 {
    clock_ns(libc::CLOCK_MONOTONIC).unwrap_or(0)
}

/// CPU time of all threads of the process.
pub(crate) fn process_cpu_ns() -> Option<u64> {
    clock_ns(libc::CLOCK_PROCESS_CPUTIME_ID)
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

/// Sees to it that this code stays in memory until the process ends, also where it is part of a library
/// that the program unloads: threads and handlers that point into it would be left without code. False
/// when the system refuses.
pub(crate) fn stay_loaded() -> bool {
    static HERE: u8 = 0;
    let here = &raw const HERE;
    // Looked at first, because the dynamic linker's functions wait for a `dlopen` that is under way, and
    // a program's threads must not.
    if is_in_program(here.addr()) {
        return true;
    }
    let mut found = MaybeUninit::<libc::Dl_info>::zeroed();
    // SAFETY: any address may be asked for; all zeros are a valid value, should it not be written.
    let found = unsafe {
        if libc::dladdr(here.cast(), found.as_mut_ptr()) == 0 {
            // Not known to the dynamic linker, so there is nothing that it could unload.
            return true;
        }
        found.assume_init()
    };
    // The name is that by which the dynamic linker knows it already: no file is looked for.
    let flags = libc::RTLD_LAZY | libc::RTLD_NOLOAD | libc::RTLD_NODELETE;
    // SAFETY: null or a C string of the dynamic linker's; no constructor runs.
    !found.dli_fname.is_null() && !unsafe { libc::dlopen(found.dli_fname, flags) }.is_null()
}

#[cfg(target_pointer_width = "32")]
use libc::Elf32_Phdr as ProgramHeader;
#[cfg(target_pointer_width = "64")]
use libc::Elf64_Phdr as ProgramHeader;

/// Whether an address lies in the program itself, not in a library.
fn is_in_program(address: usize) -> bool {
    // SAFETY: reads numbers that the kernel passed to the process.
    let (first, n_headers) =
        unsafe { (libc::getauxval(libc::AT_PHDR), libc::getauxval(libc::AT_PHNUM)) };
    let first = ptr::with_exposed_provenance::<ProgramHeader>(first as usize);
    if first.is_null() {
        return false;
    }
    // SAFETY: the kernel maps the headers with the program, where they stay.
    let headers = unsafe { std::slice::from_raw_parts(first, n_headers as usize) };
    let start = |header: &ProgramHeader| header.p_vaddr as usize;
    // The headers say where they would be themselves, had the program not been moved.
    let moved_by = headers
        .iter()
        .find(|header| header.p_type == libc::PT_PHDR)
        .map_or(0, |header| first.addr().wrapping_sub(start(header)));
    headers.iter().filter(|header| header.p_type == libc::PT_LOAD).any(|header| {
        address.wrapping_sub(moved_by).wrapping_sub(start(header)) < header.p_memsz as usize
    })
}

/// Has `handler` run when the calling thread exits, after its C++ and Rust thread-local destructors;
/// false when the system has no key left. One handler for the whole process.
pub(crate) fn at_thread_exit(handler: unsafe extern "C" fn(*mut libc::c_void)) -> bool {
    // 0 until there is one, then the key + 1.
    static KEY: AtomicU32 = AtomicU32::new(0);
    // Relaxed: a key is a number, which the C library knows before it is stored here.
    let mut known = KEY.load(Ordering::Relaxed);
    if known == 0 {
        let mut key = 0;
        // SAFETY: a live variable, and a function that stays for as long as this crate is loaded.
        if unsafe { libc::pthread_key_create(&mut key, Some(handler)) } != 0 {
            return false;
        }
        match KEY.compare_exchange(0, key + 1, Ordering::Relaxed, Ordering::Relaxed) {
            Ok(_) => known = key + 1,
            Err(theirs) => {
                // SAFETY: nobody has used this key.
                unsafe { libc::pthread_key_delete(key) };
                known = theirs;
            }
        }
    }
    // The handler is called for values that are not null.
    // SAFETY: a key that was created and is never deleted.
    unsafe { libc::pthread_setspecific(known - 1, ptr::without_provenance(1)) == 0 }
}

/// Whether the threads of this process have one CPU between them, by the set of CPUs that the first of them may
/// run on (others may be pinned to one) or by the quota of the control group.
pub(crate) fn has_one_cpu() -> bool {
    let mut cpus = MaybeUninit::<libc::cpu_set_t>::zeroed();
    // SAFETY: a buffer of the given size, all zeros of which are a valid set.
    let n_cpus = unsafe {
        if libc::sched_getaffinity(libc::getpid(), size_of::<libc::cpu_set_t>(), cpus.as_mut_ptr())
            == 0
        {
            libc::CPU_COUNT(cpus.assume_init_ref())
        } else {
            // More CPUs than the set has room for.
            libc::CPU_SETSIZE
        }
    };
    n_cpus == 1 || cgroup_cpus().is_some_and(|n_cpus| n_cpus < 2)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn program_and_libraries_are_told_apart() {
        static HERE: u8 = 0;
        assert!(is_in_program((&raw const HERE).addr()));
        assert!(is_in_program(is_in_program as *const () as usize));
        assert!(!is_in_program(libc::getpid as *const () as usize));
        assert!(!is_in_program((&raw const HERE).addr() + (1 << 40)));
        assert!(stay_loaded());
    }
}
