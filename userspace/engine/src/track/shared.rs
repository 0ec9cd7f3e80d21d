//! What is written to shared anonymous memory, through the mappings of all processes that have it.
//!
//! Only `MAP_SHARED | MAP_ANONYMOUS` is followed: nobody outside of the job can have it, and nothing but mappings leads to it. A memfd or a
//! file of tmpfs may be written by others, or by write(2), and is always taken whole.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::fs::File;
use std::ops::Range;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use images::proto::mapping::Kind as MappingKind;
use images::proto::shared_memory::Kind;
use images::proto::{SharedMemory, Snapshot};
use memory::PAGE_SIZE;
use memory::track::{Written, page_runs};
use nix::sys::stat::makedev;

use super::ledger::{Ledger, Settled};
use super::space::Space;
use crate::pages::Source;

/// Device and inode of an object.
pub(crate) type Key = (u64, u64);

/// A mapping of an object: the number of the space, where it lies there, and where in the object.
pub(super) type View = (u64, Range<u64>, u64);

/// One object.
pub(super) struct Object {
    pub(super) number: u64,
    /// Its mappings when they were last looked at: what one that is gone has written meanwhile, nobody knows.
    views: BTreeSet<(u64, u64, u64, u64)>,
    pub(super) ledger: Ledger,
    /// While it is copied beside the running job: it and its size in bytes.
    open: Option<(Arc<OwnedFd>, u64)>,
    /// Nothing more of it is copied beside the running job.
    late: bool,
}

impl Object {
    /// One that no checkpoint has.
    pub(super) fn new(number: u64) -> Self {
        let mut ledger = Ledger::default();
        ledger.doubt();
        Self {
            number,
            views: BTreeSet::new(),
            ledger,
            open: None,
            late: false,
        }
    }

    /// A checkpoint begins.
    pub(super) fn begin(&mut self) {
        self.ledger.begin();
        self.open = None;
        self.late = false;
    }

    /// Who has it mapped may be doing direct I/O to it, which was not seen.
    pub(super) fn leave_to_freeze(&mut self, space: u64) {
        self.late |= self.views.iter().any(|view| view.0 == space);
    }

    /// Notes what was written of its `data` through its mappings, in a frozen job. `forked` are those spaces of which nobody knows whether
    /// a child of theirs has written to it and ended.
    pub(super) fn look(
        &mut self,
        views: &[View],
        data: &[Range<u64>],
        spaces: &mut BTreeMap<u32, Space>,
        forked: &HashSet<u64>,
    ) -> Result<(), memory::Error> {
        self.collect(views, data, spaces, forked)?;
        let seen = views.iter().map(key).collect();
        if !self.views.is_subset(&seen) {
            self.ledger.doubt();
        }
        self.views = seen;
        Ok(())
    }

    /// The same beside the running job, of which only some processes were looked at. What goes wrong is left to the freeze.
    pub(super) fn look_live(
        &mut self,
        found: &Found,
        spaces: &mut BTreeMap<u32, Space>,
        forked: &HashSet<u64>,
    ) {
        let seen: BTreeSet<_> = found.views.iter().map(key).collect();
        let unseen = |view: &(u64, u64, u64, u64)| {
            let space = spaces.values().find(|space| space.number == view.0);
            space.is_some_and(|space| !space.is_live())
        };
        let (rest, gone): (BTreeSet<_>, BTreeSet<_>) =
            self.views.difference(&seen).partition(|view| unseen(view));
        if !gone.is_empty() {
            self.ledger.doubt();
        }
        self.views = &rest | &seen;
        let looked = self.open(&found.path).and_then(|data| {
            let looked = self.collect(&found.views, &data, spaces, forked);
            looked.map_err(memory::Error::into_source)
        });
        if let Err(error) = looked {
            tracing::debug!("{} is left to the freeze: {error}", found.path);
            self.ledger.doubt();
            self.late = true;
        }
    }

    fn collect(
        &mut self,
        views: &[View],
        data: &[Range<u64>],
        spaces: &mut BTreeMap<u32, Space>,
        forked: &HashSet<u64>,
    ) -> Result<(), memory::Error> {
        for (number, range, offset) in views {
            let length = range.end - range.start;
            let space = (spaces.values_mut()).find(|space| space.number == *number);
            // A tracker that has to stop for it begins anew for the whole process, not for this mapping alone.
            let space = space.filter(|space| !space.tracker.needs_stop());
            let Some(space) = space.filter(|_| !forked.contains(number)) else {
                self.ledger.doubt();
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
            let mut news = Written::default();
            for run in runs {
                let page = |address: u64| (address - range.start + offset) / PAGE_SIZE;
                news.pages.insert_range(page(run.start)..page(run.end));
            }
            self.ledger.note(&news);
        }
        Ok(())
    }

    /// Opens it, if it is not open yet; gives where it has pages.
    fn open(&mut self, path: &str) -> std::io::Result<Vec<Range<u64>>> {
        if self.open.is_none() {
            let file = File::open(path)?;
            let size = file.metadata()?.len();
            self.open = Some((Arc::new(file.into()), size));
        }
        self.data()
    }

    /// Where it has pages.
    fn data(&self) -> std::io::Result<Vec<Range<u64>>> {
        let Some((file, size)) = &self.open else {
            return Ok(Vec::new());
        };
        let data = memory::Object::new(file.as_fd()).data(*size);
        data.map_err(memory::Error::into_source)
    }

    /// What is to be copied beside the running job.
    pub(super) fn live_source(&self) -> Option<Source> {
        let (file, _) = self.open.as_ref().filter(|_| !self.late)?;
        Some(Source::Object {
            space: self.number,
            file: Arc::clone(file),
            areas: self.todo(&self.data().ok()?),
        })
    }

    /// What of its `data` is to be read.
    pub(super) fn todo(&self, data: &[Range<u64>]) -> Vec<Range<u64>> {
        let runs = data.iter().flat_map(|run| self.ledger.todo(run));
        runs.collect()
    }

    /// What is kept of the base, and of what was copied. Pages that were given back (`MADV_REMOVE`) are no longer among `data`.
    pub(super) fn settle(&self, data: &[Range<u64>]) -> Settled {
        self.ledger.settle(self.number, data.iter())
    }
}

fn key((space, range, offset): &View) -> (u64, u64, u64, u64) {
    (*space, range.start, range.end, *offset)
}

/// An object that running processes have mapped.
#[derive(Default)]
pub(super) struct Found {
    /// By which it can be opened.
    path: String,
    views: Vec<View>,
}

impl Found {
    /// The numbers of the spaces of those who have.
    pub(super) fn spaces(&self) -> impl Iterator<Item = u64> {
        self.views.iter().map(|view| view.0)
    }
}

/// The objects that running processes have mapped, by their last looks.
pub(super) fn found(spaces: &BTreeMap<u32, Space>) -> BTreeMap<Key, Found> {
    let mut all: BTreeMap<Key, Found> = BTreeMap::new();
    let live = |space: &&Space| space.is_live() && !space.tracker.needs_stop();
    for (pid, space) in spaces.iter().filter(|(_, space)| live(space)) {
        for area in &space.shared {
            let device = makedev(area.device.0.into(), area.device.1.into());
            let found = all.entry((device, area.inode)).or_default();
            found.path = format!("/proc/{pid}/map_files/{:x}-{:x}", area.start, area.end);
            found
                .views
                .push((space.number, area.start..area.end, area.offset));
        }
    }
    all
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
