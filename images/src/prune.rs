use std::collections::BTreeSet;
use std::path::Path;

use crate::store::{TEMPORARY, sequence_of};
use crate::{Checkpoint, Error, Job, Result, files, segment};

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

impl Job {
    /// Removes all checkpoints but the newest `keep` readable ones, then segments that no checkpoint names, then what
    /// interrupted checkpoints left behind. With `dry_run` it only says what it would remove.
    ///
    /// A checkpoint that cannot be read does not count and is left alone unless it is older than all that are kept.
    /// Power may fail at any moment: what is kept is whole throughout.
    ///
    /// # Errors
    ///
    /// [`Error::Busy`] while a checkpoint of the job is being written, [`Error::Io`].
    pub fn prune(&self, keep: usize, dry_run: bool) -> Result<Pruned> {
        let _lock = self.lock()?;
        let remove = |path: &Path| {
            // A count for people: a size that cannot be had is left out.
            let bytes = std::fs::symlink_metadata(path).map_or(0, |metadata| metadata.len());
            if dry_run {
                Ok(bytes)
            } else {
                std::fs::remove_file(path)
                    .map(|()| bytes)
                    .map_err(Error::io("remove", path))
            }
        };
        let sync = |path: &Path| {
            if dry_run {
                Ok(())
            } else {
                files::sync_dir(path)
            }
        };
        let mut pruned = Pruned::default();

        let mut named = BTreeSet::new();
        let mut kept = 0;
        for sequence in self.sequences()?.into_iter().rev() {
            if kept >= keep {
                pruned.checkpoints.push(sequence);
                continue;
            }
            match Checkpoint::open_manifest(self, sequence) {
                Ok((_, manifest, _)) => {
                    kept += 1;
                    named.extend(
                        manifest
                            .segments
                            .iter()
                            .map(|reference| segment::file_name(&reference.id)),
                    );
                }
                Err(error) => pruned.unreadable.push((sequence, error.to_string())),
            }
        }
        // Oldest first, so that the newest is there for as long as any is.
        pruned.checkpoints.reverse();
        for &sequence in &pruned.checkpoints {
            pruned.bytes += remove(&self.manifest(sequence))?;
        }
        // No manifest may come back after a loss of power that names a segment that does not.
        sync(self.path())?;

        for name in files::names(&self.segments())? {
            let path = self.segments().join(&name);
            if is_segment(&name) && !named.contains(&name) && pruned.unreadable.is_empty() {
                pruned.segments += 1;
                pruned.bytes += remove(&path)?;
            } else if name.strip_suffix(TEMPORARY).is_some_and(is_segment) {
                pruned.temporaries += 1;
                pruned.bytes += remove(&path)?;
            }
        }
        sync(&self.segments())?;
        for name in files::names(self.path())? {
            if name.strip_suffix(TEMPORARY).and_then(sequence_of).is_some() {
                pruned.temporaries += 1;
                pruned.bytes += remove(&self.path().join(&name))?;
            }
        }
        Ok(pruned)
    }
}

/// Whether a name is one that [`segment::file_name`] gives; other files are not ours to remove.
fn is_segment(name: &str) -> bool {
    let hex = name.strip_suffix(".seg");
    hex.is_some_and(|hex| {
        hex.len() == 32 && hex.bytes().all(|c| matches!(c, b'0'..=b'9' | b'a'..=b'f'))
    })
}
