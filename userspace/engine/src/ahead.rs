//! What is found out of a job just before it stands still, and needs no second look if nothing has changed by then. The kernel says at the
//! capture whether something has: nothing here is believed without that.

use std::collections::HashMap;
use std::fs::Metadata;
use std::os::unix::fs::MetadataExt;
use std::sync::{Mutex, PoisonError};

use tracker::{Descriptor, MapGeneration, Thread, Tracker};

use crate::areas::{self, Area, Paths};
use crate::files;

/// What was found.
#[derive(Debug, Default)]
pub(crate) struct Ahead {
    /// Files and directories that their paths led to, by device and inode, of which the kernel tells the same as stat(2): a path that is
    /// still theirs still leads to them.
    files: HashMap<(u64, u64), String>,
    /// Mappings of processes, with what the kernel would count on if one changed.
    areas: Mutex<HashMap<u32, (MapGeneration, Vec<Area>)>>,
}

impl Ahead {
    /// Looks at processes that may run.
    pub(crate) fn look(pids: &[u32], tracker: Option<&Tracker>) -> Self {
        let mut this = Self::default();
        let Some(tracker) = tracker else { return this };
        let (mut areas, mut paths) = (HashMap::new(), Paths::new());
        for &pid in pids {
            for told in tracker.descriptors(pid).unwrap_or_default() {
                this.add(told);
            }
            // What changes while it is read counts on.
            let threads = tracker.threads(pid).unwrap_or_default();
            if let Some(generation) = generation(&threads)
                && let Ok(found) = areas::of(pid, Some(tracker), &mut paths)
            {
                areas.insert(pid, (generation, found));
            }
            // Open files of a process that runs may end, and others take their places.
            paths.clear();
        }
        this.areas = Mutex::new(areas);
        this
    }

    fn add(&mut self, told: Descriptor) {
        let known = self.files.get(&files::key(&told));
        if known.is_some() && known == told.path.as_ref() {
            return;
        }
        let same = |meta: &Metadata| {
            let modified = (meta.mtime() as u64)
                .wrapping_mul(1_000_000_000)
                .wrapping_add(meta.mtime_nsec() as u64);
            let shown = (meta.size(), meta.mode(), modified, meta.nlink());
            shown == (told.size, told.mode, told.modified, u64::from(told.links))
        };
        if let Some((path, meta)) = files::found(&told)
            && same(&meta)
        {
            self.files.insert(files::key(&told), path.clone());
        }
    }

    /// Whether an open file is still found at its path, and stat(2) would say what is told.
    pub(crate) fn knows(&self, told: &Descriptor) -> bool {
        let path = self.files.get(&files::key(told));
        told.links > 0 && path.is_some() && path == told.path.as_ref()
    }

    /// The mappings of a stopped process, if they are as they were; once.
    pub(crate) fn areas(&self, pid: u32, threads: &[Thread]) -> Option<Vec<Area>> {
        let mut all = self.areas.lock().unwrap_or_else(PoisonError::into_inner);
        let (before, found) = all.remove(&pid)?;
        drop(all);
        let same = generation(threads) == Some(before) && areas::are_in_place(&found);
        same.then_some(found)
    }
}

fn generation(threads: &[Thread]) -> Option<MapGeneration> {
    let leader = threads.iter().find_map(|thread| thread.process.as_ref())?;
    leader.map_generation
}
