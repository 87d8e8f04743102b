//! A server that answers while it drops: it looks words up in an index of some hundred thousand entries,
//! which is replaced by a new one several times a second. The index that it has replaced is dropped by the
//! thread that answers, between two answers.
//!
//! Clients ask a thousand times a second, whether they have been answered or not, and what counts is the
//! time from when a question was due until its answer is there. The program runs itself again, by turns
//! with `DEFERFREE=off`, which is plain mimalloc, and with `DEFERFREE=on`.
//!
//! ```text
//! cargo run --release --example answers
//! ```

use std::collections::HashMap;
use std::io::{self, BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::process::{Command, ExitCode, Stdio};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;
use std::time::{Duration, Instant};

#[global_allocator]
static GLOBAL: deferfree::DeferFree = deferfree::DeferFree::new();

const WORDS: usize = 300_000;
const QUESTIONS: usize = 3_000;
const QUESTION_EVERY: Duration = Duration::from_millis(1);
const RELOAD_EVERY: Duration = Duration::from_millis(300);
const TURNS: usize = 3;

const CHILD: &str = "ANSWERS_CHILD";

/// Where each word is found.
type Index = HashMap<String, Vec<u32>>;

fn build() -> Index {
    (0..WORDS).map(|n| (format!("word{n}"), vec![n as u32; 1 + n % 8])).collect()
}

/// Answers each question, and takes over a new index when there is one.
fn serve(connection: TcpStream, mut index: Index, new: Receiver<Index>) -> io::Result<()> {
    connection.set_nodelay(true)?;
    let mut answers = connection.try_clone()?;
    let mut line = String::new();
    let mut questions = BufReader::new(connection);
    loop {
        line.clear();
        if questions.read_line(&mut line)? == 0 {
            return Ok(());
        }
        let places = index.get(line.trim_end()).map_or(0, Vec::len);
        answers.write_all(format!("{places}\n").as_bytes())?;
        if let Ok(new) = new.try_recv() {
            // Here the old one is dropped.
            index = new;
        }
    }
}

fn reload(new: Sender<Index>) {
    // Until the server has gone.
    while new.send(build()).is_ok() {
        thread::sleep(RELOAD_EVERY);
    }
}

/// Asks at its own pace; gives the times from when each question was due to its answer.
fn ask(connection: TcpStream) -> io::Result<Vec<Duration>> {
    connection.set_nodelay(true)?;
    let mut questions = connection.try_clone()?;
    let start = Instant::now() + Duration::from_millis(100);
    let due = move |n: usize| start + QUESTION_EVERY * n as u32;
    let asker = thread::spawn(move || -> io::Result<()> {
        for n in 0..QUESTIONS {
            thread::sleep(due(n).saturating_duration_since(Instant::now()));
            questions.write_all(format!("word{}\n", n * 7919 % WORDS).as_bytes())?;
        }
        Ok(())
    });
    let mut times = Vec::with_capacity(QUESTIONS);
    for (n, answer) in BufReader::new(connection).lines().take(QUESTIONS).enumerate() {
        assert_ne!(answer?, "0", "every word is in the index");
        times.push(due(n).elapsed());
    }
    asker.join().expect("the asking thread does not panic")?;
    Ok(times)
}

/// One turn: prints the times in nanoseconds.
fn child() -> io::Result<()> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let address = listener.local_addr()?;
    let (sender, new) = channel();
    let index = build();
    let server = thread::spawn(move || serve(listener.accept()?.0, index, new));
    thread::spawn(move || reload(sender));
    let times = ask(TcpStream::connect(address)?)?;
    server.join().expect("the server does not panic")?;
    let times: Vec<String> = times.iter().map(|time| time.as_nanos().to_string()).collect();
    println!("{}", times.join(" "));
    Ok(())
}

/// Runs a turn with the allocator switched on or off.
fn turn(switch: &str) -> Result<Vec<u64>, String> {
    let program = std::env::current_exe().map_err(|error| error.to_string())?;
    let mut child = Command::new(program);
    child.env(CHILD, "1").env("DEFERFREE", switch).stderr(Stdio::inherit());
    let output = child.output().map_err(|error| error.to_string())?;
    if !output.status.success() {
        return Err(format!("the process failed: {}", output.status));
    }
    let text = String::from_utf8_lossy(&output.stdout);
    text.split_whitespace().map(|time| time.parse().map_err(|_| text.to_string())).collect()
}

fn compare() -> Result<(), String> {
    let mut times = [("off", Vec::new()), ("on", Vec::new())];
    for n in 1..=TURNS {
        for (switch, times) in &mut times {
            eprintln!("DEFERFREE={switch}, turn {n} of {TURNS}");
            times.extend(turn(switch)?);
        }
    }
    println!("Time to an answer in ms, of {} each:\n", TURNS * QUESTIONS);
    println!("{:14}{:>10}{:>10}{:>10}{:>10}{:>16}", "", "p50", "p99", "p99.9", "max", "over 5 ms");
    for (switch, mut times) in times {
        times.sort_unstable();
        let ms = |ns: u64| format!("{:.2}", ns as f64 / 1e6);
        let at = |per_mille: usize| ms(times[(times.len() - 1) * per_mille / 1000]);
        let late = times.iter().filter(|&&ns| ns > 5_000_000).count();
        let max = times.last().copied().unwrap_or(0);
        println!(
            "DEFERFREE={switch:<4}{:>10}{:>10}{:>10}{:>10}{late:>16}",
            at(500),
            at(990),
            at(999),
            ms(max)
        );
    }
    Ok(())
}

fn main() -> ExitCode {
    let done = if std::env::var_os(CHILD).is_some() {
        child().map_err(|error| error.to_string())
    } else {
        compare()
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("answers: {error}");
            ExitCode::FAILURE
        }
    }
}
