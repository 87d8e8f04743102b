//! A histogram of durations that any thread may add to: no lock, no allocation.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::stats::FreeLatency;

/// Buckets per doubling: a value is told to 1/8.
const STEPS_LOG2: u32 = 3;
const STEPS: u64 = 1 << STEPS_LOG2;
/// What takes longer, some 18 minutes, counts as this long.
const MAX_LOG2: u32 = 40;
const MAX_NS: u64 = (1 << MAX_LOG2) - 1;
const BUCKETS: usize = bucket_of(MAX_NS) + 1;

/// What each large free took, where that is measured.
pub(crate) static FREES: Histogram = Histogram::new();

#[derive(Debug)]
pub(crate) struct Histogram {
    buckets: [AtomicU64; BUCKETS],
    max_ns: AtomicU64,
}

/// Values below `STEPS` have a bucket each.
const fn bucket_of(ns: u64) -> usize {
    let ns = if ns > MAX_NS { MAX_NS } else { ns };
    if ns < STEPS {
        return ns as usize;
    }
    let shift = ns.ilog2() - STEPS_LOG2;
    (shift as u64 * STEPS + (ns >> shift)) as usize
}

/// The largest value of a bucket.
fn top_of(bucket: usize) -> u64 {
    let bucket = bucket as u64;
    if bucket < STEPS {
        return bucket;
    }
    let shift = bucket / STEPS - 1;
    ((bucket % STEPS + STEPS + 1) << shift) - 1
}

impl Histogram {
    const fn new() -> Histogram {
        Histogram { buckets: [const { AtomicU64::new(0) }; BUCKETS], max_ns: AtomicU64::new(0) }
    }

    pub(crate) fn record(&self, duration: Duration) {
        let ns = u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX);
        self.buckets[bucket_of(ns)].fetch_add(1, Ordering::Relaxed);
        self.max_ns.fetch_max(ns, Ordering::Relaxed);
    }

    pub(crate) fn reset(&self) {
        for count in self.buckets.iter().chain([&self.max_ns]) {
            count.store(0, Ordering::Relaxed);
        }
    }

    pub(crate) fn summary(&self) -> FreeLatency {
        let count = |bucket: &AtomicU64| bucket.load(Ordering::Relaxed);
        let samples: u64 = self.buckets.iter().map(count).sum();
        let max_ns = self.max_ns.load(Ordering::Relaxed);
        let quantile = |per_mille: u64| {
            let rank = (samples * per_mille).div_ceil(1000);
            if samples < rank + 2 {
                return None;
            }
            let mut seen = 0;
            let bucket = self.buckets.iter().position(|bucket| {
                seen += count(bucket);
                seen >= rank
            });
            bucket.map(|bucket| top_of(bucket).min(max_ns))
        };
        FreeLatency {
            samples,
            p50_ns: quantile(500),
            p90_ns: quantile(900),
            p99_ns: quantile(990),
            p999_ns: quantile(999),
            max_ns,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{BUCKETS, Histogram, MAX_NS, bucket_of, top_of};
    use std::time::Duration;

    #[test]
    fn buckets_follow_each_other_and_are_narrow() {
        for bucket in 0..BUCKETS {
            let top = top_of(bucket);
            assert_eq!(bucket_of(top), bucket);
            if bucket + 1 < BUCKETS {
                assert_eq!(bucket_of(top + 1), bucket + 1);
                assert!(top_of(bucket + 1) - top <= (top + 1) / 8 + 1, "{top}");
            }
        }
        assert_eq!(top_of(BUCKETS - 1), MAX_NS);
        assert_eq!(bucket_of(u64::MAX), BUCKETS - 1);
    }

    #[test]
    fn percentiles_are_those_of_the_samples() {
        let histogram = Histogram::new();
        for ns in 1..=10_000 {
            histogram.record(Duration::from_nanos(ns));
        }
        let summary = histogram.summary();
        assert_eq!((summary.samples, summary.max_ns), (10_000, 10_000));
        for (quantile, exact) in [
            (summary.p50_ns, 5_000),
            (summary.p90_ns, 9_000),
            (summary.p99_ns, 9_900),
            (summary.p999_ns, 9_990),
        ] {
            let quantile = quantile.unwrap();
            assert!(quantile >= exact && quantile <= exact + exact / 8, "{quantile} {exact}");
        }
    }

    #[test]
    fn a_percentile_needs_two_samples_above_it() {
        let histogram = Histogram::new();
        assert_eq!(histogram.summary().p50_ns, None);
        for n in 1..=2000 {
            histogram.record(Duration::from_millis(n));
            let summary = histogram.summary();
            assert_eq!(summary.p50_ns.is_some(), n >= 4, "{n}");
            assert_eq!(summary.p99_ns.is_some(), n >= 200, "{n}");
            assert_eq!(summary.p999_ns.is_some(), n >= 2000, "{n}");
        }
        histogram.reset();
        assert_eq!(histogram.summary().samples, 0);
        assert_eq!(histogram.summary().max_ns, 0);
    }
}
