//! What the figures were measured on.

use super::memory::proc_field_bytes;
use super::{GIB, MIB};

pub(crate) fn available_bytes() -> u64 {
    proc_field_bytes("/proc/meminfo", "MemAvailable:").unwrap_or(u64::MAX)
}

/// What figures depend on, each with its name.
pub(crate) fn facts() -> Vec<(&'static str, String)> {
    let read =
        |path: &str| std::fs::read_to_string(path).map_or("?".into(), |s| s.trim().to_owned());
    let thp = read("/sys/kernel/mm/transparent_hugepage/enabled");
    let thp = thp.split_once('[').and_then(|(_, rest)| rest.split_once(']'));
    let n_cores = std::thread::available_parallelism().map_or(0, |n| n.get());
    let memory = proc_field_bytes("/proc/meminfo", "MemTotal:").unwrap_or(0) as f64 / GIB as f64;
    let cpu = read("/proc/cpuinfo");
    let cpu = cpu.lines().find_map(|line| line.strip_prefix("model name")).unwrap_or("?");
    vec![
        ("CPU", format!("{n_cores} cores ({})", cpu.trim_start_matches([' ', '\t', ':']))),
        ("memory", format!("{memory:.0} GiB")),
        ("kernel", format!("Linux {}", read("/proc/sys/kernel/osrelease"))),
        ("huge pages", thp.map_or("?", |(mode, _)| mode).to_owned()),
        ("deferfree", env!("CARGO_PKG_VERSION").to_owned()),
    ]
}

pub(crate) fn describe() -> String {
    let facts: Vec<_> = facts().iter().map(|(name, fact)| format!("{name}: {fact}")).collect();
    format!("{}; {} MiB available", facts.join("; "), available_bytes() / MIB as u64)
}
