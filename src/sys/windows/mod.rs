//! Windows, from version 10 on. See `sys`.

mod callbacks;
mod file;
mod memory;
mod thread;

use std::mem::MaybeUninit;
use std::ptr;
use std::slice;

use windows_sys::Win32::Foundation::{FILETIME, HMODULE};
use windows_sys::Win32::Globalization::{CP_UTF8, WideCharToMultiByte};
use windows_sys::Win32::System::Environment::{FreeEnvironmentStringsW, GetEnvironmentStringsW};
use windows_sys::Win32::System::JobObjects::{
    JOB_OBJECT_CPU_RATE_CONTROL_ENABLE, JOB_OBJECT_CPU_RATE_CONTROL_HARD_CAP,
    JOB_OBJECT_LIMIT_JOB_MEMORY, JOB_OBJECT_LIMIT_PROCESS_MEMORY,
    JOBOBJECT_CPU_RATE_CONTROL_INFORMATION, JOBOBJECT_EXTENDED_LIMIT_INFORMATION,
    JOBOBJECTINFOCLASS, JobObjectCpuRateControlInformation, JobObjectExtendedLimitInformation,
    QueryInformationJobObject,
};
use windows_sys::Win32::System::LibraryLoader::{
    GET_MODULE_HANDLE_EX_FLAG_FROM_ADDRESS, GET_MODULE_HANDLE_EX_FLAG_PIN, GetModuleHandleExW,
    GetModuleHandleW,
};
use windows_sys::Win32::System::Performance::{QueryPerformanceCounter, QueryPerformanceFrequency};
use windows_sys::Win32::System::ProcessStatus::{K32GetProcessMemoryInfo, PROCESS_MEMORY_COUNTERS};
use windows_sys::Win32::System::SystemInformation::{
    GetSystemInfo, GlobalMemoryStatusEx, MEMORYSTATUSEX, SYSTEM_INFO,
};
use windows_sys::Win32::System::Threading::{
    GetActiveProcessorCount, GetCurrentProcess, GetProcessAffinityMask, GetProcessTimes,
};

use super::{MemoryInUse, PageFaults};

pub(crate) use callbacks::{at_exit, at_thread_exit, thread_word};
pub(crate) use file::{Errno, replace_file, write_stderr};
pub(crate) use memory::*;
pub(crate) use thread::{
    KeepsErrno, SignalsBlocked, be_ordinary, futex_wait, futex_wake_one, name_thread,
    prepare_to_start_threads, start_thread, thread_cpu_clock, thread_cpu_ns,
};

pub(crate) const CAN_DEFER: bool = true;

fn system() -> SYSTEM_INFO {
    let mut info = MaybeUninit::<SYSTEM_INFO>::zeroed();
    // SAFETY: room for what is written, all zeros of which are valid.
    unsafe {
        GetSystemInfo(info.as_mut_ptr());
        info.assume_init()
    }
}

pub(crate) fn page_bytes() -> usize {
    system().dwPageSize as usize
}

/// Whether `is_resident` can be true.
pub(crate) const KNOWS_RESIDENT: bool = false;

/// Asked for the sake of huge pages and of pieces, of which the other systems have less.
///
/// # Safety
/// `page` is the first byte of a page of a mapping.
pub(crate) unsafe fn is_resident(_page: *mut u8) -> bool {
    false
}

/// It would be no cheaper than a fresh mapping.
///
/// # Safety
/// See `sys`.
pub(crate) unsafe fn make_zero(_ptr: *mut u8, _len: usize) -> bool {
    false
}

/// # Safety
/// See `sys`.
pub(crate) unsafe fn move_pages(_ptr: *mut u8, _len: usize, _hint: *mut u8) -> *mut u8 {
    ptr::null_mut()
}

fn memory_counters() -> Option<PROCESS_MEMORY_COUNTERS> {
    let mut counters = PROCESS_MEMORY_COUNTERS::default();
    let size = size_of::<PROCESS_MEMORY_COUNTERS>() as u32;
    // SAFETY: the process itself, and a live structure of that size.
    let known = unsafe { K32GetProcessMemoryInfo(GetCurrentProcess(), &mut counters, size) };
    (known != 0).then_some(counters)
}

/// The working set, and the commit charge: what is reserved and not committed costs nothing, and is not told.
pub(crate) fn memory_in_use() -> Option<MemoryInUse> {
    memory_counters().map(|counters| MemoryInUse {
        resident_bytes: counters.WorkingSetSize,
        mapped_bytes: counters.PagefileUsage,
    })
}

/// In 32 bits, soft and hard ones in one.
pub(crate) fn page_faults() -> Option<PageFaults> {
    memory_counters()
        .map(|counters| PageFaults { all: counters.PageFaultCount.into(), major: None })
}

/// What the job that this process is in says, if it is in one.
fn job<T: Copy>(class: JOBOBJECTINFOCLASS) -> Option<T> {
    let mut answer = MaybeUninit::<T>::zeroed();
    // SAFETY: a null job is the caller's own; room for the structure that goes with the class, which is plain numbers.
    unsafe {
        let size = size_of::<T>() as u32;
        let known = QueryInformationJobObject(
            ptr::null_mut(),
            class,
            answer.as_mut_ptr().cast(),
            size,
            ptr::null_mut(),
        );
        (known != 0).then(|| answer.assume_init())
    }
}

pub(crate) fn memory_limit() -> Option<usize> {
    let mut status =
        MEMORYSTATUSEX { dwLength: size_of::<MEMORYSTATUSEX>() as u32, ..Default::default() };
    // SAFETY: a live structure that knows its size.
    let machine =
        (unsafe { GlobalMemoryStatusEx(&mut status) } != 0).then_some(status.ullTotalPhys as usize);
    let limits = job::<JOBOBJECT_EXTENDED_LIMIT_INFORMATION>(JobObjectExtendedLimitInformation);
    let limit = |flag, bytes: fn(&JOBOBJECT_EXTENDED_LIMIT_INFORMATION) -> usize| {
        limits.as_ref().filter(|it| it.BasicLimitInformation.LimitFlags & flag != 0).map(bytes)
    };
    let of_process = limit(JOB_OBJECT_LIMIT_PROCESS_MEMORY, |it| it.ProcessMemoryLimit);
    let of_job = limit(JOB_OBJECT_LIMIT_JOB_MEMORY, |it| it.JobMemoryLimit);
    [machine, of_process, of_job].into_iter().flatten().min()
}

/// By the processors of its group that the process may run on, or the part of all that its job may use.
pub(crate) fn has_one_cpu() -> bool {
    const ALL_PROCESSOR_GROUPS: u16 = 0xffff;
    let (mut of_process, mut of_system) = (0, 0);
    // SAFETY: the process itself, and live variables.
    let known = unsafe {
        GetProcessAffinityMask(GetCurrentProcess(), &mut of_process, &mut of_system) != 0
    };
    if known && of_process.count_ones() == 1 {
        return true;
    }
    let rate = job::<JOBOBJECT_CPU_RATE_CONTROL_INFORMATION>(JobObjectCpuRateControlInformation);
    let hard = JOB_OBJECT_CPU_RATE_CONTROL_ENABLE | JOB_OBJECT_CPU_RATE_CONTROL_HARD_CAP;
    rate.filter(|it| it.ControlFlags & hard == hard).is_some_and(|it| {
        // SAFETY: with these flags it is the rate. A number of the system's.
        let (rate, n_cpus) =
            unsafe { (it.Anonymous.CpuRate, GetActiveProcessorCount(ALL_PROCESSOR_GROUPS)) };
        // In hundredths of a percent of all.
        u64::from(rate) * u64::from(n_cpus) < 2 * 10_000
    })
}

fn ns(time: FILETIME) -> u64 {
    ((u64::from(time.dwHighDateTime) << 32) | u64::from(time.dwLowDateTime)) * 100
}

pub(crate) fn process_cpu_ns() -> Option<u64> {
    let [mut created, mut exited, mut kernel, mut user] = [FILETIME::default(); 4];
    // SAFETY: the process itself, and live variables.
    let known = unsafe {
        GetProcessTimes(GetCurrentProcess(), &mut created, &mut exited, &mut kernel, &mut user)
    };
    (known != 0).then(|| ns(kernel) + ns(user))
}

pub(crate) fn monotonic_ns() -> u64 {
    let (mut count, mut per_second) = (0, 0);
    // SAFETY: live variables. Neither fails (since Windows XP).
    unsafe {
        QueryPerformanceCounter(&mut count);
        QueryPerformanceFrequency(&mut per_second);
    }
    (count as u128 * 1_000_000_000 / per_second.max(1) as u128) as u64
}

/// There is no fork.
pub(crate) fn at_fork(
    _prepare: unsafe extern "C" fn(),
    _parent: unsafe extern "C" fn(),
    _child: unsafe extern "C" fn(),
) -> bool {
    true
}

unsafe extern "C" {
    /// What the linker puts where the program or the library begins.
    static __ImageBase: u8;
}

pub(crate) fn stay_loaded() -> bool {
    let here: HMODULE = (&raw const __ImageBase).cast_mut().cast();
    // Looked at first: the function below waits for a library that is being loaded, and a program's threads must not.
    // SAFETY: of the program, without looking for a file.
    if here == unsafe { GetModuleHandleW(ptr::null()) } {
        return true;
    }
    let flags = GET_MODULE_HANDLE_EX_FLAG_FROM_ADDRESS | GET_MODULE_HANDLE_EX_FLAG_PIN;
    let mut module = ptr::null_mut();
    // SAFETY: an address in the module, and a live variable.
    unsafe { GetModuleHandleExW(flags, here.cast(), &mut module) != 0 }
}

/// Rights are not what a program has by its file here.
pub(crate) fn is_privileged() -> bool {
    false
}

/// So much is looked at of a variable's name or value, in units of UTF-16: more than any may have that means something.
const TEXT_UNITS: usize = 1024;
/// In UTF-8 a unit takes 3 bytes at most, and a pair of them 4.
const TEXT_BYTES: usize = 3 * TEXT_UNITS;

/// The system keeps text in UTF-16, and makes a copy in its own heap.
pub(crate) fn for_each_variable(mut f: impl FnMut(&[u8], &[u8])) {
    // SAFETY: null, or texts that end with a zero each and an empty one after the last; freed below.
    unsafe {
        let all = GetEnvironmentStringsW();
        let mut entry = all.cast_const();
        while !entry.is_null() && *entry != 0 {
            let len = (0..).take_while(|&i| *entry.add(i) != 0).count();
            let text = slice::from_raw_parts(entry, len);
            // Names of the system's own begin with `=`.
            let equals = text.iter().skip(1).position(|&unit| unit == u16::from(b'='));
            if let Some(equals) = equals.map(|position| position + 1) {
                let (mut name, mut value) = ([0; TEXT_BYTES], [0; TEXT_BYTES]);
                f(to_utf8(&text[..equals], &mut name), to_utf8(&text[equals + 1..], &mut value));
            }
            entry = entry.add(len + 1);
        }
        if !all.is_null() {
            FreeEnvironmentStringsW(all);
        }
    }
}

/// The beginning of a text, with U+FFFD for what is not text.
fn to_utf8<'a>(text: &[u16], buffer: &'a mut [u8; TEXT_BYTES]) -> &'a [u8] {
    let n_units = text.len().min(TEXT_UNITS);
    // SAFETY: buffers of the given lengths.
    let n = unsafe {
        WideCharToMultiByte(
            CP_UTF8,
            0,
            text.as_ptr(),
            n_units as i32,
            buffer.as_mut_ptr(),
            TEXT_BYTES as i32,
            ptr::null(),
            ptr::null_mut(),
        )
    };
    // 0 for an empty text, which is refused.
    &buffer[..n as usize]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_variables_are_cut() {
        let euros = "\u{20ac}".repeat(TEXT_UNITS + 1);
        for (name, value) in [("DEFERFREE_TEST_LONG", euros.as_str()), ("DEFERFREE_TEST_EMPTY", "")]
        {
            // SAFETY: the system's own locks guard the environment.
            unsafe { std::env::set_var(name, value) };
        }
        let (mut long, mut n_others) = (0, 0);
        for_each_variable(|name, value| match name {
            b"DEFERFREE_TEST_LONG" => {
                assert!(euros.as_bytes().starts_with(value));
                long = value.len();
            }
            b"PATH" | b"SystemRoot" => n_others += 1,
            _ => {}
        });
        assert_eq!(long, 3 * TEXT_UNITS);
        assert!(n_others > 0);
    }
}
