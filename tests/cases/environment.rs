//! The environment variables, as raw bytes, end to end: each case is a process of its own, because
//! the settings are read once, before `main`.
//!
//! Seen to fail: without the second, reporting pass over the environment, `malformed`; without the
//! clamp to the smallest class, `sizes_in_force`; with the switch ignored, `off`; without the bound,
//! `nothing_may_wait`.

use crate::common;

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::process::ExitCode;
use std::sync::mpsc;
use std::thread::{self, ThreadId};

use common::{MIB, Output, SPOIL_STDERR, command, drainers, finish, rss, touched, wait_until};
use deferfree::{Config, DeferFree};

#[global_allocator]
static GLOBAL: DeferFree = DeferFree::new();

/// Defaults set in code; never used to allocate.
static CODED: DeferFree = DeferFree::new().threshold(128 << 10).delay_ms(40).max_pending(64 << 20);

pub(crate) fn main() -> ExitCode {
    match common::child_case().as_deref() {
        Some("config") => {
            drop(touched(8 * MIB));
            print_config(GLOBAL.config());
        }
        Some("coded") => print_config(CODED.config()),
        Some("burst") => println!("{:?}", GLOBAL.config().burst),
        Some("burst on one CPU") => {
            common::use_one_cpu();
            println!("{:?}", GLOBAL.config().burst);
        }
        Some("off") => off_child(),
        Some("nothing_may_wait") => nothing_may_wait_child(),
        Some(case) => panic!("{case}"),
        None => {
            return common::run(&[
                ("switch_in_force", switch_in_force),
                ("sizes_in_force", sizes_in_force),
                ("delays_in_force", delays_in_force),
                ("bursts_in_force", bursts_in_force),
                ("malformed", malformed),
                ("unknown", unknown),
                ("off", off),
                ("set_in_code", set_in_code),
                ("standard_error_that_takes_nothing", standard_error_that_takes_nothing),
                ("nothing_may_wait", nothing_may_wait),
            ]);
        }
    }
    ExitCode::SUCCESS
}

fn print_config(config: Config) {
    println!("{:?}", fields(config));
}

type Fields = (bool, usize, u64, usize);

fn fields(config: Config) -> Fields {
    (config.enabled, config.threshold_bytes, config.delay_ms, config.max_pending_bytes)
}

fn child(case: &str, env: &[(&[u8], &[u8])]) -> Output {
    let mut command = command(case);
    for (name, value) in env {
        command.env(OsStr::from_bytes(name), OsStr::from_bytes(value));
    }
    finish(command, 20)
}

/// What is in force without any variable.
fn defaults() -> Fields {
    let output = child("config", &[]);
    output.expect_clean();
    // This process runs without variables of its own as far as these go.
    let (enabled, threshold, delay, _) = fields(DeferFree::new().config());
    let expected = format!("({enabled}, {threshold}, {delay}, ");
    if std::env::vars_os().all(|(name, _)| !name.as_bytes().starts_with(b"DEFERFREE")) {
        assert!(output.stdout.starts_with(&expected), "{output:?}");
    }
    parse_fields(&output)
}

fn parse_fields(output: &Output) -> Fields {
    let line = output.stdout.trim().trim_matches(['(', ')']);
    let parts: Vec<&str> = line.split(", ").collect();
    let [enabled, threshold, delay, max] = parts[..] else { panic!("{output:?}") };
    (
        enabled.parse().unwrap(),
        threshold.parse().unwrap(),
        delay.parse().unwrap(),
        max.parse().unwrap(),
    )
}

fn in_force(name: &str, value: &str) -> Fields {
    let output = child("config", &[(name.as_bytes(), value.as_bytes())]);
    output.expect_clean();
    parse_fields(&output)
}

fn switch_in_force() {
    for (value, expected) in [
        ("on", true),
        ("ON", true),
        ("oN", true),
        ("1", true),
        ("off", false),
        ("OFF", false),
        ("Off", false),
        ("0", false),
    ] {
        assert_eq!(in_force("DEFERFREE", value).0, expected, "{value}");
    }
}

fn sizes_in_force() {
    for (value, expected) in [
        ("65536", 65536),
        ("64K", 64 << 10),
        ("64k", 64 << 10),
        ("64KiB", 64 << 10),
        ("64kib", 64 << 10),
        ("64KB", 64 << 10),
        ("65536B", 64 << 10),
        ("1m", 1 << 20),
        ("1MiB", 1 << 20),
        ("3G", 3 << 30),
        ("1tb", 1 << 40),
        (" 2M ", 2 << 20),
        ("4097", 4097),
        // Smaller blocks than the smallest class have no class.
        ("4096", 4096),
        ("4095", 4096),
        ("1", 4096),
        ("0", 4096),
    ] {
        assert_eq!(in_force("DEFERFREE_THRESHOLD", value).1, expected, "{value}");
    }
    for (value, expected) in
        [("0", 0), ("1", 1), ("10MiB", 10 << 20), ("1T", 1 << 40), ("123456789", 123_456_789)]
    {
        assert_eq!(in_force("DEFERFREE_MAX_PENDING", value).3, expected, "{value}");
    }
    // As large as can be said, which stands for nothing else.
    let most = usize::MAX.to_string();
    assert_eq!(in_force("DEFERFREE_MAX_PENDING", &most).3, usize::MAX - 1);
    let config = in_force("DEFERFREE_THRESHOLD", &most);
    assert_eq!((config.0, config.1), (true, usize::MAX - 1));
}

fn delays_in_force() {
    for (value, expected) in [
        ("0ms", 0),
        ("0s", 0),
        ("1ms", 1),
        ("20MS", 20),
        ("2s", 2000),
        ("2S", 2000),
        (" 3s\t", 3000),
        // Longer than any clock reaches.
        ("18446744073709551615ms", u64::MAX),
        ("18446744073709551s", 18_446_744_073_709_551_000),
    ] {
        assert_eq!(in_force("DEFERFREE_DELAY", value).2, expected, "{value}");
    }
}

/// Frees in a row that begin a burst.
fn bursts_in_force() {
    let in_force = |case, env: &[(&[u8], &[u8])]| {
        let output = child(case, env);
        output.expect_code(0);
        (output.stdout.trim().to_owned(), output)
    };
    for (value, expected) in [
        ("0", "Some(0)"),
        ("1", "Some(1)"),
        (" 5000\t", "Some(5000)"),
        ("off", "None"),
        ("OFF", "None"),
    ] {
        for case in ["burst", "burst on one CPU"] {
            let (burst, output) = in_force(case, &[(b"DEFERFREE_BURST", value.as_bytes())]);
            output.expect_clean();
            assert_eq!(burst, expected, "{value}");
        }
    }
    // By default it takes two CPUs.
    assert_eq!(in_force("burst on one CPU", &[]).0, "None");
    let (default, _) = in_force("burst", &[]);
    for value in [&b""[..], b"-1", b"1K", b"on", b"4294967296", b"1 2", b"\xff"] {
        let (burst, output) = in_force("burst", &[(b"DEFERFREE_BURST", value)]);
        assert_eq!(burst, default, "{output:?}");
        let line = one_line(&output);
        assert!(line.contains(&format!("DEFERFREE_BURST=\"{}\"", quoted(value))), "{line}");
        let n_frees = default.trim_start_matches("Some(").trim_end_matches(')');
        let expected = format!("using {n_frees}, or off on one CPU");
        assert!(default == "None" || line.ends_with(&expected), "{line}");
    }
    // Every free is deferred where even the smallest block counts as large; none where nothing is.
    assert_eq!(in_force("burst", &[(b"DEFERFREE_THRESHOLD", b"0")]).0, "Some(0)");
    assert_eq!(in_force("burst", &[(b"DEFERFREE", b"off")]).0, "None");
}

/// The value as the line quotes it.
fn quoted(value: &[u8]) -> String {
    value.escape_ascii().to_string()
}

fn malformed() {
    let defaults = defaults();
    let sizes: &[&[u8]] = &[
        b"",
        b" ",
        b"-1",
        b"+1",
        b"1 M",
        b"1M B",
        b"K",
        b"iB",
        b"1X",
        b"1.5M",
        b"0x10",
        b"1e6",
        b"1\n2",
        b"18446744073709551616",
        b"16777216T",
        b"\xff\xfe",
        b"64\xffK",
        "６４K".as_bytes(),
    ];
    let delays: &[&[u8]] = &[
        b"",
        b"250",
        b"ms",
        b"-1s",
        b"1 s",
        b"1m",
        b"1us",
        b"1.5s",
        b"18446744073709551615s",
        b"18446744073709551616ms",
        b"1\xfems",
    ];
    let reports: &[&[u8]] = &[b"", b"yes", b"2", b"table", b"latency,yes", b"\xff"];
    let switches: &[&[u8]] = &[b"", b"yes", b"2", b"o n", b"-1", b"on\xff"];
    for (name, values, default) in [
        ("DEFERFREE", switches, "on".to_owned()),
        ("DEFERFREE_THRESHOLD", sizes, defaults.1.to_string()),
        ("DEFERFREE_DELAY", delays, format!("{}ms", defaults.2)),
        ("DEFERFREE_MAX_PENDING", sizes, "1/4 of the memory limit".to_owned()),
        ("DEFERFREE_STATS", reports, "off".to_owned()),
    ] {
        for value in values {
            let output = child("config", &[(name.as_bytes(), value)]);
            output.expect_code(0);
            assert_eq!(parse_fields(&output), defaults, "{output:?}");
            let line = one_line(&output);
            assert!(line.contains(&format!("{name}=\"{}\"", quoted(value))), "{line}");
            assert!(line.ends_with(&format!("using {default}")), "{line}");
        }
    }
    // One that is bad does not keep another one from being used, and each has its line.
    let output = child(
        "config",
        &[
            (b"DEFERFREE_DELAY", b"soon"),
            (b"DEFERFREE_THRESHOLD", b"1M"),
            (b"DEFERFREE_MAX_PENDING", b"lots"),
        ],
    );
    assert_eq!(parse_fields(&output), (true, MIB, defaults.2, defaults.3));
    assert_eq!(output.stderr.lines().count(), 2, "{output:?}");
    // However long it is, it is one line, cut.
    let output = child("config", &[(b"DEFERFREE_DELAY", &[b'9'; 5000])]);
    assert!(one_line(&output).len() < 512, "{output:?}");
}

#[track_caller]
fn one_line(output: &Output) -> &str {
    let lines: Vec<&str> = output.stderr.lines().collect();
    assert_eq!(lines.len(), 1, "{output:?}");
    assert!(output.stderr.ends_with('\n'), "{output:?}");
    assert!(lines[0].starts_with("deferfree: "), "{output:?}");
    lines[0]
}

fn unknown() {
    let defaults = defaults();
    for name in [&b"DEFERFREE_FOO"[..], b"DEFERFREE_", b"DEFERFREE_threshold", b"DEFERFREE_\xff"] {
        let output = child("config", &[(name, b"1")]);
        output.expect_code(0);
        assert_eq!(parse_fields(&output), defaults, "{output:?}");
        assert!(one_line(&output).contains(&quoted(name)), "{output:?}");
    }
    // These are somebody else's.
    for name in [&b"DEFERFREELY"[..], b"deferfree", b"deferfree_delay", b"XDEFERFREE_DELAY"] {
        let output = child("config", &[(name, b"nonsense")]);
        output.expect_clean();
        assert_eq!(parse_fields(&output), defaults, "{output:?}");
    }
}

fn off() {
    // The lowest number there is: the first free of a thread may begin a burst.
    for burst in [&b"128"[..], b"1"] {
        let output = child("off", &[(b"DEFERFREE", b"off"), (b"DEFERFREE_BURST", burst)]);
        output.expect_clean();
    }
}

fn off_child() {
    for _ in 0..100 {
        drop(touched(4 * MIB));
    }
    let small: Vec<_> = (0..1000).map(Box::new).collect();
    // A thread's first call.
    thread::scope(|scope| _ = scope.spawn(|| drop(small)));
    GLOBAL.flush();
    assert!(!GLOBAL.config().enabled);
    assert_eq!(drainers().len(), 0);
    let stats = GLOBAL.stats();
    assert!(!stats.drainer_running);
    assert_eq!((stats.handed_over.blocks, stats.purges, stats.pending.blocks), (0, 0, 0));
    // What the program itself hands over is dropped elsewhere all the same.
    let (dropped, is_dropped) = mpsc::channel();
    deferfree::later(OnDrop(dropped));
    assert_ne!(is_dropped.recv().unwrap(), thread::current().id());
}

struct OnDrop(mpsc::Sender<ThreadId>);

impl Drop for OnDrop {
    fn drop(&mut self) {
        self.0.send(thread::current().id()).unwrap();
    }
}

fn set_in_code() {
    let (_, threshold, delay, max) = (true, 128 << 10, 40, 64 << 20);
    for (env, expected) in [
        (&[][..], (true, threshold, delay, max)),
        (&[(&b"DEFERFREE_THRESHOLD"[..], &b"1M"[..])][..], (true, MIB, delay, max)),
        (&[(&b"DEFERFREE_DELAY"[..], &b"1s"[..])][..], (true, threshold, 1000, max)),
        (&[(&b"DEFERFREE_MAX_PENDING"[..], &b"0"[..])][..], (true, threshold, delay, 0)),
    ] {
        let output = child("coded", env);
        output.expect_clean();
        assert_eq!(parse_fields(&output), expected, "{env:?}");
    }
    // A malformed value leaves what the code says. Each of the two allocators says so.
    let output = child("coded", &[(b"DEFERFREE_DELAY", b"never")]);
    assert_eq!(parse_fields(&output), (true, threshold, delay, max));
    let lines: Vec<&str> = output.stderr.lines().collect();
    assert_eq!(lines.len(), 2, "{output:?}");
    assert!(lines[0].ends_with("using 250ms") && lines[1].ends_with("using 40ms"), "{output:?}");
}

fn standard_error_that_takes_nothing() {
    for spoil in SPOIL_STDERR {
        let mut command = command("config");
        command.env("DEFERFREE_DELAY", "never").env("DEFERFREE_FOO", "1");
        spoil(&mut command);
        let output = finish(command, 20);
        output.expect_code(0);
        assert_eq!(parse_fields(&output).2, 250, "{output:?}");
    }
}

fn nothing_may_wait() {
    child("nothing_may_wait", &[(b"DEFERFREE_MAX_PENDING", b"0")]).expect_clean();
}

fn nothing_may_wait_child() {
    let before = rss();
    let blocks: Vec<_> = (0..64).map(|_| touched(4 * MIB)).collect();
    assert!(rss() > before + 250 * MIB);
    drop(blocks);
    let stats = GLOBAL.stats();
    assert_eq!(stats.over_bound.blocks, 64, "{stats:?}");
    assert_eq!(stats.handed_over, stats.over_bound);
    assert_eq!((stats.pending.blocks, stats.reused.blocks, stats.peak_pending_bytes), (0, 0, 0));
    // Freed inline, but returned to the system by the drainer all the same.
    wait_until("memory is returned", || rss() < before + 50 * MIB);
    wait_until("the purge is counted", || GLOBAL.stats().purges > 0);
}
