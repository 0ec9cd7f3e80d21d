//! What is written to shared anonymous memory, through the mappings of all processes that have it.
//!
//! Only `MAP_SHARED | MAP_ANONYMOUS` is followed: nobody outside of the job can have it, and nothing but mappings leads to it. A memfd or a
//! file of tmpfs may be written by others, or by write(2), and is always taken whole.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ops::Range;

use images::PageSet;
use images::proto::mapping::Kind as MappingKind;
use images::proto::shared_memory::Kind;
use images::proto::{SharedMemory, Snapshot};
use memory::PAGE_SIZE;
use memory::track::{Written, page_runs};

use super::{Settled, Space};

/// Device and inode of an object.
pub(crate) type Key = (u64, u64);

/// A mapping of an object: the number of the space, where it lies there, and where in the object.
type View = (u64, Range<u64>, u64);

/// One object, as of the newest checkpoint.
#[derive(Default)]
pub(super) struct Object {
    pub(super) number: u64,
    /// Its mappings when they were last looked at: what one that is gone has written meanwhile, nobody knows.
    views: BTreeSet<(u64, u64, u64, u64)>,
    /// Pages that the base has.
    present: PageSet,
    /// Pages written since.
    written: PageSet,
    /// What was written is not known.
    unknown: bool,
}

impl Object {
    pub(super) fn new(number: u64) -> Self {
        Self {
            number,
            unknown: true,
            ..Self::default()
        }
    }

    /// The base is gone.
    pub(super) fn forget_base(&mut self) {
        self.present.clear();
        self.unknown = true;
    }

    /// Notes what was written of its `data` through its mappings, in a frozen job.
    pub(super) fn look(
        &mut self,
        views: &[View],
        data: &[Range<u64>],
        spaces: &mut BTreeMap<u32, Space>,
    ) -> Result<(), memory::Error> {
        let mut seen = BTreeSet::new();
        for (number, range, offset) in views {
            seen.insert((*number, range.start, range.end, *offset));
            let length = range.end - range.start;
            let space = (spaces.values_mut()).find(|space| space.number == *number);
            // A tracker that has to stop for it begins anew for the whole process, not for this mapping alone.
            let Some(space) = space.filter(|space| !space.tracker.needs_stop()) else {
                self.unknown = true;
                continue;
            };
            let mut written = Written::default();
            space
                .tracker
                .collect(std::slice::from_ref(range), true, &mut written)?;
            let mut runs = written.runs(range);
            let inside = |part: &Range<u64>| {
                let (start, end) = (part.start.max(*offset), part.end.min(offset + length));
                (start < end).then(|| start - offset + range.start..end - offset + range.start)
            };
            let areas: Vec<_> = data.iter().filter_map(inside).collect();
            let holes = space.tracker.holes(&areas)?;
            runs.extend(page_runs(&holes, range));
            for run in runs {
                let page = |address: u64| (address - range.start + offset) / PAGE_SIZE;
                self.written.insert_range(page(run.start)..page(run.end));
            }
        }
        self.unknown |= !self.views.is_subset(&seen);
        self.views = seen;
        Ok(())
    }

    /// What of its `data` is to be read.
    pub(super) fn todo(&self, data: &[Range<u64>]) -> Vec<Range<u64>> {
        if self.unknown {
            return data.to_vec();
        }
        data.iter()
            .flat_map(|run| page_runs(&self.written, run))
            .collect()
    }

    /// What is kept of the base. Pages that were given back (`MADV_REMOVE`) are no longer among `data`.
    pub(super) fn settle(&self, data: &[Range<u64>]) -> Settled {
        let mut kept = PageSet::new();
        if !self.unknown {
            for run in data {
                kept.insert_range(run.start / PAGE_SIZE..run.end.div_ceil(PAGE_SIZE));
            }
            kept &= &self.present;
            kept -= &self.written;
        }
        Settled {
            space: self.number,
            present: kept.clone(),
            kept,
            forgotten: PageSet::new(),
        }
    }

    pub(super) fn committed(&mut self, present: PageSet) {
        self.present = present;
        self.written.clear();
        self.unknown = false;
    }
}

/// The mappings of the objects that can be followed, by the objects' numbers.
pub(super) fn views(snapshot: &Snapshot) -> HashMap<u64, Vec<View>> {
    let followed: HashMap<u32, &SharedMemory> = snapshot
        .shared
        .iter()
        .filter(|shared| shared.kind() == Kind::Anonymous && shared.huge_page_size == 0)
        .map(|shared| (shared.id, shared))
        .collect();
    let mut views: HashMap<u64, Vec<View>> = followed
        .values()
        .map(|shared| (shared.space, Vec::new()))
        .collect();
    for memory in snapshot.processes.iter().filter_map(|p| p.memory.as_ref()) {
        let shared = memory.mappings.iter();
        for m in shared.filter(|m| m.kind() == MappingKind::AnonymousShared) {
            if let Some(object) = followed.get(&m.file)
                && let Some(views) = views.get_mut(&object.space)
            {
                views.push((memory.space, m.start..m.end, m.offset));
            }
        }
    }
    views
}
