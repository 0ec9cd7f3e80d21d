use std::collections::HashMap;
use std::fs::File;
use std::num::NonZero;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use nix::fcntl::Flock;

use crate::codec::{self, Scratch};
use crate::contents::Contents;
use crate::lane::Lane;
use crate::placement::{Placement, Stored};
use crate::proto::Codec;
use crate::store::PATIENCE_TO_WRITE;
use crate::{
    Checkpoint, Compression, Error, FRAME_PAGES, Job, PAGE_SIZE, PageSet, Result, files, pageset,
    segment,
};

/// A checkpoint that is being written. Any number of threads may [`put`](Self::put) pages.
///
/// Every page of it was either put or [kept](Self::keep) as another checkpoint has it. Nothing of it counts until
/// [`commit`](Self::commit); dropping it removes what it wrote.
#[derive(Debug)]
pub struct Writer {
    pub(crate) job: Job,
    pub(crate) sequence: u64,
    pub(crate) parent: u64,
    pub(crate) base: Option<Checkpoint>,
    pub(crate) compression: Compression,
    pub(crate) lanes: Vec<Lane>,
    /// It has become so large that all lanes are used.
    large: AtomicBool,
    round: u32,
    state: Mutex<State>,
    /// What to remove when this is dropped, newest last.
    pub(crate) garbage: Vec<PathBuf>,
    _lock: Flock<File>,
}

/// What has been put so far.
#[derive(Debug, Default)]
pub(crate) struct State {
    /// One for each lane.
    pub(crate) placements: Vec<Placement>,
    pub(crate) contents: Contents,
    /// Lane and offset of a frame that was written with such bytes.
    frames: HashMap<Stored, (usize, u64)>,
    /// Something was given a place and then not written.
    pub(crate) failed: bool,
}

/// The kernel lets only one thread at a time write to a file, so that large checkpoints are written to several. More of
/// them gain little.
const LANES: usize = 4;

/// Bytes up to which one segment is enough.
const ONE_LANE: u64 = 32 << 20;

impl Job {
    /// Begins the job's next checkpoint, and keeps other writers and [`prune`](Self::prune) away until it is done.
    ///
    /// With a `base`, an earlier checkpoint of this job, pages that were not written since can be
    /// [kept](Writer::keep) as they are there.
    ///
    /// # Errors
    ///
    /// [`Error::Busy`] when another process is at it, [`Error::NoBase`] when the base has been removed, [`Error::Io`].
    pub fn begin(&self, compression: Compression, base: Option<&Checkpoint>) -> Result<Writer> {
        let lock = self.lock_within(PATIENCE_TO_WRITE)?;
        let base = base.map(|base| base.for_writing(self)).transpose()?;
        let parent = self.sequences()?.last().copied().unwrap_or(0);
        let cpus = std::thread::available_parallelism().map_or(1, NonZero::get);
        let mut writer = Writer {
            job: self.clone(),
            sequence: parent + 1,
            parent,
            base,
            compression,
            lanes: Vec::new(),
            large: AtomicBool::new(false),
            round: 0,
            state: Mutex::default(),
            garbage: Vec::new(),
            _lock: lock,
        };
        for _ in 0..cpus.min(LANES) {
            let lane = Lane::create(self)?;
            writer.garbage.push(lane.temporary.clone());
            writer.lanes.push(lane);
            writer.state().placements.push(Placement::default());
        }
        Ok(writer)
    }
}

impl Writer {
    /// The number that the checkpoint will have.
    #[must_use]
    pub fn sequence(&self) -> u64 {
        self.sequence
    }

    /// The checkpoint that this one is based on.
    #[must_use]
    pub fn base(&self) -> Option<&Checkpoint> {
        self.base.as_ref()
    }

    /// Bytes of pages written so far, as stored.
    #[must_use]
    pub fn written(&self) -> u64 {
        let state = self.state();
        let ends = state.placements.iter().map(|placement| placement.end);
        ends.map(|end| end - segment::HEADER as u64).sum()
    }

    /// Stores some pages of a space: at most [`FRAME_PAGES`] page numbers, ascending, and the pages themselves one
    /// after the other in `data`.
    ///
    /// Chunks of a space may come in any order from any thread, as long as all pages of chunk `k` lie below those of
    /// `k + 1`; each [round](Self::next_round) counts its own. Pages of zeros are noted and take no room.
    ///
    /// # Errors
    ///
    /// [`Error::Pages`] where these rules are broken, [`Error::Io`] when the disk does not take it. After either the
    /// checkpoint cannot be committed.
    pub fn put(&self, space: u64, chunk: u64, pages: &[u64], data: &[u8]) -> Result<()> {
        let done = codec::with_scratch(|scratch| self.store(scratch, space, chunk, pages, data));
        if done.is_err() {
            self.state().failed = true;
        }
        done
    }

    /// Begins another round: pages put from now on replace those put before.
    pub fn next_round(&mut self) {
        self.round += 1;
        self.state().contents.next_round();
    }

    /// Takes pages of a space over from the base, with content or of zeros, as they are there. Those that are put,
    /// before or after, are as they were put last.
    ///
    /// # Errors
    ///
    /// [`Error::Pages`] where the base does not have all of them, or there is none. The checkpoint cannot be committed
    /// then.
    pub fn keep(&self, space: u64, pages: PageSet) -> Result<()> {
        let has = self.base.as_ref().map(|base| base.pages(space));
        let mut state = self.state();
        if pages.is_subset(&has.unwrap_or_default()) {
            state.contents.keep(space, pages);
            return Ok(());
        }
        state.failed = true;
        Err(Error::Pages {
            space,
            why: "pages were to be kept that the base does not have".into(),
        })
    }

    /// Removes pages of a space, whether put or kept, that are no more; they may be put again in a later round.
    pub fn forget(&self, space: u64, pages: &PageSet) {
        self.state().contents.forget(space, pages);
    }

    /// Where this thread writes.
    fn lane(&self) -> usize {
        static THREADS: AtomicUsize = AtomicUsize::new(0);
        thread_local! {
            static THREAD: usize = THREADS.fetch_add(1, Ordering::Relaxed);
        }
        if self.large.load(Ordering::Relaxed) {
            THREAD.with(|thread| thread % self.lanes.len())
        } else {
            0
        }
    }

    fn store(
        &self,
        scratch: &mut Scratch,
        space: u64,
        chunk: u64,
        pages: &[u64],
        data: &[u8],
    ) -> Result<()> {
        check(pages, data).map_err(|why| Error::Pages { space, why })?;
        let is_zero = |index: usize| codec::is_zero(&data[index * PAGE_SIZE..][..PAGE_SIZE]);
        let (zero, held): (Vec<usize>, Vec<usize>) =
            (0..pages.len()).partition(|&index| is_zero(index));

        let mut kept = std::mem::take(&mut scratch.pages);
        let content = if zero.is_empty() {
            data
        } else {
            kept.clear();
            for &index in &held {
                kept.extend_from_slice(&data[index * PAGE_SIZE..][..PAGE_SIZE]);
            }
            &kept
        };
        let codec = scratch.compress(self.compression, content);
        let bytes = if codec == Codec::Raw {
            content
        } else {
            &scratch.stored
        };
        let stored = Stored::new(codec, bytes);
        let numbers = |indices: &[usize]| {
            indices
                .iter()
                .map(|&index| pages[index])
                .collect::<Vec<_>>()
        };
        let (zero, held) = (numbers(&zero), numbers(&held));
        self.place(space, chunk, &zero, &held, stored, bytes)?;
        scratch.pages = kept;
        Ok(())
    }

    /// Notes pages, and writes the bytes of the frame that holds those which are not zero, where they are not there yet.
    fn place(
        &self,
        space: u64,
        chunk: u64,
        zero: &[u64],
        held: &[u64],
        stored: Stored,
        bytes: &[u8],
    ) -> Result<()> {
        let fresh = self.state().contents.fresh(space, held);
        let kept = fresh && self.base_has(space, held, stored, bytes);
        let twin = {
            let mut state = self.state();
            state.contents.put(space, zero, held, kept)?;
            state.frames.get(&stored).copied()
        };
        if held.is_empty() || kept {
            return Ok(());
        }
        // Bytes are looked up once they are in the file. Two threads may write the same ones at the same time.
        let twin = twin.filter(|&(lane, at)| files::has(&self.lanes[lane].file, at, bytes));
        let section = (space, self.round);
        if let Some((lane, offset)) = twin {
            self.state().placements[lane].add(section, chunk, held, offset, stored);
            return Ok(());
        }
        let index = self.lane();
        let offset = {
            let placement = &mut self.state().placements[index];
            let offset = placement.place(stored);
            placement.add(section, chunk, held, offset, stored);
            offset
        };
        self.lanes[index].write(bytes, offset)?;
        self.state().frames.insert(stored, (index, offset));
        if offset >= ONE_LANE {
            self.large.store(true, Ordering::Relaxed);
        }
        Ok(())
    }

    /// Whether the base has a frame with exactly these pages and bytes.
    fn base_has(&self, space: u64, pages: &[u64], stored: Stored, bytes: &[u8]) -> bool {
        let (Some(base), Some(&first)) = (&self.base, pages.first()) else {
            return false;
        };
        // The cheap question first: nearly always the answer is no.
        let found = base.frame(space, first, |frames, index| {
            Stored::of(frames, index) == Some(stored)
        });
        found.is_some_and(|frame| {
            frame.pages == pages && {
                let segment = &base.segments[frame.segment];
                files::has(
                    &segment.file,
                    segment.layout.frames.offset[frame.index],
                    bytes,
                )
            }
        })
    }

    pub(crate) fn state(&self) -> MutexGuard<'_, State> {
        // A thread that panicked has left numbers behind that are still true.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        // The manifest goes before what it names.
        for path in self.garbage.iter().rev() {
            let _ = std::fs::remove_file(path);
        }
    }
}

fn check(pages: &[u64], data: &[u8]) -> Result<(), String> {
    if pages.len() > FRAME_PAGES || data.len() != pages.len() * PAGE_SIZE {
        return Err(format!(
            "{} bytes were given for {} pages",
            data.len(),
            pages.len()
        ));
    }
    if pages.windows(2).any(|pair| pair[0] >= pair[1]) {
        return Err("the page numbers do not ascend".into());
    }
    match pages.last() {
        Some(&last) if last >= pageset::PAGE_LIMIT => Err(format!("there is no page {last:#x}")),
        _ => Ok(()),
    }
}
