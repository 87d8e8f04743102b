//! The numbers as a table for people.

use std::fmt::{self, Write};

use super::View;
use super::advice::Advice;
use super::out::{Setting, Size, Time};
use crate::stats::{BurstStats, FreeLatency, SizeStats, Stats, Tally};

/// More sizes than this are shown by doublings.
const ROWS: usize = 16;

/// Writes all of it; an error means that the sink takes no more.
pub(super) fn write(out: &mut impl Write, view: &View<'_>) -> fmt::Result {
    let mut stats = view.stats();
    let forked = if view.forked { ", forked off" } else { "" };
    writeln!(
        out,
        "\ndeferfree {}: process {}{forked}, at exit\n",
        env!("CARGO_PKG_VERSION"),
        view.process
    )?;
    if view.config.enabled {
        large(out, view, &mut stats)?;
        bursts(out, &stats.bursts)?;
        rest(out, view, &stats)?;
    }
    if let Some(latency) = &stats.free_latency {
        free_latency(out, latency, view.timer_ns)?;
    }
    process(out, &stats)?;
    settings(out, view)?;
    writeln!(out, "\n{}\n", Advice { config: view.config, stats: &stats })
}

/// The large blocks by size; what they come to replaces what `stats` says.
fn large(out: &mut impl Write, view: &View<'_>, stats: &mut Stats) -> fmt::Result {
    let mut n_sizes = 0;
    view.for_each_size(&mut |size| n_sizes += usize::from(size.handed_over > 0));
    if n_sizes == 0 {
        let what = if stats.not_running.blocks > 0 { "handed to the drainer" } else { "freed" };
        let threshold = Size(view.config.threshold_bytes as u64);
        return writeln!(out, "  no block of {threshold} or more was {what}");
    }
    header(out)?;
    stats.forget_sizes();
    let mut result = Ok(());
    let by_doubling = n_sizes > ROWS;
    let mut row = SizeStats::default();
    view.for_each_size(&mut |size| {
        stats.add_size(size);
        if size.handed_over == 0 {
            return;
        }
        let same = row.own_mapping == size.own_mapping
            && (row.block_bytes == size.block_bytes
                || by_doubling && doubling(&row) == doubling(size));
        if !same {
            if row.handed_over > 0 {
                result = result.and_then(|()| size_row(out, &row, by_doubling));
            }
            row = SizeStats {
                block_bytes: size.block_bytes,
                own_mapping: size.own_mapping,
                ..SizeStats::default()
            };
        }
        row.add_blocks(size);
    });
    result?;
    size_row(out, &row, by_doubling)?;
    let tallies = columns(stats);
    let blocks = tallies.map(|tally| tally.blocks);
    line(out, format_args!("all, blocks"), blocks.map(Some))?;
    write!(out, "  {:<24}", "all, bytes")?;
    for tally in tallies {
        write!(out, "{:>11}", Size(tally.bytes))?;
    }
    out.write_str("\n")
}

/// The doubling of the size that a block belongs to: sizes up to and including a power of two.
fn doubling(size: &SizeStats) -> u64 {
    size.block_bytes.max(1).next_power_of_two()
}

fn columns(stats: &Stats) -> [Tally; 7] {
    [
        stats.handed_over,
        stats.reused,
        stats.drained,
        stats.paid_back,
        stats.over_bound,
        stats.queue_full,
        stats.pending,
    ]
}

fn header(out: &mut impl Write) -> fmt::Result {
    for [first, rest @ ..] in [
        [
            "large blocks",
            "freed",
            "taken",
            "freed by",
            "made way",
            "at once:",
            "at once:",
            "waiting",
        ],
        ["of up to", "", "back", "drainer", "for others", "bound", "no room", "now"],
    ] {
        write!(out, "  {first:<24}")?;
        for word in rest {
            write!(out, "{word:>11}")?;
        }
        out.write_str("\n")?;
    }
    Ok(())
}

fn size_row(out: &mut impl Write, row: &SizeStats, by_doubling: bool) -> fmt::Result {
    let bytes = if by_doubling { doubling(row) } else { row.block_bytes };
    let own = if row.own_mapping { ", unmapped" } else { "" };
    let numbers = [
        row.handed_over,
        row.reused,
        row.drained,
        row.paid_back,
        row.over_bound,
        row.queue_full,
        row.pending,
    ];
    line(out, format_args!("{:>11}{own}", Size(bytes)), numbers.map(|n| Some(n).filter(|&n| n > 0)))
}

/// A line of numbers; a dot for those that are of no interest.
fn line(out: &mut impl Write, name: fmt::Arguments<'_>, numbers: [Option<u64>; 7]) -> fmt::Result {
    let mut counted = Counted { out, n: 0 };
    write!(counted, "  {name}")?;
    let width = 26usize.saturating_sub(counted.n);
    write!(out, "{:width$}", "")?;
    for number in numbers {
        match number {
            Some(number) => write!(out, "{number:>11}")?,
            None => write!(out, "{:>11}", ".")?,
        }
    }
    out.write_str("\n")
}

/// Counts what is written through it.
struct Counted<'a, W> {
    out: &'a mut W,
    n: usize,
}

impl<W: Write> Write for Counted<'_, W> {
    fn write_str(&mut self, s: &str) -> fmt::Result {
        self.n += s.len();
        self.out.write_str(s)
    }
}

fn bursts(out: &mut impl Write, bursts: &BurstStats) -> fmt::Result {
    let inline = bursts.no_chunk_blocks + bursts.over_bound_blocks + bursts.out_of_reach_blocks;
    let judged = bursts.hot_bursts + bursts.skipped_bursts;
    if bursts.deferred.blocks == 0 && inline == 0 && judged == 0 {
        return out.write_str("\n  no burst of small frees was seen\n");
    }
    writeln!(out, "\n  {:<24}{:>11}", "bursts of small frees", "bursts")?;
    for (name, bursts) in [
        ("deferred", bursts.deferred_bursts),
        ("  in vain", bursts.wasted_bursts),
        ("freed at once: hot", bursts.hot_bursts),
        ("  not judged", bursts.skipped_bursts),
    ] {
        writeln!(out, "  {name:<24}{bursts:>11}")?;
    }
    writeln!(out, "\n  {:<24}{:>11}{:>11}", "small blocks in bursts", "blocks", "bytes")?;
    for (name, Tally { blocks, bytes }) in [
        ("deferred", bursts.deferred),
        ("  freed by drainer", bursts.drained),
        ("  freed by their thread", bursts.paid_back),
        ("  waiting", bursts.pending),
    ] {
        writeln!(out, "  {name:<24}{blocks:>11}{:>11}", Size(bytes))?;
    }
    writeln!(out, "  {:<24}{inline:>11}", "freed at once")?;
    for (why, blocks) in [
        ("  bound", bursts.over_bound_blocks),
        ("  no room", bursts.no_chunk_blocks),
        ("  address too far away", bursts.out_of_reach_blocks),
    ] {
        if blocks > 0 {
            writeln!(out, "  {why:<24}{blocks:>11}")?;
        }
    }
    Ok(())
}

/// What does not go by blocks.
fn rest(out: &mut impl Write, view: &View<'_>, stats: &Stats) -> fmt::Result {
    out.write_str("\n")?;
    let Tally { blocks, bytes } = stats.not_running;
    if blocks > 0 {
        let why = if stats.start_failed {
            "the drainer could not be started"
        } else {
            "from before the drainer ran"
        };
        writeln!(out, "  {:<24}{blocks} large blocks, {}: {why}", "freed at once", Size(bytes))?;
    }
    let lost = stats.lost_in_fork_bytes;
    if lost > 0 {
        writeln!(out, "  {:<24}{} waited in the parent", "lost in the fork", Size(lost))?;
    }
    writeln!(out, "  {:<24}{}", "waited at most", Size(stats.peak_pending_bytes))?;
    let Stats { purges, returned_bytes, release_calls, released_bytes, .. } = *stats;
    write!(out, "  {:<24}", "returned to the system")?;
    if stats.resident_bytes.is_some() {
        write!(out, "{}; ", Size(returned_bytes))?;
    }
    write!(out, "{purges} purge{}", plural(purges))?;
    if release_calls > 0 {
        write!(
            out,
            "; of blocks that are unmapped {} in {release_calls} call{}",
            Size(released_bytes),
            plural(release_calls)
        )?;
    }
    out.write_str("\n")?;
    if stats.drainer_running {
        write!(out, "  {:<24}{}", "drainer's CPU time", Time(stats.drainer_cpu_ns))?;
        if let Some(ns) = view.process_cpu_ns {
            write!(out, " of the process's {}", Time(ns))?;
        }
        out.write_str("\n")?;
    } else {
        writeln!(out, "  {:<24}not started", "drainer")?;
    }
    Ok(())
}

/// What the system says of the process, also where nothing is deferred: to compare.
fn process(out: &mut impl Write, stats: &Stats) -> fmt::Result {
    if let (Some(resident), Some(mapped)) = (stats.resident_bytes, stats.mapped_bytes) {
        let (resident, mapped) = (Size(resident), Size(mapped));
        writeln!(out, "  {:<24}{resident} resident, {mapped} mapped", "the process's memory")?;
    }
    if let Some(faults) = stats.page_faults {
        write!(out, "  {:<24}{faults}", "its page faults")?;
        if let Some(major) = stats.major_page_faults {
            write!(out, ", {major} of them major")?;
        }
        out.write_str("\n")?;
    }
    Ok(())
}

fn plural(n: u64) -> &'static str {
    if n == 1 { "" } else { "s" }
}

fn free_latency(out: &mut impl Write, latency: &FreeLatency, timer_ns: u64) -> fmt::Result {
    let n = latency.samples;
    write!(out, "  {:<24}{n} free{}", "a large free cost", plural(n))?;
    for (name, quantile) in [
        ("p50", latency.p50_ns),
        ("p90", latency.p90_ns),
        ("p99", latency.p99_ns),
        ("p99.9", latency.p999_ns),
    ] {
        if let Some(ns) = quantile {
            write!(out, ", {name} {}", Time(ns))?;
        }
    }
    if n > 0 {
        write!(out, ", max {}", Time(latency.max_ns))?;
    }
    writeln!(out, " (a pair of clock readings: {})", Time(timer_ns))
}

fn settings(out: &mut impl Write, view: &View<'_>) -> fmt::Result {
    let config = view.config;
    if !config.enabled {
        return writeln!(out, "  {:<24}DEFERFREE=off", "settings");
    }
    let threshold = Setting(config.threshold_bytes as u64);
    write!(out, "  {:<24}THRESHOLD={threshold} ", "settings, DEFERFREE_")?;
    match config.burst {
        Some(n_frees) => write!(out, "BURST={n_frees} ")?,
        None => out.write_str("BURST=off ")?,
    }
    let max = Setting(config.max_pending_bytes as u64);
    writeln!(out, "DELAY={}ms MAX_PENDING={max}", config.delay_ms)
}
