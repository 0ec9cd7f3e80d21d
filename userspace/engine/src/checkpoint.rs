//! The whole of a checkpoint: what happens while the job runs, what while it stands still, and in what order.

use std::time::{Duration, Instant};

use images::proto;

use crate::capture::{Captured, capture};
use crate::freeze::Frozen;
use crate::pages::{self, Held, Source};
use crate::track::{Settled, Tracking};
use crate::{CheckpointError, CheckpointOptions, CheckpointReport};

/// Most bytes that are held in memory for the time of the freeze. More go to the image at once.
const MAX_HELD: u64 = 96 << 20;

/// Takes a checkpoint. The job runs on, also when this fails or we die.
///
/// With `tracking`, of this job's earlier checkpoints, memory is copied while the job runs, and only what was written since the last
/// one. Without, all of it, while the job stands still.
///
/// # Errors
/// [`CheckpointError::Refused`] lists everything that could not be restored; nothing of the checkpoint stays in the store.
pub fn checkpoint(
    options: &CheckpointOptions<'_>,
    mut tracking: Option<&mut Tracking>,
) -> Result<CheckpointReport, CheckpointError> {
    let begin = Instant::now();
    let mut clock = Clock::new(options.progress);
    let mut live = None;
    if let Some(tracking) = tracking.as_deref_mut() {
        clock.phase("watch");
        tracking.begin(options.scope, options.job);
        let base = tracking.base(options.job);
        let mut writer = options.job.begin(options.compression, base)?;
        clock.phase("copy");
        tracking.copy(&mut writer, options.progress)?;
        writer.next_round();
        live = Some(writer);
    }

    clock.phase("freeze");
    let mut frozen = Frozen::freeze(options.scope)?;
    clock.phase("state");
    let numbers = tracking
        .as_deref_mut()
        .map_or_else(Default::default, |tracking| {
            tracking.drop_replaced();
            tracking.numbers()
        });
    let Captured {
        snapshot,
        sources,
        numbers,
    } = capture(&mut frozen, options, numbers)?;
    let processes = snapshot.processes.len();
    let threads = snapshot
        .processes
        .iter()
        .map(|process| process.threads.len());
    let threads = threads.sum();
    clock.phase("pages");
    let writer = match live {
        Some(writer) => writer,
        None => options.job.begin(options.compression, None)?,
    };
    let remainder = Remainder::read(&writer, &sources, tracking.as_deref_mut(), options)?;
    let mut stopped = frozen.since.elapsed();
    if !options.kill {
        clock.phase("release");
        frozen.release(false);
        stopped = frozen.since.elapsed();
    }

    clock.phase("commit");
    let settled = remainder.put(&writer)?;
    let statistics = proto::Statistics {
        phases: clock.records(),
        stopped_ns: stopped.as_nanos() as u64,
        total_ns: begin.elapsed().as_nanos() as u64,
        ..Default::default()
    };
    let committed = writer.commit(snapshot, statistics)?;
    if options.kill {
        frozen.release(true);
        stopped = frozen.since.elapsed();
    }
    if let Some(tracking) = tracking {
        let base = options.job.checkpoint(Some(committed.sequence))?;
        tracking.committed(base, settled, &numbers);
    }
    clock.finish();
    Ok(CheckpointReport {
        sequence: committed.sequence,
        processes,
        threads,
        pages: committed.pages,
        bytes: committed.bytes,
        stopped,
        total: begin.elapsed(),
        phases: clock.phases,
    })
}

/// What the job's memory still lacked in the image when it stood still.
#[derive(Default)]
struct Remainder {
    tracked: Vec<Source>,
    held: Vec<Held>,
    settled: Vec<Settled>,
}

impl Remainder {
    fn read(
        writer: &images::Writer,
        sources: &[Source],
        tracking: Option<&mut Tracking>,
        options: &CheckpointOptions<'_>,
    ) -> Result<Self, CheckpointError> {
        let threads = pages::threads();
        let Some(tracking) = tracking else {
            pages::dump(writer, sources, threads, options.progress)?;
            return Ok(Self::default());
        };
        let tracked = tracking.remaining(sources)?;
        let bytes: u64 = tracked.iter().map(Source::estimate).sum();
        let (copied, held) = if bytes <= MAX_HELD {
            pages::hold(&tracked, threads)?
        } else {
            let copied = pages::dump(writer, &tracked, threads, options.progress)?;
            (copied, Vec::new())
        };
        let (whole, known): (Vec<_>, Vec<_>) =
            sources.iter().partition(|source| !tracking.tracks(source));
        let settled = known
            .into_iter()
            .zip(copied)
            .map(|(source, copied)| tracking.settle(source, copied.pages))
            .collect::<Result<_, _>>()?;
        pages::dump(writer, &whole, threads, options.progress)?;
        Ok(Self {
            tracked,
            held,
            settled,
        })
    }

    /// Completes the image, beside the running job.
    fn put(self, writer: &images::Writer) -> Result<Vec<Settled>, CheckpointError> {
        pages::put(writer, &self.tracked, self.held)?;
        for settled in &self.settled {
            writer.forget(settled.space, &settled.forgotten);
            writer.keep(settled.space, settled.kept.clone())?;
        }
        Ok(self.settled)
    }
}

/// Measures phases and tells of them.
struct Clock<'a> {
    phases: Vec<(&'static str, Duration)>,
    since: Instant,
    progress: &'a dyn crate::Progress,
}

impl<'a> Clock<'a> {
    fn new(progress: &'a dyn crate::Progress) -> Self {
        Self {
            phases: Vec::new(),
            since: Instant::now(),
            progress,
        }
    }

    fn phase(&mut self, name: &'static str) {
        self.finish();
        self.phases.push((name, Duration::ZERO));
        self.progress.phase(name);
    }

    fn finish(&mut self) {
        if let Some((_, time)) = self.phases.last_mut() {
            *time = self.since.elapsed();
        }
        self.since = Instant::now();
    }

    fn records(&self) -> Vec<proto::Phase> {
        let record = |(name, time): &(&'static str, Duration)| proto::Phase {
            name: (*name).to_owned(),
            nanoseconds: time.as_nanos() as u64,
        };
        self.phases.iter().map(record).collect()
    }
}
