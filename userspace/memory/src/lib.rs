//! The memory of other processes: which pages hold content, and ways to copy them out and in.
//!
//! The processes are stopped while this looks at them or fills them; nothing here stops one. Ranges are byte
//! addresses (or byte offsets into a shared memory object), page aligned, half open.

mod collapse;
mod copy;
mod huge;
mod kernel;
mod object;
mod pagemap;
mod probe;
mod process;
pub mod serve;
mod soft_dirty;
pub mod track;
pub mod uffd;
mod unshared;

use std::io;

pub use collapse::{HugePagePolicy, collapse};
pub use copy::{Chunk, Source, copy_out, together};
pub use object::Object;
pub use pagemap::{Kind, Pagemap};
pub use probe::{Tracking, reports_holes, soft_dirty_works, tracking};
pub use process::ProcessMemory;
pub use soft_dirty::SoftDirty;
pub use unshared::Unshared;

/// Bytes in a page. The only one on `x86_64`.
pub const PAGE_SIZE: u64 = 4096;

/// A set of page numbers. A page's number is its address divided by [`PAGE_SIZE`].
pub type PageSet = roaring::RoaringTreemap;

/// Why memory could not be looked at, read or written.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The process has ended.
    #[error("process {pid} has ended")]
    Gone {
        /// Which one.
        pid: u32,
    },
    /// The kernel does not say which pages of a process hold content.
    #[error("{}: {source}", self.doing())]
    Pagemap {
        /// `/proc/PID/pagemap` or `/proc/PID/smaps`.
        path: String,
        /// The kernel's answer.
        source: io::Error,
    },
    /// A page cannot be read: of a file mapping beyond the file's end, or of a device.
    #[error("{}: {source}", self.doing())]
    Read {
        /// Whose.
        pid: u32,
        /// The first address that cannot be read.
        address: u64,
        /// The kernel's answer.
        source: io::Error,
    },
    /// A page cannot be written.
    #[error("{}: {source}", self.doing())]
    Write {
        /// Whose.
        pid: u32,
        /// The first address that cannot be written.
        address: u64,
        /// The kernel's answer.
        source: io::Error,
    },
    /// A shared memory object cannot be read or written.
    #[error("{}: {source}", self.doing())]
    Object {
        /// Bytes from its start.
        offset: u64,
        /// The kernel's answer.
        source: io::Error,
    },
}

impl Error {
    /// What was tried, and on what.
    #[must_use]
    pub fn doing(&self) -> String {
        match self {
            Self::Gone { pid } => format!("reaching process {pid}"),
            Self::Pagemap { path, .. } => format!("reading {path}"),
            Self::Read { pid, address, .. } => {
                format!("reading memory of process {pid} at {address:#x}")
            }
            Self::Write { pid, address, .. } => {
                format!("writing memory of process {pid} at {address:#x}")
            }
            Self::Object { offset, .. } => {
                format!("copying a shared memory object at offset {offset:#x}")
            }
        }
    }

    /// The kernel's answer.
    #[must_use]
    pub fn into_source(self) -> io::Error {
        match self {
            Self::Gone { .. } => io::Error::from_raw_os_error(libc::ESRCH),
            Self::Pagemap { source, .. }
            | Self::Read { source, .. }
            | Self::Write { source, .. }
            | Self::Object { source, .. } => source,
        }
    }
}

/// Pages in a range.
pub(crate) fn pages_in(range: &std::ops::Range<u64>) -> u64 {
    (range.end - range.start) / PAGE_SIZE
}

/// Appends a run, or prolongs the last one when they touch.
pub(crate) fn push_run(runs: &mut Vec<std::ops::Range<u64>>, run: std::ops::Range<u64>) {
    match runs.last_mut() {
        Some(last) if last.end == run.start => last.end = run.end,
        _ => runs.push(run),
    }
}

#[cfg(test)]
#[allow(clippy::single_range_in_vec_init)] // Lists of one run are meant.
mod tests;
