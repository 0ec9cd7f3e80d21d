//! Where the time of a job's last checkpoint and restore went: kept beside its checkpoints, for `ckptd show --timing`.

use crate::report::Phase;
use engine::Progress;
use images::Job;
use serde::{Deserialize, Serialize};
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// What took the time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Operation {
    /// Until the checkpoint was on disk.
    Checkpoint,
    /// Until the job ran.
    Restore,
    /// Of a lazy restore, while the job ran: until all of its memory was in.
    Serve,
}

/// How an operation went.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Timing {
    pub operation: Operation,
    /// The checkpoint's number.
    pub sequence: u64,
    /// Nanoseconds since the epoch.
    pub began_at: u64,
    pub total_seconds: f64,
    /// How long the job stood still, where it ran before.
    pub stopped_seconds: Option<f64>,
    /// In order; they fill the total.
    pub phases: Vec<Phase>,
}

impl Operation {
    /// A file of the job's directory that no reader of images looks at.
    fn path(self, job: &Job) -> PathBuf {
        job.path().join(match self {
            Self::Checkpoint => "last-checkpoint.json",
            Self::Restore => "last-restore.json",
            Self::Serve => "last-serve.json",
        })
    }
}

impl Timing {
    /// Keeps it as the job's last one. It is for people: where it cannot be written, nothing else fails.
    pub(crate) fn keep(&self, job: &Job) {
        let written = serde_json::to_vec_pretty(self).map_err(std::io::Error::from);
        let path = self.operation.path(job);
        let kept = written.and_then(|text| crate::registry::write_atomically(&path, &text));
        if let Err(error) = kept {
            tracing::debug!("cannot write {}: {error}", path.display());
        }
    }

    /// The job's last one, if there is one that can be read.
    pub(crate) fn last(job: &Job, operation: Operation) -> Option<Self> {
        let text = std::fs::read(operation.path(job)).ok()?;
        serde_json::from_slice(&text).ok()
    }
}

/// Takes the time of each phase, and passes on what it hears.
pub(crate) struct Stopwatch<'a> {
    progress: &'a dyn Progress,
    began_at: u64,
    begun: Instant,
    /// Each phase that has begun, and when.
    phases: Mutex<Vec<(&'static str, Instant)>>,
}

impl<'a> Stopwatch<'a> {
    /// It runs since `begun`; `first` is what is done first.
    pub(crate) fn start(begun: Instant, first: &'static str, progress: &'a dyn Progress) -> Self {
        let began_at = SystemTime::now() - begun.elapsed();
        let since = began_at.duration_since(UNIX_EPOCH);
        Self {
            progress,
            began_at: since.map_or(0, |since| since.as_nanos() as u64),
            begun,
            phases: Mutex::new(vec![(first, begun)]),
        }
    }

    /// Something else is done from now on.
    pub(crate) fn lap(&self, name: &'static str) {
        let mut phases = self.phases.lock().unwrap_or_else(PoisonError::into_inner);
        phases.push((name, Instant::now()));
    }

    /// The operation ends now.
    pub(crate) fn stop(&self, operation: Operation, sequence: u64, stopped: Option<f64>) -> Timing {
        let end = Instant::now();
        let phases = self.phases.lock().unwrap_or_else(PoisonError::into_inner);
        let ends = phases.iter().skip(1).map(|(_, begun)| *begun).chain([end]);
        let phase = |((name, begun), end): (&(&'static str, Instant), Instant)| Phase {
            name: (*name).to_owned(),
            seconds: end.duration_since(*begun).as_secs_f64(),
        };
        Timing {
            operation,
            sequence,
            began_at: self.began_at,
            total_seconds: end.duration_since(self.begun).as_secs_f64(),
            stopped_seconds: stopped,
            phases: phases.iter().zip(ends).map(phase).collect(),
        }
    }
}

impl Progress for Stopwatch<'_> {
    fn phase(&self, name: &'static str) {
        self.lap(name);
        self.progress.phase(name);
    }

    fn bytes(&self, done: u64, total: u64) {
        self.progress.bytes(done, total);
    }
}

impl Timing {
    /// Its time as a [`Duration`].
    pub(crate) fn total(&self) -> Duration {
        Duration::try_from_secs_f64(self.total_seconds).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use images::Store;

    #[test]
    fn phases_fill_the_total_and_come_back() {
        let watch = Stopwatch::start(Instant::now(), "first", &engine::Silent);
        std::thread::sleep(Duration::from_millis(2));
        watch.phase("second");
        let timing = watch.stop(Operation::Restore, 3, None);
        let sum: f64 = timing.phases.iter().map(|phase| phase.seconds).sum();
        assert!((sum - timing.total_seconds).abs() < 1e-9);
        assert!(timing.phases[0].seconds >= 0.002);
        assert_eq!(timing.phases[1].name, "second");

        let dir = tempfile::tempdir().unwrap();
        let job = Store::create(dir.path()).unwrap().create_job("j").unwrap();
        assert_eq!(Timing::last(&job, Operation::Restore), None);
        timing.keep(&job);
        assert_eq!(Timing::last(&job, Operation::Restore), Some(timing));
        assert_eq!(Timing::last(&job, Operation::Checkpoint), None);
    }
}
