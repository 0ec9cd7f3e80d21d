//! Whether a process has forked, told by its pages: also when the child has ended long since.

use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt;

use crate::kernel::entry;
use crate::track::Written;
use crate::{Error, Kind, PAGE_SIZE, PageSet, Pagemap, probe};

/// Pages that are looked at; half of them spread over the bytes of a process, half over its mappings.
const PAGES: usize = 32;

/// Some private pages of a process that nobody shares with it. A fork makes them shared (`PG_anon_exclusive`, cleared by
/// `folio_try_dup_anon_rmap_pte()` in include/linux/rmap.h), and so they stay until they are written.
#[derive(Debug)]
pub struct Unshared {
    pid: u32,
    /// The pages, and the frames they are in.
    pages: PageSet,
    frames: Vec<(u64, u64)>,
}

impl Unshared {
    /// Chooses pages among `areas`, private anonymous memory of process `pid` that is tracked; they are by address. It may choose none: frames
    /// and their flags are shown to `CAP_SYS_ADMIN` only.
    ///
    /// # Errors
    /// [`Error::Gone`], or the kernel does not say which pages there are.
    pub fn choose(pid: u32, areas: &[Range<u64>]) -> Result<Self, Error> {
        let pagemap = Pagemap::open(pid)?;
        let mut frames = Vec::new();
        for (area, from) in starts(areas) {
            let mut found = Vec::new();
            pagemap.some_content(from..area.end, Kind::Anonymous, 1, &mut found)?;
            let Some(page) = found.first().map(|run| run.start / PAGE_SIZE) else {
                continue;
            };
            if let Some(frame) = unshared_frame(&pagemap, page)? {
                frames.push((page, frame));
            }
        }
        frames.sort_unstable();
        frames.dedup();
        Ok(Self {
            pid,
            pages: frames.iter().map(|(page, _)| *page).collect(),
            frames,
        })
    }

    /// What was written says nothing any more.
    pub fn forget(&mut self, written: &Written) {
        written.subtract_from(&mut self.pages);
    }

    /// Whether there was certainly no fork since they were chosen. Asked after [`Unshared::forget`] of all that was written by now.
    ///
    /// # Errors
    /// As of [`Unshared::choose`].
    pub fn still(&self) -> Result<bool, Error> {
        let pagemap = Pagemap::open(self.pid)?;
        let mut some = false;
        for (page, frame) in &self.frames {
            if self.pages.contains(*page) {
                if unshared_frame(&pagemap, *page)? != Some(*frame) {
                    return Ok(false);
                }
                some = true;
            }
        }
        Ok(some)
    }
}

/// Where to look for pages.
fn starts(areas: &[Range<u64>]) -> Vec<(&Range<u64>, u64)> {
    let half = PAGES / 2;
    let each = areas.len().div_ceil(half).max(1);
    let mut starts: Vec<_> = areas.iter().step_by(each).map(|a| (a, a.start)).collect();
    let total: u64 = areas.iter().map(|area| area.end - area.start).sum();
    let stride = (total / half as u64).next_multiple_of(PAGE_SIZE);
    let (mut next, mut passed) = (stride / 2 / PAGE_SIZE * PAGE_SIZE, 0);
    for area in areas {
        let length = area.end - area.start;
        while stride > 0 && next < passed + length {
            starts.push((area, area.start + next - passed));
            next += stride;
        }
        passed += length;
    }
    starts
}

/// The frame of a page that is in memory and not shared.
fn unshared_frame(pagemap: &Pagemap, page: u64) -> Result<Option<u64>, Error> {
    let mut frame = 0;
    pagemap.each(
        &(page * PAGE_SIZE..(page + 1) * PAGE_SIZE),
        &mut |_, raw| {
            if raw & entry::PRESENT != 0 {
                frame = raw & entry::FRAME;
            }
        },
    )?;
    let flags = File::open("/proc/kpageflags").map_or(0, |file| flags(&file, frame));
    Ok((frame != 0 && flags & probe::unshared_flags() != 0).then_some(frame))
}

/// What the kernel knows of a frame (Documentation/admin-guide/mm/pagemap.rst); 0 where it does not tell.
pub(crate) fn flags(kpageflags: &File, frame: u64) -> u64 {
    let mut raw = [0; 8];
    let read = kpageflags.read_exact_at(&mut raw, frame * 8);
    read.map_or(0, |()| u64::from_ne_bytes(raw))
}
