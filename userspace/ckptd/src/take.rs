//! Taking a checkpoint: the one place where a client's or supervisor's order meets the engine.

use crate::bpf::Bpf;
use crate::failure::Failure;
use crate::report::Report;
use crate::timing::{Operation, Stopwatch};
use clap::ValueEnum;
use engine::{CheckpointOptions, Progress, Scope, Tracking};
use images::{Compression, Job, Store};
use serde::{Deserialize, Serialize};
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// How hard to compress pages.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Compress {
    /// Not at all
    None,
    /// What costs little
    #[default]
    Fast,
    /// As small as is reasonable; several times slower
    Max,
}

impl From<Compress> for Compression {
    fn from(compress: Compress) -> Self {
        match compress {
            Compress::None => Self::None,
            Compress::Fast => Self::Fast,
            Compress::Max => Self::Max,
        }
    }
}

/// What to do with TCP connections that lead out of the job.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Tcp {
    /// Take no checkpoint of a job that has some
    #[default]
    Refuse,
    /// The job finds them reset (ECONNRESET) when it is restored
    Close,
    /// They go on where they were; with --kill, packets are held off until then
    Keep,
}

impl From<Tcp> for engine::TcpPolicy {
    fn from(tcp: Tcp) -> Self {
        match tcp {
            Tcp::Refuse => Self::Refuse,
            Tcp::Close => Self::Close,
            Tcp::Keep => Self::Keep,
        }
    }
}

/// What a user wants of a checkpoint.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Order {
    /// The store, absolute.
    pub dir: PathBuf,
    /// How hard to compress pages.
    pub compress: Compress,
    /// Kill the job once the checkpoint is on disk.
    pub kill: bool,
    /// Take only what was written since the last one, where that is known.
    pub incremental: bool,
    /// How long the job may stand still for its memory.
    pub max_freeze: Duration,
    /// Read the job's state by eBPF programs, or from /proc only; neither: by what is quicker.
    #[serde(default)]
    pub bpf: bool,
    #[serde(default)]
    pub no_bpf: bool,
    /// Connections that lead out of the job.
    #[serde(default)]
    pub tcp: Tcp,
    /// Save the content of files that are open for writing.
    #[serde(default)]
    pub save_files: bool,
}

/// How long a job may stand still for its memory, unless told otherwise.
pub(crate) const MAX_FREEZE: &str = "50ms";

/// The processes of a checkpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Target {
    /// Which they are.
    pub scope: Scope,
    /// Whose standard input, output and error lead out of the job.
    pub stdio_of: u32,
}

impl Target {
    /// A job whose orphans `reaper` adopts, and that got its standard streams from `stdio_of`.
    pub(crate) fn supervised(root: u32, reaper: u32, stdio_of: u32) -> Self {
        Self {
            scope: Scope::Supervised { root, reaper },
            stdio_of,
        }
    }

    /// The process whose exit status is the job's.
    pub(crate) fn root(self) -> u32 {
        let (Scope::Tree { root } | Scope::Supervised { root, .. }) = self.scope;
        root
    }

    /// A process and its descendants.
    pub(crate) fn tree(root: u32) -> Self {
        Self {
            scope: Scope::Tree { root },
            stdio_of: root,
        }
    }
}

/// Takes a checkpoint of `target` as one of job `name`, begun at `since`; with `tracking` (of its earlier ones) an incremental one.
pub(crate) fn take(
    since: Instant,
    name: &str,
    order: &Order,
    target: Target,
    tracking: Option<&mut Tracking>,
    bpf: &Bpf,
    progress: &dyn Progress,
) -> Result<Report, Failure> {
    let job = Store::create(&order.dir)?.create_job(name)?;
    let taken = take_into(since, &job, order, target, tracking, bpf, progress);
    if taken.is_err() {
        // What was made for nothing goes again; what is not empty stays.
        for dir in [&job.path().join("segments"), job.path(), &order.dir] {
            let _ = std::fs::remove_dir(dir);
        }
    }
    taken
}

fn take_into(
    since: Instant,
    job: &Job,
    order: &Order,
    target: Target,
    tracking: Option<&mut Tracking>,
    bpf: &Bpf,
    progress: &dyn Progress,
) -> Result<Report, Failure> {
    let watch = Stopwatch::start(since, "programs", progress);
    let options = CheckpointOptions {
        since,
        scope: target.scope,
        job,
        compression: order.compress.into(),
        kill: order.kill,
        max_freeze: order.max_freeze,
        stdio_of: target.stdio_of,
        tracker: bpf.tracker(order, target.scope),
        tcp: order.tcp.into(),
        save_files: order.save_files,
        progress: &watch,
    };
    let report = engine::checkpoint(&options, tracking)?;
    let stopped = Some(report.stopped.as_secs_f64());
    watch
        .stop(Operation::Checkpoint, report.sequence, stopped)
        .keep(job);
    Ok(Report::new(
        report,
        job.name(),
        order.dir.clone(),
        order.kill,
    ))
}
