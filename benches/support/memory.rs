//! What a process costs: resident set, peak and CPU time; and the warming of the machine's memory.

use std::fs::File;
use std::io::{Read, Write};
use std::mem::MaybeUninit;
use std::time::{Duration, Instant};

use super::block::PAGE_BYTES;

/// Reads a file of `/proc` without allocating: short paths and the buffer are on the stack.
fn read_proc<const N: usize>(path: &str, buffer: &mut [u8; N]) -> Option<usize> {
    File::open(path).ok()?.read(buffer).ok()
}

fn leading_number(bytes: &[u8]) -> Option<u64> {
    let digits = bytes.iter().skip_while(|byte| !byte.is_ascii_digit());
    let digits = digits.take_while(|byte| byte.is_ascii_digit());
    digits.fold(None, |number, digit| Some(number.unwrap_or(0) * 10 + u64::from(digit - b'0')))
}

/// The resident set now, in bytes.
pub(crate) fn rss_bytes() -> u64 {
    let mut buffer = [0; 256];
    let len = read_proc("/proc/self/statm", &mut buffer).unwrap_or(0);
    let pages = buffer[..len].split(|byte| *byte == b' ').nth(1).and_then(leading_number);
    // SAFETY: `sysconf` only reads a constant of the system.
    let page_bytes = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
    pages.unwrap_or(0) * page_bytes.unsigned_abs()
}

/// A field of a `/proc` file that is given in KiB, such as `VmHWM` of `/proc/self/status`.
pub(crate) fn proc_field_bytes(path: &str, field: &str) -> Option<u64> {
    let mut buffer = [0; 4096];
    let len = read_proc(path, &mut buffer)?;
    let mut lines = buffer[..len].split(|byte| *byte == b'\n');
    let line = lines.find(|line| line.starts_with(field.as_bytes()))?;
    Some(leading_number(&line[field.len()..])? * 1024)
}

/// Forgets the peak so far. Where the kernel refuses, the peak counts from the start of the
/// process, which here adds only what starting up takes.
pub(crate) fn reset_peak_rss() {
    if let Ok(mut file) = File::options().write(true).open("/proc/self/clear_refs") {
        file.write_all(b"5").ok();
    }
}

/// What all threads of the process have used so far.
fn resources() -> libc::rusage {
    let mut usage = MaybeUninit::<libc::rusage>::zeroed();
    // SAFETY: `usage` has room for the structure that the call writes.
    unsafe { libc::getrusage(libc::RUSAGE_SELF, usage.as_mut_ptr()) };
    // SAFETY: all zeros is a valid `rusage`, and the call may have filled it.
    unsafe { usage.assume_init() }
}

/// User and system time of all threads of the process so far.
pub(crate) fn cpu_time() -> Duration {
    cpu_time_of(&resources())
}

pub(crate) fn cpu_time_of(usage: &libc::rusage) -> Duration {
    let duration = |time: libc::timeval| {
        Duration::new(time.tv_sec.unsigned_abs(), time.tv_usec.unsigned_abs() as u32 * 1000)
    };
    duration(usage.ru_utime) + duration(usage.ru_stime)
}

/// Page faults of the process so far that needed no disk.
pub(crate) fn page_faults() -> u64 {
    resources().ru_minflt.unsigned_abs()
}

/// Peak and CPU time between two points of a process.
#[derive(Debug)]
pub(crate) struct Usage {
    cpu_before: Duration,
}

impl Usage {
    pub(crate) fn start() -> Self {
        reset_peak_rss();
        Self { cpu_before: cpu_time() }
    }

    pub(crate) fn peak_rss_bytes(&self) -> u64 {
        proc_field_bytes("/proc/self/status", "VmHWM:").unwrap_or(0)
    }

    pub(crate) fn cpu(&self) -> Duration {
        cpu_time().saturating_sub(self.cpu_before)
    }
}

/// An anonymous private mapping, straight from the kernel.
pub(crate) fn map(len: usize) -> Option<*mut u8> {
    let (prot, flags) =
        (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
    // SAFETY: a new mapping at an address of the kernel's choice touches no existing memory.
    let ptr = unsafe { libc::mmap(std::ptr::null_mut(), len, prot, flags, -1, 0) };
    (ptr != libc::MAP_FAILED).then(|| ptr.cast())
}

/// # Safety
///
/// `ptr` is a mapping of `len` bytes from [`map`], and nobody uses it any more.
pub(crate) unsafe fn unmap(ptr: *mut u8, len: usize) {
    // SAFETY: the caller owns the mapping.
    unsafe { libc::munmap(ptr.cast(), len) };
}

/// Touches and releases `len` bytes until that gets no faster. A virtual machine gets a page from
/// its host at the first touch since boot, which costs many times a normal page fault; the parent
/// calls this before each child, so that none is the one that pays.
pub(crate) fn warm_up(len: usize) {
    let mut before = Duration::MAX;
    loop {
        let start = Instant::now();
        touch_once(len);
        let elapsed = start.elapsed();
        if elapsed > before / 3 * 2 {
            return;
        }
        before = elapsed;
    }
}

fn touch_once(len: usize) {
    let Some(region) = map(len) else { return };
    // Huge pages are quick to touch, and the kernel splits the ones it got back last when small
    // ones are asked for. A kernel without them refuses, and the loop touches small ones. SAFETY:
    // the range is the mapping, and the advice does not change its contents.
    unsafe { libc::madvise(region.cast(), len, libc::MADV_HUGEPAGE) };
    for offset in (0..len).step_by(PAGE_BYTES) {
        // SAFETY: `offset` is inside the mapping.
        unsafe { region.add(offset).write_volatile(1) };
    }
    // SAFETY: the mapping is ours and is not used after this.
    unsafe { unmap(region, len) };
}
