//! What a checkpoint did, as it crosses the control socket and as it is shown.

use crate::output::{count, duration, size};
use serde::{Deserialize, Serialize};
use std::path::PathBuf;
use std::time::Duration;

/// A checkpoint that has been taken.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Report {
    /// The job.
    pub job: String,
    /// The store, absolute.
    pub dir: PathBuf,
    /// The checkpoint's number within the job.
    pub sequence: u64,
    /// Processes in it.
    pub processes: usize,
    /// Their threads.
    pub threads: usize,
    /// Pages of memory with content.
    pub pages: u64,
    /// Bytes written to the store.
    pub bytes: u64,
    /// How long the job stood still, in seconds.
    pub stopped_seconds: f64,
    /// The whole operation, in seconds.
    pub total_seconds: f64,
    /// Each phase, in order.
    pub phases: Vec<Phase>,
    /// The job was killed once it was on disk.
    pub killed: bool,
}

/// One phase of an operation.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Phase {
    /// Its name.
    pub name: String,
    /// How long it took, in seconds.
    pub seconds: f64,
}

impl Report {
    /// What the engine reports, with the place where the checkpoint is.
    pub(crate) fn new(
        report: engine::CheckpointReport,
        job: &str,
        dir: PathBuf,
        killed: bool,
    ) -> Self {
        let phase = |(name, time): (&'static str, Duration)| Phase {
            name: name.into(),
            seconds: time.as_secs_f64(),
        };
        Self {
            job: job.into(),
            dir,
            sequence: report.sequence,
            processes: report.processes,
            threads: report.threads,
            pages: report.pages,
            bytes: report.bytes,
            stopped_seconds: report.stopped.as_secs_f64(),
            total_seconds: report.total.as_secs_f64(),
            phases: report.phases.into_iter().map(phase).collect(),
            killed,
        }
    }

    /// One line for people.
    pub(crate) fn summary(&self) -> String {
        format!(
            "{}: checkpoint {}: {}, {}, {} of memory in {}; stopped for {} of {}",
            self.job,
            self.sequence,
            count(self.processes as u64, "process", "processes"),
            count(self.threads as u64, "thread", "threads"),
            size(self.pages.saturating_mul(images::PAGE_SIZE as u64)),
            size(self.bytes),
            duration(Duration::try_from_secs_f64(self.stopped_seconds).unwrap_or_default()),
            duration(Duration::try_from_secs_f64(self.total_seconds).unwrap_or_default()),
        )
    }
}
