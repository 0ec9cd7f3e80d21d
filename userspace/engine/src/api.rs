//! What callers of the engine see.

use std::path::PathBuf;
use std::time::{Duration, Instant};

/// Which processes make up the job, by pids as the caller sees them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scope {
    /// A process and all its descendants.
    Tree {
        /// The process the tree starts from.
        root: u32,
    },
    /// All descendants of `reaper`, which adopts the job's orphans and is not itself part of the job.
    Supervised {
        /// The process whose exit status is the job's.
        root: u32,
        /// The supervisor, or the init of the job's pid namespace.
        reaper: u32,
    },
}

/// Hears how an operation gets on; all methods may be called from several threads.
pub trait Progress: Sync {
    /// A phase begins ("freeze", "pages", ...).
    fn phase(&self, _name: &'static str) {}
    /// `done` of `total` bytes of memory are written or read.
    fn bytes(&self, _done: u64, _total: u64) {}
}

/// A [`Progress`] that says nothing.
#[derive(Debug, Clone, Copy, Default)]
pub struct Silent;
impl Progress for Silent {}

/// What to checkpoint and how.
pub struct CheckpointOptions<'a> {
    /// When it began: what came before belongs to its time.
    pub since: Instant,
    /// The processes.
    pub scope: Scope,
    /// Where the checkpoint goes.
    pub job: &'a images::Job,
    /// How hard to compress pages.
    pub compression: images::Compression,
    /// Kill the job (SIGKILL) once its checkpoint is safely on disk, without letting it run in between.
    pub kill: bool,
    /// How long the job may stand still while its memory is copied; past that, it is copied from a fork.
    pub max_freeze: Duration,
    /// The process whose standard input, output and error count as the job's way to the outside.
    pub stdio_of: u32,
    /// Connections that lead out of the job.
    pub tcp: TcpPolicy,
    /// Keep the content of regular files that the job has open for writing with the image.
    pub save_files: bool,
    /// BPF programs that read the job's state in bulk; without them it is read from /proc.
    pub tracker: Option<&'a tracker::Tracker>,
    /// Hears how it gets on.
    pub progress: &'a dyn Progress,
}

/// What a checkpoint did.
#[derive(Debug, Clone)]
pub struct CheckpointReport {
    /// Its number within the job.
    pub sequence: u64,
    /// Processes and threads in it.
    pub processes: usize,
    /// Threads of all processes.
    pub threads: usize,
    /// Pages of memory with content.
    pub pages: u64,
    /// Bytes written to the store.
    pub bytes: u64,
    /// How long the job stood still.
    pub stopped: Duration,
    /// The whole operation.
    pub total: Duration,
    /// Each phase, in order.
    pub phases: Vec<(&'static str, Duration)>,
}

/// One thing that a checkpoint cannot restore faithfully, so it is not taken.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// The process.
    pub pid: u32,
    /// What it holds: "descriptor 5 (socket:[1234])", "mapping 7f00...-7f01... (/dev/dri/card0)".
    pub what: String,
    /// Why that is refused.
    pub why: String,
    /// What the user can do.
    pub advice: String,
}

impl Refusal {
    /// Whether it may have passed in a moment: something was on its way.
    pub(crate) fn is_passing(&self) -> bool {
        self.advice.starts_with("try again")
    }
}

/// What to do with a regular file that is not as it was at the checkpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum FilesPolicy {
    /// Cut it back to its size at the checkpoint; what is cut off is kept beside it.
    #[default]
    Truncate,
    /// Leave it as it is.
    Keep,
    /// Refuse to restore.
    Fail,
}

/// What to do with TCP connections that lead out of the job.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum TcpPolicy {
    /// Take no checkpoint; restore as the checkpoint says.
    #[default]
    Refuse,
    /// The job finds them reset after the restore.
    Close,
    /// They go on where they were, if the other end has not gone on meanwhile.
    Keep,
}

/// How to restore.
pub struct RestoreOptions<'a> {
    /// Files that changed since.
    pub files: FilesPolicy,
    /// Connections that lead out of the job.
    pub tcp: TcpPolicy,
    /// A program (with arguments) to be the init of the job's pid namespace, should it need one. It gets the root's
    /// pid (inside the namespace) as one more argument.
    pub init: Vec<PathBuf>,
    /// Leave in the image what can come later, and have it served from there.
    pub lazy: Option<&'a crate::Serve<'a>>,
    /// Watch what is written from the first instruction on, so that the next checkpoint can build on this one.
    pub watch: bool,
    /// Keep the job apart from what runs already: in namespaces of its own, as a second copy of one that runs.
    pub apart: bool,
    /// Called once all is in place, just before the job runs.
    pub before_it_runs: &'a dyn Fn(),
    /// Hears how it gets on.
    pub progress: &'a dyn Progress,
}

/// A job that runs again.
pub struct Rebuilt {
    /// The root, as seen from here. A child of the calling process unless `init` is there.
    pub root: u32,
    /// The init of the job's own pid namespace, a child of the calling process.
    pub init: Option<u32>,
    /// What the next checkpoint needs, but for its [base](crate::Tracking::set_base); none where written pages cannot be told.
    pub tracking: Option<crate::Tracking>,
}

/// Why there is no checkpoint. The job runs on.
#[derive(Debug, thiserror::Error)]
pub enum CheckpointError {
    /// The job holds what cannot be restored.
    #[error("the job holds what cannot be restored")]
    Refused(Vec<Refusal>),
    /// A process of the job, or the job itself, is gone.
    #[error("process {pid} of the job has ended")]
    Gone {
        /// Which one.
        pid: u32,
    },
    /// A right is missing.
    #[error("{doing}: not permitted")]
    NotPermitted {
        /// What was tried, and on what.
        doing: String,
        /// What would allow it.
        advice: String,
    },
    /// The store could not take it.
    #[error(transparent)]
    Store(#[from] images::Error),
    /// The kernel did not let us read something.
    #[error("{doing}: {source}")]
    System {
        /// What was tried, and on what.
        doing: String,
        /// The kernel's answer.
        source: std::io::Error,
    },
}

impl CheckpointError {
    /// Whether another try may succeed: a process of the job has ended meanwhile, which is its good right. A signal that was on its way
    /// can still end one that was stopped.
    pub(crate) fn is_race(&self) -> bool {
        match self {
            Self::Gone { .. } => true,
            Self::System { source, .. } => source.raw_os_error() == Some(libc::ESRCH),
            _ => false,
        }
    }
}

/// Why a job was not restored. Nothing of it is left behind.
#[derive(Debug, thiserror::Error)]
pub enum RestoreError {
    /// The image is damaged or says what no image of ours says.
    #[error(transparent)]
    Image(#[from] images::Error),
    /// This host lacks or has changed something the job needs; every reason is listed.
    #[error("this host cannot restore the job")]
    Refused(Vec<Refusal>),
    /// A step failed.
    #[error("{doing}: {source}")]
    System {
        /// The step, and on what.
        doing: String,
        /// The kernel's answer.
        source: std::io::Error,
    },
}

impl RestoreError {
    /// Whether another plan may succeed: somebody took a pid or a terminal's number after this one was made, which clone3 answers with
    /// EEXIST and the comparison of the number with EAGAIN.
    pub fn is_race(&self) -> bool {
        matches!(self, Self::System { source, .. } if matches!(source.raw_os_error(), Some(libc::EAGAIN | libc::EEXIST)))
    }
}
