//! Written pages by the soft-dirty bit of each page's entry (`CONFIG_MEM_SOFT_DIRTY`), for kernels without `WP_ASYNC`.

use std::ops::Range;

use crate::kernel::entry;
use crate::pagemap::failed;
use crate::track::{WriteTracker, Written};
use crate::{Error, Kind, PageSet, Pagemap};

/// The bits of /proc/PID/pagemap that /proc/PID/clear_refs clears, and beside them the page frames.
///
/// The bit alone is not enough. A page that was given back and then read shows the shared page of zeros, clean; page tables that
/// mremap(2) moves as a whole keep their bits (`move_normal_pmd()` in mm/mremap.c); merging by the kernel (KSM) loses them.
/// In each case another frame is there than before. So a page counts as written unless it is clean and in its old frame.
#[derive(Debug)]
pub struct SoftDirty {
    pid: u32,
    /// The pages that were in memory or in swap at the last collect.
    there: PageSet,
    /// Their frames, in the same order.
    frames: Vec<u64>,
}

impl SoftDirty {
    /// Watches process `pid`. Nobody else may clear its bits; frames are shown to `CAP_SYS_ADMIN` only, without which all pages
    /// count as written.
    #[must_use]
    pub fn new(pid: u32) -> Self {
        Self {
            pid,
            there: PageSet::new(),
            frames: Vec::new(),
        }
    }

    /// Clears the bits of the whole process (`CLEAR_REFS_SOFT_DIRTY` in fs/proc/task_mmu.c).
    fn clear(&self) -> Result<(), Error> {
        let path = format!("/proc/{}/clear_refs", self.pid);
        std::fs::write(&path, "4").map_err(|source| failed(self.pid, path, source))
    }
}

impl WriteTracker for SoftDirty {
    fn collect(
        &mut self,
        areas: &[Range<u64>],
        shared: bool,
        written: &mut Written,
    ) -> Result<(), Error> {
        let pagemap = Pagemap::open(self.pid)?;
        if areas.is_empty() {
            return pagemap.check_alive();
        }
        let mut before = self.there.iter().zip(&self.frames).peekable();
        let (mut there, mut frames) = (PageSet::new(), Vec::new());
        for area in areas {
            pagemap.each(area, &mut |page, raw| {
                if raw & entry::FILE != 0 && !shared {
                    return;
                }
                let frame = raw & entry::FRAME;
                while before.next_if(|&(earlier, _)| earlier < page).is_some() {}
                let known = before.next_if(|&(same, _)| same == page);
                let same = frame != 0 && known.is_some_and(|(_, &known)| known == frame);
                if raw & entry::SOFT_DIRTY != 0 || !same {
                    written.pages.insert(page);
                }
                there.insert(page);
                frames.push(frame);
            })?;
        }
        self.clear()?;
        drop(before);
        (self.there, self.frames) = (there, frames);
        Ok(())
    }

    fn vanished(&self, pages: &PageSet) -> Result<PageSet, Error> {
        Ok(pages - &self.there)
    }

    fn needs_stop(&self) -> bool {
        true
    }

    /// Walks over the tables of huge pages pass them by (`clear_refs_walk_ops` has no `hugetlb_entry`).
    fn covers(&self, kind: Kind) -> bool {
        kind != Kind::Huge
    }
}
