//! The end of a checkpoint: from pages that were put to one that counts.

use std::time::{SystemTime, UNIX_EPOCH};

use crate::writer::Writer;
use crate::{Checkpoint, Error, Result, files, manifest, proto};

/// A checkpoint that is safely on disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Committed {
    /// Its number within the job.
    pub sequence: u64,
    /// Bytes written for it, manifest and segments.
    pub bytes: u64,
    /// Pages with content that were put; those of zeros take no room.
    pub pages: u64,
    /// Pages with content that lie where the base has them.
    pub kept: u64,
}

impl Writer {
    /// Makes the checkpoint count: once this returns it is on disk, whole, and the job's newest.
    ///
    /// Sets the pages, bytes, compression and base of `statistics`; the rest is the caller's.
    ///
    /// # Errors
    ///
    /// [`Error::Incomplete`] after a failed [`put`](Self::put), [`Error::Pages`] when chunks overlap,
    /// [`Error::TooLarge`], [`Error::Io`]. The store is then as it was before.
    pub fn commit(
        mut self,
        snapshot: proto::Snapshot,
        mut statistics: proto::Statistics,
    ) -> Result<Committed> {
        let mut state = std::mem::take(&mut *self.state());
        if state.failed {
            return Err(Error::Incomplete {
                job: self.job.name().into(),
                sequence: self.sequence,
            });
        }
        let map = state.contents.map(&state.placements, self.base.as_ref())?;
        let lanes = std::mem::take(&mut self.lanes);
        let mut segments = Vec::new();
        for &index in &map.own {
            let lane = &lanes[index];
            segments.push(lane.finish(&mut state.placements[index])?);
            files::rename(&lane.temporary, &lane.path)?;
            self.garbage.push(lane.path.clone());
        }
        if !segments.is_empty() {
            files::sync_dir(&self.job.segments())?;
        }
        let segment_bytes = segments.iter().map(|segment| segment.length).sum();
        if let Some(base) = &self.base {
            let references = &base.manifest().segments;
            segments.extend(map.base.iter().map(|&index| references[index].clone()));
        }

        statistics.pages = map.put;
        statistics.kept = map.kept;
        statistics.bytes = segment_bytes;
        statistics.compression = self.compression.name().into();
        statistics.base = self.base.as_ref().map_or(0, Checkpoint::sequence);
        let now = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default();
        let bytes = manifest::encode(&proto::Manifest {
            job: self.job.name().into(),
            sequence: self.sequence,
            version: env!("CARGO_PKG_VERSION").into(),
            parent: self.parent,
            created_at: u64::try_from(now.as_nanos()).unwrap_or(u64::MAX),
            snapshot: Some(snapshot),
            spaces: map.spaces,
            segments,
            statistics: Some(statistics),
        })?;
        let path = self.job.manifest(self.sequence);
        let temporary = path.with_extension("ckpt.tmp");
        self.garbage.push(temporary.clone());
        files::write(&temporary, &bytes)?;
        files::rename(&temporary, &path)?;
        self.garbage.push(path);
        files::sync_dir(self.job.path())?;

        // From here on nothing of it is garbage but segments that are not named.
        self.garbage = (0..lanes.len())
            .filter(|index| !map.own.contains(index))
            .map(|index| lanes[index].temporary.clone())
            .collect();
        Ok(Committed {
            sequence: self.sequence,
            bytes: segment_bytes + bytes.len() as u64,
            pages: map.put,
            kept: map.kept,
        })
    }
}
