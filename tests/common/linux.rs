//! What tests ask of Linux, most of it by way of `/proc`.

use std::fs::File;
use std::io::Read;
use std::os::fd::{FromRawFd, OwnedFd};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus};
use std::time::Duration;

/// Gives a child a process group of its own.
pub(crate) fn set_apart(command: &mut Command) {
    command.process_group(0);
}

/// No file is left behind by a process that crashes.
pub(crate) fn no_core() {
    let none = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: the limit is a live variable.
    unsafe { libc::setrlimit(libc::RLIMIT_CORE, &none) };
}

/// As a user would who is tired of waiting.
pub(crate) fn end_this_process() {
    kill(std::process::id() as i32, libc::SIGTERM);
}

#[track_caller]
pub(crate) fn expect_killed(status: ExitStatus) {
    assert_eq!(status.signal(), Some(libc::SIGTERM), "{status}");
}

#[track_caller]
pub(crate) fn expect_aborted(status: ExitStatus) {
    assert_eq!(status.signal(), Some(libc::SIGABRT), "{status}");
}

/// Kills a child that was set apart, and all that it has started.
pub(crate) fn kill_all_of(child: &mut Child) {
    kill(-(child.id() as i32), libc::SIGKILL);
}

/// Zero bytes, or only addresses, for as long as the process.
pub(crate) fn map(len: usize, is_used: bool) -> usize {
    let protection = if is_used { libc::PROT_READ | libc::PROT_WRITE } else { libc::PROT_NONE };
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
    // SAFETY: a mapping at an address of the kernel's choice.
    let mapped = unsafe { libc::mmap(std::ptr::null_mut(), len, protection, flags, -1, 0) };
    assert_ne!(mapped, libc::MAP_FAILED);
    mapped.expose_provenance()
}

/// Name, state and system call of each thread of a child that hangs.
pub(crate) fn describe_threads(child: &Child) -> String {
    let mut seen = String::new();
    for task in std::fs::read_dir(format!("/proc/{}/task", child.id())).into_iter().flatten() {
        let Ok(task) = task else { continue };
        let read = |file| std::fs::read_to_string(task.path().join(file)).unwrap_or_default();
        let stat = read("stat");
        let state = stat.rsplit(')').next().unwrap_or("").trim().get(..1).unwrap_or("?").to_owned();
        seen += &format!("[{} {state} {}]", read("comm").trim(), read("syscall").trim());
    }
    seen
}

/// Thread id and name of each thread of this process.
pub(crate) fn threads() -> Vec<(i32, String)> {
    let mut tids = thread_ids();
    // The kernel knows by a number how far a reading has come: where a thread ends that it has passed, one that runs on is
    // left out. The next reading has that one and not the one that ended.
    for _ in 0..100 {
        let before = std::mem::replace(&mut tids, thread_ids());
        if tids == before {
            break;
        }
    }
    let name = |tid| std::fs::read_to_string(format!("/proc/self/task/{tid}/comm"));
    // A thread that ends meanwhile has no name any more.
    tids.into_iter().filter_map(|tid| Some((tid, name(tid).ok()?.trim_end().to_owned()))).collect()
}

fn thread_ids() -> Vec<i32> {
    let tasks = std::fs::read_dir("/proc/self/task").unwrap();
    tasks.map(|task| task.unwrap().file_name().to_str().unwrap().parse().unwrap()).collect()
}

/// A new thread gets its name some time after it started.
pub(crate) fn threads_named(wanted: &str) -> Vec<i32> {
    threads().into_iter().filter(|(_, name)| name == wanted).map(|(tid, _)| tid).collect()
}

/// The drainers among the threads.
pub(crate) fn drainers() -> Vec<i32> {
    threads_named("deferfree")
}

/// One field of `/proc/self/task/<tid>/status`.
pub(crate) fn task_status(tid: i32, field: &str) -> String {
    let status = std::fs::read_to_string(format!("/proc/self/task/{tid}/status")).unwrap();
    let line = status.lines().find(|line| line.starts_with(field)).unwrap();
    line[field.len()..].trim_start_matches(":").trim().to_owned()
}

pub(crate) fn voluntary_switches(tid: i32) -> u64 {
    task_status(tid, "voluntary_ctxt_switches").parse().unwrap()
}

/// CPU time of all threads of this process.
pub(crate) fn cpu_time() -> Duration {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: a live variable.
    assert_eq!(unsafe { libc::clock_gettime(libc::CLOCK_PROCESS_CPUTIME_ID, &mut time) }, 0);
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

/// Resident bytes of this process.
pub(crate) fn rss() -> usize {
    statm(1)
}

/// Bytes of all its mappings.
pub(crate) fn mapped() -> usize {
    statm(0)
}

/// To look is not to use the allocator that is looked at: it allocates nothing.
fn statm(field: usize) -> usize {
    let mut line = [0; 128];
    let len = File::open("/proc/self/statm").unwrap().read(&mut line).unwrap();
    let line = std::str::from_utf8(&line[..len]).unwrap();
    let pages: usize = line.split(' ').nth(field).unwrap().parse().unwrap();
    // SAFETY: reads a constant of the system.
    pages * unsafe { libc::sysconf(libc::_SC_PAGESIZE) } as usize
}

/// This process and all that it starts share the CPU it is on. For as long as there is one thread.
pub(crate) fn use_one_cpu() {
    // SAFETY: a set that is all zeros is empty; the CPU is one of those that there are.
    unsafe {
        let mut cpus = std::mem::zeroed::<libc::cpu_set_t>();
        libc::CPU_SET(libc::sched_getcpu() as usize, &mut cpus);
        assert_eq!(libc::sched_setaffinity(0, size_of_val(&cpus), &cpus), 0);
    }
}

// linux/bpf_common.h
const LOAD_WORD: u16 = 0x20;
const JUMP_EQUAL: u16 = 0x15;
const RETURN: u16 = 0x06;

fn step(code: u16, jt: u8, jf: u8, k: u32) -> libc::sock_filter {
    libc::sock_filter { code, jt, jf, k }
}

/// Has a filter answer these system calls with an error from now on, on all threads.
pub(crate) fn refuse_calls(calls: &[libc::c_long], errno: i32) {
    // The number of the system call comes first in `struct seccomp_data`.
    let mut filter = vec![step(LOAD_WORD, 0, 0, 0)];
    for (n, &call) in calls.iter().enumerate() {
        filter.push(step(JUMP_EQUAL, (calls.len() - n) as u8, 0, call as u32));
    }
    filter.push(step(RETURN, 0, 0, libc::SECCOMP_RET_ALLOW));
    filter.push(step(RETURN, 0, 0, libc::SECCOMP_RET_ERRNO | errno as u32));
    install(filter);
}

/// The same for one call, where its argument with that index is that number.
pub(crate) fn refuse_call_with(call: libc::c_long, index: usize, argument: u32, errno: i32) {
    // The lower half of one of the arguments of `struct seccomp_data`, on machines that have it first.
    let at = (std::mem::offset_of!(libc::seccomp_data, args) + index * size_of::<u64>()) as u32;
    install(vec![
        step(LOAD_WORD, 0, 0, 0),
        step(JUMP_EQUAL, 0, 2, call as u32),
        step(LOAD_WORD, 0, 0, at),
        step(JUMP_EQUAL, 1, 0, argument),
        step(RETURN, 0, 0, libc::SECCOMP_RET_ALLOW),
        step(RETURN, 0, 0, libc::SECCOMP_RET_ERRNO | errno as u32),
    ]);
}

fn install(mut filter: Vec<libc::sock_filter>) {
    let program = libc::sock_fprog { len: filter.len() as u16, filter: filter.as_mut_ptr() };
    // SAFETY: a program of the given length, which the kernel copies.
    unsafe {
        assert_eq!(libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), 0);
        let (mode, all) = (libc::SECCOMP_SET_MODE_FILTER, libc::SECCOMP_FILTER_FLAG_TSYNC);
        let set = libc::syscall(libc::SYS_seccomp, mode, all, &raw const program);
        assert_eq!(set, 0, "{}", std::io::Error::last_os_error());
    }
}

/// Standard error closed, full, and a pipe that nobody reads: for a child.
pub(crate) const SPOIL_STDERR: [fn(&mut Command); 3] = [close_stderr, fill_stderr, leave_stderr];

fn close_stderr(command: &mut Command) {
    // SAFETY: `close` is async-signal-safe.
    unsafe {
        command.pre_exec(|| {
            libc::close(2);
            Ok(())
        });
    }
}

fn fill_stderr(command: &mut Command) {
    command.stderr(File::options().write(true).open("/dev/full").unwrap());
}

fn leave_stderr(command: &mut Command) {
    let mut ends = [0; 2];
    // SAFETY: two new descriptors are written to `ends`, each owned once.
    let (reader, writer) = unsafe {
        assert_eq!(libc::pipe2(ends.as_mut_ptr(), libc::O_CLOEXEC), 0);
        (OwnedFd::from_raw_fd(ends[0]), OwnedFd::from_raw_fd(ends[1]))
    };
    drop(reader);
    command.stderr(writer);
}

/// From now on this process may map so many bytes more than it has; `usize::MAX` for any number.
pub(crate) fn limit_address_space(more: usize) {
    let limit = libc::rlimit {
        rlim_cur: mapped().saturating_add(more) as u64,
        rlim_max: libc::RLIM_INFINITY,
    };
    // SAFETY: the limit is a live variable.
    assert_eq!(unsafe { libc::setrlimit(libc::RLIMIT_AS, &limit) }, 0);
}

pub(crate) fn kill(pid: i32, signal: i32) {
    // SAFETY: a system call on numbers.
    unsafe { libc::kill(pid, signal) };
}

pub(crate) fn exit_now(code: i32) -> ! {
    // SAFETY: ends the process.
    unsafe { libc::_exit(code) }
}

/// Forks; the child does `body` and ends with status 0, or 101 if that panics. It kills itself when
/// it takes longer than `secs`.
pub(crate) fn fork(secs: u32, body: impl FnOnce()) -> i32 {
    // SAFETY: the child goes on with what this crate promises to work after a fork.
    let pid = unsafe { libc::fork() };
    assert!(pid >= 0, "fork: {}", std::io::Error::last_os_error());
    if pid == 0 {
        // SAFETY: a system call on a number.
        unsafe { libc::alarm(secs) };
        let done = std::panic::catch_unwind(std::panic::AssertUnwindSafe(body)).is_ok();
        exit_now(if done { 0 } else { 101 });
    }
    pid
}

/// Waits for a forked child.
pub(crate) fn wait(pid: i32) -> ExitStatus {
    let mut status = 0;
    // SAFETY: the status is a live variable.
    while unsafe { libc::waitpid(pid, &mut status, 0) } < 0 {
        assert_eq!(std::io::Error::last_os_error().raw_os_error(), Some(libc::EINTR));
    }
    ExitStatus::from_raw(status)
}

/// Waits for a forked child that must have ended with status 0.
#[track_caller]
pub(crate) fn wait_ok(pid: i32) {
    let status = wait(pid);
    let hint = if status.signal() == Some(libc::SIGALRM) { " (it hung)" } else { "" };
    assert_eq!(status.code(), Some(0), "forked child: {status}{hint}");
}

/// A library to be preloaded that refuses the first `REFUSE_THREADS` threads with `EAGAIN`, and has the
/// others begin `DELAY_THREADS` milliseconds late; `None`, said loudly, where there is no C compiler.
/// (Root is not bound by `RLIMIT_NPROC`.)
pub(crate) fn thread_refuser() -> Option<PathBuf> {
    const SOURCE: &str = r#"
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <unistd.h>
static int refused;
struct late { void *(*f)(void *); void *x; int ms; };
static void *begin_late(void *p) {
    struct late late = *(struct late *)p;
    free(p);
    usleep(late.ms * 1000);
    return late.f(late.x);
}
int pthread_create(pthread_t *t, const pthread_attr_t *a, void *(*f)(void *), void *x) {
    static int (*next)(pthread_t *, const pthread_attr_t *, void *(*)(void *), void *);
    const char *n = getenv("REFUSE_THREADS");
    if (n && __atomic_fetch_add(&refused, 1, __ATOMIC_RELAXED) < atoi(n)) return EAGAIN;
    if (!next) next = dlsym(RTLD_NEXT, "pthread_create");
    n = getenv("DELAY_THREADS");
    if (n) {
        struct late *late = malloc(sizeof *late);
        *late = (struct late){f, x, atoi(n)};
        return next(t, a, begin_late, late);
    }
    return next(t, a, f, x);
}
"#;
    c_library("refuse", SOURCE)
}

/// A library whose constructor calls a function of this program, whose address is in `CALL` of the environment; `None`,
/// said loudly, where there is no C compiler.
pub(crate) fn library_that_calls() -> Option<PathBuf> {
    const SOURCE: &str = r#"
#include <stdlib.h>
__attribute__((constructor)) static void call(void) {
    ((void (*)(void))strtoull(getenv("CALL"), 0, 10))();
}
"#;
    c_library("calls", SOURCE)
}

fn c_library(name: &str, source_text: &str) -> Option<PathBuf> {
    if cfg!(target_feature = "crt-static") {
        println!("SKIPPED: a static program loads no libraries");
        return None;
    }
    // One folder per test program: they may run at the same time.
    let stem = std::env::current_exe().unwrap().file_stem().unwrap().to_owned();
    let directory = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(stem);
    std::fs::create_dir_all(&directory).unwrap();
    let source = directory.join(name).with_extension("c");
    let library = source.with_extension("so");
    std::fs::write(&source, source_text).unwrap();
    let built = Command::new("cc")
        .args(["-shared", "-fPIC", "-O1", "-o"])
        .args([&library, &source])
        .arg("-ldl")
        .status();
    match built {
        Ok(status) if status.success() => Some(library),
        other => {
            println!("SKIPPED: no C compiler to build a library with ({other:?})");
            None
        }
    }
}
