//! The numbers for a monitoring system, in Prometheus's text format, over plain HTTP.
//!
//! ```text
//! cargo run --release --example metrics            # then: curl http://127.0.0.1:9184/metrics
//! cargo run --release --example metrics -- --once  # prints them once
//! ```

use std::fmt::Write as _;
use std::io::{self, BufRead, BufReader, Write as _};
use std::net::{TcpListener, TcpStream};
use std::thread;
use std::time::Duration;

use deferfree::{DeferFree, Stats};

#[global_allocator]
static GLOBAL: DeferFree = DeferFree::new();

const ADDRESS: &str = "127.0.0.1:9184";

/// One metric: what it is, and a value for each set of labels.
fn metric(text: &mut String, name: &str, kind: &str, help: &str, values: &[(&str, f64)]) {
    // Writing to a string does not fail.
    let _ = writeln!(text, "# HELP {name} {help}\n# TYPE {name} {kind}");
    for (labels, value) in values {
        let _ = writeln!(text, "{name}{labels} {value}");
    }
}

fn render(stats: &Stats) -> String {
    let mut text = String::new();
    let bursts = &stats.bursts;
    let large = [
        ("{fate=\"reused\"}", stats.reused),
        ("{fate=\"drained\"}", stats.drained),
        ("{fate=\"paid_back\"}", stats.paid_back),
        ("{fate=\"over_bound\"}", stats.over_bound),
        ("{fate=\"queue_full\"}", stats.queue_full),
        ("{fate=\"not_running\"}", stats.not_running),
    ];
    let small =
        [("{fate=\"drained\"}", bursts.drained), ("{fate=\"paid_back\"}", bursts.paid_back)];
    let help = "Large blocks that were freed, by what became of them.";
    let blocks = large.map(|(labels, tally)| (labels, tally.blocks as f64));
    metric(&mut text, "deferfree_large_blocks_total", "counter", help, &blocks);
    let help = "Bytes of large blocks that were freed, by what became of them.";
    let bytes = large.map(|(labels, tally)| (labels, tally.bytes as f64));
    metric(&mut text, "deferfree_large_bytes_total", "counter", help, &bytes);
    let help = "Small blocks freed in bursts, by what became of them.";
    let blocks = small.map(|(labels, tally)| (labels, tally.blocks as f64));
    metric(&mut text, "deferfree_burst_blocks_total", "counter", help, &blocks);
    let pending = (stats.pending.bytes + bursts.pending.bytes) as f64;
    for (name, kind, help, value) in [
        ("deferfree_pending_bytes", "gauge", "Bytes that wait to be freed.", pending),
        (
            "deferfree_peak_pending_bytes",
            "gauge",
            "The most bytes that ever waited.",
            stats.peak_pending_bytes as f64,
        ),
        (
            "deferfree_purges_total",
            "counter",
            "Times that unused memory went back to the system.",
            stats.purges as f64,
        ),
        (
            "deferfree_returned_bytes_total",
            "counter",
            "Bytes by which the resident set shrank when memory went back.",
            stats.returned_bytes as f64,
        ),
        (
            "deferfree_drainer_cpu_seconds_total",
            "counter",
            "CPU time of the background thread.",
            stats.drainer_cpu_ns as f64 / 1e9,
        ),
    ] {
        metric(&mut text, name, kind, help, &[("", value)]);
    }
    // Of the process, as far as the system says.
    for (name, kind, help, value) in [
        (
            "deferfree_process_resident_bytes",
            "gauge",
            "Bytes of the process in the machine's memory.",
            stats.resident_bytes,
        ),
        (
            "deferfree_process_mapped_bytes",
            "gauge",
            "Bytes of address space that the process has mapped; on Windows committed.",
            stats.mapped_bytes,
        ),
        (
            "deferfree_process_page_faults_total",
            "counter",
            "Page faults of the process.",
            stats.page_faults,
        ),
        (
            "deferfree_process_major_page_faults_total",
            "counter",
            "Page faults of the process that waited for a disk.",
            stats.major_page_faults,
        ),
    ] {
        if let Some(value) = value {
            metric(&mut text, name, kind, help, &[("", value as f64)]);
        }
    }
    text
}

fn answer(mut connection: TcpStream) -> io::Result<()> {
    connection.set_read_timeout(Some(Duration::from_secs(1)))?;
    let mut request = String::new();
    BufReader::new(&connection).read_line(&mut request)?;
    let (status, body) = if request.starts_with("GET /metrics ") {
        ("200 OK", render(&GLOBAL.stats()))
    } else {
        ("404 Not Found", "see /metrics\n".to_owned())
    };
    write!(
        connection,
        "HTTP/1.1 {status}\r\nContent-Type: text/plain; version=0.0.4\r\nContent-Length: {}\r\n\
         Connection: close\r\n\r\n{body}",
        body.len()
    )
}

/// What the program is there for.
fn work() {
    for size in [300 << 10, 1 << 20, 5 << 20] {
        drop((0..8).map(|n| vec![n as u8 | 1; size]).collect::<Vec<_>>());
    }
}

fn main() -> io::Result<()> {
    work();
    if std::env::args().any(|argument| argument == "--once") {
        print!("{}", render(&GLOBAL.stats()));
        return Ok(());
    }
    let listener = TcpListener::bind(ADDRESS)?;
    println!("http://{ADDRESS}/metrics");
    thread::spawn(|| {
        loop {
            work();
            thread::sleep(Duration::from_millis(100));
        }
    });
    for connection in listener.incoming() {
        // A client that goes away is no reason to stop.
        if let Err(error) = connection.and_then(answer) {
            eprintln!("metrics: {error}");
        }
    }
    Ok(())
}
