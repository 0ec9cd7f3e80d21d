use std::io;
use std::path::{Path, PathBuf};

/// What the functions of this crate return.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why the store could not do it.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file system refused an operation.
    #[error("cannot {doing} {}: {source}{}", path.display(), advice(source))]
    Io {
        /// "write", "open", ...
        doing: &'static str,
        /// The file or directory.
        path: PathBuf,
        /// The kernel's answer.
        source: io::Error,
    },
    /// There is no store in that directory.
    #[error("{} is not a checkpoint directory: {why}; name the right one with --dir", dir.display())]
    NoStore {
        /// The directory.
        dir: PathBuf,
        /// What is the matter with it.
        why: String,
    },
    /// The store has no such job.
    #[error("there is no job {name:?} in {}; `ckptd list` shows those that are there", dir.display())]
    NoJob {
        /// The job's name.
        name: String,
        /// The store's directory.
        dir: PathBuf,
    },
    /// The job has no such checkpoint.
    #[error("job {job:?} has no checkpoint {sequence}; it has {}", listed(have))]
    NoCheckpoint {
        /// The job.
        job: String,
        /// The number asked for.
        sequence: u64,
        /// Those there are.
        have: Vec<u64>,
    },
    /// The job has no checkpoint at all.
    #[error("job {job:?} in {} has no checkpoint yet", dir.display())]
    NoCheckpoints {
        /// The job.
        job: String,
        /// The job's directory.
        dir: PathBuf,
    },
    /// A name that cannot be a job's.
    #[error("{name:?} cannot be the name of a job: {why}; take letters, digits, '-', '_' and '.'")]
    BadName {
        /// The name.
        name: String,
        /// What is the matter with it.
        why: &'static str,
    },
    /// Another checkpoint or prune of the same job is under way.
    #[error("job {job:?} is being written by another ckptd{}; wait until it is done", holder.map(|pid| format!(" (process {pid})")).unwrap_or_default())]
    Busy {
        /// The job.
        job: String,
        /// The process that holds the job, if it says so.
        holder: Option<u32>,
    },
    /// The pages handed to a writer are not what it takes. A mistake in the program, not in the image.
    #[error("cannot store pages of space {space}: {why}")]
    Pages {
        /// The space.
        space: u64,
        /// The rule that was broken.
        why: String,
    },
    /// The checkpoint that another was to be based on has been removed.
    #[error(
        "checkpoint {sequence} of job {job:?} cannot be built upon, since it has been removed; take a whole one"
    )]
    NoBase {
        /// The job.
        job: String,
        /// The base.
        sequence: u64,
    },
    /// Rewriting segments was told to stop. Nothing is lost.
    #[error("stopped before the end, as was asked for")]
    Stopped,
    /// An earlier write failed, so that the checkpoint cannot be completed.
    #[error(
        "checkpoint {sequence} of job {job:?} is incomplete since a write failed; take it again"
    )]
    Incomplete {
        /// The job.
        job: String,
        /// The checkpoint that was being written.
        sequence: u64,
    },
    /// The records of a checkpoint are larger than a manifest may be.
    #[error(
        "the records of the job take {bytes} bytes, more than the {limit} that a manifest may hold; fewer processes or mappings would fit"
    )]
    TooLarge {
        /// Their size.
        bytes: usize,
        /// The most there may be.
        limit: usize,
    },
    /// A file of the image is not what was written.
    #[error("{} is damaged at byte {offset}: {what}; restore another checkpoint (--at), or bring the file back from a copy", file.display())]
    Damaged {
        /// The file.
        file: PathBuf,
        /// Where in it, bytes from its start.
        offset: u64,
        /// What is wrong.
        what: String,
    },
    /// The image needs what this version cannot do.
    #[error("{} needs {what}, which this version of ckptd ({}) does not know; use the version that wrote it or a newer one", file.display(), env!("CARGO_PKG_VERSION"))]
    Unsupported {
        /// The file.
        file: PathBuf,
        /// The format version or the feature.
        what: String,
    },
}

impl Error {
    /// Whether the image is damaged or refused (exit status 3), rather than out of reach for now.
    #[must_use]
    pub fn is_damage(&self) -> bool {
        matches!(self, Self::Damaged { .. } | Self::Unsupported { .. })
    }

    pub(crate) fn io(doing: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Io {
            doing,
            path,
            source,
        }
    }

    pub(crate) fn damaged(file: &Path, flaw: Flaw) -> Self {
        let file = file.to_owned();
        match flaw {
            Flaw::Damage { offset, what } => Self::Damaged { file, offset, what },
            Flaw::Unsupported(what) => Self::Unsupported { file, what },
        }
    }
}

/// What a decoder found wrong with the bytes of a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Flaw {
    /// They are not what was written.
    Damage {
        /// Where, bytes from the file's start.
        offset: u64,
        /// What is wrong.
        what: String,
    },
    /// They ask for a format version or feature that is not known here.
    Unsupported(String),
}

impl Flaw {
    pub(crate) fn at(offset: u64, what: impl Into<String>) -> Self {
        Self::Damage {
            offset,
            what: what.into(),
        }
    }
}

/// What a person can do about an I/O error, where that is known.
fn advice(error: &io::Error) -> &'static str {
    use io::ErrorKind as K;
    match error.kind() {
        K::StorageFull | K::QuotaExceeded => {
            "; free some space (`ckptd prune`) or use another directory (--dir)"
        }
        K::FileTooLarge => {
            "; raise the file size limit (ulimit -f) or use another file system (--dir)"
        }
        K::PermissionDenied => {
            "; run as the user who owns the directory, or use another one (--dir)"
        }
        K::ReadOnlyFilesystem => "; use a directory that can be written (--dir)",
        K::NotFound => "; look whether the directory is still there and mounted",
        _ if error.raw_os_error() == Some(nix::libc::EMFILE) => {
            "; raise the limit of open files (ulimit -n)"
        }
        _ => "",
    }
}

fn listed(sequences: &[u64]) -> String {
    match sequences {
        [] => "none".into(),
        [one] => one.to_string(),
        [first, .., last] if *last - *first == sequences.len() as u64 - 1 => {
            format!("{first} to {last}")
        }
        many => many
            .iter()
            .map(u64::to_string)
            .collect::<Vec<_>>()
            .join(", "),
    }
}
