//! One CPU, a drainer of low priority, a real-time producer, signals: nothing waits for ever. Threads that a special
//! thread starts are ordinary ones.
//!
//! Seen to fail: without `SignalsBlocked`, `signals`; without each of the three parts of `be_ordinary`, and with the CPUs
//! of the calling thread counted, `born_of_a_special_thread`.

use crate::common;

use std::hint::black_box;
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicUsize, Ordering};
use std::thread;

use common::{
    KIB, MIB, drainers, flush_to_the_last, run_child, shuffle, sleep_ms, task_status, threads,
    threads_named, touched, use_one_cpu, wait_until,
};
use deferfree::DeferFree;

#[global_allocator]
static GLOBAL: DeferFree = DeferFree::new();

pub(crate) fn main() -> ExitCode {
    match common::child_case().as_deref() {
        Some("one_cpu") => one_cpu(),
        Some("low_priority") => low_priority(),
        Some("realtime_producer") => realtime_producer(),
        Some("realtime_flush") => realtime_flush(),
        Some("signals") => signals(),
        Some("born_of_a_special_thread") => born_of_a_special_thread(),
        Some(case) => panic!("{case}"),
        None => {
            return common::run(&[
                ("one_cpu", || run("one_cpu")),
                ("low_priority", || run("low_priority")),
                ("realtime_producer", || run("realtime_producer")),
                ("realtime_flush", || run("realtime_flush")),
                ("signals", || run("signals")),
                ("born_of_a_special_thread", || {
                    let output = run_child("born_of_a_special_thread", &[], 20);
                    print!("{}", output.stdout);
                    output.expect_clean();
                }),
            ]);
        }
    }
    ExitCode::SUCCESS
}

/// The watchdog's time is that for a busy machine: each takes a second or two.
fn run(case: &str) {
    for burst in ["0", "128", "off"] {
        let mut env = vec![("DEFERFREE_BURST", burst), ("DEFERFREE_DELAY", "4ms")];
        if case == "low_priority" {
            // What one thread keeps for a while is more.
            env.push(("DEFERFREE_MAX_PENDING", "4M"));
        }
        let output = run_child(case, &env, 100);
        print!("{}", output.stdout);
        output.expect_clean();
    }
}

/// Blocks of sizes that other threads use too, kept for a while, and a burst.
fn work(rounds: usize) {
    let mut kept = Vec::new();
    for round in 0..rounds {
        for size in [256 * KIB, 300 * KIB, 700 * KIB] {
            kept.extend((0..4).map(|_| Vec::<u8>::with_capacity(size)));
        }
        if round % 3 == 0 {
            kept.clear();
        }
        if round % 10 == 0 {
            let mut blocks: Vec<_> = (0..2000).map(|n| Box::new([n; 6])).collect();
            shuffle(&mut blocks);
            drop(black_box(blocks));
        }
    }
}

fn nothing_is_left() {
    flush_to_the_last(&GLOBAL);
    let stats = GLOBAL.stats();
    assert_eq!((stats.pending.blocks, stats.bursts.pending.blocks), (0, 0), "{stats:?}");
}

fn one_cpu() {
    use_one_cpu();
    thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| work(300));
        }
        scope.spawn(|| (0..20).for_each(|_| GLOBAL.flush()));
    });
    nothing_is_left();
}

/// The drainer runs only when nobody else wants to: what waits is bounded all the same, and a flush ends
/// once the others have.
fn low_priority() {
    use_one_cpu();
    drop(touched(16 * MIB));
    wait_until("a drainer", || drainers().len() == 1);
    let set = set_policy(drainers()[0], libc::SCHED_IDLE, 0);
    assert!(set, "{}", std::io::Error::last_os_error());
    thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| work(1000));
        }
    });
    let stats = GLOBAL.stats();
    let max = GLOBAL.config().max_pending_bytes as u64;
    assert!(stats.over_bound.blocks > 0 && stats.peak_pending_bytes <= max, "{stats:?}");
    nothing_is_left();
}

/// By number, as musl's functions refuse. Thread 0 is the calling one.
fn set_policy(tid: i32, policy: i32, priority: i32) -> bool {
    // SAFETY: a system call on numbers and a live variable, which is all that the kernel's structure has.
    unsafe { libc::syscall(libc::SYS_sched_setscheduler, tid, policy, &raw const priority) == 0 }
}

/// Makes the calling thread one that is never preempted by others; false, said loudly, if that is refused.
fn become_realtime() -> bool {
    let set = set_policy(0, libc::SCHED_FIFO, 50);
    if !set {
        println!("SKIPPED: no real-time priority ({})", std::io::Error::last_os_error());
    }
    set
}

/// It shares its classes with threads that it preempts in the middle of a push or a pop, and waits for none of them: each would
/// cost it as long as the kernel keeps all others from running, up to a second (`sched_rt_runtime_us`).
fn realtime_producer() {
    use_one_cpu();
    drop(touched(MIB));
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| {
                while !done.load(Ordering::Relaxed) {
                    work(3);
                }
            });
        }
        let producer = scope.spawn(|| {
            if become_realtime() {
                for _ in 0..100 {
                    work(10);
                    // Comes back, and finds the others anywhere.
                    sleep_ms(1);
                }
            }
        });
        producer.join().unwrap();
        done.store(true, Ordering::Relaxed);
    });
    nothing_is_left();
}

/// A flush has the drainer work, which has no chance to run unless the thread that flushes sleeps.
fn realtime_flush() {
    use_one_cpu();
    let flushing = thread::spawn(|| {
        if become_realtime() {
            for _ in 0..100 {
                work(4);
                nothing_is_left();
            }
        }
    });
    flushing.join().unwrap();
}

static N_HANDLED: AtomicUsize = AtomicUsize::new(0);
static N_ELSEWHERE: AtomicUsize = AtomicUsize::new(0);
static OURS: [AtomicI32; 2] = [AtomicI32::new(0), AtomicI32::new(0)];

extern "C" fn on_signal(_: libc::c_int) {
    // SAFETY: a system call without arguments.
    let tid = unsafe { libc::gettid() };
    if OURS.iter().any(|ours| ours.load(Ordering::SeqCst) == tid) {
        N_ELSEWHERE.fetch_add(1, Ordering::SeqCst);
    }
    N_HANDLED.fetch_add(1, Ordering::SeqCst);
}

/// Blocks the signal for the calling thread, or lets it through.
fn mask(how: libc::c_int) {
    // SAFETY: a set of one signal, for this thread.
    unsafe {
        let mut set = std::mem::zeroed::<libc::sigset_t>();
        libc::sigemptyset(&mut set);
        libc::sigaddset(&mut set, libc::SIGUSR1);
        libc::pthread_sigmask(how, &set, std::ptr::null_mut());
    }
}

/// Sent to the process while all threads of the program have the signal blocked and drainer and dropper
/// are at work: it waits for one of the program's.
fn signals() {
    drop(touched(16 * MIB));
    deferfree::later(vec![vec![1; 10]; 10]);
    assert!(deferfree::flush_values());
    let tid_of = |wanted: &str| {
        let found = threads().into_iter().find(|(_, name)| name == wanted);
        found.map_or(0, |(tid, _)| tid)
    };
    wait_until("both threads", || tid_of("deferfree") != 0 && tid_of("deferfree-drop") != 0);
    OURS[0].store(tid_of("deferfree"), Ordering::SeqCst);
    OURS[1].store(tid_of("deferfree-drop"), Ordering::SeqCst);
    // SAFETY: the handler does nothing but atomics and a system call.
    unsafe { libc::signal(libc::SIGUSR1, on_signal as extern "C" fn(libc::c_int) as usize) };
    // The worker inherits it.
    mask(libc::SIG_BLOCK);
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        let worker = scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                work(2);
                deferfree::later(vec![vec![1; 10]; 10]);
            }
        });
        for n in 1..=300 {
            mask(libc::SIG_BLOCK);
            common::kill(std::process::id() as i32, libc::SIGUSR1);
            // Time for another to take it.
            sleep_ms(n as u64 % 3);
            mask(libc::SIG_UNBLOCK);
            wait_until("it is handled", || N_HANDLED.load(Ordering::SeqCst) == n);
        }
        done.store(true, Ordering::Relaxed);
        worker.join().unwrap();
    });
    assert_eq!(N_ELSEWHERE.load(Ordering::SeqCst), 0);
    nothing_is_left();
}

/// Policy, niceness and CPUs of a thread.
fn manner(tid: i32) -> (i32, i32, String) {
    // SAFETY: system calls on numbers.
    let (policy, nice) = unsafe {
        (
            libc::syscall(libc::SYS_sched_getscheduler, tid) as i32,
            libc::getpriority(libc::PRIO_PROCESS, tid as _),
        )
    };
    (policy, nice, task_status(tid, "Cpus_allowed_list"))
}

/// Both threads, and what is deferred at all, are as if the main thread had come first.
fn born_of_a_special_thread() {
    let ordinary = manner(std::process::id() as i32);
    let ordinary_nice = ordinary.1;
    thread::spawn(move || {
        use_one_cpu();
        // Less nice, where that is allowed: one that may not cannot go back to what it was either.
        // SAFETY: a system call on numbers.
        unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, ordinary_nice - 3) };
        become_realtime();
        drop(touched(16 * MIB));
        deferfree::later(vec![vec![1; 10]; 10]);
        let has_one_cpu = thread::available_parallelism().unwrap().get() == 1;
        assert!(has_one_cpu && GLOBAL.stats().drainer_running);
        // The bursts' default asks for the number of CPUs when it is looked at first.
        let burst = GLOBAL.config().burst;
        // SAFETY: a system call without arguments.
        (burst, manner(unsafe { libc::gettid() }))
    })
    .join()
    .map(|(burst, special)| {
        assert_ne!(special, ordinary);
        assert_eq!(burst.is_some(), thread::available_parallelism().unwrap().get() > 1);
    })
    .unwrap();
    assert!(deferfree::flush_values());
    for name in ["deferfree", "deferfree-drop"] {
        wait_until("the thread has its name", || threads_named(name).len() == 1);
        assert_eq!(manner(threads_named(name)[0]), ordinary, "{name}");
    }
}
