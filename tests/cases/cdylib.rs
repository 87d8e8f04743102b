//! A library with this allocator in it that a program loads and unloads: threads, fork handlers and
//! exit handlers point into it. The program itself uses the system's allocator.
//!
//! Seen to fail: without `stay_loaded`, `closed_before_the_drainer_begins`, with a crash; with it called
//! from the first allocation on, `without_a_drainer`. (That a library with a running thread is not
//! unloaded even without it comes from thread-locals of Rust's standard library, by luck.)

use crate::common;

use std::ffi::{CStr, CString, c_void};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::sync::mpsc;
use std::thread;

use common::{
    drainers, finish, fork, library_that_calls, sleep_ms, thread_refuser, threads, wait_ok,
    wait_until,
};

const ROUNDS: usize = 200;
/// Where a child finds the library.
const LIBRARY: &str = "TEST_LIBRARY";
const FUNCTION: &str = "TEST_FUNCTION";

pub(crate) fn main() -> ExitCode {
    match common::child_case().as_deref() {
        Some("with_a_live_drainer") => with_a_live_drainer(),
        Some("without_a_drainer") => without_a_drainer(),
        Some("first_touched_on_a_thread_that_exits") => first_touched_on_a_thread_that_exits(),
        Some("closed_before_its_thread_exits") => closed_before_its_thread_exits(),
        Some("values_still_to_be_dropped") => values_still_to_be_dropped(),
        Some("fork_after_close") => fork_after_close(),
        Some("opened_in_a_constructor") => opened_in_a_constructor_child(),
        Some("closed_before_the_drainer_begins") => closed_before_the_drainer_begins_child(),
        Some(case) => panic!("{case}"),
        None if cfg!(target_feature = "crt-static") => {
            println!("SKIPPED: a static program loads no libraries");
        }
        None => {
            return common::run(&[
                ("with_a_live_drainer", || run("with_a_live_drainer")),
                ("without_a_drainer", || run("without_a_drainer")),
                ("first_touched_on_a_thread_that_exits", || {
                    run("first_touched_on_a_thread_that_exits");
                }),
                ("closed_before_its_thread_exits", || run("closed_before_its_thread_exits")),
                ("values_still_to_be_dropped", || run("values_still_to_be_dropped")),
                ("fork_after_close", || run("fork_after_close")),
                ("closed_before_the_drainer_begins", closed_before_the_drainer_begins),
                ("opened_in_a_constructor", opened_in_a_constructor),
            ]);
        }
    }
    ExitCode::SUCCESS
}

fn run(case: &str) {
    finish(command(case), 120).expect_clean();
}

fn command(case: &str) -> Command {
    let mut command = common::command(case);
    // All frees are deferred, but where the library is not to have a drainer.
    let burst = if case == "without_a_drainer" { "128" } else { "0" };
    command.env(LIBRARY, build()).env("DEFERFREE_BURST", burst).env("DEFERFREE_DELAY", "4ms");
    command
}

/// The example `plugin`, in the directory and the profile of this test. It is up to date already unless
/// this test alone was asked for.
fn build() -> PathBuf {
    let test = std::env::current_exe().unwrap();
    let profile = test.ancestors().nth(2).unwrap();
    let mut cargo = Command::new(env!("CARGO"));
    cargo.args(["build", "--quiet", "--example", "plugin"]);
    cargo.current_dir(env!("CARGO_MANIFEST_DIR"));
    let target = Path::new(env!("CARGO_TARGET_TMPDIR")).parent().unwrap();
    cargo.arg("--target-dir").arg(target);
    // With `--target` there is a directory of that name in between.
    let above = profile.parent().unwrap();
    if above != target {
        cargo.arg("--target").arg(above.file_name().unwrap());
    }
    cargo.args(["--profile", if profile.ends_with("release") { "release" } else { "test" }]);
    /// Those of the names that this test is compiled with.
    macro_rules! features {
        ($($name:literal)*) => { [$(cfg!(feature = $name).then_some($name)),*] };
    }
    let features =
        features!("secure" "debug" "debug_in_debug" "local_dynamic_tls" "no_thp" "_mimalloc_v2");
    features.iter().flatten().for_each(|name| _ = cargo.args(["--features", name]));
    assert!(cargo.status().unwrap().success());
    profile.join("examples/libplugin.so")
}

/// The library, opened once more.
struct Library(*mut c_void);

// SAFETY: a handle may be used and closed by any thread.
unsafe impl Send for Library {}

impl Library {
    fn open() -> Library {
        let path = std::env::var_os(LIBRARY).unwrap();
        let path = CString::new(path.as_bytes()).unwrap();
        // SAFETY: a C string; the library's constructors are mimalloc's.
        let handle = unsafe { libc::dlopen(path.as_ptr(), libc::RTLD_NOW | libc::RTLD_LOCAL) };
        assert!(!handle.is_null(), "{}", error());
        Library(handle)
    }

    /// Calls `plugin_...`.
    fn call(&self, name: &CStr) -> usize {
        self.function(name)()
    }

    fn function(&self, name: &CStr) -> extern "C" fn() -> usize {
        // SAFETY: an open library and a C string; all its functions are of this type.
        unsafe {
            let function = libc::dlsym(self.0, name.as_ptr());
            assert!(!function.is_null(), "{}", error());
            std::mem::transmute::<*mut c_void, extern "C" fn() -> usize>(function)
        }
    }

    fn close(self) {
        // SAFETY: opened once, closed once; what was taken from it is called only where the test says.
        assert_eq!(unsafe { libc::dlclose(self.0) }, 0, "{}", error());
    }
}

fn error() -> String {
    // SAFETY: null or a C string, which stays until the next call.
    let error = unsafe { libc::dlerror() };
    if error.is_null() {
        return String::from("no error");
    }
    // SAFETY: see above.
    unsafe { CStr::from_ptr(error) }.to_string_lossy().into_owned()
}

fn is_mapped() -> bool {
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
    let path = std::env::var_os(LIBRARY).unwrap();
    maps.contains(Path::new(&path).file_name().unwrap().to_str().unwrap())
}

/// Closed while the drainer is being born, at work, or asleep.
fn with_a_live_drainer() {
    for round in 0..ROUNDS {
        let library = Library::open();
        assert_eq!(library.call(c"plugin_large"), 20);
        if round % 2 == 0 {
            library.call(c"plugin_burst");
        }
        library.close();
        if round % 20 == 19 {
            sleep_ms(30);
        }
    }
    // It has stayed, and so there is one drainer, not one for each time.
    assert!(is_mapped());
    wait_until("one drainer", || drainers().len() == 1);
}

/// As long as nothing was deferred the library goes when it is closed.
fn without_a_drainer() {
    for _ in 0..ROUNDS {
        let library = Library::open();
        assert!(library.call(c"plugin_small") > 0);
        assert_eq!(library.call(c"plugin_running"), 0);
        library.close();
        assert!(!is_mapped());
    }
}

fn first_touched_on_a_thread_that_exits() {
    for round in 0..ROUNDS {
        let library = Library::open();
        let function = library.function([c"plugin_large", c"plugin_burst"][round % 2]);
        thread::spawn(move || function()).join().unwrap();
        library.close();
    }
    wait_until("one drainer", || drainers().len() == 1);
}

/// The thread has a log, which it lets go when it exits.
fn closed_before_its_thread_exits() {
    for _ in 0..ROUNDS {
        let library = Library::open();
        let (burst, deferred) =
            (library.function(c"plugin_burst"), library.function(c"plugin_deferred"));
        let (done, is_done) = mpsc::channel();
        let (go, may_go) = mpsc::channel::<()>();
        let other = thread::spawn(move || {
            burst();
            done.send(deferred()).unwrap();
            may_go.recv().unwrap();
        });
        assert!(is_done.recv().unwrap() > 0);
        library.close();
        go.send(()).unwrap();
        other.join().unwrap();
    }
}

/// The system has the thread, but no instruction of the library has run on it when that is closed.
fn closed_before_the_drainer_begins() {
    let Some(delayer) = thread_refuser() else { return };
    for function in ["plugin_large", "plugin_later"] {
        let mut command = command("closed_before_the_drainer_begins");
        command.env("LD_PRELOAD", &delayer).env("DELAY_THREADS", "50");
        command.env(FUNCTION, function);
        finish(command, 20).expect_clean();
    }
}

fn closed_before_the_drainer_begins_child() {
    // On a thread that ends: what Rust's library keeps in thread-locals would hold the library.
    let starter = thread::spawn(|| {
        let library = Library::open();
        let name = CString::new(std::env::var(FUNCTION).unwrap()).unwrap();
        library.call(&name);
        library
    });
    starter.join().unwrap().close();
    sleep_ms(200);
    wait_until("the thread", || threads().iter().any(|(_, name)| name.starts_with("deferfree")));
}

/// As a plugin that brings along others: its drainer starts while the dynamic linker is held by the same thread.
fn opened_in_a_constructor() {
    let Some(outer) = library_that_calls() else { return };
    let mut command = command("opened_in_a_constructor");
    command.env("OUTER", outer);
    finish(command, 20).expect_clean();
}

extern "C" fn constructor() {
    let library = Library::open();
    for function in [c"plugin_large", c"plugin_burst", c"plugin_later"] {
        library.call(function);
    }
    assert_eq!(library.call(c"plugin_running"), 1);
    library.close();
}

fn opened_in_a_constructor_child() {
    let outer = CString::new(std::env::var("OUTER").unwrap()).unwrap();
    let address = CString::new((constructor as extern "C" fn() as usize).to_string()).unwrap();
    // SAFETY: C strings. The library calls a function of that type; nobody else looks at the environment.
    unsafe {
        assert_eq!(libc::setenv(c"CALL".as_ptr(), address.as_ptr(), 1), 0);
        assert!(!libc::dlopen(outer.as_ptr(), libc::RTLD_NOW).is_null());
    }
    assert!(is_mapped());
    let library = Library::open();
    assert_eq!(library.call(c"plugin_large"), 20);
    library.close();
}

fn values_still_to_be_dropped() {
    let mut n_dropped = 0;
    for _ in 0..ROUNDS {
        let library = Library::open();
        n_dropped = library.call(c"plugin_later");
        library.close();
    }
    wait_until("all are dropped", || {
        let library = Library::open();
        n_dropped = library.call(c"plugin_later");
        library.close();
        n_dropped >= 4 * ROUNDS
    });
}

/// The handlers around a fork are code of the library, and so is the one at exit.
fn fork_after_close() {
    for _ in 0..ROUNDS {
        let library = Library::open();
        library.call(c"plugin_large");
        library.close();
        wait_ok(fork(10, || {
            let library = Library::open();
            assert_eq!(library.call(c"plugin_running"), 0);
            library.call(c"plugin_large");
            assert_eq!(library.call(c"plugin_running"), 1);
            library.close();
            std::process::exit(0);
        }));
    }
}
