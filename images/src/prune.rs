use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::path::Path;

use nix::fcntl::{Flock, FlockArg};

use crate::store::{PATIENCE, TEMPORARY, sequence_of};
use crate::{Checkpoint, Error, Job, Keep, Result, files, proto, segment};

/// What [`Job::prune`] removed, or would remove.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Pruned {
    /// Checkpoints.
    pub checkpoints: Vec<u64>,
    /// Segments that no checkpoint names any more.
    pub segments: usize,
    /// Files that an interrupted checkpoint left behind.
    pub temporaries: usize,
    /// Bytes freed.
    pub bytes: u64,
    /// Checkpoints that were left alone because they cannot be read, and why. As long as there is one, no segment
    /// is removed, since it may be the one that needs it.
    pub unreadable: Vec<(u64, String)>,
}

/// Bytes on disk that a checkpoint needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Usage {
    /// The checkpoint.
    pub sequence: u64,
    /// Its manifest and the segments that no other checkpoint names: what is freed when it goes.
    pub own: u64,
    /// The segments that others name too.
    pub shared: u64,
}

impl Job {
    /// Removes all checkpoints but those that `keep` says, then segments that no checkpoint names, then what
    /// interrupted checkpoints left behind. With `dry_run` it only says what it would remove.
    ///
    /// A checkpoint that cannot be read does not count and is left alone unless it is older than all that are kept.
    /// Power may fail at any moment: what is kept is whole throughout.
    ///
    /// # Errors
    ///
    /// [`Error::Busy`] while a checkpoint of the job is being written, [`Error::Io`].
    pub fn prune(&self, keep: &Keep, dry_run: bool) -> Result<Pruned> {
        let _lock = self.lock_within(PATIENCE)?;
        let mut pruned = Pruned::default();
        let mut sweep = Sweep { dry_run, bytes: 0 };

        let (mut readable, mut unreadable) = (Vec::new(), Vec::new());
        for sequence in self.sequences()?.into_iter().rev() {
            match Checkpoint::open_manifest(self, sequence) {
                Ok((_, manifest, _)) => {
                    let named = names(&manifest).collect::<Vec<_>>();
                    readable.push((sequence, manifest.created_at, named));
                }
                Err(error) => unreadable.push((sequence, error.to_string())),
            }
        }
        // What would become of an older one, whatever its time, is asked with one more.
        let times = readable.iter().map(|&(_, time, _)| time).chain([0]);
        let stay = keep.choose(&times.collect::<Vec<_>>());
        let older_stay = stay.last() == Some(&true);
        let (mut named, mut oldest) = (BTreeSet::new(), u64::MAX);
        for ((sequence, _, names), stays) in readable.into_iter().zip(stay) {
            if stays {
                named.extend(names);
                oldest = oldest.min(sequence);
            } else {
                pruned.checkpoints.push(sequence);
            }
        }
        for (sequence, why) in unreadable {
            if sequence < oldest && !older_stay {
                pruned.checkpoints.push(sequence);
            } else {
                pruned.unreadable.push((sequence, why));
            }
        }
        // Oldest first, so that the newest is there for as long as any is.
        pruned.checkpoints.sort_unstable();
        for &sequence in &pruned.checkpoints {
            sweep.remove(&self.manifest(sequence))?;
        }
        // No manifest may come back after a loss of power that names a segment that does not.
        sweep.sync(self.path())?;
        if pruned.unreadable.is_empty() {
            pruned.segments = self.collect(&named, &mut sweep)?;
        }

        for name in files::names(&self.segments())? {
            let path = self.segments().join(&name);
            if name.strip_suffix(TEMPORARY).is_some_and(is_segment) && !in_use(&path) {
                pruned.temporaries += 1;
                sweep.remove(&path)?;
            }
        }
        sweep.sync(&self.segments())?;
        for name in files::names(self.path())? {
            if name.strip_suffix(TEMPORARY).and_then(sequence_of).is_some() {
                pruned.temporaries += 1;
                sweep.remove(&self.path().join(&name))?;
            }
        }
        pruned.bytes = sweep.bytes;
        Ok(pruned)
    }

    /// Removes the segments that are not named. The job is locked, and all of its manifests were read.
    pub(crate) fn collect(&self, named: &BTreeSet<String>, sweep: &mut Sweep) -> Result<usize> {
        let mut count = 0;
        for name in files::names(&self.segments())? {
            if is_segment(&name) && !named.contains(&name) {
                count += 1;
                sweep.remove(&self.segments().join(&name))?;
            }
        }
        Ok(count)
    }

    /// What each checkpoint needs on disk, by number. Those that cannot be read are left out.
    ///
    /// # Errors
    ///
    /// [`Error::Io`] when the directory cannot be read.
    pub fn usage(&self) -> Result<Vec<Usage>> {
        let mut all = Vec::new();
        let mut users: BTreeMap<Vec<u8>, usize> = BTreeMap::new();
        for sequence in self.sequences()? {
            let Ok((_, manifest, bytes)) = Checkpoint::open_manifest(self, sequence) else {
                continue;
            };
            for reference in &manifest.segments {
                *users.entry(reference.id.clone()).or_default() += 1;
            }
            all.push((sequence, bytes, manifest.segments));
        }
        let usage = |(sequence, bytes, segments): (u64, u64, Vec<proto::SegmentReference>)| {
            let length = |alone: bool| {
                segments
                    .iter()
                    .filter(|reference| (users[&reference.id] == 1) == alone)
                    .map(|reference| reference.length)
                    .sum::<u64>()
            };
            Usage {
                sequence,
                own: bytes + length(true),
                shared: length(false),
            }
        };
        Ok(all.into_iter().map(usage).collect())
    }
}

/// Removes files, or would, and counts their bytes.
pub(crate) struct Sweep {
    pub(crate) dry_run: bool,
    pub(crate) bytes: u64,
}

impl Sweep {
    fn remove(&mut self, path: &Path) -> Result<()> {
        // A count for people: a size that cannot be had is left out.
        self.bytes += std::fs::symlink_metadata(path).map_or(0, |metadata| metadata.len());
        if self.dry_run {
            return Ok(());
        }
        std::fs::remove_file(path).map_err(Error::io("remove", path))
    }

    fn sync(&self, path: &Path) -> Result<()> {
        if self.dry_run {
            return Ok(());
        }
        files::sync_dir(path)
    }
}

/// The files of the segments that a checkpoint needs.
pub(crate) fn names(manifest: &proto::Manifest) -> impl Iterator<Item = String> {
    manifest
        .segments
        .iter()
        .map(|reference| segment::file_name(&reference.id))
}

/// Whether somebody is writing a temporary segment without holding the job.
fn in_use(path: &Path) -> bool {
    File::open(path).is_ok_and(|file| Flock::lock(file, FlockArg::LockExclusiveNonblock).is_err())
}

/// Whether a name is one that [`segment::file_name`] gives; other files are not ours to remove.
fn is_segment(name: &str) -> bool {
    let hex = name.strip_suffix(".seg");
    hex.is_some_and(|hex| {
        hex.len() == 32 && hex.bytes().all(|c| matches!(c, b'0'..=b'9' | b'a'..=b'f'))
    })
}
