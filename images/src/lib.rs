//! The image format and the store of ckptd: checkpoints as files, nothing about processes that run.
//!
//! A [`Store`] is a directory with one directory a job. A [`Job`] holds numbered checkpoints, each a *manifest* that
//! names, for every page of memory, the *segment* file and the place where it lies. A [`Writer`] makes one, from many
//! threads at once; a [`Checkpoint`] reads one back. `FORMAT.md` gives the layout byte by byte.
//!
//! What is read here is untrusted: every length, number and name is checked before it is used, and
//! [`Error::is_damage`] tells a bad image from a bad disk.

#![forbid(unsafe_code)]

mod checkpoint;
mod codec;
mod commit;
mod compact;
mod contents;
pub mod decode;
mod diff;
mod error;
mod files;
mod keep;
mod lane;
mod manifest;
mod pageset;
mod placement;
mod prune;
mod rewrite;
mod segment;
mod space;
mod stage;
mod store;
mod survey;
mod verify;
mod working_set;
mod writer;

/// The records of the format, generated from `proto/*.proto`.
#[allow(missing_docs)] // What a name does not say, the comments in `proto/*.proto` do.
#[allow(clippy::all, rustdoc::all)] // Generated.
pub mod proto {
    include!(concat!(env!("OUT_DIR"), "/ckptd.rs"));
}

pub use checkpoint::{Checkpoint, Where};
pub use commit::Committed;
pub use compact::Compacted;
pub use diff::Difference;
pub use error::{Error, Result};
pub use keep::Keep;
pub use prune::{Pruned, Usage};
pub use space::{Frame, Frames};
pub use store::{Job, Store};
pub use verify::Damage;
pub use writer::Writer;

/// Bytes in a page, on every machine that the format knows.
pub const PAGE_SIZE: usize = 4096;

/// The most pages that one frame holds (256 KiB of memory).
pub const FRAME_PAGES: usize = 64;

/// A set of page numbers. A page's number is its address divided by [`PAGE_SIZE`].
pub type PageSet = roaring::RoaringTreemap;

/// How hard to compress pages.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Compression {
    /// Not at all: as fast as memory can be copied.
    None,
    /// What costs little; pages that would not shrink are recognised and kept as they are.
    #[default]
    Fast,
    /// As small as is reasonable: several times slower than `Fast` to write, as fast to read.
    Max,
}

impl Compression {
    /// Its name on the command line and in [`proto::Statistics`].
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Fast => "fast",
            Self::Max => "max",
        }
    }
}
