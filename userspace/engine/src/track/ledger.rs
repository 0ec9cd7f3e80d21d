//! What is known of the pages of one space between two checkpoints, and what the next has copied of them.

use std::ops::Range;

use images::PageSet;
use memory::PAGE_SIZE;
use memory::track::Written;

use crate::pages::Copied;

/// The pages of one space.
#[derive(Default)]
pub(super) struct Ledger {
    /// Pages that the base has, as content or as zeros.
    present: PageSet,
    /// What was written since the base. Lives on when a checkpoint fails.
    written: Written,
    /// Of these, what this checkpoint has not copied yet.
    todo: Written,
    /// Pages that this checkpoint has copied and that were not written since.
    copied: PageSet,
    /// Pages that this checkpoint has ever copied.
    put: PageSet,
}

impl Ledger {
    /// The base has these pages and nothing was written since.
    pub(super) fn of(present: PageSet) -> Self {
        Self {
            present,
            ..Self::default()
        }
    }

    /// What was written is not known.
    pub(super) fn doubt(&mut self) {
        self.note(&Written {
            whole: vec![0..u64::MAX / PAGE_SIZE * PAGE_SIZE],
            ..Written::default()
        });
    }

    /// There is no base any more.
    pub(super) fn forget_base(&mut self) {
        self.present.clear();
        self.doubt();
    }

    /// The pages of these that the base has.
    pub(super) fn present_among(&self, pages: &PageSet) -> PageSet {
        pages & &self.present
    }

    /// A checkpoint begins.
    pub(super) fn begin(&mut self) {
        self.todo = self.written.clone();
        self.copied.clear();
        self.put.clear();
    }

    /// What was empty may be filled with what was missing there. Whatever is still empty the next look tells anew.
    pub(super) fn forget_empty(&mut self) {
        self.written.empty.clear();
        self.todo.empty.clear();
    }

    /// This was written.
    pub(super) fn note(&mut self, news: &Written) {
        self.written.add(news);
        self.todo.add(news);
    }

    /// All that was to be copied was.
    pub(super) fn took(&mut self, Copied { pages, gone }: Copied) {
        self.todo.subtract_from(&mut self.copied);
        self.copied |= &pages;
        self.put |= pages;
        self.todo = Written {
            pages: gone,
            ..Written::default()
        };
    }

    /// What is to be copied of `range`.
    pub(super) fn todo(&self, range: &Range<u64>) -> Vec<Range<u64>> {
        self.todo.runs(range)
    }

    /// About how many pages are to be copied, of `most` that there are.
    pub(super) fn left(&self, most: u64) -> u64 {
        let whole = self.todo.whole.iter();
        let whole: u64 = whole.map(|run| (run.end - run.start) / PAGE_SIZE).sum();
        self.todo.pages.len() + whole.min(most)
    }

    /// Whether more than half of what was copied is to be copied again.
    pub(super) fn outruns(&self, left: u64) -> bool {
        left > self.copied.len() / 2
    }

    /// The space is no more; gives what was copied of it.
    pub(super) fn lose(&mut self) -> PageSet {
        std::mem::take(&mut self.put)
    }

    /// What this checkpoint keeps of its base, and of what was copied while the job ran, inside `areas`.
    pub(super) fn settle<'a>(
        &self,
        space: u64,
        areas: impl Iterator<Item = &'a Range<u64>> + Clone,
    ) -> Settled {
        let mut kept = self.present.clone();
        self.written.subtract_from(&mut kept);
        keep_inside(&mut kept, areas.clone());
        let mut copied = self.copied.clone();
        self.todo.subtract_from(&mut copied);
        keep_inside(&mut copied, areas);
        Settled {
            space,
            forgotten: &self.put - &copied,
            present: &kept | &copied,
            kept,
        }
    }

    /// The checkpoint is on disk, with these pages: from here on, what was written since it counts.
    pub(super) fn committed(&mut self, present: PageSet) {
        self.present = present;
        self.written = Written::default();
    }
}

/// The pages of one space in a checkpoint that is about to be committed.
#[derive(Default)]
pub(crate) struct Settled {
    pub(crate) space: u64,
    /// All of them.
    pub(super) present: PageSet,
    /// Those that lie where the base has them.
    pub(crate) kept: PageSet,
    /// Copied, and gone or written since.
    pub(crate) forgotten: PageSet,
}

impl Settled {
    /// These were given back.
    pub(super) fn vanished(&mut self, pages: &PageSet) {
        // What was copied of them is not to stay in the image.
        self.forgotten |= pages & &(&self.present - &self.kept);
        self.kept -= pages;
        self.present -= pages;
    }

    /// These lie where the base has them, and had yet to come in.
    pub(super) fn missing(&mut self, pages: &PageSet) {
        self.kept |= pages;
        self.present |= pages;
    }

    /// These were read last of all.
    pub(crate) fn found(&mut self, pages: &PageSet) {
        self.forgotten -= pages;
        self.present |= pages;
    }
}

/// Removes the pages that lie in none of `areas`, which are by address.
fn keep_inside<'a>(pages: &mut PageSet, areas: impl Iterator<Item = &'a Range<u64>>) {
    let mut at = 0;
    for range in areas {
        pages.remove_range(at..range.start / PAGE_SIZE);
        at = range.end.div_ceil(PAGE_SIZE);
    }
    pages.remove_range(at..);
}
