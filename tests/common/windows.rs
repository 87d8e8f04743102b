//! What tests ask of Windows.

use std::process::{Child, Command, ExitStatus};
use std::ptr;
use std::slice;
use std::time::Duration;

use windows_sys::Win32::Foundation::{CloseHandle, FILETIME, INVALID_HANDLE_VALUE, LocalFree};
use windows_sys::Win32::System::Diagnostics::ToolHelp::{
    CreateToolhelp32Snapshot, TH32CS_SNAPTHREAD, THREADENTRY32, Thread32First, Thread32Next,
};
use windows_sys::Win32::System::Memory::{MEM_COMMIT, MEM_RESERVE, PAGE_READWRITE, VirtualAlloc};
use windows_sys::Win32::System::ProcessStatus::{K32GetProcessMemoryInfo, PROCESS_MEMORY_COUNTERS};
use windows_sys::Win32::System::Threading::{
    GetCurrentProcess, GetCurrentProcessId, GetProcessAffinityMask, GetProcessTimes,
    GetThreadDescription, OpenThread, SetProcessAffinityMask, THREAD_QUERY_LIMITED_INFORMATION,
    TerminateProcess,
};

pub(crate) fn set_apart(_: &mut Command) {}

pub(crate) fn kill_all_of(child: &mut Child) {
    let _ = child.kill();
}

pub(crate) fn no_core() {}

const KILLED: u32 = 77;

/// As a user would who is tired of waiting.
pub(crate) fn end_this_process() {
    // SAFETY: the process itself.
    unsafe { TerminateProcess(GetCurrentProcess(), KILLED) };
}

#[track_caller]
pub(crate) fn expect_killed(status: ExitStatus) {
    assert_eq!(status.code(), Some(KILLED as i32), "{status}");
}

/// The system says which exception ended it.
#[track_caller]
pub(crate) fn expect_aborted(status: ExitStatus) {
    assert!(status.code().is_some_and(|code| code < 0), "{status}");
}

/// At once, without handlers.
pub(crate) fn exit_now(code: i32) -> ! {
    // SAFETY: the process itself.
    unsafe { TerminateProcess(GetCurrentProcess(), code as u32) };
    unreachable!()
}

/// Zero bytes, or only addresses, for as long as the process.
pub(crate) fn map(len: usize, is_used: bool) -> usize {
    let kind = if is_used { MEM_RESERVE | MEM_COMMIT } else { MEM_RESERVE };
    // SAFETY: new memory.
    let mapped = unsafe { VirtualAlloc(ptr::null(), len, kind, PAGE_READWRITE) };
    assert!(!mapped.is_null());
    mapped.expose_provenance()
}

pub(crate) fn describe_threads(_: &Child) -> String {
    "unknown".to_owned()
}

/// Number and name of each thread of this process.
pub(crate) fn threads() -> Vec<(i32, String)> {
    let mut threads = Vec::new();
    let mut entry =
        THREADENTRY32 { dwSize: size_of::<THREADENTRY32>() as u32, ..Default::default() };
    // SAFETY: handles that are closed once, and a structure that knows its size.
    unsafe {
        let all = CreateToolhelp32Snapshot(TH32CS_SNAPTHREAD, 0);
        assert_ne!(all, INVALID_HANDLE_VALUE);
        let mut more = Thread32First(all, &mut entry);
        while more != 0 {
            if entry.th32OwnerProcessID == GetCurrentProcessId() {
                threads.push((entry.th32ThreadID as i32, name_of(entry.th32ThreadID)));
            }
            more = Thread32Next(all, &mut entry);
        }
        CloseHandle(all);
    }
    threads
}

/// A thread that has ended meanwhile has no name.
unsafe fn name_of(thread: u32) -> String {
    // SAFETY: a handle that is closed once; a text that ends with a zero, which is ours to free.
    unsafe {
        let thread = OpenThread(THREAD_QUERY_LIMITED_INFORMATION, 0, thread);
        if thread.is_null() {
            return String::new();
        }
        let mut name = ptr::null_mut();
        let result = GetThreadDescription(thread, &mut name);
        CloseHandle(thread);
        if result < 0 {
            return String::new();
        }
        let len = (0..).take_while(|&i| *name.add(i) != 0).count();
        let text = String::from_utf16_lossy(slice::from_raw_parts(name, len));
        LocalFree(name.cast());
        text
    }
}

pub(crate) fn threads_named(wanted: &str) -> Vec<i32> {
    threads().into_iter().filter(|(_, name)| name == wanted).map(|(thread, _)| thread).collect()
}

/// The drainers among the threads.
pub(crate) fn drainers() -> Vec<i32> {
    threads_named("deferfree")
}

/// CPU time of all threads of this process.
pub(crate) fn cpu_time() -> Duration {
    let [mut created, mut exited, mut kernel, mut user] = [FILETIME::default(); 4];
    // SAFETY: the process itself, and live variables.
    let known = unsafe {
        GetProcessTimes(GetCurrentProcess(), &mut created, &mut exited, &mut kernel, &mut user)
    };
    assert_ne!(known, 0);
    let units =
        |time: FILETIME| u64::from(time.dwHighDateTime) << 32 | u64::from(time.dwLowDateTime);
    Duration::from_nanos((units(kernel) + units(user)) * 100)
}

/// The first of those that this process may use.
pub(crate) fn use_one_cpu() {
    let (mut cpus, mut of_system) = (0, 0);
    // SAFETY: the process itself, and live variables.
    unsafe {
        assert_ne!(GetProcessAffinityMask(GetCurrentProcess(), &mut cpus, &mut of_system), 0);
        let first = cpus & cpus.wrapping_neg();
        assert_ne!(SetProcessAffinityMask(GetCurrentProcess(), first), 0);
    }
}

/// The working set.
pub(crate) fn rss() -> usize {
    let mut counters = PROCESS_MEMORY_COUNTERS::default();
    let size = size_of_val(&counters) as u32;
    // SAFETY: the process itself, and a live structure of that size.
    assert_ne!(unsafe { K32GetProcessMemoryInfo(GetCurrentProcess(), &mut counters, size) }, 0);
    counters.WorkingSetSize
}
