//! What the dropper goes through: bursts, panics, fork, exit. Each in a child process under a
//! watchdog, because most of these fail by hanging or by ending the process.
//!
//! Seen to fail, with the guard named taken out:
//! - `bounded_count`: four times the slots; `bounded_bytes`: `has_room` always true;
//! - `inline_on_the_dropper`, `flush_on_the_dropper`: the flag that says which thread that is;
//! - `panicking_drop`, `panicking_payload`: each of the two `catch_unwind`;
//! - `flush_deadline`: the deadline; `flush_while_others_go_on`: `flush.wanted` read after the round;
//! - `fork_here`, `fork_elsewhere`: `is_current` always true in `phase`;
//! - `fork_does_not_wait`: with `lifecycle::Inside` held around each drop;
//! - `fork_in_a_drop`: `is_current` in `run` and `drop_round`;
//! - `exit_with_values`: with a flush in the exit handler;
//! - `nothing_dropped_after_exit`: the looks at `exiting` in `run` and `drop_round`, and in `flush`;
//! - `thread_locals_and_exit_handlers`: the flag in a thread-local that has a destructor;
//! - `no_thread_to_be_had`: `thread::spawn` in place of the builder;
//! - `signals_blocked`: `SignalsBlocked`; `deep_recursion`: a stack of 256 KiB;
//! - `woken_from_sleep`: each of the two `unpark`.
#![cfg(all(target_os = "linux", not(deferfree_inline)))]

mod common;

use std::cell::RefCell;
use std::env;
use std::io::Read;
use std::os::unix::process::ExitStatusExt;
use std::process::{Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use common::limit_address_space;
use deferfree::{flush_values, flush_values_timeout, later};

const WATCHDOG: Duration = Duration::from_secs(60);
const IN_CHILD: &str = "LATER_TEST_CHILD";

struct Ended {
    status: ExitStatus,
    stderr: String,
}

/// In the child, `body`; here, the end of a child that runs the test of this name.
fn in_child(name: &str, body: fn()) -> Option<Ended> {
    if env::var_os(IN_CHILD).is_some() {
        body();
        return None;
    }
    let mut child = Command::new(env::current_exe().unwrap())
        .args(["--exact", name, "--nocapture", "--test-threads=1"])
        .env(IN_CHILD, "1")
        .env("RUST_BACKTRACE", "0")
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // Read meanwhile, or a child that says much would wait for us.
    let mut stderr = child.stderr.take().unwrap();
    let reader = thread::spawn(move || {
        let mut text = Vec::new();
        stderr.read_to_end(&mut text).unwrap();
        String::from_utf8_lossy(&text).into_owned()
    });
    let start = Instant::now();
    let status = loop {
        if let Some(status) = child.try_wait().unwrap() {
            break status;
        }
        if start.elapsed() > WATCHDOG {
            child.kill().unwrap();
            child.wait().unwrap();
            panic!("{name} hangs");
        }
        thread::sleep(Duration::from_millis(5));
    };
    Some(Ended { status, stderr: reader.join().unwrap() })
}

/// Runs `body` in a child, which must end well.
fn check(name: &str, body: fn()) -> Option<Ended> {
    let ended = in_child(name, body)?;
    assert!(ended.status.success(), "{name}: {}\n{}", ended.status, ended.stderr);
    Some(ended)
}

static DROPS: AtomicUsize = AtomicUsize::new(0);

fn drops() -> usize {
    DROPS.load(Ordering::SeqCst)
}

struct Counted;

impl Drop for Counted {
    fn drop(&mut self) {
        DROPS.fetch_add(1, Ordering::SeqCst);
    }
}

/// A value whose drop calls a function.
struct OnDrop<F: FnMut()>(F);

impl<F: FnMut()> Drop for OnDrop<F> {
    fn drop(&mut self) {
        (self.0)();
    }
}

/// The dropper runs, has built its queues and has nothing to do.
fn warm_up() {
    later(OnDrop(|| ()));
    assert!(flush_values());
}

/// Has the dropper wait inside a drop until the sender is dropped.
fn hold_up() -> mpsc::Sender<()> {
    warm_up();
    let (release, held) = mpsc::channel::<()>();
    let (inside, is_inside) = mpsc::channel();
    later(OnDrop(move || {
        inside.send(()).unwrap();
        let _ = held.recv();
    }));
    is_inside.recv().unwrap();
    release
}

#[test]
fn bounded_count() {
    check("bounded_count", || {
        let release = hold_up();
        const N: usize = 50_000;
        (0..N).for_each(|_| later(Counted));
        // What is not dropped waits.
        let waiting = N - drops();
        assert!((10_000..=20_000).contains(&waiting), "{waiting} values wait");
        drop(release);
        assert!(flush_values());
        assert_eq!(drops(), N);
        // There is room again.
        let release = hold_up();
        later(Counted);
        assert_eq!(drops(), N);
        drop(release);
        assert!(flush_values());
        assert_eq!(drops(), N + 1);
    });
}

#[test]
fn bounded_bytes() {
    check("bounded_bytes", || {
        struct Large(#[allow(dead_code)] [u8; 1 << 20], #[allow(dead_code)] Counted);
        const N: usize = 100;
        let release = hold_up();
        // Unoptimised, the value is on the stack several times.
        let large = || (0..N).for_each(|_| later(Large([1; 1 << 20], Counted)));
        thread::Builder::new().stack_size(64 << 20).spawn(large).unwrap().join().unwrap();
        let waiting = N - drops();
        assert!((30..=32).contains(&waiting), "{waiting} MiB wait");
        later(Counted);
        drop(release);
        assert!(flush_values());
        assert_eq!(drops(), N + 1);
    });
}

#[test]
fn inline_on_the_dropper() {
    check("inline_on_the_dropper", || {
        warm_up();
        later(OnDrop(|| {
            later(Counted);
            assert_eq!(drops(), 1);
            // Boxed, too.
            later(([0u64; 100], Counted));
            assert_eq!(drops(), 2);
            later(Counted);
        }));
        assert!(flush_values());
        assert_eq!(drops(), 3);
    });
}

#[test]
fn panicking_drop() {
    let ended = check("panicking_drop", || {
        for _ in 0..3 {
            later(OnDrop(|| panic!("out of a drop")));
            later(([0u64; 100], OnDrop(|| panic!("out of a box"))));
        }
        later(Counted);
        assert!(flush_values());
        assert_eq!(drops(), 1);
    });
    if let Some(ended) = ended {
        assert_eq!(ended.stderr.matches("out of a drop").count(), 3, "{}", ended.stderr);
        assert_eq!(ended.stderr.matches("out of a box").count(), 3);
        assert_eq!(ended.stderr.matches("'deferfree-drop'").count(), 6);
        assert!(!ended.stderr.contains("deferfree: "));
    }
}

#[test]
fn panicking_payload() {
    check("panicking_payload", || {
        struct Payload(#[allow(dead_code)] u8);
        impl Drop for Payload {
            fn drop(&mut self) {
                std::panic::panic_any(Payload(self.0));
            }
        }
        warm_up();
        later(OnDrop(|| std::panic::panic_any(Payload(1))));
        later(Counted);
        assert!(flush_values());
        assert_eq!(drops(), 1);
    });
}

#[test]
fn flush_deadline() {
    check("flush_deadline", || {
        let release = hold_up();
        later(Counted);
        let start = Instant::now();
        assert!(!flush_values_timeout(Duration::from_millis(120)));
        let took = start.elapsed();
        assert!(took >= Duration::from_millis(120) && took < Duration::from_secs(20), "{took:?}");
        assert!(!flush_values_timeout(Duration::ZERO));
        assert_eq!(drops(), 0);
        let flushing = thread::spawn(|| {
            assert!(flush_values_timeout(Duration::from_secs(50)));
            assert_eq!(drops(), 1);
        });
        thread::sleep(Duration::from_millis(50));
        drop(release);
        flushing.join().unwrap();
    });
}

#[test]
fn flush_on_the_dropper() {
    check("flush_on_the_dropper", || {
        static FLUSHED: AtomicBool = AtomicBool::new(true);
        warm_up();
        later(OnDrop(|| FLUSHED.store(flush_values(), Ordering::SeqCst)));
        assert!(flush_values());
        assert!(!FLUSHED.load(Ordering::SeqCst));
    });
}

/// Others hand over all the time: what was there at the call is all that a flush waits for.
#[test]
fn flush_while_others_go_on() {
    check("flush_while_others_go_on", || {
        static STOP: AtomicBool = AtomicBool::new(false);
        const BATCH: usize = 50;
        warm_up();
        // Some milliseconds of work for the dropper all the time, never so much that it is refused.
        let other = thread::spawn(|| {
            let mut n = 0;
            while !STOP.load(Ordering::Relaxed) {
                for _ in 0..BATCH {
                    n += 1;
                    later(OnDrop(|| thread::sleep(Duration::from_micros(50))));
                }
                thread::sleep(Duration::from_millis(1));
                if n > 20 * BATCH {
                    assert!(flush_values());
                    n = 0;
                }
            }
        });
        for n in 1..=50 {
            // At any time in the dropper's round, not always just after it.
            thread::sleep(Duration::from_micros(n as u64 * 777 % 5000));
            later(Counted);
            assert!(flush_values());
            assert_eq!(drops(), n);
        }
        STOP.store(true, Ordering::Relaxed);
        other.join().unwrap();
    });
}

/// Forks; the child runs `body` and exits with 0, or is killed by the alarm if it hangs.
fn fork(body: impl FnOnce()) -> i32 {
    // SAFETY: the child runs what a child of this crate must be able to run. glibc's malloc guards
    // itself against forks.
    let pid = unsafe { libc::fork() };
    assert!(pid >= 0);
    if pid == 0 {
        // SAFETY: as above.
        unsafe { libc::alarm(20) };
        let ended = std::panic::catch_unwind(std::panic::AssertUnwindSafe(body));
        // SAFETY: ends the child without its parent's exit handlers.
        unsafe { libc::_exit(i32::from(ended.is_err())) };
    }
    pid
}

fn wait_for(pid: i32) {
    let mut status = 0;
    // SAFETY: waits for our own child.
    assert_eq!(unsafe { libc::waitpid(pid, &mut status, 0) }, pid);
    let status = ExitStatus::from_raw(status);
    assert!(status.success(), "the forked child: {status}");
}

fn child_starts_anew() {
    let before = drops();
    // The parent's values are not waited for.
    assert!(flush_values());
    let (sender, dropped_on) = mpsc::channel();
    later(OnDrop(move || sender.send(thread::current().name().map(str::to_owned)).unwrap()));
    (0..1000).for_each(|_| later(Counted));
    assert!(flush_values());
    assert_eq!(dropped_on.recv().unwrap().as_deref(), Some("deferfree-drop"));
    assert_eq!(drops(), before + 1000, "or values of the parent were dropped here");
}

#[test]
fn fork_here() {
    check("fork_here", || {
        let release = hold_up();
        (0..100).for_each(|_| later(Counted));
        let child = fork(|| {
            child_starts_anew();
            // And a child's child.
            wait_for(fork(child_starts_anew));
        });
        wait_for(child);
        assert_eq!(drops(), 0);
        drop(release);
        assert!(flush_values());
        assert_eq!(drops(), 100);
    });
}

/// Again and again, while other threads hand over and the dropper works.
#[test]
fn fork_elsewhere() {
    check("fork_elsewhere", || {
        static STOP: AtomicBool = AtomicBool::new(false);
        let others: Vec<_> = (0..2)
            .map(|_| {
                thread::spawn(|| {
                    while !STOP.load(Ordering::Relaxed) {
                        later(vec![1]);
                        later([vec![1], vec![2], vec![3]]);
                    }
                })
            })
            .collect();
        for _ in 0..100 {
            thread::spawn(|| wait_for(fork(child_starts_anew))).join().unwrap();
        }
        STOP.store(true, Ordering::Relaxed);
        others.into_iter().for_each(|other| other.join().unwrap());
        later(Counted);
        assert!(flush_values());
        assert_eq!(drops(), 1);
    });
}

#[test]
fn fork_does_not_wait() {
    check("fork_does_not_wait", || {
        let release = hold_up();
        wait_for(fork(|| ()));
        drop(release);
        assert!(flush_values());
    });
}

/// The forked child's one thread is the dropper: it must not go on with the parent's values.
#[test]
fn fork_in_a_drop() {
    check("fork_in_a_drop", || {
        static CHILD: AtomicUsize = AtomicUsize::new(0);
        // Shared with the child, to count drops in both.
        // SAFETY: a fresh shared mapping, zeroed, and large enough.
        let shared: &AtomicUsize = unsafe {
            let flags = libc::MAP_SHARED | libc::MAP_ANONYMOUS;
            let protection = libc::PROT_READ | libc::PROT_WRITE;
            &*libc::mmap(std::ptr::null_mut(), 4096, protection, flags, -1, 0).cast()
        };
        let release = hold_up();
        later(OnDrop(|| {
            // SAFETY: the child returns into the dropper, whose conduct is what is tested.
            let pid = unsafe { libc::fork() };
            if pid == 0 {
                // SAFETY: so that it ends in any case.
                unsafe { libc::alarm(20) };
            }
            CHILD.store(pid as usize, Ordering::SeqCst);
        }));
        for _ in 0..100 {
            later(OnDrop(move || {
                shared.fetch_add(1, Ordering::SeqCst);
            }));
        }
        drop(release);
        assert!(flush_values());
        wait_for(CHILD.load(Ordering::SeqCst) as i32);
        assert_eq!(shared.load(Ordering::SeqCst), 100);
    });
}

#[test]
fn exit_with_values() {
    let ended = in_child("exit_with_values", || {
        let _release = hold_up();
        (0..100_000).for_each(|_| later(Counted));
        std::process::exit(42);
    });
    if let Some(ended) = ended {
        assert_eq!(ended.status.code(), Some(42), "{}", ended.stderr);
        assert_eq!(ended.stderr, "");
    }
}

/// While the dropper is busy, too.
#[test]
fn exit_while_dropping() {
    let ended = in_child("exit_while_dropping", || {
        thread::spawn(|| {
            loop {
                later(vec![vec![1; 10]; 10]);
            }
        });
        thread::sleep(Duration::from_millis(100));
        std::process::exit(43);
    });
    if let Some(ended) = ended {
        assert_eq!(ended.status.code(), Some(43), "{}", ended.stderr);
    }
}

#[test]
fn nothing_dropped_after_exit() {
    static RELEASE: AtomicBool = AtomicBool::new(false);

    /// Runs after the handler of this crate, which is registered later.
    extern "C" fn at_exit() {
        let before = drops();
        RELEASE.store(true, Ordering::SeqCst);
        // Not a proof, but ample time to be caught in.
        thread::sleep(Duration::from_millis(200));
        if flush_values() || drops() != before {
            eprintln!("dropped while exiting");
        }
        later(Counted);
    }

    let ended = check("nothing_dropped_after_exit", || {
        // SAFETY: a function of this program.
        unsafe { libc::atexit(at_exit) };
        warm_up();
        let (inside, is_inside) = mpsc::channel();
        later(OnDrop(move || {
            inside.send(()).unwrap();
            while !RELEASE.load(Ordering::SeqCst) {
                thread::sleep(Duration::from_millis(1));
            }
        }));
        is_inside.recv().unwrap();
        (0..100).for_each(|_| later(Counted));
    });
    if let Some(ended) = ended {
        assert_eq!(ended.stderr, "");
    }
}

#[test]
fn thread_locals_and_exit_handlers() {
    type Late = OnDrop<fn()>;
    thread_local! {
        static LATE: RefCell<Vec<Late>> = const { RefCell::new(Vec::new()) };
    }

    extern "C" fn use_at_exit() {
        later(Counted);
        later(vec![0u8; 100]);
        flush_values();
    }

    let ended = check("thread_locals_and_exit_handlers", || {
        let hand_over: fn() = || {
            later(Counted);
            later(([0u64; 100], Counted));
        };
        for n in 0..10 {
            let ending = thread::spawn(move || {
                LATE.with(|late| late.borrow_mut().push(OnDrop(hand_over)));
                // The first use ever is on a thread whose thread-locals are being destroyed. In every
                // other round whatever this thread has in them is destroyed before `LATE`.
                if n % 2 == 1 {
                    hand_over();
                }
            });
            ending.join().unwrap();
        }
        assert!(flush_values());
        assert_eq!(drops(), 30);
        // SAFETY: a function of this program.
        unsafe { libc::atexit(use_at_exit) };
    });
    if let Some(ended) = ended {
        assert_eq!(ended.stderr, "");
    }
}

/// The first value ever comes when the process is exiting.
#[test]
fn first_use_while_exiting() {
    extern "C" fn at_exit() {
        later(Counted);
        flush_values_timeout(Duration::from_secs(5));
        if drops() != 1 {
            eprintln!("not dropped");
        }
    }

    let ended = check("first_use_while_exiting", || {
        // SAFETY: a function of this program.
        unsafe { libc::atexit(at_exit) };
    });
    if let Some(ended) = ended {
        // Rust 1.85 cannot start a thread there, and says so in its own words before the crate does in its.
        let said = &ended.stderr;
        let panicked = said.contains("cannot access a Thread Local Storage value");
        assert!(said.is_empty() || panicked && !said.contains("not dropped"), "{said}");
    }
}

#[test]
fn no_thread_to_be_had() {
    let ended = check("no_thread_to_be_had", || {
        // Room for the queue, not for the thread's stack of 8 MiB.
        limit_address_space(2 << 20);
        for n in 1..=3 {
            later(Counted);
            assert_eq!(drops(), n, "dropped at once");
            assert!(flush_values());
        }
    });
    if let Some(ended) = ended {
        assert_eq!(ended.stderr.matches("deferfree: cannot start the dropper").count(), 1);
        assert_eq!(ended.stderr.lines().count(), 1, "{}", ended.stderr);
    }
}

/// A signal to the process must find one of the program's own threads.
#[test]
fn signals_blocked() {
    check("signals_blocked", || {
        let (sender, receiver) = mpsc::channel();
        warm_up();
        later(OnDrop(move || {
            sender.send(std::fs::read_to_string("/proc/thread-self/status").unwrap()).unwrap();
        }));
        let status = receiver.recv().unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("SigBlk:")).unwrap();
        let blocked = u64::from_str_radix(line.trim(), 16).unwrap();
        for signal in [libc::SIGTERM, libc::SIGINT, libc::SIGHUP, libc::SIGCHLD, libc::SIGUSR1] {
            assert_ne!(blocked & 1 << (signal - 1), 0, "signal {signal} is not blocked");
        }
        // Ours are as they were.
        let status = std::fs::read_to_string("/proc/thread-self/status").unwrap();
        assert!(status.contains("SigBlk:\t0000000000000000"));
    });
}

/// After ten seconds without a value the dropper sleeps; the next value wakes it.
#[test]
fn woken_from_sleep() {
    check("woken_from_sleep", || {
        warm_up();
        for n in 1..=2 {
            thread::sleep(Duration::from_millis(10_500));
            later(Counted);
            let start = Instant::now();
            while drops() < n {
                assert!(start.elapsed() < Duration::from_secs(5), "it sleeps on");
                thread::sleep(Duration::from_millis(1));
            }
        }
        // Out of the sleep by a flush.
        thread::sleep(Duration::from_millis(10_500));
        assert!(flush_values_timeout(Duration::from_secs(5)));
    });
}

/// Values that are nested deeply: the dropper's stack is as large as the main thread's.
#[test]
fn deep_recursion() {
    check("deep_recursion", || {
        struct List(#[allow(dead_code)] Option<Box<List>>);
        let mut list = List(None);
        for _ in 0..30_000 {
            list = List(Some(Box::new(list)));
        }
        later(list);
        assert!(flush_values());
    });
}
