//! The numbers as JSON: the fields of [`Stats`] under their own names.

use std::fmt::{self, Write};

use super::View;
use super::advice::Advice;
use crate::stats::{SizeStats, Stats, Tally};

/// Writes all of it; an error means that the sink takes no more.
pub(super) fn write(out: &mut impl Write, view: &View<'_>) -> fmt::Result {
    let mut stats = view.stats();
    let config = view.config;
    write!(
        out,
        "{{\n\"version\": \"{}\",\n\"process\": {},\n\"forked\": {},\n",
        env!("CARGO_PKG_VERSION"),
        view.process,
        view.forked
    )?;
    writeln!(
        out,
        "\"config\": {{\"enabled\": {}, \"threshold_bytes\": {}, \"burst\": {}, \"delay_ms\": {}, \
         \"max_pending_bytes\": {}}},",
        config.enabled,
        config.threshold_bytes,
        OrNull(config.burst.map(u64::from)),
        config.delay_ms,
        config.max_pending_bytes
    )?;
    out.write_str("\"sizes\": [")?;
    stats.forget_sizes();
    let mut result = Ok(());
    let mut first = true;
    view.for_each_size(&mut |size| {
        stats.add_size(size);
        let comma = if std::mem::take(&mut first) { "\n" } else { ",\n" };
        result = result.and_then(|()| write_size(out, comma, size));
    });
    result?;
    out.write_str("],\n")?;
    write_stats(out, &stats)?;
    writeln!(
        out,
        "\"process_cpu_ns\": {},\n\"advice\": \"{}\"\n}}",
        OrNull(view.process_cpu_ns),
        Advice { config, stats: &stats }
    )
}

fn write_size(out: &mut impl Write, comma: &str, size: &SizeStats) -> fmt::Result {
    write!(
        out,
        "{comma}{{\"block_bytes\": {}, \"own_mapping\": {}, \"handed_over\": {}, \"reused\": {}, \
         \"drained\": {}, \"paid_back\": {}, \"over_bound\": {}, \"queue_full\": {}, \
         \"pending\": {}, \"missed\": {}}}",
        size.block_bytes,
        size.own_mapping,
        size.handed_over,
        size.reused,
        size.drained,
        size.paid_back,
        size.over_bound,
        size.queue_full,
        size.pending,
        size.missed
    )
}

fn write_stats(out: &mut impl Write, stats: &Stats) -> fmt::Result {
    for (name, tally) in [
        ("handed_over", stats.handed_over),
        ("reused", stats.reused),
        ("drained", stats.drained),
        ("paid_back", stats.paid_back),
        ("over_bound", stats.over_bound),
        ("queue_full", stats.queue_full),
        ("pending", stats.pending),
        ("missed", stats.missed),
        ("not_running", stats.not_running),
    ] {
        writeln!(out, "\"{name}\": {},", Pair(tally))?;
    }
    let bursts = &stats.bursts;
    out.write_str("\"bursts\": {")?;
    for (name, tally) in [
        ("deferred", bursts.deferred),
        ("drained", bursts.drained),
        ("paid_back", bursts.paid_back),
        ("pending", bursts.pending),
    ] {
        write!(out, "\"{name}\": {}, ", Pair(tally))?;
    }
    writeln!(
        out,
        "\"no_chunk_blocks\": {}, \"over_bound_blocks\": {}, \"out_of_reach_blocks\": {}, \
         \"deferred_bursts\": {}, \"hot_bursts\": {}, \"wasted_bursts\": {}, \
         \"skipped_bursts\": {}}},",
        bursts.no_chunk_blocks,
        bursts.over_bound_blocks,
        bursts.out_of_reach_blocks,
        bursts.deferred_bursts,
        bursts.hot_bursts,
        bursts.wasted_bursts,
        bursts.skipped_bursts
    )?;
    for (name, number) in [
        ("peak_pending_bytes", stats.peak_pending_bytes),
        ("lost_in_fork_bytes", stats.lost_in_fork_bytes),
        ("purges", stats.purges),
        ("returned_bytes", stats.returned_bytes),
        ("released_bytes", stats.released_bytes),
        ("release_calls", stats.release_calls),
        ("drainer_cpu_ns", stats.drainer_cpu_ns),
    ] {
        writeln!(out, "\"{name}\": {number},")?;
    }
    writeln!(out, "\"drainer_running\": {},", stats.drainer_running)?;
    writeln!(out, "\"start_failed\": {},", stats.start_failed)?;
    for (name, number) in [
        ("resident_bytes", stats.resident_bytes),
        ("mapped_bytes", stats.mapped_bytes),
        ("page_faults", stats.page_faults),
        ("major_page_faults", stats.major_page_faults),
    ] {
        writeln!(out, "\"{name}\": {},", OrNull(number))?;
    }
    match &stats.free_latency {
        None => out.write_str("\"free_latency\": null,\n"),
        Some(latency) => writeln!(
            out,
            "\"free_latency\": {{\"samples\": {}, \"p50_ns\": {}, \"p90_ns\": {}, \"p99_ns\": {}, \
             \"p999_ns\": {}, \"max_ns\": {}}},",
            latency.samples,
            OrNull(latency.p50_ns),
            OrNull(latency.p90_ns),
            OrNull(latency.p99_ns),
            OrNull(latency.p999_ns),
            latency.max_ns
        ),
    }
}

struct Pair(Tally);

impl fmt::Display for Pair {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{{\"blocks\": {}, \"bytes\": {}}}", self.0.blocks, self.0.bytes)
    }
}

struct OrNull(Option<u64>);

impl fmt::Display for OrNull {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(number) => write!(f, "{number}"),
            None => f.write_str("null"),
        }
    }
}
