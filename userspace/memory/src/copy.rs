//! All content of processes and shared memory objects, copied out by several threads.

use std::ops::Range;
use std::panic::resume_unwind;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread::ScopedJoinHandle;

use crate::{Error, Kind, Object, PAGE_SIZE, Pagemap, ProcessMemory, pages_in, push_run};

/// Something whose pages are copied out.
pub enum Source<'a> {
    /// Private mappings of a process.
    Process {
        /// The process.
        pid: u32,
        /// Its mappings, or parts of them, by address and without overlap.
        areas: &'a [(Range<u64>, Kind)],
        /// It is not stopped: pages may go away while they are copied, and all of them, if it ends.
        runs: bool,
    },
    /// A shared memory object; its pages count from its start.
    Object {
        /// Open for reading.
        object: Object<'a>,
        /// Runs of pages of it that hold data ([`Object::data`]), in bytes from its start, in order and without overlap.
        areas: &'a [Range<u64>],
    },
}

/// Pages with content that were copied together.
pub struct Chunk<'a> {
    /// Which source: its index.
    pub source: usize,
    /// Counts the chunks of a source from 0, by address.
    pub index: u64,
    /// Page numbers (address or offset / [`PAGE_SIZE`]), ascending.
    pub pages: &'a [u64],
    /// The bytes of these pages, one after the other.
    pub data: &'a [u8],
    /// Pages of a running process that are not there any more, or that it does not let anybody read.
    pub gone: &'a [u64],
}

/// Chunks that one thread takes at a time: enough that threads do not wait for each other to find pages.
const BATCH: u64 = 32;

/// Gives every page of `sources` that holds content to `sink`, in chunks of at most `chunk_pages` pages, from
/// `threads` threads and so in no order. Ends at the first error, of its own or of `sink`. Returns the number of pages.
///
/// Memory in use does not depend on the sources: each thread has a buffer of one chunk.
///
/// # Errors
/// A stopped process has ended, or has pages that cannot be read; or what `sink` says.
pub fn copy_out<E: From<Error> + Send>(
    sources: &[Source<'_>],
    threads: usize,
    chunk_pages: usize,
    sink: impl Fn(Chunk<'_>) -> Result<(), E> + Sync,
) -> Result<u64, E> {
    let finder = Mutex::new(Finder::new(sources, chunk_pages as u64));
    let finder = || finder.lock().unwrap_or_else(PoisonError::into_inner);
    let work =
        || copy_batches(sources, chunk_pages, finder, &sink).inspect_err(|_| finder().stop());
    together(threads, work).into_iter().sum()
}

/// Does `work` on this thread and on `threads` - 1 others, and gives what came of each.
pub fn together<T: Send>(threads: usize, work: impl Fn() -> T + Sync) -> Vec<T> {
    std::thread::scope(|scope| {
        let others: Vec<_> = (1..threads).map(|_| scope.spawn(&work)).collect();
        let own = work();
        let joined = |other: ScopedJoinHandle<'_, T>| {
            other.join().unwrap_or_else(|panic| resume_unwind(panic))
        };
        let others: Vec<T> = others.into_iter().map(joined).collect();
        std::iter::once(own).chain(others).collect()
    })
}

fn copy_batches<'f, 's: 'f, E: From<Error>>(
    sources: &[Source<'_>],
    chunk_pages: usize,
    finder: impl Fn() -> MutexGuard<'f, Finder<'s>>,
    sink: impl Fn(Chunk<'_>) -> Result<(), E>,
) -> Result<u64, E> {
    let mut buffer = vec![0; chunk_pages * PAGE_SIZE as usize];
    let mut numbers = Vec::with_capacity(chunk_pages);
    let mut gone = Vec::new();
    let mut batch = Batch::default();
    let mut pages = 0;
    // The guard is a temporary of the condition, which drops it before the body runs.
    while finder().next(&mut batch)? {
        for (index, runs) in (batch.first_chunk..).zip(chunks(&batch.runs, chunk_pages as u64)) {
            numbers.clear();
            numbers.extend(
                runs.iter()
                    .flat_map(|run| run.start / PAGE_SIZE..run.end / PAGE_SIZE),
            );
            let data = &mut buffer[..numbers.len() * PAGE_SIZE as usize];
            gone.clear();
            match &sources[batch.source] {
                Source::Process {
                    pid, runs: true, ..
                } => {
                    let memory = ProcessMemory::of_running(*pid);
                    match memory.read(&runs, data) {
                        Err(Error::Read { .. }) => {
                            read_what_is_there(&memory, &mut numbers, data, &mut gone)?;
                        }
                        Err(Error::Gone { .. }) => gone.append(&mut numbers),
                        other => other?,
                    }
                }
                Source::Process { pid, .. } => ProcessMemory::new(*pid).read(&runs, data)?,
                Source::Object { object, .. } => object.read(&runs, data)?,
            }
            sink(Chunk {
                source: batch.source,
                index,
                pages: &numbers,
                data: &buffer[..numbers.len() * PAGE_SIZE as usize],
                gone: &gone,
            })?;
            pages += numbers.len() as u64;
        }
    }
    Ok(pages)
}

/// Reads page by page; moves the numbers of those that cannot be read from `pages` to `gone`.
fn read_what_is_there(
    memory: &ProcessMemory,
    pages: &mut Vec<u64>,
    data: &mut [u8],
    gone: &mut Vec<u64>,
) -> Result<(), Error> {
    let mut done = 0;
    let mut failed = None;
    pages.retain(|&page| {
        let to = &mut data[done..done + PAGE_SIZE as usize];
        let run = page * PAGE_SIZE..(page + 1) * PAGE_SIZE;
        match memory.read(std::slice::from_ref(&run), to) {
            Ok(()) => {
                done += to.len();
                return true;
            }
            Err(Error::Read { .. } | Error::Gone { .. }) => gone.push(page),
            Err(error) => failed = Some(error),
        }
        false
    });
    failed.map_or(Ok(()), Err)
}

/// Runs of one source for one thread to copy.
#[derive(Default)]
struct Batch {
    source: usize,
    first_chunk: u64,
    runs: Vec<Range<u64>>,
}

/// Walks the sources from batch to batch, so that no list of all pages is ever in memory.
struct Finder<'a> {
    sources: &'a [Source<'a>],
    chunk_pages: u64,
    source: usize,
    /// Of the current source: its page map, the area being walked and the address or offset in it, and how many
    /// chunks have been given out.
    pagemap: Option<Pagemap>,
    area: usize,
    at: u64,
    chunk: u64,
}

impl<'a> Finder<'a> {
    fn new(sources: &'a [Source<'a>], chunk_pages: u64) -> Self {
        Self {
            sources,
            chunk_pages,
            source: 0,
            pagemap: None,
            area: 0,
            at: 0,
            chunk: 0,
        }
    }

    /// Finds pages for one thread; false when there are none left.
    fn next(&mut self, batch: &mut Batch) -> Result<bool, Error> {
        while let Some(source) = self.sources.get(self.source) {
            batch.runs.clear();
            let found = self.find(source, &mut batch.runs);
            let pages: u64 = batch.runs.iter().map(pages_in).sum();
            if found.is_ok() && pages > 0 {
                batch.source = self.source;
                batch.first_chunk = self.chunk;
                self.chunk += pages.div_ceil(self.chunk_pages);
                return Ok(true);
            }
            // To one that has ended, nothing is mapped: a lack of pages is only believed of the living.
            let alive = match &self.pagemap {
                Some(pagemap) => found.and_then(|()| pagemap.check_alive()),
                None => found,
            };
            match (alive, source) {
                (Err(Error::Gone { .. }), Source::Process { runs: true, .. }) => {}
                (other, _) => other?,
            }
            *self = Self {
                source: self.source + 1,
                ..Self::new(self.sources, self.chunk_pages)
            };
        }
        Ok(false)
    }

    fn find(&mut self, source: &Source<'_>, runs: &mut Vec<Range<u64>>) -> Result<(), Error> {
        let limit = BATCH * self.chunk_pages;
        match source {
            Source::Process { pid, areas, .. } => {
                let pagemap = match &self.pagemap {
                    Some(pagemap) => pagemap,
                    None => self.pagemap.insert(Pagemap::open(*pid)?),
                };
                let mut left = limit;
                while left > 0 && self.area < areas.len() {
                    let (range, kind, next) = merged(areas, self.area);
                    let rest = self.at.max(range.start)..range.end;
                    (self.at, left) = pagemap.some_content(rest, kind, left, runs)?;
                    if self.at >= range.end {
                        self.area = next;
                    }
                }
            }
            Source::Object { areas, .. } => {
                let mut left = limit;
                while left > 0 && self.area < areas.len() {
                    let area = &areas[self.area];
                    let start = self.at.max(area.start);
                    let run = start..area.end.min(start + left * PAGE_SIZE);
                    self.at = run.end;
                    self.area += usize::from(run.end == area.end);
                    left -= pages_in(&run);
                    push_run(runs, run);
                }
            }
        }
        Ok(())
    }

    fn stop(&mut self) {
        self.source = self.sources.len();
    }
}

/// Most bytes that are looked at as one for lying next to each other. Larger mappings often are reservations, which
/// [`Pagemap`] treats well when they come alone.
const MERGED: u64 = 64 << 20;

/// The area at `first` with those of its kind that follow without a gap, which are found with it at no extra cost, and
/// the index of the area after them.
fn merged(areas: &[(Range<u64>, Kind)], first: usize) -> (Range<u64>, Kind, usize) {
    let (mut range, kind) = areas[first].clone();
    let follows = |range: &Range<u64>, next: &(Range<u64>, Kind)| {
        next.0.start == range.end && next.1 == kind && next.0.end - range.start <= MERGED
    };
    let mut next = first + 1;
    while areas.get(next).is_some_and(|area| follows(&range, area)) {
        range.end = areas[next].0.end;
        next += 1;
    }
    (range, kind, next)
}

/// Cuts runs into pieces of at most `pages` pages, each made of as many runs as fit.
fn chunks(runs: &[Range<u64>], pages: u64) -> Vec<Vec<Range<u64>>> {
    let mut chunks = Vec::new();
    let mut chunk = Vec::new();
    let mut room = pages;
    for run in runs {
        let mut run = run.clone();
        while !run.is_empty() {
            let end = run.end.min(run.start + room * PAGE_SIZE);
            room -= pages_in(&(run.start..end));
            chunk.push(run.start..end);
            run.start = end;
            if room == 0 {
                chunks.push(std::mem::take(&mut chunk));
                room = pages;
            }
        }
    }
    if !chunk.is_empty() {
        chunks.push(chunk);
    }
    chunks
}
