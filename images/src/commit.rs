//! The end of a checkpoint: from pages that were put to one that counts.

use std::io::Write as _;
use std::os::unix::fs::FileExt as _;
use std::time::{SystemTime, UNIX_EPOCH};

use prost::Message as _;

use crate::writer::{Lane, Writer};
use crate::{Error, Result, files, manifest, proto, segment};

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
            let placement = &mut state.placements[index];
            let footer = placement.footer()?.encode_to_vec();
            segments.push(self.finish_segment(&lanes[index], &footer, placement.end)?);
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
        statistics.base = self.base.as_ref().map_or(0, |base| base.sequence());
        let now = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default();
        let bytes = manifest::encode(
            &proto::Features::default(),
            &proto::Manifest {
                job: self.job.name().into(),
                sequence: self.sequence,
                version: env!("CARGO_PKG_VERSION").into(),
                parent: self.parent,
                created_at: u64::try_from(now.as_nanos()).unwrap_or(u64::MAX),
                snapshot: Some(snapshot),
                spaces: map.spaces,
                segments,
                statistics: Some(statistics),
            },
        )?;
        let path = self.job.manifest(self.sequence);
        let temporary = path.with_extension("ckpt.tmp");
        // Of an earlier writer that was killed; the job is ours now.
        let _ = std::fs::remove_file(&temporary);
        let mut file = files::create(&temporary)?;
        self.garbage.push(temporary.clone());
        files::check_size(bytes.len() as u64, self.limit)
            .and_then(|()| file.write_all(&bytes))
            .map_err(Error::io("write", &temporary))?;
        file.sync_all().map_err(Error::io("sync", &temporary))?;
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

    /// Completes a segment and gives it its name.
    fn finish_segment(
        &mut self,
        lane: &Lane,
        footer: &[u8],
        end: u64,
    ) -> Result<proto::SegmentReference> {
        if footer.len() > segment::FOOTER_LIMIT {
            return Err(Error::TooLarge {
                bytes: footer.len(),
                limit: segment::FOOTER_LIMIT,
            });
        }
        let header = segment::header(&lane.id, self.job.name());
        let hash = segment::hash(&header, footer);
        let tail = [footer, &segment::trailer(footer, &hash)].concat();
        let length = end + tail.len() as u64;
        files::check_size(length, self.limit)
            .and_then(|()| lane.file.write_all_at(&tail, end))
            .and_then(|()| lane.file.write_all_at(&header, 0))
            .map_err(Error::io("write", &lane.temporary))?;
        lane.file
            .sync_all()
            .map_err(Error::io("sync", &lane.temporary))?;
        let path = self.job.segments().join(segment::file_name(&lane.id));
        files::rename(&lane.temporary, &path)?;
        self.garbage.push(path);
        files::sync_dir(&self.job.segments())?;
        Ok(proto::SegmentReference {
            id: lane.id.into(),
            length,
            hash: hash.as_bytes().to_vec(),
        })
    }
}
