//! Which pages of a process were written since somebody last asked, while it runs.

use std::fs::File;
use std::ops::Range;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::OnceLock;

use nix::errno::Errno;

use crate::huge::{BLOCK, HugePages};
use crate::kernel::{self, Look, PageRegion, is};
use crate::pagemap::failed;
use crate::probe::{Method, reports_holes};
use crate::uffd::{self, Userfault, feature};
use crate::{Error, Kind, PAGE_SIZE, PageSet, Pagemap};

/// Features of the userfaultfd that [`WriteProtect`] works with.
pub const FEATURES: u64 = feature::WP_ASYNC | feature::WP_UNPOPULATED | feature::WP_HUGETLBFS_SHMEM;

/// What was written. A page that is in neither was not.
#[derive(Debug, Default, Clone, PartialEq)]
pub struct Written {
    /// Pages. Some may hold nothing: they were given back, or never touched.
    pub pages: PageSet,
    /// Ranges that nobody watched: whatever was there before is no longer to be trusted. By address, without overlap.
    pub whole: Vec<Range<u64>>,
    /// Ranges in which nothing is but what `pages` has. By address, without overlap.
    pub empty: Vec<Range<u64>>,
}

impl Written {
    /// Adds what `other` has.
    pub fn add(&mut self, other: &Self) {
        self.pages |= &other.pages;
        self.whole.extend_from_slice(&other.whole);
        normalize(&mut self.whole);
        self.empty.extend_from_slice(&other.empty);
        normalize(&mut self.empty);
    }

    /// Whether there is nothing in it.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.pages.is_empty() && self.whole.is_empty()
    }

    /// The runs of all that is to be read again, inside `range`, by address.
    #[must_use]
    pub fn runs(&self, range: &Range<u64>) -> Vec<Range<u64>> {
        let mut runs: Vec<Range<u64>> = self
            .whole
            .iter()
            .map(|whole| whole.start.max(range.start)..whole.end.min(range.end))
            .filter(|run| !run.is_empty())
            .collect();
        runs.extend(page_runs(&self.pages, range));
        normalize(&mut runs);
        runs
    }

    /// Takes out of `pages` whatever is in it.
    pub fn subtract_from(&self, pages: &mut PageSet) {
        *pages -= &self.pages;
        for range in self.whole.iter().chain(&self.empty) {
            pages.remove_range(range.start / PAGE_SIZE..range.end / PAGE_SIZE);
        }
    }
}

/// The runs of `pages` inside `range`, as bytes, by address.
#[must_use]
pub fn page_runs(pages: &PageSet, range: &Range<u64>) -> Vec<Range<u64>> {
    let (first, end) = (range.start / PAGE_SIZE, range.end.div_ceil(PAGE_SIZE));
    let mut iter = pages.iter();
    iter.advance_to(first);
    let mut runs = Vec::new();
    for page in iter.take_while(|&page| page < end) {
        crate::push_run(&mut runs, page * PAGE_SIZE..(page + 1) * PAGE_SIZE);
    }
    runs
}

/// The pages of a range of bytes.
fn pages(range: &Range<u64>) -> PageSet {
    let mut pages = PageSet::new();
    pages.insert_range(range.start / PAGE_SIZE..range.end.div_ceil(PAGE_SIZE));
    pages
}

/// Sorts ranges and joins those that touch or overlap.
fn normalize(ranges: &mut Vec<Range<u64>>) {
    ranges.sort_unstable_by_key(|range| range.start);
    ranges.dedup_by(|next, kept| {
        let joins = next.start <= kept.end;
        if joins {
            kept.end = kept.end.max(next.end);
        }
        joins
    });
}

/// Finds written pages of one address space.
pub trait WriteTracker: Send {
    /// Adds to `written` what was written in `areas` since the last time, and begins anew. Areas are mappings, or parts of
    /// them, by address and without overlap; those that are new, or replaced, come whole, and are watched from here on.
    ///
    /// Pages of files, which a private mapping shows until they are written, are not told of, unless the areas are `shared`.
    /// The process may run, unless it [must not](WriteTracker::needs_stop): a page that is written after its turn is found the
    /// next time.
    ///
    /// # Errors
    /// [`Error::Gone`]: the address space is no more (exit, or exec), or the kernel does not say. What was written is not lost: it is in
    /// `written`, or still to be found.
    fn collect(
        &mut self,
        areas: &[Range<u64>],
        shared: bool,
        written: &mut Written,
    ) -> Result<(), Error>;

    /// Those of `pages` that were given back without a trace in what [`WriteTracker::collect`] finds. Asked of a stopped process,
    /// after a collect of the areas that `pages` lie in.
    ///
    /// # Errors
    /// The kernel does not say.
    fn vanished(&self, pages: &PageSet) -> Result<PageSet, Error>;

    /// Pages of `areas`, shared memory of a stopped process that was just collected, to which no entry of a page table leads. An entry that
    /// goes (`MADV_DONTNEED`, swap) takes the mark of a write along, and leaves the page: these may have been written.
    ///
    /// # Errors
    /// The kernel does not say.
    fn holes(&mut self, areas: &[Range<u64>]) -> Result<PageSet, Error> {
        let pages = areas.iter().map(pages);
        Ok(pages.fold(PageSet::new(), |all, pages| all | pages))
    }

    /// Goes on watching `area` of a stopped process, which was watched through the userfaultfd of a lazy restore. What was
    /// written by then must have been collected.
    ///
    /// # Errors
    /// As [`WriteTracker::collect`].
    fn take_over(&mut self, area: &Range<u64>, lazy: &Userfault) -> Result<(), Error> {
        let _ = (area, lazy);
        Ok(())
    }

    /// Whether what is written in the middle of a collect is lost: then whoever shares the address space must be stopped for it.
    fn needs_stop(&self) -> bool {
        false
    }

    /// Where guard pages (`MADV_GUARD_INSTALL`) may be in `areas`, of which a collect has just told `news`; by address.
    fn guarded(&self, areas: &[Range<u64>], news: &Written) -> Vec<Range<u64>> {
        let _ = news;
        areas.to_vec()
    }

    /// Makes huge pages again of what finding written pages has taken apart, as far as that can be now. Says whether some are left.
    fn restore_huge_pages(&self) -> bool {
        false
    }

    /// Whether what is written to memory of this kind is found. Else all of it counts as written, always.
    fn covers(&self, kind: Kind) -> bool;
}

/// Write protection that the kernel lifts by itself (`UFFD_FEATURE_WP_ASYNC`, Linux 6.7), and `PAGEMAP_SCAN`.
#[derive(Debug)]
pub struct WriteProtect {
    pid: u32,
    uffd: Userfault,
    /// The kernel shows guard pages as what they are; else they pass for swapped ones.
    guards: bool,
    huge: HugePages,
}

/// Most bytes of touching mappings that are asked about at once. Where one of them is new, all count as written.
const BATCH: u64 = 2 << 20;

/// Bytes that one system call looks at: faults of the running process wait for no longer than that takes.
const STEP: u64 = 256 << 20;

/// Written runs with so little between them are protected in one step.
const NEAR: u64 = 128 << 10;

impl WriteProtect {
    /// Watches process `pid` with a userfaultfd of its own that was given [`FEATURES`].
    #[must_use]
    pub fn new(pid: u32, uffd: OwnedFd) -> Self {
        Self {
            pid,
            uffd: Userfault::new(uffd),
            guards: Method::of_kernel() == Method::Scan { guards: true },
            huge: HugePages::default(),
        }
    }

    /// The address space that the userfaultfd belongs to is still there.
    fn check_alive(&self) -> Result<(), Error> {
        if self.uffd.is_alive() {
            Ok(())
        } else {
            Err(Error::Gone { pid: self.pid })
        }
    }

    /// Finds what was written in `range` and protects it; EPERM where a mapping in it is not watched.
    fn scan(
        &mut self,
        pagemap: &File,
        range: &Range<u64>,
        shared: bool,
        written: &mut Written,
    ) -> Result<Result<(), Errno>, Error> {
        let mut spans: Vec<Range<u64>> = Vec::new();
        let regions = match self.regions(pagemap, range)? {
            Ok(regions) => regions,
            Err(errno) => return Ok(Err(errno)),
        };
        for region in &regions {
            self.huge.note(pagemap, region);
            match spans.last_mut() {
                Some(last) if region.start - last.end < NEAR => last.end = region.end,
                _ => spans.push(region.clone()),
            }
        }
        written.empty.extend(regions);
        let file = if shared { 0 } else { is::FILE };
        let guard = if self.guards { is::GUARD } else { 0 };
        let look = Look::Protect { not: file | guard };
        for span in spans {
            let pages = &mut written.pages;
            let told = self.each(pagemap, &span, look, |region| {
                pages.insert_range(region.start / PAGE_SIZE..region.end / PAGE_SIZE);
            })?;
            if told.is_err() {
                // It was watched a moment ago.
                written.whole.push(span);
            }
        }
        Ok(Ok(()))
    }

    /// The regions of `range` that may have been written, by address; a large one is looked at from two sides.
    fn regions(
        &self,
        pagemap: &File,
        range: &Range<u64>,
    ) -> Result<Result<Vec<Range<u64>>, Errno>, Error> {
        let of = |range: Range<u64>| {
            let mut regions = Vec::new();
            let told = self.each(pagemap, &range, Look::Fast, |region| regions.push(region))?;
            Ok(told.map(|()| regions))
        };
        if range.end - range.start < 2 * STEP {
            return of(range.clone());
        }
        let middle = range.start.midpoint(range.end) / BLOCK * BLOCK;
        std::thread::scope(|scope| {
            let upper = scope.spawn(|| of(middle..range.end));
            let lower = of(range.start..middle);
            let upper = match upper.join() {
                Ok(upper) => upper,
                Err(panic) => std::panic::resume_unwind(panic),
            };
            Ok(match (lower?, upper?) {
                (Ok(mut lower), Ok(mut upper)) => {
                    lower.append(&mut upper);
                    Ok(lower)
                }
                (Err(errno), _) | (_, Err(errno)) => Err(errno),
            })
        })
    }

    /// Hands out the written regions of `range`.
    fn each(
        &self,
        pagemap: &File,
        range: &Range<u64>,
        look: Look,
        mut sink: impl FnMut(Range<u64>),
    ) -> Result<Result<(), Errno>, Error> {
        let mut regions = [PageRegion::default(); 512];
        let mut at = range.start;
        while at < range.end {
            let end = range.end.min((at / STEP + 1) * STEP);
            match kernel::written(pagemap.as_fd(), at, end, look, &mut regions) {
                Ok((filled, stopped)) => {
                    for region in &regions[..filled] {
                        sink(region.start..region.end);
                    }
                    if stopped <= at {
                        return Ok(Err(Errno::EPERM));
                    }
                    at = stopped;
                }
                Err(Errno::ESRCH) => return Err(Error::Gone { pid: self.pid }),
                Err(errno) => return Ok(Err(errno)),
            }
        }
        Ok(Ok(()))
    }
}

impl WriteTracker for WriteProtect {
    fn collect(
        &mut self,
        areas: &[Range<u64>],
        shared: bool,
        written: &mut Written,
    ) -> Result<(), Error> {
        let path = format!("/proc/{}/pagemap", self.pid);
        let pagemap = File::open(&path).map_err(|source| failed(self.pid, path, source))?;
        let mut ignored = Written::default();
        for batch in batches(areas) {
            let range = batch[0].start..batch[batch.len() - 1].end;
            if self.scan(&pagemap, &range, shared, written)?.is_ok() {
                continue;
            }
            for area in batch {
                // Its neighbours may be watched, perhaps by the userfaultfd of a lazy restore.
                if batch.len() > 1 && self.scan(&pagemap, area, shared, written)?.is_ok() {
                    continue;
                }
                written.whole.push(area.clone());
                // Who cannot be watched (another userfaultfd has it, or it went away) comes whole the next time too.
                if self.uffd.register(area, uffd::mode::WP).is_ok() {
                    let _ = self.scan(&pagemap, area, shared, &mut ignored)?;
                    ignored = Written::default();
                }
            }
        }
        normalize(&mut written.whole);
        normalize(&mut written.empty);
        self.check_alive()
    }

    /// Registering it again without the mode for missing pages would leave that mode on (userfaultfd_register_range() in
    /// mm/userfaultfd.c: a mapping that has all modes asked for is passed over), and giving it up takes all protection away.
    fn take_over(&mut self, area: &Range<u64>, lazy: &Userfault) -> Result<(), Error> {
        // Where that fails, it is not the lazy restore's; or the next collect finds it unwatched.
        if lazy.unregister(area).is_ok() && self.uffd.register(area, uffd::mode::WP).is_ok() {
            let path = format!("/proc/{}/pagemap", self.pid);
            let pagemap = File::open(&path).map_err(|source| failed(self.pid, path, source))?;
            let _ = self.scan(&pagemap, area, false, &mut Written::default())?;
        }
        Ok(())
    }

    /// Not mappings of files: MADV_GUARD_INSTALL would never end where pages are write-protected, as it tries until nothing is left
    /// there, but the protection is left (madvise_guard_install() in mm/madvise.c). Not huge pages: one that is given back leaves its
    /// protection behind (__unmap_hugepage_range() in mm/hugetlb.c), which looks as if nothing had happened.
    fn covers(&self, kind: Kind) -> bool {
        kind == Kind::Anonymous
    }

    /// Guard pages are not protected, so each scan comes across them, and finds no page there.
    fn guarded(&self, areas: &[Range<u64>], news: &Written) -> Vec<Range<u64>> {
        if !self.guards {
            return areas.to_vec();
        }
        let full = |range: &Range<u64>| {
            let pages = range.start / PAGE_SIZE..range.end / PAGE_SIZE;
            let mut written = news.pages.iter();
            written.advance_to(pages.start);
            pages
                .clone()
                .eq(written.take_while(|&page| page < pages.end))
        };
        let empty = news.empty.iter().filter(|range| !full(range));
        let mut guarded = empty.chain(&news.whole).cloned().collect();
        normalize(&mut guarded);
        guarded
    }

    /// They are protected too, which leaves a marker in their entries (change_pte_range() in mm/mprotect.c) that stays until they are
    /// written: so those that nobody has touched are told once only.
    fn holes(&mut self, areas: &[Range<u64>]) -> Result<PageSet, Error> {
        let path = format!("/proc/{}/pagemap", self.pid);
        let pagemap = File::open(&path).map_err(|source| failed(self.pid, path, source))?;
        let (mut holes, mut rest) = (PageSet::new(), PageSet::new());
        for area in areas {
            rest |= pages(area);
            let told = self.each(&pagemap, area, Look::Fast, |region| {
                holes |= pages(&region);
            })?;
            if told.is_err() {
                holes |= pages(area);
            }
        }
        rest -= &holes;
        holes |= self.vanished(&rest)?;
        for run in areas.iter().flat_map(|area| page_runs(&holes, area)) {
            // Where it fails they are told the next time, too.
            let _ = self.uffd.write_protect(&run, true);
        }
        Ok(holes)
    }

    fn restore_huge_pages(&self) -> bool {
        let pagemap = File::open(format!("/proc/{}/pagemap", self.pid));
        pagemap.is_ok_and(|pagemap| self.huge.restore(self.pid, &pagemap).unwrap_or(false))
    }

    /// On some kernels the scan passes over page tables that are gone altogether (pagemap_scan_pte_hole() in fs/proc/task_mmu.c), so one
    /// page of every block that a page table covers is looked at: where it is gone, all are.
    fn vanished(&self, pages: &PageSet) -> Result<PageSet, Error> {
        static HOLES: OnceLock<bool> = OnceLock::new();
        if *HOLES.get_or_init(|| reports_holes().unwrap_or(false)) {
            return Ok(PageSet::new());
        }
        let pagemap = Pagemap::open(self.pid)?;
        let mut vanished = PageSet::new();
        let mut iter = pages.iter();
        let per_block = BLOCK / PAGE_SIZE;
        while let Some(page) = iter.next() {
            let block = page / per_block * per_block..(page / per_block + 1) * per_block;
            if pagemap.is_absent(page)? {
                vanished.insert_range(block.clone());
            }
            iter.advance_to(block.end);
        }
        vanished &= pages;
        Ok(vanished)
    }
}

/// Areas that touch, up to [`BATCH`] bytes together.
fn batches(areas: &[Range<u64>]) -> impl Iterator<Item = &[Range<u64>]> {
    let mut start = areas.first().map_or(0, |area| area.start);
    areas.chunk_by(move |area, next| {
        let together = area.end == next.start && next.end - start <= BATCH;
        if !together {
            start = next.start;
        }
        together
    })
}
