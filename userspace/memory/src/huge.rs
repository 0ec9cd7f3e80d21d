//! Huge pages that write protection takes apart: the first write to one that is protected splits it (`userfaultfd_huge_pmd_wp()` in
//! mm/huge_memory.c), and the program is slower for the rest of its life.

use std::fs::File;
use std::ops::Range;
use std::os::fd::{AsFd, FromRawFd, OwnedFd};

use nix::errno::Errno;

use crate::PageSet;
use crate::collapse;
use crate::kernel::{self, PageRegion, Query, is};

/// Bytes of a huge page: what one entry of a page middle directory spans.
pub(crate) const BLOCK: u64 = 2 << 20;

/// The blocks of a process that were huge pages when they were found to be written, by number.
#[derive(Debug, Default)]
pub(crate) struct HugePages(PageSet);

impl HugePages {
    /// Notes those in `region`, which is about to be protected.
    pub(crate) fn note(&mut self, pagemap: &File, region: &Range<u64>) {
        let huge = Query {
            not: 0,
            any: is::HUGE,
        };
        for run in blocks_in(region)
            .into_iter()
            .flat_map(|run| find(pagemap, &run, huge))
        {
            self.0.insert_range(run.start / BLOCK..run.end / BLOCK);
        }
    }

    /// Makes huge pages again of those blocks that were written all over, so that they are no longer protected; and says whether some are left.
    pub(crate) fn restore(&self, pid: u32, pagemap: &File) -> Result<bool, Errno> {
        // SAFETY: takes a process id and flags, gives a descriptor or an error.
        let fd = Errno::result(unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) })?;
        // SAFETY: a descriptor just made, which nobody else knows.
        let process = unsafe { OwnedFd::from_raw_fd(fd as i32) };
        let small = Query {
            not: is::HUGE,
            any: is::PRESENT,
        };
        let written = Query {
            not: is::HUGE,
            any: is::WRITTEN,
        };
        let mut left = false;
        for block in &self.0 {
            let block = block * BLOCK..(block + 1) * BLOCK;
            if find(pagemap, &block, small).is_empty() {
                continue;
            }
            let ready = find(pagemap, &block, written) == [block.clone()];
            left |= !ready || collapse::advise(process.as_fd(), &block).is_err();
        }
        Ok(left)
    }
}

/// The whole blocks of a region.
fn blocks_in(region: &Range<u64>) -> Option<Range<u64>> {
    let blocks = region.start.next_multiple_of(BLOCK)..region.end / BLOCK * BLOCK;
    (blocks.start < blocks.end).then_some(blocks)
}

/// The runs of pages in `range` that match; none where the kernel does not tell.
fn find(pagemap: &File, range: &Range<u64>, query: Query) -> Vec<Range<u64>> {
    let mut runs = Vec::new();
    let mut regions = [PageRegion::default(); 64];
    let mut at = range.start;
    while at < range.end {
        match kernel::pagemap_scan(pagemap.as_fd(), at, range.end, query, 0, 0, &mut regions) {
            Ok((filled, stopped)) if stopped > at => {
                for region in &regions[..filled] {
                    crate::push_run(&mut runs, region.start..region.end);
                }
                at = stopped;
            }
            _ => break,
        }
    }
    runs
}
