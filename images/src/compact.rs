//! Giving back the room of pages that no checkpoint needs any more.

use std::collections::{BTreeSet, HashMap};
use std::time::Duration;

use nix::fcntl::{Flock, FlockArg};

use crate::lane::Lane;
use crate::prune::{Sweep, names};
use crate::rewrite::{Needed, Rewritten, rewrite};
use crate::segment::Segments;
use crate::store::PATIENCE;
use crate::survey::Survey;
use crate::{Checkpoint, Error, Job, PageSet, Result, files, manifest, proto};

/// What [`Job::compact`] did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Compacted {
    /// Segments that are gone.
    pub segments: usize,
    /// Bytes that they had.
    pub freed: u64,
    /// Bytes of the segments that stand for them.
    pub written: u64,
}

/// How long the job is left to others between one manifest and the next.
const PAUSE: Duration = Duration::from_millis(10);

impl Job {
    /// Rewrites segments of which most is needed by no checkpoint any more, or of which there are too many, and removes
    /// them. Every checkpoint is whole at every moment, and reads the same before and after.
    ///
    /// Checkpoints may be written meanwhile: the job is locked for moments only. `go_on` is asked again and again, and
    /// may put an end to it by saying no; it is worth calling it on a thread with idle I/O priority. As long as any
    /// checkpoint of the job cannot be read, nothing is done.
    ///
    /// # Errors
    ///
    /// Those with [`Error::is_damage`] when pages cannot be read that have to be copied, [`Error::Io`].
    pub fn compact(&self, go_on: &dyn Fn() -> bool) -> Result<Compacted> {
        let mut done = Compacted::default();
        let go_on = || if go_on() { Ok(()) } else { Err(Error::Stopped) };
        loop {
            match self.compact_some(&go_on, &mut done) {
                Ok(true) => {}
                Ok(false) | Err(Error::Stopped) => return Ok(done),
                Err(error) => return Err(error),
            }
        }
    }

    /// How many bytes [`compact`](Self::compact) would free, about.
    ///
    /// # Errors
    ///
    /// As of [`compact`](Self::compact).
    pub fn compactable(&self) -> Result<u64> {
        let Some(survey) = Survey::of(self)? else {
            return Ok(0);
        };
        let chosen = survey.choose();
        let dead = chosen.iter().map(|&index| survey.segments[index].dead());
        Ok(dead.sum())
    }

    /// One new segment, and the end of those that it stands for. False when there is nothing to do.
    fn compact_some(&self, go_on: &dyn Fn() -> Result<()>, done: &mut Compacted) -> Result<bool> {
        let Some(survey) = Survey::of(self)? else {
            return Ok(false);
        };
        let needed = survey.batch();
        if needed.is_empty() {
            return Ok(false);
        }
        let lane = Lane::create(self)?;
        let temporary = lane.temporary.clone();
        let rewritten = self.replace(lane, &needed, go_on, done);
        if rewritten.is_err() {
            let _ = std::fs::remove_file(temporary);
        }
        rewritten
    }

    fn replace(
        &self,
        lane: Lane,
        needed: &[Needed],
        go_on: &dyn Fn() -> Result<()>,
        done: &mut Compacted,
    ) -> Result<bool> {
        // The lock tells `prune` that somebody is at it.
        let file = lane
            .file
            .try_clone()
            .map_err(Error::io("open", &lane.temporary))?;
        let _in_use = Flock::lock(file, FlockArg::LockShared)
            .map_err(|(_, errno)| Error::io("lock", &lane.temporary)(errno.into()))?;
        let new = rewrite(lane, needed, go_on)?;
        let old: BTreeSet<&[u8]> = needed.iter().map(|has| &has.segment.id[..]).collect();
        let mut switched = false;
        let mut segments = Segments::default();
        for sequence in self.sequences()? {
            go_on()?;
            // Who waits for the job shall have it.
            std::thread::sleep(PAUSE);
            let lock = self.lock_soon(go_on)?;
            // It may have been removed meanwhile; one that is new may need more than is there.
            let Ok(checkpoint) = Checkpoint::open_with(self, sequence, &mut segments) else {
                continue;
            };
            let Some(manifest) = relaid(&checkpoint, &old, &new) else {
                continue;
            };
            if switched {
                // Another `prune` may have removed what no checkpoint named for a moment.
                if !new.lane.path.exists() {
                    return Ok(false);
                }
            } else {
                go_on()?;
                files::rename(&new.lane.temporary, &new.lane.path)?;
                files::sync_dir(&self.segments())?;
                switched = true;
                done.written += new.reference.length;
            }
            go_on()?;
            self.put_manifest(&manifest, go_on)?;
            drop(lock);
        }
        if !switched {
            let _ = std::fs::remove_file(&new.lane.temporary);
            return Ok(false);
        }
        go_on()?;
        let _lock = self.lock_soon(go_on)?;
        let mut named = BTreeSet::new();
        for sequence in self.sequences()? {
            match Checkpoint::open_manifest(self, sequence) {
                Ok((_, manifest, _)) => named.extend(names(&manifest)),
                Err(_) => return Ok(false),
            }
        }
        let mut sweep = Sweep {
            dry_run: false,
            bytes: 0,
        };
        let gone = self.collect(&named, &mut sweep)?;
        done.segments += gone;
        done.freed += sweep.bytes;
        // Without this, what remains would be found again and again.
        Ok(gone > 0)
    }

    /// Puts a manifest in the place of the one that is there.
    fn put_manifest(
        &self,
        manifest: &proto::Manifest,
        go_on: &dyn Fn() -> Result<()>,
    ) -> Result<()> {
        let path = self.manifest(manifest.sequence);
        let temporary = path.with_extension("ckpt.tmp");
        let bytes = manifest::encode(manifest)?;
        files::write(&temporary, &bytes)?;
        go_on()?;
        files::rename(&temporary, &path)?;
        files::sync_dir(self.path())
    }

    fn lock_soon(&self, go_on: &dyn Fn() -> Result<()>) -> Result<Flock<std::fs::File>> {
        loop {
            match self.lock_within(PATIENCE) {
                Err(Error::Busy { .. }) => go_on()?,
                locked => return locked,
            }
        }
    }
}

/// The manifest with the new segment in the place of the old ones; `None` where nothing of it changes.
fn relaid(
    checkpoint: &Checkpoint,
    old: &BTreeSet<&[u8]>,
    new: &Rewritten,
) -> Option<proto::Manifest> {
    let mut manifest = checkpoint.manifest().clone();
    let added = manifest.segments.len() as u32;
    let mut changed = false;
    for (pages, space) in manifest.spaces.iter_mut().zip(checkpoint.spaces.iter()) {
        let mut live = space.live().iter();
        pages.layers.retain_mut(|layer| {
            let live = live.next().map(|live| &**live);
            let id = &checkpoint.segments[layer.segment as usize].id;
            if !old.contains(&id[..]) {
                return true;
            }
            if live.is_none_or(PageSet::is_empty) {
                changed = true;
                return false;
            }
            let key = (id.to_vec(), layer.section as usize);
            // A checkpoint that is based on one that was removed by then may need pages that nobody needed.
            let new = new.sections.get(&key);
            let new = new.filter(|(_, has)| live.is_some_and(|live| live.is_subset(has)));
            if let Some((section, _)) = new {
                *layer = proto::Layer {
                    segment: added,
                    section: *section,
                };
                changed = true;
            }
            true
        });
    }
    if !changed {
        return None;
    }
    manifest.segments.push(new.reference.clone());
    let layers = || manifest.spaces.iter().flat_map(|space| &space.layers);
    let used: BTreeSet<u32> = layers().map(|layer| layer.segment).collect();
    let numbers: HashMap<u32, u32> = used.iter().copied().zip(0..).collect();
    for layer in manifest
        .spaces
        .iter_mut()
        .flat_map(|space| &mut space.layers)
    {
        layer.segment = numbers[&layer.segment];
    }
    manifest.segments = used
        .iter()
        .map(|&index| manifest.segments[index as usize].clone())
        .collect();
    Some(manifest)
}
