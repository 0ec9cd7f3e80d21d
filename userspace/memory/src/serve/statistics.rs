//! How a page server gets on.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

/// Upper bounds of the latency classes are 1, 2, 3, 4, 6, 8, 12, 16, ... microseconds.
const CLASSES: usize = 48;

#[derive(Debug)]
pub(crate) struct Statistics {
    total: AtomicU64,
    done: AtomicU64,
    latencies: [AtomicU64; CLASSES],
    /// When the last fault was answered, and how long that took: nanoseconds, the one since `begun`.
    last: (AtomicU64, AtomicU64),
    begun: Instant,
}

/// How far the server has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress {
    /// Pages that are in, of all address spaces.
    pub done: u64,
    /// Pages in all.
    pub total: u64,
    /// Faults answered.
    pub faults: u64,
    /// Half of them took at most this long, from hearing of a fault to its page being there.
    pub median: Duration,
}

impl Default for Statistics {
    fn default() -> Self {
        Self {
            total: AtomicU64::new(0),
            done: AtomicU64::new(0),
            latencies: [const { AtomicU64::new(0) }; CLASSES],
            last: (AtomicU64::new(0), AtomicU64::new(0)),
            begun: Instant::now(),
        }
    }
}

/// The upper bound of a class.
fn bound(class: usize) -> Duration {
    let Some(nth) = class.checked_sub(1) else {
        return Duration::from_micros(1);
    };
    let power = 2u64 << (nth / 2);
    Duration::from_micros(power + power / 2 * (nth as u64 % 2))
}

impl Statistics {
    pub(crate) fn expect(&self, pages: u64) {
        self.total.fetch_add(pages, Relaxed);
    }

    /// Nobody wants them any more.
    pub(crate) fn forget(&self, pages: u64) {
        self.total.fetch_sub(pages, Relaxed);
    }

    pub(crate) fn done(&self, pages: u64) {
        self.done.fetch_add(pages, Relaxed);
    }

    pub(crate) fn served(&self, since: Instant) {
        let took = since.elapsed();
        let class = (0..CLASSES - 1).find(|class| took <= bound(*class));
        self.latencies[class.unwrap_or(CLASSES - 1)].fetch_add(1, Relaxed);
        let at = self.begun.elapsed();
        self.last.0.store(at.as_nanos() as u64, Relaxed);
        self.last.1.store(took.as_nanos() as u64, Relaxed);
    }

    /// How long the last fault took, and how long ago it was answered. Zero before the first.
    pub(crate) fn last(&self) -> (Duration, Duration) {
        let [at, took] =
            [&self.last.0, &self.last.1].map(|last| Duration::from_nanos(last.load(Relaxed)));
        (took, self.begun.elapsed().saturating_sub(at))
    }

    pub(crate) fn progress(&self) -> Progress {
        let counts: Vec<u64> = self
            .latencies
            .iter()
            .map(|count| count.load(Relaxed))
            .collect();
        let faults = counts.iter().sum();
        let mut below = 0;
        let median = counts.iter().position(|count| {
            below += count;
            below * 2 >= faults
        });
        let total = self.total.load(Relaxed);
        Progress {
            done: self.done.load(Relaxed).min(total),
            total,
            faults,
            median: if faults == 0 {
                Duration::ZERO
            } else {
                median.map_or(Duration::ZERO, bound)
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_within_its_class() {
        let statistics = Statistics::default();
        assert_eq!(statistics.progress().median, Duration::ZERO);
        for micros in [1, 10, 11, 12, 100_000] {
            statistics.served(
                Instant::now()
                    .checked_sub(Duration::from_micros(micros))
                    .unwrap(),
            );
        }
        let progress = statistics.progress();
        assert_eq!(progress.faults, 5);
        assert!(
            (11..=16).contains(&progress.median.as_micros()),
            "{progress:?}"
        );
    }

    #[test]
    fn bounds_ascend() {
        assert!((1..CLASSES).all(|class| bound(class - 1) < bound(class)));
    }
}
