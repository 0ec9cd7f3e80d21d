//! The whole of a checkpoint: what happens while the job runs, what while it stands still, and in what order.

use std::time::{Duration, Instant};

use images::{PageSet, Writer, proto};

use crate::ahead::Ahead;
use crate::capture::{Captured, capture};
use crate::cow::Copy;
use crate::freeze::Frozen;
use crate::members::Members;
use crate::pages::{self, Copied, Held, Pool, Source};
use crate::procfs::{self, Status};
use crate::track::{Settled, Tracking};
use crate::{
    CheckpointError, CheckpointOptions, CheckpointReport, Refusal, Scope, areas, fault, host,
};

/// Most bytes that are held in memory for the time of the freeze.
const MAX_HELD: u64 = 96 << 20;

/// As much of a job whose memory is not watched is held while it stands still; more is written at once.
const SMALL: u64 = 32 << 20;

/// Bytes that are often left to be held when memory was copied while the job ran.
const EXPECTED: u64 = 8 << 20;

/// Bytes that two threads copy in a millisecond, about; the rest of the freeze takes its time too.
const COPIED_PER_MS: u64 = 1 << 20;

/// How often a checkpoint is begun anew because a process ended under it.
const MOST_RACES: u32 = 40;
/// How long the job runs on before that, the first time; later up to ten times as long.
const RACE_PAUSE: Duration = Duration::from_millis(3);

/// How long the job runs on before it is looked at again, where something was on its way that cannot be restored.
const PAUSES_MS: [u64; 6] = [10, 20, 50, 100, 200, 400];

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
    let (Scope::Tree { root } | Scope::Supervised { root, .. }) = options.scope;
    let (mut races, mut pauses) = (0, PAUSES_MS.iter());
    loop {
        match attempt(options, tracking.as_deref_mut()) {
            Err(error) if error.is_race() && races < MOST_RACES && !has_ended(root) => {
                tracing::debug!("once more: {error}");
                races += 1;
                // What was held back from it ends the next one now.
                std::thread::sleep(RACE_PAUSE * races.min(10));
            }
            Err(CheckpointError::Refused(refusals)) if refusals.iter().any(Refusal::is_passing) => {
                let Some(pause) = pauses.next() else {
                    return Err(CheckpointError::Refused(refusals));
                };
                std::thread::sleep(Duration::from_millis(*pause));
            }
            answer => return answer,
        }
    }
}

fn has_ended(pid: u32) -> bool {
    Status::read(pid).map_or(true, |status| status.state() == 'Z')
}

fn attempt(
    options: &CheckpointOptions<'_>,
    mut tracking: Option<&mut Tracking>,
) -> Result<CheckpointReport, CheckpointError> {
    let mut clock = Clock::new(options);
    let live = tracking.is_some();
    // Begun while nobody waits for the storage. What is not committed leaves nothing.
    let mut writer = if let Some(tracking) = tracking.as_deref_mut() {
        clock.phase("watch");
        tracking.begin(options.scope, options.job);
        fault::at("watched")?;
        let base = tracking.base(options.job);
        let mut writer = options.job.begin(options.compression, base)?;
        clock.phase("copy");
        tracking.copy(options.scope, &mut writer, options.progress)?;
        writer.next_round();
        writer
    } else {
        options.job.begin(options.compression, None)?
    };

    clock.phase("ahead");
    let (ahead, pool) = look_ahead(options, live);
    clock.phase("freeze");
    // Dropped when the job is released: the copies in it end with the help of their parents.
    let mut remainder = Remainder::default();
    let mut frozen = Frozen::freeze(options.scope, options.tracker)?;
    if let Some(tracking) = tracking.as_deref_mut()
        && !tracking.find_missing()?
    {
        frozen.release(false);
        clock.phase("memory");
        tracking.await_memory();
        clock.phase("freeze");
        frozen = Frozen::freeze(options.scope, options.tracker)?;
        tracking.find_missing()?;
    }
    fault::at("frozen")?;
    clock.phase("state");
    let numbers = tracking
        .as_deref_mut()
        .map_or_else(Default::default, |tracking| {
            tracking.drop_replaced(&frozen);
            tracking.numbers()
        });
    let mut captured = capture(&mut frozen, options, numbers, ahead)?;
    fault::at("captured")?;
    let processes = &captured.snapshot.processes;
    let threads = processes.iter().map(|process| process.threads.len()).sum();
    let processes = processes.len();
    remainder.read(
        &writer,
        &mut frozen,
        &mut captured,
        tracking.as_deref_mut(),
        options,
        &pool,
        &mut clock,
    )?;
    fault::at("held")?;
    let mut stopped = frozen.since.elapsed();
    if !options.kill {
        clock.phase("release");
        frozen.release(false);
        stopped = frozen.since.elapsed();
        fault::at("released")?;
    }

    clock.phase("commit");
    let Captured {
        snapshot,
        numbers,
        held_off,
        ..
    } = captured;
    let settled = remainder.put(&mut writer, options)?;
    fault::at("written")?;
    let statistics = proto::Statistics {
        phases: clock.records(),
        stopped_ns: stopped.as_nanos() as u64,
        total_ns: options.since.elapsed().as_nanos() as u64,
        ..Default::default()
    };
    let committed = writer.commit(snapshot, statistics)?;
    fault::at("committed")?;
    if options.kill {
        if let Some(filter) = &held_off
            && let Err(source) = filter.last()
        {
            let doing = "holding off packets until the restore; the checkpoint is there, and the job runs on";
            let doing = doing.to_owned();
            return Err(CheckpointError::System { doing, source });
        }
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
        total: options.since.elapsed(),
        phases: clock.phases,
    })
}

/// What can be found out and made ready before anybody stands still.
fn look_ahead(options: &CheckpointOptions<'_>, live: bool) -> (Ahead, Pool) {
    // Has it found out what stays as it is.
    host::cpus();
    let members = Members::now(options.scope, options.tracker).order;
    let ahead = Ahead::look(&members, options.tracker);
    let content: u64 = members.iter().map(|&pid| procfs::anonymous(pid)).sum();
    let content = content * memory::PAGE_SIZE;
    let pool = match (options.kill, live) {
        (true, _) => 0,
        (false, true) => content.min(EXPECTED),
        // What is more is not held.
        (false, false) if content > SMALL => 0,
        (false, false) => content,
    };
    (ahead, Pool::of(pool))
}

/// What the job's memory still lacked in the image when it stood still.
#[derive(Default)]
struct Remainder {
    /// Watched address spaces, or parts of them, read into memory.
    sources: Vec<Source>,
    held: Vec<Held>,
    /// The same, to be read from copies while the job runs on.
    copied: Vec<Source>,
    copies: Vec<Copy>,
    settled: Vec<Settled>,
    lost: Vec<(u64, PageSet)>,
}

impl Remainder {
    fn read(
        &mut self,
        writer: &Writer,
        frozen: &mut Frozen,
        Captured {
            snapshot,
            sources,
            numbers,
            ..
        }: &mut Captured,
        tracking: Option<&mut Tracking>,
        options: &CheckpointOptions<'_>,
        pool: &Pool,
        clock: &mut Clock<'_>,
    ) -> Result<(), CheckpointError> {
        let threads = pages::threads();
        let Some(tracking) = tracking else {
            clock.phase("pages");
            if options.kill || sources.iter().map(Source::estimate).sum::<u64>() > SMALL {
                pages::dump(writer, sources, threads, options.progress)?;
                return Ok(());
            }
            self.sources = std::mem::take(sources);
            (_, self.held) = pages::hold(&self.sources, threads, pool)?;
            return Ok(());
        };
        clock.phase("look");
        let remaining = tracking.remaining(snapshot, numbers, sources)?;
        fault::at("looked")?;
        self.lost = tracking.lost();
        let bytes: u64 = remaining.iter().map(Source::estimate).sum();
        let limit = options.max_freeze.as_millis() as u64 * COPIED_PER_MS;
        // Who does not run on need not be copied, and is not let go before all is written. A fork of who lacks pages would lack them too.
        if options.kill || bytes <= limit.min(MAX_HELD) || numbers.sockets.is_some() {
            self.sources = remaining;
        } else {
            for source in remaining {
                self.copy(frozen, snapshot, source);
            }
            fault::at("forked")?;
        }
        let (whole, known): (Vec<_>, Vec<_>) =
            sources.iter().partition(|source| !tracking.tracks(source));
        clock.phase("settle");
        for source in known {
            self.settled.push(tracking.settle(source)?);
        }
        clock.phase("pages");
        let copied = if self.sources.iter().map(Source::estimate).sum::<u64>() <= MAX_HELD {
            let (copied, held) = pages::hold(&self.sources, threads, pool)?;
            self.held = held;
            copied
        } else {
            pages::dump(writer, &self.sources, threads, options.progress)?
        };
        self.found(
            &self.sources.iter().map(Source::space).collect::<Vec<_>>(),
            copied,
        );
        pages::dump(writer, &whole, threads, options.progress)?;
        Ok(())
    }

    /// Has a source read from a copy of its process, as far as a fork copies it; where that fails, all of it is read at once.
    fn copy(&mut self, frozen: &mut Frozen, snapshot: &proto::Snapshot, source: Source) {
        let Source::Process {
            space, pid, areas, ..
        } = &source
        else {
            return self.sources.push(source);
        };
        match Copy::of(frozen, *pid) {
            Ok(copy) => {
                let memory = snapshot.processes.iter().filter_map(|p| p.memory.as_ref());
                let mappings = memory.filter(|memory| memory.space == *space);
                let left_out: Vec<_> = mappings
                    .flat_map(|memory| &memory.mappings)
                    .filter(|m| areas::has(&m.vm_flags, "dc") || areas::has(&m.vm_flags, "wf"))
                    .collect();
                let (now, later): (Vec<_>, Vec<_>) = areas.iter().cloned().partition(|(run, _)| {
                    let inside = |m: &&proto::Mapping| m.start <= run.start && run.end <= m.end;
                    left_out.iter().copied().any(|m| inside(&m))
                });
                self.sources.push(source.with(*pid, now));
                self.copied.push(source.with(copy.pid, later));
                self.copies.push(copy);
            }
            Err(error) => {
                tracing::debug!("process {pid} cannot be copied: {error}");
                self.sources.push(source);
            }
        }
    }

    fn found(&mut self, spaces: &[u64], copied: Vec<Copied>) {
        for (space, copied) in spaces.iter().zip(copied) {
            for settled in self.settled.iter_mut().filter(|s| s.space == *space) {
                settled.found(&copied.pages);
            }
        }
    }

    /// Completes the image, beside the running job.
    fn put(
        &mut self,
        writer: &mut Writer,
        options: &CheckpointOptions<'_>,
    ) -> Result<Vec<Settled>, CheckpointError> {
        pages::put(writer, &self.sources, std::mem::take(&mut self.held))?;
        if !self.copied.is_empty() {
            writer.next_round();
            let threads = (pages::threads() / 2).max(1);
            let copied = pages::dump(writer, &self.copied, threads, options.progress)?;
            self.found(
                &self.copied.iter().map(Source::space).collect::<Vec<_>>(),
                copied,
            );
            self.copies.clear();
        }
        for (space, pages) in &self.lost {
            writer.forget(*space, pages);
        }
        for settled in &self.settled {
            writer.forget(settled.space, &settled.forgotten);
            writer.keep(settled.space, settled.kept.clone())?;
        }
        Ok(std::mem::take(&mut self.settled))
    }
}

/// Measures phases and tells of them.
struct Clock<'a> {
    phases: Vec<(&'static str, Duration)>,
    since: Instant,
    progress: &'a dyn crate::Progress,
}

impl<'a> Clock<'a> {
    fn new(options: &CheckpointOptions<'a>) -> Self {
        Self {
            phases: vec![("begin", Duration::ZERO)],
            since: options.since,
            progress: options.progress,
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
