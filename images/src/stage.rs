//! Copies of checkpoints on storage that is nearer.

use std::io::Write as _;
use std::os::unix::fs::FileExt as _;

use crate::store::PATIENCE;
use crate::{Checkpoint, Error, Job, Result, files, manifest};

/// Bytes copied at a time.
const PIECE: usize = 1 << 20;

impl Checkpoint {
    /// Copies this checkpoint to the same job of another store, where it counts once all of it is on disk. Segments that are there
    /// already, of this or another checkpoint, are not copied again.
    ///
    /// # Errors
    ///
    /// [`Error::Busy`] when another process is at that job, [`Error::Io`].
    pub fn copy_to(&self, job: &Job) -> Result<()> {
        let _lock = job.lock_within(PATIENCE)?;
        let mut piece = vec![0; PIECE];
        for (segment, reference) in self.segments.iter().zip(&self.manifest().segments) {
            let name = segment.path.file_name().unwrap_or_default();
            let path = job.segments().join(name);
            if path
                .metadata()
                .is_ok_and(|has| has.len() == reference.length)
            {
                continue;
            }
            let temporary = path.with_extension("seg.tmp");
            let _ = std::fs::remove_file(&temporary);
            let mut copy = files::create(&temporary)?;
            let mut at = 0;
            while at < reference.length {
                let length = (reference.length - at).min(PIECE as u64) as usize;
                let piece = &mut piece[..length];
                let read = segment.file.read_exact_at(piece, at);
                read.map_err(Error::io("read", &segment.path))?;
                copy.write_all(piece)
                    .map_err(Error::io("write", &temporary))?;
                at += length as u64;
            }
            copy.sync_all().map_err(Error::io("sync", &temporary))?;
            files::rename(&temporary, &path)?;
        }
        files::sync_dir(&job.segments())?;
        let bytes = manifest::encode(self.manifest())?;
        let path = job.manifest(self.sequence());
        let temporary = path.with_extension("ckpt.tmp");
        files::write(&temporary, &bytes)?;
        files::rename(&temporary, &path)?;
        files::sync_dir(job.path())
    }

    /// Whether this is a copy of `other`, or the other way round: frames of the one are those of the other.
    #[must_use]
    pub fn is_copy_of(&self, other: &Self) -> bool {
        self.manifest() == other.manifest()
    }
}

#[cfg(test)]
mod tests {
    use crate::{Compression, PAGE_SIZE, Store, proto};

    #[test]
    fn a_copy_has_every_page() {
        let dir = tempfile::tempdir().unwrap();
        let open = |name: &str| {
            let store = Store::create(&dir.path().join(name)).unwrap();
            store.create_job("j").unwrap()
        };
        let (job, stage) = (open("store"), open("stage"));
        let writer = job.begin(Compression::None, None).unwrap();
        let data: Vec<u8> = (0..3 * PAGE_SIZE).map(|at| (at % 251) as u8).collect();
        writer.put(1, 0, &[5, 6, 9], &data).unwrap();
        let (snapshot, statistics) = (proto::Snapshot::default(), proto::Statistics::default());
        writer.commit(snapshot, statistics).unwrap();
        let checkpoint = job.checkpoint(None).unwrap();
        for _ in 0..2 {
            checkpoint.copy_to(&stage).unwrap();
            let copy = stage.checkpoint(None).unwrap();
            assert!(copy.is_copy_of(&checkpoint));
            let mut bytes = Vec::new();
            let frame = &checkpoint.frames(1).unwrap()[0];
            copy.read(frame, &mut bytes).unwrap();
            assert_eq!(bytes, data);
        }
        let writer = job.begin(Compression::None, None).unwrap();
        let (snapshot, statistics) = (proto::Snapshot::default(), proto::Statistics::default());
        writer.commit(snapshot, statistics).unwrap();
        let other = job.checkpoint(None).unwrap();
        assert!(!stage.checkpoint(None).unwrap().is_copy_of(&other));
    }
}
