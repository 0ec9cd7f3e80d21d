//! Pages: from processes and shared memory into an image, and back.

use std::borrow::Borrow;
use std::io;
use std::ops::Range;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use images::{Checkpoint, FRAME_PAGES, Frame, PageSet, Where, Writer};
use memory::{Object, PAGE_SIZE, ProcessMemory};

use crate::{CheckpointError, Progress, RestoreError, host, procfs};

/// More threads than this wait for the kernel to find free pages, and for each other.
const MAX_THREADS: usize = 8;

/// Where pages come from. Each has a space of its own.
pub(crate) enum Source {
    /// Private mappings of a process, by address and without overlap.
    Process {
        space: u64,
        pid: u32,
        areas: Vec<(Range<u64>, memory::Kind)>,
        /// It is not stopped.
        runs: bool,
    },
    /// A shared memory object: the runs of pages of it that hold data, or some of them.
    Object {
        space: u64,
        file: Arc<OwnedFd>,
        areas: Vec<Range<u64>>,
    },
}

/// Where pages go.
pub(crate) enum Target {
    /// Fresh mappings of a stopped process, by address and without overlap.
    Process {
        space: u64,
        pid: u32,
        areas: Vec<Area>,
    },
    /// A fresh shared memory object of `size` bytes.
    Object {
        space: u64,
        file: OwnedFd,
        size: u64,
    },
}

/// A mapping that pages may go to.
pub(crate) struct Area {
    pub(crate) range: Range<u64>,
    pub(crate) place: Place,
}

/// What of its pages has to be written.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Place {
    /// Fresh pages are not zero (those of private file mappings), so that pages of zeros have to be written too.
    pub(crate) zero_matters: bool,
    /// None: they are served when the job runs.
    pub(crate) later: bool,
}

/// Pages of one source that were copied, and those that went away while that was done.
#[derive(Default)]
pub(crate) struct Copied {
    pub(crate) pages: PageSet,
    pub(crate) gone: PageSet,
}

/// Writes every page of `sources` that holds content to the image. Returns which ones, by source.
pub(crate) fn dump(
    writer: &Writer,
    sources: &[impl Borrow<Source> + Sync],
    threads: usize,
    progress: &dyn Progress,
) -> Result<Vec<Copied>, CheckpointError> {
    let bytes = sources.iter().map(|s| s.borrow().estimate()).sum();
    let meter = Meter::new(progress, bytes);
    let copied = copy(sources, threads.min(threads_for(bytes)), |chunk| {
        let space = sources[chunk.source].borrow().space();
        writer.put(space, chunk.index, chunk.pages, chunk.data)?;
        meter.add(chunk.data.len());
        Ok(())
    })?;
    meter.finish();
    Ok(copied)
}

/// A chunk of pages in memory, on its way to the image.
pub(crate) struct Held {
    source: usize,
    index: u64,
    pages: Vec<u64>,
    data: Vec<u8>,
}

/// Memory for pages to hold, touched before anybody stands still for it: fresh pages take longer to get than to fill.
#[derive(Default)]
pub(crate) struct Pool(Mutex<Vec<Vec<u8>>>);

impl Pool {
    /// Of about so many bytes.
    pub(crate) fn of(bytes: u64) -> Self {
        let chunk = FRAME_PAGES as u64 * PAGE_SIZE;
        // Ones, as the kernel gives zeros without giving memory.
        let chunks = (0..bytes.div_ceil(chunk)).map(|_| vec![1; chunk as usize]);
        Self(Mutex::new(chunks.collect()))
    }

    fn fill(&self, data: &[u8]) -> Vec<u8> {
        let mut room = lock(&self.0).pop().unwrap_or_default();
        room.clear();
        room.extend_from_slice(data);
        room
    }
}

/// As [`dump`], but only to memory, so that nobody waits for storage: [`put`] does the rest.
pub(crate) fn hold(
    sources: &[Source],
    threads: usize,
    pool: &Pool,
) -> Result<(Vec<Copied>, Vec<Held>), CheckpointError> {
    let held = Mutex::new(Vec::new());
    let bytes = sources.iter().map(Source::estimate).sum();
    let copied = copy(sources, threads.min(threads_for(bytes)), |chunk| {
        let data = pool.fill(chunk.data);
        lock(&held).push(Held {
            source: chunk.source,
            index: chunk.index,
            pages: chunk.pages.to_vec(),
            data,
        });
        Ok(())
    })?;
    Ok((
        copied,
        held.into_inner().unwrap_or_else(PoisonError::into_inner),
    ))
}

/// Writes to the image what [`hold`] has read from `sources`.
pub(crate) fn put(
    writer: &Writer,
    sources: &[Source],
    held: Vec<Held>,
) -> Result<(), CheckpointError> {
    let workers = threads().min(held.len());
    let rest = Mutex::new(held.into_iter());
    let work = || -> Result<(), CheckpointError> {
        loop {
            let Some(chunk) = lock(&rest).next() else {
                return Ok(());
            };
            let space = sources[chunk.source].space();
            writer.put(space, chunk.index, &chunk.pages, &chunk.data)?;
        }
    };
    memory::together(workers, work).into_iter().collect()
}

fn copy(
    sources: &[impl Borrow<Source>],
    threads: usize,
    sink: impl Fn(&memory::Chunk<'_>) -> Result<(), CheckpointError> + Sync,
) -> Result<Vec<Copied>, CheckpointError> {
    let borrowed: Vec<_> = sources.iter().map(|s| s.borrow().as_memory()).collect();
    let copied = Mutex::new(
        sources
            .iter()
            .map(|_| Copied::default())
            .collect::<Vec<_>>(),
    );
    memory::copy_out(&borrowed, threads, FRAME_PAGES, |chunk| {
        sink(&chunk)?;
        let copied = &mut lock(&copied)[chunk.source];
        copied.pages.extend(chunk.pages);
        copied.gone.extend(chunk.gone);
        Ok::<_, CheckpointError>(())
    })?;
    Ok(copied.into_inner().unwrap_or_else(PoisonError::into_inner))
}

/// A thread that panicked has left nothing half done.
fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Writes every page that the image has of `targets` to its place. Returns how many it has written.
///
/// An image with a page that lies in none of its target's areas is refused; what was written by then stays.
pub(crate) fn fill(
    checkpoint: &Checkpoint,
    targets: &[Target],
    progress: &dyn Progress,
) -> Result<u64, RestoreError> {
    let total = checkpoint.content() * PAGE_SIZE;
    let meter = Meter::new(progress, total);
    for target in targets {
        target.check_later(checkpoint)?;
    }
    let frames = targets.iter().flat_map(|target| {
        let frames = target.frames(checkpoint);
        frames.map(move |frame| (target, frame))
    });
    // A thread that fails leaves nothing for the others to do.
    let frames = Mutex::new(Some(frames));
    let frames = || frames.lock().unwrap_or_else(PoisonError::into_inner);
    let work = || -> Result<u64, RestoreError> {
        let (mut pages, mut data) = (0, Vec::new());
        loop {
            let Some((target, frame)) = frames().as_mut().and_then(Iterator::next) else {
                return Ok(pages);
            };
            target
                .fill(checkpoint, &frame, &mut data)
                .inspect_err(|_| *frames() = None)?;
            pages += frame.pages.len() as u64;
            meter.add(data.len());
        }
    };
    let ends = memory::together(threads_for(total), work);
    let pages: u64 = ends.into_iter().sum::<Result<_, _>>()?;
    let zeros: u64 = targets
        .iter()
        .map(|target| target.fill_zeros(checkpoint))
        .sum::<Result<_, _>>()?;
    meter.finish();
    Ok(pages + zeros)
}

/// So many bytes are not worth another thread: it takes as long to start as they take to copy.
const FEW: u64 = 1 << 20;

/// One thread a processor, for so many bytes.
fn threads_for(bytes: u64) -> usize {
    let worth = usize::try_from(bytes / FEW).unwrap_or(usize::MAX);
    threads().min(worth.max(1))
}

/// One thread a processor.
pub(crate) fn threads() -> usize {
    (host::cpus() as usize).min(MAX_THREADS)
}

impl Source {
    pub(crate) fn space(&self) -> u64 {
        match self {
            Self::Process { space, .. } | Self::Object { space, .. } => *space,
        }
    }

    /// The same space, read from process `pid` in other areas.
    pub(crate) fn with(&self, pid: u32, areas: Vec<(Range<u64>, memory::Kind)>) -> Self {
        Self::Process {
            space: self.space(),
            pid,
            areas,
            runs: false,
        }
    }

    fn as_memory(&self) -> memory::Source<'_> {
        match self {
            Self::Process {
                pid, areas, runs, ..
            } => memory::Source::Process {
                pid: *pid,
                areas,
                runs: *runs,
            },
            Self::Object { file, areas, .. } => memory::Source::Object {
                object: Object::new(file.as_fd()),
                areas,
            },
        }
    }

    /// About how many bytes there are to write: good enough to decide how.
    pub(crate) fn estimate(&self) -> u64 {
        match self {
            // Of a part of a process, the part.
            Self::Process { pid, areas, .. } => {
                let bytes = areas.iter().map(|(range, _)| range.end - range.start).sum();
                (procfs::anonymous(*pid) * PAGE_SIZE).min(bytes)
            }
            Self::Object { areas, .. } => areas.iter().map(|range| range.end - range.start).sum(),
        }
    }
}

impl Target {
    fn space(&self) -> u64 {
        match self {
            Self::Process { space, .. } | Self::Object { space, .. } => *space,
        }
    }

    /// That all pages have a place, as those that come later are not looked at one by one.
    fn check_later(&self, checkpoint: &Checkpoint) -> Result<(), RestoreError> {
        if let Self::Process { space, areas, .. } = self {
            let placed = wanted(checkpoint, *space, areas, |_| true);
            for page in checkpoint.pages(*space) - placed {
                self.place(checkpoint, page)?;
            }
        }
        Ok(())
    }

    /// The frames that have what is to be written.
    fn frames<'a>(
        &self,
        checkpoint: &'a Checkpoint,
    ) -> Box<dyn Iterator<Item = Frame> + Send + 'a> {
        match self {
            Self::Process { space, areas, .. } if areas.iter().any(|area| area.place.later) => {
                let space = *space;
                let now = wanted(checkpoint, space, areas, |place| !place.later);
                let mut last = None;
                Box::new(now.into_iter().filter_map(move |page| {
                    let Some(Where::Frame(frame)) = checkpoint.locate(space, page) else {
                        return None;
                    };
                    // Pages of one frame need not follow each other; one that is written twice does no harm.
                    let again = last.replace(frame.key()) == Some(frame.key());
                    (!again).then_some(frame)
                }))
            }
            _ => Box::new(checkpoint.iter(self.space())),
        }
    }

    /// Writes the pages of one frame; `data` is room to read them into.
    fn fill(
        &self,
        checkpoint: &Checkpoint,
        frame: &Frame,
        data: &mut Vec<u8>,
    ) -> Result<(), RestoreError> {
        let mut pages = Vec::with_capacity(frame.pages.len());
        let mut places = Vec::with_capacity(frame.pages.len());
        for (nth, page) in frame.pages.iter().enumerate() {
            if !self.place(checkpoint, *page)?.later {
                pages.push(*page);
                places.push(nth);
            }
        }
        if pages.is_empty() {
            return Ok(());
        }
        checkpoint.read(frame, data)?;
        if pages.len() < frame.pages.len() {
            let size = PAGE_SIZE as usize;
            for (to, from) in places.into_iter().enumerate() {
                data.copy_within(from * size..(from + 1) * size, to * size);
            }
            data.truncate(pages.len() * size);
        }
        self.write(&runs(&pages), data)
    }

    /// Writes zeros where fresh pages are something else.
    fn fill_zeros(&self, checkpoint: &Checkpoint) -> Result<u64, RestoreError> {
        let mut written = 0;
        let zeros = match self {
            Self::Process { space, areas, .. } if areas.iter().any(|area| area.place.later) => {
                let mut zeros = checkpoint.zero_pages(*space);
                zeros &= wanted(checkpoint, *space, areas, |place| place.zero_matters);
                zeros
            }
            _ => checkpoint.zero_pages(self.space()),
        };
        for page in zeros {
            if self.place(checkpoint, page)?.zero_matters {
                self.write(&runs(&[page]), &[0; PAGE_SIZE as usize])?;
                written += 1;
            }
        }
        Ok(written)
    }

    /// The place of a page; an error where no page belongs.
    fn place(&self, checkpoint: &Checkpoint, page: u64) -> Result<Place, RestoreError> {
        let at = page.saturating_mul(PAGE_SIZE);
        let found = match self {
            Self::Process { areas, .. } => {
                let area = areas.get(areas.partition_point(|area| area.range.end <= at));
                area.filter(|area| area.range.contains(&at))
                    .map(|area| area.place)
            }
            Self::Object { size, .. } => (at < *size).then_some(Place::default()),
        };
        found.ok_or_else(|| {
            let what = format!(
                "space {} has a page at {at:#x}, where its records have no mapping",
                self.space()
            );
            images::Error::Damaged {
                file: checkpoint.path().into(),
                offset: 0,
                what,
            }
            .into()
        })
    }

    fn write(&self, runs: &[Range<u64>], data: &[u8]) -> Result<(), RestoreError> {
        match self {
            Self::Process { pid, .. } => ProcessMemory::new(*pid).write(runs, data)?,
            Self::Object { file, .. } => Object::new(file.as_fd()).write(runs, data)?,
        }
        Ok(())
    }
}

/// The pages of a space that lie in areas of a kind.
fn wanted(
    checkpoint: &Checkpoint,
    space: u64,
    areas: &[Area],
    kind: impl Fn(&Place) -> bool,
) -> PageSet {
    let mut pages = PageSet::new();
    for area in areas.iter().filter(|area| kind(&area.place)) {
        pages.insert_range(area.range.start / PAGE_SIZE..area.range.end / PAGE_SIZE);
    }
    pages & checkpoint.pages(space)
}

/// Ascending page numbers as runs of bytes.
pub(crate) fn runs(pages: &[u64]) -> Vec<Range<u64>> {
    let runs = pages.chunk_by(|page, next| page + 1 == *next);
    runs.map(|run| run[0] * PAGE_SIZE..(run[0] + run.len() as u64) * PAGE_SIZE)
        .collect()
}

/// Counts bytes from many threads.
struct Meter<'a> {
    progress: &'a dyn Progress,
    done: AtomicU64,
    total: u64,
}

impl<'a> Meter<'a> {
    fn new(progress: &'a dyn Progress, total: u64) -> Self {
        Self {
            progress,
            done: AtomicU64::new(0),
            total,
        }
    }

    fn add(&self, bytes: usize) {
        let done = self.done.fetch_add(bytes as u64, Ordering::Relaxed) + bytes as u64;
        self.progress.bytes(done, self.total.max(done));
    }

    /// The total was an estimate.
    fn finish(&self) {
        let done = self.done.load(Ordering::Relaxed);
        self.progress.bytes(done, done);
    }
}

impl From<memory::Error> for CheckpointError {
    fn from(error: memory::Error) -> Self {
        let doing = error.doing();
        if let memory::Error::Gone { pid } = error {
            return Self::Gone { pid };
        }
        let source = error.into_source();
        if source.kind() == io::ErrorKind::PermissionDenied {
            let advice =
                "run as root or with CAP_SYS_PTRACE; `ckptd doctor` shows what is missing".into();
            return Self::NotPermitted { doing, advice };
        }
        Self::System { doing, source }
    }
}

impl From<memory::Error> for RestoreError {
    fn from(error: memory::Error) -> Self {
        Self::System {
            doing: error.doing(),
            source: error.into_source(),
        }
    }
}

#[cfg(test)]
#[allow(clippy::single_range_in_vec_init)] // Lists of one run are meant.
mod tests;
