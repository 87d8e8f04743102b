//! A pool of worker threads that give up what is held for them when they find nothing to do.
//!
//! ```text
//! cargo run --release --example pool
//! ```
//!
//! The program starts itself twice, with and without `thread_idle`. Each time 64 workers build reports, which one more
//! thread reads and drops, and it says how much memory the program holds when there is nothing left to do.

use std::collections::VecDeque;
use std::io;
use std::process::Command;
use std::sync::mpsc::{self, SyncSender};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread;
use std::time::Duration;
use std::{array, env};

use deferfree::DeferFree;

#[global_allocator]
static GLOBAL: DeferFree = DeferFree::new();

const WORKERS: usize = 64;
const JOBS: usize = 1600;

type Job = Box<dyn FnOnce() + Send>;

/// Jobs that wait, and whoever waits for one.
#[derive(Default)]
struct Queue {
    jobs: Mutex<VecDeque<Job>>,
    came: Condvar,
}

impl Queue {
    fn put(&self, job: Job) {
        self.jobs.lock().unwrap_or_else(PoisonError::into_inner).push_back(job);
        self.came.notify_one();
    }

    fn take(&self, rests: bool) -> Job {
        let mut jobs = self.jobs.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            if let Some(job) = jobs.pop_front() {
                return job;
            }
            if rests {
                // Not under the lock: this takes some microseconds. A job that comes meanwhile is looked for again.
                drop(jobs);
                GLOBAL.thread_idle();
                jobs = self.jobs.lock().unwrap_or_else(PoisonError::into_inner);
                if !jobs.is_empty() {
                    continue;
                }
            }
            jobs = self.came.wait(jobs).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

/// Parts of 4 to 250 KiB.
type Report = [Vec<u8>; 40];

fn build(n: usize) -> Report {
    array::from_fn(|i| vec![n as u8; 4000 + (n * 7919 + i * 104_729) % 250_000])
}

fn resident_mib() -> u64 {
    GLOBAL.stats().resident_bytes.unwrap_or(0) >> 20
}

fn work(rests: bool) {
    let queue = Arc::new(Queue::default());
    for _ in 0..WORKERS {
        let queue = Arc::clone(&queue);
        thread::spawn(move || {
            loop {
                queue.take(rests)();
            }
        });
    }
    let (reports, inbox) = mpsc::sync_channel::<Report>(WORKERS);
    for n in 0..JOBS {
        let reports: SyncSender<Report> = reports.clone();
        queue.put(Box::new(move || drop(reports.send(build(n)))));
    }
    drop(reports);
    // Ends with the last job, which has the last sender.
    let bytes: usize = inbox.iter().flatten().map(|part| part.len()).sum();
    let at_once = resident_mib();
    thread::sleep(Duration::from_secs(3));
    let name = if rests { "thread_idle" } else { "without" };
    println!(
        "{name:12} {} MiB built; {at_once} MiB held then, {} MiB three seconds later",
        bytes >> 20,
        resident_mib()
    );
}

fn main() -> io::Result<()> {
    match env::args().nth(1).as_deref() {
        Some(how) => work(how == "rests"),
        None => {
            for how in ["plain", "rests"] {
                let status = Command::new(env::current_exe()?).arg(how).status()?;
                assert!(status.success(), "{how}: {status}");
            }
        }
    }
    Ok(())
}
